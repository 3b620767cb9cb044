/* tests/unit/model/test_weights.c - finding, checking, reading, digests. Files that lie are
 * test_weights_lies.c. */
#include "model/weights.h"

#include "weights_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[FIXTURE_PATH_BYTES];

static int setup(void **state UNUSED)
{
    fixture_dir_create(dir);
    return 0;
}

static int teardown(void **state UNUSED)
{
    fixture_dir_remove(dir);
    return 0;
}

static struct weights *open_ok(const char *path)
{
    struct weights *w = NULL;
    struct err err = ERR_INIT;

    if (weights_open(path, &w, &err) != ST_OK) {
        fail_msg("refused: %s", err.text);
    }
    return w;
}

static struct model_desc small_desc(void)
{
    struct model_desc d;

    memset(&d, 0, sizeof(d));
    snprintf(d.family, sizeof(d.family), "LlamaForCausalLM");
    d.n_layers = 2;
    d.dim = 8;
    d.n_heads = 4;
    d.n_kv_heads = 2;
    d.head_dim = 2;
    d.ffn_dim = 12;
    d.vocab = 16;
    d.ctx_max = 32;
    d.tied = true;
    return d;
}

static void add_layer(struct st_builder *b, uint32_t layer, const char *skip)
{
    static const struct {
        const char *name;
        uint64_t rows, cols;
    } all[] = { { "input_layernorm.weight", 8, 0 },  { "self_attn.q_proj.weight", 8, 8 },
                { "self_attn.k_proj.weight", 4, 8 }, { "self_attn.v_proj.weight", 4, 8 },
                { "self_attn.o_proj.weight", 8, 8 }, { "post_attention_layernorm.weight", 8, 0 },
                { "mlp.gate_proj.weight", 12, 8 },   { "mlp.up_proj.weight", 12, 8 },
                { "mlp.down_proj.weight", 8, 12 } };
    char name[128];

    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        snprintf(name, sizeof(name), "model.layers.%u.%s", layer, all[i].name);
        if (skip == NULL || strcmp(name, skip) != 0) {
            st_add(b, name, "BF16", all[i].rows, all[i].cols);
        }
    }
}

static void write_small(const char *skip, const char *extra)
{
    struct st_builder b = { BUF_INIT, 0 };

    st_add(&b, "model.embed_tokens.weight", "BF16", 16, 8);
    add_layer(&b, 0, skip);
    add_layer(&b, 1, skip);
    st_add(&b, "model.norm.weight", "BF16", 8, 0);
    if (extra != NULL) {
        st_add(&b, extra, "BF16", 8, 0);
    }
    st_finish(&b, dir, "model.safetensors");
}

static void test_weights__tensors_are_found_by_name(void **state UNUSED)
{
    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    const struct weights_tensor *t = weights_find(w, "model.layers.1.mlp.down_proj.weight");

    assert_int_equal(weights_count(w), 20);
    assert_non_null(t);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->shape[0], 8);
    assert_int_equal(t->shape[1], 12);
    assert_int_equal(t->bytes, 192);
    assert_int_equal(t->dtype, MODEL_BF16);
    assert_null(weights_find(w, "model.layers.2.mlp.down_proj.weight"));
    for (uint32_t i = 0; i < weights_count(w); i++) {
        assert_ptr_equal(weights_find(w, weights_at(w, i)->name), weights_at(w, i));
    }
    weights_close(w);
    weights_close(NULL);
}

static void test_weights__a_complete_model_passes_the_check(void **state UNUSED)
{
    struct model_desc d = small_desc();
    struct err err = ERR_INIT;

    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    assert_int_equal(weights_check(w, &d, &err), ST_OK);
    d.tied = false;
    assert_int_equal(weights_check(w, &d, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "lm_head.weight"));
    weights_close(w);
}

static void test_weights__the_first_wrong_tensor_is_named(void **state UNUSED)
{
    struct model_desc d = small_desc();
    struct err err = ERR_INIT;

    write_small("model.layers.1.mlp.up_proj.weight", NULL);
    struct weights *w = open_ok(dir);
    assert_int_equal(weights_check(w, &d, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "model.layers.1.mlp.up_proj.weight"));
    weights_close(w);

    write_small(NULL, NULL);
    w = open_ok(dir);
    d.n_kv_heads = 4;
    assert_int_equal(weights_check(w, &d, &err), ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "k_proj.weight\" is [4, 8], config.json makes it [8, 8]"));
    weights_close(w);
}

