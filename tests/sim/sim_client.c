/* tests/sim/sim_client.c - clients: what they send, and whether what comes back is right. The answers are
 * judged as they arrive: every token against the truth, every end against what may end it. */
#include "sim/sim_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void complain(struct sim_client *c, const char *what)
{
    sim_fail(c->sim, "client %u (\"%s\", %u choices, %u of %u tokens): %s", c->index, c->id,
             c->n_answers, c->answers[0].n_tokens, c->answers[0].truth.n, what);
}

/* ---- what comes ---- */

static void take_started(struct sim_client *c, const struct msg_started *m)
{
    if (c->is_started) {
        complain(c, "is told twice that it has started");
        return;
    }
    if (m->prompt_tokens != c->n_prompt ||
        (c->id[0] != '\0' && strcmp(m->request_id, c->id) != 0) ||
        (c->request.has_seed && m->seed != c->request.seed)) {
        complain(c, "is told of another prompt, id or seed");
    }
    c->is_started = true;
    for (uint32_t i = 0; i < c->n_answers; i++) {
        sim_truth_make(&c->request, c->prompt, c->n_prompt, c->max_tokens, m->seed, i,
                       &c->answers[i].truth);
    }
}

static void take_piece(struct sim_client *c, struct sim_answer *a, const struct msg_piece *p)
{
    const struct sim_truth *t = &a->truth;
    char text[128];

    if (a->n_tokens >= t->n) {
        complain(c, "gets a token behind the end of its answer");
        return;
    }
    const uint32_t want = t->ids[a->n_tokens];
    const float logprob = t->logprobs[a->n_tokens];
    if (p->id != want) {
        snprintf(text, sizeof(text), "token %u is %u and should be %u", a->n_tokens, p->id, want);
        complain(c, text);
        return;
    }
    if (p->has_logprob != c->request.has_logprobs ||
        (p->has_logprob && (p->logprob != logprob || p->n_top != c->request.logprobs))) {
        complain(c, "gets other log-probabilities");
    }
    for (uint32_t k = 0; k < p->n_top; k++) {
        const struct msg_logprob top = sim_top(want, logprob, k);
        if (p->top[k].id != top.id || p->top[k].logprob != top.logprob) {
            complain(c, "gets other top log-probabilities");
        }
    }
    a->n_tokens++;
}

static void take_finished(struct sim_client *c, struct sim_answer *a, const struct msg_finished *f)
{
    const struct sim_truth *t = &a->truth;
    const struct msg_str none = { "", 0 };
    const struct msg_str *stop = t->i_stop >= 0 ? &c->request.stop[t->i_stop] : &none;

    if (a->is_finished) {
        complain(c, "finishes twice");
    }
    a->is_finished = true;
    if (a->n_tokens != t->n || a->n_text != t->text.len) {
        complain(c, "finishes before its answer is complete");
    }
    if (f->reason != t->reason || f->stop.len != stop->len ||
        memcmp(f->stop.data, stop->data, stop->len) != 0) {
        complain(c, "finishes for another reason");
    }
    if (f->prompt_tokens != c->n_prompt || f->completion_tokens != t->n ||
        f->cached_tokens > c->n_prompt || f->first_token_us > f->total_us) {
        complain(c, "gets a wrong usage");
    }
}

static void take_chunk(struct sim_client *c, const struct msg_chunk *m)
{
    struct sim_answer *a = &c->answers[m->choice % SIM_CHOICES_MAX];
    const struct sim_truth *t = &a->truth;

    if (m->choice >= c->n_answers) {
        complain(c, "gets a choice that it has not asked for");
        return;
    }

    if (m->has_started) {
        take_started(c, &m->started);
    }
    if (!c->is_started) {
        complain(c, "gets a message before it has started");
        return;
    }
    if (a->is_finished) {
        complain(c, "gets a message after it has finished");
    }
    for (uint32_t i = 0; i < m->n_tokens && c->sim->violation[0] == '\0'; i++) {
        take_piece(c, a, &m->tokens[i]);
    }
    if (m->text.len > t->text.len - a->n_text ||
        memcmp(m->text.data, t->text.data + a->n_text, m->text.len) != 0) {
        complain(c, "gets another text");
        return;
    }
    a->n_text += m->text.len;
    if (m->has_finished) {
        take_finished(c, a, &m->finished);
    }
}

/* A whole answer carries the other choices as fields 8, each made like a chunk. */
static status take_choices(struct sim_client *c, const uint8_t *data, size_t len,
                           struct arena *arena, struct err *err)
{
    size_t at = 0;

