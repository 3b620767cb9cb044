/* tests/unit/base/test_log.c */
#include "base/log.h"

#include "base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int pipe_fds[2];
static char line[4096];

/* What was logged since the last call, as one string. */
static const char *logged(void)
{
    /* The pipe is read only where something is known to be in it: a mark of our own. */
    assert_int_equal(write(pipe_fds[1], "#", 1), 1);
    const ssize_t n = read(pipe_fds[0], line, sizeof(line) - 1);
    assert_true(n >= 1);
    line[n - 1] = '\0';
    return line;
}

static int setup(void **state UNUSED)
{
    return pipe(pipe_fds);
}

static void test_log__a_line_has_time_level_subject_rank_request_text(void **state UNUSED)
{
    log_init(LOG_INFO, pipe_fds[1]);
    log_set_rank(3);
    log_req(LOG_WARN, "launch", "req-7", "%u tries", 5u);
    const char *text = logged();
    assert_int_equal(text[10], 'T');
    assert_int_equal(text[23], 'Z');
    assert_string_equal(text + 24, " warn  launch r3 req-7 5 tries\n");
    log_set_rank(-1);
    log_error("boot", "gone");
    assert_string_equal(logged() + 24, " error boot - - gone\n");
}

static int evaluated;

static int evaluate(void)
{
    return ++evaluated;
}

static void test_log__below_the_level_nothing_is_evaluated(void **state UNUSED)
{
    log_init(LOG_WARN, pipe_fds[1]);
    log_info("x", "%d", evaluate());
    assert_int_equal(evaluated, 0);
    assert_string_equal(logged(), "");
    log_warn("x", "%d", evaluate());
    assert_int_equal(evaluated, 1);
    assert_string_not_equal(logged(), "");
}

static void test_log__a_name_from_outside_forges_no_line(void **state UNUSED)
{
    char huge[3000];

    log_init(LOG_INFO, pipe_fds[1]);
    log_info("x", "model \"%s\"", "a\n2026-01-01 error forged\x1b[31m");
    const char *text = logged();
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_null(strchr(text, '\x1b'));
    memset(huge, 'y', sizeof(huge) - 1);
    huge[sizeof(huge) - 1] = '\0';
    log_info("x", "%s", huge);
    text = logged();
    assert_int_equal(text[strlen(text) - 1], '\n');
    assert_true(strlen(text) <= 1024);
}

static void test_log_level_parse__names_the_words(void **state UNUSED)
{
    enum log_level level = LOG_ERROR;
    struct err err = ERR_INIT;

    assert_int_equal(log_level_parse("debug", &level, &err), ST_OK);
    assert_int_equal(level, LOG_DEBUG);
    assert_int_equal(log_level_parse("loud", &level, &err), ST_ERR_ARG);
    assert_non_null(strstr(err.text, "trace"));
    assert_int_equal(level, LOG_DEBUG);
}

static void test_clock__is_monotonic_and_wall_time_is_of_this_century(void **state UNUSED)
{
    const uint64_t a = clock_now_ns(clock_real());
    const uint64_t b = clock_now_ns(clock_real());

    assert_true(b >= a);
    assert_true(clock_wall_us() > 1700000000ull * 1000000u);
    assert_true(clock_wall_us() < 4102444800ull * 1000000u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log__a_line_has_time_level_subject_rank_request_text),
        cmocka_unit_test(test_log__below_the_level_nothing_is_evaluated),
        cmocka_unit_test(test_log__a_name_from_outside_forges_no_line),
        cmocka_unit_test(test_log_level_parse__names_the_words),
        cmocka_unit_test(test_clock__is_monotonic_and_wall_time_is_of_this_century),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
