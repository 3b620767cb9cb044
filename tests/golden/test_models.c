/* tests/golden/test_models.c - our logits and greedy tokens against Hugging Face transformers'
 * (tests/golden/README.md).
 *
 * Other people's results: a tolerance, relative to the root mean square of the row's logits. Greedy
 * tokens must be equal up to the first step whose two best logits are closer than the tolerance.
 * Each model runs cut in two slices where it can be, so that a mistake in cutting shows here too.
 */
#include "common/fixture.h"
#include "golden/record.h"
#include "replica/replica.h"

#include "base/cpu.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOP = 20, TOKENS_MAX = 512, ROWS_MAX = 16 };

struct model_case {
    const char *name;
    const char *dir_shared, *dir_tree;
    double share_bf16; /* tolerance of the bf16 profile, share of the rms */
    uint32_t tp, pp;
};

/* Twice what transformers itself shows when its linear layers' inputs are rounded (README, "How to
 * compare"). */
static const struct model_case models[] = {
    { "tiny-f16-separate-head", NULL, "tests/golden/data/tiny-f16-separate-head", 0.17, 2, 1 },
    { "tiny-bf16-sharded", NULL, "tests/golden/data/tiny-bf16-sharded", 0.17, 1, 2 },
    { "tiny-llama3-rope", NULL, "tests/golden/data/tiny-llama3-rope", 0.17, 2, 2 },
    { "tiny-lmhead-only", NULL, "tests/golden/data/tiny-lmhead-only", 0.17, 2, 1 },
    { "tiny-qwen2-linear-rope", NULL, "tests/golden/data/tiny-qwen2-linear-rope", 0.17, 2, 1 },
    { "tiny-qwen3-head-norm", NULL, "tests/golden/data/tiny-qwen3-head-norm", 0.17, 2, 1 },
    { "stories260k", "models/stories260k", NULL, 0.02, 4, 1 },
    { "demo", NULL, "model/demo", 0.02, 2, 2 },
};

/* Checkpoints in fp8: one record, of code times scale in f32, for every format. */
static const struct model_case models_fp8[] = {
    { "tiny-fp8-tensor", NULL, "tests/golden/data/tiny-fp8-tensor", 0.12, 4, 1 },
    { "tiny-fp8-channel", NULL, "tests/golden/data/tiny-fp8-channel", 0.12, 4, 2 },
    { "tiny-fp8-block", NULL, "tests/golden/data/tiny-fp8-block", 0.12, 2, 2 },
    { "tiny-fp8-mixed", NULL, "tests/golden/data/tiny-fp8-mixed", 0.12, 4, 3 },
};

/* Quantised at load, against the same rule written in torch. */
static const struct model_case models_to_fp8[] = {
    { "tiny-bf16-sharded", NULL, "tests/golden/data/tiny-bf16-sharded", 0.17, 2, 1 },
    { "tiny-f16-separate-head", NULL, "tests/golden/data/tiny-f16-separate-head", 0.17, 4, 2 },
    { "stories260k", "models/stories260k", NULL, 0.11, 8, 1 },
};

struct run {
    const struct model_case *model;
    struct replica_config config;
    double share;
    json_t *record;
};

static double golden_logprob(const json_t *row, uint32_t id, double *found_p)
{
    const json_t *top = record_need(row, "top");
    const double lse = json_number_value(record_need(row, "lse"));

    for (size_t i = 0; i < json_array_size(top); i++) {
        const json_t *pair = json_array_get(top, i);
        if ((uint32_t)json_integer_value(json_array_get(pair, 0)) == id) {
            *found_p = 1;
            return json_number_value(json_array_get(pair, 1)) - lse;
        }
    }
    *found_p = 0;
    return 0;
}

static void check_row(const struct run *run, const char *name, const json_t *row,
                      const struct replica_stream *q)
{
    const double tolerance = run->share * json_number_value(record_need(row, "rms"));

    assert_int_equal(q->n_top, ARRAY_LEN(q->top));
    for (uint32_t i = 0; i < q->n_top; i++) {
        double found;
        const double want = golden_logprob(row, q->top[i].id, &found);
        const double got = (double)q->top[i].logprob;
        if (found == 0 || !(fabs(got - want) <= tolerance)) {
            fail_msg("%s, %s, %s, position %d: id %u has log-probability %.6f, recorded %s %.6f, "
                     "tolerance %.6f",
                     run->model->name, plan_fmt_name(run->config.fmt), name,
                     (int)json_integer_value(record_need(row, "pos")), q->top[i].id, got,
                     found != 0 ? "is" : "has it not among 32,", want, tolerance);
        }
    }
}

