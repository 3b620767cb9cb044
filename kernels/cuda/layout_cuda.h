/* kernels/cuda/layout_cuda.h - how weights and the KV cache lie in a CUDA device's memory. Plain C
 * as well, so that a machine without a device plans with the same sizes and tests the arithmetic.
 *
 * Weights W[N,K]: runs of 16 outputs; in a run, all leaves' steps one after the other. A leaf
 * begins a new step and its last step is padded with zeros, as are outputs past N.
 *
 *   bf16 step, 32 inputs, 1,024 bytes: [outputs 0-7][8 rows of 32 inputs], [outputs 8-15][...]
 *   f32 step, 4 inputs, 256 bytes:     [16 outputs][4 inputs]
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
    CU_SEGMENT = 1024 /* inputs of a segment: part of the numeric profile */
};

KERN_HD static inline uint32_t cu_step_inputs(enum kern_fmt fmt)
{
    return fmt == KERN_BF16 ? CU_STEP_BF16 : CU_STEP_F32;
}

KERN_HD static inline uint32_t cu_step_bytes(enum kern_fmt fmt)
{
    return fmt == KERN_BF16 ? CU_RUN_BYTES : CU_RUN_BYTES_F32;
}

/* Steps of n_inputs inputs of one leaf. */
KERN_HD static inline uint32_t cu_steps_of(enum kern_fmt fmt, uint32_t n_inputs)
{
    return (n_inputs + cu_step_inputs(fmt) - 1) / cu_step_inputs(fmt);
}

/* Steps before leaf `leaf`; with leaf = n_leaves those of the whole run. */
KERN_HD static inline uint32_t cu_leaf_step(const struct kern_mat *mat, uint32_t leaf)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < leaf; i++) {
        n += cu_steps_of(mat->fmt, mat->leaf[i + 1] - mat->leaf[i]);
    }
    return n;
}

KERN_HD static inline size_t cu_mat_bytes(const struct kern_mat *mat)
{
    const size_t runs = ((size_t)mat->n + CU_RUN - 1) / CU_RUN;

    return runs * cu_leaf_step(mat, mat->n_leaves) * cu_step_bytes(mat->fmt);
}

/* Byte offset of output n, input `k` of a leaf whose first step is leaf_step; n_steps of a run. */
KERN_HD static inline size_t cu_mat_at(enum kern_fmt fmt, uint32_t n_steps, uint32_t n,
                                       uint32_t leaf_step, uint32_t k)
{
    const uint32_t step = leaf_step + k / cu_step_inputs(fmt);
    const size_t base = ((size_t)(n / CU_RUN) * n_steps + step) * cu_step_bytes(fmt);
    const uint32_t o = n % CU_RUN, i = k % cu_step_inputs(fmt);

    if (fmt == KERN_BF16) {
        return base + (o / 8) * 512u + (o % 8) * 64u + i * 2u;
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
