/* cluster/rpc.h - remote calls as the rest of Gantry sees them: method paths and bytes, no gRPC
 * types.
 *
 *   loop (one thread) ── next event ──► callback of a server call, a client call, a timer or a post
 *
 * Everything below runs on the thread that is inside rpc_loop_run, except rpc_loop_post and
 * rpc_loop_stop, which any thread may call. A callback never blocks. Implementation: rpc_grpc*.c
 * (the one place that includes grpc/); a simulated one can stand behind the same header.
 *
 * Back-pressure: one write is outstanding per call, further messages wait in a queue of
 * `send_queue_max`; when it is full rpc_call_send answers ST_BUSY and the caller decides. */
#ifndef CLUSTER_RPC_H
#define CLUSTER_RPC_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct rpc_loop;
struct rpc_server;
struct rpc_channel;
struct rpc_call; /* either side of one call; counted inside, valid until on_done returned */

typedef void (*rpc_fn)(void *arg);

/* ---- loop ---- */

status rpc_loop_create(struct rpc_loop **loop_p, struct err *err);
void rpc_loop_destroy(struct rpc_loop *loop); /* after servers and channels; NULL is fine */
/* Run until rpc_loop_stop; a stop that came first counts. May be run again. */
void rpc_loop_run(struct rpc_loop *loop);
void rpc_loop_stop(struct rpc_loop *loop);
/* Run fn(arg) on the loop thread soon, in order of posting. Any thread. ST_BUSY: 65,536 are
 * waiting. ST_ERR_CANCELLED: the loop was told to stop, nothing was taken. What was posted before
 * rpc_loop_stop is still run. */
status rpc_loop_post(struct rpc_loop *loop, rpc_fn fn, void *arg);
/* A timer owned by the caller: zero it, then set. Setting again moves it; at_ns CLOCK_NEVER
 * disarms. The first 60 that are armed at a time are never refused; ST_ERR_NOMEM. */
struct rpc_timer {
    uint64_t at_ns; /* on clock_real() */
    rpc_fn fn;
    void *arg;
    uint32_t i_heap; /* private: 0 is "not armed" */
};
status rpc_timer_set(struct rpc_loop *loop, struct rpc_timer *timer, uint64_t at_ns);

/* ---- server ---- */

enum rpc_kind {
    RPC_UNARY,         /* on_request once, one rpc_call_reply */
    RPC_SERVER_STREAM, /* on_request once, any number of rpc_call_send, rpc_call_finish */
    RPC_BIDI           /* on_open, on_message any number of times, ... */
};

struct rpc_method {
    const char *path; /* "/gantry.v1.Generation/Generate" */
    enum rpc_kind kind;
    /* UNARY, SERVER_STREAM: the request is here, borrowed for the time of the callback. BIDI:
     * called with NULL, 0 when the call opens. Deadline by rpc_call_deadline_ns. */
    void (*on_request)(void *server_arg, struct rpc_call *call, const void *data, size_t len);
    /* BIDI: one message. NULL data: the client has half-closed. */
    void (*on_message)(void *server_arg, struct rpc_call *call, const void *data, size_t len);
    /* Room again after ST_BUSY. May be NULL. */
    void (*on_writable)(void *server_arg, struct rpc_call *call);
    /* The call is over: finished by us, or cancelled (client gone, deadline, shutdown). Called
     * exactly once for each call that reached on_request; the call is not to be touched after it.
     */
    void (*on_done)(void *server_arg, struct rpc_call *call, bool cancelled);
    bool no_auth; /* served without the token (health) */
};

struct rpc_server_config {
    const char *listen; /* "127.0.0.1:0", "[::1]:50051", "0.0.0.0:50051"; port 0: any. Or
                         * "unix:/path": who can open it needs no token */
    const char *token;  /* bearer token that every call must carry; NULL: none asked. */
    const char *tls_cert_pem, *tls_key_pem, *tls_client_ca_pem; /* contents; NULL: plaintext */
    const struct rpc_method *methods; /* borrowed, lives as long as the server */
    uint32_t n_methods;
    void *arg;                  /* server_arg of the callbacks */
    uint32_t message_bytes_max; /* 0: 4 MiB. Larger requests are refused, larger answers fail */
    uint32_t send_queue_max;    /* messages that may wait per call; 0: 256 */
    uint32_t calls_max;         /* open at one time, more are refused; 0: 16,384 */
    uint32_t keepalive_ms;      /* a client that answers no ping twice this long is gone; 0: 20 s */
};

