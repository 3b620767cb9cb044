/* coordinator/replica.c - the ranks of the replica: they attach, load, speak, and are missed.
 *
 *   Hello (checked) ──Welcome──► Heartbeats ──► Ready ──► Events, Heartbeats ──► stream ends
 *
 * Blame. When a rank dies, MPI takes the others down within milliseconds, and each of them may
 * report or break off as well. So the first sign of a failure only starts a short collection
 * (VERDICT_MS), and the best sign is blamed: a fault of a rank's own; then the rank that, says the
 * launcher, a signal ended (two streams that broke within a millisecond may be seen in either
 * order); then the first broken stream; then a fault that only says "my peer is gone"; then the
 * launcher's end. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *replica_state_name(enum replica_state state)
{
    switch (state) {
    case REPLICA_STARTING:
        return "starting";
    case REPLICA_LOADING:
        return "loading";
    case REPLICA_SERVING:
        return "serving";
    case REPLICA_DRAINING:
        return "draining";
    case REPLICA_FAILED:
        return "failed";
    }
    return "unknown";
}

static void text_copy(char *dst, size_t bytes, const char *src)
{
    snprintf(dst, bytes, "%s", src);
}

/* ---- failure ---- */

static void ask_launcher(struct coord *c)
{
    struct sign *sign = &c->replica.sign;
    char how[64];
    uint32_t rank;

    if (c->config.culprit == NULL || sign->weight >= SIGN_OWN_FAULT ||
        !c->config.culprit(c->config.arg, &rank, how, sizeof(how)) || rank >= c->replica.n_ranks) {
        return;
    }
    const struct rank *r = &c->replica.ranks[rank];
    snprintf(sign->text, sizeof(sign->text),
             "rank %u (host %s, pid %u) was ended by %s in phase \"%s\" at step %" PRIu64, rank,
             r->host, r->pid, how, r->phase, r->heartbeat.step);
    sign->code = ST_ERR_PEER;
}

static void verdict(void *arg)
{
    struct coord *c = arg;
    char text[ERR_TEXT_BYTES + 64];

    coord_enter(c);
    ask_launcher(c);
    snprintf(c->failure, sizeof(c->failure), "%s", c->replica.sign.text);
    c->failure_code = c->replica.sign.code;
    log_error("replica", "replica %u is lost: %s", c->config.replica, c->failure);
    snprintf(text, sizeof(text), "the replica was lost: %s", c->failure);
    front_fail_all(c, ST_ERR_UNAVAILABLE, text);
    coord_set_state(c, COORD_FAILED);
    coord_leave(c);
}

void replica_sign(struct coord *c, enum sign_weight weight, status code, const char *text)
{
    struct replica *r = &c->replica;

    /* Ranks that were told to stop go; while streams drain, one that goes takes them along. */
    if ((r->state == REPLICA_DRAINING && c->ranks_are_told) || c->failure[0] != '\0') {
        log_debug("replica", "%s", text);
        return;
    }
    if (weight > r->sign.weight) { /* of equals the first */
        r->sign.weight = weight;
        r->sign.code = code;
        text_copy(r->sign.text, sizeof(r->sign.text), text);
    }
    if (r->state != REPLICA_FAILED) {
        r->state = REPLICA_FAILED;
        health_push(c);
        rpc_timer_set(c->loop, &r->verdict_timer, coord_now(c) + VERDICT_MS * NS_PER_MS);
    }
}

/* Every second: a rank that is attached and says nothing is worth a line. */
static void silence_check(void *arg)
{
    struct coord *c = arg;
    const uint64_t now = coord_now(c);

    for (uint32_t i = 0; i < c->replica.n_ranks; i++) {
        struct rank *r = &c->replica.ranks[i];
        const uint64_t silent_ns = now - r->heard_ns;
        if (r->call == NULL) {
            continue;
        }
        if (!r->is_silent && silent_ns > RANK_SILENT_S * NS_PER_S) {
            r->is_silent = true;
            log_warn("replica",
                     "rank %u (host %s, pid %u) has been silent for %.1f s, last phase \"%s\", "
                     "step %" PRIu64,
                     i, r->host, r->pid, (double)silent_ns / 1e9, r->phase, r->heartbeat.step);
        }
    }
    rpc_timer_set(c->loop, &c->replica.silence_timer, now + NS_PER_S);
}

