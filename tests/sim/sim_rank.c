/* tests/sim/sim_rank.c - a rank's control stream: worker/ctrl.c, played. Its heartbeats come from a thread
 * of their own, so they go on while its computing thread is stuck; a process that is held sends
 * nothing. */
#include "sim/sim_job.h"

#include "coordinator/coord.h"
#include "partition/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t heartbeat_ns = 250 * NS_PER_MS;

void rank_say(struct sim_rank *r, const struct msg_rank *m)
{
    struct buf out = BUF_INIT;

    if (r->state == RANK_GONE || r->call == NULL) {
        return;
    }
    ASSERT(msg_rank_pack(m, &out) == ST_OK);
    wire_send(r->call, out.data, out.len);
    buf_fini(&out);
}

/* ---- heartbeats ---- */

static const char *phase_of(const struct sim_rank *r)
{
    if (r->state < RANK_READY) {
        return "loading";
    }
    return r->job->n_out != 0 ? "step" : "idle";
}

static void beat(void *arg);

static void beat_at(struct sim_rank *r, uint64_t at_ns)
{
    r->beat_ns = at_ns;
    sim_at(r->job->sim, at_ns, beat, r);
}

static void beat(void *arg)
{
    struct sim_rank *r = arg;
    const struct sim_job *job = r->job;
    struct sched_stats stats;

    if (r->state == RANK_GONE || r->state == RANK_LEAVING || !wire_is_open(r->call) ||
        r->is_orphan || job->sim->now_ns != r->beat_ns) {
        return;
    }
    if (r->is_held) {
        r->beat_is_due = true;
        return;
    }
    if (job->n_out != 0 && !job->is_stuck && job_computes(job)) {
        r->ticks++; /* it has begun a layer */
    }
    sched_stats(job->sched, &stats);
    const bool leads = r->index == 0;
    uint64_t queued[MSG_QUEUED_MAX];
    const struct msg_rank m = {
        .kind = MSG_HEARTBEAT,
        .heartbeat = { .phase = phase_of(r),
                       .step = stats.steps,
                       .loaded_bytes = 1,
                       .weight_bytes = 1,
                       .running = leads ? stats.running : 0,
                       .waiting = leads ? stats.waiting : 0,
                       .kv_blocks_used = leads ? stats.kv_blocks_used : 0,
                       .kv_blocks_total = leads ? stats.kv_blocks_total : 0,
                       .kv_blocks_cached = leads ? stats.kv_blocks_cached : 0,
                       .cache_hits = leads ? stats.cache_hits : 0,
                       .cache_tokens = leads ? stats.cache_tokens : 0,
                       .step_us = leads ? (double)job->mean_ns / NS_PER_US : 0,
                       .ticks = r->ticks,
                       .n_queued = leads ? sched_queued(job->sched, queued, MSG_QUEUED_MAX) : 0,
                       .queued = queued }
    };
    rank_say(r, &m);
    beat_at(r, job->sim->now_ns + heartbeat_ns);
}

/* ---- its life ---- */

bool rank_is_attached(const struct sim_rank *r)
{
    return !r->is_orphan && r->epoch == r->job->sim->epoch && r->job->sim->coord != NULL;
}

static void say_ready(struct sim_rank *r)
{
    rank_say(r, &(struct msg_rank){ .kind = MSG_READY,
                                    .ready = { .weights_digest = { { r->index == 0 ? 0xAB : 0 } },
                                               .weight_bytes = 1,
                                               .kv_bytes = 1 } });
}

static void ready(void *arg)
{
    struct sim_rank *r = arg;

    if (r->state != RANK_LOADING) {
        return;
    }
    if (r->is_held) {
        sim_after(r->job->sim, 100 * NS_PER_MS, ready, r);
        return;
    }
    r->state = RANK_READY;
    if (!r->is_orphan) { /* else the next coordinator is told with its welcome */
        say_ready(r);
    }
    leader_wake(r->job);
}

static void load(struct sim_rank *r)
{
    struct sim_job *job = r->job;
    struct sim *s = job->sim;

    r->state = RANK_LOADING;
    if (job->start == START_FAULTS && r->index == job->culprit) {
        rank_fault(r, ST_ERR_IO, "model.safetensors: Input/output error");
    } else if (job->start != START_HANGS || r->index != job->culprit) {
        sim_after(s, rng_delay(&s->rng, 300 * NS_PER_MS), ready, r);
    }
}

