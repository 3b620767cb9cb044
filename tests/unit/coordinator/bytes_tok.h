/* A tokenizer for tests, made in memory: token id = byte (0 .. 255), 256 "<s>" (BOS), 257 "</s>".
 * So a scripted answer can be read in the test as text. */
#ifndef TESTS_BYTES_TOK_H
#define TESTS_BYTES_TOK_H

#include "model/tokenizer.h"

#include <stdio.h>
#include <string.h>

enum { BYTES_BOS = 256, BYTES_EOS = 257, BYTES_VOCAB = 258 };

/* GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest from U+0100 on. */
static uint32_t bytes_tok_spelling(uint32_t byte)
{
    uint32_t n = 0;

    for (uint32_t b = 0; b < 256; b++) {
        const bool plain =
            (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
        if (b == byte) {
            return plain ? b : 256 + n;
        }
        n += !plain;
    }
    return 0;
}

static struct tokenizer *bytes_tok_open(struct err *err)
{
    static const char config[] =
        "{\"tokenizer_class\":\"GPT2Tokenizer\",\"add_bos_token\":true,\"bos_token\":\"<s>\","
        "\"eos_token\":\"</s>\",\"added_tokens_decoder\":{\"256\":{\"content\":\"<s>\",\"special\":"
        "true},\"257\":{\"content\":\"</s>\",\"special\":true}}}";
    struct tokenizer *tok = NULL;
    char vocab[8192];
    int n = snprintf(vocab, sizeof(vocab), "{");

    for (uint32_t b = 0; b < 256; b++) {
        n += snprintf(vocab + n, sizeof(vocab) - (size_t)n, "%s\"\\u%04x\":%u", b != 0 ? "," : "",
                      bytes_tok_spelling(b), b);
    }
    n += snprintf(vocab + n, sizeof(vocab) - (size_t)n, "}");
    const struct tok_files files = { .vocab_json = vocab,
                                     .vocab_json_len = (size_t)n,
                                     .merges_txt = "",
                                     .tokenizer_config = config,
                                     .tokenizer_config_len = sizeof(config) - 1 };
    return tokenizer_open_memory(&files, &tok, err) == ST_OK ? tok : NULL;
}

#endif
