/* kernels/ref/ref_attention.c - attention of one row and head at a time: the specification
 * (docs/numerics.md, "Attention"). */
#include "kernels/layout.h"
#include "kernels/math.h"
#include "kernels/ref/ref.h"

/* A softmax so far: maximum, sum of exp(score - max), and that sum weighted by v. */
struct part {
    float max, sum;
    float o[KERN_HEAD_DIM_MAX]; /* [D] */
};

struct view { /* what one row and head look at */
    const struct kern_kv *kv;
    const struct kern_rows_map *map;
    const float *q; /* [D] f32, not yet rounded */
    uint32_t row, kv_head;
    float scale;
};

static float load(const void *data, enum kern_fmt fmt, size_t i)
{
    return fmt == KERN_BF16 ? bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

static float score(const struct view *a, uint32_t pos)
{
    const struct kern_kv *kv = a->kv;
    const size_t base = kv_base(kv, rows_map_block(a->map, a->row, pos), a->kv_head);
    const uint32_t slot = pos % KERN_KV_BLOCK;
    float acc = 0.0f;

    if (kv->fmt == KERN_F32) {
        for (uint32_t d = 0; d < kv->head_dim; d++) {
            acc = fmaf(a->q[d], load(kv->k, kv->fmt, base + kv_k_at(kv, d, slot)), acc);
        }
    } else {
        for (uint32_t d = 0; d < kv->head_dim; d += 2) {
            const float q0 = bf16_to_f32(bf16_from_f32(a->q[d]));
            const float q1 = bf16_to_f32(bf16_from_f32(a->q[d + 1]));

            acc = fmaf(q1, load(kv->k, kv->fmt, base + kv_k_at(kv, d + 1, slot)), acc);
            acc = fmaf(q0, load(kv->k, kv->fmt, base + kv_k_at(kv, d, slot)), acc);
        }
    }
    return acc * a->scale;
}

/* Positions [begin, end) of one span, all of them visible. */
static void span(const struct view *a, uint32_t begin, uint32_t end, struct part *part)
{
    const uint32_t dim = a->kv->head_dim;
    float p[KERN_SPAN], acc[16] = { 0 };

    part->max = -INFINITY;
    for (uint32_t pos = begin; pos < end; pos++) {
        p[pos - begin] = score(a, pos);
        part->max = p[pos - begin] > part->max ? p[pos - begin] : part->max;
    }
    for (uint32_t j = 0; j < end - begin; j++) {
        p[j] = k_expf(p[j] - part->max);
        acc[j % 16] = acc[j % 16] + p[j];
    }
    part->sum = tree16(acc);
    for (uint32_t d = 0; d < dim; d++) {
        float o = 0.0f;

        for (uint32_t j = 0; j < end - begin; j++) {
            const size_t base =
                kv_base(a->kv, rows_map_block(a->map, a->row, begin + j), a->kv_head);
            const size_t at = base + kv_v_at(a->kv, d, (begin + j) % KERN_KV_BLOCK);

            o = fmaf(p[j], load(a->kv->v, a->kv->fmt, at), o);
        }
        part->o[d] = o;
    }
}

/* Take the next span, in ascending order, into what there is. */
static void merge(struct part *all, const struct part *next, uint32_t dim)
{
    const float max = next->max > all->max ? next->max : all->max;
    const float a = lse_factor(all->max, max), b = lse_factor(next->max, max);

    all->max = max;
    all->sum = fmaf(all->sum, a, next->sum * b);
    for (uint32_t d = 0; d < dim; d++) {
        all->o[d] = fmaf(all->o[d], a, next->o[d] * b);
    }
}

static void attend(const struct view *a, void *out, size_t at)
{
    const uint32_t n = a->map->pos[a->row] + 1, dim = a->kv->head_dim;
    struct part all = { 0 }, next;

    for (uint32_t begin = 0; begin < n; begin += KERN_SPAN) {
        const uint32_t end = u32_min(n, begin + KERN_SPAN);

        if (begin == 0) {
            span(a, begin, end, &all); /* the first span is the state, as it is */
        } else {
            span(a, begin, end, &next);
            merge(&all, &next, dim);
        }
    }
    for (uint32_t d = 0; d < dim; d++) {
        const float o = all.o[d] / all.sum;

        if (a->kv->fmt == KERN_BF16) {
            ((uint16_t *)out)[at + d] = bf16_from_f32(o);
        } else {
            ((float *)out)[at + d] = o;
        }
    }
}

void ref_attention(struct kern_stream *s, void *out, const struct kern_kv *kv, const float *qkv,
                   const struct kern_qkv *g, const struct kern_rows_map *map)
{
    (void)s;
    ASSERT(g->head_dim % 2 == 0 && g->head_dim <= KERN_HEAD_DIM_MAX);
    for (uint32_t t = 0; t < map->n_rows; t++) {
        for (uint32_t h = 0; h < g->n_heads; h++) {
            const struct view a = {
                kv,      map, qkv + t * qkv_row(g) + (size_t)h * g->head_dim, t, qkv_kv_head(g, h),
                g->scale
            };

            attend(&a, out, ((size_t)t * g->n_heads + h) * g->head_dim);
        }
    }
}
