/* coordinator/health.c - grpc.health.v1: is there a replica that serves now?
 *
 * Known services are "" (the whole) and "gantry.v1.Generation". As the protocol says, Check of an
 * unknown one is NOT_FOUND, Watch of one says SERVICE_UNKNOWN and stays open. */
#include "coordinator/coord_impl.h"

#include <stdlib.h>
#include <string.h>

static bool is_known(const char *service)
{
    return service[0] == '\0' || strcmp(service, "gantry.v1.Generation") == 0;
}

/* Some replica takes streams and has computed something lately. */
static bool any_is_proven(const struct coord *c)
{
    const uint64_t now = coord_now(c);

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        if (route_can_take(c->replicas[i]) && canary_is_fresh(c->replicas[i], now)) {
            return true;
        }
    }
    return false;
}

static enum health_state health_now(const struct coord *c, const char *service)
{
    if (!is_known(service)) {
        return HEALTH_SERVICE_UNKNOWN;
    }
    return c->state == COORD_SERVING && any_is_proven(c) ? HEALTH_SERVING : HEALTH_NOT_SERVING;
}

/* The service's name, or NULL when the call was answered with an error. */
static const char *service_read(struct coord *c, struct rpc_call *call, const void *data,
                                size_t len)
{
    struct err err = ERR_INIT;
    const char *service;

    arena_reset(&c->arena);
    if (msg_health_request_unpack(data, len, &c->arena, &service, &err) < 0) {
        rpc_call_finish(call, ST_ERR_ARG, err.text);
        return NULL;
    }
    return service;
}

void health_check(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct coord *c = arg;
    const char *service = service_read(c, call, data, len);

    if (service == NULL) {
        return;
    }
    if (!is_known(service)) {
        rpc_call_finish(call, ST_ERR_NOT_FOUND,
                        "no such service here; \"\" and \"gantry.v1.Generation\" are known");
        return;
    }
    buf_reset(&c->out);
    if (msg_health_response_pack(health_now(c, service), &c->out) < 0) {
        rpc_call_finish(call, ST_ERR_NOMEM, "the coordinator is out of memory");
        return;
    }
    rpc_call_reply(call, c->out.data, c->out.len);
}

static void watcher_tell(struct coord *c, struct watcher *w, enum health_state state)
{
    buf_reset(&c->out);
    if (msg_health_response_pack(state, &c->out) == ST_OK &&
        rpc_call_send(w->call, c->out.data, c->out.len) == ST_OK) {
        w->sent = state; /* a watcher that is not reading hears of the next change that fits */
    }
}

void health_watch(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct coord *c = arg;
    const char *service = service_read(c, call, data, len);
    struct watcher *w = service != NULL ? calloc(1, sizeof(*w)) : NULL;

    if (w == NULL) {
        if (service != NULL) {
            rpc_call_finish(call, ST_ERR_NOMEM, "the coordinator is out of memory");
        }
        return;
    }
    w->call = call;
    /* A name that does not fit is not one of ours, cut or whole. */
    strncpy(w->service, service, sizeof(w->service) - 1);
    w->next = c->watchers;
    w->link = &c->watchers;
    if (w->next != NULL) {
        w->next->link = &w->next;
    }
    c->watchers = w;
    rpc_call_set_user(call, w);
    watcher_tell(c, w, health_now(c, w->service));
}

void health_watch_done(void *arg UNUSED, struct rpc_call *call, bool cancelled UNUSED)
{
    struct watcher *w = rpc_call_user(call);

    if (w == NULL) {
        return;
    }
    *w->link = w->next;
    if (w->next != NULL) {
        w->next->link = w->link;
    }
    free(w);
}

void health_push(struct coord *c)
{
    struct watcher *next;

    for (struct watcher *w = c->watchers; w != NULL; w = next) {
        const enum health_state state = health_now(c, w->service);
        next = w->next;
        if (state != w->sent) {
            watcher_tell(c, w, state);
        }
    }
}

void health_end_all(struct coord *c)
{
    struct watcher *next;

    for (struct watcher *w = c->watchers; w != NULL; w = next) {
        next = w->next;
        rpc_call_finish(w->call, ST_ERR_UNAVAILABLE, "the service is shutting down");
    }
}
