/* kernels/cuda/gemm_tile.cu - bf16 and fp8 products with many rows: tiles of 128 outputs by ROWS rows.
 *
 * A block walks the steps of 32 inputs in order; a ring of STAGES steps of W and x is filled by
 * asynchronous copies. Both lie in shared memory as the lanes read them: a warp's load of 16 bytes a
 * lane is 512 bytes in a row, without bank conflicts, for W (packed so) and for x (8 rows of 64
 * bytes). Sums of a piece stay in registers; at its end they go into the leaf's sum, at a leaf's end
 * into the tree (in local memory: it is used once per leaf).
 *
 * Where tiles are too few to fill the device (17 to some 100 rows), blocks take one group of
 * pieces each (a leaf, or a segment of the only leaf), leave its sum in scratch, and a second kernel
 * folds the groups: the same additions.
 *
 * fp8 lies in shared memory as codes; a warp turns them into bf16 when it reads them (so a code is
 * converted once by each warp that shares its outputs), sums a group and scales it into the piece.
 *
 * Assumes nothing about n_rows. Bytes: W once per ROWS rows, x once per 128 outputs, mostly from the
 * second-level cache. Shared memory at 128 rows, per Mflop (a tile's step of 32): 48 KiB read by the
 * warps, 16 KiB written by the copies; at 256 rows 32 and 12 KiB. */
#include "kernels/cuda/product.cuh"

enum { OUTS = 128, RUNS = OUTS / CU_RUN, THREADS = 256, WARPS = 8 };

/* Tile: ROWS rows; WN warps over outputs, WARPS / WN over rows. The leaves' sums of 256 rows do not fit
 * in registers beside the pieces': they lie in shared memory behind the ring (IN_SMEM), where they are
 * touched once per piece, a thread its own column. */
template <int ROWS_, int WN_, int STAGES_, bool FP8_ = false> struct shape {
    static constexpr bool FP8 = FP8_;
    static constexpr uint32_t BLOCK = THREADS; /* threads that copy */
    static constexpr int ROWS = ROWS_, WN = WN_, WT = WARPS / WN_, STAGES = STAGES_;
    static constexpr int MT = RUNS / WN;     /* runs of 16 outputs of a warp */
    static constexpr int TT = ROWS / 8 / WT; /* groups of 8 rows of a warp */
    static constexpr uint32_t RUN_BYTES = FP8 ? CU_RUN_BYTES_FP8 : CU_RUN_BYTES;
    static constexpr uint32_t W_BYTES = RUNS * RUN_BYTES, X_BYTES = ROWS * 64;
    static constexpr uint32_t STEP_BYTES = W_BYTES + X_BYTES;
    static constexpr int SUMS = MT * TT * 4; /* outputs of a thread */
    static constexpr bool IN_SMEM = ROWS > 128;
    static constexpr int TREE = IN_SMEM ? 4 : LEVELS; /* levels: of 8 leaves at most */
    static constexpr size_t SMEM_BYTES =
        (size_t)STAGES * STEP_BYTES + (IN_SMEM ? SUMS * THREADS * sizeof(float) : 0);
};

/* One step: acc[m][t] += W tile times x tile. */
template <class S> __device__ static inline void multiply(float acc[S::MT][S::TT][4], smem_at smem)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const smem_at w = smem + warp % S::WN * S::MT * S::RUN_BYTES + lane * 16;
    const smem_at x = smem + S::W_BYTES + warp / S::WN * S::TT * 512 + lane * 16;
    uint4 b[S::TT];

#pragma unroll
    for (int t = 0; t < S::TT; t++) {
        b[t] = read_16(x + t * 512);
    }
#pragma unroll
    for (int m = 0; m < S::MT; m++) {
        uint4 lo = read_16(w + m * S::RUN_BYTES), hi;

        if constexpr (S::FP8) {
            const uint4 codes = lo;

            widen_step(codes, &lo, &hi);
        } else {
            hi = read_16(w + m * S::RUN_BYTES + 512);
        }
#pragma unroll
        for (int t = 0; t < S::TT; t++) {
            mma(acc[m][t], lo.x, hi.x, lo.y, hi.y, b[t].x, b[t].y);
        }
#pragma unroll
        for (int t = 0; t < S::TT; t++) {
            mma(acc[m][t], lo.z, hi.z, lo.w, hi.w, b[t].z, b[t].w);
        }
    }
}

/* fp8: the scales of a group for this warp's outputs g and g + 8 of each run. Runs past the end
 * repeat the last one. */
template <class S>
__device__ static inline void load_scales(const struct product &p, uint32_t run0, uint32_t group,
                                          float scale[S::MT][2])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t last = (p.n + CU_RUN - 1) / CU_RUN - 1;