static void test_weights__a_bias_the_config_does_not_speak_of_is_refused(void **state UNUSED)
{
    struct model_desc d = small_desc();
    struct err err = ERR_INIT;

    write_small(NULL, "model.layers.0.self_attn.q_proj.bias");
    struct weights *w = open_ok(dir);
    assert_int_equal(weights_check(w, &d, &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "q_proj.bias"));
    weights_close(w);
}

/* What a box must hold: byte i of the data is i * 7 mod 251. */
/* The small model with tensor `name` as F8_E4M3 of that shape, and scales beside it unless `ending` is
 * NULL. */
static void write_fp8(const char *name, uint64_t rows, uint64_t cols, const char *dtype,
                      const char *ending)
{
    struct st_builder b = { BUF_INIT, 0 };
    char scale[160];

    if (strcmp(name, "model.embed_tokens.weight") != 0) {
        st_add(&b, "model.embed_tokens.weight", "BF16", 16, 8);
    }
    add_layer(&b, 0, name);
    add_layer(&b, 1, name);
    st_add(&b, "model.norm.weight", "BF16", 8, 0);
    st_add(&b, name, dtype, rows, cols);
    if (ending != NULL) {
        snprintf(scale, sizeof(scale), "%s%s", name, ending);
        st_add(&b, scale, "F32", rows, 1);
    }
    st_finish(&b, dir, "model.safetensors");
}

static void test_weights__fp8_goes_with_scales_and_only_for_matrices(void **state UNUSED)
{
    static const char up[] = "model.layers.1.mlp.up_proj.weight";
    static const struct {
        const char *name;
        uint64_t rows, cols;
        const char *dtype, *ending;
        status want;
        const char *word;
    } cases[] = {
        { up, 12, 8, "F8_E4M3", "_scale", ST_OK, "" },
        { up, 12, 8, "F8_E4M3", "_scale_inv", ST_OK, "" },
        { "lm_head.weight", 16, 8, "F8_E4M3", "_scale", ST_OK, "" },
        { up, 12, 8, "F8_E4M3", NULL, ST_ERR_NOT_FOUND, "no scales" },
        { up, 12, 8, "BF16", "_scale", ST_ERR_FORMAT, "up_proj.weight_scale" },
        { up, 12, 8, "BF16", "_scale_inv", ST_ERR_FORMAT, "but that matrix is BF16" },
        { up, 8, 12, "F8_E4M3", "_scale", ST_ERR_FORMAT, "config.json makes it [12, 8]" },
        { up, 12, 8, "F8_E5M2", "_scale", ST_ERR_UNSUPPORTED, "F8_E5M2" },
        { "model.layers.0.input_layernorm.weight", 8, 0, "F8_E4M3", "_scale", ST_ERR_UNSUPPORTED,
          "input_layernorm.weight\" is F8_E4M3" },
        { "model.embed_tokens.weight", 16, 8, "F8_E4M3", "_scale", ST_ERR_UNSUPPORTED,
          "embed_tokens.weight\" is F8_E4M3" },
    };
    struct model_desc d = small_desc();

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;
        write_fp8(cases[i].name, cases[i].rows, cases[i].cols, cases[i].dtype, cases[i].ending);
        struct weights *w = open_ok(dir);
        const status st = weights_check(w, &d, &err);
        if (st != cases[i].want || (st != ST_OK && strstr(err.text, cases[i].word) == NULL)) {
            fail_msg("case %zu: %s \"%s\"", i, status_name(st), err.text);
        }
        weights_close(w);
    }
}

/* One matrix of two layers is fp8: which are not, and of which only a part is. */
static void test_weights__what_of_an_fp8_checkpoint_is_not_fp8_is_found(void **state UNUSED)
{
    const uint8_t all = (1u << MODEL_MATS) - 1;
    const struct {
        const char *name;
        uint64_t rows, cols;
        enum model_mat mat;
        bool is_torn;
    } cases[] = {
        { "model.layers.1.mlp.down_proj.weight", 8, 12, MODEL_MAT_DOWN, false },
        { "model.layers.1.self_attn.o_proj.weight", 8, 8, MODEL_MAT_O, false },
        { "model.layers.1.mlp.up_proj.weight", 12, 8, MODEL_MAT_GATE_UP, true },
        { "model.layers.1.self_attn.v_proj.weight", 4, 8, MODEL_MAT_QKV, true },
    };
    struct err err = ERR_INIT;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_desc d = small_desc();
        write_fp8(cases[i].name, cases[i].rows, cases[i].cols, "F8_E4M3", "_scale");
        struct weights *w = open_ok(dir);
        assert_int_equal(weights_check(w, &d, &err), ST_OK);
        assert_int_equal(d.plain[0], all);
        assert_int_equal(d.torn[0], 0);
        assert_int_equal(d.plain[1], all & ~(1u << cases[i].mat));
        assert_int_equal(d.torn[1], cases[i].is_torn ? 1u << cases[i].mat : 0);
        weights_close(w);
    }
    /* Nothing is fp8: all 0, unless the config says it is. */
    struct model_desc d = small_desc();
    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    assert_int_equal(weights_check(w, &d, &err), ST_OK);
    assert_int_equal(d.plain[0] | d.plain[1] | d.torn[0] | d.torn[1], 0);
    d.quant.kind = MODEL_QUANT_FP8;
    weights_mixed_find(w, &d);
    assert_int_equal(d.plain[0] & d.plain[1], all);
    weights_close(w);
}

