/* cluster/coll_nccl.c - see coll_device.h: NCCL between devices. Sums are coll_nccl_sum.c.
 *
 * Two communicators: the slices of a stage, and the ranks of one slice over all stages (residuals).
 * All is queued on one stream in the same order on all ranks, which is what NCCL asks for where a
 * device has two. Non-blocking: every call is polled until NCCL has queued it, with the coll's
 * deadline and abort flag. A failure aborts both communicators at once, so that kernels which wait
 * for a peer end and the stream drains. NCCL compares no stamps: what the slices have queued for a
 * step is compared by their hosts, when it is queued and before anybody waits for it (agree). */
#include "cluster/coll_nccl.h"

#include "cluster/coll_wait.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From here on all-to-all, below all-gather: tp - 3 times the message at some 300 GB/s against one
 * more exchange of some 10 us. Reckoned, not measured. */
enum { SPLIT_BYTES = 512 * 1024 };

/* The request of everything that is queued on the stream. */
enum { QUEUED = COLL_REQS_MAX };

/* ---- failure ---- */

/* Both communicators go at once: a kernel that waits on one holds up the other's. */
status coll_nccl_give_up(struct coll_nccl *d, status st, struct err *err)
{
    void **const comms[] = { &d->group, &d->column };

    if (!d->broken) {
        d->broken = true;
        if (d->peers != NULL) {
            d->dev.peers_abort(d->peers);
        }
        snprintf(d->broken_text, sizeof(d->broken_text), "%.*s", (int)sizeof(d->broken_text) - 1,
                 err != NULL ? err->text : status_name(st));
        for (size_t i = 0; i < ARRAY_LEN(comms); i++) {
            if (*comms[i] != NULL) {
                d->api->comm_abort(*comms[i]);
                *comms[i] = NULL;
            }
        }
    }
    return st;
}

status coll_nccl_check(const struct coll_nccl *d, const char *what, struct err *err)
{
    return d->broken ? err_set(err, ST_ERR_PEER, "%s: this replica's exchange failed before: %s",
                               what, d->broken_text)
                     : ST_OK;
}

status coll_nccl_failed(struct coll_nccl *d, void *comm, const char *what, int code,
                        struct err *err)
{
    return coll_nccl_give_up(d,
                             err_set(err, ST_ERR_PEER, "%s on rank %u: NCCL: %s (%d) %.200s", what,
                                     d->base.rank, d->api->error_text(code), code,
                                     comm != NULL ? d->api->last_error(comm) : ""),
                             err);
}

static status waited(struct coll_nccl *d, const char *what, status st, struct err *err)
{
    if (st == ST_ERR_CANCELLED) {
        err_set(err, st, "%s on rank %u: given up on request", what, d->base.rank);
    } else {
        err_set(err, st, "%s on rank %u: the other ranks did not come within %.3f s", what,
                d->base.rank, (double)d->base.timeout_ns / (double)NS_PER_S);
    }
    return coll_nccl_give_up(d, st, err);
}

/* Until the call that answered `code` is queued. */
status coll_nccl_settle(struct coll_nccl *d, void *comm, int code, const char *what,
                        struct err *err)
{
    struct coll_waiter w;

    if (code == COLL_NCCL_OK || code == COLL_NCCL_BUSY) {
        code = d->api->comm_state(comm);
    }
    coll_waiter_init(&w, &d->base, 0, NULL);
    while (code == COLL_NCCL_BUSY) {
        const status st = coll_waiter_step(&w);
        if (st != ST_OK) {
            return waited(d, what, st, err);
        }
        code = d->api->comm_state(comm);
    }
    return code == COLL_NCCL_OK ? ST_OK : coll_nccl_failed(d, comm, what, code, err);
}

/* ---- send and receive: residuals, between the ranks of one slice ---- */

static status check_peer(const struct coll_nccl *d, const char *what, uint32_t peer,
                         struct err *err)
{
    if (peer >= d->base.n_ranks || peer % d->base.tp != d->base.slice || peer == d->base.rank) {
        return err_set(err, ST_ERR_ARG,
                       "%s of device memory: rank %u and rank %u are not of one slice (tp %u)",
                       what, d->base.rank, peer, d->base.tp);
    }
    return coll_nccl_check(d, what, err);
}

/* Tags are not NCCL's: between two ranks the order on their streams is what pairs messages. */
static status nccl_send_start(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                              const void *data, size_t bytes, struct coll_req *req_p,
                              struct err *err)
{
    struct coll_nccl *d = coll_nccl_of(c);
    struct coll *inner = coll_nccl_inner(d);

