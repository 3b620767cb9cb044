/* What the router remembers of a replica: chains of keys, bounded, oldest use out first. */
#include "coordinator/prefix_map.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { BLOCK = 32, MAX_KEYS = 64 };

static struct prefix_map *open_map(uint32_t n_max)
{
    struct err err = ERR_INIT;
    struct prefix_map *m = NULL;

    assert_int_equal(prefix_map_create(n_max, &m, &err), ST_OK);
    return m;
}

static void fill_ids(uint32_t *ids, uint32_t n, uint32_t first)
{
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = first + i;
    }
}

static uint32_t keys_of(const uint32_t *ids, uint32_t n, uint64_t *keys)
{
    return prefix_keys(7, ids, n, NULL, 0, BLOCK, keys, MAX_KEYS);
}

static void test_prefix_map__keys_are_of_full_blocks_before_the_last_token(void **state UNUSED)
{
    uint32_t ids[3 * BLOCK];
    uint64_t keys[MAX_KEYS];

    fill_ids(ids, ARRAY_LEN(ids), 5);
    assert_int_equal(keys_of(ids, 1, keys), 0);
    assert_int_equal(keys_of(ids, BLOCK, keys), 0);
    assert_int_equal(keys_of(ids, BLOCK + 1, keys), 1);
    assert_int_equal(keys_of(ids, 2 * BLOCK, keys), 1);
    assert_int_equal(keys_of(ids, 3 * BLOCK, keys), 2);
    assert_int_equal(prefix_keys(7, ids, 3 * BLOCK, NULL, 0, BLOCK, keys, 1), 1);
}

static void test_prefix_map__keys_do_not_see_where_prompt_ends_and_answer_begins(
    void **state UNUSED)
{
    uint32_t ids[3 * BLOCK];
    uint64_t whole[MAX_KEYS], cut[MAX_KEYS];

    fill_ids(ids, ARRAY_LEN(ids), 5);
    const uint32_t n = keys_of(ids, ARRAY_LEN(ids), whole);
    for (uint32_t at = 1; at < ARRAY_LEN(ids); at++) {
        const uint32_t n_cut =
            prefix_keys(7, ids, at, ids + at, ARRAY_LEN(ids) - at, BLOCK, cut, MAX_KEYS);
        assert_int_equal(n_cut, n);
        assert_memory_equal(cut, whole, n * sizeof(*whole));
    }
}

static void test_prefix_map__scopes_and_beginnings_tell_keys_apart(void **state UNUSED)
{
    uint32_t ids[3 * BLOCK];
    uint64_t a[MAX_KEYS], b[MAX_KEYS];

    fill_ids(ids, ARRAY_LEN(ids), 5);
    const uint32_t n = keys_of(ids, ARRAY_LEN(ids), a);
    assert_int_equal(prefix_keys(8, ids, ARRAY_LEN(ids), NULL, 0, BLOCK, b, MAX_KEYS), n);
    assert_true(a[0] != b[0] && a[1] != b[1]);
    ids[0]++; /* the second block's own ids are the same, its beginning is not */
    assert_int_equal(keys_of(ids, ARRAY_LEN(ids), b), n);
    assert_true(a[0] != b[0] && a[1] != b[1]);
}

static void test_prefix_map__matches_the_longest_beginning(void **state UNUSED)
{
    uint32_t ids[9 * BLOCK];
    uint64_t keys[MAX_KEYS];
    struct prefix_map *m = open_map(100);

    fill_ids(ids, ARRAY_LEN(ids), 0);
    const uint32_t n = keys_of(ids, ARRAY_LEN(ids), keys);
    assert_int_equal(n, 8);
    assert_int_equal(prefix_map_match(m, keys, n), 0);
    prefix_map_note(m, keys, 5);
    assert_int_equal(prefix_map_match(m, keys, n), 5);
    assert_int_equal(prefix_map_match(m, keys, 3), 3);
    prefix_map_note(m, keys, n);
    assert_int_equal(prefix_map_count(m), 8);
    ids[4 * BLOCK]++;
    keys_of(ids, ARRAY_LEN(ids), keys);
    assert_int_equal(prefix_map_match(m, keys, n), 4);
    prefix_map_clear(m);
    assert_int_equal(prefix_map_match(m, keys, n), 0);
    prefix_map_note(m, keys, n);
    assert_int_equal(prefix_map_match(m, keys, n), 8);
    prefix_map_destroy(m);
}

static void test_prefix_map__is_bounded_and_forgets_the_oldest_ends_first(void **state UNUSED)
{
    uint32_t ids[9 * BLOCK], others[5 * BLOCK];
    uint64_t keys[MAX_KEYS], other_keys[MAX_KEYS];
    struct prefix_map *m = open_map(10);

    fill_ids(ids, ARRAY_LEN(ids), 0);
    fill_ids(others, ARRAY_LEN(others), 10000);
    const uint32_t n = keys_of(ids, ARRAY_LEN(ids), keys);
    const uint32_t n_other = keys_of(others, ARRAY_LEN(others), other_keys);
    prefix_map_note(m, keys, n); /* 8 of 10 */
    prefix_map_note(m, other_keys, n_other);
    assert_int_equal(prefix_map_count(m), 10);
    assert_int_equal(prefix_map_match(m, other_keys, n_other), 4);
    assert_int_equal(prefix_map_match(m, keys, n), 6); /* two went, from its end */
    prefix_map_note(m, keys, 6);                       /* used again: the others are older now */
    prefix_map_note(m, keys, n);
    assert_int_equal(prefix_map_match(m, keys, n), 8);
    assert_int_equal(prefix_map_match(m, other_keys, n_other), 2);
    prefix_map_destroy(m);
}

static void test_prefix_map__remembers_thousands(void **state UNUSED)
{
    enum { N = 5000 };
    struct prefix_map *m = open_map(N);

    for (uint64_t k = 0; k < 2 * N; k++) {
        const uint64_t key = k * UINT64_C(0x9e3779b97f4a7c15);
        prefix_map_note(m, &key, 1);
    }
    assert_int_equal(prefix_map_count(m), N);
    for (uint64_t k = 0; k < 2 * N; k++) {
        const uint64_t key = k * UINT64_C(0x9e3779b97f4a7c15);
        assert_int_equal(prefix_map_match(m, &key, 1), k < N ? 0 : 1);
    }
    prefix_map_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix_map__keys_are_of_full_blocks_before_the_last_token),
        cmocka_unit_test(test_prefix_map__keys_do_not_see_where_prompt_ends_and_answer_begins),
        cmocka_unit_test(test_prefix_map__scopes_and_beginnings_tell_keys_apart),
        cmocka_unit_test(test_prefix_map__matches_the_longest_beginning),
        cmocka_unit_test(test_prefix_map__is_bounded_and_forgets_the_oldest_ends_first),
        cmocka_unit_test(test_prefix_map__remembers_thousands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
