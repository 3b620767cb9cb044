/* cluster/rpc_grpc_accept.c - the server's side of a call, from the slot to on_done.
 *
 * All calls come through generic slots and are matched to the method table here. gRPC's registered
 * methods would read the request before we see who asks; so a stranger could make us hold a message
 * of the maximal size. This way the order is: headers, token, method, limit, and only then the
 * message. A call that is refused is an ordinary call without a method: it is answered and counted
 * like any other, but no callback ever sees it. */
#include "cluster/rpc_grpc.h"

#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ---- the token ---- */

static const char no_token[] = "this server wants a token: authorization: Bearer <token>";
static const char bad_token[] = "the token in the authorization header is not this server's";

/* Time does not depend on where the bytes differ; that the length leaks is harmless. */
static bool equal_const_time(const uint8_t *a, size_t a_len, const char *b, size_t b_len)
{
    volatile uint8_t diff = a_len != b_len;

    for (size_t i = 0; i < a_len; i++) {
        diff = (uint8_t)(diff | (a[i] ^ (uint8_t)b[i % b_len]));
    }
    return diff == 0;
}

/* NULL: let in. Else the sentence of the refusal. */
static const char *token_refusal(const struct rpc_server *server, const grpc_metadata_array *md)
{
    static const char key[] = "authorization", scheme[] = "Bearer ";
    const size_t scheme_len = sizeof(scheme) - 1;
    const char *refusal = no_token;

    for (size_t i = 0; i < md->count; i++) {
        const grpc_slice *value = &md->metadata[i].value;
        const uint8_t *bytes = GRPC_SLICE_START_PTR(*value);
        const size_t len = GRPC_SLICE_LENGTH(*value);

        if (grpc_slice_str_cmp(md->metadata[i].key, key) != 0) {
            continue;
        }
        if (len < scheme_len || strncasecmp((const char *)bytes, scheme, scheme_len) != 0 ||
            !equal_const_time(bytes + scheme_len, len - scheme_len, server->token,
                              server->token_len)) {
            return bad_token; /* also if another header is right: two answers are none */
        }
        refusal = NULL;
    }
    return refusal;
}

/* ---- slots ---- */

static const struct rpc_method *method_find(const struct rpc_server *server, grpc_slice path)
{
    for (uint32_t i = 0; i < server->n_methods; i++) {
        if (grpc_slice_str_cmp(path, server->methods[i].path) == 0) {
            return &server->methods[i];
        }
    }
    return NULL;
}

/* What stands against this call; ST_OK and its method if nothing. `text` is [RPC_TEXT_BYTES_MAX] */
static status judge(const struct rpc_server *server, const struct rpc_slot *slot,
                    const struct rpc_method **method_p, char *text)
{
    const struct rpc_method *method = method_find(server, slot->details.method);
    const bool open = server->token == NULL || (method != NULL && method->no_auth);
    const char *refusal = open ? NULL : token_refusal(server, &slot->md);

    if (refusal != NULL) {
        snprintf(text, RPC_TEXT_BYTES_MAX, "%s", refusal);
        return ST_ERR_UNAUTH;
    }
    if (method == NULL) {
        snprintf(text, RPC_TEXT_BYTES_MAX, "this server has no method %.*s",
                 (int)MIN(GRPC_SLICE_LENGTH(slot->details.method), 256),
                 (const char *)GRPC_SLICE_START_PTR(slot->details.method));
        return ST_ERR_UNSUPPORTED;
    }
    if (server->n_calls >= server->calls_max) {
        snprintf(text, RPC_TEXT_BYTES_MAX, "%u calls are open, this server takes no more",
                 server->n_calls);
        return ST_ERR_LIMIT;
    }
    *method_p = method;
    return ST_OK;
}

static void on_close(void *self, bool ok)
{
    struct rpc_call *call = self;

    (void)ok;
    call->closed = true;
    rpc_call_op_done(call);
}

/* Watch for the end from the start, and alone: with other operations in the batch it would be
 * noticed only when they are done. */
static void watch_close(struct rpc_call *call)
{
    grpc_op op = { .op = GRPC_OP_RECV_CLOSE_ON_SERVER };

    op.data.recv_close_on_server.cancelled = &call->cancelled;
    rpc_call_batch(call, &op, 1, &call->close_tag);
}

static void dispatch(struct rpc_call *call)
{
    if (call->kind == RPC_BIDI) {
        call->requested = true;
        call->method->on_request(call->server->arg, call, NULL, 0);
        rpc_call_pump(call, true); /* the client learns at once that it is let in */
    }
    if (!call->ended) {
        rpc_call_read(call);
    }
}

