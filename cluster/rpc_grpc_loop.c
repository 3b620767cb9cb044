/* cluster/rpc_grpc_loop.c - the loop: one completion queue, one thread, posts from other threads.
 *
 * gRPC moves its I/O inside the wait on the queue, so a callback that blocks stalls every
 * connection of the process. Another thread reaches the loop through a list of jobs under a mutex;
 * what wakes the loop is an empty batch on a call of a channel that leads nowhere, which gRPC
 * answers at once. One such wake is under way at most: a burst of posts costs one event. An
 * eventfd would need a second poller beside gRPC's own, and the C API has no alarm object. */
#include "cluster/rpc_grpc.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

/* ---- clocks ---- */

gpr_timespec rpc_gpr_from_ns(uint64_t at_ns)
{
    const uint64_t far_ns = 10ull * 365 * 86400 * NS_PER_S; /* keeps the sum inside gRPC's range */
    uint64_t now;

    if (at_ns == CLOCK_NEVER) {
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    }
    now = clock_now_ns(clock_real());
    return gpr_time_add(
        gpr_now(GPR_CLOCK_MONOTONIC),
        gpr_time_from_nanos(at_ns <= now ? 0 : (int64_t)MIN(at_ns - now, far_ns), GPR_TIMESPAN));
}

uint64_t rpc_ns_from_gpr(gpr_timespec at)
{
    gpr_timespec left;
    uint64_t now = clock_now_ns(clock_real());

    if (gpr_time_cmp(at, gpr_inf_future(at.clock_type)) == 0) {
        return CLOCK_NEVER;
    }
    left =
        gpr_time_sub(gpr_convert_clock_type(at, GPR_CLOCK_MONOTONIC), gpr_now(GPR_CLOCK_MONOTONIC));
    if (left.tv_sec < 0) {
        return now;
    }
    if (left.tv_sec > (int64_t)10 * 365 * 86400) {
        return CLOCK_NEVER;
    }
    return now + (unsigned long long)left.tv_sec * NS_PER_S + (unsigned long long)left.tv_nsec;
}

/* ---- posts ---- */

static void wake(struct rpc_loop *loop)
{
    if (!loop->wake_out) {
        grpc_call_error e = grpc_call_start_batch(loop->wake_call, NULL, 0, &loop->wake_tag, NULL);

        ASSERT(e == GRPC_CALL_OK);
        loop->wake_out = true;
    }
}

static status jobs_push(struct rpc_jobs *jobs, struct rpc_job job)
{
    if (jobs->count == RPC_POSTS_MAX) {
        return ST_BUSY;
    }
    if (jobs->count == jobs->cap) {
        const uint32_t cap = jobs->cap == 0 ? 64 : jobs->cap * 2;
        struct rpc_job *items = realloc(jobs->items, cap * sizeof(*items));

        if (items == NULL) {
            return ST_ERR_NOMEM;
        }
        jobs->items = items;
        jobs->cap = cap;
    }
    jobs->items[jobs->count++] = job;
    return ST_OK;
}

status rpc_loop_post(struct rpc_loop *loop, rpc_fn fn, void *arg)
{
    status st = ST_ERR_CANCELLED;

    pthread_mutex_lock(&loop->lock);
    if (!loop->closed) {
        st = jobs_push(&loop->jobs, (struct rpc_job){ fn, arg });
        if (st == ST_OK) {
            wake(loop);
        }
    }
    pthread_mutex_unlock(&loop->lock);
    return st;
}

void rpc_loop_stop(struct rpc_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    loop->stop = true;
    loop->closed = true;
    wake(loop);
    pthread_mutex_unlock(&loop->lock);
}

