/* worker/exec_priv.h - scratch and tables of a rank's forward pass, shared by exec.c and
 * exec_sample.c. */
#ifndef WORKER_EXEC_PRIV_H
#define WORKER_EXEC_PRIV_H

#include "worker/exec.h"

enum { EXEC_BUFFERS = 13 };

/* Letters as in kernels/kern.h; T is rows_max, S is seqs_max. fmt: the profile's format. */
struct exec {
    struct shard *shard; /* borrowed, as all down to coll */
    const struct kern_ops *ops;
    struct kern_stream *stream;
    const struct plan *plan;
    const struct plan_part *part;
    const struct model_desc *desc;
    struct coll *coll;
    struct step_limits limits;
    struct kern_qkv qkv_shape;
    uint32_t table_stride_max; /* blocks of ctx_max positions */

    /* device, owned */
    void *normed, *att, *act;     /* [T,C], [T,H*D], [T,F] fmt: inputs of products */
    float *qkv;                   /* [T, (H+2K)*D] */
    float *gate_up;               /* [T, 2F] */
    float *partial;               /* [T, C] sums of this rank's leaves */
    float *picked;                /* [S, C] sampled rows; last stage */
    float *logits;                /* [S, V of the slice]; last stage */
    uint32_t *tokens, *pos, *seq; /* [T] */
    uint32_t *tables;             /* [S, stride] */
    uint32_t *rows;               /* [S] rows that are sampled */
    size_t buffer_bytes[EXEC_BUFFERS];
    size_t scratch_bytes; /* their sum, each rounded up to KERN_ALIGN */

    /* host, owned */
    uint32_t *host_map;      /* [2 T] */
    uint32_t *host_tables;   /* [S, table_stride_max] */
    uint32_t *host_rows;     /* [S] */
    char *scans, *scans_all; /* one slice's flat scans of a step; those of all slices */
    size_t scan_bytes_max;   /* of one row */

    struct kern_rows_map map;
    uint64_t stamp; /* of the next collective: the plan's digest and a running number */
    struct exec_times times;
};

/* y[n] partial -> the ordered sum over the slices of the stage. */
status exec_reduce(struct exec *e, float *y, size_t n, struct err *err);

status exec_sample_init(struct exec *e, struct err *err);
void exec_sample_fini(struct exec *e);
/* Logits of the sampled rows of x[T,C], scanned by every slice, merged by slice 0 into `results`.
 */
status exec_sample(struct exec *e, const struct step_head *plan, const float *x,
                   struct step_result *results, struct err *err);

#endif
