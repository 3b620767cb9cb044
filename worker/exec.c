/* worker/exec.c - see exec.h, and exec_priv.h for the other files of the forward pass.
 *
 * One step: fill the tables (host), queue everything (device, or done at once on CPU), wait only
 * where the host needs the scans. No line here reads device memory: what the host sees has gone
 * through copy_out or a scan into host_alloc memory, and stream_sync. */
#include "worker/exec_priv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- create, destroy ---- */

struct wish {
    void **at;
    size_t bytes;
};

static size_t fmt_bytes(enum kern_fmt fmt) /* of products' inputs */
{
    return kern_fmt_of_x(fmt) == KERN_F32 ? 4 : 2;
}

static void list_scratch(struct exec *e, struct wish wishes[EXEC_BUFFERS])
{
    const struct plan_part *part = e->part;
    const struct model_desc *d = e->desc;
    const size_t t = e->limits.rows_max, s = e->limits.seqs_max, w = fmt_bytes(e->plan->fmt);
    const size_t hd = (size_t)range_len(part->q_heads) * d->head_dim;
    const size_t kd = (size_t)range_len(part->kv_heads) * d->head_dim;
    const size_t f = range_len(part->ffn_cols), v = range_len(part->vocab);
    const size_t head = part->has_head ? s : 0, feeds = part->has_head && part->has_embed ? 1 : 0;

    const struct wish all[EXEC_BUFFERS] = {
        { &e->normed, t * d->dim * w },
        { &e->att, t * hd * w },
        { &e->act, t * f * w },
        { (void **)&e->qkv, t * (hd + 2 * kd) * sizeof(float) },
        { (void **)&e->gate_up, t * 2 * f * sizeof(float) },
        { (void **)&e->partial, t * d->dim * sizeof(float) },
        { (void **)&e->picked, head * d->dim * sizeof(float) },
        { (void **)&e->logits, head * v * sizeof(float) },
        { (void **)&e->step_mem, exec_tables_bytes(e) },
        { (void **)&e->best, feeds * s * sizeof(struct kern_cand) },
        { (void **)&e->best_all,
          e->plan->tp > 1 ? feeds * e->plan->tp * s * sizeof(struct kern_cand) : 0 },
    };
    memcpy(wishes, all, sizeof(all));
}

