/* kernels/x86/vmath.h - exp, log, the generator and sums over lanes: kernels/math.h and
 * kernels/philox.h, the same operations in each of 16 lanes. Needs vec_*.h before it. */
#ifndef KERNELS_X86_VMATH_H
#define KERNELS_X86_VMATH_H

#include "kernels/math.h"
#include "kernels/philox.h"

static inline vf vf_exp(vf x)
{
    const vf magic = vf_set1(MATH_MAGIC);
    const vf t = vf_fma(x, vf_set1(MATH_LOG2E), magic);
    const vf n = vf_sub(t, magic);
    const vi i = vi_sub(vf_as_vi(t), vf_as_vi(magic)), half = vi_sra1(i);
    const vi bias = vi_set1(127);
    vf r = vf_fma(n, vf_set1(-MATH_LN2_HI), x);
    vf p = vf_set1(MATH_EXP_C5);

    r = vf_fma(n, vf_set1(-MATH_LN2_LO), r);
    p = vf_fma(p, r, vf_set1(MATH_EXP_C4));
    p = vf_fma(p, r, vf_set1(MATH_EXP_C3));
    p = vf_fma(p, r, vf_set1(MATH_EXP_C2));
    p = vf_fma(p, r, vf_set1(MATH_EXP_C1));
    p = vf_fma(p, r, vf_set1(MATH_EXP_C0));
    p = vf_fma(p, vf_mul(r, r), r);
    p = vf_add(p, vf_set1(1.0f));
    p = vf_mul(p, vi_as_vf(vi_shl23(vi_add(half, bias))));
    p = vf_mul(p, vi_as_vf(vi_shl23(vi_add(vi_sub(i, half), bias))));
    p = vf_pick(vf_lt(x, vf_set1(MATH_EXP_MIN)), vf_zero(), p);
    return vf_pick(vf_lt(vf_set1(MATH_EXP_MAX), x), vf_set1(INFINITY), p);
}

static inline vf vf_log(vf x)
{
    const vi u = vf_as_vi(x), e = vi_sra23(vi_sub(u, vi_set1(MATH_SQRTH)));
    const vf f = vf_sub(vi_as_vf(vi_sub(u, vi_shl23(e))), vf_set1(1.0f));
    const vf f2 = vf_mul(f, f), n = vi_to_vf(e);
    vf p = vf_set1(MATH_LOG_C8);

    p = vf_fma(p, f, vf_set1(MATH_LOG_C7));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C6));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C5));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C4));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C3));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C2));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C1));
    p = vf_fma(p, f, vf_set1(MATH_LOG_C0));
    p = vf_mul(p, vf_mul(f, f2));
    p = vf_fma(n, vf_set1(MATH_LN2_LO), p);
    p = vf_fma(vf_set1(-0.5f), f2, p);
    p = vf_add(f, p);
    p = vf_fma(n, vf_set1(MATH_LN2_HI), p);
    p = vf_pick(vf_eq(x, vf_set1(INFINITY)), x, p);
    p = vf_pick(vf_lt(x, vf_set1(MATH_FLT_MIN)), vf_set1(-INFINITY), p);
    return vf_pick(vf_nge(x, vf_zero()), vf_set1(NAN), p);
}

static inline float vf_tree16(vf acc)
{
    float a[16];

    vf_store(a, acc);
    return tree16(a);
}

static inline float vf_max16(vf x)
{
    float a[16], m;

    vf_store(a, x);
    m = a[0];
    for (int i = 1; i < 16; i++) {
        m = a[i] > m ? a[i] : m;
    }
    return m;
}

/* gumbel_noise of 16 ids. */
static inline vf vf_gumbel(uint64_t seed, uint32_t choice, uint32_t pos, vi ids)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    vi c0 = vi_set1(choice), c1 = vi_set1(pos), c2 = ids, c3 = vi_set1(0);
    const vf sign = vf_set1(-0.0f);
    vf u;

    for (int i = 0; i < PHILOX_ROUNDS; i++) {
        vi h0, l0, h1, l1;

        vi_mul_wide(c0, PHILOX_M0, &h0, &l0);
        vi_mul_wide(c2, PHILOX_M1, &h1, &l1);
        c0 = vi_xor(vi_xor(h1, c1), vi_set1(k0));
        c2 = vi_xor(vi_xor(h0, c3), vi_set1(k1));
        c1 = l1;
        c3 = l0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    u = vf_mul(vf_add(vi_to_vf(vi_shr9(c0)), vf_set1(0.5f)), vf_set1(0x1p-23f));
    u = vi_as_vf(vi_xor(vf_as_vi(vf_log(u)), vf_as_vi(sign)));
    return vi_as_vf(vi_xor(vf_as_vi(vf_log(u)), vf_as_vi(sign)));
}

#endif
