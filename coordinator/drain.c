/* coordinator/drain.c - one replica is emptied on purpose, while the others serve.
 *
 *   SERVING ──Drain──► DRAINING: no new streams; its own may end within the grace
 *       none is left, or the grace is over ──► the rest moves (as from a lost one, but nobody counts
 *       it), the ranks are told to stop ──► they have gone ──► DRAINED: its job is ended
 *                                                └─ with restart ──► STARTING .. SERVING
 *
 * A replica that is lost meanwhile takes the usual way (blame.c), except that one that was to stay
 * down stays down. The operator's call follows the replica to its end and may leave at any time: the
 * drain goes on. Operators speak to the control port, which asks for the run directory's token. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <stdio.h>
#include <string.h>

enum { STOP_MS = 5000, GRACE_MAX_S = 86400 };

bool drain_keeps_down(const struct replica *r)
{
    return r->drain.is_on && !r->drain.restart;
}

/* ---- what the operator hears ---- */

static void tell(struct replica *r)
{
    struct drain *d = &r->drain;
    struct buf *out = &r->coord->out;
    const struct msg_drain_progress m = { replica_state_name(r->state), r->n_streams,
                                          r->generation };

    if (d->call == NULL || (d->said_state == r->state && d->said_streams == r->n_streams)) {
        return;
    }
    buf_reset(out);
    if (msg_drain_progress_pack(&m, out) == ST_OK &&
        rpc_call_send(d->call, out->data, out->len) == ST_OK) {
        d->said_state = r->state;
        d->said_streams = r->n_streams;
    }
}

/* The call is over, not necessarily the drain. */
static void answer(struct replica *r, status st, const char *text)
{
    struct rpc_call *call = r->drain.call;

    if (call != NULL) {
        tell(r);
        r->drain.call = NULL;
        rpc_call_set_user(call, NULL);
        rpc_call_finish(call, st, text);
    }
}

/* ---- steps ---- */

static void stop_ranks(struct replica *r, uint64_t now)
{
    struct drain *d = &r->drain;

    log_info("drain", "replica %u.%u: %u streams move, its ranks are told to stop", r->index,
             r->generation, r->n_streams);
    d->ranks_are_told = true; /* from here on a stream that breaks is no sign */
    d->by_ns = now + STOP_MS * NS_PER_MS;
    route_evacuate(r);
    replica_stop(r);
}

static void finish(struct replica *r)
{
    struct coord *c = r->coord;
    const bool restart = r->drain.restart;

    snprintf(r->why, sizeof(r->why), "drained by an operator");
    r->why_code = ST_ERR_UNAVAILABLE;
    replica_cut_off(r);
    r->state = REPLICA_DRAINED;
    r->has_verdict = true;
    log_info("drain", "replica %u.%u is drained%s", r->index, r->generation,
             restart ? " and starts again" : "");
    tell(r);
    if (!restart) {
        answer(r, ST_OK, "");
    }
    if (replica_has_joined(r)) {
        memset(&r->drain, 0, sizeof(r->drain));
        table_remove(r);
        coord_judge(c);
        return;
    }
    coord_judge(c);
    if (c->config.on_lost != NULL) {
        c->config.on_lost(c->config.arg, r->index, restart ? 0 : CLOCK_NEVER);
    }
}

void drain_tick(struct coord *c, uint64_t now)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        struct drain *d = &r->drain;
        if (!d->is_on) {
            continue;
        }
        tell(r);
        if (r->state != REPLICA_DRAINING || c->is_stopping) {
            continue;
        }
        if (!d->ranks_are_told && (r->n_streams == 0 || now >= d->by_ns)) {
            stop_ranks(r, now);
        } else if (d->ranks_are_told && (r->n_attached == 0 || now >= d->by_ns)) {
            finish(r);
        }
    }
}

/* It serves again, or never will. */
void drain_over(struct replica *r)
{
    if (!r->drain.is_on) {
        return;
    }
    if (r->state == REPLICA_SERVING) {
        answer(r, ST_OK, "");
        memset(&r->drain, 0, sizeof(r->drain));
    } else if (r->state == REPLICA_FAILED || r->state == REPLICA_GONE) {
        answer(r, ST_ERR_UNAVAILABLE, r->why);
        memset(&r->drain, 0, sizeof(r->drain));
    } else if (r->state == REPLICA_DRAINED) {
        answer(r, ST_OK, r->why); /* lost while it was drained: it is down, as was asked for */
    }
}

