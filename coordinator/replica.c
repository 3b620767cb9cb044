/* coordinator/replica.c - the ranks of the replicas: they attach, load, speak, and go.
 *
 *   Hello (checked) ──Welcome──► Heartbeats ──► Ready ──► Events, Heartbeats ──► stream ends
 *
 * A rank that goes, faults or does not match is a sign that its replica is lost (blame.c). */
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
    case REPLICA_DRAINED:
        return "drained";
    case REPLICA_LOST:
        return "lost";
    case REPLICA_FAILED:
        return "failed";
    case REPLICA_GONE:
        return "gone";
    }
    return "unknown";
}

static void text_copy(char *dst, size_t bytes, const char *src)
{
    snprintf(dst, bytes, "%s", src);
}

/* ---- to the ranks ---- */

static status rank_send(struct replica *r, uint32_t rank, const struct msg_coord *m)
{
    struct rpc_call *call = r->ranks[rank].call;
    struct buf *out = &r->coord->out;

    if (call == NULL) {
        return ST_ERR_PEER;
    }
    buf_reset(out);
    const status st = msg_coord_pack(m, out);
    return st < 0 ? st : rpc_call_send(call, out->data, out->len);
}

status replica_send_leader(struct replica *r, const struct msg_coord *m)
{
    return rank_send(r, 0, m);
}

void replica_stop(struct replica *r)
{
    const struct msg_coord m = { .kind = MSG_STOP, .stop = { .drain = false } };

    for (uint32_t k = 0; k < r->shape.n_ranks; k++) {
        if (r->ranks[k].call != NULL && rank_send(r, k, &m) != ST_OK) {
            log_debug("replica", "stop not sent to rank %u, ignoring", k);
        }
    }
}

void replica_stop_ranks(struct coord *c)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        replica_stop(c->replicas[i]);
    }
}

bool replica_has_joined(const struct replica *r)
{
    return r->index >= r->coord->n_own;
}

/* ---- from the ranks: hello ---- */

/* Who speaks another protocol may mean something else by all that follows. */
static status hello_check_build(const struct coord *c, const struct msg_hello *h, struct err *err)
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
    return ST_OK;
}

static status hello_check_plan(const struct replica *r, const struct msg_hello *h, struct err *err)
{
    if (strcmp(h->profile, r->shape.profile) != 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u computes profile %s, the coordinator serves %s", h->rank,
                       h->profile, r->shape.profile);
    }
    if (h->plan_digest != r->shape.plan_digest) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u on %s has plan %016" PRIx64 ", the coordinator %016" PRIx64
                       "; is MODEL the same directory there?",
                       h->rank, h->host, h->plan_digest, r->shape.plan_digest);
    }
    return ST_OK;
}

static status hello_check(const struct replica *r, const struct msg_hello *h, struct err *err)
{
    const status st = hello_check_plan(r, h, err);

    if (st < 0) {
        return st;
    }
    if (!replica_has_joined(r) && h->generation != r->generation) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u belongs to replica %u generation %u, the coordinator has %u and %u",
                       h->rank, h->replica, h->generation, r->index, r->generation);
    }
    if (h->n_ranks != r->shape.n_ranks || h->rank >= r->shape.n_ranks) {
        return err_set(err, ST_ERR_MISMATCH, "rank %u of %u, the plan has %u ranks", h->rank,
                       h->n_ranks, r->shape.n_ranks);
    }
    const struct rank *k = &r->ranks[h->rank];
    if (k->was_attached) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u is pid %u on %s already; pid %u on %s says it is that rank too",
                       h->rank, k->pid, k->host, h->pid, h->host);
    }
    if (r->state != REPLICA_STARTING) {
        return err_set(err, ST_ERR_DENIED, "rank %u comes while the replica is %s", h->rank,
                       replica_state_name(r->state));
    }
    return ST_OK;
}

