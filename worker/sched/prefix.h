/* worker/sched/prefix.h - KV blocks found again by what is in them: streams that begin alike share
 * the blocks of their common beginning.
 *
 *   tokens   [ 0 .. 31 ][ 32 .. 63 ][ 64 .. 95 ][ 96 .. 101
 *   key      k0 ──────► k1 ───────► k2           (not full: has no key)
 *            k[i] = 128-bit hash of (k[i-1], scope, the 32 ids);  k[-1] = 0
 *
 * The K and V of a position are a function of the tokens up to it and of nothing else (promise P2:
 * not of chunks, batches or layouts), so a full block whose chain of tokens is equal has equal
 * bytes, whichever stream computed it. A block gets its name when the step that wrote its last row
 * has come back (prefix_publish); a stream that is admitted takes the longest chain that is there
 * (prefix_match) and computes the rest. At least its last token is always computed, for there must
 * be logits to choose from; and since only whole blocks below that token are taken, nobody ever
 * writes to a shared block: there is no copy on write.
 *
 * Why reading is safe with pp plans out. Every rank runs plans in the order in which they were made
 * and finishes one before the next. A plan made after the block was published is made after the
 * step that wrote it came back, therefore behind it on every stage. By the same order a block may
 * be given to a new owner as soon as nobody holds it: a plan that is still out and reads it runs,
 * on each rank, before the first plan that writes it.
 *
 * A key only says where to look. Equality is decided by parent block, scope and the ids themselves,
 * which by induction is equality of the whole beginning: a collision of hashes costs a comparison
 * and never an answer. The parent can be named by its block number because it outlives its
 * children: who holds a named block holds its parent too (a stream that computes what is there
 * already lets go of its own copy, prefix_publish), and streams put their last block first, so that
 * eviction, oldest first, meets children before parents.
 *
 * Scope keeps principals apart (0: shared by all). A rope rule whose factors depend on the length
 * of a request (model/desc.h has none) would have to enter the first key as well.
 *
 * Memory: 128 bytes of ids and 32 of bookkeeping per block. Keys are of host byte order and never
 * leave the process. */
#ifndef WORKER_SCHED_PREFIX_H
#define WORKER_SCHED_PREFIX_H

#include "base/hash.h"
#include "worker/sched/blocks.h"

struct prefix_entry {
    struct hash128 key;
    uint64_t scope;
    uint32_t parent; /* block before it; BLOCK_NONE: the first of its chain */
    uint32_t next;   /* in its bucket */
};

struct prefix {
    bool is_on;
    struct blocks *blocks;        /* borrowed */
    uint32_t mask;                /* buckets - 1, a power of two */
    uint32_t *buckets;            /* [mask + 1] block ids or BLOCK_NONE; owned */
    struct prefix_entry *entries; /* [n_blocks] of kept blocks; owned */
    uint32_t *tokens;             /* [n_blocks, KERN_KV_BLOCK] of kept blocks; owned */
};

/* How much of a stream's table has a name: its first n blocks. */
struct prefix_chain {
    uint64_t scope;
    uint32_t n;
    struct hash128 key; /* of block n - 1; zero if n is 0 */
};

/* is_on false: nothing is ever kept, and nothing matches. */
status prefix_init(struct prefix *p, struct blocks *blocks, bool is_on, struct err *err);
void prefix_fini(struct prefix *p); /* zeroed storage is fine */

/* A block for new rows: a free one, else the idle one that was held longest ago. false: all are
 * held. */
bool prefix_get(struct prefix *p, uint32_t *id_p);
/* Write the longest chain of kept blocks that begins `tokens` and ends before the last of them to
 * `table` and return its length. Takes no hold; of those blocks *n_idle_p are idle. chain->scope is
 * given, the rest is set. */
uint32_t prefix_match(const struct prefix *p, const uint32_t *tokens, uint32_t n_tokens,
                      struct prefix_chain *chain, uint32_t *table, uint32_t *n_idle_p);
/* Name the full blocks of a stream whose first n_done positions are computed on all ranks. Where
 * equal content is kept already, the table takes that block and puts its own. */
void prefix_publish(struct prefix *p, struct prefix_chain *chain, const uint32_t *tokens,
                    uint32_t n_done, uint32_t *table);

/* Do the first n entries of `table` hold these tokens under this scope, in a chain? For tests. */
bool prefix_is_chain(const struct prefix *p, uint64_t scope, const uint32_t *tokens,
                     const uint32_t *table, uint32_t n);
/* Kept blocks and entries are the same; parents are kept and held at least as often. O(n). */
bool prefix_is_valid(const struct prefix *p);

#endif
