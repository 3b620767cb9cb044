/* kernels/x86/attention_tmpl.h - attention with positions as lanes for scores and D as lanes for
 * values. A template: needs vec_*.h and ISA_FN(name) before it.
 *
 * A task is up to QUERIES (row, head) pairs that share a kv head and a sequence: neighbouring rows
 * of a prefill, all heads of a group. They go through the spans together, so that a K or V line is
 * read once for all of them; what each may see ends at its own position, and past it nothing is
 * added (a product with a zero would turn -0 into +0, and a stale NaN into a NaN). Tasks are handed
 * out by a counter, because late rows cost more than early ones.
 *
 * Bytes moved by a decode row: its K and V once, 4 D bytes per position and kv head (bf16). */
#include "base/compiler.h"
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/x86/tile_kinds.h"
#include "kernels/x86/vmath.h"
#include "kernels/x86/x86.h"

#define TILE_NAME           pv_bf16
#define TILE_W              vf
#define TILE_LOAD(p)        vf_load_bf16((const uint16_t *)(const void *)(p))
#define TILE_LANE           32
#define TILE_LINES          4
#define TILE_X              float
#define TILE_DOT(acc, x, w) vf_fma(x, w, acc)
#define TILE_SET1(p)        vf_set1(*(p))
#include "kernels/x86/tile.h"

enum { QUERIES = 16 };

struct attn_job {
    void *out;
    const struct kern_kv *kv;
    const float *qkv;
    const struct kern_qkv *g;
    const struct kern_rows_map *map;
    struct kern_stream *s;
    uint32_t n_chunks;  /* of rows */
    uint32_t chunk;     /* rows in one */
    uint32_t head_step; /* heads of a group taken together */
};

struct attn_query {
    uint32_t row, head, n; /* positions [0, n) are visible */
};

/* One task's state, in the thread's scratch. Dp is D rounded up to 16. */
struct attn {
    const struct attn_job *job;
    uint32_t kv_head, n_queries, dim, padded;
    struct attn_query query[QUERIES];
    uint32_t visible[QUERIES]; /* positions of this span that the query sees */
    float max[QUERIES], sum[QUERIES];
    float max_new[QUERIES], sum_new[QUERIES];
    float *p;     /* [QUERIES, KERN_SPAN] scores, then probabilities */
    float *o;     /* [QUERIES, Dp] merged */
    float *o_new; /* [QUERIES, Dp] of this span */
    char *q;      /* [QUERIES, D] in kv->fmt */
};

static size_t attn_plane(const struct attn *a, uint32_t block_of_seq)
{
    const struct attn_job *job = a->job;
    const uint32_t block = rows_map_block(job->map, a->query[0].row, block_of_seq * KERN_KV_BLOCK);

    return kv_base(job->kv, block, a->kv_head) * fmt_bytes(job->kv->fmt);
}

static void attn_load_q(struct attn *a)
{
    const struct attn_job *job = a->job;

    for (uint32_t i = 0; i < a->n_queries; i++) {
        const float *q =
            job->qkv + a->query[i].row * qkv_row(job->g) + (size_t)a->query[i].head * a->dim;

        if (job->kv->fmt == KERN_BF16) {
            uint16_t *dst = (uint16_t *)(void *)a->q + (size_t)i * a->dim;

            for (uint32_t d = 0; d < a->dim; d++) {
                dst[d] = bf16_from_f32(q[d]);
            }
        } else {
            memcpy(a->q + (size_t)i * a->dim * 4, q, a->dim * sizeof *q);
        }
    }
}

/* p[queries, 32 * n_blocks] = q k^T, from block `block0` of the sequence on. */
static void attn_scores(const struct attn *a, uint32_t block0, uint32_t n_blocks)
{
    const bool pairs = a->job->kv->fmt == KERN_BF16;
    struct tile_args t = {
        .acc_stride = KERN_SPAN,
        .x = a->q,
        .x_stride = (size_t)a->dim * (pairs ? 2 : 4),
        .w_stride = KERN_KV_BLOCK * 4,
        .n_steps = pairs ? a->dim / 2 : a->dim,
        .fresh = true,
    };

    for (uint32_t b = 0; b < n_blocks; b++) {
        t.acc = a->p + (size_t)b * KERN_KV_BLOCK;
        t.w = (const char *)a->job->kv->k + attn_plane(a, block0 + b);
        if (pairs) {
            tile_bf16(&t, a->n_queries, KERN_KV_BLOCK / 16);
        } else {
            tile_f32(&t, a->n_queries, KERN_KV_BLOCK / 16);
        }
    }
}

