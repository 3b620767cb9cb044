/* worker/leader.c - rank 0's loop: feed the scheduler, send plans out, take results in.
 *
 * One turn never blocks for long: it takes what has arrived, sends a plan if the scheduler has one
 * and fewer than pp are out, runs this rank's own stage of it, and looks whether the oldest plan's
 * results are here. With pp = 1 the results are this rank's own and there at once. */
#include "worker/rank_priv.h"

#include <string.h>

struct leader {
    struct rank *r;
    const struct rank_io *io;
    struct sched *sched;
    uint32_t i_plan;                        /* ring position of the next plan */
    uint32_t n_out;                         /* plans out (results not taken) */
    uint32_t i_oldest;                      /* ring position of the oldest plan out */
    uint64_t began_ns[PLAN_STAGES_MAX + 1]; /* when each plan in the ring was sent */
};

static status send_exit(struct leader *l, struct err *err)
{
    struct rank *r = l->r;
    struct step_head *plan = rank_plan(r, l->i_plan);
    status st = rank_settle_plan(r, l->i_plan, err);

    if (st == ST_OK) {
        memset(plan, 0, sizeof(*plan));
        plan->kind = STEP_EXIT;
        step_seal(plan);
        st = rank_pass_plan(r, l->i_plan, err);
    }
    return st == ST_OK ? rank_finish_sends(r, err) : st;
}

static void note_step(struct leader *l)
{
    const uint64_t took = clock_now_ns(clock_real()) - l->began_ns[l->i_oldest];
    _Atomic uint64_t *mean = &l->r->progress->step_ns;

    atomic_store(mean, *mean == 0 ? took : (*mean * 15 + took) / 16);
}

static void note_sched(struct leader *l)
{
    struct rank_progress *p = l->r->progress;
    struct sched_stats stats;

    sched_stats(l->sched, &stats);
    atomic_store(&p->running, stats.running);
    atomic_store(&p->waiting, stats.waiting);
    atomic_store(&p->kv_used, stats.kv_blocks_used);
    atomic_store(&p->kv_total, stats.kv_blocks_total);
    atomic_store(&p->kv_cached, stats.kv_blocks_cached);
    atomic_store(&p->cache_hits, stats.cache_hits);
    atomic_store(&p->cache_tokens, stats.cache_tokens);
}

static status report(struct leader *l, struct err *err)
{
    const struct msg_events *events = sched_events(l->sched);

    note_sched(l);
    if (events->n_tokens == 0 && events->n_finishes == 0) {
        return ST_OK;
    }
    return l->io->events(l->io->self, events, err);
}

/* The oldest plan's results are in r->results. */
static status take_results(struct leader *l, struct err *err)
{
    struct rank *r = l->r;
    const struct step_head *plan = rank_plan(r, l->i_oldest);
    status st = sched_done(l->sched, plan->id, r->results, plan->n_samples, err);

    note_step(l);
    l->i_oldest = (l->i_oldest + 1) % r->n_plans;
    l->n_out--;
    return st == ST_OK ? report(l, err) : st;
}

/* Make the next plan, send it, run our own stage. ST_BUSY: the scheduler has nothing. */
static status begin_step(struct leader *l, struct err *err)
{
    struct rank *r = l->r;
    uint32_t i_x = 0;
    status st = rank_settle_plan(r, l->i_plan, err);

    if (st != ST_OK) {
        return st;
    }
    st = sched_next(l->sched, rank_plan(r, l->i_plan));
    if (st != ST_OK) {
        return st;
    }
    const uint32_t i = l->i_plan;
    coll_watch_end(&r->progress->watch);
    l->began_ns[i] = clock_now_ns(clock_real());
    l->i_plan = (i + 1) % r->n_plans;
    l->n_out++;
    (void)((st = rank_pass_plan(r, i, err)) || (st = rank_take_x(r, &i_x, err)) ||
           (st = rank_run_stage(r, rank_plan(r, i), i_x, err)));
    if (st == ST_OK && r->plan->pp == 1) {
        st = take_results(l, err);
    }
    return st;
}

