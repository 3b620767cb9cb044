/* coordinator/session.c - see session.h. */
#include "coordinator/session.h"

#include "base/log.h"
#include "model/detok.h"
#include "model/stop.h"

#include <stdlib.h>
#include <string.h>

struct session {
    struct session_config config; /* config.stop is not kept */
    struct journal_entry *entry;  /* borrowed */
    enum session_state state;
    struct detok detok;
    struct stop *stop;  /* owned */
    char *stop_strings; /* owned: NUL-terminated, one behind the other, for `finished` */

    /* pending */
    struct buf text;
    struct msg_piece *pieces; /* [pieces_max] owned */
    uint32_t n_pieces, pieces_max;
    struct arena tops; /* of the pieces */
    bool is_blocked;   /* the sink said ST_BUSY */
    bool has_started;  /* `started` was sent */

    struct msg_finished finished; /* valid from ENDING on */
    uint64_t first_token_ns;      /* 0: none yet */
};

/* ---- life ---- */

static status stop_make(struct session *s, struct err *err)
{
    const struct session_config *c = &s->config;
    const char *strings[STOP_STRINGS_MAX];
    size_t lens[STOP_STRINGS_MAX], bytes = 1;

    ASSERT(c->n_stop <= STOP_STRINGS_MAX); /* generate_check */
    for (uint32_t i = 0; i < c->n_stop; i++) {
        strings[i] = c->stop[i].data;
        lens[i] = c->stop[i].len;
        bytes += lens[i] + 1;
    }
    s->stop_strings = calloc(1, bytes);
    if (s->stop_strings == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for stop strings");
    }
    for (uint32_t i = 0, at = 0; i < c->n_stop; i++) {
        memcpy(s->stop_strings + at, strings[i], lens[i]);
        at += (uint32_t)lens[i] + 1;
    }
    return stop_create(strings, lens, c->n_stop, &s->stop, err);
}

status session_create(const struct session_config *config, struct session **session_p,
                      struct err *err)
{
    struct session *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a stream");
    }
    s->config = *config;
    s->entry = config->entry;
    s->text = (struct buf)BUF_INIT_MAX(MSG_BYTES_MAX);
    s->tops = (struct arena)ARENA_INIT(SESSION_TOPS_BYTES);
    const status st = stop_make(s, err);
    if (st < 0) {
        session_destroy(s);
        return st;
    }
    s->config.stop = NULL;
    s->has_started = s->entry->choice != 0; /* `started` is said once for all choices */
    detok_init(&s->detok, config->tok, false);
    detok_prompt(&s->detok, s->entry->prompt, s->entry->n_prompt);
    *session_p = s;
    return ST_OK;
}

void session_destroy(struct session *s)
{
    if (s == NULL) {
        return;
    }
    stop_destroy(s->stop);
    free(s->stop_strings);
    buf_fini(&s->text);
    free(s->pieces);
    arena_fini(&s->tops);
    free(s);
}

enum session_state session_state(const struct session *s)
{
    return s->state;
}

struct journal_entry *session_entry(const struct session *s)
{
    return s->entry;
}

static uint64_t now_ns(const struct session *s)
{
    return clock_now_ns(s->config.clock);
}

/* ---- out ---- */

void session_fail(struct session *s, status st, const char *text)
{
    if (s->state == SESSION_OVER) {
        return;
    }
    s->state = SESSION_OVER;
    log_req(LOG_DEBUG, "stream", s->entry->request_id, "failed after %u tokens: %s: %s",
            s->entry->n_emitted, status_name(st), text);
    s->config.sink.finish(s->config.sink.self, st, text);
}

void session_abandon(struct session *s)
{
    s->state = SESSION_OVER;
}

/* What made the tokens, where that is not what `started` says. */
static void profiles_fill(const struct session *s, struct msg_finished *f, const char **list)
{
    const struct journal_entry *e = s->entry;

    if (!journal_is_of(e, e->profile)) {
        for (uint32_t i = 0; i < e->n_profiles; i++) {
            list[i] = e->profiles[i];
        }
        f->n_profiles = e->n_profiles;
        f->profiles = list;
    }
}

/* `profiles` is what the message points to. */
static void chunk_make(const struct session *s, bool has_started, struct msg_chunk *c,
                       const char *profiles[MSG_PROFILES_MAX])
{
    memset(c, 0, sizeof(*c));
    c->has_started = has_started;
    if (has_started) {
        c->started = (struct msg_started){ .request_id = s->entry->request_id,
                                           .profile = s->entry->profile,
                                           .weights_digest = s->config.weights_digest,
                                           .model = s->config.model,
                                           .seed = s->entry->seed,
                                           .prompt_tokens = s->entry->n_prompt };
    }
    c->choice = s->entry->choice;
    c->text = (struct msg_str){ s->text.data, s->text.len };
    c->tokens = s->pieces;
    c->n_tokens = s->n_pieces;
    c->has_finished = s->state == SESSION_ENDING;
    c->finished = s->finished;
    profiles_fill(s, &c->finished, profiles);
}