#pragma unroll
    for (int m = 0; m < S::MT; m++) {
        const uint32_t run = min(run0 + warp % S::WN * S::MT + m, last);
        const float *at = p.scales + ((size_t)run * p.n_groups + group) * CU_RUN + lane / 4;

        scale[m][0] = at[0];
        scale[m][1] = at[8];
    }
}

/* fp8: a group is done. sum = fma(acc, scale, sum); acc is +0 again. */
template <class S>
__device__ static inline void close_group(float acc[S::MT][S::TT][4], const float scale[S::MT][2],
                                          float sum[S::MT][S::TT][4])
{
#pragma unroll
    for (int i = 0; i < S::MT * S::TT * 4; i++) {
        const int m = i / (S::TT * 4), t = i / 4 % S::TT, e = i % 4;

        sum[m][t][e] = fmaf(acc[m][t][e], scale[m][e / 2], sum[m][t][e]);
        acc[m][t][e] = 0.0f;
    }
}

/* The trees of a thread's outputs. In local memory, because a level is chosen at run time; the
 * leaves' own sums are therefore kept apart, in registers. */
template <class S> struct trees {
    struct tree<S::TREE> at[S::MT][S::TT][4];
    uint32_t next; /* leaf that has not been added yet */
};

/* A piece is done: its sum into the leaf's, at the leaf's end that into the tree; `leaf` is then the
 * sum of all leaves so far. acc is +0 again. */
template <class S>
__device__ static inline void close_piece(struct trees<S> *trees, const struct piece &q,
                                          float acc[S::MT][S::TT][4], float leaf[S::MT][S::TT][4])
{
#pragma unroll
    for (int i = 0; i < S::MT * S::TT * 4; i++) {
        const int m = i / (S::TT * 4), t = i / 4 % S::TT, e = i % 4;

        leaf[m][t][e] = q.first ? acc[m][t][e] : leaf[m][t][e] + acc[m][t][e];
        acc[m][t][e] = 0.0f;
    }
    if (!q.last) {
        return;
    }
    for (; trees->next <= q.leaf; trees->next++) { /* those before q.leaf have no inputs */
#pragma unroll
        for (int i = 0; i < S::MT * S::TT * 4; i++) {
            const int m = i / (S::TT * 4), t = i / 4 % S::TT, e = i % 4;
            const bool empty = trees->next < q.leaf;
            const float all =
                tree_add(&trees->at[m][t][e], trees->next, empty ? 0.0f : leaf[m][t][e]);

            leaf[m][t][e] = empty ? leaf[m][t][e] : all;
        }
    }
}

/* The same where the leaves' sums are in shared memory: sum i of this thread at leaf[i * THREADS]. Only
 * acc must be unrolled, since nothing else is in registers. */
template <class S>
__device__ static inline void close_piece_smem(struct trees<S> *trees, const struct piece &q,
                                               uint32_t n_leaves, float acc[S::MT][S::TT][4],
                                               float *leaf)
{
#pragma unroll
    for (int i = 0; i < S::SUMS; i++) {
        float *const a = &acc[i / (S::TT * 4)][i / 4 % S::TT][i % 4];

        leaf[i * THREADS] = q.first ? *a : leaf[i * THREADS] + *a;
        *a = 0.0f;
    }
    if (!q.last) {
        return;
    }
    if (n_leaves == 1) { /* no tree */
        trees->next = 1;
        return;
    }
    for (; trees->next <= q.leaf; trees->next++) {
        const bool empty = trees->next < q.leaf;

#pragma unroll 1
        for (int i = 0; i < S::SUMS; i++) {
            struct tree<S::TREE> *const tree = &trees->at[i / (S::TT * 4)][i / 4 % S::TT][i % 4];
            const float all = tree_add(tree, trees->next, empty ? 0.0f : leaf[i * THREADS]);

            leaf[i * THREADS] = empty ? leaf[i * THREADS] : all;
        }
    }
}

template <class S>
__device__ static inline void close_product_smem(struct trees<S> *trees, uint32_t n_leaves,
                                                 float *leaf)
{
    for (; trees->next < n_leaves; trees->next++) {
#pragma unroll 1
        for (int i = 0; i < S::SUMS; i++) {
            struct tree<S::TREE> *const tree = &trees->at[i / (S::TT * 4)][i / 4 % S::TT][i % 4];

            leaf[i * THREADS] = tree_add(tree, trees->next, 0.0f);
        }
    }
}

/* Leaves after the last one with inputs. */
template <class S>
__device__ static inline void close_product(struct trees<S> *trees, uint32_t n_leaves,
                                            float leaf[S::MT][S::TT][4])
{
    for (; trees->next < n_leaves; trees->next++) {
#pragma unroll
        for (int i = 0; i < S::MT * S::TT * 4; i++) {
            const int m = i / (S::TT * 4), t = i / 4 % S::TT, e = i % 4;

            leaf[m][t][e] = tree_add(&trees->at[m][t][e], trees->next, 0.0f);
        }
    }
}

