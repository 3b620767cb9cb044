/* worker/ctrl.c - see ctrl.h: the stream and its thread. */
#include "worker/ctrl_priv.h"

#include "base/log.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    INBOX_MAX = 8192,
    HEARTBEAT_MS = 250,
    LOST_GRACE_MS = 2000,
    EVENT_ARENA_BYTES = 32 << 20,
    FLUSH_MS = 2000,
    SAY_WAIT_S = 5
};

void ctrl_set_state(struct ctrl *c, enum link_state state, status code, const char *text)
{
    pthread_mutex_lock(&c->lock);
    if (c->state != LINK_LOST) {
        c->state = state;
        err_set(&c->why, code, "%s", text);
    }
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

/* ---- control thread ---- */

static void end_process(void *arg)
{
    struct ctrl *c = arg;

    trail_tell("the coordinator is lost");
    log_error("control", "the coordinator is gone and this rank is stuck in %s, ending it",
              rank_phase_name((enum rank_phase)atomic_load(&c->config.progress->phase)));
    _exit(status_exit_code(ST_ERR_PEER));
}

void ctrl_lose(struct ctrl *c, status code, const char *text)
{
    pthread_mutex_lock(&c->lock);
    const bool closing = c->closing;
    const bool was_welcome = c->state == LINK_WELCOME || c->state == LINK_ORPHAN;
    pthread_mutex_unlock(&c->lock);
    if (was_welcome && !closing) { /* the rank's own thread only knows that it was told to end */
        log_error("control", "the coordinator is lost: %s", text);
    }
    ctrl_set_state(c, LINK_LOST, code, text);
    if (!closing) {
        *c->config.abort = true;
        c->lost.fn = end_process;
        c->lost.arg = c;
        rpc_timer_set(c->loop, &c->lost, clock_now_ns(clock_real()) + LOST_GRACE_MS * NS_PER_MS);
    }
}

/* What the rank is in. Its fields may be of two moments (coll_watch.h). */
static void note_watch(const struct coll_watch *w, struct msg_heartbeat *h)
{
    const uint64_t now = clock_now_ns(clock_real());
    const uint64_t since = atomic_load_explicit(&w->since_ns, memory_order_relaxed);
    const uint32_t peer = atomic_load_explicit(&w->peer, memory_order_relaxed);

    h->op = atomic_load_explicit(&w->op, memory_order_relaxed);
    h->op_seq = atomic_load_explicit(&w->seq, memory_order_relaxed);
    if (h->op != COLL_OP_NONE && since != 0) {
        h->waited_us = MAX(clock_since(now, since), (uint64_t)NS_PER_US) / NS_PER_US;
        h->op_peer = peer == COLL_PEER_NONE ? 0 : peer + 1;
    }
}

static void send_heartbeat(void *arg)
{
    struct ctrl *c = arg;
    struct rank_progress *p = c->config.progress;
    struct msg_rank m = { .kind = MSG_HEARTBEAT,
                          .heartbeat = {
                              .phase = rank_phase_name((enum rank_phase)atomic_load(&p->phase)),
                              .step = atomic_load(&p->step),
                              .loaded_bytes = atomic_load(&p->loaded_bytes),
                              .weight_bytes = atomic_load(&p->file_bytes),
                              .running = atomic_load(&p->running),
                              .waiting = atomic_load(&p->waiting),
                              .kv_blocks_used = atomic_load(&p->kv_used),
                              .kv_blocks_total = atomic_load(&p->kv_total),
                              .kv_blocks_cached = atomic_load(&p->kv_cached),
                              .cache_hits = atomic_load(&p->cache_hits),
                              .cache_tokens = atomic_load(&p->cache_tokens),
                              .step_us = (double)atomic_load(&p->step_ns) / 1e3,
                              .step_kernel_us = (double)atomic_load(&p->kernel_ns) / 1e3,
                              .ticks = atomic_load(&p->ticks),
                              .digest = atomic_load(&p->digest) } };

    if (c->call == NULL) {
        return;
    }
    uint64_t queued[MSG_QUEUED_MAX];
    m.heartbeat.n_queued = MIN(atomic_load(&p->n_queued), (uint32_t)MSG_QUEUED_MAX);
    m.heartbeat.queued = queued;
    for (uint32_t i = 0; i < m.heartbeat.n_queued; i++) {
        queued[i] = atomic_load_explicit(&p->queued[i], memory_order_relaxed);
    }
    note_watch(&p->watch, &m.heartbeat);
    buf_reset(&c->beat);
    if (msg_rank_pack(&m, &c->beat) == ST_OK) {
        /* Full queue: the next one says the same and more. */
        (void)rpc_call_send(c->call, c->beat.data, c->beat.len);
    }
    rpc_timer_set(c->loop, &c->heartbeat, clock_now_ns(clock_real()) + HEARTBEAT_MS * NS_PER_MS);
}

static void on_welcome(struct ctrl *c, const void *data, size_t len)
{
    struct msg_coord m;
    struct err err = ERR_INIT;

    arena_reset(&c->in);
    if (msg_coord_unpack(data, len, &c->in, &m, &err) != ST_OK || m.kind != MSG_WELCOME) {
        ctrl_lose(c, ST_ERR_PROTO, "the coordinator's first message is not a welcome");
        rpc_call_cancel(c->call);
        return;
    }
    orphan_welcome(c, &m);
    ctrl_set_state(c, LINK_WELCOME, ST_OK, "");
    send_heartbeat(c);
}

static void on_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct ctrl *c = arg;

    if (data == NULL) {
        return; /* end of messages: on_done follows */
    }
    if (c->state == LINK_OPENING || c->state == LINK_ORPHAN) {
        on_welcome(c, data, len);
        return;
    }
    orphan_look(c, data, len);
    struct parcel *p = malloc(sizeof(*p) + len);
    if (p == NULL) {
        ctrl_lose(c, ST_ERR_NOMEM, "no memory for a message of the coordinator");
        rpc_call_cancel(call);
        return;
    }
    *p = (struct parcel){ .ctrl = c, .len = len };
    memcpy(p->data, data, len);
    if (ring_push(c->inbox, p) != ST_OK) {
        free(p);
        ctrl_lose(c, ST_ERR_LIMIT, "the rank does not take the coordinator's messages");
        rpc_call_cancel(call);
    }
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct ctrl *c = arg;

    c->call = NULL;
    if (orphan_begin(c, st, text != NULL ? text : "")) {
        return;
    }
    ctrl_lose(c, st < 0 ? st : ST_ERR_PEER,
              text != NULL && text[0] != '\0' ? text : "the coordinator closed the control stream");
}

