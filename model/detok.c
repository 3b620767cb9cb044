/* model/detok.c - see detok.h.
 *
 * Every push reserves the most it can append (3 bytes, the length of U+FFFD, for each byte in hand)
 * before it changes anything; after that nothing can fail. A NULL sink counts as "thrown away". */
#include "model/detok.h"

#include "model/tok_impl.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

void detok_init(struct detok *d, const struct tokenizer *tok, bool with_special)
{
    memset(d, 0, sizeof *d);
    d->tok = tok;
    d->with_special = with_special;
    d->n_strip = tok->decode.strip;
}

/* Room was reserved. */
static void put(struct buf *out, const void *s, size_t len)
{
    if (out == NULL) {
        return;
    }
    memcpy(out->data + out->len, s, len);
    out->len += len;
    out->data[out->len] = '\0';
}

/* n bytes that are no character. */
static void put_broken(struct detok *d, uint32_t n, struct buf *out)
{
    const uint32_t marks = d->tok->decode.byte_fallback ? n : 1;

    for (uint32_t i = 0; i < marks && n != 0; i++) {
        put(out, replacement, 3);
    }
}

static void feed(struct detok *d, unsigned char byte, struct buf *out)
{
    d->pending[d->n_pending++] = byte;
    switch (utf8_prefix(d->pending, d->n_pending)) {
    case UTF8_MORE:
        return;
    case UTF8_DONE:
        put(out, d->pending, d->n_pending);
        break;
    case UTF8_BAD:
        if (d->n_pending > 1) { /* what came before is broken; this byte may begin anew */
            put_broken(d, d->n_pending - 1u, out);
            d->n_pending = 0;
            feed(d, byte, out);
            return;
        }
        put_broken(d, 1, out);
        break;
    }
    d->n_pending = 0;
}

static void push(struct detok *d, uint32_t id, struct buf *out)
{
    size_t len;
    const char *s = tokenizer_token_bytes(d->tok, id, &len);
    const unsigned flags = d->tok->entries[id].flags;
    const bool byte = (flags & TOKF_BYTE) != 0, unk = (flags & TOKF_UNK) != 0;
    const bool drop_all = d->tok->decode.strip_all && !d->started;

    if (!byte && d->tok->decode.byte_fallback) { /* a run of bytes ends here */
        put_broken(d, d->n_pending, out);
        d->n_pending = 0;
    }
    /* SentencePiece, when it squeezes spaces: each token loses its first one while there is no
     * text. */
    const bool word =
        d->tok->decode.strip_word && !d->started && !byte && !unk && len != 0 && s[0] == ' ';
    d->n_strip = unk ? 0 : d->n_strip; /* its surface is shown as it is */
    for (size_t i = word ? 1 : 0; i < len; i++) {
        if (s[i] == ' ' && (drop_all || d->n_strip != 0)) {
            d->n_strip = (uint8_t)(drop_all ? d->n_strip : d->n_strip - 1);
            continue;
        }
        d->n_strip = 0;
        feed(d, (unsigned char)s[i], out);
    }
    d->started = d->started || !d->tok->decode.strip_word || len > (word ? 1u : 0u);
}

static bool shown(const struct detok *d, uint32_t id)
{
    return tokenizer_has(d->tok, id) && (d->with_special || !tokenizer_is_special(d->tok, id));
}

void detok_prompt(struct detok *d, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (shown(d, ids[i])) {
            push(d, ids[i], NULL);
        }
    }
}

status detok_push(struct detok *d, uint32_t id, struct buf *out)
{
    size_t len;

    if (!shown(d, id)) {
        return ST_OK;
    }
    (void)tokenizer_token_bytes(d->tok, id, &len);
    const status st = buf_reserve(out, 3 * (len + sizeof d->pending));
    if (st == ST_OK) {
        push(d, id, out);
    }
    return st;
}

status detok_flush(struct detok *d, struct buf *out)
{
    const status st = buf_reserve(out, 3 * sizeof d->pending);

    if (st == ST_OK) {
        put_broken(d, d->n_pending, out);
        d->n_pending = 0;
    }
    return st;
}

status tokenizer_decode(const struct tokenizer *tok, const uint32_t *ids, size_t n,
                        bool with_special, struct buf *out)
{
    struct detok d;
    status st = ST_OK;

    detok_init(&d, tok, with_special);
    for (size_t i = 0; i < n && st == ST_OK; i++) {
        st = detok_push(&d, ids[i], out);
    }
    return st == ST_OK ? detok_flush(&d, out) : st;
}
