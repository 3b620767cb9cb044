/* proto/codec_control.c - gantry.control.v1: what ranks and the coordinator say to each other. */
#include "proto/codec_fabric.h"
#include "proto/codec_pb.h"

#include "control.pb-c.h"

#include <string.h>

/* ---- rank -> coordinator: pack ---- */

static status token_event_fill(const struct msg_token *t, struct arena *arena,
                               Gantry__Control__V1__TokenEvent *e)
{
    gantry__control__v1__token_event__init(e);
    e->stream = t->stream;
    e->attempt = t->attempt;
    e->index = t->index;
    e->token = t->token;
    e->logprob = t->logprob;
    if (t->n_top == 0) {
        return ST_OK;
    }
    e->top = (void *)pb_objects(arena, t->n_top, sizeof(Gantry__Control__V1__LogprobEntry));
    if (e->top == NULL) {
        return ST_ERR_NOMEM;
    }
    e->n_top = t->n_top;
    for (uint32_t i = 0; i < t->n_top; i++) {
        gantry__control__v1__logprob_entry__init(e->top[i]);
        e->top[i]->id = t->top[i].id;
        e->top[i]->logprob = t->top[i].logprob;
    }
    return ST_OK;
}

static status events_fill(const struct msg_events *m, struct arena *arena,
                          Gantry__Control__V1__Events *e)
{
    gantry__control__v1__events__init(e);
    e->step = m->step;
    e->tokens = (void *)pb_objects(arena, m->n_tokens, sizeof(Gantry__Control__V1__TokenEvent));
    e->finishes =
        (void *)pb_objects(arena, m->n_finishes, sizeof(Gantry__Control__V1__FinishEvent));
    if (e->tokens == NULL || e->finishes == NULL) {
        return ST_ERR_NOMEM;
    }
    e->n_tokens = m->n_tokens;
    e->n_finishes = m->n_finishes;
    for (uint32_t i = 0; i < m->n_tokens; i++) {
        const status st = token_event_fill(&m->tokens[i], arena, e->tokens[i]);
        if (st < 0) {
            return st;
        }
    }
    for (uint32_t i = 0; i < m->n_finishes; i++) {
        const struct msg_finish *f = &m->finishes[i];
        gantry__control__v1__finish_event__init(e->finishes[i]);
        e->finishes[i]->stream = f->stream;
        e->finishes[i]->attempt = f->attempt;
        e->finishes[i]->reason = (uint32_t)f->reason;
        e->finishes[i]->code = f->code;
        e->finishes[i]->text = pb_text(f->text);
        e->finishes[i]->cached_tokens = f->cached_tokens;
        e->finishes[i]->queued_us = f->queued_us;
    }
    return ST_OK;
}

struct hello_parts {
    Gantry__Control__V1__Hello hello;
    Gantry__Control__V1__Join join;
    uint8_t job[MSG_JOB_BYTES];
};

static void join_fill(const struct msg_join *m, struct hello_parts *parts)
{
    Gantry__Control__V1__Join *j = &parts->join;

    gantry__control__v1__join__init(j);
    memcpy(parts->job, m->job, sizeof(parts->job));
    j->job.data = parts->job;
    j->job.len = sizeof(parts->job);
    j->tp = m->tp;
    j->pp = m->pp;
    j->kv_blocks = m->kv_blocks;
    j->block_tokens = m->block_tokens;
    j->ctx_max = m->ctx_max;
    j->rows_max = m->rows_max;
    j->layer_bytes = m->layer_bytes;
    j->model_digest = m->model_digest;
}

static void hello_fill(const struct msg_hello *m, struct hello_parts *parts)
{
    Gantry__Control__V1__Hello *h = &parts->hello;

    gantry__control__v1__hello__init(h);
    h->build = pb_text(m->build);
    h->protocol = m->protocol;
    h->replica = m->replica;
    h->generation = m->generation;
    h->rank = m->rank;
    h->n_ranks = m->n_ranks;
    h->plan_digest = m->plan_digest;
    h->profile = pb_text(m->profile);
    h->host = pb_text(m->host);
    h->pid = m->pid;
    h->kernels = pb_text(m->kernels);
    if (m->has_join) {
        join_fill(&m->join, parts);
        h->join = &parts->join;
    }
    h->is_reattach = m->is_reattach;
}

