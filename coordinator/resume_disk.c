/* coordinator/resume_disk.c - answers that outlive their coordinator: what of them goes to the journal on
 * disk (journal_disk.h), and the streams of another coordinator's journal, which go on here without a
 * client until one comes (resume.c).
 *
 * A session that sees the same tokens again comes to the same text, so text is not written. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- written ---- */

/* Wall time of a moment on our clock; it may have passed before this process began. */
static uint64_t wall_of(const struct coord *c, uint64_t at_ns)
{
    const uint64_t ago_us = clock_since(coord_now(c), at_ns) / NS_PER_US;
    const uint64_t wall = clock_wall_us();

    return at_ns == 0 ? 0 : wall - MIN(ago_us, wall);
}

static uint64_t clock_of(const struct coord *c, uint64_t wall_us)
{
    const uint64_t wall = clock_wall_us(), now = coord_now(c);
    const uint64_t ago_ns = (wall - MIN(wall_us, wall)) * NS_PER_US;

    return wall_us == 0 ? 0 : now - MIN(ago_ns, now - 1);
}

static void place_write(struct front_call *head)
{
    journal_disk_profile(head->coord->config.disk, head->entry->stream, head->entry->profile,
                         JOURNAL_PLACED);
    head->is_place_written = true;
}

void resume_write(struct front_call *head)
{
    const struct coord *c = head->coord;
    struct msg_str stops[STOP_STRINGS_MAX];
    const struct journal_opening o = {
        .entry = head->entry,
        .stops = stops,
        .n_stops = session_stops(head->session, stops),
        .n_choices = head->n_choices,
        .weights_digest = c->digest_hex,
        .arrived_us = wall_of(c, session_arrived_ns(head->session)),
    };

    for (const struct front_call *f = head; f != NULL; f = f->next_choice) {
        ASSERT(f->entry->stream == head->entry->stream + f->entry->choice); /* journal_disk.h */
    }
    journal_disk_stream(c->config.disk, &o);
    if (head->entry->profile[0] != '\0') {
        place_write(head);
    }
}

void resume_placed(struct front_call *head)
{
    if (head->coord->config.disk == NULL) {
        return;
    }
    if (!head->is_place_written) {
        place_write(head);
    }
    journal_disk_flush(head->coord->config.disk);
}

void resume_write_end(const struct front_call *f)
{
    const struct coord *c = f->coord;
    const struct journal_ending end = {
        .finish = session_end(f->session),
        .first_token_us = wall_of(c, session_first_token_ns(f->session)),
        .ended_us = wall_of(c, f->over_ns != 0 ? f->over_ns : coord_now(c)),
    };

    journal_disk_end(c->config.disk, &end);
}