    if (s == NULL) {
        return inner->ops->send_start(inner, NULL, to, tag, data, bytes, req_p, err);
    }
    status st = check_peer(d, "send", to, err);
    if (st == ST_OK && bytes != 0) {
        const int code = d->api->send(data, bytes, to / c->tp, d->column, d->dev.raw);
        coll_nccl_note(d, "send", tag, bytes);
        st = coll_nccl_settle(d, d->column, code, "send", err);
    }
    if (st == ST_OK) {
        req_p->slot = QUEUED;
    }
    return st;
}

static status nccl_recv_start(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                              void *data, size_t bytes, struct coll_req *req_p, struct err *err)
{
    struct coll_nccl *d = coll_nccl_of(c);
    struct coll *inner = coll_nccl_inner(d);

    if (s == NULL) {
        return inner->ops->recv_start(inner, NULL, from, tag, data, bytes, req_p, err);
    }
    status st = check_peer(d, "receive", from, err);
    if (st == ST_OK && bytes != 0) {
        const int code = d->api->recv(data, bytes, from / c->tp, d->column, d->dev.raw);
        coll_nccl_note(d, "receive", tag, bytes);
        st = coll_nccl_settle(d, d->column, code, "receive", err);
    }
    if (st == ST_OK) {
        req_p->slot = QUEUED;
    }
    return st;
}

static status nccl_test(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll *inner = coll_nccl_inner(coll_nccl_of(c));
    return req.slot == QUEUED ? ST_OK : inner->ops->test(inner, req, err);
}

static status nccl_wait(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll *inner = coll_nccl_inner(coll_nccl_of(c));
    return req.slot == QUEUED ? ST_OK : inner->ops->wait(inner, req, err);
}

static status nccl_probe(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                         struct err *err)
{
    struct coll *inner = coll_nccl_inner(coll_nccl_of(c));
    return inner->ops->probe(inner, from, tag, bytes_p, err);
}

/* ---- whole replica ---- */

static status nccl_barrier(struct coll *c, struct err *err)
{
    struct coll *inner = coll_nccl_inner(coll_nccl_of(c));
    return inner->ops->barrier(inner, err);
}

static status nccl_bcast(struct coll *c, void *data, size_t bytes, uint32_t root, struct err *err)
{
    struct coll *inner = coll_nccl_inner(coll_nccl_of(c));
    return inner->ops->bcast(inner, data, bytes, root, err);
}

/* Errors of operations that are queued come out of comm_state. A lost peer shows there, or as
 * silence until the deadline. */
static status look(struct coll_nccl *d, struct err *err)
{
    void *const comms[] = { d->group, d->column };

    for (size_t i = 0; i < ARRAY_LEN(comms); i++) {
        const int code = comms[i] != NULL ? d->api->comm_state(comms[i]) : COLL_NCCL_OK;
        if (code != COLL_NCCL_OK && code != COLL_NCCL_BUSY) {
            return coll_nccl_failed(d, comms[i], "a queued exchange", code, err);
        }
    }
    return d->peers != NULL ? d->dev.peers_check(d->peers, err) : ST_OK;
}

static status nccl_sync(struct coll *c, struct kern_stream *s, uint32_t mark, struct err *err)
{
    struct coll_nccl *d = coll_nccl_of(c);
    struct coll_waiter w;
    status st = coll_nccl_check(d, "waiting for the device", err);

    if (st != ST_OK || d->dev.poll == NULL) {
        return st != ST_OK ? st : d->dev.sync(s, err);
    }
    coll_waiter_init(&w, c, 0, NULL);
    coll_watch_begin(c->watch, COLL_OP_DEVICE, ++d->n_syncs);
    while ((st = mark == COLL_MARK_ALL ? d->dev.poll(s, err) : d->dev.mark_poll(s, mark, err)) ==
           ST_BUSY) {
        st = look(d, err);
        if (st != ST_OK) {
            return coll_nccl_give_up(d, st, err);
        }
        st = coll_waiter_step(&w);
        if (st != ST_OK) {
            return waited(d, "waiting for the device", st, err);
        }
    }
    coll_watch_end(c->watch);
    st = st == ST_OK ? look(d, err) : st;
    return st == ST_OK ? ST_OK : coll_nccl_give_up(d, st, err);
}

/* ---- life ---- */

/* Finalised where all went well; all ranks come here then. */
static void end_comm(struct coll_nccl *d, void **comm)
{
    if (*comm == NULL) {
        return;
    }
    if (coll_nccl_settle(d, *comm, d->api->comm_finalize(*comm), "the end of a communicator",
                         NULL) == ST_OK) {
        d->api->comm_destroy(*comm);
    }
    *comm = NULL; /* else give_up has aborted it */
}

static void nccl_destroy(struct coll *c)
{
    struct coll_nccl *d = coll_nccl_of(c);

    coll_nccl_peers_close(d);
    end_comm(d, &d->column);
    end_comm(d, &d->group);
    free(d);
}

