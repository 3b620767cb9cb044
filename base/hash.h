/* base/hash.h - digests: 128-bit XXH3 (libxxhash). For identity and corruption, not for secrets. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HASH_BYTES = 16, HASH_HEX_BYTES = 33 };

struct hash128 {
    uint8_t bytes[HASH_BYTES]; /* canonical (big-endian) order: equal on every machine */
};

struct hash128 hash128_of(const void *data, size_t len);
uint64_t hash64_of(const void *data, size_t len, uint64_t seed);
/* 32 lower-case hex digits and a NUL. */
void hash128_hex(const struct hash128 *h, char hex[HASH_HEX_BYTES]);
/* The way back. False: those are not 32 such digits. */
bool hash128_read(const char *hex, struct hash128 *h_p);

#endif
