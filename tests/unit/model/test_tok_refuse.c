/* tests/unit/model/test_tok_refuse.c - files that lie, files that ask for what is not done, texts
 * that are not text: each refused with a status and a sentence that names the place. */
#include "model/tokenizer.h"

#include "common/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB "{\"a\":0,\"b\":1,\"ab\":2}"
#define BYTES "{\"type\":\"ByteLevel\"}"

static status open_json(const char *json, struct tokenizer **tok_p, struct err *err)
{
    const struct tok_files files = { .tokenizer_json = json, .tokenizer_json_len = strlen(json) };

    return tokenizer_open_memory(&files, tok_p, err);
}

static void refused(const char *json, status expect, const char *words)
{
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;
    const status st = open_json(json, &tok, &err);

    if (st != expect || tok != NULL || strstr(err.text, words) == NULL) {
        fail_msg("status %d, \"%s\"; expected %d and \"%s\" for %.200s", st, err.text, expect,
                 words, json);
    }
}

static void test_refuse__components_that_are_not_known(void **state)
{
    static const struct {
        const char *field, *value, *words;
    } cases[] = {
        { "normalizer", "{\"type\":\"Lowercase\"}", "normalizer: normalizer \"Lowercase\"" },
        { "normalizer",
          "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"
          "\"Precompiled\"}]}",
          "normalizer.normalizers[1]" },
        { "pre_tokenizer", "{\"type\":\"BertPreTokenizer\"}", "\"BertPreTokenizer\"" },
        { "pre_tokenizer",
          "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"UnicodeScripts\"}]}",
          "pre_tokenizer.pretokenizers[0]" },
        { "pre_tokenizer",
          "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}",
          "&&" },
        { "pre_tokenizer",
          "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\h+\"},\"behavior\":\"Isolated\"}",
          "\\h" },
        { "pre_tokenizer",
          "{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Sideways\"}",
          "Sideways" },
        { "post_processor", "{\"type\":\"BertProcessing\"}", "\"BertProcessing\"" },
        { "decoder", "{\"type\":\"WordPiece\"}", "decoder \"WordPiece\"" },
        { "decoder", "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}", "Strip" },
        { "decoder", "null", "decoder" },
    };
    char json[1024];

    (void)state;
    for (uint32_t i = 0; i < ARRAY_LEN(cases); i++) {
        const bool decoder = strcmp(cases[i].field, "decoder") == 0;
        snprintf(json, sizeof json,
                 "{\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB
                 ",\"merges\":[\"a b\"]},\"%s\":%s%s}",
                 cases[i].field, cases[i].value, decoder ? "" : ",\"decoder\":" BYTES);
        refused(json, ST_ERR_UNSUPPORTED, cases[i].words);
    }
}

static void test_refuse__models_that_are_not_bpe(void **state)
{
    (void)state;
    refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", ST_ERR_UNSUPPORTED, "WordPiece");
    refused("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", ST_ERR_UNSUPPORTED, "Unigram");
    refused("{\"model\":{\"type\":\"WordLevel\",\"vocab\":{}}}", ST_ERR_UNSUPPORTED, "WordLevel");
    refused("{\"model\":{\"vocab\":{}}}", ST_ERR_UNSUPPORTED, "only BPE");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB
            ",\"merges\":[],\"end_of_word_suffix\":\"</w>\"},\"decoder\":" BYTES "}",
            ST_ERR_UNSUPPORTED, "end_of_word_suffix");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB
            ",\"merges\":[],\"dropout\":0.1},\"decoder\":" BYTES "}",
            ST_ERR_UNSUPPORTED, "dropout");
}

#define WITH(vocab, merges, more)                                                                  \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges                          \
    "},\"decoder\":" BYTES more "}"

