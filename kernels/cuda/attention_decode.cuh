/* kernels/cuda/attention_decode.cuh - attention of rows that are alone in their sequence: the bound
 * is reading K and V once.
 *
 * A block takes one row and the query heads of one kv head; its warps take spans in turn, their
 * states meet in shared memory and are merged in ascending order. Where rows are too few to fill the
 * device with blocks, each block takes every n-th group of spans, leaves the states in scratch, and a
 * second kernel merges them: the same operations on the same numbers.
 *
 * Bytes: K and V of the row once per kv head. In flight: two blocks of 8 warps a multiprocessor. */
#ifndef KERNELS_CUDA_ATTENTION_DECODE_CUH
#define KERNELS_CUDA_ATTENTION_DECODE_CUH

#include "kernels/cuda/attention.cuh"

enum { DECODE_WARPS = 8 };

/* A query's state where it waits to be merged: m, l, o[D]. */
__device__ static inline size_t state_floats(const struct attn &a)
{
    return a.g.head_dim + 2;
}

/* This lane's part of the states of `n` queries to `to`[query][D + 2]. */
template <int DT>
__device__ static inline void put_states(const struct attn &a, float *to, uint32_t n,
                                         const struct state<DT> &st)
{
    const uint32_t g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;

#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        if (g + 8 * r < n) {
            float *q = to + (g + 8 * r) * state_floats(a);

            if (c == 0) {
                q[0] = st.m[r];
                q[1] = st.l[r];
            }
#pragma unroll
            for (uint32_t t = 0; t < DT * 4; t++) {
                if (t * 8 < a.g.head_dim) {
                    q[2 + t * 8 + 2 * c] = st.o[t][2 * r];
                    q[2 + t * 8 + 2 * c + 1] = st.o[t][2 * r + 1];
                }
            }
        }
    }
}

/* Merge the states of `n_spans` spans of `n` queries, `stride` floats apart, into all[query][D + 2].
 * The first of them is the state if `first`. A warp per query at a time, its state in registers, so
 * that the spans ahead are loaded while one is merged. */
__device__ static inline void merge_states(const struct attn &a, float *all, const float *spans,
                                           size_t stride, uint32_t n_spans, uint32_t n, bool first)
{
    constexpr uint32_t PARTS = CU_DIM_MAX / 32; /* dims of a lane */
    const uint32_t lane = threadIdx.x % 32, dim = a.g.head_dim;

    for (uint32_t q = threadIdx.x / 32; q < n; q += blockDim.x / 32) {
        float *to = all + q * state_floats(a);
        const float *from = spans + q * state_floats(a);
        const float *begin = first ? from : to;
        float m = begin[0], l = begin[1], o[PARTS];

#pragma unroll
        for (uint32_t i = 0; i < PARTS; i++) {
            o[i] = lane + i * 32 < dim ? begin[2 + lane + i * 32] : 0.0f;
        }
#pragma unroll 4
        for (uint32_t span = first ? 1 : 0; span < n_spans; span++) {
            const float *next = from + span * stride;
            float fa, fb;

            merge_factors(&m, &l, next[0], next[1], &fa, &fb);
#pragma unroll
            for (uint32_t i = 0; i < PARTS; i++) {
                if (lane + i * 32 < dim) {
                    o[i] = fmaf(o[i], fa, next[2 + lane + i * 32] * fb);
                }
            }
        }
        __syncwarp(); /* all lanes have read what was there */
        if (lane == 0) {
            to[0] = m;
            to[1] = l;
        }
#pragma unroll
        for (uint32_t i = 0; i < PARTS; i++) {
            if (lane + i * 32 < dim) {
                to[2 + lane + i * 32] = o[i];
            }
        }
    }
}

__device__ static inline void put_out(const struct attn &a, const float *all, uint32_t row,
                                      const struct heads &h)
{
    const uint32_t dim = a.g.head_dim;

    for (uint32_t i = threadIdx.x; i < (h.end - h.begin) * dim; i += blockDim.x) {
        const float *q = all + i / dim * state_floats(a);

        a.out[((size_t)row * a.g.n_heads + h.begin) * dim + i] = finish(q[2 + i % dim], q[1]);
    }
}

/* Ask for all of a span's K and V at once: lanes 2i and 2i + 1 for K and V of its block i. Where warps
 * are few, what one of them has under way is what the memory gives. */
__device__ static inline void prefetch_span(const struct attn &a, uint32_t row, uint32_t kv_head,
                                            uint32_t begin, uint32_t last)
{
    const uint32_t lane = threadIdx.x % 32, at = begin + lane / 2 * KERN_KV_BLOCK;

    if (lane / 2 < CU_SPAN / KERN_KV_BLOCK && at <= last) {
        const size_t base = cu_kv_base(&a.kv, block_of(a, row, at / KERN_KV_BLOCK), kv_head);
        const void *data = lane % 2 == 0 ? a.kv.k : a.kv.v;

        prefetch_l2((const uint16_t *)data + base, KERN_KV_BLOCK * a.g.head_dim * 2);
    }
}

