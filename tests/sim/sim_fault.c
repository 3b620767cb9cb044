/* tests/sim/sim_fault.c - what goes wrong, and when: times and kinds are drawn before time begins, the
 * victims when it happens.
 *
 * Some of it is harmless by promise: a rank that stands still for less than half of --hang-timeout, a short
 * cut, slow steps, a coordinator that stands still. Only the rest marks a job as hurt; that a job
 * which is not hurt is never given up is one of the invariants (sim_job.c). */
#include "partition/plan.h"
#include "sim/sim_client.h"
#include "sim/sim_job.h"

#include <stdlib.h>

static const struct {
    const char *name;
    uint32_t weight;
} kinds[N_FAULTS] = {
    [FAULT_KILL] = { "rank killed", 20 },
    [FAULT_SILENT] = { "host gone", 8 },
    [FAULT_STOP] = { "rank stopped", 14 },
    [FAULT_STUCK] = { "collective stuck", 8 },
    [FAULT_SLOW] = { "slow steps", 6 },
    [FAULT_CUT] = { "control link cut", 12 },
    [FAULT_RESET] = { "control stream broken", 6 },
    [FAULT_OWN] = { "rank's own fault", 6 },
    [FAULT_LAUNCHER] = { "mpirun killed", 6 },
    [FAULT_STALL] = { "coordinator stands still", 6 },
    [FAULT_START] = { "start that fails", 0 },
    [FAULT_STRANGER] = { "stranger attaches", 4 },
    [FAULT_CLIENT_CUT] = { "client cut off", 24 },
    [FAULT_BROKEN] = { "hosts that compute wrongly", 0 },
    [FAULT_DRAIN] = { "replica drained", 8 },
    [FAULT_DEATH] = { "coordinator killed", 0 },
    [FAULT_POWER] = { "its host without power", 0 },
    [FAULT_WRITE] = { "coordinator killed within a write", 0 },
    [FAULT_FULL] = { "its disk full", 0 },
};

const char *fault_name(enum sim_fault fault)
{
    return kinds[fault].name;
}

void fault_count(struct sim *s, enum sim_fault fault)
{
    s->totals->faults[fault]++;
}

/* ---- to a job ---- */

struct sim_rescue {          /* something that passes by itself */
    struct sim_rescue *next; /* in sim->rescues */
    struct sim_job *job;
    struct sim_rank *rank;
    enum sim_fault fault;
};

static void rescue(void *arg)
{
    const struct sim_rescue *r = arg;

    if (r->fault == FAULT_STOP) {
        rank_hold(r->rank, false);
    } else if (r->fault == FAULT_STUCK) {
        r->job->is_stuck = false;
        leader_wake(r->job);
    } else if (r->fault == FAULT_CUT && wire_is_open(r->rank->call)) {
        wire_reset(r->rank->call); /* its keepalive: the coordinator is gone */
    }
}

static void rescue_after(struct sim_job *job, struct sim_rank *rank, enum sim_fault fault,
                         uint64_t ns)
{
    struct sim_rescue *r = malloc(sizeof(*r));

    ASSERT(r != NULL);
    *r = (struct sim_rescue){ job->sim->rescues, job, rank, fault };
    job->sim->rescues = r;
    sim_after(job->sim, ns, rescue, r);
}

/* How long it lasts; CLOCK_NEVER for good. Half of them are short enough to be borne, once. */
static uint64_t draw_span(struct sim_job *job)
{
    struct sim *s = job->sim;
    const uint64_t harmless_ns = s->shape.hang_ns / 2;

    if (rng_chance(&s->rng, 500)) {
        job->is_hurt = job->is_hurt || job->is_touched;
        job->is_touched = true;
        return rng_ns(&s->rng, 10 * NS_PER_MS, harmless_ns);
    }
    job->is_hurt = true;
    return rng_chance(&s->rng, 500) ? CLOCK_NEVER
                                    : rng_ns(&s->rng, harmless_ns, 4 * s->shape.hang_ns);
}

static void hold(struct sim_job *job, struct sim_rank *rank)
{
    const uint64_t span_ns = draw_span(job);

    rank_hold(rank, true);
    if (span_ns != CLOCK_NEVER) {
        rescue_after(job, rank, FAULT_STOP, span_ns);
    }
}

static void stick(struct sim_job *job)
{
    const uint64_t span_ns = draw_span(job);

    job->is_stuck = true;
    if (span_ns != CLOCK_NEVER) {
        rescue_after(job, NULL, FAULT_STUCK, span_ns);
    }
}

static void cut(struct sim_job *job, struct sim_rank *rank)
{
    static const uint64_t keepalive_ns =
        4 * NS_PER_S; /* worker/ctrl.c: 2 s, and 2 s for the answer */
    const uint64_t span_ns = draw_span(job);

    if (rank->call == NULL) {
        return;
    }
    rank->cut_until_ns = span_ns == CLOCK_NEVER ? CLOCK_NEVER : job->sim->now_ns + span_ns;
    wire_cut(rank->call, rank->cut_until_ns);
    if (span_ns > keepalive_ns) {
        rescue_after(job, rank, FAULT_CUT, keepalive_ns);
    }
}

