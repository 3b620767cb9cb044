/* worker/ctrl_io.c - the leader's io over its control stream: messages of the coordinator to the
 * scheduler, events back. The rank's thread. */
#include "worker/ctrl_priv.h"

#include "base/log.h"

#include <poll.h>
#include <stdlib.h>

static status io_events(void *self, const struct msg_events *events, struct err *err)
{
    return ctrl_post(self, &(struct msg_rank){ .kind = MSG_EVENTS, .events = *events }, err);
}

static void refuse(struct ctrl *c, const struct msg_submit *m, const struct err *why)
{
    const struct msg_finish finish = { .stream = m->stream,
                                       .attempt = m->attempt,
                                       .reason = FINISH_FAILED,
                                       .code = why->code,
                                       .text = why->text };
    const struct msg_events events = { .n_finishes = 1, .finishes = &finish };
    struct err err = ERR_INIT;

    if (io_events(c, &events, &err) != ST_OK) {
        log_error("leader", "stream %llu was refused and nobody told: %s",
                  (unsigned long long)m->stream, err.text);
    }
}

/* One message. False: the rank shall end. */
static bool feed_one(struct ctrl *c, struct sched *sched, const struct parcel *p, bool *drain_p)
{
    struct msg_coord m;
    struct err err = ERR_INIT;

    if (p->len == 0) { /* the coordinator is gone, and all that it wanted */
        c->feed_epoch = p->epoch;
        sched_cancel_all(sched);
        return true;
    }
    arena_reset(&c->arena);
    if (msg_coord_unpack(p->data, p->len, &c->arena, &m, &err) != ST_OK) {
        /* It may have been a Submit, and nobody could say which: its stream would wait for ever. */
        err_prefix(&err, "a message of the coordinator cannot be read: ");
        log_error("leader", "%s", err.text);
        ctrl_fault(c, &err);
        *c->config.abort = true;
        return false;
    }
    switch (m.kind) {
    case MSG_SUBMIT:
        if (sched_submit(sched, &m.submit, &err) != ST_OK) {
            refuse(c, &m.submit, &err);
        }
        return true;
    case MSG_CANCEL:
        sched_cancel(sched, m.cancel.stream, m.cancel.attempt);
        return true;
    case MSG_STOP:
        *drain_p = m.stop.drain;
        return false;
    case MSG_WELCOME:
    default:
        return true;
    }
}

static bool io_feed(void *self, struct sched *sched, bool *drain_p)
{
    struct ctrl *c = self;
    bool go_on = true;

    for (struct parcel *p; (p = ring_pop(c->inbox)) != NULL;) {
        go_on = feed_one(c, sched, p, drain_p) && go_on;
        free(p);
    }
    return go_on;
}

static void io_wait(void *self, uint32_t ms)
{
    struct ctrl *c = self;
    struct pollfd fd = { .fd = ring_fd(c->inbox), .events = POLLIN };

    (void)poll(&fd, 1, (int)ms);
}

struct rank_io ctrl_io(struct ctrl *c)
{
    return (struct rank_io){ .feed = io_feed, .events = io_events, .wait = io_wait, .self = c };
}