static void test_refuse__vocabularies_that_lie(void **state)
{
    (void)state;
    refused(WITH("{\"a\":1000000000}", "[]", ""), ST_ERR_LIMIT, "1000000000");
    refused(WITH("{\"a\":1048576}", "[]", ""), ST_ERR_LIMIT, "1048575");
    refused(WITH("{\"a\":-1}", "[]", ""), ST_ERR_FORMAT, "vocab[\"a\"]");
    refused(WITH("{\"a\":0.5}", "[]", ""), ST_ERR_FORMAT, "vocab[\"a\"]");
    refused(WITH("{\"a\":0,\"b\":0}", "[]", ""), ST_ERR_FORMAT, "id 0 is both");
    refused(WITH("{\"a\":0,\"a\":1}", "[]", ""), ST_ERR_FORMAT, "line 1");
    refused(WITH("{}", "[]", ""), ST_ERR_FORMAT, "empty");
    refused(WITH("[]", "[]", ""), ST_ERR_FORMAT, "vocab");
    refused(WITH(VOCAB, "[\"a c\"]", ""), ST_ERR_FORMAT, "merge 0: \"c\"");
    refused(WITH(VOCAB, "[\"a b\",\"b a\"]", ""), ST_ERR_FORMAT, "merge 1: \"ba\"");
    refused(WITH(VOCAB, "[\"ab\"]", ""), ST_ERR_FORMAT, "merges[0]");
    refused(WITH(VOCAB, "[[\"a\",\"b\",\"c\"]]", ""), ST_ERR_FORMAT, "merges[0]");
    refused(WITH(VOCAB, "{}", ""), ST_ERR_FORMAT, "merges");
    refused(WITH(VOCAB, "[]", ",\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]"), ST_ERR_FORMAT,
            "id 1 is both");
    refused(WITH(VOCAB, "[]", ",\"added_tokens\":[{\"id\":7,\"content\":\"a\"}]"), ST_ERR_FORMAT,
            "added token 7");
    refused(WITH(VOCAB, "[]", ",\"added_tokens\":[{\"id\":7}]"), ST_ERR_FORMAT, "content");
    refused(
        WITH(VOCAB, "[]",
             ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
             "{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"x\":{\"ids\":["
             "99]}}}"),
        ST_ERR_FORMAT, "no token 99");
}

static void test_refuse__json_cut_anywhere(void **state)
{
    static const char json[] = WITH(VOCAB, "[\"a b\"]", "");
    struct tokenizer *tok = NULL;

    (void)state;
    for (size_t len = 0; len < sizeof json - 1; len++) {
        const struct tok_files files = { .tokenizer_json = json, .tokenizer_json_len = len };
        assert_int_equal(tokenizer_open_memory(&files, &tok, NULL), ST_ERR_FORMAT);
    }
    assert_int_equal(open_json(json, &tok, NULL), ST_OK);
    tokenizer_close(tok);
}

static void read_golden(const char *rest, struct buf *b)
{
    const char *root = getenv("GANTRY_SOURCE_DIR");
    char path[4096];

    snprintf(path, sizeof path, "%s/tests/%s", root != NULL ? root : ".", rest);
    assert_int_equal(buf_read_file(b, path, 1 << 20, NULL), ST_OK);
}

/* Cut between two fields a protobuf is still a message: then something it needs is missing, or it
 * is a smaller tokenizer. */
static void test_refuse__sentencepiece_cut_anywhere_never_faults(void **state)
{
    struct buf model = BUF_INIT;
    uint32_t n_refused = 0, n_opened = 0;

    (void)state;
    read_golden("fuzz/corpus/tokenizer_model/plain", &model);
    for (size_t len = 0; len <= model.len; len++) {
        const struct tok_files files = { .tokenizer_model = model.data,
                                         .tokenizer_model_len = len };
        struct tokenizer *tok = NULL;
        struct err err = ERR_INIT;
        const status st = tokenizer_open_memory(&files, &tok, &err);
        if (st == ST_OK) {
            n_opened++;
            tokenizer_close(tok);
        } else {
            assert_true(st == ST_ERR_FORMAT || st == ST_ERR_UNSUPPORTED);
            assert_non_null(strstr(err.text, "tokenizer.model"));
            n_refused++;
        }
    }
    assert_true(n_opened >= 1 && n_opened <= 3);
    assert_true(n_refused + n_opened == model.len + 1);
    buf_fini(&model);
}

