/* tests/sim/wire.c - see wire.h: packets, and the client's end. */
#include "sim/rpc_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- packets ---- */

struct packet *packet_make(enum packet_kind kind, const void *data, size_t len)
{
    struct packet *p = malloc(sizeof(*p) + len);

    ASSERT(p != NULL);
    p->next = NULL;
    p->kind = kind;
    p->len = len;
    if (len != 0) {
        memcpy(p->data, data, len);
    }
    return p;
}

void fifo_push(struct fifo *f, struct packet *p)
{
    *(f->last != NULL ? &f->last->next : &f->first) = p;
    f->last = p;
    f->n++;
}

struct packet *fifo_pop(struct fifo *f)
{
    struct packet *p = f->first;

    if (p != NULL) {
        f->first = p->next;
        f->last = f->first != NULL ? f->last : NULL;
        f->n--;
    }
    return p;
}

void fifo_clear(struct fifo *f)
{
    for (struct packet *p; (p = fifo_pop(f)) != NULL;) {
        free(p);
    }
}

static uint64_t arrival_ns(struct rpc_call *call, struct fifo *f)
{
    const uint64_t at = call->sim->now_ns + rng_delay(&call->sim->rng, call->latency_ns);

    f->last_ns = MAX(at, f->last_ns);
    return f->last_ns;
}

/* ---- to the client ---- */

void wire_finish(struct rpc_call *call, status st, const char *text)
{
    if (!call->client_over) {
        call->client_over = true;
        fifo_clear(&call->to_client);
        call->end->on_done(call->arg, st, text);
    }
}

static void client_arrival(void *arg)
{
    struct rpc_call *call = arg;
    struct sim *s = call->sim;

    if (call->client_over) {
        return;
    }
    if (call->is_held) {
        call->n_held++;
        return;
    }
    if (call->to_client.first != NULL && call->to_client.first->kind == PACKET_RESET) {
        call->client_free_ns = 0; /* its library tells it, whether it reads or not */
    }
    if (call->cut_until_ns > s->now_ns || call->client_free_ns > s->now_ns) {
        const uint64_t at = MAX(call->cut_until_ns, call->client_free_ns);
        if (at != CLOCK_NEVER) {
            sim_at(s, at, client_arrival, call);
        }
        return;
    }
    struct packet *p = fifo_pop(&call->to_client);
    if (p == NULL) {
        return;
    }
    if (p->kind == PACKET_RESET) {
        wire_finish(call, ST_ERR_UNAVAILABLE, "the connection broke");
    } else if (p->kind == PACKET_STATUS) {
        status st;
        memcpy(&st, p->data, sizeof(st));
        wire_finish(call, st, p->data + sizeof(st));
    } else {
        call->client_free_ns =
            call->read_delay_ns == CLOCK_NEVER ? CLOCK_NEVER : s->now_ns + call->read_delay_ns;
        call->end->on_message(call->arg, p->data, p->len);
        rpc_room(call);
    }
    free(p);
}

void wire_to_client(struct rpc_call *call, struct packet *p)
{
    if (call->client_over) {
        free(p);
        return;
    }
    fifo_push(&call->to_client, p);
    sim_at(call->sim, arrival_ns(call, &call->to_client), client_arrival, call);
}

/* ---- to the server ---- */

static void server_arrival(void *arg)
{
    struct rpc_call *call = arg;
    struct sim *s = call->sim;

    if (call->over) {
        return;
    }
    if (call->cut_until_ns > s->now_ns) {
        if (call->cut_until_ns != CLOCK_NEVER) {
            sim_coord_after(s, call->cut_until_ns - s->now_ns, server_arrival, call);
        }
        return;
    }
    struct packet *p = fifo_pop(&call->to_server);
    if (p != NULL) {
        rpc_arrival(call, p);
        free(p);
    }
}

static void to_server(struct rpc_call *call, enum packet_kind kind, const void *data, size_t len)
{
    fifo_push(&call->to_server, packet_make(kind, data, len));
    sim_coord_after(call->sim, arrival_ns(call, &call->to_server) - call->sim->now_ns,
                    server_arrival, call);
}

/* ---- the client's functions ---- */

static void client_deadline(void *arg)
{
    struct rpc_call *call = arg;

    if (!call->client_over) {
        to_server(call, PACKET_RESET, NULL, 0);
        wire_finish(call, ST_ERR_DEADLINE, "Deadline Exceeded");
    }
}

struct rpc_call *wire_open(struct sim *s, const struct wire_config *config)
{
    struct rpc_call *call = calloc(1, sizeof(*call));

    ASSERT(call != NULL);
    call->sim = s;
    call->next = s->calls;
    call->number = call->next != NULL ? call->next->number + 1 : 1;
    s->calls = call;
    snprintf(call->peer, sizeof(call->peer), "sim:%llu", (unsigned long long)call->number);
    call->server = config->server;
    call->path = config->path;
    call->token = config->token;
    call->deadline_ns = config->deadline_ns;
    call->latency_ns = config->latency_ns;
    call->end = config->end;
    call->arg = config->arg;
    if (call->server == NULL) { /* nobody listens there */
        call->over = true;
        wire_to_client(call, packet_make(PACKET_RESET, NULL, 0));
        return call;
    }
    to_server(call, PACKET_OPEN, config->data, config->len);
    if (config->deadline_ns != CLOCK_NEVER) {
        sim_at(s, config->deadline_ns, client_deadline, call);
    }
    return call;
}

