/* worker/exec_rows.c - a step plan as the tables that kernels read.
 *
 * They are written into pinned memory and copied by the device when their turn comes, so that a
 * recorded step finds those of the step it is launched for.
 *
 * A decode step that is to be recorded (every stream one row, every row sampled) is padded to the
 * sizes of its graph. The padding repeats the last row: the same token of the same stream at the
 * same position, under a number of its own. So it computes what that row computes and stores the
 * same k and v at the same place, and needs neither a spare block nor a kernel that knows of
 * padding. It goes from stage to stage as well (exec_rows). Its scans are skipped. */
#include "worker/exec_priv.h"

#include <string.h>

static size_t aligned(size_t bytes)
{
    return (bytes + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
}

/* Hands out pieces of host_mem; without memory it only counts. */
static void *piece(char *base, size_t *used, size_t bytes)
{
    void *at = base != NULL ? base + *used : NULL;

    *used += aligned(bytes);
    return at;
}

static size_t place(struct exec *e, char *base)
{
    const size_t t = e->limits.rows_max, s = e->limits.seqs_max;
    struct exec_host *h = &e->host;
    size_t used = 0;

    h->tokens = piece(base, &used, t * sizeof(uint32_t));
    h->pos = piece(base, &used, t * sizeof(uint32_t));
    h->seq = piece(base, &used, t * sizeof(uint32_t));
    h->tables = piece(base, &used, s * e->table_stride_max * sizeof(uint32_t));
    h->rows = piece(base, &used, s * sizeof(uint32_t));
    h->scan_rows = piece(base, &used, s * sizeof(struct kern_scan_row));
    if (e->part->has_head) {
        h->adjusts = piece(base, &used, e->limits.adjusts_max * sizeof(*h->adjusts));
        h->saved = piece(base, &used, e->limits.adjusts_max * sizeof(*h->saved));
    }
    h->scans = piece(base, &used, exec_sample_bytes(e));
    return used;
}

status exec_rows_init(struct exec *e, struct err *err)
{
    const size_t bytes = place(e, NULL);
    const status st = e->ops->host_alloc(e->stream, bytes, &e->host_mem, err);

    if (st != ST_OK) {
        err_prefix(err, "rank %u: tables of a step: ", e->part->rank);
        return st;
    }
    e->host_bytes = bytes;
    (void)place(e, e->host_mem);
    return ST_OK;
}

void exec_rows_fini(struct exec *e)
{
    e->ops->host_free(e->stream, e->host_mem, e->host_bytes);
}

/* Every stream one row, every row sampled. */
static bool is_decode(const struct step_head *plan)
{
    return plan->n_rows == plan->n_seqs && plan->n_samples == plan->n_rows && plan->n_rows != 0;
}

uint32_t exec_rows(const struct exec *e, const struct step_head *plan)
{
    return e->graphs != NULL && is_decode(plan) ? exec_graph_rows(e, plan->n_rows) : plan->n_rows;
}

static uint32_t longest_table(const struct step_head *plan)
{
    const struct step_seq *seqs = step_seqs_const(plan);
    uint32_t stride = 1;

    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        stride = MAX(stride, seqs[i].n_blocks);
    }
    return stride;
}

static void fill_seq(struct exec *e, const struct step_head *plan, uint32_t i)
{
    const struct step_seq *q = &step_seqs_const(plan)[i];
    const uint32_t stride = e->shape.stride;
    uint32_t *table = e->host.tables + (size_t)i * stride;

    for (uint32_t r = 0; r < q->n_rows; r++) {
        e->host.pos[q->row0 + r] = q->pos0 + r;
        e->host.seq[q->row0 + r] = i;
    }
    memcpy(table, step_tables_const(plan) + q->table0, q->n_blocks * sizeof(uint32_t));
    memset(table + q->n_blocks, 0, (stride - q->n_blocks) * sizeof(uint32_t));
}

static void pad(struct exec *e, const struct step_head *plan)
{
    const uint32_t last = plan->n_rows - 1, stride = e->shape.stride;
    struct exec_host *h = &e->host;

    for (uint32_t i = plan->n_rows; i < e->shape.n_rows; i++) {
        h->tokens[i] = h->tokens[last];
        h->pos[i] = h->pos[last];
        h->seq[i] = i;
        memcpy(h->tables + (size_t)i * stride, h->tables + (size_t)last * stride,
               stride * sizeof(uint32_t));
        h->rows[i] = i;
        h->scan_rows[i] = (struct kern_scan_row){ .flat_offset = 0 };
    }
}

void exec_rows_fill(struct exec *e, const struct step_head *plan)
{
    const struct step_seq *seqs = step_seqs_const(plan);
    const uint32_t stride = longest_table(plan);
    uint32_t n_samples = 0;

    ASSERT(stride <= e->table_stride_max);
    e->shape = (struct exec_shape){ .n_rows = plan->n_rows,
                                    .n_seqs = plan->n_seqs,
                                    .n_samples = plan->n_samples,
                                    .stride = stride };
    if (e->graphs != NULL && is_decode(plan)) {
        const uint32_t n = exec_graph_rows(e, plan->n_rows);
        e->shape = (struct exec_shape){ .n_rows = n,
                                        .n_seqs = n,
                                        .n_samples = n,
                                        .stride = exec_graph_stride(e, stride),
                                        .is_recorded = true };
    }
    e->shape.is_adjusted = e->part->has_head && plan->n_adjusts != 0;
    memcpy(e->host.tokens, step_tokens_const(plan), plan->n_rows * sizeof(uint32_t));
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        fill_seq(e, plan, i);
        if (seqs[i].sample) {
            e->host.rows[n_samples++] = seqs[i].row0 + seqs[i].n_rows - 1;
        }
    }
    if (e->part->has_head) {
        exec_sample_fill(e, plan);
    }
    if (e->shape.is_recorded) {
        pad(e, plan);
    }
}

void exec_rows_queue(struct exec *e)
{
    const struct exec_shape *shape = &e->shape;
    const size_t bytes = shape->n_rows * sizeof(uint32_t);

    e->ops->copy_in_later(e->stream, e->tokens, e->host.tokens, bytes);
    e->ops->copy_in_later(e->stream, e->pos, e->host.pos, bytes);
    e->ops->copy_in_later(e->stream, e->seq, e->host.seq, bytes);
    e->ops->copy_in_later(e->stream, e->tables, e->host.tables,
                          (size_t)shape->n_seqs * shape->stride * sizeof(uint32_t));
    if (e->part->has_head && shape->n_samples != 0) {
        e->ops->copy_in_later(e->stream, e->rows, e->host.rows,
                              shape->n_samples * sizeof(uint32_t));
    }
    e->map = (struct kern_rows_map){ .n_rows = shape->n_rows,
                                     .n_seqs = shape->n_seqs,
                                     .table_stride = shape->stride,
                                     .pos = e->pos,
                                     .seq = e->seq,
                                     .tables = e->tables };
}
