/* tests/unit/base/test_hash.c - the expected values come from the Python binding of xxHash, so that
 * digests that are stored or sent stay the same over versions of the library. */
#include "base/hash.h"

#include "base/compiler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void assert_hex(const char *text, const char *expected)
{
    const struct hash128 h = hash128_of(text, strlen(text));
    char hex[HASH_HEX_BYTES];

    hash128_hex(&h, hex);
    assert_string_equal(hex, expected);
    struct hash128 back;
    assert_true(hash128_read(hex, &back));
    assert_memory_equal(&back, &h, sizeof(h));
    hex[7] = 'g';
    assert_false(hash128_read(hex, &back));
    assert_false(hash128_read(expected + 1, &back));
}

static void test_hash128__is_xxh3_in_canonical_order(void **state UNUSED)
{
    assert_hex("", "99aa06d3014798d86001c324468d497f");
    assert_hex("gantry", "ee6957550ae64d72d3470c9b8e332247");
}

static void test_hash64__depends_on_bytes_and_seed(void **state UNUSED)
{
    assert_true(hash64_of("gantry", 6, 0) == 0xdde13624f4f693b7u);
    assert_true(hash64_of("gantry", 6, 1) != hash64_of("gantry", 6, 0));
    assert_true(hash64_of("gantrz", 6, 0) != hash64_of("gantry", 6, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash128__is_xxh3_in_canonical_order),
        cmocka_unit_test(test_hash64__depends_on_bytes_and_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
