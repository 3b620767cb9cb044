/* tests/unit/partition/test_plan_fit.c - memory, and what is chosen when little is asked. */
#include "partition/plan.h"

#include "common/alloc_fail.h"
#include "models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GIB ((uint64_t)1 << 30)

static struct plan *make(const struct model_desc *d, const struct plan_request *r)
{
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    if (plan_create(d, r, &plan, &err) != ST_OK) {
        fail_msg("%s: %s", d->name, err.text);
    }
    return plan;
}

static void expect_refused(const struct model_desc *d, const struct plan_request *r, status want,
                           const char *word)
{
    struct plan *plan = NULL;
    struct err err = ERR_INIT;
    const status st = plan_create(d, r, &plan, &err);

    if (st != want || strstr(err.text, word) == NULL) {
        fail_msg("got %d \"%s\", wanted %d and \"%s\"", st, err.text, want, word);
    }
    assert_null(plan);
}

static void expect_shape(const struct model_desc *d, struct plan_request r, uint32_t tp,
                         uint32_t pp, const char *why)
{
    struct plan *plan = make(d, &r);

    assert_int_equal(plan->tp, tp);
    assert_int_equal(plan->pp, pp);
    if (strstr(plan->why, why) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", plan->why, why);
    }
    plan_destroy(plan);
}

static void test_fit__bytes_are_those_of_the_packed_model(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B");
    const struct plan_request r = { .tp = 1, .pp = 1, .fmt = KERN_BF16, .kv_tokens = 4096 };
    struct plan *plan = make(&d, &r);

    /* All dims are multiples of the panel: weights are 2 bytes a parameter and nothing else, but
     * for the norms, which are f32: 65 of them. */
    assert_true(plan->parts[0].weight_bytes == 2 * model_desc_params(&d) + 65 * 4096 * 2);
    /* 2 (k,v) * 32 layers * 8 K * 128 D * 2 bytes = 128 KiB per token */
    assert_true(plan->parts[0].kv_bytes == (uint64_t)4096 * 128 * 1024);
    plan_destroy(plan);
}

static void test_fit__a_tied_model_holds_its_matrix_twice_where_both_ends_meet(void **state UNUSED)
{
    struct model_desc d = model_named("Qwen2-0.5B");
    const struct plan_request r = { .tp = 1, .pp = 1, .fmt = KERN_BF16, .kv_tokens = 4096 };
    struct plan *tied = make(&d, &r);
    d.tied = false;
    struct plan *apart = make(&d, &r);

    assert_true(tied->parts[0].weight_bytes == apart->parts[0].weight_bytes);
    plan_destroy(tied);
    plan_destroy(apart);
}

static void test_fit__kv_takes_what_memory_leaves_and_never_more(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B");

    for (uint64_t gib = 18; gib <= 40; gib += 2) {
        const struct plan_request r = {
            .tp = 2, .pp = 1, .fmt = KERN_BF16, .rank_memory_bytes = gib * GIB / 2
        };
        struct plan *plan = make(&d, &r);
        for (uint32_t i = 0; i < plan->n_ranks; i++) {
            const struct plan_part *p = &plan->parts[i];
            const uint64_t total =
                p->weight_bytes + p->kv_bytes + p->scratch_bytes + PLAN_RESERVE_BYTES;
            assert_true(total <= r.rank_memory_bytes);
        }
        /* One block more would not fit where it is tightest (the context may have been cut after
         * the fit, which freed a little working memory). */
        const uint64_t block = plan->parts[0].kv_bytes / plan->kv_blocks;
        uint64_t room = UINT64_MAX;
        for (uint32_t i = 0; i < plan->n_ranks; i++) {
            const struct plan_part *p = &plan->parts[i];
            room = MIN(room, r.rank_memory_bytes - PLAN_RESERVE_BYTES - p->weight_bytes -
                                 p->kv_bytes - p->scratch_bytes);
        }
        const uint64_t slack = 2 * 4 * (uint64_t)d.ctx_max * d.head_dim / 2 + 64 * 4 * 4096 + 1024;
        assert_true(room < block + slack);
        plan_destroy(plan);
    }
}

static void test_fit__a_context_over_the_cache_is_cut_and_said(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B");
    const struct plan_request r = { .tp = 1, .pp = 1, .fmt = KERN_BF16, .kv_tokens = 8000 };
    struct plan *plan = make(&d, &r);

    assert_int_equal(plan->kv_tokens, 8000);
    assert_int_equal(plan->ctx_max, 8000);
    assert_non_null(strstr(plan->why, "context cut from 131072 to 8000"));
    plan_destroy(plan);
}

static void test_fit__kv_is_at_most_what_the_streams_can_use(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct plan_request r = {
        .tp = 1, .pp = 1, .fmt = KERN_F32, .kv_tokens = 1u << 30, .seqs_max = 3, .ctx_max = 100
    };
    struct plan *plan = make(&d, &r);

    assert_int_equal(plan->kv_blocks, 3 * 4); /* 100 positions are 4 blocks of 32 */
    assert_int_equal(plan->ctx_max, 100);
    plan_destroy(plan);
}