static const struct rpc_client client = { .on_message = on_message, .on_done = on_done };

status ctrl_stream_start(struct ctrl *c, struct err *err)
{
    const struct rpc_call_config config = { .path = "/gantry.control.v1.Control/Attach",
                                            .kind = RPC_BIDI,
                                            .deadline_ns = CLOCK_NEVER,
                                            .wait_ready = c->state == LINK_OPENING,
                                            .client = &client,
                                            .arg = c };
    struct msg_rank hello = { .kind = MSG_HELLO, .hello = c->config.hello };

    hello.hello.is_reattach = c->state == LINK_ORPHAN;
    status st = rpc_call_start(c->channel, &config, &c->call, err);
    if (st == ST_OK) {
        buf_reset(&c->beat);
        st = msg_rank_pack(&hello, &c->beat);
    }
    if (st == ST_OK) {
        st = rpc_call_send(c->call, c->beat.data, c->beat.len);
    }
    return st;
}

static void open_stream(void *arg)
{
    struct ctrl *c = arg;
    struct err err = ERR_INIT;
    const status st = ctrl_stream_start(c, &err);

    if (st != ST_OK) {
        ctrl_set_state(c, LINK_LOST, st, err.text);
    }
}

/* Is this for the coordinator that is there now? */
static bool is_current(const struct ctrl *c, const struct parcel *p)
{
    return p->kind != MSG_EVENTS || (p->epoch == c->orphan.epoch && c->state == LINK_WELCOME);
}

