/* tests/unit/worker/test_sched.c - the scheduler against scripted steps: what it promises, and
 * 2,000 random lives. */
#include "worker/sched/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCK = KERN_KV_BLOCK, IDS_MAX = 4096 };

static uint64_t fake_now_ns = 1;
static uint64_t fake_clock(void *self UNUSED)
{
    return fake_now_ns;
}
static const struct clock test_clock = { fake_clock, NULL };

static uint32_t ids[IDS_MAX]; /* prompts point here: token i is i */

struct bench {
    struct sched *s;
    struct sched_config config;
    struct step_head *plans[4]; /* out, oldest first */
    uint32_t n_out;
};

static void setup(struct bench *b, struct sched_config config)
{
    struct err err = ERR_INIT;

    memset(b, 0, sizeof(*b));
    config.clock = &test_clock;
    config.limits.tables_max = config.limits.seqs_max * ((config.ctx_max + BLOCK - 1) / BLOCK);
    b->config = config;
    assert_int_equal(sched_create(&config, &b->s, &err), ST_OK);
    for (uint32_t i = 0; i < ARRAY_LEN(b->plans); i++) {
        b->plans[i] = malloc(step_bytes_max(&config.limits));
    }
    for (uint32_t i = 0; i < IDS_MAX; i++) {
        ids[i] = i;
    }
}

static void teardown(struct bench *b)
{
    sched_destroy(b->s);
    for (uint32_t i = 0; i < ARRAY_LEN(b->plans); i++) {
        free(b->plans[i]);
    }
}

static struct sched_config small_config(void)
{
    return (struct sched_config){ .limits = { .seqs_max = 4, .rows_max = 64 },
                                  .kv_blocks = 16,
                                  .ctx_max = 256,
                                  .chunk_max = 0,
                                  .queue_max = 8,
                                  .in_flight_max = 1 };
}

static status submit(struct bench *b, uint64_t stream, uint32_t n_prompt, uint32_t max_tokens)
{
    struct err err = ERR_INIT;
    const struct msg_submit m = { .stream = stream,
                                  .attempt = 1,
                                  .n_prompt = n_prompt,
                                  .prompt = ids,
                                  .max_tokens = max_tokens,
                                  .top_p = 1.0f };
    return sched_submit(b->s, &m, &err);
}