static void test_fit__too_little_memory_is_refused_with_the_numbers(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B");
    struct plan_request r = { .tp = 1, .pp = 1, .fmt = KERN_BF16, .rank_memory_bytes = 8 * GIB };

    expect_refused(&d, &r, ST_ERR_LIMIT, "rank 0 needs 14.95 GiB of weights");
    r.rank_memory_bytes = 17 * GIB;
    r.kv_tokens = 100000;
    expect_refused(&d, &r, ST_ERR_LIMIT, "100000 KV tokens were asked for");
    r.rank_memory_bytes = 1;
    r.tp = 0;
    r.pp = 0;
    expect_refused(&d, &r, ST_ERR_LIMIT, "and may use 1 B");
}

static void test_fit__tp_is_preferred_and_the_rest_goes_to_pp(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B"); /* R 8, 32 layers */
    const uint32_t kv = 4096;

    expect_shape(&d, (struct plan_request){ .n_ranks = 1, .kv_tokens = kv }, 1, 1, "1 rank;");
    expect_shape(&d, (struct plan_request){ .n_ranks = 2, .kv_tokens = kv }, 2, 1, "2 ranks;");
    expect_shape(&d, (struct plan_request){ .n_ranks = 6, .kv_tokens = kv }, 4, 1,
                 "2 left over (4 or 8 use all)");
    expect_shape(&d, (struct plan_request){ .n_ranks = 16, .kv_tokens = kv }, 8, 2, "of 8 leaves");
    expect_shape(&d, (struct plan_request){ .n_ranks = 4096, .kv_tokens = kv }, 8, 32,
                 "3840 left over");
    expect_shape(&d, (struct plan_request){ .n_ranks = 6, .pp = 3, .kv_tokens = kv }, 2, 3,
                 "pp 3 as asked");
    expect_shape(&d, (struct plan_request){ .n_ranks = 6, .tp = 2, .kv_tokens = kv }, 2, 3,
                 "tp 2 as asked");
    expect_shape(&d, (struct plan_request){ .tp = 2, .pp = 2, .kv_tokens = kv }, 2, 2,
                 "tp 2 and pp 2 as asked");
}

static void test_fit__memory_moves_the_choice_to_more_ranks(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B");

    /* 16 GB of weights over 4 ranks do not fit 3 GiB each; over 6 = 2 x 3 they do. */
    expect_shape(&d,
                 (struct plan_request){ .n_ranks = 6,
                                        .fmt = KERN_BF16,
                                        .rank_memory_bytes = 7 * GIB / 2,
                                        .rows_max = 64,
                                        .ctx_max = 4096 },
                 2, 3, "is what fits");
}

static void test_fit__without_ranks_the_fewest_that_hold_it_are_found(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-70B");
    const struct plan_request r = { .fmt = KERN_BF16,
                                    .rank_memory_bytes = 40 * GIB,
                                    .ctx_max = 8192 };
    struct plan *plan = make(&d, &r);
    /* 131.4 GiB of weights: 3 ranks of 40 GiB are too few. */
    assert_int_equal(plan->n_ranks, 4);
    assert_non_null(strstr(plan->why, "fewest ranks"));
    plan_destroy(plan);
    expect_shape(&d,
                 (struct plan_request){
                     .tp = 2, .rank_memory_bytes = 40 * GIB, .fmt = KERN_BF16, .ctx_max = 8192 },
                 2, 2, "fewest");
}

static void test_fit__a_machine_made_of_crumbs_is_refused_in_time(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-405B");
    const struct plan_request r = { .fmt = KERN_BF16, .rank_memory_bytes = 100 << 20 };

    expect_refused(&d, &r, ST_ERR_LIMIT, "may use 100.00 MiB");
}

static void test_fit__no_memory_for_a_plan_is_a_status(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct plan_request r = { .tp = 2, .pp = 2 };
    uint32_t n = 1;

    for (;; n++) {
        struct plan *plan = NULL;
        alloc_fail_at(n);
        const status st = plan_create(&d, &r, &plan, NULL);
        if (!alloc_fail_off()) {
            assert_int_equal(st, ST_OK);
            plan_destroy(plan);
            break;
        }
        assert_int_equal(st, ST_ERR_NOMEM);
        assert_null(plan);
    }
    assert_in_range(n, 2, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fit__bytes_are_those_of_the_packed_model),
        cmocka_unit_test(test_fit__a_tied_model_holds_its_matrix_twice_where_both_ends_meet),
        cmocka_unit_test(test_fit__kv_takes_what_memory_leaves_and_never_more),
        cmocka_unit_test(test_fit__a_context_over_the_cache_is_cut_and_said),
        cmocka_unit_test(test_fit__kv_is_at_most_what_the_streams_can_use),
        cmocka_unit_test(test_fit__too_little_memory_is_refused_with_the_numbers),
        cmocka_unit_test(test_fit__tp_is_preferred_and_the_rest_goes_to_pp),
        cmocka_unit_test(test_fit__memory_moves_the_choice_to_more_ranks),
        cmocka_unit_test(test_fit__without_ranks_the_fewest_that_hold_it_are_found),
        cmocka_unit_test(test_fit__a_machine_made_of_crumbs_is_refused_in_time),
        cmocka_unit_test(test_fit__no_memory_for_a_plan_is_a_status),
    };
    return cmocka_run_group_tests_name("plan_fit", tests, NULL, NULL);
}
