/* model/weights_check.c - do the files hold what the description asks for: weights_check.
 *
 * One table of tensors per layer and one for the whole model; a shape is written in letters of
 * desc. A tensor that the table knows and the description does not use is refused as well: a bias
 * in the files that config.json does not speak of would otherwise be left out in silence. Matrices
 * of layers and the head may be fp8 with scales; scales of any other tensor are refused likewise. */
#include "model/weights_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum dim { DIM_NONE, DIM_C, DIM_V, DIM_F, DIM_Q, DIM_KV, DIM_D };
enum use { USE_ALWAYS, USE_QKV_BIAS, USE_O_BIAS, USE_MLP_BIAS, USE_QK_NORM };

struct need {
    const char *name; /* behind "model.layers.N." in a layer */
    enum dim rows, cols;
    enum use use;
};

static const struct need layer_needs[] = {
    { "input_layernorm.weight", DIM_C, DIM_NONE, USE_ALWAYS },
    { "self_attn.q_proj.weight", DIM_Q, DIM_C, USE_ALWAYS },
    { "self_attn.k_proj.weight", DIM_KV, DIM_C, USE_ALWAYS },
    { "self_attn.v_proj.weight", DIM_KV, DIM_C, USE_ALWAYS },
    { "self_attn.o_proj.weight", DIM_C, DIM_Q, USE_ALWAYS },
    { "self_attn.q_proj.bias", DIM_Q, DIM_NONE, USE_QKV_BIAS },
    { "self_attn.k_proj.bias", DIM_KV, DIM_NONE, USE_QKV_BIAS },
    { "self_attn.v_proj.bias", DIM_KV, DIM_NONE, USE_QKV_BIAS },
    { "self_attn.o_proj.bias", DIM_C, DIM_NONE, USE_O_BIAS },
    { "self_attn.q_norm.weight", DIM_D, DIM_NONE, USE_QK_NORM },
    { "self_attn.k_norm.weight", DIM_D, DIM_NONE, USE_QK_NORM },
    { "post_attention_layernorm.weight", DIM_C, DIM_NONE, USE_ALWAYS },
    { "mlp.gate_proj.weight", DIM_F, DIM_C, USE_ALWAYS },
    { "mlp.up_proj.weight", DIM_F, DIM_C, USE_ALWAYS },
    { "mlp.down_proj.weight", DIM_C, DIM_F, USE_ALWAYS },
    { "mlp.gate_proj.bias", DIM_F, DIM_NONE, USE_MLP_BIAS },
    { "mlp.up_proj.bias", DIM_F, DIM_NONE, USE_MLP_BIAS },
    { "mlp.down_proj.bias", DIM_C, DIM_NONE, USE_MLP_BIAS },
};

static const struct need norm_need = { "model.norm.weight", DIM_C, DIM_NONE, USE_ALWAYS };
static const struct need embed_need = { "model.embed_tokens.weight", DIM_V, DIM_C, USE_ALWAYS };
static const struct need head_need = { "lm_head.weight", DIM_V, DIM_C, USE_ALWAYS };

static uint64_t dim_of(const struct model_desc *d, enum dim dim)
{
    switch (dim) {
    case DIM_C:
        return d->dim;
    case DIM_V:
        return d->vocab;
    case DIM_F:
        return d->ffn_dim;
    case DIM_Q:
        return (uint64_t)d->n_heads * d->head_dim;
    case DIM_KV:
        return (uint64_t)d->n_kv_heads * d->head_dim;
    case DIM_D:
        return d->head_dim;
    case DIM_NONE:
        break;
    }
    return 0;
}

static bool in_use(const struct model_desc *d, enum use use)
{
    switch (use) {
    case USE_QKV_BIAS:
        return d->qkv_bias;
    case USE_O_BIAS:
        return d->o_bias;
    case USE_MLP_BIAS:
        return d->mlp_bias;
    case USE_QK_NORM:
        return d->qk_norm;
    case USE_ALWAYS:
        break;
    }
    return true;
}

static status check_shape(const struct weights *w, const struct model_desc *d,
                          const struct need *need, const struct weights_tensor *t, struct err *err)
{
    const uint64_t want[2] = { dim_of(d, need->rows), dim_of(d, need->cols) };
    const uint32_t n_dims = need->cols == DIM_NONE ? 1 : 2;

    if (t->n_dims == n_dims && t->shape[0] == want[0] && (n_dims == 1 || t->shape[1] == want[1])) {
        return ST_OK;
    }
    char has[SHAPE_TEXT_BYTES], should[SHAPE_TEXT_BYTES];
    safetensors_shape_text(t->n_dims, t->shape, has);
    safetensors_shape_text(n_dims, want, should);
    return err_set(err, ST_ERR_FORMAT, "%s/%s: tensor \"%s\" is %s, config.json makes it %s",
                   w->dir, w->files[t->i_file].name, t->name, has, should);
}

