/* worker/rank_priv.h - a rank's state, shared by rank.c (every rank) and leader.c (rank 0). */
#ifndef WORKER_RANK_PRIV_H
#define WORKER_RANK_PRIV_H

#include "worker/rank.h"

enum { RANK_TAG_PLAN = 1, RANK_TAG_X, RANK_TAG_RESULT, RANK_TAG_DIGEST, RANK_TAG_STAMP };

/* Residual buffers: one being computed, one still being sent. */
enum { RANK_X_BUFFERS = 2 };

struct rank {
    struct rank_config config;
    const struct plan *plan; /* borrowed, as the next four */
    const struct kern_ops *ops;
    struct coll *coll; /* config.coll, or coll_device over it */
    struct rank_progress *progress;
    uint32_t rank;
    struct step_limits limits;

    struct kern_stream *stream; /* owned, as all below */
    struct coll *coll_device;   /* NULL: memory of the ops is host memory */
    void *coll_scratch;         /* device; NULL: none is needed */
    struct shard *shard;
    struct exec *exec;
    float *x[RANK_X_BUFFERS]; /* [rows_max, C] f32, device */
    size_t x_bytes;           /* of one */
    bool x_pending[RANK_X_BUFFERS];
    struct coll_req x_reqs[RANK_X_BUFFERS];
    uint32_t i_x;

    /* Is a plan sent ahead of results (exec_is_ahead)? Equal on all ranks. */
    bool is_ahead;
    /* A ring of plans: pp that are out, and one more, since one may still be on its way to a rank
     * while the next is made; two more where a plan goes ahead, for it and for STEP_TAKE. */
    void *plans; /* [n_plans][plan_bytes_max] */
    uint32_t n_plans;
    size_t plan_bytes_max;
    struct coll_req *plan_reqs;  /* [n_plans][PLAN_REQS_MAX] sends of a plan, and of its digest */
    uint32_t *n_plan_reqs;       /* [n_plans] */
    struct step_result *results; /* [seqs_max] */
    uint64_t stamp;              /* the digest of the stage before, as received */
};

/* Plans go down a binomial tree over the ranks: r passes them to r + 2^k for every 2^k > r. A
 * parent has a smaller rank, so its stage is the child's or an earlier one, and it passes a plan on
 * before it runs it: the plan is there before the residual is. */
enum { PLAN_CHILDREN_MAX = 12, PLAN_REQS_MAX = PLAN_CHILDREN_MAX + 1 };
_Static_assert(PLAN_RANKS_MAX <= 1 << PLAN_CHILDREN_MAX, "children of rank 0");

struct step_head *rank_plan(const struct rank *r, uint32_t i);
/* Start sending plan i of the ring to this rank's children, and its digest to the next stage. */
status rank_pass_plan(struct rank *r, uint32_t i, struct err *err);
/* The ring slot's earlier sends must be over before its plan is overwritten. */
status rank_settle_plan(struct rank *r, uint32_t i, struct err *err);

/* Give the core away while waiting; longer naps the longer nothing happened. */
void rank_pause(struct rank *r, uint64_t idle_since_ns);
status rank_take_x(struct rank *r, uint32_t *i_x_p, struct err *err);
status rank_send_x(struct rank *r, const struct step_head *plan, uint32_t i_x, struct err *err);
status rank_finish_sends(struct rank *r, struct err *err);
/* Queue, or run, this rank's stage on x[i_x] and start sending the residual on. */
status rank_begin_stage(struct rank *r, const struct step_head *plan, uint32_t i_x,
                        struct err *err);
/* The oldest that was begun: on the last stage its results are in r->results of slice 0. */
status rank_finish_stage(struct rank *r, struct err *err);

status leader_run(struct rank *r, const struct rank_io *io, struct err *err);

#endif
