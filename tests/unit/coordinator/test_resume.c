/* Answers that outlive their client's connection: who may come back for them, from where, how long, and
 * what it costs the others. */
#include "unit/coordinator/coord_world.h"

static void open_kept(struct world *w, uint64_t window_ms)
{
    const struct coord_config more = { .resume_ns = window_ms * NS_PER_MS };

    world_open_as(w, 1, &more);
    rank_ready(rank_attach(w, 0));
    await_count(w, &w->n_states, 1);
    assert_int_equal(w->states[0], COORD_SERVING);
}

#define NAMED(p, id, ...)                                                                          \
    (&(struct msg_generate){ .prompt = { p, sizeof(p) - 1 }, .request_id = id, __VA_ARGS__ })
#define RESUME(id, from)                                                                           \
    (&(struct msg_generate){                                                                       \
        .prompt = { "", 0 }, .request_id = id, .resume = true, .resume_from = from })

/* A stream that has said "ab" and whose client is gone. */
static const struct msg_submit *leave(struct world *w, struct client *c)
{
    struct rank *r = &w->ranks[0];
    const uint32_t n_before = r->n_submits;

    ask(w, c, NAMED("wait", "me", .has_max_tokens = true, .max_tokens = 6), false, CLOCK_NEVER);
    await_count(w, &r->n_submits, n_before + 1);
    rank_token(r, &r->last, 0, 'a');
    rank_token(r, &r->last, 1, 'b');
    await_count(w, &c->n_tokens, 2);
    rpc_call_cancel(c->call);
    await(w, &c->is_done);
    settle_ms(w, 20);
    assert_int_equal(r->n_cancels, 0); /* it goes on */
    return &r->last;
}

static void test_resume__an_answer_goes_on_where_its_client_was(void **state UNUSED)
{
    struct world w;
    struct client c, d, e;

    open_kept(&w, 10000);
    const struct msg_submit *m = leave(&w, &c);
    assert_int_equal(m->deadline_us, 0);
    rank_token(&w.ranks[0], m, 2, 'c'); /* nobody is there */
    settle_ms(&w, 20);
    ask(&w, &d, RESUME("me", 1), false, CLOCK_NEVER);
    await_count(&w, &d.n_tokens, 2);
    assert_string_equal(d.text, "bc");
    assert_int_equal(d.first_token, 1);
    assert_true(d.first_byte == 1);
    assert_true(d.seed == c.seed);
    rank_token(&w.ranks[0], m, 3, 'd');
    rank_finish(&w.ranks[0], m, FINISH_LENGTH, ST_OK, "");
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_OK);
    assert_string_equal(d.text, "bcd");
    assert_int_equal(d.reason, FINISH_LENGTH);
    /* Complete it is kept, also for a unary call, which gets all of it. */
    ask(&w, &e, RESUME("me", 0), true, CLOCK_NEVER);
    await(&w, &e.is_done);
    assert_int_equal(e.st, ST_OK);
    assert_string_equal(e.text, "abcd");
    ask(&w, &e, RESUME("me", 4), false, CLOCK_NEVER); /* the end alone */
    await(&w, &e.is_done);
    assert_int_equal(e.st, ST_OK);
    assert_int_equal(e.n_tokens, 0);
    assert_int_equal(e.reason, FINISH_LENGTH);
    world_close(&w);
}

static void test_resume__who_is_ahead_waits_for_what_is_computed_again(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    const struct msg_submit *m = leave(&w, &c);
    ask(&w, &d, RESUME("me", 4), false, CLOCK_NEVER);
    await_count(&w, &d.n_messages, 1); /* started */
    assert_int_equal(d.n_tokens, 0);
    rank_token(&w.ranks[0], m, 2, 'c');
    rank_token(&w.ranks[0], m, 3, 'd');
    rank_token(&w.ranks[0], m, 4, 'e');
    await_count(&w, &d.n_tokens, 1);
    assert_string_equal(d.text, "e");
    rank_finish(&w.ranks[0], m, FINISH_LENGTH, ST_OK, "");
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_OK);
    ask(&w, &d, RESUME("me", 6), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_ARG);
    assert_non_null(strstr(d.error, "resume_from is 6 and the answer has ended after 5 tokens"));
    world_close(&w);
}

