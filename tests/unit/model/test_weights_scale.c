/* tests/unit/model/test_weights_scale.c - the scales of fp8 matrices: every layout that is in use, and
 * what is refused. */
#include "model/weights.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "unit/model/weights_fixture.h"

static char dir[FIXTURE_PATH_BYTES];
static const struct model_quant plain = { MODEL_QUANT_FP8, 0, 0 };
static const struct model_quant blocks = { MODEL_QUANT_FP8, 128, 128 };

static int setup(void **state UNUSED)
{
    fixture_dir_create(dir);
    return 0;
}

static int teardown(void **state UNUSED)
{
    fixture_dir_remove(dir);
    return 0;
}

struct scale_tensor {
    const char *ending, *dtype;
    uint64_t rows, cols; /* cols 0: one dimension; both 0: none */
};

/* "m.weight" F8 [200, 300] and up to two tensors beside it. */
static status find(const struct model_quant *quant, struct scale_tensor a, struct scale_tensor b,
                   struct weights_scale *scale_p, struct err *err)
{
    struct st_builder builder = { BUF_INIT, 0 };
    struct weights *w = NULL;
    char name[64];

    st_add(&builder, "m.weight", "F8_E4M3", 200, 300);
    for (int i = 0; i < 2; i++) {
        const struct scale_tensor *t = i == 0 ? &a : &b;
        if (t->ending != NULL) {
            snprintf(name, sizeof(name), "m.weight%s", t->ending);
            st_add(&builder, name, t->dtype, t->rows, t->cols);
        }
    }
    st_finish(&builder, dir, "model.safetensors");
    assert_int_equal(weights_open(dir, &w, err), ST_OK);
    const status st = weights_scale_find(w, quant, weights_find(w, "m.weight"), scale_p, err);
    if (st == ST_OK) { /* the tensor goes with the weights: only its presence is looked at later */
        assert_non_null(scale_p->tensor);
    }
    weights_close(w);
    return st;
}

static void test_scale__each_layout_in_use_is_found(void **state UNUSED)
{
    static const struct {
        const struct model_quant *quant;
        struct scale_tensor t;
        uint64_t rows, cols, block_rows, block_cols;
    } cases[] = {
        { &plain, { "_scale", "F32", 0, 0 }, 1, 1, 0, 0 },
        { &plain, { "_scale", "BF16", 1, 0 }, 1, 1, 0, 0 },
        { &plain, { "_scale", "F32", 1, 1 }, 1, 1, 0, 0 },
        { &plain, { "_scale_inv", "F32", 1, 0 }, 1, 1, 0, 0 },
        { &plain, { "_scale", "BF16", 200, 1 }, 200, 1, 1, 0 },
        { &plain, { "_scale", "F16", 200, 0 }, 200, 1, 1, 0 },
        { &blocks, { "_scale_inv", "F32", 2, 3 }, 2, 3, 128, 128 },
        { &blocks, { "_scale", "BF16", 2, 3 }, 2, 3, 128, 128 },
        { &blocks, { "_scale", "F32", 200, 1 }, 200, 1, 1, 0 },
        { &blocks, { "_scale", "F32", 0, 0 }, 1, 1, 0, 0 },
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct scale_tensor none = { NULL, NULL, 0, 0 };
        struct weights_scale s;
        struct err err = ERR_INIT;
        if (find(cases[i].quant, cases[i].t, none, &s, &err) != ST_OK) {
            fail_msg("case %zu: %s", i, err.text);
        }
        assert_int_equal(s.rows, cases[i].rows);
        assert_int_equal(s.cols, cases[i].cols);
        assert_int_equal(s.block_rows, cases[i].block_rows);
        assert_int_equal(s.block_cols, cases[i].block_cols);
    }
}

static void test_scale__shapes_that_do_not_go_with_the_matrix_are_refused(void **state UNUSED)
{
    static const struct scale_tensor bad[] = {
        { "_scale", "F32", 199, 1 }, { "_scale", "F32", 1, 200 }, { "_scale", "F32", 300, 0 },
        { "_scale", "F32", 3, 2 },   { "_scale", "F32", 1, 3 },   { "_scale_inv", "F32", 2, 2 },
        { "_scale", "F32", 2, 0 },
    };
    const struct scale_tensor none = { NULL, NULL, 0, 0 };
    struct weights_scale s;
    struct err err = ERR_INIT;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(find(&blocks, bad[i], none, &s, &err), ST_ERR_FORMAT);
        assert_non_null(strstr(err.text, "m.weight_scale"));
        assert_non_null(strstr(err.text, "[200, 300]"));
        assert_non_null(strstr(err.text, "[2, 3]"));
    }
    /* Blocks whose size nobody says. */
    assert_int_equal(
        find(&plain, (struct scale_tensor){ "_scale_inv", "F32", 2, 3 }, none, &s, &err),
        ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "no size of blocks"));
}

static void test_scale__none_two_and_other_dtypes_are_refused(void **state UNUSED)
{
    const struct scale_tensor none = { NULL, NULL, 0, 0 }, one = { "_scale", "F32", 0, 0 };
    struct weights_scale s;
    struct err err = ERR_INIT;

    assert_int_equal(find(&plain, none, none, &s, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "no scales"));
    assert_int_equal(
        find(&plain, one, (struct scale_tensor){ "_scale_inv", "F32", 0, 0 }, &s, &err),
        ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "twice"));
    assert_int_equal(
        find(&plain, (struct scale_tensor){ "_scale", "F8_E8M0", 1, 1 }, none, &s, &err),
        ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "F8_E8M0"));
    assert_int_equal(
        find(&plain, (struct scale_tensor){ "_scale", "F8_E4M3", 1, 1 }, none, &s, &err),
        ST_ERR_UNSUPPORTED);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_scale__each_layout_in_use_is_found),
        CASE(test_scale__shapes_that_do_not_go_with_the_matrix_are_refused),
        CASE(test_scale__none_two_and_other_dtypes_are_refused),
    };
    return cmocka_run_group_tests_name("weights_scale", tests, NULL, NULL);
}
