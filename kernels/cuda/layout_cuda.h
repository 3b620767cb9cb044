/* kernels/cuda/layout_cuda.h - how weights and the KV cache lie in a CUDA device's memory. Plain C
 * as well, so that a machine without a device plans with the same sizes and tests the arithmetic.
 *
 * Weights W[N,K]: runs of 16 outputs; in a run, all leaves' steps one after the other. A leaf
 * begins a new step and its last step is padded with zeros, as are outputs past N.
 *
 *   bf16 step, 32 inputs, 1,024 bytes: [outputs 0-7][8 rows of 32 inputs], [outputs 8-15][...]
 *   f32 step, 4 inputs, 256 bytes:     [16 outputs][4 inputs]
 *   fp8 step, 32 inputs, 512 bytes:    [8 outputs][4 times 8 inputs][of this output, of that + 8]
 *
 * In fp8 groups begin a new step as leaves do, and behind the codes of all runs lie the scales:
 * [runs][groups of all leaves][16 outputs] f32. A lane's 16 bytes of a step are thus 8 inputs of
 * output g and 8 of output g + 8, the codes of what two loads bring in bf16.
 *
 * Why 8 rows of 32 bf16: lane (g, c) = (lane / 4, lane % 4) of a warp takes 16 bytes at 16 * lane,
 * which are inputs 8c .. 8c+7 of output g. Two m16n8k16 products use them: step s of the pair takes
 * inputs 8c + 4s + {0, 1} as the fragment's columns 2c, 2c+1 and 8c + 4s + {2, 3} as 2c+8, 2c+9.
 * The order of inputs inside a product is thus permuted, alike for W and x; x needs no packing.
 *
 * KV: K is [block][kv head][slot][D], V is [block][kv head][D][slot]; a block's 32 slots are one
 * such step of 32 for the product of probabilities with V. */
#ifndef KERNELS_CUDA_LAYOUT_CUDA_H
#define KERNELS_CUDA_LAYOUT_CUDA_H

#include "kernels/hd.h"
#include "kernels/kern.h"

enum {
    CU_RUN = 16,       /* outputs side by side */
    CU_STEP_BF16 = 32, /* inputs of a step */
    CU_STEP_F32 = 4,
    CU_RUN_BYTES = 1024, /* of a bf16 step */
    CU_RUN_BYTES_F32 = 256,
    CU_RUN_BYTES_FP8 = 512,
    CU_SEGMENT = 1024,    /* inputs of a segment: part of the numeric profile */
    CU_SEGMENT_GROUPS = 8 /* fp8: groups of a segment; its first and last may be short */
};

KERN_HD static inline uint32_t cu_step_inputs(enum kern_fmt fmt)
{
    return fmt == KERN_F32 ? CU_STEP_F32 : CU_STEP_BF16;
}

KERN_HD static inline uint32_t cu_step_bytes(enum kern_fmt fmt)
{
    return fmt == KERN_BF16 ? CU_RUN_BYTES : fmt == KERN_FP8 ? CU_RUN_BYTES_FP8 : CU_RUN_BYTES_F32;
}

/* Steps of n_inputs inputs of one leaf. */
KERN_HD static inline uint32_t cu_steps_of(enum kern_fmt fmt, uint32_t n_inputs)
{
    return (n_inputs + cu_step_inputs(fmt) - 1) / cu_step_inputs(fmt);
}

/* Where an input stands: its step, counted from the leaf's first, and its place in the step. */
struct cu_place {
    uint32_t step, in;
};

/* Input i of leaf `leaf`, counted from the leaf's first one. With i = number of inputs: behind. */
KERN_HD static inline struct cu_place cu_place_of(const struct kern_mat *mat, uint32_t leaf,
                                                  uint32_t i)
{
    const uint32_t first = mat->k0 + mat->leaf[leaf], at = first + i;
    const uint32_t head = KERN_GROUP - first % KERN_GROUP; /* inputs of the first group, or more */

    if (mat->fmt != KERN_FP8 || i < head) {
        return (struct cu_place){ i / cu_step_inputs(mat->fmt), i % cu_step_inputs(mat->fmt) };
    }
    return (struct cu_place){ cu_steps_of(mat->fmt, head) +
                                  (at / KERN_GROUP - first / KERN_GROUP - 1) *
                                      (KERN_GROUP / CU_STEP_BF16) +
                                  at % KERN_GROUP / CU_STEP_BF16,
                              at % CU_STEP_BF16 };
}

