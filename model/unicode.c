/* model/unicode.c - see unicode.h. The one user of utf8proc. */
#include "model/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum utf8_state utf8_prefix(const unsigned char *s, uint32_t n)
{
    const unsigned char c = s[0];
    uint32_t need;
    unsigned char low = 0x80, high = 0xbf; /* of the second byte */

    if (c < 0x80) {
        return n == 1 ? UTF8_DONE : UTF8_BAD;
    }
    if (c >= 0xc2 && c <= 0xdf) {
        need = 2;
    } else if (c >= 0xe0 && c <= 0xef) {
        need = 3;
        low = c == 0xe0 ? 0xa0 : 0x80;  /* overlong */
        high = c == 0xed ? 0x9f : 0xbf; /* surrogates */
    } else if (c >= 0xf0 && c <= 0xf4) {
        need = 4;
        low = c == 0xf0 ? 0x90 : 0x80;  /* overlong */
        high = c == 0xf4 ? 0x8f : 0xbf; /* above U+10FFFF */
    } else {
        return UTF8_BAD;
    }
    if (n > need || (n >= 2 && (s[1] < low || s[1] > high))) {
        return UTF8_BAD;
    }
    for (uint32_t i = 2; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return UTF8_BAD;
        }
    }
    return n == need ? UTF8_DONE : UTF8_MORE;
}

size_t utf8_valid_upto(const char *s, size_t len)
{
    size_t i = 0;

    while (i < len) {
        const unsigned char c = (unsigned char)s[i];
        if (c < 0x80) {
            i++;
            continue;
        }
        const uint32_t n = utf8_len(s[i]);
        if (c < 0xc2 || n > len - i || utf8_prefix((const unsigned char *)s + i, n) != UTF8_DONE) {
            return i;
        }
        i += n;
    }
    return len;
}

uint32_t utf8_get(const char *s, uint32_t *n_p)
{
    const unsigned char *u = (const unsigned char *)s;
    const uint32_t n = utf8_len(*s);

    *n_p = n;
    switch (n) {
    case 1:
        return u[0];
    case 2:
        return (u[0] & 0x1fu) << 6 | (u[1] & 0x3fu);
    case 3:
        return (u[0] & 0x0fu) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
    default:
        return (u[0] & 0x07u) << 18 | (u[1] & 0x3fu) << 12 | (u[2] & 0x3fu) << 6 | (u[3] & 0x3fu);
    }
}

uint32_t utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

/* ---- classes ---- */

bool unicode_is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

bool unicode_is_number(uint32_t cp)
{
    const utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool unicode_is_punct(uint32_t cp)
{
    const utf8proc_category_t c = category(cp);

    if (cp < 0x80) {
        return cp > 0x20 && cp < 0x7f && !(cp >= '0' && cp <= '9') &&
               !((cp | 0x20) >= 'a' && (cp | 0x20) <= 'z');
    }
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool unicode_is_word(uint32_t cp)
{
    const utf8proc_category_t c = category(cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO) ||
           (c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME) || c == UTF8PROC_CATEGORY_ND ||
           c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_PC;
}

/* ---- normal forms ---- */

static bool is_ascii(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)s[i] >= 0x80) {
            return false;
        }
    }
    return true;
}

/* utf8proc orders marks by insertion. The three Tibetan vowels are starters that fall apart into
 * marks, so that they make a run of marks longer, too. */
static status check_marks(const char *s, size_t len, struct err *err)
{
    uint32_t run = 0, n;

    for (size_t i = 0; i < len; i += n) {
        const uint32_t cp = utf8_get(s + i, &n);
        const bool mark =
            cp >= 0x300 && (cp == 0xf73 || cp == 0xf75 || cp == 0xf81 ||
                            utf8proc_get_property((utf8proc_int32_t)cp)->combining_class != 0);
        run = mark ? run + 1 : 0;
        if (run > UNICODE_MARKS_MAX) {
            return err_set(err, ST_ERR_ARG,
                           "text: over %d combining marks in a row before byte offset %zu",
                           UNICODE_MARKS_MAX, i);
        }
    }
    return ST_OK;
}

status unicode_normalize(enum unicode_form form, const char *s, size_t len, struct buf *out,
                         struct err *err)
{
    static const int options[] = {
        [UNICODE_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [UNICODE_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [UNICODE_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [UNICODE_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    utf8proc_uint8_t *norm = NULL;

    if (len == 0 || is_ascii(s, len)) {
        return buf_append(out, s, len);
    }
    status st = check_marks(s, len, err);
    if (st != ST_OK) {
        return st;
    }
    const utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)len,
                                            &norm, (utf8proc_option_t)options[form]);
    if (n < 0) {
        return err_set(err, n == UTF8PROC_ERROR_NOMEM ? ST_ERR_NOMEM : ST_ERR_ARG,
                       "text of %zu bytes: normalising: %s", len, utf8proc_errmsg(n));
    }
    st = buf_append(out, norm, (size_t)n);
    free(norm);
    return st;
}

/* ---- GPT-2's characters for bytes ---- */

static bool byte_prints(uint32_t b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

/* The 68 bytes that do not print, in order, are U+0100 .. U+0143: 0x00-0x20 (33 of them), 0x7f-0xa0
 * (34), 0xad. */
uint32_t byte_char(unsigned char byte)
{
    if (byte_prints(byte)) {
        return byte;
    }
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    return byte == 0xad ? 0x143u : 0x100u + 33u + (byte - 0x7fu);
}

int byte_of_char(uint32_t cp)
{
    if (cp < 0x100) {
        return byte_prints(cp) ? (int)cp : -1;
    }
    if (cp <= 0x120) {
        return (int)(cp - 0x100);
    }
    if (cp < 0x143) {
        return (int)(cp - 0x121 + 0x7f);
    }
    return cp == 0x143 ? 0xad : -1;
}
