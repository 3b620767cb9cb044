/* worker/measure.c - see measure.h. The links are measure_links.c, the command measure_main.c.
 *
 * Every figure is bytes or operations over seconds of one kind of op at a shape as models have it. Weights
 * "from memory" take turns in a pool that no cache holds; "cached" ones in one of CACHED_BYTES. */
#include "worker/measure.h"

#include "base/clock.h"
#include "base/log.h"
#include "kernels/sample.h"

#include <stdlib.h>
#include <string.h>

enum {
    POOL_BYTES = 512 << 20,
    POOL_BYTES_MIN = 64 << 20,
    CACHED_BYTES = 16 << 20,
    PATTERN_BYTES = 1 << 20,
    TAKEN_MAX = 64,
    SAMPLES_MAX = 32,
    SAMPLE_NS = 2 * 1000 * 1000,   /* one timing is of as many runs as take so long */
    BUDGET_NS = 100 * 1000 * 1000, /* of one figure */
    SLOW_NS = 300 * 1000 * 1000,   /* a product that takes longer is the last point */
    RUNS_MAX = 4096
};

struct bench {
    const struct kern_ops *ops;
    struct kern_stream *s;
    enum kern_fmt fmt;
    struct {
        void *mem;
        size_t bytes;
        bool is_pinned;
    } taken[TAKEN_MAX];
    uint32_t n_taken;
    unsigned char *pattern; /* [PATTERN_BYTES] host, owned */
    status st;              /* the first failure */
    struct err *err;
};

/* ---- memory ---- */

static void *take_kind(struct bench *b, size_t bytes, bool is_pinned)
{
    void *mem = NULL;

    ASSERT(b->n_taken < TAKEN_MAX);
    if (b->st == ST_OK) {
        b->st = is_pinned ? b->ops->host_alloc(b->s, bytes, &mem, b->err)
                          : b->ops->mem_alloc(b->s, bytes, &mem, b->err);
    }
    if (b->st != ST_OK) {
        return NULL;
    }
    b->taken[b->n_taken].mem = mem;
    b->taken[b->n_taken].bytes = bytes;
    b->taken[b->n_taken++].is_pinned = is_pinned;
    return mem;
}

/* Small positive numbers in every format: a page that was never written would be read from a cache. */
static void *take(struct bench *b, size_t bytes)
{
    char *mem = take_kind(b, bytes, false);

    for (size_t at = 0; mem != NULL && at < bytes; at += PATTERN_BYTES) {
        b->ops->copy_in(b->s, mem + at, b->pattern, MIN(bytes - at, (size_t)PATTERN_BYTES));
    }
    return mem;
}

static uint32_t *take_words(struct bench *b, const uint32_t *words, size_t n)
{
    uint32_t *mem = take_kind(b, n * sizeof(*words), false);

    if (mem != NULL) {
        b->ops->copy_in(b->s, mem, words, n * sizeof(*words));
    }
    return mem;
}

static void give_back(struct bench *b, uint32_t n_left)
{
    while (b->n_taken > n_left) {
        b->n_taken--;
        if (b->taken[b->n_taken].is_pinned) {
            b->ops->host_free(b->s, b->taken[b->n_taken].mem, b->taken[b->n_taken].bytes);
        } else {
            b->ops->mem_free(b->s, b->taken[b->n_taken].mem, b->taken[b->n_taken].bytes);
        }
    }
}

static size_t x_bytes(const struct bench *b)
{
    return kern_fmt_of_x(b->fmt) == KERN_F32 ? 4 : 2;
}

/* ---- time ---- */

typedef void (*op_fn)(struct bench *b, void *arg);

static uint64_t runs_ns(struct bench *b, op_fn fn, void *arg, uint32_t n)
{
    const uint64_t from = clock_now_ns(clock_real());

    for (uint32_t i = 0; i < n && b->st == ST_OK; i++) {
        fn(b, arg);
    }
    if (b->st == ST_OK) {
        b->st = b->ops->stream_sync(b->s, b->err);
    }
    return MAX(clock_now_ns(clock_real()) - from, UINT64_C(1));
}

