/* worker/shard_load.c - read a rank's own pieces of the weight files and pack them.
 *
 * Which bytes: a row-slice of column-parallel matrices (q, k, v, gate, up, embedding, head), a
 * column-slice of row-parallel ones (o, down), whole vectors otherwise. Each piece passes through
 * one of two pinned staging buffers of STAGE_BYTES, so loading needs no memory to speak of beyond
 * the shard, and a device packs one piece while the next is read:
 *
 *   read a | pack a        | pack b
 *          | read b | wait | read a | wait ...
 *
 * Where the file or the matrix is fp8 a piece is converted between reading and packing
 * (shard_quant.h). */
#include "worker/shard.h"
#include "worker/shard_quant.h"

#include <stdio.h>
#include <stdlib.h>

enum { STAGE_BYTES = 8 << 20 };

struct loader {
    struct shard *shard;
    const struct weights *weights;
    _Atomic uint64_t *loaded;
    const _Atomic bool *abort;
    /* Pinned, [STAGE_BYTES] each, or one row if that is larger; owned. The one that is not `i_stage`
     * may still be read by the packing that was queued last. */
    void *stages[2];
    size_t stage_bytes;
    uint32_t i_stage;
    void *raw;       /* [stage_bytes] ordinary memory, for rows to be converted; owned */
    char prefix[48]; /* "model.layers.17." */
};

/* Where the rows of a tensor go: a kern_mat from row0 on, or an embedding. */
struct target {
    struct kern_mat *mat;
    struct kern_embed *embed;
    uint32_t row0;
};

static size_t dtype_bytes(enum model_dtype dtype)
{
    return dtype == MODEL_F32 ? 4 : dtype == MODEL_F8 ? 1 : 2;
}

static enum kern_src src_of(enum model_dtype dtype)
{
    return dtype == MODEL_F32 ? KERN_SRC_F32 : dtype == MODEL_F16 ? KERN_SRC_F16 : KERN_SRC_BF16;
}

static const struct weights_tensor *find(const struct loader *ld, const char *name, struct err *err)
{
    const struct weights_tensor *t = weights_find(ld->weights, name);

    if (t == NULL) {
        err_set(err, ST_ERR_FORMAT, "tensor %s is missing", name);
    }
    return t;
}

static void free_stages(struct loader *ld)
{
    struct shard *s = ld->shard;

    for (size_t i = 0; i < ARRAY_LEN(ld->stages); i++) {
        s->ops->host_free(s->stream, ld->stages[i], ld->stage_bytes);
        ld->stages[i] = NULL;
    }
    free(ld->raw);
    ld->raw = NULL;
}

static status grow_stages(struct loader *ld, size_t bytes, struct err *err)
{
    struct shard *s = ld->shard;
    status st = ST_OK;

    if (bytes <= ld->stage_bytes) {
        return ST_OK;
    }
    st = s->ops->stream_sync(s->stream, err);
    free_stages(ld);
    ld->stage_bytes = bytes;
    for (size_t i = 0; st == ST_OK && i < ARRAY_LEN(ld->stages); i++) {
        st = s->ops->host_alloc(s->stream, bytes, &ld->stages[i], err);
    }
    if (st == ST_OK && (ld->raw = malloc(bytes)) == NULL) {
        st = err_set(err, ST_ERR_NOMEM, "no memory");
    }
    if (st != ST_OK) {
        err_prefix(err, "staging buffers of %zu bytes: ", bytes);
    }
    return st;
}

static void *stage_of(const struct loader *ld)
{
    return ld->stages[ld->i_stage];
}

/* What stands in the current buffer goes to the device; the other is free when that begins. */
static status pack(struct loader *ld, const struct target *to, const struct kern_rows *rows,
                   struct err *err)
{
    struct shard *s = ld->shard;
    const status st = s->ops->stream_sync(s->stream, err);

    if (st != ST_OK) {
        return st;
    }
    if (to->mat != NULL) {
        s->ops->mat_pack(s->stream, to->mat, rows);
    } else {
        s->ops->embed_pack(s->stream, to->embed, rows);
    }
    ld->i_stage ^= 1;
    return ST_OK;
}

