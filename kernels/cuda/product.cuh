/* kernels/cuda/product.cuh - what the kernels for bf16 products share: the pieces of a product and
 * how their sums are combined. docs/numerics.md, "The CUDA profiles".
 *
 *   y[t, n] = tree over leaves ( segments of the leaf, ascending ( chain of steps of 32 inputs ) )
 *
 * A piece is a segment. Its sum is one chain of tensor-core products from +0, whichever kernel runs
 * it; pieces are then folded by `fold_pieces` or, where one block runs them all in order, by the
 * same additions in registers. So neither the kernel nor its tile changes a bit. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/stream.cuh"

struct piece {
    uint32_t k0;    /* first input */
    uint32_t n_in;  /* inputs, at most CU_SEGMENT */
    uint32_t step0; /* first step in a run of weights */
    uint16_t leaf;  /* its leaf */
    uint8_t first;  /* first of its leaf */
    uint8_t last;   /* last of its leaf */
};

/* By value to kernels. */
struct product {
    const char *w;     /* runs of 16 outputs, n_steps steps each */
    const uint16_t *x; /* [n_rows, k] bf16 */
    float *y;          /* [n_rows, n], or null: pieces' sums go to `sums` */
    float *sums;       /* [n_groups, n_rows, n] f32 */
    uint32_t n, k, n_rows, n_steps;
    uint32_t n_leaves, n_pieces;
    bool aligned; /* leaves begin on multiples of 8 inputs and so do rows of x */
    struct piece piece[PIECES_MAX];
};

/* 8 inputs of row t from input k on, of a piece that ends at k_end; nothing is read past it. */
template <bool ALIGNED>
__device__ static inline uint4 load_x(const struct product &p, uint32_t t, uint32_t k,
                                      uint32_t k_end)
{
    uint4 v = make_uint4(0, 0, 0, 0);

    if (t >= p.n_rows || k >= k_end) {
        return v;
    }
    const uint16_t *x = p.x + (size_t)t * p.k + k;

    if constexpr (ALIGNED) {
        v = *(const uint4 *)x;
    } else {
        uint32_t w[4];

#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            w[i] = k + 2 * i < k_end ? x[2 * i] : 0;
            w[i] |= k + 2 * i + 1 < k_end ? (uint32_t)x[2 * i + 1] << 16 : 0;
        }
        v = make_uint4(w[0], w[1], w[2], w[3]);
    }
    return v;
}

/* The leaves' sums arrive in ascending order and are combined by the binary tree over their
 * indices: with leaf i, as many finished subtrees are closed as i has trailing ones. */
struct tree {
    float level[7]; /* 2^6 leaves */
};

__device__ static inline float tree_add(struct tree *tree, uint32_t leaf, float sum)
{
    uint32_t d = 0;

    for (; leaf >> d & 1; d++) {
        sum = tree->level[d] + sum;
    }
    tree->level[d] = sum;
    return sum;
}

/* The sum of all leaves of one output, whose piece i's sum is at sums[i * stride]. */
__device__ static inline float fold_pieces(const struct product &p, const float *sums,
                                           size_t stride)
{
    struct tree tree;
    float leaf = 0.0f, all = 0.0f;
    uint32_t next = 0; /* leaf that has not been added yet */

    for (uint32_t i = 0; i < p.n_pieces; i++) {
        const float sum = sums[i * stride];

        leaf = p.piece[i].first ? sum : leaf + sum;
        if (p.piece[i].last) {
            for (; next < p.piece[i].leaf; next++) {
                all = tree_add(&tree, next, 0.0f); /* a leaf without inputs */
            }
            all = tree_add(&tree, next++, leaf);
        }
    }
    for (; next < p.n_leaves; next++) {
        all = tree_add(&tree, next, 0.0f);
    }
    return all;
}

/* At most 16 rows: a block per run of outputs, a warp per piece. */
void cu_gemm_stream(struct kern_stream *s, const struct product &p);
bool cu_gemm_stream_fits(const struct product &p);
/* Any number of rows: tiles of 128 outputs. */
void cu_gemm_tile(struct kern_stream *s, struct product &p);

#endif
