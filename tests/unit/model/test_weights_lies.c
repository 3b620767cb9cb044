/* tests/unit/model/test_weights_lies.c - safetensors files that say what is not so. */
#include "model/weights.h"

#include "weights_fixture.h"

#include "common/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[FIXTURE_PATH_BYTES];

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

static void expect_refused(status want, const char *word)
{
    struct weights *w = NULL;
    struct err err = ERR_INIT;
    const status st = weights_open(dir, &w, &err);

    if (st != want || strstr(err.text, word) == NULL) {
        fail_msg("got %d \"%s\", wanted %d and \"%s\"", st, err.text, want, word);
    }
    assert_null(w);
}

static void expect_lie(const char *header, size_t data_bytes, const char *word)
{
    st_write(dir, "model.safetensors", header, 0, data_bytes);
    expect_refused(ST_ERR_FORMAT, word);
}

static void test_lies__an_empty_directory_is_not_found(void **state UNUSED)
{
    expect_refused(ST_ERR_NOT_FOUND, "neither model.safetensors nor");
}

static void test_lies__a_header_longer_than_the_file_is_refused(void **state UNUSED)
{
    static const uint64_t lengths[] = { 100, 100 * 1000 * 1000 };
    static const uint64_t huge[] = { 100 * 1000 * 1000 + 1, UINT64_MAX, UINT64_MAX - 7,
                                     (uint64_t)1 << 63 };

    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        st_write(dir, "model.safetensors", "{}", lengths[i], 0);
        expect_refused(ST_ERR_FORMAT, "the file has 10");
    }
    for (size_t i = 0; i < ARRAY_LEN(huge); i++) {
        st_write(dir, "model.safetensors", "{}", huge[i], 0);
        expect_refused(ST_ERR_FORMAT, "over the format's limit");
    }
}

static void test_lies__a_file_too_short_for_a_header_is_refused(void **state UNUSED)
{
    fixture_write(dir, "model.safetensors", "");
    expect_refused(ST_ERR_FORMAT, "too few");
    fixture_write(dir, "model.safetensors", "1234567");
    expect_refused(ST_ERR_FORMAT, "too few");
}

static void test_lies__a_folder_or_fifo_of_that_name_does_not_hang(void **state UNUSED)
{
    char path[FIXTURE_PATH_BYTES + 32];

    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_refused(ST_ERR_IO, "not a regular file");
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_refused(ST_ERR_IO, "not a regular file");
}

static void test_lies__a_truncated_file_is_named_as_such(void **state UNUSED)
{
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [2, 2], \"data_offsets\": [0, 16]}}", 15,
               "tensor \"a\" ends at byte 16 of the data, the file has 15");
}

static void test_lies__offsets_that_make_no_sense_are_refused(void **state UNUSED)
{
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 0]}}", 8,
               "run backwards");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [-4, 0]}}", 8,
               "not two offsets");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4, 8]}}", 8,
               "not two offsets");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0.0, 4.0]}}", 8,
               "not two offsets");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}", 8, "not two offsets");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, "
               "9223372036854775807]}}",
               8, "ends at byte 9223372036854775807");
}

static void test_lies__a_shape_that_does_not_fit_its_bytes_is_refused(void **state UNUSED)
{
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [3], \"data_offsets\": [0, 8]}}", 8,
               "[3] of F32 is 12 bytes, data_offsets hold 8");
    expect_lie("{\"a\": {\"dtype\": \"BF16\", \"shape\": [0], \"data_offsets\": [0, 8]}}", 8,
               "is 0 bytes");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], "
               "\"data_offsets\": [0, 0]}}",
               8, "more than 2^56 elements");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [9223372036854775807, 2, 2], "
               "\"data_offsets\": [0, 0]}}",
               8, "more than 2^56 elements");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [-1], \"data_offsets\": [0, 8]}}", 8,
               "no size");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": 2, \"data_offsets\": [0, 8]}}", 8,
               "shape is not a list");
    expect_lie("{\"a\": {\"dtype\": 3, \"shape\": [2], \"data_offsets\": [0, 8]}}", 8,
               "dtype is not a string");
}

