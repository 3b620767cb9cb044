/* tests/sim/sim_rpc.c - cluster/rpc.h over nothing but memory: the loop's timers, and the server's
 * end of calls. Follows cluster/rpc_grpc_{call,accept,server,timer}.c in what is told when:
 *
 *   - on_done comes exactly once, from an event of its own, never inside a function of the caller
 *   - after finish, reply or the end of the call a send answers ST_ERR_PEER
 *   - a full queue answers ST_BUSY, and on_writable follows when it is half empty
 *   - what was sent before finish goes first
 *
 * And it is stricter where that one cannot be: a call that is touched after its on_done is a
 * violation here. Posts and the client's side of the header are not simulated: the coordinator uses
 * neither. */
#include "sim/rpc_priv.h"

#include <stdlib.h>
#include <string.h>

/* ---- timers ---- */

static bool slot_before(const struct timer_slot *a, const struct timer_slot *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static void slot_place(struct rpc_loop *loop, uint32_t i, struct timer_slot slot)
{
    loop->heap[i] = slot;
    slot.timer->i_heap = i;
}

static void slot_up(struct rpc_loop *loop, uint32_t i, struct timer_slot slot)
{
    for (; i > 1 && slot_before(&slot, &loop->heap[i / 2]); i /= 2) {
        slot_place(loop, i, loop->heap[i / 2]);
    }
    slot_place(loop, i, slot);
}

static void slot_down(struct rpc_loop *loop, uint32_t i, struct timer_slot slot)
{
    for (uint32_t child = i * 2; child <= loop->n; child = i * 2) {
        child += child < loop->n && slot_before(&loop->heap[child + 1], &loop->heap[child]);
        if (!slot_before(&loop->heap[child], &slot)) {
            break;
        }
        slot_place(loop, i, loop->heap[child]);
        i = child;
    }
    slot_place(loop, i, slot);
}

static void slot_drop(struct rpc_loop *loop, struct rpc_timer *timer)
{
    const uint32_t i = timer->i_heap;
    const struct timer_slot last = loop->heap[loop->n--];

    timer->i_heap = 0;
    if (last.timer == timer) {
        return;
    }
    if (i > 1 && slot_before(&last, &loop->heap[i / 2])) {
        slot_up(loop, i, last);
    } else {
        slot_down(loop, i, last);
    }
}

status rpc_timer_set(struct rpc_loop *loop, struct rpc_timer *timer, uint64_t at_ns)
{
    struct sim *s = loop->sim;

    if (timer->i_heap != 0) {
        slot_drop(loop, timer);
    }
    timer->at_ns = at_ns;
    if (at_ns == CLOCK_NEVER) {
        return ST_OK;
    }
    if (++loop->n >= loop->cap) {
        loop->cap = loop->cap == 0 ? 64 : loop->cap * 2;
        loop->heap = realloc(loop->heap, loop->cap * sizeof(*loop->heap));
        ASSERT(loop->heap != NULL);
    }
    /* Never early, and never exactly. */
    const uint64_t due_ns = MAX(at_ns, s->now_ns) + rng_ns(&s->rng, 1, NS_PER_MS);
    slot_up(loop, loop->n, (struct timer_slot){ due_ns, loop->n_numbers++, timer });
    return ST_OK;
}

uint64_t sim_timer_next(const struct rpc_loop *loop)
{
    return loop != NULL && loop->n != 0 ? loop->heap[1].at_ns : CLOCK_NEVER;
}

void sim_timer_run(struct rpc_loop *loop)
{
    struct rpc_timer *timer = loop->heap[1].timer;

    slot_drop(loop, timer);
    timer->fn(timer->arg);
}

struct rpc_loop *sim_loop_create(struct sim *s)
{
    struct rpc_loop *loop = calloc(1, sizeof(*loop));

    ASSERT(loop != NULL);
    loop->sim = s;
    return loop;
}

void sim_loop_destroy(struct rpc_loop *loop)
{
    if (loop == NULL) {
        return;
    }
    for (struct rpc_server *server = loop->all, *next; server != NULL; server = next) {
        next = server->next;
        free(server->token);
        free(server);
    }
    free(loop->heap);
    free(loop);
}

/* ---- the end of a call ---- */

static void server_check_down(struct rpc_server *server);

static void tell_done(struct rpc_call *call)
{
    struct rpc_server *server = call->server;

    call->over = true;
    call->ended = true;
    if (call->method != NULL) {
        server->n_calls--;
    }
    if (call->requested && call->method->on_done != NULL) {
        call->method->on_done(server->arg, call, call->cancelled);
    }
    fifo_clear(&call->out);
    fifo_clear(&call->to_server);
    server_check_down(server);
}

static void call_over(void *arg)
{
    struct rpc_call *call = arg;

    if (!call->over) {
        tell_done(call);
    }
}

void rpc_close(struct rpc_call *call, bool cancelled)
{
    if (!call->closed && !call->over) {
        call->closed = true;
        call->cancelled = cancelled;
        sim_coord_after(call->sim, 0, call_over, call);
    }
}

static void closed_in_order(void *arg)
{
    rpc_close(arg, false);
}

static void pump(struct rpc_call *call)
{
    while (!call->closed && call->out.n != 0 && (call->client_over || call->to_client.n < WINDOW)) {
        struct packet *p = fifo_pop(&call->out);
        p->next = NULL;
        wire_to_client(call, p);
    }
    if (call->fin && !call->fin_sent && call->out.n == 0 && !call->closed) {
        const size_t len = strlen(call->fin_text) + 1;
        struct packet *p = packet_make(PACKET_STATUS, NULL, 0);

        p = realloc(p, sizeof(*p) + sizeof(status) + len);
        ASSERT(p != NULL);
        p->len = sizeof(status) + len;
        memcpy(p->data, &call->fin_st, sizeof(status));
        memcpy(p->data + sizeof(status), call->fin_text, len);
        call->fin_sent = true;
        wire_to_client(call, p);
        sim_coord_after(call->sim, rng_delay(&call->sim->rng, 100 * NS_PER_US), closed_in_order,
                        call);
    }
}

static void room(void *arg)
{
    struct rpc_call *call = arg;
    const struct rpc_method *m = call->method;

    call->room_is_due = false;
    if (call->over) {
        return;
    }
    pump(call);
    if (call->want_room && call->out.n <= call->server->send_queue_max / 2 && !call->ended &&
        !call->closed) {
        call->want_room = false;
        if (m->on_writable != NULL) {
            m->on_writable(call->server->arg, call);
        }
    }
}

void rpc_room(struct rpc_call *call)
{
    if ((call->out.n != 0 || call->want_room || (call->fin && !call->fin_sent)) &&
        !call->room_is_due) {
        call->room_is_due = true;
        sim_coord_after(call->sim, call->latency_ns, room, call);
    }
}

/* ---- what arrives ---- */

static void deadline(void *arg)
{
    rpc_close(arg, true);
}

static void open_call(struct rpc_call *call, const struct packet *p)
{
    struct rpc_server *server = call->server;
    const struct rpc_method *method = NULL;

    for (uint32_t i = 0; i < server->n_methods; i++) {
        if (strcmp(server->methods[i].path, call->path) == 0) {
            method = &server->methods[i];
        }
    }
    if (server->stopping || server->down) {
        wire_finish(call, ST_ERR_UNAVAILABLE, "the server is going down");
        call->over = true;
        return;
    }
    server->n_calls++;
    call->method = method;
    ASSERT(method != NULL);
    if (server->token != NULL && !method->no_auth &&
        (call->token == NULL || strcmp(call->token, server->token) != 0)) {
        rpc_call_finish(call, ST_ERR_UNAUTH, "this server wants a token");
        return;
    }
    if (call->deadline_ns != CLOCK_NEVER) {
        const uint64_t now = call->sim->now_ns;
        sim_coord_after(call->sim, call->deadline_ns > now ? call->deadline_ns - now : 0, deadline,
                        call);
    }
    call->requested = true;
    method->on_request(server->arg, call, method->kind == RPC_BIDI ? NULL : p->data,
                       method->kind == RPC_BIDI ? 0 : p->len);
}

void rpc_arrival(struct rpc_call *call, const struct packet *p)
{
    const bool wanted = !call->ended && !call->closed;

    switch (p->kind) {
    case PACKET_OPEN:
        open_call(call, p);
        break;
    case PACKET_MESSAGE:
    case PACKET_HALF_CLOSE:
        if (wanted && call->method != NULL && call->method->on_message != NULL) {
            call->method->on_message(call->server->arg, call,
                                     p->kind == PACKET_MESSAGE ? p->data : NULL, p->len);
        }
        break;
    case PACKET_RESET:
        rpc_close(call, true);
        break;
    case PACKET_STATUS:
        break;
    }
}

/* ---- the header's calls ---- */

/* The process has died in the middle of a callback, or its memory is being freed. */
static bool is_dead(const struct rpc_call *call)
{
    return call->server->loop->is_dead;
}

static void check_alive(struct rpc_call *call, const char *what)
{
    if (call->over) {
        sim_fail(call->sim, "%s on call %llu (%s) after its on_done", what,
                 (unsigned long long)call->number, call->path);
    }
}

status rpc_call_send(struct rpc_call *call, const void *data, size_t len)
{
    if (is_dead(call)) {
        return ST_OK;
    }
    check_alive(call, "rpc_call_send");
    ASSERT(call->method != NULL && call->method->kind != RPC_UNARY);
    if (call->ended || call->closed) {
        return ST_ERR_PEER;
    }
    if (len > call->server->message_bytes_max) {
        return ST_ERR_LIMIT;
    }
    if (call->out.n >= call->server->send_queue_max) {
        call->want_room = true;
        rpc_room(call);
        return ST_BUSY;
    }
    fifo_push(&call->out, packet_make(PACKET_MESSAGE, data, len));
    pump(call);
    return ST_OK;
}

void rpc_call_finish(struct rpc_call *call, status st, const char *text)
{
    if (is_dead(call)) {
        return;
    }
    check_alive(call, "rpc_call_finish");
    if (call->ended || call->closed) {
        return;
    }
    call->ended = true;
    call->fin = true;
    call->fin_st = rpc_status(rpc_code(st)); /* as it comes out at the other end */
    call->fin_text = strdup(text != NULL ? text : "");
    ASSERT(call->fin_text != NULL);
    pump(call);
}

void rpc_call_reply(struct rpc_call *call, const void *data, size_t len)
{
    if (is_dead(call)) {
        return;
    }
    check_alive(call, "rpc_call_reply");
    ASSERT(call->method != NULL && call->method->kind == RPC_UNARY);
    if (call->ended || call->closed) {
        return;
    }
    if (len > call->server->message_bytes_max) {
        rpc_call_finish(call, ST_ERR_LIMIT, "the answer is too large");
        return;
    }
    fifo_push(&call->out, packet_make(PACKET_MESSAGE, data, len));
    rpc_call_finish(call, ST_OK, NULL);
}

void rpc_call_cancel(struct rpc_call *call)
{
    if (is_dead(call)) {
        return;
    }
    check_alive(call, "rpc_call_cancel");
    call->ended = true;
    wire_finish(call, ST_ERR_CANCELLED, "cancelled by the server");
    rpc_close(call, true);
}

void rpc_call_set_user(struct rpc_call *call, void *user)
{
    if (!is_dead(call)) {
        check_alive(call, "rpc_call_set_user");
    }
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
    return call->peer;
}

/* ---- servers ---- */

/* "sim:0": a free port. One that is asked for may be in other hands by now. */
static bool port_take(struct sim *s, const char *listen, uint16_t *port_p)
{
    const char *colon = listen != NULL ? strrchr(listen, ':') : NULL;
    const uint16_t port = colon != NULL ? (uint16_t)strtoul(colon + 1, NULL, 10) : 0;

    if (port != 0 && rng_chance(&s->rng, 150)) {
        return false;
    }
    *port_p = port != 0 ? port : ++s->n_ports;
    return true;
}

status rpc_server_create(struct rpc_loop *loop, const struct rpc_server_config *config,
                         struct rpc_server **server_p, struct err *err)
{
    struct sim *s = loop->sim;
    const bool is_public = loop->n_servers == 0;
    const uint32_t max = is_public ? s->shape.public_queue_max : s->shape.control_queue_max;
    uint16_t port = 0;

    if (!port_take(s, config->listen, &port)) {
        return err_set(err, ST_ERR_EXISTS, "%s is in use", config->listen);
    }
    struct rpc_server *server = calloc(1, sizeof(*server));
    ASSERT(server != NULL && loop->n_servers < ARRAY_LEN(loop->servers));
    server->sim = s;
    server->port = port;
    server->loop = loop;
    server->methods = config->methods;
    server->n_methods = config->n_methods;
    server->arg = config->arg;
    server->token = config->token != NULL ? strdup(config->token) : NULL;
    server->message_bytes_max = config->message_bytes_max;
    server->send_queue_max = MIN(config->send_queue_max, max);
    loop->servers[loop->n_servers++] = server;
    server->next = loop->all; /* freed with the loop: events may still name it */
    loop->all = server;
    *server_p = server;
    return ST_OK;
}

uint16_t rpc_server_port(const struct rpc_server *server)
{
    return server->port;
}

static void server_down(void *arg)
{
    struct rpc_server *server = arg;

    if (server->done != NULL) {
        server->done(server->done_arg);
    }
}

static void server_check_down(struct rpc_server *server)
{
    if (server->stopping && !server->down && server->n_calls == 0) {
        server->down = true;
        rpc_timer_set(server->loop, &server->grace, CLOCK_NEVER);
        sim_coord_after(server->sim, 0, server_down, server);
    }
}

static void cancel_all(void *arg)
{
    struct rpc_server *server = arg;

    for (struct rpc_call *call = server->sim->calls; call != NULL; call = call->next) {
        if (call->server == server && call->method != NULL && !call->over) {
            wire_finish(call, ST_ERR_UNAVAILABLE, "the server has cancelled all calls");
            rpc_close(call, true);
        }
    }
}

void rpc_server_shutdown(struct rpc_server *server, uint64_t grace_ns, rpc_fn done, void *arg)
{
    ASSERT(!server->stopping);
    server->stopping = true;
    server->done = done;
    server->done_arg = arg;
    server->grace = (struct rpc_timer){ .fn = cancel_all, .arg = server };
    rpc_timer_set(server->loop, &server->grace, server->sim->now_ns + grace_ns);
    server_check_down(server);
}

void rpc_server_destroy(struct rpc_server *server)
{
    if (server == NULL) {
        return;
    }
    struct rpc_loop *loop = server->loop;
    server->stopping = true;
    server->done = NULL;
    for (struct rpc_call *call = server->sim->calls; call != NULL; call = call->next) {
        if (call->server == server && call->method != NULL && !call->over) {
            if (!loop->is_dead) {
                wire_finish(call, ST_ERR_UNAVAILABLE, "the server is gone");
            }
            call->closed = true;
            call->cancelled = true;
            tell_done(call);
        }
        if (call->server == server) {
            call->over = true; /* what is still under way finds nobody */
        }
    }
    rpc_timer_set(loop, &server->grace, CLOCK_NEVER);
    for (uint32_t i = 0; i < loop->n_servers; i++) {
        loop->servers[i] = loop->servers[i] == server ? NULL : loop->servers[i];
    }
    while (loop->n_servers != 0 && loop->servers[loop->n_servers - 1] == NULL) {
        loop->n_servers--;
    }
}

void sim_loop_dies(struct rpc_loop *loop, bool silently)
{
    loop->is_dead = true;
    for (struct rpc_call *call = loop->sim->calls; call != NULL; call = call->next) {
        if (call->server != NULL && call->server->loop == loop && !call->over) {
            wire_server_dies(call, silently);
        }
    }
}

struct rpc_server *wire_public(struct sim *s)
{
    return s->loop != NULL ? s->loop->servers[0] : NULL;
}

struct rpc_server *wire_control(struct sim *s)
{
    return s->loop != NULL ? s->loop->servers[1] : NULL;
}

struct rpc_server *wire_at(struct sim *s, uint16_t port)
{
    for (uint32_t i = 0; s->loop != NULL && i < s->loop->n_servers; i++) {
        struct rpc_server *server = s->loop->servers[i];
        if (server != NULL && server->port == port) {
            return server;
        }
    }
    return NULL;
}
