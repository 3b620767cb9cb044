/* worker/shard.c - placing the pieces of a shard in memory. Reading them is shard_load.c. */
#include "worker/shard.h"

#include "base/hash.h"
#include "kernels/rope.h"

#include <stdlib.h>
#include <string.h>

/* Hands out aligned pieces of one run of memory; with base NULL only counts. */
struct placer {
    char *base;
    size_t used;
};

static void *place(struct placer *p, size_t bytes)
{
    void *at = p->base != NULL ? p->base + p->used : NULL;

    p->used += (bytes + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
    return at;
}

static float *place_f32(struct placer *p, size_t n)
{
    return place(p, n * sizeof(float));
}

static void place_mat(const struct shard *s, struct placer *p, struct kern_mat *mat, uint32_t n,
                      uint32_t k)
{
    mat->fmt = s->plan->fmt;
    mat->n = n;
    mat->k = k;
    if (mat->n_leaves == 0) { /* column-parallel: one leaf */
        mat->n_leaves = 1;
        mat->leaf[0] = 0;
        mat->leaf[1] = k;
    }
    mat->data = place(p, s->ops->mat_bytes(mat));
}

/* This rank's leaves of a row-parallel dimension of `n_units` units of `unit` inputs (the last may
 * be cut short by `total`), as offsets into its own columns. */
static void set_leaves(const struct shard *s, struct kern_mat *mat, uint32_t n_units, uint32_t unit,
                       uint32_t total)
{
    const struct range leaves = s->part->leaves;
    const uint32_t r = s->plan->n_leaves;
    const uint32_t first = MIN(kern_leaf_begin(n_units, r, leaves.begin) * unit, total);

    mat->n_leaves = range_len(leaves);
    for (uint32_t i = 0; i <= mat->n_leaves; i++) {
        mat->leaf[i] = MIN(kern_leaf_begin(n_units, r, leaves.begin + i) * unit, total) - first;
    }
}

static void place_layer(const struct shard *s, struct placer *p, struct shard_layer *l)
{
    const struct model_desc *d = &s->plan->desc;
    const uint32_t hd = range_len(s->part->q_heads) * d->head_dim;
    const uint32_t kd = range_len(s->part->kv_heads) * d->head_dim;
    const uint32_t f = range_len(s->part->ffn_cols);

    l->attn_norm = place_f32(p, d->dim);
    l->ffn_norm = place_f32(p, d->dim);
    l->q_norm = d->qk_norm ? place_f32(p, d->head_dim) : NULL;
    l->k_norm = d->qk_norm ? place_f32(p, d->head_dim) : NULL;
    l->qkv_bias = d->qkv_bias ? place_f32(p, hd + 2 * kd) : NULL;
    l->o_bias = d->o_bias ? place_f32(p, d->dim) : NULL;
    l->gate_up_bias = d->mlp_bias ? place_f32(p, 2 * (size_t)f) : NULL;
    l->down_bias = d->mlp_bias ? place_f32(p, d->dim) : NULL;
    set_leaves(s, &l->o, d->n_heads, d->head_dim, d->n_heads * d->head_dim);
    set_leaves(s, &l->down, (d->ffn_dim + 1) / 2, 2, d->ffn_dim);
    place_mat(s, p, &l->qkv, hd + 2 * kd, d->dim);
    place_mat(s, p, &l->o, d->dim, hd);
    place_mat(s, p, &l->gate_up, 2 * f, d->dim);
    place_mat(s, p, &l->down, d->dim, f);
}

static void place_weights(struct shard *s, struct placer *p)
{
    const struct model_desc *d = &s->plan->desc;
    const struct range vocab = s->part->vocab;
    const size_t n_angles = (size_t)s->plan->ctx_max * (d->head_dim / 2);

    s->rope.n_pos = s->plan->ctx_max;
    s->rope.head_dim = d->head_dim;
    s->rope.cos = place_f32(p, n_angles);
    s->rope.sin = place_f32(p, n_angles);
    if (s->part->has_embed) {
        s->embed = (struct kern_embed){
            .fmt = s->plan->fmt, .row0 = vocab.begin, .n_rows = range_len(vocab), .dim = d->dim
        };
        s->embed.data = place(p, s->ops->embed_bytes(&s->embed));
    }
    if (s->part->has_head) {
        s->final_norm = place_f32(p, d->dim);
        place_mat(s, p, &s->head, range_len(vocab), d->dim);
    }
    for (uint32_t i = 0; i < range_len(s->part->layers); i++) {
        place_layer(s, p, &s->layers[i]);
    }
}

static void place_kv(struct shard *s, struct placer *p)
{
    for (uint32_t i = 0; i < range_len(s->part->layers); i++) {
        struct kern_kv *kv = &s->layers[i].kv;
        kv->fmt = s->plan->fmt;
        kv->n_heads = range_len(s->part->kv_heads);
        kv->head_dim = s->plan->desc.head_dim;
        kv->n_blocks = s->plan->kv_blocks;
        kv->k = place(p, s->ops->kv_bytes(kv));
        kv->v = place(p, s->ops->kv_bytes(kv));
    }
}

static status fill_rope(struct shard *s, struct err *err)
{
    const struct model_desc *d = &s->plan->desc;
    const size_t n = (size_t)s->plan->ctx_max * (d->head_dim / 2);
    const struct rope_params params = { .kind = (enum rope_kind)d->rope.kind,
                                        .head_dim = d->head_dim,
                                        .theta = d->rope.theta,
                                        .factor = d->rope.factor,
                                        .low_freq_factor = d->rope.low_freq_factor,
                                        .high_freq_factor = d->rope.high_freq_factor,
                                        .original_ctx = d->rope.original_ctx };
    float *table = malloc(2 * n * sizeof(float)); /* cos, then sin */

    if (table == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a rope table of %u positions",
                       s->plan->ctx_max);
    }
    rope_table_fill(&params, s->plan->ctx_max, table, table + n);
    s->rope_digest = hash64_of(table, 2 * n * sizeof(float), 0);
    /* The shard owns the memory behind these pointers; they are const for the kernels only. */
    s->ops->copy_in(s->stream, (void *)(uintptr_t)s->rope.cos, table, n * sizeof(float));
    s->ops->copy_in(s->stream, (void *)(uintptr_t)s->rope.sin, table + n, n * sizeof(float));
    free(table);
    return ST_OK;
}