/* protobuf-c's structs lack const and never write through a pointer while packing. */
static uint64_t *streams_out(const uint64_t *streams)
{
    union {
        const uint64_t *in;
        uint64_t *out;
    } u = { streams };

    return u.out;
}

static void heartbeat_fill(const struct msg_heartbeat *m, Gantry__Control__V1__Heartbeat *h)
{
    gantry__control__v1__heartbeat__init(h);
    h->phase = pb_text(m->phase);
    h->step = m->step;
    h->loaded_bytes = m->loaded_bytes;
    h->weight_bytes = m->weight_bytes;
    h->running = m->running;
    h->waiting = m->waiting;
    h->kv_blocks_used = m->kv_blocks_used;
    h->kv_blocks_total = m->kv_blocks_total;
    h->kv_blocks_cached = m->kv_blocks_cached;
    h->cache_hits = m->cache_hits;
    h->cache_tokens = m->cache_tokens;
    h->step_us = m->step_us;
    h->step_kernel_us = m->step_kernel_us;
    h->ticks = m->ticks;
    h->op = m->op;
    h->op_seq = m->op_seq;
    h->op_peer = m->op_peer;
    h->waited_us = m->waited_us;
    h->digest = m->digest;
    h->n_queued = m->n_queued;
    h->queued = streams_out(m->queued);
}

/* `digest` is the copy that the message points to: it must outlive the packing. */
static status ready_fill(const struct msg_ready *m, struct arena *arena, struct hash128 *digest,
                         Gantry__Control__V1__Ready *r)
{
    static const struct hash128 zero;

    gantry__control__v1__ready__init(r);
    *digest = m->weights_digest;
    if (memcmp(digest, &zero, sizeof(zero)) != 0) {
        r->weights_digest.data = digest->bytes;
        r->weights_digest.len = HASH_BYTES;
    }
    r->weight_bytes = m->weight_bytes;
    r->kv_bytes = m->kv_bytes;
    r->sums = pb_text(m->sums);
    return pb_self_test_fill(&m->self_test, arena, &r->self_test);
}

status msg_rank_pack(const struct msg_rank *m, struct buf *out)
{
    struct arena arena = PB_SCRATCH;
    struct hash128 digest;
    union {
        struct hello_parts hello; /* begins with the message */
        Gantry__Control__V1__Ready ready;
        Gantry__Control__V1__Heartbeat heartbeat;
        Gantry__Control__V1__Events events;
        Gantry__Control__V1__Fault fault;
    } u;
    Gantry__Control__V1__RankMessage msg = GANTRY__CONTROL__V1__RANK_MESSAGE__INIT;
    status st = ST_OK;

    msg.body_case = (Gantry__Control__V1__RankMessage__BodyCase)m->kind;
    msg.hello = (void *)&u; /* the members of the oneof are one pointer */
    switch (m->kind) {
    case MSG_HELLO:
        hello_fill(&m->hello, &u.hello);
        break;
    case MSG_READY:
        st = ready_fill(&m->ready, &arena, &digest, &u.ready);
        break;
    case MSG_HEARTBEAT:
        heartbeat_fill(&m->heartbeat, &u.heartbeat);
        break;
    case MSG_EVENTS:
        st = events_fill(&m->events, &arena, &u.events);
        break;
    case MSG_FAULT:
        gantry__control__v1__fault__init(&u.fault);
        u.fault.code = m->fault.code;
        u.fault.rank = m->fault.rank;
        u.fault.text = pb_text(m->fault.text);
        break;
    default:
        st = ST_ERR_ARG;
    }
    if (st == ST_OK) {
        st = pb_pack(&msg.base, out);
    }
    arena_fini(&arena);
    return st;
}

/* ---- rank -> coordinator: unpack ---- */

/* Statuses travel as numbers; both sides are of one build, but the bytes may come from anyone. */
static status code_read(int32_t code, const char *where, status *code_p, struct err *err)
{
    if (code > 0 || code < -99) {
        return err_set(err, ST_ERR_PROTO, "%s.code is %d (allowed: -99 .. 0)", where, code);
    }
    *code_p = (status)code;
    return ST_OK;
}

