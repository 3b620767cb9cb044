/* model/tok_parts_out.c - decoder, post-processor and added tokens of a tokenizer.json. */
#include "model/tok_json.h"

#include <stdio.h>

enum { NEST_MAX = 4 };

static status get_type(const json_t *v, const char *where, const char **type_p, struct err *err)
{
    size_t len;

    if (!json_is_object(v)) {
        return err_set(err, ST_ERR_FORMAT, "%s: not an object", where);
    }
    return tok_json_str(v, where, "type", true, type_p, &len, err);
}

/* ---- decoder ---- */

static status add_replace(struct tok_decode *d, const char *from, size_t from_len, const char *to,
                          size_t to_len, const char *where, struct err *err)
{
    const uint32_t i = d->n_replace;

    if (i == ARRAY_LEN(d->replace) || from_len == 0 || from_len > sizeof d->replace[0].from ||
        to_len > sizeof d->replace[0].to) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: replaces %zu bytes by %zu; at most %zu replacements of 1 "
                       "to %zu bytes",
                       where, from_len, to_len, ARRAY_LEN(d->replace), sizeof d->replace[0].from);
    }
    memcpy(d->replace[i].from, from, from_len);
    memcpy(d->replace[i].to, to, to_len);
    d->replace[i].from_len = (uint32_t)from_len;
    d->replace[i].to_len = (uint32_t)to_len;
    d->n_replace++;
    return ST_OK;
}

static status decoder_replace(struct tok_decode *d, const json_t *v, const char *where,
                              struct err *err)
{
    const json_t *pattern = json_object_get(v, "pattern");
    const char *from = NULL, *to = NULL;
    size_t from_len = 0, to_len = 0;
    status st;

    if (json_object_get(pattern, "Regex") != NULL) {
        return err_set(err, ST_ERR_UNSUPPORTED, "%s.pattern: a Regex in a decoder is not known",
                       where);
    }
    st = tok_json_str(pattern, where, "String", true, &from, &from_len, err);
    if (st == ST_OK) {
        st = tok_json_str(v, where, "content", true, &to, &to_len, err);
    }
    return st == ST_OK ? add_replace(d, from, from_len, to, to_len, where, err) : st;
}

static status decoder_metaspace(struct tok_decode *d, const json_t *v, const char *where,
                                struct err *err)
{
    const char *s = NULL, *scheme = NULL;
    size_t len = 0, scheme_len = 0;
    bool prefix = true;
    status st = tok_json_str(v, where, "replacement", true, &s, &len, err);

    if (st == ST_OK) {
        st = tok_json_str(v, where, "prepend_scheme", false, &scheme, &scheme_len, err);
    }
    if (st == ST_OK) {
        st = tok_json_bool(v, where, "add_prefix_space", true, &prefix, err);
    }
    if (st != ST_OK) {
        return st;
    }
    d->strip_all = scheme != NULL ? strcmp(scheme, "never") != 0 : prefix;
    return add_replace(d, s, len, " ", 1, where, err);
}

/* Strip works on the fused text, so Fuse must have come; only leading characters can be stripped
 * while a text is still being made. */
static status decoder_strip(struct tok_decode *d, const json_t *v, const char *where, bool fused,
                            struct err *err)
{
    const json_t *start = json_object_get(v, "start"), *stop = json_object_get(v, "stop");
    const char *s = NULL;
    size_t len = 0;
    const status st = tok_json_str(v, where, "content", true, &s, &len, err);

    if (st != ST_OK) {
        return st;
    }
    if (!fused || len != 1 || *s != ' ' || json_integer_value(stop) != 0 ||
        json_integer_value(start) < 0 || json_integer_value(start) > 16) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "%s: Strip is known after Fuse, for up to 16 leading spaces", where);
    }
    d->strip = (uint8_t)json_integer_value(start);
    return ST_OK;
}

static status decoder_one(struct tok_decode *d, const json_t *v, const char *where, int depth,
                          bool *fused, struct err *err)
{
    const char *type = NULL;
    char at[TOK_WHERE_BYTES];
    status st = get_type(v, where, &type, err);

    if (st != ST_OK) {
        return st;
    }
    if (strcmp(type, "Sequence") == 0 && depth < NEST_MAX) {
        const json_t *list = json_object_get(v, "decoders");
        for (size_t i = 0; i < json_array_size(list) && st == ST_OK; i++) {
            snprintf(at, sizeof at, "%s.decoders[%zu]", where, i);
            st = decoder_one(d, json_array_get(list, i), at, depth + 1, fused, err);
        }
        return st;
    }
    if (*fused && strcmp(type, "Strip") != 0) {
        return err_set(err, ST_ERR_UNSUPPORTED, "%s: %.40s after Fuse", where, type);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        d->byte_level = true;
    } else if (strcmp(type, "ByteFallback") == 0) {
        d->byte_fallback = true;
    } else if (strcmp(type, "Fuse") == 0) {
        *fused = true;
    } else if (strcmp(type, "Replace") == 0) {
        return decoder_replace(d, v, where, err);
    } else if (strcmp(type, "Metaspace") == 0) {
        return decoder_metaspace(d, v, where, err);
    } else if (strcmp(type, "Strip") == 0) {
        return decoder_strip(d, v, where, *fused, err);
    } else {
        return err_set(err, ST_ERR_UNSUPPORTED, "%s: decoder \"%.40s\" is not known", where, type);
    }
    return ST_OK;
}

