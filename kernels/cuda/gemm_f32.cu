/* kernels/cuda/gemm_f32.cu - products of f32, in the CPU's own order: one chain of fma per leaf,
 * inputs ascending, then the tree over leaves.
 *
 * For comparing and for small models, not for speed: an output is one thread's whole sum, so few
 * rows leave most of a device idle. A block takes 128 outputs and ROWS rows. */
#include "kernels/cuda/product.cuh"

enum { THREADS = 128, ROWS = 4 };

/* acc[r] += 4 inputs of a step; x_r of them may be past the leaf's end (n < 4). */
__device__ static inline void add_step(float acc[ROWS], const float4 &w, const float *const x[ROWS],
                                       uint32_t k, uint32_t n)
{
    const float in[4] = { w.x, w.y, w.z, w.w };

#pragma unroll
    for (uint32_t i = 0; i < CU_STEP_F32; i++) {
        if (i < n) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                acc[r] = fmaf(x[r][k + i], in[i], acc[r]);
            }
        }
    }
}

__global__ static void __launch_bounds__(THREADS)
    gemm_f32_kernel(float *y, const float *x, const __grid_constant__ struct kern_mat w,
                    uint32_t n_steps, uint32_t n_rows)
{
    const uint32_t n = blockIdx.x * THREADS + threadIdx.x, t0 = blockIdx.y * ROWS;
    const char *at = (const char *)w.data + cu_mat_at(KERN_F32, n_steps, n, 0, 0);
    struct tree<LEVELS> tree[ROWS];
    const float *row[ROWS];
    float all[ROWS];

    begin_op();
    if (n >= w.n) {
        return;
    }
    for (int r = 0; r < ROWS; r++) { /* rows past the end repeat the last one */
        row[r] = x + (size_t)min(t0 + r, n_rows - 1) * w.k;
    }
    for (uint32_t i = 0; i < w.n_leaves; i++) {
        float acc[ROWS] = {};

        for (uint32_t k = w.leaf[i]; k < w.leaf[i + 1]; k += CU_STEP_F32) {
            const uint32_t left = w.leaf[i + 1] - k;

            add_step(acc, *(const float4 *)at, row, k, left);
            at += CU_RUN_BYTES_F32;
        }
        for (int r = 0; r < ROWS; r++) {
            all[r] = tree_add(&tree[r], i, acc[r]);
        }
    }
    for (uint32_t r = 0; r < ROWS && t0 + r < n_rows; r++) {
        y[(size_t)(t0 + r) * w.n + n] = all[r];
    }
}

void cu_gemm_f32(struct kern_stream *s, float *y, const float *x, const struct kern_mat *w,
                 uint32_t n_rows)
{
    cu_launch(s, "gemm", gemm_f32_kernel, dim3(div_up(w->n, THREADS), div_up(n_rows, ROWS)),
              THREADS, 0, y, x, *w, cu_leaf_step(w, w->n_leaves), n_rows);
}
