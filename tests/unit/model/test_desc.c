/* tests/unit/model/test_desc.c */
#include "model/desc.h"

#include "common/alloc_fail.h"
#include "common/fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A small valid config; `extra` is put in front, so that it may also replace a key given in `drop`
 * (a key of this list, or NULL). */
static const char *const plain[][2] = {
    { "architectures", "[\"LlamaForCausalLM\"]" },
    { "hidden_size", "64" },
    { "num_hidden_layers", "5" },
    { "num_attention_heads", "8" },
    { "num_key_value_heads", "4" },
    { "intermediate_size", "172" },
    { "vocab_size", "512" },
    { "max_position_embeddings", "512" },
    { "rms_norm_eps", "1e-05" },
    { "bos_token_id", "1" },
    { "eos_token_id", "2" },
};

/* The config with `key` set to `value` (NULL: left out). key NULL: unchanged. */
static const char *config_with(const char *key, const char *value, const char *extra)
{
    static char text[8192];
    size_t len = (size_t)snprintf(text, sizeof(text), "{\"use_cache\": true");
    bool done = key == NULL || value == NULL;

    for (size_t i = 0; i < ARRAY_LEN(plain); i++) {
        const bool same = key != NULL && strcmp(key, plain[i][0]) == 0;
        if (same && value == NULL) {
            continue;
        }
        len += (size_t)snprintf(text + len, sizeof(text) - len, ", \"%s\": %s", plain[i][0],
                                same ? value : plain[i][1]);
        done = done || same;
    }
    if (!done) {
        len += (size_t)snprintf(text + len, sizeof(text) - len, ", \"%s\": %s", key, value);
    }
    snprintf(text + len, sizeof(text) - len, "%s}", extra != NULL ? extra : "");
    return text;
}

static status parse(const char *config, struct model_desc *d, struct err *err)
{
    return model_desc_parse(config, strlen(config), NULL, 0, d, err);
}

static void expect_ok(const char *config, struct model_desc *d)
{
    struct err err = ERR_INIT;
    const status st = parse(config, d, &err);

    if (st != ST_OK) {
        fail_msg("refused: %s", err.text);
    }
}

static void expect_refused(const char *config, status want, const char *word)
{
    struct model_desc d;
    struct err err = ERR_INIT;
    const status st = parse(config, &d, &err);

    if (st != want || strstr(err.text, word) == NULL) {
        fail_msg("got %d \"%s\", wanted %d and \"%s\"", st, err.text, want, word);
    }
}

static void test_desc__a_plain_llama_config_is_read(void **state UNUSED)
{
    struct model_desc d;

    expect_ok(config_with(NULL, NULL, NULL), &d);
    assert_string_equal(d.family, "LlamaForCausalLM");
    assert_int_equal(d.n_layers, 5);
    assert_int_equal(d.dim, 64);
    assert_int_equal(d.n_heads, 8);
    assert_int_equal(d.n_kv_heads, 4);
    assert_int_equal(d.head_dim, 8);
    assert_int_equal(d.ffn_dim, 172);
    assert_int_equal(d.vocab, 512);
    assert_int_equal(d.ctx_max, 512);
    assert_true(d.norm_eps == 1e-5f);
    assert_true(d.rope.theta == 10000.0 && d.rope.kind == MODEL_ROPE_PLAIN);
    assert_false(d.tied || d.qkv_bias || d.o_bias || d.mlp_bias || d.qk_norm);
    assert_int_equal(d.dtype, MODEL_F32);
    assert_int_equal(d.bos, 1);
    assert_int_equal(d.n_eos, 1);
    assert_int_equal(d.eos[0], 2);
    /* 5 * (2*64 + 128*64 + 64*64 + 3*172*64) + 2*512*64 + 64 */
    assert_int_equal(model_desc_params(&d), 5 * (128 + 8192 + 4096 + 33024) + 65536 + 64);
}

static void test_desc__stories_directory_is_read_and_named(void **state UNUSED)
{
    char path[FIXTURE_PATH_BYTES];
    struct model_desc d;
    struct err err = ERR_INIT;

    if (!fixture_shared("models/stories260k/config.json", path)) {
        skip();
    }
    *strrchr(path, '/') = '\0';
    assert_int_equal(model_desc_read(path, &d, &err), ST_OK);
    assert_string_equal(d.name, "stories260k");
    assert_true(d.tied);
    /* The file holds 1,045,400 bytes: its header and this many f32. */
    assert_in_range(model_desc_params(&d) * 4, 1000000, 1045400);
}

