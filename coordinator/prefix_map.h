/* coordinator/prefix_map.h - what a replica has probably kept: the beginnings of the streams that
 * were sent there.
 *
 *   tokens   [ 0 .. 31 ][ 32 .. 63 ][ 64 .. 95 ][ 96 .. 101
 *   key      k0 ──────► k1 ───────► k2           k[i] = hash of (k[i-1], ids);  k[-1] = of the scope
 *
 * A hint for the router and nothing else: the leader alone knows its blocks (worker/sched/prefix.h),
 * and evicts them as its own streams please. The map is what went there, least recently used out
 * first, as many blocks as the replica has: the same rule, hence nearly the same content, without a
 * message between the two. Wrong hints (a collision of 64 bits, blocks that are gone) cost a
 * prefill that another replica might have saved. Keys leave the process nowhere.
 *
 * Refused: the leaders telling what they keep (a message per block, and late by a heartbeat), a
 * radix tree over ids (holds every prompt once more). One owner thread. */
#ifndef COORDINATOR_PREFIX_MAP_H
#define COORDINATOR_PREFIX_MAP_H

#include "base/err.h"

#include <stdint.h>

struct prefix_map; /* of one replica */

/* At most n_max blocks are remembered; memory grows with use, 24 bytes and a bucket each. */
status prefix_map_create(uint32_t n_max, struct prefix_map **map_p, struct err *err);
void prefix_map_destroy(struct prefix_map *m); /* NULL is fine */

/* Keys of the full blocks of `a` followed by `b` that a stream of these tokens may find kept: all
 * but the last token's. Writes at most n_max keys; returns how many. */
uint32_t prefix_keys(uint64_t scope, const uint32_t *a, uint32_t n_a, const uint32_t *b,
                     uint32_t n_b, uint32_t block_tokens, uint64_t *keys, uint32_t n_max);

/* How many of the keys, from the first on, are there. */
uint32_t prefix_map_match(const struct prefix_map *m, const uint64_t *keys, uint32_t n);
/* These went there just now. Without memory the rest is not remembered. */
void prefix_map_note(struct prefix_map *m, const uint64_t *keys, uint32_t n);
/* The replica was lost: it keeps nothing. */
void prefix_map_clear(struct prefix_map *m);
uint32_t prefix_map_count(const struct prefix_map *m);

#endif
