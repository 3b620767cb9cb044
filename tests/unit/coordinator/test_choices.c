/* Several answers to one request (coord_world.h): streams of their own that share a call, an id and
 * an end. */
#include "unit/coordinator/coord_world.h"

#define THREE(p, ...) REQ(p, .has_n = true, .n = 3, __VA_ARGS__)

static void test_choices__each_answer_comes_under_its_number(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, THREE("hi", .has_max_tokens = true, .max_tokens = 12, .has_seed = true, .seed = 5),
        false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_int_equal(c.n_started, 1);
    assert_int_equal(c.n_finished, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(c.tokens_of[i], 12);
        assert_int_equal(c.ends_of[i], 1);
    }
    assert_int_equal(w.ranks[0].n_submits, 3);
    assert_int_equal(w.ranks[0].choices, 7);
    assert_int_equal(w.ranks[0].last.seed, 5);
    assert_int_equal(w.ranks[0].last.n_prompt, 3);
    assert_int_equal(w.ranks[0].n_cancels, 0);
    world_close(&w);
}

static void test_choices__a_whole_answer_waits_for_all(void **state UNUSED)
{
    struct world w;
    struct client c, held;

    world_serve(&w);
    ask(&w, &c, THREE("hi", .has_max_tokens = true, .max_tokens = 6), true, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_int_equal(c.n_messages, 1);
    assert_string_equal(c.text, "hello "); /* choice 0's, where it always was */
    assert_int_equal(c.n_finished, 1);
    ask(&w, &held, THREE("one", .has_max_tokens = true, .max_tokens = 6), true, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 6);
    settle_ms(&w, 50);
    assert_false(held.is_done);
    rpc_call_cancel(held.call);
    await(&w, &held.is_done);
    await_count(&w, &w.ranks[0].n_cancels, 2);
    world_close(&w);
}

/* Choice 0 is over long before the others; its name is theirs as well. */
static void test_choices__the_request_id_is_free_when_the_last_is_over(void **state UNUSED)
{
    struct msg_generate m =
        *REQ("one", .has_n = true, .n = 2, .has_max_tokens = true, .max_tokens = 6);
    struct world w;
    struct client c, other;

    m.request_id = "mine";
    world_serve(&w);
    ask(&w, &c, &m, false, CLOCK_NEVER);
    await_count(&w, &c.n_finished, 1);
    assert_int_equal(c.ends_of[0], 1);
    m.has_n = false;
    ask(&w, &other, &m, false, CLOCK_NEVER);
    await(&w, &other.is_done);
    assert_int_equal(other.st, ST_ERR_EXISTS);
    rpc_call_cancel(c.call);
    await(&w, &c.is_done);
    await_count(&w, &w.ranks[0].n_cancels, 1); /* not the one that had ended */
    ask(&w, &other, &m, false, CLOCK_NEVER);
    await(&w, &other.is_done);
    assert_int_equal(other.st, ST_OK);
    world_close(&w);
}

static void test_choices__the_first_failure_is_everybodys(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    for (uint32_t unary = 0; unary < 2; unary++) {
        ask(&w, &c, THREE("c"), unary != 0, CLOCK_NEVER);
        await(&w, &c.is_done);
        assert_int_equal(c.st, ST_ERR_LIMIT);
        assert_string_equal(c.error, "no KV for you");
        await_count(&w, &w.ranks[0].n_cancels, 2 + unary * 2);
    }
    ask(&w, &c, THREE("hi", .has_max_tokens = true, .max_tokens = 2), false, CLOCK_NEVER);
    await(&w, &c.is_done); /* all places in the queue are free again */
    assert_int_equal(c.st, ST_OK);
    assert_int_equal(w.ranks[0].n_cancels, 4);
    world_close(&w);
}

static void test_choices__all_of_them_are_admitted_or_none(void **state UNUSED)
{
    struct world w;
    struct client c, waiting;

    world_serve(&w);
    ask(&w, &c, REQ("hi", .has_n = true, .n = 4), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_LIMIT);
    assert_non_null(strstr(c.error, "n is 4 and 0 of 3 streams are open"));
    ask(&w, &waiting, REQ("wait"), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    ask(&w, &c, THREE("hi"), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_LIMIT);
    assert_int_equal(w.ranks[0].n_submits, 1);
    ask(&w, &c, REQ("hi", .has_n = true, .n = 2, .has_max_tokens = true, .max_tokens = 2), false,
        CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    ask(&w, &c, REQ("hi", .has_n = true, .n = 17), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_ARG);
    assert_string_equal(c.error, "n is 17; 1 .. 16 is allowed");
    world_close(&w);
}

static void test_choices__a_client_that_leaves_cancels_every_one(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, THREE("wait"), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 3);
    rpc_call_cancel(c.call);
    await(&w, &c.is_done);
    await_count(&w, &w.ranks[0].n_cancels, 3);
    ask(&w, &c, THREE("wait"), false, clock_now_ns(clock_real()) + 200 * NS_PER_MS);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_DEADLINE);
    await_count(&w, &w.ranks[0].n_cancels, 6);
    world_close(&w);
}

/* ---- a replica is lost ---- */

static void on_lost(void *arg UNUSED, uint32_t replica UNUSED, uint64_t delay_ns UNUSED)
{
}

static void open_two(struct world *w, uint32_t retries)
{
    const struct coord_config more = {
        .n_replicas = 2, .retries = retries, .restarts = 5, .on_lost = on_lost
    };

    world_open_as(w, 1, &more);
    rank_ready(rank_attach(w, 0));
    await_count(w, &w->n_states, 1);
    rank_ready(rank_attach(w, 1));
    await_count(w, &w->ranks[1].n_welcomes, 1);
    settle_ms(w, 20);
}

static void lose(struct world *w, uint32_t i)
{
    rpc_call_cancel(w->ranks[i].call);
    await(w, &w->ranks[i].is_done);
    w->ranks[i].call = NULL;
}

/* Every choice goes on by itself, with its number and all of its parameters. */
static void test_choices__move_with_their_parameters(void **state UNUSED)
{
    static const struct msg_bias biases[] = { { 5, 1.5f }, { 9, -100.0f } };
    struct world w;
    struct client c;

    open_two(&w, 3);
    ask(&w, &c,
        THREE("wait", .has_max_tokens = true, .max_tokens = 4, .has_presence_penalty = true,
              .presence_penalty = 0.5f, .has_frequency_penalty = true, .frequency_penalty = -0.25f,
              .has_repetition_penalty = true, .repetition_penalty = 1.5f, .n_biases = 2,
              .biases = biases),
        false, CLOCK_NEVER);
    for (int i = 0; i < 2000 && w.ranks[0].n_submits + w.ranks[1].n_submits < 3; i++) {
        settle_ms(&w, 5);
    }
    const uint32_t n_moved = w.ranks[0].n_submits, n_there = w.ranks[1].n_submits;
    assert_int_equal(n_moved + n_there, 3);
    assert_true(n_moved > 0);
    lose(&w, 0);
    await_count(&w, &w.ranks[1].n_submits, 3);
    assert_int_equal(w.ranks[1].choices, 7);
    const struct msg_submit *m = &w.ranks[1].last;
    assert_int_equal(m->attempt, 2);
    assert_true(m->presence_penalty == 0.5f && m->frequency_penalty == -0.25f);
    assert_true(m->repetition_penalty == 1.5f);
    assert_int_equal(m->n_biases, 2);
    rpc_call_cancel(c.call);
    await(&w, &c.is_done);
    await_count(&w, &w.ranks[1].n_cancels, 3);
    world_close(&w);
}

/* The one that may not be moved again takes the others with it, in the middle of the walk over all
 * streams. */
static void test_choices__fail_together_when_they_may_not_move(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_two(&w, 0);
    ask(&w, &c, THREE("wait", .has_max_tokens = true, .max_tokens = 4), false, CLOCK_NEVER);
    for (int i = 0; i < 2000 && w.ranks[0].n_submits + w.ranks[1].n_submits < 3; i++) {
        settle_ms(&w, 5);
    }
    const uint32_t n_there = w.ranks[1].n_submits;
    lose(&w, 0);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    assert_non_null(strstr(c.error, "moved at most 0 times"));
    await_count(&w, &w.ranks[1].n_cancels, n_there);
    ask(&w, &c, THREE("hi", .has_max_tokens = true, .max_tokens = 2), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices__each_answer_comes_under_its_number),
        cmocka_unit_test(test_choices__a_whole_answer_waits_for_all),
        cmocka_unit_test(test_choices__the_request_id_is_free_when_the_last_is_over),
        cmocka_unit_test(test_choices__the_first_failure_is_everybodys),
        cmocka_unit_test(test_choices__all_of_them_are_admitted_or_none),
        cmocka_unit_test(test_choices__a_client_that_leaves_cancels_every_one),
        cmocka_unit_test(test_choices__move_with_their_parameters),
        cmocka_unit_test(test_choices__fail_together_when_they_may_not_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
