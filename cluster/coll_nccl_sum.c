/* cluster/coll_nccl_sum.c - a sum between devices, in the order of our tree.
 *
 * n floats over tp slices, S the scratch, p the position of a slice in its communicator:
 *
 *   small  gather: S[p] = slice p's x, all n            large  all to all: S[p] = p's part of mine
 *          add:    S[0 .. tp/2) += S[tp/2 .. tp)               add the same way, into my part of x
 *                  ... halving, the last into x                gather: every part from its owner
 *
 * p is the slice with its bits reversed. So the two that the tree adds first (2j and 2j+1) stand
 * tp/2 apart, and one addition over half of S is a whole level of the tree for everybody: log2(tp)
 * launches, lower + upper in each, the bits of coll_mpi.c and coll_local.c. */
#include "cluster/coll_nccl.h"

uint32_t coll_nccl_position(uint32_t tp, uint32_t slice)
{
    uint32_t p = 0;

    for (uint32_t bit = 1; bit < tp; bit <<= 1) {
        p = p << 1 | (slice & bit ? 1 : 0);
    }
    return p;
}

struct part {
    size_t begin, end;
};

/* Of n floats, what position p owns in a large sum: whole runs of `run`, the last ones shorter. */
static struct part part_of(size_t n, size_t run, uint32_t p)
{
    return (struct part){ MIN(p * run, n), MIN((p + 1) * run, n) };
}

static size_t padded(size_t n)
{
    return (n + COLL_ALIGN_FLOATS - 1) / COLL_ALIGN_FLOATS * COLL_ALIGN_FLOATS;
}

/* into[len] = the tree over the tp vectors of `stride` floats in the scratch. */
static void add_levels(struct coll_nccl *d, size_t stride, float *into, size_t len)
{
    float *s = d->dev.scratch;

    for (uint32_t half = d->base.tp / 2; half > 1; half /= 2) {
        d->dev.add(d->dev.stream, s, s, s + half * stride, half * stride);
    }
    d->dev.add(d->dev.stream, into, s, s + stride, len);
}

/* What goes to a position of the group and comes from it; bytes 0: nothing. */
struct move {
    const void *out;
    void *into;
    size_t out_bytes, into_bytes;
};

/* One group of sends and receives with everybody, ourselves included (a copy on the device). */
static status exchange(struct coll_nccl *d, const struct move moves[COLL_NCCL_TP_MAX],
                       const char *what, struct err *err)
{
    int code = d->api->group_start();

    if (code != COLL_NCCL_OK) {
        return coll_nccl_failed(d, NULL, what, code, err);
    }
    for (uint32_t p = 0; p < d->base.tp; p++) {
        const struct move *m = &moves[p];
        if (code == COLL_NCCL_OK && m->out_bytes != 0) {
            code = d->api->send(m->out, m->out_bytes, p, d->group, d->dev.raw);
        }
        if (code == COLL_NCCL_OK && m->into_bytes != 0) {
            code = d->api->recv(m->into, m->into_bytes, p, d->group, d->dev.raw);
        }
        code = code == COLL_NCCL_BUSY ? COLL_NCCL_OK : code; /* in a group nothing is done yet */
    }
    const int ended = d->api->group_end();
    return coll_nccl_settle(d, d->group, code != COLL_NCCL_OK ? code : ended, what, err);
}

/* Every position's `bytes` of `mine` at all + position * stride, on every position. */
static status gather(struct coll_nccl *d, const void *mine, size_t bytes, void *all, size_t stride,
                     const char *what, struct err *err)
{
    struct move moves[COLL_NCCL_TP_MAX] = { 0 };

    if (bytes == stride) {
        const int code = d->api->all_gather(mine, all, bytes, d->group, d->dev.raw);
        return coll_nccl_settle(d, d->group, code, what, err);
    }
    for (uint32_t p = 0; p < d->base.tp; p++) {
        moves[p] = (struct move){ mine, (char *)all + p * stride, bytes, bytes };
    }
    return exchange(d, moves, what, err);
}

static status reduce_small(struct coll_nccl *d, float *x, size_t n, struct err *err)
{
    const size_t stride = padded(n);
    const status st = gather(d, x, n * sizeof(float), d->dev.scratch, stride * sizeof(float),
                             "all_reduce_tree", err);

    if (st == ST_OK) {
        add_levels(d, stride, x, n);
    }
    return st;
}

