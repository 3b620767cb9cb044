/* cluster/coll_staged.c - see coll_device.h: device buffers by way of the host.
 *
 *   sum      copy out, wait for the stream, sum in the host buffer, copy in
 *   send     copy out into a buffer of the request's own, wait for the stream, send from there
 *   receive  into a buffer of the request's own; copied in by the test or wait that finds it done
 *
 * It costs two copies and a wait per operation. It is for ranks that share a device (tests) and for
 * machines without NCCL; nothing here is tuned. */
#include "cluster/coll_device.h"

#include <stdlib.h>
#include <string.h>

/* A rank has at most two residuals being sent and one being received (worker/rank.c). */
enum { SLOTS = 4 };

struct slot {
    void *host; /* [bytes_max], owned */
    bool used, is_recv;
    void *device; /* receive: where the bytes go, borrowed */
    size_t bytes;
    struct coll_req inner;
};

struct coll_staged {
    struct coll base;
    struct coll *inner; /* borrowed */
    struct coll_device dev;
    void *stage; /* [bytes_max] host, owned: sums and gathers */
    bool broken; /* a sum or gather failed: the inner coll may still read and write `stage` */
    struct slot slots[SLOTS];
};

static struct coll_staged *staged_of(struct coll *c)
{
    return CONTAINER_OF(c, struct coll_staged, base);
}

/* The inner coll, with what was set on the outer one. */
static struct coll *inner_of(struct coll_staged *d)
{
    d->inner->timeout_ns = d->base.timeout_ns;
    d->inner->split_bytes = d->base.split_bytes;
    d->inner->abort = d->base.abort;
    return d->inner;
}

static status check_bytes(const struct coll_staged *d, const char *what, size_t bytes,
                          struct err *err)
{
    return bytes <= d->dev.bytes_max
               ? ST_OK
               : err_set(err, ST_ERR_LIMIT, "%s of %zu bytes through the host, at most %zu", what,
                         bytes, d->dev.bytes_max);
}

/* ---- sums and gathers ---- */

static status staged_all_reduce_tree(struct coll *c, struct kern_stream *s, float *x, size_t n,
                                     uint64_t stamp, struct err *err)
{
    struct coll_staged *d = staged_of(c);
    struct coll *inner = inner_of(d);
    const size_t bytes = n * sizeof(float);

    if (s == NULL || c->tp == 1) {
        return inner->ops->all_reduce_tree(inner, NULL, x, n, stamp, err);
    }
    status st = check_bytes(d, "a sum", bytes, err);
    if (st != ST_OK) {
        return st;
    }
    d->dev.copy_out(s, d->stage, x, bytes);
    st = d->dev.sync(s, err);
    if (st == ST_OK) {
        st = inner->ops->all_reduce_tree(inner, NULL, d->stage, n, stamp, err);
        d->broken = d->broken || st != ST_OK;
    }
    if (st == ST_OK) {
        d->dev.copy_in(s, x, d->stage, bytes);
    }
    return st;
}

/* Of device memory: slice after slice through the one buffer would need one gather per slice, so
 * mine and all lie in it side by side. */
static status staged_all_gather(struct coll *c, struct kern_stream *s, const void *mine,
                                size_t bytes, void *all, uint64_t stamp, struct err *err)
{
    struct coll_staged *d = staged_of(c);
    struct coll *inner = inner_of(d);

    if (s == NULL) {
        return inner->ops->all_gather(inner, NULL, mine, bytes, all, stamp, err);
    }
    status st = check_bytes(d, "a gather", bytes * (c->tp + 1), err);
    if (st != ST_OK) {
        return st;
    }
    char *from = d->stage, *to = from + bytes;
    d->dev.copy_out(s, from, mine, bytes);
    st = d->dev.sync(s, err);
    if (st == ST_OK) {
        st = inner->ops->all_gather(inner, NULL, from, bytes, to, stamp, err);
        d->broken = d->broken || st != ST_OK;
    }
    if (st == ST_OK) {
        d->dev.copy_in(s, all, to, bytes * c->tp);
    }
    return st;
}

/* ---- send and receive ---- */

static status slot_take(struct coll_staged *d, uint32_t *i_p, struct err *err)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (!d->slots[i].used) {
            *i_p = i;
            return ST_OK;
        }
    }
    return err_set(err, ST_ERR_LIMIT,
                   "rank %u has %d sends and receives of device memory pending, the limit",
                   d->base.rank, SLOTS);
}

static status staged_send_start(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                                const void *data, size_t bytes, struct coll_req *req_p,
                                struct err *err)
{
    struct coll_staged *d = staged_of(c);
    struct coll *inner = inner_of(d);
    uint32_t i = 0;

    if (s == NULL) {
        return inner->ops->send_start(inner, NULL, to, tag, data, bytes, req_p, err);
    }
    status st = check_bytes(d, "a send", bytes, err);
    if (st == ST_OK) {
        st = slot_take(d, &i, err);
    }
    if (st != ST_OK) {
        return st;
    }
    struct slot *slot = &d->slots[i];
    d->dev.copy_out(s, slot->host, data, bytes);
    st = d->dev.sync(s, err);
    if (st == ST_OK) {
        st = inner->ops->send_start(inner, NULL, to, tag, slot->host, bytes, &slot->inner, err);
    }
    if (st == ST_OK) {
        slot->used = true;
        slot->is_recv = false;
        req_p->slot = COLL_REQS_MAX + i;
    }
    return st;
}

