/* kernels/x86/elem_tmpl.h - norms, rope, silu and the like. A template: needs vec_*.h and
 * ISA_FN(name) before it. Rows (or elements) are cut over the team when there are enough. */
#include "base/compiler.h"
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/x86/vmath.h"
#include "kernels/x86/x86.h"

#include <string.h>

static void elem_store_n(void *y, enum kern_fmt fmt, size_t i, vf x, uint32_t n)
{
    if (fmt == KERN_BF16) {
        vf_store_bf16_n((uint16_t *)y + i, x, n);
    } else {
        vf_store_n((float *)y + i, x, n);
    }
}

static void elem_store(void *y, enum kern_fmt fmt, size_t i, vf x)
{
    if (fmt == KERN_BF16) {
        vf_store_bf16((uint16_t *)y + i, x);
    } else {
        vf_store((float *)y + i, x);
    }
}

/* ---- embed ---- */

static void ISA_FN(embed)(struct kern_stream *s, float *x, const struct kern_embed *e,
                          const uint32_t *ids, uint32_t n_rows)
{
    const uint32_t dim = e->dim;

    (void)s;
    for (uint32_t t = 0; t < n_rows; t++, x += dim) {
        const size_t at = (size_t)(ids[t] - e->row0) * dim;

        if (ids[t] < e->row0 || ids[t] - e->row0 >= e->n_rows) {
            memset(x, 0, dim * sizeof *x);
        } else if (e->fmt == KERN_BF16) {
            for (uint32_t c = 0; c < dim; c++) {
                x[c] = bf16_to_f32(((const uint16_t *)e->data)[at + c]) + 0.0f;
            }
        } else {
            for (uint32_t c = 0; c < dim; c++) {
                x[c] = ((const float *)e->data)[at + c] + 0.0f;
            }
        }
    }
}

/* ---- norms ---- */

struct norm_job {
    void *y;
    const float *x, *w;
    uint32_t n_rows, dim;
    enum kern_fmt fmt;
    float eps;
};

/* y may be x (in f32). */
static void norm_row(void *y, size_t at, enum kern_fmt fmt, const float *x, const float *w,
                     uint32_t dim, float eps)
{
    const uint32_t whole = dim / 16 * 16;
    vf acc = vf_zero(), inv;

    for (uint32_t i = 0; i < whole; i += 16) {
        acc = vf_fma(vf_load(x + i), vf_load(x + i), acc);
    }
    if (whole < dim) {
        const vf v = vf_load_n(x + whole, dim - whole);

        acc = vf_fma(v, v, acc);
    }
    inv = vf_set1(1.0f / sqrtf(vf_tree16(acc) / (float)dim + eps));
    for (uint32_t i = 0; i < whole; i += 16) {
        elem_store(y, fmt, at + i, vf_mul(vf_mul(vf_load(x + i), inv), vf_load(w + i)));
    }
    if (whole < dim) {
        const uint32_t n = dim - whole;
        const vf v = vf_mul(vf_load_n(x + whole, n), inv);

        elem_store_n(y, fmt, at + whole, vf_mul(v, vf_load_n(w + whole, n)), n);
    }
}

static void norm_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct norm_job *job = arg;
    const struct team_range cut = team_cut(job->n_rows, 1, part, n_parts);

    for (uint32_t t = cut.begin; t < cut.end; t++) {
        const size_t at = (size_t)t * job->dim;

        norm_row(job->y, at, job->fmt, job->x + at, job->w, job->dim, job->eps);
    }
}

static void ISA_FN(rmsnorm)(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *x,
                            const float *w, uint32_t n_rows, uint32_t dim, float eps)
{
    struct norm_job job = { y, x, w, n_rows, dim, fmt, eps };

    stream_run(s, norm_part, &job, (size_t)n_rows * dim);
}

static void ISA_FN(qk_norm)(struct kern_stream *s, float *qkv, const struct kern_qkv *g,
                            const float *q_w, const float *k_w, uint32_t n_rows, float eps)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        float *head = qkv + t * qkv_row(g);

        for (uint32_t h = 0; h < g->n_heads + g->n_kv_heads; h++, head += g->head_dim) {
            norm_row(head, 0, KERN_F32, head, h < g->n_heads ? q_w : k_w, g->head_dim, eps);
        }
    }
}

