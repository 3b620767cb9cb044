/* model/safetensors.c - see safetensors.h. Opening files is weights.c. */
#include "model/safetensors.h"

#include "model/config_field.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bits, because of the formats below a byte. What the format defines beyond these is taken without
 * a size check, and is not readable. */
static const struct dtype_row {
    const char *name;
    uint32_t bits;
    bool readable;
    enum model_dtype dtype;
} dtypes[] = {
    { "F32", 32, true, MODEL_F32 },   { "F16", 16, true, MODEL_F16 },
    { "BF16", 16, true, MODEL_BF16 }, { .name = "F64", .bits = 64 },
    { .name = "I64", .bits = 64 },    { .name = "U64", .bits = 64 },
    { .name = "I32", .bits = 32 },    { .name = "U32", .bits = 32 },
    { .name = "I16", .bits = 16 },    { .name = "U16", .bits = 16 },
    { .name = "I8", .bits = 8 },      { .name = "U8", .bits = 8 },
    { .name = "BOOL", .bits = 8 },    { "F8_E4M3", 8, true, MODEL_F8 },
    { .name = "F8_E5M2", .bits = 8 },
};

uint32_t safetensors_dtype_bytes(enum model_dtype dtype)
{
    return dtype == MODEL_F32 ? 4 : dtype == MODEL_F8 ? 1 : 2;
}

const char *safetensors_dtype_name(enum model_dtype dtype)
{
    static const char *const names[MODEL_DTYPES] = {
        [MODEL_F32] = "F32", [MODEL_F16] = "F16", [MODEL_BF16] = "BF16", [MODEL_F8] = "F8_E4M3"
    };

    return names[dtype];
}

void safetensors_shape_text(uint32_t n_dims, const uint64_t *shape, char text[SHAPE_TEXT_BYTES])
{
    size_t len = (size_t)snprintf(text, SHAPE_TEXT_BYTES, "[");

    for (uint32_t i = 0; i < MIN(n_dims, (uint32_t)WEIGHTS_RANK_MAX); i++) {
        len += (size_t)snprintf(text + len, SHAPE_TEXT_BYTES - len, "%s%" PRIu64,
                                i == 0 ? "" : ", ", shape[i]);
    }
    snprintf(text + len, SHAPE_TEXT_BYTES - len, "%s]", n_dims > WEIGHTS_RANK_MAX ? ", ..." : "");
}

status safetensors_header_bytes(const char *file, const unsigned char prefix[8],
                                uint64_t file_bytes, uint64_t *header_bytes_p, struct err *err)
{
    uint64_t n = 0;

    for (int i = 7; i >= 0; i--) {
        n = n << 8 | prefix[i];
    }
    if (n > SAFETENSORS_HEADER_MAX) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: claims a header of %" PRIu64
                       " bytes, over the format's limit of %" PRIu64,
                       file, n, SAFETENSORS_HEADER_MAX);
    }
    if (file_bytes < SAFETENSORS_PREFIX_BYTES || n > file_bytes - SAFETENSORS_PREFIX_BYTES) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: claims a header of %" PRIu64 " bytes, the file has %" PRIu64
                       " (a download that broke off?)",
                       file, n, file_bytes);
    }
    *header_bytes_p = n;
    return ST_OK;
}

/* ---- one tensor ---- */

/* The sentence's place: file and tensor, and the data part of the file. */
struct place {
    const char *file, *name;
    uint64_t data_begin, data_bytes;
};

static bool read_u64(const json_t *value, uint64_t *n_p)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        return false;
    }
    *n_p = (uint64_t)json_integer_value(value);
    return true;
}

static status read_offsets(const struct place *at, const json_t *offsets, struct safetensor *t,
                           struct err *err)
{
    uint64_t begin, end;

    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !read_u64(json_array_get(offsets, 0), &begin) ||
        !read_u64(json_array_get(offsets, 1), &end)) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: tensor \"%.128s\": data_offsets are not two offsets", at->file,
                       at->name);
    }
    if (begin > end) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: tensor \"%.128s\": data_offsets [%" PRIu64 ", %" PRIu64
                       "] run backwards",
                       at->file, at->name, begin, end);
    }
    if (end > at->data_bytes) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: tensor \"%.128s\" ends at byte %" PRIu64
                       " of the data, the file has %" PRIu64 " (a download that broke off?)",
                       at->file, at->name, end, at->data_bytes);
    }
    t->begin = at->data_begin + begin;
    t->end = at->data_begin + end;
    return ST_OK;
}

/* *n_p: elements. */
static status read_shape(const struct place *at, const json_t *shape, struct safetensor *t,
                         uint64_t *n_p, struct err *err)
{
    const size_t n_dims = json_array_size(shape);
    uint64_t n = 1;
    bool zero = false;

    if (!json_is_array(shape) || n_dims > 64) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s: tensor \"%.128s\": shape is not a list of at most 64 numbers", at->file,
                       at->name);
    }
    t->n_dims = (uint32_t)n_dims;
    for (size_t i = 0; i < n_dims; i++) {
        uint64_t dim;
        if (!read_u64(json_array_get(shape, i), &dim) ||
            (!zero && __builtin_mul_overflow(n, dim, &n)) || n > (uint64_t)1 << 56) {
            return err_set(
                err, ST_ERR_FORMAT,
                "%s: tensor \"%.128s\": shape has a dimension that is no size or makes more "
                "than 2^56 elements",
                at->file, at->name);
        }
        zero = zero || dim == 0;
        if (i < WEIGHTS_RANK_MAX) {
            t->shape[i] = dim;
        }
    }
    *n_p = zero ? 0 : n;
    return ST_OK;
}

