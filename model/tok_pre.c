/* model/tok_pre.c - cutting text into the words inside which merging happens.
 *
 * A stage either cuts spans of the text finer (patterns, digits, punctuation) or writes a new text
 * (stand-in characters, visible spaces) with new spans. Patterns see one span at a time as if it
 * were the whole text, as in the library that defined them; what they cut is described as a list of
 * stretches, matching or not, to which `how` is applied. */
#include "model/tok_impl.h"

#include <stdlib.h>

const char tok_pattern_gpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char tok_pattern_qwen2[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                                 "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                                 "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

void tok_pre_fini(struct tok_pre *p)
{
    tok_regex_destroy(p->re);
    free(p->literal);
    memset(p, 0, sizeof *p);
}

/* ---- building ---- */

static status add(struct tokenizer *t, const struct tok_pre *pre, const char *where,
                  struct err *err)
{
    if (t->n_pres == TOK_STAGES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: over %d pre-tokenizers", where, TOK_STAGES_MAX);
    }
    t->pres[t->n_pres++] = *pre;
    return ST_OK;
}

status tok_pre_add_regex(struct tokenizer *t, const char *pattern, size_t len, enum split_how how,
                         bool invert, const char *where, struct err *err)
{
    struct tok_pre pre = { .kind = PRE_REGEX, .how = how, .invert = invert };
    status st = tok_regex_create(pattern, len, where, &pre.re, err);

    if (st == ST_OK) {
        st = add(t, &pre, where, err);
        if (st != ST_OK) {
            tok_pre_fini(&pre);
        }
    }
    return st;
}

status tok_pre_add_bytes(struct tokenizer *t, bool prefix_space, struct err *err)
{
    const struct tok_pre pre = { .kind = PRE_BYTES, .prefix_space = prefix_space };
    return add(t, &pre, "pre_tokenizer", err);
}

/* ---- spans ---- */

static status push(struct tok_work *w, size_t begin, size_t end)
{
    if (begin == end) {
        return ST_OK;
    }
    if (w->n_next == w->cap_next) {
        const uint32_t cap = MAX(64u, w->cap_next * 2);
        struct tok_span *next = realloc(w->next, cap * sizeof *next);
        if (next == NULL) {
            return err_set(w->err, ST_ERR_NOMEM, "no memory for %u words", cap);
        }
        w->next = next;
        w->cap_next = cap;
    }
    w->next[w->n_next++] = (struct tok_span){ (uint32_t)begin, (uint32_t)end };
    return ST_OK;
}

static void take_next(struct tok_work *w)
{
    struct tok_span *spans = w->spans;
    const uint32_t cap = w->cap_spans;

    w->spans = w->next;
    w->n_spans = w->n_next;
    w->cap_spans = w->cap_next;
    w->next = spans;
    w->cap_next = cap;
    w->n_next = 0;
}

/* ---- cutting ---- */

/* The state of one span's cutting: each stretch is joined to the last, or pushed, as `how` says. */
struct cutter {
    struct tok_work *w;
    const struct tok_pre *pre;
    struct tok_span open; /* the piece that may still grow; empty at first */
    bool open_match;      /* the last stretch in it was a match */
};

static status cut(struct cutter *c, size_t begin, size_t end, bool match)
{
    const struct tok_span piece = { (uint32_t)begin, (uint32_t)end };
    const bool empty = c->open.begin == c->open.end;
    bool join = false;
    status st = ST_OK;

    if (begin == end) {
        return ST_OK;
    }
    match = match != c->pre->invert;
    switch (c->pre->how) {
    case SPLIT_REMOVED:
        return match ? ST_OK : push(c->w, begin, end);
    case SPLIT_ISOLATED:
        return push(c->w, begin, end);
    case SPLIT_CONTIGUOUS:
        join = match == c->open_match;
        break;
    case SPLIT_PREVIOUS: /* a match joins the text before it, but not another match */
        join = match && !c->open_match;
        break;
    case SPLIT_NEXT: /* text joins the match right before it */
        join = !match && c->open_match;
        break;
    }
    if (join && !empty) {
        c->open.end = piece.end;
    } else {
        st = push(c->w, c->open.begin, c->open.end);
        c->open = piece;
    }
    c->open_match = match;
    return st;
}

static status cut_regex(struct cutter *c, const char *s, uint32_t base, uint32_t len)
{
    size_t done = 0, begin, end;
    status st = tok_work_match(c->w);

    while (st == ST_OK && done < len) {
        st = tok_regex_next(c->pre->re, c->w->match, s, len, done, &begin, &end, c->w->err);
        if (st == ST_END) {
            break;
        }
        if (st == ST_OK) {
            st = cut(c, base + done, base + begin, false);
        }
        if (st == ST_OK) {
            st = cut(c, base + begin, base + end, true);
            done = end;
        }
    }
    return st == ST_END || st == ST_OK ? cut(c, base + done, base + len, false) : st;
}

static status cut_literal(struct cutter *c, const char *s, uint32_t base, uint32_t len)
{
    size_t done = 0;
    status st = ST_OK;

    while (st == ST_OK) {
        const char *hit = memmem(s + done, len - done, c->pre->literal, c->pre->literal_len);
        if (hit == NULL) {
            break;
        }
        const size_t at = (size_t)(hit - s);
        st = cut(c, base + done, base + at, false);
        if (st == ST_OK) {
            st = cut(c, base + at, base + at + c->pre->literal_len, true);
        }
        done = at + c->pre->literal_len;
    }
    return st == ST_OK ? cut(c, base + done, base + len, false) : st;
}

static status cut_class(struct cutter *c, const char *s, uint32_t base, uint32_t len)
{
    bool (*const is)(uint32_t) = c->pre->kind == PRE_NUMBERS ? unicode_is_number
                                 : c->pre->kind == PRE_PUNCT ? unicode_is_punct
                                                             : unicode_is_space;
    uint32_t done = 0, k;
    status st = ST_OK;

    for (uint32_t i = 0; i < len && st == ST_OK; i += k) {
        if (is(utf8_get(s + i, &k))) {
            st = cut(c, base + done, base + i, false);
            if (st == ST_OK) {
                st = cut(c, base + i, base + i + k, true);
            }
            done = i + k;
        }
    }
    return st == ST_OK ? cut(c, base + done, base + len, false) : st;
}

static status run_cut(struct tok_work *w, const struct tok_pre *pre)
{
    status st = ST_OK;

    for (uint32_t i = 0; i < w->n_spans && st == ST_OK; i++) {
        const struct tok_span span = w->spans[i];
        const char *s = w->text.data + span.begin;
        const uint32_t len = span.end - span.begin;
        struct cutter c = { .w = w, .pre = pre };

        switch (pre->kind) {
        case PRE_REGEX:
            st = cut_regex(&c, s, span.begin, len);
            break;
        case PRE_LITERAL:
            st = cut_literal(&c, s, span.begin, len);
            break;
        default:
            st = cut_class(&c, s, span.begin, len);
            break;
        }
        if (st == ST_OK) {
            st = push(w, c.open.begin, c.open.end);
        }
    }
    if (st == ST_OK) {
        w->at_zero = w->at_zero && w->n_next != 0 && w->next[0].begin == w->spans[0].begin;
        take_next(w);
    }
    return st;
}

/* ---- writing anew ---- */

static status write_bytes(const struct tok_pre *pre, const char *s, uint32_t len, struct buf *out)
{
    status st = ST_OK;

    if (pre->prefix_space && len != 0 && *s != ' ') {
        st = buf_append(out, "\xc4\xa0", 2); /* U+0120, the stand-in of a space */
    }
    if (st == ST_OK) {
        st = buf_reserve(out, 2 * (size_t)len);
    }
    for (uint32_t i = 0; i < len && st == ST_OK; i++) { /* all stand-ins are below U+0800 */
        out->len += utf8_put(byte_char((unsigned char)s[i]), out->data + out->len);
    }
    if (st == ST_OK && out->cap != 0) {
        out->data[out->len] = '\0';
    }
    return st;
}

static status write_metaspace(const struct tok_pre *pre, const char *s, uint32_t len, bool first,
                              struct buf *out)
{
    const bool there = (len >= 1 && *s == ' ') ||
                       (len >= pre->literal_len && memcmp(s, pre->literal, pre->literal_len) == 0);
    status st = ST_OK;

    if (len == 0) {
        return ST_OK;
    }
    if (!there && (pre->prepend == PREPEND_ALWAYS || (pre->prepend == PREPEND_FIRST && first))) {
        st = buf_append(out, pre->literal, pre->literal_len);
    }
    for (uint32_t i = 0; i < len && st == ST_OK; i++) {
        st = s[i] == ' ' ? buf_append(out, pre->literal, pre->literal_len)
                         : buf_append_char(out, s[i]);
    }
    return st;
}

static status run_write(struct tok_work *w, const struct tok_pre *pre)
{
    status st = ST_OK;

    buf_reset(&w->other);
    for (uint32_t i = 0; i < w->n_spans && st == ST_OK; i++) {
        const struct tok_span span = w->spans[i];
        const char *s = w->text.data + span.begin;
        const size_t begin = w->other.len;

        st = pre->kind == PRE_BYTES
                 ? write_bytes(pre, s, span.end - span.begin, &w->other)
                 : write_metaspace(pre, s, span.end - span.begin, w->at_zero && i == 0, &w->other);
        if (st == ST_OK) {
            st = push(w, begin, w->other.len);
        }
    }
    if (st == ST_OK) {
        const struct buf swap = w->text;
        w->text = w->other;
        w->other = swap;
        take_next(w);
    }
    return st;
}

status tok_pre_tokenize(struct tok_work *w, const char *s, size_t len)
{
    const struct tokenizer *t = w->tok;

    buf_reset(&w->text);
    w->n_next = 0;
    status st = buf_append(&w->text, s, len);
    if (st == ST_OK) {
        st = push(w, 0, len);
        take_next(w);
    }
    for (uint32_t i = 0; i < t->n_pres && st == ST_OK; i++) {
        const struct tok_pre *pre = &t->pres[i];
        st = pre->kind == PRE_BYTES || pre->kind == PRE_METASPACE ? run_write(w, pre)
                                                                  : run_cut(w, pre);
    }
    return st;
}
