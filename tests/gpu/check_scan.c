/* tests/gpu/check_scan.c - from logits to flat scans: every byte as the CPU's specification has it,
 * with ties, NaN, infinities and ids that end inside a block; and the same with penalties and
 * biases, after which the logits are what they were. */
#include "kernels/sample.h"
#include "tests/gpu/check.h"

#include <math.h>

enum { ROWS = 5 };

static void fill(struct check *c, float *x, uint32_t n_ids, uint32_t kind)
{
    for (uint32_t i = 0; i < n_ids; i++) {
        x[i] = check_normal(c) * 4.0f;
        if (kind == 1) {
            x[i] = (float)check_between(c, 0, 6); /* many ties */
        } else if (kind == 2 && check_u32(c) % 8 == 0) {
            static const float odd[] = { NAN, -INFINITY, 0.0f, -0.0f };

            x[i] = odd[check_u32(c) % 4];
        } else if (kind == 3) {
            x[i] = -INFINITY;
        }
    }
}

/* Adjustments of a row: every 7th id counted, every 11th biased, those of the neighbours too. */
static uint32_t fill_adjusts(struct check *c, uint32_t n_ids, uint32_t id0, uint32_t most,
                             struct kern_scan_row *row, struct kern_adjust *entries)
{
    uint32_t n = 0;

    for (uint32_t id = id0 > 100 ? id0 - 100 : 0; id < id0 + n_ids + 100 && n < most / 2; id += 7) {
        entries[n++] = (struct kern_adjust){ .id = id, .n_made = check_between(c, 0, 9) };
    }
    row->n_counts = n;
    for (uint32_t id = id0 + 3; id < id0 + n_ids + 50 && n < most; id += 11) {
        entries[n++] =
            (struct kern_adjust){ .id = id, .bias = (float)check_between(c, 0, 8) * 0.75f - 3.0f };
    }
    row->n_biases = n - row->n_counts;
    row->n_raw = 1 + check_between(c, 0, 19);
    row->penalties = (struct kern_penalties){ 1.3f, 0.6f, -0.2f };
    return n;
}

enum { ENTRIES_MAX = 700 }; /* of a row */

/* What scan_rows reads and writes besides the logits; host_alloc memory. */
struct pinned {
    struct kern_scan_row rows[ROWS];
    struct kern_adjust entries[ROWS * ENTRIES_MAX];
    float saved[ROWS * ENTRIES_MAX];
};

static void scan_both(struct check *c, struct pinned *p, float *x, uint32_t n_ids, uint32_t id0,
                      struct kern_adjusts adjusts, char *flat, char *want, size_t bytes,
                      const char *name)
{
    float *dx = check_up(c, x, (size_t)ROWS * n_ids * 4);
    float *back = check_host((size_t)ROWS * n_ids * 4);

    memset(flat, 0x5a, bytes);
    memset(want, 0x5a, bytes);
    kern_scan_rows(c->ops, c->s, dx, id0, n_ids, ROWS, p->rows, adjusts, flat);
    c->ops->copy_out(c->s, back, dx, (size_t)ROWS * n_ids * 4);
    check_sync(c);
    kern_scan_rows(kern_ops_ref(), NULL, x, id0, n_ids, ROWS, p->rows, adjusts, want);
    check_equal(c, name, flat, want, bytes);
    check_equal(c, "  the logits are as they were", back, x, (size_t)ROWS * n_ids * 4);
    if (adjusts.entries == NULL) { /* the waiting call */
        const struct kern_sample *params = &p->rows[3].params;
        struct kern_scan one;

        scan_flat_bind(want, params, n_ids, &one);
        c->ops->scan(c->s, dx + (size_t)3 * n_ids, id0, n_ids, params, &one);
        scan_flat_finish(want, &one);
        check_equal(c, "  scan: the same", want, flat + p->rows[3].flat_offset,
                    scan_flat_bytes(params, n_ids));
    }
    check_drop(c, dx, (size_t)ROWS * n_ids * 4);
    free(back);
}

static void run(struct check *c, uint32_t n_ids, uint32_t id0)
{
    static const struct kern_sample requests[ROWS] = {
        { 1, 0, 5, 0.0f, 1, false },   { 77, 1, 9, 0.8f, 1, true }, { 5, 0, 2, 1.3f, 40, false },
        { 9, 2, 3, 0.7f, 1024, true }, { 3, 0, 3, 0.0f, 0, false }, /* skipped */
    };
    const size_t row_bytes = (65536 + (size_t)n_ids / KERN_VOCAB_BLOCK * 32) / 64 * 64;
    struct pinned *p;
    struct err err = ERR_INIT;
    char *flat, *want = check_host(row_bytes * ROWS);

    if (c->ops->host_alloc(c->s, sizeof *p, (void **)&p, &err) != ST_OK ||
        c->ops->host_alloc(c->s, row_bytes * ROWS, (void **)&flat, &err) != ST_OK) {
        check_true(c, err.text, false);
        return;
    }
    for (uint32_t kind = 0; kind < 4; kind++) {
        float *x = check_host((size_t)ROWS * n_ids * 4);

        for (uint32_t i = 0; i < ROWS; i++) {
            fill(c, x + (size_t)i * n_ids, n_ids, kind);
            p->rows[i] =
                (struct kern_scan_row){ .params = requests[i], .flat_offset = i * row_bytes };
        }
        scan_both(c, p, x, n_ids, id0, (struct kern_adjusts){ NULL, NULL }, flat, want,
                  row_bytes * ROWS, check_name("scan_rows of %u ids, kind %u", n_ids, kind));
        for (uint32_t i = 0, n = 0; i < ROWS - 1; i++) { /* one row stays as it is */
            p->rows[i].entry0 = n;
            n += i == 1 && kind == 2
                     ? 0
                     : fill_adjusts(c, n_ids, id0, ENTRIES_MAX, &p->rows[i], p->entries + n);
        }
        scan_both(c, p, x, n_ids, id0, (struct kern_adjusts){ p->entries, p->saved }, flat, want,
                  row_bytes * ROWS, check_name("  adjusted"));
        free(x);
    }
    c->ops->host_free(c->s, p, sizeof *p);
    c->ops->host_free(c->s, flat, row_bytes * ROWS);
    free(want);
}

void check_scan(struct check *c)
{
    run(c, 512, 0);
    run(c, 1024, 2048);
    run(c, c->quick ? 3001 : 32001, 1024);
    if (!c->quick) {
        run(c, 128256, 0);
    }
}
