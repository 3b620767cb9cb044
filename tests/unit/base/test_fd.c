/* tests/unit/base/test_fd.c - what interrupts a call or takes a part of it does not reach the caller. */
#include "common/fixture.h"

#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmocka.h>

static volatile sig_atomic_t n_alarms;
static int alarm_fd;

/* The third one sends what the reader waits for. */
static void on_alarm(int sig)
{
    (void)sig;
    if (++n_alarms == 3) {
        (void)!write(alarm_fd, "word", 4);
    }
}

static void test_fd_read__is_not_interrupted(void **state)
{
    const struct sigaction action = { .sa_handler = on_alarm }; /* no SA_RESTART */
    const struct itimerval every = { { 0, 5000 }, { 0, 5000 } }, never = { { 0, 0 }, { 0, 0 } };
    struct sigaction before;
    char text[8] = "";
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    alarm_fd = fds[1];
    n_alarms = 0;
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &every, NULL), 0);
    assert_int_equal(fd_read(fds[0], text, sizeof(text)), 4);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    assert_string_equal(text, "word");
    assert_true(n_alarms >= 3);
    close(fds[0]);
    close(fds[1]);
}

static void test_fd_lock__one_at_a_time(void **state)
{
    char dir[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 8];

    (void)state;
    fixture_dir_create(dir);
    fixture_write(dir, "lock", "");
    snprintf(path, sizeof(path), "%s/lock", dir);
    const int one = open(path, O_RDWR), other = open(path, O_RDWR);
    assert_true(fd_lock(one));
    assert_false(fd_lock(other));
    assert_int_equal(errno, EWOULDBLOCK);
    close(one);
    assert_true(fd_lock(other));
    close(other);
    fixture_dir_remove(dir);
}

static void test_fd_truncate__cuts(void **state)
{
    char dir[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 8];

    (void)state;
    fixture_dir_create(dir);
    fixture_write(dir, "ten", "0123456789");
    snprintf(path, sizeof(path), "%s/ten", dir);
    const int fd = open(path, O_RDWR);
    assert_int_equal(fd_truncate(fd, 4), 0);
    assert_int_equal(lseek(fd, 0, SEEK_END), 4);
    assert_int_equal(fd_truncate(-1, 4), -1);
    assert_int_equal(errno, EBADF);
    close(fd);
    fixture_dir_remove(dir);
}

static void test_fd_put__stands_for_the_same_file(void **state)
{
    int fds[2];
    char c = 0;

    (void)state;
    assert_int_equal(pipe(fds), 0);
    const int at = fds[1] + 10;
    assert_true(fd_put(fds[1], at));
    assert_int_equal(fd_write_all(at, "x", 1), ST_OK);
    assert_int_equal(fd_read(fds[0], &c, 1), 1);
    assert_int_equal(c, 'x');
    assert_false(fd_put(-1, at));
    close(at);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fd_read__is_not_interrupted),
        cmocka_unit_test(test_fd_lock__one_at_a_time),
        cmocka_unit_test(test_fd_truncate__cuts),
        cmocka_unit_test(test_fd_put__stands_for_the_same_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
