/* kernels/x86/vec_avx512.h - 16 lanes in one register: the vocabulary that the templates
 * (tile.h, *_tmpl.h) are written in. vec_avx2.h says the same words with two registers.
 *
 * vf 16 floats, vi 16 uint32, vm a mask of 16 lanes, vp 16 pairs of bf16 ready for vp_dot. */
#ifndef KERNELS_X86_VEC_H
#define KERNELS_X86_VEC_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;

#define VEC_TILE_ROWS 6 /* 6 rows x 4 vectors of outputs: 24 sums, 4 weights, 1 broadcast */
#define VEC_TILE_WIDE 4

static inline vm vm_first(uint32_t n) /* lanes [0, n), n <= 16 */
{
    return (vm)((1u << n) - 1u);
}
static inline uint32_t vm_bits(vm m)
{
    return m;
}

static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline vf vf_load_n(const float *p, uint32_t n) /* lanes from n on are 0 */
{
    return _mm512_maskz_loadu_ps(vm_first(n), p);
}
static inline void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
static inline void vf_store_n(float *p, vf x, uint32_t n)
{
    _mm512_mask_storeu_ps(p, vm_first(n), x);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c) /* a * b + c, one rounding */
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vm vf_lt(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline vm vf_eq(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
static inline vm vf_nge(vf a, vf b) /* not a >= b: NaN counts */
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NGE_UQ);
}
static inline vf vf_pick(vm m, vf yes, vf no)
{
    return _mm512_mask_blend_ps(m, no, yes);
}
static inline vi vf_as_vi(vf x)
{
    return _mm512_castps_si512(x);
}
static inline vf vi_as_vf(vi x)
{
    return _mm512_castsi512_ps(x);
}

static inline vi vi_set1(uint32_t x)
{
    return _mm512_set1_epi32((int)x);
}
static inline vi vi_iota(uint32_t from) /* from, from + 1, ... */
{
    return _mm512_add_epi32(
        vi_set1(from), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
static inline void vi_store(uint32_t *p, vi x)
{
    _mm512_storeu_si512(p, x);
}
static inline vi vi_pick(vm m, vi yes, vi no)
{
    return _mm512_mask_blend_epi32(m, no, yes);
}
static inline vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
static inline vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
static inline vi vi_xor(vi a, vi b)
{
    return _mm512_xor_si512(a, b);
}
static inline vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
static inline vi vi_shl23(vi a)
{
    return _mm512_slli_epi32(a, 23);
}
static inline vi vi_shr9(vi a)
{
    return _mm512_srli_epi32(a, 9);
}
static inline vi vi_sra1(vi a)
{
    return _mm512_srai_epi32(a, 1);
}
static inline vi vi_sra23(vi a)
{
    return _mm512_srai_epi32(a, 23);
}
static inline vf vi_to_vf(vi a) /* signed */
{
    return _mm512_cvtepi32_ps(a);
}
static inline void vi_mul_wide(vi a, uint32_t by, vi *high_p, vi *low_p) /* unsigned 32 x 32 */
{
    const vi m = vi_set1(by);
    const vi even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);

    *high_p = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    *low_p = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}

/* ---- bf16 ---- */

static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);

    return vi_as_vf(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
/* As bf16_from_f32, lane by lane; VCVTNEPS2BF16 would flush denormals. */
static inline __m256i vf_round_bf16(vf x)
{
    const vi u = vf_as_vi(x);
    const vi odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), vi_set1(1));
    const vi r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, vi_set1(0x7fff)), odd), 16);
    const vm nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);

    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, r, vi_set1(0x7fc0)));
}
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, vf_round_bf16(x));
}
static inline void vf_store_bf16_n(uint16_t *p, vf x, uint32_t n)
{
    _mm256_mask_storeu_epi16(p, vm_first(n), vf_round_bf16(x));
}

#ifdef VEC_HAS_BF16
typedef __m512i vp;
static inline vp vp_load(const char *p)
{
    return _mm512_loadu_si512(p);
}
static inline vp vp_set1(uint32_t pair)
{
    return _mm512_set1_epi32((int)pair);
}
static inline vf vp_dot(vf acc, vp x, vp w)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
}
static inline void vp_store(char *p, vp x)
{
    _mm512_storeu_si512(p, x);
}
/* 16 pairs of e4m3. A byte b is the bf16 b << 4 with 120 added to the exponent; the eight numbers
 * without exponent bits (0 and m 2^-9) come from a table. */
static inline vp vp_load_e4m3(const char *p)
{
    const __m512i tiny_of = _mm512_setr_epi32(0x3b000000, 0x3bc03b80, 0x3c203c00, 0x3c603c40, 0, 0,
                                              0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)p);
    const __m512i v = _mm512_cvtepi8_epi16(bytes), at = _mm512_slli_epi16(v, 4);
    const __m512i sign = _mm512_set1_epi16((short)0x8000);
    const __m512i normal = _mm512_add_epi16(_mm512_and_si512(at, _mm512_set1_epi16((short)0x87f0)),
                                            _mm512_set1_epi16(0x3c00));
    const __mmask32 tiny = _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x78));
    const __m512i size = _mm512_mask_permutexvar_epi16(normal, tiny, v, tiny_of);

    return _mm512_ternarylogic_epi32(at, sign, size, 0xea); /* (at & sign) | size */
}
#else
typedef struct {
    vf hi, lo; /* elements 2i + 1 and 2i, widened */
} vp;
static inline vp vp_of(vi pairs)
{
    return (vp){ vi_as_vf(_mm512_and_si512(pairs, vi_set1(0xffff0000u))),
                 vi_as_vf(_mm512_slli_epi32(pairs, 16)) };
}
static inline vp vp_load(const char *p)
{
    return vp_of(_mm512_loadu_si512(p));
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
    _mm512_storeu_si512(p, _mm512_or_si512(vf_as_vi(x.hi), _mm512_srli_epi32(vf_as_vi(x.lo), 16)));
}
/* A byte of e4m3 in the upper half of a word, moved down by one, is 2^-8 of it in f16, whose
 * denormals the conversion takes exactly, whatever the float environment. */
static inline vf half_of_e4m3(__m256i words)
{
    const __m256i f16 =
        _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16((short)0xbf80));

    return vf_mul(_mm512_cvtph_ps(f16), vf_set1(256.0f));
}
static inline vp vp_load_e4m3(const char *p) /* 16 pairs */
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)p);

    return (vp){ half_of_e4m3(v), half_of_e4m3(_mm256_slli_epi16(v, 8)) };
}
#endif

#endif