static status alloc_scratch(struct exec *e, struct err *err)
{
    struct wish wishes[EXEC_BUFFERS];

    list_scratch(e, wishes);
    for (uint32_t i = 0; i < EXEC_BUFFERS; i++) {
        const size_t bytes = wishes[i].bytes;
        if (bytes == 0) {
            continue; /* not on this stage, or a slice without ids */
        }
        const status st = e->ops->mem_alloc(e->stream, bytes, wishes[i].at, err);
        if (st != ST_OK) {
            err_prefix(err, "rank %u: scratch: ", e->part->rank);
            return st;
        }
        e->buffer_bytes[i] = bytes;
        e->scratch_bytes += (bytes + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
    }
    return ST_OK;
}

status exec_create(struct shard *shard, struct coll *coll, const struct step_limits *limits,
                   struct exec **exec_p, struct err *err)
{
    struct exec *e = calloc(1, sizeof(*e));

    if (e == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the forward pass");
    }
    e->shard = shard;
    e->ops = shard->ops;
    e->stream = shard->stream;
    e->plan = shard->plan;
    e->part = shard->part;
    e->desc = &shard->plan->desc;
    e->fmt = kern_fmt_of_x(shard->plan->fmt);
    e->coll = coll;
    e->limits = *limits;
    e->table_stride_max = (e->plan->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    e->qkv_shape = (struct kern_qkv){ .n_heads = range_len(e->part->q_heads),
                                      .n_kv_heads = range_len(e->part->kv_heads),
                                      .head_dim = e->desc->head_dim,
                                      .head0 = e->part->q_heads.begin,
                                      .kv_head0 = e->part->kv_heads.begin,
                                      .group = e->desc->n_heads / e->desc->n_kv_heads,
                                      .scale = 1.0f / sqrtf((float)e->desc->head_dim) };
    e->n_sets = e->ops->on_device ? EXEC_OUT_MAX : 1;
    status st = alloc_scratch(e, err);
    (void)(st || (st = exec_rows_init(e, err)) || (st = exec_sample_init(e, err)) ||
           (st = exec_graphs_init(e, err)));
    if (st != ST_OK) {
        exec_destroy(e);
        return st;
    }
    *exec_p = e;
    return ST_OK;
}

void exec_destroy(struct exec *e)
{
    struct wish wishes[EXEC_BUFFERS];

    if (e == NULL) {
        return;
    }
    list_scratch(e, wishes);
    for (uint32_t i = 0; i < EXEC_BUFFERS; i++) {
        e->ops->mem_free(e->stream, *wishes[i].at, e->buffer_bytes[i]);
    }
    exec_graphs_fini(e);
    exec_sample_fini(e);
    exec_rows_fini(e);
    free(e);
}

/* ---- layers ---- */

status exec_reduce(struct exec *e, float *y, size_t n, struct err *err)
{
    if (e->plan->tp == 1) {
        return ST_OK;
    }
    const uint64_t from = clock_now_ns(clock_real());
    const status st = e->coll->ops->all_reduce_tree(e->coll, e->stream, y, n, e->set->stamp++, err);
    e->set->coll_ns += clock_now_ns(clock_real()) - from;
    return st;
}

static void exec_tick(const struct exec *e)
{
    if (e->ticks != NULL) {
        atomic_fetch_add_explicit(e->ticks, 1, memory_order_relaxed);
    }
}

/* x[T,C] += partial[T,C]; then normed <- x by the norm of what comes next (NULL: nothing does). */
static void add_norm(struct exec *e, float *x, const float *norm)
{
    const struct kern_ops *k = e->ops;
    const uint32_t t = e->shape.n_rows, c = e->desc->dim;

    if (norm != NULL && k->add_rmsnorm != NULL) {
        k->add_rmsnorm(e->stream, e->normed, e->fmt, x, e->partial, norm, t, c, e->desc->norm_eps);
        return;
    }
    k->add(e->stream, x, x, e->partial, (size_t)t * c);
    if (norm != NULL) {
        k->rmsnorm(e->stream, e->normed, e->fmt, x, norm, t, c, e->desc->norm_eps);
    }
}

/* x[T,C] += o(attention(...)); its norm stands in `normed`, and so does the ffn's afterwards. */
static status attention(struct exec *e, const struct shard_layer *l, float *x, struct err *err)
{
    const struct kern_ops *k = e->ops;
    const struct kern_qkv *g = &e->qkv_shape;
    const uint32_t t = e->shape.n_rows, c = e->desc->dim;

    k->gemm(e->stream, e->qkv, e->normed, &l->qkv,
            t); /* W[(H+2K)D,C] x normed[T,C] -> qkv[T,(H+2K)D] */
    if (l->qkv_bias != NULL) {
        k->add_bias(e->stream, e->qkv, l->qkv_bias, t, l->qkv.n);
    }
    if (l->q_norm != NULL) {
        k->qk_norm(e->stream, e->qkv, g, l->q_norm, l->k_norm, t, e->desc->norm_eps);
    }
    if (k->rope_store != NULL) {
        k->rope_store(e->stream, &l->kv, e->qkv, g, &e->shard->rope, &e->map);
    } else {
        k->rope(e->stream, e->qkv, g, &e->shard->rope, &e->map);
        k->kv_store(e->stream, &l->kv, e->qkv, g, &e->map);
    }
    k->attention(e->stream, e->att, &l->kv, e->qkv, g, &e->map);
    k->gemm(e->stream, e->partial, e->att, &l->o, t); /* W[C,HD] x att[T,HD] -> partial[T,C] */
    const status st = exec_reduce(e, e->partial, (size_t)t * c, err);
    if (st != ST_OK) {
        return st;
    }
    if (l->o_bias != NULL) {
        k->add_bias(e->stream, e->partial, l->o_bias, t, c);
    }
    add_norm(e, x, l->ffn_norm);
    return ST_OK;
}

/* x[T,C] += down(silu(gate) * up); then `next_norm` of x, unless it is NULL. */
static status ffn(struct exec *e, const struct shard_layer *l, const float *next_norm, float *x,
                  struct err *err)
{
    const struct kern_ops *k = e->ops;
    const uint32_t t = e->shape.n_rows, c = e->desc->dim, f = range_len(e->part->ffn_cols);

    k->gemm(e->stream, e->gate_up, e->normed, &l->gate_up,
            t); /* W[2F,C] x normed[T,C] -> gate_up[T,2F] */
    if (l->gate_up_bias != NULL) {
        k->add_bias(e->stream, e->gate_up, l->gate_up_bias, t, 2 * f);
    }
    k->silu_mul(e->stream, e->act, e->fmt, e->gate_up, t, f);
    k->gemm(e->stream, e->partial, e->act, &l->down, t); /* W[C,F] x act[T,F] -> partial[T,C] */
    const status st = exec_reduce(e, e->partial, (size_t)t * c, err);
    if (st != ST_OK) {
        return st;
    }
    if (l->down_bias != NULL) {
        k->add_bias(e->stream, e->partial, l->down_bias, t, c);
    }
    add_norm(e, x, next_norm);
    return ST_OK;
}

/* The layers of this stage. Each norm is taken with the sum before it. */
static status layers(struct exec *e, float *x, struct err *err)
{
    const struct shard_layer *all = e->shard->layers;
    const uint32_t n = range_len(e->part->layers);
    status st = ST_OK;

    e->ops->rmsnorm(e->stream, e->normed, e->fmt, x, all[0].attn_norm, e->shape.n_rows,
                    e->desc->dim, e->desc->norm_eps);
    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        st = attention(e, &all[i], x, err);
        exec_tick(e);
        if (st == ST_OK) {
            st = ffn(e, &all[i], i + 1 < n ? all[i + 1].attn_norm : NULL, x, err);
        }
    }
    return st;
}

/* ---- a step ---- */

void exec_count(struct exec *e, _Atomic uint64_t *ticks)
{
    e->ticks = ticks;
}

status exec_queue(struct exec *e, float *x, struct err *err)
{
    status st = ST_OK;

    exec_rows_queue(e);
    if (e->part->has_embed) {
        e->ops->embed(e->stream, x, &e->shard->embed, e->at.tokens, e->shape.n_rows);
        st = exec_reduce(e, x, (size_t)e->shape.n_rows * e->desc->dim, err);
    }
    if (st == ST_OK) {
        st = layers(e, x, err);
    }
    if (st == ST_OK && e->part->has_head && e->shape.n_samples != 0) {
        st = exec_sample_queue(e, x, err);
    }
    return st;
}

bool exec_is_ahead(const struct exec *e)
{
    return e->ops->feed != NULL && e->plan->pp == 1 && (e->plan->tp == 1 || e->coll->is_queued);
}

uint32_t exec_n_out(const struct exec *e)
{
    return e->n_out;
}

static struct exec_set *oldest(struct exec *e)
{
    return &e->sets[(e->i_set + e->n_sets - e->n_out) % e->n_sets];
}

const struct step_head *exec_oldest(const struct exec *e)
{
    return e->n_out != 0 ? e->sets[(e->i_set + e->n_sets - e->n_out) % e->n_sets].plan : NULL;
}

static status wait_all(struct exec *e, struct err *err)
{
    return e->coll->ops->sync != NULL ? e->coll->ops->sync(e->coll, e->stream, COLL_MARK_ALL, err)
                                      : e->ops->stream_sync(e->stream, err);
}

status exec_drain(struct exec *e, struct err *err)
{
    for (uint32_t i = 0; i < e->n_sets; i++) {
        e->sets[i].is_queued = false;
    }
    return wait_all(e, err);
}

/* Until the step that this set was queued for is done. */
static status wait_set(struct exec *e, struct exec_set *set, struct err *err)
{
    const uint32_t mark = (uint32_t)(set - e->sets);

    if (!set->is_queued) {
        return ST_OK;
    }
    set->is_queued = false;
    if (e->ops->mark == NULL) {
        return wait_all(e, err);
    }
    return e->coll->ops->sync != NULL ? e->coll->ops->sync(e->coll, e->stream, mark, err)
                                      : e->ops->mark_wait(e->stream, mark, err);
}

static status queue_step(struct exec *e, const struct step_head *plan, float *x, struct err *err)
{
    status st = exec_rows_fill(e, plan, err);

    if (st == ST_OK) {
        e->set->is_queued = true;
        st = e->shape.is_recorded ? exec_graph_run(e, x, err) : exec_queue(e, x, err);
    }
    if (st == ST_OK && e->ops->mark != NULL) {
        e->ops->mark(e->stream, (uint32_t)(e->set - e->sets));
    }
    return st == ST_OK && e->coll->ops->agree != NULL
               ? e->coll->ops->agree(e->coll, e->set->stamp, err)
               : st;
}

/* The set's tables in pinned memory are the device's until the step that had it last is over. Only
 * where results are not waited for is that one still running here. */
status exec_begin(struct exec *e, const struct step_head *plan, float *x, struct err *err)
{
    struct exec_set *set = &e->sets[e->i_set];

    ASSERT(e->n_out < (exec_is_ahead(e) ? (uint32_t)EXEC_OUT_MAX : 1u));
    set->began_ns = clock_now_ns(clock_real());
    set->coll_ns = 0;
    set->stamp = plan->digest;
    set->plan = plan;
    e->set = set;
    status st = wait_set(e, set, err);
    if (st == ST_OK) {
        st = queue_step(e, plan, x, err);
    }
    e->n_fed_max = plan->n_samples;
    e->i_set = (e->i_set + 1) % e->n_sets;
    e->n_out++;
    return st;
}

status exec_finish(struct exec *e, struct step_result *results, struct err *err)
{
    ASSERT(e->n_out != 0);
    struct exec_set *set = oldest(e);
    status st = ST_OK;

    e->n_out--;
    if (e->part->has_head && set->plan->n_samples != 0) {
        st = wait_set(e, set, err);
        if (st == ST_OK) {
            st = exec_sample_merge(e, set, results, err);
        }
    }
    const uint64_t now = clock_now_ns(clock_real());
    e->times = (struct exec_times){ now - MAX(set->began_ns, e->finished_ns), set->coll_ns };
    e->finished_ns = now;
    set->plan = NULL;
    return st;
}

void exec_times(const struct exec *e, struct exec_times *times_p)
{
    *times_p = e->times;
}

size_t exec_scratch_bytes(const struct exec *e)
{
    return e->scratch_bytes;
}
