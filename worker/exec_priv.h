/* worker/exec_priv.h - scratch and tables of a rank's forward pass, shared by exec*.c.
 *
 *   exec.c         life, layers, one step
 *   exec_rows.c    a plan as tables of rows, in pinned memory
 *   exec_graph.c   decode steps recorded once and launched again
 *   exec_sample.c  from logits to tokens */
#ifndef WORKER_EXEC_PRIV_H
#define WORKER_EXEC_PRIV_H

#include "worker/exec.h"

enum { EXEC_BUFFERS = 11 };

/* What a step launches. Padded: a graph's sizes, of which the plan fills the first rows. */
struct exec_shape {
    uint32_t n_rows, n_seqs, n_samples;
    uint32_t stride;  /* of the tables */
    bool is_recorded; /* by way of a graph */
    bool is_adjusted; /* some row has penalties or biases */
};

/* A step's tables: tokens, pos, seq, from [T], rows [S], tables [S, stride], each aligned, one behind
 * the other by the sizes of the step, so that one copy moves them. */
struct exec_tables {
    uint32_t *tokens, *pos, *seq;
    uint32_t *from; /* 1 + sample of the step before that is the row's token; 0: it is in tokens */
    uint32_t *rows; /* that are sampled */
    uint32_t *tables;
};

/* What the host holds of a step from begin to finish, in memory that the device reads and writes
 * when their turn comes. */
struct exec_set {
    uint32_t *tables;                /* pinned, the bytes of exec_tables; as those below */
    struct kern_scan_row *scan_rows; /* [S] last stage */
    struct kern_adjust *adjusts;     /* [adjusts_max] last stage, as the next one */
    float *saved;                    /* [adjusts_max] scratch of the scans */
    char *scans;                     /* last stage: this slice's flat scans */
    const struct step_head *plan;    /* borrowed while the step is out */
    struct exec_shape shape;
    size_t scan_bytes; /* in use of `scans` */
    bool is_queued;    /* nobody has waited for its mark */
    uint64_t stamp;    /* of its next collective: the plan's digest and a running number */
    uint64_t began_ns, coll_ns;
};

struct exec_graphs; /* exec_graph.c */

/* Letters as in kernels/kern.h; T is rows_max, S is seqs_max. */
struct exec {
    struct shard *shard; /* borrowed, as all down to coll */
    const struct kern_ops *ops;
    struct kern_stream *stream;
    const struct plan *plan;
    const struct plan_part *part;
    const struct model_desc *desc;
    enum kern_fmt fmt; /* of products' inputs */
    struct coll *coll;
    struct step_limits limits;
    struct kern_qkv qkv_shape;
    uint32_t table_stride_max; /* blocks of ctx_max positions */
    _Atomic uint64_t *ticks;   /* borrowed, may be NULL: goes up with every layer */

    /* device, owned */
    void *normed, *att, *act;   /* [T,C], [T,H*D], [T,F] fmt: inputs of products */
    float *qkv;                 /* [T, (H+2K)*D] */
    float *gate_up;             /* [T, 2F] */
    float *partial;             /* [T, C] sums of this rank's leaves */
    float *picked;              /* [S, C] sampled rows; last stage */
    float *logits;              /* [S, V of the slice]; last stage */
    char *step_mem;             /* the step's exec_tables */
    struct kern_cand *best;     /* [S] what this slice would choose; one stage */
    struct kern_cand *best_all; /* [tp, S]; NULL with tp 1 */
    size_t buffer_bytes[EXEC_BUFFERS];
    size_t scratch_bytes; /* their sum, each rounded up to KERN_ALIGN */

    /* host, owned */
    struct exec_set sets[EXEC_OUT_MAX]; /* pieces of host_mem */
    uint32_t n_sets;                    /* 1 where ops are done when they return */
    uint32_t i_set, n_out;              /* of the next step; steps that are out are before it */
    struct exec_set *set;               /* that is being queued */
    void *host_mem;                     /* pinned */
    size_t host_bytes;
    char *scans_all;       /* last stage: the scans of all slices */
    size_t scan_bytes_max; /* of one row */

    struct exec_graphs *graphs; /* owned; NULL: every step is queued op by op */
    struct exec_shape shape;    /* of the step that is being queued */
    struct exec_tables at;      /* in step_mem, for that shape */
    struct kern_rows_map map;
    uint32_t n_fed_max;   /* samples of the step before that can feed */
    uint64_t finished_ns; /* when a step was last finished */
    struct exec_times times;
};

/* y[n] partial -> the ordered sum over the slices of the stage. */
status exec_reduce(struct exec *e, float *y, size_t n, struct err *err);
/* Queue the whole stage on x[T,C], from the copies of its tables to the scans, for e->shape. */
status exec_queue(struct exec *e, float *x, struct err *err);

/* Pinned memory and tables. */
status exec_rows_init(struct exec *e, struct err *err);
void exec_rows_fini(struct exec *e);
/* The bytes of exec_tables at most. */
size_t exec_tables_bytes(const struct exec *e);
/* The tables of a plan into e->set; sets e->shape. Nothing of the step that had the set before may
 * be running. ST_ERR_PROTO: fed by samples that are not there. */
status exec_rows_fill(struct exec *e, const struct step_head *plan, struct err *err);
/* Queue their copy, and what feeds them; sets e->at and e->map. */
void exec_rows_queue(struct exec *e);

/* Does this rank record its decode steps? Equal on all ranks of a replica. */
bool exec_graphs_wanted(const struct exec *e);
/* Rows, and blocks of a table, of the graph that serves so many. */
uint32_t exec_graph_rows(const struct exec *e, uint32_t n_rows);
uint32_t exec_graph_stride(const struct exec *e, uint32_t stride);
status exec_graphs_init(struct exec *e, struct err *err);
void exec_graphs_fini(struct exec *e);
/* Queue e->shape: op by op the first time, recorded the second, launched from then on. */
status exec_graph_run(struct exec *e, float *x, struct err *err);

/* Bytes of one slice's scans of a step at most; 0 where there is no head. */
size_t exec_sample_bytes(struct exec *e);
status exec_sample_init(struct exec *e, struct err *err);
void exec_sample_fini(struct exec *e);
/* Rows of the scan, into e->set. */
void exec_sample_fill(struct exec *e, const struct step_head *plan);
/* Queue: logits of the sampled rows of x[T,C], their scans, and what the next step is fed with. */
status exec_sample_queue(struct exec *e, const float *x, struct err *err);
/* After the set's mark: gather the scans of all slices; slice 0 merges them into `results`. */
status exec_sample_merge(struct exec *e, struct exec_set *set, struct step_result *results,
                         struct err *err);

#endif
