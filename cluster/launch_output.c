/* cluster/launch_output.c - what a short command prints, within a deadline: mpirun --version, squeue. */
#include "cluster/launch_process.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Read until the child closes its end, `b` is full, or the deadline. */
static status read_all(int fd, struct buf *b, uint64_t end_ns)
{
    for (;;) {
        const uint64_t now_ns = clock_now_ns(clock_real());
        char part[1024];
        ssize_t n = read(fd, part, sizeof(part));

        if (n > 0) {
            const status st = buf_append(b, part, (size_t)n);
            if (st != ST_OK) {
                return st;
            }
        } else if (n == 0) {
            return ST_OK;
        } else if (errno != EAGAIN && errno != EINTR) {
            return ST_ERR_IO;
        } else if (now_ns >= end_ns) {
            return ST_ERR_DEADLINE;
        } else {
            const struct timespec nap = { .tv_sec = 0, .tv_nsec = 2 * (long)NS_PER_MS };

            (void)nanosleep(&nap, NULL);
        }
    }
}

/* An exit follows the end of the output at once, or not at all. */
static bool wait_a_little(int pid, int *how_p)
{
    const struct timespec nap = { .tv_sec = 0, .tv_nsec = 2 * (long)NS_PER_MS };

    for (int i = 0; i < 250; i++) {
        if (waitpid(pid, how_p, WNOHANG) == pid) {
            return true;
        }
        (void)nanosleep(&nap, NULL);
    }
    return false;
}

status process_output(const char *const *argv, uint64_t timeout_ns, struct buf *out, int *code_p,
                      struct err *err)
{
    struct process_config process = { .argv = argv, .die_with_parent = true };
    int fds[2], pid = -1, how = 0;

    if (pipe(fds) != 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "no pipe to run %s %s", argv[0], argv[1]);
    }
    (void)fcntl(fds[0], F_SETFD, FD_CLOEXEC);
    (void)fcntl(fds[1], F_SETFD, FD_CLOEXEC);
    (void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
    process.out_fd = fds[1];
    status st = process_start(&process, &pid, err);
    close(fds[1]);
    if (st == ST_OK) {
        st = read_all(fds[0], out, clock_now_ns(clock_real()) + timeout_ns);
        if (st != ST_OK) {
            err_set(err, st, "%s %s: %s within %u s", argv[0], argv[1],
                    st == ST_ERR_DEADLINE ? "no answer"
                    : st == ST_ERR_NOMEM  ? "no memory for its answer"
                                          : "no readable answer",
                    (unsigned)(timeout_ns / NS_PER_S));
        }
        /* It has closed its output; what it still does is not our business. */
        const bool ended = st == ST_OK && wait_a_little(pid, &how);
        if (!ended) {
            (void)process_session_signal(pid, SIGKILL);
            while (waitpid(pid, &how, 0) < 0 && errno == EINTR) {
            }
        }
    }
    close(fds[0]);
    if (st == ST_OK) {
        *code_p = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
    }
    return st;
}
