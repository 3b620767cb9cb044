/* A session against a call that writes down what it is given, and that can be told to be busy. */
#include "coordinator/session.h"

#include "unit/coordinator/bytes_tok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

struct sink {
    bool is_busy, is_finished;
    bool is_gone;
    status st;
    uint32_t n_messages, n_tokens, n_started;
    char text[65536], error[600], stop[64];
    size_t text_len;
    enum finish_reason reason;
    struct msg_finished finished;
};

struct world {
    struct tokenizer *tok;
    struct journal *journal;
    struct journal_entry *entry;
    struct session *session;
    struct sink sink;
    uint32_t index;
};

static void sink_read(struct sink *k, const void *data, size_t len)
{
    struct arena arena = ARENA_INIT(64 << 20);
    struct err err = ERR_INIT;
    struct msg_chunk c;

    assert_int_equal(msg_chunk_unpack(data, len, &arena, &c, &err), ST_OK);
    assert_true(k->text_len + c.text.len < sizeof(k->text));
    memcpy(k->text + k->text_len, c.text.data, c.text.len);
    k->text_len += c.text.len;
    k->n_tokens += c.n_tokens;
    k->n_started += c.has_started;
    k->n_messages++;
    if (c.has_finished) {
        k->reason = c.finished.reason;
        k->finished = c.finished;
        snprintf(k->stop, sizeof(k->stop), "%s", c.finished.stop.data);
    }
    arena_fini(&arena);
}

static status fake_send(void *self, const void *data, size_t len)
{
    struct sink *k = self;

    assert_false(k->is_finished);
    if (k->is_gone) {
        return ST_ERR_PEER;
    }
    if (k->is_busy) {
        return ST_BUSY;
    }
    sink_read(k, data, len);
    return ST_OK;
}

static void fake_finish(void *self, status st, const char *text)
{
    struct sink *k = self;

    assert_false(k->is_finished);
    k->is_finished = true;
    k->st = st;
    snprintf(k->error, sizeof(k->error), "%s", text);
}

static void fake_reply(void *self, const void *data, size_t len)
{
    struct sink *k = self;

    assert_false(k->is_finished);
    k->is_finished = true;
    sink_read(k, data, len);
}

static struct world *world_make(bool is_unary, const char *stop)
{
    static const uint32_t prompt[] = { BYTES_BOS, 'x' };
    struct world *w = calloc(1, sizeof(*w));
    struct err err = ERR_INIT;

    assert_non_null(w);
    w->tok = bytes_tok_open(&err);
    if (w->tok == NULL) {
        fail_msg("%s", err.text);
    }
    assert_int_equal(journal_create(4, &w->journal, &err), ST_OK);
    assert_int_equal(journal_open(w->journal, "r", prompt, 2, &w->entry, &err), ST_OK);
    w->entry->stop_ids[0] = BYTES_EOS;
    w->entry->n_stop_ids = 1;
    w->entry->max_tokens = 100000;
    const struct msg_str stops = { stop, stop != NULL ? strlen(stop) : 0 };
    const struct session_config config = { .tok = w->tok,
                                           .clock = clock_real(),
                                           .entry = w->entry,
                                           .stop = &stops,
                                           .n_stop = stop != NULL,
                                           .weights_digest = "d",
                                           .model = "m",
                                           .is_unary = is_unary,
                                           .arrived_ns = clock_now_ns(clock_real()),
                                           .sink = { fake_send, fake_finish, fake_reply,
                                                     &w->sink } };
    assert_int_equal(session_create(&config, &w->session, &err), ST_OK);
    assert_false(session_start(w->session));
    return w;
}

static void world_free(struct world *w)
{
    session_destroy(w->session);
    journal_destroy(w->journal);
    tokenizer_close(w->tok);
    free(w);
}

static bool token(struct world *w, uint32_t id)
{
    const struct msg_token t = {
        .stream = w->entry->stream, .attempt = 1, .index = w->index++, .token = id, .logprob = -1.0f
    };
    return session_token(w->session, &t);
}

