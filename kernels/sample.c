/* kernels/sample.c - see sample.h.
 *
 * All scalar, in the caller's thread, over at most KERN_CAND_MAX candidates: microseconds. Nothing
 * depends on how the vocabulary was sliced, because blocks are merged in ascending order and
 * candidates have a total order. */
#include "kernels/sample.h"

#include "kernels/adjust.h"
#include "kernels/cand.h"
#include "kernels/flat.h"
#include "kernels/math.h"
#include "kernels/philox.h"

#include <string.h>

static float clean_logit(float x)
{
    return x == x ? x : -INFINITY; /* a NaN is the worst logit there is */
}

static bool has_filter(const struct sample_params *p)
{
    return p->top_k > 0 || p->top_p < 1.0f || p->min_p > 0.0f;
}

bool sample_is_plain(const struct sample_params *p)
{
    return p->temperature == 0.0f || !has_filter(p);
}

struct kern_scan_row sample_row(const struct sample_params *p, uint32_t pos, uint32_t vocab,
                                bool is_adjusted)
{
    struct kern_scan_row row = {
        .params = { .seed = p->seed,
                    .choice = p->choice,
                    .pos = pos,
                    .temperature = p->temperature,
                    .n_cand = 1 },
        .penalties = p->penalties,
    };
    struct kern_sample *r = &row.params;

    if (p->temperature != 0.0f) {
        if (!has_filter(p)) {
            r->gumbel_all = true;
        } else {
            r->n_cand = p->top_k > 0 ? MIN(p->top_k, (uint32_t)KERN_CAND_MAX) : KERN_CAND_MAX;
        }
    }
    if (is_adjusted) { /* the log-probabilities are those of the other scan */
        row.n_raw = MIN(MAX(p->n_logprobs, 1u), vocab);
    } else {
        r->n_cand = MAX(r->n_cand, p->n_logprobs);
    }
    r->n_cand = MAX(MIN(r->n_cand, vocab), 1u);
    return row;
}

/* ---- a scan as bytes: kernels/flat.h ---- */

size_t scan_flat_bytes(const struct kern_sample *req, uint32_t n_ids)
{
    return flat_layout(req->temperature != 0.0f, req->n_cand, n_ids).bytes;
}

static void point_into(char *flat, const struct flat_layout *f, struct kern_scan *scan)
{
    *scan = (struct kern_scan){
        .lse = (struct kern_lse *)(void *)(flat + sizeof(struct flat_head)),
        .lse_temp = (struct kern_lse *)(void *)(flat + f->lse_temp),
        .cand = (struct kern_cand *)(void *)(flat + f->cand),
    };
}

void scan_flat_bind(void *flat, const struct kern_sample *req, uint32_t n_ids,
                    struct kern_scan *scan)
{
    const struct flat_layout f = flat_layout(req->temperature != 0.0f, req->n_cand, n_ids);

    point_into(flat, &f, scan);
    memset(flat, 0, sizeof(struct flat_head)); /* all bytes that travel are written */
    memset((char *)flat + f.end, 0, f.bytes - f.end);
}

void scan_flat_finish(void *flat, const struct kern_scan *scan)
{
    const struct flat_head head = { scan->gumbel, scan->gumbel_logit, 0 };

    memcpy(flat, &head, sizeof head);
}

void scan_flat_load(const void *flat, const struct kern_sample *req, uint32_t n_ids,
                    struct kern_scan *scan)
{
    const struct flat_layout f = flat_layout(req->temperature != 0.0f, req->n_cand, n_ids);
    struct flat_head head;

    memcpy(&head, flat, sizeof head);
    point_into((char *)(uintptr_t)flat, &f, scan); /* sample_merge only reads */
    scan->gumbel = head.gumbel;
    scan->gumbel_logit = head.gumbel_logit;
}

static struct flat_parts parts_of(const struct kern_scan_row *row, uint32_t n_ids)
{
    const struct kern_sample *p = &row->params;

    return flat_parts(p->temperature != 0.0f, p->n_cand, row->n_raw, n_ids);
}