void wire_send(struct rpc_call *call, const void *data, size_t len)
{
    if (!call->client_over) {
        to_server(call, PACKET_MESSAGE, data, len);
    }
}

void wire_half_close(struct rpc_call *call)
{
    if (!call->client_over) {
        to_server(call, PACKET_HALF_CLOSE, NULL, 0);
    }
}

void wire_cancel(struct rpc_call *call)
{
    if (!call->client_over) {
        to_server(call, PACKET_RESET, NULL, 0);
        wire_finish(call, ST_ERR_CANCELLED, "CANCELLED");
    }
}

static void keepalive_fails(void *arg)
{
    struct rpc_call *call = arg;

    rpc_close(call, true);
}

/* Data that the kernel of a dead process had not sent is lost: some suffix of what is under way. */
static void lose_some(struct rpc_call *call)
{
    struct fifo *f = &call->to_server, kept = { .last_ns = f->last_ns };
    const uint32_t n = f->n != 0 ? rng_below(&call->sim->rng, f->n + 1) : 0;

    for (uint32_t i = 0; i < n; i++) {
        struct packet *p = fifo_pop(f);
        p->next = NULL;
        fifo_push(&kept, p);
    }
    fifo_clear(f);
    *f = kept;
}

void wire_break(struct rpc_call *call, bool silently)
{
    if (call->client_over) {
        return;
    }
    call->client_over = true;
    fifo_clear(&call->to_client);
    lose_some(call);
    if (silently) {
        sim_coord_after(call->sim, SERVER_KEEPALIVE_S * NS_PER_S, keepalive_fails, call);
    } else {
        to_server(call, PACKET_RESET, NULL, 0);
    }
}

void wire_reset(struct rpc_call *call)
{
    if (!call->client_over) {
        lose_some(call);
        to_server(call, PACKET_RESET, NULL, 0);
        wire_finish(call, ST_ERR_UNAVAILABLE, "the connection broke");
    }
}

void wire_cut(struct rpc_call *call, uint64_t until_ns)
{
    call->cut_until_ns = MAX(call->cut_until_ns, until_ns);
    if (until_ns - call->sim->now_ns > SERVER_KEEPALIVE_S * NS_PER_S) {
        sim_coord_after(call->sim, SERVER_KEEPALIVE_S * NS_PER_S, keepalive_fails, call);
    }
}

static void hold_fails(void *arg)
{
    struct rpc_call *call = arg;

    if (call->is_held && call->sim->now_ns - call->held_ns >= SERVER_KEEPALIVE_S * NS_PER_S) {
        rpc_close(call, true);
    }
}

void wire_hold(struct rpc_call *call, bool hold)
{
    if (call->is_held == hold) {
        return;
    }
    call->is_held = hold;
    call->held_ns = call->sim->now_ns;
    if (hold) {
        sim_coord_after(call->sim, SERVER_KEEPALIVE_S * NS_PER_S, hold_fails, call);
        return;
    }
    for (; call->n_held != 0; call->n_held--) {
        sim_after(call->sim, 0, client_arrival, call);
    }
}

void wire_read_delay(struct rpc_call *call, uint64_t delay_ns)
{
    call->read_delay_ns = delay_ns;
}

static void gone_for_long(void *arg)
{
    struct rpc_call *call = arg;

    if (!call->client_over) {
        wire_to_client(call, packet_make(PACKET_RESET, NULL, 0));
    }
}

/* What the kernel had of it may still arrive, and then, from a machine that lives, the connection's end. */
void wire_server_dies(struct rpc_call *call, bool silently)
{
    struct fifo *f = &call->to_client, kept = { .last_ns = f->last_ns };
    const uint32_t n = f->n != 0 ? rng_below(&call->sim->rng, f->n + 1) : 0;

    fifo_clear(&call->out);
    if (call->client_over) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct packet *p = fifo_pop(f);
        p->next = NULL;
        fifo_push(&kept, p);
    }
    fifo_clear(f);
    *f = kept;
    if (silently) { /* a keepalive, or the next start of that machine */
        sim_after(call->sim, rng_ns(&call->sim->rng, NS_PER_S / 10, 4 * NS_PER_S), gone_for_long,
                  call);
    } else {
        wire_to_client(call, packet_make(PACKET_RESET, NULL, 0));
    }
}

bool wire_is_open(const struct rpc_call *call)
{
    return call != NULL && !call->client_over;
}

void sim_calls_free(struct sim *s)
{
    for (struct rpc_call *call = s->calls, *next; call != NULL; call = next) {
        next = call->next;
        fifo_clear(&call->out);
        fifo_clear(&call->to_client);
        fifo_clear(&call->to_server);
        free(call->fin_text);
        free(call);
    }
    s->calls = NULL;
}
