/* kernels/cuda/attention.cu - attention in bf16: which kernel, and the kernel for prompts.
 *
 * Prompts: a warp takes 16 queries (rows of one sequence times heads of one kv head) and walks its
 * spans in order; a block is four neighbouring warps, so K and V reach the multiprocessor about once
 * per four. Decoding is attention_decode.cu. Rows of both kinds may stand in one step: a row whose
 * neighbours belong to other sequences is decoded, a run of rows is a prompt.
 *
 * Bytes of a prompt: K and V once per 64 queries, from the second-level cache; 64 products of
 * 16 x 8 x 16 per 16 KiB at D = 128. */
#include "kernels/cuda/attention_decode.cuh"

enum { WARPS = 4 };

/* Rows of a warp's tile. Tiles are cut at absolute positions that are multiples of it, so a tile is
 * found from its rows alone. */
__device__ static inline uint32_t warp_rows(const struct attn &a)
{
    return CU_QUERIES / a.head_chunk;
}

__device__ static inline bool same_tile(const struct attn &a, uint32_t r, uint32_t q, uint32_t rows)
{
    return a.map.seq[r] == a.map.seq[q] && a.map.pos[r] / rows == a.map.pos[q] / rows;
}

/* The rows [row0, row0 + n) that stand in one tile of `rows` with row0, if row0 is its first here;
 * n = 0 otherwise. A row alone in its sequence is left to decoding. */
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

/* One span of a lane's two queries into the state of all spans before. */
template <int DT>
__device__ static inline void take_span(struct state<DT> *all, const struct state<DT> &next,
                                        const uint32_t pos[2], uint32_t begin)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float a, b;

        if (begin == 0) {
            all->m[r] = next.m[r];
            all->l[r] = next.l[r];
#pragma unroll
            for (int i = 0; i < DT * 4; i++) {
                all->o[i][2 * r] = next.o[i][2 * r];
                all->o[i][2 * r + 1] = next.o[i][2 * r + 1];
            }
        } else if (begin <= pos[r]) {
            merge_factors(&all->m[r], &all->l[r], next.m[r], next.l[r], &a, &b);
#pragma unroll
            for (int i = 0; i < DT * 4; i++) {
                all->o[i][2 * r] = fmaf(all->o[i][2 * r], a, next.o[i][2 * r] * b);
                all->o[i][2 * r + 1] = fmaf(all->o[i][2 * r + 1], a, next.o[i][2 * r + 1] * b);
            }
        }
    }
}

/* The row that this block's tile would begin with, n_rows or more if there is none. Blocks of late rows
 * come first: they have the most to read. Of several sequences only the device knows where tiles
 * begin, so there is a block per row; of one sequence there is a block per tile. */
__device__ static inline uint32_t first_row(const struct attn &a, uint32_t rows)
{
    const uint32_t b = gridDim.x - 1 - blockIdx.x;

    return a.map.n_seqs != 1 || b == 0 ? b : b * rows - a.map.pos[0] % rows;
}

template <int DT>
__global__ static void __launch_bounds__(WARPS * 32, 2)
    attention_prompt_kernel(const __grid_constant__ struct attn a)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, warp = threadIdx.x / 32;
    const uint32_t dim = a.g.head_dim, rows = warp_rows(a);
    const struct heads h = heads_of(a, blockIdx.y);

    begin_op();
    const uint32_t first = first_row(a, rows * WARPS);

    if (first >= a.map.n_rows) {
        return;
    }
    const uint32_t n_block = tile_of(a, first, rows * WARPS);
    /* The block's rows begin where its tile does, or at a sequence's first position in the step:
     * warps are cut at absolute positions too. */
    const uint32_t p0 = a.map.pos[first], in = p0 % (rows * WARPS);
    const uint32_t lo = max(warp * rows, in), hi = min((warp + 1) * rows, in + n_block);

    if (n_block == 0 || lo >= hi || h.begin == h.end) {
        return;
    }
    const uint32_t row0 = first + lo - in, n_heads = h.end - h.begin;
    const uint32_t n_queries = (hi - lo) * n_heads, last = a.map.pos[row0] + hi - lo - 1;
    const float *q[2];
    uint32_t pos[2];
    uint4 q_lo[DT], q_hi[DT];
    struct state<DT> all, next;

