/* kernels/check.c - the comparison at start: each op of a path against the path below, whose bits
 * are known to be those of kernels/ref, on small canned inputs with every kind of tail.
 *
 * It catches what tests on another machine cannot: a processor (or an emulator) whose VDPBF16PS
 * rounds differently, a compiler that contracted or reassociated something. Some ten milliseconds.
 * The long comparison is tests/kern/. */
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/math.h"
#include "kernels/quant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    ROWS = 7,
    N_OUT = 64 + 16 + 5, /* a whole panel, a narrow one, a cut one */
    K_IN = 75,
    HEADS = 3,
    HEAD_DIM = 20,
    QKV = (HEADS + 2) * HEAD_DIM,
    POS0 = 280, /* a second span */
    BLOCKS = (POS0 + ROWS) / KERN_KV_BLOCK + 1,
    IDS = KERN_VOCAB_BLOCK + 37,
    CANDS = 9,
    FLOATS = 4096,
    KV_FLOATS = BLOCKS * KERN_KV_BLOCK * HEAD_DIM
};

_Static_assert((int)KV_FLOATS >= (int)FLOATS, "room for what short scans give");

struct bench {
    struct kern_stream *s;
    float in[FLOATS], in2[FLOATS]; /* canned: magnitudes over 2^12, both signs, zeros */
    float near[FLOATS];            /* magnitudes around 1, where exp shows its last bit */
    _Alignas(64) float weights[8192];
    uint8_t codes[N_OUT * K_IN]; /* in2 in fp8 */
    float scales[N_OUT * 8];
    _Alignas(64) float k[KV_FLOATS], v[KV_FLOATS];
    uint32_t pos[ROWS], seq[ROWS], table[BLOCKS];
    struct kern_rows_map map;
    struct kern_qkv g;
};

struct outcome { /* what one table made of it; compared byte by byte */
    float y[FLOATS];
    float k[KV_FLOATS], v[KV_FLOATS];
    struct kern_lse lse[2], lse_temp[2];
    struct kern_cand cand[CANDS], gumbel;
    float gumbel_logit;
};

static void fill(float *x, size_t n, uint32_t seed, int spread)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = ldexpf((float)(seed >> 8) * 0x1p-23f - 1.0f, (int)(seed >> 3) % spread - spread / 2);
        if (seed >> 27 == 0) {
            x[i] = seed & 4096 ? 0.0f : -0.0f;
        }
    }
}

static void round_rows(float *x, size_t n) /* f32 in place to packed bf16 */
{
    uint16_t *out = (uint16_t *)(void *)x;

    for (size_t i = 0; i < n; i++) {
        out[i] = bf16_from_f32(x[i]);
    }
}

static void run_gemm(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    float x[ROWS * K_IN];
    size_t at = 0;

    for (int fmt = KERN_F32; fmt <= KERN_FP8; fmt++) {
        struct kern_mat w = { .fmt = (enum kern_fmt)fmt, .n = N_OUT, .k = K_IN, .n_leaves = 4 };
        struct kern_rows rows = { KERN_SRC_F32, b->in2, 0, N_OUT, 37, NULL };
        struct quant_bad bad;

        for (uint32_t i = 0; i <= 4; i++) {
            w.leaf[i] = kern_leaf_begin(K_IN, 4, i); /* odd leaves */
        }
        w.data = b->weights;
        w.k0 = KERN_GROUP - 28; /* a group ends inside the second leaf */
        ASSERT(ops->mat_bytes(&w) <= sizeof b->weights);
        ASSERT(kern_mat_groups(&w) <= ARRAY_LEN(b->scales) / N_OUT);
        if (fmt == KERN_FP8) {
            const bool finite = quant_rows(&w, &rows, b->codes, b->scales, &bad);

            ASSERT(finite);
            rows = (struct kern_rows){ KERN_SRC_F8, b->codes, 0, N_OUT, K_IN, b->scales };
        }
        ops->mat_pack(b->s, &w, &rows);
        memcpy(x, b->in, sizeof x);
        if (fmt != KERN_F32) {
            round_rows(x, ROWS * K_IN);
        }
        ops->gemm(b->s, o->y + at, x, &w, ROWS);
        ops->gemm(b->s, o->y + at + ROWS * N_OUT, x, &w, 1);
        at += (ROWS + 1) * N_OUT;
    }
}

