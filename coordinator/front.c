/* coordinator/front.c - requests of clients: checked, tokenised, admitted, and handed to the
 * leader; its events handed to their sessions.
 *
 * A request is decided on in one go, inside its callback: tokenising 1 kB takes well under a
 * millisecond, and a second thread would need a queue, a bound and an order of its own
 * (coordinator/README.md, decision 2). */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* ---- the sink of a session is its call ---- */

static status sink_send(void *self, const void *data, size_t len)
{
    struct front_call *f = self;

    resume_before_send(f);
    return f->call != NULL && !f->head->is_ended ? rpc_call_send(f->call, data, len) : ST_ERR_PEER;
}

static void sink_finish(void *self, status st, const char *text)
{
    choices_finish(self, st, text);
}

static void sink_reply(void *self, const void *data, size_t len)
{
    choices_reply(self, data, len);
}

struct session_sink front_sink(struct front_call *f)
{
    return (struct session_sink){ sink_send, sink_finish, sink_reply, f };
}

/* ---- a request becomes ids and numbers ---- */

struct prompt {
    const uint32_t *ids; /* borrowed from `list` or from the request */
    uint32_t n;
    struct token_list list; /* owned */
};

static status prompt_make(struct coord *c, const struct msg_generate *m, struct prompt *p_p,
                          struct err *err)
{
    struct prompt p = { NULL, 0, { NULL, 0 } };

    if (m->has_prompt_ids) {
        p.ids = m->prompt_ids;
        p.n = m->n_prompt_ids;
        *p_p = p;
        return ST_OK;
    }
    /* An empty text is BOS alone, also where the model's files put none in front of text. */
    const unsigned flags = m->prompt.len == 0 ? TOK_ADD_BOS : TOK_ADD_SPECIAL;
    const status st = tokenizer_encode(c->config.tok, m->prompt.data, m->prompt.len, flags,
                                       MSG_PROMPT_BYTES_MAX + 16, &p.list, err);
    if (st < 0) {
        return st;
    }
    p.ids = p.list.ids;
    p.n = p.list.n;
    if (p.n == 0) {
        return err_set(err, ST_ERR_ARG,
                       "the prompt is empty and the model has no BOS token to begin with; send "
                       "some text or prompt_ids");
    }
    for (uint32_t i = 0; i < p.n; i++) {
        if (p.ids[i] >= c->desc->vocab) {
            const uint32_t id = p.ids[i];
            token_list_fini(&p.list);
            return err_set(err, ST_ERR_ARG,
                           "the prompt holds token %u, which the tokenizer knows and the model "
                           "(ids 0 .. %u) does not",
                           id, c->desc->vocab - 1);
        }
    }
    *p_p = p;
    return ST_OK;
}

/* Tokens to generate at most: what was asked for, or what the context leaves. */
static status room_check(const struct coord *c, const struct msg_generate *m, uint32_t n_prompt,
                         uint32_t *max_tokens_p, struct err *err)
{
    const struct plan *plan = c->config.plan;
    const uint32_t room = MIN(plan->ctx_max, route_kv_tokens(c));

    if (m->has_max_tokens && m->max_tokens > plan->ctx_max) {
        return err_set(err, ST_ERR_ARG, "max_tokens is %u; 1 .. %u (the context) is allowed",
                       m->max_tokens, plan->ctx_max);
    }
    if (n_prompt >= plan->ctx_max) {
        return err_set(err, ST_ERR_ARG,
                       "the prompt has %u tokens and the context %u; at least one must be left to "
                       "generate",
                       n_prompt, plan->ctx_max);
    }
    if (n_prompt >= room) {
        return err_set(err, ST_ERR_LIMIT,
                       "the prompt has %u tokens, and the replica has KV memory for %u; serve with "
                       "more --kv-tokens",
                       n_prompt, room);
    }
    if (!m->has_max_tokens || m->max_tokens > plan->ctx_max - n_prompt) {
        *max_tokens_p = room - n_prompt;
        return ST_OK;
    }
    if (m->max_tokens > room - n_prompt) {
        return err_set(err, ST_ERR_LIMIT,
                       "a prompt of %u tokens and max_tokens %u can never fit the replica's KV "
                       "memory of %u tokens; lower max_tokens or serve with more --kv-tokens",
                       n_prompt, m->max_tokens, room);
    }
    *max_tokens_p = m->max_tokens;
    return ST_OK;
}

static status seed_draw(uint64_t *seed_p, struct err *err)
{
    uint64_t seed;

    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed)) {
        return err_set_errno(err, ST_ERR_INTERNAL, errno, "no random seed");
    }
    *seed_p = seed;
    return ST_OK;
}

