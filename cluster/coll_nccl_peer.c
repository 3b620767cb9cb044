/* cluster/coll_nccl_peer.c - what the slices of a stage settle between their hosts: windows into each
 * other's device memory, and that they have queued the same.
 *
 * Windows. A sum of a decoded row is some 16 KiB. Over NCCL it is a gather and an addition per level
 * of the tree; over mapped memory it is one launch (kernels/cuda/peer.cu) with the same additions.
 * The probe is the mapping itself: every slice makes a window, all get all ids, each tries to map the
 * others', and only if all of them could is it used by any. Where one could not (another host, no
 * link, a container that hides devices) all sums are NCCL's; the bits are the same.
 *
 * Agreement. Each slice counts and hashes what it queues for a step: kind, stamp, size. When a step
 * is queued the hosts compare, over the inner coll, without looking at their devices, which run
 * meanwhile. What is launched from a recording counts as its launch, under the step's own stamp. */
#include "cluster/coll_nccl.h"

#include "base/hash.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- agreement ---- */

void coll_nccl_note(struct coll_nccl *d, const char *what, uint64_t stamp, size_t bytes)
{
    const uint64_t numbers[] = { stamp, bytes };

    d->n_queued++;
    d->trail = hash64_of(numbers, sizeof(numbers), hash64_of(what, strlen(what), d->trail));
}

struct queued {
    uint64_t stamp, n, trail;
};

status coll_nccl_agree(struct coll *c, uint64_t stamp, struct err *err)
{
    struct coll_nccl *d = coll_nccl_of(c);
    struct coll *inner = coll_nccl_inner(d);
    const struct queued mine = { stamp, d->n_queued, d->trail };
    struct queued all[COLL_NCCL_TP_MAX];
    status st = coll_nccl_check(d, "comparing steps", err);

    d->n_queued = d->trail = 0;
    if (st != ST_OK || c->tp == 1) {
        return st;
    }
    /* Under stamp 0, because the inner coll's own comparison would name the stamps and not the sums. */
    st = inner->ops->all_gather(inner, NULL, &mine, sizeof(mine), all, 0, err);
    for (uint32_t i = 0; st == ST_OK && i < c->tp; i++) {
        if (memcmp(&all[i], &mine, sizeof(mine)) != 0) {
            const uint32_t other = c->rank - c->slice + i;
            st = err_set(err, ST_ERR_MISMATCH,
                         "ranks %u and %u disagree about a step: rank %u has queued %llu exchanges "
                         "(%016llx) under stamp %016llx, rank %u %llu (%016llx) under %016llx",
                         c->rank, other, c->rank, (unsigned long long)mine.n,
                         (unsigned long long)mine.trail, (unsigned long long)stamp, other,
                         (unsigned long long)all[i].n, (unsigned long long)all[i].trail,
                         (unsigned long long)all[i].stamp);
        }
    }
    return st == ST_OK ? ST_OK : coll_nccl_give_up(d, st, err);
}

/* ---- windows ---- */

/* Every slice's word about how it went, and the first that went wrong. */
struct vote {
    status st;
    char text[200];
};

static struct vote vote_of(status st, const struct err *err)
{
    struct vote v = { .st = st };

    if (st != ST_OK) {
        memcpy(v.text, err->text, MIN(sizeof(v.text) - 1, strlen(err->text)));
    }
    return v;
}

/* all_p: did all slices vote ST_OK? Then `first` is untouched. */
static status vote(struct coll_nccl *d, const struct vote *mine, struct vote *first, bool *all_p,
                   struct err *err)
{
    struct coll *inner = coll_nccl_inner(d);
    struct vote *votes = calloc(d->base.tp, sizeof(*votes));
    status st;

    if (votes == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the votes of %u slices", d->base.tp);
    }
    st = inner->ops->all_gather(inner, NULL, mine, sizeof(*mine), votes, 0, err);
    *all_p = st == ST_OK;
    for (uint32_t i = 0; st == ST_OK && *all_p && i < d->base.tp; i++) {
        if (votes[i].st != ST_OK) {
            *first = votes[i];
            first->text[sizeof(first->text) - 1] = '\0';
            *all_p = false;
        }
    }
    free(votes);
    return st;
}

/* Make a window, hear of the others' and map them. A slice that fails on the way goes through all
 * exchanges with the others. */
static status open_windows(struct coll_nccl *d, void *ids, bool *all_p, struct vote *first,
                           struct err *err)
{
    struct coll *inner = coll_nccl_inner(d);
    const size_t bytes = d->dev.peer_id_bytes;
    char *mine = (char *)ids + d->base.tp * bytes;
    struct err why = ERR_INIT;
    struct vote v = vote_of(
        d->dev.peers_create(d->dev.stream, d->base.tp, d->base.slice, &d->peers, mine, &why), &why);
    status st = vote(d, &v, first, all_p, err);

    if (st != ST_OK || !*all_p) {
        return st;
    }
    st = inner->ops->all_gather(inner, NULL, mine, bytes, ids, 0, err);
    if (st == ST_OK) {
        v = vote_of(d->dev.peers_open(d->dev.stream, d->peers, ids, &why), &why);
        st = vote(d, &v, first, all_p, err);
    }
    return st;
}

/* For the log, once a stage; and for the status of every rank. */
static void say_way(struct coll_nccl *d, bool has_windows, const char *why_not)
{
    const size_t kib = MIN(d->dev.peer_floats * sizeof(float), d->base.split_bytes) / 1024;

    if (has_windows) {
        snprintf(d->base.sums, sizeof(d->base.sums), "mapped memory up to %zu KiB, else nccl", kib);
    } else {
        snprintf(d->base.sums, sizeof(d->base.sums), "nccl (%.*s)", (int)sizeof(d->base.sums) - 8,
                 why_not);
    }
    if (d->base.slice == 0) {
        log_info("device", "sums between the %u devices of stage %u: %s", d->base.tp, d->base.stage,
                 d->base.sums);
    }
}

status coll_nccl_peers_open(struct coll_nccl *d, struct err *err)
{
    struct vote first = { .st = ST_OK };
    bool all = false;

    if (d->dev.peers_create == NULL || d->free_order) {
        snprintf(d->base.sums, sizeof(d->base.sums), "%s",
                 d->free_order ? "nccl, in its own order" : "nccl");
        return ST_OK;
    }
    void *ids = calloc(d->base.tp + 1, d->dev.peer_id_bytes);
    if (ids == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the ids of %u windows", d->base.tp);
    }
    const status st = open_windows(d, ids, &all, &first, err);
    free(ids);
    if (st == ST_OK && !all) {
        d->dev.peers_destroy(d->dev.stream, d->peers);
        d->peers = NULL;
    }
    if (st == ST_OK) {
        say_way(d, all, first.text);
    }
    return st;
}

/* Nobody frees a window that another slice still reads: each waits for its own sums, then for the
 * others. Where that fails the windows stay until the process ends. */
void coll_nccl_peers_close(struct coll_nccl *d)
{
    enum { CLOSE_S = 5 };
    struct coll *inner = coll_nccl_inner(d);
    const uint64_t timeout_ns = inner->timeout_ns;

    if (d->peers == NULL) {
        return;
    }
    inner->timeout_ns = MIN(timeout_ns, CLOSE_S * NS_PER_S);
    if (d->broken || d->dev.sync(d->dev.stream, NULL) != ST_OK ||
        inner->ops->barrier(inner, NULL) != ST_OK) {
        d->dev.peers_abort(d->peers);
    }
    inner->timeout_ns = timeout_ns;
    d->dev.peers_destroy(d->dev.stream, d->peers);
    d->peers = NULL;
}
