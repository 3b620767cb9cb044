/* kernels/adjust.h - penalties and biases: what is done to single logits of a row before a token is
 * chosen from it. Host and device share this text; every operation is rounded on its own.
 *
 *   repetition -> frequency -> presence -> bias   (docs/numerics.md, "Adjustments")
 */
#ifndef KERNELS_ADJUST_H
#define KERNELS_ADJUST_H

#include "kernels/hd.h"
#include "kernels/kern.h"

/* The logit of an id that the prompt or the answer holds, and the answer n_made times. */
KERN_HD static inline float adjust_count(float x, const struct kern_penalties *p, uint32_t n_made)
{
    x = x < 0.0f ? x * p->repetition : x / p->repetition;
    if (n_made != 0) {
        const float often = (float)n_made * p->frequency;

        x = x - often;
        x = x - p->presence;
    }
    return x;
}

KERN_HD static inline float adjust_bias(float x, float bias)
{
    return x + bias;
}

#endif
