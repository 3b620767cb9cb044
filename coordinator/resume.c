/* coordinator/resume.c - answers that outlive their client's connection.
 *
 *   client there ──its call is over──► nobody there ──resume──► client there
 *        │  ▲  another call resumes: the old one is told, the new one reads
 *        ▼                                  │ --resume-window
 *   answer complete ──nobody there──────────▼──────────► gone
 *
 * With --journal every stream whose client gave a request id is kept: its session goes on without a
 * sink, and the record of its answer stays until the window has passed since its end and since
 * somebody last read it. While it runs it counts against --queue like any other; of complete
 * answers KEPT_ANSWERS and KEPT_BYTES are kept, the oldest go first.
 *
 * Who resumes wins: a second reader is usually the same client, whose first connection is dead
 * without our knowing it. Answers of another principal do not exist for a caller. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEPT_ANSWERS = 1024, KEPT_BYTES = 256 << 20 };

bool resume_applies(const struct coord *c, const struct msg_generate *m)
{
    const bool is_one = !m->has_n || m->n <= 1; /* of several nobody could say where he was */

    return c->config.resume_ns != 0 && m->request_id[0] != '\0' && is_one;
}

/* ---- on disk ---- */

/* Wall time of a moment on our clock; it may have passed before this process began. */
static uint64_t wall_of(const struct coord *c, uint64_t at_ns)
{
    const uint64_t now = coord_now(c), ago_us = (now - MIN(at_ns, now)) / NS_PER_US;
    const uint64_t wall = clock_wall_us();

    return at_ns == 0 ? 0 : wall - MIN(ago_us, wall);
}

static uint64_t clock_of(const struct coord *c, uint64_t wall_us)
{
    const uint64_t wall = clock_wall_us(), now = coord_now(c);
    const uint64_t ago_ns = (wall - MIN(wall_us, wall)) * NS_PER_US;

    return wall_us == 0 ? 0 : now - MIN(ago_ns, now - 1);
}

static void stream_write(struct front_call *f)
{
    const struct coord *c = f->coord;
    struct msg_str stops[STOP_STRINGS_MAX];
    const struct journal_opening o = {
        .entry = f->entry,
        .stops = stops,
        .n_stops = session_stops(f->session, stops),
        .weights_digest = c->digest_hex,
        .arrived_us = wall_of(c, session_arrived_ns(f->session)),
    };

    journal_disk_stream(c->config.disk, &o);
    if (f->entry->profile[0] != '\0') {
        journal_disk_profile(c->config.disk, f->entry->stream, f->entry->profile, JOURNAL_PLACED);
        f->is_place_written = true;
    }
}

void resume_placed(struct front_call *f)
{
    struct journal_disk *disk = f->coord->config.disk;

    if (disk != NULL && f->entry->is_kept && !f->is_place_written) {
        journal_disk_profile(disk, f->entry->stream, f->entry->profile, JOURNAL_PLACED);
        f->is_place_written = true;
    }
}

static void end_write(const struct front_call *f)
{
    const struct coord *c = f->coord;
    const struct journal_ending end = {
        .finish = session_end(f->session),
        .first_token_us = wall_of(c, session_first_token_ns(f->session)),
        .ended_us = wall_of(c, f->over_ns),
    };

    journal_disk_end(c->config.disk, &end);
}

void resume_token(struct front_call *f, const struct msg_token *t, uint32_t n_before)
{
    const struct journal_entry *e = f->entry;

    if (f->coord->config.disk == NULL || !e->is_kept) {
        return;
    }
    for (; f->n_profiles_written < e->n_profiles; f->n_profiles_written++) {
        journal_disk_profile(f->coord->config.disk, e->stream, e->profiles[f->n_profiles_written],
                             JOURNAL_PRODUCED);
    }
    if (e->n_emitted > n_before) {
        journal_disk_token(f->coord->config.disk, t, e->want_logprobs,
                           e->want_logprobs ? MIN(t->n_top, e->n_logprobs) : 0);
    }
}

