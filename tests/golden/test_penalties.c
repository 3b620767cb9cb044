/* tests/golden/test_penalties.c - greedy answers under penalties and biases against transformers' and
 * a few lines of torch (tests/golden/record_penalties.py, README.md).
 *
 * All cases of a model are streams of one run, in f32. Other people's sums are in another order, so
 * tokens must be equal up to the first step whose two best adjusted logits are closer than the
 * tolerance; log-probabilities are the model's own, before penalties. */
#include "common/fixture.h"
#include "golden/record.h"
#include "replica/replica.h"

#include "base/cpu.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CASES_MAX = 16, IDS_MAX = 64, BIASES_MAX = 4 };

struct golden_case {
    const json_t *json;
    uint32_t prompt[IDS_MAX], want[IDS_MAX], got[IDS_MAX];
    float logprobs[IDS_MAX];
    struct msg_bias biases[BIASES_MAX];
};

static float penalty(const json_t *penalties, const char *key, float absent)
{
    const json_t *value = json_object_get(penalties, key);
    return value != NULL ? (float)json_number_value(value) : absent;
}

static void set_stream(struct replica_stream *q, struct golden_case *c, const json_t *json)
{
    const json_t *p = record_need(json, "penalties"), *biases = json_object_get(p, "biases");

    c->json = json;
    memset(q, 0, sizeof(*q));
    q->submit =
        (struct msg_submit){ .n_prompt =
                                 record_ids(record_need(json, "prompt"), IDS_MAX, c->prompt),
                             .prompt = c->prompt,
                             .max_tokens = record_ids(record_need(json, "ids"), IDS_MAX, c->want),
                             .top_p = 1.0f,
                             .want_logprobs = true,
                             .repetition_penalty = penalty(p, "repetition", 1.0f),
                             .presence_penalty = penalty(p, "presence", 0.0f),
                             .frequency_penalty = penalty(p, "frequency", 0.0f),
                             .n_biases = (uint32_t)json_array_size(biases),
                             .biases = c->biases };
    assert_true(q->submit.n_biases <= BIASES_MAX);
    for (uint32_t i = 0; i < q->submit.n_biases; i++) {
        const json_t *pair = json_array_get(biases, i);
        c->biases[i].id = (uint32_t)json_integer_value(json_array_get(pair, 0));
        c->biases[i].bias = (float)json_number_value(json_array_get(pair, 1));
    }
    q->tokens = c->got;
    q->logprobs = c->logprobs;
}

/* How many tokens are equal; fails where they are not and should be. */
static uint32_t check_case(const char *model, uint32_t i_case, const struct golden_case *c,
                           const struct replica_stream *q)
{
    const double tolerance = record_share_f32 * json_number_value(record_need(c->json, "rms"));
    const double grown = tolerance * (double)MAX(q->submit.repetition_penalty, 1.0f);
    char what[128];

    assert_int_equal(q->reason, FINISH_LENGTH);
    assert_int_equal(q->n_tokens, json_array_size(record_need(c->json, "ids")));
    snprintf(what, sizeof(what), "%s, case %u", model, i_case);
    return record_greedy(what, c->json, (struct record_bounds){ 2 * grown, tolerance }, c->got,
                         c->logprobs);
}

static void check_model(const json_t *model)
{
    static struct golden_case cases[CASES_MAX];
    struct replica_stream streams[CASES_MAX];
    const char *name = json_string_value(record_need(model, "name"));
    const json_t *list = record_need(model, "cases");
    const uint32_t n = (uint32_t)json_array_size(list);
    uint32_t n_equal = 0, n_tokens = 0;
    char dir[FIXTURE_PATH_BYTES];
    struct err err = ERR_INIT;

    if (!fixture_source(json_string_value(record_need(model, "dir")), dir)) {
        fail_msg("no %s", name);
    }
    assert_true(n > 0 && n <= CASES_MAX);
    for (uint32_t i = 0; i < n; i++) {
        set_stream(&streams[i], &cases[i], json_array_get(list, i));
    }
    const struct replica_config config = {
        .model = dir, .fmt = KERN_F32, .tp = 2, .pp = 1, .n_threads = 1, .cpu_flags = cpu_flags()
    };
    if (replica_run(&config, streams, n, NULL, &err) != ST_OK) {
        fail_msg("%s: %s", name, err.text);
    }
    for (uint32_t i = 0; i < n; i++) {
        n_equal += check_case(name, i, &cases[i], &streams[i]);
        n_tokens += streams[i].n_tokens;
    }
    print_message("%s: %u of %u tokens are equal\n", name, n_equal, n_tokens);
    assert_true(n_equal * 10 >= n_tokens * 9);
}

static void test_penalties__greedy_answers_are_the_recorded_ones(void **state UNUSED)
{
    json_t *root = record_load("tests/golden/data/penalties.json");
    const json_t *models = record_need(root, "models");
    assert_true(json_array_size(models) > 0);
    for (size_t i = 0; i < json_array_size(models); i++) {
        check_model(json_array_get(models, i));
    }
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_penalties__greedy_answers_are_the_recorded_ones),
    };

    cpu_float_env_set();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
