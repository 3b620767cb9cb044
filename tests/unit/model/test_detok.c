/* tests/unit/model/test_detok.c - streamed text: whole characters, broken bytes, first spaces. */
#include "model/detok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#define MODEL(vocab) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[]},"
#define FUSED                                                                                      \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},"          \
    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}"

/* ids: 0 E2, 1 82, 2 AC (together the euro sign), 3 "a", 4 space + "b", 5 F0, 6 special */
static const char byte_level[] = MODEL("\"\xc3\xa2\":0,\"\xc4\xa4\":1,\"\xc2\xac\":2,\"a\":3,"
                                       "\"\xc4\xa0"
                                       "b\":4,\"\xc3\xb0\":5") "\"added_tokens\":[{\"id\":6,"
                                                               "\"content\":\"<|s|>\",\"special\":"
                                                               "true}],\"decoder\":{\"type\":"
                                                               "\"ByteLevel\"}}";
/* the same ids in SentencePiece style; 7 two spaces */
static const char pieces[] =
    MODEL("\"<0xE2>\":0,\"<0x82>\":1,\"<0xAC>\":2,\"a\":3,\"\xe2\x96\x81"
          "b\":4,\"<0xF0>\":5,\"\xe2\x96\x81\xe2\x96\x81\":7") "\"added_tokens\":[{\"id\":6,"
                                                               "\"content\":\"<s>\",\"special\":"
                                                               "true}],\"decoder\":{\"type\":"
                                                               "\"Sequence\",\"decoders\":[" FUSED
                                                               ",{\"type\":\"Strip\",\"content\":"
                                                               "\" \",\"start\":1,\"stop\":0}]}}";

static struct tokenizer *open_text(const char *json)
{
    const struct tok_files files = { .tokenizer_json = json, .tokenizer_json_len = strlen(json) };
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;