/* ---- sums ---- */

struct add_job {
    float *dst;
    const float *a, *b;
    uint32_t n_runs; /* of ADD_RUN elements, the last one shorter */
    size_t n;
};

enum { ADD_RUN = 4096 };

static void add_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct add_job *job = arg;
    const struct team_range cut = team_cut(job->n_runs, 1, part, n_parts);
    const size_t end = MIN((size_t)cut.end * ADD_RUN, job->n);
    size_t i = (size_t)cut.begin * ADD_RUN;

    for (; i + 16 <= end; i += 16) {
        vf_store(job->dst + i, vf_add(vf_load(job->a + i), vf_load(job->b + i)));
    }
    for (; i < end; i++) {
        job->dst[i] = job->a[i] + job->b[i];
    }
}

static void ISA_FN(add)(struct kern_stream *s, float *dst, const float *a, const float *b, size_t n)
{
    struct add_job job = { dst, a, b, (uint32_t)((n + ADD_RUN - 1) / ADD_RUN), n };

    stream_run(s, add_part, &job, n);
}

static void ISA_FN(add_bias)(struct kern_stream *s, float *y, const float *b, uint32_t n_rows,
                             uint32_t n)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++, y += n) {
        for (uint32_t i = 0; i < n; i++) {
            y[i] = y[i] + b[i];
        }
    }
}

/* ---- silu ---- */

struct silu_job {
    void *y;
    const float *gu;
    uint32_t n_rows, ffn;
    enum kern_fmt fmt;
};

static vf silu(vf x, vf up)
{
    const vf minus = vi_as_vf(vi_xor(vf_as_vi(x), vf_as_vi(vf_set1(-0.0f))));

    return vf_mul(vf_div(x, vf_add(vf_set1(1.0f), vf_exp(minus))), up);
}

static void silu_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct silu_job *job = arg;
    const struct team_range cut = team_cut(job->n_rows, 1, part, n_parts);
    const uint32_t ffn = job->ffn, whole = ffn / 16 * 16;

    for (uint32_t t = cut.begin; t < cut.end; t++) {
        const float *gate = job->gu + (size_t)t * 2 * ffn, *up = gate + ffn;
        const size_t at = (size_t)t * ffn;

        for (uint32_t i = 0; i < whole; i += 16) {
            elem_store(job->y, job->fmt, at + i, silu(vf_load(gate + i), vf_load(up + i)));
        }
        if (whole < ffn) {
            const uint32_t n = ffn - whole;

            elem_store_n(job->y, job->fmt, at + whole,
                         silu(vf_load_n(gate + whole, n), vf_load_n(up + whole, n)), n);
        }
    }
}

static void ISA_FN(silu_mul)(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *gu,
                             uint32_t n_rows, uint32_t ffn)
{
    struct silu_job job = { y, gu, n_rows, ffn, fmt };

    stream_run(s, silu_part, &job, (size_t)n_rows * ffn);
}

/* ---- positions and the cache ---- */

static void rope_head(float *x, const float *cos, const float *sin, uint32_t half)
{
    uint32_t i = 0;

    for (; i + 16 <= half; i += 16) {
        const vf x1 = vf_load(x + i), x2 = vf_load(x + half + i);
        const vf c = vf_load(cos + i), s = vf_load(sin + i);
        const vf minus = vf_sub(vf_set1(-0.0f), vf_mul(x2, s)); /* exact negation */

        vf_store(x + i, vf_fma(x1, c, minus));
        vf_store(x + half + i, vf_fma(x2, c, vf_mul(x1, s)));
    }
    for (; i < half; i++) {
        const float x1 = x[i], x2 = x[i + half];

        x[i] = __builtin_fmaf(x1, cos[i], -(x2 * sin[i]));
        x[i + half] = __builtin_fmaf(x2, cos[i], x1 * sin[i]);
    }
}

struct rows_job {
    float *qkv;
    const struct kern_qkv *g;
    const struct kern_rope *rope;
    const struct kern_kv *kv;
    const struct kern_rows_map *map;
};

