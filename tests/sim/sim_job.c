/* tests/sim/sim_job.c - see sim_job.h: coordinator/cli/jobs.c and mpirun, played. */
#include "sim/sim_job.h"

#include "coordinator/coord_impl.h"
#include "coordinator/service_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAUNCHER_LOOKS_MS = 20 };

struct sim_job *job_of(const struct sim *s, uint32_t replica)
{
    const struct coord *c = s->coord;

    if (replica < s->shape.n_replicas) {
        return s->current[replica];
    }
    for (struct sim_job *job = s->jobs; job != NULL; job = job->next) {
        if (job->is_joined && job->replica == replica && c != NULL && job->join_epoch == s->epoch &&
            job->generation == c->replicas[replica]->generation) {
            return job;
        }
    }
    return NULL;
}

bool job_is_given_up(const struct sim_job *job)
{
    const struct sim *s = job->sim;
    const struct coord *c = s->coord;

    if (job->is_condemned) {
        return true;
    }
    if (c == NULL || job->replica == UINT32_MAX ||
        (job->is_joined && job->join_epoch != s->epoch)) {
        return false;
    }
    if (!job->is_joined && (s->current == NULL || s->current[job->replica] != job)) {
        return true;
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

static enum sim_start draw_start(struct sim *s, uint32_t replica, uint32_t generation)
{
    static const enum sim_start kinds[] = { START_DIES, START_FAULTS, START_HANGS, START_MISMATCH };

    /* The first answer to a canary is taken for the right one: whoever gives it must be sound. Another coordinator
     * has it from the journal, if that is written. */
    s->canary_is_kept =
        s->canary_is_kept || (s->coord->known[0].profile[0] != '\0' && serve_is_durable(s));
    const bool is_own = s->current != NULL && replica < s->shape.n_replicas;
    const bool was_broken =
        is_own && s->current[replica] != NULL && s->current[replica]->start == START_BROKEN;
    const uint32_t per_mille =
        was_broken ? 900 : s->shape.broken_per_mille; /* it does not mend itself */
    if (s->now_ns < s->shape.healed_ns && generation > 1 && s->canary_is_kept &&
        rng_chance(&s->rng, per_mille)) {
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
    job->pid = s->jobs->next != NULL ? s->jobs->next->pid + 1 : 100;
    job->started_ns = s->now_ns;
    job->port = coord_control_port(s->coord);
    job->start = draw_start(s, replica, generation);
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

/* jobs.c, job_start: the generation is on disk before the job is there, its pid afterwards. Whoever dies in
 * between leaves nothing, or a job that nobody knows of. */
static void job_start(struct sim *s, uint32_t replica, uint32_t generation)
{
    struct sim_job *old = s->current[replica];

    s->starting = replica;
    s->generations[replica] = generation;
    serve_write(s);
    s->starting = UINT32_MAX;
    if (s->is_dying) {
        return;
    }
    struct sim_job *job = job_make(s, replica, generation);
    if (old != NULL) {
        old->is_out_of_sight = true;
    }
    s->current[replica] = job;
    ranks_begin(job);
    serve_write(s);
    job->is_out_of_sight = s->is_dying;
}

void jobs_describe_one(const struct sim *s, uint32_t replica, struct service_replica *r_p)
{
    const struct sim_job *job = s->current[replica];

    memset(r_p, 0, sizeof(*r_p));
    r_p->generation = s->generations[replica];
    if (replica != s->starting && job != NULL && job->state != JOB_OVER) {
        r_p->pid = job->pid;
        r_p->start_ticks = (uint64_t)job->pid;
    }
}

static struct sim_job *job_of_pid(const struct sim *s, int pid)
{
    for (struct sim_job *job = s->jobs; job != NULL; job = job->next) {
        if (job->pid == pid && !job->is_joined) {
            return job;
        }
    }
    return NULL;
}

/* Somebody else's: it brings its own name, and hears its number when it is let in. */
static void join(void *arg)
{
    struct sim *s = arg;
    struct sim_job *job;

    if (s->coord == NULL && !s->is_stopping) { /* its owner tries again */
        sim_after(s, NS_PER_S, join, s);
        return;
    }
    if (s->is_stopping) {
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
        if (!other->is_joined && other->replica == job->replica && other->state != JOB_OVER &&
            !other->is_out_of_sight) {
            sim_fail(s, "replica %u is started while generation %u is still there", job->replica,
                     other->generation);
        }
    }
    s->totals->restarts++;
    job_start(s, job->replica, coord_replica_restart(s->coord, job->replica));
    if (rng_chance(&s->rng, 50)) { /* a busy machine: mpirun is long in coming */
        s->coord_free_ns =
            MAX(s->coord_free_ns, s->now_ns + rng_ns(&s->rng, 50 * NS_PER_MS, NS_PER_S));
    }
}

/* serve: a service that has never served by then is ended. */
static void start_timeout(void *arg)
{
    struct sim *s = arg;

    if (!s->is_stopping && s->coord != NULL && s->now_ns >= s->start_due_ns &&
        coord_state(s->coord) == COORD_STARTING) {
        jobs_stop(s, 0);
    }
}

static void begin(struct sim *s)
{
    s->current = calloc(s->shape.n_replicas, sizeof(struct sim_job *));
    s->generations = calloc(s->shape.n_replicas, sizeof(*s->generations));
    ASSERT(s->current != NULL && s->generations != NULL);
    for (uint32_t i = 0; i < s->shape.n_joins; i++) {
        sim_coord_after(s, rng_u64(&s->rng) % (s->shape.healed_ns - s->now_ns), join, s);
    }
}

static void say_ended(void *arg);

/* jobs.c, job_adopt: it is there, or was. */
static void adopt(struct sim *s, struct sim_job *job)
{
    job->start_at_ns = CLOCK_NEVER;
    job->is_reported = job->is_out_of_sight = false;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        const struct sim_rank *r = &job->ranks[i];
        const bool is_astray = r->state == RANK_STARTING && wire_at(s, job->port) == NULL;
        /* astray: it dials the coordinator before. Told to stop: that one had drained it. */
        job->is_hurt = job->is_hurt || r->was_told_to_stop || is_astray;
    }
    if (job->state == JOB_OVER || job->is_launcher_gone) {
        job->state = JOB_RUNS;
        sim_coord_after(s, rng_ns(&s->rng, 0, LAUNCHER_LOOKS_MS * NS_PER_MS), say_ended, job);
    }
    job->state = JOB_RUNS;
}

void jobs_take_over(struct sim *s, const struct coord_adopted *adopted,
                    const struct service_replica *last, uint32_t first_generation)
{
    if (s->current == NULL) {
        begin(s);
    }
    sim_coord_after(s, s->shape.start_ns, start_timeout, s);
    for (uint32_t i = 0; i < s->shape.n_replicas; i++) {
        struct sim_job *job =
            adopted != NULL && adopted[i].is_running ? job_of_pid(s, last[i].pid) : NULL;
        if (s->current[i] != NULL) {
            s->current[i]->is_out_of_sight = true;
        }
        s->current[i] = job;
        s->generations[i] = last != NULL ? last[i].generation : first_generation - 1;
        if (job != NULL) {
            sim_note(s, "take over", i, job->generation);
            adopt(s, job);
        }
    }
    for (uint32_t i = 0; i < s->shape.n_replicas && !s->is_dying; i++) {
        if (s->current[i] == NULL) {
            job_start(s, i, adopted != NULL ? adopted[i].generation : first_generation);
        }
    }
}

/* ---- the end of one ---- */

static void say_ended(void *arg)
{
    struct sim_job *job = arg;
    struct sim *s = job->sim;

    if (job->state == JOB_RUNS && !job->is_joined && !s->is_stopping && s->coord != NULL &&
        s->current[job->replica] == job) {
        job->state = JOB_ENDED;
        sim_note(s, "job ended", job->replica, job->generation);
        coord_job_ended(s->coord, job->replica, "mpirun has ended with exit code 1");
    }
}

static void job_start_after(struct sim_job *job)
{
    struct sim *s = job->sim;

    if (job->start_at_ns != CLOCK_NEVER) {
        sim_coord_timer(s, MAX(job->start_at_ns, s->now_ns) - s->now_ns, start_again, job);
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
    job->is_launcher_gone = true;
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

/* Without --orphan-grace they do not wait for another. And a generation that nobody could write down would be
 * used again beside its first owner: two faults at once (a disk that is full, a coordinator that dies) of
 * which nothing is promised. */
void jobs_orphaned(struct sim *s, bool is_stale)
{
    for (struct sim_job *job = s->jobs; job != NULL; job = job->next) {
        job->is_hurt = job->is_hurt || s->shape.orphan_s == 0 || is_stale;
        if (is_stale && !job->is_joined && job->state != JOB_OVER && !job->is_launcher_gone) {
            job_dies(job);
        }
    }
}

void job_dies(struct sim_job *job)
{
    job->is_hurt = true;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        rank_die(&job->ranks[i], false);
    }
}

void jobs_end_pid(struct sim *s, int pid)
{
    struct sim_job *job = job_of_pid(s, pid);

    if (job != NULL && job->state != JOB_OVER) {
        job->is_condemned = true;
        job_dies(job);
        job->state = JOB_OVER;
    }
}

/* The coordinator's host: every mpirun was there, and with some of them their ranks. Those on other hosts are
 * ended by what is left of their job, sooner or later. */
void jobs_power_cut(struct sim *s)
{
    for (struct sim_job *job = s->jobs; job != NULL; job = job->next) {
        if (job->is_joined || job->state == JOB_OVER || job->is_launcher_gone) {
            continue;
        }
        job->is_hurt = job->is_launcher_gone = job->is_out_of_sight = true;
        if (rng_chance(&s->rng, 500)) {
            job_dies(job);
        } else {
            job_collapse(job, 15 * NS_PER_S);
        }
    }
}

void job_launcher_ends(struct sim_job *job)
{
    job->is_hurt = job->is_launcher_gone = true;
    sim_coord_after(job->sim, LAUNCHER_LOOKS_MS * NS_PER_MS, say_ended, job);
    job_collapse(job, 3 * NS_PER_S);
}

/* ---- what the coordinator asks for ---- */

static bool on_culprit(void *arg, uint32_t replica, uint32_t *rank_p, char *signal_p,
                       size_t signal_bytes)
{
    struct sim *s = arg;
    const struct sim_job *job = job_of(s, replica);

    if (s->is_dying || !job->has_culprit) {
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

    if (s->is_dying) {
        return;
    }
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

    if (s->is_dying) {
        return;
    }
    sim_note(s, "state", state, 0);
    if (state == COORD_SERVING) {
        serve_write(s); /* the digest is known now */
    }
    if (state == COORD_FAILED && !s->is_stopping) {
        s->is_stopping = true;
        coord_stop(s->coord, 0, on_stopped, s);
    }
}

void jobs_callbacks(struct sim *s, struct coord_config *config)
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
    if (s->coord == NULL) {
        return false;
    }
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
    free(s->generations);
}