/* Rows of one piece, read and (where something is fp8) converted: what stands in the current
 * buffer, for packing. */
static status take_piece(struct loader *ld, struct shard_quant *q, const struct weights_box *piece,
                         struct kern_rows *rows, struct err *err)
{
    const bool converts = shard_quant_is_needed(q);
    /* Codes of fp8 are only looked at and need no second place. */
    const bool in_place = !converts || (q->t->dtype == MODEL_F8 && shard_quant_bytes(q) == 1);
    void *raw = in_place ? stage_of(ld) : ld->raw;
    const status st = weights_read(ld->weights, q->t, piece, raw, NULL, err);

    if (st != ST_OK || converts) {
        return st != ST_OK ? st : shard_quant_rows(q, piece, raw, stage_of(ld), rows, err);
    }
    rows->type = src_of(q->t->dtype);
    rows->data = raw;
    rows->n_rows = (uint32_t)piece->n_rows;
    rows->ld = (uint32_t)piece->n_cols;
    return ST_OK;
}

static status load_pieces(struct loader *ld, struct shard_quant *q, struct weights_box box,
                          const struct target *to, struct err *err)
{
    const bool converts = shard_quant_is_needed(q);
    const size_t raw_bytes = box.n_cols * dtype_bytes(q->t->dtype);
    const size_t row_bytes =
        converts ? MAX(raw_bytes, box.n_cols * shard_quant_bytes(q)) : raw_bytes;
    status st = grow_stages(ld, MAX((size_t)STAGE_BYTES, row_bytes), err);
    const uint64_t step = row_bytes != 0 ? ld->stage_bytes / row_bytes : 1;

    if (st == ST_OK && converts) {
        st = shard_quant_begin(q, err);
    }
    for (uint64_t done = 0; st == ST_OK && done < box.n_rows && row_bytes != 0;) {
        const uint64_t n = MIN(step, box.n_rows - done);
        const struct weights_box piece = { box.row0 + done, n, box.col0, box.n_cols };
        struct kern_rows rows = { .row0 = to->row0 + (uint32_t)done };
        if (ld->abort != NULL && *ld->abort) {
            return err_set(err, ST_ERR_CANCELLED, "loading was stopped");
        }
        st = take_piece(ld, q, &piece, &rows, err);
        if (st == ST_OK) {
            st = pack(ld, to, &rows, err);
            atomic_fetch_add(ld->loaded, n * raw_bytes);
        }
        done += n;
    }
    return st;
}

/* Rows [box->row0, + n_rows) x columns of tensor `name` into `to`, staged. */
static status load_rows(struct loader *ld, const char *name, struct weights_box box,
                        const struct target *to, struct err *err)
{
    struct shard_quant q = { .weights = ld->weights,
                             .t = find(ld, name, err),
                             .quant = &ld->shard->plan->desc.quant,
                             .mat = to->mat };

    if (q.t == NULL) {
        return ST_ERR_FORMAT;
    }
    const status st = load_pieces(ld, &q, box, to, err);
    shard_quant_end(&q);
    return st;
}

/* A vector, or a run of one, as f32: read as rows of one element and packed by the f32 embedding
 * path, which converts and copies. */
static status load_vector(struct loader *ld, const char *name, uint64_t first, uint64_t n,
                          float *dst, struct err *err)
{
    const struct weights_tensor *t = find(ld, name, err);
    if (t == NULL) {
        return ST_ERR_FORMAT;
    }
    if (t->dtype == MODEL_F8) {
        return err_set(err, ST_ERR_UNSUPPORTED, "tensor %s is F8_E4M3 and no matrix", name);
    }
    const size_t bytes = n * dtype_bytes(t->dtype);
    const struct weights_box box = { 0, 1, first, n };
    struct kern_embed row = { KERN_F32, 0, 1, (uint32_t)n, dst };
    status st = grow_stages(ld, bytes, err);

    if (st == ST_OK) {
        st = weights_read(ld->weights, t, &box, stage_of(ld), NULL, err);
    }
    if (st == ST_OK && n != 0) {
        st = pack(ld, &(struct target){ NULL, &row, 0 },
                  &(struct kern_rows){ src_of(t->dtype), stage_of(ld), 0, 1, (uint32_t)n, NULL },
                  err);
        atomic_fetch_add(ld->loaded, bytes);
    }
    return st;
}

