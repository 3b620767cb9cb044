/* tests/kern/kern_case.h - canned random inputs and the list of paths that this CPU has. */
#ifndef TESTS_KERN_CASE_H
#define TESTS_KERN_CASE_H

#include "base/cpu.h"
#include "kernels/kern.h"
#include "kernels/math.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t case_state = 1;

static uint32_t case_u32(void) /* splitmix64 */
{
    uint64_t z = case_state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

UNUSED static uint32_t case_between(uint32_t lo, uint32_t hi) /* both included */
{
    return lo + case_u32() % (hi - lo + 1);
}

/* Magnitudes over 2^spread, both signs, now and then a zero of either sign. */
UNUSED static void case_fill(float *x, size_t n, int spread)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t r = case_u32();

        x[i] = ldexpf((float)(case_u32() >> 8) * 0x1p-23f - 1.0f,
                      (int)(r % (uint32_t)spread) - spread / 2);
        if (r >> 26 == 0) {
            x[i] = r & 65536 ? 0.0f : -0.0f;
        }
    }
}

UNUSED static float *case_floats(size_t n, int spread)
{
    float *x = aligned_alloc(64, (n * 4 + 63) / 64 * 64 + 64);

    assert_non_null(x);
    case_fill(x, n, spread);
    return x;
}

UNUSED static void *case_zeros(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);

    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

/* f32 to bf16 in place, packed at the front. */
UNUSED static void case_round(float *x, size_t n)
{
    uint16_t *out = (uint16_t *)(void *)x;

    for (size_t i = 0; i < n; i++) {
        out[i] = bf16_from_f32(x[i]);
    }
}

enum { CASE_PATHS = 3, CASE_THREADS = 3 };

struct case_paths {
    uint32_t n;
    const struct kern_ops *ops[CASE_PATHS];
    struct kern_stream *streams[CASE_THREADS]; /* 1, 2, 3 threads */
};

UNUSED static struct case_paths case_paths_get(void)
{
    static const uint32_t flags[CASE_PATHS] = { CPU_AVX2, CPU_AVX2 | CPU_AVX512,
                                                CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16 };
    struct case_paths p = { 0 };

    for (uint32_t i = 0; i < CASE_PATHS; i++) {
        const struct kern_ops *ops = kern_ops_path(flags[i]);

        if (ops != NULL) {
            p.ops[p.n++] = ops;
        }
    }
    for (uint32_t i = 0; i < CASE_THREADS; i++) {
        const struct kern_stream_config config = { i + 1, 0 };
        struct err err = ERR_INIT;

        assert_int_equal(kern_ops_ref()->stream_create(&config, &p.streams[i], &err), ST_OK);
    }
    return p;
}

UNUSED static void case_paths_put(struct case_paths *p)
{
    for (uint32_t i = 0; i < CASE_THREADS; i++) {
        kern_ops_ref()->stream_destroy(p->streams[i]);
    }
}

/* Equal bits, or which element differs and how. */
UNUSED static void case_same(const void *want, const void *have, size_t n_floats, const char *what)
{
    const float *a = want, *b = have;

    if (memcmp(want, have, n_floats * 4) == 0) {
        return;
    }
    for (size_t i = 0; i < n_floats; i++) {
        if (f32_bits(a[i]) != f32_bits(b[i])) {
            fail_msg("%s: element %zu of %zu is %a, not %a", what, i, n_floats, (double)b[i],
                     (double)a[i]);
        }
    }
}

#endif