/* ---- the request ---- */

static uint32_t n_others_serve(const struct replica *r)
{
    const struct coord *c = r->coord;
    uint32_t n = 0;

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        n += c->replicas[i] != r && c->replicas[i]->state == REPLICA_SERVING ? 1 : 0;
    }
    return n;
}

static status check(const struct coord *c, const struct msg_drain *m, struct err *err)
{
    if (c->is_stopping) {
        return err_set(err, ST_ERR_UNAVAILABLE, "the service is shutting down");
    }
    if (m->replica >= c->n_replicas || c->replicas[m->replica]->state == REPLICA_GONE) {
        return err_set(err, ST_ERR_NOT_FOUND, "there is no replica %u (gantry status lists them)",
                       m->replica);
    }
    const struct replica *r = c->replicas[m->replica];
    const bool is_down = r->state == REPLICA_DRAINED || r->state == REPLICA_FAILED;
    if (r->drain.is_on && (!is_down || r->drain.restart)) {
        return err_set(err, ST_ERR_EXISTS, "replica %u is being drained already", m->replica);
    }
    if (r->state != REPLICA_SERVING && !is_down) {
        return err_set(err, ST_ERR_UNAVAILABLE,
                       "replica %u is %s; it can be drained when it is serving", m->replica,
                       replica_state_name(r->state));
    }
    if (m->restart && (c->config.on_lost == NULL || replica_has_joined(r))) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "replica %u was not started by this coordinator: drain it without restart, "
                       "and start it again where it was started",
                       m->replica);
    }
    if (!m->restart && !is_down && n_others_serve(r) == 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "replica %u is the only one that serves: end the service instead, or drain "
                       "it with restart",
                       m->replica);
    }
    return ST_OK;
}

static void begin(struct replica *r, struct rpc_call *call, const struct msg_drain *m)
{
    struct coord *c = r->coord;
    const uint64_t grace_ns = MIN(m->grace_us, GRACE_MAX_S * UINT64_C(1000000)) * NS_PER_US;

    r->drain = (struct drain){ .is_on = true,
                               .restart = m->restart,
                               .by_ns = coord_now(c) + grace_ns,
                               .call = call,
                               .said_state = REPLICA_GONE };
    if (r->state == REPLICA_SERVING) {
        log_info("drain", "replica %u.%u is drained: %u streams have %.0f s to end there%s",
                 r->index, r->generation, r->n_streams, (double)grace_ns / 1e9,
                 m->restart ? ", then it starts again" : "");
        r->state = REPLICA_DRAINING;
        tell(r);
        coord_judge(c);
        return;
    }
    /* Down already. */
    if (!m->restart) {
        r->state = REPLICA_DRAINED;
        answer(r, ST_OK, "");
        return;
    }
    r->state = REPLICA_DRAINED;
    r->n_restarts = 0;
    tell(r);
    c->config.on_lost(c->config.arg, r->index, 0);
}

void drain_call(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct coord *c = arg;
    struct err err = ERR_INIT;
    struct msg_drain m;

    coord_enter(c);
    arena_reset(&c->arena);
    status st = msg_drain_unpack(data, len, &c->arena, &m, &err);
    if (st == ST_OK) {
        st = check(c, &m, &err);
    }
    if (st != ST_OK) {
        rpc_call_finish(call, st == ST_ERR_PROTO ? ST_ERR_ARG : st, err.text);
    } else {
        struct replica *r = c->replicas[m.replica];
        rpc_call_set_user(call, r);
        begin(r, call, &m);
    }
    coord_leave(c);
}

void drain_call_done(void *arg UNUSED, struct rpc_call *call, bool cancelled UNUSED)
{
    struct replica *r = rpc_call_user(call);

    if (r != NULL && r->drain.call == call) {
        r->drain.call = NULL;
    }
}

/* The service ends: so do the operators' calls, and who still has streams keeps them to the end. */
void drain_end_all(struct coord *c)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        answer(r, ST_ERR_UNAVAILABLE, "the service is shutting down");
        if (!r->drain.ranks_are_told) {
            r->drain.is_on = false;
        }
    }
}
