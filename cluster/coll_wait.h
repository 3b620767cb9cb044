/* cluster/coll_wait.h - how a rank waits for another: poll, then yield, then sleep.
 *
 *   0 .. spin_ns      pause instructions only: the answer of a decode step is a few us away
 *   .. 0.2 / 5 ms     sched_yield between polls: ranks may share cores, and a rank that spins
 *                     holds up the very rank it waits for (55 ms instead of 0.3 ms per sum with 4
 *                     ranks on 2 cores)
 *   then              sleep: on a bell (a futex that the other side rings), or naps of 50 us that
 *                     grow to 1 ms with the time waited (an idle rank: 2 % of a core, not 8)
 *
 * Use: coll_waiter_init, then `while (not done) { st = coll_waiter_step(&w); if (st != ST_OK) ...
 * }`. The bell's epoch is read before the caller's next check, so no ring is lost. */
#ifndef CLUSTER_COLL_WAIT_H
#define CLUSTER_COLL_WAIT_H

#include "cluster/coll.h"

#include <stdatomic.h>

/* Rung by any thread, waited on by one. Zeroed is ready. */
struct coll_bell {
    _Atomic uint32_t epoch;
    _Atomic uint32_t n_sleepers;
};

void coll_bell_ring(struct coll_bell *bell);

struct coll_waiter {
    const struct coll *c;   /* borrowed: timeout and abort flag */
    struct coll_bell *bell; /* borrowed, or NULL: sleep by time */
    uint64_t spin_ns;
    uint64_t begin_ns, now_ns;
    uint32_t n_steps, epoch;
    uint32_t peer; /* whom c->watch is told of; COLL_PEER_NONE from coll_waiter_init */
    bool is_told;
};

void coll_waiter_init(struct coll_waiter *w, const struct coll *c, uint64_t spin_ns,
                      struct coll_bell *bell);
/* ST_OK: look again. ST_ERR_CANCELLED: the abort flag. ST_ERR_DEADLINE: c->timeout_ns has passed
 * since the first step (0 or CLOCK_NEVER: no deadline). Writes no sentence: the caller knows for
 * whom it waits. */
status coll_waiter_step(struct coll_waiter *w);

/* Spin this long before yielding when `n_ranks` ranks share this host's cores. */
uint64_t coll_spin_ns(uint32_t n_ranks);

#endif
