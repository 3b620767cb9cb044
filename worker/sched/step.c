/* worker/sched/step.c - see step.h. */
#include "worker/sched/step.h"

#include "base/hash.h"

#include <math.h>
#include <string.h>

/* The sizes are part of the message: no padding may differ between builds of one protocol. */
_Static_assert(sizeof(struct step_seq) % 8 == 0, "seqs are an array of 8-byte aligned records");
_Static_assert(sizeof(struct step_head) % 8 == 0, "seqs follow the head");

size_t step_bytes_max(const struct step_limits *limits)
{
    const size_t bytes = sizeof(struct step_head) +
                         (size_t)limits->seqs_max * sizeof(struct step_seq) +
                         ((size_t)limits->rows_max + limits->tables_max) * sizeof(uint32_t);

    return (bytes + 7) / 8 * 8;
}

static size_t bytes_of(const struct step_head *h)
{
    return sizeof(*h) + (size_t)h->n_seqs * sizeof(struct step_seq) +
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
static status check_seq(const struct step_head *h, uint32_t i, uint32_t row, struct err *err)
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
    if (!isfinite(q->params.temperature) || q->params.temperature < 0 ||
        q->params.n_logprobs > SAMPLE_LOGPROBS_MAX) {
        return err_set(
            err, ST_ERR_PROTO, "step %llu: sequence %u has temperature %g and %u log-probabilities",
            (unsigned long long)h->id, i, (double)q->params.temperature, q->params.n_logprobs);
    }
    return ST_OK;
}

static status check_seqs(const struct step_head *h, uint32_t n_blocks, struct err *err)
{
    const uint32_t *tables = step_tables_const(h);
    uint32_t row = 0, samples = 0;

    for (uint32_t i = 0; i < h->n_seqs; i++) {
        const status st = check_seq(h, i, row, err);
        if (st != ST_OK) {
            return st;
        }
        row += step_seqs_const(h)[i].n_rows;
        samples += step_seqs_const(h)[i].sample != 0;
    }
    if (row != h->n_rows || samples != h->n_samples) {
        return err_set(err, ST_ERR_PROTO, "step %llu: %u rows and %u samples, head says %u and %u",
                       (unsigned long long)h->id, row, samples, h->n_rows, h->n_samples);
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
        (h->kind != STEP_RUN && h->kind != STEP_EXIT)) {
        return err_set(err, ST_ERR_PROTO, "a message of %zu bytes is not a step plan", bytes);
    }
    if (h->n_seqs > limits->seqs_max || h->n_rows > limits->rows_max ||
        h->n_tables > limits->tables_max || bytes_of(h) != bytes) {
        return err_set(err, ST_ERR_PROTO,
                       "step %llu: %u sequences, %u rows, %u table entries in %zu bytes",
                       (unsigned long long)h->id, h->n_seqs, h->n_rows, h->n_tables, bytes);
    }
    if (digest_of(h) != h->digest) {
        return err_set(err, ST_ERR_PROTO, "step %llu: the plan's digest does not match its bytes",
                       (unsigned long long)h->id);
    }
    return check_seqs(h, n_blocks, err);
}