static status tokens_read(const Gantry__Control__V1__Events *e, struct arena *arena,
                          struct msg_events *m, struct err *err)
{
    struct msg_token *tokens = arena_alloc(arena, e->n_tokens * sizeof(*tokens));

    if (tokens == NULL || e->n_tokens > UINT32_MAX) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu token events", e->n_tokens);
    }
    for (size_t i = 0; i < e->n_tokens; i++) {
        const Gantry__Control__V1__TokenEvent *in = e->tokens[i];
        struct msg_logprob *top = NULL;

        if (in->n_top > MSG_LOGPROBS_MAX) {
            return err_set(err, ST_ERR_PROTO, "TokenEvent.top has %zu entries (at most %d)",
                           in->n_top, (int)MSG_LOGPROBS_MAX);
        }
        if (in->n_top != 0) {
            top = arena_alloc(arena, in->n_top * sizeof(*top));
            if (top == NULL) {
                return err_set(err, ST_ERR_LIMIT, "no memory for token event %zu", i);
            }
        }
        for (size_t k = 0; k < in->n_top; k++) {
            top[k] = (struct msg_logprob){ in->top[k]->id, in->top[k]->logprob };
        }
        tokens[i] = (struct msg_token){ .stream = in->stream,
                                        .attempt = in->attempt,
                                        .index = in->index,
                                        .token = in->token,
                                        .logprob = in->logprob,
                                        .n_top = (uint32_t)in->n_top,
                                        .top = top };
    }
    m->n_tokens = (uint32_t)e->n_tokens;
    m->tokens = tokens;
    return ST_OK;
}

static status finishes_read(const Gantry__Control__V1__Events *e, struct arena *arena,
                            struct msg_events *m, struct err *err)
{
    struct msg_finish *finishes = arena_alloc(arena, e->n_finishes * sizeof(*finishes));

    if (finishes == NULL || e->n_finishes > UINT32_MAX) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu finish events", e->n_finishes);
    }
    for (size_t i = 0; i < e->n_finishes; i++) {
        const Gantry__Control__V1__FinishEvent *in = e->finishes[i];
        status code = ST_ERR_PROTO;

        if (in->reason == FINISH_NONE || in->reason > FINISH_CANCELLED) {
            return err_set(err, ST_ERR_PROTO, "FinishEvent.reason is %u (allowed: 1 .. %d)",
                           in->reason, (int)FINISH_CANCELLED);
        }
        const status st = code_read(in->code, "FinishEvent", &code, err);
        if (st < 0) {
            return st;
        }
        finishes[i] = (struct msg_finish){ .stream = in->stream,
                                           .attempt = in->attempt,
                                           .reason = (enum finish_reason)in->reason,
                                           .code = code,
                                           .text = in->text,
                                           .cached_tokens = in->cached_tokens,
                                           .queued_us = in->queued_us };
    }
    m->n_finishes = (uint32_t)e->n_finishes;
    m->finishes = finishes;
    return ST_OK;
}

static status ready_read(const Gantry__Control__V1__Ready *in, struct msg_ready *m, struct err *err)
{
    *m = (struct msg_ready){ .weight_bytes = in->weight_bytes,
                             .kv_bytes = in->kv_bytes,
                             .sums = in->sums };
    if (in->weights_digest.len != 0) {
        if (in->weights_digest.len != HASH_BYTES) {
            return err_set(err, ST_ERR_PROTO, "Ready.weights_digest has %zu bytes (0 or %d)",
                           in->weights_digest.len, (int)HASH_BYTES);
        }
        memcpy(m->weights_digest.bytes, in->weights_digest.data, HASH_BYTES);
    }
    return pb_self_test_read(in->self_test, &m->self_test, err);
}

static status join_read(const Gantry__Control__V1__Join *in, struct msg_join *m, struct err *err)
{
    if (in->job.len != MSG_JOB_BYTES) {
        return err_set(err, ST_ERR_PROTO, "Join.job has %zu bytes (%d)", in->job.len,
                       (int)MSG_JOB_BYTES);
    }
    memcpy(m->job, in->job.data, MSG_JOB_BYTES);
    m->tp = in->tp;
    m->pp = in->pp;
    m->kv_blocks = in->kv_blocks;
    m->block_tokens = in->block_tokens;
    m->ctx_max = in->ctx_max;
    m->rows_max = in->rows_max;
    m->layer_bytes = in->layer_bytes;
    m->model_digest = in->model_digest;
    return ST_OK;
}