    while (at < len && c->sim->violation[0] == '\0') {
        uint64_t v[2] = { 0, 0 };
        for (uint32_t i = 0; i < 2; i++) { /* key and length; all fields of it have one */
            for (uint32_t shift = 0; at < len; shift += 7) {
                v[i] |= (uint64_t)(data[at] & 0x7f) << shift;
                if ((data[at++] & 0x80) == 0) {
                    break;
                }
            }
        }
        if ((v[0] & 7) != 2 || v[1] > len - at) {
            return err_set(err, ST_ERR_PROTO, "a field %llu in a whole answer",
                           (unsigned long long)v[0]);
        }
        if (v[0] >> 3 == 8) {
            struct msg_chunk m;
            const status st = msg_chunk_unpack(data + at, v[1], arena, &m, err);
            if (st != ST_OK) {
                return st;
            }
            take_chunk(c, &m);
        }
        at += v[1];
    }
    return ST_OK;
}

static void on_message(void *arg, const void *data, size_t len)
{
    struct sim_client *c = arg;
    struct arena arena = ARENA_INIT(1 << 24);
    struct err err = ERR_INIT;
    status st = ST_OK;

    sim_note_bytes(c->sim, &c->index, sizeof(c->index));
    if (c->kind == CLIENT_STREAM || c->kind == CLIENT_UNARY) {
        struct msg_chunk m;
        st = msg_chunk_unpack(data, len, &arena, &m, &err);
        if (st == ST_OK) {
            sim_note(c->sim, "chunk", c->index, m.n_tokens);
            take_chunk(c, &m);
        }
        if (st == ST_OK && c->kind == CLIENT_UNARY && c->is_started) {
            st = take_choices(c, data, len, &arena, &err);
        }
    } else if (c->kind == CLIENT_STATUS) {
        struct msg_status m;
        st = msg_status_unpack(data, len, &arena, &m, &err);
        if (st == ST_OK &&
            (m.n_replicas < c->sim->shape.n_replicas || m.streams > c->sim->shape.queue_max)) {
            complain(c, "gets a status that cannot be");
        }
    } else if (c->kind == CLIENT_CHECK || c->kind == CLIENT_WATCH) {
        st = msg_health_response_unpack(data, len, &arena, &c->health, &err);
    } else {
        complain(c, "gets a message, and its request was wrong");
    }
    if (st != ST_OK) {
        complain(c, err.text);
    }
    arena_fini(&arena);
}

/* ---- how it ends ---- */

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* May a good request fail so? NULL: yes. */
static const char *judge(const struct sim_client *c, status st, const char *text)
{
    const struct sim *s = c->sim;

    switch (st) {
    case ST_ERR_CANCELLED:
        return c->has_cancelled ? NULL : "is cancelled, and nobody asked for that";
    case ST_ERR_DEADLINE:
        return c->deadline_ns <= s->now_ns + NS_PER_MS ? NULL : "fails before its deadline";
    case ST_ERR_EXISTS:
        return c->is_duplicate ? NULL : "is refused as a duplicate";
    case ST_ERR_LIMIT:
        if (!c->is_started && (has(text, "(--queue)") || has(text, "takes no more requests now"))) {
            return c->is_probe ? "is refused, and the service is idle" : NULL;
        }
        return c->is_slow && has(text, "reads too slowly") ? NULL : "fails by a limit";
    case ST_ERR_UNAVAILABLE:
        if (c->is_hurt) {
            return NULL;
        }
        if (s->is_stopping) { /* a service that stops lets running answers end, while it can */
            return c->is_started && has(text, "shutting down") && s->now_ns < s->drain_end_ns &&
                           s->totals->losses == s->n_losses_at_stop && check_n_serving(s) != 0
                       ? "is ended before its grace is over"
                       : NULL;
        }
        /* A replica that hangs and has nothing to do is found out when it is given something. */
        if ((c->is_probe || c->is_started) && !has(text, "(--retries)")) {
            return "fails, and the service goes on";
        }
        return s->shape.is_fair && has(text, "(--retries)") ? "fails, and nothing was lost" : NULL;
    default:
        return "fails with an error that nothing explains";
    }
}

static void ask(void *arg);

static void end(struct sim_client *c, status st)
{
    c->is_done = true;
    c->st = st;
    c->sim->n_clients_open -= c->kind != CLIENT_WATCH;
    c->sim->n_watchers -= c->kind == CLIENT_WATCH;
}

