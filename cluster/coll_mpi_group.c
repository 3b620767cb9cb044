/* cluster/coll_mpi_group.c - the collectives over MPI, each made of sends and receives.
 *
 * all_reduce_tree, level l = 0, 1, ..: partner = slice ^ 2^l, both compute lower + upper.
 *
 *   small: whole vectors are exchanged; log2(tp) messages
 *   large: at level l the two partners hold the same segment; the lower one keeps its lower half
 *          and sends the upper, and the other way round. After the last level each slice has 1/tp
 *          of the sum; the segments travel back along the same partners, last level first. Each
 *          element sees the same additions as above: ((0+1)+(2+3))+.. (distance *halving*, the
 *          usual choice, would add 0+4 first). Volume 2 n (1 - 1/tp), that of a ring.
 *
 * MPI_Iallreduce is not used: its order of additions is the library's choice and changes with
 * size, and it can name nobody. bcast is a binomial tree, barrier a gather to rank 0 and a release,
 * so that rank 0 can name every rank that is missing. */
#include "cluster/coll_mpi.h"

#include "cluster/coll_add.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_FLOATS = 4 << 20, LEVELS_MAX = 8, BODY_BYTES_MAX = 1 << 30 };

static const char *op_name(uint32_t op)
{
    static const char *const names[] = { "?", "all_reduce_tree", "all_gather", "bcast", "barrier" };

    return op < ARRAY_LEN(names) ? names[op] : "?";
}

/* ---- messages with a head ---- */

struct group {
    MPI_Comm comm;
    uint32_t first_rank; /* of the replica: rank i of comm is first_rank + i */
};

static struct group stage_of(const struct coll_mpi *m)
{
    return (struct group){ m->group, m->base.stage * m->base.tp };
}

static struct group world_of(const struct coll_mpi *m)
{
    return (struct group){ m->world, 0 };
}

static status check_head(const struct coll_mpi *m, const struct coll_head *mine,
                         const struct coll_head *theirs, uint32_t peer, struct err *err)
{
    if (theirs->op != mine->op) {
        return err_set(err, ST_ERR_MISMATCH, "rank %u is in %s, rank %u in %s", m->base.rank,
                       op_name(mine->op), peer, op_name(theirs->op));
    }
    if (theirs->stamp != mine->stamp || theirs->round != mine->round) {
        return err_set(err, ST_ERR_MISMATCH,
                       "%s: rank %u has stamp %016llx (call %llu), rank %u has %016llx (call %llu)",
                       op_name(mine->op), m->base.rank, (unsigned long long)mine->stamp,
                       (unsigned long long)mine->round, peer, (unsigned long long)theirs->stamp,
                       (unsigned long long)theirs->round);
    }
    if (theirs->bytes != mine->bytes || theirs->root != mine->root) {
        return err_set(err, ST_ERR_MISMATCH,
                       "%s: rank %u has %llu bytes (root %u), rank %u has %llu (root %u)",
                       op_name(mine->op), m->base.rank, (unsigned long long)mine->bytes, mine->root,
                       peer, (unsigned long long)theirs->bytes, theirs->root);
    }
    return ST_OK;
}

/* Receives go up before the send, so that the answer finds its buffer. */
static status recv_post(struct group g, struct coll_lane *lane, unsigned char *stage, uint32_t i,
                        struct err *err)
{
    return coll_mpi_status(MPI_Irecv(stage, COLL_STAGE_BYTES, MPI_BYTE, (int)i, COLL_TAG_HEAD,
                                     g.comm, &lane->recv_head),
                           "MPI_Irecv", err);
}

/* Head and payload in `stage`, ready to be sent to one or many. */
static size_t pack(unsigned char *stage, const struct coll_head *head, const void *data,
                   size_t bytes)
{
    memcpy(stage, head, sizeof(*head));
    if (bytes > COLL_INLINE_BYTES) {
        return sizeof(*head);
    }
    if (bytes > 0) {
        memcpy(stage + sizeof(*head), data, bytes);
    }
    return sizeof(*head) + bytes;
}

static status send_post(struct group g, struct coll_lane *lane, const unsigned char *stage,
                        size_t packed, uint32_t i, const void *data, size_t bytes, struct err *err)
{
    status st = coll_mpi_status(
        MPI_Isend(stage, (int)packed, MPI_BYTE, (int)i, COLL_TAG_HEAD, g.comm, &lane->send_head),
        "MPI_Isend", err);

    if (st == ST_OK && bytes > COLL_INLINE_BYTES) {
        ASSERT(bytes <= BODY_BYTES_MAX);
        st = coll_mpi_status(
            MPI_Isend(data, (int)bytes, MPI_BYTE, (int)i, COLL_TAG_BODY, g.comm, &lane->send_body),
            "MPI_Isend", err);
    }
    return st;
}

