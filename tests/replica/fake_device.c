/* tests/replica/fake_device.c - see fake_device.h. The slots of the table; the queue and the memory
 * behind them are fake_queue.c. */
#include "replica/fake_queue.h"

#include "kernels/cand.h"
#include "kernels/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *dev(const void *p)
{
    return fake_bytes(p, "an op");
}

/* ---- copies ---- */

static void run_copy_in(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->copy_in(s->base, dev(t->p[0]), t->copy != NULL ? t->copy : t->p[1], t->n);
}

static void copy_in(struct kern_stream *stream, void *dst, const void *src, size_t bytes)
{
    struct fake_stream *s = fake_stream_of(stream);
    FAKE_CHECK(!s->is_recording, "copy_in inside a recording");
    FAKE_CHECK(bytes == 0 || fake_is_device(dst), "copy_in to memory that is not the device's");
    FAKE_CHECK(bytes == 0 || !fake_is_device(src), "copy_in from device memory");
    struct fake_task *t = fake_task_new(run_copy_in);
    t->p[0] = dst;
    t->n = bytes;
    t->copy = fake_copy(src, bytes);
    fake_push(s, t);
}

static void copy_in_later(struct kern_stream *stream, void *dst, const void *src, size_t bytes)
{
    struct fake_stream *s = fake_stream_of(stream);
    FAKE_CHECK(fake_is_device(dst), "copy_in_later to memory that is not the device's");
    FAKE_CHECK(fake_is_pinned(src), "copy_in_later from memory that is not pinned");
    struct fake_task *t = fake_task_new(run_copy_in);
    t->p[0] = dst;
    t->p[1] = (void *)(uintptr_t)src;
    t->n = bytes;
    fake_push(s, t);
}

static void run_copy_out(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->copy_out(s->base, t->p[0], dev(t->p[1]), t->n);
}

static void copy_out(struct kern_stream *stream, void *dst, const void *src, size_t bytes)
{
    struct fake_stream *s = fake_stream_of(stream);
    FAKE_CHECK(bytes == 0 || fake_is_device(src), "copy_out from memory that is not the device's");
    FAKE_CHECK(!fake_is_device(dst), "copy_out to device memory");
    FAKE_CHECK(!s->is_recording || fake_is_pinned(dst), "a recorded copy_out to ordinary memory");
    if (!s->is_recording) {
        memset(dst, 0xa5, bytes); /* whoever looks before stream_sync shall see it */
    }
    struct fake_task *t = fake_task_new(run_copy_out);
    t->p[0] = dst;
    t->p[1] = (void *)(uintptr_t)src;
    t->n = bytes;
    fake_push(s, t);
}

/* ---- weights ---- */

static void run_mat_pack(struct fake_stream *s, struct fake_task *t)
{
    t->mat.data = dev(t->mat.data);
    s->base_ops->mat_pack(s->base, &t->mat, &t->rows);
}

static void run_embed_pack(struct fake_stream *s, struct fake_task *t)
{
    t->embed.data = dev(t->embed.data);
    s->base_ops->embed_pack(s->base, &t->embed, &t->rows);
}

static void push_pack(struct fake_stream *s, struct fake_task *t, const struct kern_rows *rows,
                      uint32_t n_cols)
{
    const size_t element = rows->type == KERN_SRC_F32 ? 4 : rows->type == KERN_SRC_F8 ? 1 : 2;
    const size_t n = rows->n_rows == 0 ? 0 : (size_t)(rows->n_rows - 1) * rows->ld + n_cols;

    FAKE_CHECK(!s->is_recording, "packing inside a recording");
    FAKE_CHECK(!fake_is_device(rows->data), "packing from device memory");
    t->rows = *rows;
    if (!fake_is_pinned(rows->data)) {
        t->copy = fake_copy(rows->data, n * element);
        t->rows.data = t->copy;
    }
    if (rows->scales != NULL) {
        t->scales =
            fake_copy(rows->scales, rows->n_rows * kern_mat_groups(&t->mat) * sizeof(float));
        t->rows.scales = t->scales;
    }
    fake_push(s, t);
}

static void mat_pack(struct kern_stream *stream, struct kern_mat *mat, const struct kern_rows *rows)
{
    struct fake_task *t = fake_task_new(run_mat_pack);

    t->mat = *mat;
    push_pack(fake_stream_of(stream), t, rows, mat->k);
}

