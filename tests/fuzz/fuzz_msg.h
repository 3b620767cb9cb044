/* tests/fuzz/fuzz_msg.h - what the entries for messages share: unpack, pack, unpack, pack; the two
 * packings must be equal, the memory bounded, and every refusal has its sentence. */
#ifndef TESTS_FUZZ_MSG_H
#define TESTS_FUZZ_MSG_H

#include "proto/msg.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FUZZ_ARENA_BYTES = 1 << 20 };

typedef status (*fuzz_again_fn)(const void *data, size_t len, struct arena *arena, struct buf *out,
                                struct err *err);

#define FUZZ_AGAIN(name, type, unpack, pack)                                                       \
    static status name(const void *data, size_t len, struct arena *arena, struct buf *out,         \
                       struct err *err)                                                            \
    {                                                                                              \
        type m;                                                                                    \
        const status st = unpack(data, len, arena, &m, err);                                       \
        return st < 0 ? st : pack(&m, out);                                                        \
    }

static inline void fuzz_rounds(const uint8_t *data, size_t size, fuzz_again_fn again)
{
    struct arena arena = ARENA_INIT(FUZZ_ARENA_BYTES), second = ARENA_INIT(4 * FUZZ_ARENA_BYTES);
    struct buf once = BUF_INIT, twice = BUF_INIT;
    struct err err = ERR_INIT;
    const status st = again(data, size, &arena, &once, &err);

    ASSERT(arena.used <= arena.max);
    if (st == ST_OK) {
        ASSERT(again(once.data, once.len, &second, &twice, &err) == ST_OK);
        ASSERT(once.len == twice.len && memcmp(once.data, twice.data, once.len) == 0);
    } else {
        ASSERT(st == ST_ERR_PROTO || st == ST_ERR_LIMIT || st == ST_ERR_ARG);
        ASSERT(err.text[0] != '\0');
    }
    buf_fini(&once);
    buf_fini(&twice);
    arena_fini(&arena);
    arena_fini(&second);
}

#endif