static int by_size(const void *x, const void *y)
{
    const double a = *(const double *)x, c = *(const double *)y;

    return a < c ? -1 : a > c;
}

/* Seconds of one run. */
static double time_of(struct bench *b, op_fn fn, void *arg)
{
    double samples[SAMPLES_MAX];
    uint32_t n = 0, n_runs = 1;
    uint64_t spent = 0, ns = runs_ns(b, fn, arg, 1);

    if (ns > BUDGET_NS) {
        return (double)ns / 1e9; /* cold or not is no matter */
    }
    for (ns = MIN(ns, runs_ns(b, fn, arg, 1)); ns < SAMPLE_NS && n_runs < RUNS_MAX;) {
        n_runs *= 2;
        ns = runs_ns(b, fn, arg, n_runs);
    }
    while (b->st == ST_OK && n < SAMPLES_MAX && (n < 3 || spent < BUDGET_NS)) {
        ns = runs_ns(b, fn, arg, n_runs);
        spent += ns;
        samples[n++] = (double)ns / n_runs / 1e9;
    }
    if (b->st != ST_OK) {
        return 1;
    }
    qsort(samples, n, sizeof(samples[0]), by_size);
    return samples[n / 4];
}

/* ---- products ---- */

/* A column-parallel product and a row-parallel one, as a layer has them. */
struct products {
    struct kern_mat wide, narrow; /* [N,K], [K',N'] in 8 leaves */
    size_t wide_bytes, narrow_bytes;
    char *pool;
    size_t pool_bytes, at;
    void *x;
    float *y;
    uint32_t n_rows;
};

static struct kern_mat mat_of(const struct bench *b, uint32_t n, uint32_t k, uint32_t n_leaves)
{
    struct kern_mat mat = { .fmt = b->fmt, .n = n, .k = k, .n_leaves = n_leaves };

    for (uint32_t i = 0; i <= n_leaves; i++) {
        mat.leaf[i] = kern_leaf_begin(k, n_leaves, i);
    }
    return mat;
}

