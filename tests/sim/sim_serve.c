/* tests/sim/sim_serve.c - the coordinator's process, and whoever starts it again.
 *
 *   serve_open ─► coordinator/cli/durable.c (the real one) ─► coord_create ─► ranks: taken over, or started
 *        ▲                                                            │
 *        └── the supervisor, some time later ◄── serve_bury ◄── killed, power cut, dead within a write
 *
 * Death. A process dies between two events, or (FAULT_WRITE) at any change of a file that it makes within
 * one. From then on nothing that it does has an effect: its files are mute (sim_disk.h), its calls are
 * broken (sim_loop_dies), jobs hear nothing. What is left to do is to free its memory, and that is what
 * coord_destroy and durable_close are called for: nobody outside can tell.
 *
 * What coordinator/cli/serve.c does between these calls is done here in its order. */
#include "coordinator/cli/durable.h"
#include "coordinator/coord_impl.h"
#include "sim/rpc_priv.h"
#include "sim/sim_disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILES_MOST = 8 };

struct sim_serve {
    struct serve_args args;
    struct serve_setup setup;
    struct run_dir dir;
    struct durable durable;
    struct jobs jobs; /* carries what durable.c tells of the last coordinator's */
};

/* ---- seams ---- */

status __wrap_journal_disk_open(const struct journal_disk_config *config,
                                struct journal_disk **disk_p, struct journal_image *image_p,
                                struct err *err);
status __real_journal_disk_open(const struct journal_disk_config *config,
                                struct journal_disk **disk_p, struct journal_image *image_p,
                                struct err *err);

/* With segments so small that they are replaced often. */
status __wrap_journal_disk_open(const struct journal_disk_config *config,
                                struct journal_disk **disk_p, struct journal_image *image_p,
                                struct err *err)
{
    struct journal_disk_config small = *config;

    small.clock = &sim_now_running->clock;
    small.segment_bytes = sim_now_running->shape.segment_bytes;
    return __real_journal_disk_open(&small, disk_p, image_p, err);
}

void jobs_describe(const struct jobs *j UNUSED, uint32_t replica, struct service_replica *r_p)
{
    jobs_describe_one(sim_now_running, replica, r_p);
}

/* durable.c adopts a job only to end it: that is done at once, and nothing is left to look after. */
status launch_adopt(const struct launch_adoption *a, struct launch **launch_p UNUSED,
                    struct err *err)
{
    jobs_end_pid(sim_now_running, a->pid);
    return err_set(err, ST_ERR_NOT_FOUND, "nothing is left of pid %d", a->pid);
}

void launch_end(struct launch *l UNUSED, uint64_t now_ns UNUSED)
{
}

status launch_poll(struct launch *l UNUSED, int *code_p UNUSED)
{
    return ST_END;
}

void launch_destroy(struct launch *l UNUSED)
{
}

/* ---- start ---- */

static uint64_t clock_of(void *self)
{
    const struct sim *s = self;

    return s->now_ns;
}

static struct coord_config config_of(struct sim *s)
{
    const struct sim_shape *h = &s->shape;
    struct coord_config config = { .plan = s->plan,
                                   .tok = s->tok,
                                   .clock = &s->clock,
                                   .n_replicas = h->n_replicas,
                                   .generation = 1,
                                   .retries = h->retries,
                                   .restarts = h->restarts,
                                   .hang_ns = h->hang_ns,
                                   .start_ns = h->start_ns,
                                   .canary_ns = h->canary_ns,
                                   .join_max = h->n_joins,
                                   .rejoin_ns = 5 * NS_PER_S,
                                   .queue_max = h->queue_max,
                                   .prefix_cache = h->prefix_cache,
                                   .listen = "sim:0",
                                   .control_listen = "sim:0",
                                   .token = "public",
                                   .control_token = "secret" };

    jobs_callbacks(s, &config);
    durable_config(&s->serve->durable, &config);
    return config;
}

/* serve.c, coord_bind: where the coordinator before listened, if its ports are free. */
static status listen_open(struct sim *s, struct err *err)
{
    const struct service_state *last = &s->serve->durable.last;
    struct coord_config config = config_of(s);
    char listen[300], control[300];

    s->loop = sim_loop_create(s);
    config.listen = durable_listen("sim:0", last->port, listen);
    config.control_listen = durable_listen("sim:0", last->control_port, control);
    status st = coord_create(s->loop, &config, &s->coord, err);
    if (st == ST_ERR_EXISTS) {
        config.control_listen = "sim:0";
        st = coord_create(s->loop, &config, &s->coord, err);
    }
    if (st == ST_ERR_EXISTS) {
        config.listen = "sim:0";
        st = coord_create(s->loop, &config, &s->coord, err);
    }
    return st;
}

