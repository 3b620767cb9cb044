/* worker/sched/blocks.c - see blocks.h. */
#include "worker/sched/blocks.h"

#include <stdlib.h>
#include <string.h>

status blocks_init(struct blocks *b, uint32_t n_blocks, struct err *err)
{
    memset(b, 0, sizeof(*b));
    b->free = calloc(n_blocks, sizeof(*b->free));
    b->count = calloc(n_blocks, sizeof(*b->count));
    if (b->free == NULL || b->count == NULL) {
        blocks_fini(b);
        return err_set(err, ST_ERR_NOMEM, "no memory for the table of %u KV blocks", n_blocks);
    }
    b->n_blocks = n_blocks;
    b->n_free = n_blocks;
    for (uint32_t i = 0; i < n_blocks; i++) {
        b->free[i] = n_blocks - 1 - i; /* low ids first: a fresh service touches little memory */
    }
    return ST_OK;
}

void blocks_fini(struct blocks *b)
{
    free(b->free);
    free(b->count);
    memset(b, 0, sizeof(*b));
}

bool blocks_get(struct blocks *b, uint32_t *id_p)
{
    if (b->n_free == 0) {
        return false;
    }
    const uint32_t id = b->free[--b->n_free];
    ASSERT(b->count[id] == 0);
    b->count[id] = 1;
    *id_p = id;
    return true;
}

void blocks_ref(struct blocks *b, uint32_t id)
{
    ASSERT(id < b->n_blocks && b->count[id] > 0 && b->count[id] < UINT16_MAX);
    b->count[id]++;
}

void blocks_put(struct blocks *b, uint32_t id)
{
    ASSERT(id < b->n_blocks && b->count[id] > 0);
    if (--b->count[id] == 0) {
        b->free[b->n_free++] = id;
    }
}

bool blocks_is_valid(const struct blocks *b)
{
    uint32_t held = 0;

    for (uint32_t i = 0; i < b->n_blocks; i++) {
        held += b->count[i] != 0;
    }
    for (uint32_t i = 0; i < b->n_free; i++) {
        if (b->free[i] >= b->n_blocks || b->count[b->free[i]] != 0) {
            return false;
        }
        for (uint32_t j = 0; j < i && b->n_blocks <= 4096; j++) {
            if (b->free[i] == b->free[j]) {
                return false;
            }
        }
    }
    return held + b->n_free == b->n_blocks;
}
