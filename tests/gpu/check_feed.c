/* tests/gpu/check_feed.c - the token that the device takes from step to step is the one that the host
 * chooses from the same scans, over one slice of the vocabulary and several, with ties; and marks. */
#include "kernels/sample.h"
#include "tests/gpu/check.h"

#include <math.h>

enum { ROWS = 6, SLICES_MAX = 4, STRIDE = 8, IDS = 5000 };

static const struct sample_params params[ROWS] = {
    { .temperature = 0.0f, .top_p = 1.0f, .seed = 1 },
    { .temperature = 0.9f, .top_p = 1.0f, .seed = 77, .choice = 1 },
    { .temperature = 0.0f, .top_p = 1.0f, .n_logprobs = 5 },
    { .temperature = 1.7f, .top_p = 1.0f, .seed = 3, .n_logprobs = 2 },
    { .temperature = 0.0f, .top_p = 0.5f, .top_k = 3 },
    { .temperature = 0.0f, .top_p = 1.0f }, /* its scan is skipped */
};

struct slice {
    uint32_t id0, n_ids;
    struct kern_scan_row *rows; /* [ROWS] pinned */
    char *flat;                 /* pinned */
};

/* Whole blocks of ids, the last slice what is left; with four the third has none. */
static struct slice cut(uint32_t n_slices, uint32_t i)
{
    const uint32_t ends[5][5] = {
        { 0 }, { 0, IDS }, { 0, 2048, IDS }, { 0 }, { 0, 1024, 4096, 4096, IDS }
    };

    return (struct slice){ .id0 = ends[n_slices][i],
                           .n_ids = ends[n_slices][i + 1] - ends[n_slices][i] };
}

static struct kern_scan_row row_of(uint32_t i)
{
    return sample_row(&params[i], 9 + i, IDS, false);
}

/* The slice's scans and picks of x[ROWS, IDS]. */
static void scan_slice(struct check *c, struct slice *s, const float *x, struct kern_cand *best)
{
    float *part = check_host((size_t)ROWS * (s->n_ids + 1) * 4), *dx;
    size_t used = 0;

    for (uint32_t i = 0; i < ROWS; i++) {
        struct kern_scan_row row = row_of(i);

        memcpy(part + (size_t)i * s->n_ids, x + (size_t)i * IDS + s->id0, s->n_ids * sizeof(float));
        row.params.n_cand = i + 1 == ROWS ? 0 : row.params.n_cand;
        row.flat_offset = used;
        s->rows[i] = row;
        used += sample_row_bytes(&row, IDS);
    }
    dx = check_up(c, part, (size_t)ROWS * (s->n_ids + 1) * 4);
    if (s->n_ids != 0) {
        const struct kern_adjusts none = { NULL, NULL };
        kern_scan_rows(c->ops, c->s, dx, s->id0, s->n_ids, ROWS, s->rows, none, s->flat);
    }
    c->ops->pick(c->s, best, s->rows, s->flat, s->n_ids, ROWS);
    check_sync(c);
    check_drop(c, dx, 0);
    free(part);
}

/* What the host chooses of row i. */
static uint32_t choice(const struct slice *slices, uint32_t n_slices, uint32_t i)
{
    const struct kern_scan_row row = row_of(i);
    struct sample_slice parts[SLICES_MAX];
    struct sample_result r;
    uint32_t n = 0;

    for (uint32_t s = 0; s < n_slices; s++) {
        if (slices[s].n_ids != 0) {
            parts[n].id0 = slices[s].id0;
            parts[n].n_ids = slices[s].n_ids;
            sample_row_load(slices[s].flat + slices[s].rows[i].flat_offset, &row, &parts[n++]);
        }
    }
    sample_merge(parts, n, &params[i], &row, IDS, &r);
    return r.token;
}

