/* worker/exec_sample.c - from the residual of the sampled rows to one token each.
 *
 * Every slice of the last stage has logits of its own ids. It reduces a row to a scan (block-wise
 * max and sum, best candidates, best Gumbel score): some hundred bytes for greedy, 8 KiB where a
 * filter needs candidates. The scans are gathered and slice 0 merges them (kernels/sample.h);
 * logits themselves never travel. The scans come into pinned memory; the host looks at them after
 * the step's one wait. A row with penalties or biases is scanned as it is as well (its
 * log-probabilities are the model's), and costs about twice as much. */
#include "worker/exec_priv.h"

#include <stdlib.h>
#include <string.h>

static uint32_t slice_ids(const struct exec *e, uint32_t slice, uint32_t *id0_p)
{
    const struct range v = e->plan->parts[(e->plan->pp - 1) * e->plan->tp + slice].vocab;

    *id0_p = v.begin;
    return range_len(v);
}

static size_t align_up(size_t n)
{
    return (n + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
}

/* Bytes of one row's scan, the same on every slice: that of the slice with the most ids. */
static size_t row_bytes(const struct exec *e, const struct kern_scan_row *row)
{
    size_t bytes = 0;

    for (uint32_t i = 0; i < e->plan->tp; i++) {
        uint32_t id0;
        bytes = MAX(bytes, sample_row_bytes(row, slice_ids(e, i, &id0)));
    }
    return align_up(bytes);
}

size_t exec_sample_bytes(struct exec *e)
{
    const struct kern_scan_row most = {
        .params = { .temperature = 1.0f, .n_cand = KERN_CAND_MAX, .gumbel_all = true },
        .n_raw = SAMPLE_LOGPROBS_MAX,
    };

    if (!e->part->has_head) {
        return 0;
    }
    e->scan_bytes_max = row_bytes(e, &most);
    return e->scan_bytes_max * e->limits.seqs_max;
}

status exec_sample_init(struct exec *e, struct err *err)
{
    const size_t bytes = exec_sample_bytes(e) * e->plan->tp;

    if (bytes == 0) {
        return ST_OK; /* no head here */
    }
    e->scans_all = aligned_alloc(KERN_ALIGN, bytes);
    return e->scans_all != NULL
               ? ST_OK
               : err_set(err, ST_ERR_NOMEM, "no memory for %zu bytes of sampling scratch", bytes);
}

void exec_sample_fini(struct exec *e)
{
    free(e->scans_all);
}

/* The sampled sequences of a plan, in order. */
static const struct step_seq *next_sampled(const struct step_seq *q)
{
    while (!q->sample) {
        q++;
    }
    return q;
}

static struct kern_scan_row row_of(const struct exec *e, const struct step_seq *q)
{
    /* The token chosen after row n is the one at position n + 1. */
    struct kern_scan_row row =
        sample_row(&q->params, q->pos0 + q->n_rows, e->desc->vocab, q->n_counts + q->n_biases != 0);

    row.entry0 = q->adjust0;
    row.n_counts = q->n_counts;
    row.n_biases = q->n_biases;
    return row;
}

void exec_sample_fill(struct exec *e, const struct step_head *plan)
{
    const struct step_seq *q = step_seqs_const(plan);
    size_t used = 0;

    for (uint32_t i = 0; i < plan->n_samples; i++, q++) {
        q = next_sampled(q);
        e->set->scan_rows[i] = row_of(e, q);
        e->set->scan_rows[i].flat_offset = used;
        used += row_bytes(e, &e->set->scan_rows[i]);
    }
    memcpy(e->set->adjusts, step_adjusts_const(plan), plan->n_adjusts * sizeof(*e->set->adjusts));
    e->set->scan_bytes = used;
}

static void merge_rows(struct exec *e, const struct step_head *plan, size_t stride,
                       struct step_result *results)
{
    const struct step_seq *q = step_seqs_const(plan);
    struct sample_slice slices[KERN_LEAVES_MAX];
    size_t used = 0;

    for (uint32_t i = 0; i < plan->n_samples; i++, q++) {
        q = next_sampled(q);
        const struct kern_scan_row row = row_of(e, q);
        uint32_t n_slices = 0;
        for (uint32_t s = 0; s < e->plan->tp; s++) {
            struct sample_slice *slice = &slices[n_slices];
            slice->n_ids = slice_ids(e, s, &slice->id0);
            if (slice->n_ids != 0) { /* a small vocabulary may leave slices without ids */
                sample_row_load(e->scans_all + s * stride + used, &row, slice);
                n_slices++;
            }
        }
        memset(&results[i], 0, sizeof(results[i]));
        results[i].stream = q->stream;
        results[i].attempt = q->attempt;
        sample_merge(slices, n_slices, &q->params, &row, e->desc->vocab, &results[i].sampled);
        used += row_bytes(e, &row);
    }
}

/* What each row would choose goes to all slices, in the order of the rows: best_all[slice, S]. */
static status queue_best(struct exec *e, uint32_t n_ids, struct err *err)
{
    const struct exec_set *set = e->set;

    e->ops->pick(e->stream, e->best, set->scan_rows, set->scans, n_ids, e->shape.n_samples);
    if (e->plan->tp == 1) {
        return ST_OK;
    }
    const uint64_t from = clock_now_ns(clock_real());
    const status st =
        e->coll->ops->all_gather(e->coll, e->stream, e->best, e->limits.seqs_max * sizeof(*e->best),
                                 e->best_all, e->set->stamp++, err);
    e->set->coll_ns += clock_now_ns(clock_real()) - from;
    return st;
}

status exec_sample_queue(struct exec *e, const float *x, struct err *err)
{
    const struct kern_ops *k = e->ops;
    const uint32_t n = e->shape.n_samples, c = e->desc->dim;
    uint32_t id0;
    const uint32_t n_ids = slice_ids(e, e->part->slice, &id0);

    k->gather(e->stream, e->picked, x, e->at.rows, n, c);
    k->rmsnorm(e->stream, e->normed, e->fmt, e->picked, e->shard->final_norm, n, c,
               e->desc->norm_eps);
    if (n_ids != 0) {
        k->gemm(e->stream, e->logits, e->normed, &e->shard->head,
                n); /* W[V,C] x normed[S,C] -> logits[S,V] */
        const struct exec_set *set = e->set;
        const struct kern_adjusts adjusts = { e->shape.is_adjusted ? set->adjusts : NULL,
                                              set->saved };
        kern_scan_rows(k, e->stream, e->logits, id0, n_ids, n, set->scan_rows, adjusts, set->scans);
    }
    return exec_is_ahead(e) ? queue_best(e, n_ids, err) : ST_OK;
}

status exec_sample_merge(struct exec *e, struct exec_set *set, struct step_result *results,
                         struct err *err)
{
    const size_t bytes = set->scan_bytes;

    if (e->plan->tp == 1) {
        memcpy(e->scans_all, set->scans, bytes);
    } else {
        const uint64_t from = clock_now_ns(clock_real());
        const status st = e->coll->ops->all_gather(e->coll, NULL, set->scans, bytes, e->scans_all,
                                                   set->stamp++, err);
        set->coll_ns += clock_now_ns(clock_real()) - from;
        if (st != ST_OK) {
            return st;
        }
    }
    if (e->part->slice == 0) {
        merge_rows(e, set->plan, bytes, results);
    }
    return ST_OK;
}
