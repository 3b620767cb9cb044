/* tests/unit/partition/test_plan_print.c - the print-out, and options there and back. */
#include "partition/plan.h"
#include "partition/plan_opts.h"

#include "models.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct plan *make(const struct model_desc *d, const struct plan_request *r)
{
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    if (plan_create(d, r, &plan, &err) != ST_OK) {
        fail_msg("%s: %s", d->name, err.text);
    }
    return plan;
}

static void test_print__a_small_plan_shows_every_rank_and_a_picture(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct plan_request r = { .tp = 2, .pp = 2, .fmt = KERN_BF16 };
    struct plan *plan = make(&d, &r);
    struct buf out = BUF_INIT;

    assert_int_equal(plan_print(plan, &out), ST_OK);
    assert_non_null(strstr(out.data, "4 ranks = 2 stages x 2 slices"));
    assert_non_null(strstr(out.data, "cpu-bf16-v1"));
    assert_non_null(strstr(out.data, "│ rank 3: head"));
    assert_non_null(strstr(out.data, "┌"));
    assert_non_null(strstr(out.data, plan->why));
    buf_fini(&out);
    plan_destroy(plan);
}

static void test_print__a_large_plan_is_shortened_for_people_only(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-405B");
    const struct plan_request r = { .tp = 16, .pp = 126, .fmt = KERN_BF16, .kv_tokens = 4096 };
    struct plan *plan = make(&d, &r);
    struct buf out = BUF_INIT;

    assert_int_equal(plan_print(plan, &out), ST_OK);
    assert_non_null(strstr(out.data, "and 1952 more ranks"));
    assert_non_null(strstr(out.data, "119 more stages"));
    assert_non_null(strstr(out.data, "stage 125"));
    assert_in_range(out.len, 1000, 60000);
    buf_reset(&out);
    assert_int_equal(plan_print_json(plan, 0, &out), ST_OK);
    json_t *root = json_loadb(out.data, out.len, 0, NULL);
    assert_non_null(root);
    assert_int_equal(json_array_size(json_object_get(root, "ranks")), 2016);
    json_decref(root);
    buf_fini(&out);
    plan_destroy(plan);
}

static void test_print__json_holds_the_numbers_of_the_plan(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct plan_request r = { .tp = 2, .pp = 2, .fmt = KERN_F32 };
    struct plan *plan = make(&d, &r);
    struct buf out = BUF_INIT;

    assert_int_equal(plan_print_json(plan, 0, &out), ST_OK);
    json_t *root = json_loadb(out.data, out.len, 0, NULL);
    assert_non_null(root);
    const json_t *rank = json_array_get(json_object_get(root, "ranks"), 3);
    assert_int_equal(json_integer_value(json_object_get(rank, "weight_bytes")),
                     plan->parts[3].weight_bytes);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(rank, "layers"), 0)), 3);
    assert_string_equal(json_string_value(json_object_get(root, "profile")), "cpu-f32-v1");
    assert_int_equal(json_integer_value(json_object_get(root, "kv_tokens")), plan->kv_tokens);
    json_decref(root);
    buf_fini(&out);
    plan_destroy(plan);
}

static void test_print__a_full_buffer_is_a_status(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct plan_request r = { .tp = 2, .pp = 2 };
    struct plan *plan = make(&d, &r);
    struct buf out = BUF_INIT_MAX(100);

    assert_int_equal(plan_print(plan, &out), ST_ERR_LIMIT);
    assert_true(plan_print_json(plan, 0, &out) < 0);
    buf_fini(&out);
    plan_destroy(plan);
}

static status request_of(int argc, char **argv, struct plan_request *r, struct err *err)
{
    struct plan_opts o;
    struct opt rows[PLAN_OPTS_ROWS];
    const struct opts opts = { "test", NULL, rows, PLAN_OPTS_ROWS, NULL, 0, 0 };
    uint32_t n_args = 0;

    memset(&o, 0, sizeof(o));
    plan_opts_rows(&o, rows);
    const status st = opts_parse(&opts, argc, argv, NULL, &n_args, err);
    return st == ST_OK ? plan_opts_to_request(&o, r, err) : st;
}

