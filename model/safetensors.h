/* model/safetensors.h - the header of one .safetensors file: private to this folder.
 *
 *   ┌────────────┬──────────────────────────────┬───────────────────────────────┐
 *   │ u64 LE: n  │ n bytes of JSON              │ data, offsets count from here │
 *   └────────────┴──────────────────────────────┴───────────────────────────────┘
 *   { "name": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12] }, "__metadata__": ... }
 *
 * Everything a header claims is held against the real length of the file before it is believed:
 * offsets in order and inside, size equal to shape times element size, no two tensors sharing a
 * byte, no name twice. A dtype or rank that Gantry cannot read is remembered, not refused: only who
 * needs that tensor has a reason to complain. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "model/desc.h"
#include "model/weights.h"

#include <stddef.h>

#define SAFETENSORS_HEADER_MAX ((uint64_t)100 * 1000 * 1000) /* the format's own limit */
enum {
    SAFETENSORS_PREFIX_BYTES = 8,
    SAFETENSORS_TENSORS_MAX = 1 << 20,
    SAFETENSORS_NAME_MAX = 1024,
    SAFETENSORS_DTYPE_BYTES = 16
};

struct safetensor {
    char *name;                               /* owned */
    char dtype_name[SAFETENSORS_DTYPE_BYTES]; /* as the file spells it, cut to fit */
    bool readable;                    /* a model_dtype, at most WEIGHTS_RANK_MAX dimensions */
    enum model_dtype dtype;           /* if readable */
    uint32_t n_dims;                  /* may exceed WEIGHTS_RANK_MAX if not readable */
    uint64_t shape[WEIGHTS_RANK_MAX]; /* the first ones */
    uint64_t begin, end;              /* bytes of the file (not of the data part) */
};

struct safetensors {
    uint32_t n;
    struct safetensor *tensors; /* [n], by begin; owned */
};

/* Length of the JSON from the first 8 bytes, checked against the file. `file` is for sentences. */
status safetensors_header_bytes(const char *file, const unsigned char prefix[8],
                                uint64_t file_bytes, uint64_t *header_bytes_p, struct err *err);
/* Read the JSON. On success the caller owns what is in *st_p (safetensors_fini). */
status safetensors_parse(const char *file, const char *json, size_t json_bytes, uint64_t file_bytes,
                         struct safetensors *st_p, struct err *err);
void safetensors_fini(struct safetensors *st); /* zeroed storage is fine */

/* Bytes of one element. */
uint32_t safetensors_dtype_bytes(enum model_dtype dtype);
const char *safetensors_dtype_name(enum model_dtype dtype);
/* "[4096, 128]" */
enum { SHAPE_TEXT_BYTES = 96 };
void safetensors_shape_text(uint32_t n_dims, const uint64_t *shape, char text[SHAPE_TEXT_BYTES]);

#endif
