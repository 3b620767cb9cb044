/* tests/unit/base/test_buf.c */
#include "base/buf.h"

#include "common/alloc_fail.h"
#include "common/fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_buf__is_always_a_c_string(void **state UNUSED)
{
    struct buf b = BUF_INIT;

    assert_string_equal(b.data, "");
    for (int i = 0; i < 300; i++) {
        assert_int_equal(buf_append_char(&b, (char)('a' + i % 26)), ST_OK);
        assert_int_equal(b.len, i + 1);
        assert_int_equal(b.data[b.len], '\0');
    }
    buf_consume(&b, 298);
    assert_string_equal(b.data, "mn");
    assert_int_equal(buf_printf(&b, " %d-%s", 5, "x"), ST_OK);
    assert_string_equal(b.data, "mn 5-x");
    buf_reset(&b);
    assert_string_equal(b.data, "");
    assert_int_equal(buf_append(&b, "a\0b", 3), ST_OK);
    assert_memory_equal(b.data, "a\0b", 4);
    buf_fini(&b);
    assert_string_equal(b.data, "");
    buf_fini(&b);
    buf_fini(NULL);
}

static void test_buf__growing_past_the_bound_changes_nothing(void **state UNUSED)
{
    struct buf b = BUF_INIT_MAX(8);

    assert_int_equal(buf_append_str(&b, "1234567"), ST_OK);
    assert_int_equal(buf_append_str(&b, "89"), ST_ERR_LIMIT);
    assert_int_equal(buf_printf(&b, "%s", "89"), ST_ERR_LIMIT);
    assert_int_equal(buf_reserve(&b, SIZE_MAX), ST_ERR_LIMIT);
    assert_string_equal(b.data, "1234567");
    buf_fini(&b);
}

static void test_buf__out_of_memory_changes_nothing(void **state UNUSED)
{
    struct buf b = BUF_INIT;

    alloc_fail_at(1);
    assert_int_equal(buf_append_str(&b, "x"), ST_ERR_NOMEM);
    assert_true(alloc_fail_off());
    assert_string_equal(b.data, "");
    assert_int_equal(buf_append_str(&b, "x"), ST_OK);
    assert_string_equal(b.data, "x");
    buf_fini(&b);
}

static void test_buf_read_file__names_path_and_limit(void **state UNUSED)
{
    char dir[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 8];
    struct buf b = BUF_INIT;
    struct err err = ERR_INIT;

    fixture_dir_create(dir);
    fixture_write(dir, "ten", "0123456789");
    snprintf(path, sizeof(path), "%s/ten", dir);
    assert_int_equal(buf_read_file(&b, path, 10, &err), ST_OK);
    assert_string_equal(b.data, "0123456789");
    assert_int_equal(buf_read_file(&b, path, 9, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, path));
    assert_non_null(strstr(err.text, "9 bytes"));
    assert_int_equal(buf_read_file(&b, dir, 10, &err), ST_ERR_IO);
    assert_non_null(strstr(err.text, "not a regular file"));
    snprintf(path, sizeof(path), "%s/none", dir);
    assert_int_equal(buf_read_file(&b, path, 10, &err), ST_ERR_NOT_FOUND);
    buf_fini(&b);
    fixture_dir_remove(dir);
}

static void test_buf_fail__tells_memory_from_the_bound(void **state)
{
    struct buf b = BUF_INIT_MAX(4);
    struct err err = ERR_INIT;

    (void)state;
    status st = buf_append_str(&b, "12345");
    assert_int_equal(buf_fail(&b, st, "the word", &err), ST_ERR_LIMIT);
    assert_string_equal(err.text, "the word: over 4 bytes");
    alloc_fail_at(1);
    st = buf_append_str(&b, "1");
    assert_true(alloc_fail_off());
    assert_int_equal(buf_fail(&b, st, "the word", &err), ST_ERR_NOMEM);
    assert_string_equal(err.text, "the word: no memory");
    buf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buf__is_always_a_c_string),
        cmocka_unit_test(test_buf__growing_past_the_bound_changes_nothing),
        cmocka_unit_test(test_buf__out_of_memory_changes_nothing),
        cmocka_unit_test(test_buf_fail__tells_memory_from_the_bound),
        cmocka_unit_test(test_buf_read_file__names_path_and_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
