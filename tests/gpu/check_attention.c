/* tests/gpu/check_attention.c - the cache and attention: against f64, and one row's bits whoever its
 * neighbours are, however its prompt was cut, whether blocks were split over the device or not. */
#include "tests/gpu/check.h"

#include <math.h>

enum { SEQS_MAX = 8 };

struct heads {
    uint32_t n_heads, n_kv, dim, group, head0, kv_head0;
};

/* Some sequences' q, k, v of all positions, and a cache on the device. */
struct world {
    struct heads h;
    enum kern_fmt fmt;
    uint32_t n_seqs, len[SEQS_MAX], first[SEQS_MAX]; /* positions; row of position 0 in qkv */
    uint32_t n_rows, n_blocks, stride;
    float *qkv;       /* [n_rows, (H+2K)*D], host */
    uint32_t *tables; /* [n_seqs, stride] */
    struct kern_kv kv;
    size_t kv_bytes;
};

static size_t width(const struct heads *h)
{
    return (size_t)(h->n_heads + 2 * h->n_kv) * h->dim;
}

static struct kern_qkv shape_of(const struct heads *h)
{
    return (struct kern_qkv){
        h->n_heads, h->n_kv, h->dim, h->kv_head0, h->head0, h->group, 1.0f / sqrtf((float)h->dim)
    };
}

static void build(struct check *c, struct world *w)
{
    w->n_rows = 0;
    w->stride = 1;
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        const uint32_t blocks = (w->len[i] + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;

        w->first[i] = w->n_rows;
        w->n_rows += w->len[i];
        w->stride = MAX(w->stride, blocks);
    }
    w->n_blocks = w->n_seqs * w->stride + 3;
    w->qkv = check_floats(c, w->n_rows * width(&w->h), 1.0f);
    w->tables = check_host((size_t)w->n_seqs * w->stride * 4);
    for (uint32_t i = 0; i < w->n_seqs * w->stride; i++) {
        w->tables[i] = (i * 7 + 3) % w->n_blocks; /* scattered */
    }
    while (w->n_blocks % 7 == 0) {
        w->n_blocks++;
    }
    for (uint32_t i = 0; i < w->n_seqs * w->stride; i++) {
        w->tables[i] = (i * 7 + 3) % w->n_blocks; /* 7 and n_blocks share no factor: all differ */
    }
    w->kv = (struct kern_kv){ w->fmt, w->h.n_kv, w->h.dim, w->n_blocks, NULL, NULL };
    w->kv_bytes = c->ops->kv_bytes(&w->kv);
}

static void drop(struct check *c, struct world *w)
{
    (void)c;
    free(w->qkv);
    free(w->tables);
}

/* A run of rows of one sequence in a step. */
struct run {
    uint32_t seq, begin, end;
};

/* One step: store and attend these rows; out[n][H*D] as bytes of the cache's format. */
static void step(struct check *c, struct world *w, const struct run *runs, uint32_t n_runs,
                 uint32_t stride, char *out)
{
    const struct kern_qkv g = shape_of(&w->h);
    const size_t row = width(&w->h), el = w->fmt == KERN_BF16 ? 2 : 4;
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_runs; i++) {
        n += runs[i].end - runs[i].begin;
    }
    float *qkv = check_host(n * row * 4);
    uint32_t *pos = check_host(n * 4), *seq = check_host(n * 4);
    uint32_t *tables = check_host((size_t)n_runs * stride * 4);
    uint32_t at = 0;

    for (uint32_t i = 0; i < n_runs; i++) {
        for (uint32_t p = runs[i].begin; p < runs[i].end; p++, at++) {
            memcpy(qkv + at * row, w->qkv + (w->first[runs[i].seq] + p) * row, row * 4);
            pos[at] = p;
            seq[at] = i;
        }
        memcpy(tables + (size_t)i * stride, w->tables + (size_t)runs[i].seq * w->stride,
               MIN(stride, w->stride) * 4);
    }
    const size_t out_bytes = (size_t)n * w->h.n_heads * w->h.dim * el;
    float *dq = check_up(c, qkv, n * row * 4);
    uint32_t *dp = check_up(c, pos, n * 4), *dseq = check_up(c, seq, n * 4);
    uint32_t *dt = check_up(c, tables, (size_t)n_runs * stride * 4);
    void *dout = check_up(c, NULL, out_bytes);
    const struct kern_rows_map map = { n, n_runs, stride, dp, dseq, dt };

    c->ops->kv_store(c->s, &w->kv, dq, &g, &map);
    c->ops->attention(c->s, dout, &w->kv, dq, &g, &map);
    check_down(c, out, dout, out_bytes);
    check_drop(c, dq, n * row * 4);
    check_drop(c, dp, n * 4);
    check_drop(c, dseq, n * 4);
    check_drop(c, dt, (size_t)n_runs * stride * 4);
    check_drop(c, dout, out_bytes);
    free(qkv);
    free(pos);
    free(seq);
    free(tables);
}

static void new_cache(struct check *c, struct world *w)
{
    w->kv.k = check_up(c, NULL, w->kv_bytes); /* NaN where nothing was stored */
    w->kv.v = check_up(c, NULL, w->kv_bytes);
}

static void drop_cache(struct check *c, struct world *w)
{
    check_drop(c, w->kv.k, w->kv_bytes);
    check_drop(c, w->kv.v, w->kv_bytes);
}

static double rounded(const struct world *w, float x)
{
    return w->fmt == KERN_BF16 ? (double)bf16_to_f32(bf16_from_f32(x)) : (double)x;
}