static void expect_box(const struct weights *w, const struct weights_tensor *t, uint64_t data_begin,
                       struct weights_box box)
{
    const size_t size = t->dtype == MODEL_F32 ? 4 : 2;
    const uint64_t cols = t->n_dims == 2 ? t->shape[1] : t->shape[0];
    const size_t bytes = box.n_rows * box.n_cols * size;
    unsigned char *got = malloc(bytes + 1);
    uint64_t read = 0;
    struct err err = ERR_INIT;

    assert_non_null(got);
    got[bytes] = 0xA5;
    assert_int_equal(weights_read(w, t, &box, got, &read, &err), ST_OK);
    assert_true(read >= bytes);
    assert_int_equal(got[bytes], 0xA5);
    for (uint64_t row = 0; row < box.n_rows; row++) {
        for (uint64_t i = 0; i < box.n_cols * size; i++) {
            const uint64_t at =
                t->offset - data_begin + ((box.row0 + row) * cols + box.col0) * size + i;
            if (got[row * box.n_cols * size + i] != at * 7 % 251) {
                fail_msg("row %llu byte %llu differs", (unsigned long long)row,
                         (unsigned long long)i);
            }
        }
    }
    free(got);
}

static void test_weights__any_box_is_read_as_it_stands(void **state UNUSED)
{
    struct st_builder b = { BUF_INIT, 0 };

    st_add(&b, "odd", "BF16", 3, 0);
    st_add(&b, "narrow", "BF16", 300, 97);
    st_add(&b, "wide", "F32", 3, 70000);
    st_finish(&b, dir, "model.safetensors");
    struct weights *w = open_ok(dir);
    const struct weights_tensor *odd = weights_find(w, "odd");
    const struct weights_tensor *narrow = weights_find(w, "narrow");
    const struct weights_tensor *wide = weights_find(w, "wide");
    const uint64_t data = odd->offset;

    expect_box(w, odd, data, (struct weights_box){ 0, 1, 0, 3 });
    expect_box(w, odd, data, (struct weights_box){ 0, 1, 1, 1 });
    expect_box(w, narrow, data, (struct weights_box){ 0, 300, 0, 97 });
    expect_box(w, narrow, data, (struct weights_box){ 7, 200, 0, 97 });
    expect_box(w, narrow, data, (struct weights_box){ 7, 293, 96, 1 });
    expect_box(w, narrow, data, (struct weights_box){ 0, 300, 13, 40 });
    expect_box(w, wide, data, (struct weights_box){ 0, 3, 1, 69999 });
    expect_box(w, wide, data, (struct weights_box){ 1, 2, 100, 20000 });
    expect_box(w, wide, data, (struct weights_box){ 2, 1, 69999, 1 });
    expect_box(w, wide, data, (struct weights_box){ 3, 0, 0, 70000 });
    weights_close(w);
}

static void test_weights__a_run_over_many_pieces_is_read_whole(void **state UNUSED)
{
    struct st_builder b = { BUF_INIT, 0 };

    st_add(&b, "big", "BF16", 5000, 1801); /* 18 MB: three pieces */
    st_finish(&b, dir, "model.safetensors");
    struct weights *w = open_ok(dir);
    const struct weights_tensor *t = weights_find(w, "big");
    expect_box(w, t, t->offset, (struct weights_box){ 1, 4999, 0, 1801 });
    expect_box(w, t, t->offset, (struct weights_box){ 1, 4999, 900, 300 });
    weights_close(w);
}

static void test_weights__a_box_outside_the_tensor_is_refused(void **state UNUSED)
{
    static const struct weights_box outside[] = {
        { 0, 17, 0, 8 },         { 17, 0, 0, 8 },         { 0, 1, 0, 9 },
        { 1, UINT64_MAX, 0, 8 }, { 0, 1, 1, UINT64_MAX }, { 0, 1, 9, 0 },
    };
    char dst[8];
    struct err err = ERR_INIT;

    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    const struct weights_tensor *t = weights_find(w, "model.embed_tokens.weight");
    for (size_t i = 0; i < ARRAY_LEN(outside); i++) {
        assert_int_equal(weights_read(w, t, &outside[i], dst, NULL, &err), ST_ERR_ARG);
    }
    weights_close(w);
}