/* ST_ERR_EXISTS: the address is in use (named). ST_ERR_ARG: not an address. ST_ERR_DENIED: not
 * loopback and neither token nor client certificates. */
status rpc_server_create(struct rpc_loop *loop, const struct rpc_server_config *config,
                         struct rpc_server **server_p, struct err *err);
uint16_t rpc_server_port(const struct rpc_server *server);
/* New calls are refused from here on; `done` is called when every call is over, at `grace_ns` from
 * now the rest is cancelled. Then rpc_server_destroy may be called. */
void rpc_server_shutdown(struct rpc_server *server, uint64_t grace_ns, rpc_fn done, void *arg);
/* After `done`; or, with no thread inside rpc_loop_run, at any time: then what is open is cancelled
 * and reported (on_done) from here. NULL is fine. */
void rpc_server_destroy(struct rpc_server *server);

/* ---- client ---- */

struct rpc_channel_config {
    const char *target; /* "host:port" */
    const char *token;  /* sent as bearer; NULL: none */
    const char *tls_ca_pem, *tls_cert_pem, *tls_key_pem;
    uint32_t message_bytes_max; /* 0: 4 MiB */
    uint32_t send_queue_max;    /* 0: 256 */
    uint32_t keepalive_ms;      /* ping this often and wait this long for the answer; 0: off. gRPC
                                 * 1.51 sends no two pings within a second, whatever this says */
};

status rpc_channel_create(struct rpc_loop *loop, const struct rpc_channel_config *config,
                          struct rpc_channel **channel_p, struct err *err);
/* After its calls are done (the last on_done may do it); or, with no thread inside rpc_loop_run, at
 * any time: then open calls are cancelled and reported from here. NULL is fine. */
void rpc_channel_destroy(struct rpc_channel *channel);

struct rpc_client {
    void (*on_message)(void *arg, struct rpc_call *call, const void *data, size_t len);
    void (*on_writable)(void *arg, struct rpc_call *call); /* may be NULL */
    /* Exactly once. st is ST_OK or the peer's failure mapped back (rpc_status), text its sentence.
     */
    void (*on_done)(void *arg, struct rpc_call *call, status st, const char *text);
};

/* Start a call. UNARY and SERVER_STREAM: `data` is the request, copied. BIDI: data may be NULL.
 * deadline_ns on clock_real(), CLOCK_NEVER: none. wait_ready: wait for the connection instead of
 * failing. */
struct rpc_call_config {
    const char *path;
    enum rpc_kind kind;
    const void *data;
    size_t len;
    uint64_t deadline_ns;
    bool wait_ready;
    const struct rpc_client *client; /* static storage */
    void *arg;
};
status rpc_call_start(struct rpc_channel *channel, const struct rpc_call_config *config,
                      struct rpc_call **call_p, struct err *err);

/* ---- both ---- */

/* Copies. ST_BUSY: the queue is full, nothing was taken; on_writable follows when it is half empty.
 * ST_ERR_PEER: the call is over. ST_ERR_LIMIT: more than message_bytes_max. ST_ERR_NOMEM. */
status rpc_call_send(struct rpc_call *call, const void *data, size_t len);
/* Server: end a stream. st < 0: its gRPC code and `text` (cut at 1 KiB). What was sent before goes
 * first. On a call that is finished or cancelled already it does nothing. */
void rpc_call_finish(struct rpc_call *call, status st, const char *text);
/* Server: the answer of a unary call. */
void rpc_call_reply(struct rpc_call *call, const void *data, size_t len);
/* Client: no more messages from us (BIDI). */
void rpc_call_half_close(struct rpc_call *call);
/* Either side: give up; on_done follows. */
void rpc_call_cancel(struct rpc_call *call);

void rpc_call_set_user(struct rpc_call *call, void *user);
void *rpc_call_user(const struct rpc_call *call);
uint64_t rpc_call_deadline_ns(const struct rpc_call *call); /* CLOCK_NEVER: none */
const char *rpc_call_peer(const struct rpc_call *call);     /* "ipv4:127.0.0.1:4711" */

/* Our status <-> gRPC code. rpc_status loses detail (ARG and FORMAT are both INVALID_ARGUMENT). */
int rpc_code(status st);
status rpc_status(int grpc_code);
const char *rpc_code_name(int grpc_code); /* "INVALID_ARGUMENT" */

#endif
