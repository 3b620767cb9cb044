/* tests/fuzz/fuzz_tokenizer_text.c - any text through a small byte-level tokenizer, and any ids
 * through the detokeniser.
 *
 * Text that is UTF-8 comes back byte for byte, whatever its division into tokens; other text is
 * refused at the offset of its first bad byte. Streamed pieces are whole characters, always. */
#include "model/detok.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* 256 bytes in GPT-2's order of stand-ins, a few merges, an added and a special token. */
static char *make_json(void)
{
    static const char *const merges[] = {
        "t h", "th e", "\xc4\xa0 the", "a b", "ab ab", "\xc4\xa0 \xc4\xa0", "\xc3\x83 \xc2\xa9"
    };
    static char json[16384];
    char *p = json;
    unsigned id = 0, extra = 0;

    p += sprintf(p, "{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (unsigned b = 0; b < 256; b++) {
        const int prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        p += sprintf(p, "\"\\u%04x\":%u,", prints ? b : 0x100 + extra, id++);
        extra += !prints;
    }
    for (unsigned i = 0; i < ARRAY_LEN(merges); i++) {
        const char *space = strchr(merges[i], ' ');
        p += sprintf(p, "\"%.*s%s\":%u,", (int)(space - merges[i]), merges[i], space + 1, id++);
    }
    p += sprintf(p, "\"\xc4\xa0\xc4\xa0x\":%u},\"merges\":[", id++);
    for (unsigned i = 0; i < ARRAY_LEN(merges); i++) {
        p += sprintf(p, "%s\"%s\"", i != 0 ? "," : "", merges[i]);
    }
    p += sprintf(p,
                 "]},\"added_tokens\":[{\"id\":%u,\"content\":\"<|s|>\",\"special\":true},"
                 "{\"id\":%u,\"content\":\"tool\",\"special\":false}],\"pre_tokenizer\":"
                 "{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                 "\"decoder\":{\"type\":\"ByteLevel\"}}",
                 id, id + 1);
    return json;
}

static const struct tokenizer *shared(void)
{
    static struct tokenizer *tok;
    struct err err = ERR_INIT;

    if (tok == NULL) {
        const char *json = make_json();
        const struct tok_files files = { .tokenizer_json = json,
                                         .tokenizer_json_len = strlen(json) };
        const status st = tokenizer_open_memory(&files, &tok, &err);
        if (st != ST_OK) {
            fprintf(stderr, "%s\n", err.text);
            abort();
        }
    }
    return tok;
}

static bool whole(const char *s, size_t len)
{
    struct token_list list = { NULL, 0 };
    const status st = tokenizer_encode(shared(), s, len, 0, UINT32_MAX, &list, NULL);

    token_list_fini(&list);
    return st == ST_OK;
}

static void try_text(const char *text, size_t len)
{
    struct token_list list = { NULL, 0 };
    struct err err = ERR_INIT;
    struct buf back = BUF_INIT;
    const unsigned flags = len != 0 ? (unsigned char)text[0] & TOK_PARSE_SPECIAL : 0u;
    const status st = tokenizer_encode(shared(), text, len, flags, UINT32_MAX, &list, &err);

    ASSERT(st == ST_OK || st == ST_ERR_ARG);
    if (st != ST_OK) {
        const char *at = strstr(err.text, "offset ");
        ASSERT(at != NULL && strtoul(at + 7, NULL, 10) < len);
        ASSERT(whole(text, strtoul(at + 7, NULL, 10)));
        return;
    }
    const status decoded = tokenizer_decode(shared(), list.ids, list.n, true, &back);
    ASSERT(decoded == ST_OK && back.len == len && memcmp(back.data, text, len) == 0);
    buf_fini(&back);
    token_list_fini(&list);
}

static void try_ids(const uint8_t *data, size_t size)
{
    struct buf all = BUF_INIT, piece = BUF_INIT;
    struct detok d;

    detok_init(&d, shared(), size % 2 != 0);
    for (size_t i = 0; i + 1 < MIN(size, (size_t)512); i += 2) {
        buf_reset(&piece);
        status st = detok_push(&d, (uint32_t)data[i] | (data[i + 1] & 1u) << 8, &piece);
        ASSERT(st == ST_OK && whole(piece.data, piece.len));
        st = buf_append(&all, piece.data, piece.len);
        ASSERT(st == ST_OK);
    }
    const status st = detok_flush(&d, &all);
    ASSERT(st == ST_OK && whole(all.data, all.len));
    buf_fini(&all);
    buf_fini(&piece);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_text((const char *)data, size);
    try_ids(data, size);
    return 0;
}
