/* tests/unit/model/test_tok_golden.c - ids and texts recorded from the reference libraries
 * (tests/golden/tokenizer_golden.py), encoded, decoded and streamed. */
#include "model/detok.h"
#include "model/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *open_golden(const char *name, struct buf *cases)
{
    const char *root = getenv("GANTRY_SOURCE_DIR");
    char path[4096];
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;

    snprintf(path, sizeof path, "%s/tests/golden/tokenizer_%s", root != NULL ? root : ".", name);
    if (tokenizer_open(path, &tok, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    strncat(path, "/cases.txt", sizeof path - strlen(path) - 1);
    if (buf_read_file(cases, path, (size_t)1 << 20, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return tok;
}

/* Hex digits up to a tab or a line end -> out. Returns what stands behind. */
static char *read_hex(char *p, struct buf *out)
{
    unsigned byte;
    int n;

    buf_reset(out);
    while (sscanf(p, "%2x%n", &byte, &n) == 1 && n == 2 && p[0] > ' ' && p[1] > ' ') {
        assert_int_equal(buf_append_char(out, (char)byte), ST_OK);
        p += 2;
    }
    assert_true(*p == '\t' || *p == '\n');
    return p;
}

/* Pushing ids one by one gives whole characters, and the same text whereever the prompt ends. */
static void check_stream(const struct tokenizer *tok, const struct token_list *ids,
                         const struct buf *text)
{
    struct buf all = BUF_INIT, tail = BUF_INIT;
    struct detok d, from;
    uint32_t n = 0;

    detok_init(&d, tok, true);
    for (uint32_t i = 0; i < ids->n; i++) {
        assert_int_equal(detok_push(&d, ids->ids[i], &all), ST_OK);
        detok_init(&from, tok, true);
        detok_prompt(&from, ids->ids, i + 1);
        buf_reset(&tail);
        for (uint32_t k = i + 1; k < ids->n; k++) {
            assert_int_equal(detok_push(&from, ids->ids[k], &tail), ST_OK);
        }
        assert_int_equal(detok_flush(&from, &tail), ST_OK);
        assert_true(all.len + tail.len == text->len);
        assert_memory_equal(text->data, all.data, all.len);
        assert_memory_equal(text->data + all.len, tail.data, tail.len);
        /* the cut is at the start of a character */
        assert_true(all.len == text->len || ((unsigned char)text->data[all.len] & 0xc0) != 0x80);
        n++;
    }
    assert_int_equal(n, ids->n);
    buf_fini(&all);
    buf_fini(&tail);
}

static void check_case(const struct tokenizer *tok, char *line, struct buf *text, struct buf *back)
{
    struct token_list list = { NULL, 0 };
    struct err err = ERR_INIT;
    struct buf got = BUF_INIT;
    char *p = line;
    uint32_t n = 0;
    const unsigned flags = (unsigned)strtoul(p, &p, 10);

    assert_true(*p == '\t');
    p = read_hex(p + 1, text) + 1;
    if (tokenizer_encode(tok, text->data, text->len, flags, UINT32_MAX, &list, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    for (; *p != '\t'; n++) {
        const uint32_t id = (uint32_t)strtoul(p, &p, 10);
        if (n >= list.n || list.ids[n] != id) {
            fail_msg("\"%s\" flags %u: token %u of %u is %u, recorded %u", text->data, flags, n,
                     list.n, n < list.n ? list.ids[n] : 0, id);
        }
        p += *p == ' ';
    }
    assert_int_equal(n, list.n);
    read_hex(p + 1, back);
    assert_int_equal(tokenizer_decode(tok, list.ids, list.n, true, &got), ST_OK);
    if (got.len != back->len || memcmp(got.data, back->data, got.len) != 0) {
        fail_msg("\"%s\" reads \"%s\", recorded \"%s\"", text->data, got.data, back->data);
    }
    check_stream(tok, &list, back);
    buf_fini(&got);
    token_list_fini(&list);
}

static void check_golden(const char *name)
{
    struct buf cases = BUF_INIT, text = BUF_INIT, back = BUF_INIT;
    struct tokenizer *tok = open_golden(name, &cases);
    uint32_t n = 0;

    for (char *line = cases.data; *line != '\0'; n++) {
        check_case(tok, line, &text, &back);
        line = strchr(line, '\n');
        assert_non_null(line);
        line++;
    }
    assert_int_equal(n, 110);
    tokenizer_close(tok);
    buf_fini(&cases);
    buf_fini(&text);
    buf_fini(&back);
}

static void test_golden__llama3_style_is_exact(void **state)
{
    (void)state;
    check_golden("llama3_style");
}

static void test_golden__qwen2_style_with_nfc_is_exact(void **state)
{
    (void)state;
    check_golden("qwen2_style");
}

static void test_golden__stages_after_bytes_are_exact(void **state)
{
    (void)state;
    check_golden("falcon_style");
}

static void test_golden__llama2_style_with_prepend_is_exact(void **state)
{
    (void)state;
    check_golden("llama2_style");
}

static void test_golden__metaspace_first_is_exact(void **state)
{
    (void)state;
    check_golden("metaspace");
}

static void test_golden__sentencepiece_with_charsmap_is_exact(void **state)
{
    (void)state;
    check_golden("sentencepiece");
}

static void test_golden__sentencepiece_keeping_spaces_is_exact(void **state)
{
    (void)state;
    check_golden("sentencepiece_keep");
}

/* Every recorded text, without TOK_PARSE_SPECIAL: no special id but what the file adds. */
static void test_golden__special_tokens_never_come_from_text(void **state)
{
    static const char *const names[] = { "llama3_style", "qwen2_style", "falcon_style",
                                         "llama2_style", "metaspace",   "sentencepiece" };
    struct buf cases = BUF_INIT;
    uint32_t n_special = 0;

    (void)state;
    for (uint32_t i = 0; i < ARRAY_LEN(names); i++) {
        struct tokenizer *tok = open_golden(names[i], &cases);
        for (uint32_t id = 0; id < tokenizer_n_vocab(tok); id++) {
            struct token_list list = { NULL, 0 };
            struct buf text = BUF_INIT;
            size_t len;
            if (!tokenizer_is_special(tok, id)) {
                continue;
            }
            const char *s = tokenizer_token_bytes(tok, id, &len);
            assert_int_equal(buf_printf(&text, "a %.*s%.*s b", (int)len, s, (int)len, s), ST_OK);
            assert_int_equal(tokenizer_encode(tok, text.data, text.len, 0, 100, &list, NULL),
                             ST_OK);
            for (uint32_t k = 0; k < list.n; k++) {
                assert_false(tokenizer_is_special(tok, list.ids[k]));
            }
            token_list_fini(&list);
            assert_int_equal(
                tokenizer_encode(tok, text.data, text.len, TOK_PARSE_SPECIAL, 100, &list, NULL),
                ST_OK);
            uint32_t hits = 0;
            for (uint32_t k = 0; k < list.n; k++) {
                hits += list.ids[k] == id;
            }
            assert_int_equal(hits, 2);
            token_list_fini(&list);
            buf_fini(&text);
            n_special++;
        }
        tokenizer_close(tok);
    }
    buf_fini(&cases);
    assert_true(n_special >= 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden__llama3_style_is_exact),
        cmocka_unit_test(test_golden__qwen2_style_with_nfc_is_exact),
        cmocka_unit_test(test_golden__stages_after_bytes_are_exact),
        cmocka_unit_test(test_golden__llama2_style_with_prepend_is_exact),
        cmocka_unit_test(test_golden__metaspace_first_is_exact),
        cmocka_unit_test(test_golden__sentencepiece_with_charsmap_is_exact),
        cmocka_unit_test(test_golden__sentencepiece_keeping_spaces_is_exact),
        cmocka_unit_test(test_golden__special_tokens_never_come_from_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
