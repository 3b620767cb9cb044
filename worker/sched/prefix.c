/* worker/sched/prefix.c - see prefix.h. */
#include "worker/sched/prefix.h"

#include "kernels/kern.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = KERN_KV_BLOCK * sizeof(uint32_t) };

status prefix_init(struct prefix *p, struct blocks *blocks, bool is_on, struct err *err)
{
    uint32_t n = 1;

    memset(p, 0, sizeof(*p));
    p->blocks = blocks;
    if (!is_on) {
        return ST_OK;
    }
    while (n < blocks->n_blocks && n < 1u << 31) {
        n *= 2;
    }
    p->buckets = malloc(n * sizeof(*p->buckets));
    p->entries = calloc(blocks->n_blocks, sizeof(*p->entries));
    p->tokens = calloc(blocks->n_blocks, BLOCK_BYTES);
    if (p->buckets == NULL || p->entries == NULL || p->tokens == NULL) {
        prefix_fini(p);
        return err_set(err, ST_ERR_NOMEM, "no memory for the prefix cache of %u KV blocks",
                       blocks->n_blocks);
    }
    p->is_on = true;
    p->mask = n - 1;
    for (uint32_t i = 0; i < n; i++) {
        p->buckets[i] = BLOCK_NONE;
    }
    return ST_OK;
}

void prefix_fini(struct prefix *p)
{
    free(p->buckets);
    free(p->entries);
    free(p->tokens);
    memset(p, 0, sizeof(*p));
}

/* ---- the index ---- */

static struct hash128 key_of(const struct hash128 *before, uint64_t scope, const uint32_t *tokens)
{
    struct {
        struct hash128 before;
        uint64_t scope;
        uint32_t tokens[KERN_KV_BLOCK];
    } in;
    _Static_assert(sizeof(in) == HASH_BYTES + 8 + BLOCK_BYTES, "no padding is hashed");

    in.before = *before;
    in.scope = scope;
    memcpy(in.tokens, tokens, BLOCK_BYTES);
    return hash128_of(&in, sizeof(in));
}

static uint32_t *bucket_of(const struct prefix *p, const struct hash128 *key)
{
    uint32_t at;

    memcpy(&at, key->bytes, sizeof(at));
    return &p->buckets[at & p->mask];
}

static uint32_t *ids_of(const struct prefix *p, uint32_t block)
{
    return p->tokens + (size_t)block * KERN_KV_BLOCK;
}

static bool is_equal(const struct prefix *p, uint32_t block, uint32_t parent, uint64_t scope,
                     const uint32_t *tokens)
{
    const struct prefix_entry *e = &p->entries[block];

    return e->parent == parent && e->scope == scope &&
           memcmp(ids_of(p, block), tokens, BLOCK_BYTES) == 0;
}

/* The kept block with this content behind `parent`, or BLOCK_NONE. */
static uint32_t find(const struct prefix *p, const struct hash128 *key, uint32_t parent,
                     uint64_t scope, const uint32_t *tokens)
{
    uint32_t id = *bucket_of(p, key);

    while (id != BLOCK_NONE && !(memcmp(&p->entries[id].key, key, sizeof(*key)) == 0 &&
                                 is_equal(p, id, parent, scope, tokens))) {
        id = p->entries[id].next;
    }
    return id;
}

static void insert(struct prefix *p, uint32_t block, const struct hash128 *key, uint32_t parent,
                   uint64_t scope, const uint32_t *tokens)
{
    uint32_t *bucket = bucket_of(p, key);

    p->entries[block] = (struct prefix_entry){ *key, scope, parent, *bucket };
    memcpy(ids_of(p, block), tokens, BLOCK_BYTES);
    *bucket = block;
    blocks_keep(p->blocks, block);
}

static void forget(struct prefix *p, uint32_t block)
{
    uint32_t *at = bucket_of(p, &p->entries[block].key);

    while (*at != block) {
        ASSERT(*at != BLOCK_NONE);
        at = &p->entries[*at].next;
    }
    *at = p->entries[block].next;
}

/* ---- use ---- */

bool prefix_get(struct prefix *p, uint32_t *id_p)
{
    uint32_t evicted;

    if (p->blocks->n_free == 0 && blocks_evict(p->blocks, &evicted)) {
        forget(p, evicted);
    }
    return blocks_get(p->blocks, id_p);
}

uint32_t prefix_match(const struct prefix *p, const uint32_t *tokens, uint32_t n_tokens,
                      struct prefix_chain *chain, uint32_t *table, uint32_t *n_idle_p)
{
    const uint32_t n_max = p->is_on ? (n_tokens - 1) / KERN_KV_BLOCK : 0;
    uint32_t parent = BLOCK_NONE, n_idle = 0;

    *chain = (struct prefix_chain){ .scope = chain->scope };
    while (chain->n < n_max) {
        const uint32_t *ids = tokens + (size_t)chain->n * KERN_KV_BLOCK;
        const struct hash128 key = key_of(&chain->key, chain->scope, ids);
        const uint32_t id = find(p, &key, parent, chain->scope, ids);
        if (id == BLOCK_NONE) {
            break;
        }
        n_idle += p->blocks->all[id].n_holders == 0;
        table[chain->n++] = id;
        chain->key = key;
        parent = id;
    }
    *n_idle_p = n_idle;
    return chain->n;
}

void prefix_publish(struct prefix *p, struct prefix_chain *chain, const uint32_t *tokens,
                    uint32_t n_done, uint32_t *table)
{
    while (p->is_on && chain->n < n_done / KERN_KV_BLOCK) {
        const uint32_t i = chain->n++;
        const uint32_t parent = i == 0 ? BLOCK_NONE : table[i - 1];
        const uint32_t *ids = tokens + (size_t)i * KERN_KV_BLOCK;
        const struct hash128 key = key_of(&chain->key, chain->scope, ids);
        const uint32_t twin = find(p, &key, parent, chain->scope, ids);
        if (twin == BLOCK_NONE) {
            insert(p, table[i], &key, parent, chain->scope, ids);
        } else {
            blocks_hold(p->blocks, twin);
            blocks_put(p->blocks, table[i]);
            table[i] = twin;
        }
        chain->key = key;
    }
}

/* ---- the invariant ---- */

bool prefix_is_chain(const struct prefix *p, uint64_t scope, const uint32_t *tokens,
                     const uint32_t *table, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!p->blocks->all[table[i]].is_kept ||
            !is_equal(p, table[i], i == 0 ? BLOCK_NONE : table[i - 1], scope,
                      tokens + (size_t)i * KERN_KV_BLOCK)) {
            return false;
        }
    }
    return true;
}

bool prefix_is_valid(const struct prefix *p)
{
    const struct block *all = p->blocks->all;
    uint32_t n_kept = 0, n_found = 0;

    for (uint32_t i = 0; i < p->blocks->n_blocks; i++) {
        n_kept += all[i].is_kept;
        const uint32_t parent = all[i].is_kept ? p->entries[i].parent : BLOCK_NONE;
        if (parent != BLOCK_NONE &&
            (!all[parent].is_kept || all[parent].n_holders < all[i].n_holders)) {
            return false;
        }
    }
    for (uint32_t k = 0; p->is_on && k <= p->mask; k++) {
        for (uint32_t id = p->buckets[k]; id != BLOCK_NONE; id = p->entries[id].next) {
            if (!all[id].is_kept || bucket_of(p, &p->entries[id].key) != &p->buckets[k] ||
                n_found++ == n_kept) {
                return false;
            }
        }
    }
    return n_found == n_kept;
}
