/* kernels/x86/vec_avx2.h - 16 lanes in two registers; the words are those of vec_avx512.h.
 *
 * Kept at 16 lanes because the sums inside one output have 16 accumulators on every machine. */
#ifndef KERNELS_X86_VEC_H
#define KERNELS_X86_VEC_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    __m256 a, b; /* lanes 0-7, 8-15 */
} vf;
typedef struct {
    __m256i a, b;
} vi;
typedef vi vm; /* all ones or all zeros per lane */

#define VEC_TILE_ROWS 4 /* 4 rows x 1 vector (two registers): 8 sums, 4 weights, 2 broadcasts */
#define VEC_TILE_WIDE 1

#define VF_MAP1(fn, x)       ((vf){ fn((x).a), fn((x).b) })
#define VF_MAP2(fn, x, y)    ((vf){ fn((x).a, (y).a), fn((x).b, (y).b) })
#define VF_MAP3(fn, x, y, z) ((vf){ fn((x).a, (y).a, (z).a), fn((x).b, (y).b, (z).b) })
#define VI_MAP2(fn, x, y)    ((vi){ fn((x).a, (y).a), fn((x).b, (y).b) })

static inline vi vi_set1(uint32_t x)
{
    return (vi){ _mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x) };
}
static inline vi vi_iota(uint32_t from)
{
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

    return (vi){ _mm256_add_epi32(i, _mm256_set1_epi32((int)from)),
                 _mm256_add_epi32(i, _mm256_set1_epi32((int)(from + 8))) };
}
static inline vm vm_first(uint32_t n)
{
    const vi i = vi_iota(0);

    return VI_MAP2(_mm256_cmpgt_epi32, vi_set1(n), i);
}
static inline vf vi_as_vf(vi x)
{
    return VF_MAP1(_mm256_castsi256_ps, x);
}
static inline vi vf_as_vi(vf x)
{
    return (vi){ _mm256_castps_si256(x.a), _mm256_castps_si256(x.b) };
}
static inline uint32_t vm_bits(vm m)
{
    const vf f = vi_as_vf(m);

    return (uint32_t)_mm256_movemask_ps(f.a) | (uint32_t)_mm256_movemask_ps(f.b) << 8;
}

static inline vf vf_zero(void)
{
    return (vf){ _mm256_setzero_ps(), _mm256_setzero_ps() };
}
static inline vf vf_set1(float x)
{
    return (vf){ _mm256_set1_ps(x), _mm256_set1_ps(x) };
}
static inline vf vf_load(const float *p)
{
    return (vf){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}
static inline vf vf_load_n(const float *p, uint32_t n)
{
    const vm m = vm_first(n);

    return (vf){ _mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b) };
}
static inline void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline void vf_store_n(float *p, vf x, uint32_t n)
{
    const vm m = vm_first(n);

    _mm256_maskstore_ps(p, m.a, x.a);
    _mm256_maskstore_ps(p + 8, m.b, x.b);
}
static inline vf vf_add(vf x, vf y)
{
    return VF_MAP2(_mm256_add_ps, x, y);
}
static inline vf vf_sub(vf x, vf y)
{
    return VF_MAP2(_mm256_sub_ps, x, y);
}
static inline vf vf_mul(vf x, vf y)
{
    return VF_MAP2(_mm256_mul_ps, x, y);
}
static inline vf vf_div(vf x, vf y)
{
    return VF_MAP2(_mm256_div_ps, x, y);
}
static inline vf vf_fma(vf x, vf y, vf z)
{
    return VF_MAP3(_mm256_fmadd_ps, x, y, z);
}
static inline vf vf_max(vf x, vf y)
{
    return VF_MAP2(_mm256_max_ps, x, y);
}
static inline vm vf_lt(vf x, vf y)
{
    return vf_as_vi(
        (vf){ _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ) });
}
static inline vm vf_eq(vf x, vf y)
{
    return vf_as_vi(
        (vf){ _mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ) });
}
static inline vm vf_nge(vf x, vf y)
{
    return vf_as_vi(
        (vf){ _mm256_cmp_ps(x.a, y.a, _CMP_NGE_UQ), _mm256_cmp_ps(x.b, y.b, _CMP_NGE_UQ) });
}
static inline vf vf_pick(vm m, vf yes, vf no)
{
    const vf f = vi_as_vf(m);

    return VF_MAP3(_mm256_blendv_ps, no, yes, f);
}

