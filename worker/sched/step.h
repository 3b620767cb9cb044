/* worker/sched/step.h - one step plan: what every rank of a replica must know to run one scheduled
 * batch.
 *
 *   head | seqs[n_seqs] | adjusts[n_adjusts] | tokens[n_rows] | tables[n_tables]
 *   (flat, host byte order, one message)
 *
 * A plan carries everything (token ids, positions, block tables, sampling parameters), so ranks
 * hold no state about streams besides the KV bytes themselves and cannot disagree with the leader
 * about it. At 64 streams of 4,096 tokens that is 64 * (4096/32) * 4 = 32 KiB a step, far below the
 * activations. A sampled sequence with penalties or biases adds 8 bytes for each different token
 * that they concern; others add nothing. `digest` covers the whole plan: ranks stamp their
 * collectives with it. */
#ifndef WORKER_SCHED_STEP_H
#define WORKER_SCHED_STEP_H

#include "kernels/sample.h"

enum { STEP_MAGIC = 0x47535450 };

/* STEP_TAKE: no step, but the word that none follows ahead of results (worker/rank.h). */
enum step_kind { STEP_RUN = 1, STEP_EXIT, STEP_TAKE };

struct step_seq {
    uint64_t stream;
    uint32_t attempt;
    uint32_t row0, n_rows; /* rows of the step, adjacent, ascending positions */
    uint32_t pos0;         /* absolute position of the first row */
    uint32_t table0, n_blocks;
    uint32_t sample; /* 1: a token is chosen after the last row */
    /* 1 + k: the row's token is what sample k of the step before this one chose, which the host
     * does not know yet (its place among the tokens holds 0); one row then. 0: all are given. */
    uint32_t feed;
    /* Of the adjusts: n_counts counts, then n_biases biases, ids ascending in each; none unless a
     * token is chosen. */
    uint32_t adjust0, n_counts, n_biases;
    uint32_t pad;
    struct sample_params params;
};

struct step_head {
    uint32_t magic, kind;
    uint64_t id; /* 1, 2, 3, ... */
    uint32_t bytes;
    uint32_t n_seqs, n_rows, n_tables, n_samples, n_adjusts;
    uint64_t digest; /* of all bytes, this field as 0 */
};

/* Bounds that a plan of this replica keeps; sizes every buffer. */
struct step_limits {
    uint32_t seqs_max, rows_max, tables_max, adjusts_max;
};

enum { STEP_BIASES_MAX = 300, STEP_ADJUSTS_MAX = 1 << 20 };

/* Adjusts of one plan: those that all its streams can have, within STEP_ADJUSTS_MAX (8 MiB) or
 * what a single stream can have if that is more. What does not fit goes into the next plan. */
static inline uint32_t step_adjusts_max(uint32_t seqs_max, uint32_t ctx_max, uint32_t vocab)
{
    const uint64_t one = (uint64_t)MIN(ctx_max, vocab) + STEP_BIASES_MAX;

    return (uint32_t)MIN(one * seqs_max, MAX(one, (uint64_t)STEP_ADJUSTS_MAX));
}

/* What came out of a step: one per sampled sequence, in the order of seqs. Travels from the last
 * stage. */
struct step_result {
    uint64_t stream;
    uint32_t attempt;
    uint32_t pad;
    struct sample_result sampled;
};

/* A multiple of 8, so that plans may stand one behind the other. */
size_t step_bytes_max(const struct step_limits *limits);

static inline struct step_seq *step_seqs(struct step_head *h)
{
    return (struct step_seq *)(void *)(h + 1);
}
static inline const struct step_seq *step_seqs_const(const struct step_head *h)
{
    return (const struct step_seq *)(const void *)(h + 1);
}
static inline struct kern_adjust *step_adjusts(struct step_head *h)
{
    return (struct kern_adjust *)(void *)(step_seqs(h) + h->n_seqs);
}
static inline const struct kern_adjust *step_adjusts_const(const struct step_head *h)
{
    return (const struct kern_adjust *)(const void *)(step_seqs_const(h) + h->n_seqs);
}
static inline uint32_t *step_tokens(struct step_head *h)
{
    return (uint32_t *)(void *)(step_adjusts(h) + h->n_adjusts);
}
static inline const uint32_t *step_tokens_const(const struct step_head *h)
{
    return (const uint32_t *)(const void *)(step_adjusts_const(h) + h->n_adjusts);
}
static inline const uint32_t *step_tables_const(const struct step_head *h)
{
    return step_tokens_const(h) + h->n_rows;
}

/* Set bytes and digest of a plan whose counts and content are in place. */
void step_seal(struct step_head *h);
/* A received plan: sizes, sums, bounds, block ids < n_blocks and digest. ST_ERR_PROTO names what is
 * wrong. */
status step_check(const struct step_head *h, size_t bytes, const struct step_limits *limits,
                  uint32_t n_blocks, struct err *err);

#endif
