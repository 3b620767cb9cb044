/* cluster/coll_mpi.c - MPI in host memory: the world, waiting, send and receive.
 *
 * No call blocks inside MPI (init, fini and the making of communicators aside): requests are
 * started and polled, because a rank that waits inside MPI can neither keep a deadline nor hand its
 * core to the rank it waits for. Open MPI 4 reports no lost peer (the job is killed as a whole), so
 * errors returned here are mostly our own mistakes and truncated messages. */
#include "cluster/coll_mpi.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SPLIT_BYTES = 64 * 1024, TP_MAX = 256 };

static struct {
    bool up;
    uint32_t rank, n_ranks, n_local; /* n_local: ranks of this job on this host */
    struct coll_mpi *left;           /* destroyed with requests in flight: MPI may write there */
} world;

/* ---- the world ---- */

status coll_mpi_status(int code, const char *what, struct err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int len = 0, class = MPI_ERR_OTHER;
    status st = ST_ERR_PEER;

    if (code == MPI_SUCCESS) {
        return ST_OK;
    }
    MPI_Error_class(code, &class);
    MPI_Error_string(code, text, &len);
    if (class == MPI_ERR_TRUNCATE) {
        st = ST_ERR_PROTO;
    } else if (class == MPI_ERR_NO_MEM) {
        st = ST_ERR_NOMEM;
    } else if (class == MPI_ERR_ARG || class == MPI_ERR_BUFFER || class == MPI_ERR_COUNT ||
               class == MPI_ERR_TAG || class == MPI_ERR_RANK || class == MPI_ERR_COMM) {
        st = ST_ERR_INTERNAL;
    }
    return err_set(err, st, "%s: %s", what, text);
}

/* "Open MPI v4.1.4, package: Debian ..." -> "Open MPI 4.1.4" */
static void library_name(char *out, size_t out_bytes)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len = 0;
    size_t at = 0;

    MPI_Get_library_version(text, &len);
    for (const char *p = text; *p && *p != ',' && *p != '\n' && at + 1 < out_bytes; p++) {
        const bool prefix = *p == 'v' && p > text && p[-1] == ' ' && p[1] >= '0' && p[1] <= '9';

        if (!prefix) {
            out[at++] = *p;
        }
    }
    out[at] = '\0';
}

static status count_local(struct err *err)
{
    MPI_Comm local;
    int n = 1;
    status st = coll_mpi_status(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local),
        "MPI_Comm_split_type", err);

    if (st == ST_OK) {
        MPI_Comm_size(local, &n);
        MPI_Comm_free(&local);
        world.n_local = (uint32_t)n;
    }
    return st;
}

status coll_mpi_init(struct coll_mpi_world *world_p, struct err *err)
{
    struct coll_mpi_world w = { 0 };
    int provided = MPI_THREAD_SINGLE, was = 0, rank = 0, n = 0;
    status st;

    MPI_Initialized(&was);
    if (was) {
        return err_set(err, ST_ERR_INTERNAL, "MPI was started before in this process");
    }
    st = coll_mpi_status(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided),
                         "MPI_Init_thread", err);
    if (st != ST_OK) {
        return st;
    }
    library_name(w.library, sizeof(w.library));
    if (provided < MPI_THREAD_FUNNELED) {
        err_set(err, ST_ERR_UNSUPPORTED,
                "%s gives thread level %d, MPI_THREAD_FUNNELED (%d) is needed", w.library, provided,
                MPI_THREAD_FUNNELED);
        MPI_Finalize();
        return ST_ERR_UNSUPPORTED;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    world.rank = w.rank = (uint32_t)rank;
    world.n_ranks = w.n_ranks = (uint32_t)n;
    if (gethostname(w.host, sizeof(w.host) - 1) != 0) {
        snprintf(w.host, sizeof(w.host), "unknown");
    }
    st = count_local(err);
    if (st != ST_OK) {
        MPI_Finalize();
        return st;
    }
    world.up = true;
    *world_p = w;
    return ST_OK;
}

void coll_mpi_fini(void)
{
    if (world.up) {
        world.up = false;
        MPI_Finalize();
    }
}

void coll_mpi_abort(int code)
{
    if (world.up) {
        MPI_Abort(MPI_COMM_WORLD, code);
    }
    _exit(code);
}

