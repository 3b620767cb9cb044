/* coordinator/cli/batch_child.h - the `gantry serve` of a batch: a child behind a socket that only its
 * user can open. It leads a process group of its own, so that Ctrl-C reaches it through us and in order,
 * and ends when the thread that started it does. One owner thread. */
#ifndef COORDINATOR_CLI_BATCH_CHILD_H
#define COORDINATOR_CLI_BATCH_CHILD_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct batch_child {
    const char *model; /* borrowed */
    int pid;           /* 0: none runs */
    int code;          /* of its end, if it ended by itself */
    char dir[64];      /* of its socket and log; "": none */
    char target[96];   /* "unix:..." */
    char log_path[96];
    char last[256];
};

/* Words for serve are copied by exec. `queue`: streams it must hold at a time. */
status batch_child_start(struct batch_child *c, char *const *args, int n_args, uint32_t queue,
                         struct err *err);
/* It has ended: *code_p is its exit code, 128 + signal. Asks once; later it is no child any more. */
bool batch_child_ended(struct batch_child *c, int *code_p);
/* The last thing it said; borrowed until the next call. */
const char *batch_child_last_line(struct batch_child *c);
/* What it said, to stderr, if it matters. */
void batch_child_print_tail(const struct batch_child *c, bool matters);
/* SIGTERM, waits (60 s, then SIGKILL), removes its directory. */
void batch_child_end(struct batch_child *c);

#endif
