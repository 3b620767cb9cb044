/* coordinator/cli/signals.c - see signals.h. */
#include "coordinator/cli/signals.h"

#include "base/clock.h"

#include <errno.h>
#include <signal.h>
#include <time.h>

static void signals_set(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP); /* the terminal is gone; under nohup it stays ignored */
    sigaddset(set, SIGCONT);
}

void signals_block(void)
{
    sigset_t set;

    signals_set(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

bool signals_pause(uint64_t ns)
{
    const struct timespec nap = { .tv_sec = (time_t)(ns / NS_PER_S),
                                  .tv_nsec = (long)(ns % NS_PER_S) };
    sigset_t set;

    signals_set(&set);
    sigdelset(&set, SIGCONT);
    return sigtimedwait(&set, NULL, &nap) > 0;
}

static void *wait_loop(void *arg)
{
    const struct timespec nap = { .tv_sec = 0, .tv_nsec = 10 * (long)NS_PER_MS };
    struct signals *s = arg;
    sigset_t set;

    signals_set(&set);
    for (;;) {
        int number = 0;
        if (sigwait(&set, &number) != 0 || atomic_load(&s->is_ending)) {
            return NULL;
        }
        if (number == SIGCONT) {
            atomic_store(&s->continued_ns, clock_now_ns(clock_real()));
            continue;
        }
        /* It must not be lost: nobody would end this process. 65,536 posts waiting (BUSY) means that the
         * loop is gone anyway. */
        while (rpc_loop_post(s->loop, s->fn, s->arg) == ST_ERR_NOMEM &&
               !atomic_load(&s->is_ending)) {
            (void)nanosleep(&nap, NULL);
        }
    }
}

status signals_start(struct signals *s, struct rpc_loop *loop, rpc_fn fn, void *arg,
                     struct err *err)
{
    s->loop = loop;
    s->fn = fn;
    s->arg = arg;
    atomic_init(&s->is_ending, false);
    atomic_init(&s->continued_ns, 0);
    const int errnum = pthread_create(&s->thread, NULL, wait_loop, s);
    if (errnum != 0) {
        return err_set_errno(err, ST_ERR_NOMEM, errnum, "no thread to wait for signals");
    }
    s->runs = true;
    return ST_OK;
}

bool signals_continued(const struct signals *s, uint64_t within_ns)
{
    const uint64_t at_ns = atomic_load(&s->continued_ns);

    return at_ns != 0 && clock_now_ns(clock_real()) - at_ns < within_ns;
}

void signals_stop(struct signals *s)
{
    if (!s->runs) {
        return;
    }
    atomic_store(&s->is_ending, true);
    pthread_kill(s->thread, SIGTERM);
    pthread_join(s->thread, NULL);
    s->runs = false;
}
