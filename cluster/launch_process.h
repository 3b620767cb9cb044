/* cluster/launch_process.h - private to launch*.c: start a child, find what is left of it.
 *
 * The child leads a session of its own. mpirun gives every rank a process group of its own, so a
 * group is not enough to find them; none of them starts a session, so the session is. */
#ifndef CLUSTER_LAUNCH_PROCESS_H
#define CLUSTER_LAUNCH_PROCESS_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

struct process_config {
    const char *const *argv; /* NULL-ended; argv[0] is looked up in PATH */
    int out_fd;              /* becomes stdout and stderr; < 0: both are inherited */
    bool die_with_parent;    /* SIGTERM (or SIGINT, below) when the calling thread ends */
    bool hold_term;          /* the child begins with SIGTERM blocked: SIGINT is what ends it */
    /* "NAME=value" words that replace or add, "NAME" words that remove; NULL-ended; NULL: none */
    const char *const *env;
};

/* ST_ERR_NOT_FOUND: no such program. The environment is ours without what an MPI job around us has
 * put there, and with the words that mpirun wants from root. stdin is /dev/null, all other
 * descriptors are closed, signals are at their defaults. */
status process_start(const struct process_config *config, int *pid_p, struct err *err);

/* Run a short command (argv[1] is not NULL) to its end; what it writes to stdout and stderr goes behind
 * what is in `out`. *code_p: its exit code, 128 + signal if a signal ended it. ST_ERR_NOT_FOUND as
 * above, ST_ERR_DEADLINE, ST_ERR_LIMIT (more than out->max); nothing of it is left then. */
status process_output(const char *const *argv, uint64_t timeout_ns, struct buf *out, int *code_p,
                      struct err *err);

/* Send `sig` to every process of session `sid` (0: only count). How many there are, zombies not
 * counted. */
uint32_t process_session_signal(int sid, int sig);

/* When a process began, in clock ticks since the machine did; 0: there is none, or a zombie. With
 * its pid it names a process for as long as the machine is up. *exists_p: the pid is taken. */
uint64_t process_start_ticks(int pid, bool *exists_p);

#endif