static void embed_pack(struct kern_stream *stream, struct kern_embed *e,
                       const struct kern_rows *rows)
{
    struct fake_task *t = fake_task_new(run_embed_pack);

    t->embed = *e;
    push_pack(fake_stream_of(stream), t, rows, e->dim);
}

/* ---- element by element ---- */

static void run_embed(struct fake_stream *s, struct fake_task *t)
{
    t->embed.data = dev(t->embed.data);
    s->base_ops->embed(s->base, dev(t->p[0]), &t->embed, dev(t->p[1]), t->u[0]);
}

static void embed(struct kern_stream *stream, float *x, const struct kern_embed *e,
                  const uint32_t *ids, uint32_t n_rows)
{
    struct fake_task *t = fake_task_new(run_embed);

    t->embed = *e;
    t->p[0] = x;
    t->p[1] = (void *)(uintptr_t)ids;
    t->u[0] = n_rows;
    fake_push(fake_stream_of(stream), t);
}

static void run_rmsnorm(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->rmsnorm(s->base, dev(t->p[0]), t->fmt, dev(t->p[1]), dev(t->p[2]), t->u[0],
                         t->u[1], t->f);
}

static void rmsnorm(struct kern_stream *stream, void *y, enum kern_fmt fmt, const float *x,
                    const float *w, uint32_t n_rows, uint32_t dim, float eps)
{
    struct fake_task *t = fake_task_new(run_rmsnorm);

    t->p[0] = y;
    t->p[1] = (void *)(uintptr_t)x;
    t->p[2] = (void *)(uintptr_t)w;
    t->fmt = fmt;
    t->u[0] = n_rows;
    t->u[1] = dim;
    t->f = eps;
    fake_push(fake_stream_of(stream), t);
}

static void run_gemm(struct fake_stream *s, struct fake_task *t)
{
    t->mat.data = dev(t->mat.data);
    s->base_ops->gemm(s->base, dev(t->p[0]), dev(t->p[1]), &t->mat, t->u[0]);
}

static void gemm(struct kern_stream *stream, float *y, const void *x, const struct kern_mat *w,
                 uint32_t n_rows)
{
    struct fake_task *t = fake_task_new(run_gemm);

    t->mat = *w;
    t->p[0] = y;
    t->p[1] = (void *)(uintptr_t)x;
    t->u[0] = n_rows;
    fake_push(fake_stream_of(stream), t);
}

static void run_add_bias(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->add_bias(s->base, dev(t->p[0]), dev(t->p[1]), t->u[0], t->u[1]);
}

static void add_bias(struct kern_stream *stream, float *y, const float *b, uint32_t n_rows,
                     uint32_t n)
{
    struct fake_task *t = fake_task_new(run_add_bias);

    t->p[0] = y;
    t->p[1] = (void *)(uintptr_t)b;
    t->u[0] = n_rows;
    t->u[1] = n;
    fake_push(fake_stream_of(stream), t);
}

static void run_add(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->add(s->base, dev(t->p[0]), dev(t->p[1]), dev(t->p[2]), t->n);
}

static void add(struct kern_stream *stream, float *dst, const float *a, const float *b, size_t n)
{
    struct fake_task *t = fake_task_new(run_add);

    t->p[0] = dst;
    t->p[1] = (void *)(uintptr_t)a;
    t->p[2] = (void *)(uintptr_t)b;
    for (uint32_t i = 0; i < 3; i++) {
        FAKE_CHECK((uintptr_t)t->p[i] % KERN_ALIGN == 0, "add: a pointer that is not aligned");
    }
    t->n = n;
    fake_push(fake_stream_of(stream), t);
}

static void run_silu_mul(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->silu_mul(s->base, dev(t->p[0]), t->fmt, dev(t->p[1]), t->u[0], t->u[1]);
}

static void silu_mul(struct kern_stream *stream, void *y, enum kern_fmt fmt, const float *gu,
                     uint32_t n_rows, uint32_t ffn)
{
    struct fake_task *t = fake_task_new(run_silu_mul);

    t->p[0] = y;
    t->p[1] = (void *)(uintptr_t)gu;
    t->fmt = fmt;
    t->u[0] = n_rows;
    t->u[1] = ffn;
    fake_push(fake_stream_of(stream), t);
}

static void run_gather(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->gather(s->base, dev(t->p[0]), dev(t->p[1]), dev(t->p[2]), t->u[0], t->u[1]);
}

