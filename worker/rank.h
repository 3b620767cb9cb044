/* worker/rank.h - one rank's life: load its shard, then run step plans until told to end.
 *
 *   leader (rank 0)                       others
 *   ───────────────                       ──────
 *   feed(sched)  <- submits, cancels      wait for a plan from rank 0
 *   plan -> all ranks                     first stage: embed; else receive x from the stage before
 *   run own stage, x -> next stage        run, x -> next stage
 *   results <- last stage; events()       last stage, slice 0: results -> rank 0
 *
 * With pp stages up to pp plans are out, so that every stage has one to work on. Plans reach each
 * rank in order and each rank runs them in order, so two messages of one kind between two ranks
 * never overtake each other. With one stage on a device a second plan goes out ahead of the first
 * one's results (exec.h); when there is none to send, STEP_TAKE tells the other slices to finish
 * what is out, for slices begin and finish in one order. The same code runs over MPI (worker/main.c) and with ranks as threads
 * (tests, coll_local). Threads: one per rank; `progress` may be read and `stop` set by others. */
#ifndef WORKER_RANK_H
#define WORKER_RANK_H

#include "cluster/coll_device.h"
#include "worker/exec.h"
#include "worker/sched/sched.h"
#include "worker/selftest.h"
#include "worker/trail.h"

enum rank_phase { RANK_STARTING, RANK_LOADING, RANK_IDLE, RANK_STEP, RANK_WAITING, RANK_ENDED };
const char *rank_phase_name(enum rank_phase phase);

/* What other threads may see of a rank. */
struct rank_progress {
    _Atomic uint32_t phase;  /* enum rank_phase */
    _Atomic uint64_t step;   /* last plan begun */
    _Atomic uint64_t digest; /* its digest */
    struct coll_watch watch; /* which exchange it is in, and for whom it waits there */
    _Atomic uint64_t ticks; /* goes up with every layer: what stands still inside a step is stuck */
    _Atomic uint64_t loaded_bytes, file_bytes;
    _Atomic uint32_t running, waiting, kv_used, kv_total; /* leader, as the next two */
    _Atomic uint32_t kv_cached;
    _Atomic uint64_t cache_hits, cache_tokens;
    _Atomic uint32_t n_queued; /* leader: streams that only wait (sched_queued) */
    _Atomic uint64_t queued[MSG_QUEUED_MAX];
    _Atomic uint64_t step_ns, kernel_ns; /* means over the last steps, this rank */
    struct trail trail;                  /* its last steps */
};

/* The leader's connection to whoever submits. Called on the rank's thread. */
struct rank_io {
    /* Hand over what has arrived (sched_submit, sched_cancel; refusals are answered by the callee).
     * Returns false when the rank shall end: now, or when the scheduler is idle if *drain_p is set
     * to true. */
    bool (*feed)(void *self, struct sched *sched, bool *drain_p);
    /* Tokens and ends of a step; never empty; borrowed for the call. */
    status (*events)(void *self, const struct msg_events *events, struct err *err);
    /* Sleep until feed may have something, at most `ms`. */
    void (*wait)(void *self, uint32_t ms);
    void *self;
};

struct rank_config {
    const struct plan *plan; /* borrowed */
    const struct kern_ops *ops;
    uint32_t n_threads;
    uint32_t device; /* index, where ops are a device's */
    /* NCCL by another table than the library's, for tests; NULL: the library. */
    const struct coll_nccl_api *nccl;
    uint32_t chunk_max, queue_max;  /* sched_config */
    bool prefix_cache;              /* sched_config */
    struct coll *coll;              /* borrowed; in host memory, whatever ops are */
    struct rank_progress *progress; /* borrowed */
    const _Atomic bool *abort;      /* borrowed, may be NULL: end as soon as seen */
};

struct rank; /* one per thread that plays a rank */

status rank_create(const struct rank_config *config, struct rank **rank_p, struct err *err);
/* Read and pack this rank's weights. */
status rank_load(struct rank *r, const struct weights *weights, struct err *err);
/* Plan, rope table and kernels agree with the leader's: all ranks call it together.
 * ST_ERR_MISMATCH. */
status rank_agree(struct rank *r, struct err *err);
/* The fabric between the ranks: all call it together, after rank_agree. *report_p is set on the
 * leader. ST_ERR_MISMATCH: data is harmed on its way, or a sum is wrong. */
status rank_selftest(struct rank *r, const struct selftest_config *config,
                     struct msg_self_test *report_p, struct err *err);
/* Which way sums between the slices of its stage go, for people; "" with one slice. Borrowed. */
const char *rank_sums(const struct rank *r);
/* Digest of the weight files, hashed by all ranks together (or taken from `cache_dir` by the
 * leader; NULL: no cache). All ranks call it together; *digest_p is set on the leader. */
status rank_digest(struct rank *r, const struct weights *weights, const char *cache_dir,
                   struct hash128 *digest_p, struct err *err);
/* Until the end. io: leader only. */
status rank_run(struct rank *r, const struct rank_io *io, struct err *err);
void rank_destroy(struct rank *r); /* NULL is fine */
const struct shard *rank_shard(const struct rank *r);

#endif