/* A step for each character. True: the leader is to be told to cancel. */
static bool say(struct world *w, const char *text)
{
    bool cancel = false;

    for (; *text != '\0'; text++) {
        cancel |= token(w, (unsigned char)*text);
        cancel |= session_flush(w->session);
    }
    return cancel;
}

static void finish(struct world *w, enum finish_reason reason, status code, const char *text)
{
    const struct msg_finish f = { .stream = w->entry->stream,
                                  .attempt = 1,
                                  .reason = reason,
                                  .code = code,
                                  .text = text,
                                  .cached_tokens = 7,
                                  .queued_us = 9 };

    session_finish(w->session, &f);
    assert_false(session_flush(w->session));
}

static void test_session__started_comes_before_any_token(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    assert_int_equal(w->sink.n_messages, 1);
    assert_int_equal(w->sink.n_started, 1);
    assert_false(say(w, "ab"));
    assert_int_equal(w->sink.n_messages, 3);
    assert_int_equal(w->sink.n_started, 1);
    world_free(w);
}

static void test_session__last_message_carries_reason_and_counts(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    assert_false(say(w, "ab"));
    finish(w, FINISH_LENGTH, ST_OK, "");
    assert_true(w->sink.is_finished);
    assert_int_equal(w->sink.st, ST_OK);
    assert_int_equal(w->sink.reason, FINISH_LENGTH);
    assert_int_equal(w->sink.finished.prompt_tokens, 2);
    assert_int_equal(w->sink.finished.completion_tokens, 2);
    assert_int_equal(w->sink.finished.cached_tokens, 7);
    assert_int_equal(w->sink.finished.queued_us, 9);
    assert_string_equal(w->sink.text, "ab");
    assert_int_equal(session_state(w->session), SESSION_OVER);
    world_free(w);
}

static void test_session__characters_are_never_cut(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    assert_false(say(w, "\xE2\x82"));
    assert_int_equal(w->sink.text_len, 0);
    assert_int_equal(w->sink.n_tokens, 2); /* ids do not wait for text */
    assert_false(say(w, "\xAC"));
    assert_string_equal(w->sink.text, "\xE2\x82\xAC");
    assert_false(say(w, "\xE2"));
    finish(w, FINISH_LENGTH, ST_OK, "");
    assert_string_equal(w->sink.text, "\xE2\x82\xAC\xEF\xBF\xBD");
    world_free(w);
}

static void test_session__a_stop_string_cuts_and_cancels(void **state UNUSED)
{
    struct world *w = world_make(false, "END");

    assert_false(say(w, "abEN"));
    assert_string_equal(w->sink.text, "ab");
    assert_true(say(w, "D"));
    assert_true(w->sink.is_finished);
    assert_int_equal(w->sink.reason, FINISH_STOP);
    assert_string_equal(w->sink.stop, "END");
    assert_int_equal(w->sink.finished.completion_tokens, 5);
    assert_false(say(w, "overshoot")); /* neither sent nor journaled */
    assert_string_equal(w->sink.text, "ab");
    assert_int_equal(w->entry->n_emitted, 5);
    world_free(w);
}

static void test_session__held_text_comes_out_at_the_end(void **state UNUSED)
{
    struct world *w = world_make(false, "END");

    assert_false(say(w, "abEN"));
    finish(w, FINISH_LENGTH, ST_OK, "");
    assert_string_equal(w->sink.text, "abEN");
    assert_int_equal(w->sink.reason, FINISH_LENGTH);
    world_free(w);
}

static void test_session__a_stop_id_is_a_token_but_no_text(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    w->entry->stop_ids[w->entry->n_stop_ids++] = '.';
    assert_false(say(w, "ab."));
    finish(w, FINISH_STOP, ST_OK, "");
    assert_string_equal(w->sink.text, "ab");
    assert_int_equal(w->sink.n_tokens, 3);
    assert_string_equal(w->sink.stop, "");
    world_free(w);
}

