/* tests/layout/test_fp8.c - promise P2 for checkpoints in fp8: each layout of scales that is found in
 * the wild, cut in every way, gives the bits of one rank; and what such a file may not hold is refused
 * while it is loaded, by the tensor's name. (Weights quantised at load: test_bits.c.)
 *
 * GANTRY_TEST_DEVICE=cuda asks the same of a CUDA device, and that its first log-probabilities are near
 * the CPU's. */
#include "common/fixture.h"
#include "replica/replica.h"

#include "base/cpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 24, N_PROMPT = 90 };

static enum replica_device device = REPLICA_CPU;

static const char *const names[] = { "tiny-fp8-tensor", "tiny-fp8-channel", "tiny-fp8-block",
                                     "tiny-fp8-mixed" };

struct answer {
    uint32_t tokens[N_TOKENS];
    float logprobs[N_TOKENS];
};

/* gaps: NULL, or [N_TOKENS] of a greedy answer. */
static status run_one(const struct replica_config *config, struct answer *a, float *gaps,
                      struct err *err)
{
    static uint32_t prompt[N_PROMPT];
    struct replica_stream stream;

    for (uint32_t i = 0; i < N_PROMPT; i++) {
        prompt[i] = i == 0 ? 1 : 3 + (i * 37 + i * i) % 150;
    }
    memset(&stream, 0, sizeof(stream));
    memset(a, 0, sizeof(*a));
    stream.submit = (struct msg_submit){ .n_prompt = N_PROMPT,
                                         .prompt = prompt,
                                         .max_tokens = N_TOKENS,
                                         .temperature = gaps != NULL ? 0.0f : 0.8f,
                                         .top_p = 1.0f,
                                         .seed = 4711,
                                         .want_logprobs = true,
                                         .n_logprobs = gaps != NULL ? 3 : 1 };
    stream.tokens = a->tokens;
    stream.logprobs = a->logprobs;
    stream.gaps = gaps;
    const status st = replica_run(config, &stream, 1, NULL, err);
    assert_true(st != ST_OK || stream.n_tokens == N_TOKENS);
    return st;
}

static status run(const struct replica_config *config, struct answer *a, struct err *err)
{
    return run_one(config, a, NULL, err);
}

static struct replica_config base_config(const char *model, enum kern_fmt fmt)
{
    return (struct replica_config){ .model = model,
                                    .device = device,
                                    .fmt = fmt,
                                    .tp = 1,
                                    .pp = 1,
                                    .n_threads = 1,
                                    .cpu_flags = cpu_flags(),
                                    .ctx_max = 128,
                                    .seqs_max = 4,
                                    .rows_max = 64 };
}

static void compare(const struct replica_config *config, const struct answer *want,
                    const char *what)
{
    struct answer got;
    struct err err = ERR_INIT;

    if (run(config, &got, &err) != ST_OK) {
        fail_msg("%s: %s", what, err.text);
    }
    if (memcmp(&got, want, sizeof(got)) != 0) {
        fail_msg("%s, %s, tp %u, pp %u: other bits", what, plan_fmt_name(config->fmt), config->tp,
                 config->pp);
    }
}

/* The device has other sums, and so other bits, of the same model. Random weights amplify: 0.12 is what
 * tests/golden allows a log-probability. Greedy tokens are equal up to the first that is not clear. */
static void near_the_cpu(const struct replica_config *config, const char *name)
{
    struct replica_config on_cpu = *config;
    static struct answer cpu, cuda;
    static float gaps[N_TOKENS], others[N_TOKENS];
    struct err err = ERR_INIT;
    uint32_t n = 0;

    on_cpu.device = REPLICA_CPU;
    if (run_one(&on_cpu, &cpu, gaps, &err) != ST_OK ||
        run_one(config, &cuda, others, &err) != ST_OK) {
        fail_msg("%s: %s", name, err.text);
    }
    for (; n < N_TOKENS && cpu.tokens[n] == cuda.tokens[n]; n++) {
        if (!(fabsf(cpu.logprobs[n] - cuda.logprobs[n]) <= 0.12f)) {
            fail_msg("%s, %s: token %u has %g, on the CPU %g", name, plan_fmt_name(config->fmt), n,
                     (double)cuda.logprobs[n], (double)cpu.logprobs[n]);
        }
    }
    if (n < N_TOKENS && gaps[n] > 0.24f) {
        fail_msg("%s, %s: token %u is %u, the CPU's %u, which leads by %g", name,
                 plan_fmt_name(config->fmt), n, cuda.tokens[n], cpu.tokens[n], (double)gaps[n]);
    }
    print_message("%s, %s: %u of %d greedy tokens are the CPU's\n", name,
                  plan_fmt_name(config->fmt), n, N_TOKENS);
}

