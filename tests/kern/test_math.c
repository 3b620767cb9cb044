/* exp, log and the rope table against libm in f64; the vector versions are held equal to the scalar
 * ones through the ops (test_elem.c, test_attention.c). */
#include "kern_case.h"
#include "kernels/philox.h"
#include "kernels/rope.h"

#define ROPE_HASH 0xd7bf48c94439e8e8ULL

/* Distance in units of the last place of the f32 result. */
static double ulps(float have, double want)
{
    int e;

    frexp(want, &e);
    return fabs((double)have - want) / ldexp(1.0, e - 24);
}

static void test_exp__is_within_two_ulp(void **state)
{
    double worst = 0;

    (void)state;
    for (uint32_t i = 0; i < 400000; i++) {
        const float x = -86.9f + 175.5f * ((float)case_u32() * 0x1p-32f);
        const float small = ldexpf(x, -(int)(case_u32() % 30));

        worst = MAX(worst, ulps(k_expf(x), exp((double)x)));
        worst = MAX(worst, ulps(k_expf(small), exp((double)small)));
    }
    if (worst > 2.0) {
        fail_msg("exp is off by %.3f ulp", worst);
    }
}

static void test_log__is_within_two_ulp(void **state)
{
    double worst = 0;

    (void)state;
    for (uint32_t i = 0; i < 400000; i++) {
        const float x = f32_from_bits(0x00800000u + case_u32() % 0x7f000000u);
        const float near = 0.6f + 0.9f * ((float)case_u32() * 0x1p-32f);

        worst = MAX(worst, ulps(k_logf(x), log((double)x)));
        if (near != 1.0f) {
            worst = MAX(worst, ulps(k_logf(near), log((double)near)));
        }
    }
    if (worst > 2.0) {
        fail_msg("log is off by %.3f ulp", worst);
    }
}

static void test_exp_log__edges(void **state)
{
    (void)state;
    assert_int_equal(f32_bits(k_expf(-INFINITY)), 0);
    assert_int_equal(f32_bits(k_expf(-1e30f)), 0);
    assert_int_equal(f32_bits(k_expf(-88.0f)), 0);
    assert_true(k_expf(INFINITY) == INFINITY);
    assert_true(k_expf(1e30f) == INFINITY);
    assert_true(isnan(k_expf(NAN)));
    assert_true(k_expf(0.0f) == 1.0f && k_expf(-0.0f) == 1.0f);
    assert_true(k_logf(0.0f) == -INFINITY && k_logf(-0.0f) == -INFINITY);
    assert_true(k_logf(INFINITY) == INFINITY);
    assert_true(isnan(k_logf(-1.0f)) && isnan(k_logf(NAN)));
    assert_int_equal(f32_bits(k_logf(1.0f)), 0);
}

/* Weights of attention on CUDA devices. */
static void test_exp2_weight__is_near_and_ends_at_zero(void **state)
{
    double worst = 0;

    (void)state;
    for (uint32_t i = 0; i < 400000; i++) {
        const float t = 1.0f - 127.0f * ((float)case_u32() * 0x1p-32f);
        const double want = exp2((double)t);

        worst = MAX(worst, fabs((double)k_exp2_weight(t) - want) / want);
    }
    if (!(worst < 1.0 / 300000)) {
        fail_msg("2^t is off by %.3g", worst);
    }
    assert_int_equal(f32_bits(k_exp2_weight(-127.0f)), 0);
    assert_int_equal(f32_bits(k_exp2_weight(-1e30f)), 0);
    assert_int_equal(f32_bits(k_exp2_weight(-INFINITY)), 0);
    assert_int_equal(f32_bits(k_exp2_weight(NAN)), 0);
    assert_int_equal(f32_bits(k_exp2_whole(-127.0f)), 0);
    assert_int_equal(f32_bits(k_exp2_whole(-INFINITY)), 0);
    assert_int_equal(f32_bits(k_exp2_whole(NAN)), 0);
    for (int e = -126; e <= 0; e++) {
        assert_true((double)k_exp2_weight((float)e) == ldexp(1.0, e));
        assert_true((double)k_exp2_whole((float)e) == ldexp(1.0, e));
    }
}

static void test_bf16__rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f808000u)), 0x3f80); /* tie, even below */
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f818000u)), 0x3f82); /* tie, even above */
    assert_int_equal(bf16_from_f32(f32_from_bits(0x3f808001u)), 0x3f81);
    assert_int_equal(bf16_from_f32(f32_from_bits(0x7f7fffffu)), 0x7f80); /* to infinity */
    assert_int_equal(bf16_from_f32(f32_from_bits(0xff800001u)), 0x7fc0);
    assert_int_equal(bf16_from_f32(-0.0f), 0x8000);
}

