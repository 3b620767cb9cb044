/* cluster/coll_local_mail.c - send and receive between threads.
 *
 * Rendezvous without a copy in between: whoever comes second (send or receive) finds the other in
 * the receiver's box and copies straight from the sender's buffer. So nothing is allocated, memory
 * is bounded by the slots, and a send completes only when its receive was posted: the strictest
 * reading of coll.h, which makes the threads find deadlocks that MPI's eager copies would hide. */
#include "cluster/coll_local.h"

#include <string.h>

static void ring(struct coll_local *l, uint32_t rank)
{
    coll_bell_ring(&l->hub->bells[rank]);
}

/* Both are out of all lists; the receiver's box is locked. */
static void deliver(struct coll_mail *send, struct coll_mail *recv)
{
    if (send->bytes != recv->bytes) {
        recv->bytes_other = send->bytes;
        atomic_store(&recv->state, OP_BAD_SIZE);
    } else {
        if (send->bytes > 0) {
            memcpy(recv->into, send->data, send->bytes);
        }
        atomic_store(&recv->state, OP_DONE);
    }
    atomic_store(&send->state, OP_DONE);
}

static struct coll_mail *take_match(struct coll_mail **list, const struct coll_mail *other)
{
    for (struct coll_mail **at = list; *at; at = &(*at)->next) {
        struct coll_mail *m = *at;

        if (m->from == other->from && m->tag == other->tag) {
            *at = m->next;
            m->next = NULL;
            return m;
        }
    }
    return NULL;
}

static void append(struct coll_mail **list, struct coll_mail *m)
{
    while (*list) {
        list = &(*list)->next;
    }
    m->next = NULL;
    *list = m;
}

static status post(struct coll_local *l, const struct coll_mail *what, struct coll_req *req_p,
                   struct err *err)
{
    struct coll_box *box = &l->hub->boxes[what->to];
    struct coll_mail *m = NULL, *other;
    uint32_t i = 0;

    while (i < COLL_REQS_MAX && atomic_load(&l->slots[i].state) != OP_FREE) {
        i++;
    }
    if (i == COLL_REQS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "rank %u has %d sends and receives pending, the limit",
                       l->base.rank, COLL_REQS_MAX);
    }
    m = &l->slots[i];
    m->is_send = what->is_send;
    m->from = what->from;
    m->to = what->to;
    m->tag = what->tag;
    m->data = what->data;
    m->into = what->into;
    m->bytes = what->bytes;
    atomic_store(&m->state, OP_PENDING);
    pthread_mutex_lock(&box->lock);
    other = take_match(m->is_send ? &box->recvs : &box->sends, m);
    if (!other) {
        append(m->is_send ? &box->sends : &box->recvs, m);
    } else if (m->is_send) {
        deliver(m, other);
    } else {
        deliver(other, m);
    }
    pthread_mutex_unlock(&box->lock);
    /* Rung also without a match: the receiver may be waiting in a loop around probe. */
    ring(l, m->is_send ? m->to : m->from);
    req_p->slot = i;
    return ST_OK;
}

static status check_peer(const struct coll_local *l, const char *op, uint32_t peer, struct err *err)
{
    if (peer >= l->base.n_ranks) {
        return err_set(err, ST_ERR_ARG, "%s: rank %u of a replica of %u", op, peer,
                       l->base.n_ranks);
    }
    return ST_OK;
}

status coll_local_send_start(struct coll *c, struct kern_stream *s, uint32_t to, uint32_t tag,
                             const void *data, size_t bytes, struct coll_req *req_p,
                             struct err *err)
{
    struct coll_local *l = coll_local_of(c);
    const struct coll_mail m = {
        .is_send = true, .from = c->rank, .to = to, .tag = tag, .data = data, .bytes = bytes
    };
    const status st = check_peer(l, "send", to, err);

    (void)s;
    return st != ST_OK ? st : post(l, &m, req_p, err);
}

status coll_local_recv_start(struct coll *c, struct kern_stream *s, uint32_t from, uint32_t tag,
                             void *data, size_t bytes, struct coll_req *req_p, struct err *err)
{
    struct coll_local *l = coll_local_of(c);
    const struct coll_mail m = {
        .from = from, .to = c->rank, .tag = tag, .into = data, .bytes = bytes
    };
    const status st = check_peer(l, "receive", from, err);

    (void)s;
    return st != ST_OK ? st : post(l, &m, req_p, err);
}