static void set_stream(struct replica_stream *q, const uint32_t *prompt, uint32_t n_prompt,
                       uint32_t max_tokens, uint32_t *tokens, float *logprobs)
{
    memset(q, 0, sizeof(*q));
    q->submit = (struct msg_submit){ .n_prompt = n_prompt,
                                     .prompt = prompt,
                                     .max_tokens = max_tokens,
                                     .top_p = 1.0f,
                                     .want_logprobs = true,
                                     .n_logprobs = N_TOP };
    q->tokens = tokens;
    q->logprobs = logprobs;
}

/* All positions of a case and its greedy text, as streams of one run. */
static void check_case(const struct run *run, const json_t *c)
{
    static uint32_t tokens[ROWS_MAX + 1][TOKENS_MAX];
    static float logprobs[ROWS_MAX + 1][TOKENS_MAX];
    struct replica_stream streams[ROWS_MAX + 1];
    uint32_t prompt[TOKENS_MAX];
    char what[128];
    const char *name = json_string_value(record_need(c, "name"));
    const json_t *rows = record_need(c, "logits"), *greedy = record_need(c, "greedy");
    const uint32_t n_prompt = record_ids(record_need(c, "prompt"), TOKENS_MAX, prompt);
    const uint32_t n_rows = (uint32_t)json_array_size(rows);
    const uint32_t n_greedy = (uint32_t)json_array_size(record_need(greedy, "ids"));
    struct err err = ERR_INIT;

    assert_true(n_rows > 0 && n_rows <= ROWS_MAX);
    for (uint32_t i = 0; i < n_rows; i++) {
        const json_t *row = json_array_get(rows, i);
        const uint32_t n = (uint32_t)json_integer_value(record_need(row, "pos")) + 1;
        assert_true(n <= n_prompt);
        set_stream(&streams[i], prompt, n, 1, tokens[i], logprobs[i]);
    }
    set_stream(&streams[n_rows], prompt, n_prompt, n_greedy, tokens[n_rows], logprobs[n_rows]);
    if (replica_run(&run->config, streams, n_rows + 1, NULL, &err) != ST_OK) {
        fail_msg("%s: %s", run->model->name, err.text);
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        assert_int_equal(streams[i].reason, FINISH_LENGTH);
        check_row(run, name, json_array_get(rows, i), &streams[i]);
    }
    const json_t *last = json_array_get(rows, n_rows - 1);
    const double tolerance = run->share * json_number_value(record_need(last, "rms"));
    snprintf(what, sizeof(what), "%s, %s", run->model->name, name);
    record_greedy(what, greedy, (struct record_bounds){ 2 * tolerance, tolerance },
                  streams[n_rows].tokens, streams[n_rows].logprobs);
}

static void check_model(const struct model_case *m, enum kern_fmt fmt, const char *weights)
{
    char dir[FIXTURE_PATH_BYTES], rel[128];

    snprintf(rel, sizeof(rel), "tests/golden/data/%s.%s.json", m->name, weights);
    if (!(m->dir_tree != NULL ? fixture_source(m->dir_tree, dir)
                              : fixture_shared(m->dir_shared, dir))) {
        assert_non_null(m->dir_shared); /* only shared material may be absent */
        print_message("skipped: no %s here\n", m->dir_shared);
        return;
    }
    json_t *root = record_load(rel);
    const struct run run = { .model = m,
                             .config = { .model = dir,
                                         .fmt = fmt,
                                         .tp = m->tp,
                                         .pp = m->pp,
                                         .n_threads = 1,
                                         .cpu_flags = cpu_flags() },
                             .share = fmt == KERN_F32 ? record_share_f32 : m->share_bf16,
                             .record = root };
    const json_t *cases = record_need(root, "cases");
    assert_true(json_array_size(cases) > 0);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        check_case(&run, json_array_get(cases, i));
    }
    json_decref(root);
}

static void test_models__logits_and_greedy_tokens_are_transformers_in_f32(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(models); i++) {
        check_model(&models[i], KERN_F32, "stored");
    }
}

static void test_models__logits_and_greedy_tokens_are_transformers_in_bf16(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(models); i++) {
        check_model(&models[i], KERN_BF16, "bf16");
    }
}

static void test_models__fp8_checkpoints_are_code_times_scale(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(models_fp8); i++) {
        for (int fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
            check_model(&models_fp8[i], (enum kern_fmt)fmt, "stored");
        }
    }
}

static void test_models__weights_become_fp8_by_the_published_rule(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(models_to_fp8); i++) {
        check_model(&models_to_fp8[i], KERN_FP8, "fp8");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models__logits_and_greedy_tokens_are_transformers_in_f32),
        cmocka_unit_test(test_models__logits_and_greedy_tokens_are_transformers_in_bf16),
        cmocka_unit_test(test_models__fp8_checkpoints_are_code_times_scale),
        cmocka_unit_test(test_models__weights_become_fp8_by_the_published_rule),
    };

    cpu_float_env_set();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
