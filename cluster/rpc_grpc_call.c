/* cluster/rpc_grpc_call.c - what the two sides of a call have in common: its batches, its write
 * queue and its end.
 *
 *   rpc_call_send ─► ring ─► pump ─► one write with gRPC ─► its tag ─► pump ─► ... ─► fin
 *
 * gRPC lets a write's tag come back when flow control has taken its bytes, so a peer that does not
 * read fills the ring and then the sender is told ST_BUSY. The pump is the only place that writes:
 * headers, messages and the last word (status or half-close) share batches where they can, which
 * makes a unary answer one batch.
 *
 * A call ends when gRPC's last word came (`closed`) and every batch has come back; then on_done is
 * called and the object is freed. Both happen in tag handlers only, never inside a call from the
 * user, so a user may finish or cancel from any callback. */
#include "cluster/rpc_grpc.h"

#include <stdlib.h>
#include <string.h>

static void on_read(void *self, bool ok);
static void on_write(void *self, bool ok);

/* ---- life ---- */

struct rpc_call *rpc_call_create(struct rpc_loop *loop, void (*on_close)(void *self, bool ok))
{
    struct rpc_call *call = calloc(1, sizeof(*call));

    if (call == NULL) {
        return NULL;
    }
    call->loop = loop;
    call->close_tag = (struct rpc_tag){ on_close, call };
    call->read_tag = (struct rpc_tag){ on_read, call };
    call->write_tag = (struct rpc_tag){ on_write, call };
    call->deadline_ns = CLOCK_NEVER;
    call->fin_text = grpc_empty_slice();
    call->code_text = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial_md);
    grpc_metadata_array_init(&call->trailing_md);
    loop->n_alive++;
    return call;
}

void rpc_call_free(struct rpc_call *call)
{
    ASSERT(call->n_ops == 0);
    while (call->queue_count > 0) {
        grpc_byte_buffer_destroy(call->queue[call->queue_head]);
        call->queue_head = (call->queue_head + 1) % call->queue_cap;
        call->queue_count--;
    }
    free(call->queue);
    grpc_byte_buffer_destroy(call->writing);
    grpc_byte_buffer_destroy(call->read);
    grpc_slice_unref(call->fin_text);
    grpc_slice_unref(call->code_text);
    grpc_metadata_array_destroy(&call->initial_md);
    grpc_metadata_array_destroy(&call->trailing_md);
    gpr_free(call->peer);
    if (call->grpc != NULL) {
        grpc_call_unref(call->grpc);
    }
    call->loop->n_alive--;
    free(call);
}

void rpc_call_batch(struct rpc_call *call, const grpc_op *ops, size_t n_ops, struct rpc_tag *tag)
{
    const grpc_call_error e = grpc_call_start_batch(call->grpc, ops, n_ops, tag, NULL);

    ASSERT(e == GRPC_CALL_OK); /* anything else is a batch that should not have been made */
    call->n_ops++;
}

void rpc_call_op_done(struct rpc_call *call)
{
    ASSERT(call->n_ops > 0);
    if (--call->n_ops > 0 || !call->closed) {
        return;
    }
    if (call->server != NULL) {
        rpc_server_call_over(call);
    } else {
        rpc_client_call_over(call);
    }
}

/* ---- writing ---- */

static status queue_grow(struct rpc_call *call)
{
    const uint32_t cap = call->queue_cap == 0 ? 8 : call->queue_cap * 2;
    grpc_byte_buffer **queue = calloc(cap, sizeof(queue[0]));

    if (queue == NULL) {
        return ST_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < call->queue_count; i++) {
        queue[i] = call->queue[(call->queue_head + i) % call->queue_cap];
    }
    free(call->queue);
    call->queue = queue;
    call->queue_cap = cap;
    call->queue_head = 0;
    return ST_OK;
}

status rpc_call_queue(struct rpc_call *call, const void *data, size_t len)
{
    grpc_slice slice;

    if (call->queue_count == call->queue_cap && queue_grow(call) != ST_OK) {
        return ST_ERR_NOMEM;
    }
    slice = len == 0 ? grpc_empty_slice() : grpc_slice_from_copied_buffer(data, len);
    call->queue[(call->queue_head + call->queue_count) % call->queue_cap] =
        grpc_raw_byte_buffer_create(&slice, 1);
    call->queue_count++;
    grpc_slice_unref(slice);
    return ST_OK;
}