static void pending_clear(struct session *s)
{
    buf_reset(&s->text);
    s->n_pieces = 0;
    arena_reset(&s->tops);
}

/* The whole answer in one message. */
static void reply(struct session *s)
{
    struct buf out = BUF_INIT_MAX(MSG_BYTES_MAX);
    const char *profiles[MSG_PROFILES_MAX];
    struct msg_chunk chunk;

    chunk_make(s, !s->has_started, &chunk, profiles);
    const status st = msg_response_pack(&chunk, &out);
    if (st < 0) {
        session_fail(s, ST_ERR_LIMIT,
                     "the answer is too large for one message; use GenerateStream, or ask for "
                     "fewer log-probabilities");
    } else {
        s->state = SESSION_OVER;
        s->config.sink.reply(s->config.sink.self, out.data, out.len);
    }
    buf_fini(&out);
}

static bool send_pending(struct session *s)
{
    struct buf out = BUF_INIT_MAX(MSG_BYTES_MAX);
    const char *profiles[MSG_PROFILES_MAX];
    struct msg_chunk chunk;

    chunk_make(s, !s->has_started, &chunk, profiles);
    status st = msg_chunk_pack(&chunk, &out);
    if (st == ST_OK) {
        st = s->config.sink.send(s->config.sink.self, out.data, out.len);
    }
    buf_fini(&out);
    if (st == ST_BUSY) {
        s->is_blocked = true;
        return false;
    }
    const bool was_running = s->state == SESSION_RUNNING;
    if (st ==
        ST_ERR_PEER) { /* the call is over, and its on_done will find nothing left to cancel */
        s->state = SESSION_OVER;
        return was_running;
    }
    if (st < 0) {
        session_fail(s, st, "the answer does not fit a message");
        return was_running;
    }
    s->has_started = true;
    pending_clear(s);
    if (s->state == SESSION_ENDING) {
        s->state = SESSION_OVER;
        s->config.sink.finish(s->config.sink.self, ST_OK, "");
    }
    return false;
}

bool session_start(struct session *s)
{
    const bool is_over = s->state == SESSION_OVER || s->has_started || s->is_blocked;

    return s->config.is_unary || is_over ? false : send_pending(s);
}

bool session_flush(struct session *s)
{
    if (s->state == SESSION_OVER) {
        return false;
    }
    if (s->config.is_unary) {
        if (s->state == SESSION_ENDING) {
            reply(s);
        }
        return false;
    }
    if (s->is_blocked) {
        if (s->n_pieces > SESSION_BACKLOG_TOKENS) {
            const bool was_running = s->state == SESSION_RUNNING;
            session_fail(s, ST_ERR_LIMIT,
                         "the client reads too slowly: more than 4096 tokens are waiting for it");
            return was_running;
        }
        return false;
    }
    if (s->text.len == 0 && s->n_pieces == 0 && s->state == SESSION_RUNNING) {
        return false;
    }
    return send_pending(s);
}

bool session_writable(struct session *s)
{
    s->is_blocked = false;
    return session_flush(s);
}

/* ---- in ---- */

/* From here on the answer is complete; `i_stop` is the stop string that ended it, or -1. */
static void end(struct session *s, enum finish_reason reason, int32_t i_stop,
                uint32_t cached_tokens, uint64_t queued_us)
{
    const char *stop = s->stop_strings;
    const uint64_t first_ns = s->first_token_ns != 0 ? s->first_token_ns : now_ns(s);

    for (int32_t i = 0; i < i_stop; i++) {
        stop += strlen(stop) + 1; /* stop strings hold no NUL (proto/codec_pb.c) */
    }
    s->state = SESSION_ENDING;
    s->finished = (struct msg_finished){
        .reason = reason,
        .stop = i_stop >= 0 ? (struct msg_str){ stop, strlen(stop) } : (struct msg_str){ "", 0 },
        .prompt_tokens = s->entry->n_prompt,
        .completion_tokens = s->entry->n_emitted,
        .cached_tokens = cached_tokens,
        .queued_us = queued_us,
        .first_token_us = (first_ns - s->config.arrived_ns) / NS_PER_US,
        .total_us = (now_ns(s) - s->config.arrived_ns) / NS_PER_US,
    };
}

static status piece_add(struct session *s, const struct msg_token *t)
{
    struct msg_top *top = NULL;

    if (s->n_pieces == s->pieces_max) {
        const uint32_t n = s->pieces_max == 0 ? 8 : s->pieces_max * 2;
        struct msg_piece *pieces = realloc(s->pieces, n * sizeof(*pieces));
        if (pieces == NULL) {
            return ST_ERR_NOMEM;
        }
        s->pieces = pieces;
        s->pieces_max = n;
    }
    const uint32_t n_top = s->entry->want_logprobs ? MIN(t->n_top, s->entry->n_logprobs) : 0;
    if (n_top != 0) {
        top = arena_alloc(&s->tops, n_top * sizeof(*top));
        if (top == NULL) {
            return ST_ERR_LIMIT;
        }
    }
    for (uint32_t i = 0; i < n_top; i++) {
        size_t len = 0;
        const char *bytes = tokenizer_token_bytes(s->config.tok, t->top[i].id, &len);
        top[i] = (struct msg_top){ t->top[i].id, t->top[i].logprob, { bytes, len } };
    }
    s->pieces[s->n_pieces++] = (struct msg_piece){ .id = t->token,
                                                   .has_logprob = s->entry->want_logprobs,
                                                   .logprob = t->logprob,
                                                   .n_top = n_top,
                                                   .top = top };
    return ST_OK;
}