static size_t mat_bytes(const struct bench *b, const struct kern_mat *mat)
{
    return (b->ops->mat_bytes(mat) + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN;
}

static void product_run(struct bench *b, void *arg)
{
    struct products *p = arg;

    if (p->at + p->wide_bytes + p->narrow_bytes > p->pool_bytes) {
        p->at = 0;
    }
    p->wide.data = p->pool + p->at;
    p->narrow.data = p->pool + p->at + p->wide_bytes;
    p->at += p->wide_bytes + p->narrow_bytes;
    b->ops->gemm(b->s, p->y, p->x, &p->wide, p->n_rows);
    b->ops->gemm(b->s, p->y, p->x, &p->narrow, p->n_rows);
}

/* Points at each of rows[n]: how many bytes of weights pass in a second. */
static void measure_products(struct bench *b, size_t pool_bytes, uint32_t scale,
                             const uint32_t *rows, uint32_t n, struct rates_points *points_p)
{
    const uint32_t dim = 512 * scale, ffn = 1024 * scale, n_taken = b->n_taken;
    struct products p = { .wide = mat_of(b, 2 * ffn, dim, 1), .narrow = mat_of(b, dim, ffn, 8) };
    double seconds = 0;

    p.wide_bytes = mat_bytes(b, &p.wide);
    p.narrow_bytes = mat_bytes(b, &p.narrow);
    p.pool_bytes = MAX(pool_bytes, p.wide_bytes + p.narrow_bytes);
    p.pool = take(b, p.pool_bytes);
    p.x = take(b, (size_t)rows[n - 1] * ffn * x_bytes(b));
    p.y = take(b, (size_t)rows[n - 1] * 2 * ffn * sizeof(float));
    points_p->n = 0;
    for (uint32_t i = 0; i < n && b->st == ST_OK && seconds * 1e9 < SLOW_NS; i++) {
        p.n_rows = rows[i];
        seconds = time_of(b, product_run, &p);
        points_p->at[points_p->n++] =
            (struct rates_point){ rows[i], (double)(p.wide_bytes + p.narrow_bytes) / seconds };
    }
    give_back(b, n_taken);
}

/* ---- attention, and the ops on vectors ---- */

struct heads {
    uint32_t n_heads, n_kv_heads, head_dim;
};

/* Rows of a layer: n_seqs streams with `each` rows, the last at position ctx - 1. */
struct rows {
    struct kern_kv kv;
    struct kern_qkv g;
    struct kern_rope rope;
    struct kern_rows_map map;
    float *qkv, *x, *sum, *gate_up;
    void *out, *act;
    float *norm;
    uint32_t dim, ffn;
};

static void map_make(struct bench *b, uint32_t n_seqs, uint32_t each, uint32_t ctx,
                     struct kern_rows_map *map_p)
{
    const uint32_t blocks = ctx / KERN_KV_BLOCK, n = n_seqs * each;
    uint32_t *words = calloc(MAX(2 * n, n_seqs * blocks), sizeof(*words));

    if (words == NULL) {
        b->st = err_set(b->err, ST_ERR_NOMEM, "no memory for %u rows", n);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        words[i] = ctx - each + i % each;
        words[n + i] = i / each;
    }
    *map_p = (struct kern_rows_map){ .n_rows = n, .n_seqs = n_seqs, .table_stride = blocks };
    map_p->pos = take_words(b, words, n);
    map_p->seq = take_words(b, words + n, n);
    for (uint32_t i = 0; i < n_seqs * blocks; i++) {
        words[i] = i;
    }
    map_p->tables = take_words(b, words, (size_t)n_seqs * blocks);
    if (b->st == ST_OK) {
        b->st = b->ops->stream_sync(b->s, b->err); /* the words are read until then */
    }
    free(words);
}

static void rows_make(struct bench *b, struct heads h, uint32_t n_seqs, uint32_t each, uint32_t ctx,
                      struct rows *r_p)
{
    const size_t n = (size_t)n_seqs * each, d = h.head_dim;
    struct rows r = { .dim = h.n_heads * h.head_dim };

    r.ffn = r.dim / 2 * 5;
    r.kv = (struct kern_kv){ kern_fmt_of_x(b->fmt),          h.n_kv_heads, h.head_dim,
                             n_seqs * (ctx / KERN_KV_BLOCK), NULL,         NULL };
    r.g = (struct kern_qkv){ .n_heads = h.n_heads,
                             .n_kv_heads = h.n_kv_heads,
                             .head_dim = h.head_dim,
                             .group = h.n_heads / h.n_kv_heads,
                             .scale = 0.1f };
    r.kv.k = take(b, b->ops->kv_bytes(&r.kv));
    r.kv.v = take(b, b->ops->kv_bytes(&r.kv));
    map_make(b, n_seqs, each, ctx, &r.map);
    r.rope = (struct kern_rope){ ctx, h.head_dim, take(b, ctx * d * 2), take(b, ctx * d * 2) };
    r.qkv = take(b, n * (h.n_heads + 2 * h.n_kv_heads) * d * sizeof(float));
    r.out = take(b, n * r.dim * sizeof(float));
    r.x = take(b, n * r.dim * sizeof(float));
    r.sum = take(b, n * r.dim * sizeof(float));
    r.norm = take(b, r.dim * sizeof(float));
    r.gate_up = take(b, n * 2 * r.ffn * sizeof(float));
    r.act = take(b, n * r.ffn * sizeof(float));
    *r_p = r;
}

static void attention_run(struct bench *b, void *arg)
{
    struct rows *r = arg;

    b->ops->attention(b->s, r->out, &r->kv, r->qkv, &r->g, &r->map);
}

/* What a layer does besides products and attention: partition/predict.c, vector_bytes. */
static void vectors_run(struct bench *b, void *arg)
{
    const struct rows *r = arg;
    const struct kern_ops *k = b->ops;
    const enum kern_fmt fmt = kern_fmt_of_x(b->fmt);
    const uint32_t t = r->map.n_rows;

    k->rmsnorm(b->s, r->out, fmt, r->x, r->norm, t, r->dim, 1e-5f);
    k->rope(b->s, r->qkv, &r->g, &r->rope, &r->map);
    k->kv_store(b->s, &r->kv, r->qkv, &r->g, &r->map);
    k->add(b->s, r->sum, r->x, r->x, (size_t)t * r->dim);
    k->rmsnorm(b->s, r->out, fmt, r->x, r->norm, t, r->dim, 1e-5f);
    k->silu_mul(b->s, r->act, fmt, r->gate_up, t, r->ffn);
    k->add(b->s, r->sum, r->x, r->x, (size_t)t * r->dim);
}

static double vector_bytes(const struct bench *b, const struct rows *r)
{
    const double w = (double)x_bytes(b), h = r->g.n_heads, k = r->g.n_kv_heads, d = r->g.head_dim;

    return r->map.n_rows * (2 * r->dim * (4 + w) + 8 * (h + k) * d + 2 * k * d * (4 + w) +
                            r->ffn * (8 + w) + 2.0 * 12 * r->dim);
}

struct shape {
    uint32_t n_seqs, each, ctx; /* streams, rows of each, positions */
};

/* Seconds of a score, of heads of that size; four share K and V. */
static double score_s(struct bench *b, uint32_t head_dim, const struct shape *s)
{
    const struct heads h = { 16, 4, head_dim };
    const double n = (double)h.n_heads * s->n_seqs * s->each * (s->ctx - (s->each - 1) / 2.0);
    const uint32_t n_taken = b->n_taken;
    struct rows r;

    rows_make(b, h, s->n_seqs, s->each, s->ctx, &r);
    const double seconds = time_of(b, attention_run, &r);
    give_back(b, n_taken);
    return seconds / n;
}

/* Two sizes of heads: what grows with the size, and what does not. */
static void measure_scores(struct bench *b, const struct shape *s, struct rates_scores *scores_p)
{
    enum { SMALL = 32, LARGE = 128 };
    const double small_s = score_s(b, SMALL, s), large_s = score_s(b, LARGE, s);
    const double element_s = MAX((large_s - small_s) / (LARGE - SMALL), large_s / LARGE / 100);

    *scores_p = (struct rates_scores){
        .scores_s = 1 / MAX(large_s - LARGE * element_s, large_s / 100),
        .flops = 4 / element_s,
    };
}

/* Decode rows that find K and V in the caches, where computing is the work; many rows of one stream; decode
 * rows whose heads have K and V of their own in memory, where reading them is. */
static void measure_attention(struct bench *b, struct rates_entry *e)
{
    enum { SEQS = 8, CTX = 2048 };
    static const struct shape decode = { 1, 1, 1024 }, prompt = { 1, 128, 1024 };
    const uint32_t n_taken = b->n_taken;
    struct rows r;

    measure_scores(b, &decode, &e->decode);
    measure_scores(b, &prompt, &e->prompt);
    rows_make(b, (struct heads){ 8, 8, 128 }, SEQS, 1, CTX, &r);
    e->kv_bytes_s = 2.0 * 8 * 128 * (double)x_bytes(b) * SEQS * CTX / time_of(b, attention_run, &r);
    give_back(b, n_taken);
}

static void measure_vectors(struct bench *b, struct rates_entry *e)
{
    enum { ROWS = 512, CTX = 1024 };
    const uint32_t n_taken = b->n_taken;
    struct rows r;

    rows_make(b, (struct heads){ 16, 4, 128 }, 1, ROWS, CTX, &r);
    e->vector_bytes_s = vector_bytes(b, &r) / time_of(b, vectors_run, &r);
    give_back(b, n_taken);
}

/* ---- from logits to a token ---- */

struct scan {
    float *logits;
    struct kern_scan_row *row; /* pinned */
    void *flat;                /* pinned */
    struct kern_adjusts none;
};

enum { SCAN_IDS = 32 * KERN_VOCAB_BLOCK };

static void scan_run(struct bench *b, void *arg)
{
    const struct scan *s = arg;

    kern_scan_rows(b->ops, b->s, s->logits, 0, SCAN_IDS, 1, s->row, s->none, s->flat);
}

static void measure_scan(struct bench *b, struct rates_entry *e)
{
    const struct sample_params plain = { .temperature = 1.0f, .top_p = 1.0f };
    const uint32_t n_taken = b->n_taken;
    struct kern_scan_row row = sample_row(&plain, 1, SCAN_IDS, false);
    struct scan s = { .logits = take(b, SCAN_IDS * sizeof(float)) };

    s.row = take_kind(b, sizeof(*s.row), true);
    s.flat = take_kind(b, sample_row_bytes(&row, SCAN_IDS), true);
    if (b->st == ST_OK) {
        *s.row = row;
        e->scan_ids_s = SCAN_IDS / time_of(b, scan_run, &s);
    }
    give_back(b, n_taken);
}

/* ---- a layer ---- */

struct layer {
    struct rows r;
    struct kern_mat mats[4]; /* qkv, o, gate_up, down */
    size_t bytes;            /* of all four */
    char *pool;              /* [CACHED_BYTES] layers take turns in it */
    size_t at;
};

static void layer_run(struct bench *b, void *arg)
{
    struct layer *l = arg;
    const struct rows *r = &l->r;
    const struct kern_ops *k = b->ops;
    const enum kern_fmt fmt = kern_fmt_of_x(b->fmt);
    const uint32_t t = r->map.n_rows;
    size_t at = l->at = l->at + 2 * l->bytes > CACHED_BYTES ? 0 : l->at + l->bytes;

    for (uint32_t i = 0; i < 4; i++) {
        l->mats[i].data = l->pool + at;
        at += mat_bytes(b, &l->mats[i]);
    }
    k->rmsnorm(b->s, r->out, fmt, r->x, r->norm, t, r->dim, 1e-5f);
    k->gemm(b->s, r->qkv, r->out, &l->mats[0], t);
    k->rope(b->s, r->qkv, &r->g, &r->rope, &r->map);
    k->kv_store(b->s, &r->kv, r->qkv, &r->g, &r->map);
    k->attention(b->s, r->out, &r->kv, r->qkv, &r->g, &r->map);
    k->gemm(b->s, r->x, r->out, &l->mats[1], t);
    k->add(b->s, r->sum, r->x, r->x, (size_t)t * r->dim);
    k->rmsnorm(b->s, r->out, fmt, r->x, r->norm, t, r->dim, 1e-5f);
    k->gemm(b->s, r->gate_up, r->out, &l->mats[2], t);
    k->silu_mul(b->s, r->act, fmt, r->gate_up, t, r->ffn);
    k->gemm(b->s, r->x, r->act, &l->mats[3], t);
    k->add(b->s, r->sum, r->x, r->x, (size_t)t * r->dim);
}

struct recorded {
    struct kern_graph *graph;
};

static void recorded_run(struct bench *b, void *arg)
{
    const struct recorded *r = arg;

    if (b->st == ST_OK) {
        b->st = b->ops->graph_launch(b->s, r->graph, b->err);
    }
}

/* Seconds of a layer among those of a recorded step; 0 where steps are not recorded. Has run unrecorded before:
 * a device loads its kernels then. */
static double recorded_layer_s(struct bench *b, struct layer *l)
{
    enum { LAYERS = 32 };
    struct recorded r = { NULL };
    double seconds = 0;

    if (b->ops->graph_begin == NULL || b->st != ST_OK) {
        return 0;
    }
    b->st = b->ops->graph_begin(b->s, b->err);
    if (b->st == ST_OK) {
        for (uint32_t i = 0; i < LAYERS; i++) {
            layer_run(b, l);
        }
        b->st = b->ops->graph_end(b->s, &r.graph, b->err);
    }
    if (b->st == ST_OK) {
        seconds = time_of(b, recorded_run, &r) / LAYERS;
    }
    b->ops->graph_destroy(b->s, r.graph);
    return seconds;
}

/* A small layer of one row, its weights from the caches, less what its bytes account for; op by op, and in a
 * recorded step. */
static void measure_layer(struct bench *b, struct rates_entry *e)
{
    const struct heads h = { 4, 2, 64 };
    const uint32_t n_taken = b->n_taken;
    struct layer l = { .bytes = 0 };

    rows_make(b, h, 1, 1, KERN_KV_BLOCK, &l.r);
    l.mats[0] = mat_of(b, (h.n_heads + 2 * h.n_kv_heads) * h.head_dim, l.r.dim, 1);
    l.mats[1] = mat_of(b, l.r.dim, l.r.dim, 4);
    l.mats[2] = mat_of(b, 2 * l.r.ffn, l.r.dim, 1);
    l.mats[3] = mat_of(b, l.r.dim, l.r.ffn, 4);
    for (uint32_t i = 0; i < 4; i++) {
        l.bytes += mat_bytes(b, &l.mats[i]);
    }
    l.pool = take(b, CACHED_BYTES);
    if (b->st == ST_OK) {
        const double all_s = time_of(b, layer_run, &l);
        const double known_s = rates_weights_s(e, l.bytes, l.bytes, 1) +
                               rates_scores_s(&e->decode, h.n_heads * KERN_KV_BLOCK, h.head_dim) +
                               vector_bytes(b, &l.r) / e->vector_bytes_s;
        const double recorded_s = recorded_layer_s(b, &l);
        e->layer_s = MAX(all_s - known_s, all_s / 100);
        e->recorded_layer_s = MAX(recorded_s - known_s, recorded_s / 100);
    }
    give_back(b, n_taken);
}

/* ---- all of it ---- */

static bool pattern_make(struct bench *b)
{
    b->pattern = malloc(PATTERN_BYTES);
    for (size_t i = 0; b->pattern != NULL && i < PATTERN_BYTES; i += 2) {
        const uint16_t v = (uint16_t)(0x3c00 + i / 2 % 257);
        memcpy(b->pattern + i, &v, sizeof(v));
    }
    return b->pattern != NULL;
}

status measure_rates(const struct measure_config *config, struct rates_entry *e_p, struct err *err)
{
    static const uint32_t rows[] = { 1, 4, 8, 16, 32, 64, 128, 256, 512 };
    static const uint32_t rows_cached[] = { 1, 8, 32, 128, 512 };
    struct bench b = { .ops = config->ops, .s = config->stream, .fmt = config->fmt, .err = err };
    struct rates_entry e = *e_p;
    const uint64_t quarter = config->memory_bytes / 4;

    if (!pattern_make(&b)) {
        return err_set(err, ST_ERR_NOMEM, "no memory to measure in");
    }
    e.fmt = config->fmt;
    e.cached_bytes = CACHED_BYTES;
    measure_products(&b, (size_t)MAX(MIN(quarter, (uint64_t)POOL_BYTES), (uint64_t)POOL_BYTES_MIN),
                     4, rows, ARRAY_LEN(rows), &e.weights);
    measure_products(&b, CACHED_BYTES, 2, rows_cached, ARRAY_LEN(rows_cached), &e.cached);
    measure_attention(&b, &e);
    measure_vectors(&b, &e);
    measure_scan(&b, &e);
    measure_layer(&b, &e);
    give_back(&b, 0);
    free(b.pattern);
    if (b.st == ST_OK) {
        *e_p = e;
    }
    return b.st;
}
