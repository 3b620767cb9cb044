/* tests/replica/replica.c - see replica.h. */
#include "replica/replica.h"

#include "replica/fake_device.h"
#include "replica/fake_nccl.h"

#include "base/cpu.h"
#include "common/coll_wrap.h"
#include "kernels/plugin.h"
#include "worker/rank_priv.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct script {
    struct replica_stream *streams;
    uint32_t n, n_submitted, n_ended;
    struct replica_stats stats;
    struct sched *sched; /* borrowed from feed, for the last look at its blocks */
};

struct player {
    const struct replica_config *config;
    const struct kern_ops *ops;
    uint32_t device;
    const struct coll_nccl_api *nccl;
    const struct plan *plan;
    const struct weights *weights;
    struct coll_hub *hub;
    uint32_t rank;
    struct script *script;
    _Atomic bool *abort;
    pthread_barrier_t *over; /* all ranks are */
    uint32_t n_plans;        /* received, by a rank that gets a wrong one */
    struct rank_progress progress;
    struct err err;
    status st;
};

/* ---- the leader's io: a script ---- */

static void end_stream(struct script *s, struct replica_stream *q, enum finish_reason reason,
                       status code)
{
    q->reason = reason;
    q->code = code;
    s->n_ended++;
}

static void submit(struct script *s, struct sched *sched, uint32_t i)
{
    struct replica_stream *q = &s->streams[i];
    struct err err = ERR_INIT;

    q->submit.stream = i + 1;
    q->submit.attempt = 1;
    const status st = sched_submit(sched, &q->submit, &err);
    if (st != ST_OK) {
        end_stream(s, q, FINISH_FAILED, st);
    }
}

static bool feed(void *self, struct sched *sched, bool *drain_p)
{
    struct script *s = self;

    s->sched = sched;
    while (s->n_submitted < s->n && s->streams[s->n_submitted].after_steps <= s->stats.n_events &&
           s->streams[s->n_submitted].after_streams <= s->n_ended) {
        submit(s, sched, s->n_submitted++);
    }
    for (uint32_t i = 0; i < s->n_submitted; i++) {
        struct replica_stream *q = &s->streams[i];
        if (q->cancel_at != 0 && q->n_tokens >= q->cancel_at && q->reason == FINISH_NONE) {
            sched_cancel(sched, q->submit.stream, 1);
        }
    }
    *drain_p = true;
    if (s->n_ended == s->n && sched_is_idle(sched)) {
        struct sched_stats stats;
        sched_stats(sched, &stats);
        s->stats.kv_used_at_end = stats.kv_blocks_used;
        s->stats.n_steps = (uint32_t)stats.steps;
        s->stats.preemptions = stats.preemptions;
        s->stats.cache_hits = stats.cache_hits;
        s->stats.cache_tokens = stats.cache_tokens;
        s->stats.kv_cached_at_end = stats.kv_blocks_cached;
        return false;
    }
    return true;
}

static status take_events(void *self, const struct msg_events *events, struct err *err)
{
    struct script *s = self;

    s->stats.n_events++;
    for (uint32_t i = 0; i < events->n_tokens; i++) {
        const struct msg_token *t = &events->tokens[i];
        struct replica_stream *q = &s->streams[t->stream - 1];
        const uint32_t at = t->index - q->submit.n_emitted;
        if (at != q->n_tokens || q->reason != FINISH_NONE) {
            return err_set(err, ST_ERR_PROTO, "stream %u: token %u after %u", (unsigned)t->stream,
                           t->index, q->n_tokens);
        }
        q->tokens[at] = t->token;
        q->logprobs[at] = t->logprob;
        if (q->gaps != NULL && t->n_top > 1) {
            q->gaps[at] = t->top[0].logprob - t->top[1].logprob;
        }
        q->n_tokens++;
        q->n_top = MIN(t->n_top, (uint32_t)ARRAY_LEN(q->top));
        for (uint32_t k = 0; k < q->n_top; k++) {
            q->top[k] = t->top[k];
        }
    }
    for (uint32_t i = 0; i < events->n_finishes; i++) {
        const struct msg_finish *f = &events->finishes[i];
        s->streams[f->stream - 1].cached = f->cached_tokens;
        end_stream(s, &s->streams[f->stream - 1], f->reason, f->code);
    }
    return ST_OK;
}

static void nap(void *self UNUSED, uint32_t ms UNUSED)
{
}

/* ---- a rank whose plan goes wrong between its arrival and its use ---- */

enum { WRONG_PLAN = 3 };

