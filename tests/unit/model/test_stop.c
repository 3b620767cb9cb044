/* tests/unit/model/test_stop.c - stop strings, compared with a search over the whole text. */
#include "model/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct stop *make(const char *const *strings, uint32_t n)
{
    size_t lens[STOP_STRINGS_MAX];
    struct stop *stop = NULL;
    struct err err = ERR_INIT;

    for (uint32_t i = 0; i < n; i++) {
        lens[i] = strlen(strings[i]);
    }
    if (stop_create(strings, lens, n, &stop, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return stop;
}

static int32_t feed(struct stop *stop, const char *text, struct buf *out)
{
    int32_t match = -2;

    assert_int_equal(stop_push(stop, text, strlen(text), out, &match), ST_OK);
    return match;
}

static void test_stop__text_before_a_match_comes_out(void **state)
{
    const char *strings[] = { "\n\nUser:", "END" };
    struct stop *stop = make(strings, 2);
    struct buf out = BUF_INIT;

    (void)state;
    assert_int_equal(feed(stop, "fine.\n", &out), -1);
    assert_string_equal(out.data, "fine.");
    assert_int_equal(stop_held(stop), 1);
    assert_int_equal(feed(stop, "\nUs", &out), -1);
    assert_string_equal(out.data, "fine.");
    assert_int_equal(feed(stop, "er: more", &out), 0);
    assert_string_equal(out.data, "fine.");
    assert_int_equal(feed(stop, "never", &out), 0);
    assert_int_equal(stop_flush(stop, &out), ST_OK);
    assert_string_equal(out.data, "fine.");
    stop_destroy(stop);
    buf_fini(&out);
}

static void test_stop__what_turned_out_harmless_comes_out(void **state)
{
    const char *strings[] = { "aab" };
    struct stop *stop = make(strings, 1);
    struct buf out = BUF_INIT;

    (void)state;
    assert_int_equal(feed(stop, "aa", &out), -1);
    assert_int_equal(out.len, 0);
    assert_int_equal(feed(stop, "a", &out), -1); /* "aa" may still begin "aab" */
    assert_string_equal(out.data, "a");
    assert_int_equal(feed(stop, "c", &out), -1);
    assert_string_equal(out.data, "aaac");
    assert_int_equal(feed(stop, "a", &out), -1);
    assert_int_equal(stop_flush(stop, &out), ST_OK);
    assert_string_equal(out.data, "aaaca");
    stop_destroy(stop);
    buf_fini(&out);
}

static void test_stop__of_two_that_end_together_the_longer_wins(void **state)
{
    const char *strings[] = { "c", "abc", "bc" };
    struct stop *stop = make(strings, 3);
    struct buf out = BUF_INIT;

    (void)state;
    assert_int_equal(feed(stop, "xabc", &out), 1);
    assert_string_equal(out.data, "x");
    stop_destroy(stop);
    buf_fini(&out);
}

static void test_stop__bad_lists_are_refused(void **state)
{
    const char *strings[STOP_STRINGS_MAX + 1];
    size_t lens[STOP_STRINGS_MAX + 1];
    char big[STOP_BYTES_MAX + 1];
    struct stop *stop = NULL;
    struct err err = ERR_INIT;

    (void)state;
    memset(big, 'x', sizeof big);
    for (uint32_t i = 0; i <= STOP_STRINGS_MAX; i++) {
        strings[i] = big;
        lens[i] = 1;
    }
    assert_int_equal(stop_create(strings, lens, STOP_STRINGS_MAX + 1, &stop, &err), ST_ERR_ARG);
    assert_non_null(strstr(err.text, "17"));
    lens[3] = 0;
    assert_int_equal(stop_create(strings, lens, 4, &stop, &err), ST_ERR_ARG);
    assert_non_null(strstr(err.text, "stop string 3"));
    lens[3] = STOP_BYTES_MAX + 1;
    assert_int_equal(stop_create(strings, lens, 4, &stop, &err), ST_ERR_ARG);
    assert_null(stop);
    lens[3] = STOP_BYTES_MAX;
    assert_int_equal(stop_create(strings, lens, 4, &stop, &err), ST_OK);
    stop_destroy(stop);
}

static void test_stop__a_full_buffer_takes_nothing(void **state)
{
    const char *strings[] = { "zz" };
    struct stop *stop = make(strings, 1);
    struct buf small = BUF_INIT_MAX(4), out = BUF_INIT;
    int32_t match = -2;

    (void)state;
    assert_int_equal(stop_push(stop, "az", 2, &out, &match), ST_OK);
    assert_int_equal(stop_push(stop, "bcdefg", 6, &small, &match), ST_ERR_LIMIT);
    assert_int_equal(stop_push(stop, "zb", 2, &out, &match), ST_OK);
    assert_int_equal(match, 0);
    assert_string_equal(out.data, "a");
    stop_destroy(stop);
    buf_fini(&out);
    buf_fini(&small);
}

/* The definition: the first byte at which any string is complete; the longest of those. */
static int32_t search(const char *const *strings, uint32_t n, const char *text, size_t *cut_p)
{
    int32_t best = -1;

    for (size_t end = 1; end <= strlen(text) && best < 0; end++) {
        for (uint32_t i = 0; i < n; i++) {
            const size_t len = strlen(strings[i]);
            if (len <= end && memcmp(text + end - len, strings[i], len) == 0 &&
                (best < 0 || len > strlen(strings[best]))) {
                best = (int32_t)i;
                *cut_p = end - len;
            }
        }
    }
    return best;
}

static void test_stop__division_into_pushes_does_not_matter(void **state)
{
    uint64_t seed = 12345;
    uint32_t n_match = 0;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        char strings[4][8], text[48], piece[8];
        const char *list[4];
        struct buf out = BUF_INIT;
        size_t cut = 0;
        int32_t match = -1;
#define NEXT(n) ((seed = seed * 6364136223846793005ull + 1442695040888963407ull) >> 33) % (n)
        for (uint32_t i = 0; i < 4; i++) {
            const size_t len = 2 + NEXT(5);
            for (size_t k = 0; k < len; k++) {
                strings[i][k] = (char)('a' + NEXT(3));
            }
            strings[i][len] = '\0';
            list[i] = strings[i];
        }
        const size_t len = NEXT(40);
        for (size_t k = 0; k < len; k++) {
            text[k] = (char)('a' + NEXT(3));
        }
        text[len] = '\0';
        struct stop *stop = make(list, 4);
        for (size_t at = 0; at < len;) {
            size_t take = 1 + NEXT(6);
            take = MIN(take, len - at);
            memcpy(piece, text + at, take);
            piece[take] = '\0';
            match = feed(stop, piece, &out);
            at += take;
        }
        assert_int_equal(stop_flush(stop, &out), ST_OK);
        const int32_t expect = search(list, 4, text, &cut);
        assert_int_equal(match, expect);
        assert_int_equal(out.len, expect < 0 ? len : cut);
        assert_memory_equal(out.data, text, out.len);
        n_match += expect >= 0;
        stop_destroy(stop);
        buf_fini(&out);
#undef NEXT
    }
    assert_true(n_match > 500 && n_match < 2900);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop__text_before_a_match_comes_out),
        cmocka_unit_test(test_stop__what_turned_out_harmless_comes_out),
        cmocka_unit_test(test_stop__of_two_that_end_together_the_longer_wins),
        cmocka_unit_test(test_stop__bad_lists_are_refused),
        cmocka_unit_test(test_stop__a_full_buffer_takes_nothing),
        cmocka_unit_test(test_stop__division_into_pushes_does_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
