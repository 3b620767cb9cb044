/* worker/ctrl_orphan.c - a rank whose coordinator is gone, and may come back.
 *
 *   WELCOME ──the stream breaks──► ORPHAN ──redial: 0.2 s .. 2 s apart──► WELCOME (hello, ready again)
 *                                    └── grace over, refused, told to stop ──► LOST
 *
 * The coordinator says in its welcome whether ranks shall wait for another (gantry serve --journal)
 * and for how long. Meanwhile weights and KV stay where they are; the leader forgets its streams
 * (the next coordinator submits again what it still wants) and keeps their blocks for it. Only a
 * stream that broke counts: a coordinator that ends one, or refuses this rank, is there.
 *
 * Fencing. What the rank has computed for the old coordinator must not reach the next. The leader's
 * inbox gets a parcel without bytes, in front of whatever the next one submits; events posted before
 * the leader has seen it carry the old epoch and are dropped. */
#include "worker/ctrl_priv.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DELAY_FIRST_MS = 200, DELAY_MAX_MS = 2000, ADDRESS_MAX = 290 };

void orphan_welcome(struct ctrl *c, const struct msg_coord *welcome)
{
    struct orphan *o = &c->orphan;
    const bool is_back = c->state == LINK_ORPHAN;
    const int n =
        snprintf(o->file, sizeof(o->file), "%s",
                 welcome->welcome.control_file != NULL ? welcome->welcome.control_file : "");

    if (n < 0 || n >= (int)sizeof(o->file)) {
        o->file[0] = '\0'; /* half a path leads nowhere; the same address may */
    }
    o->grace_s = welcome->welcome.orphan_grace_s;
    o->delay_ns = DELAY_FIRST_MS * NS_PER_MS;
    rpc_timer_set(c->loop, &o->timer, CLOCK_NEVER);
    if (!is_back) {
        return;
    }
    log_info("control", "the coordinator is back at %s", o->target);
    if (o->ready.len != 0) {
        (void)rpc_call_send(c->call, o->ready.data, o->ready.len); /* its end would be told */
    }
}

/* Where the next coordinator may be: what the file says, else where the last one was. */
static void address_read(struct ctrl *c)
{
    struct orphan *o = &c->orphan;
    struct buf text = BUF_INIT_MAX(ADDRESS_MAX + 2);

    if (o->target[0] == '\0') {
        snprintf(o->target, sizeof(o->target), "%s", c->config.coordinator);
    }
    if (o->file[0] != '\0' && buf_read_file(&text, o->file, ADDRESS_MAX, NULL) == ST_OK) {
        const size_t len = strcspn(text.data, "\n");
        if (len != 0 && len < sizeof(o->target) && len + 1 >= text.len) {
            memcpy(o->target, text.data, len);
            o->target[len] = '\0';
        }
    }
    buf_fini(&text);
}

static void try_later(struct ctrl *c)
{
    struct orphan *o = &c->orphan;
    const uint64_t now = clock_now_ns(clock_real());

    if (now >= o->until_ns) {
        char text[128];
        snprintf(text, sizeof(text), "no coordinator came within %u s (--orphan-grace)",
                 o->grace_s);
        ctrl_lose(c, ST_ERR_PEER, text);
        return;
    }
    rpc_timer_set(c->loop, &o->timer, MIN(now + o->delay_ns, o->until_ns));
    o->delay_ns = MIN(o->delay_ns * 3 / 2, DELAY_MAX_MS * NS_PER_MS);
}

static void redial(void *arg)
{
    struct ctrl *c = arg;
    struct err err = ERR_INIT;

    if (c->closing) {
        return;
    }
    if (c->call != NULL || clock_now_ns(clock_real()) >= c->orphan.until_ns) {
        try_later(c);
        return;
    }
    address_read(c);
    rpc_channel_destroy(c->channel);
    c->channel = NULL;
    status st = ctrl_channel_open(c, c->orphan.target, &err);
    if (st == ST_OK) {
        st = ctrl_stream_start(c, &err);
    }
    if (st != ST_OK && c->call == NULL) {
        log_debug("control", "%s, trying again", err.text);
        try_later(c);
    } else { /* the call's end follows, or a welcome; but not for ever */
        rpc_timer_set(c->loop, &c->orphan.timer, c->orphan.until_ns);
    }
}

/* In front of everything that the next coordinator says. */
static status fence(struct ctrl *c)
{
    struct parcel *p = calloc(1, sizeof(*p));

    if (p == NULL) {
        return ST_ERR_NOMEM;
    }
    p->ctrl = c;
    p->epoch = ++c->orphan.epoch;
    const status st = ring_push(c->inbox, p);
    if (st != ST_OK) {
        free(p);
    }
    return st;
}

bool orphan_begin(struct ctrl *c, status code, const char *text)
{
    struct orphan *o = &c->orphan;

    pthread_mutex_lock(&c->lock);
    const bool closing = c->closing || c->was_told_to_stop;
    pthread_mutex_unlock(&c->lock);
    const bool is_link = c->state == LINK_WELCOME || c->state == LINK_ORPHAN;
    if (!is_link || closing || o->grace_s == 0 || code != ST_ERR_UNAVAILABLE) {
        return false;
    }
    if (c->state == LINK_WELCOME) {
        log_warn("control",
                 "the coordinator is gone: %s; waiting %u s for another (--orphan-grace)", text,
                 o->grace_s);
        if (fence(c) != ST_OK) {
            return false;
        }
        o->until_ns = clock_now_ns(clock_real()) + o->grace_s * NS_PER_S;
        o->timer.fn = redial;
        o->timer.arg = c;
        ctrl_set_state(c, LINK_ORPHAN, ST_OK, "");
    }
    try_later(c);
    return true;
}

/* The leader's thread takes a Stop from its inbox, the others look at none; here it matters that a
 * stream which ends after it has not broken, and that a rank which loads reads no inbox. */
void orphan_look(struct ctrl *c, const void *data, size_t len)
{
    struct msg_coord m;

    arena_reset(&c->in);
    if (len > 16 || msg_coord_unpack(data, len, &c->in, &m, NULL) != ST_OK || m.kind != MSG_STOP) {
        return;
    }
    pthread_mutex_lock(&c->lock);
    c->was_told_to_stop = true;
    pthread_mutex_unlock(&c->lock);
    if (c->orphan.ready.len == 0) {
        *c->config.abort = true;
    }
}

void orphan_stop(struct ctrl *c)
{
    rpc_timer_set(c->loop, &c->orphan.timer, CLOCK_NEVER);
    if (c->call == NULL) { /* nothing is open: there is no end to wait for */
        ctrl_set_state(c, LINK_LOST, ST_ERR_PEER, "closed");
    }
}
