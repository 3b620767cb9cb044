/* model/tok_parts.c - normalizers and pre-tokenizers of a tokenizer.json.
 *
 * A component is known or refused: the sentence names the path of the field and the type. Sequences
 * are flattened into the stage arrays. */
#include "model/json_memory.h"
#include "model/tok_json.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- fields ---- */

status tok_json_parse(const char *file, const char *data, size_t len, json_t **root_p,
                      struct err *err)
{
    json_error_t why;

    if (len > TOK_FILE_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: %zu bytes, the limit is %zu", file, len,
                       TOK_FILE_BYTES_MAX);
    }
    json_t *root = json_read(data, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (root == NULL) {
        return json_read_lacked_memory()
                   ? err_set(err, ST_ERR_NOMEM, "%s: no memory for its JSON", file)
                   : err_set(err, ST_ERR_FORMAT, "%s: line %d: %s", file, why.line, why.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, ST_ERR_FORMAT, "%s: not an object", file);
    }
    *root_p = root;
    return ST_OK;
}

status tok_json_bool(const json_t *obj, const char *where, const char *key, bool fallback,
                     bool *value_p, struct err *err)
{
    const json_t *v = json_object_get(obj, key);

    if (v == NULL || json_is_null(v)) {
        *value_p = fallback;
        return ST_OK;
    }
    if (!json_is_boolean(v)) {
        return err_set(err, ST_ERR_FORMAT, "%s.%s: not true or false", where, key);
    }
    *value_p = json_is_true(v);
    return ST_OK;
}

status tok_json_str(const json_t *obj, const char *where, const char *key, bool needed,
                    const char **s_p, size_t *len_p, struct err *err)
{
    const json_t *v = json_object_get(obj, key);

    *s_p = NULL;
    *len_p = 0;
    if ((v == NULL || json_is_null(v)) && !needed) {
        return ST_OK;
    }
    if (!json_is_string(v)) {
        return err_set(err, ST_ERR_FORMAT, "%s.%s: %s", where, key,
                       v == NULL ? "missing" : "not a string");
    }
    *s_p = json_string_value(v);
    *len_p = json_string_length(v);
    return ST_OK;
}

/* The component's type; an unknown `where` is the path of the component. */
static status get_type(const json_t *v, const char *where, const char **type_p, struct err *err)
{
    size_t len;

    if (!json_is_object(v)) {
        return err_set(err, ST_ERR_FORMAT, "%s: not an object", where);
    }
    return tok_json_str(v, where, "type", true, type_p, &len, err);
}

static status copy_str(const char *s, size_t len, const char *where, char **to_p, uint32_t *len_p,
                       struct err *err)
{
    if (len > TOK_PATTERN_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: a string of %zu bytes, the limit is %d", where, len,
                       TOK_PATTERN_BYTES_MAX);
    }
    char *to = malloc(len + 1);
    if (to == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory", where);
    }
    memcpy(to, s, len);
    to[len] = '\0';
    *to_p = to;
    *len_p = (uint32_t)len;
    return ST_OK;
}

/* {"String": s} or {"Regex": s}. */
static status get_pattern(const json_t *v, const char *where, const char **s_p, size_t *len_p,
                          bool *regex_p, struct err *err)
{
    const json_t *pattern = json_object_get(v, "pattern");
    char at[TOK_WHERE_BYTES];

    snprintf(at, sizeof at, "%s.pattern", where);
    if (!json_is_object(pattern)) {
        return err_set(err, ST_ERR_FORMAT, "%s: not an object", at);
    }
    *regex_p = json_object_get(pattern, "Regex") != NULL;
    const status st =
        tok_json_str(pattern, at, *regex_p ? "Regex" : "String", true, s_p, len_p, err);
    if (st == ST_OK && *len_p == 0) {
        return err_set(err, ST_ERR_FORMAT, "%s: empty", at);
    }
    return st;
}

/* ---- sequences ---- */

enum { NEST_MAX = 4 };
typedef status (*part_fn)(struct tokenizer *t, const json_t *v, const char *where, int depth,
                          struct err *err);

static status each(struct tokenizer *t, const json_t *v, const char *where, const char *key,
                   int depth, part_fn fn, struct err *err)
{
    const json_t *list = json_object_get(v, key);
    char at[TOK_WHERE_BYTES];
    status st = ST_OK;

    if (!json_is_array(list)) {
        return err_set(err, ST_ERR_FORMAT, "%s.%s: not an array", where, key);
    }
    if (depth >= NEST_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: sequences nested over %d deep", where, NEST_MAX);
    }
    for (size_t i = 0; i < json_array_size(list) && st == ST_OK; i++) {
        snprintf(at, sizeof at, "%s.%s[%zu]", where, key, i);
        st = fn(t, json_array_get(list, i), at, depth + 1, err);
    }
    return st;
}

/* ---- normalizers ---- */