/* All of one answer, as its record has it. */
static void answer_write(struct front_call *f)
{
    const struct record *r = session_record(f->session);
    const struct journal_entry *e = f->entry;

    stream_write(f);
    for (uint32_t i = 0; i < e->n_profiles; i++) {
        journal_disk_profile(f->coord->config.disk, e->stream, e->profiles[i], JOURNAL_PRODUCED);
    }
    f->n_profiles_written = e->n_profiles;
    for (uint32_t i = 0; i < r->n; i++) {
        const struct msg_token t = { .stream = e->stream,
                                     .index = i,
                                     .token = r->tokens[i].id,
                                     .logprob = r->tokens[i].logprob,
                                     .top = r->tokens[i].top };
        journal_disk_token(f->coord->config.disk, &t, e->want_logprobs, r->tokens[i].n_top);
    }
    if (f->over_ns != 0) {
        end_write(f);
    }
}

static void snapshot(void *arg)
{
    struct coord *c = arg;

    for (struct front_call *f = c->kept; f != NULL; f = f->next_kept) {
        answer_write(f);
    }
}

void resume_freeze(struct coord *c)
{
    if (c->config.disk != NULL) {
        journal_disk_freeze(c->config.disk);
    }
}

/* ---- the list ---- */

static void link_kept(struct front_call *f)
{
    struct coord *c = f->coord;

    f->next_kept = c->kept;
    f->link_kept = &c->kept;
    if (c->kept != NULL) {
        c->kept->link_kept = &f->next_kept;
    }
    c->kept = f;
}

void resume_keep(struct front_call *f)
{
    const struct coord *c = f->coord;

    link_kept(f);
    if (c->config.disk != NULL) {
        stream_write(f);
    }
}

static void unlink_kept(struct front_call *f)
{
    *f->link_kept = f->next_kept;
    if (f->next_kept != NULL) {
        f->next_kept->link_kept = f->link_kept;
    }
    f->link_kept = NULL;
}

/* Nobody can ask for it any more. */
static void drop(struct front_call *f)
{
    ASSERT(f->call == NULL);
    if (f->coord->config.disk != NULL) {
        journal_disk_drop(f->coord->config.disk, f->entry->stream);
    }
    unlink_kept(f);
    front_close(f);
    front_bury(f);
}

uint32_t resume_count(const struct coord *c)
{
    uint32_t n = 0;

    for (const struct front_call *f = c->kept; f != NULL; f = f->next_kept) {
        n += f->over_ns != 0 ? 1 : 0;
    }
    return n;
}

/* ---- its client goes, its answer ends ---- */

void resume_settle(struct front_call *f)
{
    struct coord *c = f->coord;

    if (!session_is_complete(f->session) || f->over_ns != 0) {
        return;
    }
    f->over_ns = coord_now(c);
    if (c->config.disk != NULL) {
        end_write(f);
    }
    route_leave(c, f->entry);
    journal_retire(c->journal, f->entry);
}

void resume_left(struct front_call *f, bool is_late)
{
    struct coord *c = f->coord;
    const bool was_running = !session_is_complete(f->session);

    session_detach(f->session);
    f->left_ns = coord_now(c);
    if (was_running && is_late) {
        session_fail(f->session, ST_ERR_DEADLINE, "the deadline of its client has passed");
        front_settle(f, true);
    } else if (was_running) {
        log_req(LOG_INFO, "stream", f->entry->request_id,
                "its client is gone after %u tokens; it goes on for %llu s without one",
                f->entry->n_emitted, (unsigned long long)(c->config.resume_ns / NS_PER_S));
    }
}

static bool is_due(const struct front_call *f, uint64_t now)
{
    const uint64_t since = MAX(f->left_ns, f->over_ns);

    return f->call == NULL && now > since && now - since >= f->coord->config.resume_ns;
}

static void expire(struct front_call *f)
{
    if (f->over_ns == 0) {
        log_req(LOG_INFO, "stream", f->entry->request_id,
                "nobody came back for it, cancelled after %u tokens", f->entry->n_emitted);
        session_fail(f->session, ST_ERR_CANCELLED, "its client did not come back");
        front_settle(f, true);
    }
    drop(f);
}

void resume_tick(struct coord *c)
{
    const uint64_t now = coord_now(c);
    uint64_t bytes = 0;
    uint32_t n = 0;

    for (struct front_call *f = c->kept, *next; f != NULL; f = next) {
        next = f->next_kept;
        const bool is_idle = f->over_ns != 0 && f->call == NULL;
        if (is_idle) {
            n++;
            bytes += session_bytes(f->session);
        }
        if (is_due(f, now) || (is_idle && (n > KEPT_ANSWERS || bytes > KEPT_BYTES))) {
            expire(f);
        }
    }
}

