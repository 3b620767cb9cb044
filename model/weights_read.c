/* model/weights_read.c - bytes of a tensor into memory: weights_read of weights.h.
 *
 * Three ways, by the shape of the box (row pitch = bytes of a whole row):
 *
 *   whole rows            one run of bytes; read in pieces that end on multiples of PIECE_BYTES of
 *                         the file, so that striped file systems see whole stripes
 *   columns, wide (>= 64 KiB) or of very long rows    a read per row
 *   columns, narrow       whole rows through a bounce buffer, and the columns cut out: below about
 *                         64 KiB a seek costs more than the bytes it saves */
#include "model/weights_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((uint64_t)8 << 20)
enum { COLUMN_BYTES_MIN = 64 << 10, BOUNCE_BYTES = 4 << 20 };

/* The box in bytes. */
struct cut {
    uint32_t i_file;
    uint64_t begin; /* of row row0, column col0 in the file */
    uint64_t pitch; /* from a row to the next, in the file */
    uint64_t width; /* of a row of the box */
    uint64_t n_rows;
};

static status read_run(const struct weights *w, uint32_t i_file, uint64_t begin, uint64_t bytes,
                       char *dst, struct err *err)
{
    uint64_t at = begin;

    while (at < begin + bytes) {
        const uint64_t stop = MIN((at / PIECE_BYTES + 1) * PIECE_BYTES, begin + bytes);
        const status st = weights_pread(w, i_file, at, dst + (at - begin), stop - at, err);
        if (st != ST_OK) {
            return st;
        }
        at = stop;
    }
    return ST_OK;
}

static status read_each_row(const struct weights *w, const struct cut *c, char *dst,
                            struct err *err)
{
    for (uint64_t row = 0; row < c->n_rows; row++) {
        const status st = weights_pread(w, c->i_file, c->begin + row * c->pitch,
                                        dst + row * c->width, c->width, err);
        if (st != ST_OK) {
            return st;
        }
    }
    return ST_OK;
}

static status read_and_cut(const struct weights *w, const struct cut *c, char *dst,
                           uint64_t *read_p, struct err *err)
{
    const uint64_t rows_max = BOUNCE_BYTES / c->pitch; /* at least 1, see weights_read */
    char *bounce = malloc(BOUNCE_BYTES);
    status st = ST_OK;

    if (bounce == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for a read buffer of %d bytes", w->dir,
                       BOUNCE_BYTES);
    }
    for (uint64_t row = 0; row < c->n_rows && st == ST_OK; row += rows_max) {
        const uint64_t n = MIN(rows_max, c->n_rows - row);
        const uint64_t bytes = (n - 1) * c->pitch + c->width;

        st = weights_pread(w, c->i_file, c->begin + row * c->pitch, bounce, bytes, err);
        for (uint64_t i = 0; i < n && st == ST_OK; i++) {
            memcpy(dst + (row + i) * c->width, bounce + i * c->pitch, (size_t)c->width);
        }
        *read_p += bytes;
    }
    free(bounce);
    return st;
}

status weights_read(const struct weights *w, const struct weights_tensor *t,
                    const struct weights_box *box, void *dst, uint64_t *read_p, struct err *err)
{
    const uint64_t size = safetensors_dtype_bytes(t->dtype);
    const uint64_t rows = t->n_dims == 2 ? t->shape[0] : 1;
    const uint64_t cols = t->n_dims == 2 ? t->shape[1] : t->n_dims == 1 ? t->shape[0] : 1;
    uint64_t bytes_read = 0;
    status st;

    if (t->n_dims > 2) {
        return err_set(err, ST_ERR_ARG, "tensor \"%.128s\" has %u dimensions, not 0 to 2", t->name,
                       t->n_dims);
    }
    if (box->row0 > rows || box->n_rows > rows - box->row0 || box->col0 > cols ||
        box->n_cols > cols - box->col0) {
        return err_set(err, ST_ERR_ARG,
                       "tensor \"%.128s\" is %" PRIu64 " x %" PRIu64 "; rows %" PRIu64 " + %" PRIu64
                       ", columns %" PRIu64 " + %" PRIu64 " are outside",
                       t->name, rows, cols, box->row0, box->n_rows, box->col0, box->n_cols);
    }
    if (box->n_rows == 0 || box->n_cols == 0) {
        return ST_OK;
    }
    const struct cut c = { .i_file = t->i_file,
                           .begin = t->offset + (box->row0 * cols + box->col0) * size,
                           .pitch = cols * size,
                           .width = box->n_cols * size,
                           .n_rows = box->n_rows };
    if (c.width == c.pitch || c.n_rows == 1) {
        bytes_read = c.n_rows * c.width;
        st = read_run(w, c.i_file, c.begin, bytes_read, dst, err);
    } else if (c.width >= COLUMN_BYTES_MIN || c.pitch > BOUNCE_BYTES) {
        bytes_read = c.n_rows * c.width;
        st = read_each_row(w, &c, dst, err);
    } else {
        st = read_and_cut(w, &c, dst, &bytes_read, err);
    }
    if (st == ST_OK && read_p != NULL) {
        *read_p += bytes_read;
    }
    return st;
}
