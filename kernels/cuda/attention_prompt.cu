/* kernels/cuda/attention_prompt.cu - attention of prompts in bf16: rows that stand beside others of their
 * sequence.
 *
 * A block takes a tile of neighbouring rows and the heads of one kv head, a warp QT times 16 of its queries;
 * K and V come through shared memory once for the block, by asynchronous copies into a ring of chunks of
 * one size, one barrier each: the blocks of K of a span, 32 positions by all dims, then a quarter of the
 * dims of V at a time, by all positions of the span.
 *
 * So a span's weights are all known, as bf16 in registers, before its values begin: a quarter's values need no
 * registers beyond the quarter, and go into the state of the spans before, which lies in shared memory,
 * each lane's own. That leaves the registers for two tiles of queries a warp (one above 128 dims), and
 * a fragment of K or V is read once for both. The operations of a query, and their order, are those of
 * run_span.
 *
 * Bytes at D = 128, per Mflop (two tiles, 128 queries a block): 32 KiB of fragments read, 8 KiB written by
 * the copies from the second-level cache, 16 KiB of states read and written, once a span. */
#include "kernels/cuda/attention_tile.cuh"

/* The lane's queries: tile t's g and g + 8 are [t][0] and [t][1]. */
template <class S> struct queries {
    uint4 lo[S::QT][S::DT], hi[S::QT][S::DT];
    uint32_t pos[S::QT][2];
    float m[S::QT][2], l[S::QT][2]; /* of the spans so far */
};

/* A span's weights, and the factors of what its blocks before had. */
template <class S> struct weights {
    uint4 lo[S::QT][SPAN_BLOCKS], hi[S::QT][SPAN_BLOCKS];
    float factor[S::QT][SPAN_BLOCKS][2];
    float m[S::QT][2], l[S::QT][2];
};

/* Scores of a block of 32 positions from `at` on, and their weights. `pos0` is the least of the warp's. */
template <class S>
__device__ static inline void weigh(const struct attn &a, const struct queries<S> &q, uint32_t pos0,
                                    uint32_t at, uint32_t block, smem_at k, struct weights<S> *w)
{
    float s[S::QT][4][4] = {};

    k += threadIdx.x % 32 * 16;
#pragma unroll
    for (uint32_t i = 0; i < S::DT; i++) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint4 b = read_16(k + (i * 4 + j) * 512);

#pragma unroll
            for (uint32_t t = 0; t < S::QT; t++) {
                mma_step(s[t][j], q.lo[t][i], q.hi[t][i], b);
            }
        }
    }
    if (at + KERN_KV_BLOCK > pos0 + 1) { /* some query does not see all of it */
#pragma unroll
        for (int i = 0; i < (int)S::QT * 2; i++) {
            const uint32_t pos = q.pos[i / 2][i % 2];

            hide(s[i / 2], i % 2, pos + 1 > at ? pos + 1 - at : 0);
        }
    }
#pragma unroll
    for (int i = 0; i < (int)S::QT * 2; i++) {
        const int t = i / 2, r = i % 2;

        w->factor[t][block][r] = soften(s[t], r, a.c, &w->m[t][r], &w->l[t][r]);
    }
#pragma unroll
    for (uint32_t t = 0; t < S::QT; t++) {
        pack_weights(s[t], &w->lo[t][block], &w->hi[t][block]);
    }
}

