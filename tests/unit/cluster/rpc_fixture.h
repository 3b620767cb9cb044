/* tests/unit/cluster/rpc_fixture.h - a server and a client on one loop, and what they saw.
 *
 * One thread does everything: a case starts calls, then runs the loop until the case's condition
 * calls rpc_loop_stop. A watchdog timer fails a case that would hang. */
#ifndef RPC_FIXTURE_H
#define RPC_FIXTURE_H

#include "base/clock.h"
#include "cluster/rpc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { STREAM_MESSAGES = 10000 };

struct fixture {
    struct rpc_loop *loop;
    struct rpc_server *server;
    struct rpc_channel *channel;
    char target[64];
    struct rpc_timer watchdog;

    /* What the server saw. */
    uint32_t n_requests, n_done, n_cancelled, n_writable, n_busy;
    bool half_closed;
    uint64_t deadline_ns;
    uint32_t i_stream;     /* next message of /t/Stream */
    struct rpc_call *held; /* the call of /t/Hold */
    uint32_t n_sunk;
    bool stop_on_server_done;
    char peer[128];

    /* What the client saw. */
    uint32_t n_messages, n_client_done;
    uint64_t bytes;
    char last[256];
    status st;
    char text[2048];
    bool down;
};

static inline uint64_t in_ms(uint64_t ms)
{
    return clock_now_ns(clock_real()) + ms * NS_PER_MS;
}

/* ---- the server's methods ---- */

static inline void echo_request(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    f->n_requests++;
    f->deadline_ns = rpc_call_deadline_ns(call);
    snprintf(f->peer, sizeof(f->peer), "%s", rpc_call_peer(call));
    rpc_call_reply(call, data, len);
}

static inline void stream_some(void *arg, struct rpc_call *call)
{
    struct fixture *f = arg;

    while (f->i_stream < STREAM_MESSAGES) {
        const status st = rpc_call_send(call, &f->i_stream, sizeof(f->i_stream));

        if (st == ST_BUSY) {
            f->n_busy++;
            return;
        }
        if (st != ST_OK) {
            return;
        }
        f->i_stream++;
    }
    rpc_call_finish(call, ST_OK, NULL);
}

static inline void stream_request(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    (void)data;
    (void)len;
    f->n_requests++;
    f->i_stream = 0;
    stream_some(arg, call);
}

static inline void stream_writable(void *arg, struct rpc_call *call)
{
    struct fixture *f = arg;

    f->n_writable++;
    stream_some(arg, call);
}

static inline void ping_open(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    (void)call;
    assert_null(data);
    assert_int_equal(len, 0);
    f->n_requests++;
}

static inline void ping_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    if (data == NULL) {
        f->half_closed = true;
        rpc_call_finish(call, ST_OK, NULL);
        return;
    }
    assert_int_equal(rpc_call_send(call, data, len), ST_OK);
}

/* Answers nothing and keeps the call. */
static inline void hold_request(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    (void)data;
    (void)len;
    f->n_requests++;
    f->held = call;
    f->deadline_ns = rpc_call_deadline_ns(call);
}

static inline void hold_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    (void)arg;
    (void)call;
    (void)data;
    (void)len;
}

/* Takes all, and says at the end how much it was. */
static inline void sink_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    if (data == NULL) {
        assert_int_equal(rpc_call_send(call, &f->n_sunk, sizeof(f->n_sunk)), ST_OK);
        rpc_call_finish(call, ST_OK, NULL);
        return;
    }
    assert_int_equal(len, sizeof(f->n_sunk));
    assert_memory_equal(data, &f->n_sunk, len); /* in order, none lost */
    f->n_sunk++;
}

/* Fails with the request as text, after two messages. */
static inline void fail_request(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;
    char text[4096];

    f->n_requests++;
    assert_true(len < sizeof(text));
    memcpy(text, data, len);
    text[len] = '\0';
    assert_int_equal(rpc_call_send(call, "one", 3), ST_OK);
    assert_int_equal(rpc_call_send(call, "two", 3), ST_OK);
    rpc_call_finish(call, ST_ERR_DENIED, text);
    assert_int_equal(rpc_call_send(call, "three", 5), ST_ERR_PEER);
    rpc_call_finish(call, ST_OK, "a second finish does nothing");
}