static void one_checkpoint(const char *dir, enum kern_fmt fmt, const char *name)
{
    static const uint32_t shapes[][2] = { { 2, 1 }, { 4, 1 }, { 1, 2 }, { 4, 2 } };
    static const uint32_t paths[] = { UINT32_MAX, CPU_AVX2, CPU_AVX2 | CPU_AVX512,
                                      CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16 };
    const struct replica_config base = base_config(dir, fmt);
    struct replica_config config;
    struct answer want;
    struct err err = ERR_INIT;

    if (run(&base, &want, &err) != ST_OK) {
        fail_msg("%s: %s", name, err.text);
    }
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        config = base;
        config.tp = shapes[i][0];
        config.pp = shapes[i][1];
        compare(&config, &want, name);
        if (device == REPLICA_CPU) {
            config.device = REPLICA_STAGED;
            compare(&config, &want, "device");
        }
    }
    if (device != REPLICA_CPU) {
        near_the_cpu(&base, name);
        config = base;
        config.no_graphs = true;
        compare(&config, &want, "no recorded steps");
    }
    for (size_t i = 0; i < ARRAY_LEN(paths) && device == REPLICA_CPU; i++) {
        config = base;
        config.cpu_flags = paths[i];
        if (i == 0 || (paths[i] & cpu_flags()) == paths[i]) {
            compare(&config, &want, "instruction set");
        }
    }
    config = base;
    config.n_threads = 3;
    config.chunk_max = 7;
    compare(&config, &want, "threads and chunks");
}

static void test_fp8__bits_are_equal_for_every_layout_of_scales(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char dir[FIXTURE_PATH_BYTES], rel[96];
        snprintf(rel, sizeof(rel), "tests/golden/data/%s", names[i]);
        assert_true(fixture_source(rel, dir));
        one_checkpoint(dir, KERN_FP8, names[i]);
        one_checkpoint(dir, KERN_BF16, names[i]);
    }
}

/* ---- what is refused ---- */

static void copy_file(const char *from, const char *to, const char *name)
{
    char path[FIXTURE_PATH_BYTES + 64];
    static char bytes[1 << 20];

    snprintf(path, sizeof(path), "%s/%s", from, name);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    const size_t n = fread(bytes, 1, sizeof(bytes), in);
    assert_true(n < sizeof(bytes) && feof(in));
    fclose(in);
    snprintf(path, sizeof(path), "%s/%s", to, name);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, n, out), n);
    assert_int_equal(fclose(out), 0);
}

/* `n` bytes into the file at the middle of tensor `name`. */
static void patch(const char *dir, const char *name, const void *bytes, size_t n)
{
    char path[FIXTURE_PATH_BYTES + 64];
    struct weights *w = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(weights_open(dir, &w, &err), ST_OK);
    const struct weights_tensor *t = weights_find(w, name);
    assert_non_null(t);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)(t->offset + t->bytes / 2 / n * n), SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    weights_close(w);
}