static grpc_op op_initial_metadata(struct rpc_call *call)
{
    grpc_op op = { .op = GRPC_OP_SEND_INITIAL_METADATA, .flags = call->meta_flags };

    if (call->channel != NULL && GRPC_SLICE_LENGTH(call->auth.value) > 0) {
        op.data.send_initial_metadata.metadata = &call->auth;
        op.data.send_initial_metadata.count = 1;
    }
    return op;
}

/* With messages behind it a message may wait in gRPC's write buffer, which halves the system calls.
 * Never in the batch of the headers: gRPC then sends neither, and nothing comes back. */
static grpc_op op_message(struct rpc_call *call, bool with_headers)
{
    grpc_op op = { .op = GRPC_OP_SEND_MESSAGE };

    call->writing = call->queue[call->queue_head];
    call->queue_head = (call->queue_head + 1) % call->queue_cap;
    call->queue_count--;
    op.data.send_message.send_message = call->writing;
    if (call->queue_count > 0 && !with_headers) {
        op.flags = GRPC_WRITE_BUFFER_HINT;
    }
    return op;
}

static grpc_op op_fin(struct rpc_call *call)
{
    grpc_op op = { .op = GRPC_OP_SEND_CLOSE_FROM_CLIENT };

    if (call->server != NULL) {
        op.op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        op.data.send_status_from_server.status = call->fin_code;
        op.data.send_status_from_server.status_details = &call->fin_text;
    }
    return op;
}

void rpc_call_pump(struct rpc_call *call, bool meta)
{
    grpc_op ops[3];
    size_t n = 0;
    const bool headers = !call->meta_sent;

    if (call->write_out || call->closed || call->broken) {
        return;
    }
    if (call->queue_count == 0 && !(call->fin && !call->fin_sent) && !(meta && headers)) {
        return;
    }
    if (headers) {
        ops[n++] = op_initial_metadata(call);
        call->meta_sent = true;
    }
    if (call->queue_count > 0) {
        ops[n++] = op_message(call, headers);
    }
    if (call->queue_count == 0 && call->fin && !call->fin_sent) {
        ops[n++] = op_fin(call);
        call->fin_sent = true;
    }
    call->write_out = true;
    rpc_call_batch(call, ops, n, &call->write_tag);
}

static void on_write(void *self, bool ok)
{
    struct rpc_call *call = self;

    call->write_out = false;
    grpc_byte_buffer_destroy(call->writing);
    call->writing = NULL;
    call->broken = call->broken || !ok;
    rpc_call_pump(call, false);
    /* Half empty, not one place: a sender that fills the room at once then comes round half a queue
     * later instead of for every message. */
    if (call->want_room && call->queue_count <= call->send_queue_max / 2 && !call->ended &&
        !call->closed && !call->broken) {
        call->want_room = false;
        if (call->server != NULL && call->method->on_writable != NULL) {
            call->method->on_writable(call->server->arg, call);
        } else if (call->channel != NULL && call->client->on_writable != NULL) {
            call->client->on_writable(call->arg, call);
        }
    }
    rpc_call_op_done(call);
}

/* ---- reading ---- */

static void on_read(void *self, bool ok)
{
    struct rpc_call *call = self;

    if (call->server != NULL) {
        rpc_server_call_read(call, ok);
    } else {
        rpc_client_call_read(call, ok);
    }
    rpc_call_op_done(call);
}

void rpc_call_read(struct rpc_call *call)
{
    grpc_op ops[2];
    size_t n = 0;

    if (call->server == NULL && !call->initial_asked) {
        call->initial_asked = true;
        ops[n] = (grpc_op){ .op = GRPC_OP_RECV_INITIAL_METADATA };
        ops[n++].data.recv_initial_metadata.recv_initial_metadata = &call->initial_md;
    }
    ops[n] = (grpc_op){ .op = GRPC_OP_RECV_MESSAGE };
    ops[n++].data.recv_message.recv_message = &call->read;
    rpc_call_batch(call, ops, n, &call->read_tag);
}

bool rpc_bytes_open(struct rpc_bytes *bytes, grpc_byte_buffer *buffer)
{
    grpc_slice *first = NULL;

    *bytes = (struct rpc_bytes){ .buffer = buffer, .data = "" };
    bytes->is_open = grpc_byte_buffer_reader_init(&bytes->reader, buffer) != 0;
    if (!bytes->is_open) {
        return false;
    }
    bytes->len = grpc_byte_buffer_length(buffer);
    if (bytes->len == 0) {
        return true;
    }
    if (grpc_byte_buffer_reader_peek(&bytes->reader, &first) &&
        GRPC_SLICE_LENGTH(*first) == bytes->len) {
        bytes->data = GRPC_SLICE_START_PTR(*first);
        return true;
    }
    grpc_byte_buffer_reader_destroy(&bytes->reader); /* peek has moved it past the first slice */
    bytes->is_open = grpc_byte_buffer_reader_init(&bytes->reader, buffer) != 0;
    ASSERT(bytes->is_open);
    bytes->joined = grpc_byte_buffer_reader_readall(&bytes->reader);
    bytes->is_joined = true;
    bytes->data = GRPC_SLICE_START_PTR(bytes->joined);
    bytes->len = GRPC_SLICE_LENGTH(bytes->joined);
    return true;
}