/* Wait for the head, check it, then receive the payload: *got_p is in the stage (inline) or
 * `into`. */
static status recv_finish(struct coll_mpi *m, struct group g, struct coll_lane *lane,
                          const unsigned char *stage, uint32_t i, const struct coll_head *mine,
                          void *into, size_t bytes, const void **got_p, struct err *err)
{
    const char *what = op_name(mine->op);
    const uint32_t peer = g.first_rank + i;
    struct coll_head theirs;
    MPI_Status result;
    int n = 0;
    status st = coll_mpi_wait(m, &lane->recv_head, what, peer, &result, err);

    if (st != ST_OK) {
        return st;
    }
    MPI_Get_count(&result, MPI_BYTE, &n);
    if ((size_t)n < sizeof(theirs)) {
        return err_set(err, ST_ERR_PROTO, "%s: a message of %d bytes from rank %u has no head",
                       what, n, peer);
    }
    memcpy(&theirs, stage, sizeof(theirs));
    st = check_head(m, mine, &theirs, peer, err);
    if (st != ST_OK) {
        return st;
    }
    if ((size_t)n != sizeof(theirs) + (bytes > COLL_INLINE_BYTES ? 0 : bytes)) {
        return err_set(err, ST_ERR_PROTO, "%s: rank %u sent %d bytes, %zu were due", what, peer, n,
                       sizeof(theirs) + bytes);
    }
    if (bytes <= COLL_INLINE_BYTES) {
        *got_p = stage + sizeof(theirs);
        return ST_OK;
    }
    st = coll_mpi_status(
        MPI_Irecv(into, (int)bytes, MPI_BYTE, (int)i, COLL_TAG_BODY, g.comm, &lane->recv_body),
        "MPI_Irecv", err);
    if (st == ST_OK) {
        st = coll_mpi_wait(m, &lane->recv_body, what, peer, NULL, err);
    }
    if (st == ST_OK) {
        *got_p = into;
    }
    return st;
}

static status send_finish(struct coll_mpi *m, struct group g, struct coll_lane *lane, uint32_t i,
                          uint32_t op, struct err *err)
{
    status st = ST_OK;

    if (lane->send_head != MPI_REQUEST_NULL) {
        st = coll_mpi_wait(m, &lane->send_head, op_name(op), g.first_rank + i, NULL, err);
    }
    if (st == ST_OK && lane->send_body != MPI_REQUEST_NULL) {
        st = coll_mpi_wait(m, &lane->send_body, op_name(op), g.first_rank + i, NULL, err);
    }
    return st;
}

/* ---- begin and end of every collective ---- */

/* Tell whoever watches. On failure nothing is told any more: the last exchange is of interest. */
static void tell(const struct coll_mpi *m, const struct coll_head *head)
{
    static const enum coll_op ops[] = { COLL_OP_NONE, COLL_OP_SUM, COLL_OP_GATHER, COLL_OP_BCAST,
                                        COLL_OP_BARRIER };

    coll_watch_begin(m->base.watch, ops[head->op], head->round);
}

static status begin(const struct coll_mpi *m, uint32_t op, struct err *err)
{
    if (m->broken) {
        return err_set(err, ST_ERR_PEER, "%s: this replica's exchange failed before: %s",
                       op_name(op), m->broken_text);
    }
    return ST_OK;
}

/* After a failure receives are withdrawn (their buffers may be the caller's); sends cannot be. */
static status end(struct coll_mpi *m, status st, struct err *err)
{
    if (st == ST_OK) {
        coll_watch_end(m->base.watch);
        return ST_OK;
    }
    m->broken = true;
    snprintf(m->broken_text, sizeof(m->broken_text), "%.*s", (int)sizeof(m->broken_text) - 1,
             err ? err->text : status_name(st));
    for (uint32_t i = 0; i < m->base.n_ranks; i++) {
        MPI_Request *const recvs[] = { &m->lanes[i].recv_head, &m->lanes[i].recv_body };

        for (size_t j = 0; j < ARRAY_LEN(recvs); j++) {
            if (*recvs[j] != MPI_REQUEST_NULL) {
                MPI_Cancel(recvs[j]);
                MPI_Request_free(recvs[j]);
            }
        }
    }
    return st;
}