static inline void vi_store(uint32_t *p, vi x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, x.a);
    _mm256_storeu_si256((__m256i *)(void *)(p + 8), x.b);
}
static inline vi vi_pick(vm m, vi yes, vi no)
{
    return (vi){ _mm256_blendv_epi8(no.a, yes.a, m.a), _mm256_blendv_epi8(no.b, yes.b, m.b) };
}
static inline vi vi_add(vi x, vi y)
{
    return VI_MAP2(_mm256_add_epi32, x, y);
}
static inline vi vi_sub(vi x, vi y)
{
    return VI_MAP2(_mm256_sub_epi32, x, y);
}
static inline vi vi_xor(vi x, vi y)
{
    return VI_MAP2(_mm256_xor_si256, x, y);
}
static inline vi vi_and(vi x, vi y)
{
    return VI_MAP2(_mm256_and_si256, x, y);
}
static inline vi vi_shl23(vi x)
{
    return (vi){ _mm256_slli_epi32(x.a, 23), _mm256_slli_epi32(x.b, 23) };
}
static inline vi vi_shr9(vi x)
{
    return (vi){ _mm256_srli_epi32(x.a, 9), _mm256_srli_epi32(x.b, 9) };
}
static inline vi vi_sra1(vi x)
{
    return (vi){ _mm256_srai_epi32(x.a, 1), _mm256_srai_epi32(x.b, 1) };
}
static inline vi vi_sra23(vi x)
{
    return (vi){ _mm256_srai_epi32(x.a, 23), _mm256_srai_epi32(x.b, 23) };
}
static inline vf vi_to_vf(vi x)
{
    return VF_MAP1(_mm256_cvtepi32_ps, x);
}
static inline void half_mul_wide(__m256i a, __m256i m, __m256i *high_p, __m256i *low_p)
{
    const __m256i even = _mm256_mul_epu32(a, m);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);

    *high_p = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    *low_p = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
static inline void vi_mul_wide(vi x, uint32_t by, vi *high_p, vi *low_p)
{
    const __m256i m = _mm256_set1_epi32((int)by);

    half_mul_wide(x.a, m, &high_p->a, &low_p->a);
    half_mul_wide(x.b, m, &high_p->b, &low_p->b);
}

/* ---- bf16 ---- */

static inline __m256 half_load_bf16(const uint16_t *p)
{
    const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);

    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    return (vf){ half_load_bf16(p), half_load_bf16(p + 8) };
}
static inline __m256i half_round_bf16(__m256 x) /* one value per 32 bits */
{
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));

    return _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    const __m256i packed = _mm256_packus_epi32(half_round_bf16(x.a), half_round_bf16(x.b));

    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
static inline void vf_store_bf16_n(uint16_t *p, vf x, uint32_t n)
{
    uint16_t all[16];

    vf_store_bf16(all, x);
    memcpy(p, all, n * sizeof *p);
}

typedef struct {
    vf hi, lo;
} vp;
static inline vp vp_of(vi pairs)
{
    const vi mask = vi_set1(0xffff0000u);

    return (vp){ vi_as_vf(vi_and(pairs, mask)),
                 vi_as_vf((vi){ _mm256_slli_epi32(pairs.a, 16), _mm256_slli_epi32(pairs.b, 16) }) };
}
static inline vp vp_load(const char *p)
{
    return vp_of((vi){ _mm256_loadu_si256((const __m256i *)(const void *)p),
                       _mm256_loadu_si256((const __m256i *)(const void *)(p + 32)) });
}
static inline vp vp_set1(uint32_t pair)
{
    return vp_of(vi_set1(pair));
}
static inline vf vp_dot(vf acc, vp x, vp w)
{
    return vf_fma(x.lo, w.lo, vf_fma(x.hi, w.hi, acc));
}
static inline void vp_store(char *p, vp x) /* of values that are bf16 */
{
    const vi hi = vf_as_vi(x.hi), lo = vf_as_vi(x.lo);

    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_or_si256(hi.a, _mm256_srli_epi32(lo.a, 16)));
    _mm256_storeu_si256((__m256i *)(void *)(p + 32),
                        _mm256_or_si256(hi.b, _mm256_srli_epi32(lo.b, 16)));
}
/* A byte of e4m3 in the upper half of a word, moved down by one, is 2^-8 of it in f16, whose
 * denormals the conversion takes exactly, whatever the float environment. */
static inline vf half_of_e4m3(__m256i words)
{
    const __m256i f16 =
        _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16((short)0xbf80));
    const vf x = { _mm256_cvtph_ps(_mm256_castsi256_si128(f16)),
                   _mm256_cvtph_ps(_mm256_extracti128_si256(f16, 1)) };

    return vf_mul(x, vf_set1(256.0f));
}
static inline vp vp_load_e4m3(const char *p) /* 16 pairs */
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p);

    return (vp){ half_of_e4m3(v), half_of_e4m3(_mm256_slli_epi16(v, 8)) };
}

#endif
