/* tests/fuzz/fuzz_scales.c - a line of config (the value of quantization_config), a newline, and a whole
 * .safetensors file: what is accepted must have scales for every weight of every fp8 matrix, inside the
 * scales' own tensor. */
#include "model/quant_config.h"
#include "model/weights.h"

#include "fuzz/fuzz_dir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct weights_scale *s, const struct weights_tensor *t)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < s->tensor->n_dims; i++) {
        n *= s->tensor->shape[i];
    }
    ASSERT(s->tensor->dtype != MODEL_F8 && s->tensor->n_dims <= 2);
    ASSERT(s->rows * s->cols == n);
    ASSERT(s->block_cols % 128 == 0);
    if (t->shape[0] != 0 && t->shape[1] != 0) { /* the last weight's */
        ASSERT((s->block_rows == 0 ? 0 : (t->shape[0] - 1) / s->block_rows) < s->rows);
        ASSERT((s->block_cols == 0 ? 0 : (t->shape[1] - 1) / s->block_cols) < s->cols);
    }
}

static status read_quant(const uint8_t *line, size_t len, struct model_quant *quant_p,
                         struct err *err)
{
    static char text[1 << 16];
    struct field_from from = { "config.json", "", NULL };
    const int n = snprintf(text, sizeof(text), "{\"quantization_config\": %.*s}",
                           (int)MIN(len, (size_t)32768), (const char *)line);
    status st = field_parse_object(from.file, text, (size_t)n, &from.object, err);

    if (st == ST_OK) {
        st = model_quant_read(&from, quant_p, err);
    }
    json_decref(from.object);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size != 0 ? memchr(data, '\n', size) : NULL;
    const size_t len = end != NULL ? (size_t)(end - data) : 0;
    struct model_quant quant = { MODEL_QUANT_NONE, 0, 0 };
    struct weights *w = NULL;
    struct err err = ERR_INIT;

    fuzz_dir_make();
    if (end == NULL || len == 0) {
        return 0;
    }
    status st = read_quant(data, len, &quant, &err);
    ASSERT(st == ST_OK || (st < 0 && err.code == st && err.text[0] != '\0'));
    if (st != ST_OK) {
        quant = (struct model_quant){ MODEL_QUANT_NONE, 0, 0 };
    }
    ASSERT(quant.block_rows <= 1u << 20 && quant.block_cols <= 1u << 20);
    ASSERT((quant.block_rows == 0) == (quant.block_cols == 0));
    fuzz_dir_write("model.safetensors", end + 1, size - len - 1);
    if (weights_open(fuzz_dir, &w, &err) != ST_OK) {
        return 0;
    }
    for (uint32_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        struct weights_scale scale;
        if (t->dtype != MODEL_F8 || t->n_dims != 2) {
            continue;
        }
        st = weights_scale_find(w, &quant, t, &scale, &err);
        ASSERT(st == ST_OK || (st < 0 && err.code == st && err.text[0] != '\0'));
        if (st == ST_OK) {
            check(&scale, t);
        }
    }
    weights_close(w);
    return 0;
}
