/* tests/sim/sim_client.c - clients: what they send, and whether what comes back is right. The answers are
 * judged as they arrive: every token against the truth, every end against what may end it. */
#include "sim/sim_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void client_complain(struct sim_client *c, const char *what)
{
    sim_fail(c->sim, "client %u (\"%s\", %u choices, %u of %u tokens): %s", c->index, c->id,
             c->n_answers, c->answers[0].n_tokens, c->answers[0].truth.n, what);
}

/* ---- what comes ---- */

static void take_started(struct sim_client *c, const struct msg_started *m)
{
    if (c->conn->is_started) {
        client_complain(c, "is told twice that it has started");
        return;
    }
    c->conn->is_started = true;
    if (c->is_doubtful && c->opened_ns >= c->sim->died_ns) {
        c->is_doubtful = false;
        for (uint32_t i = 0; i < c->n_answers; i++) {
            c->answers[i].n_most = 0; /* it may be ahead of this coordinator */
        }
    }
    if (m->prompt_tokens != c->n_prompt ||
        (c->id[0] != '\0' && strcmp(m->request_id, c->id) != 0) ||
        (c->request.has_seed && m->seed != c->request.seed) || m->n != c->n_answers) {
        client_complain(c, "is told of another prompt, id, seed or number of choices");
    }
    if (c->is_keeper != (m->resume_window_s != 0) && !c->is_duplicate) {
        client_complain(c, "is not told rightly how long it may come back");
    }
    if (c->is_started) {
        if (m->seed != c->seed) {
            client_complain(c, "comes back and is told of another seed");
        }
        return;
    }
    c->is_started = true;
    c->seed = m->seed;
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
        client_complain(c, "gets a token behind the end of its answer");
        return;
    }
    const uint32_t want = t->ids[a->n_tokens];
    const float logprob = t->logprobs[a->n_tokens];
    if (p->id != want) {
        snprintf(text, sizeof(text), "token %u is %u and should be %u", a->n_tokens, p->id, want);
        client_complain(c, text);
        return;
    }
    if (p->has_logprob != c->request.has_logprobs ||
        (p->has_logprob && (p->logprob != logprob || p->n_top != c->request.logprobs))) {
        client_complain(c, "gets other log-probabilities");
    }
    for (uint32_t k = 0; k < p->n_top; k++) {
        const struct msg_logprob top = sim_top(want, logprob, k);
        if (p->top[k].id != top.id || p->top[k].logprob != top.logprob) {
            client_complain(c, "gets other top log-probabilities");
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
        client_complain(c, "finishes twice");
    }
    a->is_finished = true;
    if (a->n_tokens != t->n || a->n_text != t->text.len) {
        client_complain(c, "finishes before its answer is complete");
    }
    if (f->reason != t->reason || f->stop.len != stop->len ||
        memcmp(f->stop.data, stop->data, stop->len) != 0) {
        client_complain(c, "finishes for another reason");
    }
    if (f->prompt_tokens != c->n_prompt || f->completion_tokens != t->n ||
        f->cached_tokens > c->n_prompt || f->first_token_us > f->total_us) {
        client_complain(c, "gets a wrong usage");
    }
}

