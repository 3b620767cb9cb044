/* coordinator/detect.c - ranks that are there and do nothing.
 *
 *   silent     no message within --hang-timeout: a heartbeat comes four times a second from a
 *              thread that waits for nothing, so the process is stopped or its link is cut
 *   stuck      the leader has streams, or was sent some, and no rank has moved (phase, step, layers)
 *              for the larger of --hang-timeout and what the longest layer of a full step may take
 *   loading    no rank has read or hashed anything for 12 times --hang-timeout: named, not ended
 *   overdue    a replica that is not ready within --start-timeout of its start; before the service has
 *              served that is looked at by whoever started it
 *
 * Who is named follows from who waits for whom (waits.h).
 *
 * All of them are judged by our own clock, and that stops with us (suspend, a busy machine): a tick
 * that comes late adds its delay to every deadline, because what we did not read may be waiting.
 *
 * What a layer may take is bounded: two flops per weight and row at 5 Gflop/s, ten times slower than one core
 * computes. The first step of a large model must not look like a hang. Where rates were measured it is also ten
 * times what they predict for the longest layer, if that is more (attention far back, slow kernels). They never
 * make the bound tighter: a file of rates may be of another day or another host, a replica may come back on a
 * spare one, and a false alarm costs a replica where a late one costs seconds. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    STALL_MS = 300,
    LOAD_FACTOR = 12,     /* of --hang-timeout: a rank that loads may wait for a disk */
    PREDICTED_FACTOR = 10 /* of what a layer takes where nothing else runs */
};

static const double slowest_flops = 5e9;

/* Longest time between two movements of a rank that computes: two bytes per weight at least, two
 * flops per weight and row. */
static uint64_t layer_bound_ns(const struct replica_shape *s)
{
    const uint64_t guess_ns =
        (uint64_t)((double)s->layer_bytes * s->rows_max / slowest_flops * 1e9);

    return MAX(guess_ns, PREDICTED_FACTOR * s->layer_ns);
}

uint64_t detect_bound_ns(const struct replica *r)
{
    return MAX(r->coord->config.hang_ns, layer_bound_ns(&r->shape));
}

/* ---- who waits for whom ---- */

/* The ranks as they were last heard. NULL: no memory. */
static struct wait_rank *ranks_heard(const struct replica *r, uint64_t now, uint64_t bound)
{
    struct wait_rank *ranks = calloc(r->shape.n_ranks, sizeof(*ranks));

    for (uint32_t i = 0; ranks != NULL && i < r->shape.n_ranks; i++) {
        const struct rank *k = &r->ranks[i];
        const struct msg_heartbeat *h = &k->heartbeat;
        const uint64_t age = clock_since(now, k->heard_ns);
        ranks[i] = (struct wait_rank){ .host = k->host,
                                       .phase = k->phase,
                                       .is_silent = k->call != NULL && age > bound,
                                       .silent_ns = age,
                                       .step = h->step,
                                       .digest = h->digest,
                                       .ticks = h->ticks,
                                       .op = h->op,
                                       .op_seq = h->op_seq,
                                       .peer = h->op_peer != 0 ? h->op_peer - 1 : COLL_PEER_NONE,
                                       .waited_ns =
                                           h->waited_us != 0 ? h->waited_us * NS_PER_US + age : 0 };
    }
    return ranks;
}

/* Name whom the others wait for: *v_p, `why` as a sentence, and who waits for whom in r->waits and
 * on the log. */
static void judge(struct replica *r, uint64_t now, uint64_t bound, struct waits_verdict *v_p,
                  struct err *why)
{
    struct wait_rank *ranks = ranks_heard(r, now, bound);

    *v_p = (struct waits_verdict){ WAITS_BUSY, 0, 0 };
    why->text[0] = r->waits[0] = '\0';
    if (ranks == NULL) {
        return; /* the leader is named, without reasons */
    }
    waits_judge(ranks, r->shape.n_ranks, v_p);
    waits_text(ranks, r->shape.n_ranks, v_p, why->text, sizeof(why->text));
    waits_list_text(ranks, r->shape.n_ranks, v_p, r->waits, sizeof(r->waits));
    if (r->waits[0] != '\0') {
        log_warn("replica", "replica %u.%u: %s", r->index, r->generation, r->waits);
    }
    free(ranks);
}

/* ---- silent ---- */