static void hello_take(struct replica *r, struct attach *a, const struct msg_hello *h)
{
    struct coord *c = r->coord;
    struct rank *k = &r->ranks[h->rank];
    char text[96];
    const struct msg_coord welcome = { .kind = MSG_WELCOME,
                                       .welcome = { .build = c->config.build,
                                                    .replica = r->index,
                                                    .generation = r->generation,
                                                    .orphan_grace_s =
                                                        (uint32_t)(c->config.orphan_ns / NS_PER_S),
                                                    .control_file = c->config.control_file } };

    a->rank = (int32_t)h->rank;
    a->replica = r;
    k->call = a->call;
    k->was_attached = true;
    k->pid = h->pid;
    k->heard_ns = coord_now(c);
    text_copy(k->host, sizeof(k->host), h->host);
    text_copy(k->kernels, sizeof(k->kernels), h->kernels);
    text_copy(k->phase, sizeof(k->phase), "attached");
    r->n_attached++;
    if (r->n_attached == r->shape.n_ranks) {
        r->state = REPLICA_LOADING;
    }
    log_info("replica", "replica %u.%u: rank %u %s from %s (host %s, pid %u, kernels %s), %u of %u",
             r->index, r->generation, h->rank, h->is_reattach ? "is back" : "attached",
             rpc_call_peer(a->call), k->host, k->pid, k->kernels, r->n_attached, r->shape.n_ranks);
    const status st = rank_send(r, h->rank, &welcome);
    if (st != ST_OK && st != ST_ERR_PEER) { /* PEER: the end of its stream says more */
        snprintf(text, sizeof(text), "rank %u could not be welcomed: %s", h->rank, status_name(st));
        replica_sign(r, SIGN_OWN_FAULT, st, text);
        rpc_call_finish(a->call, st, text);
    }
}

/* ---- from the ranks: the rest ---- */

void replica_serve(struct replica *r)
{
    struct coord *c = r->coord;

    r->state = REPLICA_SERVING;
    r->proven_ns = coord_now(c);
    r->reattach_ns = 0;
    r->n_restarts = 0;
    r->moved_ns = coord_now(c);
    log_info("replica", "replica %u.%u serves, %.1f s after its start", r->index, r->generation,
             (double)(coord_now(c) - r->started_ns) / 1e9);
    drain_over(r);
    coord_judge(c);
    route_waiting(c);
}

static bool digest_is_known(const struct coord *c)
{
    return c->digest_hex[0] != '\0';
}

static void serve_if_ready(struct replica *r)
{
    const bool is_proven = !replica_has_joined(r) || (r->has_digest && digest_is_known(r->coord));

    if (r->n_ready == r->shape.n_ranks && r->state == REPLICA_LOADING && is_proven &&
        canary_admit(r)) {
        replica_serve(r);
    }
}

static void digest_compare(struct replica *r, const struct hash128 *digest)
{
    char theirs[HASH_HEX_BYTES], text[ERR_TEXT_BYTES];

    if (memcmp(digest, &r->coord->digest, sizeof(*digest)) == 0) {
        return;
    }
    hash128_hex(digest, theirs);
    snprintf(text, sizeof(text),
             "replica %u has loaded weights with digest %s, the service has %s: have the files "
             "changed?",
             r->index, theirs, r->coord->digest_hex);
    replica_sign(r, SIGN_OWN_FAULT, ST_ERR_MISMATCH, text);
}

/* From here on all replicas must have it; those that have joined and waited for it are judged. */
static void digest_set(struct coord *c, const struct hash128 *digest)
{
    c->digest = *digest;
    hash128_hex(&c->digest, c->digest_hex);
    for (uint32_t i = c->n_own; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        if (r->has_digest && replica_is_alive(r)) {
            digest_compare(r, &r->digest);
            serve_if_ready(r);
        }
    }
}

static bool own_may_say(const struct coord *c)
{
    for (uint32_t i = 0; i < c->n_own; i++) {
        if (c->replicas[i]->state != REPLICA_FAILED) {
            return true;
        }
    }
    return false;
}

/* The first leader's is what all must have, but a replica from elsewhere shall not decide what the
 * service's own have to be. */