status coll_mpi_bcast(void *data, size_t bytes, uint32_t root, struct err *err)
{
    const struct coll forever = { .timeout_ns = CLOCK_NEVER };

    if (!world.up) {
        return err_set(err, ST_ERR_INTERNAL, "broadcast outside of MPI's life");
    }
    if (root >= world.n_ranks) {
        return err_set(err, ST_ERR_ARG, "bcast: root %u of %u ranks", root, world.n_ranks);
    }
    for (size_t at = 0; at < bytes;) {
        const size_t part = MIN(bytes - at, (size_t)1 << 28);
        struct coll_waiter w;
        MPI_Request request;
        int done = 0;
        status st = coll_mpi_status(
            MPI_Ibcast((char *)data + at, (int)part, MPI_BYTE, (int)root, MPI_COMM_WORLD, &request),
            "MPI_Ibcast", err);

        coll_waiter_init(&w, &forever, coll_spin_ns(world.n_local), NULL);
        while (st == ST_OK && !done) {
            st = coll_mpi_status(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Ibcast", err);
            if (st == ST_OK && !done) {
                (void)coll_waiter_step(&w);
            }
        }
        if (st != ST_OK) {
            return st;
        }
        at += part;
    }
    return ST_OK;
}

/* ---- waiting ---- */

status coll_mpi_wait(struct coll_mpi *m, MPI_Request *request, const char *what, uint32_t peer,
                     MPI_Status *status_p, struct err *err)
{
    struct coll_waiter w;
    MPI_Status result;
    int done = 0;

    coll_waiter_init(&w, &m->base, m->spin_ns, NULL);
    w.peer = peer;
    for (;;) {
        const int code = MPI_Test(request, &done, &result);
        status st;

        if (code != MPI_SUCCESS) {
            char text[96];

            snprintf(text, sizeof(text), "%s, rank %u", what, peer);
            return coll_mpi_status(code, text, err);
        }
        if (done) {
            if (status_p) {
                *status_p = result;
            }
            return ST_OK;
        }
        st = coll_waiter_step(&w);
        if (st == ST_ERR_CANCELLED) {
            return err_set(err, st, "%s: given up on request while waiting for rank %u", what,
                           peer);
        }
        if (st != ST_OK) {
            return err_set(err, st, "%s: rank %u did not come within %.3f s", what, peer,
                           (double)m->base.timeout_ns / (double)NS_PER_S);
        }
    }
}

/* ---- send and receive ---- */

static status post(struct coll *c, bool is_send, uint32_t peer, uint32_t tag, void *data,
                   size_t bytes, struct coll_req *req_p, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    const char *what = is_send ? "send" : "receive";
    struct coll_slot *slot;
    uint32_t i = 0;
    int code;
    status st;

    if (!world.up) {
        return err_set(err, ST_ERR_INTERNAL, "%s outside of MPI's life", what);
    }
    if (peer >= c->n_ranks || tag > INT_MAX || bytes > INT_MAX) {
        return err_set(err, ST_ERR_ARG,
                       "%s: rank %u of %u, tag %u, %zu bytes; tag and bytes at most %d", what, peer,
                       c->n_ranks, tag, bytes, INT_MAX);
    }
    while (i < COLL_REQS_MAX && m->slots[i].used) {
        i++;
    }
    if (i == COLL_REQS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "rank %u has %d sends and receives pending, the limit",
                       c->rank, COLL_REQS_MAX);
    }
    slot = &m->slots[i];
    code =
        is_send
            ? MPI_Isend(data, (int)bytes, MPI_BYTE, (int)peer, (int)tag, m->mail, &slot->request)
            : MPI_Irecv(data, (int)bytes, MPI_BYTE, (int)peer, (int)tag, m->mail, &slot->request);
    st = coll_mpi_status(code, what, err);
    if (st == ST_OK) {
        slot->used = true;
        slot->is_send = is_send;
        slot->peer = peer;
        slot->tag = tag;
        slot->bytes = bytes;
        req_p->slot = i;
    }
    return st;
}

static status mpi_send_start(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                             const void *data, size_t bytes, struct coll_req *req_p,
                             struct err *err)
{
    (void)s;
    return post(c, true, to, tag, (void *)(uintptr_t)data, bytes, req_p, err);
}

static status mpi_recv_start(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                             void *data, size_t bytes, struct coll_req *req_p, struct err *err)
{
    (void)s;
    return post(c, false, from, tag, data, bytes, req_p, err);
}