static void test_resume__the_newest_reader_reads(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    ask(&w, &c, NAMED("wait", "me", .has_max_tokens = true, .max_tokens = 6), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    const struct msg_submit *m = &w.ranks[0].last;
    rank_token(&w.ranks[0], m, 0, 'a');
    await_count(&w, &c.n_tokens, 1);
    ask(&w, &d, RESUME("me", 0), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_CANCELLED);
    assert_non_null(strstr(c.error, "another call has resumed"));
    rank_token(&w.ranks[0], m, 1, 'b');
    rank_finish(&w.ranks[0], m, FINISH_LENGTH, ST_OK, "");
    await(&w, &d.is_done);
    assert_string_equal(d.text, "ab");
    assert_int_equal(w.ranks[0].n_cancels, 0);
    world_close(&w);
}

static void test_resume__nobody_comes_and_it_ends(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 200);
    (void)leave(&w, &c);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &d, RESUME("me", 0), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_NOT_FOUND);
    assert_non_null(strstr(d.error, "\"me\""));
    world_close(&w);
}

static void test_resume__a_stop_string_ends_it_without_a_client(void **state UNUSED)
{
    static const struct msg_str stop = { "cd", 2 };
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    ask(&w, &c,
        NAMED("wait", "me", .has_max_tokens = true, .max_tokens = 6, .stop = &stop, .n_stop = 1),
        false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    rpc_call_cancel(c.call);
    await(&w, &c.is_done);
    settle_ms(&w, 20);
    for (uint32_t i = 0; i < 5; i++) {
        rank_token(&w.ranks[0], &w.ranks[0].last, i, (uint32_t) "abcde"[i]);
    }
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &d, RESUME("me", 1), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_OK);
    assert_string_equal(d.text, "b");
    assert_int_equal(d.n_tokens, 3); /* those that made the stop string are counted */
    assert_int_equal(d.reason, FINISH_STOP);
    world_close(&w);
}

static void test_resume__a_failure_is_kept_like_an_answer(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    const struct msg_submit *m = leave(&w, &c);
    rank_finish(&w.ranks[0], m, FINISH_FAILED, ST_ERR_LIMIT, "no KV for you");
    settle_ms(&w, 20);
    ask(&w, &d, RESUME("me", 2), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_LIMIT);
    assert_string_equal(d.error, "no KV for you");
    world_close(&w);
}

static void test_resume__a_deadline_is_an_end(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    ask(&w, &c, NAMED("wait", "me", .has_max_tokens = true, .max_tokens = 6), false,
        clock_now_ns(clock_real()) + 300 * NS_PER_MS);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_DEADLINE);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &d, RESUME("me", 0), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_DEADLINE);
    world_close(&w);
}

static void test_resume__an_id_is_free_when_its_answer_is_complete(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    (void)leave(&w, &c);
    ask(&w, &d, NAMED("hi", "me", .has_max_tokens = true, .max_tokens = 5), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_EXISTS); /* it runs, though nobody reads it */
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    settle_ms(&w, 20);
    ask(&w, &d, NAMED("hi", "me", .has_max_tokens = true, .max_tokens = 5), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_OK);
    assert_string_equal(d.text, "hello");
    ask(&w, &c, RESUME("me", 0), false, CLOCK_NEVER); /* the new one is what the name means now */
    await(&w, &c.is_done);
    assert_string_equal(c.text, "hello");
    world_close(&w);
}

static void test_resume__complete_answers_do_not_fill_the_queue(void **state UNUSED)
{
    struct world w;
    struct client c;
    char id[] = "a";

    open_kept(&w, 10000);
    for (; id[0] < 'a' + 2 * QUEUE; id[0]++) {
        ask(&w, &c, NAMED("hi", id, .has_max_tokens = true, .max_tokens = 2), false, CLOCK_NEVER);
        await(&w, &c.is_done);
        assert_int_equal(c.st, ST_OK);
    }
    world_close(&w);
}

static void test_resume__without_a_window_or_a_name_it_is_as_ever(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    world_serve(&w);
    ask(&w, &c, NAMED("wait", "me"), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    rpc_call_cancel(c.call);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &d, RESUME("me", 0), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_NOT_FOUND);
    assert_non_null(strstr(d.error, "--journal"));
    world_close(&w);

    open_kept(&w, 10000);
    ask(&w, &c, REQ("wait"), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    rpc_call_cancel(c.call);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &d, RESUME("", 0), false, CLOCK_NEVER);
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_ERR_ARG);
    world_close(&w);
}