static void test_session__unary_is_one_message(void **state UNUSED)
{
    struct world *w = world_make(true, NULL);

    assert_false(say(w, "hello"));
    assert_int_equal(w->sink.n_messages, 0);
    finish(w, FINISH_LENGTH, ST_OK, "");
    assert_int_equal(w->sink.n_messages, 1);
    assert_int_equal(w->sink.n_started, 1);
    assert_int_equal(w->sink.n_tokens, 5);
    assert_string_equal(w->sink.text, "hello");
    world_free(w);
}

static void test_session__a_slow_client_gets_one_coalesced_message(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    w->sink.is_busy = true;
    assert_false(say(w, "0123456789"));
    assert_int_equal(w->sink.n_messages, 1);
    w->sink.is_busy = false;
    assert_false(session_writable(w->session));
    assert_int_equal(w->sink.n_messages, 2);
    assert_int_equal(w->sink.n_tokens, 10);
    assert_string_equal(w->sink.text, "0123456789");
    world_free(w);
}

static void test_session__the_end_waits_for_a_slow_client(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    w->sink.is_busy = true;
    assert_false(say(w, "ab"));
    finish(w, FINISH_LENGTH, ST_OK, "");
    assert_false(w->sink.is_finished);
    assert_int_equal(session_state(w->session), SESSION_ENDING);
    w->sink.is_busy = false;
    assert_false(session_writable(w->session));
    assert_true(w->sink.is_finished);
    assert_int_equal(w->sink.reason, FINISH_LENGTH);
    assert_string_equal(w->sink.text, "ab");
    world_free(w);
}

/* The call may be known to be over before its on_done: what is sent then is the first to hear of it, and
 * settles the stream, so it has to say that the leader must be told. */
static void test_session__a_call_that_is_gone_cancels(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    assert_false(say(w, "a"));
    w->sink.is_gone = true;
    assert_true(say(w, "b"));
    assert_int_equal(session_state(w->session), SESSION_OVER);
    assert_false(session_flush(w->session));
    world_free(w);
}

static void test_session__a_client_that_does_not_read_loses_its_stream(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);
    bool cancel = false;

    w->sink.is_busy = true;
    for (int i = 0; i < SESSION_BACKLOG_TOKENS + 1 && !cancel; i++) {
        cancel = say(w, "a");
        assert_true(cancel || !w->sink.is_finished);
    }
    assert_true(cancel);
    assert_true(w->sink.is_finished);
    assert_int_equal(w->sink.st, ST_ERR_LIMIT);
    assert_non_null(strstr(w->sink.error, "too slowly"));
    assert_int_equal(w->entry->n_emitted, SESSION_BACKLOG_TOKENS + 1);
    world_free(w);
}

static void test_session__a_gap_or_repetition_fails_the_stream(void **state UNUSED)
{
    for (uint32_t wrong = 0; wrong < 4; wrong += 3) { /* due is 2: 0 repeats, 3 skips */
        struct world *w = world_make(false, NULL);
        assert_false(say(w, "ab"));
        w->index = wrong;
        assert_true(token(w, 'c'));
        assert_int_equal(w->sink.st, ST_ERR_INTERNAL);
        assert_int_equal(w->entry->n_emitted, 2);
        world_free(w);
    }
}

static void test_session__a_recomputed_token_must_be_the_same(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    assert_false(say(w, "ab"));
    w->index = 1;
    assert_false(token(w, 'b')); /* it came again, and counts once */
    assert_int_equal(w->entry->n_emitted, 2);
    w->index = 1;
    assert_true(token(w, 'x'));
    assert_int_equal(w->sink.st, ST_ERR_INTERNAL);
    assert_non_null(strstr(w->sink.error, "differs from the one that was sent"));
    world_free(w);
}

static void test_session__the_leaders_sentence_reaches_the_client(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);

    finish(w, FINISH_FAILED, ST_ERR_LIMIT, "needs 9 KV blocks, there are 8");
    assert_int_equal(w->sink.st, ST_ERR_LIMIT);
    assert_string_equal(w->sink.error, "needs 9 KV blocks, there are 8");
    world_free(w);
}

