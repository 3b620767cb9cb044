/* kernels/cuda/gemm_wgmma.cu - bf16 products of many rows on compute capability 9.0: tiles of 256 outputs by
 * 128 rows by wgmma.
 *
 * Only where kernels/cuda/agree.cu has seen this device's wgmma give mma.sync's bits: a piece's chain is the
 * other kernels' chain, from a +0 in registers, the same inputs in each instruction at the same places.
 *
 * Two groups of four warps; a group owns 128 outputs as two runs of 64, 128 sums a thread. Steps of
 * 32 inputs come as in gemm_tile.cu, by asynchronous copies into a ring of three stages. From there W goes
 * to registers, which are A as they lie (a warp's part of A is mma.sync's). x is written once more,
 * as wgmma reads B: of a lane's 16 bytes word [instruction s][half h] goes to the core matrix 2s + h of its 8
 * rows, so that each of four stores of a warp fills 128 bytes in a row. While the products of step j run,
 * step j + 3 is asked for and step j + 1 made ready; one barrier a step.
 *
 * At the end of a piece its sums meet those before it: in level 0, in shared memory, or in a higher one, in scratch.
 * Level 0 is the leaf's sum so far where a leaf has several pieces, else the lowest level of the tree. Blocks
 * stay for several tiles, since each has its own place in scratch.
 *
 * A step of a tile is 2 Mflop: 512 clocks of the tensor cores at their best. 24 KiB come from the
 * second-level cache. Shared memory: 24 KiB written by the copies, 24 read and 8 written by the warps, 32 read
 * by wgmma: 704 clocks. */
#include "kernels/cuda/product.cuh"

enum {
    OUTS = 256,
    ROWS = 128,
    THREADS = 256,
    HALVES = 2, /* of a group's outputs: 64 each */
    STAGES = 3,
    QUADS = HALVES * 16, /* a thread's sums, by four */
    LEVEL_BYTES = QUADS * THREADS * 16
};

/* A stage: W, x as they lie, x as wgmma reads it: [core matrix 2s + h][ROWS][16 bytes]. */
struct tile {
    static constexpr uint32_t BLOCK = THREADS, RUN_BYTES = CU_RUN_BYTES;
    static constexpr uint32_t W_BYTES = OUTS / CU_RUN * RUN_BYTES, X_BYTES = ROWS * 64;
    static constexpr uint32_t B_AT = W_BYTES + X_BYTES, PART_BYTES = ROWS * 16;
    static constexpr uint32_t STAGE_BYTES = B_AT + X_BYTES;
    static constexpr size_t SMEM_BYTES = STAGES * STAGE_BYTES + LEVEL_BYTES;
};

/* W of a step, this lane's: inputs 8c .. 8c + 7 of outputs g and g + 8 of each half. */
struct fragments {
    uint4 lo[HALVES], hi[HALVES];
};

__device__ static inline uint32_t after(uint32_t stage)
{
    return stage + 1 == STAGES ? 0 : stage + 1;
}

/* ---- a step ---- */

/* Its products, under way. */
__device__ static inline void issue(float acc[HALVES][64], const struct fragments &a, smem_at stage)
{
    const smem_at x = stage + tile::B_AT;
    const uint64_t b0 = wg_operand(x, tile::PART_BYTES, 128);
    const uint64_t b1 = wg_operand(x + 2 * tile::PART_BYTES, tile::PART_BYTES, 128);

    wg_fence();
#pragma unroll
    for (int m = 0; m < HALVES; m++) {
        wg_mma(acc[m], a.lo[m].x, a.hi[m].x, a.lo[m].y, a.hi[m].y, b0);
    }
#pragma unroll
    for (int m = 0; m < HALVES; m++) {
        wg_mma(acc[m], a.lo[m].z, a.hi[m].z, a.lo[m].w, a.hi[m].w, b1);
    }
    wg_commit();
}

/* They are done: acc may be read, and a and the stage written again. */
__device__ static inline void finish(float acc[HALVES][64], struct fragments *a)
{
    wg_wait();
#pragma unroll
    for (int i = 0; i < HALVES * 64; i++) {
        hold(acc[i / 64][i % 64]);
    }
#pragma unroll
    for (int m = 0; m < HALVES; m++) {
        hold(a->lo[m]);
        hold(a->hi[m]);
    }
}

/* W of a step that has come. */
__device__ static inline void read_w(struct fragments *a, smem_at stage)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const smem_at w = stage + (warp / 4 * 8 + warp % 4) * CU_RUN_BYTES + lane * 16;

#pragma unroll
    for (uint32_t m = 0; m < HALVES; m++) {
        a->lo[m] = read_16(w + m * 4 * CU_RUN_BYTES);
        a->hi[m] = read_16(w + m * 4 * CU_RUN_BYTES + 512);
    }
}

/* Its x, to where wgmma reads it. */
__device__ static inline void turn_x(smem_at stage)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;

