/* tests/gpu/standin/jansson.c - see jansson.h: a recursive reader. */
#include "jansson.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 64 };

struct reader {
    const char *at, *end;
    int depth;
};

static json_t *read_value(struct reader *r);

static json_t *new_value(enum json_type type)
{
    json_t *v = calloc(1, sizeof(*v));

    if (v == NULL) {
        fprintf(stderr, "no memory for a JSON value\n");
        exit(2);
    }
    v->type = type;
    return v;
}

static void skip_space(struct reader *r)
{
    while (r->at < r->end && isspace((unsigned char)*r->at)) {
        r->at++;
    }
}

static bool take(struct reader *r, const char *word)
{
    const size_t n = strlen(word);

    skip_space(r);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n) != 0) {
        return false;
    }
    r->at += n;
    return true;
}

/* Escapes of one character are decoded; \u is kept as it is written. NULL: no string here. */
static char *read_string(struct reader *r)
{
    if (!take(r, "\"")) {
        return NULL;
    }
    char *text = malloc((size_t)(r->end - r->at) + 1);
    size_t n = 0;

    while (text != NULL && r->at < r->end && *r->at != '"') {
        if (*r->at == '\\' && r->at + 1 < r->end && r->at[1] != 'u') {
            static const char from[] = "nrtbf", to[] = "\n\r\t\b\f";
            const char *known = strchr(from, *++r->at);
            text[n++] = known != NULL ? to[known - from] : *r->at;
        } else {
            text[n++] = *r->at;
        }
        r->at++;
    }
    if (text == NULL || !take(r, "\"")) {
        free(text);
        return NULL;
    }
    text[n] = '\0';
    char *fitted = realloc(text, n + 1);
    return fitted != NULL ? fitted : text;
}

static json_t *read_number(struct reader *r)
{
    char text[64];
    size_t n = 0;
    bool real = false;

    skip_space(r);
    while (r->at < r->end && n + 1 < sizeof(text) && strchr("+-.0123456789eE", *r->at) != NULL) {
        real = real || strchr(".eE", *r->at) != NULL;
        text[n++] = *r->at++;
    }
    text[n] = '\0';
    if (n == 0) {
        return NULL;
    }
    json_t *v = new_value(real ? JSON_REAL : JSON_INTEGER);
    v->real = strtod(text, NULL);
    v->integer = real ? 0 : strtoll(text, NULL, 10);
    return v;
}

/* The members of an array or object, whose first bracket was taken. */
static json_t *read_members(struct reader *r, enum json_type type, const char *close)
{
    json_t *v = new_value(type), **end = &v->first;
    bool ok = true;

    if (take(r, close)) {
        return v;
    }
    while (ok) {
        char *key = type == JSON_OBJECT ? read_string(r) : NULL;
        json_t *member = NULL;
        if (type == JSON_ARRAY || (key != NULL && take(r, ":"))) {
            member = read_value(r);
        }
        if (member == NULL) {
            free(key);
            ok = false;
            break;
        }
        member->key = key;
        *end = member;
        end = &member->next;
        v->n++;
        if (take(r, close)) {
            return v;
        }
        ok = take(r, ",");
    }
    json_decref(v);
    return NULL;
}

static json_t *read_value(struct reader *r)
{
    json_t *v = NULL;

    if (r->depth == DEPTH_MAX) {
        return NULL;
    }
    r->depth++;
    skip_space(r);
    if (take(r, "{")) {
        v = read_members(r, JSON_OBJECT, "}");
    } else if (take(r, "[")) {
        v = read_members(r, JSON_ARRAY, "]");
    } else if (take(r, "null")) {
        v = new_value(JSON_NULL);
    } else if (take(r, "true")) {
        v = new_value(JSON_TRUE);
    } else if (take(r, "false")) {
        v = new_value(JSON_FALSE);
    } else if (r->at < r->end && *r->at == '"') {
        char *text = read_string(r);
        v = text != NULL ? new_value(JSON_STRING) : NULL;
        if (v != NULL) {
            v->text = text;
        }
    } else {
        v = read_number(r);
    }
    r->depth--;
    return v;
}

void json_set_alloc_funcs(void *(*alloc)(size_t bytes), void (*release)(void *block))
{
    (void)alloc;
    (void)release;
}

json_t *json_loadb(const char *text, size_t len, size_t flags, json_error_t *error)
{
    struct reader r = { text, text + len, 0 };
    json_t *v = read_value(&r);

    (void)flags;
    while (r.at < r.end && (isspace((unsigned char)*r.at) || *r.at == '\0')) {
        r.at++;
    }
    if (v != NULL && r.at == r.end) {
        return v;
    }
    json_decref(v);
    *error = (json_error_t){ .position = (int)(r.at - text) };
    snprintf(error->text, sizeof(error->text), "not JSON at byte %d", error->position);
    return NULL;
}

void json_decref(json_t *v)
{
    if (v == NULL) {
        return;
    }
    for (json_t *m = v->first, *next; m != NULL; m = next) {
        next = m->next;
        json_decref(m);
    }
    free(v->text);
    free(v->key);
    free(v);
}

json_t *json_object_get(const json_t *object, const char *key)
{
    json_t *found = NULL;

    for (json_t *m = json_is_object(object) ? object->first : NULL; m != NULL; m = m->next) {
        found = strcmp(m->key, key) == 0 ? m : found;
    }
    return found;
}

json_t *json_array_get(const json_t *array, size_t i)
{
    json_t *m = json_is_array(array) ? array->first : NULL;

    while (m != NULL && i-- > 0) {
        m = m->next;
    }
    return m;
}