static void test_weights__a_file_cut_after_open_is_a_typed_error(void **state UNUSED)
{
    char path[FIXTURE_PATH_BYTES + 64];
    char dst[16 * 8 * 2];
    const struct weights_box box = { 0, 16, 0, 8 };
    struct err err = ERR_INIT;

    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    const struct weights_tensor *t = weights_find(w, "model.embed_tokens.weight");
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, (off_t)t->offset + 100), 0);
    assert_int_equal(weights_read(w, t, &box, dst, NULL, &err), ST_ERR_FORMAT);
    assert_non_null(strstr(err.text, "ends at byte"));
    weights_close(w);
}

static void write_shards(const char *map)
{
    struct st_builder b = { BUF_INIT, 0 };

    st_add(&b, "b", "F32", 4, 4);
    st_finish(&b, dir, "model-00002-of-00002.safetensors");
    st_add(&b, "a", "F16", 2, 0);
    st_finish(&b, dir, "model-00001-of-00002.safetensors");
    fixture_write(dir, "model.safetensors.index.json", map);
}

static void test_weights__shards_are_opened_through_the_index(void **state UNUSED)
{
    uint64_t bytes = 0;

    write_shards("{\"metadata\": {}, \"weight_map\": {\"b\": \"model-00002-of-00002.safetensors\", "
                 "\"a\": \"model-00001-of-00002.safetensors\"}}");
    struct weights *w = open_ok(dir);
    assert_int_equal(weights_count(w), 2);
    assert_int_equal(weights_file_count(w), 2);
    assert_string_equal(weights_file_at(w, 0, &bytes), "model-00001-of-00002.safetensors");
    assert_int_equal(weights_find(w, "a")->i_file, 0);
    assert_int_equal(weights_find(w, "b")->i_file, 1);
    weights_close(w);
}

static void expect_open_refused(status want, const char *word)
{
    struct weights *w = NULL;
    struct err err = ERR_INIT;
    const status st = weights_open(dir, &w, &err);

    if (st != want || strstr(err.text, word) == NULL) {
        fail_msg("got %d \"%s\", wanted %d and \"%s\"", st, err.text, want, word);
    }
    assert_null(w);
}

static void test_weights__an_index_that_does_not_fit_the_shards_is_refused(void **state UNUSED)
{
    write_shards("{\"weight_map\": {\"b\": \"../model.safetensors\"}}");
    expect_open_refused(ST_ERR_FORMAT, "../model.safetensors");
    write_shards("{\"weight_map\": {\"b\": \"..\"}}");
    expect_open_refused(ST_ERR_FORMAT, "\"..\"");
    write_shards("{\"weight_map\": {\"b\": \"\"}}");
    expect_open_refused(ST_ERR_FORMAT, "\"\"");
    write_shards("{\"weight_map\": {\"b\": 3}}");
    expect_open_refused(ST_ERR_FORMAT, "not a file name");
    write_shards("{\"weight_map\": {\"b\": \"model-00003-of-00003.safetensors\"}}");
    expect_open_refused(ST_ERR_NOT_FOUND, "model-00003-of-00003.safetensors");
    write_shards("{\"weight_map\": {\"c\": \"model-00002-of-00002.safetensors\"}}");
    expect_open_refused(ST_ERR_FORMAT, "\"c\" is not in");
    write_shards("{\"weight_map\": {\"a\": \"model-00002-of-00002.safetensors\", "
                 "\"b\": \"model-00001-of-00002.safetensors\"}}");
    expect_open_refused(ST_ERR_FORMAT, "weight_map has it in");
    write_shards("{\"weight_map\": {}}");
    expect_open_refused(ST_ERR_FORMAT, "weight_map");
    write_shards("[]");
    expect_open_refused(ST_ERR_FORMAT, "not a JSON object");
}

static void test_weights__a_tensor_in_two_shards_is_refused(void **state UNUSED)
{
    struct st_builder b = { BUF_INIT, 0 };

    st_add(&b, "x", "F32", 4, 4);
    st_finish(&b, dir, "one.safetensors");
    st_add(&b, "y", "F32", 4, 4);
    st_add(&b, "x", "F32", 4, 4);
    st_finish(&b, dir, "two.safetensors");
    fixture_write(dir, "model.safetensors.index.json",
                  "{\"weight_map\": {\"x\": \"one.safetensors\", \"y\": \"two.safetensors\"}}");
    expect_open_refused(ST_ERR_FORMAT, "in both one.safetensors and two.safetensors");
}

