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

static size_t fmt_bytes(enum kern_fmt fmt)
{
    return fmt == KERN_F32 ? 4 : 2;
}

static void list_scratch(struct exec *e, struct wish wishes[EXEC_BUFFERS])
{
    const struct plan_part *part = e->part;
    const struct model_desc *d = e->desc;
    const size_t t = e->limits.rows_max, s = e->limits.seqs_max, w = fmt_bytes(e->plan->fmt);
    const size_t hd = (size_t)range_len(part->q_heads) * d->head_dim;
    const size_t kd = (size_t)range_len(part->kv_heads) * d->head_dim;
    const size_t f = range_len(part->ffn_cols), v = range_len(part->vocab);
    const size_t head = part->has_head ? s : 0;

    const struct wish all[EXEC_BUFFERS] = {
        { &e->normed, t * d->dim * w },
        { &e->att, t * hd * w },
        { &e->act, t * f * w },
        { (void **)&e->qkv, t * (hd + 2 * kd) * sizeof(float) },
        { (void **)&e->gate_up, t * 2 * f * sizeof(float) },
        { (void **)&e->partial, t * d->dim * sizeof(float) },
        { (void **)&e->picked, head * d->dim * sizeof(float) },
        { (void **)&e->logits, head * v * sizeof(float) },
        { (void **)&e->tokens, t * sizeof(uint32_t) },
        { (void **)&e->pos, t * sizeof(uint32_t) },
        { (void **)&e->seq, t * sizeof(uint32_t) },
        { (void **)&e->tables,
          (size_t)e->limits.seqs_max * e->table_stride_max * sizeof(uint32_t) },
        { (void **)&e->rows, s * sizeof(uint32_t) },
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
    const status st = e->coll->ops->all_reduce_tree(e->coll, e->stream, y, n, e->stamp++, err);
    e->times.coll_ns += clock_now_ns(clock_real()) - from;
    return st;
}

/* x[T,C] += o(attention(...)) */
static status attention(struct exec *e, const struct shard_layer *l, float *x, struct err *err)
{
    const struct kern_ops *k = e->ops;
    const struct kern_qkv *g = &e->qkv_shape;
    const uint32_t t = e->shape.n_rows, c = e->desc->dim;

    k->rmsnorm(e->stream, e->normed, e->plan->fmt, x, l->attn_norm, t, c, e->desc->norm_eps);
    k->gemm(e->stream, e->qkv, e->normed, &l->qkv,
            t); /* W[(H+2K)D,C] x normed[T,C] -> qkv[T,(H+2K)D] */
    if (l->qkv_bias != NULL) {
        k->add_bias(e->stream, e->qkv, l->qkv_bias, t, l->qkv.n);
    }
    if (l->q_norm != NULL) {
        k->qk_norm(e->stream, e->qkv, g, l->q_norm, l->k_norm, t, e->desc->norm_eps);
    }
    k->rope(e->stream, e->qkv, g, &e->shard->rope, &e->map);
    k->kv_store(e->stream, &l->kv, e->qkv, g, &e->map);
    k->attention(e->stream, e->att, &l->kv, e->qkv, g, &e->map);
    k->gemm(e->stream, e->partial, e->att, &l->o, t); /* W[C,HD] x att[T,HD] -> partial[T,C] */
    const status st = exec_reduce(e, e->partial, (size_t)t * c, err);
    if (st != ST_OK) {
        return st;
    }
    if (l->o_bias != NULL) {
        k->add_bias(e->stream, e->partial, l->o_bias, t, c);
    }
    k->add(e->stream, x, x, e->partial, (size_t)t * c);
    return ST_OK;
}

/* x[T,C] += down(silu(gate) * up) */
static status ffn(struct exec *e, const struct shard_layer *l, float *x, struct err *err)
{
    const struct kern_ops *k = e->ops;
    const uint32_t t = e->shape.n_rows, c = e->desc->dim, f = range_len(e->part->ffn_cols);

    k->rmsnorm(e->stream, e->normed, e->plan->fmt, x, l->ffn_norm, t, c, e->desc->norm_eps);
    k->gemm(e->stream, e->gate_up, e->normed, &l->gate_up,
            t); /* W[2F,C] x normed[T,C] -> gate_up[T,2F] */
    if (l->gate_up_bias != NULL) {
        k->add_bias(e->stream, e->gate_up, l->gate_up_bias, t, 2 * f);
    }
    k->silu_mul(e->stream, e->act, e->plan->fmt, e->gate_up, t, f);
    k->gemm(e->stream, e->partial, e->act, &l->down, t); /* W[C,F] x act[T,F] -> partial[T,C] */
    const status st = exec_reduce(e, e->partial, (size_t)t * c, err);
    if (st != ST_OK) {
        return st;
    }
    if (l->down_bias != NULL) {
        k->add_bias(e->stream, e->partial, l->down_bias, t, c);
    }
    k->add(e->stream, x, x, e->partial, (size_t)t * c);
    return ST_OK;
}

/* ---- a step ---- */

void exec_count(struct exec *e, _Atomic uint64_t *ticks)
{
    e->ticks = ticks;
}

static void exec_tick(const struct exec *e)
{
    if (e->ticks != NULL) {
        atomic_fetch_add_explicit(e->ticks, 1, memory_order_relaxed);
    }
}

status exec_queue(struct exec *e, float *x, struct err *err)
{
    status st = ST_OK;

    exec_rows_queue(e);
    if (e->part->has_embed) {
        e->ops->embed(e->stream, x, &e->shard->embed, e->tokens, e->shape.n_rows);
        st = exec_reduce(e, x, (size_t)e->shape.n_rows * e->desc->dim, err);
    }
    for (uint32_t i = 0; st == ST_OK && i < range_len(e->part->layers); i++) {
        st = attention(e, &e->shard->layers[i], x, err);
        exec_tick(e);
        if (st == ST_OK) {
            st = ffn(e, &e->shard->layers[i], x, err);
        }
    }
    if (st == ST_OK && e->part->has_head && e->shape.n_samples != 0) {
        exec_sample_queue(e, x);
    }
    return st;
}

status exec_drain(struct exec *e, struct err *err)
{
    e->is_pending = false;
    return e->coll->ops->sync != NULL ? e->coll->ops->sync(e->coll, e->stream, err)
                                      : e->ops->stream_sync(e->stream, err);
}

/* The tables in pinned memory are the device's until the step before is over. Only a stage whose
 * results the host does not need comes here with one running: it has had the time since then to
 * take in submits and make the next plan. */
static status run(struct exec *e, const struct step_head *plan, float *x,
                  struct step_result *results, struct err *err)
{
    status st = e->is_pending ? exec_drain(e, err) : ST_OK;

    if (st != ST_OK) {
        return st;
    }
    e->stamp = plan->digest;
    exec_rows_fill(e, plan);
    e->is_pending = true;
    st = e->shape.is_recorded ? exec_graph_run(e, x, err) : exec_queue(e, x, err);
    if (st != ST_OK || !e->part->has_head || plan->n_samples == 0) {
        return st;
    }
    st = exec_drain(e, err);
    return st == ST_OK ? exec_sample_merge(e, plan, results, err) : st;
}

status exec_step(struct exec *e, const struct step_head *plan, float *x,
                 struct step_result *results, struct err *err)
{
    const uint64_t from = clock_now_ns(clock_real());

    e->times.coll_ns = 0;
    const status st = run(e, plan, x, results, err);
    e->times.total_ns = clock_now_ns(clock_real()) - from;
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