static void test_desc__a_missing_directory_is_not_found(void **state UNUSED)
{
    struct model_desc d;
    struct err err = ERR_INIT;

    assert_int_equal(model_desc_read("/no/such/model", &d, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "/no/such/model/config.json"));
}

static void test_desc__each_family_brings_its_own_defaults(void **state UNUSED)
{
    struct model_desc d;

    expect_ok(config_with("architectures", "[\"MistralForCausalLM\"]", NULL), &d);
    assert_false(d.qkv_bias || d.qk_norm);
    expect_ok(config_with("architectures", "[\"Qwen2ForCausalLM\"]", NULL), &d);
    assert_true(d.qkv_bias && !d.o_bias && !d.mlp_bias && !d.qk_norm);
    expect_ok(config_with("architectures", "[\"Qwen3ForCausalLM\"]", NULL), &d);
    assert_true(d.qk_norm && !d.qkv_bias);
    assert_int_equal(d.head_dim, 128);
    expect_ok(config_with(NULL, NULL, ", \"attention_bias\": true, \"mlp_bias\": true"), &d);
    assert_true(d.qkv_bias && d.o_bias && d.mlp_bias);
    expect_refused(config_with("architectures", "[\"MixtralForCausalLM\"]", NULL),
                   ST_ERR_UNSUPPORTED, "MixtralForCausalLM");
    expect_refused(config_with("architectures", "[]", NULL), ST_ERR_FORMAT, "architectures");
}

static void test_desc__absent_kv_heads_and_head_dim_follow_from_heads(void **state UNUSED)
{
    struct model_desc d;

    expect_ok(config_with("num_key_value_heads", NULL, NULL), &d);
    assert_int_equal(d.n_kv_heads, 8);
    expect_ok(config_with("num_key_value_heads", "null", NULL), &d);
    assert_int_equal(d.n_kv_heads, 8);
    expect_ok(config_with("head_dim", "32", NULL), &d);
    assert_int_equal(d.head_dim, 32);
    expect_ok(config_with("head_dim", "null", NULL), &d);
    assert_int_equal(d.head_dim, 8);
}

static void test_desc__absurd_numbers_are_refused_by_field(void **state UNUSED)
{
    static const char *const fields[] = {
        "hidden_size",       "num_hidden_layers", "num_attention_heads",     "num_key_value_heads",
        "intermediate_size", "vocab_size",        "max_position_embeddings", "head_dim"
    };
    static const char *const limits[] = { "0", "-1", "1000000000000", "9223372036854775807" };
    static const char *const kinds[] = { "1.5", "1e12", "\"64\"", "[64]", "true", "{}" };

    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        for (size_t j = 0; j < ARRAY_LEN(limits); j++) {
            expect_refused(config_with(fields[i], limits[j], NULL), ST_ERR_LIMIT, fields[i]);
        }
        for (size_t j = 0; j < ARRAY_LEN(kinds); j++) {
            expect_refused(config_with(fields[i], kinds[j], NULL), ST_ERR_FORMAT, fields[i]);
        }
    }
    expect_refused(config_with("hidden_size", "65", ", \"head_dim\": 8"), ST_ERR_UNSUPPORTED,
                   "hidden_size is 65, not even");
    expect_refused(config_with("head_dim", "7", NULL), ST_ERR_UNSUPPORTED, "head_dim is 7");
    expect_refused(config_with("hidden_size", "60", NULL), ST_ERR_FORMAT, "not a multiple");
    expect_refused(config_with("num_key_value_heads", "3", NULL), ST_ERR_FORMAT, "not a multiple");
    expect_refused(config_with("hidden_size", "8", NULL), ST_ERR_LIMIT, "head_dim of 1");
    expect_refused(config_with("rms_norm_eps", "-1e-5", NULL), ST_ERR_LIMIT, "rms_norm_eps");
    expect_refused(config_with("rope_theta", "0", NULL), ST_ERR_LIMIT, "rope_theta");
}

static void test_desc__a_required_field_that_is_missing_is_named(void **state UNUSED)
{
    static const char *const fields[] = { "architectures",          "hidden_size",
                                          "num_hidden_layers",      "num_attention_heads",
                                          "intermediate_size",      "vocab_size",
                                          "max_position_embeddings" };

    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        expect_refused(config_with(fields[i], NULL, NULL), ST_ERR_FORMAT, fields[i]);
    }
}

