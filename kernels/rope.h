/* kernels/rope.h - tables of rotary position embedding, with our own sin and cos (equal bits
 * everywhere).
 *
 * freq[i] = theta^(-2i/D), then scaled by kind. Computed in f64 by fixed operations, rounded once.
 * Source of the llama3 rule: Llama 3.1 release, "rope scaling" (also transformers' rope utilities).
 */
#ifndef KERNELS_ROPE_H
#define KERNELS_ROPE_H

#include <stdint.h>

enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_params {
    enum rope_kind kind;
    uint32_t head_dim; /* D, even */
    double theta;
    double factor;                            /* LINEAR, LLAMA3 */
    double low_freq_factor, high_freq_factor; /* LLAMA3 */
    uint32_t original_ctx;                    /* LLAMA3 */
};

/* cos_table, sin_table: [n_pos, D/2] f32, host. */
void rope_table_fill(const struct rope_params *p, uint32_t n_pos, float *cos_table,
                     float *sin_table);

#endif