static bool is_stop_id(const struct journal_entry *e, uint32_t token)
{
    for (uint32_t i = 0; i < e->n_stop_ids; i++) {
        if (e->stop_ids[i] == token) {
            return true;
        }
    }
    return false;
}

/* Text that `token` (or the end, without one) completes, through the stop strings to pending.
 * *match_p: the stop string that it completed, or -1. */
static status text_add(struct session *s, const uint32_t *token, int32_t *match_p)
{
    struct buf made = BUF_INIT_MAX(1 << 20);
    int32_t match = -1;
    status st =
        token != NULL ? detok_push(&s->detok, *token, &made) : detok_flush(&s->detok, &made);

    if (st == ST_OK) {
        st = stop_push(s->stop, made.data, made.len, &s->text, &match);
    }
    if (st == ST_OK && token == NULL && match < 0) {
        st = stop_flush(s->stop, &s->text);
    }
    buf_fini(&made);
    if (st == ST_OK) {
        *match_p = match;
    }
    return st;
}

static status token_take(struct session *s, const struct msg_token *t, int32_t *match_p)
{
    status st = journal_append(s->entry, t->token);

    if (st == ST_OK) {
        st = piece_add(s, t);
    }
    /* A stop id ends the answer and is not part of its text; the leader's finish follows. */
    if (st == ST_OK && !is_stop_id(s->entry, t->token)) {
        st = text_add(s, &t->token, match_p);
    }
    return st;
}

bool session_token(struct session *s, const struct msg_token *t)
{
    int32_t match = -1;

    if (s->state != SESSION_RUNNING) {
        return false;
    }
    if (t->index < s->entry->n_emitted && t->token == s->entry->emitted[t->index]) {
        log_req(LOG_DEBUG, "stream", s->entry->request_id, "token %u came again, ignoring",
                t->index);
        return false;
    }
    if (t->index < s->entry->n_emitted && s->entry->n_profiles > 1) {
        log_req(LOG_DEBUG, "stream", s->entry->request_id,
                "token %u came again and differs, as other profiles may, ignoring", t->index);
        return false;
    }
    if (t->index < s->entry->n_emitted) { /* the promise of equal bits is broken */
        log_req(LOG_ERROR, "stream", s->entry->request_id,
                "token %u was %u and is %u in attempt %u: two replicas do not compute the same",
                t->index, s->entry->emitted[t->index], t->token, t->attempt);
        session_fail(s, ST_ERR_INTERNAL,
                     "a recomputed token differs from the one that was sent; this is a bug in "
                     "gantry, or a machine that computes wrongly");
        return true;
    }
    if (t->index != s->entry->n_emitted) {
        log_req(LOG_ERROR, "stream", s->entry->request_id,
                "token index %u came where %u was due (stream %llu, attempt %u)", t->index,
                s->entry->n_emitted, (unsigned long long)t->stream, t->attempt);
        session_fail(s, ST_ERR_INTERNAL,
                     "the replica sent tokens out of order; this is a bug in gantry");
        return true;
    }
    if (s->first_token_ns == 0) {
        s->first_token_ns = now_ns(s);
    }
    const status st = token_take(s, t, &match);
    if (st < 0) {
        session_fail(s, st,
                     st == ST_ERR_NOMEM
                         ? "the coordinator is out of memory"
                         : "the answer is too large for one message; use GenerateStream, or ask "
                           "for fewer log-probabilities");
        return true;
    }
    if (match >= 0) {
        end(s, FINISH_STOP, match, 0, 0);
        return true;
    }
    return false;
}

void session_finish(struct session *s, const struct msg_finish *f)
{
    int32_t match = -1;

    if (s->state != SESSION_RUNNING) {
        return;
    }
    if (f->reason != FINISH_STOP && f->reason != FINISH_LENGTH) {
        const status code = f->code < 0                     ? f->code
                            : f->reason == FINISH_CANCELLED ? ST_ERR_CANCELLED
                                                            : ST_ERR_INTERNAL;
        session_fail(s, code, f->text[0] != '\0' ? f->text : status_name(code));
        return;
    }
    const status st = text_add(s, NULL, &match);
    if (st < 0) {
        session_fail(s, st, "the coordinator is out of memory");
        return;
    }
    end(s, match >= 0 ? FINISH_STOP : f->reason, match, f->cached_tokens, f->queued_us);
}