/* ---- names ---- */

static const char *layer_name(const struct loader *ld, const char *rest, char name[128])
{
    snprintf(name, 128, "%s%s", ld->prefix, rest);
    return name;
}

static status layer_rows(struct loader *ld, const char *rest, struct weights_box box,
                         struct kern_mat *mat, uint32_t row0, struct err *err)
{
    char name[128];
    return load_rows(ld, layer_name(ld, rest, name), box, &(struct target){ mat, NULL, row0 }, err);
}

static status layer_vector(struct loader *ld, const char *rest, uint64_t first, uint64_t n,
                           float *dst, struct err *err)
{
    char name[128];
    return dst == NULL ? ST_OK : load_vector(ld, layer_name(ld, rest, name), first, n, dst, err);
}

/* ---- one layer ---- */

static status load_attention(struct loader *ld, struct shard_layer *l, struct err *err)
{
    const struct model_desc *d = &ld->shard->plan->desc;
    const uint32_t dh = d->head_dim;
    const struct range h = ld->shard->part->q_heads, kv = ld->shard->part->kv_heads;
    const uint32_t q0 = h.begin * dh, nq = range_len(h) * dh;
    const uint32_t k0 = kv.begin * dh, nk = range_len(kv) * dh;
    const struct weights_box q_box = { q0, nq, 0, d->dim }, k_box = { k0, nk, 0, d->dim };
    const struct weights_box o_box = { 0, d->dim, q0, nq };
    float *b = l->qkv_bias;
    status st;

    (void)((st = layer_vector(ld, "input_layernorm.weight", 0, d->dim, l->attn_norm, err)) ||
           (st = layer_rows(ld, "self_attn.q_proj.weight", q_box, &l->qkv, 0, err)) ||
           (st = layer_rows(ld, "self_attn.k_proj.weight", k_box, &l->qkv, nq, err)) ||
           (st = layer_rows(ld, "self_attn.v_proj.weight", k_box, &l->qkv, nq + nk, err)) ||
           (st = layer_rows(ld, "self_attn.o_proj.weight", o_box, &l->o, 0, err)) ||
           (st = layer_vector(ld, "self_attn.q_proj.bias", q0, nq, b, err)) ||
           (st = layer_vector(ld, "self_attn.k_proj.bias", k0, nk, b ? b + nq : NULL, err)) ||
           (st = layer_vector(ld, "self_attn.v_proj.bias", k0, nk, b ? b + nq + nk : NULL, err)) ||
           (st = layer_vector(ld, "self_attn.o_proj.bias", 0, d->dim, l->o_bias, err)) ||
           (st = layer_vector(ld, "self_attn.q_norm.weight", 0, dh, l->q_norm, err)) ||
           (st = layer_vector(ld, "self_attn.k_norm.weight", 0, dh, l->k_norm, err)));
    return st;
}

static status load_ffn(struct loader *ld, struct shard_layer *l, struct err *err)
{
    const struct model_desc *d = &ld->shard->plan->desc;
    const struct range f = ld->shard->part->ffn_cols;
    const uint32_t n = range_len(f);
    const struct weights_box up = { f.begin, n, 0, d->dim }, down = { 0, d->dim, f.begin, n };
    float *b = l->gate_up_bias;
    status st;

    (void)((st =
                layer_vector(ld, "post_attention_layernorm.weight", 0, d->dim, l->ffn_norm, err)) ||
           (st = layer_rows(ld, "mlp.gate_proj.weight", up, &l->gate_up, 0, err)) ||
           (st = layer_rows(ld, "mlp.up_proj.weight", up, &l->gate_up, n, err)) ||
           (st = layer_rows(ld, "mlp.down_proj.weight", down, &l->down, 0, err)) ||
           (st = layer_vector(ld, "mlp.gate_proj.bias", f.begin, n, b, err)) ||
           (st = layer_vector(ld, "mlp.up_proj.bias", f.begin, n, b ? b + n : NULL, err)) ||
           (st = layer_vector(ld, "mlp.down_proj.bias", 0, d->dim, l->down_bias, err)));
    return st;
}

