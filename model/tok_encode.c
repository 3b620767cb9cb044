/* model/tok_encode.c - the pipeline from text to ids.
 *
 *   text ──► added tokens of the raw text ──► normalise ──► added tokens of the normalised text
 *        ──► words ──► merges ──► ids
 *
 * The two looks for added tokens are the library's: a token marked `normalized` is searched in its
 * normal form. A special token that is found while the caller did not ask for special tokens stays
 * text, and is merged like any other text. */
#include "model/tok_impl.h"

#include <stdlib.h>

status tok_emit(struct tok_work *w, uint32_t id)
{
    if (w->n_ids == w->max_ids) {
        return err_set(w->err, ST_ERR_LIMIT, "text has more than %u tokens", w->max_ids);
    }
    if (w->n_ids == w->cap_ids) {
        const uint32_t cap = MAX(64u, w->cap_ids + w->cap_ids / 2);
        uint32_t *ids = realloc(w->ids, cap * sizeof *ids);
        if (ids == NULL) {
            return err_set(w->err, ST_ERR_NOMEM, "no memory for %u tokens", cap);
        }
        w->ids = ids;
        w->cap_ids = cap;
    }
    w->ids[w->n_ids++] = id;
    return ST_OK;
}

status tok_work_match(struct tok_work *w)
{
    if (w->match == NULL) {
        w->match = tok_match_create();
        if (w->match == NULL) {
            return err_set(w->err, ST_ERR_NOMEM, "no memory to match patterns");
        }
    }
    return ST_OK;
}

void tok_work_fini(struct tok_work *w)
{
    tok_match_destroy(w->match);
    buf_fini(&w->norm);
    buf_fini(&w->norm_other);
    buf_fini(&w->text);
    buf_fini(&w->other);
    free(w->spans);
    free(w->next);
    free(w->syms);
    free(w->heap);
    free(w->ids);
}

/* ---- added tokens ---- */

/* The character before s[at], or 0. */
static uint32_t char_before(const char *s, size_t at, size_t *begin_p)
{
    uint32_t n;

    if (at == 0) {
        return 0;
    }
    do {
        at--;
    } while (at != 0 && ((unsigned char)s[at] & 0xc0) == 0x80);
    *begin_p = at;
    return utf8_get(s + at, &n);
}

static bool stands_alone(const char *s, size_t len, size_t begin, size_t end)
{
    size_t at;
    uint32_t n;

    return (begin == 0 || !unicode_is_word(char_before(s, begin, &at))) &&
           (end == len || !unicode_is_word(utf8_get(s + end, &n)));
}

struct found {
    size_t begin, end;
    uint32_t id;
};

/* The next added token in s[from..len) that counts, with the white space it takes. */
static bool next_added(const struct tok_work *w, const struct tok_trie *trie, const char *s,
                       size_t len, size_t from, struct found *f)
{
    uint32_t n;

    for (size_t at = from; at < len;) {
        const uint32_t k = tok_trie_match(trie, s + at, len - at, &f->id);
        if (k == 0) {
            at++;
            continue;
        }
        const unsigned flags = w->tok->entries[f->id].flags;
        f->begin = at;
        f->end = at + k;
        at = f->end;
        if (((flags & TOKF_SPECIAL) != 0 && (w->flags & TOK_PARSE_SPECIAL) == 0) ||
            ((flags & TOKF_SINGLE) != 0 && !stands_alone(s, len, f->begin, f->end))) {
            continue;
        }
        size_t before = 0;
        while ((flags & TOKF_LSTRIP) != 0 && f->begin > from &&
               unicode_is_space(char_before(s, f->begin, &before))) {
            f->begin = before;
        }
        while ((flags & TOKF_RSTRIP) != 0 && f->end < len &&
               unicode_is_space(utf8_get(s + f->end, &n))) {
            f->end += n;
        }
        return true;
    }
    return false;
}

/* ---- the pipeline ---- */

