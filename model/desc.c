/* model/desc.c - see desc.h. A family is a row of the table below; nothing else knows its name.
 *
 * What transformers would assume when a key is absent stands in the row, because files written by
 * other tools leave keys out. What would change the computation and is not computed here is refused
 * with the field's name: an option is never ignored in silence. What does not touch inference
 * (dropout, initializer_range, use_cache ...) is not looked at. */
#include "model/desc.h"

#include "base/buf.h"
#include "model/config_field.h"
#include "model/quant_config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 4 << 20 };

/* Where a bias comes from in a family: fixed, or the config's attention_bias. */
enum bias_rule { BIAS_NEVER, BIAS_ALWAYS, BIAS_ATTENTION_KEY };

enum window_rule {
    WINDOW_NONE,       /* the family has no sliding window */
    WINDOW_KEY,        /* sliding_window; null: none */
    WINDOW_IF_SWITCHED /* sliding_window, only with use_sliding_window */
};

struct family {
    const char *architecture;
    enum bias_rule qkv_bias, o_bias;
    bool mlp_bias_key; /* reads mlp_bias */
    bool qk_norm;
    uint32_t kv_heads; /* if absent; 0: as many as heads */
    uint32_t head_dim; /* if absent; 0: hidden_size / heads */
    enum window_rule window;
    uint32_t window_positions; /* if absent; 0: none */
};

static const struct family families[] = {
    { .architecture = "LlamaForCausalLM",
      .qkv_bias = BIAS_ATTENTION_KEY,
      .o_bias = BIAS_ATTENTION_KEY,
      .mlp_bias_key = true },
    { .architecture = "MistralForCausalLM",
      .kv_heads = 8,
      .window = WINDOW_KEY,
      .window_positions = 4096 },
    { .architecture = "Qwen2ForCausalLM",
      .qkv_bias = BIAS_ALWAYS,
      .kv_heads = 32,
      .window = WINDOW_IF_SWITCHED,
      .window_positions = 4096 },
    { .architecture = "Qwen3ForCausalLM",
      .qkv_bias = BIAS_ATTENTION_KEY,
      .o_bias = BIAS_ATTENTION_KEY,
      .qk_norm = true,
      .kv_heads = 32,
      .head_dim = 128,
      .window = WINDOW_IF_SWITCHED,
      .window_positions = 4096 },
};

/* Keys that change the computation in ways that are not written here. Allowed: absent, null, false,
 * 0, or `neutral`. */
static const struct foreign {
    const char *key, *what;
    double neutral;
} foreign[] = {
    { "num_local_experts", "mixture of experts", 0 },
    { "num_experts", "mixture of experts", 0 },
    { "n_routed_experts", "mixture of experts", 0 },
    { "partial_rotary_factor", "a partial rotary embedding", 1 },
    { "attn_logit_softcapping", "soft-capped scores", 0 },
    { "final_logit_softcapping", "soft-capped logits", 0 },
    { "clip_qkv", "clipped projections", 0 },
    { "logit_scale", "scaled logits", 1 },
    { "logits_scaling", "scaled logits", 1 },
    { "embedding_multiplier", "scaled embeddings", 1 },
    { "residual_multiplier", "scaled residuals", 1 },
};

static status refuse_foreign(const struct field_from *from, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(foreign); i++) {
        const json_t *value = field_get(from, foreign[i].key);
        const bool neutral =
            value == NULL || json_is_false(value) ||
            (json_is_number(value) &&
             (json_number_value(value) == 0 || json_number_value(value) == foreign[i].neutral));
        if (!neutral) {
            char text[FIELD_TEXT_BYTES];
            field_text(value, text);
            return err_set(err, ST_ERR_UNSUPPORTED, "%s: %s is %s: %s is not supported", from->file,
                           foreign[i].key, text, foreign[i].what);
        }
    }
    return ST_OK;
}

/* ---- parts of the config ---- */

static status family_unknown(const char *file, const char *name, struct err *err)
{
    char known[256] = "";
    size_t len = 0;

    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        len += (size_t)snprintf(known + len, sizeof(known) - len, "%s%s", i == 0 ? "" : ", ",
                                families[i].architecture);
    }
    return err_set(err, ST_ERR_UNSUPPORTED, "%s: architecture \"%.80s\" is not one of %s", file,
                   name, known);
}