/* ---- life ---- */

status replica_init(struct coord *c, struct err *err)
{
    struct replica *r = &c->replica;

    r->n_ranks = c->config.plan->n_ranks;
    r->ranks = calloc(r->n_ranks, sizeof(*r->ranks));
    if (r->ranks == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u ranks", r->n_ranks);
    }
    r->verdict_timer.fn = verdict;
    r->verdict_timer.arg = c;
    r->silence_timer.fn = silence_check;
    r->silence_timer.arg = c;
    return rpc_timer_set(c->loop, &r->silence_timer, coord_now(c) + NS_PER_S);
}

void replica_fini(struct coord *c)
{
    rpc_timer_set(c->loop, &c->replica.verdict_timer, CLOCK_NEVER);
    rpc_timer_set(c->loop, &c->replica.silence_timer, CLOCK_NEVER);
    free(c->replica.ranks);
}

/* ---- to the ranks ---- */

static status rank_send(struct coord *c, uint32_t rank, const struct msg_coord *m)
{
    struct rpc_call *call = c->replica.ranks[rank].call;

    if (call == NULL) {
        return ST_ERR_PEER;
    }
    buf_reset(&c->out);
    const status st = msg_coord_pack(m, &c->out);
    return st < 0 ? st : rpc_call_send(call, c->out.data, c->out.len);
}

status replica_send_leader(struct coord *c, const struct msg_coord *m)
{
    return rank_send(c, 0, m);
}

void replica_stop_ranks(struct coord *c)
{
    const struct msg_coord m = { .kind = MSG_STOP, .stop = { .drain = false } };

    if (c->replica.state != REPLICA_FAILED) {
        c->replica.state = REPLICA_DRAINING;
    }
    for (uint32_t i = 0; i < c->replica.n_ranks; i++) {
        if (c->replica.ranks[i].call != NULL && rank_send(c, i, &m) != ST_OK) {
            log_debug("replica", "stop not sent to rank %u, ignoring", i);
        }
    }
}

/* ---- from the ranks: hello ---- */

static status hello_check(const struct coord *c, const struct msg_hello *h, struct err *err)
{
    const struct coord_config *k = &c->config;

    if (h->protocol != MSG_PROTOCOL) {
        return err_set(err, ST_ERR_MISMATCH, "rank %u speaks protocol %u, the coordinator %d",
                       h->rank, h->protocol, (int)MSG_PROTOCOL);
    }
    if (strcmp(h->build, k->build) != 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u on %s is build \"%s\", the coordinator \"%s\"; install the same "
                       "gantry on every host",
                       h->rank, h->host, h->build, k->build);
    }
    if (strcmp(h->profile, k->plan->profile) != 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u computes profile %s, the coordinator serves %s", h->rank,
                       h->profile, k->plan->profile);
    }
    if (h->plan_digest != k->plan->digest) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u on %s has plan %016" PRIx64 ", the coordinator %016" PRIx64
                       "; is MODEL the same directory there?",
                       h->rank, h->host, h->plan_digest, k->plan->digest);
    }
    if (h->replica != k->replica || h->generation != k->generation) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u belongs to replica %u generation %u, the coordinator has %u and %u",
                       h->rank, h->replica, h->generation, k->replica, k->generation);
    }
    if (h->n_ranks != c->replica.n_ranks || h->rank >= c->replica.n_ranks) {
        return err_set(err, ST_ERR_MISMATCH, "rank %u of %u, the plan has %u ranks", h->rank,
                       h->n_ranks, c->replica.n_ranks);
    }
    const struct rank *r = &c->replica.ranks[h->rank];
    if (r->was_attached) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u is pid %u on %s already; pid %u on %s says it is that rank too",
                       h->rank, r->pid, r->host, h->pid, h->host);
    }
    if (c->replica.state != REPLICA_STARTING) {
        return err_set(err, ST_ERR_UNAVAILABLE, "rank %u comes while the replica is %s", h->rank,
                       replica_state_name(c->replica.state));
    }
    return ST_OK;
}