#pragma unroll
    for (uint32_t i = 0; i < 2; i++) { /* 8 rows each */
        const uint32_t eight = warp + i * 8;
        const uint4 x = read_16(stage + tile::W_BYTES + eight * 512 + lane * 16);
        const smem_at to = stage + tile::B_AT + eight * 128 + lane * 4;

        write_4(to, x.x);
        write_4(to + tile::PART_BYTES, x.y);
        write_4(to + 2 * tile::PART_BYTES, x.z);
        write_4(to + 3 * tile::PART_BYTES, x.w);
    }
    publish_smem();
}

/* What a tile goes on with. */
struct flow {
    struct cursor load;
    struct fragments a;
    uint32_t run0, row0, stage; /* stage: of the step that comes next */
};

template <bool ALIGNED>
__device__ static inline void begin(const struct product &p, struct flow *f, smem_at ring)
{
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        fetch<tile, ALIGNED>(p, &f->load, f->run0, f->row0, ring + i * tile::STAGE_BYTES);
    }
    copies_wait<1>();
    __syncthreads(); /* the first two have come */
    read_w(&f->a, ring);
    turn_x(ring);
    __syncthreads(); /* the first is ready */
}

template <bool ALIGNED>
__device__ static inline void step(const struct product &p, struct flow *f, smem_at ring,
                                   float acc[HALVES][64])
{
    const smem_at stage = ring + f->stage * tile::STAGE_BYTES;
    struct fragments next;

    f->stage = after(f->stage);
    issue(acc, f->a, stage);
    turn_x(ring + f->stage * tile::STAGE_BYTES);
    /* Behind turn_x, in case its fence waits for copies too. All have read what lies there. */
    fetch<tile, ALIGNED>(p, &f->load, f->run0, f->row0, stage);
    /* Without a branch between this and the wait: ptxas would move registers of A before it, and
     * then start the products of a step one after the other (its note C7513). */
    read_w(&next, ring + f->stage * tile::STAGE_BYTES);
    copies_wait<1>();
    __syncthreads(); /* the step after this is ready, the one behind it has come */
    finish(acc, &f->a);
    f->a = next;
}

/* ---- sums ---- */

__device__ static inline void clear(float acc[HALVES][64])
{
#pragma unroll
    for (int i = 0; i < HALVES * 64; i++) {
        acc[i / 64][i % 64] = 0.0f;
    }
}

/* acc = level + acc */
__device__ static inline void add_level(float acc[HALVES][64], const float4 *level)
{
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const float4 v = level[i * THREADS];
        float *const a = &acc[i / 16][i % 16 * 4];

        a[0] = v.x + a[0];
        a[1] = v.y + a[1];
        a[2] = v.z + a[2];
        a[3] = v.w + a[3];
    }
}

__device__ static inline void put_level(float4 *level, const float acc[HALVES][64])
{
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const float *const a = &acc[i / 16][i % 16 * 4];

        level[i * THREADS] = make_float4(a[0], a[1], a[2], a[3]);
    }
}

/* This thread's. */
struct levels {
    float4 *in_smem, *in_scratch; /* level 0; the others one behind the other */
    uint32_t first;               /* level of single leaves */
};

__device__ static inline float4 *level_at(const struct levels &l, uint32_t i)
{
    return i == 0 ? l.in_smem : l.in_scratch + (size_t)(i - 1) * (LEVEL_BYTES / 16);
}

/* acc is the sum of leaf `leaf`, and then of as many leaves before it as are complete with it. */
__device__ static inline void close_leaf(float acc[HALVES][64], const struct levels &l,
                                         uint32_t leaf, uint32_t n_leaves)
{
    uint32_t d = 0;

#pragma unroll 1
    for (; leaf >> d & 1; d++) {
        add_level(acc, level_at(l, l.first + d));
    }
    if (leaf + 1 < n_leaves) {
        put_level(level_at(l, l.first + d), acc);
    }
}

/* ---- a tile ---- */

/* acc <- its sums. */
template <bool ALIGNED>
__device__ static inline void run_tile(const struct product &p, struct flow *f, smem_at ring,
                                       const struct levels &l, float acc[HALVES][64])
{
    uint32_t next = 0; /* leaf that has not been added yet */

    begin<ALIGNED>(p, f, ring);
    clear(acc);
#pragma unroll 1
    for (uint32_t piece = 0; piece < p.n_pieces; piece++) {
        const struct piece &q = p.piece[piece];
        const uint32_t n_steps = piece_steps(q);

        for (; next < q.leaf; next++) { /* leaves without inputs */
            close_leaf(acc, l, next, p.n_leaves);
            clear(acc);
        }
#pragma unroll 1
        for (uint32_t i = 0; i < n_steps; i++) {
            step<ALIGNED>(p, f, ring, acc);
        }
        if (!q.first) {
            add_level(acc, l.in_smem);
        }
        if (!q.last) {
            put_level(l.in_smem, acc);
        } else {
            close_leaf(acc, l, next++, p.n_leaves);
        }
        if (piece + 1 < p.n_pieces) {
            clear(acc);
        }
    }
    for (; next < p.n_leaves; next++) { /* and those behind the last one with inputs */
        clear(acc);
        close_leaf(acc, l, next, p.n_leaves);
    }
}

