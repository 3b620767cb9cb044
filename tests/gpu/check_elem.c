/* tests/gpu/check_elem.c - ops whose outputs depend on a few inputs, and the norms. Those that the
 * profile takes over from the CPU operation for operation are also compared with kernels/ref. */
#include "tests/gpu/check.h"

#include <math.h>

static void run_embed(struct check *c, enum kern_fmt fmt, enum kern_src type)
{
    enum { V = 37, C = 75, T = 19 };
    struct kern_embed e = { fmt, 100, V, C, NULL };
    float *w = check_floats(c, V * C, 1.0f), *x = check_host(T * C * 4);
    double *ref = check_host(T * C * sizeof *ref);
    uint16_t *h = check_round(w, V * C); /* bf16 values fit every format */
    uint32_t ids[T];
    const size_t bytes = c->ops->embed_bytes(&e);
    const struct kern_rows rows = { type, type == KERN_SRC_F32 ? (void *)w : (void *)h, 0, V, C,
                                    NULL };

    e.data = check_up(c, NULL, bytes);
    c->ops->embed_pack(c->s, &e, &rows);
    for (uint32_t t = 0; t < T; t++) {
        ids[t] = check_between(c, 90, 145); /* some are not held */
        for (uint32_t i = 0; i < C && ids[t] >= 100 && ids[t] < 100 + V; i++) {
            ref[t * C + i] = (double)w[(ids[t] - 100) * C + i];
        }
    }
    uint32_t *d_ids = check_up(c, ids, sizeof ids);
    float *dx = check_up(c, NULL, T * C * 4);

    c->ops->embed(c->s, dx, &e, d_ids, T);
    check_down(c, x, dx, T * C * 4);
    check_near(c, check_name("embed %s", fmt == KERN_BF16 ? "bf16" : "f32"), x, ref, T * C, 0.0);
    check_drop(c, e.data, bytes);
    check_drop(c, d_ids, sizeof ids);
    check_drop(c, dx, T * C * 4);
    free(w);
    free(x);
    free(ref);
    free(h);
}

static void run_rmsnorm(struct check *c, uint32_t n_rows, uint32_t dim)
{
    const size_t n = (size_t)n_rows * dim;
    float *x = check_floats(c, n, 3.0f), *w = check_floats(c, dim, 1.0f), *y = check_host(n * 4);
    float *cpu = check_host(n * 4);
    double *ref = check_host(n * sizeof *ref);
    float *dx = check_up(c, x, n * 4), *dw = check_up(c, w, dim * 4);
    void *dy = check_up(c, NULL, n * 4);

    for (uint32_t t = 0; t < n_rows; t++) {
        double ss = 0.0;

        for (uint32_t i = 0; i < dim; i++) {
            ss += (double)x[t * dim + i] * (double)x[t * dim + i];
        }
        for (uint32_t i = 0; i < dim; i++) {
            ref[t * dim + i] = (double)x[t * dim + i] / sqrt(ss / dim + 1e-5) * (double)w[i];
        }
    }
    c->ops->rmsnorm(c->s, dy, KERN_F32, dx, dw, n_rows, dim, 1e-5f);
    check_down(c, y, dy, n * 4);
    check_near(c, check_name("rmsnorm f32 [%u,%u]", n_rows, dim), y, ref, n, 1e-6);
    kern_ops_ref()->rmsnorm(NULL, cpu, KERN_F32, x, w, n_rows, dim, 1e-5f);
    check_equal(c, "  the CPU's bits", y, cpu, n * 4);
    memset(y, 0xff, n * 4);
    c->ops->copy_in(c->s, dy, y, n * 4);
    c->ops->rmsnorm(c->s, dy, KERN_BF16, dx, dw, n_rows, dim, 1e-5f);
    check_down(c, y, dy, n * 2);
    check_near_bf16(c, check_name("rmsnorm bf16 [%u,%u]", n_rows, dim), (uint16_t *)(void *)y, ref,
                    n, 4e-3);
    check_drop(c, dx, n * 4);
    check_drop(c, dw, dim * 4);
    check_drop(c, dy, n * 4);
    free(x);
    free(w);
    free(y);
    free(cpu);
    free(ref);
}

