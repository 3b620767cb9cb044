/* tests/unit/worker/test_sched.c - the scheduler against scripted steps: what it promises, and
 * 2,000 random lives. */
#include "unit/worker/sched_bench.h"

/* ---- claims ---- */

static void test_sched__what_never_fits_is_refused_at_once(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 250, 7), ST_ERR_LIMIT); /* context */
    assert_int_equal(submit(&b, 1, 250, 6), ST_OK);        /* just fits */
    b.config.kv_blocks = 16;
    teardown(&b);

    struct sched_config config = small_config();
    config.kv_blocks = 4; /* 128 positions */
    setup(&b, config);
    assert_int_equal(submit(&b, 1, 100, 30), ST_ERR_LIMIT); /* KV: 129 positions */
    assert_int_equal(submit(&b, 1, 100, 29), ST_OK);
    teardown(&b);
}

static void test_sched__the_queue_is_bounded(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());

    for (uint64_t i = 1; i <= 8; i++) {
        assert_int_equal(submit(&b, i, 4, 4), ST_OK);
    }
    assert_int_equal(submit(&b, 9, 4, 4), ST_ERR_LIMIT);
    assert_int_equal(submit(&b, 3, 4, 4), ST_ERR_LIMIT);
    assert_non_null(next(&b));
    assert_int_equal(submit(&b, 3, 4, 4), ST_ERR_EXISTS);
    assert_int_equal(submit(&b, 9, 4, 4), ST_OK);
    teardown(&b);
}

static void test_sched__a_prompt_is_cut_into_chunks_and_sampled_once(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.chunk_max = 7;
    setup(&b, config);

    assert_int_equal(submit(&b, 1, 20, 2), ST_OK);
    static const uint32_t rows[] = { 7, 7, 6, 1 };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        const struct step_head *plan = next(&b);
        assert_non_null(plan);
        assert_int_equal(plan->n_rows, rows[i]);
        assert_int_equal(plan->n_samples, i >= 2);
        const struct msg_events *events = done(&b);
        assert_int_equal(events->n_tokens, i >= 2);
        assert_int_equal(events->n_finishes, i == 3);
    }
    assert_true(sched_is_idle(b.s));
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_sched__decode_rows_ride_beside_prompt_chunks(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 4, 10), ST_OK);
    assert_non_null(next(&b));
    done(&b);
    assert_int_equal(submit(&b, 2, 200, 10), ST_OK);
    const struct step_head *plan = next(&b);
    assert_int_equal(plan->n_seqs, 2);
    assert_int_equal(plan->n_rows, 64); /* 1 decode row and 63 of the prompt */
    assert_int_equal(step_seqs_const(plan)[0].stream, 1);
    assert_int_equal(step_seqs_const(plan)[0].n_rows, 1);
    teardown(&b);
}

static void test_sched__a_cancelled_stream_frees_its_blocks_within_one_step(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 40, 100), ST_OK);
    assert_non_null(next(&b));
    assert_true(used(&b) > 0);
    sched_cancel(b.s, 1, 2); /* another attempt: not this stream */
    sched_cancel(b.s, 1, 1); /* its rows are out: ranks may still write these blocks */
    assert_true(used(&b) > 0);
    const struct msg_events *events = done(&b);
    assert_int_equal(events->n_tokens, 0);
    assert_int_equal(events->n_finishes, 1);
    assert_int_equal(events->finishes[0].reason, FINISH_CANCELLED);
    assert_int_equal(used(&b), 0);
    assert_true(sched_is_idle(b.s));
    teardown(&b);
}