static void test_refuse__sentencepiece_unigram_by_name(void **state)
{
    /* trainer_spec { model_type: UNIGRAM } and one unknown piece */
    static const char model[] = "\x0a\x09\x0a\x05<unk>\x18\x02\x12\x02\x18\x01";
    const struct tok_files files = { .tokenizer_model = model,
                                     .tokenizer_model_len = sizeof model - 1 };
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(tokenizer_open_memory(&files, &tok, &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "unigram"));
}

static void test_refuse__a_directory_without_a_tokenizer(void **state)
{
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(tokenizer_open("/nonexistent/model", &tok, &err), ST_ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nonexistent/model"));
    assert_non_null(strstr(err.text, "tokenizer.json"));
}

static void test_refuse__a_class_whose_pattern_is_not_known(void **state)
{
    static const char vocab[] = "{\"a\":0}", config[] = "{\"tokenizer_class\":\"FooTokenizer\"}";
    const struct tok_files files = { .vocab_json = vocab,
                                     .vocab_json_len = sizeof vocab - 1,
                                     .merges_txt = "",
                                     .tokenizer_config = config,
                                     .tokenizer_config_len = sizeof config - 1 };
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(tokenizer_open_memory(&files, &tok, &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "FooTokenizer"));
}

/* ---- texts ---- */

static void test_encode__refuses_what_is_not_utf8_at_its_offset(void **state)
{
    static const struct {
        const char *text, *words;
    } cases[] = {
        { "ab\xff", "offset 2" },
        { "\xc3\xa9\xc3", "offset 2" },
        { "\xed\xa0\x80", "offset 0" },
        { "a\xc0\x80", "offset 1" },
        { "\xf4\x90\x80\x80", "offset 0" },
        { "abc\xe2\x82", "offset 3" },
        { "x\x80", "offset 1" },
    };
    struct tokenizer *tok = NULL;
    struct token_list list = { NULL, 0 };

    (void)state;
    assert_int_equal(open_json(WITH(VOCAB, "[\"a b\"]", ""), &tok, NULL), ST_OK);
    for (uint32_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;
        assert_int_equal(
            tokenizer_encode(tok, cases[i].text, strlen(cases[i].text), 0, 9, &list, &err),
            ST_ERR_ARG);
        assert_non_null(strstr(err.text, cases[i].words));
        assert_null(list.ids);
    }
    tokenizer_close(tok);
}

static void test_encode__holds_its_limits(void **state)
{
    static const char nfc[] = WITH("{\"a\":0}", "[]", ",\"normalizer\":{\"type\":\"NFC\"}");
    struct tokenizer *tok = NULL;
    struct token_list list = { NULL, 0 };
    struct err err = ERR_INIT;
    struct buf marks = BUF_INIT;

    (void)state;
    assert_int_equal(open_json(nfc, &tok, NULL), ST_OK);
    assert_int_equal(tokenizer_encode(tok, "aaaa", 4, 0, 3, &list, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "more than 3 tokens"));
    assert_int_equal(tokenizer_encode(tok, "aaaa", 4, 0, 4, &list, &err), ST_OK);
    assert_int_equal(list.n, 4);
    token_list_fini(&list);

    for (int i = 0; i < 1000; i++) {
        assert_int_equal(buf_append(&marks, i % 2 != 0 ? "\xcc\x81" : "\xcc\xa3", 2), ST_OK);
    }
    assert_int_equal(tokenizer_encode(tok, marks.data, marks.len, 0, 9999, &list, &err),
                     ST_ERR_ARG);
    assert_non_null(strstr(err.text, "combining marks"));
    assert_int_equal(tokenizer_encode(tok, marks.data, 1000, 0, 9999, &list, &err), ST_OK);
    token_list_fini(&list);

    char *big = calloc(1, TOK_TEXT_BYTES_MAX + 1);
    assert_non_null(big);
    assert_int_equal(tokenizer_encode(tok, big, TOK_TEXT_BYTES_MAX + 1, 0, 9, &list, &err),
                     ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "8388609"));
    free(big);
    buf_fini(&marks);
    tokenizer_close(tok);
}

