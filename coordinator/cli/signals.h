/* coordinator/cli/signals.h - SIGINT, SIGTERM and SIGHUP as calls on the loop thread.
 *
 * signals_block comes first of all, before any thread is made (gRPC makes some): a blocked signal
 * stays blocked in all of them, and the one thread that waits for it posts to the loop. */
#ifndef COORDINATOR_CLI_SIGNALS_H
#define COORDINATOR_CLI_SIGNALS_H

#include "cluster/rpc.h"

#include <pthread.h>
#include <stdatomic.h>

struct signals {
    struct rpc_loop *loop; /* borrowed */
    rpc_fn fn;
    void *arg;
    pthread_t thread;
    atomic_bool is_ending;
    bool runs;
};

/* Also ignores SIGPIPE: a reader that left is an error of a write, not a death. */
void signals_block(void);
/* fn(arg) on the loop thread for each signal. */
status signals_start(struct signals *s, struct rpc_loop *loop, rpc_fn fn, void *arg,
                     struct err *err);
void signals_stop(struct signals *s); /* before the loop is destroyed; zeroed storage is fine */

#endif
