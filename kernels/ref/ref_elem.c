/* kernels/ref/ref_elem.c - ops whose outputs depend on a few inputs each, and the norms: the
 * specification (docs/numerics.md, "Element by element", "Norms", "Rope"). */
#include "kernels/layout.h"
#include "kernels/math.h"
#include "kernels/ref/ref.h"

/* y[i] in fmt <- x */
static void store(void *y, enum kern_fmt fmt, size_t i, float x)
{
    if (fmt == KERN_BF16) {
        ((uint16_t *)y)[i] = bf16_from_f32(x);
    } else {
        ((float *)y)[i] = x;
    }
}

void ref_embed(struct kern_stream *s, float *x, const struct kern_embed *e, const uint32_t *ids,
               uint32_t n_rows)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        const bool held = ids[t] >= e->row0 && ids[t] - e->row0 < e->n_rows;

        for (uint32_t c = 0; c < e->dim; c++) {
            float v = 0.0f;

            if (held) {
                const size_t at = (size_t)(ids[t] - e->row0) * e->dim + c;

                v = e->fmt == KERN_BF16 ? bf16_to_f32(((const uint16_t *)e->data)[at])
                                        : ((const float *)e->data)[at];
            }
            x[(size_t)t * e->dim + c] = v + 0.0f; /* -0 becomes +0, denormals become +0 */
        }
    }
}

void ref_add_bias(struct kern_stream *s, float *y, const float *b, uint32_t n_rows, uint32_t n)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        for (uint32_t i = 0; i < n; i++) {
            y[(size_t)t * n + i] = y[(size_t)t * n + i] + b[i];
        }
    }
}

void ref_add(struct kern_stream *s, float *dst, const float *a, const float *b, size_t n)
{
    (void)s;
    for (size_t i = 0; i < n; i++) {
        dst[i] = a[i] + b[i];
    }
}

void ref_silu_mul(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *gu,
                  uint32_t n_rows, uint32_t ffn)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        const float *gate = gu + (size_t)t * 2 * ffn, *up = gate + ffn;

        for (uint32_t i = 0; i < ffn; i++) {
            const float x = gate[i];

            store(y, fmt, (size_t)t * ffn + i, x / (1.0f + k_expf(-x)) * up[i]);
        }
    }
}

/* ---- norms ---- */

/* y[dim] <- x[dim] / rms(x) * w[dim] */
static void norm_row(void *y, size_t at, enum kern_fmt fmt, const float *x, const float *w,
                     uint32_t dim, float eps)
{
    float acc[16] = { 0 };
    float inv;

    for (uint32_t i = 0; i < dim; i++) {
        acc[i % 16] = fmaf(x[i], x[i], acc[i % 16]);
    }
    inv = 1.0f / sqrtf(tree16(acc) / (float)dim + eps);
    for (uint32_t i = 0; i < dim; i++) {
        store(y, fmt, at + i, (x[i] * inv) * w[i]);
    }
}

void ref_rmsnorm(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *x, const float *w,
                 uint32_t n_rows, uint32_t dim, float eps)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        norm_row(y, (size_t)t * dim, fmt, x + (size_t)t * dim, w, dim, eps);
    }
}

void ref_qk_norm(struct kern_stream *s, float *qkv, const struct kern_qkv *g, const float *q_w,
                 const float *k_w, uint32_t n_rows, float eps)
{
    (void)s;
    for (uint32_t t = 0; t < n_rows; t++) {
        float *row = qkv + t * qkv_row(g);

        for (uint32_t h = 0; h < g->n_heads + g->n_kv_heads; h++) {
            float *head = row + (size_t)h * g->head_dim;

            norm_row(head, 0, KERN_F32, head, h < g->n_heads ? q_w : k_w, g->head_dim, eps);
        }
    }
}

/* ---- positions and the cache ---- */

void ref_rope(struct kern_stream *s, float *qkv, const struct kern_qkv *g,
              const struct kern_rope *rope, const struct kern_rows_map *map)
{
    const uint32_t half = g->head_dim / 2;

    (void)s;
    for (uint32_t t = 0; t < map->n_rows; t++) {
        const float *cos = rope->cos + (size_t)map->pos[t] * half;
        const float *sin = rope->sin + (size_t)map->pos[t] * half;

        for (uint32_t h = 0; h < g->n_heads + g->n_kv_heads; h++) {
            float *x = qkv + t * qkv_row(g) + (size_t)h * g->head_dim;

            for (uint32_t i = 0; i < half; i++) {
                const float x1 = x[i], x2 = x[i + half];

                x[i] = fmaf(x1, cos[i], -(x2 * sin[i]));
                x[i + half] = fmaf(x2, cos[i], x1 * sin[i]);
            }
        }
    }
}

void ref_kv_store(struct kern_stream *s, const struct kern_kv *kv, const float *qkv,
                  const struct kern_qkv *g, const struct kern_rows_map *map)
{
    (void)s;
    for (uint32_t t = 0; t < map->n_rows; t++) {
        const uint32_t block = rows_map_block(map, t, map->pos[t]);
        const uint32_t slot = map->pos[t] % KERN_KV_BLOCK;

        for (uint32_t h = 0; h < g->n_kv_heads; h++) {
            const size_t base = kv_base(kv, block, h);
            const float *k = qkv + t * qkv_row(g) + (size_t)(g->n_heads + h) * g->head_dim;
            const float *v = k + (size_t)g->n_kv_heads * g->head_dim;

            for (uint32_t d = 0; d < g->head_dim; d++) {
                store(kv->k, kv->fmt, base + kv_k_at(kv, d, slot), k[d]);
                store(kv->v, kv->fmt, base + kv_v_at(kv, d, slot), v[d]);
            }
        }
    }
}
