/* tests/gpu/check.h - the harness of the device checks: random inputs, memory of the device, and a
 * line per check. Plain C on base/ and kernels/ alone, because the machines that lend a device often
 * have no cmocka, gRPC or protobuf-c.
 *
 * Every check draws fresh inputs from the seed on the command line, poisons its output with NaN
 * first, and compares with f64 (||out - ref|| / ||ref||, NaN never passes) or with equal bits. */
#ifndef TESTS_GPU_CHECK_H
#define TESTS_GPU_CHECK_H

#include "kernels/kern.h"
#include "kernels/math.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check {
    const char *plugin; /* path of the library */
    const struct kern_ops *ops;
    struct kern_stream *s;
    uint64_t random;
    uint32_t n_run, n_failed;
    bool quick; /* small sizes only */
};

/* ---- random ---- */

static inline uint32_t check_u32(struct check *c)
{
    uint64_t z = c->random += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static inline uint32_t check_between(struct check *c, uint32_t lo, uint32_t hi) /* both included */
{
    return lo + check_u32(c) % (hi - lo + 1);
}

/* Roughly normal, variance 1. */
static inline float check_normal(struct check *c)
{
    float sum = 0.0f;

    for (int i = 0; i < 4; i++) {
        sum += (float)(check_u32(c) >> 8) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7320508f;
}

/* ---- memory ---- */

static inline void *check_host(size_t bytes)
{
    void *p = aligned_alloc(KERN_ALIGN, (bytes + 2 * KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN);

    if (p == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
    memset(p, 0, bytes);
    return p;
}

static inline float *check_floats(struct check *c, size_t n, float scale)
{
    float *x = check_host(n * sizeof *x);

    for (size_t i = 0; i < n; i++) {
        x[i] = check_normal(c) * scale;
    }
    return x;
}

/* bf16 of x[n], a new array; x itself becomes the rounded values. */
static inline uint16_t *check_round(float *x, size_t n)
{
    uint16_t *h = check_host(n * sizeof *h);

    for (size_t i = 0; i < n; i++) {
        h[i] = bf16_from_f32(x[i]);
        x[i] = bf16_to_f32(h[i]);
    }
    return h;
}

void check_sync(struct check *c);
/* Device memory with these bytes, or full of NaN where src is NULL. */
void *check_up(struct check *c, const void *src, size_t bytes);
void check_down(struct check *c, void *dst, const void *src, size_t bytes);
void check_drop(struct check *c, void *mem, size_t bytes);

/* ---- verdicts ---- */

/* ||out - ref|| / ||ref|| <= tolerance, over n elements. */
void check_near(struct check *c, const char *what, const float *out, const double *ref, size_t n,
                double tolerance);
/* out in bf16. */
void check_near_bf16(struct check *c, const char *what, const uint16_t *out, const double *ref,
                     size_t n, double tolerance);
void check_equal(struct check *c, const char *what, const void *a, const void *b, size_t bytes);
void check_true(struct check *c, const char *what, bool ok);
/* A name with numbers in it; valid until the next call. */
const char *check_name(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* ---- the checks ---- */

void check_elem(struct check *c);
void check_gemm(struct check *c);
void check_attention(struct check *c);
void check_scan(struct check *c);
void check_feed(struct check *c);
void check_peer(struct check *c);
void check_stream(struct check *c);

#endif
