/* coordinator/detect.c - ranks that are there and do nothing.
 *
 *   silent     no message within --hang-timeout: a heartbeat comes four times a second from a
 *              thread that waits for nothing, so the process is stopped or its link is cut
 *   stuck      the leader has streams and no rank has moved (phase, step, layers) for the larger of
 *              --hang-timeout and what the longest layer of a full step may take
 *   overdue    a restarted replica that is not ready within --start-timeout
 *
 * All of them are judged by our own clock, and that stops with us (suspend, a busy machine): a tick
 * that comes late adds its delay to every deadline, because what we did not read may be waiting.
 *
 * What a layer may take is not measured but bounded: two flops per weight and row at 5 Gflop/s, ten
 * times slower than one core computes. The first step of a large model must not look like a hang. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>

enum { STALL_MS = 300 };

static const double slowest_flops = 5e9;

/* Longest time between two movements of a rank that computes: two bytes per weight at least, two
 * flops per weight and row. */
static uint64_t layer_bound_ns(const struct replica_shape *s)
{
    return (uint64_t)((double)s->layer_bytes * s->rows_max / slowest_flops * 1e9);
}

static uint64_t hang_bound_ns(const struct replica *r)
{
    return MAX(r->coord->config.hang_ns, layer_bound_ns(&r->shape));
}

static void check_silence(struct replica *r, uint64_t now)
{
    const uint64_t bound = r->coord->config.hang_ns;

    for (uint32_t i = 0; i < r->shape.n_ranks && replica_is_alive(r); i++) {
        struct rank *k = &r->ranks[i];
        char text[ERR_TEXT_BYTES];

        if (k->call == NULL || now < k->heard_ns || now - k->heard_ns <= bound) {
            continue;
        }
        snprintf(text, sizeof(text),
                 "rank %u (host %s, pid %u) has been silent for %.1f s (--hang-timeout), last in "
                 "phase \"%s\" at step %" PRIu64,
                 i, k->host, k->pid, (double)(now - k->heard_ns) / 1e9, k->phase,
                 k->heartbeat.step);
        log_warn("replica", "replica %u.%u: %s", r->index, r->generation, text);
        replica_sign(r, SIGN_OWN_FAULT, ST_ERR_DEADLINE, text);
    }
}

/* Anything that a rank of this replica has done since the last look changes this number. */
static uint64_t movement(const struct replica *r)
{
    uint64_t sum = r->n_events;

    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        const struct rank *k = &r->ranks[i];
        sum = sum * 31 + k->heartbeat.step * 7 + k->heartbeat.ticks + (uint64_t)k->phase[0];
    }
    return sum;
}

/* Of ranks that all stand still the one to name: furthest behind; of equals one that computes. */
static uint32_t stuck_rank(const struct replica *r)
{
    uint32_t worst = 0;

    for (uint32_t i = 1; i < r->shape.n_ranks; i++) {
        const struct rank *k = &r->ranks[i], *w = &r->ranks[worst];
        const bool is_behind = k->heartbeat.step < w->heartbeat.step;
        const bool computes =
            k->heartbeat.step == w->heartbeat.step && k->heartbeat.ticks < w->heartbeat.ticks;
        if (is_behind || computes) {
            worst = i;
        }
    }
    return worst;
}

static void check_movement(struct replica *r, uint64_t now)
{
    const struct msg_heartbeat *leader = &r->ranks[0].heartbeat;
    const uint64_t mark = movement(r);
    char text[ERR_TEXT_BYTES];

    if (mark != r->mark || leader->running + leader->waiting == 0 || now < r->moved_ns) {
        r->mark = mark;
        r->moved_ns = MAX(now, r->moved_ns);
        return;
    }
    if (now - r->moved_ns <= hang_bound_ns(r)) {
        return;
    }
    const uint32_t i = stuck_rank(r);
    const struct rank *k = &r->ranks[i];
    snprintf(text, sizeof(text),
             "rank %u (host %s, pid %u) has been stuck for %.1f s in phase \"%s\" at step %" PRIu64
             ", layer count %" PRIu64 ", while %u streams wait (the leader is at step %" PRIu64
             ", phase \"%s\")",
             i, k->host, k->pid, (double)(now - r->moved_ns) / 1e9, k->phase, k->heartbeat.step,
             k->heartbeat.ticks, leader->running + leader->waiting, leader->step,
             r->ranks[0].phase);
    log_warn("replica", "replica %u.%u: %s", r->index, r->generation, text);
    replica_sign(r, SIGN_OWN_FAULT, ST_ERR_DEADLINE, text);
}

static void check_start(struct replica *r, uint64_t now)
{
    const uint64_t bound = r->coord->config.start_ns;
    char text[ERR_TEXT_BYTES];

    if (bound == 0 || r->n_losses == 0 || now - r->started_ns <= bound) {
        return; /* the first start is judged by whoever started it */
    }
    snprintf(text, sizeof(text),
             "%.0f s after its start %u of %u ranks have attached and %u are ready",
             (double)(now - r->started_ns) / 1e9, r->n_attached, r->shape.n_ranks, r->n_ready);
    replica_sign(r, SIGN_JOB_ENDED, ST_ERR_DEADLINE, text);
}

static void add_stall(struct coord *c, uint64_t gap)
{
    log_debug("replica", "the coordinator stood still for %.2f s", (double)gap / 1e9);
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        r->moved_ns += gap;
        r->started_ns += gap;
        for (uint32_t k = 0; k < r->shape.n_ranks; k++) {
            r->ranks[k].heard_ns += gap;
        }
    }
}

static void tick(void *arg)
{
    struct coord *c = arg;
    const uint64_t now = coord_now(c), due = c->watch_due_ns;

    coord_enter(c);
    if (now > due + STALL_MS * NS_PER_MS) {
        add_stall(c, now - due);
    }
    for (uint32_t i = 0; c->config.hang_ns != 0 && i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        if (replica_is_alive(r)) {
            check_silence(r, now);
        }
        if (r->state == REPLICA_SERVING) {
            check_movement(r, now);
        }
        if (r->state == REPLICA_STARTING || r->state == REPLICA_LOADING) {
            check_start(r, now);
        }
    }
    route_waiting(c); /* what found a full queue */
    c->watch_due_ns = now + WATCH_MS * NS_PER_MS;
    rpc_timer_set(c->loop, &c->watch_timer, c->watch_due_ns);
    coord_leave(c);
}

status detect_start(struct coord *c)
{
    c->watch_timer.fn = tick;
    c->watch_timer.arg = c;
    c->watch_due_ns = coord_now(c) + WATCH_MS * NS_PER_MS;
    return rpc_timer_set(c->loop, &c->watch_timer, c->watch_due_ns);
}

void detect_stop(struct coord *c)
{
    rpc_timer_set(c->loop, &c->watch_timer, CLOCK_NEVER);
}
