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

/* Hands out pieces of `base`; without memory it only counts. */
static void *piece(char *base, size_t *used, size_t bytes)
{
    void *at = base != NULL ? base + *used : NULL;

    *used += aligned(bytes);
    return at;
}

size_t exec_tables_bytes(const struct exec *e)
{
    const size_t t = e->limits.rows_max, s = e->limits.seqs_max;

    return 4 * aligned(t * sizeof(uint32_t)) + aligned(s * sizeof(uint32_t)) +
           aligned(s * e->table_stride_max * sizeof(uint32_t));
}

/* The tables of a step of this shape in memory that begins at `base`; their bytes. */
static size_t lay_out(const struct exec_shape *shape, void *base, struct exec_tables *at)
{
    const size_t t = shape->n_rows * sizeof(uint32_t);
    size_t used = 0;

    at->tokens = piece(base, &used, t);
    at->pos = piece(base, &used, t);
    at->seq = piece(base, &used, t);
    at->from = piece(base, &used, t);
    at->rows = piece(base, &used, shape->n_samples * sizeof(uint32_t));
    at->tables = piece(base, &used, (size_t)shape->n_seqs * shape->stride * sizeof(uint32_t));
    return used;
}

static size_t place(struct exec *e, char *base)
{
    const size_t adjusts_max = e->part->has_head ? e->limits.adjusts_max : 0;
    size_t used = 0;

    for (uint32_t i = 0; i < e->n_sets; i++) {
        struct exec_set *set = &e->sets[i];
        set->tables = piece(base, &used, exec_tables_bytes(e));
        set->scan_rows = piece(base, &used, e->limits.seqs_max * sizeof(struct kern_scan_row));
        set->adjusts = piece(base, &used, adjusts_max * sizeof(*set->adjusts));
        set->saved = piece(base, &used, adjusts_max * sizeof(*set->saved));
        set->scans = piece(base, &used, exec_sample_bytes(e));
    }
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

static void fill_seq(const struct exec_tables *at, const struct step_head *plan, uint32_t i,
                     uint32_t stride)
{
    const struct step_seq *q = &step_seqs_const(plan)[i];
    uint32_t *table = at->tables + (size_t)i * stride;

    for (uint32_t r = 0; r < q->n_rows; r++) {
        at->pos[q->row0 + r] = q->pos0 + r;
        at->seq[q->row0 + r] = i;
        at->from[q->row0 + r] = q->feed;
    }
    memcpy(table, step_tables_const(plan) + q->table0, q->n_blocks * sizeof(uint32_t));
    memset(table + q->n_blocks, 0, (stride - q->n_blocks) * sizeof(uint32_t));
}

static void pad(struct exec *e, const struct exec_tables *at, uint32_t n_rows)
{
    const uint32_t last = n_rows - 1, stride = e->shape.stride;

    for (uint32_t i = n_rows; i < e->shape.n_rows; i++) {
        at->tokens[i] = at->tokens[last];
        at->pos[i] = at->pos[last];
        at->from[i] = at->from[last];
        at->seq[i] = i;
        memcpy(at->tables + (size_t)i * stride, at->tables + (size_t)last * stride,
               stride * sizeof(uint32_t));
        at->rows[i] = i;
        e->set->scan_rows[i] = (struct kern_scan_row){ .flat_offset = 0 };
    }
}

static status check_feeds(const struct exec *e, const struct step_head *plan, struct err *err)
{
    const uint32_t most = exec_is_ahead(e) && e->n_out != 0 ? e->n_fed_max : 0;

    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const uint32_t feed = step_seqs_const(plan)[i].feed;
        if (feed > most) {
            return err_set(err, ST_ERR_PROTO,
                           "step %llu: sequence %u is fed by sample %u of %u that are out",
                           (unsigned long long)plan->id, i, feed - 1, most);
        }
    }
    return ST_OK;
}

status exec_rows_fill(struct exec *e, const struct step_head *plan, struct err *err)
{
    const struct step_seq *seqs = step_seqs_const(plan);
    const uint32_t stride = longest_table(plan);
    const status st = check_feeds(e, plan, err);
    struct exec_tables at;
    uint32_t n_samples = 0;

    if (st != ST_OK) {
        return st;
    }
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
    (void)lay_out(&e->shape, e->set->tables, &at);
    memcpy(at.tokens, step_tokens_const(plan), plan->n_rows * sizeof(uint32_t));
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        fill_seq(&at, plan, i, e->shape.stride);
        if (seqs[i].sample) {
            at.rows[n_samples++] = seqs[i].row0 + seqs[i].n_rows - 1;
        }
    }
    if (e->part->has_head) {
        exec_sample_fill(e, plan);
    }
    if (e->shape.is_recorded) {
        pad(e, &at, plan->n_rows);
    }
    return ST_OK;
}

void exec_rows_queue(struct exec *e)
{
    const struct exec_shape *shape = &e->shape;
    const size_t bytes = lay_out(shape, e->step_mem, &e->at);

    e->ops->copy_in_later(e->stream, e->step_mem, e->set->tables, bytes);
    if (exec_is_ahead(e)) {
        e->ops->feed(e->stream, e->at.tokens, e->at.from, e->plan->tp > 1 ? e->best_all : e->best,
                     e->plan->tp, e->limits.seqs_max, shape->n_rows);
    }
    e->map = (struct kern_rows_map){ .n_rows = shape->n_rows,
                                     .n_seqs = shape->n_seqs,
                                     .table_stride = shape->stride,
                                     .pos = e->at.pos,
                                     .seq = e->at.seq,
                                     .tables = e->at.tables };
}
