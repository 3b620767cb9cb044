/* tests/bench/kern_bench.c - what the kernels reach on this machine, against what it can do.
 *
 *   kern_bench [threads [machine]]      (default: all cores this process may use; "machine": only
 *                                       what the machine can do)
 *
 * Measures memory read bandwidth and the peak of the product instruction first, in the same run;
 * then a decode step's and a prefill's products on the shapes of TinyLlama-1.1B, in bf16 and in fp8, and
 * attention.
 * Every figure is the best of several runs, because the machine may be shared. With one thread,
 * time is this thread's processor time, so that a busy machine disturbs less. */
#include "base/clock.h"
#include "base/cpu.h"
#include "base/team.h"
#include "kernels/kern.h"
#include "kernels/math.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef __clang__
#define BENCH_UNROLL _Pragma("unroll")
#else
#define BENCH_UNROLL _Pragma("GCC unroll 24")
#endif

enum { DIM = 2048, FFN = 5632, QKV = 2560, VOCAB = 32000, LAYERS = 22, PREFILL = 512 };

static clockid_t clock_used = CLOCK_MONOTONIC; /* CLOCK_THREAD_CPUTIME_ID with one thread */

static double now_s(void)
{
    struct timespec t;

    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Best time of `n` runs. */
static double best_s(uint32_t n, void (*fn)(void *), void *arg)
{
    double best = 1e9;

    for (uint32_t i = 0; i < n; i++) {
        const double t0 = now_s();

        fn(arg);
        best = MIN(best, now_s() - t0);
    }
    return best;
}

/* ---- what the machine can do ---- */

struct machine {
    struct team *team;
    const char *mem;
    size_t bytes, at;
    uint64_t sums[64 * 8]; /* a cache line per part, so that the reads are kept */
};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t read_all(const char *p, size_t bytes)
{
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;

    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        _mm_prefetch(p + i + 4096, _MM_HINT_T0);
        _mm_prefetch(p + i + 4096 + 64, _MM_HINT_T0);
        _mm_prefetch(p + i + 4096 + 128, _MM_HINT_T0);
        _mm_prefetch(p + i + 4096 + 192, _MM_HINT_T0);
        a = _mm512_add_epi64(a, _mm512_loadu_si512(p + i));
        b = _mm512_add_epi64(b, _mm512_loadu_si512(p + i + 64));
        c = _mm512_add_epi64(c, _mm512_loadu_si512(p + i + 128));
        d = _mm512_add_epi64(d, _mm512_loadu_si512(p + i + 192));
    }
    return (uint64_t)_mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
}

/* 24 independent sums, as many instructions in flight as there can be. */
__attribute__((target("avx512f,avx512bf16"), noinline)) static float dot_peak(uint32_t n)
{
    __m512 acc[24];
    __m512 sum = _mm512_setzero_ps();
    const __m512bh x = (__m512bh)_mm512_set1_epi32((int)n & 3);

    BENCH_UNROLL
    for (int i = 0; i < 24; i++) {
        acc[i] = _mm512_setzero_ps();
    }
    for (uint32_t k = 0; k < n; k++) {
        BENCH_UNROLL
        for (int i = 0; i < 24; i++) {
            acc[i] = _mm512_dpbf16_ps(acc[i], x, x);
            __asm__ volatile("" : "+v"(acc[i]));
        }
    }
    BENCH_UNROLL
    for (int i = 0; i < 24; i++) {
        sum = _mm512_add_ps(sum, acc[i]);
    }
    return _mm512_reduce_add_ps(sum);
}
#endif

enum { PIECE = 8 << 20 }; /* read at a time: long enough to be steady, short enough to be alone */

static void read_part(void *arg, uint32_t part, uint32_t n_parts)
{
    struct machine *m = arg;
    const size_t each = PIECE / n_parts;

#if defined(__x86_64__)
    m->sums[part % 64 * 8] += read_all(m->mem + m->at + part * each, each);
#endif
}

enum { PEAK_STEPS = 20000 };

static void peak_part(void *arg, uint32_t part, uint32_t n_parts)
{
    struct machine *m = arg;

    (void)n_parts;
#if defined(__x86_64__)
    m->sums[part % 64 * 8] += (uint64_t)dot_peak(PEAK_STEPS);
#endif
}

static void read_run(void *arg)
{
    struct machine *m = arg;

    m->at = (m->at + PIECE) % m->bytes; /* walks through more than any cache holds */
    team_run(m->team, read_part, m);
}

static void peak_run(void *arg)
{
    struct machine *m = arg;

    team_run(m->team, peak_part, m);
}

/* ---- what the kernels do ---- */

struct product {
    const struct kern_ops *ops;
    struct kern_stream *s;
    const char *name;
    struct kern_mat w;
    void *x;
    float *y;
    uint32_t t;
    size_t pool_at;
};

