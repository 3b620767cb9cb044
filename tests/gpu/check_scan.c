/* tests/gpu/check_scan.c - from logits to flat scans: every byte as the CPU's specification has it,
 * with ties, NaN, infinities and ids that end inside a block. */
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

static void run(struct check *c, uint32_t n_ids, uint32_t id0)
{
    static const struct kern_sample requests[ROWS] = {
        { 1, 0, 5, 0.0f, 1, false },   { 77, 1, 9, 0.8f, 1, true }, { 5, 0, 2, 1.3f, 40, false },
        { 9, 2, 3, 0.7f, 1024, true }, { 3, 0, 3, 0.0f, 0, false }, /* skipped */
    };
    const size_t row_bytes = 65536 + (size_t)n_ids / KERN_VOCAB_BLOCK * 16;
    struct kern_scan_row *rows;
    struct err err = ERR_INIT;
    char *flat, *want = check_host(row_bytes * ROWS);

    if (c->ops->host_alloc(c->s, sizeof *rows * ROWS, (void **)&rows, &err) != ST_OK ||
        c->ops->host_alloc(c->s, row_bytes * ROWS, (void **)&flat, &err) != ST_OK) {
        check_true(c, err.text, false);
        return;
    }
    for (uint32_t kind = 0; kind < 4; kind++) {
        float *x = check_host((size_t)ROWS * n_ids * 4);

        for (uint32_t i = 0; i < ROWS; i++) {
            fill(c, x + (size_t)i * n_ids, n_ids, kind);
            rows[i] = (struct kern_scan_row){ requests[i], i * (row_bytes / 64 * 64) };
        }
        float *dx = check_up(c, x, (size_t)ROWS * n_ids * 4);

        memset(flat, 0x5a, row_bytes * ROWS);
        memset(want, 0x5a, row_bytes * ROWS);
        kern_scan_rows(c->ops, c->s, dx, id0, n_ids, ROWS, rows, flat);
        check_sync(c);
        kern_scan_rows(kern_ops_ref(), NULL, x, id0, n_ids, ROWS, rows, want);
        check_equal(c, check_name("scan_rows of %u ids, kind %u", n_ids, kind), flat, want,
                    row_bytes * ROWS);
        if (kind == 0) { /* the waiting call */
            struct kern_scan one;

            scan_flat_bind(want, &requests[3], n_ids, &one);
            c->ops->scan(c->s, dx + (size_t)3 * n_ids, id0, n_ids, &requests[3], &one);
            scan_flat_finish(want, &one);
            check_equal(c, "  scan: the same", want, flat + rows[3].flat_offset,
                        scan_flat_bytes(&requests[3], n_ids));
        }
        check_drop(c, dx, (size_t)ROWS * n_ids * 4);
        free(x);
    }
    c->ops->host_free(c->s, rows, sizeof *rows * ROWS);
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
