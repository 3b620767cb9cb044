/* model/json_memory.h - jansson where memory may run out.
 *
 * Reading: where an allocation fails inside its parser jansson says something about the text ("invalid
 * token"), so its allocations are watched. Building: what could not be made is NULL, what is put
 * into NULL is dropped, and a value that lacks a part looks like any other; hence `ok`, which says
 * at the end whether all of it is there. */
#ifndef MODEL_JSON_MEMORY_H
#define MODEL_JSON_MEMORY_H

#include <jansson.h>
#include <stdbool.h>

/* As json_loadb. */
json_t *json_read(const char *text, size_t len, size_t flags, json_error_t *why);
/* Why this thread's last json_read gave NULL: memory, or else the text. */
bool json_read_lacked_memory(void);

/* Both take `value`; *ok becomes false if it is not in there afterwards. */
static inline void json_add(json_t *array, json_t *value, bool *ok)
{
    *ok = json_array_append_new(array, value) == 0 && *ok;
}

static inline void json_put(json_t *object, const char *key, json_t *value, bool *ok)
{
    *ok = json_object_set_new(object, key, value) == 0 && *ok;
}

/* `root` if all of it is there; else NULL, and it is freed. */
static inline json_t *json_whole(json_t *root, bool ok)
{
    if (!ok) {
        json_decref(root);
        return NULL;
    }
    return root;
}

#endif