/* Steps of one leaf. */
KERN_HD static inline uint32_t cu_leaf_steps(const struct kern_mat *mat, uint32_t leaf)
{
    const uint32_t n = mat->leaf[leaf + 1] - mat->leaf[leaf];

    return n == 0 ? 0 : cu_place_of(mat, leaf, n - 1).step + 1;
}

/* Steps before leaf `leaf`; with leaf = n_leaves those of the whole run. */
KERN_HD static inline uint32_t cu_leaf_step(const struct kern_mat *mat, uint32_t leaf)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < leaf; i++) {
        n += cu_leaf_steps(mat, i);
    }
    return n;
}

KERN_HD static inline size_t cu_runs(const struct kern_mat *mat)
{
    return ((size_t)mat->n + CU_RUN - 1) / CU_RUN;
}

/* Groups before leaf `leaf` (fp8); with leaf = n_leaves all. */
KERN_HD static inline uint32_t cu_leaf_group(const struct kern_mat *mat, uint32_t leaf)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < leaf; i++) {
        n += kern_leaf_groups(mat, i);
    }
    return n;
}

/* Where the scales begin, or what all weights take if there are none. */
KERN_HD static inline size_t cu_codes_bytes(const struct kern_mat *mat)
{
    return cu_runs(mat) * cu_leaf_step(mat, mat->n_leaves) * cu_step_bytes(mat->fmt);
}

KERN_HD static inline size_t cu_mat_bytes(const struct kern_mat *mat)
{
    const size_t n_groups = mat->fmt == KERN_FP8 ? cu_leaf_group(mat, mat->n_leaves) : 0;

    return cu_codes_bytes(mat) + cu_runs(mat) * n_groups * CU_RUN * sizeof(float);
}

/* Scale of output n and a group of n_groups, in floats from where the scales begin. */
KERN_HD static inline size_t cu_scale_at(uint32_t n_groups, uint32_t n, uint32_t group)
{
    return ((size_t)(n / CU_RUN) * n_groups + group) * CU_RUN + n % CU_RUN;
}

/* Byte offset of output n, input `k` from step leaf_step on (fp8: of one group); n_steps of a run. */
KERN_HD static inline size_t cu_mat_at(enum kern_fmt fmt, uint32_t n_steps, uint32_t n,
                                       uint32_t leaf_step, uint32_t k)
{
    const uint32_t step = leaf_step + k / cu_step_inputs(fmt);
    const size_t base = ((size_t)(n / CU_RUN) * n_steps + step) * cu_step_bytes(fmt);
    const uint32_t o = n % CU_RUN, i = k % cu_step_inputs(fmt);

    if (fmt == KERN_BF16) {
        return base + (o / 8) * 512u + (o % 8) * 64u + i * 2u;
    }
    if (fmt == KERN_FP8) {
        return base + (o % 8) * 64u + (i / 8) * 16u + (o / 8) * 8u + i % 8;
    }
    return base + o * 16u + i * 4u;
}

/* Which input of a step of 32 stands in product `s` (0, 1) of the pair at lane column c (0-3), as
 * element e (0-3) of the lane's four: the permutation that the profile fixes. */
KERN_HD static inline uint32_t cu_input_of(uint32_t s, uint32_t c, uint32_t e)
{
    return 8 * c + 4 * s + e;
}

/* ---- segments ---- */

/* Pieces of a product: each leaf in segments of CU_SEGMENT inputs from its own start, the last one
 * shorter; a leaf without inputs has none. */
KERN_HD static inline uint32_t cu_segments(uint32_t n_inputs)
{
    return (n_inputs + CU_SEGMENT - 1) / CU_SEGMENT;
}

/* ---- KV, offsets in elements ---- */

KERN_HD static inline size_t cu_kv_base(const struct kern_kv *kv, uint32_t block, uint32_t head)
{
    return ((size_t)block * kv->n_heads + head) * KERN_KV_BLOCK * kv->head_dim;
}

KERN_HD static inline size_t cu_k_at(const struct kern_kv *kv, uint32_t d, uint32_t slot)
{
    return (size_t)slot * kv->head_dim + d;
}

KERN_HD static inline size_t cu_v_at(const struct kern_kv *kv, uint32_t d, uint32_t slot)
{
    (void)kv;
    return (size_t)d * KERN_KV_BLOCK + slot;
}

/* Slot (0-31) of a block that column n (0-7) of score tile j (0-3) stands for: so chosen that a
 * lane's scores of the four tiles are the slots 8c .. 8c+7 it needs for the product with V. */
KERN_HD static inline uint32_t cu_slot_of(uint32_t j, uint32_t n)
{
    return (n / 2) * 8 + 2 * j + n % 2;
}

#endif
