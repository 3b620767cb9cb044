/* tests/common/random_model.h - a Hugging Face directory of random weights with a wished-for shape.
 *
 * Llama, bf16, values small enough that nothing overflows, equal in every run; no tokenizer. */
#ifndef COMMON_RANDOM_MODEL_H
#define COMMON_RANDOM_MODEL_H

#include <stdint.h>

struct random_shape {
    const char *name;
    uint32_t layers, dim, heads, kv_heads, ffn, vocab, ctx;
};

/* config.json and model.safetensors into `dir`, which exists. Ends the program where that cannot be
 * written. */
void random_model_write(const char *dir, const struct random_shape *shape);

#endif