static void run_silu(struct check *c, uint32_t n_rows, uint32_t ffn)
{
    const size_t n = (size_t)n_rows * ffn;
    float *gu = check_floats(c, 2 * n, 4.0f), *y = check_host(n * 4), *cpu = check_host(n * 4);
    double *ref = check_host(n * sizeof *ref);
    float *dg = check_up(c, gu, 2 * n * 4);
    void *dy = check_up(c, NULL, n * 4);

    for (size_t i = 0; i < n; i++) {
        const double x = (double)gu[i / ffn * 2 * ffn + i % ffn];

        ref[i] = x / (1.0 + exp(-x)) * (double)gu[i / ffn * 2 * ffn + ffn + i % ffn];
    }
    c->ops->silu_mul(c->s, dy, KERN_F32, dg, n_rows, ffn);
    check_down(c, y, dy, n * 4);
    check_near(c, check_name("silu_mul f32 [%u,%u]", n_rows, ffn), y, ref, n, 1e-6);
    kern_ops_ref()->silu_mul(NULL, cpu, KERN_F32, gu, n_rows, ffn);
    check_equal(c, "  the CPU's bits", y, cpu, n * 4);
    memset(y, 0xff, n * 4);
    c->ops->copy_in(c->s, dy, y, n * 4);
    c->ops->silu_mul(c->s, dy, KERN_BF16, dg, n_rows, ffn);
    check_down(c, y, dy, n * 2);
    check_near_bf16(c, check_name("silu_mul bf16 [%u,%u]", n_rows, ffn), (uint16_t *)(void *)y, ref,
                    n, 4e-3);
    check_drop(c, dg, 2 * n * 4);
    check_drop(c, dy, n * 4);
    free(gu);
    free(y);
    free(cpu);
    free(ref);
}

/* add, add_bias, gather: one rounding or none. */
static void run_sums(struct check *c)
{
    enum { T = 13, N = 77 };
    float *a = check_floats(c, T * N, 1.0f), *b = check_floats(c, T * N, 1.0f);
    float *y = check_host(T * N * 4), *want = check_host(T * N * 4);
    uint32_t rows[5];
    float *da = check_up(c, a, T * N * 4), *db = check_up(c, b, T * N * 4);
    float *dy = check_up(c, NULL, T * N * 4);

    c->ops->add(c->s, dy, da, db, T * N);
    check_down(c, y, dy, T * N * 4);
    kern_ops_ref()->add(NULL, want, a, b, T * N);
    check_equal(c, "add", y, want, T * N * 4);
    c->ops->add(c->s, da, da, db, T * N - 3);
    check_down(c, y, da, T * N * 4);
    memcpy(want + T * N - 3, a + T * N - 3, 12);
    check_equal(c, "add in place, odd length", y, want, T * N * 4);
    c->ops->copy_in(c->s, da, a, T * N * 4);
    c->ops->add_bias(c->s, da, db, T, N);
    check_down(c, y, da, T * N * 4);
    memcpy(want, a, T * N * 4);
    kern_ops_ref()->add_bias(NULL, want, b, T, N);
    check_equal(c, "add_bias", y, want, T * N * 4);
    for (int i = 0; i < 5; i++) {
        rows[i] = check_between(c, 0, T - 1);
        memcpy(want + i * N, b + rows[i] * N, N * 4);
    }
    uint32_t *d_rows = check_up(c, rows, sizeof rows);

    c->ops->gather(c->s, dy, db, d_rows, 5, N);
    check_down(c, y, dy, 5 * N * 4);
    check_equal(c, "gather", y, want, 5 * N * 4);
    check_drop(c, d_rows, sizeof rows);
    check_drop(c, da, T * N * 4);
    check_drop(c, db, T * N * 4);
    check_drop(c, dy, T * N * 4);
    free(a);
    free(b);
    free(y);
    free(want);
}

