/* worker/exec_graph.c - decode steps recorded once and launched again.
 *
 * A step of a 70B slice is some thousand launches, each a few microseconds of the host; a graph is
 * one. Recorded are the copies of the tables, all layers with their collectives, the head and the
 * scans; what changes from step to step stands in pinned memory. One graph per
 *
 *   rows    a power of two (the streams of the step, padded)
 *   stride  blocks of the longest table, a power of two: bounds the attention's launch
 *   x       which of the residual buffers
 *
 * The first step of a kind is queued op by op: NCCL makes its connections then, and the device loads
 * kernels, neither of which may happen inside a recording. Prompts are not recorded, their sizes
 * vary and their launches hide behind their work. Refused: recording at the start (a hundred graphs
 * of which a service uses ten). */
#include "worker/exec_priv.h"

#include <stdlib.h>

enum { GRAPHS_MAX = 128, STRIDE_MIN = 16 };

struct entry {
    uint32_t n_rows, stride;
    const float *x;
    bool is_adjusted;
    const struct exec_set *set;
    uint32_t n_uses;
    struct kern_graph *graph; /* owned; NULL until the second use */
};

struct exec_graphs {
    uint32_t n;
    struct entry entries[GRAPHS_MAX];
};

/* Collectives that go through the host cannot be recorded. */
bool exec_graphs_wanted(const struct exec *e)
{
    return e->ops->graph_begin != NULL && (e->plan->tp == 1 || e->coll->is_queued);
}

static uint32_t pow2_from(uint32_t n)
{
    uint32_t p = 1;

    while (p < n) {
        p *= 2;
    }
    return p;
}

uint32_t exec_graph_rows(const struct exec *e, uint32_t n_rows)
{
    return MIN(pow2_from(n_rows), MIN(e->limits.rows_max, e->limits.seqs_max));
}

uint32_t exec_graph_stride(const struct exec *e, uint32_t stride)
{
    return MIN(pow2_from(MAX(stride, (uint32_t)STRIDE_MIN)), e->table_stride_max);
}

status exec_graphs_init(struct exec *e, struct err *err)
{
    if (!exec_graphs_wanted(e)) {
        return ST_OK;
    }
    e->graphs = calloc(1, sizeof(*e->graphs));
    return e->graphs != NULL ? ST_OK : err_set(err, ST_ERR_NOMEM, "no memory for a list of graphs");
}

void exec_graphs_fini(struct exec *e)
{
    for (uint32_t i = 0; e->graphs != NULL && i < e->graphs->n; i++) {
        e->ops->graph_destroy(e->stream, e->graphs->entries[i].graph);
    }
    free(e->graphs);
}

/* NULL: the list is full and this kind is not in it. */
static struct entry *find(struct exec *e, const float *x)
{
    struct exec_graphs *g = e->graphs;

    for (uint32_t i = 0; i < g->n; i++) {
        struct entry *at = &g->entries[i];
        if (at->n_rows == e->shape.n_rows && at->stride == e->shape.stride && at->x == x &&
            at->is_adjusted == e->shape.is_adjusted && at->set == e->set) {
            return at;
        }
    }
    if (g->n == GRAPHS_MAX) {
        return NULL;
    }
    g->entries[g->n] = (struct entry){ .n_rows = e->shape.n_rows,
                                       .stride = e->shape.stride,
                                       .x = x,
                                       .is_adjusted = e->shape.is_adjusted,
                                       .set = e->set };
    return &g->entries[g->n++];
}

static status record(struct exec *e, struct entry *at, float *x, struct err *err)
{
    status st = e->ops->graph_begin(e->stream, err);

    if (st != ST_OK) {
        return st;
    }
    st = exec_queue(e, x, err);
    if (st != ST_OK) { /* ended all the same: nothing else may be asked of a stream that records */
        struct kern_graph *half = NULL;
        (void)e->ops->graph_end(e->stream, &half, NULL);
        e->ops->graph_destroy(e->stream, half);
        return st;
    }
    return e->ops->graph_end(e->stream, &at->graph, err);
}

status exec_graph_run(struct exec *e, float *x, struct err *err)
{
    struct entry *at = find(e, x);
    status st = ST_OK;

    if (at == NULL || at->n_uses++ == 0) {
        return exec_queue(e, x, err);
    }
    if (at->graph == NULL) {
        st = record(e, at, x, err);
    }
    return st == ST_OK ? e->ops->graph_launch(e->stream, at->graph, err) : st;
}
