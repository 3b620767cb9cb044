/* worker/shard.h - the weights, KV cache and tables of one rank, in the memory of its device.
 *
 * Two allocations: weights (everything packed, one run of memory, tensors are pointers into it) and
 * KV. Both are sized by placing every tensor once without memory, so the plan's figures and the
 * real use are the same sum. Loading streams each matrix through a staging buffer of a few MiB:
 * read the rank's own rows or columns (model/weights.h), pack them into kernel layout, next piece.
 * After shard_load the shard is immutable but for the KV bytes. Threads: the rank's main thread;
 * `loaded` may be read by others. */
#ifndef WORKER_SHARD_H
#define WORKER_SHARD_H

#include "kernels/kern.h"
#include "model/weights.h"
#include "partition/plan.h"

#include <stdatomic.h>

struct shard_layer {
    float *attn_norm, *ffn_norm;    /* [C] f32 */
    struct kern_mat qkv;            /* W[(H+2K)*D, C] */
    struct kern_mat o;              /* W[C, H*D], this rank's leaves */
    struct kern_mat gate_up;        /* W[2F, C]: gate rows, then up rows */
    struct kern_mat down;           /* W[C, F], this rank's leaves */
    float *qkv_bias, *gate_up_bias; /* [(H+2K)*D], [2F] f32; NULL: the model has none */
    float *o_bias, *down_bias;      /* [C] f32, added once after the tree; NULL: none */
    float *q_norm, *k_norm;         /* [D] f32; NULL: none */
    struct kern_kv kv;
};

struct shard {
    const struct kern_ops *ops;            /* borrowed */
    struct kern_stream *stream;            /* borrowed */
    const struct plan *plan;               /* borrowed */
    const struct plan_part *part;          /* borrowed from plan */
    struct kern_embed embed;               /* first stage */
    struct kern_mat head;                  /* W[V slice, C], last stage */
    float *final_norm;                     /* [C] f32, last stage */
    struct kern_rope rope;                 /* [ctx_max, D/2] */
    struct shard_layer *layers;            /* [range_len(part->layers)]; owned */
    void *weights_mem, *kv_mem, *rope_mem; /* device; owned */
    size_t weights_bytes, kv_bytes, rope_bytes;
    uint64_t rope_digest;
};

/* Place and allocate everything. ST_ERR_NOMEM names the rank, what was asked for and what it is
 * for. */
status shard_create(const struct kern_ops *ops, struct kern_stream *stream, const struct plan *plan,
                    uint32_t rank, struct shard **shard_p, struct err *err);
/* Read and pack the weights. *loaded counts packed bytes of files, for progress. Stops with
 * ST_ERR_CANCELLED when *abort (may be NULL) becomes true. */
status shard_load(struct shard *shard, const struct weights *weights, _Atomic uint64_t *loaded,
                  const _Atomic bool *abort, struct err *err);
void shard_destroy(struct shard *shard); /* NULL is fine */

/* Bytes of files that shard_load will count for this part. */
uint64_t shard_file_bytes(const struct plan *plan, uint32_t rank, const struct weights *weights);

#endif