static void test_desc__options_not_computed_are_refused_by_name(void **state UNUSED)
{
    static const char *const options[][2] = {
        { "quantization_config", "{\"quant_method\": \"gptq\"}" },
        { "num_local_experts", "8" },
        { "num_experts", "128" },
        { "n_routed_experts", "64" },
        { "partial_rotary_factor", "0.5" },
        { "final_logit_softcapping", "30.0" },
        { "hidden_act", "\"gelu\"" },
        { "torch_dtype", "\"float8_e4m3fn\"" },
    };

    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        expect_refused(config_with(options[i][0], options[i][1], NULL), ST_ERR_UNSUPPORTED,
                       options[i][0]);
    }
    struct model_desc d;
    expect_ok(config_with("partial_rotary_factor", "1.0", ", \"quantization_config\": null"), &d);
    expect_ok(config_with("torch_dtype", "\"bfloat16\"", NULL), &d);
    assert_int_equal(d.dtype, MODEL_BF16);
    expect_ok(config_with("dtype", "\"torch.float16\"", NULL), &d);
    assert_int_equal(d.dtype, MODEL_F16);
}

/* What Qwen3-FP8, llm-compressor and ModelOpt write, shortened. */
static void test_desc__fp8_checkpoints_are_read_in_three_spellings(void **state UNUSED)
{
    static const struct {
        const char *text;
        uint32_t rows, cols;
    } cases[] = {
        { "{\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", \"quant_method\": \"fp8\", "
          "\"weight_block_size\": [128, 128], \"modules_to_not_convert\": [\"lm_head\"]}",
          128, 128 },
        { "{\"activation_scheme\": \"static\", \"quant_method\": \"fp8\", \"ignored_layers\": []}",
          0, 0 },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": null}", 0, 0 },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": [64, 256]}", 64, 256 },
        { "{\"config_groups\": {\"group_0\": {\"input_activations\": {\"dynamic\": true, "
          "\"num_bits\": 8, \"strategy\": \"token\", \"type\": \"float\"}, \"targets\": "
          "[\"Linear\"], \"weights\": {\"dynamic\": false, \"num_bits\": 8, \"strategy\": "
          "\"channel\", \"symmetric\": true, \"type\": \"float\", \"block_structure\": null}}}, "
          "\"format\": \"float-quantized\", \"ignore\": [\"lm_head\"], "
          "\"quant_method\": \"compressed-tensors\"}",
          0, 0 },
        { "{\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"group_0\": "
          "{\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"block\", "
          "\"block_structure\": [128, 128]}}}}",
          128, 128 },
        { "{\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8\", \"ignore\": [\"lm_head\"], "
          "\"kv_cache_quant_algo\": \"FP8\"}",
          0, 0 },
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_desc d;
        expect_ok(config_with("quantization_config", cases[i].text, NULL), &d);
        assert_int_equal(d.quant.kind, MODEL_QUANT_FP8);
        assert_int_equal(d.quant.block_rows, cases[i].rows);
        assert_int_equal(d.quant.block_cols, cases[i].cols);
    }
}

