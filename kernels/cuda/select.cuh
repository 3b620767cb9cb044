/* kernels/cuda/select.cuh - the total order of candidates as one 64-bit number, and the arithmetic
 * of choosing the n best by it; also for host tests.
 *
 * key = order of the logit, then 2^32 - 1 - id: the larger key comes first in (logit descending, id
 * ascending). -0 and +0 are equal, NaN is -inf (docs/numerics.md, "Sampling"). Keys of a row differ,
 * so "the n-th largest key" is a threshold with exactly n keys at or above it; it is found digit by
 * digit from counts, which no order of counting changes. */
#ifndef KERNELS_CUDA_SELECT_CUH
#define KERNELS_CUDA_SELECT_CUH

#include "kernels/hd.h"
#include "kernels/kern.h"
#include "kernels/math.h"

enum { CU_DIGIT_BITS = 8, CU_DIGITS = 64 / CU_DIGIT_BITS, CU_BINS = 1 << CU_DIGIT_BITS };

KERN_HD static inline float cu_clean(float x)
{
    return x == x ? x : -INFINITY;
}

/* Bits whose unsigned order is that of the numbers. */
KERN_HD static inline uint32_t cu_order(float x)
{
    const uint32_t u = f32_bits(x + 0.0f); /* -0 becomes +0 */

    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

KERN_HD static inline uint64_t cu_key(float x, uint32_t id)
{
    return (uint64_t)cu_order(cu_clean(x)) << 32 | (uint32_t)~id;
}

KERN_HD static inline uint32_t cu_key_id(uint64_t key)
{
    return ~(uint32_t)key;
}

/* Is `key` still in question once the top `n_digits` digits of the threshold are known? */
KERN_HD static inline bool cu_key_matches(uint64_t key, uint64_t prefix, uint32_t n_digits)
{
    const uint32_t shift = 64 - n_digits * CU_DIGIT_BITS;

    return n_digits == 0 || key >> shift == prefix >> shift;
}

KERN_HD static inline uint32_t cu_key_digit(uint64_t key, uint32_t digit)
{
    return (uint32_t)(key >> (64 - (digit + 1) * CU_DIGIT_BITS)) & (CU_BINS - 1);
}

/* Given how many keys in question have each value of a digit, and that the `want` best of them are
 * wanted (at least 1, at most all): the threshold's digit. *want_p: how many are still wanted of
 * those with that digit. */
KERN_HD static inline uint32_t cu_pick_digit(const uint32_t *counts, uint32_t want,
                                             uint32_t *want_p)
{
    uint32_t bin = CU_BINS - 1;

    while (counts[bin] < want) {
        want -= counts[bin];
        bin--;
    }
    *want_p = want;
    return bin;
}

#endif