static void hello_take(struct coord *c, struct attach *a, const struct msg_hello *h)
{
    struct rank *r = &c->replica.ranks[h->rank];
    const struct msg_coord welcome = { .kind = MSG_WELCOME, .welcome = { c->config.build } };

    a->rank = (int32_t)h->rank;
    r->call = a->call;
    r->was_attached = true;
    r->pid = h->pid;
    r->heard_ns = coord_now(c);
    text_copy(r->host, sizeof(r->host), h->host);
    text_copy(r->kernels, sizeof(r->kernels), h->kernels);
    text_copy(r->phase, sizeof(r->phase), "attached");
    c->replica.n_attached++;
    if (c->replica.n_attached == c->replica.n_ranks) {
        c->replica.state = REPLICA_LOADING;
    }
    log_info("replica", "rank %u attached from %s (host %s, pid %u, kernels %s), %u of %u", h->rank,
             rpc_call_peer(a->call), r->host, r->pid, r->kernels, c->replica.n_attached,
             c->replica.n_ranks);
    if (rank_send(c, h->rank, &welcome) != ST_OK) {
        log_warn("replica", "welcome not sent to rank %u, ignoring", h->rank);
    }
}

/* ---- from the ranks: the rest ---- */

static void ready_take(struct coord *c, uint32_t rank, const struct msg_ready *m)
{
    struct replica *r = &c->replica;

    if (r->ranks[rank].is_ready) {
        log_warn("replica", "rank %u is ready twice, ignoring", rank);
        return;
    }
    r->ranks[rank].is_ready = true;
    r->ranks[rank].heartbeat.weight_bytes = m->weight_bytes;
    r->n_ready++;
    if (rank == 0) {
        static const struct hash128 zero;
        r->digest = m->weights_digest;
        if (memcmp(&r->digest, &zero, sizeof(zero)) != 0) {
            hash128_hex(&r->digest, r->digest_hex);
        }
    }
    log_info("replica", "rank %u is ready: %.1f MiB of weights, %.1f MiB of KV, %u of %u", rank,
             (double)m->weight_bytes / 1048576.0, (double)m->kv_bytes / 1048576.0, r->n_ready,
             r->n_ranks);
    if (r->n_ready == r->n_ranks && r->state == REPLICA_LOADING) {
        r->state = REPLICA_SERVING;
        coord_set_state(c, COORD_SERVING);
    }
}

static void heartbeat_take(struct rank *r, const struct msg_heartbeat *m)
{
    text_copy(r->phase, sizeof(r->phase), m->phase);
    r->heartbeat = *m;
    r->heartbeat.phase = NULL; /* it was borrowed */
}

static void events_take(struct coord *c, uint32_t rank, const struct msg_events *m)
{
    if (rank != 0) {
        log_warn("replica", "events from rank %u, which is not the leader, ignoring", rank);
        return;
    }
    status_count_tokens(c, m->n_tokens);
    for (uint32_t i = 0; i < m->n_tokens; i++) {
        front_token(c, &m->tokens[i]);
    }
    for (uint32_t i = 0; i < m->n_finishes; i++) {
        front_finish(c, &m->finishes[i]);
    }
}

static bool is_consequence(status code)
{
    return code == ST_ERR_PEER || code == ST_ERR_UNAVAILABLE || code == ST_ERR_CANCELLED;
}