/* Scores to probabilities of one query, n > 0 of them. */
static void attn_softmax(struct attn *a, uint32_t i, uint32_t n)
{
    float *p = a->p + (size_t)i * KERN_SPAN;
    const vf scale = vf_set1(a->job->g->scale), lowest = vf_set1(-INFINITY);
    vf max = lowest, acc = vf_zero(), m;

    for (uint32_t j = 0; j < n; j += 16) {
        vf x = vf_mul(vf_load(p + j), scale);

        if (n - j < 16) { /* what lies there may be stale; exp(-inf) adds +0 below */
            x = vf_pick(vm_first(n - j), x, lowest);
        }
        vf_store(p + j, x);
        max = vf_max(x, max);
    }
    a->max_new[i] = vf_max16(max);
    m = vf_set1(a->max_new[i]);
    for (uint32_t j = 0; j < n; j += 16) {
        const vf x = vf_exp(vf_sub(vf_load(p + j), m));

        vf_store(p + j, x);
        acc = vf_add(acc, x);
    }
    a->sum_new[i] = vf_tree16(acc);
}

/* o_new[rows from i] += p[., slots [j0, j1)] v */
static void attn_values(const struct attn *a, uint32_t i, uint32_t rows, uint32_t block_of_span,
                        const char *v, uint32_t j0, uint32_t j1)
{
    const bool bf16 = a->job->kv->fmt == KERN_BF16;
    const size_t row_bytes = (size_t)a->dim * (bf16 ? 2 : 4);
    const float *p = a->p + (size_t)i * KERN_SPAN + (size_t)block_of_span * KERN_KV_BLOCK + j0;
    struct tile_args t = {
        .acc_stride = a->padded,
        .x = p,
        .x_stride = KERN_SPAN * sizeof(float),
        .w_stride = row_bytes,
        .n_steps = j1 - j0,
    };
    uint32_t d = 0;

    while (a->dim - d >= 16) {
        const uint32_t wide = a->dim - d >= 64 ? 4 : 1;

        t.acc = a->o_new + (size_t)i * a->padded + d;
        t.w = v + j0 * row_bytes + (size_t)d * (bf16 ? 2 : 4);
        if (bf16) {
            tile_pv_bf16(&t, rows, wide);
        } else {
            tile_f32(&t, rows, wide);
        }
        d += wide * 16;
    }
    for (; d < a->dim; d++) { /* D that is no multiple of 16 */
        for (uint32_t r = 0; r < rows; r++) {
            float *o = a->o_new + (size_t)(i + r) * a->padded + d;

            for (uint32_t j = j0; j < j1; j++) {
                const size_t at = (size_t)j * a->dim + d;
                const float x = bf16 ? bf16_to_f32(((const uint16_t *)(const void *)v)[at])
                                     : ((const float *)(const void *)v)[at];

                *o = __builtin_fmaf(p[(size_t)r * KERN_SPAN + j - j0], x, *o);
            }
        }
    }
}

/* The slots that all queries see go through one tile, the rest query by query. */
static void attn_block_values(const struct attn *a, uint32_t block0, uint32_t b)
{
    const char *v = (const char *)a->job->kv->v + attn_plane(a, block0 + b);
    uint32_t seen[QUERIES], all = KERN_KV_BLOCK;

    for (uint32_t i = 0; i < a->n_queries; i++) {
        const uint32_t n = a->visible[i], first = b * KERN_KV_BLOCK;

        seen[i] = n <= first ? 0 : u32_min(n - first, KERN_KV_BLOCK);
        all = u32_min(all, seen[i]);
    }
    if (all > 0) {
        attn_values(a, 0, a->n_queries, b, v, 0, all);
    }
    for (uint32_t i = 0; i < a->n_queries; i++) {
        if (seen[i] > all) {
            attn_values(a, i, 1, b, v, all, seen[i]);
        }
    }
}

static void attn_merge(struct attn *a, uint32_t i)
{
    const float max = a->max_new[i] > a->max[i] ? a->max_new[i] : a->max[i];
    const float fa = lse_factor(a->max[i], max), fb = lse_factor(a->max_new[i], max);
    float *o = a->o + (size_t)i * a->padded;
    const float *o_new = a->o_new + (size_t)i * a->padded;

    a->max[i] = max;
    a->sum[i] = __builtin_fmaf(a->sum[i], fa, a->sum_new[i] * fb);
    for (uint32_t d = 0; d < a->padded; d += 16) {
        const vf t = vf_mul(vf_load(o_new + d), vf_set1(fb));

        vf_store(o + d, vf_fma(vf_load(o + d), vf_set1(fa), t));
    }
}

