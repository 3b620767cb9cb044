/* worker/shard_quant.c - see shard_quant.h. */
#include "worker/shard_quant.h"

#include "kernels/math.h"
#include "kernels/quant.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static bool to_fp8(const struct shard_quant *q)
{
    return q->mat != NULL && q->mat->fmt == KERN_FP8;
}

static bool from_fp8(const struct shard_quant *q)
{
    return q->t->dtype == MODEL_F8;
}

bool shard_quant_is_needed(const struct shard_quant *q)
{
    return to_fp8(q) || from_fp8(q);
}

uint32_t shard_quant_bytes(const struct shard_quant *q)
{
    return to_fp8(q) ? 1 : 4;
}

status shard_quant_begin(struct shard_quant *q, struct err *err)
{
    if (from_fp8(q)) {
        return weights_scale_find(q->weights, q->quant, q->t, &q->scale, err);
    }
    if (q->quant->kind != MODEL_QUANT_NONE) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "tensor %.128s is not fp8 although config.json says that the checkpoint is; "
                       "--format bf16 takes it as it is",
                       q->t->name);
    }
    return ST_OK;
}

void shard_quant_end(struct shard_quant *q)
{
    free(q->file_scales);
    free(q->scales);
    q->file_scales = q->scales = NULL;
    q->n_file_scales = q->n_scales = 0;
}

static status grow(float **mem_p, uint64_t *n_p, uint64_t n, struct err *err)
{
    if (n > *n_p) {
        float *mem = realloc(*mem_p, (size_t)n * sizeof(*mem));
        if (mem == NULL) {
            return err_set(err, ST_ERR_NOMEM, "no memory for %" PRIu64 " scales", n);
        }
        *mem_p = mem;
        *n_p = n;
    }
    return ST_OK;
}

static status not_a_number(const struct shard_quant *q, const struct weights_box *box,
                           struct quant_bad bad, struct err *err)
{
    return err_set(err, ST_ERR_FORMAT,
                   "tensor %.128s: row %" PRIu64 ", column %" PRIu64 " is not a finite number",
                   q->t->name, box->row0 + bad.row, box->col0 + bad.k);
}

/* ---- scales of the file ---- */

