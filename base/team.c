/* base/team.c - see team.h.
 *
 *   run:   owner  work = (fn, arg); pending = n - 1; epoch + 1; wake sleepers
 *          others see the new epoch, call fn, pending - 1; the last one wakes a sleeping owner
 *
 * Both waits are "spin, then futex". A sleeper first counts itself in, then looks at the word once
 * more, and the other side first changes the word, then looks at the count; with sequentially
 * consistent operations one of them always sees the other, so no wake-up is lost and none is paid
 * for while everybody spins. A condition variable would cost a lock per run on every thread. */
#include "base/team.h"

#include "base/clock.h"
#include "base/cpu.h"

#include <errno.h>
#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    CACHE_LINE = 64,
    SPIN_US = 40, /* longer than the gap between two ops of a step, shorter than a wake-up */
    PAUSES_PER_LOOK = 32, /* pauses between two looks at the clock */
    TEAM_THREADS_MAX = 4096
};

struct member {
    struct team *team; /* borrowed */
    pthread_t thread;
    uint32_t part;
};

struct team {
    uint32_t n_threads; /* the owner counted */
    bool spins;
    bool stopping; /* written before the last epoch */
    team_fn fn;    /* written before each epoch */
    void *arg;
    struct member *members; /* owned, [n_threads]; [0] is the owner and has no thread */
    uint32_t n_started;     /* members [1, n_started) have a thread */

    _Alignas(CACHE_LINE) _Atomic uint32_t epoch; /* futex word: runs asked for */
    _Atomic uint32_t n_asleep;
    _Alignas(CACHE_LINE) _Atomic uint32_t pending; /* futex word: parts not done yet */
    _Atomic uint32_t owner_asleep;
};

static void futex_sleep(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Spin until *word is `want` (equal = true) or is no longer `want` (equal = false); false: the time
 * was up first. */
static bool spin(_Atomic uint32_t *word, uint32_t want, bool equal)
{
    const uint64_t end_ns = clock_now_ns(clock_real()) + SPIN_US * NS_PER_US;

    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == want) == equal) {
                return true;
            }
            _mm_pause();
        }
    } while (clock_now_ns(clock_real()) < end_ns);
    return false;
}

static void wait_for_epoch(struct team *team, uint32_t seen)
{
    if (team->spins && spin(&team->epoch, seen, false)) {
        return;
    }
    atomic_fetch_add(&team->n_asleep, 1);
    while (atomic_load(&team->epoch) == seen) {
        futex_sleep(&team->epoch, seen);
    }
    atomic_fetch_sub(&team->n_asleep, 1);
}

static void wait_for_parts(struct team *team)
{
    uint32_t left;

    if (team->spins && spin(&team->pending, 0, true)) {
        return;
    }
    atomic_store(&team->owner_asleep, 1);
    while ((left = atomic_load(&team->pending)) != 0) {
        futex_sleep(&team->pending, left);
    }
    atomic_store(&team->owner_asleep, 0);
}

static void part_done(struct team *team)
{
    if (atomic_fetch_sub(&team->pending, 1) == 1 && atomic_load(&team->owner_asleep) != 0) {
        futex_wake(&team->pending, 1);
    }
}

static void start_epoch(struct team *team)
{
    atomic_store_explicit(&team->pending, team->n_started - 1, memory_order_relaxed);
    atomic_fetch_add(&team->epoch, 1);
    if (atomic_load(&team->n_asleep) != 0) {
        futex_wake(&team->epoch, INT_MAX);
    }
}

static void *member_main(void *arg)
{
    const struct member *member = arg;
    struct team *team = member->team;

    cpu_float_env_set();
    for (uint32_t seen = 0;; seen++) {
        wait_for_epoch(team, seen);
        if (team->stopping) {
            return NULL;
        }
        team->fn(team->arg, member->part, team->n_threads);
        part_done(team);
    }
}

static status start_members(struct team *team, struct err *err)
{
    sigset_t all, before;
    status st = ST_OK;

    /* Threads inherit the mask: signals stay with the thread that handles them. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 1; i < team->n_threads; i++) {
        struct member *member = &team->members[i];

        *member = (struct member){ .team = team, .part = i };
        const int rc = pthread_create(&member->thread, NULL, member_main, member);
        if (rc != 0) {
            st = err_set_errno(err, ST_ERR_LIMIT, rc, "only %u of %u threads of a team started", i,
                               team->n_threads);
            break;
        }
        pthread_setname_np(member->thread, "gantry-team");
        team->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return st;
}

status team_create(uint32_t n_threads, struct team **team_p, struct err *err)
{
    struct team *team;

    if (n_threads == 0 || n_threads > TEAM_THREADS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%u threads: a team has 1 to %d", n_threads,
                       TEAM_THREADS_MAX);
    }
    team = aligned_alloc(CACHE_LINE, sizeof(*team));
    if (team == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a team of %u threads", n_threads);
    }
    memset(team, 0, sizeof(*team));
    team->n_threads = n_threads;
    team->n_started = 1;
    /* With more threads than cores a spinning waiter takes the core that the work needs. */
    team->spins = n_threads > 1 && n_threads <= cpu_count();
    team->members = calloc(n_threads, sizeof(*team->members));
    if (team->members == NULL) {
        team_destroy(team);
        return err_set(err, ST_ERR_NOMEM, "no memory for a team of %u threads", n_threads);
    }
    const status st = start_members(team, err);
    if (st != ST_OK) {
        team_destroy(team);
        return st;
    }
    cpu_float_env_set();
    *team_p = team;
    return ST_OK;
}

void team_destroy(struct team *team)
{
    if (team == NULL) {
        return;
    }
    team->stopping = true;
    start_epoch(team);
    for (uint32_t i = 1; i < team->n_started; i++) {
        pthread_join(team->members[i].thread, NULL);
    }
    free(team->members);
    free(team);
}

uint32_t team_size(const struct team *team)
{
    return team->n_threads;
}

void team_run(struct team *team, team_fn fn, void *arg)
{
    ASSERT_HOT(cpu_float_env_ok());
    if (team->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    team->fn = fn;
    team->arg = arg;
    start_epoch(team);
    fn(arg, 0, team->n_threads);
    wait_for_parts(team);
}

struct team_range team_cut(uint32_t total, uint32_t grain, uint32_t part, uint32_t n_parts)
{
    ASSERT(grain > 0 && part < n_parts);
    /* 64 bits: grains * part overflows 32 for a large total with grain 1. */
    const uint64_t grains = ((uint64_t)total + grain - 1) / grain;
    const uint64_t begin = grains * part / n_parts * grain;
    const uint64_t end = grains * (part + 1) / n_parts * grain;

    return (struct team_range){ (uint32_t)MIN(begin, total), (uint32_t)MIN(end, total) };
}