/* out[H*D] of position p of sequence `seq`, in f64. */
static void exact(const struct world *w, uint32_t seq, uint32_t p, double *out)
{
    const size_t row = width(&w->h);
    const float *all = w->qkv + w->first[seq] * row;
    const uint32_t d = w->h.dim;
    double *weight = check_host((p + 1) * sizeof *weight);

    for (uint32_t h = 0; h < w->h.n_heads; h++) {
        const uint32_t kv = (w->h.head0 + h) / w->h.group - w->h.kv_head0;
        double most = -INFINITY, sum = 0.0;

        for (uint32_t j = 0; j <= p; j++) {
            weight[j] = 0.0;
            for (uint32_t i = 0; i < d; i++) {
                weight[j] += rounded(w, all[p * row + h * d + i]) *
                             rounded(w, all[j * row + (w->h.n_heads + kv) * d + i]);
            }
            weight[j] /= sqrt(d);
            most = weight[j] > most ? weight[j] : most;
        }
        for (uint32_t j = 0; j <= p; j++) {
            weight[j] = exp(weight[j] - most);
            sum += weight[j];
        }
        for (uint32_t i = 0; i < d; i++) {
            double o = 0.0;

            for (uint32_t j = 0; j <= p; j++) {
                o += weight[j] * rounded(w, all[j * row + (w->h.n_heads + w->h.n_kv + kv) * d + i]);
            }
            out[h * d + i] = o / sum;
        }
    }
    free(weight);
}

/* All prompts whole in one step, against f64; then chunks, batches and single rows against that. */
static void run_world(struct check *c, struct world *w)
{
    const size_t el = w->fmt == KERN_BF16 ? 2 : 4, n_out = (size_t)w->h.n_heads * w->h.dim;
    const size_t out_bytes = w->n_rows * n_out * el;
    char *all = check_host(out_bytes), *some = check_host(out_bytes);
    double *ref = check_host(w->n_rows * n_out * sizeof *ref);
    struct run runs[SEQS_MAX];

    new_cache(c, w);
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        runs[i] = (struct run){ i, 0, w->len[i] };
        for (uint32_t p = 0; p < w->len[i]; p++) {
            exact(w, i, p, ref + (w->first[i] + p) * n_out);
        }
    }
    step(c, w, runs, w->n_seqs, w->stride, all);
    const char *name = check_name("attention %s H=%u K=%u D=%u, %u sequences to %u",
                                  w->fmt == KERN_BF16 ? "bf16" : "f32", w->h.n_heads, w->h.n_kv,
                                  w->h.dim, w->n_seqs, w->len[0]);
    if (w->fmt == KERN_BF16) {
        check_near_bf16(c, name, (uint16_t *)(void *)all, ref, w->n_rows * n_out, 8e-3);
    } else {
        check_near(c, name, (float *)(void *)all, ref, w->n_rows * n_out, 2e-6);
    }
    drop_cache(c, w);

    new_cache(c, w); /* chunks of uneven length, one sequence at a time, then the last row alone */
    bool equal = true;
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        for (uint32_t p = 0; p < w->len[i];) {
            const uint32_t n = p + 1 == w->len[i] ? 1 : check_between(c, 1, w->len[i] - p - 1);
            const struct run one = { i, p, p + n };

            step(c, w, &one, 1, w->stride + (p % 2) * 40, some); /* a longer table: split blocks */
            equal =
                equal && memcmp(some, all + (w->first[i] + p) * n_out * el, n * n_out * el) == 0;
            p += n;
        }
    }
    check_true(c, "  chunks and single rows: the rows of the whole prompts", equal);
    for (uint32_t i = 0; i < w->n_seqs; i++) { /* the last rows together, one prompt among them */
        runs[i] = (struct run){ i, w->len[i] - (i == 1 ? MIN(20u, w->len[i]) : 1), w->len[i] };
    }
    step(c, w, runs, w->n_seqs, w->stride, some);
    uint32_t at = 0;

    equal = true;
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        const uint32_t n = runs[i].end - runs[i].begin;

        equal =
            equal && memcmp(some + at * n_out * el,
                            all + (w->first[i] + runs[i].begin) * n_out * el, n * n_out * el) == 0;
        at += n;
    }
    check_true(c, "  decoded rows beside a prompt: the same rows", equal);
    drop_cache(c, w);
    free(all);
    free(some);
    free(ref);
}

void check_attention(struct check *c)
{
    static const struct heads heads[] = {
        { 4, 1, 64, 4, 0, 0 },   /* a group of 4 */
        { 2, 2, 8, 1, 0, 0 },    /* a head dim below a step */
        { 6, 2, 128, 3, 0, 0 },  /* 5 rows a tile */
        { 3, 1, 96, 8, 4, 0 },   /* a rank with part of a group: heads 4..6 of 8 */
        { 20, 1, 32, 20, 0, 0 }, /* a group above 16 */
        { 4, 2, 20, 2, 2, 1 },   /* a head dim that goes the plain way */
        { 1, 1, 256, 1, 0, 0 },
    };

    for (size_t i = 0; i < ARRAY_LEN(heads) - (c->quick ? 1 : 0); i++) {
        struct world w = { .h = heads[i],
                           .fmt = KERN_BF16,
                           .n_seqs = 4,
                           .len = { c->quick ? 150 : 700, 37, 129, 1 } };

        build(c, &w);
        run_world(c, &w);
        drop(c, &w);
    }
    struct world w = { .h = heads[0], .fmt = KERN_F32, .n_seqs = 3, .len = { 300, 5, 64 } };

    build(c, &w);
    run_world(c, &w);
    drop(c, &w);
}
