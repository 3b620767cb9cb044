/* kernels/cuda/product.cuh - what the kernels for bf16 and fp8 products share: the pieces of a product and
 * how their sums are combined. docs/numerics.md, "The CUDA profiles".
 *
 *   y[t, n] = tree over leaves ( segments of the leaf, ascending ( chain of steps of 32 inputs ) )
 *
 * In fp8 a segment is 8 groups, each a chain of its own that is scaled into the segment's sum:
 * sum = fma(chain, scale, sum). A piece is a segment. Its sum is one chain of tensor-core products from +0, whichever kernel runs
 * it; pieces are then folded by `fold_pieces` or, where one block runs them all in order, by the
 * same additions in registers. So neither the kernel nor its tile changes a bit. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "kernels/cuda/stream.cuh"

struct piece {
    uint32_t k0;    /* first input */
    uint32_t step0; /* first step in a run of weights */
    uint16_t n_in;  /* inputs, at most CU_SEGMENT */
    uint16_t
        head; /* inputs before steps are full ones again: fp8: of the first group; bf16: n_in */
    uint16_t group0;   /* fp8: first group */
    uint8_t leaf;      /* its leaf */
    uint8_t first : 1; /* first of its leaf */
    uint8_t last : 1;  /* last of its leaf */
};

/* Steps of a piece, and the inputs [k, end) of step `i`. */
__host__ __device__ static inline uint32_t head_steps(const struct piece &q)
{
    return (q.head + CU_STEP_BF16 - 1u) / CU_STEP_BF16;
}

__host__ __device__ static inline uint32_t piece_steps(const struct piece &q)
{
    return head_steps(q) + (q.n_in - q.head + CU_STEP_BF16 - 1u) / CU_STEP_BF16;
}

__device__ static inline uint32_t step_input(const struct piece &q, uint32_t i, uint32_t *end_p)
{
    const uint32_t h = head_steps(q);

    *end_p = q.k0 + (i < h ? q.head : q.n_in);
    return i < h ? q.k0 + i * CU_STEP_BF16 : q.k0 + q.head + (i - h) * CU_STEP_BF16;
}

/* fp8: is step `i` the last of its group? */
__device__ static inline bool ends_group(const struct piece &q, uint32_t i)
{
    const uint32_t h = head_steps(q);

    return i + 1 == h || i + 1 == piece_steps(q) ||
           (i >= h && (i + 1 - h) % (KERN_GROUP / CU_STEP_BF16) == 0);
}