static void take_chunk(struct sim_client *c, const struct msg_chunk *m)
{
    struct sim_answer *a = &c->answers[m->choice % SIM_CHOICES_MAX];
    const struct sim_truth *t = &a->truth;

    if (m->choice >= c->n_answers) {
        client_complain(c, "gets a choice that it has not asked for");
        return;
    }

    if (m->has_started) {
        take_started(c, &m->started);
    }
    if (!c->conn->is_started) {
        client_complain(c, "gets a message before it has started");
        return;
    }
    if (a->is_finished) {
        client_complain(c, "gets a message after it has finished");
    }
    const bool has_some = m->n_tokens != 0 || m->text.len != 0 || m->has_finished;
    if (a->had_end && has_some && m->text_offset <= a->n_text) {
        a->n_text = m->text_offset;
    }
    if (has_some && (m->token_offset != a->n_tokens || m->text_offset != a->n_text)) {
        client_complain(c, "gets a message that does not begin where the last one ended");
    }
    for (uint32_t i = 0; i < m->n_tokens && c->sim->violation[0] == '\0'; i++) {
        take_piece(c, a, &m->tokens[i]);
    }
    if (m->text.len > t->text.len - a->n_text ||
        memcmp(m->text.data, t->text.data + a->n_text, m->text.len) != 0) {
        client_complain(c, "gets another text");
        return;
    }
    a->n_text += m->text.len;
    if (has_some) { /* the first message of a call may stand where this coordinator is not yet */
        a->n_most = MAX(a->n_most, a->n_tokens);
    }
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
    struct sim_conn *conn = arg;
    struct sim_client *c = conn->client;
    struct arena arena = ARENA_INIT(1 << 24);
    struct err err = ERR_INIT;
    status st = ST_OK;

    if (conn != c->conn) {
        return; /* it listens to its newer call */
    }

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
            client_complain(c, "gets a status that cannot be");
        }
    } else if (c->kind == CLIENT_CHECK || c->kind == CLIENT_WATCH) {
        st = msg_health_response_unpack(data, len, &arena, &c->health, &err);
    } else {
        client_complain(c, "gets a message, and its request was wrong");
    }
    if (st != ST_OK) {
        client_complain(c, err.text);
    }
    arena_fini(&arena);
}

/* ---- how it ends ---- */