/* o[tile of queries][tile of 8 dims] of a quarter of V: `n` blocks of the span, from nothing. */
template <class S>
__device__ static inline void values(float o[S::QT][S::DT][4], const struct weights<S> &w,
                                     uint32_t n, smem_at v)
{
    v += threadIdx.x % 32 * 16;
#pragma unroll
    for (uint32_t t = 0; t < S::QT * S::DT; t++) {
        float *x = o[t / S::DT][t % S::DT];

        x[0] = x[1] = x[2] = x[3] = 0.0f;
    }
#pragma unroll
    for (uint32_t block = 0; block < SPAN_BLOCKS; block++) {
        if (block < n) {
            if (block > 0) {
#pragma unroll
                for (uint32_t t = 0; t < S::QT * S::DT * 4; t++) {
                    float *x = &o[t / 4 / S::DT][t / 4 % S::DT][t % 4];

                    *x = *x * w.factor[t / 4 / S::DT][block][t % 4 / 2];
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < S::DT; i++) {
                const uint4 b = read_16(v + (i * SPAN_BLOCKS + block) * 512);

#pragma unroll
                for (uint32_t t = 0; t < S::QT; t++) {
                    mma_step(o[t][i], w.lo[t][block], w.hi[t][block], b);
                }
            }
        }
    }
}

/* The first span is the state. `all`: this lane's, of a quarter, [tile of dims][tile of queries][32]. */
template <class S>
__device__ static inline void begin_state(float4 *all, const float o[S::QT][S::DT][4])
{
#pragma unroll
    for (uint32_t t = 0; t < S::QT * S::DT; t++) {
        const float *x = o[t % S::QT][t / S::QT];

        all[t * 32] = make_float4(x[0], x[1], x[2], x[3]);
    }
}

/* A further span into it: by factors fa and fb, for queries that see it. */
template <class S>
__device__ static inline void merge_state(float4 *all, const float o[S::QT][S::DT][4],
                                          const float fa[S::QT][2], const float fb[S::QT][2],
                                          const bool sees[S::QT][2])
{
#pragma unroll
    for (uint32_t t = 0; t < S::QT * S::DT; t++) {
        const uint32_t q = t % S::QT;
        const float *x = o[q][t / S::QT];
        float4 y = all[t * 32];

        if (sees[q][0]) {
            y.x = fmaf(y.x, fa[q][0], x[0] * fb[q][0]);
            y.y = fmaf(y.y, fa[q][0], x[1] * fb[q][0]);
        }
        if (sees[q][1]) {
            y.z = fmaf(y.z, fa[q][1], x[2] * fb[q][1]);
            y.w = fmaf(y.w, fa[q][1], x[3] * fb[q][1]);
        }
        all[t * 32] = y;
    }
}

/* One span from `begin` on, of the warp's tile `mine`, into the state. */
template <class S>
__device__ static inline void take_span(const struct attn &a, const struct tile &block,
                                        const struct tile &mine, struct ring *ring, uint32_t begin,
                                        struct queries<S> *q, float4 *all)
{
    const uint32_t n_k = span_blocks(begin, last_of(block));
    const uint32_t n_see = mine.n_rows == 0 ? 0 : span_blocks(begin, last_of(mine));
    struct weights<S> w;
    float fa[S::QT][2], fb[S::QT][2];
    bool sees[S::QT][2];

#pragma unroll
    for (uint32_t t = 0; t < S::QT * 2; t++) {
        w.m[t / 2][t % 2] = -INFINITY;
        w.l[t / 2][t % 2] = 0.0f;
    }
#pragma unroll
    for (uint32_t b = 0; b < SPAN_BLOCKS; b++) {
        if (b < n_k) {
            const smem_at k = next_chunk<S>(a, block, ring);

            if (b < n_see) {
                weigh<S>(a, *q, mine.pos0, begin + b * KERN_KV_BLOCK, b, k, &w);
            }
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < S::QT * 2; i++) {
        const uint32_t t = i / 2, r = i % 2;

        sees[t][r] = begin <= q->pos[t][r];
        if (begin == 0) {
            q->m[t][r] = w.m[t][r];
            q->l[t][r] = w.l[t][r];
        } else if (n_see > 0 && sees[t][r]) {
            merge_factors(&q->m[t][r], &q->l[t][r], w.m[t][r], w.l[t][r], &fa[t][r], &fb[t][r]);
        }
    }
    for (uint32_t d = 0; d < a.g.head_dim; d += S::DT * 8) {
        const smem_at v = next_chunk<S>(a, block, ring);

        if (n_see > 0) {
            float o[S::QT][S::DT][4];

            values<S>(o, w, n_see, v);
            if (begin == 0) {
                begin_state<S>(all + d / 8 * S::QT * 32, o);
            } else {
                merge_state<S>(all + d / 8 * S::QT * 32, o, fa, fb, sees);
            }
        }
    }
}

/* Query i of a warp is a row and a head of it; null if there is none. */
template <class S>
__device__ static inline void load_queries(const struct attn &a, const struct tile &mine,
                                           const struct heads &h, struct queries<S> *q)
{
    const uint32_t g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const uint32_t n_heads = h.end - h.begin, n = mine.n_rows * n_heads;
    const uint32_t dim = a.g.head_dim;

#pragma unroll
    for (uint32_t t = 0; t < S::QT; t++) {
        const float *from[2];

#pragma unroll
        for (uint32_t r = 0; r < 2;
             r++) { /* queries that are none: no input, the first one's position */
            const uint32_t i = t * CU_QUERIES + g + 8 * r, row = i < n ? i / n_heads : 0;

            q->pos[t][r] = mine.pos0 + row;
            from[r] =
                i < n
                    ? a.qkv + (size_t)(mine.row0 + row) * (a.g.n_heads + 2 * a.g.n_kv_heads) * dim +
                          (size_t)(h.begin + i % n_heads) * dim
                    : nullptr;
        }
#pragma unroll
        for (uint32_t i = 0; i < S::DT; i++) {
            q->lo[t][i] = load_q(from[0], i * 32 + c * 8, dim);
            q->hi[t][i] = load_q(from[1], i * 32 + c * 8, dim);
        }
    }
}

template <class S>
__device__ static inline void put_out(const struct attn &a, const struct tile &mine,
                                      const struct heads &h, const struct queries<S> &q,
                                      const float4 *all)
{
    const uint32_t g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const uint32_t n_heads = h.end - h.begin, n = mine.n_rows * n_heads;

#pragma unroll
    for (uint32_t t = 0; t < S::QT; t++) {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t i = t * CU_QUERIES + g + 8 * r;

            if (i < n) {
                const size_t head =
                    (size_t)(mine.row0 + i / n_heads) * a.g.n_heads + h.begin + i % n_heads;
                uint16_t *out = a.out + head * a.g.head_dim + 2 * c;

                for (uint32_t d = 0; d < a.g.head_dim; d += 8) {
                    const float4 o = all[(d / 8 * S::QT + t) * 32];

                    out[d] = finish(r == 0 ? o.x : o.z, q.l[t][r]);
                    out[d + 1] = finish(r == 0 ? o.y : o.w, q.l[t][r]);
                }
            }
        }
    }
}

template <class S>
__global__ static void __launch_bounds__(THREADS, 2)
    attention_prompt_kernel(const __grid_constant__ struct attn a)
{
    DYNAMIC_SHARED(char, shared);                            /* the ring, then the warps' states */
    const uint32_t rows = S::QT * CU_QUERIES / a.head_chunk; /* of a warp */
    const struct heads h = heads_of(a, blockIdx.y);
    float4 *all = (float4 *)(shared + S::STAGES * S::CHUNK_BYTES) + threadIdx.x / 32 * S::STATE +
                  threadIdx.x % 32;

    begin_op();
    const uint32_t first = first_row(a, rows * WARPS);

    if (first >= a.map.n_rows || h.begin == h.end) {
        return;
    }
    const struct tile block = { first, tile_of(a, first, rows * WARPS), a.map.pos[first], h.kv,
                                a.map.tables + (size_t)a.map.seq[first] * a.map.table_stride };

    if (block.n_rows == 0) {
        return;
    }
    const struct tile mine = warp_tile(block, rows);
    struct ring ring = { smem_of(shared), 0, 0, 0 };
    struct queries<S> q;

    for (uint32_t i = 0; i < S::STAGES - 1; i++) {
        fetch<S>(a, block, &ring, i);
    }
    load_queries<S>(a, mine, h, &q);
    for (uint32_t begin = 0; begin <= last_of(block); begin += CU_SPAN) {
        take_span<S>(a, block, mine, &ring, begin, &q, all);
    }
    put_out<S>(a, mine, h, q, all);
}

/* Rows of a block. */
template <class S> static uint32_t block_rows(const struct attn &a)
{
    return S::QT * CU_QUERIES / a.head_chunk * WARPS;
}

template <class S> static void run(struct kern_stream *s, const struct attn &a)
{
    const uint32_t n_blocks =
        a.map.n_seqs == 1 ? (a.map.n_rows - 1) / block_rows<S>(a) + 2 : (uint32_t)a.map.n_rows;

    cu_launch(s, "attention", attention_prompt_kernel<S>,
              dim3(n_blocks, a.g.n_kv_heads * a.n_chunks), THREADS, S::SMEM_BYTES, a);
}

/* Two tiles of queries a warp, unless that is at most a block a multiprocessor: then two smaller blocks on
 * each, or on twice as many, are sooner done. */
template <int DT> static void run_either(struct kern_stream *s, const struct attn &a)
{
    const uint32_t n_tiles = div_up(a.map.n_rows, block_rows<shape<DT, 2>>(a));

    if (n_tiles * a.g.n_kv_heads * a.n_chunks <= s->n_sm) {
        run<shape<DT, 1>>(s, a);
    } else {
        run<shape<DT, 2>>(s, a);
    }
}

void cu_attention_prompt(struct kern_stream *s, const struct attn &a)
{
    switch (div_up(a.g.head_dim, 32)) {
    case 1:
        run_either<1>(s, a);
        break;
    case 2:
        run_either<2>(s, a);
        break;
    case 3:
        run_either<3>(s, a);
        break;
    case 4:
        run_either<4>(s, a);
        break;
    default: /* two tiles would not fit the registers */
        run<shape<8, 1>>(s, a);
        break;
    }
}
