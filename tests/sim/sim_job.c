/* tests/sim/sim_job.c - see sim_job.h: coordinator/cli/jobs.c and mpirun, played. */
#include "sim/sim_job.h"

#include "coordinator/coord_impl.h"

#include <stdio.h>
#include <stdlib.h>

enum { LAUNCHER_LOOKS_MS = 20 };

struct sim_job *job_of(const struct sim *s, uint32_t replica)
{
    const struct coord *c = s->coord;

    if (replica < s->shape.n_replicas) {
        return s->current[replica];
    }
    for (struct sim_job *job = s->jobs; job != NULL; job = job->next) {
        if (job->is_joined && job->replica == replica && c != NULL &&
            job->generation == c->replicas[replica]->generation) {
            return job;
        }
    }
    return NULL;
}

bool job_is_given_up(const struct sim_job *job)
{
    const struct coord *c = job->sim->coord;

    if (c == NULL || job->replica == UINT32_MAX) {
        return false;
    }
    const struct replica *r = c->replicas[job->replica];
    return r->generation != job->generation || !replica_is_alive(r);
}

bool job_computes(const struct sim_job *job)
{
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        const struct sim_rank *r = &job->ranks[i];
        if (r->is_held || (r->state != RANK_READY)) {
            return false;
        }
    }
    return job->sched != NULL;
}

/* ---- start ---- */

static enum sim_start draw_start(struct sim *s, uint32_t generation)
{
    static const enum sim_start kinds[] = { START_DIES, START_FAULTS, START_HANGS, START_MISMATCH };

    /* The first answer to a canary is taken for the right one: whoever gives it must be sound. */
    if (s->now_ns < s->shape.healed_ns && generation > 1 && s->coord->has_served &&
        rng_chance(&s->rng, s->shape.broken_per_mille)) {
        fault_count(s, FAULT_BROKEN);
        return START_BROKEN;
    }
    if (s->now_ns >= s->shape.healed_ns || !rng_chance(&s->rng, s->shape.start_fails_per_mille)) {
        return START_WELL;
    }
    fault_count(s, FAULT_START);
    /* The first start is watched by whoever started the service, not by the coordinator. */
    const enum sim_start kind = kinds[rng_below(&s->rng, ARRAY_LEN(kinds))];
    return kind == START_HANGS && generation == 1 ? START_DIES : kind;
}

static struct sim_job *job_make(struct sim *s, uint32_t replica, uint32_t generation)
{
    struct sim_job *job = calloc(1, sizeof(*job));

    ASSERT(job != NULL);
    job->sim = s;
    job->next = s->jobs;
    s->jobs = job;
    job->replica = replica;
    job->generation = generation;
    job->n_ranks = s->shape.n_ranks;
    job->start = draw_start(s, generation);
    job->is_hurt = job->start != START_WELL;
    job->culprit = rng_below(&s->rng, job->n_ranks);
    job->start_at_ns = CLOCK_NEVER;
    leader_init(job);
    sim_note(s, "start", replica, generation * 10 + job->start);
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        job->ranks[i].job = job;
        job->ranks[i].index = i;
    }
    return job;
}

static void ranks_begin(struct sim_job *job)
{
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        rank_begin(&job->ranks[i]);
    }
}

static void job_start(struct sim *s, uint32_t replica, uint32_t generation)
{
    s->current[replica] = job_make(s, replica, generation);
    ranks_begin(s->current[replica]);
}

/* Somebody else's: it brings its own name, and hears its number when it is let in. */
static void join(void *arg)
{
    struct sim *s = arg;
    struct sim_job *job;

    if (s->is_stopping || s->coord == NULL) {
        return;
    }
    job = job_make(s, UINT32_MAX, 1);
    job->is_joined = true;
    for (uint32_t i = 0; i < MSG_JOB_BYTES; i++) {
        job->name[i] = (uint8_t)rng_u64(&s->rng);
    }
    ranks_begin(job);
}

/* jobs_tick: nothing of the old one is left, and its time has come. */
static void start_again(void *arg)
{
    struct sim_job *job = arg;
    struct sim *s = job->sim;

    if (s->is_stopping || s->coord == NULL || job_of(s, job->replica) != job ||
        job->start_at_ns > s->now_ns) {
        return;
    }
    for (const struct sim_job *other = s->jobs; other != NULL; other = other->next) {
        if (!other->is_joined && other->replica == job->replica && other->state != JOB_OVER) {
            sim_fail(s, "replica %u is started while generation %u is still there", job->replica,
                     other->generation);
        }
    }
    s->totals->restarts++;
    job_start(s, job->replica, coord_replica_restart(s->coord, job->replica));
}

/* serve: a service that has never served by then is ended. */
static void start_timeout(void *arg)
{
    struct sim *s = arg;

    if (!s->is_stopping && coord_state(s->coord) == COORD_STARTING) {
        jobs_stop(s, 0);
    }
}

void jobs_begin(struct sim *s)
{
    sim_coord_after(s, s->shape.start_ns, start_timeout, s);
    s->current = calloc(s->shape.n_replicas, sizeof(struct sim_job *));
    ASSERT(s->current != NULL);
    for (uint32_t i = 0; i < s->shape.n_replicas; i++) {
        job_start(s, i, 1);
    }
    for (uint32_t i = 0; i < s->shape.n_joins; i++) {
        sim_coord_after(s, rng_u64(&s->rng) % (s->shape.healed_ns - s->now_ns), join, s);
    }
}

/* ---- the end of one ---- */

