/* The whole coordinator in this process: a scripted rank attaches over rpc, clients call over rpc,
 * one loop runs all three. Token ids are bytes (bytes_tok.h), so what the rank says can be read.
 *
 * What the rank answers is chosen by the first character of the prompt:
 *   h  "hello " over and over until max_tokens      w  nothing, until it is cancelled
 *   e  one token, then a failure with a sentence    g  a gap in the index
 *   s  an event of an older attempt, then as h
 *   o  choice 0 as h, the others as w               c  choice 1 as e, the others as w */
#ifndef TESTS_COORD_WORLD_H
#define TESTS_COORD_WORLD_H

#include "coordinator/coord.h"

#include "unit/coordinator/bytes_tok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { CTX = 64, QUEUE = 3, WAIT_S = 10, CHOICES = 4 };

struct rank {
    struct rpc_channel *channel;
    struct rpc_call *call;
    struct msg_hello hello;
    uint32_t n_submits, n_cancels, n_stops, n_welcomes;
    uint32_t replica, generation; /* as it was welcomed */
    uint32_t choices;             /* a bit for each that was submitted */
    struct msg_submit last;
    uint32_t last_stop_id;
    bool is_mute;             /* takes work and does none */
    float logprob;            /* of all its tokens, beside -0.5 */
    uint32_t last_emitted[8]; /* of the last submit, as many as fit */
    bool is_done;
    status done_st;
    char done_text[1100];
};

struct client {
    struct rpc_call *call;
    char text[1024], error[1100], request_id[130];
    char profile[64], profiles[256]; /* of `started`; of `finished`, with a space behind each */
    size_t text_len;
    uint32_t n_messages, n_tokens, n_started, n_finished;
    uint32_t tokens_of[CHOICES], ends_of[CHOICES];
    uint32_t first_token; /* token_offset of the first message, */
    uint64_t first_byte;  /* and its text_offset */
    uint64_t seed;
    enum finish_reason reason;
    enum health_state health[8];
    uint32_t n_health;
    bool is_done;
    status st;
};

struct world {
    struct tokenizer *tok;
    struct model_desc desc;
    struct plan *plan;
    struct rpc_loop *loop;
    struct coord *coord;
    struct rpc_channel *channel;
    struct rank ranks[4];
    enum coord_state states[8];
    uint32_t n_lost, last_lost; /* on_lost, by tests that give one */
    uint64_t last_delay_ns;
    uint32_t n_states;
    bool is_stopped;
    const bool *until;
    uint64_t until_ns;
    struct rpc_timer timer;
};

/* ---- the loop, until something is so ---- */

static void look(void *arg)
{
    struct world *w = arg;
    const uint64_t now = clock_now_ns(clock_real());

    if (*w->until || now > w->until_ns) {
        rpc_loop_stop(w->loop);
        return;
    }
    rpc_timer_set(w->loop, &w->timer, now + NS_PER_MS);
}

static bool run_until(struct world *w, const bool *what, uint64_t ms)
{
    w->until = what;
    w->until_ns = clock_now_ns(clock_real()) + ms * NS_PER_MS;
    w->timer.fn = look;
    w->timer.arg = w;
    rpc_timer_set(w->loop, &w->timer, 0);
    rpc_loop_run(w->loop);
    return *what;
}

static void await(struct world *w, const bool *what)
{
    if (!run_until(w, what, WAIT_S * 1000)) {
        fail_msg("waited %d s in vain", (int)WAIT_S);
    }
}

static void settle_ms(struct world *w, uint64_t ms)
{
    static const bool never = false;
    (void)run_until(w, &never, ms);
}

static void await_count(struct world *w, const uint32_t *count, uint32_t least)
{
    for (int i = 0; i < 2000 && *count < least; i++) {
        settle_ms(w, 5);
    }
    assert_true(*count >= least);
}

/* ---- the scripted rank ---- */

static void rank_say(struct rank *r, const struct msg_rank *m)
{
    struct buf out = BUF_INIT;

    assert_int_equal(msg_rank_pack(m, &out), ST_OK);
    const status st = rpc_call_send(r->call, out.data, out.len);
    assert_true(st == ST_OK || st == ST_ERR_PEER);
    buf_fini(&out);
}

static void rank_token(struct rank *r, const struct msg_submit *s, uint32_t index, uint32_t token)
{
    const struct msg_token t = { .stream = s->stream,
                                 .attempt = s->attempt,
                                 .index = index,
                                 .token = token,
                                 .logprob = -0.5f + r->logprob };
    rank_say(r, &(struct msg_rank){ MSG_EVENTS, .events = { 1, 1, 0, &t, NULL } });
}