void resume_fini(struct coord *c)
{
    while (c->kept != NULL) {
        c->kept->call = NULL;
        drop(c->kept);
    }
}

/* ---- somebody comes for it ---- */

static void let_go(struct front_call *f, const char *text)
{
    struct rpc_call *old = f->call;

    if (old != NULL) {
        rpc_call_set_user(old, NULL);
        f->call = NULL;
        session_detach(f->session);
        rpc_call_finish(old, ST_ERR_CANCELLED, text);
    }
}

void resume_make_way(struct coord *c, const char *request_id)
{
    const struct journal_entry *e = journal_find_request(c->journal, request_id);
    struct front_call *f = e != NULL ? e->owner : NULL;

    if (f == NULL || !e->is_retired || e->cache_scope != front_scope(c)) {
        return;
    }
    if (f->call == NULL || session_state(f->session) == SESSION_OVER) {
        let_go(f, "");
        drop(f);
    }
}

static status find(struct coord *c, const struct msg_generate *m, struct front_call **f_p,
                   struct err *err)
{
    const status st = resume_check(m, err);

    if (st < 0) {
        return st;
    }
    if (c->config.resume_ns == 0) {
        return err_set(err, ST_ERR_NOT_FOUND,
                       "this service keeps no answers to resume (gantry serve --journal)");
    }
    const struct journal_entry *e = journal_find_request(c->journal, m->request_id);
    if (e == NULL || !e->is_kept || e->owner == NULL || e->cache_scope != front_scope(c)) {
        return err_set(
            err, ST_ERR_NOT_FOUND,
            "no answer with request_id \"%s\" runs or is kept; answers are kept for %llu "
            "s (--resume-window)",
            m->request_id, (unsigned long long)(c->config.resume_ns / NS_PER_S));
    }
    *f_p = e->owner;
    return ST_OK;
}

void resume_request(struct coord *c, struct rpc_call *call, const struct msg_generate *m,
                    bool is_unary)
{
    const struct session_reader reader = { .is_unary = is_unary,
                                           .from = is_unary ? 0 : m->resume_from };
    struct session_reader with_sink = reader;
    struct front_call *f = NULL;
    struct err err = ERR_INIT;
    status st = find(c, m, &f, &err);

    if (st == ST_OK) {
        let_go(f, "another call has resumed this answer");
        with_sink.sink = front_sink(f);
        f->call = call;
        f->is_ended = false;
        f->n_ending = 1;
        rpc_call_set_user(call, f);
        st = session_attach(f->session, &with_sink, &err);
    }
    if (st < 0 && f != NULL) {
        f->call = NULL;
        rpc_call_set_user(call, NULL);
    }
    if (st < 0) {
        log_debug("front", "not resumed (%s): %s", status_name(st), err.text);
        rpc_call_finish(call, st, err.text);
        return;
    }
    log_req(LOG_INFO, "stream", f->entry->request_id, "resumed at token %u of %u", reader.from,
            f->entry->n_emitted);
    f->left_ns = 0;
}

/* ---- another coordinator's streams ---- */

static status stream_check(const struct coord *c, const struct journal_stream *s, struct err *err)
{
    const struct plan *plan = c->config.plan;

    if (!c->config.mixed_profiles && s->profile[0] != '\0' &&
        strcmp(s->profile, plan->profile) != 0) {
        return err_set(err, ST_ERR_MISMATCH, "it was computed with profile %s, this service has %s",
                       s->profile, plan->profile);
    }
    if (s->submit.n_prompt >= plan->ctx_max ||
        s->submit.max_tokens > plan->ctx_max - s->submit.n_prompt) {
        return err_set(err, ST_ERR_LIMIT, "%u and %u tokens, the context has %u",
                       s->submit.n_prompt, s->submit.max_tokens, plan->ctx_max);
    }
    for (uint32_t i = 0; i < s->submit.n_prompt; i++) {
        if (s->submit.prompt[i] >= c->desc->vocab) {
            return err_set(err, ST_ERR_ARG, "prompt token %u of %u", s->submit.prompt[i],
                           c->desc->vocab);
        }
    }
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        if (s->tokens[i].token >= c->desc->vocab) {
            return err_set(err, ST_ERR_ARG, "token %u of %u", s->tokens[i].token, c->desc->vocab);
        }
    }
    return ST_OK;
}