static void refused(const char *model, const char *tensor, const void *bytes, size_t n,
                    const char *word, status want)
{
    char from[FIXTURE_PATH_BYTES], dir[FIXTURE_PATH_BYTES], rel[96];
    struct answer a;
    struct err err = ERR_INIT;

    snprintf(rel, sizeof(rel), "tests/golden/data/%s", model);
    assert_true(fixture_source(rel, from));
    fixture_dir_create(dir);
    copy_file(from, dir, "config.json");
    copy_file(from, dir, "model.safetensors");
    patch(dir, tensor, bytes, n);
    const struct replica_config config = base_config(dir, KERN_FP8);
    const status st = run(&config, &a, &err);
    fixture_dir_remove(dir);
    if (st != want || strstr(err.text, tensor) == NULL || strstr(err.text, word) == NULL) {
        fail_msg("%s: got %s \"%s\"", tensor, status_name(st), err.text);
    }
}

static void test_fp8__what_is_no_number_is_refused_by_the_tensors_name(void **state UNUSED)
{
    static const uint8_t nan8[] = { 0x7f }, minus_nan8[] = { 0xff };
    static const float nan32 = NAN, infinity = INFINITY, negative = -1.0f;
    static const uint16_t nan16 = 0x7fc1;

    refused("tiny-fp8-block", "model.layers.1.mlp.down_proj.weight", nan8, 1, "column",
            ST_ERR_FORMAT);
    refused("tiny-fp8-tensor", "model.layers.0.self_attn.k_proj.weight", minus_nan8, 1, "row",
            ST_ERR_FORMAT);
    refused("tiny-fp8-block", "model.layers.0.mlp.up_proj.weight_scale_inv", &nan32, 4, "scale 2",
            ST_ERR_FORMAT);
    refused("tiny-fp8-tensor", "model.layers.0.mlp.up_proj.weight_scale", &infinity, 4, "scale 0",
            ST_ERR_FORMAT);
    refused("tiny-fp8-block", "model.layers.0.mlp.up_proj.weight_scale_inv", &negative, 4, "-1",
            ST_ERR_FORMAT);
    refused("tiny-lmhead-only", "model.layers.0.mlp.up_proj.weight", &infinity, 4, "finite",
            ST_ERR_FORMAT);
    refused("tiny-llama3-rope", "model.layers.0.mlp.up_proj.weight", &nan16, 2, "finite",
            ST_ERR_FORMAT);
}

/* What the checkpoint's author left in bf16 is not quantised behind his back: here that is all. */
static void test_fp8__a_checkpoint_that_only_says_it_is_fp8_is_refused_in_fp8(void **state UNUSED)
{
    char from[FIXTURE_PATH_BYTES], dir[FIXTURE_PATH_BYTES], text[2048],
        path[FIXTURE_PATH_BYTES + 64];
    struct replica_config config;
    struct answer a;
    struct err err = ERR_INIT;

    assert_true(fixture_source("tests/golden/data/tiny-qwen3-head-norm", from));
    fixture_dir_create(dir);
    copy_file(from, dir, "model.safetensors");
    snprintf(path, sizeof(path), "%s/config.json", from);
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    const size_t n = fread(text, 1, sizeof(text) - 1, in);
    fclose(in);
    text[n] = '\0';
    char *end = strrchr(text, '}');
    assert_non_null(end);
    snprintf(end, sizeof(text) - (size_t)(end - text),
             ", \"quantization_config\": {\"quant_method\": \"fp8\"}}");
    fixture_write(dir, "config.json", text);
    config = base_config(dir, KERN_FP8);
    assert_int_equal(run(&config, &a, &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "--format bf16"));
    config = base_config(dir, KERN_BF16);
    assert_int_equal(run(&config, &a, &err), ST_OK);
    fixture_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8__bits_are_equal_for_every_layout_of_scales),
        cmocka_unit_test(test_fp8__what_is_no_number_is_refused_by_the_tensors_name),
        cmocka_unit_test(test_fp8__a_checkpoint_that_only_says_it_is_fp8_is_refused_in_fp8),
    };

    const char *on = getenv("GANTRY_TEST_DEVICE");
    struct err err = ERR_INIT;

    cpu_float_env_set();
    if (on != NULL && strcmp(on, "cuda") == 0) {
        device = REPLICA_CUDA;
        if (replica_device_check(device, 1, &err) != ST_OK) {
            printf("skipped: %s\n", err.text);
            return TEST_SKIPPED;
        }
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