static void accept_call(struct rpc_server *server, struct rpc_slot *slot)
{
    const struct rpc_method *method = NULL;
    char text[RPC_TEXT_BYTES_MAX];
    const status st = judge(server, slot, &method, text);
    struct rpc_call *call = rpc_call_create(server->loop, on_close);

    if (call == NULL) {
        grpc_call_cancel_with_status(slot->call, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                     "no memory for a call", NULL);
        grpc_call_unref(slot->call);
        return;
    }
    call->grpc = slot->call;
    call->server = server;
    call->method = method;
    call->kind = method == NULL ? RPC_UNARY : method->kind;
    call->deadline_ns = rpc_ns_from_gpr(slot->details.deadline);
    call->message_bytes_max = server->message_bytes_max;
    call->send_queue_max = server->send_queue_max;
    server->n_calls++;
    watch_close(call);
    if (st != ST_OK) {
        log_debug("rpc", "refused a call from %s: %s", rpc_call_peer(call), text);
        rpc_call_finish(call, st, text);
    } else {
        dispatch(call);
    }
}

static void slot_clear(struct rpc_slot *slot)
{
    grpc_call_details_destroy(&slot->details);
    grpc_metadata_array_destroy(&slot->md);
}

static void on_slot(void *self, bool ok)
{
    struct rpc_slot *slot = self;
    struct rpc_server *server = slot->server;

    server->n_slots--;
    if (ok) {
        accept_call(server, slot);
    }
    slot_clear(slot);
    if (ok && !server->stopping) {
        rpc_slot_request(slot, server);
    }
    rpc_server_check_down(server);
}

void rpc_slot_request(struct rpc_slot *slot, struct rpc_server *server)
{
    grpc_call_error e;

    slot->server = server;
    slot->tag = (struct rpc_tag){ on_slot, slot };
    slot->call = NULL;
    grpc_call_details_init(&slot->details);
    grpc_metadata_array_init(&slot->md);
    e = grpc_server_request_call(server->grpc, &slot->call, &slot->details, &slot->md,
                                 server->loop->cq, server->loop->cq, &slot->tag);
    ASSERT(e == GRPC_CALL_OK);
    server->n_slots++;
}

/* ---- a call ---- */

void rpc_server_call_read(struct rpc_call *call, bool ok)
{
    struct rpc_bytes bytes;
    grpc_byte_buffer *message = call->read;
    const struct rpc_method *method = call->method;
    const bool wanted = ok && !call->ended && !call->closed;

    call->read = NULL;
    if (message == NULL) {
        if (wanted && call->kind == RPC_BIDI) {
            method->on_message(call->server->arg, call, NULL, 0);
        } else if (wanted) {
            rpc_call_finish(call, ST_ERR_ARG, "the call carries no request message");
        }
        return;
    }
    if (!rpc_bytes_open(&bytes, message)) {
        rpc_call_finish(call, ST_ERR_FORMAT, "the message cannot be decompressed");
    } else if (wanted && call->kind == RPC_BIDI) {
        method->on_message(call->server->arg, call, bytes.data, bytes.len);
    } else if (wanted) {
        call->requested = true;
        method->on_request(call->server->arg, call, bytes.data, bytes.len);
        rpc_call_pump(call, call->kind == RPC_SERVER_STREAM);
    }
    rpc_bytes_close(&bytes);
    if (call->kind == RPC_BIDI && !call->ended && !call->closed) {
        rpc_call_read(call);
    }
}

void rpc_server_call_over(struct rpc_call *call)
{
    struct rpc_server *server = call->server;

    call->ended = true;
    if (call->requested && call->method->on_done != NULL) {
        call->method->on_done(server->arg, call, call->cancelled != 0);
    }
    rpc_call_free(call);
    server->n_calls--;
    rpc_server_check_down(server);
}

/* At most RPC_TEXT_BYTES_MAX bytes, cut between characters. */
static grpc_slice cut_text(const char *text)
{
    size_t len = text == NULL ? 0 : strnlen(text, RPC_TEXT_BYTES_MAX + 1);

    if (len > RPC_TEXT_BYTES_MAX) {
        len = RPC_TEXT_BYTES_MAX;
        while (len > 0 && ((uint8_t)text[len] & 0xc0) == 0x80) {
            len--;
        }
    }
    return len == 0 ? grpc_empty_slice() : grpc_slice_from_copied_buffer(text, len);
}

void rpc_call_finish(struct rpc_call *call, status st, const char *text)
{
    ASSERT_ON_LOOP(call->loop);
    ASSERT(call->server != NULL);
    if (call->ended || call->closed) {
        return; /* cancelled before it could be told, or finished twice */
    }
    call->ended = true;
    call->fin = true;
    call->fin_code = (grpc_status_code)rpc_code(st);
    call->fin_text = cut_text(text);
    rpc_call_pump(call, false);
}

void rpc_call_reply(struct rpc_call *call, const void *data, size_t len)
{
    char text[128];

    ASSERT(call->server != NULL && call->kind == RPC_UNARY);
    if (call->ended || call->closed) {
        return;
    }
    if (len > call->message_bytes_max) {
        snprintf(text, sizeof(text), "the answer has %zu bytes, at most %u may be sent", len,
                 call->message_bytes_max);
        rpc_call_finish(call, ST_ERR_LIMIT, text);
        return;
    }
    if (rpc_call_queue(call, data, len) != ST_OK) {
        rpc_call_finish(call, ST_ERR_NOMEM, "no memory for the answer");
        return;
    }
    rpc_call_finish(call, ST_OK, NULL);
}
