/* worker/sched/blocks.c - see blocks.h. */
#include "worker/sched/blocks.h"

#include <stdlib.h>
#include <string.h>

status blocks_init(struct blocks *b, uint32_t n_blocks, struct err *err)
{
    memset(b, 0, sizeof(*b));
    b->free = calloc(n_blocks, sizeof(*b->free));
    b->all = calloc(n_blocks, sizeof(*b->all));
    if (b->free == NULL || b->all == NULL) {
        blocks_fini(b);
        return err_set(err, ST_ERR_NOMEM, "no memory for the table of %u KV blocks", n_blocks);
    }
    b->n_blocks = n_blocks;
    b->n_free = n_blocks;
    b->oldest = BLOCK_NONE;
    b->newest = BLOCK_NONE;
    for (uint32_t i = 0; i < n_blocks; i++) {
        b->free[i] = n_blocks - 1 - i; /* low ids first: a fresh service touches little memory */
    }
    return ST_OK;
}

void blocks_fini(struct blocks *b)
{
    free(b->free);
    free(b->all);
    memset(b, 0, sizeof(*b));
}

/* ---- the idle list ---- */

static void idle_append(struct blocks *b, uint32_t id)
{
    b->all[id].older = b->newest;
    b->all[id].newer = BLOCK_NONE;
    *(b->newest != BLOCK_NONE ? &b->all[b->newest].newer : &b->oldest) = id;
    b->newest = id;
    b->n_idle++;
}

static void idle_remove(struct blocks *b, uint32_t id)
{
    const uint32_t older = b->all[id].older, newer = b->all[id].newer;

    *(older != BLOCK_NONE ? &b->all[older].newer : &b->oldest) = newer;
    *(newer != BLOCK_NONE ? &b->all[newer].older : &b->newest) = older;
    b->n_idle--;
}

/* ---- get, hold, put ---- */

bool blocks_get(struct blocks *b, uint32_t *id_p)
{
    if (b->n_free == 0) {
        return false;
    }
    const uint32_t id = b->free[--b->n_free];
    ASSERT(b->all[id].n_holders == 0 && !b->all[id].is_kept);
    b->all[id].n_holders = 1;
    *id_p = id;
    return true;
}

void blocks_hold(struct blocks *b, uint32_t id)
{
    ASSERT(id < b->n_blocks && (b->all[id].n_holders > 0 || b->all[id].is_kept));
    if (b->all[id].n_holders++ == 0) {
        idle_remove(b, id);
    }
}

void blocks_put(struct blocks *b, uint32_t id)
{
    ASSERT(id < b->n_blocks && b->all[id].n_holders > 0);
    if (--b->all[id].n_holders != 0) {
        return;
    }
    if (b->all[id].is_kept) {
        idle_append(b, id);
    } else {
        b->free[b->n_free++] = id;
    }
}

void blocks_keep(struct blocks *b, uint32_t id)
{
    ASSERT(id < b->n_blocks && b->all[id].n_holders > 0);
    b->all[id].is_kept = true;
}

bool blocks_evict(struct blocks *b, uint32_t *id_p)
{
    const uint32_t id = b->oldest;

    if (id == BLOCK_NONE) {
        return false;
    }
    idle_remove(b, id);
    b->all[id].is_kept = false;
    b->free[b->n_free++] = id;
    *id_p = id;
    return true;
}

/* ---- the invariant ---- */

static bool idle_is_valid(const struct blocks *b)
{
    uint32_t n = 0, last = BLOCK_NONE;

    for (uint32_t id = b->oldest; id != BLOCK_NONE; id = b->all[id].newer) {
        if (id >= b->n_blocks || n++ == b->n_idle || b->all[id].older != last ||
            b->all[id].n_holders != 0 || !b->all[id].is_kept) {
            return false;
        }
        last = id;
    }
    return n == b->n_idle && b->newest == last;
}

bool blocks_is_valid(const struct blocks *b)
{
    uint32_t held = 0;

    for (uint32_t i = 0; i < b->n_blocks; i++) {
        held += b->all[i].n_holders != 0;
    }
    for (uint32_t i = 0; i < b->n_free; i++) {
        const uint32_t id = b->free[i];
        if (id >= b->n_blocks || b->all[id].n_holders != 0 || b->all[id].is_kept) {
            return false;
        }
        for (uint32_t j = 0; j < i && b->n_blocks <= 4096; j++) {
            if (id == b->free[j]) {
                return false;
            }
        }
    }
    return idle_is_valid(b) && held + b->n_free + b->n_idle == b->n_blocks;
}
