/* cluster/rpc_grpc_client.c - channels, and the client's side of a call.
 *
 * A call starts with three batches: the one that will bring the status (alone: it always comes
 * back, so it is the end of the call), the first read, and headers with whatever can go with them.
 * Reading goes on until gRPC says that nothing more comes; gRPC holds the status back until then,
 * so messages never come after on_done. */
#include "cluster/rpc_grpc.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rpc_channel {
    struct rpc_loop *loop; /* borrowed */
    grpc_channel *grpc;    /* owned */
    grpc_slice bearer;     /* owned; "Bearer X", empty: none */
    uint32_t message_bytes_max, send_queue_max;
    struct rpc_call *calls; /* owned by themselves; linked so that a destroy can end them */
};

/* ---- channel ---- */

static status config_check(const struct rpc_channel_config *config, struct err *err)
{
    const char *colon = config->target == NULL ? NULL : strrchr(config->target, ':');

    if (colon == NULL || colon == config->target || colon[1] == '\0') {
        return err_set(err, ST_ERR_ARG, "target \"%s\" is not host:port",
                       config->target == NULL ? "" : config->target);
    }
    if ((config->tls_cert_pem == NULL) != (config->tls_key_pem == NULL)) {
        return err_set(err, ST_ERR_ARG, "%s: a client certificate and its key go together",
                       config->target);
    }
    if (config->tls_cert_pem != NULL && config->tls_ca_pem == NULL) {
        return err_set(err, ST_ERR_ARG,
                       "%s: a client certificate, but no CA to check the server by",
                       config->target);
    }
    return config->token == NULL ? ST_OK : rpc_token_check(config->token, err);
}

static grpc_channel_credentials *credentials(const struct rpc_channel_config *config)
{
    grpc_ssl_pem_key_cert_pair pair = { config->tls_key_pem, config->tls_cert_pem };

    if (config->tls_ca_pem == NULL) {
        return grpc_insecure_credentials_create();
    }
    return grpc_ssl_credentials_create_ex(config->tls_ca_pem,
                                          config->tls_cert_pem == NULL ? NULL : &pair, NULL, NULL);
}

/* Inside a cluster a name is an address: no proxy, no service configuration from the DNS, no
 * connection shared with another channel of this process, no silent retries; and a peer that comes
 * back is found again within seconds (gRPC would wait up to two minutes). */