static void test_sched__a_deadline_ends_waiting_and_running_streams(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());
    const struct msg_submit m = { .stream = 1,
                                  .attempt = 1,
                                  .n_prompt = 4,
                                  .prompt = ids,
                                  .max_tokens = 100,
                                  .deadline_us = 1000 };

    assert_int_equal(submit_msg(&b, &m), ST_OK);
    assert_non_null(next(&b));
    done(&b);
    fake_now_ns += 2000 * NS_PER_US;
    assert_null(next(&b));
    const struct msg_events *events = sched_events(b.s);
    assert_int_equal(events->n_finishes, 1);
    assert_int_equal(events->finishes[0].code, ST_ERR_DEADLINE);
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_sched__a_stop_id_ends_the_stream(void **state UNUSED)
{
    struct bench b;
    setup(&b, small_config());
    const uint32_t stop = fake_token(7, 5);
    const struct msg_submit m = { .stream = 7,
                                  .attempt = 1,
                                  .n_prompt = 4,
                                  .prompt = ids,
                                  .max_tokens = 100,
                                  .n_stop_ids = 1,
                                  .stop_ids = &stop };

    assert_int_equal(submit_msg(&b, &m), ST_OK);
    assert_non_null(next(&b));
    assert_int_equal(done(&b)->n_finishes, 0);
    assert_non_null(next(&b));
    const struct msg_events *events = done(&b);
    assert_int_equal(events->n_tokens, 1);
    assert_int_equal(events->finishes[0].reason, FINISH_STOP);
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_sched__streams_spread_over_the_plans_in_flight(void **state UNUSED)
{
    struct bench b;
    struct sched_config config = small_config();
    config.in_flight_max = 2;
    setup(&b, config);

    for (uint64_t i = 1; i <= 4; i++) {
        assert_int_equal(submit(&b, i, 4, 50), ST_OK);
    }
    const struct step_head *first = next(&b), *second = next(&b);
    assert_int_equal(first->n_seqs, 2);
    assert_int_equal(second->n_seqs, 2);
    assert_null(next(&b)); /* as many are out as there are stages */
    done(&b);
    assert_int_equal(next(&b)->n_seqs, 2);
    teardown(&b);
}

static void test_sched__results_of_another_step_are_refused(void **state UNUSED)
{
    struct bench b;
    struct err err = ERR_INIT;
    struct step_result result = { .stream = 99 };
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 4, 4), ST_OK);
    const struct step_head *plan = next(&b);
    assert_int_equal(sched_done(b.s, plan->id + 1, NULL, 0, &err), ST_ERR_PROTO);
    assert_int_equal(sched_done(b.s, plan->id, NULL, 0, &err), ST_ERR_PROTO);
    assert_int_equal(sched_done(b.s, plan->id, &result, 1, &err), ST_ERR_PROTO);
    done(&b);
    teardown(&b);
}

/* The ranks keep their plans one behind the other. */
static void test_step__the_greatest_plan_keeps_the_next_one_aligned(void **state UNUSED)
{
    for (uint32_t odd = 0; odd < 8; odd++) {
        const struct step_limits limits = { 1 + odd, 1 + odd / 2, odd % 3 };
        assert_int_equal(step_bytes_max(&limits) % _Alignof(struct step_head), 0);
    }
}

static void test_step__a_damaged_plan_is_refused(void **state UNUSED)
{
    struct bench b;
    struct err err = ERR_INIT;
    setup(&b, small_config());

    assert_int_equal(submit(&b, 1, 40, 4), ST_OK);
    const struct step_head *plan = next(&b);
    char *copy = malloc(plan->bytes);
    for (uint32_t i = 0; i < plan->bytes; i++) {
        memcpy(copy, plan, plan->bytes);
        copy[i] = (char)(copy[i] ^ 0x10);
        assert_int_not_equal(step_check((struct step_head *)(void *)copy, plan->bytes,
                                        &b.config.limits, b.config.kv_blocks, &err),
                             ST_OK);
    }
    free(copy);
    teardown(&b);
}

static void test_sched__random_lives_end_once_in_order_and_leave_no_block(void **state UNUSED)
{
    struct sched_stats sum = { 0 };

    for (uint64_t seed = 0; seed < 2000; seed++) {
        one_random_life(seed, seed % 4 != 0, &sum);
    }
    /* They met what they are here to meet. */
    assert_true(sum.preemptions > 500 && sum.cache_hits > 1000 && sum.kv_blocks_cached > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sched__what_never_fits_is_refused_at_once),
        cmocka_unit_test(test_sched__the_queue_is_bounded),
        cmocka_unit_test(test_sched__a_prompt_is_cut_into_chunks_and_sampled_once),
        cmocka_unit_test(test_sched__decode_rows_ride_beside_prompt_chunks),
        cmocka_unit_test(test_sched__a_cancelled_stream_frees_its_blocks_within_one_step),
        cmocka_unit_test(test_sched__a_deadline_ends_waiting_and_running_streams),
        cmocka_unit_test(test_sched__a_stop_id_ends_the_stream),
        cmocka_unit_test(test_sched__streams_spread_over_the_plans_in_flight),
        cmocka_unit_test(test_sched__results_of_another_step_are_refused),
        cmocka_unit_test(test_step__the_greatest_plan_keeps_the_next_one_aligned),
        cmocka_unit_test(test_step__a_damaged_plan_is_refused),
        cmocka_unit_test(test_sched__random_lives_end_once_in_order_and_leave_no_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