static void rope_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct rows_job *job = arg;
    const struct kern_qkv *g = job->g;
    const uint32_t half = g->head_dim / 2;
    const struct team_range cut = team_cut(job->map->n_rows, 1, part, n_parts);

    for (uint32_t t = cut.begin; t < cut.end; t++) {
        const size_t at = (size_t)job->map->pos[t] * half;
        float *head = job->qkv + t * qkv_row(g);

        for (uint32_t h = 0; h < g->n_heads + g->n_kv_heads; h++, head += g->head_dim) {
            rope_head(head, job->rope->cos + at, job->rope->sin + at, half);
        }
    }
}

static void ISA_FN(rope)(struct kern_stream *s, float *qkv, const struct kern_qkv *g,
                         const struct kern_rope *rope, const struct kern_rows_map *map)
{
    struct rows_job job = { qkv, g, rope, NULL, map };

    stream_run(s, rope_part, &job, map->n_rows * qkv_row(g));
}

static void store_head_bf16(const struct kern_kv *kv, size_t base, uint32_t slot, const float *k,
                            const float *v)
{
    struct bf16_two {
        uint16_t e[2];
    } *k_out = (struct bf16_two *)kv->k + base / 2 + slot;
    uint16_t *v_out = (uint16_t *)kv->v + base + kv_v_at(kv, 0, slot);

    for (uint32_t d = 0; d < kv->head_dim; d += 2, k_out += KERN_KV_BLOCK) {
        *k_out = (struct bf16_two){ { bf16_from_f32(k[d]), bf16_from_f32(k[d + 1]) } };
    }
    for (uint32_t d = 0; d < kv->head_dim; d++) {
        v_out[d] = bf16_from_f32(v[d]);
    }
}

static void store_head_f32(const struct kern_kv *kv, size_t base, uint32_t slot, const float *k,
                           const float *v)
{
    float *k_out = (float *)kv->k + base + slot;

    for (uint32_t d = 0; d < kv->head_dim; d++) {
        k_out[(size_t)d * KERN_KV_BLOCK] = k[d];
    }
    memcpy((float *)kv->v + base + kv_v_at(kv, 0, slot), v, kv->head_dim * sizeof *v);
}

static void kv_store_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct rows_job *job = arg;
    const struct kern_qkv *g = job->g;
    const struct team_range cut = team_cut(job->map->n_rows, 1, part, n_parts);

    for (uint32_t t = cut.begin; t < cut.end; t++) {
        const uint32_t pos = job->map->pos[t], block = rows_map_block(job->map, t, pos);
        const float *k = job->qkv + t * qkv_row(g) + (size_t)g->n_heads * g->head_dim;
        const float *v = k + (size_t)g->n_kv_heads * g->head_dim;

        for (uint32_t h = 0; h < g->n_kv_heads; h++, k += g->head_dim, v += g->head_dim) {
            const size_t base = kv_base(job->kv, block, h);

            if (job->kv->fmt == KERN_BF16) {
                store_head_bf16(job->kv, base, pos % KERN_KV_BLOCK, k, v);
            } else {
                store_head_f32(job->kv, base, pos % KERN_KV_BLOCK, k, v);
            }
        }
    }
}

static void ISA_FN(kv_store)(struct kern_stream *s, const struct kern_kv *kv, const float *qkv,
                             const struct kern_qkv *g, const struct kern_rows_map *map)
{
    struct rows_job job = { (float *)(uintptr_t)qkv, g, NULL, kv, map }; /* only read */

    stream_run(s, kv_store_part, &job, map->n_rows * qkv_row(g));
}

void ISA_FN(x86_elem)(struct kern_ops *ops)
{
    ops->embed = ISA_FN(embed);
    ops->rmsnorm = ISA_FN(rmsnorm);
    ops->qk_norm = ISA_FN(qk_norm);
    ops->add = ISA_FN(add);
    ops->add_bias = ISA_FN(add_bias);
    ops->silu_mul = ISA_FN(silu_mul);
    ops->rope = ISA_FN(rope);
    ops->kv_store = ISA_FN(kv_store);
}