static void test_lies__tensors_that_share_bytes_are_refused(void **state UNUSED)
{
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
               "\"b\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [4, 12]}}",
               12, "overlap");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
               "\"b\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
               12, "overlap");
}

static void test_lies__a_header_that_is_no_object_of_tensors_is_refused(void **state UNUSED)
{
    expect_lie("[]", 8, "not a JSON object");
    expect_lie("{\"a\": 1}", 8, "not an object");
    expect_lie("{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}, "
               "\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}}",
               8, "duplicate");
    expect_lie("{\"\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4]}}", 8,
               "name has 0 bytes");
    expect_lie("{}", 8, "hold no tensors");
    expect_lie("{\"__metadata__\": {\"format\": \"pt\"}}", 8, "hold no tensors");
    expect_lie("{\"a\": ", 8, "line 1");
}

static void test_lies__an_unknown_dtype_matters_only_to_who_needs_it(void **state UNUSED)
{
    struct model_desc d = { .family = "LlamaForCausalLM",
                            .n_layers = 1,
                            .dim = 2,
                            .n_heads = 1,
                            .n_kv_heads = 1,
                            .head_dim = 2,
                            .ffn_dim = 2,
                            .vocab = 2,
                            .ctx_max = 2,
                            .tied = true };
    struct weights *w = NULL;
    struct err err = ERR_INIT;

    st_write(
        dir, "model.safetensors",
        "{\"__metadata__\": {\"format\": \"pt\"}, "
        "\"model.embed_tokens.weight\": {\"dtype\": \"F8_E5M2\", \"shape\": [2, 2], "
        "\"data_offsets\": [0, 4]}, "
        "\"new\": {\"dtype\": \"F3_X\", \"shape\": [2, 2], \"data_offsets\": [4, 7]}, "
        "\"five\": {\"dtype\": \"F32\", \"shape\": [1, 1, 1, 1, 1], \"data_offsets\": [7, 11]}, "
        "\"ok\": {\"dtype\": \"F32\", \"shape\": [], \"data_offsets\": [11, 15]}}",
        0, 15);
    assert_int_equal(weights_open(dir, &w, &err), ST_OK);
    assert_int_equal(weights_count(w), 1);
    assert_int_equal(weights_foreign_count(w), 3);
    assert_string_equal(weights_foreign_find(w, "new"), "F3_X");
    assert_null(weights_foreign_find(w, "ok"));
    assert_int_equal(weights_check(w, &d, &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "model.embed_tokens.weight"));
    assert_non_null(strstr(err.text, "F8_E5M2"));
    weights_close(w);
}

static void test_lies__no_allocation_that_fails_is_believed(void **state UNUSED)
{
    static const char header[] =
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}";
    uint32_t n = 1;

    st_write(dir, "model.safetensors", header, 0, 8);
    for (;; n++) {
        struct weights *w = NULL;
        struct err err = ERR_INIT;
        alloc_fail_at(n);
        const status st = weights_open(dir, &w, &err);
        if (!alloc_fail_off()) {
            assert_int_equal(st, ST_OK);
            weights_close(w);
            break;
        }
        assert_int_equal(st, ST_ERR_NOMEM);
        assert_null(w);
    }
    assert_in_range(n, 4, 100);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_lies__an_empty_directory_is_not_found),
        CASE(test_lies__a_header_longer_than_the_file_is_refused),
        CASE(test_lies__a_file_too_short_for_a_header_is_refused),
        CASE(test_lies__a_folder_or_fifo_of_that_name_does_not_hang),
        CASE(test_lies__a_truncated_file_is_named_as_such),
        CASE(test_lies__offsets_that_make_no_sense_are_refused),
        CASE(test_lies__a_shape_that_does_not_fit_its_bytes_is_refused),
        CASE(test_lies__tensors_that_share_bytes_are_refused),
        CASE(test_lies__a_header_that_is_no_object_of_tensors_is_refused),
        CASE(test_lies__an_unknown_dtype_matters_only_to_who_needs_it),
        CASE(test_lies__no_allocation_that_fails_is_believed),
    };
    return cmocka_run_group_tests_name("weights_lies", tests, NULL, NULL);
}