status tok_read_decoder(struct tokenizer *t, const json_t *v, struct err *err)
{
    bool fused = false;

    if (v == NULL || json_is_null(v)) {
        return err_set(err, ST_ERR_UNSUPPORTED, "decoder: there is none");
    }
    return decoder_one(&t->decode, v, "decoder", 0, &fused, err);
}

/* ---- post-processor ---- */

static status add_affix(struct tokenizer *t, const json_t *special, const char *name, bool front,
                        struct err *err)
{
    const json_t *ids = json_object_get(json_object_get(special, name), "ids");
    uint32_t *list = front ? t->prefix : t->suffix;
    uint32_t *n = front ? &t->n_prefix : &t->n_suffix;

    if (!json_is_array(ids)) {
        return err_set(err, ST_ERR_FORMAT, "post_processor.special_tokens[\"%.40s\"].ids: missing",
                       name);
    }
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_int_t id = json_integer_value(json_array_get(ids, i));
        if (id < 0 || id >= t->n_ids || t->entries[id].flags == 0) {
            return err_set(err, ST_ERR_FORMAT,
                           "post_processor.special_tokens[\"%.40s\"].ids: no token "
                           "%lld",
                           name, (long long)id);
        }
        if (*n == TOK_AFFIX_MAX) {
            return err_set(err, ST_ERR_LIMIT, "post_processor: over %d tokens at one end",
                           TOK_AFFIX_MAX);
        }
        list[(*n)++] = (uint32_t)id;
    }
    return ST_OK;
}

static status read_template(struct tokenizer *t, const json_t *v, struct err *err)
{
    const json_t *single = json_object_get(v, "single");
    const json_t *special = json_object_get(v, "special_tokens");
    bool seen = false;
    status st = ST_OK;

    if (!json_is_array(single)) {
        return err_set(err, ST_ERR_FORMAT, "post_processor.single: not an array");
    }
    for (size_t i = 0; i < json_array_size(single) && st == ST_OK; i++) {
        const json_t *item = json_array_get(single, i);
        const char *name =
            json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (name != NULL) {
            st = add_affix(t, special, name, !seen, err);
        } else if (json_object_get(item, "Sequence") != NULL && !seen) {
            seen = true;
        } else {
            st = err_set(err, ST_ERR_UNSUPPORTED,
                         "post_processor.single[%zu]: neither a special token nor "
                         "the one sequence",
                         i);
        }
    }
    return st;
}

static status post_one(struct tokenizer *t, const json_t *v, const char *where, int depth,
                       struct err *err)
{
    const char *type = NULL;
    char at[TOK_WHERE_BYTES];
    status st = get_type(v, where, &type, err);

    if (st != ST_OK || strcmp(type, "ByteLevel") == 0) { /* ByteLevel only moves offsets */
        return st;
    }
    if (strcmp(type, "TemplateProcessing") == 0) {
        return read_template(t, v, err);
    }
    if (strcmp(type, "Sequence") == 0 && depth < NEST_MAX) {
        const json_t *list = json_object_get(v, "processors");
        for (size_t i = 0; i < json_array_size(list) && st == ST_OK; i++) {
            snprintf(at, sizeof at, "%s.processors[%zu]", where, i);
            st = post_one(t, json_array_get(list, i), at, depth + 1, err);
        }
        return st;
    }
    return err_set(err, ST_ERR_UNSUPPORTED, "%s: post-processor \"%.40s\" is not known", where,
                   type);
}

status tok_read_post_processor(struct tokenizer *t, const json_t *v, struct err *err)
{
    return v == NULL || json_is_null(v) ? ST_OK : post_one(t, v, "post_processor", 0, err);
}

/* ---- added tokens ---- */

status tok_read_added(struct tokenizer *t, const json_t *v, uint64_t id, const char *where,
                      struct err *err)
{
    static const struct {
        const char *key;
        unsigned flag;
    } fields[] = {
        { "special", TOKF_SPECIAL },    { "lstrip", TOKF_LSTRIP },   { "rstrip", TOKF_RSTRIP },
        { "single_word", TOKF_SINGLE }, { "normalized", TOKF_NORM },
    };
    const char *content = NULL;
    size_t len = 0;
    unsigned flags = TOKF_ADDED;
    bool value = false;

    if (!json_is_object(v)) {
        return err_set(err, ST_ERR_FORMAT, "%s: not an object", where);
    }
    status st = tok_json_str(v, where, "content", true, &content, &len, err);
    for (uint32_t i = 0; i < ARRAY_LEN(fields) && st == ST_OK; i++) {
        /* `normalized` defaults to "not special", which comes first in the table. */
        const bool fallback = fields[i].flag == TOKF_NORM && (flags & TOKF_SPECIAL) == 0;
        st = tok_json_bool(v, where, fields[i].key, fallback, &value, err);
        flags |= value ? fields[i].flag : 0u;
    }
    return st == ST_OK ? tok_token_add(t, id, content, len, flags, where, err) : st;
}