size_t sample_row_bytes(const struct kern_scan_row *row, uint32_t n_ids)
{
    return parts_of(row, n_ids).bytes;
}

void sample_row_load(const void *flat, const struct kern_scan_row *row, struct sample_slice *slice)
{
    const struct kern_sample raw = flat_raw_params(row->n_raw);
    const struct flat_parts parts = parts_of(row, slice->n_ids);

    scan_flat_load(flat, &row->params, slice->n_ids, &slice->scan);
    if (row->n_raw != 0) {
        const char *at = flat;

        scan_flat_load(at + parts.raw, &raw, slice->n_ids, &slice->raw);
        slice->picked = (const float *)(const void *)(at + parts.picked);
    }
}

/* ---- scanning rows ---- */

/* One row of logits on its way through kern_scan_rows. */
struct row_job {
    const struct kern_ops *ops;
    struct kern_stream *s;
    float *x; /* [n_ids] */
    uint32_t id0, n_ids;
};

static void scan_into(const struct row_job *job, const struct kern_sample *params, char *flat,
                      struct kern_scan *scan)
{
    scan_flat_bind(flat, params, job->n_ids, scan);
    job->ops->scan(job->s, job->x, job->id0, job->n_ids, params, scan);
    scan_flat_finish(flat, scan);
}

/* Adjust the row, keeping what stood there. Ids that another slice holds wrap around n_ids. */
static void adjust(const struct row_job *job, const struct kern_scan_row *row,
                   struct kern_adjusts adjusts)
{
    const struct kern_adjust *e = adjusts.entries + row->entry0;
    float *saved = adjusts.saved + row->entry0;

    for (uint32_t i = 0; i < row->n_counts + row->n_biases; i++) {
        const uint32_t at = e[i].id - job->id0;

        if (at < job->n_ids) {
            saved[i] = job->x[at];
            job->x[at] = i < row->n_counts ? adjust_count(saved[i], &row->penalties, e[i].n_made)
                                           : adjust_bias(saved[i], e[i].bias);
        }
    }
}

/* The last first: an id may have a count and a bias. */
static void restore(const struct row_job *job, const struct kern_scan_row *row,
                    struct kern_adjusts adjusts)
{
    for (uint32_t i = row->entry0 + row->n_counts + row->n_biases; i > row->entry0; i--) {
        const uint32_t at = adjusts.entries[i - 1].id - job->id0;

        if (at < job->n_ids) {
            job->x[at] = adjusts.saved[i - 1];
        }
    }
}

static void scan_adjusted(const struct row_job *job, const struct kern_scan_row *row,
                          struct kern_adjusts adjusts, char *flat)
{
    const struct kern_sample raw = flat_raw_params(row->n_raw);
    const struct flat_parts parts = parts_of(row, job->n_ids);
    const uint32_t n_cand = MIN(row->params.n_cand, job->n_ids);
    float *picked = (float *)(void *)(flat + parts.picked);
    struct kern_scan scan;

    scan_into(job, &raw, flat + parts.raw, &scan);
    adjust(job, row, adjusts);
    scan_into(job, &row->params, flat, &scan);
    restore(job, row, adjusts);
    picked[0] = row->params.gumbel_all ? clean_logit(job->x[scan.gumbel.id - job->id0]) : 0.0f;
    for (uint32_t i = 0; i < n_cand; i++) {
        picked[1 + i] = clean_logit(job->x[scan.cand[i].id - job->id0]);
    }
    memset(flat + parts.end, 0, parts.bytes - parts.end);
}

void kern_scan_rows(const struct kern_ops *ops, struct kern_stream *s, float *logits, uint32_t id0,
                    uint32_t n_ids, uint32_t n_rows, const struct kern_scan_row *rows,
                    struct kern_adjusts adjusts, void *flat)
{
    if (ops->scan_rows != NULL) {
        ops->scan_rows(s, logits, id0, n_ids, n_rows, rows, adjusts, flat);
        return;
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        const struct row_job job = { ops, s, logits + (size_t)i * n_ids, id0, n_ids };
        char *at = (char *)flat + rows[i].flat_offset;
        struct kern_scan scan;

        if (rows[i].n_raw != 0) {
            scan_adjusted(&job, &rows[i], adjusts, at);
        } else if (rows[i].params.n_cand != 0) {
            scan_into(&job, &rows[i].params, at, &scan);
        }
    }
}

