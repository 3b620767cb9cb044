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
    uint64_t queued[8] = { 0 };
    assert_int_equal(sched_queued(b.s, queued, 3), 3); /* the youngest */
    assert_true(queued[0] == 8 && queued[1] == 7 && queued[2] == 6);
    assert_int_equal(sched_queued(b.s, queued, 8), 8);
    const struct step_head *plan = next(&b);
    assert_non_null(plan);
    const uint32_t n_queued = sched_queued(b.s, queued, 8);
    assert_int_equal(n_queued + plan->n_seqs, 8);
    for (uint32_t i = 0; i < n_queued; i++) { /* the youngest: the oldest are in the plan */
        assert_true(queued[i] == 8 - i);
    }
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

static struct sched_config ahead_config(void)
{
    struct sched_config config = small_config();

    config.ahead = true;
    return config;
}

static void test_sched__a_plan_ahead_is_fed_by_the_one_out(void **state UNUSED)
{
    struct bench b;
    setup(&b, ahead_config());

    assert_int_equal(submit(&b, 1, 40, 4), ST_OK);
    assert_int_equal(submit(&b, 2, 3, 3), ST_OK);
    assert_int_equal(step_seqs_const(next(&b))[0].feed, 0);
    const struct step_head *second = next(&b);
    assert_int_equal(second->n_seqs, 2);
    assert_int_equal(step_seqs_const(second)[0].feed, 1);
    assert_int_equal(step_seqs_const(second)[1].feed, 2);
    assert_int_equal(step_seqs_const(second)[1].pos0, 3);
    assert_null(next(&b)); /* one ahead, not two */
    assert_int_equal(done(&b)->n_tokens, 2);
    assert_int_equal(next(&b)->n_seqs, 2);
    done(&b);
    assert_int_equal(next(&b)->n_seqs, 1); /* the third of stream 2 is out, and its last */
    assert_int_equal(done(&b)->n_finishes, 1);
    assert_null(next(&b)); /* stream 1's last is out */
    assert_int_equal(done(&b)->finishes[0].stream, 1);
    assert_true(sched_is_idle(b.s));
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

/* Known one plan late: the row that is out already says nothing, and gives its blocks back. */
static void test_sched__a_stop_id_behind_a_plan_ahead_emits_nothing_more(void **state UNUSED)
{
    struct bench b;
    const uint32_t stop = fake_token(7, 5);
    const struct msg_submit m = { .stream = 7,
                                  .attempt = 1,
                                  .n_prompt = 4,
                                  .prompt = ids,
                                  .max_tokens = 100,
                                  .n_stop_ids = 1,
                                  .stop_ids = &stop };

    setup(&b, ahead_config());
    assert_int_equal(submit_msg(&b, &m), ST_OK);
    assert_non_null(next(&b));
    assert_non_null(next(&b));
    assert_int_equal(done(&b)->n_finishes, 0);
    assert_non_null(next(&b));
    const struct msg_events *events = done(&b);
    assert_int_equal(events->n_tokens, 1);
    assert_int_equal(events->finishes[0].reason, FINISH_STOP);
    assert_false(sched_is_idle(b.s));
    assert_null(next(&b));
    events = done(&b);
    assert_int_equal(events->n_tokens + events->n_finishes, 0);
    assert_true(sched_is_idle(b.s));
    assert_int_equal(used(&b), 0);
    teardown(&b);
}

static void test_sched__no_plan_is_made_ahead_of_filters(void **state UNUSED)
{
    struct bench b;
    setup(&b, ahead_config());

    assert_int_equal(submit(&b, 1, 4, 9), ST_OK);
    assert_int_equal(submit_as(&b, 2, (struct actor){ .n_prompt = 4, .is_filtered = true }, 2),
                     ST_OK);
    assert_int_equal(next(&b)->n_seqs, 2);
    assert_null(next(&b));
    assert_int_equal(done(&b)->n_tokens, 2);
    assert_int_equal(next(&b)->n_seqs, 2);
    assert_int_equal(next(&b)->n_seqs, 1); /* nobody goes on from the filtered one's last */
    done(&b);
    done(&b);
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
        const struct step_limits limits = { 1 + odd, 1 + odd / 2, odd % 3, odd % 5 };
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

/* Adjustments of the only sequence of the next plan. */
static uint32_t next_adjusts(struct bench *b, const struct kern_adjust **at_p)
{
    const struct step_head *plan = next(b);

    assert_non_null(plan);
    assert_int_equal(plan->n_seqs, 1);
    *at_p = step_adjusts_const(plan);
    return plan->n_adjusts;
}

static void test_sched__only_streams_with_penalties_carry_adjustments(void **state UNUSED)
{
    const struct actor plain = { .n_prompt = 10 };
    const struct actor repeats = { .n_prompt = 10, .repetition = 1.5f };
    const struct actor present = { .n_prompt = 10, .presence = 0.5f, .n_biases = 3 };
    const struct kern_adjust *at;
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit_as(&b, 1, plain, 2), ST_OK);
    assert_int_equal(next_adjusts(&b, &at), 0);
    done(&b);
    assert_int_equal(next_adjusts(&b, &at), 0);
    done(&b);
    assert_int_equal(submit_as(&b, 2, repeats, 2), ST_OK); /* ids 0 .. 9, then 2010 */
    assert_int_equal(next_adjusts(&b, &at), 10);
    assert_true(at[9].id == 9 && at[9].n_made == 0);
    done(&b);
    assert_int_equal(next_adjusts(&b, &at), 11);
    assert_true(at[10].id == 2010 && at[10].n_made == 1);
    done(&b);
    assert_int_equal(submit_as(&b, 3, present, 2), ST_OK); /* of the answer alone, and biases */
    assert_int_equal(next_adjusts(&b, &at), 3);
    assert_true(at[0].id == 7 && at[0].bias == -100.0f && at[2].id == 2000);
    done(&b);
    assert_int_equal(next_adjusts(&b, &at), 4);
    assert_true(at[0].id == 87 && at[0].n_made == 1 && at[1].id == 7);
    done(&b);
    teardown(&b);
}

/* A stream that comes with emitted tokens counts them as its own. */
static void test_sched__a_stream_that_was_moved_counts_as_before(void **state UNUSED)
{
    static const uint32_t emitted[] = { 500, 2, 500, 500, 3 };
    struct msg_submit m = { .stream = 2,
                            .attempt = 2,
                            .n_prompt = 4,
                            .prompt = ids,
                            .n_emitted = 5,
                            .emitted = emitted,
                            .max_tokens = 9,
                            .top_p = 1.0f,
                            .repetition_penalty = 1.1f,
                            .frequency_penalty = 0.5f };
    struct step_head *plan;
    struct err err = ERR_INIT;
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(sched_submit(b.s, &m, &err), ST_OK);
    plan = b.plans[0];
    assert_int_equal(sched_next(b.s, plan), ST_OK);
    static const struct kern_adjust want[] = {
        { 0, { 0 } }, { 1, { 0 } }, { 2, { 1 } }, { 3, { 1 } }, { 500, { 3 } }
    };
    assert_int_equal(plan->n_adjusts, ARRAY_LEN(want));
    assert_memory_equal(step_adjusts(plan), want, sizeof(want));
    assert_int_equal(step_seqs(plan)[0].n_counts, ARRAY_LEN(want));
    assert_true(step_seqs(plan)[0].params.penalties.repetition == 1.1f);
    m.stream = 3;
    m.n_emitted = 0;
    m.n_biases = STEP_BIASES_MAX + 1;
    assert_int_equal(sched_submit(b.s, &m, &err), ST_ERR_ARG);
    teardown(&b);
}

/* Room for the adjustments of one stream: the others wait for the next plan, and get there. */
static void test_sched__adjustments_of_a_plan_are_bounded(void **state UNUSED)
{
    const struct actor repeats = { .n_prompt = 30, .repetition = 1.5f };
    struct sched_config config = small_config();
    uint32_t n_ended = 0, n_turns = 0;
    struct bench b;

    config.limits.adjusts_max = 40;
    setup(&b, config);
    for (uint64_t i = 1; i <= 3; i++) {
        assert_int_equal(submit_as(&b, i, repeats, 8), ST_OK);
    }
    while (n_ended < 3 && n_turns++ < 100) {
        assert_non_null(next(&b));
        assert_true(b.plans[0]->n_adjusts <= 40 && b.plans[0]->n_samples <= 1);
        n_ended += done(&b)->n_finishes;
    }
    assert_int_equal(n_ended, 3);
    teardown(&b);
}

static void test_step__lying_adjustments_are_refused(void **state UNUSED)
{
    const struct actor both = { .n_prompt = 10, .repetition = 1.5f, .n_biases = 3 };
    struct err err = ERR_INIT;
    struct bench b;
    setup(&b, small_config());

    assert_int_equal(submit_as(&b, 1, both, 2), ST_OK);
    assert_non_null(next(&b));
    struct step_head *plan = b.plans[0];
    struct step_seq *q = step_seqs(plan);
    struct kern_adjust *at = step_adjusts(plan);
    for (uint32_t lie = 0; lie < 7; lie++) {
        const struct step_seq kept = *q;
        const struct kern_adjust kept_at[2] = { at[1], at[11] };
        switch (lie) {
        case 0:
            q->n_counts++;
            break;
        case 1:
            q->adjust0 = 1;
            break;
        case 2:
            at[1].id = at[0].id;
            break;
        case 3:
            at[11].bias = (float)(1e30 * 1e30);
            break;
        case 4:
            q->params.penalties.repetition = 0.0f;
            break;
        case 5:
            q->params.penalties.presence = -(float)(1e30 * 1e30);
            break;
        default:
            q->n_biases = UINT32_MAX;
            break;
        }
        step_seal(plan);
        assert_int_equal(step_check(plan, plan->bytes, &b.config.limits, 16, &err), ST_ERR_PROTO);
        *q = kept;
        at[1] = kept_at[0];
        at[11] = kept_at[1];
    }
    step_seal(plan);
    assert_int_equal(step_check(plan, plan->bytes, &b.config.limits, 16, &err), ST_OK);
    struct step_limits less = b.config.limits;
    less.adjusts_max = plan->n_adjusts - 1;
    assert_int_equal(step_check(plan, plan->bytes, &less, 16, &err), ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "13 adjustments"));
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
        cmocka_unit_test(test_sched__a_plan_ahead_is_fed_by_the_one_out),
        cmocka_unit_test(test_sched__a_stop_id_behind_a_plan_ahead_emits_nothing_more),
        cmocka_unit_test(test_sched__no_plan_is_made_ahead_of_filters),
        cmocka_unit_test(test_sched__results_of_another_step_are_refused),
        cmocka_unit_test(test_step__the_greatest_plan_keeps_the_next_one_aligned),
        cmocka_unit_test(test_step__a_damaged_plan_is_refused),
        cmocka_unit_test(test_sched__only_streams_with_penalties_carry_adjustments),
        cmocka_unit_test(test_sched__a_stream_that_was_moved_counts_as_before),
        cmocka_unit_test(test_sched__adjustments_of_a_plan_are_bounded),
        cmocka_unit_test(test_step__lying_adjustments_are_refused),
        cmocka_unit_test(test_sched__random_lives_end_once_in_order_and_leave_no_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
