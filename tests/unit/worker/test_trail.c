/* The ring of last steps as text. */
#include "worker/trail.h"

#include "base/clock.h"
#include "base/compiler.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { TEXT_BYTES = 32 * 1024 };

static char text[TEXT_BYTES];

/* What the descriptor gives until its end. */
static void slurp(int fd)
{
    size_t len = 0;

    for (ssize_t n; (n = read(fd, text + len, sizeof(text) - 1 - len)) > 0;) {
        len += (size_t)n;
    }
    text[len] = '\0';
    close(fd);
}

static void write_to_text(const struct trail *t, const struct coll_watch *w)
{
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    trail_write(t, w, 3, "fault", fds[1]);
    close(fds[1]);
    slurp(fds[0]);
}

static uint32_t count(const char *what)
{
    uint32_t n = 0;

    for (const char *at = text; (at = strstr(at, what)) != NULL; at++) {
        n++;
    }
    return n;
}

static void test_trail__nothing_begun_says_nothing(void **state UNUSED)
{
    static struct trail t;
    static struct coll_watch w;

    write_to_text(&t, &w);
    assert_string_equal(text, "");
}

static void test_trail__the_last_64_steps_are_told_in_order(void **state UNUSED)
{
    static struct trail t;
    static struct coll_watch w;

    for (uint64_t i = 1; i <= 100; i++) {
        trail_begin(&t, &(struct trail_note){ i, 0xabc0 + i, 7, 2 });
        coll_watch_begin(&w, COLL_OP_SUM, 10 * i);
        coll_watch_end(&w);
        trail_end(&t, &w);
    }
    write_to_text(&t, &w);
    assert_int_equal(count("\n"), 65);
    assert_int_equal(count("trail r3 step "), 64);
    assert_ptr_equal(strstr(text, "trail r3 fault: 64 steps, the newest last\ntrail r3 step 37 "),
                     text);
    assert_null(strstr(text, "step 36 "));
    const char *last = strstr(text, "trail r3 step 100 digest 000000000000ac24 rows 7 streams 2 ");
    assert_non_null(last);
    assert_non_null(strstr(last, " s exchanges to #1000\n"));
    assert_int_equal(count(" took 0."), 64);
}

/* A step begun ahead of the one before it: each keeps its own end. */
static void test_trail__a_step_ends_behind_the_begin_of_the_next(void **state UNUSED)
{
    static struct trail t;
    static struct coll_watch w;

    trail_begin(&t, &(struct trail_note){ 1, 7, 7, 2 });
    trail_begin(&t, &(struct trail_note){ 2, 8, 7, 2 });
    trail_end(&t, &w);
    write_to_text(&t, &w);
    const char *second = strstr(text, "trail r3 step 2 ");
    assert_non_null(second);
    assert_non_null(strstr(second, " ago runs, "));
    assert_int_equal(count(" took "), 1);
}

static void test_trail__a_running_step_says_what_it_is_in(void **state UNUSED)
{
    static struct trail t;
    static struct coll_watch w;

    trail_begin(&t, &(struct trail_note){ 813, UINT64_MAX, 8, 8 });
    write_to_text(&t, &w);
    assert_non_null(strstr(text, "step 813 digest ffffffffffffffff rows 8 streams 8 began 0.0"));
    assert_non_null(strstr(text, " s ago runs, exchanges to #0\n"));
    coll_watch_begin(&w, COLL_OP_SUM, 8155);
    coll_watch_wait(&w, 2, clock_now_ns(clock_real()));
    write_to_text(&t, &w);
    assert_non_null(strstr(text, " ago runs, in sum #8155 for rank 2 since 0.0"));
}

/* In a child, whose standard error is the pipe. Ends by `sig`, or goes on after it. */
static int child_gets(int sig)
{
    static struct trail t;
    static struct coll_watch w;
    int fds[2], code = 0;

    assert_int_equal(pipe(fds), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        for (int k = 1; k < NSIG; k++) { /* cmocka's and a sanitizer's are not ours */
            signal(k, SIG_DFL);
        }
        trail_begin(&t, &(struct trail_note){ 5, 6, 7, 8 });
        trail_watch_signals(&t, &w, 1);
        raise(sig);
        _exit(33);
    }
    close(fds[1]);
    slurp(fds[0]);
    assert_int_equal(waitpid(pid, &code, 0), pid);
    return code;
}

static void test_trail__signals_that_end_the_process_tell_it_first(void **state UNUSED)
{
    static const int signals[] = { SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGTERM };

    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        char want[64];
        const int code = child_gets(signals[i]);
        assert_true(WIFSIGNALED(code));
        assert_int_equal(WTERMSIG(code), signals[i]);
        snprintf(want, sizeof(want), "trail r1 signal %d: 1 steps, the newest last\n", signals[i]);
        assert_ptr_equal(strstr(text, want), text);
        assert_int_equal(count("\n"), 2);
    }
}

static void test_trail__sigusr2_shows_it_and_the_process_goes_on(void **state UNUSED)
{
    const int code = child_gets(SIGUSR2);

    assert_true(WIFEXITED(code));
    assert_int_equal(WEXITSTATUS(code), 33);
    assert_non_null(strstr(text, "trail r1 on SIGUSR2: 1 steps"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trail__nothing_begun_says_nothing),
        cmocka_unit_test(test_trail__the_last_64_steps_are_told_in_order),
        cmocka_unit_test(test_trail__a_step_ends_behind_the_begin_of_the_next),
        cmocka_unit_test(test_trail__a_running_step_says_what_it_is_in),
        cmocka_unit_test(test_trail__signals_that_end_the_process_tell_it_first),
        cmocka_unit_test(test_trail__sigusr2_shows_it_and_the_process_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