void resume_before_send(struct front_call *f)
{
    struct journal_disk *disk = f->coord->config.disk;

    if (disk == NULL) {
        return;
    }
    if (f->entry != NULL && f->entry->is_kept && session_is_complete(f->session) &&
        f->over_ns == 0 && !f->is_end_written) {
        resume_write_end(f);
        f->is_end_written = true;
    }
    journal_disk_flush(disk);
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

/* One answer, as its record has it. */
static void answer_write(struct front_call *f)
{
    const struct record *r = session_record(f->session);
    const struct journal_entry *e = f->entry;

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
    if (f->over_ns != 0 || f->is_end_written) {
        resume_write_end(f);
    }
}

static void snapshot(void *arg)
{
    struct coord *c = arg;

    canary_write(c);
    for (struct front_call *head = c->kept; head != NULL; head = head->next_kept) {
        resume_write(head);
        for (struct front_call *f = head; f != NULL; f = f->next_choice) {
            answer_write(f);
        }
    }
}

void resume_freeze(struct coord *c)
{
    if (c->config.disk != NULL) {
        journal_disk_freeze(c->config.disk);
    }
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
    if (s->weights_digest[0] != '\0' && strcmp(s->weights_digest, c->digest_hex) != 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "it was computed with weights %s, another one in this journal with %s",
                       s->weights_digest, c->digest_hex);
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
    for (uint32_t i = 0; i < m->n_stop_ids; i++) {
        e->stop_ids[i] = m->stop_ids[i];
    }
    e->exact = s->exact;
    snprintf(e->profile, sizeof(e->profile), "%s", s->profile);
    e->presence_penalty = m->presence_penalty;
    e->frequency_penalty = m->frequency_penalty;
    e->repetition_penalty = m->repetition_penalty;
    return journal_set_biases(e, m->biases, m->n_biases);
}

/* A write that was cut may have the last token and not the end that came with it. */
static struct msg_finish end_of(const struct journal_stream *s)
{
    struct msg_finish f = { .stream = s->stream, .reason = FINISH_NONE, .text = "" };

    if (s->has_end) {
        return s->end;
    }
    for (uint32_t i = 0; s->n_tokens != 0 && i < s->submit.n_stop_ids; i++) {
        if (s->tokens[s->n_tokens - 1].token == s->submit.stop_ids[i]) {
            f.reason = FINISH_STOP;
        }
    }
    if (f.reason == FINISH_NONE && s->n_tokens == s->submit.max_tokens) {
        f.reason = FINISH_LENGTH;
    }
    return f;
}

/* The session sees the tokens again, and comes to the same text. */
static status answer_replay(struct front_call *f, const struct journal_stream *s)
{
    const struct coord *c = f->coord;
    const struct msg_finish end = end_of(s);

    session_set_times(f->session, clock_of(c, s->first_token_us), clock_of(c, s->ended_us));
    for (uint32_t i = 0; i < s->n_tokens && front_is_running(f->entry); i++) {
        if (session_token(f->session, &s->tokens[i])) {
            break; /* it is complete, or not what it was: nobody computes it, nothing to cancel */
        }
    }
    if (session_is_complete(f->session) && session_end(f->session).code == ST_ERR_NOMEM) {
        return ST_ERR_NOMEM;
    }
    if (end.reason != FINISH_NONE && front_is_running(f->entry)) {
        session_finish(f->session, &end);
    }
    session_set_times(f->session, session_first_token_ns(f->session), 0);
    return ST_OK;
}

/* One answer without a client; `head` has those of its request that came before. */
static status choice_restore(struct coord *c, const struct journal_stream *s,
                             struct front_call **head, struct err *err)
{
    const struct session_config config = { .stop = s->stops,
                                           .n_stop = s->n_stops,
                                           .n_choices = s->n_choices,
                                           .arrived_ns = clock_of(c, s->arrived_us) };
    struct journal_entry *e = NULL;
    struct front_call *f = NULL;
    status st =
        *head == NULL
            ? journal_open(c->journal, s->request_id, s->submit.prompt, s->submit.n_prompt, &e, err)
            : journal_open_choice(c->journal, (*head)->entry, s->submit.choice, &e, err);

    if (st != ST_OK) {
        return st;
    }
    ASSERT(e != NULL);
    e->is_kept = true;
    st = *head == NULL ? parameters_set(s, e) : ST_OK;
    e->attempt = s->attempt + 1; /* what the old coordinator's ranks still say does not count */
    for (uint32_t i = 0; i < s->n_profiles; i++) {
        journal_note_profile(e, s->profiles[i]);
    }
    if (st == ST_OK) {
        st = front_restore(c, e, &config, &f, err);
    }
    if (st != ST_OK) {
        journal_close(c->journal, e);
        return st;
    }
    if (*head == NULL) {
        *head = f;
    } else {
        choices_add(*head, f);
    }
    return ST_OK;
}

/* The n answers to one request. */
static status request_restore(struct coord *c, struct journal_stream *const *list, uint32_t n,
                              struct err *err)
{
    struct front_call *head = NULL;
    status st = ST_OK;

    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        st = stream_check(c, list[i], err);
    }
    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        st = choice_restore(c, list[i], &head, err);
    }
    if (st != ST_OK) {
        front_undo(head);
        return st;
    }
    ASSERT(head != NULL);
    head->left_ns = coord_now(c);
    resume_link(head);
    for (struct front_call *f = head; f != NULL && st == ST_OK; f = f->next_choice) {
        st = answer_replay(f, list[f->entry->choice]);
    }
    if (st != ST_OK) {
        return err_set(err, st, "no memory for its tokens");
    }
    for (struct front_call *f = head; f != NULL; f = f->next_choice) {
        resume_settle(f); /* the snapshot that follows has its end */
    }
    return ST_OK;
}

/* Half an answer is worth nothing without the weights that the other half came from: ranks that have
 * others are refused. */
static void digest_expect(struct coord *c, const struct journal_stream *s)
{
    struct hash128 digest;

    if (c->digest_hex[0] == '\0' && hash128_read(s->weights_digest, &digest)) {
        coord_expect_digest(c, &digest);
        log_info("journal", "its streams have weights %s; ranks that have others are refused",
                 c->digest_hex);
    }
}

static status streams_restore(struct coord *c, const struct journal_image *image, struct err *err)
{
    struct journal_stream **list = NULL;
    struct err why = ERR_INIT;
    uint32_t n_requests = 0, n_answers = 0, n_open = 0;
    status st = journal_image_list(image, &list, err);

    for (uint32_t i = 0; st == ST_OK && i < image->n_streams; i += list[i]->n_choices) {
        digest_expect(c, list[i]);
        const status restored = request_restore(c, list + i, list[i]->n_choices, &why);
        if (restored == ST_ERR_NOMEM) { /* nothing is written yet: the next start may have more */
            st =
                err_set(err, restored, "request %s, %s (the journal keeps it)", list[i]->request_id,
                        why.text[0] != '\0' ? why.text : "no memory to go on with it");
            break;
        }
        if (restored < 0) {
            log_error("journal", "request %s cannot go on: %s", list[i]->request_id, why.text);
            continue;
        }
        n_requests++;
        for (const struct front_call *f = c->kept; f != NULL; f = f->next_choice) {
            n_answers++;
            n_open += front_is_running(f->entry) ? 1 : 0;
        }
    }
    free(list);
    if (st == ST_OK && n_requests != 0) {
        log_info("journal",
                 "%u streams go on where they were, %u complete answers are kept (%u requests)",
                 n_open, n_answers - n_open, n_requests);
    }
    return st;
}

status resume_restore(struct coord *c, struct err *err)
{
    status st = ST_OK;

    journal_number_from(c->journal, c->config.first_stream);
    if (c->config.image != NULL) { /* all of it, however many are complete: they were accepted */
        canary_restore(c, c->config.image);
        journal_set_bound(c->journal, UINT32_MAX);
        st = streams_restore(c, c->config.image, err);
        journal_set_bound(c->journal, c->config.queue_max);
    }
    if (st == ST_OK && c->config.disk != NULL) {
        journal_disk_begin(c->config.disk, snapshot, c);
    }
    return st;
}
