/* model/tok_regex.c - the regular expressions of tokenizer files, run by PCRE2.
 *
 * The files are written for Oniguruma (Ruby syntax). Common patterns mean the same in PCRE2 with
 * UTF and UCP except for what is rewritten here:
 *
 *   \s \S      PCRE2 counts U+180E as a space, Unicode and Oniguruma do not
 *   \w \W      in PCRE2 letters, numbers and underscore only; elsewhere marks are words, too
 *   {1,n}+     possessive in PCRE2; in Oniguruma a repeated group, that is `+`
 *   [a[bc]]    a nested class is a union in Oniguruma
 *   ^ $        always at line ends in Oniguruma: PCRE2_MULTILINE
 *
 * Characters younger than Unicode 14 are unassigned here and may be letters there. What else
 * differs (class intersection, \h as hex digit, ...) is refused with its name: a pattern that
 * quietly means something else would give wrong ids.
 *
 * Compiled to machine code where the system allows it; the interpreter is the way back, also when
 * the machine stack of the compiled code runs out. Text has been checked to be UTF-8 before. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tok_impl.h"

#include <pcre2.h>
#include <stdlib.h>

enum {
    MATCH_LIMIT = 50 * 1000 * 1000,
    DEPTH_LIMIT = 1000 * 1000,
    HEAP_LIMIT_KIB = 64 * 1024,
    JIT_STACK_MAX = 1 << 20,
    PROGRAM_MAX = 1 << 20, /* bytes of a compiled pattern */
};

struct tok_regex {
    pcre2_code *code; /* owned */
    bool jit;
    size_t bytes;
};

struct tok_match {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

/* White_Space as members of a class. */
static const char space_members[] = "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}"
                                    "\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

/* Words of Oniguruma, the Latin-1 superscripts and fractions included. Compared with it over all
 * characters of Unicode 14. */
static const char word_members[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe";

/* ---- rewriting ---- */

struct rewrite {
    const char *p, *end, *where;
    struct buf out;
    bool in_class;
    uint32_t depth; /* classes open inside the class */
    struct err *err;
};

static status refuse(const struct rewrite *r, const char *what)
{
    return err_set(r->err, ST_ERR_UNSUPPORTED, "%s: the pattern uses %s", r->where, what);
}

static status rewrite_escape(struct rewrite *r)
{
    const char c = r->p[1];

    r->p += 2;
    const char *members = c == 's' || c == 'S' ? space_members : word_members;
    if (c == 's' || c == 'w') {
        return r->in_class ? buf_append_str(&r->out, members)
                           : buf_printf(&r->out, "[%s]", members);
    }
    if ((c == 'S' || c == 'W') && !r->in_class) {
        return buf_printf(&r->out, "[^%s]", members);
    }
    if (c == 'W' || ((c == 'b' || c == 'B') && !r->in_class)) {
        return refuse(r, "\\W in a class, \\b or \\B (words are not the same there)");
    }
    if (c == 'h' || c == 'H') {
        return refuse(r, "\\h (a hex digit in Oniguruma)");
    }
    if (c == 'C' || c == 'K' || c == 'G' || c == 'Q' || c == 'X' || c == 'R' || c == 'N' ||
        c == 'E' || c == 'M' || c == 'y' || c == 'Y' || c == 'O' || c == 'g' || c == 'k') {
        const char what[] = { '\\', c, 0 };
        return refuse(r, what);
    }
    const char copy[2] = { '\\', c };
    return buf_append(&r->out, copy, 2);
}

/* `{1,n}+` -> `+`; p is at the brace. Others are copied, or refused if a plus follows. */
static status rewrite_interval(struct rewrite *r)
{
    const char *q = r->p + 1;

    while (q < r->end && ((*q >= '0' && *q <= '9') || *q == ',')) {
        q++;
    }
    const size_t len = (size_t)(q - r->p);
    if (q < r->end && *q == '}' && len > 1) {
        if (q + 1 < r->end && q[1] == '+') {
            if (r->p[1] != '1' || (r->p[2] != ',' && r->p[2] != '}')) {
                return refuse(r, "an interval followed by + that does not start at 1");
            }
            r->p = q + 2;
            return buf_append_char(&r->out, '+');
        }
        const status st = buf_append(&r->out, r->p, len + 1);
        r->p = q + 1;
        return st;
    }
    r->p++;
    return buf_append_char(&r->out, '{');
}

static status rewrite_in_class(struct rewrite *r, const char *class_at)
{
    const char c = *r->p;
    const char next = r->p + 1 < r->end ? r->p[1] : 0;
    const bool opening = r->p == class_at + 1 || (r->p == class_at + 2 && class_at[1] == '^');

    if (c == '[' && next == '^') {
        return refuse(r, "a negated class inside a class");
    }
    if (c == '[' && next != ':') { /* a class inside a class adds its members */
        r->depth++;
        r->p++;
        return ST_OK;
    }
    if (c == '[') { /* [:name:] as it is */
        const char *q = r->p + 2;
        while (q + 1 < r->end && !(q[0] == ':' && q[1] == ']')) {
            q++;
        }
        if (q + 1 >= r->end) {
            return refuse(r, "an unfinished [: :]");
        }
        const status st = buf_append(&r->out, r->p, (size_t)(q + 2 - r->p));
        r->p = q + 2;
        return st;
    }
    if (c == '&' && next == '&') {
        return refuse(r, "&& (class intersection)");
    }
    if (c == ']' && !opening && r->depth != 0) {
        r->depth--;
        r->p++;
        return ST_OK;
    }
    if (c == ']' && !opening) {
        r->in_class = false;
    }
    r->p++;
    return buf_append_char(&r->out, c);
}

static status rewrite(struct rewrite *r)
{
    const char *class_at = NULL;
    status st = ST_OK;

    while (r->p < r->end && st == ST_OK) {
        const char c = *r->p;
        if (c == '\\' && r->p + 1 < r->end) {
            st = rewrite_escape(r);
        } else if (r->in_class) {
            st = rewrite_in_class(r, class_at);
        } else if (c == '{') {
            st = rewrite_interval(r);
        } else if (c == '(' && r->p + 1 < r->end && r->p[1] == '*') {
            st = refuse(r, "(* (a control verb)");
        } else if (c == '(' && r->p + 2 < r->end && r->p[1] == '?' &&
                   (r->p[2] == 'R' || r->p[2] == 'C' || r->p[2] == '&' || r->p[2] == '(' ||
                    (r->p[2] >= '0' && r->p[2] <= '9') || r->p[2] == '~')) {
            st = refuse(r, "recursion, callouts or conditions");
        } else {
            if (c == '[') {
                r->in_class = true;
                class_at = r->p;
            }
            r->p++;
            st = buf_append_char(&r->out, c);
        }
    }
    return st;
}

/* ---- compiling ---- */

static status compile(const char *pattern, size_t len, const char *where, struct tok_regex *re,
                      struct err *err)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    char text[128] = "";
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);

