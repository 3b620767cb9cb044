/* worker/sched/blocks.h - which KV blocks are free, who counts on the others, and which are kept.
 *
 *              get                        put, by the last holder
 *   free ──────────────► held ──────────────────────────────────────────► free   (not kept)
 *   (stack)               ▲ │  keep: its content has a name (prefix.h)
 *                    hold │ │ put, by the last holder
 *                         │ ▼
 *                        idle (list, least recently held first) ── evict ──► free
 *
 * Only numbers: the bytes are in each rank's cache under the same id. A block may be held by
 * several streams (a shared prefix). Idle blocks hold nothing that anybody waits for: they are as
 * good as free to whoever needs a block, only later. One owner (the leader's scheduler), no
 * locks. */
#ifndef WORKER_SCHED_BLOCKS_H
#define WORKER_SCHED_BLOCKS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { BLOCK_NONE = UINT32_MAX };

struct block {
    uint32_t n_holders;
    bool is_kept;          /* goes to the idle list, not to the free stack, when nobody holds it */
    uint32_t older, newer; /* neighbours in the idle list, while in it */
};

struct blocks {
    uint32_t n_blocks, n_free, n_idle;
    uint32_t *free;          /* [n_blocks] stack; the first n_free are free ids; owned */
    struct block *all;       /* [n_blocks] owned */
    uint32_t oldest, newest; /* ends of the idle list; BLOCK_NONE when empty */
};

status blocks_init(struct blocks *b, uint32_t n_blocks, struct err *err);
void blocks_fini(struct blocks *b); /* zeroed storage is fine */
/* A block with one holder. false: none is free, *id_p untouched. */
bool blocks_get(struct blocks *b, uint32_t *id_p);
/* One holder more, of a held or an idle block. */
void blocks_hold(struct blocks *b, uint32_t id);
void blocks_put(struct blocks *b, uint32_t id);
void blocks_keep(struct blocks *b, uint32_t id); /* a held one, from now on */
/* The idle block that was put first becomes free. false: none is idle. */
bool blocks_evict(struct blocks *b, uint32_t *id_p);
/* free + idle + held == n_blocks, no id twice. O(n); for tests and asserts at the end. */
bool blocks_is_valid(const struct blocks *b);

static inline uint32_t blocks_held(const struct blocks *b)
{
    return b->n_blocks - b->n_free - b->n_idle;
}

#endif