/* Results of the oldest plan, if the last stage has sent them. */
static status poll_results(struct leader *l, struct err *err)
{
    struct rank *r = l->r;
    const uint32_t last = (r->plan->pp - 1) * r->plan->tp;
    const size_t want = rank_plan(r, l->i_oldest)->n_samples * sizeof(*r->results);
    struct coll_req req;
    size_t bytes = 0;
    status st = r->coll->ops->probe(r->coll, last, RANK_TAG_RESULT, &bytes, err);

    if (st != ST_OK) {
        return st;
    }
    if (bytes != want) {
        return err_set(err, ST_ERR_PROTO, "%zu bytes of results from rank %u, %zu were due", bytes,
                       last, want);
    }
    (void)((st = r->coll->ops->recv_start(r->coll, NULL, last, RANK_TAG_RESULT, r->results, bytes,
                                          &req, err)) ||
           (st = r->coll->ops->wait(r->coll, req, err)));
    return st == ST_OK ? take_results(l, err) : st;
}

/* One turn. ST_OK: something happened. ST_BUSY: nothing to do now. */
static status turn(struct leader *l, struct err *err)
{
    status st = ST_BUSY;

    if (l->n_out < l->r->plan->pp) {
        st = begin_step(l, err);
        if (st < 0) {
            return st;
        }
    }
    if (l->n_out != 0) {
        const status got = poll_results(l, err);
        st = got != ST_BUSY ? got : st;
    }
    if (st == ST_BUSY) {
        /* Cancels and expired deadlines end streams without a step. */
        const status said = report(l, err);
        return said < 0 ? said : ST_BUSY;
    }
    return st;
}

/* Nothing to do: whoever watches is told what this rank waits for. */
static void note_wait(struct leader *l, uint64_t since_ns)
{
    struct rank *r = l->r;

    if (l->n_out == 0) {
        coll_watch_end(&r->progress->watch);
        atomic_store(&r->progress->phase, RANK_IDLE);
        return;
    }
    coll_watch_begin(&r->progress->watch, COLL_OP_RESULT, rank_plan(r, l->i_oldest)->id);
    coll_watch_wait(&r->progress->watch, (r->plan->pp - 1) * r->plan->tp, since_ns);
    atomic_store(&r->progress->phase, RANK_WAITING);
}

static status loop(struct leader *l, struct err *err)
{
    uint64_t since = clock_now_ns(clock_real());
    bool drain = false, go_on = true;

    for (;;) {
        if (l->r->config.abort != NULL && *l->r->config.abort) {
            return err_set(err, ST_ERR_CANCELLED, "the leader was told to end");
        }
        go_on = l->io->feed(l->io->self, l->sched, &drain) && go_on;
        if (!go_on && l->n_out == 0 && (!drain || sched_is_idle(l->sched))) {
            return ST_OK;
        }
        const status st = turn(l, err);
        if (st < 0) {
            return st;
        }
        if (st == ST_OK) {
            since = clock_now_ns(clock_real());
            continue;
        }
        note_wait(l, since);
        if (l->n_out != 0) {
            rank_pause(l->r, since);
        } else {
            l->io->wait(l->io->self, 100);
        }
    }
}

status leader_run(struct rank *r, const struct rank_io *io, struct err *err)
{
    const struct sched_config config = { .limits = r->limits,
                                         .kv_blocks = r->plan->kv_blocks,
                                         .ctx_max = r->plan->ctx_max,
                                         .chunk_max = r->config.chunk_max,
                                         .queue_max = r->config.queue_max,
                                         .in_flight_max = r->plan->pp,
                                         .prefix_cache = r->config.prefix_cache,
                                         .clock = clock_real() };
    struct leader l = { .r = r, .io = io };
    status st = sched_create(&config, &l.sched, err);

    if (st == ST_OK) {
        note_sched(&l);
        st = loop(&l, err);
    }
    if (st == ST_OK) {
        st = send_exit(&l, err);
    }
    sched_destroy(l.sched);
    return st;
}
