/* kernels/flat.h - a row's scan as bytes, as it leaves a slice: the one layout that host and device
 * write (kernels/sample.h has the functions).
 *
 *   struct flat_head | lse[n_blocks] | lse_temp[n_blocks] (if temperature is not 0) | cand[n] | 0..
 *
 * An adjusted row is two scans, and of the ids that the first one names the logits as the model gave
 * them:
 *
 *   scan of the adjusted row | scan of the row as it is | raw of gumbel | raw of cand[n] | 0..
 */
#ifndef KERNELS_FLAT_H
#define KERNELS_FLAT_H

#include "kernels/hd.h"
#include "kernels/kern.h"

struct flat_head {
    struct kern_cand gumbel;
    float gumbel_logit;
    uint32_t zero;
};

struct flat_layout {
    size_t lse_temp, cand, end, bytes; /* offsets; end of what has meaning; with padding */
};

KERN_HD static inline struct flat_layout flat_layout(bool has_temp, uint32_t n_cand, uint32_t n_ids)
{
    const size_t n_blocks = ((size_t)n_ids + KERN_VOCAB_BLOCK - 1) / KERN_VOCAB_BLOCK;
    const size_t lse_bytes = n_blocks * sizeof(struct kern_lse);
    struct flat_layout f;

    f.lse_temp = sizeof(struct flat_head) + lse_bytes;
    f.cand = f.lse_temp + (has_temp ? lse_bytes : 0);
    f.end = f.cand + (n_cand < n_ids ? n_cand : n_ids) * sizeof(struct kern_cand);
    f.bytes = (f.end + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN;
    return f;
}

/* What is asked of an adjusted row as it is. */
KERN_HD static inline struct kern_sample flat_raw_params(uint32_t n_raw)
{
    const struct kern_sample p = { 0, 0, 0, 0.0f, n_raw, false };

    return p;
}

struct flat_parts {
    size_t raw, picked, end, bytes; /* offsets; end of what has meaning; with padding */
};

/* Of a whole row, adjusted (n_raw not 0) or not. */
KERN_HD static inline struct flat_parts flat_parts(bool has_temp, uint32_t n_cand, uint32_t n_raw,
                                                   uint32_t n_ids)
{
    struct flat_parts f;

    f.raw = flat_layout(has_temp, n_cand, n_ids).bytes;
    f.picked = f.raw;
    f.end = f.raw;
    if (n_raw != 0) {
        f.picked += flat_layout(false, n_raw, n_ids).bytes;
        f.end = f.picked + (1 + (size_t)(n_cand < n_ids ? n_cand : n_ids)) * sizeof(float);
    }
    f.bytes = (f.end + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN;
    return f;
}

#endif
