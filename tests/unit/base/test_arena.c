/* tests/unit/base/test_arena.c */
#include "base/arena.h"

#include "common/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_arena__gives_aligned_zeroed_distinct_memory(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1 << 20);
    unsigned char *before = NULL;

    for (size_t size = 0; size < 600; size++) {
        unsigned char *data = arena_alloc(&arena, size);
        assert_non_null(data);
        assert_int_equal((uintptr_t)data % 16, 0);
        assert_ptr_not_equal(data, before);
        for (size_t i = 0; i < size; i++) {
            assert_int_equal(data[i], 0);
        }
        memset(data, 0xAB, size);
        before = data;
    }
    arena_fini(&arena);
}

static void test_arena__memory_is_zero_again_after_reset(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(100000);
    unsigned char *first = arena_alloc(&arena, 64);

    memset(first, 0xFF, 64);
    assert_non_null(arena_alloc(&arena, 50000));
    arena_reset(&arena);
    assert_int_equal(arena.used, 0);
    unsigned char *again = arena_alloc(&arena, 64);
    assert_ptr_equal(again, first); /* the first chunk was kept */
    for (size_t i = 0; i < 64; i++) {
        assert_int_equal(again[i], 0);
    }
    arena_fini(&arena);
}

static void test_arena__never_hands_out_more_than_its_bound(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1024);

    assert_null(arena_alloc(&arena, 1025));
    assert_non_null(arena_alloc(&arena, 1000));
    assert_non_null(arena_alloc(&arena, 16));
    assert_null(arena_alloc(&arena, 1));
    assert_null(arena_alloc(&arena, SIZE_MAX));
    assert_null(arena_copy_str(&arena, "", SIZE_MAX));
    arena_reset(&arena);
    assert_non_null(arena_alloc(&arena, 1024));
    arena_fini(&arena);
}

static void test_arena__copies_are_equal_and_strings_end(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1 << 16);

    assert_memory_equal(arena_copy(&arena, "abc\0def", 7), "abc\0def", 7);
    assert_string_equal(arena_copy_str(&arena, "hello world", 5), "hello");
    assert_string_equal(arena_copy_str(&arena, NULL, 0), "");
    assert_non_null(arena_copy(&arena, NULL, 0));
    arena_fini(&arena);
}

static void test_arena__out_of_memory_leaves_it_usable(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1 << 20);

    alloc_fail_at(1);
    assert_null(arena_alloc(&arena, 8));
    assert_true(alloc_fail_off());
    assert_int_equal(arena_lack(&arena, 10), ST_ERR_NOMEM);
    assert_int_equal(arena_lack(&arena, (size_t)1 << 40), ST_ERR_LIMIT);
    assert_non_null(arena_alloc(&arena, 8));
    assert_int_equal(arena.used, 16);
    arena_fini(&arena);
    arena_fini(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena__gives_aligned_zeroed_distinct_memory),
        cmocka_unit_test(test_arena__memory_is_zero_again_after_reset),
        cmocka_unit_test(test_arena__never_hands_out_more_than_its_bound),
        cmocka_unit_test(test_arena__copies_are_equal_and_strings_end),
        cmocka_unit_test(test_arena__out_of_memory_leaves_it_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