/* blockIdx.y: the group of pieces [group_first[y], group_first[y + 1]); with one group, y is
 * written, with several the groups' sums. */
struct groups {
    uint32_t n;
    uint8_t first[PIECES_MAX + 1];
};

template <class S, bool ALIGNED>
__global__ static void __launch_bounds__(THREADS, S::ROWS > 64 ? 1 : 2)
    gemm_tile_kernel(const __grid_constant__ struct product p,
                     const __grid_constant__ struct groups groups, uint32_t n_row_tiles,
                     uint32_t n_out_tiles)
{
    DYNAMIC_SHARED(char, ring);
    const smem_at base = smem_of(ring);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t first = groups.first[blockIdx.y], end = groups.first[blockIdx.y + 1];
    struct cursor load = { first, 0, end };
    float acc[S::MT][S::TT][4] = {};
    float sum[S::MT][S::TT][4] = {}; /* fp8: of the piece's groups */
    float leaf[S::MT][S::TT][4] = {};
    float *const kept = (float *)(ring + S::STAGES * S::STEP_BYTES) + threadIdx.x; /* IN_SMEM */
    float(*const done)[S::TT][4] = S::FP8 ? sum : acc; /* a piece's sum at its end */
    struct trees<S> trees;
    uint32_t row_tile, out_tile, stage = 0;

    tile_of(blockIdx.x, n_row_tiles, n_out_tiles, &row_tile, &out_tile);
    trees.next = 0;
    begin_op();
    for (int i = 0; i < S::STAGES - 1; i++) {
        fetch<S, ALIGNED>(p, &load, out_tile * RUNS, row_tile * S::ROWS, base + i * S::STEP_BYTES);
    }
    for (uint32_t piece = first; piece < end; piece++) {
        const struct piece &q = p.piece[piece];

        const uint32_t n_steps = piece_steps(q);
        uint32_t group = q.group0;
        float scale[S::MT][2];

        for (uint32_t i = 0; i < n_steps; i++) {
            if (S::FP8 && (i == 0 || ends_group(q, i - 1))) {
                load_scales<S>(p, out_tile * RUNS, group++, scale);
            }
            copies_wait<S::STAGES - 2>();
            __syncthreads(); /* this step has come; the one before has been read by all */
            const uint32_t free = stage == 0 ? S::STAGES - 1 : stage - 1;

            fetch<S, ALIGNED>(p, &load, out_tile * RUNS, row_tile * S::ROWS,
                              base + free * S::STEP_BYTES);
            multiply<S>(acc, base + stage * S::STEP_BYTES);
            stage = stage + 1 == S::STAGES ? 0 : stage + 1;
            if (S::FP8 && ends_group(q, i)) {
                close_group<S>(acc, scale, sum);
            }
        }
        if constexpr (S::IN_SMEM) { /* never in groups */
            close_piece_smem<S>(&trees, q, p.n_leaves, acc, kept);
        } else if (groups.n == 1) {
            close_piece<S>(&trees, q, done, leaf);
        } else { /* a group is one leaf or one piece: no tree inside */
#pragma unroll
            for (int i = 0; i < S::MT * S::TT * 4; i++) {
                const int m = i / (S::TT * 4), t = i / 4 % S::TT, e = i % 4;

                leaf[m][t][e] = piece == first ? done[m][t][e] : leaf[m][t][e] + done[m][t][e];
                done[m][t][e] = 0.0f;
            }
        }
    }
    if constexpr (S::IN_SMEM) {
        close_product_smem<S>(&trees, p.n_leaves, kept);
    } else if (groups.n == 1) {
        close_product<S>(&trees, p.n_leaves, leaf);
    }
    float *out = groups.n == 1 ? p.y : p.sums + (size_t)blockIdx.y * p.n_rows * p.n;
    const uint32_t n0 = out_tile * OUTS + warp % S::WN * S::MT * CU_RUN + lane / 4;
    const uint32_t t0 = row_tile * S::ROWS + warp / S::WN * S::TT * 8 + lane % 4 * 2;

#pragma unroll
    for (int i = 0; i < S::MT * S::TT * 4; i++) {
        const int m = i / (S::TT * 4), t = i / 4 % S::TT, e = i % 4;
        const uint32_t n = n0 + m * CU_RUN + e / 2 * 8, row = t0 + t * 8 + e % 2;

        if (row < p.n_rows && n < p.n) {
            out[(size_t)row * p.n + n] = S::IN_SMEM ? kept[i * THREADS] : leaf[m][t][e];
        }
    }
}

