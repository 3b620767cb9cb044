/* tests/common/coll_wrap.c - see coll_wrap.h. */
#include "common/coll_wrap.h"

#include <stdlib.h>

struct coll_wrap {
    struct coll base;
    struct coll *inner; /* owned */
    coll_wrap_fn fn;
    coll_wrap_sum_fn sum_fn;
    void *arg;
    struct coll_wrap_msg recvs[COLL_REQS_MAX]; /* by slot; data NULL: no receive */
};

static struct coll_wrap *wrap_of(struct coll *c)
{
    return CONTAINER_OF(c, struct coll_wrap, base);
}

static struct coll *inner_of(struct coll *c)
{
    struct coll_wrap *w = wrap_of(c);

    w->inner->abort = c->abort;
    w->inner->timeout_ns = c->timeout_ns;
    w->inner->watch = c->watch;
    return w->inner;
}

static status wrap_sum(struct coll *c, struct kern_stream *s, float *x, size_t n, uint64_t stamp,
                       struct err *err)
{
    struct coll *in = inner_of(c);
    const status st = in->ops->all_reduce_tree(in, s, x, n, stamp, err);

    if (st == ST_OK && wrap_of(c)->sum_fn != NULL) {
        wrap_of(c)->sum_fn(wrap_of(c)->arg, c->rank, x, n);
    }
    return st;
}

static status wrap_gather(struct coll *c, struct kern_stream *s, const void *mine, size_t bytes,
                          void *all, uint64_t stamp, struct err *err)
{
    struct coll *in = inner_of(c);
    return in->ops->all_gather(in, s, mine, bytes, all, stamp, err);
}

static status wrap_send(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                        const void *data, size_t bytes, struct coll_req *req_p, struct err *err)
{
    struct coll *in = inner_of(c);
    const status st = in->ops->send_start(in, s, to, tag, data, bytes, req_p, err);

    if (st == ST_OK) {
        wrap_of(c)->recvs[req_p->slot].data = NULL;
    }
    return st;
}

static status wrap_recv(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                        void *data, size_t bytes, struct coll_req *req_p, struct err *err)
{
    struct coll *in = inner_of(c);
    const status st = in->ops->recv_start(in, s, from, tag, data, bytes, req_p, err);

    if (st == ST_OK) {
        wrap_of(c)->recvs[req_p->slot] = (struct coll_wrap_msg){ from, c->rank, tag, data, bytes };
    }
    return st;
}

static status done(struct coll *c, struct coll_req req, status st)
{
    struct coll_wrap *w = wrap_of(c);
    const struct coll_wrap_msg m = w->recvs[req.slot];

    if (st == ST_OK && m.data != NULL) {
        w->recvs[req.slot].data = NULL;
        w->fn(w->arg, &m);
    }
    return st;
}

static status wrap_test(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll *in = inner_of(c);
    return done(c, req, in->ops->test(in, req, err));
}

static status wrap_wait(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll *in = inner_of(c);
    return done(c, req, in->ops->wait(in, req, err));
}

static status wrap_probe(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                         struct err *err)
{
    struct coll *in = inner_of(c);
    return in->ops->probe(in, from, tag, bytes_p, err);
}

static status wrap_barrier(struct coll *c, struct err *err)
{
    struct coll *in = inner_of(c);
    return in->ops->barrier(in, err);
}

static status wrap_bcast(struct coll *c, void *data, size_t bytes, uint32_t root, struct err *err)
{
    struct coll *in = inner_of(c);
    return in->ops->bcast(in, data, bytes, root, err);
}

static void wrap_destroy(struct coll *c)
{
    struct coll_wrap *w = wrap_of(c);

    w->inner->ops->destroy(w->inner);
    free(w);
}

static const struct coll_ops wrap_ops = {
    .name = "wrap",
    .all_reduce_tree = wrap_sum,
    .all_gather = wrap_gather,
    .send_start = wrap_send,
    .recv_start = wrap_recv,
    .test = wrap_test,
    .wait = wrap_wait,
    .probe = wrap_probe,
    .barrier = wrap_barrier,
    .bcast = wrap_bcast,
    .destroy = wrap_destroy,
};

struct coll *coll_wrap_create(struct coll *inner, coll_wrap_fn fn, coll_wrap_sum_fn sum_fn,
                              void *arg)
{
    struct coll_wrap *w = calloc(1, sizeof(*w));

    ASSERT(w != NULL);
    w->base = *inner;
    w->base.ops = &wrap_ops;
    w->inner = inner;
    w->fn = fn;
    w->sum_fn = sum_fn;
    w->arg = arg;
    return &w->base;
}