__device__ static inline void store_tile(const struct product &p, const float acc[HALVES][64],
                                         const struct flow &f)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t n0 = (f.run0 + warp / 4 * 8 + warp % 4) * CU_RUN + lane / 4;
    const uint32_t t0 = f.row0 + lane % 4 * 2;

#pragma unroll
    for (int i = 0; i < HALVES * 64; i++) {
        const int m = i / 64, j = i / 4 % 16, e = i % 4;
        const uint32_t n = n0 + m * 64 + e / 2 * 8, row = t0 + j * 8 + e % 2;

        if (row < p.n_rows && n < p.n) {
            p.y[(size_t)row * p.n + n] = acc[m][i % 64];
        }
    }
}

template <bool ALIGNED>
__global__ static void __launch_bounds__(THREADS, 1)
    gemm_wgmma_kernel(const __grid_constant__ struct product p, uint32_t first_level,
                      uint32_t n_in_scratch, uint32_t n_row_tiles, uint32_t n_out_tiles)
{
    DYNAMIC_SHARED(char, ring);
    float4 *const in_smem = (float4 *)(ring + STAGES * tile::STAGE_BYTES);
    float4 *const in_scratch =
        (float4 *)p.sums + (size_t)blockIdx.x * n_in_scratch * (LEVEL_BYTES / 16);
    const struct levels levels = { in_smem + threadIdx.x, in_scratch + threadIdx.x, first_level };

    if (!HAVE_WGMMA) {
        return;
    }
    begin_op();
#pragma unroll 1
    for (uint32_t i = blockIdx.x; i < n_row_tiles * n_out_tiles; i += gridDim.x) {
        float acc[HALVES][64];
        struct flow f;
        uint32_t row_tile, out_tile;

        tile_of(i, n_row_tiles, n_out_tiles, &row_tile, &out_tile);
        f.load = { 0, 0, p.n_pieces };
        f.run0 = out_tile * (OUTS / CU_RUN);
        f.row0 = row_tile * ROWS;
        f.stage = 0;
        run_tile<ALIGNED>(p, &f, smem_of(ring), levels, acc);
        store_tile(p, acc, f);
    }
}

/* ---- choosing ---- */

/* Levels that sums wait in: of the tree, and one more where leaves have several pieces. */
static uint32_t levels_of(const struct product &p, bool *several_p)
{
    uint32_t n = 0;

    *several_p = false;
    for (uint32_t i = 0; i < p.n_pieces; i++) {
        *several_p = *several_p || !p.piece[i].last;
    }
    for (; p.n_leaves > 1u << n; n++) {
    }
    return n + *several_p;
}

/* Blocks: one a multiprocessor, if scratch has room for the levels that are not in shared memory. */
static uint32_t blocks_of(const struct kern_stream *s, const struct product &p)
{
    bool several;
    const uint32_t n = levels_of(p, &several);
    const uint32_t room = n > 1 ? SCRATCH_BYTES / ((n - 1) * LEVEL_BYTES) : s->n_sm;

    return room < s->n_sm ? room : s->n_sm;
}

static uint32_t n_tiles(const struct product &p)
{
    return div_up(p.n_rows, ROWS) * div_up(p.n, OUTS);
}

/* As tiles of 256 rows by mma.sync: worth it where it takes at most 5/8 of the waves of tiles half as large. */
bool cu_gemm_wgmma_pays(const struct kern_stream *s, const struct product &p)
{
    const uint32_t waves = div_up(n_tiles(p), blocks_of(s, p));
    const uint32_t waves_128 = div_up((size_t)div_up(p.n_rows, 128) * div_up(p.n, 128), s->n_sm);

    return waves * 8 <= waves_128 * 5;
}

size_t cu_gemm_wgmma_smem()
{
    return tile::SMEM_BYTES;
}

void cu_gemm_wgmma(struct kern_stream *s, struct product &p)
{
    bool several;
    const uint32_t n_levels = levels_of(p, &several);
    const uint32_t tiles = n_tiles(p), blocks = blocks_of(s, p);

    p.sums = (float *)s->scratch;
    cu_launch(s, "gemm", p.aligned ? gemm_wgmma_kernel<true> : gemm_wgmma_kernel<false>,
              dim3(tiles < blocks ? tiles : blocks), THREADS, tile::SMEM_BYTES, p,
              (uint32_t)several, n_levels > 1 ? n_levels - 1 : 0u, div_up(p.n_rows, ROWS),
              div_up(p.n, OUTS));
}