static void stop_ids_set(const struct coord *c, const struct msg_generate *m,
                         struct journal_entry *e)
{
    for (uint32_t i = 0; i < m->n_stop_ids; i++) {
        e->stop_ids[e->n_stop_ids++] = m->stop_ids[i];
    }
    if (m->ignore_eos) {
        return;
    }
    for (uint32_t i = 0; i < c->desc->n_eos; i++) {
        e->stop_ids[e->n_stop_ids++] = c->desc->eos[i];
    }
    const int32_t eos = tokenizer_eos(c->config.tok);
    if (c->desc->n_eos == 0 && eos >= 0) { /* a config that names none; the tokenizer may */
        e->stop_ids[e->n_stop_ids++] = (uint32_t)eos;
    }
}

/* Prefixes are shared within a principal, and all who hold the service's one token are one. The
 * principal's name is hashed, never the token: this hash hides nothing. */
uint64_t front_scope(const struct coord *c)
{
    static const char holders[] = "holders of the token";

    return c->config.token != NULL ? hash64_of(holders, sizeof(holders) - 1, 0) : 0;
}

static status entry_open(struct coord *c, const struct msg_generate *m, const struct prompt *p,
                         struct journal_entry **entry_p, struct err *err)
{
    char made[48];
    const char *id = m->request_id;
    uint32_t max_tokens = 0;
    uint64_t seed = m->seed;
    struct journal_entry *e;
    status st = room_check(c, m, p->n, &max_tokens, err);

    if (st == ST_OK && !m->has_seed) {
        st = seed_draw(&seed, err);
    }
    if (st < 0) {
        return st;
    }
    if (id[0] != '\0') {
        resume_make_way(c, id);
    } else {
        do { /* a client may have taken the next name */
            snprintf(made, sizeof(made), "req-%llx-%llu", (unsigned long long)clock_wall_us(),
                     (unsigned long long)++c->n_request_ids);
        } while (journal_find_request(c->journal, made) != NULL);
        id = made;
    }
    st = journal_open(c->journal, id, p->ids, p->n, &e, err);
    if (st < 0) {
        return st;
    }
    e->max_tokens = max_tokens;
    e->temperature = m->has_temperature ? m->temperature : 1.0f;
    e->top_k = m->has_top_k ? m->top_k : 0;
    e->top_p = m->has_top_p ? m->top_p : 1.0f;
    e->min_p = m->has_min_p ? m->min_p : 0.0f;
    e->seed = seed;
    e->want_logprobs = m->has_logprobs;
    e->n_logprobs = m->logprobs;
    e->presence_penalty = m->presence_penalty; /* 0 if absent */
    e->frequency_penalty = m->frequency_penalty;
    e->repetition_penalty = m->has_repetition_penalty ? m->repetition_penalty : 1.0f;
    e->exact = m->exact;
    e->cache_scope = front_scope(c);
    e->is_kept = resume_applies(c, m);
    stop_ids_set(c, m, e);
    if (journal_set_biases(e, m->biases, m->n_biases) < 0) {
        journal_close(c->journal, e);
        return err_set(err, ST_ERR_NOMEM, "no memory for %u biases", m->n_biases);
    }
    *entry_p = e;
    return ST_OK;
}

/* ---- admission ---- */

static uint32_t choices_wanted(const struct msg_generate *m)
{
    return m->has_n ? m->n : 1;
}

static status serving_check(const struct coord *c, struct err *err)
{
    struct coord_progress p;

    coord_progress(c, &p);
    switch (c->state) {
    case COORD_SERVING:
        return ST_OK;
    case COORD_STARTING:
        return err_set(err, ST_ERR_UNAVAILABLE,
                       "the model is loading: %u of %u ranks have attached, %u are ready; try "
                       "again soon",
                       p.n_attached, p.n_ranks, p.n_ready);
    case COORD_RECOVERING:
        return err_set(err, ST_ERR_UNAVAILABLE,
                       "no replica serves now; what was lost is being started again: %u of %u "
                       "ranks have attached, %u are ready; try again soon",
                       p.n_attached, p.n_ranks, p.n_ready);
    case COORD_DRAINING:
        return err_set(err, ST_ERR_UNAVAILABLE, "the service is shutting down");
    case COORD_FAILED:
        return err_set(err, ST_ERR_UNAVAILABLE, "%s", c->failure);
    }
    return ST_ERR_INTERNAL;
}