/* Everybody's part of the sum to everybody, in place. */
static status gather_parts(struct coll_nccl *d, float *x, size_t n, size_t run, struct err *err)
{
    const struct part mine = part_of(n, run, d->position);
    struct move moves[COLL_NCCL_TP_MAX] = { 0 };

    if (run * d->base.tp == n) {
        const int code =
            d->api->all_gather(x + mine.begin, x, run * sizeof(float), d->group, d->dev.raw);
        return coll_nccl_settle(d, d->group, code, "all_reduce_tree", err);
    }
    for (uint32_t p = 0; p < d->base.tp; p++) {
        const struct part theirs = part_of(n, run, p);
        const bool self = p == d->position; /* it is there already */
        moves[p] = (struct move){ x + mine.begin, x + theirs.begin,
                                  self ? 0 : (mine.end - mine.begin) * sizeof(float),
                                  self ? 0 : (theirs.end - theirs.begin) * sizeof(float) };
    }
    return exchange(d, moves, "all_reduce_tree", err);
}

static status reduce_large(struct coll_nccl *d, float *x, size_t n, struct err *err)
{
    const uint32_t tp = d->base.tp;
    const size_t run = padded((n + tp - 1) / tp);
    const struct part mine = part_of(n, run, d->position);
    const size_t len = mine.end - mine.begin;
    struct move moves[COLL_NCCL_TP_MAX] = { 0 };

    for (uint32_t p = 0; p < tp; p++) {
        const struct part theirs = part_of(n, run, p);
        moves[p] =
            (struct move){ x + theirs.begin, (float *)d->dev.scratch + p * run,
                           (theirs.end - theirs.begin) * sizeof(float), len * sizeof(float) };
    }
    const status st = exchange(d, moves, "all_reduce_tree", err);
    if (st != ST_OK) {
        return st;
    }
    if (len != 0) {
        add_levels(d, run, x + mine.begin, len);
    }
    return gather_parts(d, x, n, run, err);
}

/* In blocks that the scratch holds; elements do not meet, so blocks change no bit. */
status coll_nccl_all_reduce_tree(struct coll *c, struct kern_stream *s, float *x, size_t n,
                                 uint64_t stamp, struct err *err)
{
    struct coll_nccl *d = coll_nccl_of(c);
    struct coll *inner = coll_nccl_inner(d);
    const size_t room = d->dev.scratch_bytes / sizeof(float) / c->tp / COLL_ALIGN_FLOATS *
                        COLL_ALIGN_FLOATS; /* of one slice in the scratch */
    status st = coll_nccl_check(d, "all_reduce_tree", err);

    if (s == NULL) {
        return inner->ops->all_reduce_tree(inner, NULL, x, n, stamp, err);
    }
    if (st != ST_OK || c->tp == 1 || n == 0) {
        return st;
    }
    coll_nccl_note(d, "sum", stamp, n * sizeof(float));
    if (d->free_order) {
        const int code = d->api->all_reduce_f32(x, x, n, d->group, d->dev.raw);
        return coll_nccl_settle(d, d->group, code, "all_reduce", err);
    }
    if (d->peers != NULL && n <= d->dev.peer_floats && n * sizeof(float) < c->split_bytes) {
        d->dev.peers_sum(d->dev.stream, d->peers, x, n);
        return ST_OK;
    }
    if (n * sizeof(float) < c->split_bytes && padded(n) <= room) {
        return reduce_small(d, x, n, err);
    }
    for (size_t at = 0; st == ST_OK && at < n; at += room * c->tp) {
        st = reduce_large(d, x + at, MIN(n - at, room * c->tp), err);
    }
    return st;
}

status coll_nccl_all_gather(struct coll *c, struct kern_stream *s, const void *mine, size_t bytes,
                            void *all, uint64_t stamp, struct err *err)
{
    struct coll_nccl *d = coll_nccl_of(c);
    struct coll *inner = coll_nccl_inner(d);
    struct move moves[COLL_NCCL_TP_MAX] = { 0 };
    const status st = coll_nccl_check(d, "all_gather", err);

    if (s == NULL || c->tp == 1) {
        /* Of one slice on the device: nobody asks for it (a copy would have to be made). */
        ASSERT(s == NULL);
        return inner->ops->all_gather(inner, NULL, mine, bytes, all, stamp, err);
    }
    for (uint32_t p = 0; p < c->tp; p++) {
        moves[p] =
            (struct move){ mine, (char *)all + coll_nccl_position(c->tp, p) * bytes, bytes, bytes };
    }
    coll_nccl_note(d, "gather", stamp, bytes);
    return st == ST_OK && bytes != 0 ? exchange(d, moves, "all_gather", err) : st;
}