static const char broke_text[] = "the connection broke"; /* wire.c */

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* May a good request fail so? NULL: yes. */
static const char *judge(const struct sim_client *c, status st, const char *text)
{
    const struct sim *s = c->sim;
    const uint64_t early_ns = c->is_keeper ? 100 * NS_PER_MS : NS_PER_MS; /* LATE_MS */

    switch (st) {
    case ST_ERR_CANCELLED:
        return c->has_cancelled ? NULL : "is cancelled, and nobody asked for that";
    case ST_ERR_DEADLINE:
        return c->deadline_ns <= s->now_ns + early_ns ? NULL : "fails before its deadline";
    case ST_ERR_NOT_FOUND:
        return c->is_forgotten || !c->is_started || s->is_stopping
                   ? NULL
                   : "is told that its answer is not there";
    case ST_ERR_EXISTS:
        /* Asked again, it may have been accepted the first time (goes_on, but while the service stops). */
        return c->is_duplicate || (c->is_keeper && c->n_asked > 1) ? NULL
                                                                   : "is refused as a duplicate";
    case ST_ERR_LIMIT:
        if (!c->is_started && (has(text, "(--queue)") || has(text, "takes no more requests now"))) {
            return c->is_probe ? "is refused, and the service is idle" : NULL;
        }
        return c->is_slow && has(text, "reads too slowly") ? NULL : "fails by a limit";
    case ST_ERR_UNAVAILABLE:
        if (c->is_hurt || (has(text, broke_text) && s->died_ns != 0)) {
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

static void end(struct sim_client *c, status st)
{
    c->is_done = true;
    c->st = st;
    c->sim->n_clients_open -= c->kind != CLIENT_WATCH;
    c->sim->n_watchers -= c->kind == CLIENT_WATCH;
}

/* ---- it comes back ---- */

static void ask_after(struct sim_client *c, uint64_t ns)
{
    c->is_waiting = true;
    c->sim->n_clients_open++;
    sim_after(c->sim, ns, client_ask, c);
}

static void comes_back(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;

    c->resumes = c->is_started || rng_chance(r, 500);
    if (rng_chance(r, 200)) { /* a new process, which has nothing but the id */
        for (uint32_t i = 0; i < c->n_answers; i++) {
            c->answers[i].n_tokens = 0;
            c->answers[i].n_text = 0;
        }
    }
    ask_after(c, rng_delay(r, 300 * NS_PER_MS));
}

/* A call that had been accepted is over, and not by an end of its answer. */
static void note_break(struct sim_client *c)
{
    const struct sim *s = c->sim;
    const bool died = s->died_ns > c->opened_ns;

    if (c->conn->is_started || !c->resumes) {
        c->broke_ns = died ? MIN(s->died_ns, s->now_ns) : s->now_ns;
    }
}

bool client_may_be_forgotten(const struct sim_client *c)
{
    const uint64_t window_ns = c->sim->shape.resume_s * NS_PER_S;

    /* Whose link is slow may learn of its end long after the service has said it. */
    return c->is_doubtful || c->is_slow || c->is_cut || c->sim->now_ns >= c->broke_ns + window_ns;
}

static bool has_all(const struct sim_client *c)
{
    for (uint32_t i = 0; i < c->n_answers; i++) {
        if (!c->answers[i].is_finished) {
            return false;
        }
    }
    return true;
}

/* One with a request id goes on with its answer, whatever has broken: true. */
static bool goes_on(struct sim_client *c, status st, const char *text)
{
    struct sim *s = c->sim;

    if (!c->is_keeper || s->is_stopping || c->is_gone) {
        return false;
    }
    if (st == ST_ERR_UNAVAILABLE && has(text, broke_text)) {
        note_break(c);
        c->is_gone = !c->resumes && rng_chance(&s->rng, 100);
        if (c->is_gone) {
            s->totals->abandoned++;
        } else {
            comes_back(c);
        }
        return true;
    }
    if (st == ST_ERR_NOT_FOUND && c->resumes) {
        if (c->is_started) {
            c->is_forgotten = client_may_be_forgotten(c);
            s->totals->forgotten += c->is_forgotten;
            return false;
        }
        c->resumes = false;
        ask_after(c, rng_delay(&s->rng, 100 * NS_PER_MS));
        return true;
    }
    if (st == ST_ERR_EXISTS && !c->resumes && c->n_asked > 1) { /* it had been accepted */
        c->resumes = true;
        ask_after(c, rng_delay(&s->rng, 100 * NS_PER_MS));
        return true;
    }
    return false;
}

static void end_generate(struct sim_client *c, status st, const char *text)
{
    struct sim_totals *t = c->sim->totals;
    char why[256];

    if (st == ST_ERR_UNAVAILABLE && c->is_keeper && has_all(c)) {
        st = c->st = ST_OK; /* it has all of it, but for the call's end */
    }
    if (st != ST_OK && goes_on(c, st, text)) {
        return;
    }

    if (st == ST_OK) {
        for (uint32_t i = 0; i < c->n_answers; i++) {
            if (!c->answers[i].is_finished) {
                client_complain(c, "ends well and has not finished");
            }
            t->tokens += c->answers[i].n_tokens;
        }
        t->ok++;
        return;
    }
    const char *wrong = judge(c, st, text);
    if (wrong != NULL) {
        snprintf(why, sizeof(why), "%s: %s: %.150s", wrong, status_name(st), text);
        client_complain(c, why);
    }
    *(c->is_started ? &t->failed : &t->refused) += 1;
    const bool again = st == ST_ERR_UNAVAILABLE || st == ST_ERR_LIMIT;
    if (again && !c->is_started && !c->sim->is_stopping && c->n_tries < 4 && !c->is_hurt) {
        c->n_tries++;
        ask_after(c, rng_delay(&c->sim->rng, 500 * NS_PER_MS));
    }
}

static void on_done(void *arg, status st, const char *text)
{
    struct sim_conn *conn = arg;
    struct sim_client *c = conn->client;
    const bool at_end = c->sim->is_stopping || c->is_hurt || has(text, broke_text);

    if (conn != c->conn) {
        return;
    }
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
            client_complain(c, "sends nonsense and is not told so");
        }
        break;
    case CLIENT_NO_TOKEN:
        if (st != ST_ERR_UNAUTH && !at_end) {
            client_complain(c, "has no token and is let in");
        }
        break;
    case CLIENT_STATUS:
    case CLIENT_CHECK:
    case CLIENT_WATCH:
        if (st != ST_OK && !at_end) {
            client_complain(c, text);
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

static struct sim_conn *conn_make(struct sim_client *c)
{
    struct sim_conn *conn = calloc(1, sizeof(*conn));

    ASSERT(conn != NULL);
    conn->client = c;
    conn->next = c->conns;
    c->conns = conn;
    return conn;
}

/* What it sends now: its request, or that it wants to go on. */
static status request_pack(struct sim_client *c, struct buf *out)
{
    uint32_t from[SIM_CHOICES_MAX], n_had = 0;
    struct msg_generate more = { .request_id = c->id, .resume = true };

    for (uint32_t i = 0; i < c->n_answers; i++) {
        from[i] = c->answers[i].n_tokens;
        n_had += from[i];
        if (c->resumes) {
            struct sim_answer *a = &c->answers[i];
            a->had_end = (a->had_end || a->is_finished) && from[i] == a->truth.n;
            c->answers[i].is_finished = false;
        }
    }
    if (c->n_answers == 1 && c->kind == CLIENT_STREAM) {
        more.resume_from = from[0];
    } else if (c->kind == CLIENT_STREAM && n_had != 0) {
        more.n_resume_from_choices = c->n_answers;
        more.resume_from_choices = from;
    }
    if (c->kind == CLIENT_CHECK || c->kind == CLIENT_WATCH) {
        return msg_health_request_pack("", out);
    }
    if (c->kind == CLIENT_INVALID && c->index % 3 == 0) {
        return buf_append(out, "\xff\xff\x07nonsense", 11);
    }
    if (c->kind == CLIENT_STATUS) {
        return ST_OK;
    }
    return msg_generate_pack(c->resumes ? &more : &c->request, out);
}

static void call_open(struct sim_client *c)
{
    static const struct wire_end ends = { on_message, on_done };
    struct sim *s = c->sim;
    struct buf out = BUF_INIT;

    ASSERT(request_pack(c, &out) == ST_OK);
    sim_note(s, c->resumes ? "client resumes" : "client asks", c->index, c->kind);
    s->totals->resumed += c->resumes ? 1 : 0;
    c->n_asked++;
    c->opened_ns = s->now_ns;
    c->conn = conn_make(c);
    c->call = wire_open(
        s, &(struct wire_config){ .server = wire_public(s),
                                  .path = path_of(c->kind),
                                  .token = c->kind == CLIENT_NO_TOKEN ? NULL : "public",
                                  .data = out.data,
                                  .len = out.len,
                                  .deadline_ns = c->deadline_ns,
                                  .latency_ns = rng_ns(&s->rng, 100 * NS_PER_US, 20 * NS_PER_MS),
                                  .end = &ends,
                                  .arg = c->conn });
    buf_fini(&out);
    if (c->is_slow) {
        wire_read_delay(c->call, rng_chance(&s->rng, 300)
                                     ? CLOCK_NEVER
                                     : rng_ns(&s->rng, 5 * NS_PER_MS, NS_PER_S));
    }
}

void client_ask(void *arg)
{
    struct sim_client *c = arg;
    struct sim *s = c->sim;

    c->is_done = c->is_waiting = false;
    if (s->is_stopping) {
        end(c, ST_ERR_UNAVAILABLE);
    } else if (c->deadline_ns <= s->now_ns) {
        end(c, ST_ERR_DEADLINE);
        s->totals->failed++;
    } else {
        call_open(c);
    }
}

void client_cancel_later(void *arg)
{
    client_cancel(arg);
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
        c->is_cut = true;
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
        for (struct sim_conn *conn; (conn = c->conns) != NULL;) {
            c->conns = conn->next;
            free(conn);
        }
        free(c);
    }
    s->clients = NULL;
}
