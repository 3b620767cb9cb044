/* model/tok_table.c - tokens by id, ids by string, merges by pair.
 *
 * Tables are sized once from counts that were checked against the limits; both maps are open
 * addressing at no more than half full. Strings live in one pool, so a vocabulary of 150,000 tokens
 * is three allocations. */
#include "model/tok_impl.h"

#include <stdlib.h>

static uint64_t hash_str(const char *s, size_t len)
{
    uint64_t h = 0x9e3779b97f4a7c15ull ^ (len * 0xff51afd7ed558ccdull), w;

    for (; len >= 8; s += 8, len -= 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
    }
    w = 0;
    memcpy(&w, s, len);
    h = (h ^ w) * 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 29;
}

static uint64_t hash_pair(uint32_t a, uint32_t b)
{
    const uint64_t h = ((uint64_t)a << 32 | b) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 31;
}

static uint32_t table_size(size_t n)
{
    uint32_t size = 16;

    while (size < 2 * n) {
        size *= 2;
    }
    return size;
}

/* ---- tokens ---- */

static status grow_entries(struct tokenizer *t, uint32_t id, struct err *err)
{
    if (id < t->cap_ids) {
        return ST_OK;
    }
    const uint32_t cap = MIN((uint32_t)TOK_VOCAB_MAX, MAX(id + 1, t->cap_ids * 2));
    struct tok_entry *entries = realloc(t->entries, cap * sizeof *entries);

    if (entries == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u tokens", cap);
    }
    memset(entries + t->cap_ids, 0, (cap - t->cap_ids) * sizeof *entries);
    t->entries = entries;
    t->cap_ids = cap;
    return ST_OK;
}

status tok_token_add(struct tokenizer *t, uint64_t id, const char *s, size_t len, unsigned flags,
                     const char *what, struct err *err)
{
    if (id >= TOK_VOCAB_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: token id %llu, the limit is %d", what,
                       (unsigned long long)id, TOK_VOCAB_MAX - 1);
    }
    if (len > TOK_TOKEN_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: token %llu has %zu bytes, the limit is %d", what,
                       (unsigned long long)id, len, TOK_TOKEN_BYTES_MAX);
    }
    status st = grow_entries(t, (uint32_t)id, err);
    if (st != ST_OK) {
        return st;
    }
    struct tok_entry *e = &t->entries[id];
    if (e->flags != 0) {
        if (e->str_len == len && memcmp(t->pool.data + e->str, s, len) == 0) {
            e->flags = (uint16_t)(e->flags | flags);
            return ST_OK;
        }
        return err_set(err, ST_ERR_FORMAT, "%s: id %llu is both \"%.*s\" and \"%.*s\"", what,
                       (unsigned long long)id, (int)MIN(e->str_len, 64u), t->pool.data + e->str,
                       (int)MIN(len, (size_t)64), s);
    }
    const size_t at = t->pool.len;
    st = buf_append(&t->pool, s, len);
    if (st != ST_OK) {
        return st == ST_ERR_NOMEM
                   ? err_set(err, st, "%s: no memory for token strings", what)
                   : err_set(err, st, "%s: token strings of over %zu bytes", what, t->pool.len);
    }
    *e = (struct tok_entry){ .str = (uint32_t)at,
                             .str_len = (uint32_t)len,
                             .flags = (uint16_t)flags };
    t->n_ids = MAX(t->n_ids, (uint32_t)id + 1);
    return ST_OK;
}

/* ---- ids by string ---- */

uint32_t tok_map_find(const struct tokenizer *t, const struct tok_map *map, const char *s,
                      size_t len)
{
    if (map->slots == NULL) {
        return TOK_NONE;
    }
    for (uint32_t i = (uint32_t)hash_str(s, len) & map->mask;; i = (i + 1) & map->mask) {
        const uint32_t slot = map->slots[i];
        if (slot == 0) {
            return TOK_NONE;
        }
        const struct tok_entry *e = &t->entries[slot - 1];
        if (e->str_len == len && memcmp(t->pool.data + e->str, s, len) == 0) {
            return slot - 1;
        }
    }
}