/* `o` has what the caller wants otherwise than usual; its sink is empty where nobody reads yet. */
static status call_open(struct coord *c, struct rpc_call *call, struct journal_entry *e,
                        const struct session_config *o, struct front_call **f_p, struct err *err)
{
    struct front_call *f = calloc(1, sizeof(*f));
    struct session_config config = *o;

    if (f == NULL) {
        return err_set(err, ST_ERR_NOMEM, "the coordinator is out of memory");
    }
    f->coord = c;
    f->call = call;
    f->entry = e;
    f->reply = (struct buf)BUF_INIT;
    f->head = f;
    f->n_choices = 1;
    f->n_ending = 1;
    config.tok = c->config.tok;
    config.clock = c->clock;
    config.entry = e;
    config.weights_digest = c->digest_hex;
    config.model = c->desc->name;
    config.is_kept = e->is_kept;
    config.n_choices = MAX(o->n_choices, 1u);
    config.window_s = e->is_kept ? (uint32_t)(c->config.resume_ns / NS_PER_S) : 0;
    if (call != NULL) {
        config.sink = front_sink(f);
    }
    const status st = session_create(&config, &f->session, err);
    if (st < 0) {
        free(f);
        return st;
    }
    e->owner = f;
    *f_p = f;
    return ST_OK;
}

status front_restore(struct coord *c, struct journal_entry *e, const struct session_config *config,
                     struct front_call **f_p, struct err *err)
{
    return call_open(c, NULL, e, config, f_p, err);
}

/* All answers that a request asks for: an entry and a session each, nothing submitted yet. What was
 * made is in *head_p also on failure. */
static status choices_open(struct coord *c, struct rpc_call *call, const struct msg_generate *m,
                           const struct prompt *p, bool is_unary, struct front_call **head_p,
                           struct err *err)
{
    const struct session_config config = {
        .stop = m->stop,
        .n_stop = m->n_stop,
        .is_unary = is_unary,
        .n_choices = choices_wanted(m),
        .arrived_ns = coord_now(c),
    };
    struct journal_entry *first = NULL;
    status st = entry_open(c, m, p, &first, err);

    if (st < 0) {
        return st;
    }
    /* Who may come back with another deadline has none at the leader: the call's end is told here. */
    first->deadline_ns = first->is_kept ? CLOCK_NEVER : rpc_call_deadline_ns(call);
    st = call_open(c, call, first, &config, head_p, err);
    if (st < 0) {
        journal_close(c->journal, first);
    }
    for (uint32_t i = 1; st == ST_OK && i < choices_wanted(m); i++) {
        struct journal_entry *e = NULL;
        struct front_call *f = NULL;

        st = journal_open_choice(c->journal, first, i, &e, err);
        if (st == ST_OK) {
            st = call_open(c, call, e, &config, &f, err);
            if (st < 0) {
                journal_close(c->journal, e);
            } else {
                choices_add(*head_p, f);
            }
        }
    }
    return st;
}

void front_undo(struct front_call *head)
{
    for (struct front_call *f = head, *next; f != NULL; f = next) {
        next = f->next_choice;
        route_cancel(f->coord, f->entry);
        route_leave(f->coord, f->entry);
        journal_close(f->coord->journal, f->entry);
        session_destroy(f->session);
        free(f);
    }
}

/* From a checked request and its prompt to streams that the leader knows: all or none. */
static status streams_open(struct coord *c, struct rpc_call *call, const struct msg_generate *m,
                           const struct prompt *p, bool is_unary, struct front_call **head_p,
                           struct err *err)
{
    struct front_call *head = NULL;
    status st = choices_open(c, call, m, p, is_unary, &head, err);

    for (struct front_call *f = head; st == ST_OK && f != NULL; f = f->next_choice) {
        choices_share_profile(head, head->entry->profile);
        st = route_submit(c, f->entry, err);
    }
    if (st != ST_OK) {
        front_undo(head);
        return st;
    }
    ASSERT(head != NULL);
    if (head->entry->is_kept) {
        resume_keep(head);
    }
    *head_p = head;
    return ST_OK;
}

static status request_read(struct coord *c, const void *data, size_t len, struct msg_generate *m,
                           struct err *err)
{
    arena_reset(&c->arena);
    c->arena.max = PUBLIC_ARENA_BYTES;
    const status st = msg_generate_unpack(data, len, &c->arena, m, err);
    c->arena.max = CONTROL_ARENA_BYTES;
    return st == ST_ERR_PROTO ? ST_ERR_ARG : st;
}

