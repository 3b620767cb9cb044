/* partition/plan_private.h - between plan.c (choosing), plan_cut.c (ranges, bytes), plan_speed.c,
 * plan_print.c. */
#ifndef PARTITION_PLAN_PRIVATE_H
#define PARTITION_PLAN_PRIVATE_H

#include "partition/plan.h"

/* Stages by layers, equal cost per layer. `count_embed`: the embedding's memory counts as well,
 * not only what a step reads. Writes plan->pp numbers. */
void plan_balance(const struct plan *plan, bool count_embed, uint32_t *stage_layers);
/* The same where ranks differ in speed or memory: by seconds of a decode step, within each rank's
 * memory (plan_speed.c). plan->sites is set. False: they are alike, or no stages fit the memory. */
bool plan_balance_speed(const struct plan *plan, const struct plan_request *r,
                        uint32_t *stage_layers);
/* A rank's memory: its host's, else what was asked for; 0: not limited. */
uint64_t plan_memory_of(const struct plan *plan, const struct plan_request *r, uint32_t rank);
uint64_t plan_reserve_of(const struct plan *plan);
/* Blocks that seqs_max streams of ctx_max positions can use, or as many as were asked for. */
uint32_t plan_blocks_wanted(const struct plan *plan, const struct plan_request *r);
/* Ranges of one rank of `stage` and `slice`, whose layers are given. */
void plan_cut_rank(const struct plan *plan, struct range layers, struct plan_part *part);
/* Weights of layer `layer` of the model on that rank, and of what it has at its ends. */
uint64_t plan_layer_bytes_of(const struct plan *plan, const struct plan_part *part, uint32_t layer);
uint64_t plan_ends_bytes_of(const struct plan *plan, const struct plan_part *part);
/* Packed bytes of one matrix. */
uint64_t plan_mat_bytes(const struct plan *plan, const struct plan_part *part, uint32_t layer,
                        enum plan_mat which);
/* Fill plan->parts (allocated, [n_ranks]) from tp, pp, n_leaves and the layers of each stage;
 * weight and scratch bytes too, KV bytes not yet. */
void plan_cut(struct plan *plan, const uint32_t *stage_layers);
uint64_t plan_digest_of(const struct plan *plan);

enum { BYTES_TEXT_BYTES = 24 };
/* "1.25 GiB" */
const char *plan_bytes_text(uint64_t bytes, char text[BYTES_TEXT_BYTES]);

#endif
