/* coordinator/coord.c - see coord.h: life, state, stopping. */
#include "coordinator/coord_impl.h"

#include "base/log.h"
#include "cluster/rpc_reflect.h"

#include <stdlib.h>
#include <string.h>

static void reflect_open(void *arg UNUSED, struct rpc_call *call UNUSED, const void *data UNUSED,
                         size_t len UNUSED)
{
}

static void reflect_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    const struct coord *c = arg;

    rpc_reflect_message(c->reflect, call, data, len);
}

static const struct rpc_method public_methods[] = {
    { .path = "/gantry.v1.Generation/Generate",
      .kind = RPC_UNARY,
      .on_request = front_generate,
      .on_done = front_done },
    { .path = "/gantry.v1.Generation/GenerateStream",
      .kind = RPC_SERVER_STREAM,
      .on_request = front_generate_stream,
      .on_writable = front_writable,
      .on_done = front_done },
    { .path = "/gantry.v1.Generation/GetModel",
      .kind = RPC_UNARY,
      .on_request = front_get_model,
      .on_done = status_call_done },
    { .path = "/gantry.v1.Cluster/GetStatus",
      .kind = RPC_UNARY,
      .on_request = status_get,
      .on_done = status_call_done },
    { .path = "/grpc.health.v1.Health/Check",
      .kind = RPC_UNARY,
      .on_request = health_check,
      .on_done = status_call_done,
      .no_auth = true },
    { .path = "/grpc.health.v1.Health/Watch",
      .kind = RPC_SERVER_STREAM,
      .on_request = health_watch,
      .on_done = health_watch_done,
      .no_auth = true },
    { .path = RPC_REFLECT_PATH_V1,
      .kind = RPC_BIDI,
      .on_request = reflect_open,
      .on_message = reflect_message,
      .on_done = status_call_done },
    { .path = RPC_REFLECT_PATH_V1ALPHA,
      .kind = RPC_BIDI,
      .on_request = reflect_open,
      .on_message = reflect_message,
      .on_done = status_call_done },
};

static const struct rpc_method control_methods[] = {
    { .path = "/gantry.control.v1.Control/Attach",
      .kind = RPC_BIDI,
      .on_request = replica_attach_open,
      .on_message = replica_attach_message,
      .on_done = replica_attach_done },
    { .path = "/gantry.control.v1.Control/Drain",
      .kind = RPC_SERVER_STREAM,
      .on_request = drain_call,
      .on_done = drain_call_done },
};

/* ---- life ---- */

static status servers_open(struct coord *c, struct err *err)
{
    const struct coord_config *k = &c->config;
    const struct rpc_server_config public = { .listen = k->listen,
                                              .token = k->token,
                                              .tls_cert_pem = k->tls_cert_pem,
                                              .tls_key_pem = k->tls_key_pem,
                                              .tls_client_ca_pem = k->tls_client_ca_pem,
                                              .methods = public_methods,
                                              .n_methods = ARRAY_LEN(public_methods),
                                              .arg = c,
                                              .message_bytes_max = PUBLIC_MESSAGE_BYTES,
                                              .send_queue_max = PUBLIC_SEND_QUEUE };
    const struct rpc_server_config control = { .listen = k->control_listen,
                                               .token = k->control_token,
                                               .methods = control_methods,
                                               .n_methods = ARRAY_LEN(control_methods),
                                               .arg = c,
                                               .message_bytes_max = MSG_BYTES_MAX,
                                               .send_queue_max = CONTROL_SEND_QUEUE };
    const status st = rpc_server_create(c->loop, &public, &c->public_server, err);

    return st < 0 ? st : rpc_server_create(c->loop, &control, &c->control_server, err);
}

status coord_create(struct rpc_loop *loop, const struct coord_config *config,
                    struct coord **coord_p, struct err *err)
{
    struct coord *c = calloc(1, sizeof(*c));
    status st;

    ASSERT(config->control_token != NULL && config->plan != NULL && config->tok != NULL);
    if (c == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the coordinator");
    }
    c->config = *config;
    c->config.build = config->build != NULL ? config->build : msg_build();
    c->config.queue_max = config->queue_max != 0 ? config->queue_max : COORD_QUEUE_DEFAULT;
    c->config.control_listen =
        config->control_listen != NULL ? config->control_listen : "127.0.0.1:0";
    c->clock = config->clock != NULL ? config->clock : clock_real();
    c->desc = &config->plan->desc;
    c->loop = loop;
    c->arena = (struct arena)ARENA_INIT(CONTROL_ARENA_BYTES);
    c->out = (struct buf)BUF_INIT_MAX(MSG_BYTES_MAX + 1);
    c->started_ns = coord_now(c);
    st = journal_create(c->config.queue_max, &c->journal, err);
    if (st == ST_OK) {
        st = table_init(c, err);
    }
    if (st == ST_OK) {
        st = detect_start(c);
        if (st < 0) {
            err_set(err, st, "no memory for the coordinator's timers");
        }
    }
    if (st == ST_OK) {
        const struct msg_str set = msg_descriptors();
        st = rpc_reflect_create(set.data, set.len, &c->reflect, err);
    }
    if (st == ST_OK) {
        st = servers_open(c, err);
    }
    if (st == ST_OK) {
        st = resume_restore(c, err);
    }
    if (st < 0) {
        coord_destroy(c);
        return st;
    }
    *coord_p = c;
    return ST_OK;
}

static void bury_dead(struct coord *c);