status coll_local_test(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_local *l = coll_local_of(c);
    struct coll_mail *m;
    uint32_t state;

    ASSERT(req.slot < COLL_REQS_MAX);
    m = &l->slots[req.slot];
    state = atomic_load(&m->state);
    ASSERT(state != OP_FREE);
    if (state == OP_PENDING) {
        return ST_BUSY;
    }
    if (state == OP_BAD_SIZE) {
        err_set(err, ST_ERR_PROTO,
                "receive of %zu bytes from rank %u, tag %u: the message has %zu bytes", m->bytes,
                m->from, m->tag, m->bytes_other);
    }
    atomic_store(&m->state, OP_FREE);
    return state == OP_DONE ? ST_OK : ST_ERR_PROTO;
}

static status wait_failed(struct coll_local *l, const struct coll_mail *m, status why,
                          struct err *err)
{
    const char *op = m->is_send ? "send to" : "receive from";
    const uint32_t peer = m->is_send ? m->to : m->from;

    if (why == ST_ERR_CANCELLED) {
        return err_set(err, why, "%s rank %u, tag %u: given up on request", op, peer, m->tag);
    }
    return err_set(err, why, "%s rank %u, tag %u: nothing from rank %u within %.3f s", op, peer,
                   m->tag, peer, (double)l->base.timeout_ns / (double)NS_PER_S);
}

static status wait_slot(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_local *l = coll_local_of(c);
    const struct coll_mail *m = &l->slots[req.slot];
    struct coll_waiter w;
    status st;

    coll_waiter_init(&w, c, l->hub->spin_ns, &l->hub->bells[c->rank]);
    w.peer = m->is_send ? m->to : m->from;
    while ((st = coll_local_test(c, req, err)) == ST_BUSY) {
        if (atomic_load(&l->hub->failed)) {
            return coll_hub_failure(l->hub, "send or receive", err);
        }
        st = coll_waiter_step(&w);
        if (st != ST_OK) {
            return wait_failed(l, &l->slots[req.slot], st, err);
        }
    }
    return st;
}

status coll_local_wait(struct coll *c, struct coll_req req, struct err *err)
{
    struct coll_local *l = coll_local_of(c);

    ASSERT(req.slot < COLL_REQS_MAX);
    coll_watch_begin(c->watch, l->slots[req.slot].is_send ? COLL_OP_SEND : COLL_OP_RECV,
                     ++l->n_waits);
    const status st = wait_slot(c, req, err);
    if (st == ST_OK) { /* else the last exchange is of interest */
        coll_watch_end(c->watch);
    }
    return st;
}

status coll_local_probe(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                        struct err *err)
{
    struct coll_local *l = coll_local_of(c);
    struct coll_box *box = &l->hub->boxes[c->rank];
    status st = check_peer(l, "probe", from, err);

    if (st != ST_OK) {
        return st;
    }
    st = ST_BUSY;
    pthread_mutex_lock(&box->lock);
    for (const struct coll_mail *m = box->sends; m; m = m->next) {
        if (m->from == from && m->tag == tag) {
            *bytes_p = m->bytes;
            st = ST_OK;
            break;
        }
    }
    pthread_mutex_unlock(&box->lock);
    return st;
}

void coll_local_mail_drop(struct coll_local *l)
{
    for (uint32_t i = 0; i < COLL_REQS_MAX; i++) {
        struct coll_mail *m = &l->slots[i];
        struct coll_box *box;

        if (atomic_load(&m->state) == OP_FREE) {
            continue;
        }
        box = &l->hub->boxes[m->to];
        pthread_mutex_lock(&box->lock);
        for (struct coll_mail **at = m->is_send ? &box->sends : &box->recvs; *at;
             at = &(*at)->next) {
            if (*at == m) {
                *at = m->next;
                break;
            }
        }
        pthread_mutex_unlock(&box->lock);
        atomic_store(&m->state, OP_FREE);
    }
}
