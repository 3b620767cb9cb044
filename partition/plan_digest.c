/* partition/plan_digest.c - one number that ranks compare instead of exchanging plans. */
#include "partition/plan_private.h"

#include "base/hash.h"

#include <string.h>

struct writer {
    uint8_t bytes[512];
    size_t len;
};

static void put(struct writer *w, uint64_t x)
{
    ASSERT(w->len + 8 <= sizeof(w->bytes));
    for (int i = 0; i < 8; i++) {
        w->bytes[w->len++] = (uint8_t)(x >> (8 * i));
    }
}

static void put_real(struct writer *w, double x)
{
    uint64_t bits;

    memcpy(&bits, &x, sizeof(bits));
    put(w, bits);
}

static void put_range(struct writer *w, struct range r)
{
    put(w, r.begin);
    put(w, r.end);
}

/* Everything in 8-byte little-endian numbers, in one fixed order, chained part by part. A field
 * that ranks must agree on belongs in here; the name of the directory does not. */
uint64_t plan_digest_of(const struct plan *plan)
{
    const struct model_desc *d = &plan->desc;
    const uint64_t numbers[] = {
        1, /* version of this list */
        d->n_layers,
        d->dim,
        d->n_heads,
        d->n_kv_heads,
        d->head_dim,
        d->ffn_dim,
        d->vocab,
        d->ctx_max,
        d->tied,
        d->qkv_bias,
        d->o_bias,
        d->mlp_bias,
        d->qk_norm,
        d->rope.kind,
        d->rope.original_ctx,
        plan->fmt,
        plan->tp,
        plan->pp,
        plan->n_leaves,
        plan->ctx_max,
        plan->seqs_max,
        plan->rows_max,
        plan->kv_blocks,
        KERN_KV_BLOCK,
        KERN_SPAN,
        KERN_VOCAB_BLOCK,
    };
    struct writer w = { .len = 0 };

    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        put(&w, numbers[i]);
    }
    put_real(&w, (double)d->norm_eps);
    put_real(&w, d->rope.theta);
    put_real(&w, d->rope.factor);
    put_real(&w, d->rope.low_freq_factor);
    put_real(&w, d->rope.high_freq_factor);
    uint64_t digest = hash64_of(w.bytes, w.len, 0);
    digest = hash64_of(plan->profile, strlen(plan->profile), digest);
    if (plan->fmt == KERN_FP8) { /* what the scales of the files mean */
        w.len = 0;
        put(&w, KERN_GROUP);
        put(&w, d->quant.kind);
        put(&w, d->quant.block_rows);
        put(&w, d->quant.block_cols);
        digest = hash64_of(w.bytes, w.len, digest);
        if (plan_plain_mats(plan) != 0) { /* which products follow the rules of bf16 */
            digest = hash64_of(d->plain, d->n_layers, digest);
        }
    }
    if (plan->plane != PLAN_PLANE_HOST) { /* the device is in the profile's name */
        w.len = 0;
        put(&w, plan->plane);
        digest = hash64_of(w.bytes, w.len, digest);
    }
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const struct plan_part *part = &plan->parts[i];
        w.len = 0;
        put_range(&w, part->layers);
        put_range(&w, part->leaves);
        put_range(&w, part->q_heads);
        put_range(&w, part->kv_heads);
        put_range(&w, part->ffn_cols);
        put_range(&w, part->vocab);
        digest = hash64_of(w.bytes, w.len, digest);
    }
    return digest;
}

uint64_t plan_model_digest(const struct plan *plan)
{
    const struct plan bare = { .desc = plan->desc };

    return plan_digest_of(&bare);
}