static void say_ended(void *arg)
{
    struct sim_job *job = arg;
    struct sim *s = job->sim;

    if (job->state == JOB_RUNS && !job->is_joined && !s->is_stopping && s->coord != NULL) {
        job->state = JOB_ENDED;
        sim_note(s, "job ended", job->replica, job->generation);
        coord_job_ended(s->coord, job->replica, "mpirun has ended with exit code 1");
    }
}

static void job_start_after(struct sim_job *job)
{
    struct sim *s = job->sim;

    if (job->start_at_ns != CLOCK_NEVER) {
        sim_coord_after(s, MAX(job->start_at_ns, s->now_ns) - s->now_ns, start_again, job);
    }
}

void job_check_over(struct sim_job *job)
{
    struct sim *s = job->sim;

    for (uint32_t i = 0; i < job->n_ranks; i++) {
        if (job->ranks[i].state != RANK_GONE) {
            return;
        }
    }
    if (job->is_joined) {
        if (job->state != JOB_OVER && s->now_ns < s->shape.healed_ns) {
            sim_coord_after(s, rng_ns(&s->rng, NS_PER_S / 10, 5 * NS_PER_S), join, s);
        }
        job->state = JOB_OVER;
    } else if (job->state == JOB_RUNS) {
        sim_coord_after(s, rng_ns(&s->rng, 0, LAUNCHER_LOOKS_MS * NS_PER_MS), say_ended, job);
    } else if (job->state == JOB_ENDING) {
        job->state = JOB_OVER;
        job_start_after(job);
    }
}

static void die(void *arg)
{
    struct sim_rank *r = arg;

    rank_die(r, false);
}

void job_collapse(struct sim_job *job, uint64_t within_ns)
{
    struct sim *s = job->sim;

    job->is_hurt = true;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        if (job->ranks[i].state != RANK_GONE) {
            sim_after(s, rng_ns(&s->rng, 0, within_ns), die, &job->ranks[i]);
        }
    }
}

void job_launcher_ends(struct sim_job *job)
{
    job->is_hurt = true;
    sim_coord_after(job->sim, LAUNCHER_LOOKS_MS * NS_PER_MS, say_ended, job);
    job_collapse(job, 3 * NS_PER_S);
}

/* ---- what the coordinator asks for ---- */

static bool on_culprit(void *arg, uint32_t replica, uint32_t *rank_p, char *signal_p,
                       size_t signal_bytes)
{
    struct sim *s = arg;
    const struct sim_job *job = job_of(s, replica);

    if (!job->has_culprit) {
        return false;
    }
    *rank_p = job->culprit;
    snprintf(signal_p, signal_bytes, "signal 9 (Killed)");
    return true;
}

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct sim *s = arg;
    struct sim_job *job = job_of(s, replica);

    const struct replica *r = s->coord->replicas[replica];
    const bool is_drained = r->state == REPLICA_DRAINED;

    sim_note(s, is_drained ? "drained" : "lost", replica, job->generation);
    s->totals->losses += is_drained ? 0 : 1;
    if (job->is_reported && !is_drained) { /* one that is down may be asked for again */
        sim_fail(s, "generation %u of replica %u is lost twice", job->generation, replica);
    }
    if (!job->is_hurt && !is_drained) {
        sim_fail(s, "replica %u.%u is given up, and nothing was wrong with it: %s", replica,
                 job->generation, r->why);
    }
    if (!r->has_verdict || r->n_attached != 0) {
        sim_fail(s, "replica %u is lost without a verdict, or with ranks attached", replica);
    }
    const bool is_over = job->state == JOB_OVER;
    job->is_reported = true;
    job->state = is_over ? JOB_OVER : JOB_ENDING;
    job->start_at_ns =
        delay_ns == CLOCK_NEVER || s->is_stopping ? CLOCK_NEVER : s->now_ns + delay_ns;
    if (is_over) {
        job_start_after(job);
        return;
    }
    /* SIGTERM, and SIGKILL for what does not hear it: mostly at once, sometimes seconds. */
    job_collapse(job, rng_chance(&s->rng, 800) ? 100 * NS_PER_MS : 4 * NS_PER_S);
    job_check_over(job);
}

static void on_stopped(void *arg)
{
    struct sim *s = arg;

    if (s->is_stopped) {
        sim_fail(s, "coord_stop calls back twice");
    }
    s->is_stopped = true;
    sim_note(s, "stopped", 0, 0);
}

/* serve: when all have failed the service stops, at once. */
static void on_change(void *arg, enum coord_state state)
{
    struct sim *s = arg;

    sim_note(s, "state", state, 0);
    if (state == COORD_FAILED && !s->is_stopping) {
        s->is_stopping = true;
        coord_stop(s->coord, 0, on_stopped, s);
    }
}

void jobs_config(struct sim *s, struct coord_config *config)
{
    config->on_change = on_change;
    config->culprit = on_culprit;
    config->on_lost = on_lost;
    config->arg = s;
}

void jobs_stop(struct sim *s, uint64_t grace_ns)
{
    sim_note(s, "stop", grace_ns / NS_PER_MS, 0);
    s->is_stopping = true;
    s->n_losses_at_stop = s->totals->losses;
    s->drain_end_ns = s->now_ns + grace_ns;
    coord_stop(s->coord, grace_ns, on_stopped, s);
}

/* ---- all of them ---- */

bool jobs_are_settled(const struct sim *s)
{
    for (uint32_t i = 0; i < s->shape.n_replicas; i++) {
        const struct replica *r = s->coord->replicas[i];
        if (r->state != REPLICA_SERVING && !replica_is_over(r)) {
            return false;
        }
    }
    return true;
}

void jobs_free(struct sim *s)
{
    for (struct sim_job *job = s->jobs, *next; job != NULL; job = next) {
        next = job->next;
        leader_fini(job);
        free(job);
    }
    free(s->current);
}
