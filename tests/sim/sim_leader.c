/* tests/sim/sim_leader.c - worker/leader.c without MPI: the real scheduler, plans that take as long as
 * the seed says, tokens of the scripted model. */
#include "sim/sim_job.h"

#include "worker/sched/sched_priv.h"

#include <stdlib.h>
#include <string.h>

static uint64_t clock_of(void *self)
{
    const struct sim *s = self;

    return s->now_ns;
}

void leader_init(struct sim_job *job)
{
    struct sim *s = job->sim;
    const struct sim_shape *h = &s->shape;
    struct err err = ERR_INIT;

    job->clock = (struct clock){ clock_of, s };
    const uint32_t kv_blocks = h->kv_tokens / KERN_KV_BLOCK;
    const uint32_t per_stream = (h->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    const struct sched_config config = {
        .limits = { h->seqs_max, h->rows_max, h->seqs_max * per_stream,
                    step_adjusts_max(h->seqs_max, h->ctx_max, SIM_VOCAB) },
        .kv_blocks = kv_blocks,
        .ctx_max = h->ctx_max,
        .chunk_max = h->chunk_max,
        .queue_max = h->queue_max + 1, /* worker/main.c */
        .in_flight_max = h->pp,
        .ahead = h->ahead,
        .prefix_cache = h->prefix_cache,
        .clock = &job->clock,
    };
    ASSERT(sched_create(&config, &job->sched, &err) == ST_OK);
    job->n_out_max = h->pp + (h->ahead ? 1 : 0);
    job->limits = config.limits;
    for (uint32_t i = 0; i < job->n_out_max + 1; i++) {
        job->plans[i] = malloc(step_bytes_max(&config.limits));
        ASSERT(job->plans[i] != NULL);
    }
    job->results = calloc(h->seqs_max, sizeof(*job->results));
    job->chosen = calloc(h->seqs_max, sizeof(*job->chosen));
    ASSERT(job->results != NULL && job->chosen != NULL);
    sim_kv_init(&job->kv, kv_blocks);
    job->turn_at_ns = CLOCK_NEVER;
}

void leader_fini(struct sim_job *job)
{
    if (job->sched == NULL) {
        return;
    }
    struct sched_stats stats;
    sched_stats(job->sched, &stats);
    job->sim->totals->steps += stats.steps;
    job->sim->totals->preemptions += stats.preemptions;
    job->sim->totals->cache_hits += stats.cache_hits;
    sched_destroy(job->sched);
    job->sched = NULL;
    for (uint32_t i = 0; i < SIM_PLANS_MAX; i++) {
        free(job->plans[i]);
        job->plans[i] = NULL;
    }
    free(job->results);
    free(job->chosen);
    job->results = NULL;
    job->chosen = NULL;
    sim_kv_fini(&job->kv);
    for (struct sim_packet *p; (p = job->inbox_first) != NULL;) {
        job->inbox_first = p->next;
        free(p);
    }
}

void leader_take(struct sim_job *job, const void *data, size_t len)
{
    struct sim_packet *p = malloc(sizeof(*p) + len);

    ASSERT(p != NULL);
    p->next = NULL;
    p->len = len;
    memcpy(p->data, data, len);
    if (job->inbox_first == NULL) {
        job->inbox_first = p;
    } else {
        job->inbox_last->next = p;
    }
    job->inbox_last = p;
    leader_wake(job);
}

void leader_fence(struct sim_job *job)
{
    if (job->sched != NULL) {
        job->n_fences++;
        leader_take(job, "", 0);
    }
}

/* ---- what it says ---- */

/* What was computed for another coordinator than the one that is there now goes nowhere. */
static void say_events(struct sim_job *job, const struct msg_events *events)
{
    const bool is_current = job->n_fences_seen == job->n_fences && !job->ranks[0].is_orphan;

    if (is_current && (events->n_tokens != 0 || events->n_finishes != 0)) {
        rank_say(&job->ranks[0], &(struct msg_rank){ .kind = MSG_EVENTS, .events = *events });
    }
}

static void refuse(struct sim_job *job, const struct msg_submit *m, const struct err *why)
{
    const struct msg_finish finish = { .stream = m->stream,
                                       .attempt = m->attempt,
                                       .reason = FINISH_FAILED,
                                       .code = why->code,
                                       .text = why->text };

    say_events(job, &(struct msg_events){ .n_finishes = 1, .finishes = &finish });
}

static void feed_one(struct sim_job *job, const struct sim_packet *p)
{
    struct arena arena = ARENA_INIT(1 << 20);
    struct err err = ERR_INIT;
    struct msg_coord m;

    if (p->len == 0) {
        job->n_fences_seen++;
        sched_cancel_all(job->sched);
        return;
    }
    if (msg_coord_unpack(p->data, p->len, &arena, &m, &err) != ST_OK) {
        sim_fail(job->sim, "the coordinator sends what cannot be read: %s", err.text);
    } else if (m.kind == MSG_SUBMIT) {
        sim_note(job->sim, "submit", m.submit.stream, job->replica);
        if (!job_is_given_up(job) && rank_is_attached(&job->ranks[0]) &&
            job->n_fences_seen == job->n_fences) {
            check_submit(job->sim, job->replica, &m.submit);
        }
        if (sched_submit(job->sched, &m.submit, &err) != ST_OK) {
            sim_note(job->sim, "leader refuses", m.submit.stream, job->replica);
            if (err.code != ST_ERR_LIMIT) {
                sim_fail(job->sim, "the scheduler refuses stream %llu attempt %u: %s",
                         (unsigned long long)m.submit.stream, m.submit.attempt, err.text);
            }
            refuse(job, &m.submit, &err);
        }
    } else if (m.kind == MSG_CANCEL) {
        sched_cancel(job->sched, m.cancel.stream, m.cancel.attempt);
    } else if (m.kind == MSG_STOP) {
        job->is_told_to_stop = true;
    }
    arena_fini(&arena);
}

static void feed(struct sim_job *job)
{
    for (struct sim_packet *p; (p = job->inbox_first) != NULL;) {
        job->inbox_first = p->next;
        feed_one(job, p);
        free(p);
    }
}

/* ---- steps ---- */

enum { UNLIKE_TIMES = 6 }; /* how much slower every fourth replica is, in a third of the seeds */

bool leader_is_unlike(const struct sim_job *job)
{
    return job->sim->seed % 3 == 0 && job->replica % 4 == 3;
}

static uint64_t step_ns(struct sim_job *job, const struct step_head *plan)
{
    struct sim *s = job->sim;
    uint64_t ns = rng_delay(&s->rng, s->shape.step_ns) + plan->n_rows * 20 * NS_PER_US;

    ns *= leader_is_unlike(job) ? UNLIKE_TIMES : 1;
    ns *= job->slow_until_ns > s->now_ns ? job->slowness : 1;
    job->mean_ns = job->mean_ns == 0 ? ns : (job->mean_ns * 15 + ns) / 16; /* worker/leader.c */
    return ns;
}

/* Looked at after a plan was made, which ends what is due. */
static void check_deadlines(struct sim_job *job, const struct stream_list *list)
{
    for (const struct stream *q = list->first; q != NULL; q = q->next) {
        if (q->deadline_ns < job->sim->now_ns) {
            sim_fail(job->sim, "stream %llu is planned for in replica %u after its deadline",
                     (unsigned long long)q->id, job->replica);
        }
    }
}

static bool begin_step(struct sim_job *job)
{
    struct sim *s = job->sim;
    struct step_head *plan = job->plans[job->i_plan];
    struct err err = ERR_INIT;

    const status st = sched_next(job->sched, plan);
    check_deadlines(job, &job->sched->waiting);
    check_deadlines(job, &job->sched->running);
    if (st != ST_OK) {
        return false;
    }
    if (step_check(plan, plan->bytes, &job->limits, job->kv.n_blocks, &err) != ST_OK) {
        sim_fail(s, "a plan that no rank would take: %s", err.text);
    }
    const uint64_t ns = step_ns(job, plan);
    sim_note(s, "step", job->replica, plan->n_rows);
    if (s->shape.ahead) { /* the device runs one after the other, the host goes on */
        job->last_due_ns = MAX(s->now_ns, job->last_due_ns) + ns;
    } else {
        job->busy_until_ns = s->now_ns + ns / s->shape.pp;
        job->last_due_ns = MAX(s->now_ns + ns, job->last_due_ns);
    }
    job->due_ns[job->i_plan] = job->last_due_ns;
    job->i_plan = (job->i_plan + 1) % (job->n_out_max + 1);
    job->n_out++;
    return true;
}

static void take_results(struct sim_job *job)
{
    struct sim *s = job->sim;
    struct step_head *plan = job->plans[job->i_oldest];
    struct err err = ERR_INIT;
    const bool lies = job_is_given_up(job) || job->start == START_BROKEN;
    const struct sim_lie lie = { lies ? s->seed + 1 : 0, s->seed + 1, s->stream_base };

    sim_model_run(&job->kv, plan, &lie, job->chosen, job->results);
    for (uint32_t i = 0; i < plan->n_samples; i++) {
        job->chosen[i] = job->results[i].sampled.token;
    }
    if (sched_done(job->sched, plan->id, job->results, plan->n_samples, &err) != ST_OK) {
        sim_fail(s, "step %llu of replica %u comes back, and: %s", (unsigned long long)plan->id,
                 job->replica, err.text);
    }
    job->i_oldest = (job->i_oldest + 1) % (job->n_out_max + 1);
    job->n_out--;
    say_events(job, sched_events(job->sched));
}

/* ---- its loop ---- */

static void turn(void *arg);

static void turn_at(struct sim_job *job, uint64_t at_ns)
{
    at_ns = MAX(at_ns, job->sim->now_ns);
    if (at_ns < job->turn_at_ns) {
        job->turn_at_ns = at_ns;
        sim_at(job->sim, at_ns, turn, job);
    }
}

static void end_in_order(struct sim_job *job)
{
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        rank_leave(&job->ranks[i]);
    }
}