/* The next plan, checked as a rank would. */
static const struct step_head *next(struct bench *b)
{
    struct err err = ERR_INIT;
    struct step_head *plan = b->plans[b->n_out];

    if (sched_next(b->s, plan) != ST_OK) {
        return NULL;
    }
    b->n_out++;
    if (step_check(plan, plan->bytes, &b->config.limits, b->config.kv_blocks, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    assert_true(sched_is_valid(b->s));
    return plan;
}

/* The token that the fake model chooses after a stream's position `pos`. */
static uint32_t fake_token(uint64_t stream, uint32_t pos)
{
    return (uint32_t)(stream * 1000 + pos) % IDS_MAX;
}

static const struct msg_events *done(struct bench *b)
{
    struct step_result results[64];
    struct err err = ERR_INIT;
    struct step_head *plan = b->plans[0];
    uint32_t n = 0;

    assert_true(b->n_out > 0);
    memset(results, 0, sizeof(results));
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *q = &step_seqs(plan)[i];
        if (q->sample) {
            results[n].stream = q->stream;
            results[n].attempt = q->attempt;
            results[n++].sampled.token = fake_token(q->stream, q->pos0 + q->n_rows);
        }
    }
    if (sched_done(b->s, plan->id, results, n, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    b->n_out--;
    memmove(b->plans, b->plans + 1, b->n_out * sizeof(b->plans[0]));
    b->plans[b->n_out] = plan;
    assert_true(sched_is_valid(b->s));
    return sched_events(b->s);
}

static uint32_t used(const struct bench *b)
{
    struct sched_stats stats;
    sched_stats(b->s, &stats);
    return stats.kv_blocks_used;
}

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
    struct err err = ERR_INIT;
    setup(&b, small_config());
    const struct msg_submit m = { .stream = 1,
                                  .attempt = 1,
                                  .n_prompt = 4,
                                  .prompt = ids,
                                  .max_tokens = 100,
                                  .deadline_us = 1000 };

    assert_int_equal(sched_submit(b.s, &m, &err), ST_OK);
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
    struct err err = ERR_INIT;
    setup(&b, small_config());
    const uint32_t stop = fake_token(7, 5);
    const struct msg_submit m = { .stream = 7,
                                  .attempt = 1,
                                  .n_prompt = 4,
                                  .prompt = ids,
                                  .max_tokens = 100,
                                  .n_stop_ids = 1,
                                  .stop_ids = &stop };

    assert_int_equal(sched_submit(b.s, &m, &err), ST_OK);
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

/* ---- random lives ---- */

static uint64_t rng_state;
static uint32_t rng(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((rng_state >> 33) % n);
}

struct life {
    uint32_t n_prompt, max_tokens, n_tokens;
    bool ended, cancelled;
};

enum { LIVES = 24 };

static void take(struct life *lives, const struct msg_events *events)
{
    for (uint32_t i = 0; i < events->n_tokens; i++) {
        const struct msg_token *t = &events->tokens[i];
        struct life *l = &lives[t->stream - 1];
        assert_false(l->ended);
        assert_int_equal(t->index, l->n_tokens);
        assert_int_equal(t->token, fake_token(t->stream, l->n_prompt + l->n_tokens));
        l->n_tokens++;
    }
    for (uint32_t i = 0; i < events->n_finishes; i++) {
        struct life *l = &lives[events->finishes[i].stream - 1];
        assert_false(l->ended);
        l->ended = true;
        if (events->finishes[i].reason == FINISH_LENGTH) {
            assert_int_equal(l->n_tokens, l->max_tokens);
        } else {
            assert_int_equal(events->finishes[i].reason, FINISH_CANCELLED);
            assert_true(l->cancelled);
        }
    }
}

static void one_random_life(uint64_t seed)
{
    struct life lives[LIVES];
    struct bench b;
    uint32_t n = 0, n_idle = 0;

    rng_state = seed * 977 + 5;
    memset(lives, 0, sizeof(lives));
    setup(&b, (struct sched_config){ .limits = { .seqs_max = 1 + rng(6), .rows_max = 1 + rng(80) },
                                     .kv_blocks = 6 + rng(20),
                                     .ctx_max = 160,
                                     .chunk_max = rng(40),
                                     .queue_max = LIVES,
                                     .in_flight_max = 1 + rng(3) });
    for (uint32_t turn = 0; turn < 40000; turn++) {
        if (n < LIVES && rng(3) == 0) {
            struct life *l = &lives[n];
            *l = (struct life){ .n_prompt = 1 + rng(100), .max_tokens = 1 + rng(60) };
            assert_int_equal(submit(&b, ++n, l->n_prompt, l->max_tokens), ST_OK);
        }
        if (n != 0 && rng(60) == 0) {
            const uint32_t i = rng(n);
            if (!lives[i].ended) {
                lives[i].cancelled = true;
                sched_cancel(b.s, i + 1, 1);
            }
        }
        bool moved = false;
        if (rng(2) == 0) {
            moved = next(&b) != NULL;
        }
        if (b.n_out != 0 && (!moved || rng(2) == 0)) {
            take(lives, done(&b));
            moved = true;
        } else {
            take(lives, sched_events(b.s));
        }
        n_idle = moved ? 0 : n_idle + 1;
        assert_true(n_idle < 200 || sched_is_idle(b.s)); /* liveness */
        if (n == LIVES && sched_is_idle(b.s)) {
            break;
        }
    }
    assert_true(sched_is_idle(b.s));
    assert_int_equal(used(&b), 0);
    for (uint32_t i = 0; i < LIVES; i++) {
        assert_true(lives[i].ended);
    }
    teardown(&b);
}

static void test_sched__random_lives_end_once_in_order_and_leave_no_block(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < 2000; seed++) {
        one_random_life(seed);
    }
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
