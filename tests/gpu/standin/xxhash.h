/* tests/gpu/standin/xxhash.h - in place of xxHash's header where that is not installed: another hash
 * under its names. Digests of such a build are good for comparing within it and nothing else. */
#ifndef TESTS_GPU_STANDIN_XXHASH_H
#define TESTS_GPU_STANDIN_XXHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t XXH64_hash_t;
typedef struct {
    uint64_t low64, high64;
} XXH128_hash_t;
typedef struct {
    unsigned char digest[16];
} XXH128_canonical_t;

static inline uint64_t XXH3_64bits_withSeed(const void *data, size_t len, uint64_t seed)
{
    const unsigned char *p = data;
    uint64_t h = seed ^ (len * 0x9e3779b97f4a7c15ULL);

    while (len != 0) {
        const size_t n = len < 8 ? len : 8;
        uint64_t word = 0;
        memcpy(&word, p, n);
        h = (h ^ word) * 0xbf58476d1ce4e5b9ULL;
        h ^= h >> 29;
        p += n;
        len -= n;
    }
    h *= 0x94d049bb133111ebULL;
    return h ^ h >> 31;
}

static inline XXH128_hash_t XXH3_128bits(const void *data, size_t len)
{
    const XXH128_hash_t h = { XXH3_64bits_withSeed(data, len, 1),
                              XXH3_64bits_withSeed(data, len, 2) };
    return h;
}

static inline void XXH128_canonicalFromHash(XXH128_canonical_t *c, XXH128_hash_t h)
{
    memcpy(c->digest, &h.high64, 8);
    memcpy(c->digest + 8, &h.low64, 8);
}

#endif
