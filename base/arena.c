/* base/arena.c - see arena.h. Chunks double from 4 KiB to 1 MiB; a larger request gets its own. */
#include "base/arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16, CHUNK_BYTES_MIN = 4096, CHUNK_BYTES_MAX = 1 << 20 };

struct arena_chunk {
    struct arena_chunk *next; /* owned, older */
    size_t size, used;        /* bytes of `data` */
    _Alignas(ALIGN) unsigned char data[];
};

static struct arena_chunk *add_chunk(struct arena *arena, size_t need)
{
    struct arena_chunk *newest = arena->chunks;
    size_t size = newest == NULL ? CHUNK_BYTES_MIN : MIN(newest->size * 2, CHUNK_BYTES_MAX);

    /* A small bound is also a small chunk: thousands of short messages each have an arena. */
    size = MAX(MIN(size, arena->max - arena->used), need);
    struct arena_chunk *chunk = malloc(sizeof(*chunk) + size);
    if (chunk == NULL) {
        return NULL;
    }
    chunk->next = newest;
    chunk->size = size;
    chunk->used = 0;
    arena->chunks = chunk;
    return chunk;
}

/* size 0 takes a unit too, so that every pointer is distinct and inside a chunk. */
static size_t need_of(size_t size)
{
    return (MAX(size, (size_t)1) + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

static bool has_room(const struct arena *arena, size_t size)
{
    return size <= SIZE_MAX / 2 && arena->used <= arena->max &&
           need_of(size) <= arena->max - arena->used;
}

status arena_lack(const struct arena *arena, size_t size)
{
    return has_room(arena, size) ? ST_ERR_NOMEM : ST_ERR_LIMIT;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    const size_t need = need_of(size);
    struct arena_chunk *chunk = arena->chunks;

    if (!has_room(arena, size)) {
        return NULL;
    }
    if (chunk == NULL || need > chunk->size - chunk->used) {
        chunk = add_chunk(arena, need);
        if (chunk == NULL) {
            return NULL;
        }
    }
    void *data = chunk->data + chunk->used;
    chunk->used += need;
    arena->used += need;
    return memset(data, 0, need);
}

void *arena_copy(struct arena *arena, const void *data, size_t size)
{
    void *copy = arena_alloc(arena, size);

    if (copy != NULL && size != 0) {
        memcpy(copy, data, size);
    }
    return copy;
}

char *arena_copy_str(struct arena *arena, const char *data, size_t len)
{
    char *copy = len < SIZE_MAX ? arena_alloc(arena, len + 1) : NULL;

    if (copy != NULL && len != 0) {
        memcpy(copy, data, len);
    }
    return copy;
}

void arena_reset(struct arena *arena)
{
    struct arena_chunk *chunk = arena->chunks;

    while (chunk != NULL && chunk->next != NULL) {
        struct arena_chunk *older = chunk->next;
        free(chunk);
        chunk = older;
    }
    if (chunk != NULL) {
        chunk->used = 0;
    }
    arena->chunks = chunk;
    arena->used = 0;
}

void arena_fini(struct arena *arena)
{
    if (arena == NULL) {
        return;
    }
    arena_reset(arena);
    free(arena->chunks);
    arena->chunks = NULL;
}