static status short_message(const struct coll_slot *slot, int n, struct err *err)
{
    if (n < 0) {
        return err_set(err, ST_ERR_PROTO,
                       "receive of %zu bytes from rank %u, tag %u: the message is longer",
                       slot->bytes, slot->peer, slot->tag);
    }
    return err_set(err, ST_ERR_PROTO,
                   "receive of %zu bytes from rank %u, tag %u: the message has %d bytes",
                   slot->bytes, slot->peer, slot->tag, n);
}

static status mpi_test(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    struct coll_slot *slot;
    MPI_Status result;
    int done = 0, code, n = 0;
    status st;

    ASSERT(req.slot < COLL_REQS_MAX && m->slots[req.slot].used);
    if (!world.up) {
        return err_set(err, ST_ERR_INTERNAL, "test outside of MPI's life");
    }
    slot = &m->slots[req.slot];
    code = MPI_Test(&slot->request, &done, &result);
    if (code == MPI_SUCCESS && !done) {
        return ST_BUSY;
    }
    slot->used = false;
    st = coll_mpi_status(code, slot->is_send ? "send" : "receive", err);
    if (st == ST_ERR_PROTO) {
        return short_message(slot, -1, err);
    }
    if (st != ST_OK || slot->is_send) {
        return st;
    }
    MPI_Get_count(&result, MPI_BYTE, &n);
    return (size_t)n == slot->bytes ? ST_OK : short_message(slot, n, err);
}

static status wait_slot(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    struct coll_waiter w;
    status st;

    coll_waiter_init(&w, c, m->spin_ns, NULL);
    w.peer = m->slots[req.slot].peer;
    while ((st = mpi_test(c, req, err)) == ST_BUSY) {
        const struct coll_slot *slot = &m->slots[req.slot];
        const char *what = slot->is_send ? "send to" : "receive from";

        st = coll_waiter_step(&w);
        if (st == ST_ERR_CANCELLED) {
            return err_set(err, st, "%s rank %u, tag %u: given up on request", what, slot->peer,
                           slot->tag);
        }
        if (st != ST_OK) {
            return err_set(err, st, "%s rank %u, tag %u: nothing from rank %u within %.3f s", what,
                           slot->peer, slot->tag, slot->peer,
                           (double)c->timeout_ns / (double)NS_PER_S);
        }
    }
    return st;
}

static status mpi_wait(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);

    ASSERT(req.slot < COLL_REQS_MAX && m->slots[req.slot].used);
    coll_watch_begin(c->watch, m->slots[req.slot].is_send ? COLL_OP_SEND : COLL_OP_RECV,
                     ++m->n_waits);
    const status st = wait_slot(c, req, err);
    if (st == ST_OK) { /* else the last exchange is of interest */
        coll_watch_end(c->watch);
    }
    return st;
}

static status mpi_probe(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                        struct err *err)
{
    struct coll_mpi *m = coll_mpi_of(c);
    MPI_Status result;
    int here = 0, n = 0;
    status st;

    if (!world.up || from >= c->n_ranks || tag > INT_MAX) {
        return err_set(err, world.up ? ST_ERR_ARG : ST_ERR_INTERNAL, "probe: rank %u of %u, tag %u",
                       from, c->n_ranks, tag);
    }
    st = coll_mpi_status(MPI_Iprobe((int)from, (int)tag, m->mail, &here, &result), "probe", err);
    if (st != ST_OK || !here) {
        return st != ST_OK ? st : ST_BUSY;
    }
    MPI_Get_count(&result, MPI_BYTE, &n);
    *bytes_p = (size_t)n;
    return ST_OK;
}

/* ---- life ---- */

static bool idle(const struct coll_mpi *m)
{
    for (uint32_t i = 0; i < COLL_REQS_MAX; i++) {
        if (m->slots[i].used) {
            return false;
        }
    }
    return !m->broken;
}

static void free_comm(MPI_Comm *comm)
{
    if (*comm != MPI_COMM_NULL) {
        MPI_Comm_free(comm);
    }
}

/* With requests in flight neither the communicators nor the buffers may go: MPI still writes
 * there. The process is about to end anyway, so they are left to it. */
static void mpi_destroy(struct coll *c)
{
    struct coll_mpi *m = coll_mpi_of(c);

    if (!idle(m)) {
        m->next_left = world.left;
        world.left = m;
        return;
    }
    if (world.up) {
        free_comm(&m->group);
        free_comm(&m->world);
        free_comm(&m->mail);
    }
    free(m->lanes);
    free(m->memory);
    free(m->tmp);
    free(m);
}