static inline void server_done(void *arg, struct rpc_call *call, bool cancelled)
{
    struct fixture *f = arg;

    f->n_done++;
    f->n_cancelled += cancelled;
    if (f->held == call) {
        f->held = NULL;
    }
    if (f->stop_on_server_done) {
        rpc_loop_stop(f->loop);
    }
}

static const struct rpc_method methods[] = {
    { "/t/Echo", RPC_UNARY, echo_request, NULL, NULL, server_done, false },
    { "/t/Open", RPC_UNARY, echo_request, NULL, NULL, server_done, true },
    { "/t/Stream", RPC_SERVER_STREAM, stream_request, NULL, stream_writable, server_done, false },
    { "/t/Fail", RPC_SERVER_STREAM, fail_request, NULL, NULL, server_done, false },
    { "/t/Hold", RPC_SERVER_STREAM, hold_request, NULL, NULL, server_done, false },
    { "/t/HoldUnary", RPC_UNARY, hold_request, NULL, NULL, server_done, false },
    { "/t/HoldBidi", RPC_BIDI, hold_request, hold_message, NULL, server_done, false },
    { "/t/Sink", RPC_BIDI, ping_open, sink_message, NULL, server_done, false },
    { "/t/Ping", RPC_BIDI, ping_open, ping_message, NULL, server_done, false },
};

/* ---- the client ---- */

static inline void client_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    (void)call;
    assert_non_null(data);
    f->n_messages++;
    f->bytes += len;
    memcpy(f->last, data, len < sizeof(f->last) ? len : sizeof(f->last));
}

static inline void client_done(void *arg, struct rpc_call *call, status st, const char *text)
{
    struct fixture *f = arg;

    (void)call;
    f->n_client_done++;
    f->st = st;
    snprintf(f->text, sizeof(f->text), "%s", text);
    if (!f->stop_on_server_done) {
        rpc_loop_stop(f->loop);
    }
}

static const struct rpc_client client = { client_message, NULL, client_done };

/* ---- set-up ---- */

static inline void hung(void *arg)
{
    (void)arg;
    fprintf(stderr, "the case hangs\n");
    abort();
}

static inline void fixture_server(struct fixture *f, const struct rpc_server_config *changes)
{
    struct rpc_server_config config = { .listen = "127.0.0.1:0" };
    struct err err = ERR_INIT;

    if (changes != NULL) {
        config = *changes;
    }
    config.methods = methods;
    config.n_methods = sizeof(methods) / sizeof(methods[0]);
    config.arg = f;
    if (rpc_server_create(f->loop, &config, &f->server, &err) != ST_OK) {
        fail_msg("server: %s", err.text);
    }
    snprintf(f->target, sizeof(f->target), "127.0.0.1:%u", rpc_server_port(f->server));
}

static inline void fixture_channel(struct fixture *f, const struct rpc_channel_config *changes)
{
    struct rpc_channel_config config = { 0 };
    struct err err = ERR_INIT;

    if (changes != NULL) {
        config = *changes;
    }
    config.target = f->target;
    if (rpc_channel_create(f->loop, &config, &f->channel, &err) != ST_OK) {
        fail_msg("channel: %s", err.text);
    }
}

static inline void fixture_loop(struct fixture *f)
{
    struct err err = ERR_INIT;

    memset(f, 0, sizeof(*f));
    assert_int_equal(rpc_loop_create(&f->loop, &err), ST_OK);
    f->watchdog.fn = hung;
    assert_int_equal(rpc_timer_set(f->loop, &f->watchdog, in_ms(20000)), ST_OK);
}

static inline void fixture_open(struct fixture *f)
{
    fixture_loop(f);
    fixture_server(f, NULL);
    fixture_channel(f, NULL);
}

static inline void fixture_close(struct fixture *f)
{
    rpc_channel_destroy(f->channel);
    rpc_server_destroy(f->server);
    rpc_loop_destroy(f->loop);
}

static inline struct rpc_call *call_start(struct fixture *f, const char *path, enum rpc_kind kind,
                                          const void *data, size_t len, uint64_t deadline_ns)
{
    const struct rpc_call_config config = { .path = path,
                                            .kind = kind,
                                            .data = data,
                                            .len = len,
                                            .deadline_ns = deadline_ns,
                                            .client = &client,
                                            .arg = f };
    struct rpc_call *call = NULL;
    struct err err = ERR_INIT;

    if (rpc_call_start(f->channel, &config, &call, &err) != ST_OK) {
        fail_msg("call: %s", err.text);
    }
    return call;
}

#endif