static void blame_silent(struct replica *r, uint64_t now, uint32_t n_silent)
{
    struct waits_verdict v;
    struct err text, why = ERR_INIT;
    char more[64] = "";

    judge(r, now, r->coord->config.hang_ns, &v, &why);
    const struct rank *k = &r->ranks[v.rank];
    if (n_silent > 1) {
        snprintf(more, sizeof(more), ", as have %u more ranks", n_silent - 1);
    }
    err_set(&text, ST_ERR_DEADLINE,
            "rank %u (host %s, pid %u) has been silent for %.1f s (--hang-timeout)%s, last in "
            "phase \"%s\" at step %" PRIu64 "%s%.*s",
            v.rank, k->host, k->pid, (double)clock_since(now, k->heard_ns) / 1e9, more, k->phase,
            k->heartbeat.step, r->waits[0] != '\0' ? "; " : "", (int)strcspn(r->waits, ";"),
            r->waits); /* the first: who waits for this one */
    log_warn("replica", "replica %u.%u: %s", r->index, r->generation, text.text);
    replica_sign(r, SIGN_OWN_FAULT, ST_ERR_DEADLINE, text.text);
}

static void check_silence(struct replica *r, uint64_t now)
{
    uint32_t n_silent = 0;

    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        const struct rank *k = &r->ranks[i];
        const bool is_late = clock_since(now, k->heard_ns) > r->coord->config.hang_ns;
        n_silent += k->call != NULL && is_late ? 1 : 0;
    }
    if (n_silent != 0) {
        blame_silent(r, now, n_silent);
    }
}

/* ---- stuck ---- */

/* Anything that a rank of this replica has done since the last look changes this number. */
static uint64_t movement(const struct replica *r)
{
    uint64_t sum = r->n_events;

    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        const struct rank *k = &r->ranks[i];
        sum = sum * 31 + k->heartbeat.step * 7 + k->heartbeat.ticks + (uint64_t)k->phase[0] +
              k->heartbeat.loaded_bytes;
    }
    return sum;
}

/* "rank 2 (host b, pid 7) has been stuck for 5.1 s in phase ...: why". */
static void stuck_text(const struct replica *r, uint64_t now, uint32_t n_streams,
                       const struct waits_verdict *v, const char *why, struct err *text)
{
    const struct msg_heartbeat *leader = &r->ranks[0].heartbeat;
    const struct rank *k = &r->ranks[v->rank];
    const double s = (double)clock_since(now, r->moved_ns) / 1e9;

    if (v->kind == WAITS_LINK || v->kind == WAITS_RING || v->kind == WAITS_DISAGREE) {
        err_set(text, ST_ERR_DEADLINE, "nothing has moved for %.1f s at step %" PRIu64 ": %s", s,
                k->heartbeat.step, why);
        return;
    }
    err_set(text, ST_ERR_DEADLINE,
            "rank %u (host %s, pid %u) has been stuck for %.1f s in phase \"%s\" at step %" PRIu64
            ", layer count %" PRIu64 ", while %u streams wait (the leader is at step %" PRIu64
            ", phase \"%s\"); %s",
            v->rank, k->host, k->pid, s, k->phase, k->heartbeat.step, k->heartbeat.ticks, n_streams,
            leader->step, r->ranks[0].phase, why);
}

struct running {
    const struct replica *replica;
    uint32_t n;
};

static void count_running(void *arg, struct journal_entry *e)
{
    struct running *r = arg;

    r->n += e->replica == (int32_t)r->replica->index && front_is_running(e) ? 1 : 0;
}

/* Streams that the leader says it has; or, if it says none, those that we have sent it: one that hangs
 * between two steps never takes them, and its heartbeats go on. */
static uint32_t n_waiting_for(const struct replica *r)
{
    const struct msg_heartbeat *leader = &r->ranks[0].heartbeat;
    struct running sent = { .replica = r };

    if (leader->running + leader->waiting == 0 && r->n_streams != 0) {
        journal_each(r->coord->journal, count_running, &sent);
    }
    return leader->running + leader->waiting + sent.n;
}

static void check_movement(struct replica *r, uint64_t now)
{
    const uint64_t mark = movement(r);
    struct waits_verdict v;
    struct err text, why = ERR_INIT;
    uint32_t n_streams;

    if (mark != r->mark || (n_streams = n_waiting_for(r)) == 0) {
        r->mark = mark;
        r->moved_ns = now;
        return;
    }
    if (clock_since(now, r->moved_ns) <= detect_bound_ns(r)) {
        return;
    }
    judge(r, now, r->coord->config.hang_ns, &v, &why);
    stuck_text(r, now, n_streams, &v, why.text, &text);
    log_warn("replica", "replica %u.%u: %s", r->index, r->generation, text.text);
    replica_sign(r, SIGN_OWN_FAULT, ST_ERR_DEADLINE, text.text);
}

/* ---- starting ---- */