static status parameters_set(const struct journal_stream *s, struct journal_entry *e)
{
    const struct msg_submit *m = &s->submit;

    e->max_tokens = m->max_tokens;
    e->temperature = m->temperature;
    e->top_k = m->top_k;
    e->top_p = m->top_p;
    e->min_p = m->min_p;
    e->seed = m->seed;
    e->want_logprobs = m->want_logprobs;
    e->n_logprobs = m->n_logprobs;
    e->cache_scope = m->cache_scope;
    e->n_stop_ids = m->n_stop_ids;
    memcpy(e->stop_ids, m->stop_ids, m->n_stop_ids * sizeof(*m->stop_ids));
    e->exact = s->exact;
    snprintf(e->profile, sizeof(e->profile), "%s", s->profile);
    for (uint32_t i = 0; i < s->n_profiles; i++) {
        journal_note_profile(e, s->profiles[i]);
    }
    e->presence_penalty = m->presence_penalty;
    e->frequency_penalty = m->frequency_penalty;
    e->repetition_penalty = m->repetition_penalty;
    return journal_set_biases(e, m->biases, m->n_biases);
}

/* The session sees the tokens again, and comes to the same text. */
static void answer_replay(struct front_call *f, const struct journal_stream *s)
{
    const struct coord *c = f->coord;

    session_set_times(f->session, clock_of(c, s->first_token_us), clock_of(c, s->ended_us));
    for (uint32_t i = 0; i < s->n_tokens && front_is_running(f->entry); i++) {
        if (session_token(f->session, &s->tokens[i])) {
            break; /* it is complete, or not what it was: nobody computes it, nothing to cancel */
        }
    }
    if (s->has_end && front_is_running(f->entry)) {
        session_finish(f->session, &s->end);
    }
    session_set_times(f->session, session_first_token_ns(f->session), 0);
}

static status stream_restore(struct coord *c, const struct journal_stream *s, struct err *err)
{
    const struct session_config config = { .stop = s->stops,
                                           .n_stop = s->n_stops,
                                           .arrived_ns = clock_of(c, s->arrived_us) };
    struct journal_entry *e = NULL;
    struct front_call *f = NULL;
    status st = stream_check(c, s, err);

    if (st == ST_OK) {
        st = journal_open(c->journal, s->request_id, s->submit.prompt, s->submit.n_prompt, &e, err);
    }
    if (st != ST_OK) {
        return st;
    }
    ASSERT(e != NULL);
    e->attempt = s->attempt + 1; /* what the old coordinator's ranks still say does not count */
    e->is_kept = true;
    st = parameters_set(s, e);
    if (st == ST_OK) {
        st = front_restore(c, e, &config, &f, err);
    }
    if (st != ST_OK) {
        journal_close(c->journal, e);
        return st;
    }
    ASSERT(f != NULL);
    f->left_ns = coord_now(c);
    link_kept(f);
    answer_replay(f, s);
    return ST_OK;
}

static status streams_restore(struct coord *c, const struct journal_image *image, struct err *err)
{
    struct journal_stream **list = NULL;
    struct err why = ERR_INIT;
    uint32_t n_open = 0, n_over = 0;
    status st = journal_image_list(image, &list, err);

    for (uint32_t i = 0; st == ST_OK && i < image->n_streams; i++) {
        if (stream_restore(c, list[i], &why) < 0) {
            log_error("journal", "request %s cannot go on: %s", list[i]->request_id, why.text);
            continue;
        }
        const bool is_open = front_is_running(c->kept->entry);
        n_open += is_open ? 1 : 0;
        n_over += is_open ? 0 : 1;
    }
    free(list);
    if (st == ST_OK && n_open + n_over != 0) {
        log_info("journal", "%u streams go on where they were, %u complete answers are kept",
                 n_open, n_over);
    }
    return st;
}

status resume_restore(struct coord *c, struct err *err)
{
    status st = ST_OK;

    journal_number_from(c->journal, c->config.first_stream);
    if (c->config.image != NULL) {
        st = streams_restore(c, c->config.image, err);
    }
    if (st == ST_OK && c->config.disk != NULL) {
        journal_disk_begin(c->config.disk, snapshot, c);
    }
    for (struct front_call *f = c->kept; st == ST_OK && f != NULL; f = f->next_kept) {
        resume_settle(f);
    }
    return st;
}