/* By value to kernels. */
struct product {
    const char *w;       /* runs of 16 outputs, n_steps steps each */
    const float *scales; /* fp8: [runs][n_groups][16 outputs] */
    const uint16_t *x;   /* [n_rows, k] bf16 */
    float *y;            /* [n_rows, n], or null: pieces' sums go to `sums` */
    float *sums;         /* [n_groups, n_rows, n] f32 */
    uint32_t n, k, n_rows, n_steps;
    uint32_t n_leaves, n_pieces, n_groups;
    bool aligned; /* leaves and groups begin on multiples of 8 inputs and so do rows of x */
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

/* ---- steps of a tile on their way to shared memory ---- */

/* Where the copies are: the piece and the step in it. */
struct cursor {
    uint32_t piece, step, end; /* end: first piece that is not this block's */
};

/* Start the copies of one step, W of the tile's runs and behind it its rows of x, and go to the next.
 * S says how much: RUN_BYTES of a run's step, W_BYTES, X_BYTES, by BLOCK threads. */
template <class S, bool ALIGNED>
__device__ static inline void fetch(const struct product &p, struct cursor *at, uint32_t run0,
                                    uint32_t row0, smem_at smem)
{
    if (at->piece < at->end) {
        const struct piece &q = p.piece[at->piece];
        uint32_t k_end;
        const uint32_t k0 = step_input(q, at->step, &k_end);
        const uint32_t n_runs = (p.n + CU_RUN - 1) / CU_RUN;

        constexpr uint32_t CHUNKS = S::RUN_BYTES / 16, W_N = S::W_BYTES / 16, X_N = S::X_BYTES / 16;

#pragma unroll
        for (uint32_t u = 0; u < W_N / S::BLOCK; u++) {
            const uint32_t i = u * S::BLOCK + threadIdx.x;
            const uint32_t run = run0 + i / CHUNKS;
            const bool valid = run < n_runs;
            const size_t off =
                ((size_t)(valid ? run : 0) * p.n_steps + q.step0 + at->step) * S::RUN_BYTES;

            copy_16(smem + i * 16, p.w + off + i % CHUNKS * 16, valid);
        }
#pragma unroll
        for (uint32_t u = 0; u < (X_N + S::BLOCK - 1) / S::BLOCK; u++) {
            const uint32_t i = u * S::BLOCK + threadIdx.x;
            const uint32_t t = row0 + i / 4, k = k0 + i % 4 * 8;
            const smem_at dst = smem + S::W_BYTES + i * 16;

            static_assert(W_N % S::BLOCK == 0 && (X_N % S::BLOCK == 0 || X_N < S::BLOCK), "a ring");
            if (X_N < S::BLOCK && i >= X_N) {
                break;
            }
            if constexpr (ALIGNED) {
                const bool valid = t < p.n_rows && k < k_end;

                copy_16(dst, valid ? p.x + (size_t)t * p.k + k : p.x, valid);
            } else {
                write_16(dst, load_x<false>(p, t, k, k_end));
            }
        }
        at->step++;
        if (at->step == piece_steps(q)) {
            at->step = 0;
            at->piece++;
        }
    }
    copies_commit();
}

/* 4 codes of e4m3 to 4 bf16, the first in the low half of *lo_p. A code's bits, moved to where bf16
 * has exponent and fraction, are 2^-120 of it; denormals too, which the product takes exactly. */
__device__ static inline void widen_4(uint32_t codes, uint32_t *lo_p, uint32_t *hi_p)
{
    const uint32_t lo = (codes << 8 & 0xff00u) | (codes << 16 & 0xff000000u);
    const uint32_t hi = (codes >> 8 & 0xff00u) | (codes & 0xff000000u);

    *lo_p = times_2_120(lo >> 4 & 0x07f007f0u) | (lo & 0x80008000u);
    *hi_p = times_2_120(hi >> 4 & 0x07f007f0u) | (hi & 0x80008000u);
}

/* A lane's 16 bytes of an fp8 step to its bf16 of outputs g (lo) and g + 8 (hi). */
__device__ static inline void widen_step(const uint4 &codes, uint4 *lo, uint4 *hi)
{
    widen_4(codes.x, &lo->x, &lo->y);
    widen_4(codes.y, &lo->z, &lo->w);
    widen_4(codes.z, &hi->x, &hi->y);
    widen_4(codes.w, &hi->z, &hi->w);
}

/* The leaves' sums arrive in ascending order and are combined by the binary tree over their
 * indices: with leaf i, as many finished subtrees are closed as i has trailing ones. */
enum { LEVELS = 7 }; /* of 2^6 leaves */

template <int N> struct tree {
    float level[N]; /* for 2^(N - 1) leaves */
};

template <int N>
__device__ static inline float tree_add(struct tree<N> *tree, uint32_t leaf, float sum)
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
    struct tree<LEVELS> tree;
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

/* Tile i of a product, its lines so ordered that blocks which run together share rows of x and runs of
 * W in the second-level cache: 16 tiles of rows, then the next outputs. */
__device__ static inline void tile_of(uint32_t i, uint32_t n_row_tiles, uint32_t n_out_tiles,
                                      uint32_t *row_p, uint32_t *out_p)
{
    const uint32_t at_once = 16, per_group = at_once * n_out_tiles;
    const uint32_t first = i / per_group * at_once;
    const uint32_t rows = min(at_once, n_row_tiles - first);

    *row_p = first + i % per_group % rows;
    *out_p = i % per_group / rows;
}

/* Cut the leaves of `w` into pieces. False: more than a product may have. */
bool cu_cut(const struct kern_mat *w, struct product *p);
/* At most 16 rows: a block per run of outputs, a warp per piece. */
void cu_gemm_stream(struct kern_stream *s, const struct product &p);
bool cu_gemm_stream_fits(const struct product &p);
/* Any number of rows: tiles of 128 outputs. */
void cu_gemm_tile(struct kern_stream *s, struct product &p);
/* Many rows by wgmma, where it gives the same bits (s->wgmma); does it pay? */
void cu_gemm_wgmma(struct kern_stream *s, struct product &p);
bool cu_gemm_wgmma_pays(const struct kern_stream *s, const struct product &p);
size_t cu_gemm_wgmma_smem();
/* The same two for fp8. */
void cu_gemm_stream_fp8(struct kern_stream *s, const struct product &p);
void cu_gemm_tile_fp8(struct kern_stream *s, struct product &p);

#endif