static void process_make(struct sim *s)
{
    const struct sim_shape *h = &s->shape;
    struct sim_serve *p = calloc(1, sizeof(*p));

    ASSERT(p != NULL);
    p->args = (struct serve_args){ .journal = h->journal ? SIM_JOURNAL : NULL,
                                   .replicas = h->n_replicas,
                                   .resume_window_s = h->resume_s,
                                   .orphan_grace_s = h->orphan_s };
    p->setup.plan = s->plan;
    snprintf(p->dir.path, sizeof(p->dir.path), SIM_RUN_DIR);
    s->serve = p;
    s->epoch++;
}

/* Memory, descriptors, locks. Nothing else: its files are mute or it has failed before it began. */
static void process_free(struct sim *s, bool is_clean)
{
    struct sim_serve *p = s->serve;

    if (!is_clean) {
        durable_freeze(&p->durable);
    }
    coord_destroy(s->coord);
    s->coord = NULL;
    durable_close(&p->durable, is_clean, false);
    free(p);
    s->serve = NULL;
    if (s->loop != NULL) {
        s->loop->next = s->dead_loops;
        s->dead_loops = s->loop;
        s->loop = NULL;
    }
    sim_disk_process_over(s->disk);
}

static status begin(struct sim *s, struct err *err)
{
    struct sim_serve *p = s->serve;
    char control[64];
    status st = durable_open(&p->durable, &p->args, &p->setup, err);

    if (st == ST_OK && !s->is_dying && s->shape.journal) {
        s->totals->restored += p->durable.image.n_streams;
        sim_note(s, "image", p->durable.image.n_streams, p->durable.now.epoch);
        clients_check_image(s, &p->durable.image);
    }
    s->stream_base = s->shape.journal ? p->durable.now.epoch << 40 : 0;
    if (st == ST_OK) {
        durable_place(&p->durable, &p->dir);
        st = listen_open(s, err);
    }
    if (st == ST_OK) {
        snprintf(control, sizeof(control), "sim:%u", coord_control_port(s->coord));
        st = durable_begin(&p->durable, control, s->coord, err);
    }
    return st;
}

static void tick_later(struct sim *s);

/* serve.c, on_tick */
static void tick(void *arg)
{
    struct sim *s = arg;

    if (s->tick_ns == s->now_ns && s->coord != NULL && !s->is_stopping) {
        durable_tick(&s->serve->durable, s->now_ns);
        tick_later(s);
    }
}

static void tick_later(struct sim *s)
{
    if (s->shape.journal) {
        s->tick_ns = s->now_ns + NS_PER_S;
        sim_at(s, s->tick_ns, tick, s);
    }
}

static void serve_open(struct sim *s)
{
    struct err err = ERR_INIT;

    process_make(s);
    sim_note(s, "serve", s->epoch, 0);
    if (s->epoch > 1 && s->now_ns < s->shape.healed_ns && rng_chance(&s->rng, 200)) {
        fault_count(s, FAULT_WRITE);
        sim_disk_die_in(s->disk,
                        rng_in(&s->rng, 1, 12)); /* recovering is not safer than the rest */
    }
    const status st = begin(s, &err);
    if (s->is_dying) {
        return; /* buried when this event is over */
    }
    if (st != ST_OK) {
        if (!sim_disk_is_full(s->disk)) {
            sim_fail(s, "coordinator %u does not start: %s", s->epoch, err.text);
        }
        sim_note(s, "no start", s->epoch, (uint64_t)-st);
        s->has_failed = true;
        serve_dies(s);
        return;
    }
    struct sim_serve *p = s->serve;
    durable_jobs(&p->durable, &p->jobs);
    s->start_due_ns = s->now_ns + s->shape.start_ns;
    tick_later(s);
    jobs_take_over(s, p->jobs.adopted, p->jobs.last, MAX(p->jobs.first_generation, 1u));
}

static void serve_again(void *arg)
{
    struct sim *s = arg;

    if (s->coord == NULL && !s->is_over) {
        serve_open(s);
    }
}

void serve_begin(struct sim *s)
{
    s->clock = (struct clock){ clock_of, s };
    s->disk = sim_disk_create(s);
    serve_open(s);
}