static void spoil(void *arg, const struct coll_wrap_msg *m)
{
    struct player *p = arg;
    struct step_head *plan = m->data;

    if (m->tag == RANK_TAG_PLAN && ++p->n_plans == WRONG_PLAN && plan->kind == STEP_RUN) {
        step_tokens(plan)[0] ^= 1;
        step_seal(plan); /* no damage on the way: the rank believes in it */
    }
}

/* ---- ranks ---- */

static status play(struct player *p)
{
    const struct rank_io io = { feed, take_events, nap, p->script };
    struct coll *coll = NULL;
    struct rank *rank = NULL;
    const struct selftest_config fabric = { "here", true };
    struct msg_self_test report;
    struct hash128 digest;
    status st;

    st = coll_local_create(p->hub, p->rank, &coll, &p->err);
    if (st == ST_OK && p->config->wrong_rank == p->rank + 1) {
        coll = coll_wrap_create(coll, spoil, NULL, p);
    }
    if (st == ST_OK) {
        coll->abort = p->abort;
        coll->timeout_ns = 60 * NS_PER_S;
        const struct rank_config config = { .plan = p->plan,
                                            .ops = p->ops,
                                            .nccl = p->nccl,
                                            .device = p->device,
                                            .n_threads = p->config->n_threads,
                                            .chunk_max = p->config->chunk_max,
                                            .queue_max = 1024,
                                            .prefix_cache = !p->config->no_prefix_cache,
                                            .coll = coll,
                                            .progress = &p->progress,
                                            .abort = p->abort };
        (void)((st = rank_create(&config, &rank, &p->err)) ||
               (st = rank_load(rank, p->weights, &p->err)) || (st = rank_agree(rank, &p->err)) ||
               (st = rank_selftest(rank, &fabric, &report, &p->err)) ||
               (st = rank_digest(rank, p->weights, NULL, &digest, &p->err)) ||
               (st = rank_run(rank, p->rank == 0 ? &io : NULL, &p->err)));
    }
    if (st != ST_OK) {
        *p->abort = true;
    }
    /* A failed rank's sends are still to be had by the others, from memory that destroying it frees. */
    pthread_barrier_wait(p->over);
    rank_destroy(rank);
    if (coll != NULL) {
        coll->ops->destroy(coll);
    }
    return st;
}

static void *player_main(void *arg)
{
    struct player *p = arg;

    cpu_float_env_set();
    p->st = play(p);
    return NULL;
}

static status cpu_ops(const struct replica_config *config, const struct kern_ops **ops_p,
                      struct err *err)
{
    const uint32_t flags = config->cpu_flags;

    *ops_p = flags == UINT32_MAX ? kern_ops_ref() : kern_ops_path(flags);
    return *ops_p != NULL ? ST_OK
                          : err_set(err, ST_ERR_UNSUPPORTED, "this CPU has no path %#x", flags);
}

static bool is_nccl(enum replica_device device)
{
    return device == REPLICA_NCCL || device == REPLICA_NCCL_FREE || device == REPLICA_CUDA_NCCL;
}

static bool is_cuda(enum replica_device device)
{
    return device == REPLICA_CUDA || device == REPLICA_CUDA_NCCL;
}

/* GANTRY_TEST_PLUGIN: that library in place of the one beside the program (tests/simt's, which runs
 * the kernels on this processor, its ranks by turns: some minutes for all of test_bits). */
static status cuda_ops(uint32_t index, const struct kern_ops **ops_p, struct err *err)
{
    const char *path = getenv("GANTRY_TEST_PLUGIN");

    if (path == NULL) {
        return kern_ops_cuda(index, ops_p, err);
    }
    return index == 0 ? kern_ops_cuda_from(path, 0, ops_p, err)
                      : err_set(err, ST_ERR_NOT_FOUND, "%s has one device", path);
}

/* The tables of all ranks; before any of them lives. */
static status choose_ops(struct player *players, uint32_t n, const struct replica_config *config,
                         struct err *err)
{
    static struct kern_ops eager[8]; /* no_graphs */
    const struct kern_ops *ops = NULL;
    status st = is_cuda(config->device) ? ST_OK : cpu_ops(config, &ops, err);

    if (st == ST_OK && !is_cuda(config->device) && config->device != REPLICA_CPU) {
        ops = fake_device_ops(ops, config->device == REPLICA_STAGED ? FAKE_LAZY : FAKE_THREAD);
    }
    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        players[i].device = config->device == REPLICA_CUDA_NCCL ? i : 0;
        if (is_cuda(config->device)) {
            st = cuda_ops(players[i].device, &ops, err);
        }
        players[i].ops = ops;
        if (st == ST_OK && config->no_graphs && players[i].device < ARRAY_LEN(eager)) {
            eager[players[i].device] = *ops;
            eager[players[i].device].graph_begin = NULL;
            players[i].ops = &eager[players[i].device];
        }
    }
    return st;
}

