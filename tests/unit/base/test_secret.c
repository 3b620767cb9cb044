/* tests/unit/base/test_secret.c - a secret is the first line of a file that only its owner may read. */
#include "common/fixture.h"

#include "base/secret.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

struct place {
    char dir[FIXTURE_PATH_BYTES], file[FIXTURE_PATH_BYTES + 16];
    struct buf secret;
    struct err err;
};

static int setup(void **state)
{
    static struct place p;

    fixture_dir_create(p.dir);
    snprintf(p.file, sizeof(p.file), "%s/token", p.dir);
    p.secret = (struct buf)BUF_INIT;
    *state = &p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;

    buf_fini(&p->secret);
    fixture_dir_remove(p->dir);
    return 0;
}

static status read_with(struct place *p, const char *text, mode_t mode)
{
    fixture_write(p->dir, "token", text);
    assert_int_equal(chmod(p->file, mode), 0);
    return secret_read(p->file, &p->secret, &p->err);
}

static void test_secret__is_the_first_line(void **state)
{
    struct place *p = *state;

    assert_int_equal(read_with(p, "abc def\r\nsecond\n", 0600), ST_OK);
    assert_int_equal(p->secret.len, 7);
    assert_string_equal(p->secret.data, "abc def");
    assert_int_equal(read_with(p, "no newline", 0400), ST_OK);
    assert_string_equal(p->secret.data, "no newline");
}

static void test_secret__that_others_may_read_is_none(void **state)
{
    struct place *p = *state;

    assert_int_equal(read_with(p, "abc\n", 0640), ST_ERR_DENIED);
    assert_non_null(strstr(p->err.text, "640"));
    assert_int_equal(read_with(p, "abc\n", 0604), ST_ERR_DENIED);
    assert_non_null(strstr(p->err.text, p->file));
}

static void test_secret__empty_or_missing_is_said(void **state)
{
    struct place *p = *state;

    assert_int_equal(secret_read(p->file, &p->secret, &p->err), ST_ERR_NOT_FOUND);
    assert_int_equal(read_with(p, "", 0600), ST_ERR_FORMAT);
    assert_int_equal(read_with(p, "\nabc\n", 0600), ST_ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_secret__is_the_first_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_secret__that_others_may_read_is_none, setup, teardown),
        cmocka_unit_test_setup_teardown(test_secret__empty_or_missing_is_said, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