/* add_rmsnorm gives the bits of add, then rmsnorm. */
static void run_add_rmsnorm(struct check *c, uint32_t n_rows, uint32_t dim, enum kern_fmt fmt)
{
    const size_t n = (size_t)n_rows * dim, bytes = n * (fmt == KERN_BF16 ? 2 : 4);
    float *x = check_floats(c, n, 3.0f), *b = check_floats(c, n, 2.0f);
    float *w = check_floats(c, dim, 1.0f), *got = check_host(n * 4), *want = check_host(n * 4);
    float *dx = check_up(c, x, n * 4), *db = check_up(c, b, n * 4), *dw = check_up(c, w, dim * 4);
    void *dy = check_up(c, NULL, n * 4);

    c->ops->add(c->s, dx, dx, db, n);
    c->ops->rmsnorm(c->s, dy, fmt, dx, dw, n_rows, dim, 1e-5f);
    check_down(c, want, dy, bytes);
    memset(got, 0xff, n * 4);
    c->ops->copy_in(c->s, dy, got, n * 4);
    check_down(c, b, dx, n * 4); /* the sum */
    c->ops->copy_in(c->s, dx, x, n * 4);
    c->ops->add_rmsnorm(c->s, dy, fmt, dx, db, dw, n_rows, dim, 1e-5f);
    check_down(c, got, dy, bytes);
    check_equal(
        c, check_name("add_rmsnorm %s [%u,%u]", fmt == KERN_BF16 ? "bf16" : "f32", n_rows, dim),
        got, want, bytes);
    check_down(c, got, dx, n * 4);
    check_equal(c, "  and the sum", got, b, n * 4);
    check_drop(c, dx, n * 4);
    check_drop(c, db, n * 4);
    check_drop(c, dw, dim * 4);
    check_drop(c, dy, n * 4);
    free(x);
    free(b);
    free(w);
    free(got);
    free(want);
}

/* rope_store leaves the rows and the cache that rope and kv_store leave. */
static void run_rope_store(struct check *c, uint32_t dim, enum kern_fmt fmt)
{
    enum { T = 7, H = 6, K = 2, POS = 96, BLOCKS = 3 };
    const struct kern_qkv g = { H, K, dim, 0, 0, 3, 1.0f };
    const size_t n = (size_t)T * (H + 2 * K) * dim, table = (size_t)POS * dim / 2;
    const uint32_t seq[T] = { 0, 0, 0, 0, 0, 1, 2 }, tables[] = { 2, 0, 0, 1, 1, 1 };
    const uint32_t pos[T] = { 29, 30, 31, 32, 33, 7, 0 };
    struct kern_kv kv = { fmt, K, dim, BLOCKS, NULL, NULL };
    const size_t kv_bytes = c->ops->kv_bytes(&kv);
    float *x = check_floats(c, n, 1.0f), *cs = check_floats(c, 2 * table, 1.0f);
    char *got[3], *want[3];
    float *dx = check_up(c, x, n * 4), *dc = check_up(c, cs, table * 4);
    float *ds = check_up(c, cs + table, table * 4);
    uint32_t *dp = check_up(c, pos, sizeof pos), *dq = check_up(c, seq, sizeof seq);
    uint32_t *dt = check_up(c, tables, sizeof tables);
    const struct kern_rope rope = { POS, dim, dc, ds };
    const struct kern_rows_map map = { T, 3, 2, dp, dq, dt };
    const size_t bytes[3] = { n * 4, kv_bytes, kv_bytes };

    kv.k = check_up(c, NULL, kv_bytes);
    kv.v = check_up(c, NULL, kv_bytes);
    void *const parts[3] = { dx, kv.k, kv.v };
    c->ops->rope(c->s, dx, &g, &rope, &map);
    c->ops->kv_store(c->s, &kv, dx, &g, &map);
    for (uint32_t i = 0; i < 3; i++) {
        want[i] = check_host(bytes[i]);
        got[i] = check_host(bytes[i]);
        check_down(c, want[i], parts[i], bytes[i]);
        memset(got[i], 0xff, bytes[i]);
        c->ops->copy_in(c->s, parts[i], i == 0 ? (char *)x : got[i], bytes[i]);
    }
    c->ops->rope_store(c->s, &kv, dx, &g, &rope, &map);
    for (uint32_t i = 0; i < 3; i++) {
        static const char *const names[3] = { "rows", "k", "v" };
        check_down(c, got[i], parts[i], bytes[i]);
        check_equal(
            c,
            check_name("rope_store %s D=%u: %s", fmt == KERN_BF16 ? "bf16" : "f32", dim, names[i]),
            got[i], want[i], bytes[i]);
        check_drop(c, parts[i], bytes[i]);
        free(got[i]);
        free(want[i]);
    }
    check_drop(c, dc, table * 4);
    check_drop(c, ds, table * 4);
    check_drop(c, dp, sizeof pos);
    check_drop(c, dq, sizeof seq);
    check_drop(c, dt, sizeof tables);
    free(x);
    free(cs);
}

