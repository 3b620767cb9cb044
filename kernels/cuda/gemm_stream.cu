/* kernels/cuda/gemm_stream.cu - bf16 and fp8 products with at most 16 rows: memory is the bound.
 *
 * A block owns 16 outputs (one run of weights) and all their inputs; its warps take the pieces in
 * turn, so that a run is read by several warps at once. Weights go straight from memory to the
 * fragments of the tensor cores: a lane's 16 bytes are the ones it needs, a warp reads 1,024 bytes in
 * a row, and UNROLL steps are asked for before the first is used. The first of them are asked for
 * before the op ahead has finished (weights do not change). x is small and comes through the
 * first-level cache. The pieces' sums meet in shared memory.
 *
 * fp8: 16 bytes a lane are a step's 8 inputs of two outputs; they become bf16 in registers, and a
 * group (4 steps) is summed alone and scaled into the piece. Two groups are asked for ahead.
 *
 * Assumes: n_rows <= 16. Bytes: W once; x once per block, from cache. In flight: 4 KiB a warp. */
#include "kernels/cuda/product.cuh"

enum { WARPS_MAX = 8, UNROLL = 4, SMEM_MAX = 96 << 10 };

/* Weights of `n` (<= UNROLL) steps from `at` on: this lane's rows g and g + 8. */
__device__ static inline void load_w(uint4 lo[UNROLL], uint4 hi[UNROLL], const char *at, uint32_t n)
{
#pragma unroll
    for (uint32_t u = 0; u < UNROLL; u++) {
        if (u < n) {
            lo[u] = load_once(at + u * CU_RUN_BYTES);
            hi[u] = load_once(at + u * CU_RUN_BYTES + 512);
        }
    }
}

/* One piece's sum for 16 outputs and 8 * TT rows. lo, hi hold its first steps already. */
template <int TT, bool ALIGNED>
__device__ static inline void run_piece(const struct product &p, const struct piece &q,
                                        const char *w, uint4 lo[UNROLL], uint4 hi[UNROLL],
                                        float acc[TT][4])
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const uint32_t n_steps = piece_steps(q), k_end = q.k0 + q.n_in;

    for (uint32_t at = 0; at < n_steps; at += UNROLL) {
        const uint32_t n = min((uint32_t)UNROLL, n_steps - at);
        const uint32_t more = n_steps - at - n;
        uint4 next_lo[UNROLL], next_hi[UNROLL];

        load_w(next_lo, next_hi, w + (size_t)(at + n) * CU_RUN_BYTES, min((uint32_t)UNROLL, more));
#pragma unroll
        for (uint32_t u = 0; u < UNROLL; u++) {
            if (u < n) {
                const uint32_t k = q.k0 + (at + u) * CU_STEP_BF16 + c * 8;

#pragma unroll
                for (int tt = 0; tt < TT; tt++) {
                    mma_step(acc[tt], lo[u], hi[u], load_x<ALIGNED>(p, tt * 8 + g, k, k_end));
                }
            }
        }
#pragma unroll
        for (uint32_t u = 0; u < UNROLL; u++) {
            lo[u] = next_lo[u];
            hi[u] = next_hi[u];
        }
    }
}

/* ---- fp8 ---- */

/* The steps of a group as they lie, and the scales of outputs g and g + 8. */
struct codes {
    uint4 step[UNROLL];
    float scale[2];
    uint32_t n_steps, i_step; /* of the piece; 0 steps: there is no such group */
};

/* The group behind `before` (n_steps 0 and i_step 0: the first one). */
__device__ static inline void load_group(struct codes *to, const struct codes &before,
                                         const struct piece &q, const char *w, const float *scales)
{
    const uint32_t i = before.i_step + before.n_steps, h = head_steps(q), n = piece_steps(q);
    const uint32_t group = i == 0 ? 0 : 1 + (i - h) / UNROLL;

    to->i_step = i;
    to->n_steps = i == 0 ? h : min((uint32_t)UNROLL, n - i);
#pragma unroll
    for (uint32_t u = 0; u < UNROLL; u++) {
        if (u < to->n_steps) {
            to->step[u] = load_once(w + (size_t)(i + u) * CU_RUN_BYTES_FP8);
        }
    }
    if (to->n_steps != 0) {
        to->scale[0] = scales[group * CU_RUN];
        to->scale[1] = scales[group * CU_RUN + 8];
    }
}

