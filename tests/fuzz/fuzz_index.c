/* tests/fuzz/fuzz_index.c - any bytes as model.safetensors.index.json, beside two shards with a
 * tensor each. What is accepted names files of this folder only, and tensors that they hold. */
#include "fuzz_dir.h"

#include "model/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEADER(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"

static void write_shard(const char *file, const char *header, const char *data)
{
    uint8_t bytes[256] = { (uint8_t)strlen(header) };

    memcpy(bytes + 8, header, strlen(header));
    memcpy(bytes + 8 + strlen(header), data, 8);
    fuzz_dir_write(file, bytes, 8 + strlen(header) + 8);
}

static void check(const struct weights *w)
{
    ASSERT(weights_file_count(w) >= 1 && weights_file_count(w) <= 2);
    for (uint32_t i = 0; i < weights_file_count(w); i++) {
        uint64_t bytes = 0;
        const char *name = weights_file_at(w, i, &bytes);
        ASSERT(strcmp(name, "a.safetensors") == 0 || strcmp(name, "b.safetensors") == 0);
        ASSERT(bytes > 8);
    }
    for (uint32_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        float values[2] = { 0 };
        ASSERT(t->bytes == sizeof(values) && t->i_file < weights_file_count(w));
        ASSERT(weights_find(w, t->name) == t);
        const struct weights_box box = { 0, 1, 0, 2 };
        ASSERT(weights_read(w, t, &box, values, NULL, NULL) == ST_OK);
        ASSERT(memcmp(values, strcmp(t->name, "x") == 0 ? "xxxxxxxx" : "yyyyyyyy", 8) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct weights *w = NULL;
    struct err err = ERR_INIT;

    if (fuzz_dir_make()) {
        write_shard("a.safetensors", HEADER("x"), "xxxxxxxx");
        write_shard("b.safetensors", HEADER("y"), "yyyyyyyy");
    }
    fuzz_dir_write("model.safetensors.index.json", data, size);
    const status st = weights_open(fuzz_dir, &w, &err);
    ASSERT((st == ST_OK) == (w != NULL));
    ASSERT(st == ST_OK || (err.code == st && err.text[0] != '\0'));
    if (w != NULL) {
        check(w);
        weights_close(w);
    }
    return 0;
}
