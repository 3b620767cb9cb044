/* kernels/cuda/attention.cuh - one span of attention for 16 queries, as a warp computes it.
 *
 * A query is a row and a head; the 16 of a warp share a sequence and a kv head. Lane (g, c) =
 * (lane / 4, lane % 4) holds queries g and g + 8. For each block of 32 positions:
 *
 *   S[16, 32] = Q K^T   four tiles of 8 positions; tile j's column n stands for slot_of(j, n), so
 *                       that the lane has the scores of slots 8c .. 8c+7 of its two queries
 *   m, l, p             a whole power of two above the running maximum, the sum of the weights relative to
 *                       it; what there is is scaled to the new one
 *   O[16, D] += P V     P from the very registers that held S, rounded to bf16; V as it lies
 *
 * K and V are read from memory in the shape of fragments (layout_cuda.h): 16 bytes a lane. Every
 * operation of a query depends on its own scores, so its neighbours in the warp change nothing;
 * what lies past a query's position has p = 0 exactly. docs/numerics.md, "The CUDA profiles". */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/stream.cuh"

enum {
    CU_SPAN = 128,   /* positions of a span: part of the numeric profile */
    CU_QUERIES = 16, /* of a warp */
    CU_DIM_MAX = 256 /* head dims up to here, multiples of 8, go over the tensor cores */
};
#define CU_SCORE_MAX 4194304.0f /* 2^22: c times a score stays below */

/* Shapes and pointers of a call, by value to kernels. */
struct attn {
    struct kern_kv kv;
    struct kern_qkv g;
    struct kern_rows_map map;
    const float *qkv;
    uint16_t *out;
    float c;             /* scale times log2 e, above 0: a score s weighs 2^(c s) */
    uint32_t head_chunk; /* query heads of a kv head that a tile takes: at most CU_QUERIES */
    uint32_t n_chunks;   /* such chunks per kv head */
    float *states;       /* split decode: [row][kv head and chunk][span][head_chunk][D + 2] */
    uint32_t n_spans;    /* split decode: of the longest sequence there can be */
    bool is_few; /* decode: so few blocks that their loads do not fill the memory's queues */
};

/* Local query heads [begin, end) of chunk `part` = kv head * n_chunks + chunk. */
struct heads {
    uint32_t kv, begin, end;
};

__device__ static inline struct heads heads_of(const struct attn &a, uint32_t part)
{
    const uint32_t kv = part / a.n_chunks, chunk = part % a.n_chunks;
    const uint32_t first = (a.g.kv_head0 + kv) * a.g.group, last = first + a.g.group;
    const uint32_t lo = first > a.g.head0 ? first - a.g.head0 : 0;
    const uint32_t hi = last > a.g.head0 ? min(last - a.g.head0, a.g.n_heads) : 0;
    const uint32_t begin = min(lo + chunk * a.head_chunk, hi);

    return { kv, begin, min(begin + a.head_chunk, hi) };
}

__device__ static inline uint32_t block_of(const struct attn &a, uint32_t row, uint32_t block)
{
    return a.map.tables[(size_t)a.map.seq[row] * a.map.table_stride + block];
}

/* Is the row alone in its sequence in this step? Rows of a sequence are adjacent. */
__device__ static inline bool is_single(const struct attn &a, uint32_t row)
{
    const uint32_t seq = a.map.seq[row];

    return (row == 0 || a.map.seq[row - 1] != seq) &&
           (row + 1 == a.map.n_rows || a.map.seq[row + 1] != seq);
}

/* A softmax so far of a lane's two queries. */
template <int DT> struct state {
    float m[2], l[2];
    float o[DT * 4][4]; /* tiles of 8 dims: [][0..1] query g at dims 2c, 2c+1, [][2..3] query g+8 */
};

/* 8 dims of a query from d on, rounded; zero past D and for queries that are none (q null). */
__device__ static inline uint4 load_q(const float *q, uint32_t d, uint32_t dim)
{
    if (q == nullptr || d >= dim) {
        return make_uint4(0, 0, 0, 0);
    }
    return make_uint4(pack_bf16(q[d], q[d + 1]), pack_bf16(q[d + 2], q[d + 3]),
                      pack_bf16(q[d + 4], q[d + 5]), pack_bf16(q[d + 6], q[d + 7]));
}

/* Positions [slot0, slot0 + 8) of a V row; those from `n_valid` on may be stale and become +0. */
__device__ static inline uint4 load_v(const uint16_t *v, uint32_t slot0, uint32_t n_valid)
{
    uint4 r = *(const uint4 *)(v + slot0);

    if (slot0 + 8 > n_valid) {
        uint32_t *w = (uint32_t *)&r;

#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            w[i] &= (slot0 + 2 * i < n_valid ? 0xffffu : 0u) |
                    (slot0 + 2 * i + 1 < n_valid ? 0xffff0000u : 0u);
        }
    }
    return r;
}

/* The scores of a block: s[j][0..1] query g at slots 8c+2j, 8c+2j+1, s[j][2..3] query g+8. */
template <int DT>
__device__ static inline void scores(float s[4][4], const uint4 q_lo[DT], const uint4 q_hi[DT],
                                     const uint16_t *k, uint32_t dim)
{
    const uint32_t g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;

#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const uint16_t *row = k + (size_t)cu_slot_of(j, g) * dim;

        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < DT; i++) {
            const uint32_t d = i * 32 + c * 8;
            const uint4 b = d < dim ? *(const uint4 *)(row + d) : make_uint4(0, 0, 0, 0);

            mma_step(s[j], q_lo[i], q_hi[i], b);
        }
    }
}

