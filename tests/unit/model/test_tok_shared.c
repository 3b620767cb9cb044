/* tests/unit/model/test_tok_shared.c - the real vocabularies beside the checkout: GPT-2, Qwen2 and
 * the SentencePiece model of stories260k. Skips where they are absent. */
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
#include <time.h>

static char *shared(char path[4096], const char *rest)
{
    const char *root = getenv("GANTRY_SHARED_DIR");

    snprintf(path, 4096, "%s/%s", root != NULL ? root : "../shared", rest);
    return path;
}

static struct tokenizer *open_shared(const char *rest)
{
    char path[4096];
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;

    if (tokenizer_open(shared(path, rest), &tok, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return tok;
}

static void check_case(const struct tokenizer *tok, const char *text, size_t len, const char **out)
{
    struct token_list list = { NULL, 0 };
    struct err err = ERR_INIT;
    struct buf back = BUF_INIT;
    uint32_t n = 0;

    if (tokenizer_encode(tok, text, len, 0, UINT32_MAX, &list, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    for (const char *p = *out; *p != '\n'; n++) {
        char *end;
        const uint32_t id = (uint32_t)strtoul(p, &end, 10);
        assert_true(n < list.n);
        assert_int_equal(list.ids[n], id);
        p = end;
        *out = p;
    }
    *out = strchr(*out, '\n') + 1;
    assert_int_equal(n, list.n);
    assert_int_equal(tokenizer_decode(tok, list.ids, list.n, false, &back), ST_OK);
    assert_int_equal(back.len, len);
    assert_memory_equal(back.data, text, len);
    buf_fini(&back);
    token_list_fini(&list);
}

/* cases.inp: texts divided by a newline, the mark and a newline. */
static void check_cases(const char *dir)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[4096], rest[256];
    struct buf inp = BUF_INIT, out = BUF_INIT;
    struct tokenizer *tok = open_shared(dir);
    const char *ids;
    uint32_t n = 0;

    snprintf(rest, sizeof rest, "%s/cases.inp", dir);
    assert_int_equal(buf_read_file(&inp, shared(path, rest), 1 << 20, NULL), ST_OK);
    snprintf(rest, sizeof rest, "%s/cases.out", dir);
    assert_int_equal(buf_read_file(&out, shared(path, rest), 1 << 20, NULL), ST_OK);
    ids = out.data;
    for (const char *p = inp.data, *end; (end = strstr(p, mark)) != NULL; n++) {
        check_case(tok, p, (size_t)(end - p), &ids);
        p = end + sizeof mark - 1;
    }
    assert_int_equal(n, 46);
    buf_fini(&inp);
    buf_fini(&out);
    tokenizer_close(tok);
}

static void test_tokenizer__gpt2_cases_are_exact_both_ways(void **state)
{
    (void)state;
    check_cases("tokenizers/gpt2");
}

static void test_tokenizer__qwen2_cases_are_exact_both_ways(void **state)
{
    (void)state;
    check_cases("tokenizers/qwen2");
}

static void test_tokenizer__qwen2_chat_marks_are_special_only_on_request(void **state)
{
    static const char text[] = "<|im_start|>user\nhi<|im_end|>";
    struct tokenizer *tok = open_shared("tokenizers/qwen2");
    struct token_list list = { NULL, 0 };

    (void)state;
    assert_int_equal(tokenizer_find(tok, "<|im_start|>"), 151644);
    assert_int_equal(tokenizer_eos(tok), 151645);
    assert_true(tokenizer_is_special(tok, 151643));
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), TOK_PARSE_SPECIAL, 99, &list, NULL),
                     ST_OK);
    assert_int_equal(list.n, 5);
    assert_int_equal(list.ids[0], 151644);
    assert_int_equal(list.ids[4], 151645);
    token_list_fini(&list);
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), 0, 99, &list, NULL), ST_OK);
    for (uint32_t i = 0; i < list.n; i++) {
        assert_true(list.ids[i] < 151643);
    }
    token_list_fini(&list);
    tokenizer_close(tok);
}

static void test_tokenizer__stories_bos_alone_strips_the_first_space(void **state)
{
    static const char text[] = "Once upon a time";
    struct tokenizer *tok = open_shared("models/stories260k");
    struct token_list list = { NULL, 0 };
    struct buf out = BUF_INIT;
    struct detok d;

    (void)state;
    assert_int_equal(tokenizer_encode(tok, text, strlen(text), TOK_ADD_SPECIAL, 99, &list, NULL),
                     ST_OK);
    assert_int_equal(list.ids[0], 1);
    assert_int_equal(tokenizer_bos(tok), 1);
    assert_int_equal(tokenizer_eos(tok), 2);
    assert_true(tokenizer_stats(tok).adds_bos);

    detok_init(&d, tok, false); /* the prompt is BOS: the first word begins the text */
    detok_prompt(&d, list.ids, 1);
    for (uint32_t i = 1; i < list.n; i++) {
        assert_int_equal(detok_push(&d, list.ids[i], &out), ST_OK);
    }
    assert_string_equal(out.data, text);

    buf_reset(&out); /* the prompt has words: the space is part of the continuation */
    detok_init(&d, tok, false);
    detok_prompt(&d, list.ids, list.n);
    assert_int_equal(detok_push(&d, list.ids[1], &out), ST_OK);
    assert_int_equal(out.data[0], ' ');
    buf_fini(&out);
    token_list_fini(&list);
    tokenizer_close(tok);
}

/* The ceiling is loose, as machines differ: quadratic merging would take hours. */
static void test_tokenizer__a_megabyte_without_spaces_is_quick(void **state)
{
    static const char *const dirs[] = { "tokenizers/gpt2", "models/stories260k" };
    enum { N = 1 << 20 };
    char *text = malloc(N);
    struct timespec a, b;

    (void)state;
    assert_non_null(text);
    for (uint32_t i = 0; i < N; i++) {
        text[i] = (char)('a' + (i * 7919u >> 3) % 26);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(dirs); i++) {
        struct tokenizer *tok = open_shared(dirs[i]);
        struct token_list list = { NULL, 0 };
        struct buf back = BUF_INIT;

        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a); /* the machine may be busy */
        assert_int_equal(tokenizer_encode(tok, text, N, 0, UINT32_MAX, &list, NULL), ST_OK);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
        assert_true(b.tv_sec - a.tv_sec < 20);
        assert_int_equal(tokenizer_decode(tok, list.ids, list.n, false, &back), ST_OK);
        assert_int_equal(back.len, N);
        assert_memory_equal(back.data, text, N);
        buf_fini(&back);
        token_list_fini(&list);
        tokenizer_close(tok);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer__gpt2_cases_are_exact_both_ways),
        cmocka_unit_test(test_tokenizer__qwen2_cases_are_exact_both_ways),
        cmocka_unit_test(test_tokenizer__qwen2_chat_marks_are_special_only_on_request),
        cmocka_unit_test(test_tokenizer__stories_bos_alone_strips_the_first_space),
        cmocka_unit_test(test_tokenizer__a_megabyte_without_spaces_is_quick),
    };
    char path[4096];
    struct buf probe = BUF_INIT;

    if (buf_read_file(&probe, shared(path, "tokenizers/gpt2/cases.out"), 1 << 20, NULL) != ST_OK) {
        printf("skipped: no %s\n", path);
        return 77;
    }
    buf_fini(&probe);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
