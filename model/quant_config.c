/* model/quant_config.c - see quant_config.h. Three ways to say "fp8 weights" are in use:
 *
 *   quant_method "fp8"                 e4m3, scales per tensor or, with weight_block_size, per block
 *   quant_method "compressed-tensors"  config_groups whose weights are float, 8 bits, with a strategy
 *   quant_method "modelopt"            quant_algo FP8: scales per tensor
 *
 * Only the weights are looked at. How other servers round activations (activation_scheme,
 * input_activations, input_scale) or the KV cache is not part of what the weights are: products here
 * take bf16 inputs, which are closer to the model that was quantised. Lists of modules that were
 * left alone are not read either; the files show it, tensor by tensor. */
#include "model/quant_config.h"

#include <string.h>

enum { BLOCK_MAX = 1 << 20, BLOCK_UNIT = 128 };

static status refuse(const struct field_from *from, const char *key, const char *only,
                     struct err *err)
{
    char text[FIELD_TEXT_BYTES];

    field_text(field_get(from, key), text);
    return err_set(err, ST_ERR_UNSUPPORTED, "%s: %s%s is %s; of quantised checkpoints only %s",
                   from->file, from->path, key, text, only);
}

/* `key` is absent or exactly `word`. */
static status need_word(const struct field_from *from, const char *key, const char *word,
                        struct err *err)
{
    const char *value = NULL;
    const status st = field_read_string(from, key, &value, err);

    if (st != ST_OK || value == NULL || strcmp(value, word) == 0) {
        return st;
    }
    return refuse(from, key, "fp8 weights in e4m3 are supported", err);
}

/* [rows, cols] under `key`; absent: no blocks. Columns end where groups of inputs do. */
static status read_block(const struct field_from *from, const char *key, struct model_quant *q,
                         struct err *err)
{
    const json_t *list = field_get(from, key);
    json_int_t size[2];
    char text[FIELD_TEXT_BYTES];

    if (list == NULL) {
        return ST_OK;
    }
    field_text(list, text);
    if (!json_is_array(list) || json_array_size(list) != 2 ||
        !json_is_integer(json_array_get(list, 0)) || !json_is_integer(json_array_get(list, 1))) {
        return err_set(err, ST_ERR_FORMAT, "%s: %s%s is %s, not two sizes", from->file, from->path,
                       key, text);
    }
    for (size_t i = 0; i < 2; i++) {
        size[i] = json_integer_value(json_array_get(list, i));
        if (size[i] < 1 || size[i] > BLOCK_MAX) {
            return err_set(err, ST_ERR_LIMIT, "%s: %s%s is %s, with a size not from 1 to %d",
                           from->file, from->path, key, text, BLOCK_MAX);
        }
    }
    if (size[1] % BLOCK_UNIT != 0) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: %s%s is %s; columns of a block must be a multiple of %d", from->file,
                       from->path, key, text, BLOCK_UNIT);
    }
    q->block_rows = (uint32_t)size[0];
    q->block_cols = (uint32_t)size[1];
    return ST_OK;
}

/* ---- compressed-tensors ---- */

/* One group's "weights". */
static status read_weights(const struct field_from *from, struct model_quant *q, struct err *err)
{
    const char *strategy = NULL;
    uint32_t bits = 0;
    bool symmetric = false, dynamic = false;
    status st = field_read_u32(from, "num_bits", (struct field_u32){ 1, 32, true, 0 }, &bits, err);

    (void)(st || (st = need_word(from, "type", "float", err)) ||
           (st = field_read_string(from, "strategy", &strategy, err)) ||
           (st = field_read_bool(from, "symmetric", true, &symmetric, err)) ||
           (st = field_read_bool(from, "dynamic", false, &dynamic, err)));
    if (st != ST_OK) {
        return st;
    }
    if (bits != 8 || !field_has(from, "type")) {
        return refuse(from, bits != 8 ? "num_bits" : "type", "fp8 weights in e4m3 are supported",
                      err);
    }
    if (!symmetric || dynamic) {
        return refuse(from, symmetric ? "dynamic" : "symmetric",
                      "symmetric weights with scales in the files are supported", err);
    }
    if (strategy != NULL && strcmp(strategy, "block") == 0) {
        if (!field_has(from, "block_structure")) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: %sstrategy is \"block\" and block_structure is missing", from->file,
                           from->path);
        }
        return read_block(from, "block_structure", q, err);
    }
    if (strategy != NULL && strcmp(strategy, "tensor") != 0 && strcmp(strategy, "channel") != 0) {
        return refuse(from, "strategy", "scales by tensor, channel and block are supported", err);
    }
    return ST_OK;
}

static status read_groups(const struct field_from *from, struct model_quant *q, struct err *err)
{
    json_t *groups = field_get(from, "config_groups");
    struct model_quant first = { MODEL_QUANT_NONE, 0, 0 };
    const char *name;
    json_t *group;
    uint32_t n = 0;

    if (!json_is_object(groups) || json_object_size(groups) == 0) {
        return err_set(err, ST_ERR_FORMAT, "%s: %sconfig_groups is not an object with entries",
                       from->file, from->path);
    }
    json_object_foreach(groups, name, group)
    {
        const struct field_from weights = { from->file,
                                            "quantization_config.config_groups.*.weights.",
                                            json_object_get(group, "weights") };
        struct model_quant one = { MODEL_QUANT_FP8, 0, 0 };
        if (!json_is_object(weights.object)) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: %sconfig_groups: \"%.40s\" has no object named weights", from->file,
                           from->path, name);
        }
        const status st = read_weights(&weights, &one, err);
        if (st != ST_OK) {
            return st;
        }
        if (n++ != 0 &&
            (one.block_rows != first.block_rows || one.block_cols != first.block_cols)) {
            return err_set(err, ST_ERR_UNSUPPORTED,
                           "%s: %sconfig_groups: \"%.40s\" has other blocks than the group before",
                           from->file, from->path, name);
        }
        first = one;
    }
    *q = first;
    return ST_OK;
}

/* ---- the whole ---- */

status model_quant_read(const struct field_from *from, struct model_quant *quant_p, struct err *err)
{
    const struct field_from in = { from->file, "quantization_config.",
                                   field_get(from, "quantization_config") };
    struct model_quant q = { MODEL_QUANT_FP8, 0, 0 };
    const char *method = NULL;
    status st;

    if (in.object == NULL) {
        *quant_p = (struct model_quant){ MODEL_QUANT_NONE, 0, 0 };
        return ST_OK;
    }
    if (!json_is_object(in.object)) {
        return err_set(err, ST_ERR_FORMAT, "%s: quantization_config is not an object", from->file);
    }
    st = field_read_string(&in, "quant_method", &method, err);
    if (st != ST_OK) {
        return st;
    }
    if (method != NULL && strcmp(method, "fp8") == 0) {
        (void)((st = need_word(&in, "fmt", "e4m3", err)) ||
               (st = read_block(&in, "weight_block_size", &q, err)));
    } else if (method != NULL && strcmp(method, "compressed-tensors") == 0) {
        st = read_groups(&in, &q, err);
    } else if (method != NULL && strcmp(method, "modelopt") == 0) {
        st = field_has(&in, "quant_algo")
                 ? need_word(&in, "quant_algo", "FP8", err)
                 : refuse(&in, "quant_algo", "fp8 weights in e4m3 are supported", err);
    } else {
        st = refuse(&in, "quant_method",
                    "fp8 weights (\"fp8\", \"compressed-tensors\", \"modelopt\") are supported",
                    err);
    }
    if (st == ST_OK) {
        *quant_p = q;
    }
    return st;
}