static status hello_read(const Gantry__Control__V1__Hello *in, struct msg_hello *m, struct err *err)
{
    *m = (struct msg_hello){ .build = in->build,
                             .protocol = in->protocol,
                             .replica = in->replica,
                             .generation = in->generation,
                             .rank = in->rank,
                             .n_ranks = in->n_ranks,
                             .plan_digest = in->plan_digest,
                             .profile = in->profile,
                             .host = in->host,
                             .kernels = in->kernels,
                             .pid = in->pid,
                             .has_join = in->join != NULL,
                             .is_reattach = in->is_reattach != 0 };
    return in->join != NULL ? join_read(in->join, &m->join, err) : ST_OK;
}

static status heartbeat_read(const Gantry__Control__V1__Heartbeat *in, struct msg_heartbeat *m,
                             struct err *err)
{
    if (in->n_queued > MSG_QUEUED_MAX) {
        return err_set(err, ST_ERR_PROTO, "Heartbeat.queued has %zu streams (at most %d)",
                       in->n_queued, (int)MSG_QUEUED_MAX);
    }
    *m = (struct msg_heartbeat){ .phase = in->phase,
                                 .step = in->step,
                                 .loaded_bytes = in->loaded_bytes,
                                 .weight_bytes = in->weight_bytes,
                                 .running = in->running,
                                 .waiting = in->waiting,
                                 .kv_blocks_used = in->kv_blocks_used,
                                 .kv_blocks_total = in->kv_blocks_total,
                                 .kv_blocks_cached = in->kv_blocks_cached,
                                 .cache_hits = in->cache_hits,
                                 .cache_tokens = in->cache_tokens,
                                 .step_us = in->step_us,
                                 .step_kernel_us = in->step_kernel_us,
                                 .ticks = in->ticks,
                                 .op = in->op,
                                 .op_peer = in->op_peer,
                                 .op_seq = in->op_seq,
                                 .waited_us = in->waited_us,
                                 .digest = in->digest,
                                 .n_queued = (uint32_t)in->n_queued,
                                 .queued = in->queued };
    return ST_OK;
}

static status rank_read(const Gantry__Control__V1__RankMessage *in, struct arena *arena,
                        struct msg_rank *m, struct err *err)
{
    status st;

    memset(m, 0, sizeof(*m));
    m->kind = (enum msg_rank_kind)in->body_case;
    switch (in->body_case) {
    case GANTRY__CONTROL__V1__RANK_MESSAGE__BODY_HELLO:
        return hello_read(in->hello, &m->hello, err);
    case GANTRY__CONTROL__V1__RANK_MESSAGE__BODY_READY:
        return ready_read(in->ready, &m->ready, err);
    case GANTRY__CONTROL__V1__RANK_MESSAGE__BODY_HEARTBEAT:
        return heartbeat_read(in->heartbeat, &m->heartbeat, err);
    case GANTRY__CONTROL__V1__RANK_MESSAGE__BODY_EVENTS:
        m->events.step = in->events->step;
        st = tokens_read(in->events, arena, &m->events, err);
        return st < 0 ? st : finishes_read(in->events, arena, &m->events, err);
    case GANTRY__CONTROL__V1__RANK_MESSAGE__BODY_FAULT:
        m->fault.rank = in->fault->rank;
        m->fault.text = in->fault->text;
        return code_read(in->fault->code, "Fault", &m->fault.code, err);
    default:
        return err_set(err, ST_ERR_PROTO, "RankMessage has no body");
    }
}

status msg_rank_unpack(const void *data, size_t len, struct arena *arena, struct msg_rank *m_p,
                       struct err *err)
{
    void *in;
    struct msg_rank m;
    status st =
        pb_unpack(&gantry__control__v1__rank_message__descriptor, data, len, arena, NULL, &in, err);

    if (st == ST_OK) {
        st = rank_read(in, arena, &m, err);
    }
    if (st == ST_OK) {
        *m_p = m;
    }
    return st;
}