/* ---- several answers to one request ---- */

#define RESUME_EACH(id, ...)                                                                       \
    (&(struct msg_generate){ .prompt = { "", 0 },                                                  \
                             .request_id = id,                                                     \
                             .resume = true,                                                       \
                             .n_resume_from_choices =                                              \
                                 ARRAY_LEN(((const uint32_t[]){ __VA_ARGS__ })),                   \
                             .resume_from_choices = (const uint32_t[]){ __VA_ARGS__ } })

struct three {
    struct msg_submit of[3];
};

/* Three streams that have said "ab", "c" and nothing, and whose client is gone. */
static struct three leave_three(struct world *w, struct client *c)
{
    struct rank *r = &w->ranks[0];
    const uint32_t n_before = r->n_submits;
    struct three t;

    ask(w, c, NAMED("wait", "me", .has_max_tokens = true, .max_tokens = 6, .has_n = true, .n = 3),
        false, CLOCK_NEVER);
    await_count(w, &r->n_submits, n_before + 3);
    assert_int_equal(r->last.choice, 2);
    for (uint32_t i = 0; i < 3; i++) {
        t.of[i] = r->last;
        t.of[i].stream = r->last.stream - 2 + i;
    }
    rank_token(r, &t.of[0], 0, 'a');
    rank_token(r, &t.of[0], 1, 'b');
    rank_token(r, &t.of[1], 0, 'c');
    await_count(w, &c->n_tokens, 3);
    rpc_call_cancel(c->call);
    await(w, &c->is_done);
    settle_ms(w, 20);
    assert_int_equal(r->n_cancels, 0); /* they go on */
    return t;
}

static void refused(struct world *w, const struct msg_generate *m, status st, const char *words)
{
    struct client c;

    ask(w, &c, m, false, CLOCK_NEVER);
    await(w, &c.is_done);
    assert_int_equal(c.st, st);
    if (strstr(c.error, words) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", words, c.error);
    }
}

static void test_resume__several_answers_go_on_each_at_its_place(void **state UNUSED)
{
    struct world w;
    struct client c, d, e;

    open_kept(&w, 10000);
    const struct three t = leave_three(&w, &c);
    struct rank *r = &w.ranks[0];
    refused(&w, RESUME("me", 1), ST_ERR_ARG, "the request has 3 choices; send resume_from_choices");
    refused(&w, RESUME_EACH("me", 1, 1), ST_ERR_ARG, "has 2 numbers and the request 3 choices");
    ask(&w, &d, RESUME_EACH("me", 1, 3, 0), false, CLOCK_NEVER); /* ahead of what is known of 1 */
    await_count(&w, &d.n_tokens, 1);
    assert_string_equal(d.text, "b");
    assert_int_equal(d.n_started, 1);
    rank_finish(r, &t.of[0], FINISH_LENGTH, ST_OK, "");
    rank_token(r, &t.of[1], 1, 'd');
    rank_token(r, &t.of[1], 2, 'e');
    rank_token(r, &t.of[1], 3, 'f');
    rank_finish(r, &t.of[1], FINISH_LENGTH, ST_OK, "");
    rank_token(r, &t.of[2], 0, 'g');
    settle_ms(&w, 20);
    assert_false(d.is_done);
    rank_finish(r, &t.of[2], FINISH_LENGTH, ST_OK, "");
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_OK);
    assert_string_equal(d.text, "bfg");
    assert_int_equal(d.n_finished, 3);
    /* Complete: all of it in one message, or the ends alone. */
    ask(&w, &e, RESUME("me", 0), true, CLOCK_NEVER);
    await(&w, &e.is_done);
    assert_int_equal(e.st, ST_OK);
    assert_string_equal(e.text, "ab"); /* choice 0's; the others are behind it */
    ask(&w, &e, RESUME_EACH("me", 2, 4, 1), false, CLOCK_NEVER);
    await(&w, &e.is_done);
    assert_int_equal(e.st, ST_OK);
    assert_int_equal(e.n_tokens, 0);
    assert_int_equal(e.n_finished, 3);
    refused(&w, RESUME_EACH("me", 2, 5, 1), ST_ERR_ARG,
            "resume_from_choices[1] is 5 and that choice has ended after 4 tokens");
    ask(&w, &e, RESUME("me", 0), false, CLOCK_NEVER); /* no numbers: all from the beginning */
    await(&w, &e.is_done);
    assert_int_equal(e.n_tokens, 7);
    assert_int_equal(r->n_cancels, 0);
    world_close(&w);
}

