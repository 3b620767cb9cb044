/* worker/shard_quant.h - between a file's rows and packing where one of them is fp8.
 *
 *   file            matrix         what happens to a piece of rows
 *   F8_E4M3         fp8            codes as they are, scales of the file spread over groups
 *   f32, f16, bf16  fp8            quantised (kernels/quant.h)
 *   F8_E4M3         f32, bf16      code times scale in f32, which packing rounds
 *
 * Refused with the tensor's name: a NaN, and for the second line a weight that is not finite or a
 * checkpoint whose config.json says it is fp8 already (its author left that matrix alone). */
#ifndef WORKER_SHARD_QUANT_H
#define WORKER_SHARD_QUANT_H

#include "kernels/kern.h"
#include "model/weights.h"

/* One tensor on its way. Zero it first, but for the borrowed fields. */
struct shard_quant {
    const struct weights *weights;   /* borrowed */
    const struct weights_tensor *t;  /* borrowed */
    const struct model_quant *quant; /* borrowed: of the checkpoint */
    const struct kern_mat *mat;      /* borrowed; NULL: an embedding */
    struct weights_scale scale;      /* of an F8 tensor */
    float *file_scales;              /* owned: those that a piece needs */
    float *scales;                   /* owned: [rows, groups] of a piece */
    uint64_t n_file_scales, n_scales;
};

/* Is there anything to do? If not, rows go from the file to packing as they are. */
bool shard_quant_is_needed(const struct shard_quant *q);
/* Finds the scales. ST_ERR_UNSUPPORTED, ST_ERR_FORMAT, ST_ERR_NOT_FOUND. */
status shard_quant_begin(struct shard_quant *q, struct err *err);
/* Bytes of an element after conversion: 1 or 4. */
uint32_t shard_quant_bytes(const struct shard_quant *q);
/* `raw` is rows [box->row0, + n_rows) x columns of the tensor as the file has them, dense. Writes
 * n_rows * n_cols elements to `out` (may be raw where the file and the matrix are fp8) and says what
 * they are; rows_p->row0 is the caller's. rows_p->scales is valid until the next call. */
status shard_quant_rows(struct shard_quant *q, const struct weights_box *box, const void *raw,
                        void *out, struct kern_rows *rows_p, struct err *err);
void shard_quant_end(struct shard_quant *q); /* zeroed storage is fine */

#endif
