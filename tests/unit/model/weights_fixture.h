/* tests/unit/model/weights_fixture.h - safetensors files made for a test: header text and data. */
#ifndef UNIT_MODEL_WEIGHTS_FIXTURE_H
#define UNIT_MODEL_WEIGHTS_FIXTURE_H

#include "base/buf.h"
#include "model/weights.h"

#include "common/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* <dir>/<name>: a header length (header_bytes; 0: the true one), `header`, then `data_bytes` bytes
 * of which byte i is i * 7 mod 251. */
static inline void st_write(const char *dir, const char *name, const char *header,
                            uint64_t header_bytes, size_t data_bytes)
{
    char path[FIXTURE_PATH_BYTES + 64];
    const uint64_t n = header_bytes != 0 ? header_bytes : strlen(header);
    unsigned char prefix[8];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    for (int i = 0; i < 8; i++) {
        prefix[i] = (unsigned char)(n >> (8 * i));
    }
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(prefix, 1, 8, file) != 8) {
        abort();
    }
    fputs(header, file);
    for (size_t i = 0; i < data_bytes; i++) {
        fputc((int)(i * 7 % 251), file);
    }
    if (fclose(file) != 0) {
        abort();
    }
}

/* Tensors added one by one: `header` grows, offsets follow each other. */
struct st_builder {
    struct buf header;
    size_t data_bytes;
};

static inline void st_add(struct st_builder *b, const char *name, const char *dtype, uint64_t rows,
                          uint64_t cols)
{
    const size_t element = strcmp(dtype, "F32") == 0            ? 4
                           : dtype[0] == 'F' && dtype[1] == '8' ? 1
                                                                : 2;
    const size_t bytes = MAX(rows, (uint64_t)1) * MAX(cols, (uint64_t)1) * element;
    char shape[64] = "";

    if (rows != 0) { /* 0: a single number */
        snprintf(shape, sizeof(shape), cols != 0 ? "%llu, %llu" : "%llu", (unsigned long long)rows,
                 (unsigned long long)cols);
    }
    if (buf_printf(&b->header,
                   "%s\"%s\": {\"dtype\": \"%s\", \"shape\": [%s], \"data_offsets\": [%zu, %zu]}",
                   b->header.len == 0 ? "{" : ", ", name, dtype, shape, b->data_bytes,
                   b->data_bytes + bytes) != ST_OK) {
        abort();
    }
    b->data_bytes += bytes;
}

static inline void st_finish(struct st_builder *b, const char *dir, const char *name)
{
    if (buf_append_str(&b->header, b->header.len == 0 ? "{}" : "}") != ST_OK) {
        abort();
    }
    st_write(dir, name, b->header.data, 0, b->data_bytes);
    buf_fini(&b->header);
    b->data_bytes = 0;
}

#endif
