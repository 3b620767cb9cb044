/* tests/unit/worker/test_prefix.c - the prefix cache: what is shared, when, with whom, and what
 * gives way. The index is compiled in with a hash under which everything collides: what is found
 * must be equal, not merely look so. */
#include "base/hash.h"

#include <stdbool.h>

static bool all_collide;

static struct hash128 test_hash128(const void *data, size_t len)
{
    static const struct hash128 one = { { 1 } };

    return all_collide ? one : hash128_of(data, len);
}

#define hash128_of test_hash128
#include "worker/sched/prefix.c"
#undef hash128_of

#include "unit/worker/sched_bench.h"

/* Steps until nothing is left to do. */
static void finish(struct bench *b)
{
    while (b->n_out != 0 || next(b) != NULL) {
        done(b);
    }
}

static uint32_t pos0(const struct step_head *plan)
{
    assert_non_null(plan);
    return step_seqs_const(plan)[0].pos0;
}

static void test_prefix__a_kept_beginning_is_not_computed_again(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 60, 41), ST_OK); /* 100 positions are computed: 3 blocks */
    finish(&b);
    assert_int_equal(used(&b), 0);
    assert_int_equal(stats_of(&b).kv_blocks_cached, 3);
    assert_int_equal(submit(&b, 3, 40, 2), ST_OK);
    const struct step_head *plan = next(&b);
    assert_int_equal(pos0(plan), 32);
    assert_int_equal(plan->n_rows, 8);
    assert_int_equal(used(&b), 2);
    done(&b);
    assert_non_null(next(&b));
    const struct msg_events *events = done(&b);
    assert_int_equal(events->n_finishes, 1);
    assert_int_equal(events->finishes[0].cached_tokens, 32);
    const struct sched_stats stats = stats_of(&b);
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_int_equal(stats.kv_blocks_cached, 3);
    assert_int_equal(stats.cache_hits, 1);
    assert_int_equal(stats.cache_tokens, 32);
    teardown(&b);
}

static void test_prefix__the_last_token_is_always_computed(void **state UNUSED)
{
    static const uint32_t n_prompt[] = { 1, 32, 33, 64, 65, 96, 97 };
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 100, 1), ST_OK);
    finish(&b);
    for (uint32_t i = 0; i < ARRAY_LEN(n_prompt); i++) {
        assert_int_equal(submit(&b, 3 + i, n_prompt[i], 1), ST_OK);
        assert_int_equal(pos0(next(&b)), (n_prompt[i] - 1) / BLOCK * BLOCK);
        done(&b);
    }
    assert_int_equal(stats_of(&b).kv_blocks_cached, 3);
    teardown(&b);
}

static void test_prefix__answers_are_kept_too(void **state UNUSED)
{
    struct bench b;
    struct err err = ERR_INIT;
    uint32_t emitted[70];
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 10, 80), ST_OK);
    finish(&b);
    for (uint32_t i = 0; i < ARRAY_LEN(emitted); i++) {
        emitted[i] = fake_token(1, 10 + i);
    }
    /* The stream comes back, as it does when its replica was thought lost. */
    const struct msg_submit m = { .stream = 1,
                                  .attempt = 2,
                                  .n_prompt = 10,
                                  .prompt = ids,
                                  .n_emitted = ARRAY_LEN(emitted),
                                  .emitted = emitted,
                                  .max_tokens = 80 };
    assert_int_equal(sched_submit(b.s, &m, &err), ST_OK);
    assert_int_equal(pos0(next(&b)), 64);
    done(&b);
    finish(&b);
    teardown(&b);
}

static void test_prefix__only_what_has_come_back_is_shared(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.in_flight_max = 3;
    config.limits.rows_max = 128;
    setup(&b, config);

    assert_int_equal(submit(&b, 1, 70, 20), ST_OK);
    assert_int_equal(pos0(next(&b)), 0);
    assert_int_equal(submit(&b, 3, 70, 20), ST_OK);
    assert_int_equal(pos0(next(&b)), 0); /* the first plan is still out */
    assert_int_equal(used(&b), 6);
    done(&b);
    assert_int_equal(submit(&b, 5, 70, 20), ST_OK);
    const struct step_head *plan = next(&b); /* a decode row, then the new stream */
    assert_int_equal(plan->n_seqs + plan->n_rows, 1 + 1);
    plan = next(&b);
    assert_int_equal(pos0(plan), 64);
    assert_int_equal(used(&b), 7);
    done(&b); /* the second has computed what the first has: it lets go of its own */
    assert_int_equal(used(&b), 5);
    finish(&b);
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_prefix__scopes_do_not_share(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit_as(&b, 1, (struct actor){ .n_prompt = 40, .scope = 7 }, 1), ST_OK);
    finish(&b);
    assert_int_equal(submit_as(&b, 2, (struct actor){ .n_prompt = 40, .scope = 8 }, 1), ST_OK);
    assert_int_equal(pos0(next(&b)), 0);
    done(&b);
    assert_int_equal(submit(&b, 3, 40, 1), ST_OK);
    assert_int_equal(pos0(next(&b)), 0);
    done(&b);
    assert_int_equal(submit_as(&b, 4, (struct actor){ .n_prompt = 40, .scope = 7 }, 1), ST_OK);
    assert_int_equal(pos0(next(&b)), 32);
    done(&b);
    teardown(&b);
}