#pragma unroll
    for (uint32_t r = 0; r < 2;
         r++) { /* queries that are none: no input, the first one's position */
        const uint32_t i = g + 8 * r;
        const uint32_t row = row0 + (i < n_queries ? i / n_heads : 0);

        pos[r] = a.map.pos[row];
        q[r] = i < n_queries ? a.qkv + (size_t)row * (a.g.n_heads + 2 * a.g.n_kv_heads) * dim +
                                   (size_t)(h.begin + i % n_heads) * dim
                             : nullptr;
    }
#pragma unroll
    for (uint32_t i = 0; i < DT; i++) {
        q_lo[i] = load_q(q[0], i * 32 + c * 8, dim);
        q_hi[i] = load_q(q[1], i * 32 + c * 8, dim);
    }
    for (uint32_t begin = 0; begin <= last; begin += CU_SPAN) {
        const uint32_t end = min(begin + CU_SPAN, last + 1);

        run_span<DT>(a, row0, h.kv, q_lo, q_hi, pos, begin, end, last + 1, &next);
        take_span<DT>(&all, next, pos, begin);
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t i = g + 8 * r;

        if (i < n_queries) {
            uint16_t *out =
                a.out + ((size_t)(row0 + i / n_heads) * a.g.n_heads + h.begin + i % n_heads) * dim;

#pragma unroll
            for (uint32_t t = 0; t < DT * 4; t++) {
                if (t * 8 < dim) {
                    out[t * 8 + 2 * c] = finish(all.o[t][2 * r], all.l[r]);
                    out[t * 8 + 2 * c + 1] = finish(all.o[t][2 * r + 1], all.l[r]);
                }
            }
        }
    }
}

template <int DT> static void run(struct kern_stream *s, struct attn &a)
{
    const uint32_t parts = a.g.n_kv_heads * a.n_chunks;
    const uint32_t tile = CU_QUERIES / a.head_chunk * WARPS; /* rows */
    const bool is_one = a.map.n_seqs == 1;

    if (a.map.n_rows != a.map.n_seqs) { /* some sequence has several rows */
        cu_launch(s, "attention", attention_prompt_kernel<DT>,
                  dim3(is_one ? (a.map.n_rows - 1) / tile + 2 : a.map.n_rows, parts), WARPS * 32, 0,
                  a);
    }
    if (!is_one || a.map.n_rows == 1) { /* some row may be alone */
        cu_attention_decode<DT>(s, a);
    }
}

static void attention(struct kern_stream *s, void *out, const struct kern_kv *kv, const float *qkv,
                      const struct kern_qkv *g, const struct kern_rows_map *map)
{
    struct attn a = {};

    if (map->n_rows == 0) {
        return;
    }
    if (kv->fmt != KERN_BF16 || g->head_dim % 8 != 0 || g->head_dim > CU_DIM_MAX) {
        cu_attention_plain(s, out, kv, qkv, g, map);
        return;
    }
    a.kv = *kv;
    a.g = *g;
    a.map = *map;
    a.qkv = qkv;
    a.out = (uint16_t *)out;
    a.head_chunk = g->group < CU_QUERIES ? g->group : (uint32_t)CU_QUERIES;
    a.n_chunks = div_up(g->group, a.head_chunk);
    switch (div_up(g->head_dim, 32)) {
    case 1:
        run<1>(s, a);
        break;
    case 2:
        run<2>(s, a);
        break;
    case 3:
        run<3>(s, a);
        break;
    case 4:
        run<4>(s, a);
        break;
    default:
        run<8>(s, a);
        break;
    }
}

void cu_ops_attention(struct kern_ops *ops)
{
    ops->attention = attention;
}