/* y <- the groups' sums, folded as the pieces of a product. */
__global__ static void fold_kernel(const __grid_constant__ struct product p)
{
    const size_t n = (size_t)p.n_rows * p.n;

    begin_op();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        p.y[i] = fold_pieces(p, p.sums + i, n);
    }
}

/* ---- choosing ---- */

/* One group for all, or a leaf (the only leaf: a segment) each where tiles are fewer than `fill`, and
 * the sums fit in scratch. */
static void group_pieces(const struct product &p, uint32_t n_tiles, uint32_t fill,
                         struct groups *groups)
{
    const bool by_leaf = p.n_leaves > 1;
    uint32_t n = 0;

    for (uint32_t i = 0; i < p.n_pieces; i++) {
        if (!by_leaf || p.piece[i].first) {
            groups->first[n++] = (uint8_t)i;
        }
    }
    groups->first[n] = (uint8_t)p.n_pieces;
    groups->n = n;
    if (n <= 1 || n_tiles >= fill || (size_t)n * p.n_rows * p.n * sizeof(float) > SCRATCH_BYTES) {
        *groups = {};
        groups->n = 1;
        groups->first[1] = (uint8_t)p.n_pieces;
    }
}

/* The product whose pieces are the groups, for fold_kernel. */
static struct product of_groups(const struct product &p, const struct groups &groups)
{
    struct product q = p;

    q.n_pieces = groups.n;
    for (uint32_t i = 0; i < groups.n; i++) {
        q.piece[i] = p.piece[groups.first[i]];
        if (p.n_leaves > 1) { /* a group is a whole leaf */
            q.piece[i].first = q.piece[i].last = 1;
        }
    }
    return q;
}

template <class S> static void run(struct kern_stream *s, struct product &p)
{
    const uint32_t n_row_tiles = div_up(p.n_rows, S::ROWS), n_out_tiles = div_up(p.n, OUTS);
    struct groups groups = {};

    /* Up to 64 rows the bound is memory. A block of bf16 has 40 KiB of W under way, which is what a
     * multiprocessor needs: a block and a bit for each is enough, and groups cost their sums. */
    const uint32_t fill = S::ROWS > 64 || S::FP8 ? 2 * s->n_sm : s->n_sm + div_up(s->n_sm, 4);

    group_pieces(p, n_row_tiles * n_out_tiles, S::IN_SMEM ? 0 : fill, &groups);
    p.sums = (float *)s->scratch;
    cu_launch(s, "gemm", p.aligned ? gemm_tile_kernel<S, true> : gemm_tile_kernel<S, false>,
              dim3(n_row_tiles * n_out_tiles, groups.n), THREADS, S::SMEM_BYTES, p, groups,
              n_row_tiles, n_out_tiles);
    if (groups.n > 1) {
        cu_launch(s, "gemm", fold_kernel, dim3(s->n_sm * 8), 256, 0, of_groups(p, groups));
    }
}

using wide = shape<256, 2, 4>;

/* Tiles of 256 rows: two thirds of the shared memory's traffic for the same products. Worth it where
 * the device is filled by them as well: 0.8 of the time that two tiles of 128 rows take. */
static bool is_wide(const struct kern_stream *s, const struct product &p)
{
    const uint32_t n_out_tiles = div_up(p.n, OUTS);
    const uint32_t waves = div_up((size_t)div_up(p.n_rows, 256) * n_out_tiles, s->n_sm);
    const uint32_t waves_128 = div_up((size_t)div_up(p.n_rows, 128) * n_out_tiles, s->n_sm);

    /* More leaves would need more local memory than the driver had better set aside (README.md). */
    return s->smem_max >= wide::SMEM_BYTES && p.n_leaves <= 8 && waves * 8 <= waves_128 * 5;
}

void cu_gemm_tile(struct kern_stream *s, struct product &p)
{
    if (p.n_rows <= 32) {
        run<shape<32, 8, 6>>(s, p);
    } else if (p.n_rows <= 64 || s->smem_max < shape<128, 2, 8>::SMEM_BYTES) {
        run<shape<64, 4, 6>>(s, p);
    } else if (s->wgmma && cu_gemm_wgmma_pays(s, p)) {
        cu_gemm_wgmma(s, p);
    } else if (is_wide(s, p)) {
        run<wide>(s, p);
    } else {
        run<shape<128, 2, 8>>(s, p);
    }
}

/* Tiles of 128 rows would hold three sums an output: more registers than there are. */
void cu_gemm_tile_fp8(struct kern_stream *s, struct product &p)
{
    if (p.n_rows <= 32) {
        run<shape<32, 8, 6, true>>(s, p);
    } else {
        run<shape<64, 4, 6, true>>(s, p);
    }
}
