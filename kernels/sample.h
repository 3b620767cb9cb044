/* kernels/sample.h - from the slices' scans of one row to one token. Host code, scalar, same
 * everywhere.
 *
 * Order of filters (as Hugging Face and vLLM): temperature, top_k, top_p over what top_k left
 * (renormalised), min_p relative to the best; then Gumbel-max over what is left, with noise from a
 * counter-based generator keyed by (seed, choice, position, token id), so that no order and no
 * neighbour matters. Candidates beyond KERN_CAND_MAX are never considered when a filter is set.
 * Penalties and biases change logits before all of that (kernels/adjust.h). Log-probabilities are of
 * the model's distribution (temperature 1, no filter, nothing adjusted). */
#ifndef KERNELS_SAMPLE_H
#define KERNELS_SAMPLE_H

#include "kernels/kern.h"

struct sample_params {
    float temperature;   /* 0: greedy */
    uint32_t top_k;      /* 0: off */
    float top_p;         /* 1: off */
    float min_p;         /* 0: off */
    uint32_t n_logprobs; /* top log-probabilities to report, <= SAMPLE_LOGPROBS_MAX */
    struct kern_penalties penalties;
    uint64_t seed;
    uint32_t choice;
};

enum { SAMPLE_LOGPROBS_MAX = 20 };

struct sample_result {
    uint32_t token;
    float logprob;
    uint32_t n_top;
    struct kern_cand top[SAMPLE_LOGPROBS_MAX]; /* .logit holds the log-probability; best first */
};

/* Is the choice the best candidate, or the best Gumbel score, and nothing else? Then a device finds
 * it by itself (kern_ops.pick); filters are the host's. */
bool sample_is_plain(const struct sample_params *p);

/* What the kernels must gather for these parameters at absolute position `pos`: a row without its
 * place in `flat` and, if it is adjusted, without its entries. */
struct kern_scan_row sample_row(const struct sample_params *p, uint32_t pos, uint32_t vocab,
                                bool is_adjusted);

/* Bytes of one slice's scan of a row as it travels (flat, host byte order), and both directions.
 * scan_flat_bind points scan's arrays into `flat` (KERN_ALIGN-aligned) without copying. */
size_t scan_flat_bytes(const struct kern_sample *req, uint32_t n_ids);
void scan_flat_bind(void *flat, const struct kern_sample *req, uint32_t n_ids,
                    struct kern_scan *scan);
void scan_flat_finish(void *flat, const struct kern_scan *scan); /* store the by-value fields too */
void scan_flat_load(const void *flat, const struct kern_sample *req, uint32_t n_ids,
                    struct kern_scan *scan);

/* Scan rows 0 .. n_rows - 1 of logits[n_rows, n_ids] into flat + rows[i].flat_offset, by the
 * table's scan_rows (valid after stream_sync) or, where it has none, row by row with its scan.
 * rows, adjusts and flat: host_alloc memory of the stream. */
void kern_scan_rows(const struct kern_ops *ops, struct kern_stream *s, float *logits, uint32_t id0,
                    uint32_t n_ids, uint32_t n_rows, const struct kern_scan_row *rows,
                    struct kern_adjusts adjusts, void *flat);

/* One slice's part of a row. */
struct sample_slice {
    uint32_t id0, n_ids; /* ids held by the slice, slices in ascending order */
    struct kern_scan scan;
    /* Of an adjusted row: the row as the model gave it, and in picked[1 + min(n_cand, n_ids)] the
     * logits that it gave to scan.gumbel.id and to scan.cand. Borrowed from the flat scan. */
    struct kern_scan raw;
    const float *picked;
};

/* Bytes of a whole row, and what it holds; id0 and n_ids of the slice are set. */
size_t sample_row_bytes(const struct kern_scan_row *row, uint32_t n_ids);
void sample_row_load(const void *flat, const struct kern_scan_row *row, struct sample_slice *slice);

/* Merge the slices of one row (n_slices >= 1, ascending, covering [0, vocab)) and choose. */
void sample_merge(const struct sample_slice *slices, uint32_t n_slices,
                  const struct sample_params *p, const struct kern_scan_row *row, uint32_t vocab,
                  struct sample_result *result);

#endif