/* As run_piece. `scales` are output g's, of the piece's first group. */
template <int TT, bool ALIGNED>
__device__ static inline void run_piece_fp8(const struct product &p, const struct piece &q,
                                            const char *w, const float *scales, struct codes *now,
                                            struct codes *next, float sum[TT][4])
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;

    while (now->n_steps != 0) {
        struct codes after;
        float acc[TT][4] = {};

        load_group(&after, *next, q, w, scales);
#pragma unroll
        for (uint32_t u = 0; u < UNROLL; u++) {
            if (u < now->n_steps) {
                uint32_t k_end;
                const uint32_t k = step_input(q, now->i_step + u, &k_end) + c * 8;
                uint4 lo, hi;

                widen_step(now->step[u], &lo, &hi);
#pragma unroll
                for (int tt = 0; tt < TT; tt++) {
                    mma_step(acc[tt], lo, hi, load_x<ALIGNED>(p, tt * 8 + g, k, k_end));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < TT * 4; i++) {
            sum[i / 4][i % 4] = fmaf(acc[i / 4][i % 4], now->scale[i % 4 / 2], sum[i / 4][i % 4]);
        }
        *now = *next;
        *next = after;
    }
}

template <int TT, bool ALIGNED, bool FP8>
__global__ static void __launch_bounds__(WARPS_MAX * 32, 2)
    gemm_stream_kernel(const __grid_constant__ struct product p)
{
    DYNAMIC_SHARED(float, sums); /* [n_pieces][8 * TT rows][16 outputs] */
    constexpr uint32_t ROWS = 8 * TT;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, warp = threadIdx.x / 32;
    constexpr uint32_t STEP_BYTES = FP8 ? CU_RUN_BYTES_FP8 : CU_RUN_BYTES;
    const char *run = p.w + (size_t)blockIdx.x * p.n_steps * STEP_BYTES + lane * 16;
    const float *scales = p.scales + (size_t)blockIdx.x * p.n_groups * CU_RUN + g;
    bool waited = false;

    let_next_start();
    for (uint32_t i = warp; i < p.n_pieces; i += blockDim.x / 32) {
        const struct piece &q = p.piece[i];
        const char *w = run + (size_t)q.step0 * STEP_BYTES;
        float acc[TT][4] = {};

        if constexpr (FP8) {
            const float *s = scales + (size_t)q.group0 * CU_RUN;
            struct codes now, next, none = {};

            load_group(&now, none, q, w, s);
            load_group(&next, now, q, w, s);
            if (!waited) {
                wait_for_previous(); /* x is the op ahead's */
                waited = true;
            }
            run_piece_fp8<TT, ALIGNED>(p, q, w, s, &now, &next, acc);
        } else {
            uint4 lo[UNROLL], hi[UNROLL];

            load_w(lo, hi, w, min((uint32_t)UNROLL, piece_steps(q)));
            if (!waited) {
                wait_for_previous();
                waited = true;
            }
            run_piece<TT, ALIGNED>(p, q, w, lo, hi, acc);
        }
        float *out = sums + (size_t)i * ROWS * CU_RUN;

#pragma unroll
        for (int tt = 0; tt < TT; tt++) {
            out[(tt * 8 + 2 * c) * CU_RUN + g] = acc[tt][0];
            out[(tt * 8 + 2 * c + 1) * CU_RUN + g] = acc[tt][1];
            out[(tt * 8 + 2 * c) * CU_RUN + g + 8] = acc[tt][2];
            out[(tt * 8 + 2 * c + 1) * CU_RUN + g + 8] = acc[tt][3];
        }
    }
    if (!waited) {
        wait_for_previous();
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ROWS * CU_RUN; i += blockDim.x) {
        const uint32_t t = i / CU_RUN, n = blockIdx.x * CU_RUN + i % CU_RUN;

        if (t < p.n_rows && n < p.n) {
            p.y[(size_t)t * p.n + n] = fold_pieces(p, sums + i, ROWS * CU_RUN);
        }
    }
}

static size_t smem_bytes(const struct product &p)
{
    return (size_t)p.n_pieces * (p.n_rows <= 8 ? 8 : 16) * CU_RUN * sizeof(float);
}

bool cu_gemm_stream_fits(const struct product &p)
{
    return p.n_rows <= 16 && smem_bytes(p) <= SMEM_MAX;
}

template <int TT, bool ALIGNED, bool FP8>
static void launch(struct kern_stream *s, const struct product &p)
{
    const uint32_t most = p.n_pieces < WARPS_MAX ? p.n_pieces : (uint32_t)WARPS_MAX;
    const uint32_t warps = most != 0 ? most : 1;

    cu_launch(s, "gemm", gemm_stream_kernel<TT, ALIGNED, FP8>, dim3(div_up(p.n, CU_RUN)),
              warps * 32, smem_bytes(p), p);
}

template <bool FP8> static void choose(struct kern_stream *s, const struct product &p)
{
    if (p.n_rows <= 8) {
        p.aligned ? launch<1, true, FP8>(s, p) : launch<1, false, FP8>(s, p);
    } else {
        p.aligned ? launch<2, true, FP8>(s, p) : launch<2, false, FP8>(s, p);
    }
}

void cu_gemm_stream(struct kern_stream *s, const struct product &p)
{
    choose<false>(s, p);
}

void cu_gemm_stream_fp8(struct kern_stream *s, const struct product &p)
{
    choose<true>(s, p);
}
