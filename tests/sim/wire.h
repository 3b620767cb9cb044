/* tests/sim/wire.h - the far end of a call of cluster/rpc.h, and all that may happen to it.
 *
 * The server's end is the header itself (sim_rpc.c). The client's end is this one: smaller than
 * rpc_call_start's, because what plays clients and ranks here is scripted anyway. Within a call
 * nothing overtakes; between calls everything may. */
#ifndef TESTS_SIM_WIRE_H
#define TESTS_SIM_WIRE_H

#include "cluster/rpc.h"
#include "sim/sim.h"

struct wire_end {
    void (*on_message)(void *arg, const void *data, size_t len);
    /* Exactly once, unless the process was ended (wire_break). Nothing comes after it. */
    void (*on_done)(void *arg, status st, const char *text);
};

struct wire_config {
    struct rpc_server *server; /* NULL: nobody listens there, the connection is refused */
    const char *path, *token;
    const void *data; /* the request; NULL with RPC_BIDI */
    size_t len;
    uint64_t deadline_ns;
    uint64_t latency_ns;
    const struct wire_end *end;
    void *arg;
};

/* A connection of its own and one call on it. */
struct rpc_call *wire_open(struct sim *s, const struct wire_config *config);
void wire_send(struct rpc_call *call, const void *data, size_t len);
void wire_half_close(struct rpc_call *call);
/* The caller gives up; on_done (CANCELLED) follows at once. */
void wire_cancel(struct rpc_call *call);
/* The process at the client's end is no more: none of its functions is called again. The server
 * learns of it soon, or (silently) only by its keepalive. What was under way may be lost. */
void wire_break(struct rpc_call *call, bool silently);
/* The connection breaks and both processes live: both learn. */
void wire_reset(struct rpc_call *call);
/* Nothing passes in either direction until then. */
void wire_cut(struct rpc_call *call, uint64_t until_ns);
/* The process at the client's end stands still, or goes on. */
void wire_hold(struct rpc_call *call, bool hold);
/* It takes this long over each message; CLOCK_NEVER: it reads nothing more. */
void wire_read_delay(struct rpc_call *call, uint64_t delay_ns);
bool wire_is_open(const struct rpc_call *call); /* on_done has not been called */
/* The coordinator's two servers; NULL: it is dead. */
struct rpc_server *wire_public(struct sim *s);
struct rpc_server *wire_control(struct sim *s);
struct rpc_server *wire_at(struct sim *s, uint16_t port); /* NULL: nobody listens there */

#endif
