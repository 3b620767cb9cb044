/* cluster/rpc_grpc.h - private to rpc_grpc*.c: what stands behind rpc.h when gRPC core does the work.
 *
 *   rpc_loop     one completion queue, one thread; posts, timers          rpc_grpc_loop.c, _timer.c
 *   rpc_call     either side of a call: its write queue, reads, end       rpc_grpc_call.c
 *   rpc_server   a listener, its slots for new calls, its shutdown        rpc_grpc_server.c,
 *                _accept.c, _listen.c (address, TLS)
 *   rpc_channel  the client's side                                        rpc_grpc_client.c
 *
 * Every operation handed to gRPC carries a `struct rpc_tag` that is embedded in its owner; the loop
 * does next(); tag->fn(tag->self, ok) and knows nothing else. Each started batch gives back exactly
 * one tag, also after a cancel: a call therefore counts its batches (`n_ops`) and lives until the
 * last one came back and its end was reported.
 *
 * Only grpc's public C headers of 1.51 that later versions still have are included here. */
#ifndef CLUSTER_RPC_GRPC_H
#define CLUSTER_RPC_GRPC_H

#include "base/clock.h"
#include "base/compiler.h"
#include "cluster/rpc.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/compression.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <pthread.h>

enum {
    RPC_POSTS_MAX = 65536,
    RPC_SLOTS = 16, /* calls that gRPC may hand us before we come round to ask again */
    RPC_CALLS_MAX_DEFAULT = 16384,
    RPC_MESSAGE_BYTES_DEFAULT = 4 << 20,
    RPC_SEND_QUEUE_DEFAULT = 256,
    RPC_TEXT_BYTES_MAX = 1024 /* a longer status text can pass the peer's header limit and would
                               * then hide the status itself */
};

struct rpc_tag {
    void (*fn)(void *self, bool ok);
    void *self;
};

/* ---- loop ---- */

struct rpc_job {
    rpc_fn fn;
    void *arg;
};

struct rpc_jobs {
    struct rpc_job *items; /* owned, [cap] */
    uint32_t count, cap;
};

/* A binary heap, the root at [1]; equal times keep their order of setting by `seq`. */
struct rpc_timer_slot {
    uint64_t at_ns, seq;
    struct rpc_timer *timer; /* borrowed */
};

struct rpc_loop {
    grpc_completion_queue *cq; /* owned */
    grpc_channel *lame;        /* owned; carries wake_call and never connects */
    grpc_call *wake_call;      /* owned; an empty batch on it posts wake_tag */
    struct rpc_tag wake_tag;

    /* Loop thread only. */
    struct rpc_timer_slot *heap; /* owned, [heap_cap]; [0] is not used */
    uint32_t heap_count, heap_cap;
    uint64_t heap_seq;
    uint64_t pass_ns;             /* now, while timers are being run; else 0 */
    struct rpc_jobs running_jobs; /* being run; swapped with `jobs` */
    uint32_t n_alive;             /* servers, channels and calls */
    bool running, leaving;
    pthread_t thread; /* valid while running */

    pthread_mutex_t lock; /* protects what follows; the wake batch is started under it */
    struct rpc_jobs jobs; /* posted, not yet taken */
    bool wake_out;        /* wake_tag is on its way */
    bool stop;            /* rpc_loop_stop was called and not yet obeyed */
    bool closed;          /* posts are refused */
};

/* What the header promises: loop thread, or no thread inside rpc_loop_run. */
#define ASSERT_ON_LOOP(loop)                                                                       \
    ASSERT(!(loop)->running || pthread_equal((loop)->thread, pthread_self()))

/* One event (or one timeout): timers that are due, then the completion queue. */
void rpc_loop_turn(struct rpc_loop *loop);
/* Run what is due; returns when the next is, CLOCK_NEVER if none is armed. */
uint64_t rpc_timers_run(struct rpc_loop *loop);
status rpc_timers_grow(struct rpc_loop *loop); /* ST_ERR_NOMEM */

/* clock_real() <-> gRPC's clock, by the distance from now: the two need not share an origin. */
gpr_timespec rpc_gpr_from_ns(uint64_t at_ns);
uint64_t rpc_ns_from_gpr(gpr_timespec at);

/* ---- calls ---- */

struct rpc_call {
    struct rpc_loop *loop; /* borrowed */
    grpc_call *grpc;       /* owned */
    enum rpc_kind kind;
    uint64_t deadline_ns;
    void *user;
    char *peer; /* owned (gpr_malloc), NULL until asked for */

    uint32_t n_ops; /* batches whose tag has not come back */
    bool closed;    /* the last word of gRPC about this call is here */
    bool ended;     /* finished or cancelled from this side: nothing more is taken or delivered */
    bool broken;    /* a write failed; `closed` will follow */
    struct rpc_tag close_tag, read_tag, write_tag;

    /* Writing: `writing` is with gRPC, the rest waits in a ring. */
    uint32_t message_bytes_max, send_queue_max;
    grpc_byte_buffer **queue; /* owned, [queue_cap], oldest at queue_head */
    uint32_t queue_head, queue_count, queue_cap;
    grpc_byte_buffer *writing; /* owned; must outlive its batch */
    bool write_out;            /* a write batch is with gRPC */
    bool meta_sent;
    bool fin, fin_sent; /* after the queue: our status (server), our half-close (client) */
    bool want_room;     /* a send was answered ST_BUSY */
    grpc_status_code fin_code;
    grpc_slice fin_text; /* owned */

