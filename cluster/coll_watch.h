/* cluster/coll_watch.h - what a rank is in, for whoever watches it: which exchange, and for whom it
 * waits there.
 *
 * Written by the thread that makes the calls, read by any other. Every field is a relaxed atomic of
 * its own: a reader may see two exchanges mixed, which does not matter, because nobody is judged by
 * one look. What is judged has stood still for seconds.
 *
 * Cost: a few plain stores per exchange. The time since when is the one that the waiter has read
 * anyway (coll_wait.c), and is told only by a wait that outlasts its spinning. */
#ifndef CLUSTER_COLL_WATCH_H
#define CLUSTER_COLL_WATCH_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Travels in heartbeats: append only. */
enum coll_op {
    COLL_OP_NONE, /* computes, or rests */
    COLL_OP_SUM,
    COLL_OP_GATHER,
    COLL_OP_BCAST,
    COLL_OP_BARRIER,
    COLL_OP_SEND,
    COLL_OP_RECV,
    COLL_OP_PLAN,   /* a rank without a step: waits for whoever passes it the next plan */
    COLL_OP_RESULT, /* the leader: waits for the last stage's tokens */
    COLL_OP_DEVICE, /* for what is queued on a device; whom that waits for only the device knows */
    COLL_OP_COUNT
};

#define COLL_PEER_NONE UINT32_MAX

/* Zeroed is ready. */
struct coll_watch {
    _Atomic uint32_t op;
    _Atomic uint32_t peer;     /* rank waited for, or COLL_PEER_NONE; with since_ns */
    _Atomic uint64_t seq;      /* which one of its kind: see coll_watch_begin */
    _Atomic uint64_t since_ns; /* 0: does not wait, or not for long yet */
};

/* "sum", "receive" ... */
const char *coll_op_name(uint32_t op);

/* w may be NULL in all of these. seq: sums and gathers are numbered per stage, broadcasts and
 * barriers per replica, equal on all who take part; sends and receives per rank; plans and results
 * by their step. */
static inline void coll_watch_begin(struct coll_watch *w, enum coll_op op, uint64_t seq)
{
    if (w != NULL) {
        atomic_store_explicit(&w->seq, seq, memory_order_relaxed);
        atomic_store_explicit(&w->op, (uint32_t)op, memory_order_relaxed);
    }
}

static inline void coll_watch_wait(struct coll_watch *w, uint32_t peer, uint64_t since_ns)
{
    if (w != NULL) {
        atomic_store_explicit(&w->peer, peer, memory_order_relaxed);
        atomic_store_explicit(&w->since_ns, since_ns, memory_order_relaxed);
    }
}

static inline void coll_watch_end(struct coll_watch *w)
{
    if (w != NULL) {
        atomic_store_explicit(&w->since_ns, 0, memory_order_relaxed);
        atomic_store_explicit(&w->op, COLL_OP_NONE, memory_order_relaxed);
    }
}

#endif
