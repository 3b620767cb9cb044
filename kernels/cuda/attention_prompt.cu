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
 * attention_decode.cu's run_span.
 *
 * In shared memory a chunk lies as the lanes read it: 16 bytes a lane, a warp's 512 bytes in a row, without
 * bank conflicts.
 *
 * Bytes at D = 128, per Mflop (two tiles, 128 queries a block): 32 KiB of fragments read, 8 KiB written by
 * the copies from the second-level cache, 16 KiB of states read and written, once a span. */
#include "kernels/cuda/attention.cuh"

enum { WARPS = 4, THREADS = WARPS * 32, SPAN_BLOCKS = CU_SPAN / KERN_KV_BLOCK, QUARTERS = 4 };

/* DT: steps of 32 dims; QT: tiles of 16 queries of a warp. */
template <int DT_, int QT_> struct shape {
    static constexpr uint32_t DT = DT_, QT = QT_, STAGES = DT > 4 ? 2 : 4;
    static constexpr uint32_t CHUNK_BYTES = KERN_KV_BLOCK * DT * 64;
    static constexpr uint32_t STATE = QUARTERS * DT * QT * 32; /* of a warp: float4 */
    static constexpr size_t SMEM_BYTES =
        (size_t)STAGES * CHUNK_BYTES + WARPS * STATE * sizeof(float4);
};

/* The rows of a block, and of each of its warps where it takes all of its rows. */
struct tile {
    uint32_t row0, n_rows; /* none: n_rows = 0 */
    uint32_t pos0;         /* of row0 */
    uint32_t kv_head;
    const uint32_t *blocks; /* the sequence's */
};

__device__ static inline uint32_t last_of(const struct tile &t)
{
    return t.pos0 + t.n_rows - 1;
}

/* Blocks of a span of which positions up to `last` are read. */
__device__ static inline uint32_t span_blocks(uint32_t begin, uint32_t last)
{
    return begin > last ? 0 : min((uint32_t)SPAN_BLOCKS, (last - begin) / KERN_KV_BLOCK + 1);
}

__device__ static inline bool same_tile(const struct attn &a, uint32_t r, uint32_t q, uint32_t rows)
{
    return a.map.seq[r] == a.map.seq[q] && a.map.pos[r] / rows == a.map.pos[q] / rows;
}

/* The rows [row0, row0 + n) that stand in one tile of `rows` with row0, if row0 is its first here;
 * n = 0 otherwise. Tiles are cut at absolute positions that are multiples of `rows`, so a tile is found
 * from its rows alone. A row alone in its sequence is left to decoding. */
__device__ static inline uint32_t tile_of(const struct attn &a, uint32_t row0, uint32_t rows)
{
    uint32_t n = 1;

    if ((row0 > 0 && same_tile(a, row0 - 1, row0, rows)) || is_single(a, row0)) {
        return 0;
    }
    while (row0 + n < a.map.n_rows && n < rows && same_tile(a, row0 + n, row0, rows)) {
        n++;
    }
    return n;
}

/* The row that this block's tile would begin with, n_rows or more if there is none. Blocks of late rows
 * come first: they have the most to read. Of several sequences only the device knows where tiles
 * begin, so there is a block per row; of one sequence there is a block per tile. */
__device__ static inline uint32_t first_row(const struct attn &a, uint32_t rows)
{
    const uint32_t b = gridDim.x - 1 - blockIdx.x;

    return a.map.n_seqs != 1 || b == 0 ? b : b * rows - a.map.pos[0] % rows;
}

/* This warp's part of the block's rows. The block's rows begin where its tile does, or at a sequence's
 * first position in the step: warps are cut at absolute positions too. */
__device__ static inline struct tile warp_tile(const struct tile &block, uint32_t rows)
{
    const uint32_t warp = threadIdx.x / 32, in = block.pos0 % (rows * WARPS);
    const uint32_t lo = max(warp * rows, in), hi = min((warp + 1) * rows, in + block.n_rows);

    if (lo >= hi) {
        return { block.row0, 0, block.pos0, block.kv_head, block.blocks };
    }
    return { block.row0 + lo - in, hi - lo, block.pos0 + lo - in, block.kv_head, block.blocks };
}

/* ---- K and V to shared memory ---- */

/* 32 positions of K: [step of dims][score tile][lane] 16 bytes. A thread takes 16 bytes of each step of
 * one slot; eight neighbours' are 64 bytes of two rows, and 128 bytes in a row of shared memory. */