static void send_parcel(void *arg)
{
    struct parcel *p = arg;
    struct ctrl *c = p->ctrl;

    if (p->kind == MSG_READY) { /* the next coordinator will want to know as well */
        buf_reset(&c->orphan.ready);
        if (buf_append(&c->orphan.ready, p->data, p->len) != ST_OK) {
            c->orphan.grace_s = 0;
        }
    }
    const bool is_wanted = c->call != NULL && is_current(c, p);
    const status st = is_wanted ? rpc_call_send(c->call, p->data, p->len) : ST_ERR_PEER;
    if (st != ST_OK && st != ST_ERR_PEER) { /* PEER: on_done has said so, or will */
        /* One that is left out would be a token that nobody misses until the next one comes. */
        ctrl_lose(c, st == ST_BUSY ? ST_ERR_LIMIT : st,
                  st == ST_BUSY ? "the coordinator does not take this rank's messages"
                                : "a message to the coordinator could not be sent");
        rpc_call_cancel(c->call);
    }
    free(p);
    pthread_mutex_lock(&c->lock);
    c->n_unsent--;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static void close_stream(void *arg)
{
    struct ctrl *c = arg;

    rpc_timer_set(c->loop, &c->heartbeat, CLOCK_NEVER);
    rpc_timer_set(c->loop, &c->lost, CLOCK_NEVER);
    orphan_stop(c);
    if (c->call != NULL) {
        rpc_call_half_close(c->call);
    }
}

static void cancel_stream(void *arg)
{
    struct ctrl *c = arg;

    if (c->call != NULL) {
        rpc_call_cancel(c->call);
    }
}

static void *thread_main(void *arg)
{
    struct ctrl *c = arg;

    rpc_loop_run(c->loop);
    return NULL;
}

/* ---- rank's thread ---- */

static void deadline_in(uint32_t ms, struct timespec *at)
{
    clock_gettime(CLOCK_REALTIME, at);
    at->tv_sec += ms / 1000;
    at->tv_nsec += (long)(ms % 1000) * 1000000;
    if (at->tv_nsec >= 1000000000) {
        at->tv_sec++;
        at->tv_nsec -= 1000000000;
    }
}

status ctrl_post(struct ctrl *c, const struct msg_rank *m, struct err *err)
{
    buf_reset(&c->out);
    status st = msg_rank_pack(m, &c->out);
    struct parcel *p = st == ST_OK ? malloc(sizeof(*p) + c->out.len) : NULL;

    if (p == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a message to the coordinator");
    }
    *p = (struct parcel){ .ctrl = c, .kind = m->kind, .epoch = c->feed_epoch, .len = c->out.len };
    memcpy(p->data, c->out.data, c->out.len);
    pthread_mutex_lock(&c->lock);
    c->n_unsent++;
    pthread_mutex_unlock(&c->lock);
    st = rpc_loop_post(c->loop, send_parcel, p);
    if (st != ST_OK) {
        free(p);
        pthread_mutex_lock(&c->lock);
        c->n_unsent--;
        pthread_mutex_unlock(&c->lock);
        return err_set(err, ST_ERR_LIMIT, "the control thread does not keep up");
    }
    return ST_OK;
}

static status await_welcome(struct ctrl *c, uint32_t timeout_s, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    for (uint32_t waited_s = 0; c->state == LINK_OPENING && waited_s < timeout_s;) {
        const uint32_t part_s = MIN(timeout_s - waited_s, (uint32_t)SAY_WAIT_S);
        struct timespec at;
        int rc = 0;

        deadline_in(part_s * 1000, &at);
        while (c->state == LINK_OPENING && rc == 0) {
            rc = pthread_cond_timedwait(&c->changed, &c->lock, &at);
        }
        waited_s += part_s;
        if (c->state == LINK_OPENING && waited_s < timeout_s && c->config.hello.rank == 0) {
            log_info("control", "no coordinator at %s yet, dialling on: %u of %u s",
                     c->config.coordinator, waited_s, timeout_s);
        }
    }
    const enum link_state state = c->state;
    if (state == LINK_LOST) {
        *err = c->why;
    }
    pthread_mutex_unlock(&c->lock);
    if (state == LINK_OPENING) {
        return err_set(err, ST_ERR_UNAVAILABLE, "no answer from the coordinator at %s within %u s",
                       c->config.coordinator, timeout_s);
    }
    if (state == LINK_LOST) {
        err_prefix(err, "coordinator at %s: ", c->config.coordinator);
        return err->code;
    }
    return ST_OK;
}

status ctrl_channel_open(struct ctrl *c, const char *target, struct err *err)
{
    const struct rpc_channel_config channel = { .target = target,
                                                .token = c->config.token,
                                                .message_bytes_max = MSG_BYTES_MAX,
                                                .send_queue_max = 16384,
                                                .keepalive_ms = 2000 };

    return rpc_channel_create(c->loop, &channel, &c->channel, err);
}

static status create_parts(struct ctrl *c, struct err *err)
{
    status st = ring_create(INBOX_MAX, &c->inbox, err);

    if (st == ST_OK) {
        st = rpc_loop_create(&c->loop, err);
    }
    if (st == ST_OK) {
        st = ctrl_channel_open(c, c->config.coordinator, err);
    }
    if (st == ST_OK) {
        st = rpc_loop_post(c->loop, open_stream, c);
        if (st != ST_OK) {
            err_set(err, st, "no memory to open the control stream");
        }
    }
    if (st == ST_OK && pthread_create(&c->thread, NULL, thread_main, c) != 0) {
        st = err_set(err, ST_ERR_LIMIT, "cannot start the control thread");
    }
    c->has_thread = st == ST_OK;
    return st;
}

status ctrl_create(const struct ctrl_config *config, uint32_t timeout_s, struct ctrl **ctrl_p,
                   struct err *err)
{
    struct ctrl *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the control stream");
    }
    c->config = *config;
    c->arena = (struct arena)ARENA_INIT(EVENT_ARENA_BYTES);
    c->in = (struct arena)ARENA_INIT(1 << 20);
    c->out = (struct buf)BUF_INIT;
    c->beat = (struct buf)BUF_INIT;
    c->orphan.ready = (struct buf)BUF_INIT;
    c->heartbeat.fn = send_heartbeat;
    c->heartbeat.arg = c;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    status st = create_parts(c, err);
    if (st == ST_OK) {
        st = await_welcome(c, timeout_s, err);
    }
    if (st != ST_OK) {
        ctrl_destroy(c);
        return st;
    }
    *ctrl_p = c;
    return ST_OK;
}