/* ---- all_reduce_tree ---- */

struct exchange {
    uint32_t peer; /* slice */
    const float *out;
    size_t n_out; /* floats */
    float *into;  /* used when n_in is too large to come inline */
    size_t n_in;
};

static status exchange(struct coll_mpi *m, const struct coll_head *head, const struct exchange *x,
                       const float **got_p, struct err *err)
{
    const struct group g = stage_of(m);
    struct coll_lane *lane = &m->lanes[x->peer];
    const size_t out_bytes = x->n_out * sizeof(float);
    const void *got = NULL;
    status st = recv_post(g, lane, lane->stage, x->peer, err);

    if (st == ST_OK) {
        const size_t packed = pack(m->stage_send, head, x->out, out_bytes);

        st = send_post(g, lane, m->stage_send, packed, x->peer, x->out, out_bytes, err);
    }
    if (st == ST_OK) {
        st = recv_finish(m, g, lane, lane->stage, x->peer, head, x->into, x->n_in * sizeof(float),
                         &got, err);
    }
    if (st == ST_OK) {
        st = send_finish(m, g, lane, x->peer, head->op, err);
        *got_p = got;
    }
    return st;
}

static void add_in_order(const struct coll_mpi *m, uint32_t bit, float *x, const float *got,
                         size_t n)
{
    if (m->base.slice & bit) {
        coll_add(x, got, x, n);
    } else {
        coll_add(x, x, got, n);
    }
}

static status reduce_whole(struct coll_mpi *m, const struct coll_head *head, float *x, size_t n,
                           struct err *err)
{
    for (uint32_t bit = 1; bit < m->base.tp; bit <<= 1) {
        const struct exchange e = { m->base.slice ^ bit, x, n, m->tmp, n };
        const float *got = NULL;
        const status st = exchange(m, head, &e, &got, err);

        if (st != ST_OK) {
            return st;
        }
        add_in_order(m, bit, x, got, n);
    }
    return ST_OK;
}

struct segment {
    size_t begin, end;
};

/* Which half of `s` this slice keeps at the level of `bit`. */
static struct segment half(struct segment s, bool upper)
{
    const size_t mid = s.begin + (s.end - s.begin) / 2;

    return upper ? (struct segment){ mid, s.end } : (struct segment){ s.begin, mid };
}

static status reduce_split(struct coll_mpi *m, const struct coll_head *head, float *x, size_t n,
                           struct err *err)
{
    struct segment at[LEVELS_MAX + 1] = { { 0, n } };
    uint32_t level = 0;
    const float *got = NULL;

    for (uint32_t bit = 1; bit < m->base.tp; bit <<= 1, level++) {
        const bool upper = (m->base.slice & bit) != 0;
        const struct segment keep = half(at[level], upper), give = half(at[level], !upper);
        const struct exchange e = { m->base.slice ^ bit, x + give.begin, give.end - give.begin,
                                    m->tmp, keep.end - keep.begin };
        const status st = exchange(m, head, &e, &got, err);

        if (st != ST_OK) {
            return st;
        }
        add_in_order(m, bit, x + keep.begin, got, keep.end - keep.begin);
        at[level + 1] = keep;
    }
    for (uint32_t bit = m->base.tp >> 1; bit > 0; bit >>= 1, level--) {
        const bool upper = (m->base.slice & bit) != 0;
        const struct segment have = at[level], get = half(at[level - 1], !upper);
        const struct exchange e = { m->base.slice ^ bit, x + have.begin, have.end - have.begin,
                                    x + get.begin, get.end - get.begin };
        const status st = exchange(m, head, &e, &got, err);

        if (st != ST_OK) {
            return st;
        }
        if (got != x + get.begin && get.end > get.begin) {
            memcpy(x + get.begin, got, (get.end - get.begin) * sizeof(float));
        }
    }
    return ST_OK;
}

static status tmp_room(struct coll_mpi *m, size_t n, struct err *err)
{
    float *tmp;

    if (n <= m->tmp_floats) {
        return ST_OK;
    }
    tmp = realloc(m->tmp, n * sizeof(float));
    if (!tmp) {
        return err_set(err, ST_ERR_NOMEM, "no memory to receive a sum of %zu floats", n);
    }
    m->tmp = tmp;
    m->tmp_floats = n;
    return ST_OK;
}

