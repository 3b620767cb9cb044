/* tests/unit/kernels/test_quant.c - e4m3 both ways, and the rule by which weights become fp8. */
#include "base/cpu.h"
#include "kernels/math.h"
#include "kernels/quant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The value by the definition of the format, from its fields. */
static double value_of(uint8_t b)
{
    const int e = b >> 3 & 15, m = b & 7;
    const double size = e == 0 ? ldexp(m, -9) : ldexp(8 + m, e - 10);

    return b & 0x80 ? -size : size;
}

static void test_e4m3__all_256_values_are_those_of_the_format(void **state)
{
    (void)state;
    for (int b = 0; b < 256; b++) {
        const float x = e4m3_to_f32((uint8_t)b);

        if ((b & 0x7f) == 0x7f) {
            assert_true(isnan(x) && e4m3_is_nan((uint8_t)b));
            continue;
        }
        assert_false(e4m3_is_nan((uint8_t)b));
        assert_true((double)x == value_of((uint8_t)b));
        assert_int_equal(signbit(x) != 0, b >> 7);
        /* Exact in bf16 as well, and no denormal of it. */
        assert_true(bf16_to_f32(bf16_from_f32(x)) == x && (x == 0.0f || fabsf(x) >= 0x1p-126f));
        assert_int_equal(e4m3_from_f32(x), b);
    }
    assert_true(value_of(0x7e) == (double)E4M3_MAX);
}

/* The nearest code by looking at all of them; of two, the even one. */
static uint8_t nearest(float x)
{
    uint8_t best = 0;

    for (int b = 1; b < 0x7f; b++) {
        const double was = fabs(value_of(best) - fabs((double)x));
        const double is = fabs(value_of((uint8_t)b) - fabs((double)x));

        if (is < was || (is == was && b % 2 == 0)) {
            best = (uint8_t)b;
        }
    }
    return (uint8_t)(best | (signbit(x) ? 0x80 : 0));
}

static void test_e4m3__rounding_is_to_the_nearest_even_and_saturates(void **state)
{
    static const float far[] = { 448.1f, 464.0f, 480.0f, 1e30f, INFINITY };

    (void)state;
    for (int b = 0; b < 0x7e; b++) {
        const float lo = e4m3_to_f32((uint8_t)b), hi = e4m3_to_f32((uint8_t)(b + 1));
        const float mid = lo + (hi - lo) * 0.5f; /* exact */
        const float near[] = { lo,  nextafterf(lo, hi),  nextafterf(mid, lo),
                               mid, nextafterf(mid, hi), nextafterf(hi, lo) };

        for (size_t i = 0; i < ARRAY_LEN(near); i++) {
            assert_int_equal(e4m3_from_f32(near[i]), nearest(near[i]));
            assert_int_equal(e4m3_from_f32(-near[i]), nearest(-near[i]));
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(far); i++) {
        assert_int_equal(e4m3_from_f32(far[i]), 0x7e);
        assert_int_equal(e4m3_from_f32(-far[i]), 0xfe);
    }
    assert_int_equal(e4m3_from_f32(NAN) & 0x7f, 0x7f);
}

/* ---- the rule ---- */

enum { ROWS = 3, K = 700 };

static void fill(float *x, size_t n)
{
    uint32_t seed = 7;

    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = ldexpf((float)(seed >> 8) * 0x1p-23f - 1.0f, (int)(seed >> 3) % 7);
    }
}

static struct kern_mat mat_of(uint32_t k, uint32_t n_leaves, uint32_t k0)
{
    struct kern_mat mat = { .fmt = KERN_FP8, .n = ROWS, .k = k, .n_leaves = n_leaves, .k0 = k0 };

    for (uint32_t i = 0; i <= n_leaves; i++) {
        mat.leaf[i] = kern_leaf_begin(k, n_leaves, i);
    }
    return mat;
}

static void test_quant__a_groups_scale_is_its_largest_weight_over_448(void **state)
{
    const struct kern_mat mat =
        mat_of(K, 2, 0); /* 350: groups of 128, 128, 94 | 34, 128, 128, 60 */
    const uint32_t ends[] = { 128, 256, 350, 384, 512, 640, 700 };
    static float x[ROWS * K], scales[ROWS * 7];
    static uint8_t codes[ROWS * K];
    const struct kern_rows rows = { KERN_SRC_F32, x, 0, ROWS, K, NULL };
    struct quant_bad bad;

    (void)state;
    fill(x, ROWS * K);
    assert_int_equal(kern_mat_groups(&mat), 7);
    assert_true(quant_rows(&mat, &rows, codes, scales, &bad));
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t g = 0, k = 0; g < 7; g++) {
            float most = 0.0f;

            for (uint32_t i = k; i < ends[g]; i++) {
                most = fmaxf(most, fabsf(x[r * K + i]));
            }
            assert_true(scales[r * 7 + g] == most / 448.0f);
            for (; k < ends[g]; k++) {
                assert_int_equal(codes[r * K + k], nearest(x[r * K + k] / scales[r * 7 + g]));
            }
        }
    }
}

