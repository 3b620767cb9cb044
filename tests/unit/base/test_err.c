/* tests/unit/base/test_err.c */
#include "base/err.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const status all[] = {
    ST_ERR_ARG,      ST_ERR_NOMEM,     ST_ERR_IO,          ST_ERR_FORMAT,    ST_ERR_UNSUPPORTED,
    ST_ERR_LIMIT,    ST_ERR_NOT_FOUND, ST_ERR_EXISTS,      ST_ERR_CANCELLED, ST_ERR_DEADLINE,
    ST_ERR_UNAUTH,   ST_ERR_DENIED,    ST_ERR_UNAVAILABLE, ST_ERR_PEER,      ST_ERR_PROTO,
    ST_ERR_MISMATCH, ST_ERR_INTERNAL,
};

static void test_err__every_status_has_a_name_and_an_exit_code(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        assert_string_not_equal(status_name(all[i]), "unknown status");
        assert_true(status_exit_code(all[i]) > 0);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(status_name(all[i]), status_name(all[j]));
        }
    }
    assert_int_equal(status_exit_code(ST_OK), 0);
    assert_int_equal(status_exit_code((status)-99), 70);
    assert_non_null(status_name((status)-99));
}

static void test_err__prefix_and_errno_keep_the_code(void **state UNUSED)
{
    struct err err = ERR_INIT;

    assert_int_equal(err_set_errno(&err, ST_ERR_IO, ENOENT, "%s: open", "a.json"), ST_ERR_IO);
    assert_string_equal(err.text, "a.json: open: No such file or directory");
    assert_int_equal(err_prefix(&err, "model %d: ", 3), ST_ERR_IO);
    assert_string_equal(err.text, "model 3: a.json: open: No such file or directory");
    assert_int_equal(err_set(NULL, ST_ERR_ARG, "nobody listens"), ST_ERR_ARG);
    assert_int_equal(err_set_errno(NULL, ST_ERR_IO, ENOENT, "nobody"), ST_ERR_IO);
}

/* A message crosses nodes as a proto3 string, which must be whole UTF-8. */
static void test_err__long_texts_end_on_a_whole_character(void **state UNUSED)
{
    char long_text[2 * ERR_TEXT_BYTES] = "";
    struct err err = ERR_INIT;

    for (int shift = 0; shift < 4; shift++) {
        memset(long_text, 'x', (size_t)shift);
        long_text[shift] = '\0';
        while (strlen(long_text) + 4 < sizeof(long_text)) {
            strcat(long_text, "\xF0\x9F\x9A\x80");
        }
        (void)err_set(&err, ST_ERR_ARG, "%s", long_text);
        assert_int_equal((strlen(err.text) - (size_t)shift) % 4, 0);
        assert_true(strlen(err.text) > ERR_TEXT_BYTES - 8);
        (void)err_prefix(&err, "p");
        assert_int_equal((strlen(err.text) - 1 - (size_t)shift) % 4, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err__every_status_has_a_name_and_an_exit_code),
        cmocka_unit_test(test_err__prefix_and_errno_keep_the_code),
        cmocka_unit_test(test_err__long_texts_end_on_a_whole_character),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
