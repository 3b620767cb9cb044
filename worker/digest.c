/* worker/digest.c - the digest of the weight files, hashed by all ranks of a replica together.
 *
 * Chunk i is hashed by rank i mod n; the leader collects the hashes and hashes those. A digest kept
 * from an earlier run (same paths, sizes, inodes, mtimes) saves reading everything twice. */
#include "worker/rank_priv.h"

#include <stdlib.h>
#include <string.h>

static status hash_mine(struct rank *r, const struct weights *w, struct hash128 *hashes,
                        uint32_t *n_p, struct err *err)
{
    uint32_t n = 0;
    status st = ST_OK;

    for (uint32_t i = r->rank; i < weights_chunk_count(w) && st == ST_OK; i += r->plan->n_ranks) {
        st = weights_chunk_hash(w, i, &hashes[n++], err);
        atomic_fetch_add(&r->progress->ticks, 1); /* whoever watches sees that it moves */
    }
    *n_p = n;
    return st;
}

/* Leader: everyone's hashes into `all`, in chunk order. */
static status collect(struct rank *r, uint32_t n_chunks, struct hash128 *all, struct hash128 *part,
                      struct err *err)
{
    const uint32_t n_ranks = r->plan->n_ranks;

    for (uint32_t from = 0; from < n_ranks && from < n_chunks; from++) {
        const uint32_t n = (n_chunks - from + n_ranks - 1) / n_ranks;
        if (from != 0) {
            struct coll_req req;
            status st = r->coll->ops->recv_start(r->coll, NULL, from, RANK_TAG_DIGEST, part,
                                                 n * sizeof(*part), &req, err);
            if (st == ST_OK) {
                st = r->coll->ops->wait(r->coll, req, err);
            }
            if (st != ST_OK) {
                return st;
            }
        }
        for (uint32_t k = 0; k < n; k++) {
            all[from + k * n_ranks] = part[k];
        }
    }
    return ST_OK;
}

static status hash_together(struct rank *r, const struct weights *w, struct hash128 *digest_p,
                            struct err *err)
{
    const uint32_t n_chunks = weights_chunk_count(w);
    struct hash128 *part = calloc(MAX(n_chunks, 1u), sizeof(*part));
    struct hash128 *all = calloc(MAX(n_chunks, 1u), sizeof(*all));
    uint32_t n = 0;
    status st = part != NULL && all != NULL
                    ? hash_mine(r, w, part, &n, err)
                    : err_set(err, ST_ERR_NOMEM, "no memory for %u chunk hashes", n_chunks);

    if (st == ST_OK && r->rank == 0) {
        st = collect(r, n_chunks, all, part, err);
        if (st == ST_OK) {
            *digest_p = weights_digest(w, all);
        }
    } else if (st == ST_OK && n != 0) {
        struct coll_req req;
        st = r->coll->ops->send_start(r->coll, NULL, 0, RANK_TAG_DIGEST, part, n * sizeof(*part),
                                      &req, err);
        if (st == ST_OK) {
            st = r->coll->ops->wait(r->coll, req, err);
        }
    }
    free(part);
    free(all);
    return st;
}

status rank_digest(struct rank *r, const struct weights *weights, const char *cache_dir,
                   struct hash128 *digest_p, struct err *err)
{
    struct hash128 digest = { { 0 } };
    uint32_t known = 0;

    if (r->rank == 0 && cache_dir != NULL) {
        known = weights_digest_cached(weights, cache_dir, &digest) == ST_OK;
    }
    status st = r->coll->ops->bcast(r->coll, &known, sizeof(known), 0, err);
    if (st == ST_OK && !known) {
        st = hash_together(r, weights, &digest, err);
        if (st == ST_OK && r->rank == 0 && cache_dir != NULL) {
            weights_digest_store(weights, cache_dir, &digest);
        }
    }
    if (st == ST_OK && r->rank == 0) {
        *digest_p = digest;
    }
    return st;
}