void rpc_bytes_close(struct rpc_bytes *bytes)
{
    if (bytes->is_joined) {
        grpc_slice_unref(bytes->joined);
    }
    if (bytes->is_open) {
        grpc_byte_buffer_reader_destroy(&bytes->reader);
    }
    grpc_byte_buffer_destroy(bytes->buffer);
}

/* ---- the header's calls ---- */

status rpc_call_send(struct rpc_call *call, const void *data, size_t len)
{
    status st;

    ASSERT_ON_LOOP(call->loop);
    ASSERT(call->server != NULL ? call->kind != RPC_UNARY : call->kind == RPC_BIDI);
    if (call->ended || call->closed || call->broken || call->fin) {
        return ST_ERR_PEER;
    }
    if (len > call->message_bytes_max) {
        return ST_ERR_LIMIT;
    }
    if (call->queue_count >= call->send_queue_max) {
        call->want_room = true;
        return ST_BUSY;
    }
    st = rpc_call_queue(call, data, len);
    if (st == ST_OK) {
        rpc_call_pump(call, false);
    }
    return st;
}

void rpc_call_half_close(struct rpc_call *call)
{
    ASSERT_ON_LOOP(call->loop);
    ASSERT(call->server == NULL && call->kind == RPC_BIDI);
    if (!call->ended) {
        call->fin = true;
        rpc_call_pump(call, false);
    }
}

void rpc_call_cancel(struct rpc_call *call)
{
    ASSERT_ON_LOOP(call->loop);
    call->ended = true;
    call->broken = true; /* what still waits in the queue is not sent */
    if (!call->closed) {
        grpc_call_cancel(call->grpc, NULL);
    }
}

void rpc_call_set_user(struct rpc_call *call, void *user)
{
    call->user = user;
}

void *rpc_call_user(const struct rpc_call *call)
{
    return call->user;
}

uint64_t rpc_call_deadline_ns(const struct rpc_call *call)
{
    return call->deadline_ns;
}

const char *rpc_call_peer(const struct rpc_call *call)
{
    struct rpc_call *c = (struct rpc_call *)(uintptr_t)call; /* fills a cache */

    if (c->peer == NULL) {
        c->peer = grpc_call_get_peer(c->grpc);
    }
    return c->peer == NULL ? "unknown" : c->peer;
}

/* ---- arguments of channels and servers ---- */

void rpc_args_int(struct rpc_args *args, const char *key, int value)
{
    grpc_arg *arg = &args->items[args->count++];

    ASSERT(args->count <= ARRAY_LEN(args->items));
    arg->type = GRPC_ARG_INTEGER;
    arg->key = (char *)(uintptr_t)key; /* gRPC copies it */
    arg->value.integer = value;
}

grpc_channel_args rpc_args_get(struct rpc_args *args)
{
    return (grpc_channel_args){ .num_args = args->count, .args = args->items };
}

void rpc_args_common(struct rpc_args *args, uint32_t message_bytes_max, uint32_t keepalive_ms)
{
    rpc_args_int(args, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)MIN(message_bytes_max, INT32_MAX));
    rpc_args_int(args, GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, (int)MIN(message_bytes_max, INT32_MAX));
    rpc_args_int(args, GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1); /* none but "none" */
    if (keepalive_ms > 0) {
        rpc_args_int(args, GRPC_ARG_KEEPALIVE_TIME_MS, (int)MIN(keepalive_ms, INT32_MAX));
        rpc_args_int(args, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, (int)MIN(keepalive_ms, INT32_MAX));
        rpc_args_int(args, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
        rpc_args_int(args, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0); /* no limit */
    }
}

status rpc_token_check(const char *token, struct err *err)
{
    const grpc_slice slice = grpc_slice_from_static_string(token);

    if (token[0] == '\0') {
        return err_set(err, ST_ERR_ARG, "the token is empty");
    }
    if (!grpc_header_nonbin_value_is_legal(slice)) {
        return err_set(err, ST_ERR_ARG, "the token has a character that no header may carry");
    }
    return ST_OK;
}
