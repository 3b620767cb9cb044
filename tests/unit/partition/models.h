/* tests/unit/partition/models.h - the dimensions of real models, and random ones by seed. */
#ifndef UNIT_PARTITION_MODELS_H
#define UNIT_PARTITION_MODELS_H

#include "model/desc.h"

#include <stdio.h>
#include <string.h>

struct model_row {
    const char *name;
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn, vocab, ctx;
    bool tied, qkv_bias;
};

static const struct model_row model_rows[] = {
    { "stories260k", 5, 64, 8, 4, 8, 172, 512, 512, true, false },
    { "TinyLlama-1.1B", 22, 2048, 32, 4, 64, 5632, 32000, 2048, false, false },
    { "Qwen2-0.5B", 24, 896, 14, 2, 64, 4864, 151936, 32768, true, true },
    { "Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, 131072, false, false },
    { "Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256, 131072, false, false },
    { "Llama-3.1-405B", 126, 16384, 128, 8, 128, 53248, 128256, 131072, false, false },
};
enum { MODEL_ROWS = sizeof(model_rows) / sizeof(model_rows[0]) };

static inline struct model_desc model_of(const struct model_row *row)
{
    struct model_desc d;

    memset(&d, 0, sizeof(d));
    snprintf(d.name, sizeof(d.name), "%s", row->name);
    snprintf(d.family, sizeof(d.family), "LlamaForCausalLM");
    d.n_layers = row->layers;
    d.dim = row->dim;
    d.n_heads = row->heads;
    d.n_kv_heads = row->kv_heads;
    d.head_dim = row->head_dim;
    d.ffn_dim = row->ffn;
    d.vocab = row->vocab;
    d.ctx_max = row->ctx;
    d.norm_eps = 1e-5f;
    d.rope.theta = 10000.0;
    d.tied = row->tied;
    d.qkv_bias = row->qkv_bias;
    d.bos = -1;
    return d;
}

static inline struct model_desc model_named(const char *name)
{
    for (int i = 0; i < MODEL_ROWS; i++) {
        if (strcmp(model_rows[i].name, name) == 0) {
            return model_of(&model_rows[i]);
        }
    }
    return model_of(&model_rows[0]);
}

static inline uint32_t random_below(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % n);
}

/* Anything that model_desc_read would accept, small. */
static inline struct model_desc model_random(uint64_t *state)
{
    const uint32_t kv_heads = 1 + random_below(state, 12);
    const struct model_row row = { .name = "random",
                                   .layers = 1 + random_below(state, 40),
                                   .dim = 2 * (1 + random_below(state, 200)),
                                   .heads = kv_heads * (1 + random_below(state, 9)),
                                   .kv_heads = kv_heads,
                                   .head_dim = 2 * (1 + random_below(state, 40)),
                                   .ffn = 1 + random_below(state, 700),
                                   .vocab = 2 + random_below(state, 20000),
                                   .ctx = 1 + random_below(state, 3000),
                                   .tied = random_below(state, 2) == 0,
                                   .qkv_bias = random_below(state, 2) == 0 };
    return model_of(&row);
}

#endif
