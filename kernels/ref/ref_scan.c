/* kernels/ref/ref_scan.c - from a row of logits to its summary: the specification
 * (docs/numerics.md, "Sampling"). */
#include "kernels/math.h"
#include "kernels/philox.h"
#include "kernels/ref/ref.h"

static float clean(float x)
{
    return x == x ? x : -INFINITY; /* a NaN is the worst logit there is */
}

/* n <= KERN_VOCAB_BLOCK logits, each divided by `divisor` first if that is not 0. */
static struct kern_lse block_lse(const float *x, uint32_t n, float divisor)
{
    struct kern_lse r = { -INFINITY, 0.0f };
    float acc[16] = { 0 };

    for (uint32_t i = 0; i < n; i++) {
        const float v = divisor != 0.0f ? clean(x[i]) / divisor : clean(x[i]);

        r.max = v > r.max ? v : r.max;
    }
    r.max = r.max + 0.0f; /* -0 becomes +0, so that the order of visiting cannot be seen */
    if (r.max == -INFINITY) {
        return r; /* nothing here can be chosen: sum is 0 */
    }
    for (uint32_t i = 0; i < n; i++) {
        const float v = divisor != 0.0f ? clean(x[i]) / divisor : clean(x[i]);

        acc[i % 16] = acc[i % 16] + (v == r.max ? 1.0f : k_expf(v - r.max));
    }
    r.sum = tree16(acc);
    return r;
}

/* The n best of x in (logit descending, id ascending), by insertion. */
static void candidates(const float *x, uint32_t id0, uint32_t n_ids, uint32_t n,
                       struct kern_cand *cand)
{
    uint32_t have = 0;

    for (uint32_t i = 0; i < n_ids; i++) {
        const struct kern_cand c = { clean(x[i]), id0 + i };
        uint32_t at;

        if (have == n && !(c.logit > cand[n - 1].logit)) {
            continue;
        }
        have += have < n;
        for (at = have - 1; at > 0 && c.logit > cand[at - 1].logit; at--) {
            cand[at] = cand[at - 1];
        }
        cand[at] = c;
    }
}

void ref_scan(struct kern_stream *s, const float *logits, uint32_t id0, uint32_t n_ids,
              const struct kern_sample *params, struct kern_scan *scan)
{
    (void)s;
    for (uint32_t b = 0; b * KERN_VOCAB_BLOCK < n_ids; b++) {
        const float *x = logits + (size_t)b * KERN_VOCAB_BLOCK;
        const uint32_t left = n_ids - b * KERN_VOCAB_BLOCK;
        const uint32_t n = left < KERN_VOCAB_BLOCK ? left : KERN_VOCAB_BLOCK;

        scan->lse[b] = block_lse(x, n, 0.0f);
        if (params->temperature != 0.0f) {
            scan->lse_temp[b] = block_lse(x, n, params->temperature);
        }
    }
    candidates(logits, id0, n_ids, params->n_cand < n_ids ? params->n_cand : n_ids, scan->cand);
    if (params->gumbel_all) {
        struct kern_cand best = { -INFINITY, id0 };

        for (uint32_t i = 0; i < n_ids; i++) {
            const float score = clean(logits[i]) / params->temperature +
                                gumbel_noise(params->seed, params->choice, params->pos, id0 + i);

            if (score > best.logit) {
                best = (struct kern_cand){ score, id0 + i };
            }
        }
        scan->gumbel = best;
        scan->gumbel_logit = clean(logits[best.id - id0]);
    }
}