static void test_f16__every_half_is_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const int e = (int)(h >> 10), f = (int)(h & 1023);
        const double want = e == 0 ? ldexp(f, -24) : ldexp(1024 + f, e - 25);

        assert_true((double)f16_to_f32((uint16_t)h) == want);
        assert_true((double)f16_to_f32((uint16_t)(h | 0x8000)) == -want);
    }
    assert_true(f16_to_f32(0x7c00) == INFINITY && isnan(f16_to_f32(0x7e00)));
}

/* Known answers that the authors of the generator publish. */
static void test_philox__known_answers(void **state)
{
    uint32_t zero[4] = { 0, 0, 0, 0 };
    uint32_t ones[4] = { 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu };
    uint32_t pi[4] = { 0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u };
    const uint32_t want_zero[4] = { 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u };
    const uint32_t want_ones[4] = { 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu };
    const uint32_t want_pi[4] = { 0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u };

    (void)state;
    philox4x32(zero, 0);
    philox4x32(ones, UINT64_MAX);
    philox4x32(pi, 0x299f31d0a4093822ULL);
    assert_memory_equal(zero, want_zero, sizeof zero);
    assert_memory_equal(ones, want_ones, sizeof ones);
    assert_memory_equal(pi, want_pi, sizeof pi);
    assert_true(uniform_from_bits(0) == 0x1p-24f);
    assert_true(uniform_from_bits(UINT32_MAX) == 1.0f - 0x1p-24f);
}

static void check_table(const struct rope_params *p, uint32_t n_pos, uint32_t i, double freq)
{
    const uint32_t half = p->head_dim / 2;
    float *c = case_zeros((size_t)n_pos * half * 4), *s = case_zeros((size_t)n_pos * half * 4);

    rope_table_fill(p, n_pos, c, s);
    for (uint32_t pos = 0; pos < n_pos; pos += 1 + pos / 50) {
        assert_true(fabs((double)c[(size_t)pos * half + i] - cos(pos * freq)) < 1e-7);
        assert_true(fabs((double)s[(size_t)pos * half + i] - sin(pos * freq)) < 1e-7);
    }
    free(c);
    free(s);
}

static void test_rope_table__is_cos_and_sin_of_position_times_frequency(void **state)
{
    const struct rope_params plain = { ROPE_PLAIN, 6, 10000.0, 1.0, 0.0, 0.0, 0 };
    const struct rope_params big = { ROPE_PLAIN, 2, 500000.0, 1.0, 0.0, 0.0, 0 };
    const struct rope_params linear = { ROPE_LINEAR, 6, 10000.0, 4.0, 0.0, 0.0, 0 };
    const struct rope_params llama3 = { ROPE_LLAMA3, 128, 500000.0, 8.0, 1.0, 4.0, 8192 };

    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        check_table(&plain, 5000, i, pow(10000.0, -2.0 * i / 6));
        check_table(&linear, 5000, i, pow(10000.0, -2.0 * i / 6) / 4.0);
    }
    check_table(&big, 200000, 0, 1.0);
    /* short wavelength: kept; long: divided by 8; between: blended */
    check_table(&llama3, 100, 10, pow(500000.0, -20.0 / 128));
    check_table(&llama3, 100, 60, pow(500000.0, -120.0 / 128) / 8.0);
    {
        const double freq = pow(500000.0, -64.0 / 128), wave = 2.0 * 3.14159265358979323846 / freq;
        const double blend = (8192.0 / wave - 1.0) / 3.0;

        assert_true(blend > 0.0 && blend < 1.0);
        check_table(&llama3, 100, 32, (1.0 - blend) * freq / 8.0 + blend * freq);
    }
}

/* The first rope tables ever shipped: a change here is a new numeric profile. */
static void test_rope_table__bits_are_frozen(void **state)
{
    const struct rope_params p = { ROPE_PLAIN, 64, 10000.0, 1.0, 0.0, 0.0, 0 };
    float *c = case_zeros(2048 * 32 * 4), *s = case_zeros(2048 * 32 * 4);
    uint64_t h = 14695981039346656037ULL; /* FNV-1a over both tables' bits */

    (void)state;
    rope_table_fill(&p, 2048, c, s);
    for (uint32_t i = 0; i < 2048 * 32; i++) {
        h = (h ^ f32_bits(c[i])) * 1099511628211ULL;
        h = (h ^ f32_bits(s[i])) * 1099511628211ULL;
    }
    if (h != ROPE_HASH) {
        fail_msg("hash is 0x%016llx", (unsigned long long)h);
    }
    free(c);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp__is_within_two_ulp),
        cmocka_unit_test(test_log__is_within_two_ulp),
        cmocka_unit_test(test_exp_log__edges),
        cmocka_unit_test(test_exp2_weight__is_near_and_ends_at_zero),
        cmocka_unit_test(test_bf16__rounds_to_nearest_even),
        cmocka_unit_test(test_f16__every_half_is_exact),
        cmocka_unit_test(test_philox__known_answers),
        cmocka_unit_test(test_rope_table__is_cos_and_sin_of_position_times_frequency),
        cmocka_unit_test(test_rope_table__bits_are_frozen),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
