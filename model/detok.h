/* model/detok.h - token ids to streamed text, one id at a time.
 *
 * The text of a continuation is decode(prompt + ids) minus decode(prompt), cut so that no push ever
 * gives half a UTF-8 character: bytes of an unfinished character wait inside (at most 3). Bytes
 * that can never become a character are U+FFFD, as the tokenizer's own decoder says (byte-level:
 * one for each maximal broken part; byte fallback: one for each byte). SentencePiece tokenizers
 * strip the space of the first word of a text; whether that was in the prompt is what detok_prompt
 * is for.
 *
 *   detok_init ──► detok_prompt(prompt ids) ──► detok_push(id) … ──► detok_flush
 *
 * State is a function of the ids seen, so a stream that moves is rebuilt from its journal:
 * detok_init, detok_prompt(prompt + emitted ids). Plain data, no allocation, one owner; the
 * tokenizer is borrowed and must outlive it. */
#ifndef MODEL_DETOK_H
#define MODEL_DETOK_H

#include "model/tokenizer.h"

struct detok {
    const struct tokenizer *tok; /* borrowed */
    bool with_special;           /* show special tokens by their content */
    bool started;                /* no longer at the first token, or where text began */
    uint8_t n_strip;             /* leading spaces of the text still to strip */
    uint8_t n_pending;           /* bytes of an unfinished character */
    unsigned char pending[4];
};

void detok_init(struct detok *d, const struct tokenizer *tok, bool with_special);
/* Ids that came before the continuation; their text is not given out. */
void detok_prompt(struct detok *d, const uint32_t *ids, size_t n);
/* Append the text that `id` completes to `out` (perhaps nothing). Ids without a token give nothing.
 * On failure (ST_ERR_NOMEM, ST_ERR_LIMIT of `out`) neither d nor out has changed. */
status detok_push(struct detok *d, uint32_t id, struct buf *out) WARN_UNUSED;
/* The end: an unfinished character becomes U+FFFD. */
status detok_flush(struct detok *d, struct buf *out) WARN_UNUSED;

#endif