static void test_desc__other_quantisation_is_refused_by_field(void **state UNUSED)
{
#define GROUP(weights)                                                                             \
    "{\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": {\"weights\": " weights \
    "}}}"
    static const struct {
        const char *text;
        status want;
        const char *word;
    } cases[] = {
        { "[]", ST_ERR_FORMAT, "quantization_config is not an object" },
        { "{}", ST_ERR_UNSUPPORTED, "quantization_config.quant_method" },
        { "{\"quant_method\": 8}", ST_ERR_FORMAT, "quant_method" },
        { "{\"quant_method\": \"awq\"}", ST_ERR_UNSUPPORTED, "awq" },
        { "{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", ST_ERR_UNSUPPORTED, "e5m2" },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": 128}", ST_ERR_FORMAT, "two sizes" },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": [128]}", ST_ERR_FORMAT, "two sizes" },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 1.5]}", ST_ERR_FORMAT,
          "two sizes" },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": [0, 128]}", ST_ERR_LIMIT,
          "weight_block_size" },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": [1, 99999999999]}", ST_ERR_LIMIT,
          "weight_block_size" },
        { "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 64]}", ST_ERR_UNSUPPORTED,
          "multiple of 128" },
        { "{\"quant_method\": \"modelopt\"}", ST_ERR_UNSUPPORTED, "quant_algo" },
        { "{\"quant_method\": \"modelopt\", \"quant_algo\": \"NVFP4\"}", ST_ERR_UNSUPPORTED,
          "NVFP4" },
        { "{\"quant_method\": \"compressed-tensors\"}", ST_ERR_FORMAT, "config_groups" },
        { "{\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": {}}}",
          ST_ERR_FORMAT, "weights" },
        { GROUP("{\"type\": \"float\"}"), ST_ERR_FORMAT, "num_bits" },
        { GROUP("{\"type\": \"float\", \"num_bits\": 4}"), ST_ERR_UNSUPPORTED, "num_bits is 4" },
        { GROUP("{\"num_bits\": 8}"), ST_ERR_UNSUPPORTED, "type" },
        { GROUP("{\"type\": \"int\", \"num_bits\": 8}"), ST_ERR_UNSUPPORTED, "int" },
        { GROUP("{\"type\": \"float\", \"num_bits\": 8, \"strategy\": \"group\"}"),
          ST_ERR_UNSUPPORTED, "group" },
        { GROUP("{\"type\": \"float\", \"num_bits\": 8, \"strategy\": \"block\"}"), ST_ERR_FORMAT,
          "block_structure" },
        { GROUP("{\"type\": \"float\", \"num_bits\": 8, \"symmetric\": false}"), ST_ERR_UNSUPPORTED,
          "symmetric" },
        { GROUP("{\"type\": \"float\", \"num_bits\": 8, \"dynamic\": true}"), ST_ERR_UNSUPPORTED,
          "dynamic" },
        { "{\"quant_method\": \"compressed-tensors\", \"config_groups\": {"
          "\"a\": {\"weights\": {\"type\": \"float\", \"num_bits\": 8}}, \"b\": {\"weights\": "
          "{\"type\": \"float\", \"num_bits\": 8, \"strategy\": \"block\", \"block_structure\": "
          "[1, 128]}}}}",
          ST_ERR_UNSUPPORTED, "other blocks" },
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        expect_refused(config_with("quantization_config", cases[i].text, NULL), cases[i].want,
                       cases[i].word);
    }
#undef GROUP
}

static void test_desc__a_sliding_window_is_refused_unless_no_position_reaches_it(
    void **state UNUSED)
{
    static const char mistral[] = "[\"MistralForCausalLM\"]";
    static const char qwen2[] = "[\"Qwen2ForCausalLM\"]";
    struct model_desc d;

    expect_ok(config_with("architectures", mistral, ", \"sliding_window\": null"), &d);
    expect_ok(config_with("architectures", mistral, ", \"sliding_window\": 512"), &d);
    expect_refused(config_with("architectures", mistral, ", \"sliding_window\": 511"),
                   ST_ERR_UNSUPPORTED, "sliding_window is 511");
    expect_ok(config_with("architectures", qwen2, ", \"sliding_window\": 16"), &d);
    expect_refused(config_with("architectures", qwen2,
                               ", \"sliding_window\": 16, \"use_sliding_window\": true"),
                   ST_ERR_UNSUPPORTED, "sliding_window is 16");
    expect_refused(config_with("architectures", qwen2,
                               ", \"layer_types\": [\"full_attention\", \"sliding_attention\"]"),
                   ST_ERR_UNSUPPORTED, "layer_types[1]");
}

static void test_desc__rope_rules_are_read_in_both_spellings(void **state UNUSED)
{
    struct model_desc d;

    expect_ok(config_with("rope_scaling", "null", ", \"rope_theta\": 500000.0"), &d);
    assert_true(d.rope.theta == 500000.0);
    expect_ok(config_with("rope_scaling", "{\"type\": \"linear\", \"factor\": 4}", NULL), &d);
    assert_int_equal(d.rope.kind, MODEL_ROPE_LINEAR);
    assert_true(d.rope.factor == 4.0);
    expect_ok(config_with("rope_scaling",
                          "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, "
                          "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}",
                          NULL),
              &d);
    assert_int_equal(d.rope.kind, MODEL_ROPE_LLAMA3);
    assert_true(d.rope.low_freq_factor == 1.0 && d.rope.high_freq_factor == 4.0);
    assert_int_equal(d.rope.original_ctx, 8192);
    expect_ok(config_with("rope_parameters",
                          "{\"rope_type\": \"default\", \"rope_theta\": 1000000.0}", NULL),
              &d);
    assert_true(d.rope.kind == MODEL_ROPE_PLAIN && d.rope.theta == 1000000.0);
}

