/* Ranks that run different plans under one step number: the replica ends with both of them named,
 * whichever exchange notices first, and nobody hangs. */
#include "replica/replica.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 8 };

static status run_wrong(uint32_t tp, uint32_t pp, uint32_t wrong_rank, struct err *err)
{
    static const uint32_t prompt[] = { 1, 20, 300, 4, 5 };
    const struct replica_config config = { .model = "model/demo",
                                           .tp = tp,
                                           .pp = pp,
                                           .fmt = KERN_F32,
                                           .n_threads = 1,
                                           .cpu_flags = UINT32_MAX,
                                           .wrong_rank = wrong_rank + 1 };
    uint32_t tokens[TOKENS];
    float logprobs[TOKENS];
    struct replica_stream stream = { .submit = { .n_prompt = ARRAY_LEN(prompt),
                                                 .prompt = prompt,
                                                 .max_tokens = TOKENS,
                                                 .top_p = 1.0f },
                                     .tokens = tokens,
                                     .logprobs = logprobs };

    *err = (struct err)ERR_INIT;
    return replica_run(&config, &stream, 1, NULL, err);
}

static void expect_named(uint32_t tp, uint32_t pp, uint32_t wrong_rank)
{
    struct err err;
    char name[16];
    uint32_t n_named = 0;

    assert_int_equal(run_wrong(tp, pp, wrong_rank, &err), ST_ERR_MISMATCH);
    snprintf(name, sizeof(name), "rank %u", wrong_rank);
    assert_non_null(strstr(err.text, name));
    for (uint32_t i = 0; i < tp * pp; i++) {
        snprintf(name, sizeof(name), "rank %u has", i);
        n_named += strstr(err.text, name) != NULL ? 1 : 0;
    }
    if (n_named != 2) {
        fail_msg("two ranks are not named: %s", err.text);
    }
}

static void test_agree__without_a_wrong_rank_all_is_well(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(run_wrong(2, 2, UINT32_MAX, &err), ST_OK);
}

static void test_agree__two_slices_are_named(void **state)
{
    (void)state;
    expect_named(2, 1, 1);
}

static void test_agree__two_stages_are_named(void **state)
{
    (void)state;
    expect_named(1, 2, 1);
    expect_named(1, 3, 2);
}

static void test_agree__a_rank_in_a_grid_is_named(void **state)
{
    (void)state;
    expect_named(2, 2, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agree__without_a_wrong_rank_all_is_well),
        cmocka_unit_test(test_agree__two_slices_are_named),
        cmocka_unit_test(test_agree__two_stages_are_named),
        cmocka_unit_test(test_agree__a_rank_in_a_grid_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