static float scale_of(enum model_dtype dtype, const char *at)
{
    uint16_t half;
    float x;

    if (dtype == MODEL_F32) {
        memcpy(&x, at, sizeof(x));
        return x;
    }
    memcpy(&half, at, sizeof(half));
    return dtype == MODEL_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

/* Rows [row0, row0 + n) of scales into q->file_scales[n, cols]. */
static status read_scales(struct shard_quant *q, uint64_t row0, uint64_t n, struct err *err)
{
    const struct weights_tensor *t = q->scale.tensor;
    const uint64_t cols = q->scale.cols, n_all = n * cols;
    const uint32_t size = t->dtype == MODEL_F32 ? 4 : 2;
    const struct weights_box rows = { row0, n, 0, cols }, run = { 0, 1, row0, n };
    status st = grow(&q->file_scales, &q->n_file_scales, n_all, err);

    if (st != ST_OK) {
        return st;
    }
    /* Halves are read into the end of the array and widened from its front. */
    char *raw = (char *)q->file_scales + n_all * (4 - size);
    st = weights_read(q->weights, t, t->n_dims == 2 ? &rows : &run, raw, NULL, err);
    for (uint64_t i = 0; i < n_all && st == ST_OK; i++) {
        const float x = scale_of(t->dtype, raw + i * size);
        if (!(x >= 0.0f) || x == INFINITY) {
            st = err_set(err, ST_ERR_FORMAT,
                         "tensor %.128s: scale %" PRIu64 " is %g, not a finite number from 0 on",
                         t->name, row0 * cols + i, (double)x);
        }
        q->file_scales[i] = x;
    }
    return st;
}

/* First row of scales that rows [row0, ...) of the matrix need. */
static uint64_t scale_row(const struct shard_quant *q, uint64_t row)
{
    return q->scale.block_rows != 0 ? row / q->scale.block_rows : 0;
}

/* Of row `row` and column `col` of the matrix, when read_scales began at row0's. */
static float scale_at(const struct shard_quant *q, uint64_t row0, uint64_t row, uint64_t col)
{
    const uint64_t i = scale_row(q, row) - scale_row(q, row0);
    const uint64_t j = q->scale.block_cols != 0 ? col / q->scale.block_cols : 0;

    return q->file_scales[i * q->scale.cols + j];
}

static status read_for(struct shard_quant *q, const struct weights_box *box, struct err *err)
{
    const uint64_t first = scale_row(q, box->row0);

    return read_scales(q, first, scale_row(q, box->row0 + box->n_rows - 1) - first + 1, err);
}

/* ---- pieces ---- */

/* The file's scales, one for each group of the matrix. Blocks end where groups do. */
static status keep(struct shard_quant *q, const struct weights_box *box, const void *raw, void *out,
                   struct err *err)
{
    const struct kern_mat *mat = q->mat;
    const uint32_t n_rows = (uint32_t)box->n_rows;
    struct quant_bad bad;
    float *scale = q->scales;
    status st = read_for(q, box, err);

    if (st != ST_OK) {
        return st;
    }
    if (!quant_check(raw, n_rows, (uint32_t)box->n_cols, &bad)) {
        return not_a_number(q, box, bad, err);
    }
    if (out != raw) {
        memcpy(out, raw, (size_t)(box->n_rows * box->n_cols));
    }
    for (uint64_t row = box->row0; row < box->row0 + n_rows; row++) {
        for (uint32_t leaf = 0; leaf < mat->n_leaves; leaf++) {
            for (uint32_t k = mat->leaf[leaf]; k < mat->leaf[leaf + 1];
                 k = kern_group_end(mat, leaf, k)) {
                *scale++ = scale_at(q, box->row0, row, box->col0 + k);
            }
        }
    }
    return ST_OK;
}

static status widen(struct shard_quant *q, const struct weights_box *box, const uint8_t *raw,
                    float *out, struct err *err)
{
    const uint64_t cols = box->n_cols;
    struct quant_bad bad;
    status st = read_for(q, box, err);

    if (st != ST_OK) {
        return st;
    }
    if (!quant_check(raw, (uint32_t)box->n_rows, (uint32_t)cols, &bad)) {
        return not_a_number(q, box, bad, err);
    }
    for (uint64_t r = 0; r < box->n_rows; r++) {
        for (uint64_t c = 0, end; c < cols; c = end) {
            const uint64_t col = box->col0 + c, block = q->scale.block_cols;
            end = block != 0 ? MIN(c + block - col % block, cols) : cols;
            quant_widen(raw + r * cols + c, (size_t)(end - c),
                        scale_at(q, box->row0, box->row0 + r, col), out + r * cols + c);
        }
    }
    return ST_OK;
}

status shard_quant_rows(struct shard_quant *q, const struct weights_box *box, const void *raw,
                        void *out, struct kern_rows *rows_p, struct err *err)
{
    static const enum kern_src types[MODEL_DTYPES] = { [MODEL_F32] = KERN_SRC_F32,
                                                       [MODEL_F16] = KERN_SRC_F16,
                                                       [MODEL_BF16] = KERN_SRC_BF16,
                                                       [MODEL_F8] = KERN_SRC_F8 };
    const struct kern_rows from = { types[q->t->dtype],    raw, 0, (uint32_t)box->n_rows,
                                    (uint32_t)box->n_cols, NULL };
    struct kern_rows to = { KERN_SRC_F8, out, rows_p->row0, from.n_rows, from.ld, NULL };
    struct quant_bad bad;
    status st;

    ASSERT(box->n_rows != 0 && box->n_rows <= UINT32_MAX && box->n_cols <= UINT32_MAX);
    if (!to_fp8(q)) {
        to.type = KERN_SRC_F32;
        st = widen(q, box, raw, out, err);
    } else {
        ASSERT(q->mat->k == box->n_cols && q->mat->k0 == box->col0);
        st = grow(&q->scales, &q->n_scales, box->n_rows * kern_mat_groups(q->mat), err);
        if (st == ST_OK && from_fp8(q)) {
            st = keep(q, box, raw, out, err);
        } else if (st == ST_OK && !quant_rows(q->mat, &from, out, q->scales, &bad)) {
            st = not_a_number(q, box, bad, err);
        }
        to.scales = q->scales;
    }
    if (st == ST_OK) {
        *rows_p = to;
    }
    return st;
}