void coord_destroy(struct coord *c)
{
    if (c == NULL) {
        return;
    }
    /* First, because what is still open ends here, and its callbacks want all that follows. */
    rpc_server_destroy(c->public_server);
    rpc_server_destroy(c->control_server);
    rpc_timer_set(c->loop, &c->stop_timer, CLOCK_NEVER);
    detect_stop(c);
    resume_fini(c); /* its streams count at their replicas */
    table_fini(c);
    rpc_reflect_destroy(c->reflect);
    bury_dead(c);
    journal_destroy(c->journal);
    arena_fini(&c->arena);
    buf_fini(&c->out);
    free(c);
}

uint64_t coord_now(const struct coord *c)
{
    return clock_now_ns(c->clock);
}

void coord_enter(struct coord *c)
{
    c->depth++;
}

static void bury_dead(struct coord *c)
{
    while (c->dead != NULL) {
        struct front_call *f = c->dead;
        c->dead = f->next_dead;
        session_destroy(f->session);
        buf_fini(&f->reply);
        free(f);
    }
}

void coord_leave(struct coord *c)
{
    ASSERT(c->depth > 0);
    if (c->depth == 1) {
        if (c->config.disk != NULL) {
            journal_disk_flush(c->config.disk); /* before it leaves the house */
        }
        front_flush_dirty(c); /* still inside: what a send ends must not be freed under it */
    }
    if (--c->depth == 0) {
        bury_dead(c);
    }
}

/* ---- facts ---- */

uint16_t coord_port(const struct coord *c)
{
    return rpc_server_port(c->public_server);
}

uint16_t coord_control_port(const struct coord *c)
{
    return rpc_server_port(c->control_server);
}

enum coord_state coord_state(const struct coord *c)
{
    return c->state;
}

const char *coord_weights_digest(const struct coord *c)
{
    return c->digest_hex;
}

const char *coord_failure(const struct coord *c, status *code_p)
{
    *code_p = c->failure_code;
    return c->failure;
}

void coord_progress(const struct coord *c, struct coord_progress *progress_p)
{
    struct coord_progress p = { .n_ranks = 0 };

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        if (r->state == REPLICA_GONE) {
            continue;
        }
        p.n_ranks += r->shape.n_ranks;
        p.n_attached += r->n_attached;
        p.n_ready += r->n_ready;
        for (uint32_t k = 0; k < r->shape.n_ranks; k++) {
            p.loaded_bytes += r->ranks[k].heartbeat.loaded_bytes;
            p.weight_bytes += r->ranks[k].heartbeat.weight_bytes;
        }
    }
    *progress_p = p;
}

void coord_set_state(struct coord *c, enum coord_state state)
{
    if (c->state == state) {
        return;
    }
    c->state = state;
    health_push(c);
    if (c->config.on_change != NULL) {
        c->config.on_change(c->config.arg, state);
    }
}

/* ---- stopping ---- */

/* Streams have ended or had their time: the ranks go, then both servers. */
static void public_down(void *arg)
{
    struct coord *c = arg;

    c->public_is_down = true;
    if (c->control_is_down) {
        c->on_stopped(c->on_stopped_arg);
    }
}

static void control_down(void *arg)
{
    struct coord *c = arg;

    c->control_is_down = true;
    if (c->public_is_down) {
        c->on_stopped(c->on_stopped_arg);
    }
}

static uint32_t n_attached(const struct coord *c)
{
    struct coord_progress p;

    coord_progress(c, &p);
    return p.n_attached;
}

static void stop_step(void *arg)
{
    struct coord *c = arg;
    const uint64_t now = coord_now(c);

    coord_enter(c);
    if (!c->ranks_are_told) {
        const bool drains =
            journal_count(c->journal) > 0 && now < c->grace_end_ns && route_count(c) > 0;
        if (blame_is_pending(c) || drains) { /* pending: until it is known why */
            rpc_timer_set(c->loop, &c->stop_timer, now + 20 * NS_PER_MS);
            coord_leave(c);
            return;
        }
        if (c->config.handover) {
            resume_freeze(c);
        }
        front_fail_all(c, ST_ERR_UNAVAILABLE,
                       c->config.handover
                           ? "the service is handed over; resume the answer at the next one"
                           : "the service is shutting down");
        health_end_all(c);
        replica_stop_ranks(c);
        c->ranks_are_told = true;
        c->grace_end_ns = now + STOP_RANKS_MS * NS_PER_MS;
        rpc_server_shutdown(c->public_server, NS_PER_S, public_down, c);
    }
    if (n_attached(c) > 0 && now < c->grace_end_ns) {
        rpc_timer_set(c->loop, &c->stop_timer, now + 20 * NS_PER_MS);
    } else {
        rpc_server_shutdown(c->control_server, 0, control_down, c);
    }
    coord_leave(c);
}

void coord_stop(struct coord *c, uint64_t grace_ns, rpc_fn done, void *arg)
{
    const uint64_t end_ns = coord_now(c) + grace_ns;

    if (c->is_stopping) {
        c->grace_end_ns = MIN(c->grace_end_ns, end_ns);
        return;
    }
    coord_enter(c);
    c->is_stopping = true;
    c->grace_end_ns = end_ns;
    c->on_stopped = done;
    c->on_stopped_arg = arg;
    blame_stop(c);
    drain_end_all(c);
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        if (replica_is_alive(c->replicas[i])) {
            c->replicas[i]->state = REPLICA_DRAINING;
        }
    }
    coord_judge(c);
    if (c->state != COORD_FAILED) {
        coord_set_state(c, COORD_DRAINING);
    }
    c->stop_timer.fn = stop_step;
    c->stop_timer.arg = c;
    rpc_timer_set(c->loop, &c->stop_timer, coord_now(c));
    coord_leave(c);
}