static status check_scales(const struct weights *w, const struct model_desc *d,
                           const struct need *need, const struct weights_tensor *t, struct err *err)
{
    static const char *const endings[] = { "_scale", "_scale_inv" };
    struct weights_scale scale;
    char name[128];

    if (t->dtype == MODEL_F8 && (need->cols == DIM_NONE || need == &embed_need)) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is F8_E4M3; only matrices of the layers and the head can "
                       "be",
                       w->dir, t->name);
    }
    if (t->dtype == MODEL_F8) {
        return weights_scale_find(w, &d->quant, t, &scale, err);
    }
    for (size_t i = 0; i < ARRAY_LEN(endings); i++) {
        snprintf(name, sizeof(name), "%s%s", t->name, endings[i]);
        if (weights_find(w, name) != NULL || weights_foreign_find(w, name) != NULL) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: the weight files hold scales \"%s\", but that matrix is %s", w->dir,
                           name, safetensors_dtype_name(t->dtype));
        }
    }
    return ST_OK;
}

static status check_one(const struct weights *w, const struct model_desc *d,
                        const struct need *need, const char *name, struct err *err)
{
    const struct weights_tensor *t = weights_find(w, name);
    const char *dtype = t == NULL ? weights_foreign_find(w, name) : NULL;

    if (!in_use(d, need->use)) {
        return t == NULL && dtype == NULL
                   ? ST_OK
                   : err_set(err, ST_ERR_UNSUPPORTED,
                             "%s: the weight files hold \"%s\", which %s as config.json describes "
                             "it does not use",
                             w->dir, name, d->family);
    }
    if (dtype != NULL) {
        return err_set(
            err, ST_ERR_UNSUPPORTED,
            "%s: tensor \"%s\" is of dtype %s (or has more than %d dimensions); F32, F16, "
            "BF16 and F8_E4M3 can be read",
            w->dir, name, dtype, WEIGHTS_RANK_MAX);
    }
    if (t == NULL) {
        return err_set(err, ST_ERR_NOT_FOUND, "%s: tensor \"%s\" is in none of the %u weight files",
                       w->dir, name, w->n_files);
    }
    const status st = check_shape(w, d, need, t, err);
    return st == ST_OK ? check_scales(w, d, need, t, err) : st;
}

static bool is_there(const struct weights *w, const struct need *need)
{
    return weights_find(w, need->name) != NULL || weights_foreign_find(w, need->name) != NULL;
}

/* ---- checkpoints of which only a part is fp8 ---- */

enum { PARTS_MAX = 3 };

static const char *const parts[MODEL_MATS][PARTS_MAX] = {
    [MODEL_MAT_QKV] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj" },
    [MODEL_MAT_O] = { "self_attn.o_proj" },
    [MODEL_MAT_GATE_UP] = { "mlp.gate_proj", "mlp.up_proj" },
    [MODEL_MAT_DOWN] = { "mlp.down_proj" },
};

/* How many parts of a matrix the files hold in fp8, and how many there are. */
static uint32_t count_fp8(const struct weights *w, uint32_t layer, enum model_mat mat,
                          uint32_t *n_p)
{
    uint32_t n = 0, n_fp8 = 0;

    for (; n < PARTS_MAX && parts[mat][n] != NULL; n++) {
        char name[96];
        snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer, parts[mat][n]);
        const struct weights_tensor *t = weights_find(w, name);
        n_fp8 += t != NULL && t->dtype == MODEL_F8;
    }
    *n_p = n;
    return n_fp8;
}

void weights_mixed_find(const struct weights *w, struct model_desc *desc)
{
    bool any = desc->quant.kind != MODEL_QUANT_NONE;

    memset(desc->torn, 0, sizeof(desc->torn));
    memset(desc->plain, 0, sizeof(desc->plain));
    for (uint32_t layer = 0; layer < desc->n_layers; layer++) {
        for (uint32_t mat = 0; mat < MODEL_MATS; mat++) {
            uint32_t n;
            const uint32_t n_fp8 = count_fp8(w, layer, (enum model_mat)mat, &n);
            const uint8_t bit = (uint8_t)(1u << mat);
            desc->plain[layer] |= n_fp8 == 0 ? bit : 0;
            desc->torn[layer] |= n_fp8 != 0 && n_fp8 != n ? bit : 0;
            any = any || n_fp8 != 0;
        }
    }
    if (!any) { /* a checkpoint that has nothing to do with fp8 */
        memset(desc->plain, 0, sizeof(desc->plain));
    }
}

status weights_check(const struct weights *w, struct model_desc *desc, struct err *err)
{
    status st = ST_OK;

    /* Tied: whichever stands in the files; both need the right shape if both do. */
    if (!desc->tied || is_there(w, &embed_need) || !is_there(w, &head_need)) {
        st = check_one(w, desc, &embed_need, embed_need.name, err);
    }
    if (st == ST_OK && (!desc->tied || is_there(w, &head_need))) {
        st = check_one(w, desc, &head_need, head_need.name, err);
    }
    if (st == ST_OK) {
        st = check_one(w, desc, &norm_need, norm_need.name, err);
    }
    for (uint32_t layer = 0; layer < desc->n_layers; layer++) {
        for (size_t i = 0; i < ARRAY_LEN(layer_needs) && st == ST_OK; i++) {
            char name[96];
            snprintf(name, sizeof(name), "model.layers.%u.%s", layer, layer_needs[i].name);
            st = check_one(w, desc, &layer_needs[i], name, err);
        }
    }
    if (st == ST_OK) {
        weights_mixed_find(w, desc);
    }
    return st;
}
