/* kernels/quant.c - see quant.h. Runs once at load; written so that compilers make vectors of it. */
#include "kernels/quant.h"

#include "kernels/src.h"

#include <string.h>

/* `n` elements of a row from element k on, as f32. */
static void widen(const struct kern_rows *rows, const char *row, uint32_t k, uint32_t n, float *out)
{
    const char *at = row + k * src_bytes(rows->type);

    if (rows->type == KERN_SRC_F32) {
        memcpy(out, at, n * sizeof *out);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        out[i] = src_f32(rows->type, at, i);
    }
}

/* The largest |x[i]| as bits, which order as the numbers do; a NaN is above all. */
static uint32_t largest(const float *x, uint32_t n)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t u = f32_bits(x[i]) & 0x7fffffffu;

        most = u > most ? u : most;
    }
    return most;
}

static bool quant_group(const float *x, uint32_t n, uint8_t *codes, float *scale_p)
{
    const uint32_t most = largest(x, n);
    const float scale = f32_from_bits(most) / E4M3_MAX;

    if (most >= 0x7f800000u) {
        return false;
    }
    if (!(scale >= MATH_FLT_MIN)) {
        *scale_p = 0.0f;
        memset(codes, 0, n);
        return true;
    }
    *scale_p = scale;
    for (uint32_t i = 0; i < n; i++) {
        codes[i] = e4m3_from_f32(x[i] / scale);
    }
    return true;
}

static uint32_t first_bad(const float *x) /* there is one */
{
    uint32_t i = 0;

    while ((f32_bits(x[i]) & 0x7f800000u) != 0x7f800000u) {
        i++;
    }
    return i;
}

bool quant_rows(const struct kern_mat *mat, const struct kern_rows *rows, uint8_t *codes,
                float *scales, struct quant_bad *bad_p)
{
    const size_t row_bytes = rows->ld * src_bytes(rows->type);
    float x[KERN_GROUP] = { 0 };

    for (uint32_t r = 0; r < rows->n_rows; r++) {
        const char *row = (const char *)rows->data + r * row_bytes;

        for (uint32_t leaf = 0; leaf < mat->n_leaves; leaf++) {
            for (uint32_t k = mat->leaf[leaf], end; k < mat->leaf[leaf + 1]; k = end) {
                end = kern_group_end(mat, leaf, k);
                widen(rows, row, k, end - k, x);
                if (!quant_group(x, end - k, codes + k, scales++)) {
                    *bad_p = (struct quant_bad){ r, k + first_bad(x) };
                    return false;
                }
            }
        }
        codes += mat->k;
    }
    return true;
}

bool quant_check(const uint8_t *codes, uint32_t n_rows, uint32_t k, struct quant_bad *bad_p)
{
    const size_t n = (size_t)n_rows * k;

    for (size_t at = 0; at < n; at += 4096) {
        const size_t end = n - at < 4096 ? n : at + 4096;
        uint32_t n_bad = 0;

        for (size_t i = at; i < end; i++) {
            n_bad += (codes[i] & 0x7fu) == 0x7fu;
        }
        if (n_bad != 0) {
            while (!e4m3_is_nan(codes[at])) {
                at++;
            }
            *bad_p = (struct quant_bad){ (uint32_t)(at / k), (uint32_t)(at % k) };
            return false;
        }
    }
    return true;
}

void quant_widen(const uint8_t *codes, size_t n, float scale, float *out)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = e4m3_to_f32(codes[i]) * scale;
    }
}
