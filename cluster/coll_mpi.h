/* cluster/coll_mpi.h - private to coll_mpi*.c, the files that see mpi.h.
 *
 *   coll_mpi.c        the world, life of a coll, waiting, send and receive
 *   coll_mpi_group.c  all_reduce_tree, all_gather, bcast, barrier
 *
 * Every message of a collective begins with a `struct coll_head`; up to INLINE_BYTES of payload
 * travel behind it in the same message (one message per level for a decode step), more in a second
 * message that is received only after the head was found equal to one's own. */
#ifndef CLUSTER_COLL_MPI_H
#define CLUSTER_COLL_MPI_H

#include "cluster/coll_wait.h"

#include <mpi.h>

enum {
    COLL_INLINE_BYTES = 32 * 1024,
    COLL_TAG_HEAD = 1,
    COLL_TAG_BODY = 2,
};

struct coll_head {
    uint32_t op; /* enum coll_mpi_op */
    uint32_t root;
    uint64_t stamp;
    uint64_t bytes; /* of the whole operation, not of this message */
    uint64_t round; /* running number of collectives on this communicator */
};

enum { COLL_STAGE_BYTES = COLL_INLINE_BYTES + sizeof(struct coll_head) };

enum coll_mpi_op { COLL_REDUCE = 1, COLL_GATHER, COLL_BCAST, COLL_BARRIER };

/* One partner of a running collective. All requests are MPI_REQUEST_NULL between operations. */
struct coll_lane {
    unsigned char *stage; /* [COLL_STAGE_BYTES] borrowed from coll_mpi.memory; NULL: heads only */
    struct coll_head head;
    MPI_Request recv_head, recv_body, send_head, send_body;
};

struct coll_slot {
    MPI_Request request;
    bool used, is_send;
    uint32_t peer, tag;
    size_t bytes;
};

struct coll_mpi {
    struct coll base;
    MPI_Comm group; /* the slices of this stage, by slice */
    MPI_Comm world; /* all ranks: bcast, barrier */
    MPI_Comm mail;  /* all ranks: send and receive, the user's tags */
    uint64_t spin_ns;
    uint64_t round_group, round_world;
    uint64_t n_waits; /* for sends and receives */
    struct coll_slot slots[COLL_REQS_MAX];

    struct coll_lane *lanes;    /* [max(tp, n_ranks)], owned; by rank of the communicator in use */
    unsigned char *memory;      /* owned: the stages */
    unsigned char *stage_send;  /* [COLL_STAGE_BYTES], part of memory */
    unsigned char *stage_world; /* [COLL_STAGE_BYTES], part of memory: what a bcast receives */
    float *tmp;                 /* owned: [tmp_floats], what a partner sent of a large sum */
    size_t tmp_floats;

    bool broken; /* a collective failed: requests may be in flight, nothing more is started */
    char broken_text[256];
    struct coll_mpi *next_left; /* chain of those destroyed with requests in flight */
};

static inline struct coll_mpi *coll_mpi_of(struct coll *c)
{
    return CONTAINER_OF(c, struct coll_mpi, base);
}

/* ST_ERR_PEER and so on with MPI's words; ST_OK for MPI_SUCCESS. */
status coll_mpi_status(int code, const char *what, struct err *err);
/* Poll until done (`status_p` may be NULL). `what` and `peer` (a rank of the replica) are for the
 * sentence. A failed request stays in flight. */
status coll_mpi_wait(struct coll_mpi *m, MPI_Request *request, const char *what, uint32_t peer,
                     MPI_Status *status_p, struct err *err);

status coll_mpi_all_reduce_tree(struct coll *c, struct kern_stream *s, float *x, size_t n,
                                uint64_t stamp, struct err *err);
status coll_mpi_all_gather(struct coll *c, struct kern_stream *s, const void *mine, size_t bytes,
                           void *all, uint64_t stamp, struct err *err);
status coll_mpi_barrier(struct coll *c, struct err *err);
status coll_mpi_group_bcast(struct coll *c, void *data, size_t bytes, uint32_t root,
                            struct err *err);

#endif