    grpc_byte_buffer *read; /* owned; filled by the read batch */

    /* Server side; `server` is NULL on the client side. */
    struct rpc_server *server;
    const struct rpc_method *method; /* NULL: refused */
    bool requested;                  /* on_request was reached, so on_done is owed */
    int cancelled;

    /* Client side. */
    struct rpc_channel *channel;
    struct rpc_call *prev, *next; /* in channel->calls */
    const struct rpc_client *client;
    void *arg;
    uint32_t meta_flags;
    grpc_metadata auth; /* gRPC writes into it: one per call */
    grpc_metadata_array initial_md, trailing_md;
    bool initial_asked;
    uint64_t n_messages;
    grpc_status_code code;
    grpc_slice code_text; /* owned */
    bool extra_message;   /* a unary call was answered twice */
};

/* Zeroed and with empty slices; the caller sets `grpc`. NULL: no memory. */
struct rpc_call *rpc_call_create(struct rpc_loop *loop, void (*on_close)(void *self, bool ok));
void rpc_call_free(struct rpc_call *call);
/* Hand a batch to gRPC; `tag` comes back once. */
void rpc_call_batch(struct rpc_call *call, const grpc_op *ops, size_t n_ops, struct rpc_tag *tag);
/* The end of every tag handler: counts down, and ends the call (which may free it) at zero. */
void rpc_call_op_done(struct rpc_call *call);
/* Start the next write if none is out. `meta`: headers are to go out even if nothing else waits. */
void rpc_call_pump(struct rpc_call *call, bool meta);
/* Queue a copy without regard to send_queue_max. */
status rpc_call_queue(struct rpc_call *call, const void *data, size_t len);
/* Ask for the next message. */
void rpc_call_read(struct rpc_call *call);

/* A message as one piece: borrowed from the buffer where it is one slice, else copied together. */
struct rpc_bytes {
    grpc_byte_buffer *buffer; /* owned from open to close */
    grpc_byte_buffer_reader reader;
    grpc_slice joined; /* owned if `is_joined` */
    bool is_open, is_joined;
    const void *data; /* never NULL after a successful open */
    size_t len;
};
bool rpc_bytes_open(struct rpc_bytes *bytes, grpc_byte_buffer *buffer);
void rpc_bytes_close(struct rpc_bytes *bytes);

/* The two sides' parts of a call. */
void rpc_server_call_read(struct rpc_call *call, bool ok);
void rpc_server_call_over(struct rpc_call *call); /* reports, frees */
void rpc_client_call_read(struct rpc_call *call, bool ok);
void rpc_client_call_over(struct rpc_call *call); /* reports, frees */

/* ---- server ---- */

struct rpc_slot {
    struct rpc_tag tag;
    struct rpc_server *server;
    grpc_call *call; /* set by gRPC when the tag comes back ok */
    grpc_call_details details;
    grpc_metadata_array md;
};

struct rpc_server {
    struct rpc_loop *loop; /* borrowed */
    grpc_server *grpc;     /* owned */
    char *token;           /* owned, NULL: none asked */
    size_t token_len;
    const struct rpc_method *methods; /* borrowed */
    uint32_t n_methods;
    void *arg;
    uint32_t message_bytes_max, send_queue_max, calls_max;
    uint16_t port;

    struct rpc_slot slots[RPC_SLOTS];
    uint32_t n_slots; /* with gRPC */
    uint32_t
        n_calls; /* alive. gRPC's own shutdown tag does not wait for calls that we still hold */

    bool stopping, down_seen, down;
    struct rpc_tag down_tag;
    struct rpc_timer grace;
    rpc_fn done;
    void *done_arg;
};

void rpc_slot_request(struct rpc_slot *slot, struct rpc_server *server);
/* Reports the end of a shutdown if nothing is left; the server may be gone afterwards. */
void rpc_server_check_down(struct rpc_server *server);
/* May this address be listened on with what guards it? Answers the refusals of rpc_server_create.
 */
status rpc_listen_check(const struct rpc_server_config *config, struct err *err);
status rpc_listen_credentials(const struct rpc_server_config *config,
                              grpc_server_credentials **creds_p, struct err *err);
/* gRPC would not listen and does not say why: find out. */
status rpc_listen_why(const struct rpc_server_config *config, struct err *err);

/* ---- arguments ---- */

struct rpc_args {
    grpc_arg items[24];
    uint32_t count;
};
void rpc_args_int(struct rpc_args *args, const char *key, int value);
grpc_channel_args rpc_args_get(struct rpc_args *args);
/* Size limits, no compression, keepalive every `keepalive_ms` (0: none): the same on both sides. */
void rpc_args_common(struct rpc_args *args, uint32_t message_bytes_max, uint32_t keepalive_ms);

/* A token that can travel in a header and is not empty. */
status rpc_token_check(const char *token, struct err *err);

#endif
