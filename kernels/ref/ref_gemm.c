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

/* Group by group: scales, then codes. *w_p goes behind the leaf. */
static float leaf_fp8(const uint16_t *x, const struct kern_mat *w, uint32_t leaf, const char **w_p,
                      const struct mat_panel *p)
{
    const char *at = *w_p; /* of the panel, not of the output */
    float sum = 0.0f;

    for (uint32_t k = w->leaf[leaf], end; k < w->leaf[leaf + 1]; k = end) {
        const float scale = ((const float *)(const void *)at)[p->lane];
        float acc = 0.0f;

        end = kern_group_end(w, leaf, k);
        at += p->width * sizeof(float);
        for (uint32_t i = k; i < end; i += 2, at += p->width * 2u) {
            const uint8_t *pair = (const uint8_t *)at + p->lane * 2u;
            const uint16_t x1 = i + 1 < end ? x[i + 1] : 0;

            acc = fmaf(bf16_to_f32(x1), e4m3_to_f32(pair[1]), acc);
            acc = fmaf(bf16_to_f32(x[i]), e4m3_to_f32(pair[0]), acc);
        }
        sum = fmaf(acc, scale, sum);
    }
    *w_p = at;
    return sum;
}

/* The sum of one leaf, whose first step's panel is at *w_p; that goes behind the leaf. */
static float leaf_sum(const void *x_row, const struct kern_mat *w, uint32_t leaf, const char **w_p,
                      const struct mat_panel *p)
{
    const uint32_t k0 = w->leaf[leaf], k1 = w->leaf[leaf + 1];
    const char *at = *w_p + p->lane * 4u;

    if (w->fmt == KERN_FP8) {
        return leaf_fp8(x_row, w, leaf, w_p, p);
    }
    *w_p += mat_leaf_bytes(w, leaf) * p->width;
    return w->fmt == KERN_BF16 ? leaf_bf16(x_row, at, p->width * 4u, k0, k1)
                               : leaf_f32(x_row, at, p->width * 4u, k0, k1);
}

void ref_gemm(struct kern_stream *s, float *y, const void *x, const struct kern_mat *w,
              uint32_t n_rows)
{
    const size_t output_bytes = mat_output_bytes(w), x_bytes = w->k * fmt_bytes(w->fmt);
    float sum[KERN_LEAVES_MAX] = { 0 };

    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        for (uint32_t n = 0; n < w->n; n++) {
            const struct mat_panel panel = mat_panel(w, output_bytes, n);
            const char *at = panel.base;

            for (uint32_t i = 0; i < w->n_leaves; i++) {
                sum[i] = leaf_sum((const char *)x + t * x_bytes, w, i, &at, &panel);
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
