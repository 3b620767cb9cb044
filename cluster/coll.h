/* cluster/coll.h - how the ranks of one replica exchange data.
 *
 * A `struct coll` is one rank's view of its replica's data plane: world, and its tensor-parallel
 * group (the ranks of its stage, by slice). Implementations: coll_local.c (ranks are threads of one
 * process) and coll_mpi.c in host memory; coll_staged.c and coll_nccl.c in device memory, each over
 * one of the former (coll_device.h). So every call that moves tensors takes the stream that
 * produced them: NULL means host memory, anything else memory of that stream's device.
 *
 * The tree. all_reduce_tree adds f32 partials of the 2^k slices of a group: first with partner
 * slice^1, then ^2, ^4 ...: at every level both sides compute lower + upper, so all slices get
 * equal bits and the sum is the upper part of the binary tree over leaves of docs/numerics.md,
 * whichever message sizes or algorithm carry it (large ones go as reduce-scatter + all-gather in
 * the same order of additions).
 *
 * Threads: all calls of one coll from one thread (MPI_THREAD_FUNNELED). Every operation has a
 * deadline; past it the call fails with ST_ERR_DEADLINE naming the operation and the ranks waited
 * for, and the replica is lost (no collective can be taken back). Waiting yields the core. */
#ifndef CLUSTER_COLL_H
#define CLUSTER_COLL_H

#include "base/clock.h"
#include "base/err.h"
#include "cluster/coll_watch.h"

#include <stdbool.h>
#include <stdint.h>

struct kern_stream; /* kernels/kern.h; NULL: the buffers of the call are host memory */
struct coll;

enum { COLL_REQS_MAX = 256, COLL_MARK_ALL = 255, COLL_SUMS_BYTES = 192 };

/* A pending send or receive of this coll: index of a slot. */
struct coll_req {
    uint32_t slot;
};

struct coll_ops {
    const char *name; /* "local", "mpi", "staged", "nccl" */

    /* ---- inside the stage (group of tp ranks, by slice) ---- */

    /* x[n] f32 in place: the ordered tree sum. n may differ between calls, not between slices.
     * `stamp` (step digest and a running number) must be equal on all slices: a difference is
     * ST_ERR_MISMATCH naming both. */
    status (*all_reduce_tree)(struct coll *c, struct kern_stream *s, float *x, size_t n,
                              uint64_t stamp, struct err *err);
    /* all[slice * bytes ..] <- every slice's `mine` (bytes each), on every slice. */
    status (*all_gather)(struct coll *c, struct kern_stream *s, const void *mine, size_t bytes,
                         void *all, uint64_t stamp, struct err *err);

    /* ---- between any two ranks of the replica ---- */

    /* Start; the buffer stays the operation's until test says ST_OK. Messages between two ranks
     * with one tag arrive in order. A receive of another size than was sent is ST_ERR_PROTO.
     * ST_ERR_LIMIT: COLL_REQS_MAX pending. */
    status (*send_start)(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                         const void *data, size_t bytes, struct coll_req *req_p, struct err *err);
    status (*recv_start)(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                         void *data, size_t bytes, struct coll_req *req_p, struct err *err);
    /* ST_OK: done, the slot is free again. ST_BUSY. Never blocks. */
    status (*test)(struct coll *c, struct coll_req req, struct err *err);
    /* Until done or the coll's deadline. */
    status (*wait)(struct coll *c, struct coll_req req, struct err *err);
    /* Is a message from `from` with `tag` here? Its size; ST_BUSY if none. Never blocks. */
    status (*probe)(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p, struct err *err);

    /* ---- whole replica ---- */
    status (*barrier)(struct coll *c, struct err *err);
    /* Same bytes on all ranks afterwards; `bytes` equal everywhere. */
    status (*bcast)(struct coll *c, void *data, size_t bytes, uint32_t root, struct err *err);

    /* ---- only where operations are queued (is_queued), else NULL ---- */

