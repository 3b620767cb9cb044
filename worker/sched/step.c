/* worker/sched/step.c - see step.h. */
#include "worker/sched/step.h"

#include "base/hash.h"

#include <math.h>
#include <string.h>

/* The sizes are part of the message: no padding may differ between builds of one protocol. */
_Static_assert(sizeof(struct step_seq) % 8 == 0, "seqs are an array of 8-byte aligned records");
_Static_assert(sizeof(struct step_head) % 8 == 0, "seqs follow the head");
_Static_assert(sizeof(struct kern_adjust) == 8, "adjusts are copied into plans as they are");

size_t step_bytes_max(const struct step_limits *limits)
{
    const size_t bytes = sizeof(struct step_head) +
                         (size_t)limits->seqs_max * sizeof(struct step_seq) +
                         (size_t)limits->adjusts_max * sizeof(struct kern_adjust) +
                         ((size_t)limits->rows_max + limits->tables_max) * sizeof(uint32_t);

    return (bytes + 7) / 8 * 8;
}

static size_t bytes_of(const struct step_head *h)
{
    return sizeof(*h) + (size_t)h->n_seqs * sizeof(struct step_seq) +
           (size_t)h->n_adjusts * sizeof(struct kern_adjust) +
           ((size_t)h->n_rows + h->n_tables) * sizeof(uint32_t);
}

static uint64_t digest_of(const struct step_head *h)
{
    struct step_head head = *h;

    head.digest = 0;
    return hash64_of(h + 1, h->bytes - sizeof(*h), hash64_of(&head, sizeof(head), 0));
}

void step_seal(struct step_head *h)
{
    h->magic = STEP_MAGIC;
    h->bytes = (uint32_t)bytes_of(h);
    h->digest = digest_of(h);
}

/* Sequence i, whose rows begin at `row`. */
static status check_seq(const struct step_head *h, uint32_t i, uint32_t row, uint32_t seqs_max,
                        struct err *err)
{
    const struct step_seq *q = &step_seqs_const(h)[i];
    const uint64_t end = (uint64_t)q->pos0 + q->n_rows;

    if (q->row0 != row || q->n_rows == 0 || q->n_rows > h->n_rows - row) {
        return err_set(err, ST_ERR_PROTO, "step %llu: sequence %u has rows %u+%u of %u",
                       (unsigned long long)h->id, i, q->row0, q->n_rows, h->n_rows);
    }
    if (q->table0 > h->n_tables || q->n_blocks > h->n_tables - q->table0 ||
        end > (uint64_t)q->n_blocks * KERN_KV_BLOCK) {
        return err_set(err, ST_ERR_PROTO, "step %llu: sequence %u has %u blocks for position %llu",
                       (unsigned long long)h->id, i, q->n_blocks, (unsigned long long)end);
    }
    if (q->feed != 0 && (q->n_rows != 1 || q->feed > seqs_max)) {
        return err_set(err, ST_ERR_PROTO, "step %llu: sequence %u of %u rows is fed by sample %u",
                       (unsigned long long)h->id, i, q->n_rows, q->feed - 1);
    }
    if (!isfinite(q->params.temperature) || q->params.temperature < 0 ||
        q->params.n_logprobs > SAMPLE_LOGPROBS_MAX) {
        return err_set(
            err, ST_ERR_PROTO, "step %llu: sequence %u has temperature %g and %u log-probabilities",
            (unsigned long long)h->id, i, (double)q->params.temperature, q->params.n_logprobs);
    }
    return ST_OK;
}

/* A list of adjusts whose ids ascend: kernels change each logit once per list. */
static bool ids_ascend(const struct kern_adjust *list, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        if (list[i].id <= list[i - 1].id) {
            return false;
        }
    }
    return true;
}