static status alloc_all(struct shard *s, struct err *err)
{
    struct placer weights = { NULL, 0 }, kv = { NULL, 0 };
    void *mem = NULL;

    place_weights(s, &weights);
    place_kv(s, &kv);
    s->weights_bytes = weights.used;
    s->kv_bytes = kv.used;
    status st = s->ops->mem_alloc(s->stream, s->weights_bytes, &mem, err);
    if (st != ST_OK) {
        err_prefix(err, "rank %u: %zu bytes of weights: ", s->part->rank, s->weights_bytes);
        return st;
    }
    s->weights_mem = mem;
    st = s->ops->mem_alloc(s->stream, s->kv_bytes, &mem, err);
    if (st != ST_OK) {
        err_prefix(err, "rank %u: %zu bytes of KV cache (%u tokens): ", s->part->rank, s->kv_bytes,
                   s->plan->kv_tokens);
        return st;
    }
    s->kv_mem = mem;
    weights = (struct placer){ s->weights_mem, 0 };
    kv = (struct placer){ s->kv_mem, 0 };
    place_weights(s, &weights);
    place_kv(s, &kv);
    return ST_OK;
}

status shard_create(const struct kern_ops *ops, struct kern_stream *stream, const struct plan *plan,
                    uint32_t rank, struct shard **shard_p, struct err *err)
{
    ASSERT(rank < plan->n_ranks);
    struct shard *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a shard");
    }
    s->ops = ops;
    s->stream = stream;
    s->plan = plan;
    s->part = &plan->parts[rank];
    s->layers = calloc(MAX(1u, range_len(s->part->layers)), sizeof(*s->layers));
    status st = s->layers != NULL ? alloc_all(s, err)
                                  : err_set(err, ST_ERR_NOMEM, "no memory for a table of layers");
    if (st == ST_OK) {
        st = fill_rope(s, err);
    }
    if (st != ST_OK) {
        shard_destroy(s);
        return st;
    }
    *shard_p = s;
    return ST_OK;
}

void shard_destroy(struct shard *s)
{
    if (s == NULL) {
        return;
    }
    s->ops->mem_free(s->stream, s->weights_mem, s->weights_bytes);
    s->ops->mem_free(s->stream, s->kv_mem, s->kv_bytes);
    free(s->layers);
    free(s);
}