status tok_map_build(struct tokenizer *t, struct tok_map *map, unsigned flags, struct err *err)
{
    size_t n = 0;

    for (uint32_t id = 0; id < t->n_ids; id++) {
        n += (t->entries[id].flags & flags) != 0;
    }
    const uint32_t size = table_size(n);
    ASSERT(map->slots == NULL);
    map->slots = calloc(size, sizeof *map->slots);
    if (map->slots == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a map of %zu tokens", n);
    }
    map->mask = size - 1;
    map->n = (uint32_t)n;
    for (uint32_t id = 0; id < t->n_ids; id++) {
        const struct tok_entry *e = &t->entries[id];
        if ((e->flags & flags) == 0) {
            continue;
        }
        const char *s = t->pool.data + e->str;
        const uint32_t other = tok_map_find(t, map, s, e->str_len);
        if (other != TOK_NONE) {
            return err_set(err, ST_ERR_FORMAT, "token \"%.*s\" has two ids, %u and %u",
                           (int)MIN(e->str_len, 64u), s, other, id);
        }
        uint32_t i = (uint32_t)hash_str(s, e->str_len) & map->mask;
        while (map->slots[i] != 0) {
            i = (i + 1) & map->mask;
        }
        map->slots[i] = id + 1;
    }
    return ST_OK;
}

/* ---- merges by pair ---- */

status tok_merges_init(struct tok_merges *m, size_t n, struct err *err)
{
    if (n > TOK_MERGES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%zu merges, the limit is %d", n, TOK_MERGES_MAX);
    }
    const uint32_t size = table_size(n);
    ASSERT(m->slots == NULL);
    m->slots = malloc(size * sizeof *m->slots);
    if (m->slots == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %zu merges", n);
    }
    m->mask = size - 1;
    memset(m->slots, 0xff, size * sizeof *m->slots); /* left = TOK_NONE */
    return ST_OK;
}

static uint32_t merge_slot(const struct tok_merges *m, uint32_t left, uint32_t right)
{
    uint32_t i = (uint32_t)hash_pair(left, right) & m->mask;

    while (m->slots[i].left != TOK_NONE &&
           (m->slots[i].left != left || m->slots[i].right != right)) {
        i = (i + 1) & m->mask;
    }
    return i;
}

const struct tok_merge *tok_merge_find(const struct tok_merges *m, uint32_t left, uint32_t right)
{
    if (m->slots == NULL || left == TOK_NONE || right == TOK_NONE) {
        return NULL;
    }
    const struct tok_merge *e = &m->slots[merge_slot(m, left, right)];
    return e->left == TOK_NONE ? NULL : e;
}

status tok_merge_add(struct tokenizer *t, uint32_t rank, const char *a, size_t a_len, const char *b,
                     size_t b_len, struct err *err)
{
    const uint32_t left = tok_map_find(t, &t->vocab, a, a_len);
    const uint32_t right = tok_map_find(t, &t->vocab, b, b_len);
    char both[1024], *joined = both;
    uint32_t id = TOK_NONE;

    if (left == TOK_NONE || right == TOK_NONE) {
        const bool is_a = left == TOK_NONE;
        return err_set(err, ST_ERR_FORMAT, "merge %u: \"%.*s\" is not in the vocabulary", rank,
                       (int)MIN(is_a ? a_len : b_len, (size_t)64), is_a ? a : b);
    }
    if (a_len + b_len > sizeof both) {
        joined = malloc(a_len + b_len);
        if (joined == NULL) {
            return err_set(err, ST_ERR_NOMEM, "merge %u: no memory for %zu bytes", rank,
                           a_len + b_len);
        }
    }
    memcpy(joined, a, a_len);
    memcpy(joined + a_len, b, b_len);
    id = tok_map_find(t, &t->vocab, joined, a_len + b_len);
    if (joined != both) {
        free(joined);
    }
    if (id == TOK_NONE) {
        return err_set(err, ST_ERR_FORMAT, "merge %u: \"%.*s%.*s\" is not in the vocabulary", rank,
                       (int)MIN(a_len, (size_t)64), a, (int)MIN(b_len, (size_t)64), b);
    }
    if ((t->entries[id].flags & TOKF_SPECIAL) != 0) {
        return ST_OK; /* must not come out of characters */
    }
    struct tok_merge *e = &t->merges.slots[merge_slot(&t->merges, left, right)];
    if (e->left == TOK_NONE) {
        ASSERT(t->merges.n <= t->merges.mask / 2);
        t->merges.n++;
    }
    *e = (struct tok_merge){ left, right, rank, id };
    return ST_OK;
}
