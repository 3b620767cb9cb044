/* cluster/coll_nccl.h - private to coll_nccl*.c and their test: NCCL as a table.
 *
 *   coll_nccl.c      life, failure, send and receive, over this table; knows no NCCL header
 *   coll_nccl_sum.c  the ordered sum, likewise
 *   coll_nccl_peer.c  windows into each other's memory, for small sums; whether slices agree
 *   coll_nccl_lib.c  fills the table from libnccl.so.2, found at run time; alone sees nccl.h
 *
 * So the program links no NCCL and starts without it, and the order of additions can be tested on a
 * machine without a GPU over a table of the test's own (tests/replica/fake_nccl.c).
 *
 * Every call answers a code: COLL_NCCL_OK, COLL_NCCL_BUSY (a non-blocking communicator goes on
 * behind the call; comm_state says when it is over), or NCCL's number of a failure. */
#ifndef CLUSTER_COLL_NCCL_H
#define CLUSTER_COLL_NCCL_H

#include "cluster/coll_device.h"

enum {
    COLL_NCCL_OK = 0,
    COLL_NCCL_BUSY = 7,
    COLL_NCCL_ID_BYTES = 128,
    COLL_NCCL_TP_MAX = 64,
};

struct coll_nccl_api {
    char version[32]; /* "2.28.9" */
    int (*unique_id)(void *id);
    int (*comm_init)(void **comm_p, uint32_t n_ranks, const void *id, uint32_t rank);
    int (*comm_state)(void *comm);
    int (*comm_finalize)(void *comm); /* flush; comm_state says when it is over */
    int (*comm_destroy)(void *comm);
    int (*comm_abort)(void *comm); /* kernels of it on the device end as well; frees comm */
    int (*group_start)(void);
    int (*group_end)(void);
    /* Device memory, queued on `stream` (raw). */
    int (*send)(const void *data, size_t bytes, uint32_t peer, void *comm, void *stream);
    int (*recv)(void *data, size_t bytes, uint32_t peer, void *comm, void *stream);
    int (*all_gather)(const void *mine, void *all, size_t bytes, void *comm, void *stream);
    int (*all_reduce_f32)(const float *in, float *out, size_t n, void *comm, void *stream);
    const char *(*error_text)(int code);
    const char *(*last_error)(void *comm); /* what NCCL noted last; "" if nothing */
};

/* Loaded once per process, never unloaded. ST_ERR_UNSUPPORTED names what is missing. */
status coll_nccl_api_load(const struct coll_nccl_api **api_p, struct err *err);

struct coll_nccl {
    struct coll base;
    struct coll *inner; /* borrowed */
    struct coll_device dev;
    const struct coll_nccl_api *api;
    bool free_order;
    void *group;       /* the slices of this stage, by position; NULL: tp is 1 */
    void *column;      /* this slice's ranks, by stage; NULL: pp is 1 */
    uint32_t position; /* of this slice in `group` */
    uint64_t n_syncs;
    struct kern_peers *peers; /* owned; NULL: sums of any size go over NCCL */
    uint64_t n_queued, trail; /* since the last `agree`: operations, and a hash of what they are */
    bool broken;
    char broken_text[256];
};

static inline struct coll_nccl *coll_nccl_of(struct coll *c)
{
    return CONTAINER_OF(c, struct coll_nccl, base);
}

static inline struct coll *coll_nccl_inner(struct coll_nccl *d)
{
    d->inner->timeout_ns = d->base.timeout_ns;
    d->inner->abort = d->base.abort;
    return d->inner;
}

/* Where a slice stands in `group`: its bits reversed; the way back is the same. */
uint32_t coll_nccl_position(uint32_t tp, uint32_t slice);
/* The failure of an earlier call, if there was one. */
status coll_nccl_check(const struct coll_nccl *d, const char *what, struct err *err);
/* End the exchange for good, because of `st`, which is returned: both communicators, and sums. */
status coll_nccl_give_up(struct coll_nccl *d, status st, struct err *err);
/* NCCL answered `code`: end the exchange (comm may be NULL). */
status coll_nccl_failed(struct coll_nccl *d, void *comm, const char *what, int code,
                        struct err *err);
/* Until the call that answered `code` is queued. */
status coll_nccl_settle(struct coll_nccl *d, void *comm, int code, const char *what,
                        struct err *err);

/* Note a queued operation, for `agree`. `what` is a word of ours, the same on all slices. */
void coll_nccl_note(struct coll_nccl *d, const char *what, uint64_t stamp, size_t bytes);
status coll_nccl_agree(struct coll *c, uint64_t stamp, struct err *err);
/* Windows for small sums, if all slices of the stage can map all others; else d->peers is NULL and a
 * line says why. All slices call it together. */
status coll_nccl_peers_open(struct coll_nccl *d, struct err *err);
void coll_nccl_peers_close(struct coll_nccl *d);

status coll_nccl_all_reduce_tree(struct coll *c, struct kern_stream *s, float *x, size_t n,
                                 uint64_t stamp, struct err *err);
status coll_nccl_all_gather(struct coll *c, struct kern_stream *s, const void *mine, size_t bytes,
                            void *all, uint64_t stamp, struct err *err);

#endif