static void rank_finish(struct rank *r, const struct msg_submit *s, enum finish_reason reason,
                        status code, const char *text)
{
    const struct msg_finish f = { s->stream, s->attempt, reason, code, text, 0, 0 };
    rank_say(r, &(struct msg_rank){ MSG_EVENTS, .events = { 1, 0, 1, NULL, &f } });
}

static void rank_answer(struct rank *r, const struct msg_submit *s)
{
    static const char words[] = "hello ";
    const uint32_t first = s->prompt[s->n_prompt > 1 ? 1 : 0];

    if (first == 'w' || r->is_mute || (first == 'o' && s->choice != 0) ||
        (first == 'c' && s->choice != 1)) {
        return;
    }
    if (first == 's') {
        struct msg_submit old = *s;
        old.attempt = 0;
        rank_token(r, &old, 0, '!');
    }
    rank_token(r, s, 0, 'h');
    if (first == 'e' || first == 'c') {
        rank_finish(r, s, FINISH_FAILED, ST_ERR_LIMIT, "no KV for you");
        return;
    }
    if (first == 'g') {
        rank_token(r, s, 2, 'x');
        return;
    }
    for (uint32_t i = 1; i < s->max_tokens; i++) {
        rank_token(r, s, i, (uint32_t)words[i % 6]);
    }
    rank_finish(r, s, FINISH_LENGTH, ST_OK, "");
}

static void rank_message(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct rank *r = arg;
    struct arena arena = ARENA_INIT(1 << 20);
    struct err err = ERR_INIT;
    struct msg_coord m;

    assert_int_equal(msg_coord_unpack(data, len, &arena, &m, &err), ST_OK);
    if (m.kind == MSG_WELCOME) {
        r->n_welcomes++;
        r->replica = m.welcome.replica;
        r->generation = m.welcome.generation;
    } else if (m.kind == MSG_SUBMIT) {
        r->n_submits++;
        r->last = m.submit;
        r->choices |= 1u << m.submit.choice;
        r->last_stop_id = m.submit.n_stop_ids != 0 ? m.submit.stop_ids[0] : 0;
        for (uint32_t i = 0; i < m.submit.n_emitted && i < ARRAY_LEN(r->last_emitted); i++) {
            r->last_emitted[i] = m.submit.emitted[i];
        }
        rank_answer(r, &m.submit);
    } else if (m.kind == MSG_CANCEL) {
        r->n_cancels++;
    } else {
        r->n_stops++;
        rpc_call_half_close(r->call);
    }
    arena_fini(&arena);
}

static void rank_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct rank *r = arg;

    r->is_done = true;
    r->done_st = st;
    snprintf(r->done_text, sizeof(r->done_text), "%s", text);
}

static struct rank *rank_attach(struct world *w, uint32_t i)
{
    static const struct rpc_client client = { rank_message, NULL, rank_done };
    struct rank *r = &w->ranks[i];
    char target[64];
    struct err err = ERR_INIT;

    snprintf(target, sizeof(target), "127.0.0.1:%u", coord_control_port(w->coord));
    const struct rpc_channel_config channel = { .target = target,
                                                .token = "secret",
                                                .message_bytes_max = MSG_BYTES_MAX,
                                                .send_queue_max = 1024 };
    if (r->channel == NULL) {
        assert_int_equal(rpc_channel_create(w->loop, &channel, &r->channel, &err), ST_OK);
    }
    const struct rpc_call_config call = { .path = "/gantry.control.v1.Control/Attach",
                                          .kind = RPC_BIDI,
                                          .deadline_ns = CLOCK_NEVER,
                                          .wait_ready = true,
                                          .client = &client,
                                          .arg = r };
    r->is_done = false;
    assert_int_equal(rpc_call_start(r->channel, &call, &r->call, &err), ST_OK);
    rank_say(r, &(struct msg_rank){ MSG_HELLO, .hello = r->hello });
    return r;
}

static void rank_ready_of(struct rank *r, uint8_t digest)
{
    const struct msg_ready ready = { .weights_digest = { { digest, 1 } }, .weight_bytes = 5 };
    rank_say(r, &(struct msg_rank){ MSG_READY, .ready = ready });
}

static void rank_ready(struct rank *r)
{
    rank_ready_of(r, 0xAB);
}