/* Penalties and adjusts of sequence i, whose adjusts begin at `at`. */
static status check_adjusts(const struct step_head *h, uint32_t i, uint32_t at, struct err *err)
{
    const struct step_seq *q = &step_seqs_const(h)[i];
    const struct kern_penalties *p = &q->params.penalties;
    const struct kern_adjust *list = step_adjusts_const(h) + at;
    const uint32_t left = h->n_adjusts - at;

    if (q->adjust0 != at || q->n_counts > left || q->n_biases > left - q->n_counts ||
        (q->sample == 0 && q->n_counts + q->n_biases != 0)) {
        return err_set(
            err, ST_ERR_PROTO, "step %llu: sequence %u has adjustments %u+%u+%u of %u, %u were due",
            (unsigned long long)h->id, i, q->adjust0, q->n_counts, q->n_biases, h->n_adjusts, at);
    }
    if (!ids_ascend(list, q->n_counts) || !ids_ascend(list + q->n_counts, q->n_biases)) {
        return err_set(err, ST_ERR_PROTO, "step %llu: sequence %u names an id twice to adjust",
                       (unsigned long long)h->id, i);
    }
    if (!isfinite(p->repetition) || p->repetition <= 0.0f || !isfinite(p->presence) ||
        !isfinite(p->frequency)) {
        return err_set(err, ST_ERR_PROTO, "step %llu: sequence %u has penalties %g, %g and %g",
                       (unsigned long long)h->id, i, (double)p->repetition, (double)p->presence,
                       (double)p->frequency);
    }
    for (uint32_t k = q->n_counts; k < q->n_counts + q->n_biases; k++) {
        if (!isfinite(list[k].bias)) {
            return err_set(err, ST_ERR_PROTO, "step %llu: sequence %u adds %g to token %u",
                           (unsigned long long)h->id, i, (double)list[k].bias, list[k].id);
        }
    }
    return ST_OK;
}

static status check_seqs(const struct step_head *h, uint32_t seqs_max, uint32_t n_blocks,
                         struct err *err)
{
    const uint32_t *tables = step_tables_const(h);
    uint32_t row = 0, samples = 0, adjusts = 0;

    for (uint32_t i = 0; i < h->n_seqs; i++) {
        const struct step_seq *q = &step_seqs_const(h)[i];
        status st = check_seq(h, i, row, seqs_max, err);
        if (st == ST_OK) {
            st = check_adjusts(h, i, adjusts, err);
        }
        if (st != ST_OK) {
            return st;
        }
        row += q->n_rows;
        samples += q->sample != 0;
        adjusts += q->n_counts + q->n_biases;
    }
    if (row != h->n_rows || samples != h->n_samples || adjusts != h->n_adjusts) {
        return err_set(err, ST_ERR_PROTO,
                       "step %llu: %u rows, %u samples and %u adjustments, head says %u, %u and %u",
                       (unsigned long long)h->id, row, samples, adjusts, h->n_rows, h->n_samples,
                       h->n_adjusts);
    }
    for (uint32_t i = 0; i < h->n_tables; i++) {
        if (tables[i] >= n_blocks) {
            return err_set(err, ST_ERR_PROTO, "step %llu: block %u of %u",
                           (unsigned long long)h->id, tables[i], n_blocks);
        }
    }
    return ST_OK;
}

status step_check(const struct step_head *h, size_t bytes, const struct step_limits *limits,
                  uint32_t n_blocks, struct err *err)
{
    if (bytes < sizeof(*h) || h->magic != STEP_MAGIC || h->bytes != bytes ||
        (h->kind != STEP_RUN && h->kind != STEP_EXIT && h->kind != STEP_TAKE)) {
        return err_set(err, ST_ERR_PROTO, "a message of %zu bytes is not a step plan", bytes);
    }
    if (h->n_seqs > limits->seqs_max || h->n_rows > limits->rows_max ||
        h->n_tables > limits->tables_max || h->n_adjusts > limits->adjusts_max ||
        bytes_of(h) != bytes) {
        return err_set(
            err, ST_ERR_PROTO,
            "step %llu: %u sequences, %u rows, %u table entries, %u adjustments in %zu bytes",
            (unsigned long long)h->id, h->n_seqs, h->n_rows, h->n_tables, h->n_adjusts, bytes);
    }
    if (digest_of(h) != h->digest) {
        return err_set(err, ST_ERR_PROTO, "step %llu: the plan's digest does not match its bytes",
                       (unsigned long long)h->id);
    }
    return check_seqs(h, limits->seqs_max, n_blocks, err);
}
