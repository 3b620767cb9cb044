/* kernels/pack.c - weights from file rows into the layout of kernels/layout.h, and sizes.
 *
 * Runs once at load, 16 outputs at a time so that reads are 16 streams and writes are whole cache
 * lines. f32 and f16 files are rounded to bf16 here (the only rounding of weights), or widened
 * exactly to f32. */
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/math.h"

#include <string.h>

/* Element i of a row that starts at `row`, which may be unaligned. */
static float src_f32(enum kern_src type, const char *row, size_t i)
{
    uint16_t h;
    float x;

    if (type == KERN_SRC_F32) {
        memcpy(&x, row + i * 4, 4);
        return x;
    }
    memcpy(&h, row + i * 2, 2);
    return type == KERN_SRC_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

static uint16_t src_bf16(enum kern_src type, const char *row, size_t i)
{
    uint16_t h;

    if (type == KERN_SRC_BF16) {
        memcpy(&h, row + i * 2, 2); /* bits as they are, NaN payloads too */
        return h;
    }
    return bf16_from_f32(src_f32(type, row, i));
}

static size_t src_bytes(enum kern_src type)
{
    return type == KERN_SRC_F32 ? 4 : 2;
}

static size_t mat_bytes(const struct kern_mat *mat)
{
    const size_t n_padded = ((size_t)mat->n + PANEL_TAIL - 1) / PANEL_TAIL * PANEL_TAIL;

    return n_padded * mat_steps(mat) * 4;
}

struct pack_job {
    struct kern_mat *mat;
    const struct kern_rows *rows;
    size_t n_steps;
};

/* One leaf of outputs [n0, n1), which lie in one run of 16. `step` is the leaf's first step. */
static void pack_leaf(const struct pack_job *job, uint32_t n0, uint32_t n1, uint32_t leaf,
                      size_t step)
{
    const struct kern_mat *mat = job->mat;
    const struct kern_rows *rows = job->rows;
    const size_t row_bytes = rows->ld * src_bytes(rows->type);
    const struct mat_lane lane = mat_lane(mat, job->n_steps, n0);
    const bool pairs = mat->fmt == KERN_BF16;

    for (uint32_t k = mat->leaf[leaf]; k < mat->leaf[leaf + 1]; k += pairs ? 2 : 1, step++) {
        char *dst = lane.base + step * lane.step_bytes;

        for (uint32_t n = n0; n < n1; n++, dst += 4) {
            const char *row = (const char *)rows->data + (n - rows->row0) * row_bytes;

            if (pairs) {
                uint16_t pair[2] = { src_bf16(rows->type, row, k), 0 };

                if (k + 1 < mat->leaf[leaf + 1]) {
                    pair[1] = src_bf16(rows->type, row, k + 1);
                }
                memcpy(dst, pair, 4);
            } else {
                const float x = src_f32(rows->type, row, k);

                memcpy(dst, &x, 4);
            }
        }
    }
}

static void pack_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct pack_job *job = arg;
    const uint32_t first = job->rows->row0, end = first + job->rows->n_rows;
    const uint32_t runs0 = first / PANEL_TAIL, runs1 = (end + PANEL_TAIL - 1) / PANEL_TAIL;
    const struct team_range cut = team_cut(runs1 - runs0, 1, part, n_parts);

    for (uint32_t run = runs0 + cut.begin; run < runs0 + cut.end; run++) {
        const uint32_t n0 = MAX(run * PANEL_TAIL, first), n1 = MIN((run + 1) * PANEL_TAIL, end);
        size_t step = 0;

        for (uint32_t leaf = 0; leaf < job->mat->n_leaves; leaf++) {
            pack_leaf(job, n0, n1, leaf, step);
            step += mat_leaf_steps(job->mat, leaf);
        }
    }
}

static void mat_pack(struct kern_stream *s, struct kern_mat *mat, const struct kern_rows *rows)
{
    struct pack_job job = { mat, rows, mat_steps(mat) };

    ASSERT(rows->row0 + rows->n_rows <= mat->n);
    ASSERT(mat->n_leaves >= 1 && mat->n_leaves <= KERN_LEAVES_MAX);
    ASSERT((mat->n_leaves & (mat->n_leaves - 1)) == 0);
    ASSERT(mat->leaf[0] == 0 && mat->leaf[mat->n_leaves] == mat->k);
    if (rows->n_rows != 0) {
        stream_run(s, pack_part, &job, (size_t)rows->n_rows * mat->k);
    }
}

static size_t embed_bytes(const struct kern_embed *e)
{
    return (size_t)e->n_rows * e->dim * fmt_bytes(e->fmt);
}

static void embed_pack(struct kern_stream *s, struct kern_embed *e, const struct kern_rows *rows)
{
    const size_t row_bytes = rows->ld * src_bytes(rows->type);

    (void)s;
    ASSERT(rows->row0 + rows->n_rows <= e->n_rows);
    for (uint32_t i = 0; i < rows->n_rows; i++) {
        const char *src = (const char *)rows->data + i * row_bytes;
        const size_t at = (size_t)(rows->row0 + i) * e->dim;

        for (uint32_t c = 0; c < e->dim; c++) {
            if (e->fmt == KERN_BF16) {
                ((uint16_t *)e->data)[at + c] = src_bf16(rows->type, src, c);
            } else {
                ((float *)e->data)[at + c] = src_f32(rows->type, src, c);
            }
        }
    }
}

static size_t kv_bytes(const struct kern_kv *kv)
{
    return (size_t)kv->n_blocks * kv->n_heads * kv_plane(kv) * fmt_bytes(kv->fmt);
}

void cpu_ops_pack(struct kern_ops *ops)
{
    ops->mat_bytes = mat_bytes;
    ops->mat_pack = mat_pack;
    ops->embed_bytes = embed_bytes;
    ops->embed_pack = embed_pack;
    ops->kv_bytes = kv_bytes;
}