static void run_rmsnorm(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    ops->rmsnorm(b->s, o->y, KERN_F32, b->in, b->in2, ROWS, K_IN, 1e-5f);
    ops->rmsnorm(b->s, o->y + ROWS * K_IN, KERN_BF16, b->in, b->in2, ROWS, K_IN, 1e-5f);
}

static void run_qk_norm(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    memcpy(o->y, b->in, sizeof(float) * ROWS * QKV);
    ops->qk_norm(b->s, o->y, &b->g, b->in2, b->in2 + HEAD_DIM, ROWS, 1e-5f);
}

static void run_silu(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    ops->silu_mul(b->s, o->y, KERN_F32, b->near, ROWS, 253);
    ops->silu_mul(b->s, o->y + 2048, KERN_F32, b->in, ROWS, 53);
    ops->silu_mul(b->s, o->y + 3072, KERN_BF16, b->in, ROWS, 53);
}

static void run_add(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    ops->add(b->s, o->y, b->in, b->in2, 1003);
}

static void run_add_bias(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    memcpy(o->y, b->in, sizeof(float) * ROWS * K_IN);
    ops->add_bias(b->s, o->y, b->in2, ROWS, K_IN);
}

static void run_embed(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    const uint32_t ids[] = { 10, 13, 9, 14, 11 };

    for (int fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        const struct kern_embed e = { (enum kern_fmt)fmt, 10, 4, K_IN, b->in };

        ops->embed(b->s, o->y + fmt * 5 * K_IN, &e, ids, 5);
    }
}

static void run_rope(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    const struct kern_rope rope = { POS0 + ROWS, HEAD_DIM, b->in2, b->in2 + 37 };

    memcpy(o->y, b->in, sizeof(float) * ROWS * QKV);
    ops->rope(b->s, o->y, &b->g, &rope, &b->map);
}

static struct kern_kv cache(struct bench *b, int fmt)
{
    return (struct kern_kv){ (enum kern_fmt)fmt, 1, HEAD_DIM, BLOCKS, b->k, b->v };
}

static void run_kv_store(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    for (int fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        struct kern_kv kv = cache(b, fmt);

        kv.k = o->k;
        kv.v = o->v;
        ops->kv_store(b->s, &kv, b->in, &b->g, &b->map);
        memcpy(o->y + fmt * 1024, o->k + KV_FLOATS / 2 - 512, 1024 * sizeof(float));
    }
}

static void run_attention(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    for (int fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        const struct kern_kv kv = cache(b, fmt);

        fill(b->k, KV_FLOATS, 5, 6);
        fill(b->v, KV_FLOATS, 6, 6);
        if (fmt == KERN_BF16) {
            round_rows(b->k, KV_FLOATS);
            round_rows(b->v, KV_FLOATS);
        }
        ops->attention(b->s, o->y + fmt * 1024, &kv, b->in, &b->g, &b->map);
    }
}

/* A sum over a thousand ids hides the last bits of its terms: a wrong rounding inside exp may leave it
 * as it is. So sums over two, 1 + exp(a difference of the two logits), many of them. */
static void run_short_scans(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    const struct kern_sample params = { .temperature = 1.7f, .n_cand = 1 };
    struct kern_lse lse = { 0, 0 }, lse_temp = { 0, 0 };
    struct kern_cand cand = { 0, 0 };
    struct kern_scan scan = { .lse = &lse, .lse_temp = &lse_temp, .cand = &cand };

    for (uint32_t i = 0; i + 1 < FLOATS; i++) {
        ops->scan(b->s, b->near + i, 0, 2, &params, &scan);
        o->y[i] = lse.sum;
        o->k[i] = lse_temp.sum;
    }
}

static void run_scan(const struct kern_ops *ops, struct bench *b, struct outcome *o)
{
    const struct kern_sample params = { 0x123456789abcdefu, 1, 77, 0.7f, CANDS, true };
    struct kern_scan scan = { .lse = o->lse, .lse_temp = o->lse_temp, .cand = o->cand };

    b->near[5] = NAN;
    ops->scan(b->s, b->near, KERN_VOCAB_BLOCK, IDS, &params, &scan);
    b->near[5] = 1.0f;
    o->gumbel = scan.gumbel;
    o->gumbel_logit = scan.gumbel_logit;
    run_short_scans(ops, b, o);
}