static const struct coll_ops mpi_ops = {
    .name = "mpi",
    .all_reduce_tree = coll_mpi_all_reduce_tree,
    .all_gather = coll_mpi_all_gather,
    .send_start = mpi_send_start,
    .recv_start = mpi_recv_start,
    .test = mpi_test,
    .wait = mpi_wait,
    .probe = mpi_probe,
    .barrier = coll_mpi_barrier,
    .bcast = coll_mpi_group_bcast,
    .destroy = mpi_destroy,
};

static status make_lanes(struct coll_mpi *m, struct err *err)
{
    const uint32_t tp = m->base.tp, n_lanes = m->base.n_ranks;
    const size_t bytes = ((size_t)tp + 2) * COLL_STAGE_BYTES;

    m->lanes = calloc(n_lanes, sizeof(*m->lanes));
    m->memory = calloc(1, bytes);
    if (!m->lanes || !m->memory) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the message buffers: %zu bytes", bytes);
    }
    m->stage_send = m->memory + (size_t)tp * COLL_STAGE_BYTES;
    m->stage_world = m->stage_send + COLL_STAGE_BYTES;
    for (uint32_t i = 0; i < n_lanes; i++) {
        struct coll_lane *lane = &m->lanes[i];

        lane->stage = i < tp ? m->memory + (size_t)i * COLL_STAGE_BYTES : NULL;
        lane->recv_head = lane->recv_body = MPI_REQUEST_NULL;
        lane->send_head = lane->send_body = MPI_REQUEST_NULL;
    }
    return ST_OK;
}

static status make_comms(struct coll_mpi *m, struct err *err)
{
    const int stage = (int)m->base.stage, slice = (int)m->base.slice;
    status st = coll_mpi_status(MPI_Comm_split(MPI_COMM_WORLD, stage, slice, &m->group),
                                "MPI_Comm_split", err);

    if (st == ST_OK) {
        st = coll_mpi_status(MPI_Comm_dup(MPI_COMM_WORLD, &m->world), "MPI_Comm_dup", err);
    }
    if (st == ST_OK) {
        st = coll_mpi_status(MPI_Comm_dup(MPI_COMM_WORLD, &m->mail), "MPI_Comm_dup", err);
    }
    if (st == ST_OK) {
        MPI_Comm_set_errhandler(m->group, MPI_ERRORS_RETURN);
        MPI_Comm_set_errhandler(m->world, MPI_ERRORS_RETURN);
        MPI_Comm_set_errhandler(m->mail, MPI_ERRORS_RETURN);
    }
    return st;
}

status coll_mpi_create(struct coll_shape shape, struct coll **coll_p, struct err *err)
{
    const uint32_t tp = shape.tp, pp = shape.pp;
    struct coll_mpi *m;
    status st;

    if (!world.up) {
        return err_set(err, ST_ERR_INTERNAL, "collectives outside of MPI's life");
    }
    if (tp == 0 || (tp & (tp - 1)) != 0 || tp > TP_MAX || pp == 0) {
        return err_set(err, ST_ERR_ARG,
                       "%u slices by %u stages: slices are a power of two up to %d", tp, pp,
                       TP_MAX);
    }
    if ((uint64_t)tp * pp != world.n_ranks) {
        return err_set(err, ST_ERR_ARG,
                       "the plan has %u slices by %u stages = %llu ranks, but this MPI job has %u",
                       tp, pp, (unsigned long long)tp * pp, world.n_ranks);
    }
    m = calloc(1, sizeof(*m));
    if (!m) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %zu bytes", sizeof(*m));
    }
    m->group = m->world = m->mail = MPI_COMM_NULL;
    m->spin_ns = coll_spin_ns(world.n_local);
    m->base = (struct coll){ .ops = &mpi_ops,
                             .rank = world.rank,
                             .n_ranks = world.n_ranks,
                             .tp = tp,
                             .pp = pp,
                             .stage = world.rank / tp,
                             .slice = world.rank % tp,
                             .timeout_ns = 30 * NS_PER_S,
                             .split_bytes = SPLIT_BYTES };
    st = make_lanes(m, err);
    if (st == ST_OK) {
        st = make_comms(m, err);
    }
    if (st != ST_OK) {
        mpi_destroy(&m->base);
        return st;
    }
    *coll_p = &m->base;
    return ST_OK;
}