    if (tokenizer_open_memory(&files, &tok, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return tok;
}

/* Push n ids, with a bar after what each gives; then flush. */
static void expect(const struct tokenizer *tok, bool with_special, const uint32_t *ids, uint32_t n,
                   const char *text)
{
    struct buf out = BUF_INIT;
    struct detok d;

    detok_init(&d, tok, with_special);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(detok_push(&d, ids[i], &out), ST_OK);
        assert_int_equal(buf_append_char(&out, '|'), ST_OK);
    }
    assert_int_equal(detok_flush(&d, &out), ST_OK);
    assert_string_equal(out.data, text);
    buf_fini(&out);
}

#define EXPECT(tok, special, text, ...)                                                            \
    expect(tok, special, (const uint32_t[]){ __VA_ARGS__ },                                        \
           sizeof((const uint32_t[]){ __VA_ARGS__ }) / sizeof(uint32_t), text)
#define BAD "\xef\xbf\xbd"

static void test_detok__a_character_waits_until_it_is_whole(void **state)
{
    struct tokenizer *tok = open_text(byte_level);

    (void)state;
    EXPECT(tok, false, "a|||\xe2\x82\xac|", 3, 0, 1, 2);
    EXPECT(tok, false, "|||\xe2\x82\xac| b|", 0, 6, 1, 2, 4); /* a hidden token does not cut it */
    tokenizer_close(tok);
}

static void test_detok__byte_level_marks_each_broken_part_once(void **state)
{
    struct tokenizer *tok = open_text(byte_level);

    (void)state;
    EXPECT(tok, false, "||" BAD "a|", 0, 1, 3);
    EXPECT(tok, false, "||" BAD, 0, 1);
    EXPECT(tok, false, BAD "|" BAD "|", 1, 2);
    EXPECT(tok, false, "|" BAD "||" BAD "a|", 5, 0, 1, 3);
    tokenizer_close(tok);
}

static void test_detok__byte_fallback_marks_each_byte(void **state)
{
    struct tokenizer *tok = open_text(pieces);

    (void)state;
    EXPECT(tok, false, "||\xe2\x82\xac|", 0, 1, 2);
    EXPECT(tok, false, "||" BAD BAD "a|", 0, 1, 3);
    EXPECT(tok, false, "||" BAD BAD, 0, 1);
    tokenizer_close(tok);
}

static void test_detok__only_the_first_space_of_a_text_is_stripped(void **state)
{
    struct tokenizer *tok = open_text(pieces);

    (void)state;
    EXPECT(tok, false, "b| b|", 4, 4);
    EXPECT(tok, false, "|b| b|", 6, 4, 4); /* BOS is no text */
    EXPECT(tok, true, "<s>| b|", 6, 4);
    EXPECT(tok, false, "a| b|", 3, 4);
    EXPECT(tok, false, " |a|", 7, 3);
    tokenizer_close(tok);
}

static void test_detok__special_tokens_show_on_request_only(void **state)
{
    struct tokenizer *tok = open_text(byte_level);

    (void)state;
    EXPECT(tok, false, "a||a|", 3, 6, 3);
    EXPECT(tok, true, "a|<|s|>|a|", 3, 6, 3);
    EXPECT(tok, true, "a||a|", 3, 12345, 3); /* no such id: nothing */
    tokenizer_close(tok);
}

static void test_detok__a_prompt_that_ends_inside_a_character_is_completed(void **state)
{
    struct tokenizer *tok = open_text(byte_level);
    const uint32_t prompt[] = { 3, 0, 1 };
    struct buf out = BUF_INIT;
    struct detok d;

    (void)state;
    detok_init(&d, tok, false);
    detok_prompt(&d, prompt, ARRAY_LEN(prompt));
    assert_int_equal(detok_push(&d, 2, &out), ST_OK);
    assert_string_equal(out.data, "\xe2\x82\xac");
    buf_fini(&out);
    tokenizer_close(tok);
}

static void test_detok__a_full_buffer_changes_nothing(void **state)
{
    struct tokenizer *tok = open_text(byte_level);
    struct buf small = BUF_INIT_MAX(8), out = BUF_INIT;
    struct detok d;

    (void)state;
    detok_init(&d, tok, false);
    assert_int_equal(detok_push(&d, 0, &out), ST_OK);
    assert_int_equal(detok_push(&d, 1, &out), ST_OK);
    const struct detok before = d;
    assert_int_equal(detok_push(&d, 2, &small), ST_ERR_LIMIT);
    assert_int_equal(small.len, 0);
    assert_int_equal(d.n_pending, before.n_pending);
    assert_int_equal(detok_push(&d, 2, &out), ST_OK);
    assert_string_equal(out.data, "\xe2\x82\xac");
    buf_fini(&out);
    buf_fini(&small);
    tokenizer_close(tok);
}

static void test_tokenizer__token_bytes_are_exact(void **state)
{
    static const struct {
        uint32_t id;
        const char *bytes;
    } cases[] = { { 0, "\xe2" }, { 4, " b" }, { 6, "<|s|>" }, { 7, "" }, { 99999, "" } };
    struct tokenizer *tok = open_text(byte_level);

    (void)state;
    for (uint32_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t len = 99;
        const char *s = tokenizer_token_bytes(tok, cases[i].id, &len);
        assert_int_equal(len, strlen(cases[i].bytes));
        assert_memory_equal(s, cases[i].bytes, len);
    }
    assert_int_equal(tokenizer_n_vocab(tok), 7);
    assert_false(tokenizer_is_special(tok, 7));
    assert_int_equal(tokenizer_find(tok, "<|s|>"), 6);
    assert_int_equal(tokenizer_find(tok, "nothing"), -1);
    assert_int_equal(tokenizer_bos(tok), -1);
    tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detok__a_character_waits_until_it_is_whole),
        cmocka_unit_test(test_detok__byte_level_marks_each_broken_part_once),
        cmocka_unit_test(test_detok__byte_fallback_marks_each_byte),
        cmocka_unit_test(test_detok__only_the_first_space_of_a_text_is_stripped),
        cmocka_unit_test(test_detok__special_tokens_show_on_request_only),
        cmocka_unit_test(test_detok__a_prompt_that_ends_inside_a_character_is_completed),
        cmocka_unit_test(test_detok__a_full_buffer_changes_nothing),
        cmocka_unit_test(test_tokenizer__token_bytes_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
