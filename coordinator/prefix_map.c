/* coordinator/prefix_map.c - see prefix_map.h. A hash table of chained entries in one array, which
 * also carries the order of use. */
#include "coordinator/prefix_map.h"

#include "base/hash.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = UINT32_MAX, FIRST_ENTRIES = 64, IDS_MAX = 256 };

struct entry {
    uint64_t key;
    uint32_t next;         /* in its bucket */
    uint32_t older, newer; /* in the order of use */
};

struct prefix_map {
    struct entry *entries; /* [n_alloc] owned, n used */
    uint32_t *buckets;     /* [n_alloc] owned; n_alloc is a power of two */
    uint32_t n, n_alloc, n_max;
    uint32_t oldest, newest;
};

status prefix_map_create(uint32_t n_max, struct prefix_map **map_p, struct err *err)
{
    struct prefix_map *m = calloc(1, sizeof(*m));

    if (m == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the router");
    }
    m->n_max = MAX(n_max, 1u);
    m->oldest = m->newest = NONE;
    *map_p = m;
    return ST_OK;
}

void prefix_map_destroy(struct prefix_map *m)
{
    if (m != NULL) {
        free(m->entries);
        free(m->buckets);
        free(m);
    }
}

/* ---- keys ---- */

uint32_t prefix_keys(uint64_t scope, const uint32_t *a, uint32_t n_a, const uint32_t *b,
                     uint32_t n_b, uint32_t block_tokens, uint64_t *keys, uint32_t n_max)
{
    const uint64_t n_tokens = (uint64_t)n_a + n_b;
    uint64_t key = hash64_of(&scope, sizeof(scope), 0);
    uint32_t ids[IDS_MAX], n_keys = 0;

    ASSERT(block_tokens > 0 && block_tokens <= IDS_MAX);
    for (uint64_t at = 0; at + block_tokens < n_tokens && n_keys < n_max; at += block_tokens) {
        for (uint32_t i = 0; i < block_tokens; i++) {
            ids[i] = at + i < n_a ? a[at + i] : b[at + i - n_a];
        }
        key = hash64_of(ids, block_tokens * sizeof(*ids), key);
        keys[n_keys++] = key;
    }
    return n_keys;
}

/* ---- the table ---- */

static uint32_t *bucket_of(const struct prefix_map *m, uint64_t key)
{
    return &m->buckets[key & (m->n_alloc - 1)];
}

static uint32_t find(const struct prefix_map *m, uint64_t key)
{
    if (m->n_alloc == 0) {
        return NONE;
    }
    uint32_t i = *bucket_of(m, key);
    while (i != NONE && m->entries[i].key != key) {
        i = m->entries[i].next;
    }
    return i;
}

static bool grow(struct prefix_map *m)
{
    const uint32_t n = m->n_alloc == 0 ? FIRST_ENTRIES : m->n_alloc * 2;
    struct entry *entries = realloc(m->entries, n * sizeof(*entries));

    if (entries == NULL) {
        return false;
    }
    m->entries = entries;
    uint32_t *buckets = realloc(m->buckets, n * sizeof(*buckets));
    if (buckets == NULL) {
        return false;
    }
    m->buckets = buckets;
    m->n_alloc = n;
    memset(buckets, 0xff, n * sizeof(*buckets)); /* NONE */
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t *at = bucket_of(m, entries[i].key);
        entries[i].next = *at;
        *at = i;
    }
    return true;
}

static void order_remove(struct prefix_map *m, uint32_t i)
{
    struct entry *e = &m->entries[i];

    *(e->older != NONE ? &m->entries[e->older].newer : &m->oldest) = e->newer;
    *(e->newer != NONE ? &m->entries[e->newer].older : &m->newest) = e->older;
}

static void order_append(struct prefix_map *m, uint32_t i)
{
    struct entry *e = &m->entries[i];

    e->older = m->newest;
    e->newer = NONE;
    *(m->newest != NONE ? &m->entries[m->newest].newer : &m->oldest) = i;
    m->newest = i;
}

static void bucket_remove(struct prefix_map *m, uint32_t i)
{
    uint32_t *at = bucket_of(m, m->entries[i].key);

    while (*at != i) {
        at = &m->entries[*at].next;
    }
    *at = m->entries[i].next;
}

/* An entry to write to: a new one, or the one that was used longest ago. NONE: no memory. */
static uint32_t take_entry(struct prefix_map *m)
{
    if (m->n == m->n_max) {
        const uint32_t i = m->oldest;
        order_remove(m, i);
        bucket_remove(m, i);
        return i;
    }
    if (m->n == m->n_alloc && !grow(m)) {
        return NONE;
    }
    return m->n++;
}

uint32_t prefix_map_match(const struct prefix_map *m, const uint64_t *keys, uint32_t n)
{
    uint32_t i = 0;

    while (i < n && find(m, keys[i]) != NONE) {
        i++;
    }
    return i;
}

/* The last key first: a chain's end is evicted before its beginning, as the leader does it. */
void prefix_map_note(struct prefix_map *m, const uint64_t *keys, uint32_t n)
{
    for (uint32_t k = MIN(n, m->n_max); k-- > 0;) {
        uint32_t i = find(m, keys[k]);
        if (i != NONE) {
            order_remove(m, i);
        } else {
            i = take_entry(m);
            if (i == NONE) {
                return;
            }
            uint32_t *at = bucket_of(m, keys[k]);
            m->entries[i].key = keys[k];
            m->entries[i].next = *at;
            *at = i;
        }
        order_append(m, i);
    }
}

void prefix_map_clear(struct prefix_map *m)
{
    m->n = 0;
    m->oldest = m->newest = NONE;
    if (m->n_alloc != 0) {
        memset(m->buckets, 0xff, m->n_alloc * sizeof(*m->buckets));
    }
}

uint32_t prefix_map_count(const struct prefix_map *m)
{
    return m->n;
}