static void kill(struct sim_job *job, struct sim_rank *rank)
{
    struct sim *s = job->sim;

    job->has_culprit = rng_chance(&s->rng, 500);
    job->culprit = rank->index;
    rank_die(rank, false);
    if (rng_chance(&s->rng, 300) && job->n_ranks > 1) {
        struct sim_rank *other = &job->ranks[(rank->index + 1) % job->n_ranks];
        rank_fault(other, ST_ERR_PEER, "the connection to a rank is gone");
    }
    job_collapse(job, 50 * NS_PER_MS);
}

static void hurt_job(struct sim *s, enum sim_fault fault, struct sim_job *job)
{
    if (job == NULL) { /* the coordinator died before it had started it */
        return;
    }
    struct sim_rank *rank = &job->ranks[rng_below(&s->rng, job->n_ranks)];

    sim_note(s, fault_name(fault), job->replica, rank->index);
    switch (fault) {
    case FAULT_KILL:
        kill(job, rank);
        break;
    case FAULT_SILENT:
        rank_die(rank, true);
        break;
    case FAULT_STOP:
        hold(job, rank);
        break;
    case FAULT_STUCK:
        stick(job);
        break;
    case FAULT_SLOW:
        job->slow_until_ns = s->now_ns + rng_ns(&s->rng, NS_PER_S, 10 * NS_PER_S);
        job->slowness = rng_in(&s->rng, 2, 15);
        break;
    case FAULT_CUT:
        cut(job, rank);
        break;
    case FAULT_RESET:
        job->is_hurt = true;
        if (rank->call != NULL) {
            wire_reset(rank->call);
        }
        break;
    case FAULT_OWN:
        rank_fault(rank, ST_ERR_INTERNAL, "an uncorrectable memory error");
        break;
    case FAULT_LAUNCHER:
        job_launcher_ends(job);
        break;
    case FAULT_BROKEN:
    case FAULT_DRAIN:
    case FAULT_STALL:
    case FAULT_START:
    case FAULT_STRANGER:
    case FAULT_CLIENT_CUT:
    case FAULT_DEATH:
    case FAULT_POWER:
    case FAULT_WRITE:
    case FAULT_FULL:
    case N_FAULTS:
        break;
    }
}

/* ---- to the rest ---- */

static void stranger_message(void *arg, const void *data UNUSED, size_t len UNUSED)
{
    sim_fail(arg, "a stranger at the control port is answered");
}

static void stranger_done(void *arg UNUSED, status st UNUSED, const char *text UNUSED)
{
}

/* Somebody with the token and nothing else in order: another generation, a rank that is there already,
 * no hello, no message at all. */
static void visit(struct sim *s, struct sim_job *job)
{
    static const struct wire_end end = { stranger_message, stranger_done };
    struct buf out = BUF_INIT;
    struct msg_rank m = { .kind = MSG_HELLO,
                          .hello = { .build = msg_build(),
                                     .protocol = MSG_PROTOCOL,
                                     .replica = job->replica,
                                     .generation = job->generation + 7,
                                     .rank = 0,
                                     .n_ranks = job->n_ranks,
                                     .plan_digest = s->plan->digest,
                                     .profile = s->plan->profile,
                                     .host = "elsewhere",
                                     .kernels = "none",
                                     .pid = 1 } };
    struct rpc_call *call =
        wire_open(s, &(struct wire_config){ .server = wire_control(s),
                                            .path = "/gantry.control.v1.Control/Attach",
                                            .token = rng_chance(&s->rng, 900) ? "secret" : "guess",
                                            .deadline_ns = CLOCK_NEVER,
                                            .latency_ns = NS_PER_MS,
                                            .end = &end,
                                            .arg = s });

    switch (rng_below(&s->rng, 5)) {
    case 0: /* one of ours that does not match ends a start (coordinator/README.md, decision 9) */
        job->is_hurt = true;
        break;
    case 1:
        m.hello.replica = 4000;
        break;
    case 2:
        m = (struct msg_rank){ .kind = MSG_HEARTBEAT, .heartbeat = { .phase = "idle" } };
        break;
    case 3:
        wire_send(call, "\xff\xff\xff", 3);
        return;
    default:
        wire_half_close(call);
        return;
    }
    ASSERT(msg_rank_pack(&m, &out) == ST_OK);
    wire_send(call, out.data, out.len);
    buf_fini(&out);
}

static void cancel_call(void *arg)
{
    wire_cancel(arg);
}

static void drain_message(void *arg, const void *data, size_t len)
{
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;
    struct msg_drain_progress m;

    if (msg_drain_progress_unpack(data, len, &arena, &m, &err) != ST_OK) {
        sim_fail(arg, "an operator cannot read: %s", err.text);
    }
    arena_fini(&arena);
}

static void drain_done(void *arg, status st, const char *text)
{
    sim_note(arg, "drain ends", (uint64_t)-st, 0);
    if (st == ST_ERR_INTERNAL || st == ST_ERR_ARG) {
        sim_fail(arg, "a drain fails with %s: %s", status_name(st), text);
    }
}

