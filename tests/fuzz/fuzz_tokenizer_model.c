/* tests/fuzz/fuzz_tokenizer_model.c - any bytes as tokenizer.model. Either a refusal with a
 * sentence, or a tokenizer that encodes and decodes without a fault and gives only ids that it has.
 */
#include "model/tokenizer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] =
    "Hello  wor1d 123\n\n<|eot|> caf\xc3\xa9 e\xcc\x81 \xe6\x97\xa5\xe6\x9c\xac "
    "\xf0\x9f\x9a\x80\xe2\x96\x81 cat <0x41>  ";

static void use(const struct tokenizer *tok)
{
    struct buf out = BUF_INIT_MAX((size_t)16 << 20);

    for (unsigned flags = 0; flags < 8; flags++) {
        struct token_list list = { NULL, 0 };
        struct err err = ERR_INIT;
        const status st = tokenizer_encode(tok, text, sizeof text - 1, flags, 10000, &list, &err);
        ASSERT(st == ST_OK || (err.code == st && err.text[0] != '\0'));
        for (uint32_t i = 0; i < list.n; i++) {
            ASSERT(tokenizer_has(tok, list.ids[i]));
        }
        buf_reset(&out);
        const status decoded = tokenizer_decode(tok, list.ids, list.n, flags & 1, &out);
        ASSERT(decoded == ST_OK || decoded == ST_ERR_LIMIT);
        token_list_fini(&list);
    }
    buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct tok_files files = { .tokenizer_model = (const char *)data,
                                     .tokenizer_model_len = size };
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;
    const status st = tokenizer_open_memory(&files, &tok, &err);

    ASSERT((st == ST_OK) == (tok != NULL));
    ASSERT(st == ST_OK || (err.code == st && err.text[0] != '\0'));
    if (st == ST_OK) {
        use(tok);
        ASSERT(tokenizer_stats(tok).n_tokens <= tokenizer_n_vocab(tok));
        tokenizer_close(tok);
    }
    return 0;
}
