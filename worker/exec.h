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
 * A step is begun and finished. On a device exec_begin queues it and returns, x is written when the
 * device comes to it, and whatever is queued on the stream next comes after; exec_finish waits for
 * it, on the last stage only, whose scans the host merges. In between a second step may be begun
 * (exec_is_ahead), whose rows are fed by the first one's samples, so that the device goes from one
 * to the next without the host. Decode steps are recorded into graphs, if the collectives allow it.
 *
 *   host     begin n+1 │ wait n  merge n  events  feed  plan n+2 │ begin n+2 │ wait n+1 ...
 *   device   ..... n ........│ n+1 ..........................................│ n+2 ........      */
#ifndef WORKER_EXEC_H
#define WORKER_EXEC_H

#include "cluster/coll.h"
#include "worker/sched/step.h"
#include "worker/shard.h"

struct exec;

enum { EXEC_OUT_MAX = 2 }; /* steps begun and not finished */

struct exec_times {
    uint64_t total_ns; /* of the last step that was finished, without what an earlier one took */
    uint64_t coll_ns;  /* of which in collectives of the stage */
};

/* Everything is borrowed and outlives the exec. */
status exec_create(struct shard *shard, struct coll *coll, const struct step_limits *limits,
                   struct exec **exec_p, struct err *err);
void exec_destroy(struct exec *e); /* NULL is fine */

/* Rows of x that go from stage to stage: those of the plan, and the padding of its graph. Equal on
 * all ranks of a replica. */
uint32_t exec_rows(const struct exec *e, const struct step_head *plan);
/* Can one step more be begun, fed by the one that is not finished? Equal on all ranks of a replica.
 * So where there is one stage (the tokens come out where they go in) and no collective needs the
 * host. Else a step is finished before the next is begun. */
bool exec_is_ahead(const struct exec *e);
/* Steps begun and not finished, and the plan of the oldest (NULL: none). */
uint32_t exec_n_out(const struct exec *e);
const struct step_head *exec_oldest(const struct exec *e);
/* x: [T,C] f32 in device memory, in and out (ignored on input by the first stage). The plan is
 * borrowed until it is finished. ST_ERR_PROTO: rows fed by samples that are not there. A failure is
 * the replica's end: partial sums cannot be taken back. */
status exec_begin(struct exec *e, const struct step_head *plan, float *x, struct err *err);
/* The oldest step that is out. On the last stage, slice 0 writes one result per sampled sequence to
 * results[0..plan->n_samples); other ranks leave it alone (may be NULL). With tp > 1 all slices of
 * the last stage begin and finish in one order. */
status exec_finish(struct exec *e, struct step_result *results, struct err *err);
/* Until the device has done all that was queued. */
status exec_drain(struct exec *e, struct err *err);
/* Add one to *ticks with every layer that is begun, for whoever watches this rank. */
void exec_count(struct exec *e, _Atomic uint64_t *ticks);
/* Device memory taken by exec_create. */
size_t exec_scratch_bytes(const struct exec *e);
void exec_times(const struct exec *e, struct exec_times *times_p);

#endif