static status staged_recv_start(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                                void *data, size_t bytes, struct coll_req *req_p, struct err *err)
{
    struct coll_staged *d = staged_of(c);
    struct coll *inner = inner_of(d);
    uint32_t i = 0;

    if (s == NULL) {
        return inner->ops->recv_start(inner, NULL, from, tag, data, bytes, req_p, err);
    }
    status st = check_bytes(d, "a receive", bytes, err);
    if (st == ST_OK) {
        st = slot_take(d, &i, err);
    }
    if (st != ST_OK) {
        return st;
    }
    struct slot *slot = &d->slots[i];
    st = inner->ops->recv_start(inner, NULL, from, tag, slot->host, bytes, &slot->inner, err);
    if (st == ST_OK) {
        slot->used = slot->is_recv = true;
        slot->device = data;
        slot->bytes = bytes;
        req_p->slot = COLL_REQS_MAX + i;
    }
    return st;
}

/* The inner request is over. copy_in has taken the bytes when it returns, so the slot is free. */
static void slot_finish(struct coll_staged *d, struct slot *slot, status st)
{
    if (st == ST_OK && slot->is_recv) {
        d->dev.copy_in(d->dev.stream, slot->device, slot->host, slot->bytes);
    }
    slot->used = false;
}

static status staged_test(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_staged *d = staged_of(c);
    struct coll *inner = inner_of(d);

    if (req.slot < COLL_REQS_MAX) {
        return inner->ops->test(inner, req, err);
    }
    struct slot *slot = &d->slots[req.slot - COLL_REQS_MAX];
    ASSERT(req.slot < COLL_REQS_MAX + SLOTS && slot->used);
    const status st = inner->ops->test(inner, slot->inner, err);
    if (st != ST_BUSY) {
        slot_finish(d, slot, st);
    }
    return st;
}

static status staged_wait(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_staged *d = staged_of(c);
    struct coll *inner = inner_of(d);

    if (req.slot < COLL_REQS_MAX) {
        return inner->ops->wait(inner, req, err);
    }
    struct slot *slot = &d->slots[req.slot - COLL_REQS_MAX];
    ASSERT(req.slot < COLL_REQS_MAX + SLOTS && slot->used);
    const status st = inner->ops->wait(inner, slot->inner, err);
    if (st == ST_OK) {
        slot_finish(d, slot, st); /* after a deadline the buffer stays the message's */
    }
    return st;
}

static status staged_probe(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                           struct err *err)
{
    struct coll *inner = inner_of(staged_of(c));
    return inner->ops->probe(inner, from, tag, bytes_p, err);
}

/* ---- whole replica, life ---- */

static status staged_barrier(struct coll *c, struct err *err)
{
    struct coll *inner = inner_of(staged_of(c));
    return inner->ops->barrier(inner, err);
}

static status staged_bcast(struct coll *c, void *data, size_t bytes, uint32_t root, struct err *err)
{
    struct coll *inner = inner_of(staged_of(c));
    return inner->ops->bcast(inner, data, bytes, root, err);
}

/* A buffer that the inner coll may still read or write is left to the process (coll_mpi.c). */
static void staged_destroy(struct coll *c)
{
    struct coll_staged *d = staged_of(c);

    if (!d->broken) {
        d->dev.host_free(d->dev.stream, d->stage, d->dev.bytes_max);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (!d->slots[i].used) {
            d->dev.host_free(d->dev.stream, d->slots[i].host, d->dev.bytes_max);
        }
    }
    free(d);
}

static const struct coll_ops staged_ops = {
    .name = "staged",
    .all_reduce_tree = staged_all_reduce_tree,
    .all_gather = staged_all_gather,
    .send_start = staged_send_start,
    .recv_start = staged_recv_start,
    .test = staged_test,
    .wait = staged_wait,
    .probe = staged_probe,
    .barrier = staged_barrier,
    .bcast = staged_bcast,
    .destroy = staged_destroy,
};

const char *coll_sums(const struct coll *c)
{
    return c->tp == 1              ? ""
           : c->sums[0] != '\0'    ? c->sums
           : c->ops == &staged_ops ? "by way of the hosts"
                                   : c->ops->name;
}

status coll_staged_create(struct coll *inner, const struct coll_device *dev, struct coll **coll_p,
                          struct err *err)
{
    struct coll_staged *d = calloc(1, sizeof(*d));

    if (d == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for collectives through the host");
    }
    d->base = *inner;
    d->base.ops = &staged_ops;
    d->inner = inner;
    d->dev = *dev;
    status st = dev->host_alloc(dev->stream, dev->bytes_max, &d->stage, err);
    for (uint32_t i = 0; st == ST_OK && i < SLOTS; i++) {
        st = dev->host_alloc(dev->stream, dev->bytes_max, &d->slots[i].host, err);
    }
    if (st != ST_OK) {
        err_prefix(err, "rank %u: buffers for messages of %zu bytes: ", inner->rank,
                   dev->bytes_max);
        staged_destroy(&d->base);
        return st;
    }
    *coll_p = &d->base;
    return ST_OK;
}
