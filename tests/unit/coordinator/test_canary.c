/* The canary (coord_world.h): nobody serves without it, other bits are not let in, and an idle
 * replica that takes no work is found. */
#include "unit/coordinator/coord_world.h"

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct world *w = arg;

    w->n_lost++;
    w->last_lost = replica;
    w->last_delay_ns = delay_ns;
}

static void open_with(struct world *w, uint64_t canary_ns, uint64_t hang_ns)
{
    const struct coord_config more = { .n_replicas = 2,
                                       .restarts = 5,
                                       .canary_ns = canary_ns,
                                       .hang_ns = hang_ns,
                                       .on_lost = on_lost };
    world_open_as(w, 1, &more);
}

/* Heartbeats as an idle leader sends them, for `ms`. */
static void beat(struct world *w, uint32_t i, uint32_t ms)
{
    const struct msg_heartbeat beat = { .phase = "idle" };

    for (uint32_t t = 0; t < ms && !w->ranks[i].is_done; t += 20) {
        rank_say(&w->ranks[i], &(struct msg_rank){ MSG_HEARTBEAT, .heartbeat = beat });
        settle_ms(w, 20);
    }
}

static void test_canary__a_replica_serves_after_its_answer(void **state UNUSED)
{
    struct world w;

    open_with(&w, NS_PER_S, 0);
    w.ranks[0].is_mute = true;
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.ranks[0].n_submits, 1);
    settle_ms(&w, 50);
    assert_int_equal(w.n_states, 0);
    assert_int_equal(check(&w), HEALTH_NOT_SERVING);
    assert_true(w.ranks[0].last.max_tokens > 1 && w.ranks[0].last.want_logprobs);
    for (uint32_t i = 0; i < w.ranks[0].last.max_tokens; i++) {
        rank_token(&w.ranks[0], &w.ranks[0].last, i, 'x');
    }
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    await_count(&w, &w.n_states, 1);
    assert_int_equal(w.states[0], COORD_SERVING);
    assert_int_equal(check(&w), HEALTH_SERVING);
    world_close(&w);
}

static void test_canary__other_bits_are_not_let_in(void **state UNUSED)
{
    struct world w;

    open_with(&w, NS_PER_S, 0);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    w.ranks[1].logprob = 0x1p-25f; /* the last bit of -0.5 */
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &w.n_lost, 1);
    assert_int_equal(w.last_lost, 1);
    await(&w, &w.ranks[1].is_done);
    assert_non_null(strstr(w.ranks[1].done_text, "computes other bits: token 0"));
    assert_non_null(strstr(w.ranks[1].done_text, "on replica 0, host here"));
    assert_int_equal(check(&w), HEALTH_SERVING);
    world_close(&w);
}

static void test_canary__one_that_fails_is_a_loss_with_its_sentence(void **state UNUSED)
{
    struct world w;

    open_with(&w, NS_PER_S, 0);
    w.ranks[0].is_mute = true;
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.ranks[0].n_submits, 1);
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_FAILED, ST_ERR_INTERNAL, "broken");
    await(&w, &w.ranks[0].is_done);
    assert_non_null(strstr(w.ranks[0].done_text, "the canary got 0 of 4 tokens: broken"));
    world_close(&w);
}

static void test_canary__an_idle_leader_that_takes_no_work_is_found(void **state UNUSED)
{
    struct world w;

    open_with(&w, 50 * NS_PER_MS, 1500 * NS_PER_MS);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    beat(&w, 0, 200);
    assert_true(w.ranks[0].n_submits >= 2); /* idle for 50 ms: tried again */
    assert_int_equal(check(&w), HEALTH_SERVING);
    w.ranks[0].is_mute = true;
    for (uint32_t i = 0; i < 100 && w.n_lost == 0; i++) {
        beat(&w, 0, 40);
    }
    await(&w, &w.ranks[0].is_done);
    assert_int_equal(w.n_lost, 1);
    assert_non_null(strstr(w.ranks[0].done_text, "takes no work"));
    assert_int_equal(check(&w), HEALTH_NOT_SERVING);
    world_close(&w);
}

/* The answer of a canary before the last one proves nothing, and no client sees a token of any. */
static void test_canary__late_answers_are_dropped(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_with(&w, NS_PER_S, 0);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    struct msg_submit old = w.ranks[0].last;
    old.attempt--;
    rank_token(&w.ranks[0], &old, 0, '?');
    rank_finish(&w.ranks[0], &old, FINISH_FAILED, ST_ERR_INTERNAL, "late");
    ask(&w, &c, REQ("hi", .has_max_tokens = true, .max_tokens = 4), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "hell");
    assert_int_equal(w.n_lost, 0);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_canary__a_replica_serves_after_its_answer),
        cmocka_unit_test(test_canary__other_bits_are_not_let_in),
        cmocka_unit_test(test_canary__one_that_fails_is_a_loss_with_its_sentence),
        cmocka_unit_test(test_canary__an_idle_leader_that_takes_no_work_is_found),
        cmocka_unit_test(test_canary__late_answers_are_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