static void welcome(struct sim_rank *r, const void *data, size_t len)
{
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;
    struct sim_job *job = r->job;
    struct sim *s = job->sim;
    const bool was_orphan = r->is_orphan;
    struct msg_coord m;

    if (msg_coord_unpack(data, len, &arena, &m, &err) != ST_OK || m.kind != MSG_WELCOME) {
        sim_fail(s, "a rank is not welcomed first: %s", err.text);
    } else {
        if (job->is_joined) {
            job->replica = m.welcome.replica;
            job->generation = m.welcome.generation;
            job->join_epoch = s->epoch;
        }
        orphan_welcome(r, m.welcome.orphan_grace_s, m.welcome.control_file);
    }
    arena_fini(&arena);
    beat_at(r, s->now_ns);
    if (!was_orphan) {
        load(r);
        return;
    }
    sim_note(s, "is back", job->replica, r->index);
    s->totals->reattached++;
    if (r->state == RANK_READY) {
        say_ready(r);
    }
}

/* The computing thread of a leader takes a Stop from its inbox; here it only matters that a stream which
 * ends after it has not broken. */
static void look(struct sim_rank *r, const void *data, size_t len)
{
    struct arena arena = ARENA_INIT(1 << 20);
    struct err err = ERR_INIT;
    struct msg_coord m;

    if (len <= 16 && msg_coord_unpack(data, len, &arena, &m, &err) == ST_OK && m.kind == MSG_STOP) {
        r->was_told_to_stop = true;
    }
    arena_fini(&arena);
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct sim_rank *r = arg;

    if (r->state == RANK_HELLO || r->is_orphan) {
        welcome(r, data, len);
        return;
    }
    look(r, data, len);
    if (r->index == 0 && r->job->sched != NULL) {
        leader_take(r->job, data, len);
    } else {
        struct arena arena = ARENA_INIT(1 << 20);
        struct err err = ERR_INIT;
        struct msg_coord m;
        if (msg_coord_unpack(data, len, &arena, &m, &err) != ST_OK || m.kind != MSG_STOP) {
            sim_fail(r->job->sim, "rank %u is sent what only a leader should get", r->index);
        }
        arena_fini(&arena);
    }
}

/* worker/ctrl.c: without its stream a rank ends itself, within two seconds if it is stuck. */
static void end_self(void *arg)
{
    struct sim_rank *r = arg;
    struct sim *s = r->job->sim;

    if (r->state == RANK_GONE) {
        return;
    }
    if (r->is_held) {
        sim_after(s, NS_PER_S, end_self, r);
        return;
    }
    rank_die(r, false);
    job_collapse(r->job, 200 * NS_PER_MS);
}

void rank_ends_itself(struct sim_rank *r)
{
    struct sim *s = r->job->sim;

    r->job->is_hurt = true;
    r->is_orphan = false;
    r->grace_s = 0;
    sim_after(s, rng_ns(&s->rng, NS_PER_MS, r->job->is_stuck ? 2 * NS_PER_S : 50 * NS_PER_MS),
              end_self, r);
}

static void on_done(void *arg, status st, const char *text)
{
    struct sim_rank *r = arg;
    struct sim *s = r->job->sim;

    sim_note(s, "rank's stream", r->job->replica * 100 + r->index, (uint64_t)-st);
    if (st == ST_ERR_INTERNAL) {
        sim_fail(s, "the coordinator ends a rank's stream: %s", text);
    }
    if (r->state == RANK_LEAVING) {
        r->state = RANK_GONE;
        job_check_over(r->job);
    } else if (r->state != RANK_GONE && !orphan_begin(r, st)) {
        if (r->job->is_joined && r->state >= RANK_LOADING && !r->job->is_hurt && !s->is_stopping &&
            (!s->shape.journal || s->shape.orphan_s != 0) && s->coord != NULL &&
            coord_weights_digest(s->coord)[0] != '\0') { /* else it has waited for that in vain */
            sim_fail(s, "replica %u, which had joined, is given up, and nothing was wrong: %s",
                     r->job->replica, text);
        }
        rank_ends_itself(r);
    }
}