static status encode_words(struct tok_work *w, const char *s, size_t len)
{
    status st = tok_pre_tokenize(w, s, len);

    for (uint32_t i = 0; i < w->n_spans && st == ST_OK; i++) {
        st = tok_bpe(w, w->text.data + w->spans[i].begin, w->spans[i].end - w->spans[i].begin);
    }
    return st;
}

typedef status (*stretch_fn)(struct tok_work *w, const char *s, size_t len);

/* Cut s at the added tokens of `trie`; `fn` gets what is between them. */
static status cut_added(struct tok_work *w, const struct tok_trie *trie, const char *s, size_t len,
                        stretch_fn fn)
{
    const bool at_zero = w->at_zero;
    size_t done = 0;
    struct found f;
    status st = ST_OK;

    while (st == ST_OK && trie->n_nodes != 0 && next_added(w, trie, s, len, done, &f)) {
        if (f.begin > done) {
            w->at_zero = at_zero && done == 0;
            st = fn(w, s + done, f.begin - done);
        }
        if (st == ST_OK) {
            st = tok_emit(w, f.id);
        }
        done = f.end;
    }
    if (st == ST_OK && done < len) {
        w->at_zero = at_zero && done == 0;
        st = fn(w, s + done, len - done);
    }
    return st;
}

static status encode_stretch(struct tok_work *w, const char *s, size_t len)
{
    const status st = tok_normalize(w, s, len);

    return st == ST_OK ? cut_added(w, &w->tok->normed, w->norm.data, w->norm.len, encode_words)
                       : st;
}

static status encode_all(struct tok_work *w, const char *text, size_t len)
{
    const struct tokenizer *t = w->tok;
    const bool special = (w->flags & TOK_ADD_SPECIAL) != 0;
    status st = ST_OK;

    if ((w->flags & TOK_ADD_BOS) != 0 && t->bos >= 0 &&
        !(special && t->n_prefix != 0 && t->prefix[0] == (uint32_t)t->bos)) {
        st = tok_emit(w, (uint32_t)t->bos);
    }
    for (uint32_t i = 0; special && i < t->n_prefix && st == ST_OK; i++) {
        st = tok_emit(w, t->prefix[i]);
    }
    w->at_zero = true;
    if (st == ST_OK) {
        st = cut_added(w, &t->raw, text, len, encode_stretch);
    }
    for (uint32_t i = 0; special && i < t->n_suffix && st == ST_OK; i++) {
        st = tok_emit(w, t->suffix[i]);
    }
    return st;
}

status tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len, unsigned flags,
                        uint32_t n_max, struct token_list *list_p, struct err *err)
{
    /* Normal forms grow a text by 18 times at most (NFKC of U+FDFA), stand-ins double it. */
    const size_t room = 40 * len + 1024;
    struct tok_work w = { .tok = tok,
                          .err = err,
                          .flags = flags,
                          .max_ids = n_max,
                          .norm = BUF_INIT_MAX(room),
                          .norm_other = BUF_INIT_MAX(room),
                          .text = BUF_INIT_MAX(room),
                          .other = BUF_INIT_MAX(room) };
    struct err none = ERR_INIT;

    if (len > TOK_TEXT_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "text of %zu bytes, the limit is %d", len,
                       TOK_TEXT_BYTES_MAX);
    }
    const size_t valid = utf8_valid_upto(text, len);
    if (valid != len) {
        return err_set(err, ST_ERR_ARG, "text is not UTF-8 at byte offset %zu (0x%02x)", valid,
                       (unsigned char)text[valid]);
    }
    w.err = err != NULL ? err : &none;
    w.err->code = ST_OK;
    status st = encode_all(&w, text, len);
    if (st != ST_OK && w.err->code == ST_OK) { /* a buffer: it has no words of its own */
        (void)err_set(w.err, st, "no memory to encode a text of %zu bytes", len);
    }
    if (st == ST_OK) {
        list_p->ids = w.n_ids != 0 ? w.ids : NULL;
        list_p->n = w.n_ids;
        if (w.n_ids != 0) {
            w.ids = NULL;
        }
    }
    tok_work_fini(&w);
    return st;
}

void token_list_fini(struct token_list *list)
{
    free(list->ids);
    list->ids = NULL;
    list->n = 0;
}