/* blockIdx: row, kv head and chunk, part of the spans (SPLIT). */
template <int DT, bool SPLIT>
__global__ static void __launch_bounds__(DECODE_WARPS * 32, DT > 4 ? 1 : 2)
    attention_decode_kernel(const __grid_constant__ struct attn a)
{
    DYNAMIC_SHARED(float, shared); /* [1 + warps][head_chunk][D + 2]: all, then the warps' */
    const uint32_t warps = blockDim.x / 32;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, warp = threadIdx.x / 32;
    const uint32_t row = blockIdx.x, dim = a.g.head_dim;
    const struct heads h = heads_of(a, blockIdx.y);
    const uint32_t n = h.end - h.begin;
    const size_t stride = a.head_chunk * state_floats(a);

    begin_op();
    if (n == 0 || !is_single(a, row)) {
        return;
    }
    const uint32_t last = a.map.pos[row], pos[2] = { last, last };
    const uint32_t n_spans = last / CU_SPAN + 1;
    const float *q = a.qkv + (size_t)row * (a.g.n_heads + 2 * a.g.n_kv_heads) * dim;
    uint4 q_lo[DT], q_hi[DT];

#pragma unroll
    for (uint32_t i = 0; i < DT; i++) {
        const uint32_t d = i * 32 + c * 8;

        q_lo[i] = load_q(g < n ? q + (size_t)(h.begin + g) * dim : nullptr, d, dim);
        q_hi[i] = load_q(g + 8 < n ? q + (size_t)(h.begin + g + 8) * dim : nullptr, d, dim);
    }
    for (uint32_t at = blockIdx.z * warps; at < n_spans; at += gridDim.z * warps) {
        const uint32_t here = min(warps, n_spans - at);

        if (warp < here) {
            const uint32_t begin = (at + warp) * CU_SPAN;
            struct state<DT> st;

            if (a.is_few) {
                prefetch_span(a, row, h.kv, begin, last);
            }
            run_span<DT>(a, row, h.kv, q_lo, q_hi, pos, begin, min(begin + CU_SPAN, last + 1),
                         last + 1, &st);
            if (SPLIT) {
                const size_t i = ((size_t)row * gridDim.y + blockIdx.y) * a.n_spans + at + warp;

                put_states<DT>(a, a.states + i * stride, n, st);
            } else {
                put_states<DT>(a, shared + (1 + warp) * stride, n, st);
            }
        }
        if (!SPLIT) {
            __syncthreads();
            merge_states(a, shared, shared + stride, stride, here, n, at == 0);
            __syncthreads();
        }
    }
    if (!SPLIT) {
        put_out(a, shared, row, h);
    }
}

/* blockIdx: row, kv head and chunk. */
__global__ static void attention_merge_kernel(const __grid_constant__ struct attn a)
{
    DYNAMIC_SHARED(float, shared); /* [head_chunk][D + 2] */
    const uint32_t row = blockIdx.x;
    const struct heads h = heads_of(a, blockIdx.y);
    const size_t stride = a.head_chunk * state_floats(a);

    begin_op();
    if (h.begin == h.end || !is_single(a, row)) {
        return;
    }
    merge_states(a, shared, a.states + ((size_t)row * gridDim.y + blockIdx.y) * a.n_spans * stride,
                 stride, a.map.pos[row] / CU_SPAN + 1, h.end - h.begin, true);
    __syncthreads();
    put_out(a, shared, row, h);
}

template <int DT> static void cu_attention_decode(struct kern_stream *s, struct attn &a)
{
    const uint32_t parts = a.g.n_kv_heads * a.n_chunks, blocks = a.map.n_rows * parts;
    const size_t stride = (size_t)a.head_chunk * (a.g.head_dim + 2) * sizeof(float);

    a.n_spans = div_up((size_t)a.map.table_stride * KERN_KV_BLOCK, CU_SPAN);
    a.states = (float *)s->scratch;
    a.is_few = blocks < s->n_sm;
    if (blocks < 2 * s->n_sm && a.n_spans > DECODE_WARPS &&
        blocks * a.n_spans * stride <= SCRATCH_BYTES) {
        const uint32_t most = div_up(a.n_spans, DECODE_WARPS), want = div_up(4 * s->n_sm, blocks);

        cu_launch(s, "attention", attention_decode_kernel<DT, true>,
                  dim3(a.map.n_rows, parts, want < most ? want : most), DECODE_WARPS * 32, 0, a);
        cu_launch(s, "attention", attention_merge_kernel, dim3(a.map.n_rows, parts), 256, stride,
                  a);
    } else {
        /* Many heads of a great dim: as many warps as a block's shared memory has room for. */
        const uint32_t room = (uint32_t)(s->smem_max / stride) - 1;
        const uint32_t warps = room < DECODE_WARPS ? room : (uint32_t)DECODE_WARPS;

        cu_launch(s, "attention", attention_decode_kernel<DT, false>, dim3(a.map.n_rows, parts),
                  warps * 32, (1 + warps) * stride, a);
    }
}

#endif
