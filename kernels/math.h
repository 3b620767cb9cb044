/* kernels/math.h - our own exp and log, and the conversions between formats, as scalar code.
 *
 * libm gives other bits on another machine, so nothing here calls it: a fixed sequence of f32
 * operations with explicit fma, which kernels/x86/vmath.h repeats lane by lane. sqrt and divide are
 * exactly rounded by IEEE 754 and may be used freely. Polynomials were fitted for this project at
 * Chebyshev nodes; both functions stay below 2 ulp (tests/kern/test_math.c).
 * Words: docs/numerics.md, "exp and log". */
#ifndef KERNELS_MATH_H
#define KERNELS_MATH_H

#include "kernels/hd.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* ---- bits ---- */

KERN_HD static inline uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

KERN_HD static inline float f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* ---- formats ---- */

KERN_HD static inline float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* To nearest, ties to even, by integer arithmetic: denormals are rounded like any other number (no
 * flush here), every NaN becomes 0x7fc0. */
KERN_HD static inline uint16_t bf16_from_f32(float x)
{
    const uint32_t u = f32_bits(x);

    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fc0;
    }
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* Exact, by integer arithmetic (denormal halves are normal floats). */
KERN_HD static inline float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exp = (h >> 10) & 31u;
    uint32_t frac = h & 0x3ffu;
    uint32_t e = 113;

    if (exp == 31) {
        return f32_from_bits(sign | 0x7f800000u | frac << 13);
    }
    if (exp != 0) {
        return f32_from_bits(sign | (exp + 112u) << 23 | frac << 13);
    }
    if (frac == 0) {
        return f32_from_bits(sign);
    }
    while ((frac & 0x400u) == 0) {
        frac <<= 1;
        e--;
    }
    return f32_from_bits(sign | e << 23 | (frac & 0x3ffu) << 13);
}

/* fp8, e4m3: 4 bits of exponent (bias 7), 3 of fraction, no infinity; 0x7f and 0xff are NaN. Every
 * other value is a normal bf16. */
#define E4M3_MAX 448.0f

KERN_HD static inline bool e4m3_is_nan(uint8_t b)
{
    return (b & 0x7fu) == 0x7fu;
}

KERN_HD static inline float e4m3_to_f32(uint8_t b)
{
    const uint32_t sign = (uint32_t)(b & 0x80u) << 24;
    const uint32_t e = (b >> 3) & 15u, frac = b & 7u;

    if (e4m3_is_nan(b)) {
        return f32_from_bits(sign | 0x7fc00000u);
    }
    if (e != 0) {
        return f32_from_bits(sign | (e + 120u) << 23 | frac << 20);
    }
    return f32_from_bits(sign | f32_bits((float)frac * 0x1p-9f));
}

/* To nearest, ties to even; beyond 448 it is 448; NaN stays. No branch but for NaN, so that
 * compilers make vectors of it. */
KERN_HD static inline uint8_t e4m3_from_f32(float x)
{
    const uint32_t sign = f32_bits(x) >> 24 & 0x80u, u = f32_bits(x) & 0x7fffffffu;
    const uint32_t most = 0x43e00000u; /* 448 */
    const uint32_t a = u < most ? u : most;
    const uint32_t normal = ((a + 0x7ffffu + (a >> 20 & 1u)) >> 20) - (120u << 3);
    /* Below 2^-6 steps are 2^-9 wide, as those of floats from 2^14 on are: their sum rounds. */
    const uint32_t small = f32_bits(f32_from_bits(a) + 0x1p14f) - 0x46800000u;
    const uint32_t code = a < 0x3c800000u ? small : normal;

    return (uint8_t)(sign | (u > 0x7f800000u ? 0x7fu : code));
}

/* ---- constants shared with kernels/x86/vmath.h ---- */

#define MATH_MAGIC   12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define MATH_LOG2E   1.44269502f
#define MATH_LN2_HI  0.693145751953125f /* 15 bits: n * LN2_HI is exact for |n| < 2^9 */
#define MATH_LN2_LO  1.42860677e-06f
#define MATH_EXP_MIN (-87.0f) /* below: +0, while the true value is still a normal number */
#define MATH_EXP_MAX 88.7228f /* above: +inf */
#define MATH_EXP_C0  0.5f
#define MATH_EXP_C1  0.166666672f
#define MATH_EXP_C2  0.041666463f
#define MATH_EXP_C3  0.00833331048f
#define MATH_EXP_C4  0.00139337312f
#define MATH_EXP_C5  0.000198910799f
#define MATH_FLT_MIN 1.17549435e-38f
#define MATH_EXP2_C1 0.693124175f
#define MATH_EXP2_C2 0.240240991f
#define MATH_EXP2_C3 0.0559064262f
#define MATH_EXP2_C4 0.00958285294f
#define MATH_SQRTH   0x3f3504f3u /* bits of sqrt(1/2) */
#define MATH_LOG_C0  0.333333313f
#define MATH_LOG_C1  (-0.24999997f)
#define MATH_LOG_C2  0.200007156f
#define MATH_LOG_C3  (-0.166678026f)
#define MATH_LOG_C4  0.142490581f
#define MATH_LOG_C5  (-0.124256872f)
#define MATH_LOG_C6  0.116854198f
#define MATH_LOG_C7  (-0.114797339f)
#define MATH_LOG_C8  0.0697161183f