void serve_write(struct sim *s)
{
    if (s->serve != NULL && s->coord != NULL) {
        durable_write(&s->serve->durable, &s->serve->jobs, s->coord);
    }
}

/* ---- death ---- */

void serve_dies(struct sim *s)
{
    s->is_dying = true;
    if (s->loop != NULL) {
        sim_loop_dies(s->loop, s->dies_silently);
    }
}

bool serve_is_durable(const struct sim *s)
{
    const struct sim_serve *p = s->serve;

    return p == NULL || p->durable.disk == NULL ||
           journal_disk_status(p->durable.disk).why[0] == '\0';
}

/* Mostly at once; sometimes the ranks have stopped waiting by then. */
static uint64_t draw_delay(struct sim *s)
{
    return rng_chance(&s->rng, 100) ? rng_ns(&s->rng, 0, (s->shape.orphan_s + 2) * NS_PER_S)
                                    : rng_delay(&s->rng, 400 * NS_PER_MS);
}

void serve_bury(struct sim *s)
{
    const bool is_power = s->dies_silently;

    sim_note(s, "dead", s->epoch, is_power);
    s->died_ns = s->now_ns;
    if (is_power || s->was_undurable || !serve_is_durable(s)) {
        clients_doubt(s);
    }
    sim_disk_mute(s->disk, !s->has_failed); /* one that fails to start ends by itself */
    s->has_failed = false;
    if (s->loop != NULL && !s->loop->is_dead) {
        sim_loop_dies(s->loop, is_power);
    }
    const bool is_stale = s->serve->durable.is_stale;
    s->last_base = is_stale ? 0 : s->last_base; /* jobs_orphaned says what is not promised then */
    process_free(s, false);
    jobs_orphaned(s, is_stale);
    if (is_power) {
        s->canary_is_kept = false; /* it need not be synced */
        sim_disk_power_cut(s->disk);
        jobs_power_cut(s);
    }
    s->is_dying = s->dies_silently = s->was_undurable = false;
    s->coord_free_ns = 0;
    s->idle_since_ns = 0;
    sim_after(s, (is_power ? NS_PER_S : 0) + draw_delay(s), serve_again, s);
}

void serve_kill(struct sim *s, enum sim_fault how)
{
    if (s->coord == NULL || s->is_stopping || !s->shape.journal) {
        return;
    }
    fault_count(s, how);
    sim_note(s, fault_name(how), s->epoch, 0);
    if (how == FAULT_WRITE) {
        sim_disk_die_in(s->disk, rng_in(&s->rng, 1, 60));
        return;
    }
    s->dies_silently = how == FAULT_POWER;
    s->is_dying = true;
}

static void disk_takes_again(void *arg)
{
    struct sim *s = arg;

    sim_disk_set_full(s->disk, false);
}

void serve_fill_disk(struct sim *s)
{
    const uint64_t left_ns = s->shape.healed_ns - MIN(s->now_ns, s->shape.healed_ns);

    fault_count(s, FAULT_FULL);
    sim_note(s, fault_name(FAULT_FULL), 0, 0);
    sim_disk_set_full(s->disk, true);
    sim_after(s, MIN(rng_ns(&s->rng, 0, 10 * NS_PER_S), left_ns), disk_takes_again, s);
}

/* ---- what is on the disk ---- */

/* Not more than a few times what is live. */
void serve_check(struct sim *s)
{
    uint32_t n_files = 0;
    const uint64_t bytes = sim_disk_bytes(s->disk, SIM_JOURNAL, &n_files);

    if (s->shape.journal && serve_is_durable(s) && n_files > FILES_MOST) {
        sim_fail(s, "the journal's folder has %u files and %llu bytes", n_files,
                 (unsigned long long)bytes);
    }
}

void serve_end(struct sim *s)
{
    const bool is_clean = coord_state(s->coord) != COORD_FAILED;
    uint32_t n_files = 0;

    process_free(s, is_clean);
    sim_disk_bytes(s->disk, SIM_JOURNAL "/journal-", &n_files);
    if (is_clean && n_files != 0) {
        sim_fail(s, "%u segments are left after an orderly end", n_files);
    }
}

void serve_free(struct sim *s)
{
    if (s->serve != NULL) {
        sim_disk_mute(s->disk, true);
        process_free(s, false);
    }
    for (struct rpc_loop *loop = s->dead_loops, *next; loop != NULL; loop = next) {
        next = loop->next;
        sim_loop_destroy(loop);
    }
}