static void setup(struct bench *b)
{
    fill(b->in, FLOATS, 1, 12);
    fill(b->in2, FLOATS, 2, 12);
    fill(b->near, FLOATS, 3, 3);
    for (uint32_t i = 0; i < ROWS; i++) {
        b->pos[i] = i < 2 ? i : POS0 + i - 2 - KERN_SPAN / 64 * 6; /* around a span's end too */
        b->seq[i] = 0;
    }
    for (uint32_t i = 0; i < BLOCKS; i++) {
        b->table[i] = BLOCKS - 1 - i;
    }
    b->map = (struct kern_rows_map){ ROWS, 1, BLOCKS, b->pos, b->seq, b->table };
    b->g = (struct kern_qkv){ HEADS, 1, HEAD_DIM, 0, 0, HEADS, 0.25f };
}

static bool same(void (*run)(const struct kern_ops *, struct bench *, struct outcome *),
                 const struct kern_ops *a, const struct kern_ops *b, struct bench *bench,
                 struct outcome out[2])
{
    const void *of_a = &out[0], *of_b = &out[1]; /* the bytes: NaN and the sign of zero count */

    memset(out, 0, 2 * sizeof out[0]);
    run(a, bench, &out[0]);
    run(b, bench, &out[1]);
    return memcmp(of_a, of_b, sizeof out[0]) == 0;
}

#define CHECK(slot, run)                                                                           \
    do {                                                                                           \
        if (path->slot != below->slot && !same(run, path, below, bench, out)) {                    \
            path->slot = below->slot;                                                              \
            n_off++;                                                                               \
            snprintf(names + strlen(names), sizeof names - strlen(names), " " #slot);              \
        }                                                                                          \
    } while (0)

static uint32_t check_all(struct kern_ops *path, const struct kern_ops *below, struct bench *bench,
                          struct outcome *out, struct err *note)
{
    char names[128] = "";
    uint32_t n_off = 0;

    CHECK(gemm, run_gemm);
    CHECK(rmsnorm, run_rmsnorm);
    CHECK(qk_norm, run_qk_norm);
    CHECK(silu_mul, run_silu);
    CHECK(add, run_add);
    CHECK(add_bias, run_add_bias);
    CHECK(embed, run_embed);
    CHECK(rope, run_rope);
    CHECK(kv_store, run_kv_store);
    CHECK(attention, run_attention);
    CHECK(scan, run_scan);
    if (n_off != 0 && note != NULL) {
        const struct err before = *note;

        err_set(note, ST_ERR_MISMATCH,
                "%s%spath %s does not give the bits of the specification on this processor for:%s "
                "(the path below is used for them)",
                before.text, before.text[0] != '\0' ? "; " : "", path->name, names);
    }
    return n_off;
}

uint32_t cpu_ops_check(struct kern_ops *path, const struct kern_ops *below, struct err *note)
{
    const struct kern_stream_config config = { 1, 0 };
    struct bench *bench = aligned_alloc(64, (sizeof *bench + 63) / 64 * 64);
    struct outcome *out = calloc(2, sizeof *out);
    uint32_t n_off = 0;
#if defined(__x86_64__)
    const unsigned int env = _mm_getcsr(); /* the caller's thread may be no computing one */
#endif

    if (bench != NULL && out != NULL) {
        memset(bench, 0, sizeof *bench);
        setup(bench);
        if (below->stream_create(&config, &bench->s, NULL) == ST_OK) {
            n_off = check_all(path, below, bench, out, note);
            below->stream_destroy(bench->s);
        } else {
            err_set(note, ST_ERR_NOMEM, "no memory to check the %s kernels", path->name);
            *path = *below;
        }
    } else {
        err_set(note, ST_ERR_NOMEM, "no memory to check the %s kernels", path->name);
        *path = *below;
    }
#if defined(__x86_64__)
    _mm_setcsr(env);
#endif
    free(bench);
    free(out);
    return n_off;
}
