/* model/tok_norm.c - the normalizers of tokenizer files, in the order in which they stand there.
 *
 * Each takes the whole stretch between two added tokens. SentencePiece's own one (tok_pieces) is in
 * tok_charsmap.c. */
#include "model/tok_impl.h"

#include <stdlib.h>

void tok_norm_fini(struct tok_norm *n)
{
    tok_regex_destroy(n->re);
    free(n->from);
    free(n->to);
    memset(n, 0, sizeof *n);
}

static status replace_literal(const struct tok_norm *n, const char *s, size_t len, struct buf *out)
{
    status st = ST_OK;
    size_t done = 0;

    while (st == ST_OK) {
        const char *hit = memmem(s + done, len - done, n->from, n->from_len);
        if (hit == NULL) {
            break;
        }
        st = buf_append(out, s + done, (size_t)(hit - s) - done);
        if (st == ST_OK) {
            st = buf_append(out, n->to, n->to_len);
        }
        done = (size_t)(hit - s) + n->from_len;
    }
    return st == ST_OK ? buf_append(out, s + done, len - done) : st;
}

static status replace_regex(struct tok_work *w, const struct tok_norm *n, const char *s, size_t len,
                            struct buf *out)
{
    size_t done = 0, begin, end;
    status st = tok_work_match(w);

    while (st == ST_OK) {
        st = tok_regex_next(n->re, w->match, s, len, done, &begin, &end, w->err);
        if (st != ST_OK) {
            break;
        }
        st = buf_append(out, s + done, begin - done);
        if (st == ST_OK) {
            st = buf_append(out, n->to, n->to_len);
        }
        done = end;
    }
    return st == ST_END ? buf_append(out, s + done, len - done) : st;
}

static status strip(struct tok_work *w, const struct tok_norm *n, const char *s, size_t len,
                    struct buf *out)
{
    size_t begin = 0, end = len;
    uint32_t k;

    while (n->left && begin < end && unicode_is_space(utf8_get(s + begin, &k))) {
        begin += k;
        w->at_zero = false;
    }
    while (n->right && end > begin) {
        size_t at = end - 1;
        while (((unsigned char)s[at] & 0xc0) == 0x80) {
            at--;
        }
        if (!unicode_is_space(utf8_get(s + at, &k))) {
            break;
        }
        end = at;
    }
    return buf_append(out, s + begin, end - begin);
}

static status apply(struct tok_work *w, const struct tok_norm *n, const char *s, size_t len,
                    struct buf *out)
{
    status st = ST_OK;

    switch (n->kind) {
    case NORM_FORM:
        return unicode_normalize(n->form, s, len, out, w->err);
    case NORM_PREPEND:
        if (len != 0) {
            st = buf_append(out, n->to, n->to_len);
        }
        return st == ST_OK ? buf_append(out, s, len) : st;
    case NORM_REPLACE:
        return n->re != NULL ? replace_regex(w, n, s, len, out) : replace_literal(n, s, len, out);
    case NORM_STRIP:
        return strip(w, n, s, len, out);
    case NORM_PIECES:
        return tok_norm_pieces(&w->tok->pieces, s, len, w->at_zero, out);
    }
    return ST_ERR_INTERNAL;
}

status tok_normalize(struct tok_work *w, const char *s, size_t len)
{
    const struct tokenizer *t = w->tok;

    buf_reset(&w->norm);
    if (t->n_norms == 0) {
        return buf_append(&w->norm, s, len);
    }
    for (uint32_t i = 0; i < t->n_norms; i++) {
        buf_reset(&w->norm_other);
        const status st = i == 0
                              ? apply(w, &t->norms[0], s, len, &w->norm_other)
                              : apply(w, &t->norms[i], w->norm.data, w->norm.len, &w->norm_other);
        if (st != ST_OK) {
            return st;
        }
        const struct buf swap = w->norm;
        w->norm = w->norm_other;
        w->norm_other = swap;
    }
    return ST_OK;
}