static void on_wake(void *self, bool ok)
{
    struct rpc_loop *loop = self;
    struct rpc_jobs taken;

    (void)ok;
    pthread_mutex_lock(&loop->lock);
    loop->wake_out = false;
    taken = loop->jobs;
    loop->jobs = loop->running_jobs; /* empty, its memory is used again */
    if (loop->stop) {
        loop->stop = false;
        loop->closed = true;
        loop->leaving = true;
    }
    pthread_mutex_unlock(&loop->lock);

    loop->running_jobs = (struct rpc_jobs){ NULL, 0, 0 };
    for (uint32_t i = 0; i < taken.count; i++) {
        taken.items[i].fn(taken.items[i].arg);
    }
    taken.count = 0;
    free(loop->running_jobs.items);
    loop->running_jobs = taken;
}

/* ---- life ---- */

/* gRPC 1.51 never accepts again after one accept() failed for want of descriptors, so leave it as
 * many as this process may have. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* gRPC's own threads inherit the mask of whoever starts them: signals are for the program. */
static void init_grpc(void)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    setenv("GRPC_VERBOSITY", "NONE", 0); /* a stranger could fill stderr with handshake errors */
    grpc_init();
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

status rpc_loop_create(struct rpc_loop **loop_p, struct err *err)
{
    struct rpc_loop *loop = calloc(1, sizeof(*loop));

    if (loop == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for an event loop");
    }
    if (rpc_timers_grow(loop) != ST_OK) { /* so that none of a few timers is ever refused */
        free(loop);
        return err_set(err, ST_ERR_NOMEM, "no memory for an event loop's timers");
    }
    raise_descriptor_limit();
    init_grpc();
    pthread_mutex_init(&loop->lock, NULL);
    loop->wake_tag = (struct rpc_tag){ on_wake, loop };
    loop->cq = grpc_completion_queue_create_for_next(NULL);
    loop->lame = grpc_lame_client_channel_create("wake", GRPC_STATUS_UNAVAILABLE, "never called");
    loop->wake_call = grpc_channel_create_call(loop->lame, NULL, GRPC_PROPAGATE_DEFAULTS, loop->cq,
                                               grpc_slice_from_static_string("/wake"), NULL,
                                               gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    *loop_p = loop;
    return ST_OK;
}

void rpc_loop_destroy(struct rpc_loop *loop)
{
    grpc_event event;

    if (loop == NULL) {
        return;
    }
    ASSERT(!loop->running);
    ASSERT(loop->n_alive == 0); /* a server, a channel or a call is left */
    grpc_call_unref(loop->wake_call);
    grpc_channel_destroy(loop->lame);
    grpc_completion_queue_shutdown(loop->cq);
    do { /* a wake may still be under way; nothing else can */
        event = grpc_completion_queue_next(loop->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        ASSERT(event.type == GRPC_QUEUE_SHUTDOWN || event.tag == &loop->wake_tag);
    } while (event.type != GRPC_QUEUE_SHUTDOWN);
    grpc_completion_queue_destroy(loop->cq);
    grpc_shutdown();
    pthread_mutex_destroy(&loop->lock);
    free(loop->jobs.items);
    free(loop->running_jobs.items);
    free(loop->heap);
    free(loop);
}

void rpc_loop_turn(struct rpc_loop *loop)
{
    const uint64_t at_ns = rpc_timers_run(loop);
    const grpc_event event = grpc_completion_queue_next(loop->cq, rpc_gpr_from_ns(at_ns), NULL);

    ASSERT(event.type != GRPC_QUEUE_SHUTDOWN);
    if (event.type == GRPC_OP_COMPLETE) {
        struct rpc_tag *tag = event.tag;

        tag->fn(tag->self, event.success != 0);
    }
}

void rpc_loop_run(struct rpc_loop *loop)
{
    ASSERT(!loop->running);
    loop->thread = pthread_self();
    loop->running = true;
    loop->leaving = false;
    pthread_mutex_lock(&loop->lock);
    loop->closed = loop->stop; /* a stop that came before is obeyed, not forgotten */
    pthread_mutex_unlock(&loop->lock);
    while (!loop->leaving) {
        rpc_loop_turn(loop);
    }
    loop->running = false;
}
