/* kernels/cuda/attention_tile.cuh - which rows a block of prompt attention takes, and K and V on their way to
 * its shared memory: a ring of chunks of one size. attention_prompt.cu says why they are cut so.
 *
 * In shared memory a chunk lies as the lanes read it: 16 bytes a lane, a warp's 512 bytes in a row, without
 * bank conflicts. */
#ifndef KERNELS_CUDA_ATTENTION_TILE_CUH
#define KERNELS_CUDA_ATTENTION_TILE_CUH

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

/* Neighbouring rows of a sequence: a block's, or those of them that one of its warps takes. */
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

#endif
