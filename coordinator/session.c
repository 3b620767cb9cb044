/* coordinator/session.c - see session.h. */
#include "coordinator/session.h"

#include "base/log.h"
#include "model/detok.h"
#include "model/stop.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SCRATCH_BYTES = 256 << 20 };

struct session {
    struct session_config config; /* config.stop is not kept */
    struct journal_entry *entry;  /* borrowed */
    enum session_state state;
    struct detok detok;
    struct stop *stop;  /* owned */
    char *stop_strings; /* owned: NUL-terminated, one behind the other, for `finished` */

    struct record record; /* pending is what it holds from i_next on */
    struct arena scratch; /* of the message being made */
    uint32_t i_next;      /* first token that this client has not been sent */
    bool has_reader;      /* there is a sink */
    bool is_blocked;      /* the sink said ST_BUSY */
    bool may_start;       /* what it says is known */
    bool has_started;     /* `started` was sent */

    struct msg_finished finished; /* valid from ENDING on */
    uint64_t first_token_ns;      /* 0: none yet */
    uint64_t ended_ns;            /* 0: now, when it ends */
    status fail_code;             /* < 0: OVER by a failure */
    char *fail_text;              /* owned */
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
    s->scratch = (struct arena)ARENA_INIT(SCRATCH_BYTES);
    s->has_reader = config->sink.send != NULL;
    record_init(&s->record);
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
    free(s->fail_text);
    record_fini(&s->record);
    arena_fini(&s->scratch);
    free(s);
}

enum session_state session_state(const struct session *s)
{
    return s->state;
}

uint32_t session_stops(const struct session *s, struct msg_str stops_p[STOP_STRINGS_MAX])
{
    const char *at = s->stop_strings;

    for (uint32_t i = 0; i < s->config.n_stop; i++) {
        stops_p[i] = (struct msg_str){ at, strlen(at) };
        at += stops_p[i].len + 1;
    }
    return s->config.n_stop;
}

const struct record *session_record(const struct session *s)
{
    return &s->record;
}

struct journal_entry *session_entry(const struct session *s)
{
    return s->entry;
}

static uint64_t now_ns(const struct session *s)
{
    return clock_now_ns(s->config.clock);
}

bool session_is_complete(const struct session *s)
{
    return s->state != SESSION_RUNNING;
}

uint64_t session_arrived_ns(const struct session *s)
{
    return s->config.arrived_ns;
}

uint64_t session_first_token_ns(const struct session *s)
{
    return s->first_token_ns;
}

void session_set_times(struct session *s, uint64_t first_token_ns, uint64_t ended_ns)
{
    s->first_token_ns = first_token_ns;
    s->ended_ns = ended_ns;
}

size_t session_bytes(const struct session *s)
{
    return sizeof(*s) + record_bytes(&s->record);
}

struct msg_finish session_end(const struct session *s)
{
    struct msg_finish f = { .stream = s->entry->stream,
                            .attempt = s->entry->attempt,
                            .reason = s->finished.reason,
                            .text = "",
                            .cached_tokens = s->finished.cached_tokens,
                            .queued_us = s->finished.queued_us };

    ASSERT(session_is_complete(s));
    if (s->fail_code < 0) {
        f.reason = FINISH_FAILED;
        f.code = s->fail_code;
        f.text = s->fail_text != NULL ? s->fail_text : status_name(s->fail_code);
    }
    return f;
}

/* ---- out ---- */