static void gather(struct kern_stream *stream, float *dst, const float *src, const uint32_t *rows,
                   uint32_t n_rows, uint32_t dim)
{
    struct fake_task *t = fake_task_new(run_gather);

    t->p[0] = dst;
    t->p[1] = (void *)(uintptr_t)src;
    t->p[2] = (void *)(uintptr_t)rows;
    t->u[0] = n_rows;
    t->u[1] = dim;
    fake_push(fake_stream_of(stream), t);
}

/* ---- attention ---- */

static void map_bytes(struct fake_task *t)
{
    t->map.pos = dev(t->map.pos);
    t->map.seq = dev(t->map.seq);
    t->map.tables = dev(t->map.tables);
    t->kv.k = dev(t->kv.k);
    t->kv.v = dev(t->kv.v);
}

static void run_qk_norm(struct fake_stream *s, struct fake_task *t)
{
    s->base_ops->qk_norm(s->base, dev(t->p[0]), &t->g, dev(t->p[1]), dev(t->p[2]), t->u[0], t->f);
}

static void qk_norm(struct kern_stream *stream, float *qkv, const struct kern_qkv *g,
                    const float *q_w, const float *k_w, uint32_t n_rows, float eps)
{
    struct fake_task *t = fake_task_new(run_qk_norm);

    t->p[0] = qkv;
    t->g = *g;
    t->p[1] = (void *)(uintptr_t)q_w;
    t->p[2] = (void *)(uintptr_t)k_w;
    t->u[0] = n_rows;
    t->f = eps;
    fake_push(fake_stream_of(stream), t);
}

static void run_rope(struct fake_stream *s, struct fake_task *t)
{
    map_bytes(t);
    t->rope.cos = dev(t->rope.cos);
    t->rope.sin = dev(t->rope.sin);
    s->base_ops->rope(s->base, dev(t->p[0]), &t->g, &t->rope, &t->map);
}

static void rope(struct kern_stream *stream, float *qkv, const struct kern_qkv *g,
                 const struct kern_rope *table, const struct kern_rows_map *map)
{
    struct fake_task *t = fake_task_new(run_rope);

    t->p[0] = qkv;
    t->g = *g;
    t->rope = *table;
    t->map = *map;
    fake_push(fake_stream_of(stream), t);
}

static void run_kv_store(struct fake_stream *s, struct fake_task *t)
{
    map_bytes(t);
    s->base_ops->kv_store(s->base, &t->kv, dev(t->p[0]), &t->g, &t->map);
}

static void kv_store(struct kern_stream *stream, const struct kern_kv *kv, const float *qkv,
                     const struct kern_qkv *g, const struct kern_rows_map *map)
{
    struct fake_task *t = fake_task_new(run_kv_store);

    t->kv = *kv;
    t->p[0] = (void *)(uintptr_t)qkv;
    t->g = *g;
    t->map = *map;
    fake_push(fake_stream_of(stream), t);
}

static void run_attention(struct fake_stream *s, struct fake_task *t)
{
    map_bytes(t);
    s->base_ops->attention(s->base, dev(t->p[0]), &t->kv, dev(t->p[1]), &t->g, &t->map);
}

static void attention(struct kern_stream *stream, void *out, const struct kern_kv *kv,
                      const float *qkv, const struct kern_qkv *g, const struct kern_rows_map *map)
{
    struct fake_task *t = fake_task_new(run_attention);

    t->p[0] = out;
    t->kv = *kv;
    t->p[1] = (void *)(uintptr_t)qkv;
    t->g = *g;
    t->map = *map;
    fake_push(fake_stream_of(stream), t);
}

/* ---- scans ---- */

static void scan(struct kern_stream *s UNUSED, const float *logits UNUSED, uint32_t id0 UNUSED,
                 uint32_t n_ids UNUSED, const struct kern_sample *params UNUSED,
                 struct kern_scan *out UNUSED)
{
    FAKE_CHECK(false, "the scan that waits is not for devices: scan_rows");
}

static void run_scan_rows(struct fake_stream *s, struct fake_task *t)
{
    struct kern_ops base = *s->base_ops;

    base.scan_rows = NULL;
    const struct kern_adjusts adjusts = { t->p[3], t->p[4] };
    kern_scan_rows(&base, s->base, dev(t->p[0]), t->u[0], t->u[1], t->u[2], t->p[1], adjusts,
                   t->p[2]);
}

static void scan_rows(struct kern_stream *stream, float *logits, uint32_t id0, uint32_t n_ids,
                      uint32_t n_rows, const struct kern_scan_row *rows,
                      struct kern_adjusts adjusts, void *flat)
{
    struct fake_task *t = fake_task_new(run_scan_rows);

