/* base/arena.h - memory that is all freed together: what one message or one step needs.
 *
 * Grows by chunks up to a bound given at the start, because what is put there is often measured by
 * outside bytes. arena_reset keeps the first chunk. One owner, no locks. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include "base/err.h"

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks; /* owned, newest first; NULL before the first allocation */
    size_t used;                /* bytes handed out since the last reset */
    size_t max;                 /* bytes at most */
};

#define ARENA_INIT(max_bytes)                                                                      \
    {                                                                                              \
        NULL, 0, (max_bytes)                                                                       \
    }

/* 16-byte aligned, zeroed. NULL when memory or the bound is used up. size 0 gives a valid pointer.
 */
void *arena_alloc(struct arena *arena, size_t size);
/* Why arena_alloc gave NULL for this size: ST_ERR_LIMIT is the bound, ST_ERR_NOMEM is memory. */
status arena_lack(const struct arena *arena, size_t size);
void *arena_copy(struct arena *arena, const void *data, size_t size);    /* NULL as above */
char *arena_copy_str(struct arena *arena, const char *data, size_t len); /* adds a NUL */
void arena_reset(struct arena *arena);
void arena_fini(struct arena *arena);

#endif
