/* model/config_field.c - see config_field.h. */
#include "model/config_field.h"

#include "model/json_memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *field_get(const struct field_from *from, const char *key)
{
    json_t *value = json_object_get(from->object, key);
    return json_is_null(value) ? NULL : value;
}

bool field_has(const struct field_from *from, const char *key)
{
    return field_get(from, key) != NULL;
}

struct dump {
    char *text;
    size_t len;
};

/* Stops the dump when the room is used: an array of millions is not written out to be cut. */
static int dump_some(const char *data, size_t len, void *arg)
{
    struct dump *dump = arg;
    const size_t take = MIN(len, FIELD_TEXT_BYTES - 4 - dump->len);

    for (size_t i = 0; i < take; i++) {
        const char c = data[i];
        dump->text[dump->len++] = (unsigned char)c < 0x20 ? ' ' : c;
    }
    return take < len ? -1 : 0;
}

void field_text(const json_t *value, char text[FIELD_TEXT_BYTES])
{
    struct dump dump = { text, 0 };
    const int rc = json_dump_callback(value, dump_some, &dump,
                                      JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII |
                                          JSON_REAL_PRECISION(9));

    memcpy(text + dump.len, rc != 0 ? "..." : "", rc != 0 ? 4 : 1);
}

static status missing(const struct field_from *from, const char *key, struct err *err)
{
    return err_set(err, ST_ERR_FORMAT, "%s: %s%s is missing", from->file, from->path, key);
}

status field_read_u32(const struct field_from *from, const char *key, struct field_u32 rule,
                      uint32_t *value_p, struct err *err)
{
    const json_t *value = field_get(from, key);
    char text[FIELD_TEXT_BYTES];

    if (value == NULL) {
        if (rule.required) {
            return missing(from, key, err);
        }
        *value_p = rule.fallback;
        return ST_OK;
    }
    if (!json_is_integer(value)) {
        field_text(value, text);
        return err_set(err, ST_ERR_FORMAT, "%s: %s%s is %s, not an integer from %u to %u",
                       from->file, from->path, key, text, rule.min, rule.max);
    }
    const json_int_t n = json_integer_value(value);
    if (n < (json_int_t)rule.min || n > (json_int_t)rule.max) {
        return err_set(err, ST_ERR_LIMIT, "%s: %s%s is %lld, not from %u to %u", from->file,
                       from->path, key, (long long)n, rule.min, rule.max);
    }
    *value_p = (uint32_t)n;
    return ST_OK;
}

status field_read_real(const struct field_from *from, const char *key, struct field_real rule,
                       double *value_p, struct err *err)
{
    const json_t *value = field_get(from, key);
    char text[FIELD_TEXT_BYTES];

    if (value == NULL) {
        if (rule.required) {
            return missing(from, key, err);
        }
        *value_p = rule.fallback;
        return ST_OK;
    }
    if (!json_is_number(value)) {
        field_text(value, text);
        return err_set(err, ST_ERR_FORMAT, "%s: %s%s is %s, not a number from %g to %g", from->file,
                       from->path, key, text, rule.min, rule.max);
    }
    const double x = json_number_value(value);
    if (!isfinite(x) || x < rule.min || x > rule.max) {
        return err_set(err, ST_ERR_LIMIT, "%s: %s%s is %g, not from %g to %g", from->file,
                       from->path, key, x, rule.min, rule.max);
    }
    *value_p = x;
    return ST_OK;
}

status field_read_bool(const struct field_from *from, const char *key, bool fallback, bool *value_p,
                       struct err *err)
{
    const json_t *value = field_get(from, key);
    char text[FIELD_TEXT_BYTES];

    if (value == NULL) {
        *value_p = fallback;
        return ST_OK;
    }
    if (!json_is_boolean(value)) {
        field_text(value, text);
        return err_set(err, ST_ERR_FORMAT, "%s: %s%s is %s, not true or false", from->file,
                       from->path, key, text);
    }
    *value_p = json_is_true(value);
    return ST_OK;
}

status field_read_string(const struct field_from *from, const char *key, const char **value_p,
                         struct err *err)
{
    const json_t *value = field_get(from, key);
    char text[FIELD_TEXT_BYTES];

    if (value != NULL && !json_is_string(value)) {
        field_text(value, text);
        return err_set(err, ST_ERR_FORMAT, "%s: %s%s is %s, not a string", from->file, from->path,
                       key, text);
    }
    *value_p = value != NULL ? json_string_value(value) : NULL;
    return ST_OK;
}

status field_parse_object(const char *file, const char *text, size_t len, json_t **object_p,
                          struct err *err)
{
    json_error_t why;
    json_t *object = json_read(text, len, JSON_REJECT_DUPLICATES, &why);

    if (object == NULL) {
        return json_read_lacked_memory()
                   ? err_set(err, ST_ERR_NOMEM, "%s: no memory for its JSON", file)
                   : err_set(err, ST_ERR_FORMAT, "%s: line %d, column %d: %s", file, why.line,
                             why.column, why.text);
    }
    if (!json_is_object(object)) {
        json_decref(object);
        return err_set(err, ST_ERR_FORMAT, "%s: not a JSON object", file);
    }
    *object_p = object;
    return ST_OK;
}
