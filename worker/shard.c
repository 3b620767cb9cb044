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

static void place_mat(const struct shard *s, struct placer *p, uint32_t layer, enum plan_mat which,
                      struct kern_mat *mat)
{
    plan_mat(s->plan, s->part, layer, which, mat);
    mat->data = place(p, s->ops->mat_bytes(mat));
}

/* `layer` of the model. */
static void place_layer(const struct shard *s, struct placer *p, uint32_t layer,
                        struct shard_layer *l)
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
    place_mat(s, p, layer, PLAN_MAT_QKV, &l->qkv);
    place_mat(s, p, layer, PLAN_MAT_O, &l->o);
    place_mat(s, p, layer, PLAN_MAT_GATE_UP, &l->gate_up);
    place_mat(s, p, layer, PLAN_MAT_DOWN, &l->down);
}

static void place_weights(struct shard *s, struct placer *p)
{
    if (s->part->has_embed) {
        plan_embed(s->plan, s->part, &s->embed);
        s->embed.data = place(p, s->ops->embed_bytes(&s->embed));
    }
    if (s->part->has_head) {
        s->final_norm = place_f32(p, s->plan->desc.dim);
        place_mat(s, p, 0, PLAN_MAT_HEAD, &s->head);
    }
    for (uint32_t i = 0; i < range_len(s->part->layers); i++) {
        place_layer(s, p, s->part->layers.begin + i, &s->layers[i]);
    }
}

static void place_kv(struct shard *s, struct placer *p)
{
    for (uint32_t i = 0; i < range_len(s->part->layers); i++) {
        struct kern_kv *kv = &s->layers[i].kv;
        plan_kv(s->plan, s->part, kv);
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
    struct placer tables = { NULL, 0 };
    status st = ST_ERR_NOMEM;

    place_f32(&tables, n);
    place_f32(&tables, n);
    s->rope_bytes = tables.used;
    if (table != NULL) {
        st = s->ops->mem_alloc(s->stream, s->rope_bytes, &s->rope_mem, err);
    }
    if (st != ST_OK) {
        free(table);
        return err_set(err, ST_ERR_NOMEM, "no memory for a rope table of %u positions",
                       s->plan->ctx_max);
    }
    rope_table_fill(&params, s->plan->ctx_max, table, table + n);
    s->rope_digest = hash64_of(table, 2 * n * sizeof(float), 0);
    tables = (struct placer){ s->rope_mem, 0 };
    float *cos = place_f32(&tables, n), *sin = place_f32(&tables, n);
    s->ops->copy_in(s->stream, cos, table, n * sizeof(float));
    s->ops->copy_in(s->stream, sin, table + n, n * sizeof(float));
    s->rope = (struct kern_rope){ s->plan->ctx_max, d->head_dim, cos, sin };
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
    /* What the plan told the operator is what is allocated, to the byte. */
    ASSERT(s->weights_bytes == s->part->weight_bytes && s->kv_bytes == s->part->kv_bytes);
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
    s->ops->mem_free(s->stream, s->rope_mem, s->rope_bytes);
    free(s->layers);
    free(s);
}