/* ---- clients ---- */

static void client_message(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct client *c = arg;
    struct arena arena = ARENA_INIT(1 << 22);
    struct err err = ERR_INIT;
    struct msg_chunk m;

    assert_int_equal(msg_chunk_unpack(data, len, &arena, &m, &err), ST_OK);
    assert_true(c->text_len + m.text.len < sizeof(c->text));
    memcpy(c->text + c->text_len, m.text.data, m.text.len);
    c->text_len += m.text.len;
    if (c->n_messages == 0) {
        c->first_token = m.token_offset;
        c->first_byte = m.text_offset;
    }
    c->n_tokens += m.n_tokens;
    c->n_messages++;
    assert_true(m.choice < CHOICES && c->ends_of[m.choice] == 0);
    c->tokens_of[m.choice] += m.n_tokens;
    c->ends_of[m.choice] += m.has_finished;
    c->n_finished += m.has_finished;
    if (m.has_started) {
        assert_int_equal(c->n_messages, 1);
        c->n_started++;
        c->seed = m.started.seed;
        snprintf(c->request_id, sizeof(c->request_id), "%s", m.started.request_id);
        snprintf(c->profile, sizeof(c->profile), "%s", m.started.profile);
        assert_string_equal(m.started.weights_digest, "ab010000000000000000000000000000");
    }
    if (m.has_finished) {
        c->reason = m.finished.reason;
        for (uint32_t i = 0; i < m.finished.n_profiles; i++) {
            strcat(strcat(c->profiles, m.finished.profiles[i]), " ");
        }
    }
    arena_fini(&arena);
}

static void health_message(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct client *c = arg;
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;

    assert_true(c->n_health < ARRAY_LEN(c->health));
    assert_int_equal(msg_health_response_unpack(data, len, &arena, &c->health[c->n_health++], &err),
                     ST_OK);
    arena_fini(&arena);
}

static void client_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct client *c = arg;

    c->is_done = true;
    c->st = st;
    snprintf(c->error, sizeof(c->error), "%s", text);
}

static void call_start(struct world *w, struct client *c, const char *path, enum rpc_kind kind,
                       const struct buf *bytes, uint64_t deadline_ns)
{
    static const struct rpc_client chunks = { client_message, NULL, client_done };
    static const struct rpc_client healths = { health_message, NULL, client_done };
    struct err err = ERR_INIT;
    const struct rpc_call_config call = { .path = path,
                                          .kind = kind,
                                          .data = bytes->data,
                                          .len = bytes->len,
                                          .deadline_ns = deadline_ns,
                                          .wait_ready = true,
                                          .client =
                                              strstr(path, "Health") != NULL ? &healths : &chunks,
                                          .arg = c };
    memset(c, 0, sizeof(*c));
    assert_int_equal(rpc_call_start(w->channel, &call, &c->call, &err), ST_OK);
}

static void ask(struct world *w, struct client *c, const struct msg_generate *m, bool is_unary,
                uint64_t deadline_ns)
{
    struct buf bytes = BUF_INIT;

    assert_int_equal(msg_generate_pack(m, &bytes), ST_OK);
    call_start(w, c,
               is_unary ? "/gantry.v1.Generation/Generate" : "/gantry.v1.Generation/GenerateStream",
               is_unary ? RPC_UNARY : RPC_SERVER_STREAM, &bytes, deadline_ns);
    buf_fini(&bytes);
}

UNUSED static void watch(struct world *w, struct client *c, const char *service)
{
    struct buf bytes = BUF_INIT;

    assert_int_equal(msg_health_request_pack(service, &bytes), ST_OK);
    call_start(w, c, "/grpc.health.v1.Health/Watch", RPC_SERVER_STREAM, &bytes, CLOCK_NEVER);
    buf_fini(&bytes);
}

