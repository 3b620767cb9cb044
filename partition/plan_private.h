/* partition/plan_private.h - between plan.c (choosing), plan_cut.c (ranges, bytes) and
 * plan_print.c. */
#ifndef PARTITION_PLAN_PRIVATE_H
#define PARTITION_PLAN_PRIVATE_H

#include "partition/plan.h"

struct plan_shape {
    uint32_t tp, pp;
};

/* Stages by layers, equal cost per layer. `count_embed`: the embedding's memory counts as well,
 * not only what a step reads. Writes plan->pp numbers. */
void plan_balance(const struct plan *plan, bool count_embed, uint32_t *stage_layers);
/* Fill plan->parts (allocated, [n_ranks]) from tp, pp, n_leaves and the layers of each stage;
 * weight and scratch bytes too, KV bytes not yet. */
void plan_cut(struct plan *plan, const uint32_t *stage_layers);
uint64_t plan_digest_of(const struct plan *plan);

enum { BYTES_TEXT_BYTES = 24 };
/* "1.25 GiB" */
const char *plan_bytes_text(uint64_t bytes, char text[BYTES_TEXT_BYTES]);

#endif
