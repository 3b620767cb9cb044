/* tests/unit/kernels/test_plugin.c - the loader of the CUDA table says what is missing, and where it
 * looked; with a device it gives a table. */
#include "kernels/plugin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void test_plugin__missing_file_is_named(void **state)
{
    const struct kern_ops *ops = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(kern_ops_cuda_from("/nowhere/gantry_cuda.so", 0, &ops, &err),
                     ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nowhere/gantry_cuda.so"));
    assert_null(ops);
}

static void test_plugin__other_library_is_refused(void **state)
{
    const struct kern_ops *ops = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(kern_ops_cuda_from("libm.so.6", 0, &ops, &err), ST_ERR_MISMATCH);
    assert_non_null(strstr(err.text, KERN_PLUGIN_SYMBOL));
    assert_null(ops);
}

static void test_plugin__device_number_has_an_end(void **state)
{
    const struct kern_ops *ops = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(kern_ops_cuda_from("libm.so.6", 64, &ops, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "64"));
}

static void test_plugin__is_found_or_says_why_not(void **state)
{
    const struct kern_ops *ops = NULL;
    struct err err = ERR_INIT;
    const status st = kern_ops_cuda(0, &ops, &err);

    (void)state;
    if (st == ST_OK) {
        assert_non_null(ops);
        assert_string_equal(ops->name, "cuda");
        assert_int_equal(strncmp(ops->profile[KERN_BF16], "cuda-sm", 7), 0);
        assert_true(ops->on_device);
    } else {
        assert_true(st == ST_ERR_NOT_FOUND || st == ST_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.text, "CUDA"));
        assert_null(ops);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plugin__missing_file_is_named),
        cmocka_unit_test(test_plugin__other_library_is_refused),
        cmocka_unit_test(test_plugin__device_number_has_an_end),
        cmocka_unit_test(test_plugin__is_found_or_says_why_not),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