static const struct coll_ops nccl_ops = {
    .name = "nccl",
    .all_reduce_tree = coll_nccl_all_reduce_tree,
    .all_gather = coll_nccl_all_gather,
    .send_start = nccl_send_start,
    .recv_start = nccl_recv_start,
    .test = nccl_test,
    .wait = nccl_wait,
    .probe = nccl_probe,
    .barrier = nccl_barrier,
    .bcast = nccl_bcast,
    .sync = nccl_sync,
    .agree = coll_nccl_agree,
    .destroy = nccl_destroy,
};

/* An id that could not be made is all zero, so that nobody waits for the others in vain. */
static int make_id(struct coll_nccl *d, bool mine, unsigned char id[COLL_NCCL_ID_BYTES])
{
    memset(id, 0, COLL_NCCL_ID_BYTES);
    return mine ? d->api->unique_id(id) : COLL_NCCL_OK;
}

static status join(struct coll_nccl *d, void **comm_p, uint32_t n,
                   const unsigned char id[COLL_NCCL_ID_BYTES], uint32_t rank, const char *what,
                   struct err *err)
{
    static const unsigned char none[COLL_NCCL_ID_BYTES];

    if (memcmp(id, none, sizeof(none)) == 0) {
        return err_set(err, ST_ERR_PEER, "%s: NCCL made no id for the group of rank %u", what,
                       d->base.rank);
    }
    const int code = d->api->comm_init(comm_p, n, id, rank);
    return *comm_p == NULL ? coll_nccl_failed(d, NULL, what, code, err)
                           : coll_nccl_settle(d, *comm_p, code, what, err);
}

/* Slice 0 makes the id of its stage. */
static status join_group(struct coll_nccl *d, struct err *err)
{
    struct coll *inner = coll_nccl_inner(d);
    unsigned char id[COLL_NCCL_ID_BYTES];
    unsigned char *ids = calloc(d->base.tp, COLL_NCCL_ID_BYTES);

    if (ids == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for NCCL's ids");
    }
    (void)make_id(d, d->base.slice == 0, id);
    status st = inner->ops->all_gather(inner, NULL, id, sizeof(id), ids, 0, err);
    if (st == ST_OK) {
        st = join(d, &d->group, d->base.tp, ids, d->position, "joining the stage", err);
    }
    free(ids);
    return st;
}

/* Stage 0 makes the id of each slice. */
static status join_column(struct coll_nccl *d, struct err *err)
{
    struct coll *inner = coll_nccl_inner(d);
    unsigned char id[COLL_NCCL_ID_BYTES], mine[COLL_NCCL_ID_BYTES];
    status st = ST_OK;

    memset(mine, 0, sizeof(mine));
    for (uint32_t slice = 0; st == ST_OK && slice < d->base.tp; slice++) {
        (void)make_id(d, d->base.rank == slice, id);
        st = inner->ops->bcast(inner, id, sizeof(id), slice, err);
        if (slice == d->base.slice) {
            memcpy(mine, id, sizeof(mine));
        }
    }
    return st == ST_OK
               ? join(d, &d->column, d->base.pp, mine, d->base.stage, "joining the slice", err)
               : st;
}

status coll_nccl_create(struct coll *inner, const struct coll_nccl_config *config,
                        struct coll **coll_p, struct err *err)
{
    const struct coll_nccl_api *api = config->api;
    status st = api == NULL ? coll_nccl_api_load(&api, err) : ST_OK;

    if (st == ST_OK && (inner->tp > COLL_NCCL_TP_MAX ||
                        config->device.scratch_bytes <
                            (inner->tp > 1 ? inner->tp * COLL_ALIGN_FLOATS * sizeof(float) : 0))) {
        st = err_set(err, ST_ERR_ARG, "NCCL over %u slices (at most %d) with %zu bytes of scratch",
                     inner->tp, COLL_NCCL_TP_MAX, config->device.scratch_bytes);
    }
    if (st != ST_OK) {
        return st;
    }
    struct coll_nccl *d = calloc(1, sizeof(*d));
    if (d == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for collectives over NCCL");
    }
    d->base = *inner;
    d->base.ops = &nccl_ops;
    d->base.is_queued = true;
    d->base.split_bytes = SPLIT_BYTES;
    d->inner = inner;
    d->dev = config->device;
    d->api = api;
    d->free_order = config->free_order;
    d->position = coll_nccl_position(inner->tp, inner->slice);
    if (inner->tp > 1) {
        st = join_group(d, err);
    }
    if (st == ST_OK && inner->pp > 1) {
        st = join_column(d, err);
    }
    if (st == ST_OK && inner->tp > 1) {
        st = coll_nccl_peers_open(d, err);
    }
    if (st != ST_OK) {
        (void)coll_nccl_give_up(d, st, err);
        nccl_destroy(&d->base);
        return st;
    }
    *coll_p = &d->base;
    return ST_OK;
}