static status request_check(const struct coord *c, const struct msg_generate *m, struct err *err)
{
    status st = serving_check(c, err);

    if (st == ST_OK) {
        st = generate_check(m, c->desc->vocab, err);
    }
    if (st < 0) {
        return st;
    }
    /* Before the prompt is tokenised: a full queue must cost little. */
    const uint32_t n_open = journal_count(c->journal), n = choices_wanted(m);
    if (n_open >= c->config.queue_max) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u streams are open, the limit of this service (--queue); try again later",
                       n_open);
    }
    if (n > c->config.queue_max - n_open) {
        return err_set(err, ST_ERR_LIMIT,
                       "n is %u and %u of %u streams are open (--queue); ask for fewer choices or "
                       "try again later",
                       n, n_open, c->config.queue_max);
    }
    return ST_OK;
}

/* An answer is over; choice 0's entry stays while others of its request run. */
void front_close(struct front_call *f)
{
    struct front_call *head = f->head;

    if (f->entry == NULL) {
        return;
    }
    route_leave(f->coord, f->entry);
    if (f == head && choices_are_open(head)) {
        return;
    }
    journal_close(f->coord->journal, f->entry);
    f->entry = NULL;
    if (f != head && head->entry != NULL && !choices_are_open(head) &&
        session_state(head->session) == SESSION_OVER) {
        route_leave(head->coord,
                    head->entry); /* abandoned because this one failed, it still counts */
        journal_close(head->coord->journal, head->entry);
        head->entry = NULL;
    }
}

void front_settle(struct front_call *f, bool cancel)
{
    if (f->entry == NULL) {
        return;
    }
    if (cancel) {
        route_cancel(f->coord, f->entry);
    }
    if (f->entry->is_kept) {
        resume_settle(f);
    } else if (session_state(f->session) == SESSION_OVER) {
        front_close(f);
    }
}

static void generate(struct coord *c, struct rpc_call *call, const void *data, size_t len,
                     bool is_unary)
{
    struct prompt prompt = { NULL, 0, { NULL, 0 } };
    struct err err = ERR_INIT;
    struct msg_generate m;
    struct front_call *f = NULL;
    status st = request_read(c, data, len, &m, &err);

    if (st == ST_OK && m.resume) {
        resume_request(c, call, &m, is_unary);
        return;
    }
    if (st == ST_OK) {
        st = request_check(c, &m, &err);
    }
    if (st == ST_OK) {
        st = prompt_make(c, &m, &prompt, &err);
    }
    if (st == ST_OK) {
        st = streams_open(c, call, &m, &prompt, is_unary, &f, &err);
    }
    token_list_fini(&prompt.list);
    if (st != ST_OK) {
        log_debug("front", "refused (%s): %s", status_name(st), err.text);
        rpc_call_finish(call, st, err.text);
        return;
    }
    rpc_call_set_user(call, f);
    log_req(LOG_DEBUG, "front", f->entry->request_id,
            "%u prompt tokens, at most %u more, stream %llu, choices %u", f->entry->n_prompt,
            f->entry->max_tokens, (unsigned long long)f->entry->stream, f->n_choices);
    for (; f != NULL; f = f->next_choice) {
        front_placed(f->entry);
    }
}

void front_placed(struct journal_entry *e)
{
    const struct front_call *f = e->owner;
    struct front_call *head = f->head;

    if (e->replica >= 0) { /* else later: what it starts with is not known yet */
        choices_share_profile(head, e->profile);
        if (e->is_kept) {
            resume_placed(head);
        }
        front_settle(head, session_start(head->session));
    }
}

void front_generate(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    coord_enter(arg);
    generate(arg, call, data, len, true);
    coord_leave(arg);
}

void front_generate_stream(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    coord_enter(arg);
    generate(arg, call, data, len, false);
    coord_leave(arg);
}

void front_get_model(void *arg, struct rpc_call *call, const void *data UNUSED, size_t len UNUSED)
{
    struct coord *c = arg;
    const struct msg_model m = { .name = c->desc->name,
                                 .family = c->desc->family,
                                 .profile = c->config.plan->profile,
                                 .weights_digest = c->digest_hex,
                                 .tokenizer = tokenizer_kind(c->config.tok),
                                 .n_layers = c->desc->n_layers,
                                 .dim = c->desc->dim,
                                 .n_heads = c->desc->n_heads,
                                 .n_kv_heads = c->desc->n_kv_heads,
                                 .vocab = c->desc->vocab,
                                 .context = c->config.plan->ctx_max,
                                 .parameters = model_desc_params(c->desc) };

    buf_reset(&c->out);
    if (msg_model_pack(&m, &c->out) < 0) {
        rpc_call_finish(call, ST_ERR_NOMEM, "the coordinator is out of memory");
        return;
    }
    rpc_call_reply(call, c->out.data, c->out.len);
}

/* ---- while it runs ---- */