/* ---- ends of the model ---- */

/* Tied models store one matrix under either name. */
static const char *vocab_matrix(const struct loader *ld, const char *wanted, const char *other)
{
    return ld->shard->plan->desc.tied && weights_find(ld->weights, wanted) == NULL ? other : wanted;
}

static status load_ends(struct loader *ld, struct err *err)
{
    static const char embed[] = "model.embed_tokens.weight", head[] = "lm_head.weight";
    struct shard *s = ld->shard;
    const struct range v = s->part->vocab;
    const struct weights_box box = { v.begin, range_len(v), 0, s->plan->desc.dim };
    status st = ST_OK;

    if (s->part->has_embed) {
        st = load_rows(ld, vocab_matrix(ld, embed, head), box,
                       &(struct target){ NULL, &s->embed, 0 }, err);
    }
    if (st == ST_OK && s->part->has_head) {
        const char *name = s->plan->desc.tied ? vocab_matrix(ld, embed, head) : head;
        st = load_rows(ld, name, box, &(struct target){ &s->head, NULL, 0 }, err);
        if (st == ST_OK) {
            st = load_vector(ld, "model.norm.weight", 0, s->plan->desc.dim, s->final_norm, err);
        }
    }
    return st;
}

status shard_load(struct shard *shard, const struct weights *weights, _Atomic uint64_t *loaded,
                  const _Atomic bool *abort, struct err *err)
{
    struct loader ld = { .shard = shard, .weights = weights, .loaded = loaded, .abort = abort };
    const struct range layers = shard->part->layers;
    status st = load_ends(&ld, err);

    for (uint32_t i = layers.begin; st == ST_OK && i < layers.end; i++) {
        snprintf(ld.prefix, sizeof(ld.prefix), "model.layers.%u.", i);
        st = load_attention(&ld, &shard->layers[i - layers.begin], err);
        if (st == ST_OK) {
            st = load_ffn(&ld, &shard->layers[i - layers.begin], err);
        }
    }
    if (st == ST_OK) {
        st = shard->ops->stream_sync(shard->stream, err);
    }
    free_stages(&ld);
    return st;
}

/* Of the tensor's elements; 2 where it is not there. */
static uint64_t element_bytes(const struct weights *weights, const char *name)
{
    const struct weights_tensor *t = weights_find(weights, name);

    return t != NULL ? dtype_bytes(t->dtype) : 2;
}

uint64_t shard_file_bytes(const struct plan *plan, uint32_t rank, const struct weights *weights)
{
    const struct plan_part *part = &plan->parts[rank];
    const struct model_desc *d = &plan->desc;
    const uint64_t e_head = element_bytes(weights, "lm_head.weight");
    const uint64_t e_embed = element_bytes(weights, "model.embed_tokens.weight");
    const uint64_t hd = (uint64_t)range_len(part->q_heads) * d->head_dim;
    const uint64_t kd = (uint64_t)range_len(part->kv_heads) * d->head_dim;
    const uint64_t f = range_len(part->ffn_cols), vocab = range_len(part->vocab);
    /* A matrix of each kind, and the rows of it and of its like that have `dim` elements. */
    const struct {
        const char *name;
        uint64_t n;
    } kinds[] = { { "input_layernorm", 2 },       { "self_attn.q_proj", hd },
                  { "self_attn.k_proj", 2 * kd }, { "self_attn.o_proj", hd },
                  { "mlp.up_proj", 2 * f },       { "mlp.down_proj", f } };
    uint64_t bytes =
        (part->has_embed ? e_embed * vocab : 0) + (part->has_head ? e_head * vocab : 0);

    for (uint32_t i = part->layers.begin; i < part->layers.end; i++) {
        for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
            char name[96];
            snprintf(name, sizeof(name), "model.layers.%u.%s.weight", i, kinds[k].name);
            bytes += element_bytes(weights, name) * kinds[k].n;
        }
    }
    return bytes * d->dim;
}