/* One turn of worker/leader.c; how long until the next, or CLOCK_NEVER: when something comes. */
static uint64_t turn_take(struct sim_job *job)
{
    struct sim *s = job->sim;

    if (job->n_out != 0 && job->due_ns[job->i_oldest] <= s->now_ns) {
        take_results(job);
        leader_check(job);
    }
    feed(job);
    if (job->is_told_to_stop) {
        if (job->n_out == 0) {
            end_in_order(job);
            return CLOCK_NEVER;
        }
        return job->due_ns[job->i_oldest];
    }
    if (job->n_out < job->n_out_max && begin_step(job)) {
        return job->n_out == job->n_out_max ? job->due_ns[job->i_oldest] : job->busy_until_ns;
    }
    say_events(job, sched_events(job->sched));
    if (job->n_out != 0) {
        return job->due_ns[job->i_oldest];
    }
    return sched_is_idle(job->sched) ? CLOCK_NEVER : s->now_ns + 100 * NS_PER_MS;
}

static void turn(void *arg)
{
    struct sim_job *job = arg;

    if (job->turn_at_ns != job->sim->now_ns) {
        return; /* moved meanwhile */
    }
    job->turn_at_ns = CLOCK_NEVER;
    if (!job_computes(job) || job->is_stuck) {
        return; /* leader_wake when that is over */
    }
    if (job->busy_until_ns > job->sim->now_ns) {
        turn_at(job, job->busy_until_ns);
        return;
    }
    job->n_turns++;
    const uint64_t next_ns = turn_take(job);
    if (next_ns != CLOCK_NEVER) {
        turn_at(job, next_ns);
    }
}