/* Query `r` (0: g, 1: g + 8) of the lane sees `n` slots of the block. */
__device__ static inline void hide(float s[4][4], int r, uint32_t n)
{
    const uint32_t c = threadIdx.x % 4;

#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        float *x = &s[i / 2][2 * r + i % 2];

        *x = 8 * c + i < n ? *x : -INFINITY;
    }
}

/* Query `r`: scores, -inf where not visible, to weights; into the maximum m (a whole number: scores are
 * compared as powers of two) and the sum l so far. Returns the factor, a power of two, by which what there
 * is has to be scaled. Scores that are no numbers, or too large for this arithmetic, make l NaN. */
__device__ static inline float soften(float s[4][4], int r, float c, float *m, float *l)
{
    float u = -INFINITY, sum = 0.0f;

#pragma unroll
    for (int i = 0; i < 8; i++) {
        u = max_nan(u, s[i / 2][2 * r + i % 2]);
    }
    u = max_nan(u, __shfl_xor_sync(~0u, u, 1));
    u = max_nan(u, __shfl_xor_sync(~0u, u, 2));
    const float most = max_nan(*m, ceilf(u * c));
    const float a = k_exp2_whole(*m - most);

#pragma unroll
    for (int i = 0; i < 8; i++) {
        float *x = &s[i / 2][2 * r + i % 2];

        *x = k_exp2_weight(fmaf(*x, c, -most));
        sum = sum + *x;
    }
    sum = sum + __shfl_xor_sync(~0u, sum, 1);
    sum = sum + __shfl_xor_sync(~0u, sum, 2);
    *l = fabsf(most) < CU_SCORE_MAX ? fmaf(*l, a, sum) : NAN;
    *m = most;
    return a;
}

/* The lane's weights of queries g and g + 8 as fragments: 8 slots of each. */
__device__ static inline void pack_weights(const float s[4][4], uint4 *lo, uint4 *hi)
{
    *lo = make_uint4(pack_pair(s[0][0], s[0][1]), pack_pair(s[1][0], s[1][1]),
                     pack_pair(s[2][0], s[2][1]), pack_pair(s[3][0], s[3][1]));
    *hi = make_uint4(pack_pair(s[0][2], s[0][3]), pack_pair(s[1][2], s[1][3]),
                     pack_pair(s[2][2], s[2][3]), pack_pair(s[3][2], s[3][3]));
}

/* Positions [begin, end) of one span, from nothing. pos: of the lane's two queries; valid: positions
 * that have been stored. All lanes of the warp call it with the same row, begin, end, valid. */
template <int DT>
__device__ static inline void run_span(const struct attn &a, uint32_t row, uint32_t kv_head,
                                       const uint4 q_lo[DT], const uint4 q_hi[DT],
                                       const uint32_t pos[2], uint32_t begin, uint32_t end,
                                       uint32_t valid, struct state<DT> *st)
{
    const uint32_t dim = a.g.head_dim, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;

    st->m[0] = st->m[1] = -INFINITY;
    st->l[0] = st->l[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < DT * 4; i++) {
        st->o[i][0] = st->o[i][1] = st->o[i][2] = st->o[i][3] = 0.0f;
    }
    for (uint32_t at = begin; at < end; at += KERN_KV_BLOCK) {
        const size_t base = cu_kv_base(&a.kv, block_of(a, row, at / KERN_KV_BLOCK), kv_head);
        const uint16_t *v = (const uint16_t *)a.kv.v + base;
        float s[4][4], scale[2];

        scores<DT>(s, q_lo, q_hi, (const uint16_t *)a.kv.k + base, dim);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            hide(s, r, pos[r] + 1 > at ? pos[r] + 1 - at : 0);
            scale[r] = soften(s, r, a.c, &st->m[r], &st->l[r]);
        }
        if (__any_sync(~0u, scale[0] != 1.0f || scale[1] != 1.0f)) { /* times 1 changes nothing */
#pragma unroll
            for (int i = 0; i < DT * 4; i++) {
                st->o[i][0] = st->o[i][0] * scale[0];
                st->o[i][1] = st->o[i][1] * scale[0];
                st->o[i][2] = st->o[i][2] * scale[1];
                st->o[i][3] = st->o[i][3] * scale[1];
            }
        }
        uint4 p_lo, p_hi;

        pack_weights(s, &p_lo, &p_hi);
#pragma unroll
        for (uint32_t i = 0; i < DT * 4; i++) {
            const uint32_t d = i * 8 + g;

            if (i * 8 < dim) {
                mma_step(st->o[i], p_lo, p_hi,
                         load_v(v + (size_t)d * KERN_KV_BLOCK, c * 8, valid - at));
            }
        }
    }
}

/* Take span `next` of one query into what there is, in ascending order; a span that the query does
 * not see is left out, the first one is the state. */
__device__ static inline void merge_factors(float *m, float *l, float m_next, float l_next,
                                            float *a_p, float *b_p)
{
    const float most = fmaxf(*m, m_next);

    *a_p = k_exp2_whole(*m - most);
    *b_p = k_exp2_whole(m_next - most);
    *l = fmaf(*l, *a_p, l_next * *b_p);
    *m = most;
}

/* At the end: o / l, -0 made +0, rounded. */
__device__ static inline uint16_t finish(float o, float l)
{
    return bf16_from_f32(o / l + 0.0f);
}

/* Rows that have neighbours of their sequence; others are left out. */
void cu_attention_prompt(struct kern_stream *s, const struct attn &a);

#endif