static void attn_span(struct attn *a, uint32_t begin, uint32_t longest)
{
    const uint32_t n_blocks =
        (u32_min(longest - begin, KERN_SPAN) + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    const uint32_t block0 = begin / KERN_KV_BLOCK;
    float *o_new = a->o_new;

    attn_scores(a, block0, n_blocks);
    for (uint32_t i = 0; i < a->n_queries; i++) {
        const uint32_t n = a->query[i].n;

        a->visible[i] = n <= begin ? 0 : u32_min(n - begin, KERN_SPAN);
        if (a->visible[i] > 0) {
            attn_softmax(a, i, a->visible[i]);
        }
    }
    if (begin == 0) { /* the first span is the state, as it is */
        a->o_new = a->o;
    }
    memset(a->o_new, 0, (size_t)a->n_queries * a->padded * sizeof(float));
    for (uint32_t b = 0; b < n_blocks; b++) {
        attn_block_values(a, block0, b);
    }
    a->o_new = o_new;
    for (uint32_t i = 0; i < a->n_queries; i++) {
        if (begin == 0) {
            a->max[i] = a->max_new[i];
            a->sum[i] = a->sum_new[i];
        } else if (a->visible[i] > 0) {
            attn_merge(a, i);
        }
    }
}

static void attn_write(const struct attn *a, uint32_t i)
{
    const struct attn_job *job = a->job;
    const struct attn_query *q = &a->query[i];
    const size_t at = ((size_t)q->row * job->g->n_heads + q->head) * a->dim;
    const float *o = a->o + (size_t)i * a->padded;
    const vf sum = vf_set1(a->sum[i]);

    for (uint32_t d = 0; d < a->dim; d += 16) {
        const vf x = vf_div(vf_load(o + d), sum);
        const uint32_t n = u32_min(a->dim - d, 16);

        if (job->kv->fmt == KERN_BF16) {
            vf_store_bf16_n((uint16_t *)job->out + at + d, x, n);
        } else {
            vf_store_n((float *)job->out + at + d, x, n);
        }
    }
}

/* All queries of a, which are filled in. */
static void attn_run(struct attn *a)
{
    uint32_t longest = 0;

    for (uint32_t i = 0; i < a->n_queries; i++) {
        longest = MAX(longest, a->query[i].n);
    }
    attn_load_q(a);
    for (uint32_t begin = 0; begin < longest; begin += KERN_SPAN) {
        attn_span(a, begin, longest);
    }
    for (uint32_t i = 0; i < a->n_queries; i++) {
        attn_write(a, i);
    }
}

/* Rows [r0, r1) times heads [h0, h1), which all read kv head a->kv_head. */
static void attn_rows(struct attn *a, uint32_t r0, uint32_t r1, uint32_t h0, uint32_t h1)
{
    const struct kern_rows_map *map = a->job->map;

    a->n_queries = 0;
    for (uint32_t r = r0; r < r1; r++) {
        if (a->n_queries > 0 && map->seq[r] != map->seq[r - 1]) {
            attn_run(a);
            a->n_queries = 0;
        }
        for (uint32_t h = h0; h < h1; h++) {
            a->query[a->n_queries++] = (struct attn_query){ r, h, map->pos[r] + 1 };
        }
    }
    attn_run(a);
}

/* Local heads of kv head `kv_head`, [*h0_p, *h1_p). */
static void attn_heads(const struct kern_qkv *g, uint32_t kv_head, uint32_t *h0_p, uint32_t *h1_p)
{
    const uint32_t first = (g->kv_head0 + kv_head) * g->group, end = first + g->group;

    *h0_p = first > g->head0 ? u32_min(first - g->head0, g->n_heads) : 0;
    *h1_p = end > g->head0 ? u32_min(end - g->head0, g->n_heads) : 0;
}

static void attn_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct attn_job *job = arg;
    const uint32_t dim = job->g->head_dim, padded = (dim + 15) / 16 * 16;
    const uint32_t n_tasks = job->n_chunks * job->g->n_kv_heads;
    struct attn a = { .job = job, .dim = dim, .padded = padded };

    (void)n_parts;
    a.p = stream_scratch(job->s, part);
    a.o = a.p + QUERIES * KERN_SPAN;
    a.o_new = a.o + (size_t)QUERIES * padded;
    a.q = (char *)(a.o_new + (size_t)QUERIES * padded);
    for (;;) {
        const uint32_t task = atomic_fetch_add(&job->s->next_task, 1);
        uint32_t h0, h1, r0;

        if (task >= n_tasks) {
            return;
        }
        a.kv_head = task % job->g->n_kv_heads;
        r0 = task / job->g->n_kv_heads * job->chunk;
        attn_heads(job->g, a.kv_head, &h0, &h1);
        for (; h0 < h1; h0 += job->head_step) {
            attn_rows(&a, r0, u32_min(r0 + job->chunk, job->map->n_rows), h0,
                      u32_min(h0 + job->head_step, h1));
        }
    }
}

static void ISA_FN(attention)(struct kern_stream *s, void *out, const struct kern_kv *kv,
                              const float *qkv, const struct kern_qkv *g,
                              const struct kern_rows_map *map)
{
    struct attn_job job = { .out = out, .kv = kv, .qkv = qkv, .g = g, .map = map, .s = s };
    size_t cost = 0;

    ASSERT(g->head_dim % 2 == 0 && g->head_dim <= KERN_HEAD_DIM_MAX);
    job.head_step = u32_min(g->group, QUERIES);
    job.chunk = QUERIES / job.head_step;
    job.n_chunks = (map->n_rows + job.chunk - 1) / job.chunk;
    for (uint32_t t = 0; t < map->n_rows; t++) {
        cost += ((size_t)map->pos[t] + 1) * g->n_heads * g->head_dim / 8;
    }
    atomic_store(&s->next_task, 0);
    stream_run(s, attn_part, &job, cost);
}

void ISA_FN(x86_attention)(struct kern_ops *ops)
{
    ops->attention = ISA_FN(attention);
}