static void end_generate(struct sim_client *c, status st, const char *text)
{
    struct sim_totals *t = c->sim->totals;
    char why[256];

    if (st == ST_OK) {
        for (uint32_t i = 0; i < c->n_answers; i++) {
            if (!c->answers[i].is_finished) {
                complain(c, "ends well and has not finished");
            }
            t->tokens += c->answers[i].n_tokens;
        }
        t->ok++;
        return;
    }
    const char *wrong = judge(c, st, text);
    if (wrong != NULL) {
        snprintf(why, sizeof(why), "%s: %s: %.150s", wrong, status_name(st), text);
        complain(c, why);
    }
    *(c->is_started ? &t->failed : &t->refused) += 1;
    const bool again = st == ST_ERR_UNAVAILABLE || st == ST_ERR_LIMIT;
    if (again && !c->is_started && !c->sim->is_stopping && c->n_tries < 4 && !c->is_hurt) {
        c->n_tries++;
        c->sim->n_clients_open++;
        sim_after(c->sim, rng_delay(&c->sim->rng, 500 * NS_PER_MS), ask, c);
    }
}

static void on_done(void *arg, status st, const char *text)
{
    struct sim_client *c = arg;
    const bool at_end = c->sim->is_stopping || c->is_hurt;

    sim_note(c->sim, "client ends", c->index, (uint64_t)-st);
    end(c, st);
    switch (c->kind) {
    case CLIENT_STREAM:
    case CLIENT_UNARY:
        end_generate(c, st, text);
        break;
    case CLIENT_INVALID:
        /* Nothing is looked at before somebody serves. */
        if (st != ST_ERR_ARG && st != ST_ERR_UNAVAILABLE && !at_end) {
            complain(c, "sends nonsense and is not told so");
        }
        break;
    case CLIENT_NO_TOKEN:
        if (st != ST_ERR_UNAUTH && !at_end) {
            complain(c, "has no token and is let in");
        }
        break;
    case CLIENT_STATUS:
    case CLIENT_CHECK:
    case CLIENT_WATCH:
        if (st != ST_OK && !at_end) {
            complain(c, text);
        }
        break;
    }
}

/* ---- what it sends ---- */

static const char *path_of(enum client_kind kind)
{
    switch (kind) {
    case CLIENT_UNARY:
        return "/gantry.v1.Generation/Generate";
    case CLIENT_STATUS:
        return "/gantry.v1.Cluster/GetStatus";
    case CLIENT_CHECK:
        return "/grpc.health.v1.Health/Check";
    case CLIENT_WATCH:
        return "/grpc.health.v1.Health/Watch";
    case CLIENT_STREAM:
    case CLIENT_INVALID:
    case CLIENT_NO_TOKEN:
        break;
    }
    return "/gantry.v1.Generation/GenerateStream";
}

static void cancel_later(void *arg)
{
    client_cancel(arg);
}

static void ask(void *arg)
{
    static const struct wire_end ends = { on_message, on_done };
    struct sim_client *c = arg;
    struct sim *s = c->sim;
    struct buf out = BUF_INIT;
    status st = ST_OK;

    c->is_done = false;
    if (s->is_stopping || wire_public(s) == NULL) {
        end(c, ST_ERR_UNAVAILABLE);
        return;
    }
    if (c->kind == CLIENT_CHECK || c->kind == CLIENT_WATCH) {
        st = msg_health_request_pack("", &out);
    } else if (c->kind == CLIENT_INVALID && c->index % 3 == 0) {
        st = buf_append(&out, "\xff\xff\x07nonsense", 11);
    } else if (c->kind != CLIENT_STATUS) {
        st = msg_generate_pack(&c->request, &out);
    }
    ASSERT(st == ST_OK);
    sim_note(s, "client asks", c->index, c->kind);
    c->call = wire_open(
        s, &(struct wire_config){ .server = wire_public(s),
                                  .path = path_of(c->kind),
                                  .token = c->kind == CLIENT_NO_TOKEN ? NULL : "public",
                                  .data = out.data,
                                  .len = out.len,
                                  .deadline_ns = c->deadline_ns,
                                  .latency_ns = rng_ns(&s->rng, 100 * NS_PER_US, 20 * NS_PER_MS),
                                  .end = &ends,
                                  .arg = c });
    buf_fini(&out);
    if (c->is_slow) {
        wire_read_delay(c->call, rng_chance(&s->rng, 300)
                                     ? CLOCK_NEVER
                                     : rng_ns(&s->rng, 5 * NS_PER_MS, NS_PER_S));
    }
}

/* ---- what it wants ---- */