/* Loading is judged by bytes and chunks, not by time: a shard of a large model on a slow file system
 * may take its time. Where none moves at all somebody is named, and nothing is ended: that is
 * --start-timeout's. */
static void check_loading(struct replica *r, uint64_t now)
{
    const uint64_t mark = movement(r), bound = LOAD_FACTOR * r->coord->config.hang_ns;
    struct waits_verdict v;
    struct err why = ERR_INIT;

    if (mark != r->mark || r->state == REPLICA_STARTING) {
        r->mark = mark;
        r->moved_ns = now;
        r->is_load_told = false;
        return;
    }
    if (r->is_load_told || clock_since(now, r->moved_ns) <= bound) {
        return;
    }
    judge(r, now, r->coord->config.hang_ns, &v, &why);
    r->is_load_told = true;
    snprintf(r->why, sizeof(r->why), "%s", why.text);
    log_warn(
        "replica",
        "replica %u.%u: loading has not moved for %.1f s, going on to wait: %s; it has %" PRIu64
        " of %" PRIu64 " bytes",
        r->index, r->generation, (double)clock_since(now, r->moved_ns) / 1e9, why.text,
        r->ranks[v.rank].heartbeat.loaded_bytes, r->ranks[v.rank].heartbeat.weight_bytes);
}

static void check_start(struct replica *r, uint64_t now)
{
    const struct coord *c = r->coord;
    const uint64_t bound = c->config.start_ns;
    const bool is_ours =
        replica_has_joined(r) || r->n_losses != 0 || (c->has_served && c->config.on_lost != NULL);
    struct err text;

    /* Whoever started the service judges the first starts, but only until one replica serves. */
    if (bound == 0 || !is_ours || clock_since(now, r->started_ns) <= bound) {
        return;
    }
    err_set(&text, ST_ERR_DEADLINE,
            "%.0f s after its start %u of %u ranks have attached and %u are ready%s%s",
            (double)clock_since(now, r->started_ns) / 1e9, r->n_attached, r->shape.n_ranks,
            r->n_ready, r->is_load_told ? "; loading stands still: " : "",
            r->is_load_told ? r->why : "");
    replica_sign(r, SIGN_JOB_ENDED, ST_ERR_DEADLINE, text.text);
}

static void check_reattach(struct replica *r, uint64_t now)
{
    char text[ERR_TEXT_BYTES];

    if (r->reattach_ns == 0 || r->state != REPLICA_STARTING || now < r->reattach_ns) {
        return;
    }
    snprintf(text, sizeof(text),
             "%u of its %u ranks came back within %llu s of the coordinator's restart "
             "(--orphan-grace)",
             r->n_attached, r->shape.n_ranks,
             (unsigned long long)(r->coord->config.orphan_ns / NS_PER_S));
    replica_sign(r, SIGN_JOB_ENDED, ST_ERR_PEER, text);
}

/* Nobody is late by the time that the coordinator stood still; what happened in that time, or as it
 * ended (a job was started: that takes a while), is not put into the future by it. */
static void add_stall(struct coord *c, uint64_t now, uint64_t gap)
{
    log_debug("replica", "the coordinator stood still for %.2f s", (double)gap / 1e9);
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        r->moved_ns = MIN(r->moved_ns + gap, now);
        r->started_ns = MIN(r->started_ns + gap, now);
        r->proven_ns = MIN(r->proven_ns + gap, now);
        r->canary.sent_ns = MIN(r->canary.sent_ns + gap, now);
        r->reattach_ns += r->reattach_ns != 0 ? gap : 0;
        for (uint32_t k = 0; k < r->shape.n_ranks; k++) {
            r->ranks[k].heard_ns = MIN(r->ranks[k].heard_ns + gap, now);
        }
    }
}

static void tick(void *arg)
{
    struct coord *c = arg;
    const uint64_t now = coord_now(c), late = clock_since(now, c->watch_due_ns);

    coord_enter(c);
    if (late > STALL_MS * NS_PER_MS) {
        add_stall(c, now, late);
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        const bool looks = c->config.hang_ns != 0;
        if (looks && replica_is_alive(r)) {
            check_silence(r, now);
        }
        if (looks && (r->state == REPLICA_SERVING || r->canary.is_out)) {
            check_movement(r, now);
        } else if (r->state == REPLICA_STARTING || r->state == REPLICA_LOADING) {
            if (looks) {
                check_loading(r, now);
            }
            check_start(r, now);
        }
        check_reattach(r, now);
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        canary_tick(c->replicas[i], now);
    }
    drain_tick(c, now);
    health_push(c); /* a proof may have grown old */
    resume_tick(c);
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