static void test_prefix__eviction_comes_before_preemption_and_waiting(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.kv_blocks = 8;
    setup(&b, config);

    assert_int_equal(submit(&b, 1, 200, 20), ST_OK); /* 6 full blocks stay */
    finish(&b);
    assert_int_equal(stats_of(&b).kv_blocks_cached, 6);
    for (uint32_t i = 0; i < 4; i++) { /* 4 x 2 blocks: all there are */
        const struct actor as = { .family = 500 + 100 * i, .n_prompt = 16 };
        assert_int_equal(submit_as(&b, 2 + i, as, 40), ST_OK);
    }
    const struct step_head *plan = next(&b);
    assert_int_equal(plan->n_seqs, 4);
    done(&b);
    finish(&b);
    assert_int_equal(stats_of(&b).preemptions, 0);
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_prefix__the_least_recently_used_goes_first_its_end_before_its_head(
    void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.kv_blocks = 8;
    setup(&b, config);

    assert_int_equal(submit(&b, 1, 97, 1), ST_OK); /* 3 blocks each */
    finish(&b);
    assert_int_equal(submit_as(&b, 3, (struct actor){ 900, .n_prompt = 97 }, 1), ST_OK);
    finish(&b);
    assert_int_equal(submit(&b, 5, 97, 1), ST_OK); /* the first is used again */
    assert_int_equal(pos0(next(&b)), 96);
    done(&b);
    assert_int_equal(stats_of(&b).kv_blocks_cached, 6);
    /* 4 blocks: the 2 that are free, and 2 of the second prompt. */
    assert_int_equal(submit_as(&b, 7, (struct actor){ 1800, .n_prompt = 120 }, 1), ST_OK);
    finish(&b);
    assert_int_equal(submit_as(&b, 9, (struct actor){ 900, .n_prompt = 97 }, 1), ST_OK);
    assert_int_equal(pos0(next(&b)), 32);
    done(&b);
    teardown(&b);
}

static void test_prefix__a_shared_block_lives_as_long_as_its_last_holder(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.kv_blocks = 4;
    setup(&b, config);

    assert_int_equal(submit(&b, 1, 40, 60), ST_OK);
    assert_non_null(next(&b));
    done(&b);
    assert_int_equal(submit(&b, 3, 40, 60), ST_OK);
    assert_non_null(next(&b));
    assert_int_equal(used(&b), 3); /* a common block and one each */
    done(&b);
    sched_cancel(b.s, 1, 1);
    assert_int_equal(used(&b), 2);
    assert_int_equal(submit_as(&b, 4, (struct actor){ 900, .n_prompt = 40 }, 24), ST_OK);
    finish(&b); /* the bench sees whose KV is read */
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_prefix__a_preempted_stream_goes_on_after_what_is_left_of_it(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.kv_blocks = 6;
    setup(&b, config);

    assert_int_equal(submit(&b, 1, 60, 40), ST_OK); /* grows to 4 blocks */
    assert_int_equal(submit_as(&b, 2, (struct actor){ 900, .n_prompt = 50 }, 60), ST_OK);
    finish(&b);
    const struct sched_stats stats = stats_of(&b);
    assert_true(stats.preemptions > 0);
    assert_int_equal(stats.cache_hits, stats.preemptions);
    assert_int_equal(stats.kv_blocks_used, 0);
    teardown(&b);
}

static void test_prefix__off_keeps_nothing(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.prefix_cache = false;
    setup(&b, config);

    for (uint64_t i = 1; i <= 3; i++) {
        assert_int_equal(submit(&b, i, 70, 4), ST_OK);
        assert_int_equal(pos0(next(&b)), 0);
        finish(&b);
        assert_int_equal(stats_of(&b).kv_blocks_cached, 0);
    }
    teardown(&b);
}

static void test_prefix__colliding_hashes_cost_time_and_no_answer(void **state UNUSED)
{
    struct sched_stats sum = { 0 };

    all_collide = true;
    for (uint64_t seed = 0; seed < 300; seed++) {
        one_random_life(seed, true, &sum);
    }
    all_collide = false;
    assert_true(sum.cache_hits > 100 && sum.preemptions > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix__a_kept_beginning_is_not_computed_again),
        cmocka_unit_test(test_prefix__the_last_token_is_always_computed),
        cmocka_unit_test(test_prefix__answers_are_kept_too),
        cmocka_unit_test(test_prefix__only_what_has_come_back_is_shared),
        cmocka_unit_test(test_prefix__scopes_do_not_share),
        cmocka_unit_test(test_prefix__eviction_comes_before_preemption_and_waiting),
        cmocka_unit_test(test_prefix__the_least_recently_used_goes_first_its_end_before_its_head),
        cmocka_unit_test(test_prefix__a_shared_block_lives_as_long_as_its_last_holder),
        cmocka_unit_test(test_prefix__a_preempted_stream_goes_on_after_what_is_left_of_it),
        cmocka_unit_test(test_prefix__off_keeps_nothing),
        cmocka_unit_test(test_prefix__colliding_hashes_cost_time_and_no_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
