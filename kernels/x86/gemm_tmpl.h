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
 * fp8 goes group by group: few rows take the codes as they lie, in taller tiles, so that a code is
 * widened once for 12 rows; more rows have a group's codes turned into bf16 pairs once (16 KiB of
 * scratch) and then the bf16 tile over them. Which, changes
 * no bit: a group's sum is one chain either way.
 *
 * Bytes moved for few rows: the weights once, K * N * 2 (bf16), K * N * 33 / 32 (fp8). */
#include "base/compiler.h"
#include "kernels/cpu.h"
#include "kernels/layout.h"
#include "kernels/x86/tile_kinds.h"
#include "kernels/x86/x86.h"

#define TILE_NAME    e4m3
#define TILE_W       vp
#define TILE_LOAD(p) vp_load_e4m3(p)
#define TILE_LANE    32
#define TILE_LINES   2
#if VEC_TILE_WIDE == 4
#define TILE_TALL
#endif
#define TILE_X              struct bf16_pair
#define TILE_DOT(acc, x, w) vp_dot(acc, x, w)
#define TILE_SET1(p)        pair_set1(p)
#include "kernels/x86/tile.h"

/* Steps taken at a time, for all row tiles: few rows want a piece of the panel (16 KiB) that stays
 * in the first-level cache beside x; many want sums to be loaded and stored seldom (128 KiB, second
 * level). Measured: kernels/README.md. */
enum { K_SEG_FEW = 64, K_SEG_MANY = 512, FEW_ROWS = 32 };

/* fp8: up to so many rows codes are widened in registers. More would widen them twice. */
enum { TALL_ROWS = 12 };

struct gemm_job {
    float *y;
    const char *x;
    const struct kern_mat *w;
    size_t output_bytes, x_stride; /* of an output of a panel; of a row of x */
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

/* A leaf of bf16 or f32. */
static const char *gemm_leaf_plain(const struct gemm_job *job, const struct gemm_panel *p,
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

/* ---- fp8 ---- */

static void gemm_unpack(const char *codes, uint32_t n_steps, uint32_t width, char *pairs)
{
    const size_t n = (size_t)n_steps * width * 2;

    for (size_t at = 0; at < n; at += 32) { /* 16 pairs */
        _mm_prefetch(codes + at + 8192, _MM_HINT_T0);
        vp_store(pairs + 2 * at, vp_load_e4m3(codes + at));
    }
}

/* leaf = fma(sum, scale, leaf), or from +0. */
static void gemm_level_scale(struct level leaf, struct level sum, const float *scales, bool fresh,
                             uint32_t rows, uint32_t width)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t v = 0; v < width; v += 16) {
            float *a = leaf.at + r * leaf.stride + v;
            const vf from = fresh ? vf_zero() : vf_load(a);

            vf_store(a, vf_fma(vf_load(sum.at + r * sum.stride + v), vf_load(scales + v), from));
        }
    }
}

/* dst = fma(sum of one group of `n` inputs, scale, dst); the group is at w, its inputs at t->x. */
static void gemm_group(const struct gemm_panel *p, struct tile_args *t, uint32_t rows, uint32_t n,
                       const char *w, float *scratch)
{
    const float *scales = (const float *)(const void *)w;
    const struct level dst = { t->acc, t->acc_stride };
    const struct level odd = { scratch + SCRATCH_ODD, PANEL };
    const bool fresh = t->fresh;

    t->n_steps = n / 2;
    t->scale = scales;
    if (n % 2 != 0) { /* the sum is finished by its odd step, and scaled after that */
        t->scale = NULL;
        t->fresh = true;
        t->acc = odd.at;
        t->acc_stride = odd.stride;
    }
    t->w = w + p->width * sizeof(float);
    t->w_stride = p->width * 2u;
    t->ahead = p->width == PANEL ? t->w + t->n_steps * t->w_stride : NULL;
    if (rows <= VEC_TILE_ROWS && n % 2 == 0) {
        tile_e4m3(t, rows, p->width / 16);
#if VEC_TILE_WIDE == 4
    } else if (rows <= TALL_ROWS && n % 2 == 0 && p->width == PANEL) {
        tile_tall_e4m3(t, rows);
#endif
    } else {
        gemm_unpack(t->w, (n + 1) / 2, p->width, (char *)(scratch + SCRATCH_PAIRS));
        t->w = (const char *)(scratch + SCRATCH_PAIRS);
        t->w_stride = p->width * 4u;
        t->ahead = NULL;
        tile_bf16(t, rows, p->width / 16);
    }
    t->x = (const char *)t->x + (size_t)(n / 2) * 4;
    if (n % 2 != 0) {
        t->w += t->n_steps * t->w_stride;
        gemm_odd_step(t, rows, p->width / 16);
        gemm_level_scale(dst, odd, scales, fresh, rows, p->width);
        t->x = (const char *)t->x + 2;
        t->acc = dst.at;
        t->acc_stride = dst.stride;
    }
    t->fresh = false;
}

static const char *gemm_leaf_fp8(const struct gemm_job *job, const struct gemm_panel *p,
                                 struct level dst, uint32_t row0, uint32_t rows, uint32_t leaf,
                                 const char *w, float *scratch)
{
    struct tile_args t = {
        .acc = dst.at,
        .acc_stride = dst.stride,
        .x = job->x + row0 * job->x_stride + (size_t)job->w->leaf[leaf] * 2,
        .x_stride = job->x_stride,
        .fresh = true,
    };

    for (uint32_t k = job->w->leaf[leaf], end; k < job->w->leaf[leaf + 1]; k = end) {
        end = kern_group_end(job->w, leaf, k);
        gemm_group(p, &t, rows, end - k, w, scratch);
        w += p->width * (4u + 2u * mat_steps(KERN_FP8, end - k));
    }
    for (uint32_t r = 0; t.fresh && r < rows; r++) { /* a leaf without inputs */
        memset(dst.at + r * dst.stride, 0, p->width * sizeof(float));
    }
    return w;
}

/* dst[rows, width] = one leaf of the panel, whose first step is at w. Returns behind its last. */
static const char *gemm_leaf(const struct gemm_job *job, const struct gemm_panel *p,
                             struct level dst, uint32_t row0, uint32_t rows, uint32_t leaf,
                             const char *w, float *scratch)
{
    return job->w->fmt == KERN_FP8 ? gemm_leaf_fp8(job, p, dst, row0, rows, leaf, w, scratch)
                                   : gemm_leaf_plain(job, p, dst, row0, rows, leaf, w);
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
        w = gemm_leaf(job, p, levels[depth], row0, rows, leaf, w, scratch);
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
        const struct gemm_panel p = { mat_panel(job->w, job->output_bytes, n0).base, n0, width,
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
    struct gemm_job job = { y, x,     w, mat_output_bytes(w), (size_t)w->k * fmt_bytes(w->fmt),
                            s, n_rows };

    stream_run(s, gemm_part, &job, (size_t)n_rows * w->n * w->k);
}

void ISA_FN(x86_gemm)(struct kern_ops *ops)
{
    ops->gemm = ISA_FN(gemm);
}
