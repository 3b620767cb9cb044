/* tests/fuzz/fuzz_tokenizer_gpt2.c - vocab.json, merges.txt and tokenizer_config.json, divided by
 * lines of "---". A refusal with a sentence, or a tokenizer that works. */
#include "model/tokenizer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The part at *p, which moves behind it and its dividing line. */
static const char *next_part(const char **p, const char *end, size_t *len)
{
    static const char line[] = "\n---\n";
    const size_t k = sizeof line - 1;
    const char *begin = *p, *at = begin;

    while ((size_t)(end - at) >= k && memcmp(at, line, k) != 0) {
        at++;
    }
    const bool found = (size_t)(end - at) >= k;
    *len = (size_t)((found ? at : end) - begin);
    *p = found ? at + k : end;
    return begin;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "lower newest  abab <|x|> \xe2\x82\xac";
    const char *p = (const char *)data, *end = p + size;
    struct tok_files files = { 0 };
    struct tokenizer *tok = NULL;
    struct token_list list = { NULL, 0 };
    struct err err = ERR_INIT;

    files.vocab_json = next_part(&p, end, &files.vocab_json_len);
    files.merges_txt = next_part(&p, end, &files.merges_txt_len);
    if (p < end) {
        files.tokenizer_config = next_part(&p, end, &files.tokenizer_config_len);
    }
    status st = tokenizer_open_memory(&files, &tok, &err);
    ASSERT((st == ST_OK) == (tok != NULL));
    ASSERT(st == ST_OK || (err.code == st && err.text[0] != '\0'));
    if (st == ST_OK) {
        st = tokenizer_encode(tok, text, sizeof text - 1, TOK_PARSE_SPECIAL, 1000, &list, &err);
        ASSERT(st == ST_OK || err.text[0] != '\0');
        for (uint32_t i = 0; i < list.n; i++) {
            ASSERT(tokenizer_has(tok, list.ids[i]));
        }
        token_list_fini(&list);
        tokenizer_close(tok);
    }
    return 0;
}
