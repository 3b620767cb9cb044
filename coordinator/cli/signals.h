/* coordinator/cli/signals.h - SIGINT, SIGTERM and SIGHUP as calls on the loop thread.
 *
 * signals_block comes first of all, before any thread is made (gRPC makes some): a blocked signal
 * stays blocked in all of them, and the one thread that waits for it posts to the loop. */
#ifndef COORDINATOR_CLI_SIGNALS_H
#define COORDINATOR_CLI_SIGNALS_H

#include "cluster/rpc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct signals {
    struct rpc_loop *loop; /* borrowed */
    rpc_fn fn;
    void *arg;
    _Atomic uint64_t continued_ns; /* when the last SIGCONT came; 0: none */
    pthread_t thread;
    atomic_bool is_ending;
    bool runs;
};

/* Also ignores SIGPIPE: a reader that left is an error of a write, not a death. */
void signals_block(void);
/* Wait so long. True: a signal that ends this process came. Only while signals_start has not. */
bool signals_pause(uint64_t ns);
/* fn(arg) on the loop thread for each signal. */
status signals_start(struct signals *s, struct rpc_loop *loop, rpc_fn fn, void *arg,
                     struct err *err);
/* Did SIGCONT come less than `within_ns` ago? SLURM sends it just before the SIGTERM that its SIGKILL
 * follows, and not before one that a person or --signal asked for. */
bool signals_continued(const struct signals *s, uint64_t within_ns);
void signals_stop(struct signals *s); /* before the loop is destroyed; zeroed storage is fine */

#endif