UNUSED static enum health_state check(struct world *w)
{
    struct buf bytes = BUF_INIT;
    struct client c;

    call_start(w, &c, "/grpc.health.v1.Health/Check", RPC_UNARY, &bytes, CLOCK_NEVER);
    await(w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    return c.health[0];
}

#define REQ(p, ...)                                                                                \
    (&(struct msg_generate){ .prompt = { p, sizeof(p) - 1 }, .request_id = "", __VA_ARGS__ })

/* ---- life ---- */

static void on_change(void *arg, enum coord_state state)
{
    struct world *w = arg;

    assert_true(w->n_states < ARRAY_LEN(w->states));
    w->states[w->n_states++] = state;
}

static void on_stopped(void *arg)
{
    struct world *w = arg;

    w->is_stopped = true;
}

/* `more`: what coordinator is wanted beside the usual. With two replicas ranks[i] is the leader of
 * replica i. */
static void world_open_as(struct world *w, uint32_t tp, const struct coord_config *more)
{
    struct err err = ERR_INIT;
    const struct plan_request request = { .tp = tp, .pp = 1, .fmt = KERN_F32, .n_ranks = tp };
    const struct coord_config config = { .plan = NULL,
                                         .generation = 4,
                                         .queue_max = QUEUE,
                                         .listen = "127.0.0.1:0",
                                         .control_token = "secret",
                                         .n_replicas = more->n_replicas,
                                         .retries = more->retries,
                                         .restarts = more->restarts,
                                         .hang_ns = more->hang_ns,
                                         .resume_ns = more->resume_ns,
                                         .canary_ns = more->canary_ns,
                                         .prefix_cache = more->prefix_cache,
                                         .external_only = more->external_only,
                                         .join_max = more->join_max,
                                         .mixed_profiles = more->mixed_profiles,
                                         .rejoin_ns = more->rejoin_ns,
                                         .start_ns = more->start_ns,
                                         .disk = more->disk,
                                         .image = more->image,
                                         .first_stream = more->first_stream,
                                         .on_lost = more->on_lost,
                                         .on_change = on_change,
                                         .arg = w };
    struct coord_config full = config;
    char target[64];

    memset(w, 0, sizeof(*w));
    w->tok = bytes_tok_open(&err);
    assert_non_null(w->tok);
    w->desc = (struct model_desc){ .name = "tiny",
                                   .family = "LlamaForCausalLM",
                                   .n_layers = 2,
                                   .dim = 16,
                                   .n_heads = 2,
                                   .n_kv_heads = 2,
                                   .head_dim = 8,
                                   .ffn_dim = 32,
                                   .vocab = BYTES_VOCAB,
                                   .ctx_max = CTX,
                                   .norm_eps = 1e-5f,
                                   .rope = { MODEL_ROPE_PLAIN, 10000, 1, 1, 1, CTX },
                                   .bos = BYTES_BOS,
                                   .n_eos = 1,
                                   .eos = { BYTES_EOS } };
    if (plan_create(&w->desc, &request, &w->plan, &err) != ST_OK ||
        rpc_loop_create(&w->loop, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    full.plan = w->plan;
    full.tok = w->tok;
    if (coord_create(w->loop, &full, &w->coord, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(w->ranks); i++) {
        w->ranks[i].hello = (struct msg_hello){ .build = msg_build(),
                                                .protocol = MSG_PROTOCOL,
                                                .generation = 4,
                                                .replica = more->n_replicas > 1 ? i : 0,
                                                .rank = more->n_replicas > 1 ? 0 : i,
                                                .n_ranks = tp,
                                                .plan_digest = w->plan->digest,
                                                .profile = w->plan->profile,
                                                .host = "here",
                                                .kernels = "scalar",
                                                .pid = 100 + i };
    }
    snprintf(target, sizeof(target), "127.0.0.1:%u", coord_port(w->coord));
    const struct rpc_channel_config channel = { .target = target,
                                                .message_bytes_max = MSG_BYTES_MAX,
                                                .send_queue_max = 4 };
    assert_int_equal(rpc_channel_create(w->loop, &channel, &w->channel, &err), ST_OK);
}

UNUSED static void world_open(struct world *w, uint32_t tp)
{
    world_open_as(w, tp, &(struct coord_config){ .listen = NULL });
}

UNUSED static void world_serve(struct world *w)
{
    world_open(w, 1);
    rank_ready(rank_attach(w, 0));
    await_count(w, &w->n_states, 1);
    assert_int_equal(w->states[0], COORD_SERVING);
}

static void world_close(struct world *w)
{
    coord_stop(w->coord, 0, on_stopped, w);
    await(w, &w->is_stopped);
    for (uint32_t i = 0; i < ARRAY_LEN(w->ranks); i++) {
        if (w->ranks[i].call != NULL) {
            await(w, &w->ranks[i].is_done);
        }
        rpc_channel_destroy(w->ranks[i].channel);
    }
    rpc_channel_destroy(w->channel);
    coord_destroy(w->coord);
    rpc_loop_destroy(w->loop);
    plan_destroy(w->plan);
    tokenizer_close(w->tok);
}

#endif