status replica_device_check(enum replica_device device, uint32_t n_ranks, struct err *err)
{
    const struct kern_ops *ops = NULL;
    const uint32_t last = device == REPLICA_CUDA_NCCL ? n_ranks - 1 : 0;
    status st = is_cuda(device) ? cuda_ops(last, &ops, err) : ST_OK;
    char text[64];

    if (st == ST_OK && device == REPLICA_CUDA_NCCL) {
        st = coll_nccl_find(text, err);
    }
    return st;
}

static status play_all(const struct replica_config *config, const struct plan *plan,
                       const struct weights *weights, struct script *script, struct err *err)
{
    const struct coll_nccl_api *nccl = is_cuda(config->device) ? NULL : fake_nccl_api();
    struct coll_hub *hub = NULL;
    _Atomic bool abort = false;
    pthread_barrier_t over;
    struct player *players = calloc(plan->n_ranks, sizeof(*players));
    pthread_t *threads = calloc(plan->n_ranks, sizeof(*threads));
    status st = coll_hub_create((struct coll_shape){ plan->tp, plan->pp }, &hub, err);

    ASSERT(pthread_barrier_init(&over, NULL, plan->n_ranks) == 0);
    if (st == ST_OK) {
        st = choose_ops(players, plan->n_ranks, config, err);
    }
    for (uint32_t i = 0; st == ST_OK && i < plan->n_ranks; i++) {
        players[i] = (struct player){ .config = config,
                                      .ops = players[i].ops,
                                      .device = players[i].device,
                                      .nccl = nccl,
                                      .plan = plan,
                                      .weights = weights,
                                      .hub = hub,
                                      .rank = i,
                                      .script = script,
                                      .abort = &abort,
                                      .over = &over };
        ASSERT(pthread_create(&threads[i], NULL, player_main, &players[i]) == 0);
    }
    for (uint32_t i = 0; st == ST_OK && i < plan->n_ranks; i++) {
        pthread_join(threads[i], NULL);
    }
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; st == ST_OK && i < plan->n_ranks; i++) {
            /* The first cause; not those who were told to end because of it, and those who only
             * saw the exchange fail after all others. */
            const status is = players[i].st;
            if (is != ST_OK && is != ST_ERR_CANCELLED && (pass == 1 || is != ST_ERR_PEER)) {
                *err = players[i].err;
                st = is;
            }
        }
    }
    if (config->device != REPLICA_CPU && !is_cuda(config->device)) {
        struct fake_counts counts;
        fake_device_counts(&counts);
        script->stats.syncs = counts.syncs;
        script->stats.launches = counts.launches;
        script->stats.gaps = counts.gaps;
        script->stats.peer_sums = counts.peer_sums;
    }
    pthread_barrier_destroy(&over);
    coll_hub_destroy(hub);
    free(players);
    free(threads);
    return st;
}

status replica_run(const struct replica_config *config, struct replica_stream *streams, uint32_t n,
                   struct replica_stats *stats_p, struct err *err)
{
    struct script script = { .streams = streams, .n = n };
    struct plan_request request = { .tp = config->tp,
                                    .pp = config->pp,
                                    .fmt = config->fmt,
                                    .device = is_cuda(config->device) ? PLAN_CUDA : PLAN_CPU,
                                    .plane =
                                        is_nccl(config->device) ? PLAN_PLANE_NCCL : PLAN_PLANE_HOST,
                                    .free_order = config->device == REPLICA_NCCL_FREE,
                                    .no_peer_sums = config->no_peer_sums,
                                    .ctx_max = config->ctx_max,
                                    .kv_tokens = config->kv_tokens,
                                    .seqs_max = config->seqs_max,
                                    .rows_max = config->rows_max,
                                    .n_stage_layers = config->n_stage_layers };
    struct model_desc desc;
    struct weights *weights = NULL;
    struct plan *plan = NULL;
    status st;

    memcpy(request.stage_layers, config->stage_layers, sizeof(config->stage_layers));
    (void)((st = model_desc_read(config->model, &desc, err)) ||
           (st = weights_open(config->model, &weights, err)) ||
           (st = weights_check(weights, &desc, err)) ||
           (st = plan_create(&desc, &request, &plan, err)));
    if (st == ST_OK) {
        for (uint32_t i = 0; i < n; i++) {
            streams[i].n_tokens = 0;
            streams[i].reason = FINISH_NONE;
            streams[i].code = ST_OK;
        }
        st = play_all(config, plan, weights, &script, err);
        if (stats_p != NULL) {
            *stats_p = script.stats;
        }
    }
    plan_destroy(plan);
    weights_close(weights);
    return st;
}
