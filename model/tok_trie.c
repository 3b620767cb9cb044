/* model/tok_trie.c - the longest of many strings at a place.
 *
 * A byte trie whose edges sit in one hash table: 64,000 added tokens with a common first byte cost
 * as much per character of text as one does. */
#include "model/tok_impl.h"

#include <stdlib.h>

enum { TRIE_NODES_MAX = 16 << 20 };

static uint32_t edge_slot(const struct tok_trie *trie, uint64_t key)
{
    const uint64_t h = key * 0x9e3779b97f4a7c15ull;
    uint32_t i = (uint32_t)(h >> 32) & trie->mask;

    while (trie->edges[i].key != 0 && trie->edges[i].key != key) {
        i = (i + 1) & trie->mask;
    }
    return i;
}

static uint64_t edge_key(uint32_t node, char byte)
{
    return ((uint64_t)node << 8 | (unsigned char)byte) + 1;
}

static status grow_edges(struct tok_trie *trie)
{
    if (trie->edges != NULL && trie->n_edges < trie->mask / 2) {
        return ST_OK;
    }
    struct tok_trie bigger = *trie;
    const uint32_t size = trie->edges == NULL ? 256 : (trie->mask + 1) * 2;

    bigger.edges = calloc(size, sizeof *bigger.edges);
    if (bigger.edges == NULL) {
        return ST_ERR_NOMEM;
    }
    bigger.mask = size - 1;
    for (uint32_t i = 0; trie->edges != NULL && i <= trie->mask; i++) {
        if (trie->edges[i].key != 0) {
            bigger.edges[edge_slot(&bigger, trie->edges[i].key)] = trie->edges[i];
        }
    }
    free(trie->edges);
    trie->edges = bigger.edges;
    trie->mask = bigger.mask;
    return ST_OK;
}

/* Node 0 stands for "none": the root has its own array. */
static status new_node(struct tok_trie *trie, uint32_t *node_p)
{
    if (trie->n_nodes == 0) {
        trie->n_nodes = 1;
    }
    if (trie->n_nodes >= TRIE_NODES_MAX) {
        return ST_ERR_LIMIT;
    }
    if (trie->n_nodes >= trie->cap_nodes) {
        const uint32_t cap = MAX(64u, trie->cap_nodes * 2);
        uint32_t *ids = realloc(trie->ids, cap * sizeof *ids);
        if (ids == NULL) {
            return ST_ERR_NOMEM;
        }
        memset(ids + trie->cap_nodes, 0xff, (cap - trie->cap_nodes) * sizeof *ids);
        trie->ids = ids;
        trie->cap_nodes = cap;
    }
    *node_p = trie->n_nodes++;
    return ST_OK;
}

static uint32_t step(const struct tok_trie *trie, uint32_t node, char byte)
{
    if (trie->edges == NULL) {
        return 0;
    }
    const struct tok_edge *e = &trie->edges[edge_slot(trie, edge_key(node, byte))];
    return e->key == 0 ? 0 : e->node;
}

status tok_trie_add(struct tok_trie *trie, const char *s, size_t len, uint32_t id)
{
    uint32_t node = 0;

    for (size_t i = 0; i < len; i++) {
        uint32_t next = i == 0 ? trie->root[(unsigned char)s[0]] : step(trie, node, s[i]);
        if (next == 0) {
            status st = new_node(trie, &next);
            if (st == ST_OK && i != 0) {
                st = grow_edges(trie);
            }
            if (st != ST_OK) {
                return st;
            }
            if (i == 0) {
                trie->root[(unsigned char)s[0]] = next;
            } else {
                const uint64_t key = edge_key(node, s[i]);
                trie->edges[edge_slot(trie, key)] = (struct tok_edge){ key, next };
                trie->n_edges++;
            }
        }
        node = next;
    }
    if (node != 0 && trie->ids[node] == TOK_NONE) {
        trie->ids[node] = id; /* of two with one normal form the lower id wins */
    }
    return ST_OK;
}

uint32_t tok_trie_match(const struct tok_trie *trie, const char *s, size_t len, uint32_t *id_p)
{
    uint32_t best = 0;

    if (len == 0) {
        return 0;
    }
    uint32_t node = trie->root[(unsigned char)s[0]];
    for (uint32_t i = 1; node != 0; i++) {
        if (trie->ids[node] != TOK_NONE) {
            best = i;
            *id_p = trie->ids[node];
        }
        if (i >= len) {
            break;
        }
        node = step(trie, node, s[i]);
    }
    return best;
}

void tok_trie_fini(struct tok_trie *trie)
{
    free(trie->edges);
    free(trie->ids);
    memset(trie, 0, sizeof *trie);
}