static void channel_args(struct rpc_args *args)
{
    rpc_args_int(args, GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    rpc_args_int(args, GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    rpc_args_int(args, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    rpc_args_int(args, GRPC_ARG_ENABLE_RETRIES, 0);
    rpc_args_int(args, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
    rpc_args_int(args, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
    rpc_args_int(args, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000); /* = the time one attempt has */
}

static grpc_slice bearer_slice(const char *token)
{
    static const char word[] = "Bearer ";
    grpc_slice slice;
    size_t len;

    if (token == NULL) {
        return grpc_empty_slice();
    }
    len = strlen(token);
    slice = grpc_slice_malloc(sizeof(word) - 1 + len);
    memcpy(GRPC_SLICE_START_PTR(slice), word, sizeof(word) - 1);
    memcpy(GRPC_SLICE_START_PTR(slice) + sizeof(word) - 1, token, len);
    return slice;
}

status rpc_channel_create(struct rpc_loop *loop, const struct rpc_channel_config *config,
                          struct rpc_channel **channel_p, struct err *err)
{
    struct rpc_channel *channel;
    grpc_channel_credentials *creds;
    grpc_channel_args list;
    struct rpc_args args = { .count = 0 };
    status st = config_check(config, err);

    ASSERT_ON_LOOP(loop);
    if (st != ST_OK) {
        return st;
    }
    channel = calloc(1, sizeof(*channel));
    if (channel == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a channel to %s", config->target);
    }
    channel->loop = loop;
    channel->message_bytes_max =
        config->message_bytes_max == 0 ? RPC_MESSAGE_BYTES_DEFAULT : config->message_bytes_max;
    channel->send_queue_max =
        config->send_queue_max == 0 ? RPC_SEND_QUEUE_DEFAULT : config->send_queue_max;
    channel->bearer = bearer_slice(config->token);
    channel_args(&args);
    rpc_args_common(&args, channel->message_bytes_max, config->keepalive_ms);
    list = rpc_args_get(&args);
    creds = credentials(config);
    channel->grpc = grpc_channel_create(config->target, creds, &list);
    grpc_channel_credentials_release(creds);
    loop->n_alive++;
    *channel_p = channel;
    return ST_OK;
}

void rpc_channel_destroy(struct rpc_channel *channel)
{
    struct rpc_loop *loop;

    if (channel == NULL) {
        return;
    }
    loop = channel->loop;
    ASSERT_ON_LOOP(loop);
    ASSERT(channel->calls == NULL || !loop->running);
    for (struct rpc_call *call = channel->calls; call != NULL; call = call->next) {
        rpc_call_cancel(call);
    }
    while (channel->calls != NULL) {
        rpc_loop_turn(loop);
    }
    grpc_channel_destroy(channel->grpc);
    grpc_slice_unref(channel->bearer);
    free(channel);
    loop->n_alive--;
}

/* ---- a call ---- */

static void link_call(struct rpc_channel *channel, struct rpc_call *call)
{
    call->next = channel->calls;
    if (call->next != NULL) {
        call->next->prev = call;
    }
    channel->calls = call;
}

static void unlink_call(struct rpc_channel *channel, struct rpc_call *call)
{
    if (call->prev != NULL) {
        call->prev->next = call->next;
    } else {
        channel->calls = call->next;
    }
    if (call->next != NULL) {
        call->next->prev = call->prev;
    }
}

void rpc_client_call_read(struct rpc_call *call, bool ok)
{
    struct rpc_bytes bytes;
    grpc_byte_buffer *message = call->read;

    call->read = NULL;
    if (message == NULL) {
        return; /* nothing more comes: the status follows */
    }
    call->n_messages++;
    if (call->kind == RPC_UNARY && call->n_messages > 1) {
        call->extra_message = true;
        rpc_call_cancel(call);
    }
    if (!rpc_bytes_open(&bytes, message)) {
        rpc_call_cancel(call);
    } else if (ok && !call->ended && call->client->on_message != NULL) {
        call->client->on_message(call->arg, call, bytes.data, bytes.len);
    }
    rpc_bytes_close(&bytes);
    rpc_call_read(call); /* also after a cancel: it comes back empty at once */
}

static void on_status(void *self, bool ok)
{
    struct rpc_call *call = self;

    (void)ok; /* always true */
    call->closed = true;
    rpc_call_op_done(call);
}

/* The text of the status, as a C string. `text` is [RPC_TEXT_BYTES_MAX * 2]. */
static status outcome(const struct rpc_call *call, char *text, size_t text_bytes)
{
    const size_t len = MIN(GRPC_SLICE_LENGTH(call->code_text), text_bytes - 1);

    if (call->extra_message ||
        (call->code == GRPC_STATUS_OK && call->kind == RPC_UNARY && call->n_messages == 0)) {
        snprintf(text, text_bytes,
                 "the server broke the protocol: %" PRIu64 " messages in answer to a unary call",
                 call->n_messages);
        return ST_ERR_PROTO;
    }
    memcpy(text, GRPC_SLICE_START_PTR(call->code_text), len);
    text[len] = '\0';
    /* gRPC's own words for these two do not say what happened. */
    if (strncmp(text, "empty address list", 18) == 0) {
        snprintf(text, text_bytes, "no connection can be tried: the CA or certificate is unusable");
    } else if (strcmp(text, "Socket closed") == 0) {
        snprintf(text, text_bytes, "the server is gone: its connection broke under way");
    }
    return rpc_status((int)call->code);
}

void rpc_client_call_over(struct rpc_call *call)
{
    char text[RPC_TEXT_BYTES_MAX * 2];
    const status st = outcome(call, text, sizeof(text));

    unlink_call(call->channel, call); /* before on_done, which may destroy the channel */
    call->channel = NULL;
    call->ended = true;
    call->client->on_done(call->arg, call, st, text);
    rpc_call_free(call);
}

static void call_begin(struct rpc_call *call)
{
    grpc_op op = { .op = GRPC_OP_RECV_STATUS_ON_CLIENT };

    op.data.recv_status_on_client.trailing_metadata = &call->trailing_md;
    op.data.recv_status_on_client.status = &call->code;
    op.data.recv_status_on_client.status_details = &call->code_text;
    rpc_call_batch(call, &op, 1, &call->close_tag);
    rpc_call_read(call);
    rpc_call_pump(call, true);
}

static status start_check(const struct rpc_channel *channel, const struct rpc_call_config *config,
                          struct err *err)
{
    ASSERT_ON_LOOP(channel->loop);
    ASSERT(config->client != NULL && config->client->on_done != NULL);
    if (config->path == NULL || config->path[0] != '/') {
        return err_set(err, ST_ERR_ARG, "method path \"%s\" does not start with /",
                       config->path == NULL ? "" : config->path);
    }
    if (config->len > channel->message_bytes_max) {
        return err_set(err, ST_ERR_LIMIT, "%s: a request of %zu bytes, at most %u", config->path,
                       config->len, channel->message_bytes_max);
    }
    return ST_OK;
}

status rpc_call_start(struct rpc_channel *channel, const struct rpc_call_config *config,
                      struct rpc_call **call_p, struct err *err)
{
    struct rpc_call *call;
    grpc_slice path;
    status st = start_check(channel, config, err);

    if (st != ST_OK) {
        return st;
    }
    call = rpc_call_create(channel->loop, on_status);
    if (call == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a call of %s", config->path);
    }
    call->kind = config->kind;
    call->deadline_ns = config->deadline_ns;
    call->client = config->client;
    call->arg = config->arg;
    call->message_bytes_max = channel->message_bytes_max;
    call->send_queue_max = channel->send_queue_max;
    call->meta_flags = config->wait_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0;
    call->auth.key = grpc_slice_from_static_string("authorization");
    call->auth.value = channel->bearer; /* borrowed: the channel outlives its calls */
    if (config->kind != RPC_BIDI || config->data != NULL) {
        st = rpc_call_queue(call, config->data, config->len);
        if (st != ST_OK) {
            rpc_call_free(call);
            return err_set(err, st, "no memory for a request to %s", config->path);
        }
    }
    path = grpc_slice_from_copied_string(config->path);
    call->grpc =
        grpc_channel_create_call(channel->grpc, NULL, GRPC_PROPAGATE_DEFAULTS, channel->loop->cq,
                                 path, NULL, rpc_gpr_from_ns(config->deadline_ns), NULL);
    grpc_slice_unref(path);
    call->fin = config->kind != RPC_BIDI;
    call->channel = channel;
    link_call(channel, call);
    if (config->deadline_ns <= clock_now_ns(clock_real())) {
        /* gRPC looks at its timers later than at a fast answer: such a call may well succeed. */
        grpc_call_cancel_with_status(call->grpc, GRPC_STATUS_DEADLINE_EXCEEDED,
                                     "the deadline had passed before the call", NULL);
    }
    *call_p = call;
    call_begin(call);
    return ST_OK;
}
