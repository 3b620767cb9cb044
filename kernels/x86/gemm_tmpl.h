/* kernels/x86/gemm_tmpl.h - products over packed weights (kernels/layout.h). A template: needs
 * vec_*.h and ISA_FN(name) before it.
 *
 * Work is cut by output columns; by rows of x only when there are too few columns. A thread walks
 * its panels in memory order; for each it takes up to GEMM_ROWS rows, leaf by leaf, some steps at
 * a time (so that a panel's piece stays in cache over all row tiles), tile by tile. Sums rest in
 * `level` buffers between segments: they continue where they stopped, so no cut is visible.
 *
 * Leaves: the finished sum of leaf i waits at level popcount(i) until its sibling is done (a binary
 * counter): exactly the tree over leaf indices. Level 0 is y itself where the panel is whole.
 *
 * Bytes moved for few rows: the weights once, K * N * 2 (bf16). */
#include "base/compiler.h"
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/x86/tile_kinds.h"
#include "kernels/x86/x86.h"

/* Steps taken at a time, for all row tiles: few rows want a piece of the panel (16 KiB) that stays
 * in the first-level cache beside x; many want sums to be loaded and stored seldom (128 KiB, second
 * level). Measured: kernels/README.md. */
enum { K_SEG_FEW = 64, K_SEG_MANY = 512, FEW_ROWS = 32 };

struct gemm_job {
    float *y;
    const char *x;
    const struct kern_mat *w;
    size_t n_steps, x_stride; /* of a panel; bytes of a row of x */
    struct kern_stream *s;
    uint32_t n_rows;
};

struct gemm_panel {
    const char *w;
    uint32_t n0, width, n_valid; /* outputs [n0, n0 + n_valid); width 64 or 16 */
};

struct level {
    float *at;
    size_t stride;
};

static void gemm_tile(const struct gemm_job *job, const struct tile_args *t, uint32_t rows,
                      uint32_t wide)
{
    if (job->w->fmt == KERN_BF16) {
        tile_bf16(t, rows, wide);
    } else {
        tile_f32(t, rows, wide);
    }
}

/* A leaf's odd last input, as a pair with zero. */
static void gemm_odd_step(const struct tile_args *t, uint32_t rows, uint32_t wide)
{
    struct tile_args one = *t;

    one.n_steps = 1;
    one.fresh = false;
    one.ahead = NULL;
    for (uint32_t r = 0; r < rows; r++) {
        struct bf16_pair pair = { { 0, 0 } };

        memcpy(&pair.e[0], (const char *)t->x + r * t->x_stride, sizeof pair.e[0]);
        one.x = &pair;
        one.acc = t->acc + r * t->acc_stride;
        tile_bf16(&one, 1, wide);
    }
}

/* dst[rows, width] = one leaf of the panel, whose first step is at w. Returns behind its last. */
static const char *gemm_leaf(const struct gemm_job *job, const struct gemm_panel *p,
                             struct level dst, uint32_t row0, uint32_t rows, uint32_t leaf,
                             const char *w)
{
    const bool pairs = job->w->fmt == KERN_BF16;
    const uint32_t k = job->w->leaf[leaf + 1] - job->w->leaf[leaf];
    const uint32_t n_steps = pairs ? k / 2 : k; /* whole ones */
    const uint32_t seg = rows <= FEW_ROWS ? K_SEG_FEW : K_SEG_MANY;
    struct tile_args t = {
        .acc = dst.at,
        .acc_stride = dst.stride,
        .x = job->x + row0 * job->x_stride + (size_t)job->w->leaf[leaf] * (pairs ? 2 : 4),
        .x_stride = job->x_stride,
        .w = w,
        .w_stride = p->width * 4u,
        .fresh = true,
    };

    for (uint32_t step = 0; step < n_steps || t.fresh; step += t.n_steps) {
        t.n_steps = MIN(n_steps - step, seg);
        t.ahead = p->width == PANEL ? t.w + t.n_steps * t.w_stride : NULL;
        gemm_tile(job, &t, rows, p->width / 16);
        t.x = (const char *)t.x + (size_t)t.n_steps * 4;
        t.w += t.n_steps * t.w_stride;
        t.fresh = false;
    }
    if (pairs && k % 2 != 0) {
        gemm_odd_step(&t, rows, p->width / 16);
        t.w += t.w_stride;
    }
    return t.w;
}

static void gemm_level_add(struct level dst, struct level src, uint32_t rows, uint32_t width)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < width; v += 16) {
            float *a = dst.at + r * dst.stride + v;

            vf_store(a, vf_add(vf_load(a), vf_load(src.at + r * src.stride + v)));
        }
    }
}

static void gemm_block(const struct gemm_job *job, const struct gemm_panel *p, uint32_t row0,
                       uint32_t rows, float *scratch)
{
    struct level levels[8];
    const char *w = p->w;
    uint32_t depth = 0;
    float *y = job->y + (size_t)row0 * job->w->n + p->n0;

    for (uint32_t i = 0; i < 7; i++) {
        levels[i] = (struct level){ scratch + (size_t)i * GEMM_ROWS * PANEL, PANEL };
    }
    if (p->n_valid == p->width) {
        levels[0] = (struct level){ y, job->w->n };
    }
    for (uint32_t leaf = 0; leaf < job->w->n_leaves; leaf++) {
        w = gemm_leaf(job, p, levels[depth], row0, rows, leaf, w);
        depth++;
        for (uint32_t i = leaf; i & 1; i >>= 1) {
            depth--;
            gemm_level_add(levels[depth - 1], levels[depth], rows, p->width);
        }
    }
    for (uint32_t r = 0; p->n_valid < p->width && r < rows; r++) {
        vf_store_n(y + (size_t)r * job->w->n, vf_load(scratch + (size_t)r * PANEL), p->n_valid);
    }
}

static void gemm_part(void *arg, uint32_t part, uint32_t n_parts)
{
    const struct gemm_job *job = arg;
    const uint32_t n = job->w->n;
    const bool by_rows = n / PANEL < 2 * n_parts && job->n_rows >= 16 * n_parts;
    struct team_range cols = { 0, n }, rows = { 0, job->n_rows };
    float *scratch = stream_scratch(job->s, part);

    if (by_rows) {
        rows = team_cut(job->n_rows, 12, part, n_parts);
    } else {
        cols = team_cut(n, PANEL, part, n_parts);
    }
    for (uint32_t n0 = cols.begin; n0 < cols.end;) {
        const uint32_t width = n0 / PANEL < n / PANEL ? PANEL : PANEL_TAIL;
        const struct gemm_panel p = { mat_lane(job->w, job->n_steps, n0).base, n0, width,
                                      MIN(width, n - n0) };

        for (uint32_t r = rows.begin; r < rows.end; r += GEMM_ROWS) {
            gemm_block(job, &p, r, MIN(rows.end - r, (uint32_t)GEMM_ROWS), scratch);
        }
        n0 += width;
    }
}

static void ISA_FN(gemm)(struct kern_stream *s, float *y, const void *x, const struct kern_mat *w,
                         uint32_t n_rows)
{
    struct gemm_job job = { y, x, w, mat_steps(w), (size_t)w->k * fmt_bytes(w->fmt), s, n_rows };

    stream_run(s, gemm_part, &job, (size_t)n_rows * w->n * w->k);
}

void ISA_FN(x86_gemm)(struct kern_ops *ops)
{
    ops->gemm = ISA_FN(gemm);
}