    /* Until the work of the stream up to `mark` (kern_ops.mark; COLL_MARK_ALL: all of it) is done,
     * watching for peers that are gone, the abort flag and the deadline. What failed is given up
     * first, so that the stream drains. */
    status (*sync)(struct coll *c, struct kern_stream *s, uint32_t mark, struct err *err);

    /* Have all slices of the stage queued the same since the last call: as many operations, of the
     * same kinds and sizes, under the same stamps, this one included? Looks at no device: a
     * disagreement would leave devices waiting for each other. ST_ERR_MISMATCH names both ranks. */
    status (*agree)(struct coll *c, uint64_t stamp, struct err *err);

    void (*destroy)(struct coll *c); /* frees c */
};

struct coll {
    const struct coll_ops *ops;
    uint32_t rank, n_ranks; /* of the replica */
    uint32_t tp, pp;        /* rank = stage * tp + slice */
    uint32_t stage, slice;
    /* Operations on device memory return when they are queued behind the stream's work; `test` and
     * `wait` of such a send or receive are done at once, because whatever touches its buffer next
     * is queued behind it. They may be recorded into a graph. */
    bool is_queued;
    uint64_t timeout_ns; /* deadline of one blocking operation */
    /* mpi: sums of at least so many bytes go as reduce-scatter + all-gather. Same bits either way;
     * equal on all slices. Tests set 0 or SIZE_MAX. */
    size_t split_bytes;
    const _Atomic bool
        *abort; /* borrowed, may be NULL: when true every wait ends with ST_ERR_CANCELLED */
    struct coll_watch *watch; /* borrowed, may be NULL: told what this rank is in */
    /* Which way sums between the slices go, for people; coll_nccl only, else "". */
    char sums[COLL_SUMS_BYTES];
};

/* The same of any coll: "" where there is one slice. */
const char *coll_sums(const struct coll *c);

/* A send or receive and the wait for it. */
static inline status coll_send_now(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                                   const void *data, size_t bytes, struct err *err)
{
    struct coll_req req;
    const status st = c->ops->send_start(c, s, to, tag, data, bytes, &req, err);

    return st == ST_OK ? c->ops->wait(c, req, err) : st;
}

static inline status coll_recv_now(struct coll *c, struct kern_stream *s, uint32_t from,
                                   uint32_t tag, void *data, size_t bytes, struct err *err)
{
    struct coll_req req;
    const status st = c->ops->recv_start(c, s, from, tag, data, bytes, &req, err);

    return st == ST_OK ? c->ops->wait(c, req, err) : st;
}

struct coll_shape {
    uint32_t tp, pp;
};

/* ---- local: n = tp * pp ranks as threads of this process ---- */

struct coll_hub; /* shared by the ranks; owned by the creator, who destroys it after the last coll
                  */
status coll_hub_create(struct coll_shape shape, struct coll_hub **hub_p, struct err *err);
void coll_hub_destroy(struct coll_hub *hub);
/* The view of `rank`; called by that rank's thread. */
status coll_local_create(struct coll_hub *hub, uint32_t rank, struct coll **coll_p,
                         struct err *err);

/* ---- mpi ---- */

/* MPI_Init_thread(FUNNELED) and what this job is. Once per process. ST_ERR_UNSUPPORTED: the library
 * gave less. */
struct coll_mpi_world {
    uint32_t rank, n_ranks;
    char host[64];
    char library[128]; /* "Open MPI 4.1.4" */
};
status coll_mpi_init(struct coll_mpi_world *world_p, struct err *err);
void coll_mpi_fini(void); /* MPI_Finalize */
/* n_ranks of the world must be tp * pp. */
status coll_mpi_create(struct coll_shape shape, struct coll **coll_p, struct err *err);
/* Broadcast before the shape is known (plan, coordinator address). */
status coll_mpi_bcast(void *data, size_t bytes, uint32_t root, struct err *err);
/* End the whole job at once (MPI_Abort); does not return. Flushes nothing. */
NORETURN void coll_mpi_abort(int code);

#endif
