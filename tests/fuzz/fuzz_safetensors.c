/* tests/fuzz/fuzz_safetensors.c - the input is a whole .safetensors file. What is accepted must lie
 * inside the file, have the size its shape says, and share no byte. */
#include "model/safetensors.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct safetensors *st, uint64_t data_begin, uint64_t file_bytes)
{
    uint64_t at = data_begin;

    for (uint32_t i = 0; i < st->n; i++) {
        const struct safetensor *t = &st->tensors[i];
        ASSERT(t->name != NULL && t->name[0] != '\0');
        ASSERT(t->begin >= at && t->begin <= t->end && t->end <= file_bytes);
        at = t->end;
        if (!t->readable) {
            continue;
        }
        uint64_t bytes = safetensors_dtype_bytes(t->dtype);
        ASSERT(t->n_dims <= WEIGHTS_RANK_MAX);
        for (uint32_t dim = 0; dim < t->n_dims; dim++) {
            bytes *= t->shape[dim];
        }
        ASSERT(bytes == t->end - t->begin);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors st = { 0, NULL };
    struct err err = ERR_INIT;
    uint64_t header_bytes = 0;

    if (size < SAFETENSORS_PREFIX_BYTES) {
        return 0; /* weights_open refuses these before it looks at a byte */
    }
    status rc = safetensors_header_bytes("fuzz", data, size, &header_bytes, &err);
    if (rc == ST_OK) {
        rc = safetensors_parse("fuzz", (const char *)data + SAFETENSORS_PREFIX_BYTES,
                               (size_t)header_bytes, size, &st, &err);
    }
    if (rc != ST_OK) {
        ASSERT(rc < 0 && err.code == rc && err.text[0] != '\0');
        return 0;
    }
    check(&st, SAFETENSORS_PREFIX_BYTES + header_bytes, size);
    safetensors_fini(&st);
    return 0;
}
