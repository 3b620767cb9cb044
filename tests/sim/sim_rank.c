/* tests/sim/sim_rank.c - a rank's control stream: worker/ctrl.c, played. Its heartbeats come from a thread
 * of their own, so they go on while its computing thread is stuck; a process that is held sends
 * nothing. */
#include "sim/sim_job.h"

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

static void beat(void *arg)
{
    struct sim_rank *r = arg;
    const struct sim_job *job = r->job;
    struct sched_stats stats;

    if (r->state == RANK_GONE || r->state == RANK_LEAVING || !wire_is_open(r->call)) {
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
                       .ticks = r->ticks,
                       .n_queued = leads ? sched_queued(job->sched, queued, MSG_QUEUED_MAX) : 0,
                       .queued = queued }
    };
    rank_say(r, &m);
    sim_after(job->sim, heartbeat_ns, beat, r);
}

/* ---- its life ---- */

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
    rank_say(r, &(struct msg_rank){ .kind = MSG_READY,
                                    .ready = { .weights_digest = { { r->index == 0 ? 0xAB : 0 } },
                                               .weight_bytes = 1,
                                               .kv_bytes = 1 } });
    leader_wake(r->job);
}

static void welcome(struct sim_rank *r, const void *data, size_t len)
{
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;
    struct sim_job *job = r->job;
    struct sim *s = job->sim;
    struct msg_coord m;

    if (msg_coord_unpack(data, len, &arena, &m, &err) != ST_OK || m.kind != MSG_WELCOME) {
        sim_fail(s, "a rank is not welcomed first: %s", err.text);
    } else if (job->is_joined) {
        job->replica = m.welcome.replica;
        job->generation = m.welcome.generation;
    }
    arena_fini(&arena);

    r->state = RANK_LOADING;
    sim_after(s, 0, beat, r);
    if (job->start == START_FAULTS && r->index == job->culprit) {
        rank_fault(r, ST_ERR_IO, "model.safetensors: Input/output error");
    } else if (job->start != START_HANGS || r->index != job->culprit) {
        sim_after(s, rng_delay(&s->rng, 300 * NS_PER_MS), ready, r);
    }
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct sim_rank *r = arg;

    if (r->state == RANK_HELLO) {
        welcome(r, data, len);
    } else if (r->index == 0 && r->job->sched != NULL) {
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
    } else if (r->state != RANK_GONE) {
        if (r->job->is_joined && r->state >= RANK_LOADING && !r->job->is_hurt && !s->is_stopping) {
            sim_fail(s, "replica %u, which had joined, is given up, and nothing was wrong: %s",
                     r->job->replica, text);
        }
        r->job->is_hurt = true;
        sim_after(s, rng_ns(&s->rng, NS_PER_MS, r->job->is_stuck ? 2 * NS_PER_S : 50 * NS_PER_MS),
                  end_self, r);
    }
}

static void attach(void *arg)
{
    static const struct wire_end end = { on_message, on_done };
    struct sim_rank *r = arg;
    struct sim_job *job = r->job;
    struct sim *s = job->sim;
    const bool is_wrong = job->start == START_MISMATCH && r->index == job->culprit;

    if (r->state != RANK_STARTING || wire_control(s) == NULL) {
        return;
    }
    r->call = wire_open(
        s, &(struct wire_config){ .server = wire_control(s),
                                  .path = "/gantry.control.v1.Control/Attach",
                                  .token = "secret",
                                  .deadline_ns = CLOCK_NEVER,
                                  .latency_ns = rng_ns(&s->rng, 50 * NS_PER_US, 2 * NS_PER_MS),
                                  .end = &end,
                                  .arg = r });
    r->state = RANK_HELLO;
    struct msg_join joins = { .tp = s->shape.tp,
                              .pp = s->shape.pp,
                              .kv_blocks = s->plan->kv_blocks,
                              .block_tokens = KERN_KV_BLOCK,
                              .ctx_max = s->plan->ctx_max,
                              .rows_max = s->plan->rows_max,
                              .layer_bytes = plan_layer_bytes(s->plan),
                              .model_digest = plan_model_digest(s->plan) };
    memcpy(joins.job, job->name, sizeof(joins.job));
    rank_say(r, &(struct msg_rank){ .kind = MSG_HELLO,
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
                                               .host = "host",
                                               .kernels = "none",
                                               .pid = 1000 + r->index } });
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
            sim_after(r->job->sim, 0, beat, r);
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
