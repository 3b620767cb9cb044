/* coordinator/resume.c - answers that outlive their client's connection.
 *
 *   client there ──its call is over──► nobody there ──resume──► client there
 *        │  ▲  another call resumes: the old one is told, the new one reads
 *        ▼                                  │ --resume-window
 *   answer complete ──nobody there──────────▼──────────► gone
 *
 * With --journal every request whose client gave it an id is kept: its session goes on without a
 * sink, and the record of its answer stays until the window has passed since its end and since
 * somebody last read it. While it runs it counts against --queue like any other; of complete
 * answers KEPT_ANSWERS and KEPT_BYTES are kept, the oldest go first.
 *
 * Several answers to one request (choices.c) are one thing here: choice 0 is in the list, a client reads
 * all of them or none, each from its own place on, and the first that fails fails the others.
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
    return c->config.resume_ns != 0 && m->request_id[0] != '\0';
}

bool resume_is_over(const struct front_call *head)
{
    const struct front_call *f = head;

    while (f != NULL && f->over_ns != 0) {
        f = f->next_choice;
    }
    return f == NULL;
}

/* ---- the list ---- */

void resume_link(struct front_call *f)
{
    struct coord *c = f->coord;

    f->next_kept = c->kept;
    f->link_kept = &c->kept;
    if (c->kept != NULL) {
        c->kept->link_kept = &f->next_kept;
    }
    c->kept = f;
}

void resume_keep(struct front_call *head)
{
    resume_link(head);
    if (head->coord->config.disk != NULL) {
        resume_write(head);
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
static void drop(struct front_call *head)
{
    ASSERT(head->call == NULL);
    if (head->coord->config.disk != NULL) {
        journal_disk_drop(head->coord->config.disk, head->entry->stream);
    }
    unlink_kept(head);
    for (struct front_call *f = head->next_choice; f != NULL; f = f->next_choice) {
        front_close(f);
        front_bury(f);
    }
    front_close(head);
    front_bury(head);
}

uint32_t resume_count(const struct coord *c)
{
    uint32_t n = 0;

    for (const struct front_call *head = c->kept; head != NULL; head = head->next_kept) {
        n += resume_is_over(head) ? 1 : 0;
    }
    return n;
}

/* ---- its client goes, its answer ends ---- */

/* What is not complete fails. */
static void fail_rest(struct front_call *head, status st, const char *text)
{
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        if (!session_is_complete(f->session)) {
            session_fail(f->session, st, text);
            front_settle(f, true);
        }
    }
}

void resume_settle(struct front_call *f)
{
    struct coord *c = f->coord;

    if (!session_is_complete(f->session) || f->over_ns != 0) {
        return;
    }
    f->over_ns = coord_now(c);
    if (c->config.disk != NULL && !f->is_end_written) {
        resume_write_end(f);
    }
    route_leave(c, f->entry);
    journal_retire(c->journal, f->entry);
    const struct msg_finish end = session_end(f->session);
    if (end.reason == FINISH_FAILED) { /* half of what was asked for is not an answer */
        fail_rest(f->head, end.code, end.text);
    }
}

/* No call reads it any more. */
static void readers_go(struct front_call *head)
{
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        f->call = NULL;
        session_detach(f->session);
        buf_fini(&f->reply); /* the next one has it made anew */
    }
}

void resume_left(struct front_call *head, bool is_late)
{
    readers_go(head);
    head->left_ns = coord_now(head->coord);
    if (resume_is_over(head)) {
        return;
    }
    if (is_late) {
        fail_rest(head, ST_ERR_DEADLINE, "the deadline of its client has passed");
        return;
    }
    log_req(LOG_INFO, "stream", head->entry->request_id,
            "its client is gone after %u tokens; it goes on for %llu s without one",
            head->entry->n_emitted, (unsigned long long)(head->coord->config.resume_ns / NS_PER_S));
}

static bool is_due(const struct front_call *head, uint64_t now)
{
    uint64_t since = head->left_ns;

    for (const struct front_call *f = head; f != NULL && resume_is_over(head); f = f->next_choice) {
        since = MAX(since, f->over_ns);
    }
    return head->call == NULL && clock_since(now, since) >= head->coord->config.resume_ns;
}

static void expire(struct front_call *head)
{
    if (!resume_is_over(head)) {
        log_req(LOG_INFO, "stream", head->entry->request_id,
                "nobody came back for it, cancelled after %u tokens", head->entry->n_emitted);
        fail_rest(head, ST_ERR_CANCELLED, "its client did not come back");
    }
    drop(head);
}

