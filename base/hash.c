/* base/hash.c - see hash.h. The one user of xxhash.h; compiled in, so nothing is linked. */
#include "base/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

struct hash128 hash128_of(const void *data, size_t len)
{
    struct hash128 h;
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, len));
    _Static_assert(sizeof(canonical.digest) == sizeof(h.bytes), "128 bits");
    memcpy(h.bytes, canonical.digest, sizeof(h.bytes));
    return h;
}

uint64_t hash64_of(const void *data, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, len, seed);
}

void hash128_hex(const struct hash128 *h, char hex[HASH_HEX_BYTES])
{
    static const char digits[] = "0123456789abcdef";

    for (int i = 0; i < HASH_BYTES; i++) {
        hex[2 * i] = digits[h->bytes[i] >> 4];
        hex[2 * i + 1] = digits[h->bytes[i] & 15];
    }
    hex[2 * HASH_BYTES] = '\0';
}

bool hash128_read(const char *hex, struct hash128 *h_p)
{
    static const char digits[] = "0123456789abcdef";
    struct hash128 h;

    if (strlen(hex) != HASH_HEX_BYTES - 1 || strspn(hex, digits) != HASH_HEX_BYTES - 1) {
        return false;
    }
    for (int i = 0; i < HASH_BYTES; i++) {
        const long high = strchr(digits, hex[2 * i]) - digits;
        const long low = strchr(digits, hex[2 * i + 1]) - digits;
        h.bytes[i] = (uint8_t)(high << 4 | low);
    }
    *h_p = h;
    return true;
}
