/* cluster/coll_local.h - private to coll_local*.c: what the ranks (threads) of one process share.
 *
 *   hub ─┬─ meets[pp]   one per stage: all_reduce_tree, all_gather
 *        ├─ world       all ranks: barrier, bcast
 *        └─ boxes[n]    one per receiving rank: pending sends to it, receives it has posted
 *
 * Safety: each lock sits above what it protects. Locks are never nested, except that
 * hub_fail takes `fail_lock` under a meet's lock. */
#ifndef CLUSTER_COLL_LOCAL_H
#define CLUSTER_COLL_LOCAL_H

#include "cluster/coll_wait.h"

#include <pthread.h>

/* What a rank brings to a meeting. */
struct coll_post {
    const char *op; /* static */
    enum coll_op kind;
    uint64_t round; /* the meeting this post is for */
    uint64_t stamp;
    size_t bytes;
    uint32_t root;
    const void *in; /* borrowed until the meeting closes */
    void *out;      /* same */
};

struct coll_meet {
    uint32_t n, first_rank;
    pthread_mutex_t lock;
    uint32_t n_here;         /* arrived for round `opened` + 1 */
    struct coll_post *posts; /* [n], owned; written under lock, read by all while a round is open */
    _Atomic uint64_t opened; /* last round for which everybody arrived */
    _Atomic uint64_t closed; /* last round that everybody left */
    _Atomic uint32_t n_inside;
};

enum coll_op_state { OP_FREE, OP_PENDING, OP_DONE, OP_BAD_SIZE };

/* A send or a receive; lives in its coll's slots, linked into the receiver's box while pending. */
struct coll_mail {
    _Atomic uint32_t state; /* enum coll_op_state; PENDING -> others by whoever matches it */
    bool is_send;
    uint32_t from, to, tag;
    const void *data; /* send: borrowed until DONE */
    void *into;       /* receive: same */
    size_t bytes;
    size_t bytes_other; /* receive with BAD_SIZE: what was sent */
    struct coll_mail *next;
};

struct coll_box {
    pthread_mutex_t lock;
    struct coll_mail *sends; /* oldest first */
    struct coll_mail *recvs;
};

struct coll_hub {
    struct coll_shape shape;
    uint32_t n_ranks;
    uint64_t spin_ns;
    struct coll_meet world;
    struct coll_meet *stages; /* [pp], owned */
    struct coll_box *boxes;   /* [n_ranks], owned */
    struct coll_bell *bells;  /* [n_ranks], owned */
    _Atomic bool *taken;      /* [n_ranks], owned: has a view */
    _Atomic bool failed;      /* a collective failed: the replica is lost for everybody */
    pthread_mutex_t fail_lock;
    char fail_text[256]; /* the first failure */
};

struct coll_local {
    struct coll base;
    struct coll_hub *hub; /* borrowed */
    uint64_t round_stage, round_world;
    uint64_t n_waits; /* for sends and receives */
    struct coll_mail slots[COLL_REQS_MAX];
};

static inline struct coll_local *coll_local_of(struct coll *c)
{
    return CONTAINER_OF(c, struct coll_local, base);
}

void coll_hub_fail(struct coll_hub *hub, const char *text);
/* ST_ERR_PEER with the first failure. */
status coll_hub_failure(struct coll_hub *hub, const char *op, struct err *err);

/* coll_local_mail.c */
status coll_local_send_start(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                             const void *data, size_t bytes, struct coll_req *req_p,
                             struct err *err);
status coll_local_recv_start(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                             void *data, size_t bytes, struct coll_req *req_p, struct err *err);
status coll_local_test(struct coll *c, struct coll_req req, struct err *err);
status coll_local_wait(struct coll *c, struct coll_req req, struct err *err);
status coll_local_probe(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                        struct err *err);
void coll_local_mail_drop(struct coll_local *l); /* take back what is pending */

#endif