static void test_opts__words_become_a_request(void **state UNUSED)
{
    char *argv[] = { "plan", "--tp",     "2",     "--stage-layers", "3,2", "--format",
                     "f32",  "--memory", "16GiB", "--ctx",          "100", "--seqs",
                     "8",    NULL };
    struct plan_request r;
    struct err err = ERR_INIT;

    assert_int_equal(request_of(13, argv, &r, &err), ST_OK);
    assert_int_equal(r.tp, 2);
    assert_int_equal(r.fmt, KERN_F32);
    assert_int_equal(r.n_stage_layers, 2);
    assert_int_equal(r.stage_layers[0], 3);
    assert_int_equal(r.stage_layers[1], 2);
    assert_true(r.rank_memory_bytes == (uint64_t)16 << 30);
    assert_int_equal(r.ctx_max, 100);
    assert_int_equal(r.seqs_max, 8);
    assert_int_equal(r.pp, 0);
    assert_false(r.fmt_of_model);
}

static void test_opts__the_format_is_the_checkpoints_unless_said(void **state UNUSED)
{
    char *fp8[] = { "plan", "--format", "fp8", NULL }, *none[] = { "plan", NULL };
    struct plan_request r;
    struct err err = ERR_INIT;

    assert_int_equal(request_of(3, fp8, &r, &err), ST_OK);
    assert_int_equal(r.fmt, KERN_FP8);
    assert_false(r.fmt_of_model);
    assert_int_equal(request_of(1, none, &r, &err), ST_OK);
    assert_int_equal(r.fmt, KERN_BF16);
    assert_true(r.fmt_of_model);
}

static void test_opts__bad_words_are_named(void **state UNUSED)
{
    static char *const bad[][2] = {
        { "--stage-layers", "3,,2" },  { "--stage-layers", "" },     { "--stage-layers", "3," },
        { "--stage-layers", "0,5" },   { "--stage-layers", "-3,8" }, { "--stage-layers", "3;2" },
        { "--stage-layers", "99999" }, { "--format", "fp4" },        { "--device", "gpu" },
        { "--device", "cuda:" },       { "--device", "cuda:x" },     { "--device", "cuda:1x" },
        { "--device", "cuda-sm" },     { "--device", "cuda-sm0" },   { "--device", "cuda0" },
        { "--data-plane", "rdma" },    { "--data-plane", "nccl" },
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        char *argv[] = { "plan", bad[i][0], bad[i][1], NULL };
        struct plan_request r;
        struct err err = ERR_INIT;
        assert_int_equal(request_of(3, argv, &r, &err), ST_ERR_ARG);
        assert_non_null(strstr(err.text, bad[i][0]));
    }
}

static void test_opts__devices_are_words(void **state UNUSED)
{
    static const struct {
        char *device, *plane;
        enum plan_device kind;
        enum plan_plane between;
        uint32_t version;
    } cases[] = {
        { "cpu", "mpi", PLAN_CPU, PLAN_PLANE_HOST, 0 },
        { "auto", "mpi", PLAN_CPU, PLAN_PLANE_HOST, 0 },
        { "cuda", "nccl", PLAN_CUDA, PLAN_PLANE_NCCL, 0 },
        { "cuda:3", "mpi", PLAN_CUDA, PLAN_PLANE_HOST, 0 },
        { "cuda-sm80", "nccl", PLAN_CUDA, PLAN_PLANE_NCCL, 80 },
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char *argv[] = {
            "plan", "--device", cases[i].device, "--data-plane", cases[i].plane, NULL
        };
        struct plan_request r;
        struct err err = ERR_INIT;

        assert_int_equal(request_of(5, argv, &r, &err), ST_OK);
        assert_int_equal(r.device, cases[i].kind);
        assert_int_equal(r.plane, cases[i].between);
        assert_int_equal(r.cuda_version, cases[i].version);
    }
    struct plan_device_word word;
    assert_int_equal(plan_device_word("cuda:3", &word, NULL), ST_OK);
    assert_true(word.has_index && word.index == 3 && !word.is_auto);
    assert_int_equal(plan_device_word(NULL, &word, NULL), ST_OK);
    assert_true(word.is_auto);
}

