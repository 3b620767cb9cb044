/* tests/sim/rpc_priv.h - a simulated call, shared by its two ends: sim_rpc.c has the server's (the
 * header cluster/rpc.h), wire.c the client's and the packets between them.
 *
 *   rpc_call_send ─► out (bounded) ─► to_client (window) ─► on_message      server to client
 *   on_message ◄─ to_server ◄─ wire_send                                    client to server
 *
 * An event is scheduled for each packet; it takes whichever packet is first when it fires, so order
 * within a direction cannot be lost, however long a cut or a stopped process holds things up. */
#ifndef TESTS_SIM_RPC_PRIV_H
#define TESTS_SIM_RPC_PRIV_H

#include "sim/wire.h"

enum {
    WINDOW = 8,             /* messages that are under way to a client, or that it has not read */
    SERVER_KEEPALIVE_S = 40 /* twice what cluster/rpc_grpc_server.c asks for */
};

enum packet_kind { PACKET_OPEN, PACKET_MESSAGE, PACKET_HALF_CLOSE, PACKET_RESET, PACKET_STATUS };

struct packet {
    struct packet *next;
    enum packet_kind kind;
    size_t len;
    char data[];
};

struct fifo {
    struct packet *first, *last;
    uint32_t n;
    uint64_t last_ns; /* nothing arrives before what was sent before */
};

struct rpc_call {
    struct sim *sim;
    struct rpc_call *next; /* in sim->calls */
    uint64_t number;
    char peer[40];

    /* the server's end */
    struct rpc_server *server;
    const char *path, *token;        /* of the request; borrowed */
    const struct rpc_method *method; /* NULL until it is known */
    void *user;
    uint64_t deadline_ns;
    bool requested, ended, closed, cancelled, over;
    struct fifo out;
    bool want_room, room_is_due;
    bool fin, fin_sent;
    status fin_st;
    char *fin_text; /* owned */

    /* between */
    uint64_t latency_ns, cut_until_ns;
    struct fifo to_client, to_server;

    /* the client's end */
    const struct wire_end *end;
    void *arg;
    bool client_over, is_held;
    uint32_t n_held; /* arrivals that wait for the process to go on */
    uint64_t read_delay_ns, client_free_ns, held_ns;
};

struct rpc_server {
    struct sim *sim;
    struct rpc_server *next; /* in loop->all */
    struct rpc_loop *loop;
    const struct rpc_method *methods; /* borrowed */
    uint32_t n_methods;
    void *arg;
    char *token; /* owned; NULL: none */
    uint32_t message_bytes_max, send_queue_max;
    uint32_t n_calls;
    bool stopping, down;
    uint16_t port;
    rpc_fn done;
    void *done_arg;
    struct rpc_timer grace;
};

struct rpc_loop {
    struct sim *sim;
    struct timer_slot {
        uint64_t at_ns, number;
        struct rpc_timer *timer;
    } * heap; /* from 1; owned */
    uint32_t n, cap;
    uint64_t n_numbers;
    struct rpc_server *all;        /* owned */
    struct rpc_server *servers[2]; /* that are open, in order of creation: public, control */
    uint32_t n_servers;
    bool is_dead;          /* its process is no more: what it still says is heard by nobody */
    struct rpc_loop *next; /* in sim->dead_loops */
};

/* wire.c */
struct packet *packet_make(enum packet_kind kind, const void *data, size_t len);
void fifo_push(struct fifo *f, struct packet *p);
struct packet *fifo_pop(struct fifo *f); /* NULL: empty */
void fifo_clear(struct fifo *f);
void wire_to_client(struct rpc_call *call, struct packet *p);
void wire_finish(struct rpc_call *call, status st, const char *text); /* at the client's end */
void wire_server_dies(struct rpc_call *call, bool silently);

/* sim_rpc.c: what arrives at the server. `call` lives. */
void rpc_arrival(struct rpc_call *call, const struct packet *p);
void rpc_close(struct rpc_call *call, bool cancelled); /* on_done follows */
void rpc_room(struct rpc_call *call);                  /* the client has read something */

#endif