template <class S>
__device__ static inline void fetch_k(const struct attn &a, const struct tile &t, uint32_t at,
                                      smem_at smem)
{
    const uint32_t slot = threadIdx.x / 4, c = threadIdx.x % 4;
    const uint32_t j = slot % 8 / 2, n = slot / 8 * 2 + slot % 2; /* cu_slot_of(j, n) == slot */
    const size_t base = cu_kv_base(&a.kv, t.blocks[at / KERN_KV_BLOCK], t.kv_head);
    const uint16_t *k = (const uint16_t *)a.kv.k + base + slot * a.g.head_dim + c * 8;

    static_assert(THREADS == KERN_KV_BLOCK * 4, "a thread has a slot and 8 dims of each step");
    smem += (j * 32 + n * 4 + c) * 16;
#pragma unroll
    for (uint32_t i = 0; i < S::DT; i++) {
        copy_16(smem + i * 4 * 512, k + i * 32, i * 32 + c * 8 < a.g.head_dim);
    }
}

/* A quarter of the dims of V, of all blocks of the span, a warp its own: [tile of 8 dims][block][lane] 16
 * bytes. Positions that nothing has stored may be stale and become +0. */
template <class S>
__device__ static inline void fetch_v(const struct attn &a, const struct tile &t, uint32_t begin,
                                      uint32_t quarter, smem_at smem)
{
    const uint32_t block = threadIdx.x / 32, lane = threadIdx.x % 32, n_valid = last_of(t) + 1;
    const uint32_t at = begin + block * KERN_KV_BLOCK, slot = at + lane % 4 * 8;

    static_assert(WARPS == SPAN_BLOCKS, "a warp has a block of the span");
    if (at < n_valid) {
        const size_t base = cu_kv_base(&a.kv, t.blocks[at / KERN_KV_BLOCK], t.kv_head);
        const uint16_t *v =
            (const uint16_t *)a.kv.v + base + quarter * S::DT * 8 * KERN_KV_BLOCK + lane * 8;

        smem += threadIdx.x * 16;
#pragma unroll
        for (uint32_t i = 0; i < S::DT; i++, v += 8 * KERN_KV_BLOCK) {
            if ((quarter * S::DT + i) * 8 >= a.g.head_dim) {
                continue;
            }
            if (at + KERN_KV_BLOCK <= n_valid) {
                copy_16(smem + i * SPAN_BLOCKS * 512, v, true);
            } else {
                copy_some(smem + i * SPAN_BLOCKS * 512, v,
                          slot < n_valid ? min(n_valid - slot, 8u) * 2 : 0);
            }
        }
    }
}

/* The ring: where the copies are, where the reading is. */
struct ring {
    smem_at base;
    uint32_t begin, part; /* to be fetched next: span, chunk of it */
    uint32_t stage;       /* to be read next */
};

/* Start the copies of the next chunk to `stage`. */
template <class S>
__device__ static inline void fetch(const struct attn &a, const struct tile &t, struct ring *r,
                                    uint32_t stage)
{
    const smem_at smem = r->base + stage * S::CHUNK_BYTES;

    if (r->begin <= last_of(t)) {
        const uint32_t n_k = span_blocks(r->begin, last_of(t));
        const uint32_t n_v = (a.g.head_dim + S::DT * 8 - 1) / (S::DT * 8);

        if (r->part < n_k) {
            fetch_k<S>(a, t, r->begin + r->part * KERN_KV_BLOCK, smem);
        } else {
            fetch_v<S>(a, t, r->begin, r->part - n_k, smem);
        }
        r->part++;
        if (r->part == n_k + n_v) {
            r->part = 0;
            r->begin += CU_SPAN;
        }
    }
    copies_commit();
}

/* The next chunk, come; the one before has been read by all. Every thread of the block calls it. */
template <class S>
__device__ static inline smem_at next_chunk(const struct attn &a, const struct tile &t,
                                            struct ring *r)
{
    const uint32_t stage = r->stage;

    copies_wait<S::STAGES - 2>();
    __syncthreads();
    fetch<S>(a, t, r, stage == 0 ? S::STAGES - 1 : stage - 1);
    r->stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    return r->base + stage * S::CHUNK_BYTES;
}

/* ---- a span ---- */

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

template <class S> static void run(struct kern_stream *s, const struct attn &a)
{
    const uint32_t rows = S::QT * CU_QUERIES / a.head_chunk * WARPS;
    const uint32_t n_blocks =
        a.map.n_seqs == 1 ? (a.map.n_rows - 1) / rows + 2 : (uint32_t)a.map.n_rows;

    cu_launch(s, "attention", attention_prompt_kernel<S>,
              dim3(n_blocks, a.g.n_kv_heads * a.n_chunks), THREADS, S::SMEM_BYTES, a);
}

void cu_attention_prompt(struct kern_stream *s, const struct attn &a)
{
    switch (div_up(a.g.head_dim, 32)) {
    case 1:
        run<shape<1, 2>>(s, a);
        break;
    case 2:
        run<shape<2, 2>>(s, a);
        break;
    case 3:
        run<shape<3, 2>>(s, a);
        break;
    case 4:
        run<shape<4, 2>>(s, a);
        break;
    default: /* two tiles of queries would not fit the registers */
        run<shape<8, 1>>(s, a);
        break;
    }
}