    FAKE_CHECK(fake_is_pinned(rows) && fake_is_pinned(flat), "scan_rows without pinned memory");
    FAKE_CHECK(adjusts.entries == NULL ||
                   (fake_is_pinned(adjusts.entries) && fake_is_pinned(adjusts.saved)),
               "scan_rows: adjustments without pinned memory");
    t->p[0] = logits;
    t->p[1] = (void *)(uintptr_t)rows;
    t->p[2] = flat;
    t->p[3] = (void *)(uintptr_t)adjusts.entries;
    t->p[4] = adjusts.saved;
    t->u[0] = id0;
    t->u[1] = n_ids;
    t->u[2] = n_rows;
    fake_push(fake_stream_of(stream), t);
}

/* ---- one step behind the other ---- */

static void run_pick(struct fake_stream *s UNUSED, struct fake_task *t)
{
    struct kern_cand *best = dev(t->p[0]);
    const struct kern_scan_row *rows = t->p[1];

    for (uint32_t i = 0; i < t->u[1]; i++) {
        struct kern_scan scan;
        best[i] = (struct kern_cand){ -INFINITY, UINT32_MAX };
        if (t->u[0] != 0 && rows[i].params.n_cand != 0) {
            scan_flat_load((char *)t->p[2] + rows[i].flat_offset, &rows[i].params, t->u[0], &scan);
            best[i] = rows[i].params.gumbel_all ? scan.gumbel : scan.cand[0];
        }
    }
}

static void pick(struct kern_stream *stream, struct kern_cand *best,
                 const struct kern_scan_row *rows, const void *flat, uint32_t n_ids,
                 uint32_t n_rows)
{
    struct fake_task *t = fake_task_new(run_pick);

    FAKE_CHECK(fake_is_pinned(rows) && fake_is_pinned(flat), "pick without pinned memory");
    t->p[0] = best;
    t->p[1] = (void *)(uintptr_t)rows;
    t->p[2] = (void *)(uintptr_t)flat;
    t->u[0] = n_ids;
    t->u[1] = n_rows;
    fake_push(fake_stream_of(stream), t);
}

static void run_feed(struct fake_stream *s UNUSED, struct fake_task *t)
{
    uint32_t *tokens = dev(t->p[0]);
    const uint32_t *from = dev(t->p[1]);
    const struct kern_cand *best = dev(t->p[2]);

    for (uint32_t i = 0; i < t->u[2]; i++) {
        if (from[i] == 0) {
            continue;
        }
        struct kern_cand first = best[from[i] - 1];
        for (uint32_t slice = 1; slice < t->u[0]; slice++) {
            const struct kern_cand c = best[(size_t)slice * t->u[1] + from[i] - 1];
            first = cand_before(c, first) ? c : first;
        }
        tokens[i] = first.id;
    }
}

static void feed(struct kern_stream *stream, uint32_t *tokens, const uint32_t *from,
                 const struct kern_cand *best, uint32_t n_slices, uint32_t stride, uint32_t n_rows)
{
    struct fake_task *t = fake_task_new(run_feed);

    t->p[0] = tokens;
    t->p[1] = (void *)(uintptr_t)from;
    t->p[2] = (void *)(uintptr_t)best;
    t->u[0] = n_slices;
    t->u[1] = stride;
    t->u[2] = n_rows;
    fake_push(fake_stream_of(stream), t);
}

/* ---- the table ---- */

const struct kern_ops *fake_device_ops(const struct kern_ops *base, enum fake_mode mode)
{
    static struct kern_ops ops;

    fake_queue_begin(base, mode);
    ops = *base;
    ops.name = "fake";
    ops.on_device = true;
    fake_queue_fill(&ops);
    fake_peer_fill(&ops);
    ops.copy_in = copy_in;
    ops.copy_in_later = copy_in_later;
    ops.copy_out = copy_out;
    ops.mat_pack = mat_pack;
    ops.embed_pack = embed_pack;
    ops.embed = embed;
    ops.rmsnorm = rmsnorm;
    ops.gemm = gemm;
    ops.add_bias = add_bias;
    ops.add = add;
    ops.qk_norm = qk_norm;
    ops.rope = rope;
    ops.kv_store = kv_store;
    ops.attention = attention;
    ops.silu_mul = silu_mul;
    ops.gather = gather;
    ops.scan = scan;
    ops.scan_rows = scan_rows;
    ops.pick = pick;
    ops.feed = feed;
    return &ops;
}