/* ---- merging ---- */

/* The scan of a slice that says what the model gave. */
static const struct kern_scan *raw_scan(const struct sample_slice *slice, bool is_adjusted)
{
    return is_adjusted ? &slice->raw : &slice->scan;
}

/* Blocks of all slices in ascending order: of logits / temperature, or of what the model gave. */
static struct kern_lse merge_lse(const struct sample_slice *slices, uint32_t n_slices, bool temp,
                                 bool is_adjusted)
{
    struct kern_lse all = { -INFINITY, 0.0f };

    for (uint32_t i = 0; i < n_slices; i++) {
        const struct kern_lse *blocks =
            temp ? slices[i].scan.lse_temp : raw_scan(&slices[i], is_adjusted)->lse;
        const uint32_t n = (slices[i].n_ids + KERN_VOCAB_BLOCK - 1) / KERN_VOCAB_BLOCK;

        for (uint32_t b = 0; b < n; b++) {
            const float max = blocks[b].max > all.max ? blocks[b].max : all.max;

            all.sum = fmaf(all.sum, lse_factor(all.max, max),
                           blocks[b].sum * lse_factor(blocks[b].max, max));
            all.max = max;
        }
    }
    return all;
}

/* The n best of all slices, sorted; of what the model gave, or of the adjusted row. Returns how
 * many there are. */
static uint32_t merge_cand(const struct sample_slice *slices, uint32_t n_slices, uint32_t n_cand,
                           bool raw, struct kern_cand *out)
{
    struct cand_heap heap = { out, 0, n_cand };
    uint32_t n;

    for (uint32_t i = 0; i < n_slices; i++) {
        const uint32_t have = MIN(n_cand, slices[i].n_ids);

        for (uint32_t j = 0; j < have; j++) {
            cand_heap_add(&heap, raw_scan(&slices[i], raw)->cand[j]);
        }
    }
    n = heap.n;
    cand_heap_sort(&heap);
    return n;
}

static float logprob(float logit, const struct kern_lse *lse)
{
    const float d = logit == lse->max ? 0.0f : logit - lse->max;

    return d - k_logf(lse->sum);
}

/* exp(logit / temperature - best), relative to the best candidate. */
static float weight(float logit, const struct sample_params *p, float best)
{
    const float x = logit / p->temperature;

    return x == best ? 1.0f : k_expf(x - best);
}

/* How many of the n candidates the filters leave, at least 1. */
static uint32_t filter(const struct kern_cand *cand, uint32_t n, const struct sample_params *p,
                       const struct kern_lse *lse_temp)
{
    const float best = cand[0].logit / p->temperature;
    double total = 0.0, before = 0.0;
    uint32_t keep;

    if (p->top_k > 0) {
        n = MIN(n, p->top_k);
        for (uint32_t i = 0; i < n; i++) {
            total += (double)weight(cand[i].logit, p, best);
        }
    } else {
        total = (double)lse_temp->sum; /* of the whole vocabulary, relative to the same maximum */
    }
    if (p->top_p < 1.0f) { /* up to and including the one that reaches top_p */
        for (keep = 0; keep < n; keep++) {
            if (keep > 0 && before >= (double)p->top_p * total) {
                break;
            }
            before += (double)weight(cand[keep].logit, p, best);
        }
        n = keep;
    }
    if (p->min_p > 0.0f) {
        for (keep = 1; keep < n; keep++) {
            if (weight(cand[keep].logit, p, best) < p->min_p) {
                break;
            }
        }
        n = keep;
    }
    return n;
}