static void *take(const struct kern_ops *ops, struct kern_stream *s, size_t bytes)
{
    void *mem;
    struct err err = ERR_INIT;

    if (ops->mem_alloc(s, bytes, &mem, &err) != ST_OK) {
        fprintf(stderr, "kern_bench: %s\n", err.text);
        exit(4);
    }
    memset(mem, 0, bytes);
    return mem;
}

static char
    *pool; /* POOL bytes of weights, which the shapes take turns in: more than caches hold */
enum { POOL = 512 << 20 };

static void product_run(void *arg)
{
    struct product *p = arg;
    const size_t bytes = p->ops->mat_bytes(&p->w);

    p->pool_at = p->pool_at + 2 * bytes > POOL ? 0 : p->pool_at + bytes;
    p->w.data = pool + p->pool_at;
    p->ops->gemm(p->s, p->y, p->x, &p->w, p->t);
}

static struct product product_make(const struct kern_ops *ops, struct kern_stream *s,
                                   const char *name, uint32_t n, uint32_t k, uint32_t leaves)
{
    struct product p = { .ops = ops, .s = s, .name = name, .t = 1 };

    p.w = (struct kern_mat){ .fmt = KERN_BF16, .n = n, .k = k, .n_leaves = leaves };

    for (uint32_t i = 0; i <= leaves; i++) {
        p.w.leaf[i] = kern_leaf_begin(k, leaves, i);
    }
    p.x = take(ops, s, (size_t)PREFILL * k * 2);
    for (size_t i = 0; i < (size_t)PREFILL * k; i++) {
        ((uint16_t *)p.x)[i] = (uint16_t)(0x3c00 + i % 131);
    }
    p.y = take(ops, s, (size_t)PREFILL * n * 4);
    return p;
}

static void product_free(struct product *p)
{
    p->ops->mem_free(p->s, p->x, (size_t)PREFILL * p->w.k * 2);
    p->ops->mem_free(p->s, p->y, (size_t)PREFILL * p->w.n * 4);
}

struct attn {
    const struct kern_ops *ops;
    struct kern_stream *s;
    struct kern_kv kv;
    struct kern_qkv g;
    struct kern_rows_map map;
    float *qkv;
    void *out;
};

static void attn_run(void *arg)
{
    struct attn *a = arg;

    a->ops->attention(a->s, a->out, &a->kv, a->qkv, &a->g, &a->map);
}

static void attention(const struct kern_ops *ops, struct kern_stream *s, uint32_t rows,
                      uint32_t ctx)
{
    struct attn a = { .ops = ops, .s = s, .g = { 32, 4, 64, 0, 0, 8, 0.125f } };
    uint32_t *pos = take(ops, s, rows * 4), *seq = take(ops, s, rows * 4);
    uint32_t *table = take(ops, s, ctx / 32 * 4);
    double t;

    a.kv = (struct kern_kv){ KERN_BF16, 4, 64, ctx / 32, NULL, NULL };
    a.kv.k = take(ops, s, ops->kv_bytes(&a.kv));
    a.kv.v = take(ops, s, ops->kv_bytes(&a.kv));
    a.qkv = take(ops, s, (size_t)rows * QKV * 4);
    a.out = take(ops, s, (size_t)rows * DIM * 4);
    for (uint32_t i = 0; i < rows; i++) {
        pos[i] = ctx - rows + i;
    }
    for (uint32_t i = 0; i < ctx / 32; i++) {
        table[i] = i;
    }
    a.map = (struct kern_rows_map){ rows, 1, ctx / 32, pos, seq, table };
    t = best_s(rows == 1 ? 200 : 5, attn_run, &a);
    printf("attention  T %3u context %5u: %8.1f us a layer, %5.1f Gflop/s\n", rows, ctx, t * 1e6,
           4.0 * 32 * 64 * rows * (ctx - rows / 2.0) / t * 1e-9);
    ops->mem_free(s, a.kv.k, ops->kv_bytes(&a.kv));
    ops->mem_free(s, a.kv.v, ops->kv_bytes(&a.kv));
    ops->mem_free(s, a.qkv, (size_t)rows * QKV * 4);
    ops->mem_free(s, a.out, (size_t)rows * DIM * 4);
    ops->mem_free(s, pos, rows * 4);
    ops->mem_free(s, seq, rows * 4);
    ops->mem_free(s, table, ctx / 32 * 4);
}

