/* tests/gpu/check_attention.c - the cache and attention: against f64, and one row's bits whoever its
 * neighbours are, however its prompt was cut, whether blocks were split over the device or not. Caches
 * are NaN where nothing has been stored. */
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

/* All rows, each decoded alone, in order: out[n_rows][H*D]. */
static void decode_all(struct check *c, struct world *w, char *out)
{
    const size_t row_bytes = (size_t)w->h.n_heads * w->h.dim * 2;

    new_cache(c, w);
    for (uint32_t i = 0; i < w->n_seqs; i++) {
        for (uint32_t p = 0; p < w->len[i]; p++) {
            const struct run one = { i, p, p + 1 };

            step(c, w, &one, 1, w->stride, out + (w->first[i] + p) * row_bytes);
        }
    }
    drop_cache(c, w);
}

/* Chunks of many sizes, so that they begin and end everywhere in tiles, blocks
 * of positions and spans; one sequence after the other, or some rows of each in a step. */
static bool equal_chunks(struct check *c, struct world *w, const char *decoded, bool together)
{
    static const uint32_t sizes[] = { 33, 2, 31, 1, 7, 16, 65, 17, 3, 64, 5, 32, 40, 8 };
    const size_t row_bytes = (size_t)w->h.n_heads * w->h.dim * 2;
    char *some = check_host(w->n_rows * row_bytes);
    uint32_t at[SEQS_MAX] = { 0 };
    bool equal = true;

    new_cache(c, w);
    for (uint32_t n = 1, k = 0; n > 0; k++) {
        struct run runs[SEQS_MAX];

        n = 0;
        for (uint32_t i = 0; i < w->n_seqs && (together || n == 0); i++) {
            const uint32_t size =
                c->quick ? sizes[(k + 3 * i) % ARRAY_LEN(sizes)] : check_between(c, 1, 66);

            if (at[i] < w->len[i]) {
                runs[n++] = (struct run){ i, at[i], MIN(at[i] + size, w->len[i]) };
            }
        }
        if (n > 0) {
            size_t off = 0;

            step(c, w, runs, n, w->stride, some);
            for (uint32_t i = 0; i < n; i++) {
                const size_t bytes = (runs[i].end - runs[i].begin) * row_bytes;
                const char *want = decoded + (w->first[runs[i].seq] + runs[i].begin) * row_bytes;

                equal = equal && memcmp(some + off, want, bytes) == 0;
                off += bytes;
                at[runs[i].seq] = runs[i].end;
            }
        }
    }
    drop_cache(c, w);
    free(some);
    return equal;
}

/* Rows of chunks are the rows decoded alone, and these are near f64. */
static void run_edges(struct check *c, const struct heads *h, float sharp)
{
    struct world w = { .h = *h, .fmt = KERN_BF16, .n_seqs = 3 };
    const size_t n_out = (size_t)h->n_heads * h->dim;
    const uint32_t len = c->quick ? 150 : 600;

    w.len[0] = len;
    w.len[1] = 70;
    w.len[2] = len - 37;
    build(c, &w);
    for (size_t i = 0; i < w.n_rows * width(h); i++) {
        w.qkv[i] *= i % width(h) < n_out ? sharp : 1.0f;
    }
    char *decoded = check_host(w.n_rows * n_out * 2);
    double *ref = check_host(w.len[1] * n_out * sizeof *ref);

    decode_all(c, &w, decoded);
    for (uint32_t p = 0; p < w.len[1]; p++) {
        exact(&w, 1, p, ref + p * n_out);
    }
    const char *name = check_name("decoded H=%u K=%u D=%u group %u, queries times %.0f", h->n_heads,
                                  h->n_kv, h->dim, h->group, (double)sharp);

    check_near_bf16(c, name, (uint16_t *)(void *)decoded + w.first[1] * n_out, ref,
                    w.len[1] * n_out, 8e-3);
    check_true(c, "  chunks of many sizes: the rows decoded alone",
               equal_chunks(c, &w, decoded, false));
    check_true(c, "  chunks of several sequences in a step: the same",
               equal_chunks(c, &w, decoded, true));
    free(decoded);
    free(ref);
    drop(c, &w);
}

static bool all_nan(const uint16_t *x, size_t n)
{
    bool all = true;

    for (size_t i = 0; i < n; i++) {
        all = all && isnan(bf16_to_f32(x[i]));
    }
    return all;
}

/* One key that is no number: rows that see it have NaN, and those before it their own bits. */
static void run_nan(struct check *c, float bad)
{
    const struct heads h = { 8, 2, 64, 4, 0, 0 };
    struct world w = { .h = h, .fmt = KERN_BF16, .n_seqs = 1, .len = { 150 } };
    const size_t n_out = (size_t)h.n_heads * h.dim, half = n_out / 2; /* heads of kv head 1 */
    const struct run prompt = { 0, 0, 149 }, last = { 0, 149, 150 };
    const uint32_t at = 40;
    bool before = true, nan = true, other = true;

    build(c, &w);
    uint16_t *good = check_host(150 * n_out * 2), *out = check_host(150 * n_out * 2);

    for (int is_bad = 0; is_bad < 2; is_bad++) {
        uint16_t *to = is_bad ? out : good;

        w.qkv[at * width(&h) + (h.n_heads + 1) * h.dim] = is_bad ? bad : 0.5f;
        for (uint32_t i = 0; i < w.n_rows; i++) { /* times a query that is not 0 */
            w.qkv[i * width(&h) + half] = 1.0f;
        }
        new_cache(c, &w);
        step(c, &w, &prompt, 1, w.stride, (char *)to);
        step(c, &w, &last, 1, w.stride, (char *)(to + 149 * n_out));
        drop_cache(c, &w);
    }
    before = memcmp(out, good, at * n_out * 2) == 0;
    for (uint32_t p = at; p < 150; p++) {
        nan = nan && all_nan(out + p * n_out + half, h.dim);
        other = other && memcmp(out + p * n_out, good + p * n_out, half * 2) == 0;
    }
    check_true(
        c,
        check_name("a key of %.0f: NaN in rows that see it, in prompts and decoded", (double)bad),
        nan);
    check_true(c, "  rows before it and other heads: their own bits", before && other);
    free(good);
    free(out);
    drop(c, &w);
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
    static const struct heads edges[] = {
        { 3, 1, 32, 3, 0, 0 },    /* 10 rows a warp: warps straddle spans */
        { 8, 2, 64, 4, 0, 0 },    /* 32 rows a block */
        { 2, 2, 80, 1, 0, 0 },    /* 128 rows a block, warps whose rows begin later */
        { 8, 1, 96, 8, 0, 0 },    /* 4 rows a warp */
        { 16, 1, 128, 16, 0, 0 }, /* 2 rows a warp */
        { 20, 1, 40, 20, 0, 0 },  /* heads in two chunks */
        { 3, 1, 136, 3, 0, 0 },   /* dims past D in three of the last steps */
        { 4, 1, 256, 4, 0, 0 },   /* one tile of queries a warp */
    };

    for (size_t i = 0; i < ARRAY_LEN(edges); i++) {
        run_edges(c, &edges[i], 1.0f);
    }
    run_edges(c, &edges[1], 40.0f); /* weights down to 0, maxima that jump */
    run_nan(c, NAN);
    run_nan(c, INFINITY);
    struct world w = { .h = heads[0], .fmt = KERN_F32, .n_seqs = 3, .len = { 300, 5, 64 } };

    build(c, &w);
    run_world(c, &w);
    drop(c, &w);
}