static status norm_replace(const json_t *v, const char *where, struct tok_norm *n, struct err *err)
{
    const char *s = NULL;
    size_t len = 0;
    bool regex = false;
    status st = get_pattern(v, where, &s, &len, &regex, err);

    if (st == ST_OK) {
        st = regex ? tok_regex_create(s, len, where, &n->re, err)
                   : copy_str(s, len, where, &n->from, &n->from_len, err);
    }
    if (st == ST_OK) {
        st = tok_json_str(v, where, "content", true, &s, &len, err);
    }
    return st == ST_OK ? copy_str(s, len, where, &n->to, &n->to_len, err) : st;
}

static status norm_fill(const json_t *v, const char *type, const char *where, struct tok_norm *n,
                        struct err *err)
{
    static const char *const forms[] = { [UNICODE_NFC] = "NFC",
                                         [UNICODE_NFD] = "NFD",
                                         [UNICODE_NFKC] = "NFKC",
                                         [UNICODE_NFKD] = "NFKD" };
    const char *s = NULL;
    size_t len = 0;
    status st;

    for (uint32_t i = 0; i < ARRAY_LEN(forms); i++) {
        if (strcmp(type, forms[i]) == 0) {
            n->kind = NORM_FORM;
            n->form = (enum unicode_form)i;
            return ST_OK;
        }
    }
    if (strcmp(type, "Prepend") == 0) {
        n->kind = NORM_PREPEND;
        st = tok_json_str(v, where, "prepend", true, &s, &len, err);
        return st == ST_OK ? copy_str(s, len, where, &n->to, &n->to_len, err) : st;
    }
    if (strcmp(type, "Replace") == 0) {
        n->kind = NORM_REPLACE;
        return norm_replace(v, where, n, err);
    }
    if (strcmp(type, "Strip") == 0) {
        n->kind = NORM_STRIP;
        st = tok_json_bool(v, where, "strip_left", true, &n->left, err);
        return st == ST_OK ? tok_json_bool(v, where, "strip_right", true, &n->right, err) : st;
    }
    return err_set(err, ST_ERR_UNSUPPORTED, "%s: normalizer \"%.40s\" is not known", where, type);
}

static status norm_one(struct tokenizer *t, const json_t *v, const char *where, int depth,
                       struct err *err)
{
    const char *type = NULL;
    status st = get_type(v, where, &type, err);

    if (st != ST_OK) {
        return st;
    }
    if (strcmp(type, "Sequence") == 0) {
        return each(t, v, where, "normalizers", depth, norm_one, err);
    }
    if (t->n_norms == TOK_STAGES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: over %d normalizers", where, TOK_STAGES_MAX);
    }
    struct tok_norm *n = &t->norms[t->n_norms];
    st = norm_fill(v, type, where, n, err);
    if (st != ST_OK) {
        tok_norm_fini(n);
        return st;
    }
    t->n_norms++;
    return ST_OK;
}

status tok_read_normalizer(struct tokenizer *t, const json_t *v, struct err *err)
{
    return v == NULL || json_is_null(v) ? ST_OK : norm_one(t, v, "normalizer", 0, err);
}

/* ---- pre-tokenizers ---- */

static status pre_add(struct tokenizer *t, struct tok_pre *pre, const char *where, struct err *err)
{
    if (t->n_pres == TOK_STAGES_MAX) {
        tok_pre_fini(pre);
        return err_set(err, ST_ERR_LIMIT, "%s: over %d pre-tokenizers", where, TOK_STAGES_MAX);
    }
    t->pres[t->n_pres++] = *pre;
    return ST_OK;
}

static status get_how(const json_t *v, const char *where, enum split_how fallback,
                      enum split_how *how_p, struct err *err)
{
    static const char *const names[] = {
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *s = NULL;
    size_t len = 0;
    const status st = tok_json_str(v, where, "behavior", false, &s, &len, err);

    if (st != ST_OK || s == NULL) {
        *how_p = fallback;
        return st;
    }
    for (uint32_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(s, names[i]) == 0) {
            *how_p = (enum split_how)i;
            return ST_OK;
        }
    }
    return err_set(err, ST_ERR_UNSUPPORTED, "%s.behavior: \"%.40s\" is not known", where, s);
}

static status pre_bytes(struct tokenizer *t, const json_t *v, const char *where, struct err *err)
{
    bool prefix = true, use_regex = true;
    status st = tok_json_bool(v, where, "add_prefix_space", true, &prefix, err);

    if (st == ST_OK) {
        st = tok_json_bool(v, where, "use_regex", true, &use_regex, err);
    }
    if (st != ST_OK) {
        return st;
    }
    if (prefix && use_regex) { /* the space comes before the cutting */
        struct tok_pre space = { .kind = PRE_METASPACE, .prepend = PREPEND_ALWAYS };
        st = copy_str(" ", 1, where, &space.literal, &space.literal_len, err);
        if (st == ST_OK) {
            st = pre_add(t, &space, where, err);
        }
        prefix = false;
    }
    if (st == ST_OK && use_regex) {
        st = tok_pre_add_regex(t, tok_pattern_gpt2, strlen(tok_pattern_gpt2), SPLIT_ISOLATED, false,
                               where, err);
    }
    return st == ST_OK ? tok_pre_add_bytes(t, prefix, err) : st;
}

