/* cluster/coll_wait.c - see coll_wait.h. The clock is read once per step (25 ns by vDSO), which
 * is less than a poll of MPI costs. */
#include "cluster/coll_wait.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    /* Short, because two ranks may share a core although there are enough: with 50 us a sum of 8
     * KiB then took 110 us (two full spins) instead of 9. A yield on a core of one's own is 0.3 us.
     */
    SPIN_NS = 3 * 1000,
    YIELD_BELL_NS = 200 * 1000, /* with a bell sleeping is cheap and ends at once */
    YIELD_NS = 5 * 1000 * 1000,
    SLEEP_MIN_NS = 50 * 1000,
    SLEEP_MAX_NS = 1000 * 1000,
    SLEEP_SHARE = 200, /* a nap is at most 1/200 of the time waited so far, so is the delay */
    SLEEP_BELL_NS = 1000 * 1000 /* the abort flag rings no bell */
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

void coll_bell_ring(struct coll_bell *bell)
{
    atomic_fetch_add(&bell->epoch, 1);
    if (atomic_load(&bell->n_sleepers) > 0) {
        (void)syscall(SYS_futex, &bell->epoch, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    }
}

static void bell_sleep(struct coll_bell *bell, uint32_t epoch)
{
    const struct timespec limit = { .tv_sec = 0, .tv_nsec = SLEEP_BELL_NS };

    atomic_fetch_add(&bell->n_sleepers, 1);
    (void)syscall(SYS_futex, &bell->epoch, FUTEX_WAIT_PRIVATE, epoch, &limit, NULL, 0);
    atomic_fetch_sub(&bell->n_sleepers, 1);
}

void coll_waiter_init(struct coll_waiter *w, const struct coll *c, uint64_t spin_ns,
                      struct coll_bell *bell)
{
    *w = (struct coll_waiter){ .c = c, .bell = bell, .spin_ns = spin_ns, .peer = COLL_PEER_NONE };
    if (bell) {
        w->epoch = atomic_load(&bell->epoch);
    }
}

static void pass_time(struct coll_waiter *w)
{
    const uint64_t waited_ns = w->now_ns - w->begin_ns;

    if (waited_ns < w->spin_ns) {
        relax();
    } else if (waited_ns < (w->bell ? (uint64_t)YIELD_BELL_NS : (uint64_t)YIELD_NS)) {
        sched_yield();
    } else if (w->bell) {
        bell_sleep(w->bell, w->epoch);
    } else {
        const uint64_t share_ns = MIN(waited_ns / SLEEP_SHARE, (uint64_t)SLEEP_MAX_NS);
        const uint64_t nap_ns = MAX(share_ns, (uint64_t)SLEEP_MIN_NS);
        const struct timespec nap = { .tv_sec = 0, .tv_nsec = (long)nap_ns };

        (void)nanosleep(&nap, NULL);
    }
}

status coll_waiter_step(struct coll_waiter *w)
{
    const uint64_t timeout_ns = w->c->timeout_ns;

    w->now_ns = clock_now_ns(clock_real());
    if (w->n_steps++ == 0) {
        w->begin_ns = w->now_ns;
    }
    if (w->c->abort && atomic_load_explicit(w->c->abort, memory_order_relaxed)) {
        return ST_ERR_CANCELLED;
    }
    if (timeout_ns != 0 && timeout_ns != CLOCK_NEVER && w->now_ns - w->begin_ns >= timeout_ns) {
        return ST_ERR_DEADLINE;
    }
    if (!w->is_told && w->now_ns - w->begin_ns >= w->spin_ns) {
        w->is_told = true;
        coll_watch_wait(w->c->watch, w->peer, w->begin_ns);
    }
    pass_time(w);
    if (w->bell) {
        w->epoch = atomic_load(&w->bell->epoch);
    }
    return ST_OK;
}

uint64_t coll_spin_ns(uint32_t n_ranks)
{
    const long n_cores = sysconf(_SC_NPROCESSORS_ONLN);

    return n_cores > 0 && n_ranks > (unsigned long)n_cores ? 0 : SPIN_NS;
}