void replica_digest_settle(struct coord *c)
{
    for (uint32_t i = c->n_own; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        if (!digest_is_known(c) && !own_may_say(c) && r->has_digest && replica_is_alive(r)) {
            digest_set(c, &r->digest);
        }
    }
}

static void digest_take(struct replica *r, const struct hash128 *digest)
{
    static const struct hash128 zero;
    struct coord *c = r->coord;
    const bool is_zero = memcmp(digest, &zero, sizeof(zero)) == 0;

    if (replica_has_joined(r) && is_zero) {
        replica_sign(r, SIGN_OWN_FAULT, ST_ERR_MISMATCH,
                     "the replica does not say which weights it has loaded");
        return;
    }
    if (is_zero) {
        return;
    }
    r->digest = *digest;
    r->has_digest = true;
    if (digest_is_known(c)) {
        digest_compare(r, digest);
    } else if (!replica_has_joined(r)) {
        digest_set(c, digest);
    } else {
        replica_digest_settle(c);
    }
}

static void ready_take(struct replica *r, uint32_t rank, const struct msg_ready *m)
{
    if (r->ranks[rank].is_ready) {
        log_warn("replica", "rank %u is ready twice, ignoring", rank);
        return;
    }
    r->ranks[rank].is_ready = true;
    text_copy(r->ranks[rank].sums, sizeof(r->ranks[rank].sums), m->sums != NULL ? m->sums : "");
    r->ranks[rank].heartbeat.weight_bytes = m->weight_bytes;
    r->n_ready++;
    if (rank == 0) {
        digest_take(r, &m->weights_digest);
        fabric_take(r, &m->self_test);
    }
    log_info("replica", "rank %u is ready: %.1f MiB of weights, %.1f MiB of KV, %u of %u", rank,
             (double)m->weight_bytes / 1048576.0, (double)m->kv_bytes / 1048576.0, r->n_ready,
             r->shape.n_ranks);
    serve_if_ready(r);
}

void coord_expect_digest(struct coord *c, const struct hash128 *digest)
{
    if (!digest_is_known(c)) { /* a journal may have said it before */
        digest_set(c, digest);
    }
}

static void heartbeat_take(struct replica *r, uint32_t rank, const struct msg_heartbeat *m)
{
    struct rank *k = &r->ranks[rank];

    text_copy(k->phase, sizeof(k->phase), m->phase);
    k->heartbeat = *m;
    k->heartbeat.phase = NULL; /* they were borrowed */
    k->heartbeat.queued = NULL;
    if (rank == 0) {
        route_note_pace(r, m);
        r->n_queued = m->n_queued;
        for (uint32_t i = 0; i < m->n_queued; i++) {
            r->queued[i] = m->queued[i];
        }
    }
}

static void events_take(struct replica *r, uint32_t rank, const struct msg_events *m)
{
    if (rank != 0) {
        log_warn("replica", "events from rank %u, which is not the leader, ignoring", rank);
        return;
    }
    r->n_events++;
    r->proven_ns = coord_now(r->coord);
    for (uint32_t i = 0; i < m->n_tokens; i++) {
        if (canary_is(m->tokens[i].stream)) {
            canary_token(r, &m->tokens[i]);
        } else {
            status_count_tokens(r, 1);
            front_token(r, &m->tokens[i]);
        }
    }
    for (uint32_t i = 0; i < m->n_finishes; i++) {
        if (canary_is(m->finishes[i].stream)) {
            canary_finish(r, &m->finishes[i]);
        } else {
            front_finish(r, &m->finishes[i]);
        }
    }
}

static bool is_consequence(status code)
{
    return code == ST_ERR_PEER || code == ST_ERR_UNAVAILABLE || code == ST_ERR_CANCELLED;
}