static void draw_prompt(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    const uint32_t ctx = c->sim->shape.ctx_max;
    struct sim_rng shared = { .state = rng_below(r, 3) }; /* one of three common beginnings */
    const uint32_t n = rng_in(r, 2, MIN(ctx - 2, (uint32_t)SIM_PROMPT_MAX - 2));
    const uint32_t n_shared = rng_chance(r, 500) ? rng_below(r, n) : 0;
    const bool is_text = rng_chance(r, 300);

    c->n_prompt = n;
    c->prompt[0] = SIM_BOS;
    for (uint32_t i = 1; i < n; i++) {
        c->prompt[i] = 0x20 + rng_below(i < n_shared ? &shared : r, 0x5F);
        c->text[i - 1] = (char)c->prompt[i];
    }
    if (is_text) {
        c->request.prompt = (struct msg_str){ c->text, n - 1 };
    } else {
        c->request.has_prompt_ids = true;
        c->request.prompt_ids = c->prompt;
        c->request.n_prompt_ids = n;
    }
}

static void draw_stops(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;

    c->request.ignore_eos = rng_chance(r, 300);
    if (rng_chance(r, 300)) {
        c->request.n_stop = rng_in(r, 1, 2);
        for (uint32_t i = 0; i < c->request.n_stop; i++) {
            const uint32_t len = rng_in(r, 1, 2);
            for (uint32_t k = 0; k < len; k++) {
                c->stop_text[i][k] = (char)rng_in(r, 0x30, 0x7E);
            }
            c->stops[i] = (struct msg_str){ c->stop_text[i], len };
        }
        c->request.stop = c->stops;
    }
    if (rng_chance(r, 200)) {
        c->request.n_stop_ids = 1;
        c->stop_ids[0] = rng_in(r, 0x20, 0x7E);
        c->request.stop_ids = c->stop_ids;
    }
}

static void draw_sampling(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    struct msg_generate *m = &c->request;

    m->has_temperature = rng_chance(r, 600);
    m->temperature = rng_chance(r, 500) ? 0.0f : 0.25f * (float)rng_in(r, 1, 4);
    m->has_top_k = rng_chance(r, 300);
    m->top_k = rng_in(r, 1, 50);
    m->has_top_p = rng_chance(r, 300);
    m->top_p = 0.25f * (float)rng_in(r, 1, 4);
    m->has_seed = rng_chance(r, 500);
    m->seed = rng_u64(r);
    m->has_presence_penalty = rng_chance(r, 100);
    m->presence_penalty = m->has_presence_penalty ? 0.5f * (float)rng_below(r, 4) : 0.0f;
    m->has_repetition_penalty = rng_chance(r, 100);
    m->repetition_penalty = 1.0f + 0.25f * (float)rng_below(r, 3);
    if (rng_chance(r, 100)) {
        m->n_biases = 2;
        c->biases[0] = (struct msg_bias){ rng_in(r, 60, 90), 1.5f };
        c->biases[1] = (struct msg_bias){ rng_in(r, 20, 50), -2.5f };
        m->biases = c->biases;
    }
    m->has_n = rng_chance(r, 100);
    m->n = rng_in(r, 1, MIN((uint32_t)SIM_CHOICES_MAX, c->sim->shape.queue_max));
    c->n_answers = m->has_n ? m->n : 1;
    m->has_logprobs = rng_chance(r, 300);
    m->logprobs = m->has_logprobs ? rng_below(r, 4) : 0;
}

static void draw_length(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    const uint32_t room = c->sim->shape.ctx_max - c->n_prompt;

    c->request.has_max_tokens = rng_chance(r, 900);
    c->request.max_tokens = rng_in(r, 1, MIN(room + room / 8 + 1, c->sim->shape.ctx_max));
    c->max_tokens = c->request.has_max_tokens ? MIN(c->request.max_tokens, room) : room;
}

static void draw_id(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    struct sim_client *other = c->next;

    snprintf(c->id, sizeof(c->id), "c%u", c->index);
    if (rng_chance(r, 200)) {
        c->id[0] = '\0';
    } else if (other != NULL && rng_chance(r, 30)) {
        snprintf(c->id, sizeof(c->id), "%s", other->id);
        c->is_duplicate = true;
        other->is_duplicate = true; /* whichever comes first */
    }
    c->request.request_id = c->id;
}

static void spoil(struct sim_client *c)
{
    struct msg_generate *m = &c->request;

    switch (c->index % 4) {
    case 0:
        m->has_temperature = true;
        m->temperature = -1.0f;
        break;
    case 1:
        m->has_top_p = true;
        m->top_p = 1.5f;
        break;
    case 2:
        m->has_max_tokens = true;
        m->max_tokens = 0;
        break;
    default:
        m->has_prompt_ids = true;
        c->prompt[0] = SIM_VOCAB + 5;
        m->prompt_ids = c->prompt;
        m->n_prompt_ids = c->n_prompt;
        m->prompt.len = 0;
        break;
    }
}