/* e^x = 2^n (1 + r + r^2 P(r)), n = round(x / ln 2). exp(-inf) = +0, exp(+inf) = +inf, NaN stays.
 */
KERN_HD static inline float k_expf(float x)
{
    const float t = fmaf(x, MATH_LOG2E, MATH_MAGIC);
    const float n = t - MATH_MAGIC;
    float r = fmaf(n, -MATH_LN2_HI, x);
    float p = MATH_EXP_C5;
    int32_t i, half;

    if (x < MATH_EXP_MIN) {
        return 0.0f;
    }
    if (x > MATH_EXP_MAX) {
        return INFINITY;
    }
    r = fmaf(n, -MATH_LN2_LO, r);
    p = fmaf(p, r, MATH_EXP_C4);
    p = fmaf(p, r, MATH_EXP_C3);
    p = fmaf(p, r, MATH_EXP_C2);
    p = fmaf(p, r, MATH_EXP_C1);
    p = fmaf(p, r, MATH_EXP_C0);
    p = fmaf(p, r * r, r);
    p = p + 1.0f;
    /* 2^n in two factors, because 2^128 is no float. */
    i = (int32_t)(f32_bits(t) - f32_bits(MATH_MAGIC));
    half = i >> 1;
    p = p * f32_from_bits((uint32_t)(half + 127) << 23);
    return p * f32_from_bits((uint32_t)(i - half + 127) << 23);
}

/* 2^t for t <= 1 to a part in 300,000, in 9 instructions: weights of attention on CUDA devices, which are
 * then rounded to bf16. t <= -127, or NaN, gives +0. With z = round(t) the result's exponent is the
 * polynomial's plus z, added as bits: at z = -127 and 1.0 that is +0. */
KERN_HD static inline float k_exp2_weight(float t)
{
    const float x = fmaxf(t, -127.0f);
    const float z = x + MATH_MAGIC;
    const float f = x - (z - MATH_MAGIC);
    float p = MATH_EXP2_C4;

    p = fmaf(p, f, MATH_EXP2_C3);
    p = fmaf(p, f, MATH_EXP2_C2);
    p = fmaf(p, f, MATH_EXP2_C1);
    p = fmaf(p, f, 1.0f);
    return f32_from_bits(f32_bits(p) + (f32_bits(z) << 23));
}

/* 2^d exactly, d a whole number <= 127; +0 below -126 or if d is NaN. */
KERN_HD static inline float k_exp2_whole(float d)
{
    return d >= -126.0f ? f32_from_bits(f32_bits(1.0f) + (f32_bits(d + MATH_MAGIC) << 23)) : 0.0f;
}

/* x = 2^e m with m in [sqrt(1/2), sqrt(2)), f = m - 1: e ln 2 + f - f^2/2 + f^3 P(f).
 * log(+inf) = +inf; +-0 and denormals give -inf; negative and NaN give NaN. */
KERN_HD static inline float k_logf(float x)
{
    const uint32_t u = f32_bits(x);
    const int32_t e = (int32_t)(u - MATH_SQRTH) >> 23;
    const float m = f32_from_bits(u - ((uint32_t)e << 23));
    const float f = m - 1.0f;
    const float f2 = f * f;
    const float n = (float)e;
    float p = MATH_LOG_C8;

    if (!(x >= 0.0f)) {
        return NAN;
    }
    if (x < MATH_FLT_MIN) {
        return -INFINITY;
    }
    if (x == INFINITY) {
        return INFINITY;
    }
    p = fmaf(p, f, MATH_LOG_C7);
    p = fmaf(p, f, MATH_LOG_C6);
    p = fmaf(p, f, MATH_LOG_C5);
    p = fmaf(p, f, MATH_LOG_C4);
    p = fmaf(p, f, MATH_LOG_C3);
    p = fmaf(p, f, MATH_LOG_C2);
    p = fmaf(p, f, MATH_LOG_C1);
    p = fmaf(p, f, MATH_LOG_C0);
    p = p * (f * f2);
    p = fmaf(n, MATH_LN2_LO, p);
    p = fmaf(-0.5f, f2, p);
    p = f + p;
    return fmaf(n, MATH_LN2_HI, p);
}

/* The fixed tree over 16 accumulators: lane l with l + 8, then + 4, + 2, + 1. */
KERN_HD static inline float tree16(const float a[16])
{
    float b[8];

    for (int i = 0; i < 8; i++) {
        b[i] = a[i] + a[i + 8];
    }
    for (int i = 0; i < 4; i++) {
        b[i] = b[i] + b[i + 4];
    }
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* Factor by which a partial sum relative to maximum `m` is scaled to maximum `m_new` >= m; equal
 * maxima give exactly 1, both infinite or not. */
KERN_HD static inline float lse_factor(float m, float m_new)
{
    return m == m_new ? 1.0f : k_expf(m - m_new);
}

#endif
