/* worker/leader.c - rank 0's loop: feed the scheduler, send plans out, take results in.
 *
 * One turn never blocks for long: it takes what has arrived, sends a plan if the scheduler has one
 * and fewer than pp are out, runs this rank's own stage of it, and looks whether the oldest plan's
 * results are here. With pp = 1 the results are this rank's own: on a CPU they are there at once; a
 * device is given one plan more before the oldest is waited for (sched.h, "Ahead"). */
#include "worker/rank_priv.h"

#include <string.h>

struct leader {
    struct rank *r;
    const struct rank_io *io;
    struct sched *sched;
    uint32_t i_plan;                        /* ring position of the next plan */
    uint32_t n_out, n_out_max;              /* plans out (results not taken) */
    uint32_t out[PLAN_STAGES_MAX + 1];      /* their ring positions, oldest first */
    uint64_t began_ns[PLAN_STAGES_MAX + 3]; /* when each plan in the ring was sent */
    uint64_t taken_ns;                      /* when results were last taken */
};

/* To all ranks: STEP_EXIT, or STEP_TAKE. */
static status send_word(struct leader *l, enum step_kind kind, struct err *err)
{
    struct rank *r = l->r;
    struct step_head *plan = rank_plan(r, l->i_plan);
    status st = rank_settle_plan(r, l->i_plan, err);

    if (st == ST_OK) {
        memset(plan, 0, sizeof(*plan));
        plan->kind = kind;
        step_seal(plan);
        st = rank_pass_plan(r, l->i_plan, err);
        l->i_plan = (l->i_plan + 1) % r->n_plans;
    }
    return st;
}

static void note_step(struct leader *l)
{
    const uint64_t now = clock_now_ns(clock_real()), began = l->began_ns[l->out[0]];
    const bool is_ahead = l->r->is_ahead; /* a step's time is then what it adds */
    const uint64_t took = now - (is_ahead ? MAX(began, l->taken_ns) : began);
    _Atomic uint64_t *mean = &l->r->progress->step_ns;

    l->taken_ns = now;
    atomic_store(mean, *mean == 0 ? took : (*mean * 15 + took) / 16);
}

/* Who only waits, for the coordinator to know in case this step is the last. The list may be read
 * while it is written: what it spares is bounded there. */
static void note_queued(struct leader *l)
{
    struct rank_progress *p = l->r->progress;
    uint64_t streams[MSG_QUEUED_MAX];
    const uint32_t n = sched_queued(l->sched, streams, MSG_QUEUED_MAX);

    for (uint32_t i = 0; i < n; i++) {
        atomic_store_explicit(&p->queued[i], streams[i], memory_order_relaxed);
    }
    atomic_store(&p->n_queued, n);
}

static void note_sched(struct leader *l)
{
    struct rank_progress *p = l->r->progress;
    struct sched_stats stats;

    sched_stats(l->sched, &stats);
    if (stats.waiting != 0 || atomic_load_explicit(&p->n_queued, memory_order_relaxed) != 0) {
        note_queued(l);
    }
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
    const struct step_head *plan = rank_plan(r, l->out[0]);
    status st = sched_done(l->sched, plan->id, r->results, plan->n_samples, err);

    note_step(l);
    l->n_out--;
    memmove(l->out, l->out + 1, l->n_out * sizeof(l->out[0]));
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
    l->out[l->n_out++] = i;
    (void)((st = rank_pass_plan(r, i, err)) || (st = rank_take_x(r, &i_x, err)) ||
           (st = rank_begin_stage(r, rank_plan(r, i), i_x, err)));
    if (st == ST_OK && r->plan->pp > 1) {
        st = rank_finish_stage(r, err); /* no head here: nothing to wait for */
    }
    return st;
}

/* One stage: the oldest plan's results are this rank's own. Without a plan ahead the other slices,
 * who wait for one, are told to finish as well. */
static status finish_own(struct leader *l, struct err *err)
{
    struct rank *r = l->r;
    status st = ST_OK;

    if (r->is_ahead && r->plan->tp > 1 && l->n_out < l->n_out_max) {
        st = send_word(l, STEP_TAKE, err);
    }
    (void)(st || (st = rank_finish_stage(r, err)) || (st = take_results(l, err)));
    return st;
}

/* Results of the oldest plan, if the last stage has sent them. */
static status poll_results(struct leader *l, struct err *err)
{
    struct rank *r = l->r;
    const uint32_t last = (r->plan->pp - 1) * r->plan->tp;
    const size_t want = rank_plan(r, l->out[0])->n_samples * sizeof(*r->results);
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

    if (l->n_out < l->n_out_max) {
        st = begin_step(l, err);
        if (st < 0) {
            return st;
        }
    }
    if (l->r->plan->pp > 1 && l->n_out != 0) {
        const status got = poll_results(l, err);
        st = got != ST_BUSY ? got : st;
    } else if (l->n_out == l->n_out_max || (st == ST_BUSY && l->n_out != 0)) {
        st = finish_own(l, err);
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
    coll_watch_begin(&r->progress->watch, COLL_OP_RESULT, rank_plan(r, l->out[0])->id);
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
                                         .ahead = r->is_ahead,
                                         .prefix_cache = r->config.prefix_cache,
                                         .clock = clock_real() };
    struct leader l = { .r = r, .io = io, .n_out_max = r->plan->pp + (r->is_ahead ? 1 : 0) };
    status st = sched_create(&config, &l.sched, err);

    if (st == ST_OK) {
        note_sched(&l);
        st = loop(&l, err);
    }
    if (st == ST_OK) {
        (void)((st = send_word(&l, STEP_EXIT, err)) || (st = rank_finish_sends(r, err)));
    }
    sched_destroy(l.sched);
    return st;
}
