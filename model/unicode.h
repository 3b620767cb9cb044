/* model/unicode.h - UTF-8 and the character classes that tokenizers need.
 *
 * Classes follow Rust's `char` methods and the regular expressions of the Hugging Face library,
 * which is what tokenizer files mean. Tables come from utf8proc. Pure functions, any thread. */
#ifndef MODEL_UNICODE_H
#define MODEL_UNICODE_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Offset of the first byte that is not part of valid UTF-8 (no surrogates, nothing overlong or
 * above U+10FFFF), or `len` if all is valid. */
size_t utf8_valid_upto(const char *s, size_t len);

/* Decode the character at s of *valid* UTF-8 (len > 0); its length goes to *n_p. */
uint32_t utf8_get(const char *s, uint32_t *n_p);
/* Write 1..4 bytes; returns how many. */
uint32_t utf8_put(uint32_t cp, char out[4]);
/* Bytes of the character that starts with this lead byte of valid UTF-8. */
static inline uint32_t utf8_len(char lead)
{
    const unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* What a prefix of n bytes (1..4) is: a character, the beginning of one, or neither. */
enum utf8_state { UTF8_DONE, UTF8_MORE, UTF8_BAD };
enum utf8_state utf8_prefix(const unsigned char *s, uint32_t n);

bool unicode_is_space(uint32_t cp);  /* White_Space */
bool unicode_is_number(uint32_t cp); /* Nd, Nl, No */
bool unicode_is_punct(uint32_t cp);  /* ASCII punctuation and symbols, or category P */
bool unicode_is_word(uint32_t cp);   /* \w: letters, marks, numbers Nd, connectors */

enum unicode_form { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD };
enum { UNICODE_MARKS_MAX = 512 }; /* combining marks in a row: ordering them costs quadratic time */

/* Append the normal form of valid UTF-8 to `out`. ST_ERR_ARG: more than UNICODE_MARKS_MAX combining
 * marks in a row, with the offset. ST_ERR_NOMEM, ST_ERR_LIMIT (of out). */
status unicode_normalize(enum unicode_form form, const char *s, size_t len, struct buf *out,
                         struct err *err) WARN_UNUSED;

/* GPT-2's printable stand-ins for bytes: bytes that print stand for themselves as characters, the
 * others are U+0100 upwards (a space is U+0120). */
uint32_t byte_char(unsigned char byte);
int byte_of_char(uint32_t cp); /* -1: not one of the 256 */

#endif