static void test_desc__rope_rules_not_computed_are_refused(void **state UNUSED)
{
    expect_refused(config_with("rope_scaling", "{\"type\": \"yarn\", \"factor\": 4}", NULL),
                   ST_ERR_UNSUPPORTED, "rope_scaling.type is \"yarn\"");
    expect_refused(config_with("rope_scaling", "{\"type\": \"linear\"}", NULL), ST_ERR_FORMAT,
                   "rope_scaling.factor is missing");
    expect_refused(config_with("rope_scaling", "{\"type\": \"linear\", \"factor\": 0}", NULL),
                   ST_ERR_LIMIT, "rope_scaling.factor");
    expect_refused(config_with("rope_scaling", "7", NULL), ST_ERR_FORMAT, "rope_scaling");
    expect_refused(
        config_with("rope_scaling",
                    "{\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 4.0, "
                    "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}",
                    NULL),
        ST_ERR_FORMAT, "low_freq_factor");
    expect_refused(config_with("rope_parameters", "{\"partial_rotary_factor\": 0.25}", NULL),
                   ST_ERR_UNSUPPORTED, "partial_rotary_factor");
}

static void test_desc__end_ids_come_from_the_generation_config_first(void **state UNUSED)
{
    const char *config = config_with("eos_token_id", "[2, 3]", NULL);
    const char *generation = "{\"eos_token_id\": [5, 6, 7]}";
    struct model_desc d;
    struct err err = ERR_INIT;

    expect_ok(config, &d);
    assert_int_equal(d.n_eos, 2);
    assert_int_equal(d.eos[1], 3);
    assert_int_equal(
        model_desc_parse(config, strlen(config), generation, strlen(generation), &d, &err), ST_OK);
    assert_int_equal(d.n_eos, 3);
    assert_int_equal(d.eos[2], 7);
    expect_refused(config_with("eos_token_id", "512", NULL), ST_ERR_FORMAT, "eos_token_id");
    expect_refused(config_with("eos_token_id", "[1,2,3,4,5,6,7,8,9]", NULL), ST_ERR_LIMIT, "9 ids");
    expect_refused(config_with("bos_token_id", "\"<s>\"", NULL), ST_ERR_FORMAT, "bos_token_id");
    expect_ok(config_with("bos_token_id", "null", NULL), &d);
    assert_int_equal(d.bos, -1);
}

static void test_desc__text_that_is_no_object_is_refused(void **state UNUSED)
{
    static const char *const texts[] = {
        "", "[]", "null", "{", "{\"a\":1,\"a\":2}", "{}x", "\xff\xfe", "12", "{\"a\": 1e999}"
    };

    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        expect_refused(texts[i], ST_ERR_FORMAT, "config.json");
    }
    char *deep = malloc(100001);
    assert_non_null(deep);
    memset(deep, '[', 100000);
    deep[100000] = '\0';
    expect_refused(deep, ST_ERR_FORMAT, "config.json");
    free(deep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_desc__a_plain_llama_config_is_read),
        cmocka_unit_test(test_desc__stories_directory_is_read_and_named),
        cmocka_unit_test(test_desc__a_missing_directory_is_not_found),
        cmocka_unit_test(test_desc__each_family_brings_its_own_defaults),
        cmocka_unit_test(test_desc__absent_kv_heads_and_head_dim_follow_from_heads),
        cmocka_unit_test(test_desc__absurd_numbers_are_refused_by_field),
        cmocka_unit_test(test_desc__a_required_field_that_is_missing_is_named),
        cmocka_unit_test(test_desc__options_not_computed_are_refused_by_name),
        cmocka_unit_test(test_desc__fp8_checkpoints_are_read_in_three_spellings),
        cmocka_unit_test(test_desc__other_quantisation_is_refused_by_field),
        cmocka_unit_test(test_desc__a_sliding_window_is_refused_unless_no_position_reaches_it),
        cmocka_unit_test(test_desc__rope_rules_are_read_in_both_spellings),
        cmocka_unit_test(test_desc__rope_rules_not_computed_are_refused),
        cmocka_unit_test(test_desc__end_ids_come_from_the_generation_config_first),
        cmocka_unit_test(test_desc__text_that_is_no_object_is_refused),
    };
    return cmocka_run_group_tests_name("desc", tests, NULL, NULL);
}
