/* kernels/layout.h - how weights and the KV cache lie in memory, one layout for every CPU path.
 *
 * Weights W[N,K]: panels of 64 outputs, K inner; what is left of N past the last whole panel goes
 * into panels of 16 outputs, the last of them padded with zero outputs. A "step" is a pair of
 * inputs (bf16) or one input (f32); a step of a panel holds 64 (or 16) outputs side by side, so a
 * lane is an output and a panel is read front to back:
 *
 *   bf16 panel:  step 0: [o0: k0 k1][o1: k0 k1] ... [o63: k0 k1]   step 1: [o0: k2 k3] ...
 *   f32 panel:   step 0: [o0: k0][o1: k0] ...                      step 1: [o0: k1] ...
 *
 *   fp8 panel:   group 0: scales [o0][o1] ... [o63], then its steps, as in bf16 with a byte an
 *                input: [o0: k0 k1][o1: k0 k1] ...                 group 1: scales, steps
 *
 * An output takes 4 bytes of a step (fp8: 2; and 4 of a group's scales). Leaves, and in fp8 groups,
 * begin a new pair; an odd last input is paired with a zero.
 *
 * Room for more, not used yet: int8 by group is the fp8 panel with other codes; int4 by group has 4
 * inputs to a step of 2 bytes. Experts are kern_mat's of one shape at one distance, and a grouped
 * product walks them with the rows sorted by expert: panels know nothing of rows.
 *
 * KV: K is [block][kv head][D/2][slot][2] in bf16 and [block][kv head][D][slot] in f32 (a step of
 * D, 32 positions as lanes: the same shape as a weight panel of 32 outputs). V is
 * [block][kv head][slot][D]. */
#ifndef KERNELS_LAYOUT_H
#define KERNELS_LAYOUT_H

#include "kernels/kern.h"

#include <stddef.h>

enum { PANEL = 64, PANEL_TAIL = 16 };

/* Of an input of a product, of the cache, of an embedding's element. */
static inline size_t fmt_bytes(enum kern_fmt fmt)
{
    return fmt == KERN_F32 ? 4 : 2;
}

static inline uint32_t u32_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Steps of n inputs that begin a new one. */
static inline uint32_t mat_steps(enum kern_fmt fmt, uint32_t n)
{
    return fmt == KERN_F32 ? n : (n + 1) / 2;
}

/* Bytes that one output of a panel takes of a step. */
static inline uint32_t mat_step_bytes(enum kern_fmt fmt)
{
    return fmt == KERN_FP8 ? 2 : 4;
}

/* Bytes that one output of a panel takes in one leaf. */
static inline size_t mat_leaf_bytes(const struct kern_mat *mat, uint32_t leaf)
{
    const uint32_t k1 = mat->leaf[leaf + 1];
    size_t n = 0;

    if (mat->fmt != KERN_FP8) {
        return mat_steps(mat->fmt, k1 - mat->leaf[leaf]) * (size_t)4;
    }
    for (uint32_t k = mat->leaf[leaf], end; k < k1; k = end) {
        end = kern_group_end(mat, leaf, k);
        n += 4 + (size_t)mat_steps(KERN_FP8, end - k) * 2;
    }
    return n;
}

/* Bytes that one output takes in all. */
static inline size_t mat_output_bytes(const struct kern_mat *mat)
{
    size_t n = 0;

    for (uint32_t i = 0; i < mat->n_leaves; i++) {
        n += mat_leaf_bytes(mat, i);
    }
    return n;
}

/* The panel that output n is in. */
struct mat_panel {
    char *base;
    uint32_t width; /* outputs of a step */
    uint32_t lane;  /* n's place among them */
};

static inline struct mat_panel mat_panel(const struct kern_mat *mat, size_t output_bytes,
                                         uint32_t n)
{
    const bool whole = n / PANEL < mat->n / PANEL;
    const uint32_t width = whole ? PANEL : PANEL_TAIL;
    const uint32_t n0 = n / width * width;

    return (struct mat_panel){ (char *)mat->data + (size_t)n0 * output_bytes, width, n - n0 };
}

/* ---- KV cache, offsets in elements ---- */

static inline size_t kv_plane(const struct kern_kv *kv) /* one head of one block */
{
    return (size_t)KERN_KV_BLOCK * kv->head_dim;
}

static inline size_t kv_base(const struct kern_kv *kv, uint32_t block, uint32_t head)
{
    return ((size_t)block * kv->n_heads + head) * kv_plane(kv);
}

static inline size_t kv_k_at(const struct kern_kv *kv, uint32_t d, uint32_t slot)
{
    if (kv->fmt == KERN_BF16) {
        return ((size_t)(d / 2) * KERN_KV_BLOCK + slot) * 2 + d % 2;
    }
    return (size_t)d * KERN_KV_BLOCK + slot;
}

static inline size_t kv_v_at(const struct kern_kv *kv, uint32_t d, uint32_t slot)
{
    return (size_t)slot * kv->head_dim + d;
}

static inline uint32_t rows_map_block(const struct kern_rows_map *map, uint32_t row, uint32_t pos)
{
    return map->tables[(size_t)map->seq[row] * map->table_stride + pos / KERN_KV_BLOCK];
}

/* Local kv head that local query head h reads. */
static inline uint32_t qkv_kv_head(const struct kern_qkv *g, uint32_t h)
{
    return (g->head0 + h) / g->group - g->kv_head0;
}

static inline size_t qkv_row(const struct kern_qkv *g) /* floats in a row of qkv */
{
    return (size_t)(g->n_heads + 2 * g->n_kv_heads) * g->head_dim;
}

#endif