void front_writable(void *arg, struct rpc_call *call)
{
    struct front_call *f = rpc_call_user(call);

    if (f == NULL) {
        return;
    }
    coord_enter(arg);
    for (; f != NULL; f = f->next_choice) { /* freed when the outermost callback returns */
        front_settle(f, session_writable(f->session));
    }
    coord_leave(arg);
}

/* The call of this answer is over. */
static void answer_done(struct front_call *f, bool cancelled)
{
    if (f->entry != NULL) {
        const bool was_running = session_state(f->session) == SESSION_RUNNING;
        log_req(LOG_DEBUG, "stream", f->entry->request_id, "choice %u: %s after %u tokens",
                f->entry->choice, cancelled ? "the client left or its deadline passed" : "over",
                f->entry->n_emitted);
        session_abandon(f->session);
        front_settle(f, was_running);
    }
    front_bury(f);
}

void front_done(void *arg, struct rpc_call *call, bool cancelled)
{
    struct coord *c = arg;
    struct front_call *head = rpc_call_user(call);

    if (head == NULL) {
        return; /* refused at the door */
    }
    coord_enter(c);
    if (head->entry != NULL && head->entry->is_kept) {
        /* Its client's clock may tell us of the deadline a little before ours does. */
        const uint64_t about_now = coord_now(c) + LATE_MS * NS_PER_MS;
        resume_left(head, rpc_call_deadline_ns(call) <= about_now);
        coord_leave(c);
        return;
    }
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        f->call = NULL;
    }
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        answer_done(f, cancelled);
    }
    coord_leave(c);
}

void front_bury(struct front_call *f)
{
    f->next_dead = f->coord->dead;
    f->coord->dead = f;
}

static void mark_dirty(struct coord *c, struct front_call *f)
{
    if (!f->is_dirty) {
        f->is_dirty = true;
        f->next_dirty = c->dirty;
        c->dirty = f;
    }
}

void front_flush_dirty(struct coord *c)
{
    while (c->dirty != NULL) {
        struct front_call *f = c->dirty;
        c->dirty = f->next_dirty;
        f->is_dirty = false;
        if (f->call != NULL && f->entry != NULL) {
            front_settle(f, session_flush(f->session));
        }
    }
}

/* NULL: nobody waits for it any more, or it is of an earlier attempt. */
static struct front_call *event_owner(const struct replica *r, uint64_t stream, uint32_t attempt)
{
    const struct journal_entry *e = journal_find(r->coord->journal, stream);

    if (e == NULL || e->attempt != attempt || e->replica != (int32_t)r->index) {
        log_trace("front",
                  "event for stream %llu attempt %u of replica %u, which is over, ignoring",
                  (unsigned long long)stream, attempt, r->index);
        return NULL;
    }
    return e->owner;
}

void front_token(struct replica *r, const struct msg_token *t)
{
    struct coord *c = r->coord;
    struct front_call *f = event_owner(r, t->stream, t->attempt);

    if (f == NULL) {
        return;
    }
    if (t->token >= c->desc->vocab) {
        log_req(LOG_ERROR, "stream", f->entry->request_id, "the leader sent token %u of %u",
                t->token, c->desc->vocab);
        session_fail(f->session, ST_ERR_INTERNAL, "the replica sent a token that does not exist");
        front_settle(f, true);
        return;
    }
    if (session_state(f->session) == SESSION_RUNNING) {
        journal_note_profile(f->entry, r->shape.profile);
    }
    const uint32_t n_before = f->entry->n_emitted;
    route_resumed(c, f->entry);
    const bool cancel = session_token(f->session, t);
    resume_token(f, t, n_before);
    front_settle(f, cancel);
    mark_dirty(c, f);
}

void front_finish(struct replica *r, const struct msg_finish *m)
{
    struct front_call *f = event_owner(r, m->stream, m->attempt);

    if (f == NULL) {
        return;
    }
    session_finish(f->session, m);
    front_settle(f, false);
    mark_dirty(r->coord, f);
}

bool front_is_running(const struct journal_entry *e)
{
    const struct front_call *f = e->owner;

    return !session_is_complete(f->session);
}

void front_fail(struct journal_entry *e, status st, const char *text)
{
    struct front_call *f = e->owner;

    session_fail(f->session, st, text);
    front_settle(f, false);
}

struct failure {
    status st;
    const char *text;
};

static void fail_one(void *arg, struct journal_entry *e)
{
    const struct failure *failure = arg;

    front_fail(e, failure->st, failure->text);
}

void front_fail_all(struct coord *c, status st, const char *text)
{
    struct failure failure = { st, text };

    journal_each(c->journal, fail_one, &failure);
}