static uint64_t bytes_of(const struct front_call *head)
{
    uint64_t bytes = 0;

    for (const struct front_call *f = head; f != NULL; f = f->next_choice) {
        bytes += session_bytes(f->session);
    }
    return bytes;
}

void resume_tick(struct coord *c)
{
    const uint64_t now = coord_now(c);
    uint64_t bytes = 0;
    uint32_t n = 0;

    for (struct front_call *head = c->kept, *next; head != NULL; head = next) {
        next = head->next_kept;
        const bool is_idle = head->call == NULL && resume_is_over(head);
        if (is_idle) {
            n++;
            bytes += bytes_of(head);
        }
        if (is_due(head, now) || (is_idle && (n > KEPT_ANSWERS || bytes > KEPT_BYTES))) {
            expire(head);
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

static void let_go(struct front_call *head, const char *text)
{
    struct rpc_call *old = head->call;

    if (old != NULL) {
        rpc_call_set_user(old, NULL);
        readers_go(head);
        rpc_call_finish(old, ST_ERR_CANCELLED, text);
    }
}

/* Its reader, if there is one, has been sent all of it. */
static bool is_read(const struct front_call *head)
{
    const struct front_call *f = head;

    while (f != NULL && session_state(f->session) == SESSION_OVER) {
        f = f->next_choice;
    }
    return head->call == NULL || f == NULL;
}

void resume_make_way(struct coord *c, const char *request_id)
{
    const struct journal_entry *e = journal_find_request(c->journal, request_id);
    struct front_call *head = e != NULL ? e->owner : NULL;

    if (head != NULL && e->is_kept && resume_is_over(head) && e->cache_scope == front_scope(c) &&
        is_read(head)) {
        let_go(head, "");
        drop(head);
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

/* The first token of this answer that the caller wants. */
static uint32_t place_of(const struct msg_generate *m, const struct front_call *f, bool is_unary)
{
    if (is_unary) {
        return 0; /* the whole answer, in one message */
    }
    return m->n_resume_from_choices != 0 ? m->resume_from_choices[f->entry->choice]
                                         : m->resume_from;
}

static status places_check(const struct msg_generate *m, const struct front_call *head,
                           bool is_unary, struct err *err)
{
    status st = ST_OK;

    if (!is_unary && m->resume_from != 0 && head->n_choices > 1) {
        return err_set(err, ST_ERR_ARG,
                       "resume_from is %u and the request has %u choices; send resume_from_choices",
                       m->resume_from, head->n_choices);
    }
    if (!is_unary && m->n_resume_from_choices != 0 && m->n_resume_from_choices != head->n_choices) {
        return err_set(
            err, ST_ERR_ARG,
            "resume_from_choices has %u numbers and the request %u choices; send one for "
            "each, or none",
            m->n_resume_from_choices, head->n_choices);
    }
    for (const struct front_call *f = head; st == ST_OK && f != NULL; f = f->next_choice) {
        st = session_resumable(f->session, place_of(m, f, is_unary), err);
    }
    return st;
}

static void readers_come(struct front_call *head, struct rpc_call *call,
                         const struct msg_generate *m, bool is_unary)
{
    head->is_ended = false;
    head->n_ending = head->n_choices;
    head->left_ns = 0;
    rpc_call_set_user(call, head);
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        f->call = call;
    }
    for (struct front_call *f = head; f != NULL && head->call != NULL; f = f->next_choice) {
        const struct session_reader reader = { .sink = front_sink(f),
                                               .is_unary = is_unary,
                                               .from = place_of(m, f, is_unary) };
        log_req(LOG_INFO, "stream", f->entry->request_id, "choice %u resumed at token %u of %u",
                f->entry->choice, reader.from, f->entry->n_emitted);
        session_attach(f->session, &reader); /* it may find that the call is over */
    }
}

void resume_request(struct coord *c, struct rpc_call *call, const struct msg_generate *m,
                    bool is_unary)
{
    struct front_call *head = NULL;
    struct err err = ERR_INIT;
    status st = find(c, m, &head, &err);

    if (st == ST_OK) {
        st = places_check(m, head, is_unary, &err);
    }
    if (st < 0) {
        log_debug("front", "not resumed (%s): %s", status_name(st), err.text);
        rpc_call_finish(call, st, err.text);
        return;
    }
    let_go(head, "another call has resumed this answer");
    readers_come(head, call, m, is_unary);
}