static void run(struct check *c, uint32_t n_slices, bool ties)
{
    static const uint32_t from[ROWS + 2] = { 3, 0, 1, 5, 2, 4, 4, 0 };
    const size_t flat_bytes = (size_t)ROWS * 65536;
    float *x = check_floats(c, (size_t)ROWS * IDS, 3.0f);
    uint32_t given[ROWS + 2], want[ROWS + 2], got[ROWS + 2];
    struct slice slices[SLICES_MAX];
    struct err err = ERR_INIT;
    struct kern_cand *best = check_up(c, NULL, sizeof *best * STRIDE * n_slices);

    for (uint32_t i = 0; ties && i < ROWS * IDS; i++) {
        x[i] = roundf(x[i]);
    }
    for (uint32_t s = 0; s < n_slices; s++) {
        slices[s] = cut(n_slices, s);
        if (c->ops->host_alloc(c->s, sizeof(struct kern_scan_row) * ROWS, (void **)&slices[s].rows,
                               &err) != ST_OK ||
            c->ops->host_alloc(c->s, flat_bytes, (void **)&slices[s].flat, &err) != ST_OK) {
            check_true(c, err.text, false);
            return;
        }
        scan_slice(c, &slices[s], x, best + (size_t)s * STRIDE);
    }
    for (uint32_t i = 0; i < ROWS + 2; i++) {
        given[i] = check_u32(c);
        want[i] = from[i] == 0 ? given[i] : choice(slices, n_slices, from[i] - 1);
    }
    uint32_t *tokens = check_up(c, given, sizeof given), *df = check_up(c, from, sizeof from);
    c->ops->feed(c->s, tokens, df, best, n_slices, STRIDE, ROWS + 2);
    check_down(c, got, tokens, sizeof got);
    check_equal(c,
                check_name("feed, %u slices%s: the host's choice", n_slices, ties ? ", ties" : ""),
                got, want, sizeof got);
    for (uint32_t s = 0; s < n_slices; s++) {
        c->ops->host_free(c->s, slices[s].rows, 0);
        c->ops->host_free(c->s, slices[s].flat, flat_bytes);
    }
    check_drop(c, best, 0);
    check_drop(c, tokens, 0);
    check_drop(c, df, 0);
    free(x);
}

/* A mark is done when what was queued before it is, whatever is queued behind. */
static void run_marks(struct check *c)
{
    const size_t bytes = c->quick ? (size_t)1 << 16 : (size_t)32 << 20;
    uint32_t *pinned = NULL, *a = check_host(bytes);
    struct err err = ERR_INIT;
    void *mem = check_up(c, NULL, bytes);

    for (size_t i = 0; i < bytes / 4; i++) {
        a[i] = check_u32(c);
    }
    if (c->ops->host_alloc(c->s, bytes, (void **)&pinned, &err) != ST_OK) {
        check_true(c, err.text, false);
        return;
    }
    check_true(c, "mark: none yet is done", c->ops->mark_poll(c->s, 1, &err) == ST_OK);
    for (uint32_t i = 0; i < 4; i++) {
        c->ops->copy_in(c->s, mem, a, bytes);
        c->ops->copy_out(c->s, pinned, mem, bytes);
        c->ops->mark(c->s, i % KERN_MARKS);
        c->ops->copy_in(c->s, mem, a, bytes);
        while (i >= 2 && c->ops->mark_poll(c->s, i % KERN_MARKS, &err) == ST_BUSY) {
        }
        check_true(c, "mark: waited for",
                   c->ops->mark_wait(c->s, i % KERN_MARKS, &err) == ST_OK &&
                       memcmp(pinned, a, bytes) == 0);
        a[i] = ~a[i];
    }
    check_sync(c);
    c->ops->host_free(c->s, pinned, bytes);
    check_drop(c, mem, bytes);
    free(a);
}

void check_feed(struct check *c)
{
    for (uint32_t n = 1; n <= SLICES_MAX; n *= 2) {
        run(c, n, false);
        run(c, n, true);
    }
    run_marks(c);
}
