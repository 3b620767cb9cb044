/* coordinator/waits.h - who waits for whom: the rank to name when a replica stands still.
 *
 *   rank 1 ──sum #812──► rank 0 ──result──► rank 3 ──receive #41──► rank 2      does not wait: blamed
 *   rank 0 ──sum #7──► rank 1 ──sum #7──► rank 0       each waits for the other: the link is blamed
 *
 * A rank waits for one other at a time, so the graph is a set of trees whose roots are ranks that do
 * not wait, or rings. From the last heartbeats, which are a quarter of a second old at most, of
 * ranks that have stood still for seconds. Pure functions. */
#ifndef COORDINATOR_WAITS_H
#define COORDINATOR_WAITS_H

#include "cluster/coll_watch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wait_rank {
    const char *host, *phase; /* borrowed */
    bool is_silent;           /* for too long: what it said last counts no more */
    uint64_t silent_ns;       /* since its last message */
    uint64_t step, digest, ticks;
    uint32_t op; /* enum coll_op */
    uint64_t op_seq;
    uint32_t peer;      /* waited for, or COLL_PEER_NONE */
    uint64_t waited_ns; /* until now; 0: does not wait */

    /* by waits_judge */
    uint32_t root;      /* where its waiting ends: itself, another rank, the lowest of a ring */
    uint32_t n_waiters; /* ranks whose root it is, itself left out */
    bool is_ring;       /* it is on a ring */
};

enum waits_kind {
    WAITS_SILENT,   /* `rank` says nothing */
    WAITS_DISAGREE, /* `rank` and `other` run different plans under one step number */
    WAITS_LINK,     /* `rank` and `other` wait for each other's message */
    WAITS_RING,     /* `rank` waits for `other`, and over more ranks for itself */
    WAITS_BUSY,     /* `rank` waits for nobody */
    WAITS_DEVICE    /* all that do not wait for a rank wait for their devices: `rank` is one */
};

struct waits_verdict {
    enum waits_kind kind;
    uint32_t rank, other; /* other == rank where there is none */
};

/* Of n > 0 ranks, none of which moves. Of several that may be named the one that most wait for; of
 * equals the one furthest behind. */
void waits_judge(struct wait_rank *ranks, uint32_t n, struct waits_verdict *v_p);

/* "rank 3 (host b) waits 5.1 s in sum #812 for rank 2 (host a), which is silent since 5.3 s". Empty
 * where rank i does not wait. */
void waits_edge_text(const struct wait_rank *ranks, uint32_t n, uint32_t i, char *text,
                     size_t bytes);
/* The verdict as a sentence. */
void waits_text(const struct wait_rank *ranks, uint32_t n, const struct waits_verdict *v,
                char *text, size_t bytes);
/* Every rank that waits, one after the other, "; " between them, those that wait for the named one
 * first; cut with "and N more" where the text is full. */
void waits_list_text(const struct wait_rank *ranks, uint32_t n, const struct waits_verdict *v,
                     char *text, size_t bytes);

#endif