static status read_family(const struct field_from *from, const struct family **family_p,
                          struct err *err)
{
    const json_t *list = field_get(from, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));

    if (list == NULL) {
        return err_set(err, ST_ERR_FORMAT, "%s: architectures is missing", from->file);
    }
    if (name == NULL || json_array_size(list) != 1) {
        char text[FIELD_TEXT_BYTES];
        field_text(list, text);
        return err_set(err, ST_ERR_FORMAT, "%s: architectures is %s, not a list of one name",
                       from->file, text);
    }
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        if (strcmp(name, families[i].architecture) == 0) {
            *family_p = &families[i];
            return ST_OK;
        }
    }
    return family_unknown(from->file, name, err);
}

static status read_dims(const struct field_from *from, const struct family *family,
                        struct model_desc *d, struct err *err)
{
    const struct {
        const char *key;
        uint32_t *dst;
        struct field_u32 rule;
    } rows[] = {
        { "num_hidden_layers", &d->n_layers, { 1, MODEL_LAYERS_MAX, true, 0 } },
        { "hidden_size", &d->dim, { 2, 65536, true, 0 } },
        { "num_attention_heads", &d->n_heads, { 1, 1024, true, 0 } },
        { "num_key_value_heads", &d->n_kv_heads, { 1, 1024, false, family->kv_heads } },
        { "head_dim", &d->head_dim, { 2, 512, false, family->head_dim } },
        { "intermediate_size", &d->ffn_dim, { 1, 1u << 20, true, 0 } },
        { "vocab_size", &d->vocab, { 2, 1u << 21, true, 0 } },
        { "max_position_embeddings", &d->ctx_max, { 1, 1u << 24, true, 0 } },
    };

    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const status st = field_read_u32(from, rows[i].key, rows[i].rule, rows[i].dst, err);
        if (st != ST_OK) {
            return st;
        }
    }
    /* An explicit null means "as many as heads" in every family; only absence has a default. */
    if (d->n_kv_heads == 0 || json_is_null(json_object_get(from->object, "num_key_value_heads"))) {
        d->n_kv_heads = d->n_heads;
    }
    return ST_OK;
}

static status check_dims(const struct field_from *from, struct model_desc *d, struct err *err)
{
    if (d->head_dim == 0) {
        if (d->dim % d->n_heads != 0) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: head_dim is missing and hidden_size %u is not a multiple of "
                           "num_attention_heads %u",
                           from->file, d->dim, d->n_heads);
        }
        d->head_dim = d->dim / d->n_heads;
    }
    if (d->head_dim < 2 || d->head_dim > 512) {
        return err_set(err, ST_ERR_LIMIT,
                       "%s: hidden_size %u over num_attention_heads %u gives a head_dim of %u, not "
                       "from 2 to 512",
                       from->file, d->dim, d->n_heads, d->head_dim);
    }
    if (d->dim % 2 != 0 || d->head_dim % 2 != 0) {
        const bool dim_odd = d->dim % 2 != 0;
        return err_set(err, ST_ERR_UNSUPPORTED, "%s: %s is %u, not even", from->file,
                       dim_odd ? "hidden_size" : "head_dim", dim_odd ? d->dim : d->head_dim);
    }
    if (d->n_heads % d->n_kv_heads != 0) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: num_attention_heads %u is not a multiple of num_key_value_heads %u",
                       from->file, d->n_heads, d->n_kv_heads);
    }
    return ST_OK;
}

static status read_biases(const struct field_from *from, const struct family *family,
                          struct model_desc *d, struct err *err)
{
    bool attention = false, mlp = false;
    status st = field_read_bool(from, "attention_bias", false, &attention, err);

    if (st == ST_OK) {
        st = field_read_bool(from, "mlp_bias", false, &mlp, err);
    }
    if (st != ST_OK) {
        return st;
    }
    /* A family that does not read a key ignores it, as transformers does; bias tensors that then
     * stand in the files without use are refused by weights_check. */
    d->qkv_bias =
        family->qkv_bias == BIAS_ALWAYS || (family->qkv_bias == BIAS_ATTENTION_KEY && attention);
    d->o_bias =
        family->o_bias == BIAS_ALWAYS || (family->o_bias == BIAS_ATTENTION_KEY && attention);
    d->mlp_bias = family->mlp_bias_key && mlp;
    d->qk_norm = family->qk_norm;
    return field_read_bool(from, "tie_word_embeddings", false, &d->tied, err);
}

