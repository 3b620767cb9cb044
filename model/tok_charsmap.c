/* model/tok_charsmap.c - SentencePiece's own normaliser.
 *
 * The character map of a tokenizer.model (nmt_nfkc and the like; empty for identity) is a double
 * array that maps strings to their normal forms, compiled into the file. It is walked as it is, so
 * nothing is approximated:
 *
 *   u32 bytes of the array | the array, u32 units | normal forms, each ended by NUL
 *
 * A unit: bits 0-7 label (with bit 31: "is a value"), bit 8 has a leaf, bits 10-30 offset (times
 * 256 if bit 9 is set). Every index is checked against the array, since the file may lie. */
#include "model/tok_impl.h"

#include <stdlib.h>

static const char visible_space[] = "\xe2\x96\x81"; /* U+2581 */

static uint32_t get_u32(const char *p)
{
    const unsigned char *u = (const unsigned char *)p;
    return u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
}

status tok_charsmap_load(struct tok_pieces *p, const char *data, size_t len, struct err *err)
{
    if (len == 0) {
        return ST_OK;
    }
    const uint32_t bytes = len >= 4 ? get_u32(data) : 0;
    if (len < 8 || bytes % 4 != 0 || bytes < 4 || bytes >= len - 4) {
        return err_set(err, ST_ERR_FORMAT,
                       "normalizer_spec.precompiled_charsmap: %zu bytes with an array of %u bytes",
                       len, bytes);
    }
    const uint32_t n_strings = (uint32_t)(len - 4 - bytes);
    if (data[len - 1] != '\0' || utf8_valid_upto(data + 4 + bytes, n_strings) != n_strings) {
        return err_set(err, ST_ERR_FORMAT,
                       "normalizer_spec.precompiled_charsmap: its strings are not UTF-8");
    }
    p->trie = malloc(bytes);
    p->strings = malloc(n_strings);
    if (p->trie == NULL || p->strings == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a character map of %zu bytes", len);
    }
    p->n_trie = bytes / 4;
    for (uint32_t i = 0; i < p->n_trie; i++) {
        p->trie[i] = get_u32(data + 4 + 4 * i);
    }
    memcpy(p->strings, data + 4 + bytes, n_strings);
    p->n_strings = n_strings;
    return ST_OK;
}

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The longest entry at s: its length (0: none) and the place of its normal form. */
static size_t longest(const struct tok_pieces *p, const char *s, size_t len, uint32_t *value_p)
{
    size_t best = 0;
    uint32_t node = unit_offset(p->trie[0]);

    for (size_t i = 0; i < len; i++) {
        const uint32_t c = (unsigned char)s[i];
        node ^= c;
        if (node >= p->n_trie) {
            break;
        }
        const uint32_t unit = p->trie[node];
        if ((unit & (1u << 31 | 0xff)) != c) {
            break;
        }
        node ^= unit_offset(unit);
        if (node >= p->n_trie) {
            break;
        }
        if ((unit >> 8 & 1) != 0) {
            const uint32_t value = p->trie[node] & ~(1u << 31);
            if (value < p->n_strings) {
                *value_p = value;
                best = i + 1;
            }
        }
    }
    return best;
}

/* One normalisation step at s: how much was read, and what it becomes. */
static size_t prefix(const struct tok_pieces *p, const char *s, size_t len, const char **to_p,
                     size_t *to_len_p)
{
    uint32_t value = 0, id;
    size_t n = tok_trie_match(&p->user, s, len, &id);

    if (n == 0 && p->trie != NULL) {
        n = longest(p, s, len, &value);
        /* An entry that ends inside a character would cut it in two. */
        if (n != 0 && (n == len || ((unsigned char)s[n] & 0xc0) != 0x80)) {
            *to_p = p->strings + value;
            *to_len_p = strlen(p->strings + value);
            return n;
        }
        n = 0;
    }
    n = n != 0 ? n : utf8_len(*s);
    *to_p = s;
    *to_len_p = n;
    return n;
}

static status put_space(const struct tok_pieces *p, struct buf *out)
{
    return p->escape ? buf_append(out, visible_space, 3) : buf_append_char(out, ' ');
}

static status put(const struct tok_pieces *p, const char *s, size_t len, struct buf *out)
{
    status st = ST_OK;
    size_t done = 0;

    for (size_t i = 0; i < len && st == ST_OK; i++) {
        if (s[i] == ' ') {
            st = buf_append(out, s + done, i - done);
            if (st == ST_OK) {
                st = put_space(p, out);
            }
            done = i + 1;
        }
    }
    return st == ST_OK ? buf_append(out, s + done, len - done) : st;
}

static void drop_trailing_spaces(const struct tok_pieces *p, struct buf *out, size_t floor)
{
    const char *space = p->escape ? visible_space : " ";
    const size_t k = strlen(space);

    while (out->len >= floor + k && memcmp(out->data + out->len - k, space, k) == 0) {
        out->len -= k;
        out->data[out->len] = '\0';
    }
}

status tok_norm_pieces(const struct tok_pieces *p, const char *s, size_t len, bool at_zero,
                       struct buf *out)
{
    const bool dummy = p->dummy_prefix && (p->every || at_zero);
    const size_t floor = out->len;
    const char *to;
    size_t i = 0, n, to_len;
    status st = ST_OK;

    while (p->squeeze && i < len) {
        n = prefix(p, s + i, len - i, &to, &to_len);
        if (to_len != 1 || *to != ' ') {
            break;
        }
        i += n;
    }
    if (i == len) {
        return ST_OK;
    }
    if (dummy) {
        st = put_space(p, out);
    }
    bool after_space = p->squeeze;
    while (i < len && st == ST_OK) {
        n = prefix(p, s + i, len - i, &to, &to_len);
        i += n;
        while (after_space && to_len != 0 && *to == ' ') {
            to++;
            to_len--;
        }
        if (to_len != 0) {
            st = put(p, to, to_len, out);
            after_space = to[to_len - 1] == ' ';
        }
        after_space = after_space && p->squeeze;
    }
    if (st == ST_OK && p->squeeze) {
        drop_trailing_spaces(p, out, floor);
    }
    return st;
}