/* A whole answer whose connection broke is kept as well, and its parts are put together anew. */
static void test_resume__a_whole_answer_of_several(void **state UNUSED)
{
    struct world w;
    struct client c, d;

    open_kept(&w, 10000);
    struct rank *r = &w.ranks[0];
    ask(&w, &c, NAMED("one", "me", .has_max_tokens = true, .max_tokens = 5, .has_n = true, .n = 2),
        true, CLOCK_NEVER);
    await_count(&w, &r->n_submits, 2);
    settle_ms(&w, 20); /* choice 0 is complete and waits for the other */
    rpc_call_cancel(c.call);
    await(&w, &c.is_done);
    settle_ms(&w, 20);
    assert_int_equal(r->n_cancels, 0);
    ask(&w, &d, RESUME("me", 0), true, CLOCK_NEVER);
    settle_ms(&w, 20);
    assert_false(d.is_done);
    rank_token(r, &r->last, 0, 'x');
    rank_finish(r, &r->last, FINISH_LENGTH, ST_OK, "");
    await(&w, &d.is_done);
    assert_int_equal(d.st, ST_OK);
    assert_string_equal(d.text, "hello");
    assert_int_equal(d.n_messages, 1);
    world_close(&w);
}

static void test_resume__several_answers_fail_together(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_kept(&w, 10000);
    const struct three t = leave_three(&w, &c);
    rank_finish(&w.ranks[0], &t.of[1], FINISH_FAILED, ST_ERR_LIMIT, "no KV for you");
    await_count(&w, &w.ranks[0].n_cancels, 2);
    refused(&w, RESUME_EACH("me", 2, 1, 0), ST_ERR_LIMIT, "no KV for you");
    ask(&w, &c, NAMED("hi", "me", .has_max_tokens = true, .max_tokens = 5, .has_n = true, .n = 3),
        false, CLOCK_NEVER); /* all places are free again, and so is the name */
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_int_equal(c.n_finished, 3);
    /* A deadline that passes is a failure of all. */
    ask(&w, &c,
        NAMED("one", "late", .has_max_tokens = true, .max_tokens = 5, .has_n = true, .n = 3), false,
        clock_now_ns(clock_real()) + 300 * NS_PER_MS);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_DEADLINE);
    await_count(&w, &w.ranks[0].n_cancels, 4);
    refused(&w, RESUME("late", 0), ST_ERR_DEADLINE, "deadline");
    world_close(&w);
}

static void test_resume__nobody_comes_and_all_of_them_end(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_kept(&w, 200);
    (void)leave_three(&w, &c);
    await_count(&w, &w.ranks[0].n_cancels, 3);
    refused(&w, RESUME("me", 0), ST_ERR_NOT_FOUND, "\"me\"");
    ask(&w, &c, NAMED("hi", "me", .has_max_tokens = true, .max_tokens = 5, .has_n = true, .n = 3),
        false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume__an_answer_goes_on_where_its_client_was),
        cmocka_unit_test(test_resume__who_is_ahead_waits_for_what_is_computed_again),
        cmocka_unit_test(test_resume__the_newest_reader_reads),
        cmocka_unit_test(test_resume__nobody_comes_and_it_ends),
        cmocka_unit_test(test_resume__a_stop_string_ends_it_without_a_client),
        cmocka_unit_test(test_resume__a_failure_is_kept_like_an_answer),
        cmocka_unit_test(test_resume__a_deadline_is_an_end),
        cmocka_unit_test(test_resume__an_id_is_free_when_its_answer_is_complete),
        cmocka_unit_test(test_resume__complete_answers_do_not_fill_the_queue),
        cmocka_unit_test(test_resume__without_a_window_or_a_name_it_is_as_ever),
        cmocka_unit_test(test_resume__several_answers_go_on_each_at_its_place),
        cmocka_unit_test(test_resume__a_whole_answer_of_several),
        cmocka_unit_test(test_resume__several_answers_fail_together),
        cmocka_unit_test(test_resume__nobody_comes_and_all_of_them_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