/* A window that no position reaches is no window: those are accepted. */
static status check_window(const struct field_from *from, const struct family *family,
                           const struct model_desc *d, struct err *err)
{
    bool in_use = family->window == WINDOW_KEY;
    uint32_t window = 0;
    status st = ST_OK;

    if (family->window == WINDOW_IF_SWITCHED) {
        st = field_read_bool(from, "use_sliding_window", false, &in_use, err);
    }
    if (st != ST_OK || !in_use || json_is_null(json_object_get(from->object, "sliding_window"))) {
        return st;
    }
    st = field_read_u32(from, "sliding_window",
                        (struct field_u32){ 1, INT32_MAX, false, family->window_positions },
                        &window, err);
    if (st == ST_OK && window < d->ctx_max) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: sliding_window is %u%s, below max_position_embeddings %u: attention "
                       "over a window is not supported",
                       from->file, window,
                       field_has(from, "sliding_window") ? "" : " (the family's default)",
                       d->ctx_max);
    }
    return st;
}

/* Newer configs list the kind of attention per layer. */
static status check_layer_types(const struct field_from *from, struct err *err)
{
    const json_t *types = field_get(from, "layer_types");
    size_t i;
    json_t *type;

    if (types != NULL && !json_is_array(types)) {
        return err_set(err, ST_ERR_FORMAT, "%s: layer_types is not a list", from->file);
    }
    json_array_foreach(types, i, type)
    {
        if (!json_is_string(type) || strcmp(json_string_value(type), "full_attention") != 0) {
            char text[FIELD_TEXT_BYTES];
            field_text(type, text);
            return err_set(err, ST_ERR_UNSUPPORTED,
                           "%s: layer_types[%zu] is %s; only \"full_attention\" is supported",
                           from->file, i, text);
        }
    }
    return ST_OK;
}

static status read_act(const struct field_from *from, struct err *err)
{
    const char *act = NULL;
    const status st = field_read_string(from, "hidden_act", &act, err);

    if (st == ST_OK && act != NULL && strcmp(act, "silu") != 0) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: hidden_act is \"%.40s\"; only \"silu\" is supported", from->file, act);
    }
    return st;
}

static status read_dtype(const struct field_from *from, struct model_desc *d, struct err *err)
{
    static const struct {
        const char *word;
        enum model_dtype dtype;
    } words[] = { { "float32", MODEL_F32 }, { "float16", MODEL_F16 }, { "bfloat16", MODEL_BF16 } };
    const char *key = field_has(from, "dtype") ? "dtype" : "torch_dtype";
    const char *word = NULL;
    const status st = field_read_string(from, key, &word, err);

    d->dtype = MODEL_F32; /* torch's own default */
    if (st != ST_OK || word == NULL) {
        return st;
    }
    if (strncmp(word, "torch.", 6) == 0) {
        word += 6;
    }
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(word, words[i].word) == 0) {
            d->dtype = words[i].dtype;
            return ST_OK;
        }
    }
    return err_set(err, ST_ERR_UNSUPPORTED,
                   "%s: %s is \"%.40s\", none of float32, float16, bfloat16", from->file, key,
                   word);
}

/* ---- rope ---- */

static status read_rope_llama3(const struct field_from *from, struct model_rope *rope,
                               struct err *err)
{
    status st = field_read_real(from, "low_freq_factor", (struct field_real){ 1e-3, 1e6, true, 0 },
                                &rope->low_freq_factor, err);
    if (st == ST_OK) {
        st = field_read_real(from, "high_freq_factor", (struct field_real){ 1e-3, 1e6, true, 0 },
                             &rope->high_freq_factor, err);
    }
    if (st == ST_OK) {
        st = field_read_u32(from, "original_max_position_embeddings",
                            (struct field_u32){ 1, 1u << 24, true, 0 }, &rope->original_ctx, err);
    }
    if (st == ST_OK && rope->low_freq_factor >= rope->high_freq_factor) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: %slow_freq_factor %g is not below high_freq_factor %g", from->file,
                       from->path, rope->low_freq_factor, rope->high_freq_factor);
    }
    return st;
}

static status read_rope_kind(const struct field_from *from, struct model_rope *rope,
                             struct err *err)
{
    static const struct {
        const char *word;
        enum model_rope_kind kind;
    } kinds[] = { { "default", MODEL_ROPE_PLAIN },
                  { "linear", MODEL_ROPE_LINEAR },
                  { "llama3", MODEL_ROPE_LLAMA3 } };
    const char *key = field_has(from, "rope_type") ? "rope_type" : "type";
    const char *word = NULL;
    status st = field_read_string(from, key, &word, err);