void session_fail(struct session *s, status st, const char *text)
{
    if (s->state == SESSION_OVER) {
        return;
    }
    s->state = SESSION_OVER;
    s->fail_code = st;
    if (s->config.is_kept) {
        s->fail_text = strdup(text); /* NULL: the code's name will have to do */
    }
    log_req(LOG_DEBUG, "stream", s->entry->request_id, "failed after %u tokens: %s: %s",
            s->entry->n_emitted, status_name(st), text);
    if (s->has_reader) {
        s->config.sink.finish(s->config.sink.self, st, text);
    }
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

void session_detach(struct session *s)
{
    ASSERT(s->config.is_kept);
    s->has_reader = false;
}

/* What went wrong is between us and this client; a kept answer has no part in it. True: tell the
 * leader to cancel. */
static bool reader_fail(struct session *s, status st, const char *text)
{
    const bool was_running = s->state == SESSION_RUNNING;

    if (s->config.is_kept) {
        s->has_reader = false;
        s->config.sink.finish(s->config.sink.self, st, text);
        return false;
    }
    session_fail(s, st, text);
    return was_running;
}

/* Tokens [i_next, to), and the end if that is the end. */
static status chunk_make(struct session *s, bool has_started, uint32_t to, struct msg_chunk *c)
{
    const bool is_last = s->state == SESSION_ENDING && to == record_end(&s->record);
    const struct record_range range = { s->i_next, to, is_last, s->entry->want_logprobs };

    memset(c, 0, sizeof(*c));
    arena_reset(&s->scratch);
    c->has_started = has_started;
    if (has_started) {
        c->started = (struct msg_started){ .request_id = s->entry->request_id,
                                           .profile = s->entry->profile,
                                           .weights_digest = s->config.weights_digest,
                                           .model = s->config.model,
                                           .seed = s->entry->seed,
                                           .prompt_tokens = s->entry->n_prompt,
                                           .resume_window_s = s->config.window_s,
                                           .n = s->config.n_choices };
    }
    c->choice = s->entry->choice;
    c->has_finished = is_last;
    c->finished = s->finished;
    const char **profiles = arena_alloc(&s->scratch, MSG_PROFILES_MAX * sizeof(*profiles));
    if (profiles == NULL) {
        return ST_ERR_LIMIT;
    }
    profiles_fill(s, &c->finished, profiles);
    return record_chunk(&s->record, range, s->config.tok, &s->scratch, c);
}

/* The whole answer in one message. */
static void reply(struct session *s)
{
    struct buf out = BUF_INIT_MAX(MSG_BYTES_MAX);
    struct msg_chunk chunk;
    status st = chunk_make(s, !s->has_started, record_end(&s->record), &chunk);

    if (st == ST_OK) {
        st = msg_response_pack(&chunk, &out);
    }
    if (st < 0) {
        (void)reader_fail(s, ST_ERR_LIMIT,
                          "the answer is too large for one message; use GenerateStream, or ask for "
                          "fewer log-probabilities");
    } else {
        s->state = SESSION_OVER;
        s->config.sink.reply(s->config.sink.self, out.data, out.len);
    }
    buf_fini(&out);
}

static void sent(struct session *s, uint32_t to, bool was_last)
{
    s->has_started = true;
    s->i_next = to;
    if (!s->config.is_kept && to == record_end(&s->record)) {
        record_forget(&s->record);
    }
    if (was_last) {
        s->state = SESSION_OVER;
        s->config.sink.finish(s->config.sink.self, ST_OK, "");
    }
}

/* One message. ST_BUSY: the sink has no room. ST_END: this client gets no more. */
static status send_one(struct session *s, bool *cancel_p)
{
    const uint32_t end = record_end(&s->record);
    const uint32_t known = MAX(end, s->i_next); /* a client may be ahead of what we know */
    const uint32_t to = MIN(known, s->i_next + SESSION_MESSAGE_TOKENS);
    struct buf out = BUF_INIT_MAX(MSG_BYTES_MAX);
    struct msg_chunk chunk;
    status st = ST_OK;

    if (s->i_next > end) { /* `started` alone */
        const uint32_t i_next = s->i_next;
        s->i_next = end;
        st = chunk_make(s, true, end, &chunk);
        s->i_next = i_next;
        chunk.token_offset = i_next;
    } else {
        st = chunk_make(s, !s->has_started, to, &chunk);
    }
    if (st == ST_OK) {
        st = msg_chunk_pack(&chunk, &out);
    }
    if (st == ST_OK) {
        st = s->config.sink.send(s->config.sink.self, out.data, out.len);
    }
    buf_fini(&out);
    if (st == ST_OK) {
        sent(s, to, chunk.has_finished);
        return chunk.has_finished ? ST_END : ST_OK;
    }
    if (st == ST_BUSY) {
        s->is_blocked = true;
        return st;
    }
    if (st ==
        ST_ERR_PEER) { /* the call is over, and its on_done will find nothing left to cancel */
        *cancel_p = !s->config.is_kept && s->state == SESSION_RUNNING;
        s->has_reader = false;
        s->state = s->config.is_kept ? s->state : SESSION_OVER;
        return ST_END;
    }
    *cancel_p = reader_fail(s, st, "the answer does not fit a message");
    return ST_END;
}

static bool has_pending(const struct session *s)
{
    const uint32_t end = record_end(&s->record);

    return (!s->has_started && s->may_start) || s->i_next < end ||
           (s->state == SESSION_ENDING && s->i_next == end);
}

static bool send_pending(struct session *s)
{
    bool cancel = false;

    while (has_pending(s) && send_one(s, &cancel) == ST_OK) {
    }
    return cancel;
}

bool session_start(struct session *s)
{
    const bool is_over = s->state == SESSION_OVER || s->has_started || s->is_blocked;

    s->may_start = true;
    return s->config.is_unary || is_over || !s->has_reader ? false : send_pending(s);
}

/* The answer is complete and has fewer tokens than its client says that it has. */
static status far_set(const struct session *s, uint32_t from, struct err *err)
{
    const uint32_t end = record_end(&s->record), choice = s->entry->choice;

    if (s->config.n_choices > 1) {
        return err_set(err, ST_ERR_ARG,
                       "resume_from_choices[%u] is %u and that choice has ended after %u tokens",
                       choice, from, end);
    }
    return err_set(err, ST_ERR_ARG, "resume_from is %u and the answer has ended after %u tokens",
                   from, end);
}

static void refuse_far(struct session *s)
{
    struct err err = ERR_INIT;

    (void)reader_fail(s, far_set(s, s->i_next, &err), err.text);
}

bool session_flush(struct session *s)
{
    if (s->state == SESSION_OVER || !s->has_reader) {
        return false;
    }
    if (s->state == SESSION_ENDING && s->i_next > record_end(&s->record)) {
        refuse_far(s);
        return false;
    }
    if (s->config.is_unary) {
        if (s->state == SESSION_ENDING) {
            reply(s);
        }
        return false;
    }
    if (s->is_blocked) {
        if (!s->config.is_kept && record_end(&s->record) - s->i_next > SESSION_BACKLOG_TOKENS) {
            return reader_fail(
                s, ST_ERR_LIMIT,
                "the client reads too slowly: more than 4096 tokens are waiting for it");
        }
        return false;
    }
    return send_pending(s);
}

status session_resumable(const struct session *s, uint32_t from, struct err *err)
{
    ASSERT(s->config.is_kept);
    if (s->fail_code < 0) {
        return err_set(err, s->fail_code, "%s",
                       s->fail_text != NULL ? s->fail_text : status_name(s->fail_code));
    }
    return s->state != SESSION_RUNNING && from > record_end(&s->record) ? far_set(s, from, err)
                                                                        : ST_OK;
}

void session_attach(struct session *s, const struct session_reader *reader)
{
    ASSERT(!s->has_reader && session_resumable(s, reader->from, NULL) == ST_OK);
    s->state = s->state == SESSION_OVER ? SESSION_ENDING : s->state;
    s->config.sink = reader->sink;
    s->config.is_unary = reader->is_unary;
    s->i_next = reader->from;
    s->has_reader = true;
    s->may_start = s->entry->profile[0] != '\0';
    s->has_started = s->entry->choice != 0;
    s->is_blocked = false;
    const bool cancel = session_flush(s);
    ASSERT(!cancel); /* no failure of a reader ends a kept answer */
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
    const uint64_t ended_ns = s->ended_ns != 0 ? s->ended_ns : now_ns(s);
    /* Of an answer out of the journal these were wall times, which an adjusted clock puts out of their order. */
    const uint64_t first_ns = s->first_token_ns != 0 ? MIN(s->first_token_ns, ended_ns) : ended_ns;

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
        .first_token_us = clock_since(first_ns, s->config.arrived_ns) / NS_PER_US,
        .total_us = clock_since(ended_ns, s->config.arrived_ns) / NS_PER_US,
    };
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
        st = stop_push(s->stop, made.data, made.len, &s->record.text, &match);
    }
    if (st == ST_OK && token == NULL && match < 0) {
        st = stop_flush(s->stop, &s->record.text);
    }
    buf_fini(&made);
    if (st == ST_OK) {
        *match_p = match;
    }
    return st;
}

static status token_take(struct session *s, const struct msg_token *t, int32_t *match_p)
{
    const uint32_t n_top = s->entry->want_logprobs ? MIN(t->n_top, s->entry->n_logprobs) : 0;
    status st = journal_append(s->entry, t->token);

    if (st == ST_OK) {
        st = record_add(&s->record, t, n_top);
    }
    /* A stop id ends the answer and is not part of its text; the leader's finish follows. */
    if (st == ST_OK && !is_stop_id(s->entry, t->token)) {
        st = text_add(s, &t->token, match_p);
        record_seal(&s->record);
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