void leader_wake(struct sim_job *job)
{
    if (job->sched != NULL && job->state != JOB_OVER) {
        turn_at(job, MAX(job->busy_until_ns, job->sim->now_ns));
    }
}

/* ---- the scheduler's invariants ---- */

static bool is_canary(const struct stream *q)
{
    return q->id >> 63 != 0;
}

bool leader_is_idle(const struct sim_job *job)
{
    for (uint32_t i = 0; i < job->sched->n_streams_max; i++) {
        const struct stream *q = &job->sched->streams[i];
        if (q->state != STREAM_FREE && !is_canary(q)) {
            return false;
        }
    }
    return true;
}

/* What nobody waits for any more is cancelled, not computed to its end. A Cancel may be late or lost where
 * links are cut or control queues are cut short. */
static void check_orphans(struct sim_job *job)
{
    const struct sim *s = job->sim;
    const struct stream *q = job->sched->running.first;

    while (q != NULL && (check_is_open(s, q->id) || is_canary(q))) {
        q = q->next;
    }
    if (q == NULL || q->id != job->orphan) {
        job->orphan = q != NULL ? q->id : 0;
        job->orphan_ns = s->now_ns;
        return;
    }
    job->orphan_ns = MAX(MAX(job->orphan_ns, s->coord_free_ns), job->slow_until_ns);
    if (!rank_is_attached(&job->ranks[0])) {
        job->orphan_ns = s->now_ns; /* it will forget them */
    }
    if (s->now_ns > job->orphan_ns + 1500 * NS_PER_MS && !job->is_hurt && !job->is_touched &&
        !s->is_stopping && s->shape.control_queue_max == UINT32_MAX) {
        sim_fail(job->sim, "stream %llu is over, and replica %u goes on with it",
                 (unsigned long long)q->id, job->replica);
    }
}

void leader_check(struct sim_job *job)
{
    struct sim *s = job->sim;
    struct sched_stats stats;

    sched_stats(job->sched, &stats);
    if (sched_is_idle(job->sched) && stats.kv_blocks_used != 0) {
        sim_fail(s, "replica %u is idle and %u of its blocks are held", job->replica,
                 stats.kv_blocks_used);
    }
    if (stats.waiting > s->shape.queue_max + 1) {
        sim_fail(s, "%u streams wait in replica %u, the bound is %u", stats.waiting, job->replica,
                 s->shape.queue_max);
    }
    check_orphans(job);
    if (job->n_turns % 64 == 0 && !sched_is_valid(job->sched)) {
        sim_fail(s, "the scheduler of replica %u is not valid", job->replica);
    }
}