bool ctrl_is_lost(struct ctrl *c, struct err *err)
{
    pthread_mutex_lock(&c->lock);
    const bool is_lost = c->state == LINK_LOST;
    if (is_lost) {
        *err = c->why;
    }
    pthread_mutex_unlock(&c->lock);
    return is_lost;
}

status ctrl_ready(struct ctrl *c, const struct msg_ready *ready, struct err *err)
{
    return ctrl_post(c, &(struct msg_rank){ .kind = MSG_READY, .ready = *ready }, err);
}

bool ctrl_is_told_to_stop(struct ctrl *c)
{
    pthread_mutex_lock(&c->lock);
    const bool is_told = c->was_told_to_stop;
    pthread_mutex_unlock(&c->lock);
    return is_told;
}

void ctrl_fault(struct ctrl *c, const struct err *why)
{
    struct err ignored = ERR_INIT;
    const struct msg_rank m = {
        .kind = MSG_FAULT,
        .fault = { .code = why->code, .rank = c->config.hello.rank, .text = why->text }
    };

    if (ctrl_post(c, &m, &ignored) != ST_OK) {
        log_warn("control", "the coordinator will not learn why: %s", ignored.text);
    }
}

/* Parcels handed over, our half closed, the coordinator's answer seen or FLUSH_MS gone. */
static void flush(struct ctrl *c)
{
    struct timespec at;
    int rc = 0;

    deadline_in(FLUSH_MS, &at);
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    while (c->n_unsent != 0 && c->state != LINK_LOST && rc == 0) {
        rc = pthread_cond_timedwait(&c->changed, &c->lock, &at);
    }
    pthread_mutex_unlock(&c->lock);
    (void)rpc_loop_post(c->loop, close_stream, c);
    pthread_mutex_lock(&c->lock);
    while (c->state != LINK_LOST && rc == 0) {
        rc = pthread_cond_timedwait(&c->changed, &c->lock, &at);
    }
    pthread_mutex_unlock(&c->lock);
    (void)rpc_loop_post(c->loop, cancel_stream, c);
}

void ctrl_destroy(struct ctrl *c)
{
    if (c == NULL) {
        return;
    }
    if (c->has_thread) {
        flush(c);
        rpc_loop_stop(c->loop);
        pthread_join(c->thread, NULL);
    }
    rpc_channel_destroy(c->channel);
    rpc_loop_destroy(c->loop);
    for (struct parcel *p; c->inbox != NULL && (p = ring_pop(c->inbox)) != NULL;) {
        free(p);
    }
    ring_destroy(c->inbox);
    arena_fini(&c->arena);
    arena_fini(&c->in);
    buf_fini(&c->out);
    buf_fini(&c->beat);
    buf_fini(&c->orphan.ready);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
