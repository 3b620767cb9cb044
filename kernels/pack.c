/* kernels/pack.c - weights from file rows into the layout of kernels/layout.h, and sizes.
 *
 * Runs once at load, 16 outputs at a time so that reads are 16 streams and writes are whole cache
 * lines. f32 and f16 files are rounded to bf16 here (the only rounding of weights), or widened
 * exactly to f32. */
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/src.h"

#include <string.h>

static uint16_t src_bf16(enum kern_src type, const char *row, size_t i)
{
    uint16_t h;

    if (type == KERN_SRC_BF16) {
        memcpy(&h, row + i * 2, 2); /* bits as they are, NaN payloads too */
        return h;
    }
    return bf16_from_f32(src_f32(type, row, i));
}

static size_t mat_bytes(const struct kern_mat *mat)
{
    const size_t n_padded = ((size_t)mat->n + PANEL_TAIL - 1) / PANEL_TAIL * PANEL_TAIL;

    return n_padded * mat_output_bytes(mat);
}

struct pack_job {
    struct kern_mat *mat;
    const struct kern_rows *rows;
    size_t output_bytes;
    uint32_t n_groups; /* fp8 */
};

/* One leaf of outputs [n0, n1), which lie in one run of 16. `base` is where the leaf begins in the
 * panel. */
static void pack_leaf(const struct pack_job *job, uint32_t n0, uint32_t n1, uint32_t leaf,
                      const struct mat_panel *p, char *base)
{
    const struct kern_mat *mat = job->mat;
    const struct kern_rows *rows = job->rows;
    const size_t row_bytes = rows->ld * src_bytes(rows->type);
    const bool pairs = mat->fmt == KERN_BF16;
    char *step = base + p->lane * 4u;

    for (uint32_t k = mat->leaf[leaf]; k < mat->leaf[leaf + 1]; k += pairs ? 2 : 1) {
        char *dst = step;

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
        step += p->width * 4u;
    }
}

/* The same in fp8; `group` is the number of the leaf's first group. */
static void pack_leaf_fp8(const struct pack_job *job, uint32_t n0, uint32_t n1, uint32_t leaf,
                          const struct mat_panel *p, char *base, uint32_t group)
{
    const struct kern_mat *mat = job->mat;
    const struct kern_rows *rows = job->rows;

    for (uint32_t k = mat->leaf[leaf], end; k < mat->leaf[leaf + 1]; k = end, group++) {
        end = kern_group_end(mat, leaf, k);
        for (uint32_t n = n0; n < n1; n++) {
            const size_t row = n - rows->row0;
            const uint8_t *src = (const uint8_t *)rows->data + row * rows->ld;
            char *dst = base + (p->lane + n - n0) * 4u;

            memcpy(dst, &rows->scales[row * job->n_groups + group], 4);
            dst = base + p->width * 4u + (p->lane + n - n0) * 2u;
            for (uint32_t i = k; i < end; i += 2, dst += p->width * 2u) {
                dst[0] = (char)src[i];
                dst[1] = i + 1 < end ? (char)src[i + 1] : 0;
            }
        }
        base += (size_t)p->width * (4 + 2 * mat_steps(KERN_FP8, end - k));
    }
}

/* Outputs [n0, n1) of one run of 16. */
static void pack_run(const struct pack_job *job, uint32_t n0, uint32_t n1)
{
    const struct mat_panel p = mat_panel(job->mat, job->output_bytes, n0);
    char *base = p.base;
    uint32_t group = 0;

    for (uint32_t leaf = 0; leaf < job->mat->n_leaves; leaf++) {
        if (job->mat->fmt == KERN_FP8) {
            pack_leaf_fp8(job, n0, n1, leaf, &p, base, group);
            group += kern_leaf_groups(job->mat, leaf);
        } else {
            pack_leaf(job, n0, n1, leaf, &p, base);
        }
        base += mat_leaf_bytes(job->mat, leaf) * p.width;
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

        pack_run(job, n0, n1);
    }
}

static void mat_pack(struct kern_stream *s, struct kern_mat *mat, const struct kern_rows *rows)
{
    struct pack_job job = { mat, rows, mat_output_bytes(mat), kern_mat_groups(mat) };

    ASSERT(rows->row0 + rows->n_rows <= mat->n);
    ASSERT((mat->fmt == KERN_FP8) == (rows->type == KERN_SRC_F8));
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
    ASSERT(rows->row0 + rows->n_rows <= e->n_rows && rows->type != KERN_SRC_F8);
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
