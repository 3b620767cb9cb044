/* tests/gpu/standin/cmocka.h - the part of cmocka that tests/layout/test_bits.c uses, for machines
 * without it. One failure ends a case, not the program; a case runs on the thread that called it.
 * GANTRY_TEST_ONLY in the environment: cases with that in their name. */
#ifndef TESTS_GPU_STANDIN_CMOCKA_H
#define TESTS_GPU_STANDIN_CMOCKA_H

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};
#define cmocka_unit_test(f)                                                                        \
    {                                                                                              \
#f, f                                                                                      \
    }

static jmp_buf standin_failed;

#define print_message printf
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        printf("FAILED ");                                                                         \
        printf(__VA_ARGS__);                                                                       \
        printf(" (%s:%d)\n", __FILE__, __LINE__);                                                  \
        longjmp(standin_failed, 1);                                                                \
    } while (0)
#define assert_true(e)                                                                             \
    do {                                                                                           \
        if (!(e)) {                                                                                \
            fail_msg("%s", #e);                                                                    \
        }                                                                                          \
    } while (0)
#define assert_int_equal(a, b)                                                                     \
    do {                                                                                           \
        const long long standin_a = (long long)(a), standin_b = (long long)(b);                    \
        if (standin_a != standin_b) {                                                              \
            fail_msg("%s is %lld, not %lld", #a, standin_a, standin_b);                            \
        }                                                                                          \
    } while (0)
#define assert_memory_equal(a, b, n)     assert_true(memcmp(a, b, n) == 0)
#define assert_memory_not_equal(a, b, n) assert_true(memcmp(a, b, n) != 0)

static inline int standin_run(const struct CMUnitTest *tests, size_t n)
{
    const char *only = getenv("GANTRY_TEST_ONLY");
    volatile int n_run = 0, n_failed = 0;

    for (volatile size_t i = 0; i < n; i++) {
        if (only != NULL && strstr(tests[i].name, only) == NULL) {
            continue;
        }
        n_run++;
        const int failed = setjmp(standin_failed);
        if (failed == 0) {
            tests[i].run(NULL);
        }
        n_failed += failed != 0;
        printf("%-6s %s\n", failed != 0 ? "FAILED" : "ok", tests[i].name);
        fflush(stdout);
    }
    printf("%d checks, %d failed\n", n_run, n_failed);
    return n_failed;
}
#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    standin_run(tests, sizeof(tests) / sizeof((tests)[0]))
#define cmocka_run_group_tests_name(name, tests, setup, teardown)                                  \
    cmocka_run_group_tests(tests, setup, teardown)

#endif
