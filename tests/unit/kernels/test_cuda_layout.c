/* tests/unit/kernels/test_cuda_layout.c - the arithmetic that a device and a machine without one must
 * share: where weights lie, what they take, the permutations of fragments, the order of candidates. */
#include "kernels/cand.h"
#include "kernels/cuda/layout_cuda.h"
#include "kernels/cuda/select.cuh"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct kern_mat mat_of(enum kern_fmt fmt, uint32_t n, uint32_t k, uint32_t n_leaves)
{
    struct kern_mat mat = { .fmt = fmt, .n = n, .k = k, .n_leaves = n_leaves };

    for (uint32_t i = 0; i <= n_leaves; i++) {
        mat.leaf[i] = kern_leaf_begin(k, n_leaves, i);
    }
    return mat;
}

/* Every weight has a place of its own inside mat_bytes. */
static void places(enum kern_fmt fmt, uint32_t n, uint32_t k, uint32_t n_leaves)
{
    const struct kern_mat mat = mat_of(fmt, n, k, n_leaves);
    const uint32_t el = fmt == KERN_BF16 ? 2 : 4, n_steps = cu_leaf_step(&mat, n_leaves);
    const size_t bytes = kern_mat_bytes_cuda(&mat);
    char *taken = calloc(bytes, 1);

    assert_non_null(taken);
    for (uint32_t leaf = 0; leaf < n_leaves; leaf++) {
        for (uint32_t i = 0; i < mat.leaf[leaf + 1] - mat.leaf[leaf]; i++) {
            for (uint32_t o = 0; o < n; o++) {
                const size_t at = cu_mat_at(fmt, n_steps, o, cu_leaf_step(&mat, leaf), i);

                assert_true(at % el == 0 && at + el <= bytes);
                assert_int_equal(taken[at], 0);
                taken[at] = 1;
            }
        }
    }
    free(taken);
}

static void test_cuda_layout__weights_have_places_of_their_own(void **state)
{
    (void)state;
    places(KERN_BF16, 37, 75, 1);
    places(KERN_BF16, 129, 172, 8);
    places(KERN_BF16, 16, 3, 8); /* leaves without inputs */
    places(KERN_F32, 37, 75, 1);
    places(KERN_F32, 33, 90, 4);
}

static void test_cuda_layout__usual_shapes_take_no_padding(void **state)
{
    const struct kern_mat down = mat_of(KERN_BF16, 4096, 14336, 8);
    const struct kern_mat qkv = mat_of(KERN_BF16, 6144, 4096, 1);

    (void)state;
    assert_int_equal(kern_mat_bytes_cuda(&down), (size_t)4096 * 14336 * 2);
    assert_int_equal(kern_mat_bytes_cuda(&qkv), (size_t)6144 * 4096 * 2);
}

/* A warp's 16 bytes a lane of half a step are 512 bytes in a row, and lane (g, c)'s are inputs
 * 8c .. 8c+7 of output g. */
static void test_cuda_layout__a_lane_reads_its_fragment(void **state)
{
    (void)state;
    for (uint32_t lane = 0; lane < 32; lane++) {
        const uint32_t g = lane / 4, c = lane % 4;

        assert_int_equal(cu_mat_at(KERN_BF16, 5, 16 + g, 0, 64 + 8 * c),
                         (5 + 2) * CU_RUN_BYTES + lane * 16);
        assert_int_equal(cu_mat_at(KERN_BF16, 5, 16 + 8 + g, 0, 64 + 8 * c),
                         (5 + 2) * CU_RUN_BYTES + 512 + lane * 16);
    }
}

static void test_cuda_layout__permutations_cover_every_place_once(void **state)
{
    uint32_t inputs = 0, slots = 0;

    (void)state;
    for (uint32_t s = 0; s < 2; s++) {
        for (uint32_t c = 0; c < 4; c++) {
            for (uint32_t e = 0; e < 4; e++) {
                inputs |= 1u << cu_input_of(s, c, e);
            }
        }
    }
    for (uint32_t j = 0; j < 4; j++) {
        for (uint32_t n = 0; n < 8; n++) {
            slots |= 1u << cu_slot_of(j, n);
            /* Column n belongs to lane column n / 2, which needs slots 8c .. 8c + 7. */
            assert_int_equal(cu_slot_of(j, n) / 8, n / 2);
        }
    }
    assert_int_equal(inputs, ~0u);
    assert_int_equal(slots, ~0u);
}

static void test_cuda_select__keys_order_as_candidates_do(void **state)
{
    static const float x[] = { 0.0f,    -0.0f, 1.0f,   -1.0f,    1e-30f,
                               -1e-30f, 3e38f, -3e38f, INFINITY, -INFINITY };

    (void)state;
    for (uint32_t i = 0; i < 10; i++) {
        for (uint32_t j = 0; j < 10; j++) {
            for (uint32_t id = 0; id < 3; id++) {
                const struct kern_cand a = { x[i], 1 }, b = { x[j], id };

                assert_int_equal(cu_key(a.logit, a.id) > cu_key(b.logit, b.id), cand_before(a, b));
                assert_int_equal(cu_key_id(cu_key(b.logit, b.id)), b.id);
            }
        }
    }
    assert_true(cu_key(NAN, 4) == cu_key(-INFINITY, 4));
}

/* The n-th key of a pile, digit by digit. */
static void test_cuda_select__digits_find_the_threshold(void **state)
{
    enum { N = 500 };
    uint64_t keys[N];
    uint32_t seed = 5;

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        seed = seed * 1664525u + 1013904223u;
        keys[i] = cu_key((float)(seed >> 28), i); /* 16 values: ties */
    }
    for (uint32_t n = 1; n <= N; n += 37) {
        uint64_t prefix = 0;
        uint32_t want = n, at_or_above = 0;

        for (uint32_t digit = 0; digit < CU_DIGITS; digit++) {
            uint32_t counts[CU_BINS] = { 0 };
            uint32_t bin;

            for (uint32_t i = 0; i < N; i++) {
                if (cu_key_matches(keys[i], prefix, digit)) {
                    counts[cu_key_digit(keys[i], digit)]++;
                }
            }
            bin = cu_pick_digit(counts, want, &want);
            prefix |= (uint64_t)bin << (64 - (digit + 1) * CU_DIGIT_BITS);
        }
        for (uint32_t i = 0; i < N; i++) {
            at_or_above += keys[i] >= prefix;
        }
        assert_int_equal(at_or_above, n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_layout__weights_have_places_of_their_own),
        cmocka_unit_test(test_cuda_layout__usual_shapes_take_no_padding),
        cmocka_unit_test(test_cuda_layout__a_lane_reads_its_fragment),
        cmocka_unit_test(test_cuda_layout__permutations_cover_every_place_once),
        cmocka_unit_test(test_cuda_select__keys_order_as_candidates_do),
        cmocka_unit_test(test_cuda_select__digits_find_the_threshold),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
