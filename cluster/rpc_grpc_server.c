/* cluster/rpc_grpc_server.c - a server's life: listen, take calls, go down.
 *
 *   create ─► serving ─ rpc_server_shutdown ─► stopping ─► down ─► done() ─► rpc_server_destroy
 *
 * Down means: gRPC's shutdown tag is back, every slot is back, and no call is alive. The last is
 * counted here, because gRPC's tag does not wait for calls that are over on the wire but still held
 * by us. */
#include "cluster/rpc_grpc.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    HANDSHAKE_MS = 10000, /* a connection that says nothing holds a descriptor this long */
    KEEPALIVE_DEFAULT_MS = 20000,
    CLIENT_PING_MS_MIN = 50 /* clients may ping this often; gRPC's default of five minutes would
                             * end connections whose client watches us closely */
};

static void server_args(struct rpc_args *args, const struct rpc_server *server,
                        uint32_t keepalive_ms)
{
    rpc_args_common(args, server->message_bytes_max, keepalive_ms);
    rpc_args_int(args, GRPC_ARG_ALLOW_REUSEPORT, 0); /* else two servers share a port silently */
    rpc_args_int(args, GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, HANDSHAKE_MS);
    rpc_args_int(args, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, CLIENT_PING_MS_MIN);
    /* Per connection, and above our own bound: a call too many is to be refused with a sentence,
     * not to wait unseen in its client. */
    rpc_args_int(args, GRPC_ARG_MAX_CONCURRENT_STREAMS,
                 (int)MIN(server->calls_max, INT32_MAX - 1024) + 1024);
}

static struct rpc_server *server_new(struct rpc_loop *loop, const struct rpc_server_config *config)
{
    struct rpc_server *server = calloc(1, sizeof(*server));

    if (server == NULL) {
        return NULL;
    }
    server->loop = loop;
    server->methods = config->methods;
    server->n_methods = config->n_methods;
    server->arg = config->arg;
    server->message_bytes_max =
        config->message_bytes_max == 0 ? RPC_MESSAGE_BYTES_DEFAULT : config->message_bytes_max;
    server->send_queue_max =
        config->send_queue_max == 0 ? RPC_SEND_QUEUE_DEFAULT : config->send_queue_max;
    server->calls_max = config->calls_max == 0 ? RPC_CALLS_MAX_DEFAULT : config->calls_max;
    if (config->token != NULL) {
        server->token = strdup(config->token);
        server->token_len = strlen(config->token);
        if (server->token == NULL) {
            free(server);
            return NULL;
        }
    }
    return server;
}

static void server_free(struct rpc_server *server)
{
    if (server->token != NULL) {
        explicit_bzero(server->token, server->token_len);
    }
    free(server->token);
    free(server);
}

static void methods_check(const struct rpc_server_config *config)
{
    for (uint32_t i = 0; i < config->n_methods; i++) {
        const struct rpc_method *m = &config->methods[i];

        ASSERT(m->path != NULL && m->path[0] == '/' && m->on_request != NULL);
        ASSERT(m->kind != RPC_BIDI || m->on_message != NULL);
    }
}

/* The listening gRPC server, not started. On failure nothing is left. */
static status listen_grpc(struct rpc_server *server, const struct rpc_server_config *config,
                          struct err *err)
{
    struct rpc_args args = { .count = 0 };
    grpc_channel_args list;
    grpc_server_credentials *creds;
    int port;
    status st = rpc_listen_credentials(config, &creds, err);

    if (st != ST_OK) {
        return st;
    }
    server_args(&args, server,
                config->keepalive_ms == 0 ? KEEPALIVE_DEFAULT_MS : config->keepalive_ms);
    list = rpc_args_get(&args);
    server->grpc = grpc_server_create(&list, NULL);
    grpc_server_register_completion_queue(server->grpc, server->loop->cq, NULL);
    port = grpc_server_add_http2_port(server->grpc, config->listen, creds);
    grpc_server_credentials_release(creds);
    if (port > 0) {
        server->port = (uint16_t)port;
    }
    return port > 0 ? ST_OK : rpc_listen_why(config, err);
}

static void on_down(void *self, bool ok)
{
    struct rpc_server *server = self;

    (void)ok;
    server->down_seen = true;
    rpc_server_check_down(server);
}

status rpc_server_create(struct rpc_loop *loop, const struct rpc_server_config *config,
                         struct rpc_server **server_p, struct err *err)
{
    struct rpc_server *server;
    status st = rpc_listen_check(config, err);

    ASSERT_ON_LOOP(loop);
    methods_check(config);
    if (st != ST_OK) {
        return st;
    }
    server = server_new(loop, config);
    if (server == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a server on %s", config->listen);
    }
    server->down_tag = (struct rpc_tag){ on_down, server };
    st = listen_grpc(server, config, err);
    if (st != ST_OK) {
        if (server->grpc != NULL) {
            grpc_server_destroy(server->grpc); /* never started, without a listener: at once */
        }
        server_free(server);
        return st;
    }
    grpc_server_start(server->grpc);
    for (uint32_t i = 0; i < RPC_SLOTS; i++) {
        rpc_slot_request(&server->slots[i], server);
    }
    loop->n_alive++;
    *server_p = server;
    return ST_OK;
}

uint16_t rpc_server_port(const struct rpc_server *server)
{
    return server->port;
}

/* ---- going down ---- */

void rpc_server_check_down(struct rpc_server *server)
{
    if (!server->down_seen || server->n_slots > 0 || server->n_calls > 0 || server->down) {
        return;
    }
    server->down = true;
    (void)rpc_timer_set(server->loop, &server->grace, CLOCK_NEVER);
    if (server->done != NULL) {
        server->done(server->done_arg); /* may destroy the server */
    }
}

static void on_grace(void *arg)
{
    struct rpc_server *server = arg;

    if (server->n_calls > 0) {
        log_info("rpc", "port %u: %u calls outlived the grace, cancelling", server->port,
                 server->n_calls);
    }
    grpc_server_cancel_all_calls(server->grpc);
}

void rpc_server_shutdown(struct rpc_server *server, uint64_t grace_ns, rpc_fn done, void *arg)
{
    const uint64_t now = clock_now_ns(clock_real());

    ASSERT_ON_LOOP(server->loop);
    ASSERT(!server->stopping);
    server->stopping = true;
    server->done = done;
    server->done_arg = arg;
    server->grace = (struct rpc_timer){ .fn = on_grace, .arg = server };
    grpc_server_shutdown_and_notify(server->grpc, server->loop->cq, &server->down_tag);
    if (rpc_timer_set(server->loop, &server->grace,
                      grace_ns > CLOCK_NEVER - 1 - now ? CLOCK_NEVER - 1 : now + grace_ns) !=
        ST_OK) {
        on_grace(server); /* no memory to wait with: better too early than never */
    }
}

void rpc_server_destroy(struct rpc_server *server)
{
    struct rpc_loop *loop;

    if (server == NULL) {
        return;
    }
    loop = server->loop;
    ASSERT_ON_LOOP(loop);
    ASSERT(server->down || !loop->running);
    if (!server->stopping) {
        rpc_server_shutdown(server, 0, NULL, NULL);
    } else if (!server->down) {
        on_grace(server);
    }
    while (!server->down) {
        rpc_loop_turn(loop);
    }
    grpc_server_destroy(server->grpc);
    server_free(server);
    loop->n_alive--;
}