static void test_quant__a_slice_has_the_codes_and_scales_of_the_whole(void **state)
{
    const struct kern_mat mat = mat_of(K, 4, 0);
    static float x[ROWS * K], scales[ROWS * 16], part_scales[ROWS * 16];
    static uint8_t codes[ROWS * K], part[ROWS * K];
    const struct kern_rows rows = { KERN_SRC_F32, x, 0, ROWS, K, NULL };
    const uint32_t n_groups = kern_mat_groups(&mat);
    uint32_t group0 = 0;
    struct quant_bad bad;

    (void)state;
    fill(x, ROWS * K);
    assert_true(quant_rows(&mat, &rows, codes, scales, &bad));
    for (uint32_t leaf = 0; leaf < 4; leaf++) {
        const uint32_t k0 = mat.leaf[leaf], n = mat.leaf[leaf + 1] - k0;
        const struct kern_mat slice = mat_of(n, 1, k0);
        const struct kern_rows of = { KERN_SRC_F32, x + k0, 0, ROWS, K, NULL };
        const uint32_t groups = kern_mat_groups(&slice);

        assert_true(quant_rows(&slice, &of, part, part_scales, &bad));
        for (uint32_t r = 0; r < ROWS; r++) {
            assert_memory_equal(part + r * n, codes + r * K + k0, n);
            assert_memory_equal(part_scales + r * groups, scales + r * n_groups + group0,
                                groups * sizeof(float));
        }
        group0 += groups;
    }
    assert_int_equal(group0, n_groups);
}

static void test_quant__nothing_and_next_to_nothing_have_scale_0(void **state)
{
    const struct kern_mat mat = mat_of(384, 1, 0);
    static float x[384], scales[3];
    static uint8_t codes[384];
    struct kern_rows rows = { KERN_SRC_F32, x, 0, 1, 384, NULL };
    struct quant_bad bad;

    (void)state;
    x[5] = -0.0f;
    x[130] = 448.0f * 0x1p-127f; /* its scale would be a denormal */
    x[300] = 448.0f * 0x1p-126f;
    memset(codes, 0xff, sizeof codes);
    assert_true(quant_rows(&mat, &rows, codes, scales, &bad));
    assert_true(scales[0] == 0.0f && scales[1] == 0.0f && scales[2] == 0x1p-126f);
    for (uint32_t i = 0; i < 384; i++) {
        assert_int_equal(codes[i], i == 300 ? 0x7e : 0);
    }
}

static void test_quant__f16_and_bf16_give_what_their_f32_gives(void **state)
{
    const struct kern_mat mat = mat_of(200, 1, 60);
    static float x[200], scales[3], want_scales[3];
    static uint16_t half[200];
    static uint8_t codes[200], want[200];
    struct quant_bad bad;

    (void)state;
    for (int type = KERN_SRC_F16; type <= KERN_SRC_BF16; type++) {
        const struct kern_rows rows = { (enum kern_src)type, half, 0, 1, 200, NULL };
        const struct kern_rows wide = { KERN_SRC_F32, x, 0, 1, 200, NULL };

        for (uint32_t i = 0; i < 200; i++) {
            half[i] = (uint16_t)(0x3000 + i * 29);
            x[i] = type == KERN_SRC_F16 ? f16_to_f32(half[i]) : bf16_to_f32(half[i]);
        }
        assert_true(quant_rows(&mat, &rows, codes, scales, &bad));
        assert_true(quant_rows(&mat, &wide, want, want_scales, &bad));
        assert_memory_equal(codes, want, sizeof want);
        assert_memory_equal(scales, want_scales, sizeof want_scales);
    }
}

static void test_quant__what_is_no_number_is_found_by_its_place(void **state)
{
    static const float bads[] = { NAN, INFINITY, -INFINITY };
    const struct kern_mat mat = mat_of(K, 2, 0);
    static float x[ROWS * K], scales[ROWS * 7];
    static uint8_t codes[ROWS * K];
    const struct kern_rows rows = { KERN_SRC_F32, x, 0, ROWS, K, NULL };
    struct quant_bad bad = { 0, 0 };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bads); i++) {
        fill(x, ROWS * K);
        x[1 * K + 401] = bads[i];
        assert_false(quant_rows(&mat, &rows, codes, scales, &bad));
        assert_int_equal(bad.row, 1);
        assert_int_equal(bad.k, 401);
    }
    memset(codes, 0x7e, sizeof codes);
    assert_true(quant_check(codes, ROWS, K, &bad));
    codes[2 * K + 699] = 0xff;
    assert_false(quant_check(codes, ROWS, K, &bad));
    assert_int_equal(bad.row, 2);
    assert_int_equal(bad.k, 699);
    codes[77] = 0x7f;
    assert_false(quant_check(codes, ROWS, K, &bad));
    assert_int_equal(bad.row, 0);
    assert_int_equal(bad.k, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_e4m3__all_256_values_are_those_of_the_format),
        cmocka_unit_test(test_e4m3__rounding_is_to_the_nearest_even_and_saturates),
        cmocka_unit_test(test_quant__a_groups_scale_is_its_largest_weight_over_448),
        cmocka_unit_test(test_quant__a_slice_has_the_codes_and_scales_of_the_whole),
        cmocka_unit_test(test_quant__nothing_and_next_to_nothing_have_scale_0),
        cmocka_unit_test(test_quant__f16_and_bf16_give_what_their_f32_gives),
        cmocka_unit_test(test_quant__what_is_no_number_is_found_by_its_place),
    };

    cpu_float_env_set();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