static void measure_machine(uint32_t n_threads, double *bandwidth_p, double *peak_p)
{
    struct machine *m = calloc(1, sizeof *m);
    struct err err = ERR_INIT;

    if (m == NULL || team_create(n_threads, &m->team, &err) != ST_OK) {
        fprintf(stderr, "kern_bench: %s\n", err.text);
        exit(4);
    }
    *bandwidth_p = *peak_p = 0.0;
    if ((cpu_flags() & CPU_AVX512_BF16) != 0) {
        struct kern_stream *s;
        const struct kern_ops *ops = kern_ops_ref();

        if (ops->stream_create(&(struct kern_stream_config){ 1, 0 }, &s, &err) != ST_OK) {
            exit(4);
        }
        m->bytes = (size_t)512 << 20;
        m->mem = take(ops, s, m->bytes + 8192);
        *bandwidth_p = (double)PIECE / best_s(200, read_run, m);
        *peak_p = 24.0 * 64 * PEAK_STEPS * n_threads / best_s(200, peak_run, m);
        ops->mem_free(s, (void *)(uintptr_t)m->mem, m->bytes + 8192);
        ops->stream_destroy(s);
    }
    printf("machine    read bandwidth %.1f GB/s, VDPBF16PS peak %.0f Gflop/s, %u threads\n",
           *bandwidth_p * 1e-9, *peak_p * 1e-9, n_threads);
    team_destroy(m->team);
    free(m);
}

int main(int argc, char **argv)
{
    const uint32_t n_threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : cpu_count();
    const struct {
        const char *name;
        uint32_t n, k, leaves, per_step;
    } shapes[] = { { "qkv", QKV, DIM, 1, LAYERS },
                   { "attn out", DIM, DIM, 8, LAYERS },
                   { "gate/up", 2 * FFN, DIM, 1, LAYERS },
                   { "down", DIM, FFN, 8, LAYERS },
                   { "head", VOCAB, DIM, 1, 1 } };
    const uint32_t rows[] = { 1, 4, 8, 16, PREFILL };
    struct err err = ERR_INIT;
    const struct kern_ops *ops = kern_ops_cpu(&err);
    struct product p[ARRAY_LEN(shapes)];
    struct kern_stream *s;
    double bandwidth, peak, step_s[2] = { 0, 0 };

    setvbuf(stdout, NULL, _IOLBF, 0);
    clock_used = n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    printf("path       %s %s\n", ops->name, err.text);
    if (n_threads == 0 ||
        ops->stream_create(&(struct kern_stream_config){ n_threads, 0 }, &s, &err) != ST_OK) {
        fprintf(stderr, "kern_bench: %s\n", err.text);
        return 2;
    }
    measure_machine(n_threads, &bandwidth, &peak);
    if (argc > 2 && strcmp(argv[2], "machine") == 0) {
        ops->stream_destroy(s);
        return 0;
    }
    pool = take(ops, s, POOL);
    for (size_t i = 0; i < POOL / 2; i++) {
        ((uint16_t *)(void *)pool)[i] = (uint16_t)(0x3c00 + i % 257);
    }
    for (uint32_t i = 0; i < ARRAY_LEN(shapes); i++) {
        p[i] = product_make(ops, s, shapes[i].name, shapes[i].n, shapes[i].k, shapes[i].leaves);
    }
    for (uint32_t r = 0; r < 2 * ARRAY_LEN(rows); r++) {
        const bool fp8 = r % 2 != 0;
        const uint32_t n_rows = rows[r / 2];
        double all_s = 0, all_bytes = 0, all_flops = 0;

        for (uint32_t i = 0; i < ARRAY_LEN(shapes); i++) {
            const double flops = 2.0 * p[i].w.n * p[i].w.k * n_rows;
            double t, bytes;

            /* The head is bf16 in the fp8 profile too. */
            p[i].w.fmt = fp8 && strcmp(shapes[i].name, "head") != 0 ? KERN_FP8 : KERN_BF16;
            bytes = (double)ops->mat_bytes(&p[i].w);
            p[i].t = n_rows;
            t = best_s(n_rows == PREFILL ? 3 : 20, product_run, &p[i]);
            printf(
                "product    %s T %3u %-8s %8.1f us  %5.1f GB/s %3.0f %%   %6.0f Gflop/s %3.0f %%\n",
                fp8 ? "fp8 " : "bf16", n_rows, shapes[i].name, t * 1e6, bytes / t * 1e-9,
                100 * bytes / t / bandwidth, flops / t * 1e-9, 100 * flops / t / peak);
            all_s += t * shapes[i].per_step;
            all_bytes += bytes * shapes[i].per_step;
            all_flops += flops * shapes[i].per_step;
        }
        step_s[fp8] = all_s;
        printf(
            "step       %s T %3u all      %8.2f ms  %5.1f GB/s %3.0f %%   %6.0f Gflop/s %3.0f %%\n",
            fp8 ? "fp8 " : "bf16", n_rows, all_s * 1e3, all_bytes / all_s * 1e-9,
            100 * all_bytes / all_s / bandwidth, all_flops / all_s * 1e-9,
            100 * all_flops / all_s / peak);
        if (fp8) {
            printf("fp8        T %3u: %.2f of bf16's time\n", n_rows, step_s[1] / step_s[0]);
        }
    }
    attention(ops, s, 1, 512);
    attention(ops, s, 1, 2048);
    attention(ops, s, PREFILL, PREFILL);
    for (uint32_t i = 0; i < ARRAY_LEN(shapes); i++) {
        product_free(&p[i]);
    }
    ops->mem_free(s, pool, POOL);
    ops->stream_destroy(s);
    return 0;
}