static status read_dtype(const struct place *at, const json_t *dtype, uint64_t n_elements,
                         struct safetensor *t, struct err *err)
{
    const char *name = json_string_value(dtype);
    const struct dtype_row *row = NULL;

    if (name == NULL) {
        return err_set(err, ST_ERR_FORMAT, "%s: tensor \"%.128s\": dtype is not a string", at->file,
                       at->name);
    }
    snprintf(t->dtype_name, sizeof(t->dtype_name), "%.*s", SAFETENSORS_DTYPE_BYTES - 1, name);
    for (size_t i = 0; i < ARRAY_LEN(dtypes) && row == NULL; i++) {
        row = strcmp(name, dtypes[i].name) == 0 ? &dtypes[i] : NULL;
    }
    if (row == NULL) {
        return ST_OK;
    }
    const uint64_t want = n_elements * (row->bits / 8); /* < 2^59 */
    if (want != t->end - t->begin) {
        char shape[SHAPE_TEXT_BYTES];
        safetensors_shape_text(t->n_dims, t->shape, shape);
        return err_set(err, ST_ERR_FORMAT,
                       "%s: tensor \"%.128s\": %s of %s is %" PRIu64
                       " bytes, data_offsets hold %" PRIu64,
                       at->file, at->name, shape, row->name, want, t->end - t->begin);
    }
    t->readable = row->readable && t->n_dims <= WEIGHTS_RANK_MAX;
    t->dtype = row->dtype;
    return ST_OK;
}

static status read_tensor(const struct place *at, const json_t *object, struct safetensor *t,
                          struct err *err)
{
    uint64_t n_elements = 0;

    if (!json_is_object(object)) {
        return err_set(err, ST_ERR_FORMAT, "%s: tensor \"%.128s\" is not an object", at->file,
                       at->name);
    }
    status st = read_offsets(at, json_object_get(object, "data_offsets"), t, err);
    if (st == ST_OK) {
        st = read_shape(at, json_object_get(object, "shape"), t, &n_elements, err);
    }
    if (st == ST_OK) {
        st = read_dtype(at, json_object_get(object, "dtype"), n_elements, t, err);
    }
    return st;
}

/* ---- the header ---- */

static int by_begin(const void *a, const void *b)
{
    const struct safetensor *x = a, *y = b;

    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    if (x->end != y->end) {
        return x->end < y->end ? -1 : 1; /* empty tensors stand in front */
    }
    return strcmp(x->name, y->name);
}

static status check_overlap(const char *file, const struct safetensors *st, struct err *err)
{
    for (uint32_t i = 1; i < st->n; i++) {
        const struct safetensor *a = &st->tensors[i - 1], *b = &st->tensors[i];
        if (b->begin < a->end) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: tensors \"%.100s\" (bytes %" PRIu64 " to %" PRIu64
                           ") and \"%.100s\" (from %" PRIu64 ") overlap",
                           file, a->name, a->begin, a->end, b->name, b->begin);
        }
    }
    return ST_OK;
}

static status fill(const char *file, json_t *header, uint64_t data_begin, uint64_t file_bytes,
                   struct safetensors *st, struct err *err)
{
    const char *name;
    json_t *object;

    json_object_foreach(header, name, object)
    {
        const struct place at = { file, name, data_begin, file_bytes - data_begin };
        struct safetensor *t = &st->tensors[st->n];

        if (strcmp(name, "__metadata__") == 0) {
            continue;
        }
        if (name[0] == '\0' || strlen(name) > SAFETENSORS_NAME_MAX) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s: a tensor's name has %zu bytes, not from 1 to %d", file,
                           strlen(name), SAFETENSORS_NAME_MAX);
        }
        const status rc = read_tensor(&at, object, t, err);
        if (rc != ST_OK) {
            return rc;
        }
        t->name = strdup(name);
        if (t->name == NULL) {
            return err_set(err, ST_ERR_NOMEM, "%s: no memory for tensor names", file);
        }
        st->n++;
    }
    return ST_OK;
}

status safetensors_parse(const char *file, const char *json, size_t json_bytes, uint64_t file_bytes,
                         struct safetensors *st_p, struct err *err)
{
    struct safetensors st = { 0, NULL };
    json_t *header = NULL;

    ASSERT(json_bytes <= SAFETENSORS_HEADER_MAX &&
           json_bytes + SAFETENSORS_PREFIX_BYTES <= file_bytes);
    status rc = field_parse_object(file, json, json_bytes, &header, err);
    if (rc != ST_OK) {
        return rc;
    }
    const size_t n = json_object_size(header);
    if (n > SAFETENSORS_TENSORS_MAX) {
        rc = err_set(err, ST_ERR_LIMIT, "%s: %zu tensors, over the limit of %d", file, n,
                     SAFETENSORS_TENSORS_MAX);
        goto out;
    }
    st.tensors = calloc(MAX(n, (size_t)1), sizeof(*st.tensors));
    if (st.tensors == NULL) {
        rc = err_set(err, ST_ERR_NOMEM, "%s: no memory for %zu tensors", file, n);
        goto out;
    }
    rc = fill(file, header, SAFETENSORS_PREFIX_BYTES + json_bytes, file_bytes, &st, err);
    if (rc == ST_OK) {
        qsort(st.tensors, st.n, sizeof(*st.tensors), by_begin);
        rc = check_overlap(file, &st, err);
    }
out:
    json_decref(header);
    if (rc == ST_OK) {
        *st_p = st;
    } else {
        safetensors_fini(&st);
    }
    return rc;
}

void safetensors_fini(struct safetensors *st)
{
    for (uint32_t i = 0; i < st->n; i++) {
        free(st->tensors[i].name);
    }
    free(st->tensors);
    st->tensors = NULL;
    st->n = 0;
}