static status pre_split(struct tokenizer *t, const json_t *v, const char *where, struct err *err)
{
    struct tok_pre pre = { .kind = PRE_LITERAL };
    const char *s = NULL;
    size_t len = 0;
    bool regex = false;
    status st = get_pattern(v, where, &s, &len, &regex, err);

    if (st == ST_OK) {
        st = get_how(v, where, SPLIT_ISOLATED, &pre.how, err);
    }
    if (st == ST_OK) {
        st = tok_json_bool(v, where, "invert", false, &pre.invert, err);
    }
    if (st != ST_OK) {
        return st;
    }
    if (regex) {
        return tok_pre_add_regex(t, s, len, pre.how, pre.invert, where, err);
    }
    st = copy_str(s, len, where, &pre.literal, &pre.literal_len, err);
    return st == ST_OK ? pre_add(t, &pre, where, err) : st;
}

static status pre_metaspace(struct tokenizer *t, const json_t *v, const char *where,
                            struct err *err)
{
    struct tok_pre pre = { .kind = PRE_METASPACE, .prepend = PREPEND_ALWAYS };
    struct tok_pre cut = { .kind = PRE_LITERAL, .how = SPLIT_NEXT };
    const char *s = NULL, *scheme = NULL;
    size_t len = 0, scheme_len = 0;
    bool prefix = true, split = true;
    status st = tok_json_str(v, where, "replacement", true, &s, &len, err);

    if (st == ST_OK) {
        st = tok_json_str(v, where, "prepend_scheme", false, &scheme, &scheme_len, err);
    }
    if (st == ST_OK) {
        st = tok_json_bool(v, where, "add_prefix_space", true, &prefix, err);
    }
    if (st == ST_OK) {
        st = tok_json_bool(v, where, "split", true, &split, err);
    }
    if (st != ST_OK) {
        return st;
    }
    if (len == 0 || len != utf8_len(*s)) {
        return err_set(err, ST_ERR_FORMAT, "%s.replacement: not one character", where);
    }
    if (scheme == NULL) { /* older files */
        pre.prepend = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    } else if (strcmp(scheme, "first") == 0) {
        pre.prepend = PREPEND_FIRST;
    } else if (strcmp(scheme, "never") == 0) {
        pre.prepend = PREPEND_NEVER;
    } else if (strcmp(scheme, "always") != 0) {
        return err_set(err, ST_ERR_UNSUPPORTED, "%s.prepend_scheme: \"%.40s\" is not known", where,
                       scheme);
    }
    st = copy_str(s, len, where, &pre.literal, &pre.literal_len, err);
    if (st == ST_OK) {
        st = pre_add(t, &pre, where, err);
    }
    if (st == ST_OK && split) {
        st = copy_str(s, len, where, &cut.literal, &cut.literal_len, err);
        st = st == ST_OK ? pre_add(t, &cut, where, err) : st;
    }
    return st;
}

static status pre_one(struct tokenizer *t, const json_t *v, const char *where, int depth,
                      struct err *err)
{
    struct tok_pre pre = { .kind = PRE_NUMBERS, .how = SPLIT_CONTIGUOUS };
    const char *type = NULL;
    bool single = false;
    status st = get_type(v, where, &type, err);

    if (st != ST_OK) {
        return st;
    }
    if (strcmp(type, "Sequence") == 0) {
        return each(t, v, where, "pretokenizers", depth, pre_one, err);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        return pre_bytes(t, v, where, err);
    }
    if (strcmp(type, "Split") == 0) {
        return pre_split(t, v, where, err);
    }
    if (strcmp(type, "Metaspace") == 0) {
        return pre_metaspace(t, v, where, err);
    }
    if (strcmp(type, "Whitespace") == 0) {
        static const char words[] = /* \w+|[^\w\s]+ with the words of Rust's regex */
            "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]+|"
            "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}\\s]+";
        return tok_pre_add_regex(t, words, strlen(words), SPLIT_REMOVED, true, where, err);
    }
    if (strcmp(type, "Digits") == 0) {
        st = tok_json_bool(v, where, "individual_digits", false, &single, err);
        pre.how = single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    } else if (strcmp(type, "Punctuation") == 0) {
        pre.kind = PRE_PUNCT;
        st = get_how(v, where, SPLIT_ISOLATED, &pre.how, err);
    } else if (strcmp(type, "WhitespaceSplit") == 0) {
        pre.kind = PRE_SPACES;
        pre.how = SPLIT_REMOVED;
    } else {
        return err_set(err, ST_ERR_UNSUPPORTED, "%s: pre-tokenizer \"%.40s\" is not known", where,
                       type);
    }
    return st == ST_OK ? pre_add(t, &pre, where, err) : st;
}

status tok_read_pre_tokenizer(struct tokenizer *t, const json_t *v, struct err *err)
{
    return v == NULL || json_is_null(v) ? ST_OK : pre_one(t, v, "pre_tokenizer", 0, err);
}