/* ---- digests ---- */

static struct hash128 digest_of(const struct weights *w)
{
    const uint32_t n = weights_chunk_count(w);
    struct hash128 hashes[8];
    struct err err = ERR_INIT;

    assert_in_range(n, 1, ARRAY_LEN(hashes));
    for (uint32_t i = n; i-- > 0;) { /* any order, any rank */
        assert_int_equal(weights_chunk_hash(w, i, &hashes[i], &err), ST_OK);
    }
    return weights_digest(w, hashes);
}

static void test_weights__the_digest_is_of_the_bytes_and_changes_with_one(void **state UNUSED)
{
    char path[FIXTURE_PATH_BYTES + 64];

    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    const struct hash128 before = digest_of(w);
    assert_memory_equal(digest_of(w).bytes, before.bytes, HASH_BYTES);
    const uint64_t at = weights_find(w, "model.norm.weight")->offset;
    weights_close(w);

    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, (long)at, SEEK_SET);
    const int byte = fgetc(file);
    fseek(file, (long)at, SEEK_SET);
    fputc(byte ^ 1, file);
    fclose(file);
    w = open_ok(dir);
    assert_memory_not_equal(digest_of(w).bytes, before.bytes, HASH_BYTES);
    weights_close(w);
}

static void test_weights__a_digest_is_kept_until_the_file_changes(void **state UNUSED)
{
    char cache[FIXTURE_PATH_BYTES + 16], path[FIXTURE_PATH_BYTES + 64];
    struct hash128 kept;
    struct stat info;

    snprintf(cache, sizeof(cache), "%s/cache", dir);
    write_small(NULL, NULL);
    struct weights *w = open_ok(dir);
    const struct hash128 digest = digest_of(w);
    assert_int_equal(weights_digest_cached(w, cache, &kept), ST_ERR_NOT_FOUND);
    weights_digest_store(w, cache, &digest);
    assert_int_equal(weights_digest_cached(w, cache, &kept), ST_OK);
    assert_memory_equal(kept.bytes, digest.bytes, HASH_BYTES);
    weights_close(w);

    /* Another mtime: another key. */
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    const struct timespec times[2] = { { 1000, 0 }, { 1000, 0 } };
    assert_int_equal(utimensat(0, path, times, 0), 0);
    w = open_ok(dir);
    assert_int_equal(weights_digest_cached(w, cache, &kept), ST_ERR_NOT_FOUND);
    weights_close(w);
    assert_int_equal(stat(cache, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
}

static void test_weights__the_stories_model_fits_its_config(void **state UNUSED)
{
    char path[FIXTURE_PATH_BYTES];
    struct model_desc d;
    struct err err = ERR_INIT;

    if (!fixture_shared("models/stories260k/config.json", path)) {
        skip();
    }
    *strrchr(path, '/') = '\0';
    assert_int_equal(model_desc_read(path, &d, &err), ST_OK);
    struct weights *w = open_ok(path);
    if (weights_check(w, &d, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    uint64_t elements = 0;
    for (uint32_t i = 0; i < weights_count(w); i++) {
        elements += weights_at(w, i)->bytes / 4;
    }
    assert_int_equal(elements, model_desc_params(&d));
    weights_close(w);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_weights__tensors_are_found_by_name),
        CASE(test_weights__a_complete_model_passes_the_check),
        CASE(test_weights__the_first_wrong_tensor_is_named),
        CASE(test_weights__a_bias_the_config_does_not_speak_of_is_refused),
        CASE(test_weights__fp8_goes_with_scales_and_only_for_matrices),
        CASE(test_weights__what_of_an_fp8_checkpoint_is_not_fp8_is_found),
        CASE(test_weights__any_box_is_read_as_it_stands),
        CASE(test_weights__a_run_over_many_pieces_is_read_whole),
        CASE(test_weights__a_box_outside_the_tensor_is_refused),
        CASE(test_weights__a_file_cut_after_open_is_a_typed_error),
        CASE(test_weights__shards_are_opened_through_the_index),
        CASE(test_weights__an_index_that_does_not_fit_the_shards_is_refused),
        CASE(test_weights__a_tensor_in_two_shards_is_refused),
        CASE(test_weights__the_digest_is_of_the_bytes_and_changes_with_one),
        CASE(test_weights__a_digest_is_kept_until_the_file_changes),
        CASE(test_weights__the_stories_model_fits_its_config),
    };
    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}