static void test_journal__holds_what_a_second_attempt_needs(void **state UNUSED)
{
    struct world *w = world_make(false, NULL);
    struct err err = ERR_INIT;
    struct journal_entry *other;
    static const uint32_t one[] = { 1 };

    w->entry->seed = 77;
    w->entry->cache_scope = 88;
    w->entry->deadline_ns = 5000000;
    assert_false(say(w, "abc"));
    const struct msg_submit m = journal_submit(w->entry, 2000000);
    assert_int_equal(m.n_emitted, 3);
    assert_int_equal(m.emitted[2], 'c');
    assert_int_equal(m.n_prompt, 2);
    assert_int_equal(m.seed, 77);
    assert_int_equal(m.cache_scope, 88);
    assert_int_equal(m.deadline_us, 3000);
    assert_int_equal(journal_submit(w->entry, 9000000).deadline_us, 1); /* not "none" */
    assert_int_equal(journal_open(w->journal, "r", one, 1, &other, &err), ST_ERR_EXISTS);
    for (char id[] = "a"; id[0] < 'd'; id[0]++) {
        assert_int_equal(journal_open(w->journal, id, one, 1, &other, &err), ST_OK);
    }
    assert_int_equal(journal_open(w->journal, "e", one, 1, &other, &err), ST_ERR_LIMIT);
    journal_close(w->journal, journal_find_request(w->journal, "b"));
    assert_null(journal_find_request(w->journal, "b"));
    assert_ptr_equal(journal_find(w->journal, w->entry->stream), w->entry);
    assert_int_equal(journal_count(w->journal), 3);
    world_free(w);
}

/* What a journal has of another coordinator's answer was wall time, and somebody may have set that clock. */
static void test_session__times_out_of_their_order_are_none(void **state UNUSED)
{
    static const struct {
        int64_t first_s, ended_s; /* after its arrival */
        uint64_t first_us, total_us;
    } rows[] = {
        { 1, 3, 1000000, 3000000 },
        { -1, 3, 0, 3000000 }, /* the first token before the request */
        { 4, 3, 3000000, 3000000 },
        { -2, -1, 0, 0 },
    };

    for (uint32_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct world *w = world_make(false, NULL);
        const int64_t arrived_ns = (int64_t)session_arrived_ns(w->session);
        const int64_t s = (int64_t)NS_PER_S;
        session_set_times(w->session, (uint64_t)(arrived_ns + rows[i].first_s * s),
                          (uint64_t)(arrived_ns + rows[i].ended_s * s));
        finish(w, FINISH_LENGTH, ST_OK, "");
        assert_true(w->sink.finished.first_token_us == rows[i].first_us);
        assert_true(w->sink.finished.total_us == rows[i].total_us);
        world_free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session__times_out_of_their_order_are_none),
        cmocka_unit_test(test_session__started_comes_before_any_token),
        cmocka_unit_test(test_session__last_message_carries_reason_and_counts),
        cmocka_unit_test(test_session__characters_are_never_cut),
        cmocka_unit_test(test_session__a_stop_string_cuts_and_cancels),
        cmocka_unit_test(test_session__held_text_comes_out_at_the_end),
        cmocka_unit_test(test_session__a_stop_id_is_a_token_but_no_text),
        cmocka_unit_test(test_session__unary_is_one_message),
        cmocka_unit_test(test_session__a_slow_client_gets_one_coalesced_message),
        cmocka_unit_test(test_session__the_end_waits_for_a_slow_client),
        cmocka_unit_test(test_session__a_call_that_is_gone_cancels),
        cmocka_unit_test(test_session__a_client_that_does_not_read_loses_its_stream),
        cmocka_unit_test(test_session__a_gap_or_repetition_fails_the_stream),
        cmocka_unit_test(test_session__a_recomputed_token_must_be_the_same),
        cmocka_unit_test(test_session__the_leaders_sentence_reaches_the_client),
        cmocka_unit_test(test_journal__holds_what_a_second_attempt_needs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
