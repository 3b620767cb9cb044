/* worker/exec.h - run one step plan on one rank: the forward pass of its stage.
 *
 *   first stage:  x[T,C] = embedding(tokens)            others: x comes from the stage before
 *   each layer:   x += o(attention(rope(qkv(norm x))))  x += down(silu(gate) * up)
 *   last stage:   logits of the sampled rows -> scan -> one token each
 *
 * One forward pass for every model: it looks at fields of the description, never at a family's
 * name. The two row-parallel products of a layer are partial sums; coll->all_reduce_tree finishes
 * them, and bias and residual are added once after it (docs/numerics.md). All memory is taken at
 * exec_create. One thread.
 *
 * On a device a step is queued. exec_step waits for it only on the last stage, whose scans the host
 * merges; elsewhere it returns at once, x is written when the device comes to it, and whatever is
 * queued on the stream next comes after (exec_drain waits). Decode steps are recorded into graphs,
 * if the collectives allow it. */
#ifndef WORKER_EXEC_H
#define WORKER_EXEC_H

#include "cluster/coll.h"
#include "worker/sched/step.h"
#include "worker/shard.h"

struct exec;

struct exec_times {
    uint64_t total_ns; /* of the last step, on this rank */
    uint64_t coll_ns;  /* of which in collectives of the stage */
};

/* Everything is borrowed and outlives the exec. */
status exec_create(struct shard *shard, struct coll *coll, const struct step_limits *limits,
                   struct exec **exec_p, struct err *err);
void exec_destroy(struct exec *e); /* NULL is fine */

/* Rows of x that go from stage to stage: those of the plan, and the padding of its graph. Equal on
 * all ranks of a replica. */
uint32_t exec_rows(const struct exec *e, const struct step_head *plan);
/* x: [T,C] f32 in device memory, in and out (ignored on input by the first stage). On the last stage, slice 0 writes
 * one result per sampled sequence to results[0..plan->n_samples); other ranks leave it alone (may
 * be NULL). A failure is the replica's end: partial sums cannot be taken back. */
status exec_step(struct exec *e, const struct step_head *plan, float *x,
                 struct step_result *results, struct err *err);
/* Until the device has done all that was queued. */
status exec_drain(struct exec *e, struct err *err);
/* Add one to *ticks with every layer that is begun, for whoever watches this rank. */
void exec_count(struct exec *e, _Atomic uint64_t *ticks);
/* Device memory taken by exec_create. */
size_t exec_scratch_bytes(const struct exec *e);
void exec_times(const struct exec *e, struct exec_times *times_p);

#endif