static void fault_take(struct coord *c, const struct attach *a, const struct msg_fault *m)
{
    const uint32_t rank = m->rank < c->replica.n_ranks ? m->rank : (uint32_t)a->rank;
    char text[ERR_TEXT_BYTES];

    snprintf(text, sizeof(text), "rank %u (host %s): %s", rank, c->replica.ranks[rank].host,
             m->text);
    log_error("replica", "fault: %s", text);
    replica_sign(c, is_consequence(m->code) ? SIGN_PEER_FAULT : SIGN_OWN_FAULT,
                 m->code < 0 ? m->code : ST_ERR_PEER, text);
}

static void message_take(struct coord *c, struct attach *a, const struct msg_rank *m)
{
    struct rank *r = &c->replica.ranks[a->rank];

    r->heard_ns = coord_now(c);
    if (r->is_silent) {
        r->is_silent = false;
        log_info("replica", "rank %d speaks again", a->rank);
    }
    switch (m->kind) {
    case MSG_READY:
        ready_take(c, (uint32_t)a->rank, &m->ready);
        break;
    case MSG_HEARTBEAT:
        heartbeat_take(r, &m->heartbeat);
        break;
    case MSG_EVENTS:
        events_take(c, (uint32_t)a->rank, &m->events);
        break;
    case MSG_FAULT:
        fault_take(c, a, &m->fault);
        break;
    case MSG_HELLO:
        log_warn("replica", "rank %d says hello twice, ignoring", a->rank);
        break;
    }
}

/* ---- the Attach stream ---- */

void replica_attach_open(void *arg, struct rpc_call *call, const void *data UNUSED,
                         size_t len UNUSED)
{
    struct attach *a = calloc(1, sizeof(*a));

    if (a == NULL) {
        rpc_call_finish(call, ST_ERR_NOMEM, "the coordinator is out of memory");
        return;
    }
    a->coord = arg;
    a->call = call;
    a->rank = -1;
    rpc_call_set_user(call, a);
}

static void refuse(struct coord *c, struct attach *a, status st, const char *text)
{
    log_warn("replica", "refused %s: %s", rpc_call_peer(a->call), text);
    rpc_call_finish(a->call, st, text);
    /* One of our own ranks that does not match will not match later: the start has failed. */
    if (st == ST_ERR_MISMATCH && c->state == COORD_STARTING) {
        replica_sign(c, SIGN_OWN_FAULT, st, text);
    }
}

void replica_attach_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct coord *c = arg;
    struct attach *a = rpc_call_user(call);
    struct err err = ERR_INIT;
    struct msg_rank m;

    if (a == NULL || data == NULL) {
        if (a != NULL) { /* half-closed: the rank has said all it will */
            rpc_call_finish(call, ST_OK, "");
        }
        return;
    }
    coord_enter(c);
    arena_reset(&c->arena);
    status st = msg_rank_unpack(data, len, &c->arena, &m, &err);
    if (st < 0) {
        refuse(c, a, st, err.text);
    } else if (a->rank >= 0) {
        message_take(c, a, &m);
    } else if (m.kind != MSG_HELLO) {
        refuse(c, a, ST_ERR_PROTO, "the first message must be hello");
    } else {
        st = hello_check(c, &m.hello, &err);
        if (st < 0) {
            refuse(c, a, st, err.text);
        } else {
            hello_take(c, a, &m.hello);
        }
    }
    coord_leave(c);
}

void replica_attach_done(void *arg, struct rpc_call *call, bool cancelled UNUSED)
{
    struct coord *c = arg;
    struct attach *a = rpc_call_user(call);

    if (a == NULL) {
        return;
    }
    coord_enter(c);
    if (a->rank >= 0) {
        struct rank *r = &c->replica.ranks[a->rank];
        char text[ERR_TEXT_BYTES];

        r->call = NULL;
        c->replica.n_attached--;
        snprintf(text, sizeof(text),
                 "rank %d (host %s, pid %u) is gone: its connection broke in phase \"%s\" at step "
                 "%" PRIu64,
                 a->rank, r->host, r->pid, r->phase, r->heartbeat.step);
        replica_sign(c, SIGN_BROKEN, ST_ERR_PEER, text);
    }
    free(a);
    coord_leave(c);
}