/* An operator, who sometimes does not wait for the end. */
static void drain(struct sim *s)
{
    static const struct wire_end end = { drain_message, drain_done };
    const struct msg_drain m = { .replica = rng_below(&s->rng, check_n_slots(s)),
                                 .restart = rng_chance(&s->rng, 800),
                                 .grace_us = rng_below(&s->rng, 5000000) };
    struct buf out = BUF_INIT;

    struct sim_job *job = job_of(s, m.replica);
    if (job != NULL && job->is_joined) {
        job->is_hurt = true;
    }
    sim_note(s, "drain", m.replica, m.restart);
    ASSERT(msg_drain_pack(&m, &out) == ST_OK);
    struct rpc_call *call =
        wire_open(s, &(struct wire_config){ .server = wire_control(s),
                                            .path = "/gantry.control.v1.Control/Drain",
                                            .token = "secret",
                                            .data = out.data,
                                            .len = out.len,
                                            .deadline_ns = CLOCK_NEVER,
                                            .latency_ns = NS_PER_MS,
                                            .end = &end,
                                            .arg = s });
    buf_fini(&out);
    if (rng_chance(&s->rng, 200)) {
        sim_after(s, rng_ns(&s->rng, 0, NS_PER_S), cancel_call, call);
    }
}

static void hurt_client(struct sim *s)
{
    uint32_t n = 0;

    for (struct sim_client *c = s->clients; c != NULL; c = c->next) {
        n += !c->is_done && c->call != NULL;
    }
    uint32_t which = n != 0 ? rng_below(&s->rng, n) : 0;
    for (struct sim_client *c = s->clients; n != 0 && c != NULL; c = c->next) {
        if (!c->is_done && c->call != NULL && which-- == 0) {
            client_hurt(c);
            return;
        }
    }
}

static enum sim_fault draw_kind(struct sim_rng *r)
{
    uint32_t sum = 0, at;

    for (uint32_t i = 0; i < N_FAULTS; i++) {
        sum += kinds[i].weight;
    }
    at = rng_below(r, sum);
    for (uint32_t i = 0; i < N_FAULTS; i++) {
        if (at < kinds[i].weight) {
            return (enum sim_fault)i;
        }
        at -= kinds[i].weight;
    }
    return FAULT_KILL;
}

/* One of the service's own, or one that has joined. */
static struct sim_job *victim(struct sim *s)
{
    struct sim_job *job = job_of(s, rng_below(&s->rng, s->shape.n_replicas));

    if (s->shape.n_joins != 0 && rng_chance(&s->rng, 300)) {
        for (struct sim_job *other = s->jobs; other != NULL; other = other->next) {
            if (other->is_joined && other->state == JOB_RUNS && other->replica != UINT32_MAX) {
                return other;
            }
        }
    }
    return job;
}

static void strike(void *arg)
{
    struct sim *s = arg;
    const enum sim_fault fault = draw_kind(&s->rng);
    struct sim_job *job = victim(s);

    if (s->is_stopped) {
        return;
    }
    fault_count(s, fault);
    if (fault == FAULT_STALL) {
        const uint64_t most_ns = rng_chance(&s->rng, 300) ? 20 * NS_PER_S : NS_PER_S;
        const uint64_t until_ns = s->now_ns + rng_ns(&s->rng, 100 * NS_PER_MS, most_ns);
        s->coord_free_ns = MAX(s->coord_free_ns, until_ns);
        sim_note(s, fault_name(fault), (s->coord_free_ns - s->now_ns) / NS_PER_MS, 0);
    } else if (fault == FAULT_STRANGER && wire_control(s) != NULL && job != NULL) {
        visit(s, job);
    } else if (fault == FAULT_DRAIN && wire_control(s) != NULL) {
        drain(s);
    } else if (fault == FAULT_CLIENT_CUT) {
        hurt_client(s);
    } else if (fault == FAULT_KILL && rng_chance(&s->rng, 60)) { /* a power cut: all at once */
        for (uint32_t i = 0; i < s->shape.n_replicas; i++) {
            hurt_job(s, fault, job_of(s, i));
        }
    } else {
        hurt_job(s, fault, job);
    }
}

void faults_free(struct sim *s)
{
    for (struct sim_rescue *r; (r = s->rescues) != NULL;) {
        s->rescues = r->next;
        free(r);
    }
}

static void death(void *arg)
{
    struct sim *s = arg;
    const uint32_t n = rng_below(&s->rng, 100);

    if (n < 15) {
        serve_fill_disk(s);
    } else {
        serve_kill(s, n < 55 ? FAULT_DEATH : n < 80 ? FAULT_WRITE : FAULT_POWER);
    }
}

void faults_begin(struct sim *s)
{
    const uint64_t span_ns = s->shape.healed_ns - s->now_ns;

    for (uint32_t i = 0; i < s->shape.n_faults; i++) {
        sim_after(s, rng_u64(&s->rng) % span_ns, strike, s);
    }
    for (uint32_t i = 0; i < s->shape.n_deaths; i++) {
        sim_after(s, rng_u64(&s->rng) % span_ns, death, s);
    }
}
