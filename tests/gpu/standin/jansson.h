/* tests/gpu/standin/jansson.h - the part of jansson's interface that model/ reads config.json and
 * safetensors headers with, for machines that lend a device and have no libjansson. For the files of
 * this tree only: it keeps the last of two equal keys, and forgives what a strict reader would not. */
#ifndef TESTS_GPU_STANDIN_JANSSON_H
#define TESTS_GPU_STANDIN_JANSSON_H

#include <stdbool.h>
#include <stddef.h>

enum json_type {
    JSON_NULL,
    JSON_TRUE,
    JSON_FALSE,
    JSON_INTEGER,
    JSON_REAL,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

typedef long long json_int_t;
typedef struct json {
    enum json_type type;
    json_int_t integer;
    double real;
    char *text;                /* of a string; owned, as all below */
    char *key;                 /* in an object */
    struct json *first, *next; /* of an array or object; the next in its own */
    size_t n;
} json_t;

typedef struct {
    char text[160];
    int line, column, position;
} json_error_t;

enum json_error_code { json_error_unknown, json_error_out_of_memory };
#define JSON_INTEGER_FORMAT    "lld"
#define JSON_REJECT_DUPLICATES 0
#define JSON_ENCODE_ANY        0
#define JSON_COMPACT           0
#define JSON_ENSURE_ASCII      0
#define JSON_REAL_PRECISION(n) 0

json_t *json_loadb(const char *text, size_t len, size_t flags, json_error_t *error);
void json_decref(json_t *value); /* NULL is fine; there are no counts */
/* Declared only: what builds values is not linked here. */
int json_array_append_new(json_t *array, json_t *value);
int json_object_set_new(json_t *object, const char *key, json_t *value);
/* Does nothing: a machine that lends a device for minutes does not run out of memory for its config.json. */
void json_set_alloc_funcs(void *(*alloc)(size_t bytes), void (*release)(void *block));
json_t *json_object_get(const json_t *object, const char *key);
json_t *json_array_get(const json_t *array, size_t i);

static inline enum json_error_code json_error_code(const json_error_t *e)
{
    (void)e;
    return json_error_unknown;
}
static inline bool json_is(const json_t *v, enum json_type type)
{
    return v != NULL && v->type == type;
}
#define json_is_object(v)  json_is(v, JSON_OBJECT)
#define json_is_array(v)   json_is(v, JSON_ARRAY)
#define json_is_string(v)  json_is(v, JSON_STRING)
#define json_is_integer(v) json_is(v, JSON_INTEGER)
#define json_is_number(v)  (json_is(v, JSON_INTEGER) || json_is(v, JSON_REAL))
#define json_is_true(v)    json_is(v, JSON_TRUE)
#define json_is_false(v)   json_is(v, JSON_FALSE)
#define json_is_boolean(v) (json_is(v, JSON_TRUE) || json_is(v, JSON_FALSE))
#define json_is_null(v)    json_is(v, JSON_NULL)

static inline size_t json_array_size(const json_t *v)
{
    return json_is_array(v) ? v->n : 0;
}
static inline size_t json_object_size(const json_t *v)
{
    return json_is_object(v) ? v->n : 0;
}
static inline const char *json_string_value(const json_t *v)
{
    return json_is_string(v) ? v->text : NULL;
}
static inline json_int_t json_integer_value(const json_t *v)
{
    return json_is_integer(v) ? v->integer : 0;
}
static inline double json_number_value(const json_t *v)
{
    return json_is_integer(v) ? (double)v->integer : json_is(v, JSON_REAL) ? v->real : 0.0;
}
/* Sentences about a wrong value quote nothing here. */
static inline int json_dump_callback(const json_t *v, int (*put)(const char *, size_t, void *),
                                     void *data, size_t flags)
{
    (void)v;
    (void)flags;
    return put("(a value)", 9, data);
}

#define json_object_foreach(object, k, v)                                                          \
    for ((v) = json_is_object(object) ? (object)->first : NULL;                                    \
         (v) != NULL && ((k) = (v)->key) != NULL; (v) = (v)->next)
#define json_array_foreach(array, i, v)                                                            \
    for ((i) = 0, (v) = json_is_array(array) ? (array)->first : NULL; (v) != NULL;                 \
         (v) = (v)->next, (i)++)

#endif
