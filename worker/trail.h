/* worker/trail.h - the last steps of a rank, for whoever asks afterwards why it died.
 *
 * A ring of 64 steps, written by the rank's thread at the begin and end of each (a clock call and
 * some plain stores a step), and written out as text when the rank ends by a failure: by its own
 * fault, on SIGTERM and signals that end a process, when the coordinator is lost. SIGUSR2 shows it
 * at any time. Formatting and writing are async-signal-safe: numbers into a buffer on the stack,
 * one write(2) a line. Any thread may do it; a step that is being written may show mixed.
 *
 *   trail r3 signal 11: 64 steps, the newest last
 *   trail r3 step 812 digest 0123456789abcdef rows 64 streams 8 began 5.213004 s ago took 0.005123 s
 *            exchanges to #8150
 *   trail r3 step 813 digest fedcba9876543210 rows 8 streams 8 began 5.207001 s ago runs, in sum
 *            #8155 for rank 2 since 5.206100 s
 *
 * (one line each). Steps of one number with different digests on two ranks are a disagreement; the
 * ranks' clocks are their hosts' monotonic ones, so only differences mean anything. */
#ifndef WORKER_TRAIL_H
#define WORKER_TRAIL_H

#include "cluster/coll_watch.h"

enum { TRAIL_STEPS = 64 };

struct trail_step {
    _Atomic uint64_t id, digest;
    _Atomic uint32_t n_rows, n_seqs;
    _Atomic uint64_t begin_ns, end_ns; /* end_ns 0: it runs */
    _Atomic uint64_t op_seq;           /* of its last exchange */
};

/* Zeroed is ready. */
struct trail {
    struct trail_step steps[TRAIL_STEPS];
    _Atomic uint64_t n; /* begun, in all */
};

struct trail_note {
    uint64_t id, digest;
    uint32_t n_rows, n_seqs;
};

void trail_begin(struct trail *t, const struct trail_note *note);
/* The oldest step that runs; at most two do. */
void trail_end(struct trail *t, const struct coll_watch *watch);
/* All of it to `fd`, oldest first; nothing where no step was begun. */
void trail_write(const struct trail *t, const struct coll_watch *watch, int rank, const char *why,
                 int fd);

/* ---- one per process ---- */

/* Write this trail to standard error on SIGUSR2 and on the signals that end a process, and then let
 * them. SIGTERM and SIGUSR2 only where nobody else has taken them. Once per process. `t` and
 * `watch` live until trail_forget. */
void trail_watch_signals(const struct trail *t, const struct coll_watch *watch, int rank);
/* The rank fails: write it, unless that was done before. Any thread. */
void trail_tell(const char *why);
void trail_forget(void);

#endif