/* qk_norm and rope against kernels/ref: the same operations. */
static void run_heads(struct check *c, uint32_t dim)
{
    enum { T = 9, H = 6, K = 2, POS = 40 };
    const struct kern_qkv g = { H, K, dim, 0, 0, 3, 1.0f };
    const size_t n = (size_t)T * (H + 2 * K) * dim, table = (size_t)POS * dim / 2;
    float *x = check_floats(c, n, 1.0f), *y = check_host(n * 4);
    float *w = check_floats(c, 2 * dim, 1.0f), *cs = check_floats(c, 2 * table, 1.0f);
    uint32_t pos[T], seq[T] = { 0 };
    float *dx = check_up(c, x, n * 4), *dw = check_up(c, w, dim * 4);
    float *dw2 = check_up(c, w + dim, dim * 4), *dc = check_up(c, cs, table * 4);
    float *ds = check_up(c, cs + table, table * 4);

    for (uint32_t t = 0; t < T; t++) {
        pos[t] = check_between(c, 0, POS - 1);
    }
    uint32_t *dp = check_up(c, pos, sizeof pos);
    const struct kern_rope rope = { POS, dim, cs, cs + table }, d_rope = { POS, dim, dc, ds };
    const struct kern_rows_map map = { T, 1, 1, pos, seq, NULL }, d_map = { T, 1, 1, dp, dp, NULL };

    c->ops->qk_norm(c->s, dx, &g, dw, dw2, T, 1e-6f);
    check_down(c, y, dx, n * 4);
    kern_ops_ref()->qk_norm(NULL, x, &g, w, w + dim, T, 1e-6f);
    check_equal(c, check_name("qk_norm D=%u", dim), y, x, n * 4);
    c->ops->rope(c->s, dx, &g, &d_rope, &d_map);
    check_down(c, y, dx, n * 4);
    kern_ops_ref()->rope(NULL, x, &g, &rope, &map);
    check_equal(c, check_name("rope D=%u", dim), y, x, n * 4);
    check_drop(c, dx, n * 4);
    check_drop(c, dw, dim * 4);
    check_drop(c, dw2, dim * 4);
    check_drop(c, dc, table * 4);
    check_drop(c, ds, table * 4);
    check_drop(c, dp, sizeof pos);
    free(x);
    free(y);
    free(w);
    free(cs);
}

void check_elem(struct check *c)
{
    run_embed(c, KERN_BF16, KERN_SRC_F32);
    run_embed(c, KERN_BF16, KERN_SRC_BF16);
    run_embed(c, KERN_F32, KERN_SRC_BF16);
    run_rmsnorm(c, 3, 75);
    run_rmsnorm(c, 17, 256);
    run_rmsnorm(c, 2, 4096);
    run_rmsnorm(c, 2, 8192); /* the longest row whose threads keep it */
    run_rmsnorm(c, 2, 8196);
    run_add_rmsnorm(c, 5, 75, KERN_BF16);
    run_add_rmsnorm(c, 3, 260, KERN_BF16);
    run_add_rmsnorm(c, 2, 8192, KERN_BF16);
    run_add_rmsnorm(c, 2, 8196, KERN_BF16);
    run_add_rmsnorm(c, 3, 260, KERN_F32);
    run_silu(c, 5, 253);
    run_silu(c, 33, 640);
    run_sums(c);
    run_heads(c, 20);
    run_heads(c, 128);
    run_rope_store(c, 20, KERN_BF16);
    run_rope_store(c, 128, KERN_BF16);
    run_rope_store(c, 20, KERN_F32);
}
