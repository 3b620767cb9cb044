/* worker/exec_sample.c - from the residual of the sampled rows to one token each.
 *
 * Every slice of the last stage has logits of its own ids. It reduces a row to a scan (block-wise
 * max and sum, best candidates, best Gumbel score): some hundred bytes for greedy, 8 KiB where a
 * filter needs candidates. The scans are gathered and slice 0 merges them (kernels/sample.h);
 * logits themselves never travel. */
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
static size_t row_bytes(const struct exec *e, const struct kern_sample *req)
{
    size_t bytes = 0;

    for (uint32_t i = 0; i < e->plan->tp; i++) {
        uint32_t id0;
        bytes = MAX(bytes, scan_flat_bytes(req, slice_ids(e, i, &id0)));
    }
    return align_up(bytes);
}

status exec_sample_init(struct exec *e, struct err *err)
{
    const struct kern_sample most = { .temperature = 1.0f,
                                      .n_cand = KERN_CAND_MAX,
                                      .gumbel_all = true };

    e->scan_bytes_max = row_bytes(e, &most);
    const size_t bytes = e->scan_bytes_max * e->limits.seqs_max;
    e->scans = aligned_alloc(KERN_ALIGN, bytes);
    e->scans_all = aligned_alloc(KERN_ALIGN, bytes * e->plan->tp);
    if (e->scans == NULL || e->scans_all == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %zu bytes of sampling scratch",
                       bytes * (1 + e->plan->tp));
    }
    memset(e->scans, 0, bytes); /* tails of short slices travel too */
    return ST_OK;
}

void exec_sample_fini(struct exec *e)
{
    free(e->scans);
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

static struct kern_sample request_of(const struct exec *e, const struct step_seq *q)
{
    /* The token chosen after row n is the one at position n + 1. */
    return sample_request(&q->params, q->pos0 + q->n_rows, e->desc->vocab);
}

/* Scan all sampled rows of this slice's logits into e->scans. Returns the bytes in use. */
static size_t scan_rows(struct exec *e, const struct step_head *plan)
{
    const struct step_seq *q = step_seqs_const(plan);
    uint32_t id0;
    const uint32_t n_ids = slice_ids(e, e->part->slice, &id0);
    size_t used = 0;

    for (uint32_t i = 0; i < plan->n_samples; i++, q++) {
        q = next_sampled(q);
        const struct kern_sample req = request_of(e, q);
        if (n_ids != 0) {
            struct kern_scan scan;
            scan_flat_bind(e->scans + used, &req, n_ids, &scan);
            e->ops->scan(e->stream, e->logits + (size_t)i * n_ids, id0, n_ids, &req, &scan);
            scan_flat_finish(e->scans + used, &scan);
        }
        used += row_bytes(e, &req);
    }
    return used;
}

static void merge_rows(struct exec *e, const struct step_head *plan, size_t stride,
                       struct step_result *results)
{
    const struct step_seq *q = step_seqs_const(plan);
    struct sample_slice slices[KERN_LEAVES_MAX];
    size_t used = 0;

    for (uint32_t i = 0; i < plan->n_samples; i++, q++) {
        q = next_sampled(q);
        const struct kern_sample req = request_of(e, q);
        uint32_t n_slices = 0;
        for (uint32_t s = 0; s < e->plan->tp; s++) {
            struct sample_slice *slice = &slices[n_slices];
            slice->n_ids = slice_ids(e, s, &slice->id0);
            if (slice->n_ids != 0) { /* a small vocabulary may leave slices without ids */
                scan_flat_load(e->scans_all + s * stride + used, &req, slice->n_ids, &slice->scan);
                n_slices++;
            }
        }
        memset(&results[i], 0, sizeof(results[i]));
        results[i].stream = q->stream;
        results[i].attempt = q->attempt;
        sample_merge(slices, n_slices, &q->params, &req, e->desc->vocab, &results[i].sampled);
        used += row_bytes(e, &req);
    }
}

status exec_sample(struct exec *e, const struct step_head *plan, const float *x,
                   struct step_result *results, struct err *err)
{
    const struct kern_ops *k = e->ops;
    const uint32_t n = plan->n_samples, c = e->desc->dim;

    k->gather(e->stream, e->picked, x, e->rows, n, c);
    k->rmsnorm(e->stream, e->normed, e->plan->fmt, e->picked, e->shard->final_norm, n, c,
               e->desc->norm_eps);
    if (e->shard->head.n != 0) {
        k->gemm(e->stream, e->logits, e->normed, &e->shard->head,
                n); /* W[V,C] x normed[S,C] -> logits[S,V] */
    }
    const size_t bytes = scan_rows(e, plan);
    if (e->plan->tp == 1) {
        memcpy(e->scans_all, e->scans, bytes);
    } else {
        const uint64_t from = clock_now_ns(clock_real());
        const status st =
            e->coll->ops->all_gather(e->coll, NULL, e->scans, bytes, e->scans_all, e->stamp++, err);
        e->times.coll_ns += clock_now_ns(clock_real()) - from;
        if (st != ST_OK) {
            return st;
        }
    }
    if (e->part->slice == 0) {
        merge_rows(e, plan, bytes, results);
    }
    return ST_OK;
}
