/* model/weights_scale.c - the scales of fp8 matrices: weights_scale_find of weights.h.
 *
 * What the shape says decides, held against the matrix; only the size of blocks must come from the
 * config, since a shape alone leaves it open. */
#include "model/weights_private.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const endings[] = { "_scale", "_scale_inv" };

/* The one tensor that is called as the matrix with an ending. */
static status find(const struct weights *w, const struct weights_tensor *t,
                   const struct weights_tensor **scale_p, struct err *err)
{
    const struct weights_tensor *found = NULL;

    for (size_t i = 0; i < ARRAY_LEN(endings); i++) {
        char name[SAFETENSORS_NAME_MAX + 16];
        snprintf(name, sizeof(name), "%s%s", t->name, endings[i]);
        const struct weights_tensor *one = weights_find(w, name);
        const char *dtype = one == NULL ? weights_foreign_find(w, name) : NULL;
        if (dtype != NULL || (one != NULL && one->dtype == MODEL_F8)) {
            return err_set(err, ST_ERR_UNSUPPORTED,
                           "%s: scales \"%.128s\" are of dtype %s (or have more than %d "
                           "dimensions); F32, F16 and BF16 can be read",
                           w->dir, name, dtype != NULL ? dtype : "F8_E4M3", WEIGHTS_RANK_MAX);
        }
        if (one != NULL && found != NULL) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: tensor \"%.100s\" has scales twice, as %s and %s", w->dir, t->name,
                           endings[0], endings[1]);
        }
        found = one != NULL ? one : found;
    }
    if (found == NULL) {
        return err_set(err, ST_ERR_NOT_FOUND,
                       "%s: tensor \"%.128s\" is F8_E4M3 and has no scales (weight_scale or "
                       "weight_scale_inv)",
                       w->dir, t->name);
    }
    *scale_p = found;
    return ST_OK;
}

static bool shape_is(const struct weights_tensor *t, uint64_t rows, uint64_t cols)
{
    return (t->n_dims == 2 && t->shape[0] == rows && t->shape[1] == cols) ||
           (t->n_dims == 1 && cols == 1 && t->shape[0] == rows) ||
           (t->n_dims == 0 && rows == 1 && cols == 1);
}

status weights_scale_find(const struct weights *w, const struct model_quant *quant,
                          const struct weights_tensor *t, struct weights_scale *scale_p,
                          struct err *err)
{
    const uint64_t n = t->shape[0], k = t->shape[1];
    struct weights_scale s = { NULL, 1, 1, 0, 0 };
    char has[SHAPE_TEXT_BYTES], of[SHAPE_TEXT_BYTES], blocks[64] = "";
    const status st = find(w, t, &s.tensor, err);

    if (st != ST_OK) {
        return st;
    }
    ASSERT(t->dtype == MODEL_F8 && t->n_dims == 2);
    if (quant->block_rows != 0) {
        const uint64_t rows = n / quant->block_rows + (n % quant->block_rows != 0);
        const uint64_t cols = k / quant->block_cols + (k % quant->block_cols != 0);
        if (shape_is(s.tensor, rows, cols)) {
            s.rows = rows;
            s.cols = cols;
            s.block_rows = quant->block_rows;
            s.block_cols = quant->block_cols;
            *scale_p = s;
            return ST_OK;
        }
        snprintf(blocks, sizeof(blocks), " nor [%" PRIu64 ", %" PRIu64 "]", rows, cols);
    }
    if (shape_is(s.tensor, n, 1)) {
        s.rows = n;
        s.block_rows = 1;
        *scale_p = s;
        return ST_OK;
    }
    if (shape_is(s.tensor, 1, 1)) {
        *scale_p = s;
        return ST_OK;
    }
    safetensors_shape_text(s.tensor->n_dims, s.tensor->shape, has);
    safetensors_shape_text(t->n_dims, t->shape, of);
    return err_set(
        err, ST_ERR_FORMAT,
        "%s: scales \"%.128s\" are %s; of a matrix %s they can be neither one number nor "
        "one per row%s%s",
        w->dir, s.tensor->name, has, of, blocks,
        blocks[0] == '\0' ? ", and config.json names no size of blocks" : "");
}