    if (st != ST_OK) {
        return st;
    }
    if (word == NULL) {
        word = "default";
    }
    size_t i = 0;
    while (i < ARRAY_LEN(kinds) && strcmp(word, kinds[i].word) != 0) {
        i++;
    }
    if (i == ARRAY_LEN(kinds)) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: %s%s is \"%.40s\", none of default, linear, llama3", from->file,
                       from->path, key, word);
    }
    rope->kind = kinds[i].kind;
    if (rope->kind == MODEL_ROPE_PLAIN) {
        return ST_OK;
    }
    st =
        field_read_real(from, "factor", (struct field_real){ 1, 1e6, true, 0 }, &rope->factor, err);
    return st == ST_OK && rope->kind == MODEL_ROPE_LLAMA3 ? read_rope_llama3(from, rope, err) : st;
}

/* theta stands at the top, and kind and factors in rope_scaling; since transformers 5 all of it is
 * in rope_parameters. */
static status read_rope(const struct field_from *from, struct model_rope *rope, struct err *err)
{
    const bool newer = field_has(from, "rope_parameters");
    const char *key = newer ? "rope_parameters" : "rope_scaling";
    json_t *object = field_get(from, key);
    const struct field_from in = { from->file, newer ? "rope_parameters." : "rope_scaling.",
                                   object };
    const struct field_real theta_rule = { 1, 1e15, false, 10000.0 };

    memset(rope, 0, sizeof(*rope));
    if (object != NULL && !json_is_object(object)) {
        return err_set(err, ST_ERR_FORMAT, "%s: %s is not an object", from->file, key);
    }
    status st = field_read_real(newer && field_has(&in, "rope_theta") ? &in : from, "rope_theta",
                                theta_rule, &rope->theta, err);
    if (st == ST_OK && newer) {
        st = refuse_foreign(&in, err); /* partial_rotary_factor moved in here */
    }
    return st == ST_OK && object != NULL ? read_rope_kind(&in, rope, err) : st;
}

/* ---- special ids ---- */

static status check_id(const struct field_from *from, const char *key, const json_t *value,
                       uint32_t vocab, uint32_t *id_p, struct err *err)
{
    char text[FIELD_TEXT_BYTES];

    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= (json_int_t)vocab) {
        field_text(value, text);
        return err_set(err, ST_ERR_FORMAT, "%s: %s is %s, not a token id below vocab_size %u",
                       from->file, key, text, vocab);
    }
    *id_p = (uint32_t)json_integer_value(value);
    return ST_OK;
}

static status read_bos(const struct field_from *from, struct model_desc *d, struct err *err)
{
    const json_t *value = field_get(from, "bos_token_id");
    uint32_t id = 0;

    if (value == NULL) {
        return ST_OK;
    }
    const status st = check_id(from, "bos_token_id", value, d->vocab, &id, err);
    if (st == ST_OK) {
        d->bos = id;
    }
    return st;
}

static status read_eos(const struct field_from *from, struct model_desc *d, struct err *err)
{
    const json_t *value = field_get(from, "eos_token_id");
    const bool list = json_is_array(value);
    const size_t n = list ? json_array_size(value) : 1;

    if (value == NULL) {
        return ST_OK;
    }
    if (n > MODEL_EOS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: eos_token_id lists %zu ids, over the limit of %d",
                       from->file, n, MODEL_EOS_MAX);
    }
    d->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        const status st = check_id(from, "eos_token_id", list ? json_array_get(value, i) : value,
                                   d->vocab, &d->eos[d->n_eos], err);
        if (st != ST_OK) {
            return st;
        }
        d->n_eos++;
    }
    return ST_OK;
}

/* ---- the whole ---- */

static status read_config(const struct field_from *from, struct model_desc *d, struct err *err)
{
    const struct family *family = NULL;
    double eps = 0;
    status st = read_family(from, &family, err);

    if (st != ST_OK) {
        return st;
    }
    snprintf(d->family, sizeof(d->family), "%s", family->architecture);
    d->bos = -1;
    st = refuse_foreign(from, err);
    if (st == ST_OK) {
        st = read_dims(from, family, d, err);
    }
    if (st == ST_OK) {
        st = check_dims(from, d, err);
    }
    if (st == ST_OK) {
        st = read_biases(from, family, d, err);
    }
    if (st == ST_OK) {
        st = check_window(from, family, d, err);
    }
    if (st == ST_OK) {
        st = check_layer_types(from, err);
    }
    if (st == ST_OK) {
        st = read_act(from, err);
    }
    if (st == ST_OK) {
        st = read_dtype(from, d, err);
    }
    if (st == ST_OK) {
        st = model_quant_read(from, &d->quant, err);
    }
    if (st == ST_OK) {
        st = read_rope(from, &d->rope, err);
    }
    if (st == ST_OK) {
        st = field_read_real(from, "rms_norm_eps", (struct field_real){ 1e-12, 0.1, false, 1e-6 },
                             &eps, err);
    }
    d->norm_eps = (float)eps;
    return st;
}