static enum client_kind draw_kind(struct sim_rng *r)
{
    const uint32_t n = rng_below(r, 1000);

    return n < 700   ? CLIENT_STREAM
           : n < 900 ? CLIENT_UNARY
           : n < 930 ? CLIENT_INVALID
           : n < 940 ? CLIENT_NO_TOKEN
           : n < 960 ? CLIENT_STATUS
           : n < 980 ? CLIENT_CHECK
                     : CLIENT_WATCH;
}

static struct sim_client *client_make(struct sim *s, enum client_kind kind)
{
    struct sim_client *c = calloc(1, sizeof(*c));

    ASSERT(c != NULL);
    c->sim = s;
    c->index = s->n_clients++;
    c->next = s->clients;
    s->clients = c;
    c->kind = kind;
    c->deadline_ns = CLOCK_NEVER;
    draw_prompt(c);
    draw_stops(c);
    draw_sampling(c);
    draw_length(c);
    draw_id(c);
    if (kind == CLIENT_INVALID) {
        spoil(c);
    }
    s->n_clients_open += kind != CLIENT_WATCH;
    s->n_watchers += kind == CLIENT_WATCH;
    s->totals->requests++;
    return c;
}

static void arrive(void *arg)
{
    struct sim_client *c = arg;
    struct sim *s = c->sim;

    if (c->kind <= CLIENT_UNARY && rng_chance(&s->rng, 150)) {
        c->deadline_ns = s->now_ns + rng_ns(&s->rng, 20 * NS_PER_MS, 5 * NS_PER_S);
    }
    c->is_slow = c->kind == CLIENT_STREAM && rng_chance(&s->rng, 100);
    if (c->kind <= CLIENT_UNARY && rng_chance(&s->rng, 100)) {
        sim_after(s, rng_ns(&s->rng, 0, 2 * NS_PER_S), cancel_later, c);
    }
    ask(c);
}

void clients_begin(struct sim *s)
{
    const uint64_t span_ns = s->shape.healed_ns - s->now_ns;
    uint64_t at_ns = s->now_ns;

    for (uint32_t i = 0; i < s->shape.n_requests; i++) {
        if (!rng_chance(&s->rng, s->shape.burst_per_mille)) {
            at_ns = s->now_ns + rng_u64(&s->rng) % span_ns;
        }
        sim_at(s, at_ns, arrive, client_make(s, draw_kind(&s->rng)));
    }
}

void clients_probe(struct sim *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct sim_client *c = client_make(s, i % 2 != 0 ? CLIENT_STREAM : CLIENT_UNARY);
        c->is_probe = true;
        c->is_duplicate = false;
        snprintf(c->id, sizeof(c->id), "probe%u", i);
        sim_after(s, 0, ask, c);
    }
}

/* ---- what is done to it ---- */

void client_cancel(struct sim_client *c)
{
    if (!c->is_done && c->call != NULL) {
        c->has_cancelled = true;
        wire_cancel(c->call);
    }
}

void client_hurt(struct sim_client *c)
{
    struct sim *s = c->sim;

    if (c->is_done || c->call == NULL) {
        return;
    }
    c->is_hurt = true;
    switch (rng_below(&s->rng, 3)) {
    case 0:
        wire_reset(c->call);
        break;
    case 1:
        wire_cut(c->call, s->now_ns + rng_ns(&s->rng, 10 * NS_PER_MS, 5 * NS_PER_S));
        break;
    default:
        wire_break(c->call, rng_chance(&s->rng, 500));
        s->totals->abandoned++;
        end(c, ST_ERR_CANCELLED);
        break;
    }
}

void clients_let_go(struct sim *s)
{
    for (struct sim_client *c = s->clients; c != NULL; c = c->next) {
        if (c->is_slow && !c->is_done && c->call != NULL) {
            wire_break(c->call, false);
            s->totals->abandoned++;
            end(c, ST_ERR_CANCELLED);
        }
    }
}

void clients_note(struct sim *s)
{
    for (const struct sim_client *c = s->clients; c != NULL; c = c->next) {
        if (!c->is_done && c->call != NULL) {
            sim_note(s, "open client", c->index, c->kind);
        }
    }
}

void clients_free(struct sim *s)
{
    for (struct sim_client *c = s->clients, *next; c != NULL; c = next) {
        next = c->next;
        for (uint32_t i = 0; c->is_started && i < c->n_answers; i++) {
            sim_truth_fini(&c->answers[i].truth);
        }
        free(c);
    }
    s->clients = NULL;
}
