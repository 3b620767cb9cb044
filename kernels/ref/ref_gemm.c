/* kernels/ref/ref_gemm.c - products: the specification (docs/numerics.md, "Products", "Leaves"). */
#include "kernels/layout.h"
#include "kernels/math.h"
#include "kernels/ref/ref.h"

/* x of one row, k0 <= k < k1, times one output's weights, from step `w` on. */
static float leaf_bf16(const uint16_t *x, const char *w, size_t step_bytes, uint32_t k0,
                       uint32_t k1)
{
    float acc = 0.0f;

    for (uint32_t k = k0; k < k1; k += 2, w += step_bytes) {
        const uint16_t *pair = (const uint16_t *)(const void *)w;
        const uint16_t x1 = k + 1 < k1 ? x[k + 1] : 0; /* an odd tail is padded with zero */

        acc = fmaf(bf16_to_f32(x1), bf16_to_f32(pair[1]), acc); /* what VDPBF16PS does */
        acc = fmaf(bf16_to_f32(x[k]), bf16_to_f32(pair[0]), acc);
    }
    return acc;
}

static float leaf_f32(const float *x, const char *w, size_t step_bytes, uint32_t k0, uint32_t k1)
{
    float acc = 0.0f;

    for (uint32_t k = k0; k < k1; k++, w += step_bytes) {
        acc = fmaf(x[k], *(const float *)(const void *)w, acc);
    }
    return acc;
}

void ref_gemm(struct kern_stream *s, float *y, const void *x, const struct kern_mat *w,
              uint32_t n_rows)
{
    const size_t n_steps = mat_steps(w);
    float sum[KERN_LEAVES_MAX] = { 0 };

    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        for (uint32_t n = 0; n < w->n; n++) {
            const struct mat_lane lane = mat_lane(w, n_steps, n);
            const char *at = lane.base;

            for (uint32_t i = 0; i < w->n_leaves; i++) {
                const uint32_t k0 = w->leaf[i], k1 = w->leaf[i + 1];

                if (w->fmt == KERN_BF16) {
                    const uint16_t *xt = (const uint16_t *)x + (size_t)t * w->k;

                    sum[i] = leaf_bf16(xt, at, lane.step_bytes, k0, k1);
                } else {
                    const float *xt = (const float *)x + (size_t)t * w->k;

                    sum[i] = leaf_f32(xt, at, lane.step_bytes, k0, k1);
                }
                at += mat_leaf_steps(w, i) * lane.step_bytes;
            }
            for (uint32_t d = 1; d < w->n_leaves; d *= 2) {
                for (uint32_t i = 0; i < w->n_leaves; i += 2 * d) {
                    sum[i] = sum[i] + sum[i + d];
                }
            }
            y[(size_t)t * w->n + n] = sum[0];
        }
    }
}