/* Gumbel-max over the n candidates that are left. */
static struct kern_cand draw(const struct kern_cand *cand, uint32_t n,
                             const struct sample_params *p, uint32_t pos)
{
    struct kern_cand best = { 0 };
    uint32_t best_i = 0;

    for (uint32_t i = 0; i < n; i++) {
        const float noise = gumbel_noise(p->seed, p->choice, pos, cand[i].id);
        const struct kern_cand c = { cand[i].logit / p->temperature + noise, cand[i].id };

        if (i == 0 || cand_before(c, best)) {
            best = c;
            best_i = i;
        }
    }
    return cand[best_i];
}

/* Best of the slices' own Gumbel winners; .logit is the plain logit. */
static struct kern_cand draw_all(const struct sample_slice *slices, uint32_t n_slices)
{
    const struct sample_slice *best = &slices[0];

    for (uint32_t i = 1; i < n_slices; i++) {
        if (cand_before(slices[i].scan.gumbel, best->scan.gumbel)) {
            best = &slices[i];
        }
    }
    return (struct kern_cand){ best->scan.gumbel_logit, best->scan.gumbel.id };
}

/* What the model gave to an id that was chosen from adjusted logits. Its slice knows. */
static float raw_logit(const struct sample_slice *slices, uint32_t n_slices,
                       const struct kern_sample *req, uint32_t id)
{
    uint32_t i = 0;

    while (i + 1 < n_slices && id - slices[i].id0 >= slices[i].n_ids) {
        i++;
    }
    const struct sample_slice *q = &slices[i];
    const uint32_t n_cand = MIN(req->n_cand, q->n_ids);

    if (req->gumbel_all) {
        return q->picked[0];
    }
    for (uint32_t k = 0; k < n_cand; k++) {
        if (q->scan.cand[k].id == id) {
            return q->picked[1 + k];
        }
    }
    return -INFINITY; /* not reached: what is chosen is a candidate of its slice */
}

static struct kern_cand choose(const struct sample_slice *slices, uint32_t n_slices,
                               const struct sample_params *p, const struct kern_sample *req,
                               const struct kern_cand *cand, uint32_t n)
{
    if (req->gumbel_all) {
        return draw_all(slices, n_slices);
    }
    if (req->temperature == 0.0f) {
        return cand[0];
    }
    const struct kern_lse lse_temp = merge_lse(slices, n_slices, true, false);

    return draw(cand, filter(cand, n, p, &lse_temp), p, req->pos);
}

void sample_merge(const struct sample_slice *slices, uint32_t n_slices,
                  const struct sample_params *p, const struct kern_scan_row *row, uint32_t vocab,
                  struct sample_result *result)
{
    const struct kern_sample *req = &row->params;
    const bool is_adjusted = row->n_raw != 0;
    struct kern_cand cand[KERN_CAND_MAX] = { 0 };
    const struct kern_lse lse = merge_lse(slices, n_slices, false, is_adjusted);
    struct kern_cand chosen;
    uint32_t n;

    ASSERT(n_slices >= 1 && slices[0].id0 == 0);
    ASSERT(slices[n_slices - 1].id0 + slices[n_slices - 1].n_ids == vocab);
    ASSERT(req->n_cand >= 1 && req->n_cand <= KERN_CAND_MAX && row->n_raw <= KERN_CAND_MAX);
    n = merge_cand(slices, n_slices, req->n_cand, false, cand);
    chosen = choose(slices, n_slices, p, req, cand, n);
    if (is_adjusted) {
        chosen.logit = raw_logit(slices, n_slices, req, chosen.id);
        n = merge_cand(slices, n_slices, row->n_raw, true, cand);
    }
    *result = (struct sample_result){ .token = chosen.id, .logprob = logprob(chosen.logit, &lse) };
    result->n_top = MIN(MIN(p->n_logprobs, (uint32_t)SAMPLE_LOGPROBS_MAX), n);
    for (uint32_t i = 0; i < result->n_top; i++) {
        result->top[i] = (struct kern_cand){ logprob(cand[i].logit, &lse), cand[i].id };
    }
}
