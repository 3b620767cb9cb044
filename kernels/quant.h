/* kernels/quant.h - fp8 weights on the host, before they are packed: the rule by which a format is
 * made of another (docs/numerics.md, "fp8 weights"). Plain functions: no stream, no device. The
 * caller's thread has the float environment of computing threads. */
#ifndef KERNELS_QUANT_H
#define KERNELS_QUANT_H

#include "kernels/kern.h"

/* Where a weight stands that is not a number (in rows of f32, f16, bf16: not finite). */
struct quant_bad {
    uint32_t row, k; /* of the rows that were given */
};

/* rows (f32, f16 or bf16; row0 is not looked at) -> codes[n_rows, k] dense and scales[n_rows,
 * groups of mat]. Per row and group: scale = largest |w| / 448; code = e4m3 nearest to w / scale, at
 * most 448. A scale below 2^-126 is +0 and so are its codes. False: a weight is not finite; what
 * was written is of no use. */
bool quant_rows(const struct kern_mat *mat, const struct kern_rows *rows, uint8_t *codes,
                float *scales, struct quant_bad *bad_p);
/* False: one of codes[n_rows, k] (dense) is NaN. */
bool quant_check(const uint8_t *codes, uint32_t n_rows, uint32_t k, struct quant_bad *bad_p);
/* out[i] = e4m3 of codes[i] * scale, i < n: one f32 product. */
void quant_widen(const uint8_t *codes, size_t n, float scale, float *out);

#endif
