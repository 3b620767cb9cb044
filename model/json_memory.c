/* model/json_memory.c - see json_memory.h. */
#include "model/json_memory.h"

#include <stdlib.h>

static _Thread_local bool has_failed; /* an allocation of jansson's, since the last json_read */

static void *note_malloc(size_t bytes)
{
    void *block = malloc(bytes);

    has_failed = has_failed || block == NULL;
    return block;
}

/* Before there are threads: it is one setting for the whole process. */
__attribute__((constructor)) static void install(void)
{
    json_set_alloc_funcs(note_malloc, free);
}

json_t *json_read(const char *text, size_t len, size_t flags, json_error_t *why)
{
    has_failed = false;
    json_t *root = json_loadb(text, len, flags, why);
    if (has_failed) { /* 2.14 gives a value even so: what is in it is not asked */
        json_decref(root);
        return NULL;
    }
    return root;
}

bool json_read_lacked_memory(void)
{
    return has_failed;
}