status model_desc_parse(const char *config, size_t config_len, const char *generation,
                        size_t generation_len, struct model_desc *desc_p, struct err *err)
{
    struct field_from from = { "config.json", "", NULL };
    struct field_from later = { "generation_config.json", "", NULL };
    struct model_desc desc;

    memset(&desc, 0, sizeof(desc));
    status st = field_parse_object(from.file, config, config_len, &from.object, err);
    if (st == ST_OK && generation != NULL) {
        st = field_parse_object(later.file, generation, generation_len, &later.object, err);
    }
    if (st == ST_OK) {
        st = read_config(&from, &desc, err);
    }
    const struct field_from *eos =
        later.object != NULL && field_has(&later, "eos_token_id") ? &later : &from;
    const struct field_from *bos =
        later.object != NULL && !field_has(&from, "bos_token_id") ? &later : &from;
    if (st == ST_OK) {
        st = read_bos(bos, &desc, err);
    }
    if (st == ST_OK) {
        st = read_eos(eos, &desc, err);
    }
    json_decref(from.object);
    json_decref(later.object);
    if (st == ST_OK) {
        *desc_p = desc;
    }
    return st;
}

/* The last component of `dir`; of its real path where that is "." or "..". */
static void name_of(const char *dir, char name[MODEL_NAME_BYTES])
{
    char *real = realpath(dir, NULL);
    const char *path = real != NULL ? real : dir;
    size_t end = strlen(path);

    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    snprintf(name, MODEL_NAME_BYTES, "%.*s", (int)MIN(end - begin, (size_t)INT_MAX), path + begin);
    free(real);
}

status model_desc_read(const char *dir, struct model_desc *desc_p, struct err *err)
{
    struct buf config = BUF_INIT, generation = BUF_INIT, path = BUF_INIT_MAX(PATH_MAX);
    bool has_generation = false;
    status st = buf_printf(&path, "%s/config.json", dir);

    if (st != ST_OK) {
        buf_fail(&path, st, "path of the model directory", err);
        goto out;
    }
    st = buf_read_file(&config, path.data, CONFIG_BYTES_MAX, err);
    if (st != ST_OK) {
        goto out;
    }
    buf_reset(&path);
    st = buf_printf(&path, "%s/generation_config.json", dir);
    if (st != ST_OK) {
        buf_fail(&path, st, "path of the model directory", err);
        goto out;
    }
    st = buf_read_file(&generation, path.data, CONFIG_BYTES_MAX, err);
    has_generation = st == ST_OK;
    if (st != ST_OK && st != ST_ERR_NOT_FOUND) {
        goto out;
    }
    st = model_desc_parse(config.data, config.len, has_generation ? generation.data : NULL,
                          generation.len, desc_p, err);
    if (st == ST_OK) {
        name_of(dir, desc_p->name);
    } else {
        err_prefix(err, "%s/", dir);
    }
out:
    buf_fini(&path);
    buf_fini(&generation);
    buf_fini(&config);
    return st;
}

uint64_t model_desc_params(const struct model_desc *d)
{
    const uint64_t dim = d->dim, ffn = d->ffn_dim, head_dim = d->head_dim;
    const uint64_t q = d->n_heads * head_dim, kv = d->n_kv_heads * head_dim;
    uint64_t layer = 2 * dim;    /* two norms */
    layer += (q + 2 * kv) * dim; /* q, k, v */
    layer += dim * q;            /* o */
    layer += 3 * ffn * dim;      /* gate, up, down */
    layer += d->qkv_bias ? q + 2 * kv : 0;
    layer += d->o_bias ? dim : 0;
    layer += d->mlp_bias ? 2 * ffn + dim : 0;
    layer += d->qk_norm ? 2 * head_dim : 0;
    return d->n_layers * layer + d->vocab * dim * (d->tied ? 1u : 2u) + dim;
}