static void fault_take(const struct attach *a, const struct msg_fault *m)
{
    struct replica *r = a->replica;
    const uint32_t rank = m->rank < r->shape.n_ranks ? m->rank : (uint32_t)a->rank;
    char text[ERR_TEXT_BYTES];

    snprintf(text, sizeof(text), "rank %u (host %s): %s", rank, r->ranks[rank].host, m->text);
    log_error("replica", "fault: %s", text);
    replica_sign(r, is_consequence(m->code) ? SIGN_PEER_FAULT : SIGN_OWN_FAULT,
                 m->code < 0 ? m->code : ST_ERR_PEER, text);
}

static void message_take(struct attach *a, const struct msg_rank *m)
{
    struct replica *r = a->replica;
    struct rank *k = &r->ranks[a->rank];

    k->heard_ns = coord_now(r->coord);
    switch (m->kind) {
    case MSG_READY:
        ready_take(r, (uint32_t)a->rank, &m->ready);
        break;
    case MSG_HEARTBEAT:
        heartbeat_take(r, (uint32_t)a->rank, &m->heartbeat);
        break;
    case MSG_EVENTS:
        events_take(r, (uint32_t)a->rank, &m->events);
        break;
    case MSG_FAULT:
        fault_take(a, &m->fault);
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

static void refuse(struct attach *a, status st, const char *text)
{
    log_warn("replica", "refused %s: %s", rpc_call_peer(a->call), text);
    rpc_call_finish(a->call, st, text);
}

/* One of our own ranks that does not match will not match later: this start has failed. A rank of
 * an older generation says nothing about the one that is starting; before the first one, of all
 * coordinators, there was none. */
static void mismatch_sign(struct replica *r, const struct msg_hello *h, const char *text)
{
    const struct coord_config *config = &r->coord->config;
    const bool is_first = r->generation == config->generation && !config->is_successor;

    if (r->state == REPLICA_STARTING && (is_first || h->generation == r->generation)) {
        replica_sign(r, SIGN_OWN_FAULT, ST_ERR_MISMATCH, text);
    }
}

static status hello_find(struct coord *c, const struct msg_hello *h, struct replica **replica_p,
                         struct err *err)
{
    if (h->has_join) {
        return join_take(c, h, replica_p, err);
    }
    if (h->replica >= c->n_own) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u belongs to replica %u, the coordinator has %u", h->rank, h->replica,
                       c->n_own);
    }
    *replica_p = c->replicas[h->replica];
    return ST_OK;
}

static void hello_read(struct coord *c, struct attach *a, const struct msg_hello *h)
{
    struct err err = ERR_INIT;
    struct replica *r = !h->has_join && h->replica < c->n_own ? c->replicas[h->replica] : NULL;
    status st = hello_check_build(c, h, &err);

    (void)(st || (st = hello_find(c, h, &r, &err)) || (st = hello_check(r, h, &err)));
    if (st == ST_OK) {
        hello_take(r, a, h);
        return;
    }
    refuse(a, st, err.text);
    if (st == ST_ERR_MISMATCH && r != NULL && !replica_has_joined(r)) {
        mismatch_sign(r, h, err.text);
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
    const status st = msg_rank_unpack(data, len, &c->arena, &m, &err);
    if (st < 0) {
        refuse(a, st, err.text);
    } else if (a->rank >= 0) {
        message_take(a, &m);
    } else if (a->replica != NULL) {
        log_trace("replica", "a rank that was cut off still speaks, ignoring");
    } else if (m.kind != MSG_HELLO) {
        refuse(a, ST_ERR_PROTO, "the first message must be hello");
    } else {
        hello_read(c, a, &m.hello);
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
        struct replica *r = a->replica;
        struct rank *k = &r->ranks[a->rank];
        char text[ERR_TEXT_BYTES];

        k->call = NULL;
        r->n_attached--;
        snprintf(text, sizeof(text),
                 "rank %d (host %s, pid %u) is gone: its connection broke in phase \"%s\" at step "
                 "%" PRIu64,
                 a->rank, k->host, k->pid, k->phase, k->heartbeat.step);
        replica_sign(r, SIGN_BROKEN, ST_ERR_PEER, text);
    }
    free(a);
    coord_leave(c);
}