/* In blocks of 16 MiB, which bounds `tmp`; elements do not meet, so blocks change no bit. */
status coll_mpi_all_reduce_tree(struct coll *c, struct kern_stream *s, float *x, size_t n,
                                uint64_t stamp, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    const bool split = n * sizeof(float) >= c->split_bytes;
    status st = begin(m, COLL_REDUCE, err);

    (void)s;
    if (st == ST_OK && n * sizeof(float) > COLL_INLINE_BYTES && c->tp > 1) {
        st = tmp_room(m, MIN(n, (size_t)BLOCK_FLOATS), err);
    }
    if (st != ST_OK || c->tp == 1) {
        return st;
    }
    const struct coll_head head = {
        .op = COLL_REDUCE, .stamp = stamp, .bytes = n * sizeof(float), .round = ++m->round_group
    };

    tell(m, &head);
    for (size_t at = 0; st == ST_OK && at < MAX(n, (size_t)1); at += BLOCK_FLOATS) {
        const size_t len = MIN(n - at, (size_t)BLOCK_FLOATS);

        st = split ? reduce_split(m, &head, x + at, len, err)
                   : reduce_whole(m, &head, x + at, len, err);
    }
    return end(m, st, err);
}

/* ---- all_gather ---- */

static status gather(struct coll_mpi *m, const struct coll_head *head, const void *mine,
                     size_t bytes, unsigned char *all, struct err *err)
{
    const struct group g = stage_of(m);
    const uint32_t tp = m->base.tp, me = m->base.slice;
    const size_t packed = pack(m->stage_send, head, mine, bytes);
    status st = ST_OK;

    for (uint32_t k = 1; st == ST_OK && k < tp; k++) {
        const uint32_t i = (me + k) % tp;

        st = recv_post(g, &m->lanes[i], m->lanes[i].stage, i, err);
    }
    for (uint32_t k = 1; st == ST_OK && k < tp; k++) { /* not all to slice 0 first */
        const uint32_t i = (me + k) % tp;

        st = send_post(g, &m->lanes[i], m->stage_send, packed, i, mine, bytes, err);
    }
    for (uint32_t k = 1; st == ST_OK && k < tp; k++) {
        const uint32_t i = (me + tp - k) % tp;
        const void *got = NULL;

        st = recv_finish(m, g, &m->lanes[i], m->lanes[i].stage, i, head, all + i * bytes, bytes,
                         &got, err);
        if (st == ST_OK && bytes > 0 && got != all + i * bytes) {
            memcpy(all + i * bytes, got, bytes);
        }
    }
    for (uint32_t k = 1; st == ST_OK && k < tp; k++) {
        const uint32_t i = (me + k) % tp;

        st = send_finish(m, g, &m->lanes[i], i, head->op, err);
    }
    return st;
}

status coll_mpi_all_gather(struct coll *c, struct kern_stream *s, const void *mine, size_t bytes,
                           void *all, uint64_t stamp, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    status st = begin(m, COLL_GATHER, err);

    (void)s;
    if (st == ST_OK && bytes > BODY_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "all_gather of %zu bytes a slice, at most %d", bytes,
                       BODY_BYTES_MAX);
    }
    if (st != ST_OK) {
        return st;
    }
    if (bytes > 0) {
        memmove((char *)all + c->slice * bytes, mine, bytes);
    }
    if (c->tp == 1) {
        return ST_OK;
    }
    const struct coll_head head = {
        .op = COLL_GATHER, .stamp = stamp, .bytes = bytes, .round = ++m->round_group
    };

    tell(m, &head);
    return end(m, gather(m, &head, (char *)all + c->slice * bytes, bytes, all, err), err);
}

/* ---- bcast ---- */

/* Ranks relative to root: v's parent is v without its highest bit, its children are v + 2^k for
 * 2^k > v. */
static status bcast_tree(struct coll_mpi *m, const struct coll_head *head, void *data, size_t bytes,
                         struct err *err)
{
    const struct group g = world_of(m);
    const uint32_t n = m->base.n_ranks, root = head->root;
    const uint32_t v = (m->base.rank + n - root) % n;
    uint32_t bit = 1;
    status st = ST_OK;