static void test_encode__a_whole_word_rule_does_not_make_special_tokens(void **state)
{
    /* ignore_merges looks whole words up; the merges make the special token as well. */
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},"
        "\"merges\":[\"a b\"]},\"added_tokens\":[{\"id\":2,\"content\":\"ab\",\"special\":true}],"
        "\"decoder\":" BYTES "}";
    struct tokenizer *tok = NULL;
    struct token_list list = { NULL, 0 };

    (void)state;
    assert_int_equal(open_json(json, &tok, NULL), ST_OK);
    assert_int_equal(tokenizer_encode(tok, "ab", 2, 0, 9, &list, NULL), ST_OK);
    assert_int_equal(list.n, 2);
    token_list_fini(&list);
    assert_int_equal(tokenizer_encode(tok, "ab", 2, TOK_PARSE_SPECIAL, 9, &list, NULL), ST_OK);
    assert_int_equal(list.n, 1);
    assert_int_equal(list.ids[0], 2);
    token_list_fini(&list);
    tokenizer_close(tok);
}

static void test_encode__out_of_memory_is_a_status_wherever_it_strikes(void **state)
{
    static const char text[] = "the quick brown fox jumps over the lazy dog";
    struct tokenizer *tok = NULL;
    struct buf json = BUF_INIT;
    uint32_t n = 1;

    (void)state;
    read_golden("golden/tokenizer_llama3_style/tokenizer.json", &json);
    for (bool failed = true; failed; n++) {
        struct err err = ERR_INIT;
        alloc_fail_at(n);
        const status st = open_json(json.data, &tok, &err);
        failed = alloc_fail_off();
        assert_int_equal(st, failed ? ST_ERR_NOMEM : ST_OK);
        assert_true((err.text[0] != '\0') == failed);
    }
    assert_true(n > 10);
    n = 1;
    for (bool failed = true; failed; n++) {
        struct token_list list = { NULL, 0 };
        struct err err = ERR_INIT;
        alloc_fail_at(n);
        const status st = tokenizer_encode(tok, text, sizeof text - 1, 0, 99, &list, &err);
        failed = alloc_fail_off();
        assert_int_equal(st, failed ? ST_ERR_NOMEM : ST_OK);
        assert_true((err.text[0] != '\0') == failed);
        token_list_fini(&list);
    }
    assert_true(n > 5);
    tokenizer_close(tok);
    buf_fini(&json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuse__components_that_are_not_known),
        cmocka_unit_test(test_refuse__models_that_are_not_bpe),
        cmocka_unit_test(test_refuse__vocabularies_that_lie),
        cmocka_unit_test(test_refuse__json_cut_anywhere),
        cmocka_unit_test(test_refuse__sentencepiece_cut_anywhere_never_faults),
        cmocka_unit_test(test_refuse__sentencepiece_unigram_by_name),
        cmocka_unit_test(test_refuse__a_directory_without_a_tokenizer),
        cmocka_unit_test(test_refuse__a_class_whose_pattern_is_not_known),
        cmocka_unit_test(test_encode__refuses_what_is_not_utf8_at_its_offset),
        cmocka_unit_test(test_encode__holds_its_limits),
        cmocka_unit_test(test_encode__a_whole_word_rule_does_not_make_special_tokens),
        cmocka_unit_test(test_encode__out_of_memory_is_a_status_wherever_it_strikes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
