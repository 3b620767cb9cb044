/* model/config_field.h - one checked field of a JSON object: private to this folder.
 *
 * A reader says what it accepts (kind, range, default) and gets the value or a sentence that names
 * file, field, value and limit. Null counts as absent, as transformers treats it. The object and
 * what is taken out of it stay owned by the caller (borrowed references). */
#ifndef MODEL_CONFIG_FIELD_H
#define MODEL_CONFIG_FIELD_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct field_from {
    const char *file; /* "config.json", for sentences */
    const char *path; /* "" or "rope_scaling.", put in front of the key */
    json_t *object;   /* borrowed */
};

/* The value of `key`; NULL if it is absent or null. Borrowed. */
json_t *field_get(const struct field_from *from, const char *key);
bool field_has(const struct field_from *from, const char *key);

struct field_u32 {
    uint32_t min, max;
    bool required;
    uint32_t fallback; /* if absent */
};
status field_read_u32(const struct field_from *from, const char *key, struct field_u32 rule,
                      uint32_t *value_p, struct err *err);

struct field_real {
    double min, max;
    bool required;
    double fallback;
};
status field_read_real(const struct field_from *from, const char *key, struct field_real rule,
                       double *value_p, struct err *err);
status field_read_bool(const struct field_from *from, const char *key, bool fallback, bool *value_p,
                       struct err *err);
/* Borrowed from the object; NULL if absent. */
status field_read_string(const struct field_from *from, const char *key, const char **value_p,
                         struct err *err);

enum { FIELD_TEXT_BYTES = 80 };
/* The value as JSON, cut to fit a sentence. */
void field_text(const json_t *value, char text[FIELD_TEXT_BYTES]);

/* Parse `len` bytes as one JSON object without duplicate keys. The caller owns *object_p. */
status field_parse_object(const char *file, const char *text, size_t len, json_t **object_p,
                          struct err *err);

#endif