    while (bit <= v) {
        bit <<= 1;
    }
    if (v > 0) {
        const uint32_t parent = (v - (bit >> 1) + root) % n;
        struct coll_lane *lane = &m->lanes[parent];
        const void *got = NULL;

        st = recv_post(g, lane, m->stage_world, parent, err);
        if (st == ST_OK) {
            st = recv_finish(m, g, lane, m->stage_world, parent, head, data, bytes, &got, err);
        }
        if (st == ST_OK && bytes > 0 && got != data) {
            memcpy(data, got, bytes);
        }
    }
    if (st == ST_OK && v + bit < n) {
        const size_t packed = pack(m->stage_send, head, data, bytes);

        for (uint32_t b = bit; st == ST_OK && v + b < n; b <<= 1) {
            const uint32_t child = (v + b + root) % n;

            st = send_post(g, &m->lanes[child], m->stage_send, packed, child, data, bytes, err);
        }
        for (uint32_t b = bit; st == ST_OK && v + b < n; b <<= 1) {
            const uint32_t child = (v + b + root) % n;

            st = send_finish(m, g, &m->lanes[child], child, head->op, err);
        }
    }
    return st;
}

status coll_mpi_group_bcast(struct coll *c, void *data, size_t bytes, uint32_t root,
                            struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    status st = begin(m, COLL_BCAST, err);

    if (st != ST_OK) {
        return st;
    }
    if (root >= c->n_ranks || bytes > BODY_BYTES_MAX) {
        return err_set(err, ST_ERR_ARG, "bcast: root %u of a replica of %u, %zu bytes (at most %d)",
                       root, c->n_ranks, bytes, BODY_BYTES_MAX);
    }
    const struct coll_head head = {
        .op = COLL_BCAST, .root = root, .bytes = bytes, .round = ++m->round_world
    };

    tell(m, &head);
    return end(m, bcast_tree(m, &head, data, bytes, err), err);
}

/* ---- barrier ---- */

static status barrier_leaf(struct coll_mpi *m, const struct coll_head *head, struct err *err)
{
    const struct group g = world_of(m);
    struct coll_lane *lane = &m->lanes[0];
    const void *got = NULL;
    status st = recv_post(g, lane, m->stage_world, 0, err);

    lane->head = *head;
    if (st == ST_OK) {
        st = send_post(g, lane, (const unsigned char *)&lane->head, sizeof(*head), 0, NULL, 0, err);
    }
    if (st == ST_OK) {
        st = recv_finish(m, g, lane, m->stage_world, 0, head, NULL, 0, &got, err);
    }
    return st == ST_OK ? send_finish(m, g, lane, 0, head->op, err) : st;
}

/* Append to the deadline's sentence every further rank whose message has not come. */
static void name_missing(struct coll_mpi *m, uint32_t first, struct err *err)
{
    char names[160] = "";
    size_t len = 0;

    for (uint32_t i = first; i < m->base.n_ranks && len < sizeof(names) - 16; i++) {
        int here = 0;

        MPI_Iprobe((int)i, COLL_TAG_HEAD, m->world, &here, MPI_STATUS_IGNORE);
        if (!here) {
            len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%u", len ? ", " : "", i);
        }
    }
    if (err && len > 0) {
        err_set(err, ST_ERR_DEADLINE, "barrier: rank %s did not come within %.3f s", names,
                (double)m->base.timeout_ns / (double)NS_PER_S);
    }
}

static status barrier_root(struct coll_mpi *m, struct coll_head *head, struct err *err)
{
    const struct group g = world_of(m);
    const uint32_t n = m->base.n_ranks;
    status st = ST_OK;

    for (uint32_t i = 1; st == ST_OK && i < n; i++) {
        struct coll_lane *lane = &m->lanes[i];
        const void *got = NULL;

        st = recv_post(g, lane, m->stage_world, i, err);
        if (st == ST_OK) {
            st = recv_finish(m, g, lane, m->stage_world, i, head, NULL, 0, &got, err);
        }
        if (st == ST_ERR_DEADLINE) {
            /* This one was posted: withdraw it, so that the probe would see its message. */
            MPI_Cancel(&lane->recv_head);
            MPI_Request_free(&lane->recv_head);
            name_missing(m, i, err);
        }
    }
    for (uint32_t i = 1; st == ST_OK && i < n; i++) {
        m->lanes[i].head = *head;
        st = send_post(g, &m->lanes[i], (const unsigned char *)&m->lanes[i].head, sizeof(*head), i,
                       NULL, 0, err);
    }
    for (uint32_t i = 1; st == ST_OK && i < n; i++) {
        st = send_finish(m, g, &m->lanes[i], i, head->op, err);
    }
    return st;
}

status coll_mpi_barrier(struct coll *c, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    status st = begin(m, COLL_BARRIER, err);

    if (st != ST_OK) {
        return st;
    }
    struct coll_head head = { .op = COLL_BARRIER, .round = ++m->round_world };

    tell(m, &head);
    return end(m, c->rank == 0 ? barrier_root(m, &head, err) : barrier_leaf(m, &head, err), err);
}
