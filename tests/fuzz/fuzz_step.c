/* tests/fuzz/fuzz_step.c - any bytes as a step plan: as they came, and sealed, since a digest keeps
 * plain mutations from getting any further. What is accepted may be run: each row has its token,
 * each position its block, and no sampling parameter is outside what the kernels take. */
#include "worker/sched/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_BLOCKS = 64 };

static const struct step_limits limits = {
    .seqs_max = 16, .rows_max = 256, .tables_max = 128, .adjusts_max = 64
};

static void check_seq(const struct step_head *h, const struct step_seq *q)
{
    const uint32_t *table = step_tables_const(h) + q->table0;

    ASSERT(q->n_rows >= 1 && q->row0 + q->n_rows <= h->n_rows);
    ASSERT(q->table0 + q->n_blocks <= h->n_tables);
    for (uint32_t row = 0; row < q->n_rows; row++) {
        const uint64_t pos = (uint64_t)q->pos0 + row;
        ASSERT(pos / KERN_KV_BLOCK < q->n_blocks);
        ASSERT(table[pos / KERN_KV_BLOCK] < N_BLOCKS);
    }
    ASSERT(isfinite(q->params.temperature) && q->params.temperature >= 0);
    ASSERT(q->params.n_logprobs <= SAMPLE_LOGPROBS_MAX);

    const struct kern_adjust *list = step_adjusts_const(h) + q->adjust0;
    ASSERT(q->adjust0 + q->n_counts + q->n_biases <= h->n_adjusts);
    ASSERT(q->sample != 0 || q->n_counts + q->n_biases == 0);
    for (uint32_t i = 0; i < q->n_counts + q->n_biases; i++) {
        ASSERT(i == 0 || i == q->n_counts || list[i].id > list[i - 1].id);
        ASSERT(i < q->n_counts || isfinite(list[i].bias));
    }
    ASSERT(isfinite(q->params.penalties.repetition) && q->params.penalties.repetition > 0);
    ASSERT(isfinite(q->params.penalties.presence) && isfinite(q->params.penalties.frequency));
}

static void check(const struct step_head *h, size_t size)
{
    struct err err = ERR_INIT;
    uint32_t n_rows = 0, n_samples = 0;

    if (step_check(h, size, &limits, N_BLOCKS, &err) != ST_OK) {
        ASSERT(err.code == ST_ERR_PROTO && err.text[0] != '\0');
        return;
    }
    ASSERT(size <= step_bytes_max(&limits));
    for (uint32_t i = 0; i < h->n_seqs; i++) {
        const struct step_seq *q = &step_seqs_const(h)[i];
        ASSERT(q->row0 == n_rows);
        check_seq(h, q);
        n_rows += q->n_rows;
        n_samples += q->sample != 0;
    }
    ASSERT(n_rows == h->n_rows && n_samples == h->n_samples);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct step_head *h = calloc(1, size != 0 ? size : 1); /* aligned, and not a byte longer */

    if (h == NULL) {
        return 0;
    }
    if (size != 0) {
        memcpy(h, data, size);
    }
    check(h, size);
    if (size >= sizeof(*h) && h->n_seqs <= limits.seqs_max && h->n_rows <= limits.rows_max &&
        h->n_tables <= limits.tables_max && h->n_adjusts <= limits.adjusts_max &&
        sizeof(*h) + h->n_seqs * sizeof(struct step_seq) +
                h->n_adjusts * sizeof(struct kern_adjust) +
                (h->n_rows + h->n_tables) * sizeof(uint32_t) ==
            size) {
        step_seal(h);
        check(h, size);
    }
    free(h);
    return 0;
}
