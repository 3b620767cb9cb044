/* worker/sched/blocks.h - which KV blocks are free, and who counts on the others.
 *
 *   free list (stack of ids) ◄── get / put ──► count[id] = streams that hold the block
 *
 * Only numbers: the bytes are in each rank's cache under the same id. A block may be held by
 * several streams (a shared prefix); it returns to the free list when the last one puts it. One
 * owner (the leader's scheduler), no locks. */
#ifndef WORKER_SCHED_BLOCKS_H
#define WORKER_SCHED_BLOCKS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct blocks {
    uint32_t n_blocks, n_free;
    uint32_t *free;  /* [n_blocks] stack; the first n_free are free ids; owned */
    uint16_t *count; /* [n_blocks] holders; owned */
};

status blocks_init(struct blocks *b, uint32_t n_blocks, struct err *err);
void blocks_fini(struct blocks *b); /* zeroed storage is fine */
/* A block with one holder. false: none is free, *id_p untouched. */
bool blocks_get(struct blocks *b, uint32_t *id_p);
void blocks_ref(struct blocks *b, uint32_t id);
void blocks_put(struct blocks *b, uint32_t id);
/* free + held == n_blocks, no id twice on the free list. O(n); for tests and asserts at the end. */
bool blocks_is_valid(const struct blocks *b);

#endif