void rank_attach(struct sim_rank *r, uint16_t port)
{
    static const struct wire_end end = { on_message, on_done };
    struct sim_job *job = r->job;
    struct sim *s = job->sim;
    const bool is_wrong = job->start == START_MISMATCH && r->index == job->culprit;

    r->port = port;
    r->call = wire_open(
        s, &(struct wire_config){ .server = wire_at(s, port),
                                  .path = "/gantry.control.v1.Control/Attach",
                                  .token = "secret",
                                  .deadline_ns = CLOCK_NEVER,
                                  .latency_ns = rng_ns(&s->rng, 50 * NS_PER_US, 2 * NS_PER_MS),
                                  .end = &end,
                                  .arg = r });
    if (r->cut_until_ns > s->now_ns) {
        wire_cut(r->call, r->cut_until_ns);
    }
    struct msg_join joins = { .tp = s->shape.tp,
                              .pp = s->shape.pp,
                              .kv_blocks = s->plan->kv_blocks,
                              .block_tokens = KERN_KV_BLOCK,
                              .ctx_max = s->plan->ctx_max,
                              .rows_max = s->plan->rows_max,
                              .layer_bytes = plan_layer_bytes(s->plan),
                              .model_digest = plan_model_digest(s->plan) };
    memcpy(joins.job, job->name, sizeof(joins.job));
    rank_say(r,
             &(struct msg_rank){ .kind = MSG_HELLO,
                                 .hello = { .build = is_wrong ? "another" : msg_build(),
                                            .protocol = MSG_PROTOCOL,
                                            .has_join = job->is_joined,
                                            .join = joins,
                                            .replica = job->is_joined ? 0 : job->replica,
                                            .generation = job->generation,
                                            .rank = r->index,
                                            .n_ranks = job->n_ranks,
                                            .plan_digest = s->plan->digest,
                                            .profile = s->plan->profile,
                                            .is_reattach = r->is_orphan,
                                            .host = "host",
                                            .kernels = leader_is_unlike(r->job) ? "slow" : "none",
                                            .pid = 1000 + r->index } });
}

/* Where nobody listens it dials on, as long as --start-timeout. */
static void attach(void *arg)
{
    struct sim_rank *r = arg;
    struct sim_job *job = r->job;
    struct sim *s = job->sim;

    if (r->state != RANK_STARTING) {
        return;
    }
    if (wire_at(s, job->port) == NULL && s->now_ns < job->started_ns + s->shape.start_ns) {
        sim_after(s, rng_delay(&s->rng, 300 * NS_PER_MS), attach, r);
        return;
    }
    r->state = RANK_HELLO;
    rank_attach(r, job->port);
}

void rank_begin(struct sim_rank *r)
{
    struct sim *s = r->job->sim;

    if (r->job->start == START_DIES && r->index == r->job->culprit) {
        job_collapse(r->job, NS_PER_S);
    } else {
        sim_after(s, rng_delay(&s->rng, 200 * NS_PER_MS), attach, r);
    }
}

/* ---- its end ---- */

void rank_die(struct sim_rank *r, bool silently)
{
    if (r->state == RANK_GONE) {
        return;
    }
    r->state = RANK_GONE;
    r->job->is_hurt = true;
    if (r->call != NULL) {
        wire_break(r->call, silently);
    }
    if (!silently || r->job->state != JOB_RUNS) { /* whose host is gone is missed by nobody */
        job_check_over(r->job);
    }
}

void rank_fault(struct sim_rank *r, status code, const char *text)
{
    r->job->is_hurt = true;
    rank_say(r, &(struct msg_rank){ .kind = MSG_FAULT, .fault = { code, r->index, text } });
    sim_after(r->job->sim, rng_ns(&r->job->sim->rng, NS_PER_MS, 100 * NS_PER_MS), end_self, r);
}

void rank_hold(struct sim_rank *r, bool hold)
{
    if (r->state == RANK_GONE || r->is_held == hold) {
        return;
    }
    r->is_held = hold;
    if (r->call != NULL) {
        wire_hold(r->call, hold);
    }
    if (!hold) {
        if (r->beat_is_due) {
            r->beat_is_due = false;
            beat_at(r, r->job->sim->now_ns);
        }
        leader_wake(r->job);
    }
}

void rank_leave(struct sim_rank *r)
{
    if (r->state != RANK_GONE && r->state != RANK_LEAVING) {
        r->state = RANK_LEAVING;
        if (wire_is_open(r->call)) {
            wire_half_close(r->call);
        } else {
            r->state = RANK_GONE;
            job_check_over(r->job);
        }
    }
}