    if (context == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for a pattern", where);
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, 50);
    re->code = pcre2_compile((PCRE2_SPTR)pattern, len,
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &code, &at, context);
    pcre2_compile_context_free(context);
    if (re->code == NULL) {
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return err_set(err, ST_ERR_FORMAT, "%s: pattern refused near byte %zu: %s", where,
                       (size_t)at, text);
    }
    pcre2_pattern_info(re->code, PCRE2_INFO_SIZE, &re->bytes);
    if (re->bytes > PROGRAM_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: pattern compiles to %zu bytes, the limit is %d",
                       where, re->bytes, PROGRAM_MAX);
    }
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    return ST_OK;
}

status tok_regex_create(const char *pattern, size_t len, const char *where, struct tok_regex **re_p,
                        struct err *err)
{
    struct rewrite r = { .p = pattern,
                         .end = pattern + len,
                         .where = where,
                         .err = err,
                         .out = BUF_INIT_MAX((size_t)1 << 20) };
    struct tok_regex *re = NULL;

    if (len > TOK_PATTERN_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: a pattern of %zu bytes, the limit is %d", where, len,
                       TOK_PATTERN_BYTES_MAX);
    }
    status st = rewrite(&r);
    if (st == ST_ERR_NOMEM || st == ST_ERR_LIMIT) {
        (void)err_set(err, st, "%s: no memory for a pattern", where);
    }
    if (st == ST_OK) {
        re = calloc(1, sizeof *re);
        st = re != NULL ? compile(r.out.data, r.out.len, where, re, err)
                        : err_set(err, ST_ERR_NOMEM, "%s: no memory for a pattern", where);
    }
    buf_fini(&r.out);
    if (st != ST_OK) {
        tok_regex_destroy(re);
        return st;
    }
    *re_p = re;
    return ST_OK;
}

void tok_regex_destroy(struct tok_regex *re)
{
    if (re != NULL) {
        pcre2_code_free(re->code);
        free(re);
    }
}

bool tok_regex_has_jit(const struct tok_regex *re)
{
    return re->jit;
}

size_t tok_regex_bytes(const struct tok_regex *re)
{
    return sizeof *re + re->bytes;
}

/* ---- matching ---- */

struct tok_match *tok_match_create(void)
{
    struct tok_match *m = calloc(1, sizeof *m);

    if (m == NULL) {
        return NULL;
    }
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (m->data == NULL || m->context == NULL) {
        tok_match_destroy(m);
        return NULL;
    }
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    pcre2_set_depth_limit(m->context, DEPTH_LIMIT);
    pcre2_set_heap_limit(m->context, HEAP_LIMIT_KIB);
    m->stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK_MAX, NULL);
    if (m->stack != NULL) { /* else the compiled code uses 32 KiB of the thread's own stack */
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
    }
    return m;
}

void tok_match_destroy(struct tok_match *m)
{
    if (m == NULL) {
        return;
    }
    if (m->stack != NULL) {
        pcre2_jit_stack_free(m->stack);
    }
    pcre2_match_context_free(m->context);
    pcre2_match_data_free(m->data);
    free(m);
}

status tok_regex_next(const struct tok_regex *re, struct tok_match *m, const char *s, size_t len,
                      size_t from, size_t *begin_p, size_t *end_p, struct err *err)
{
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int rc = pcre2_match(re->code, (PCRE2_SPTR)s, len, from, options, m->data, m->context);

    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        rc = pcre2_match(re->code, (PCRE2_SPTR)s, len, from, options | PCRE2_NO_JIT, m->data,
                         m->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
        return ST_END;
    }
    if (rc < 0) {
        char text[128] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)text, sizeof text);
        return err_set(err, ST_ERR_LIMIT,
                       "text: the tokenizer's pattern gave up after byte %zu of a stretch: %s",
                       from, text);
    }
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(m->data);
    *begin_p = range[0];
    *end_p = range[1];
    return ST_OK;
}