static void test_opts__free_order_needs_nccl(void **state UNUSED)
{
    char *argv[] = { "plan", "--free-order", "--device", "cuda", "--data-plane", "mpi", NULL };
    struct plan_request r;
    struct err err = ERR_INIT;

    assert_int_equal(request_of(6, argv, &r, &err), ST_ERR_ARG);
    assert_non_null(strstr(err.text, "--free-order"));
    assert_int_equal(request_of(4, argv, &r, &err), ST_OK);
    assert_true(r.free_order);
}

static void test_opts__the_arguments_of_a_plan_make_that_plan_again(void **state UNUSED)
{
    for (uint64_t seed = 1; seed <= 300; seed++) {
        uint64_t rng = seed;
        const struct model_desc d = model_random(&rng);
        const struct plan_request r = { .n_ranks = 1 + random_below(&rng, 20),
                                        .fmt = (enum kern_fmt)random_below(&rng, KERN_FMTS),
                                        .kv_tokens = random_below(&rng, 3000),
                                        .device = seed % 3 == 0 ? PLAN_CUDA : PLAN_CPU,
                                        .cuda_version = seed % 2 == 0 ? 80 : 0,
                                        .plane = seed % 3 == 0 && seed % 5 != 0 ? PLAN_PLANE_NCCL
                                                                                : PLAN_PLANE_HOST,
                                        .free_order = seed % 21 == 0 && seed % 5 != 0,
                                        .rank_memory_bytes = (uint64_t)1650 << 20 };
        struct plan *plan = NULL;
        struct buf text = BUF_INIT;
        const char *args[PLAN_OPTS_ARGS];
        char *argv[PLAN_OPTS_ARGS + 2] = { "worker" };
        uint32_t n = 0;
        struct plan_request again;
        struct err err = ERR_INIT;

        if (plan_create(&d, &r, &plan, NULL) != ST_OK) {
            continue; /* does not fit: of no interest here */
        }
        assert_int_equal(plan_opts_args(plan, &text, args, PLAN_OPTS_ARGS, &n), ST_OK);
        memcpy(argv + 1, args, n * sizeof(*args));
        assert_int_equal(request_of((int)n + 1, argv, &again, &err), ST_OK);
        struct plan *twin = make(&d, &again);
        assert_true(twin->digest == plan->digest);
        assert_string_equal(twin->profile, plan->profile);
        assert_int_equal(twin->plane, plan->plane);
        assert_int_equal(plan_opts_args(plan, &text, args, n - 1, &n), ST_ERR_LIMIT);
        plan_destroy(twin);
        plan_destroy(plan);
        buf_fini(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_print__a_small_plan_shows_every_rank_and_a_picture),
        cmocka_unit_test(test_print__a_large_plan_is_shortened_for_people_only),
        cmocka_unit_test(test_print__json_holds_the_numbers_of_the_plan),
        cmocka_unit_test(test_print__a_full_buffer_is_a_status),
        cmocka_unit_test(test_opts__words_become_a_request),
        cmocka_unit_test(test_opts__the_format_is_the_checkpoints_unless_said),
        cmocka_unit_test(test_opts__bad_words_are_named),
        cmocka_unit_test(test_opts__devices_are_words),
        cmocka_unit_test(test_opts__free_order_needs_nccl),
        cmocka_unit_test(test_opts__the_arguments_of_a_plan_make_that_plan_again),
    };
    return cmocka_run_group_tests_name("plan_print", tests, NULL, NULL);
}
