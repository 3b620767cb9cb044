/* tests/common/random_model.c - see random_model.h. */
#include "common/random_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t state = 88172645463325252ull;

/* bf16 of about normal size 0.02: sign and mantissa random, exponent 2^-6 or 2^-7. */
static uint16_t random_bf16(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint16_t)((state & 0x80ffu) | ((120u + ((state >> 20) & 1u)) << 7));
}

struct writer {
    FILE *header, *data;
    uint64_t offset;
    uint32_t n;
};

static void put(struct writer *w, const char *name, uint32_t rows, uint32_t cols)
{
    static uint16_t row[1 << 17];
    const uint64_t bytes = (uint64_t)rows * cols * 2;

    fprintf(w->header, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[", w->n++ ? "," : "", name);
    if (cols != 1) {
        fprintf(w->header, "%u,%u", rows, cols);
    } else {
        fprintf(w->header, "%u", rows);
    }
    fprintf(w->header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", w->offset,
            w->offset + bytes);
    w->offset += bytes;
    for (uint32_t r = 0; r < (cols == 1 ? 1 : rows); r++) {
        const uint32_t n = cols == 1 ? rows : cols;
        for (uint32_t c = 0; c < n; c++) {
            row[c] = cols == 1 ? 0x3f80 : random_bf16();
        }
        if (fwrite(row, 2, n, w->data) != n) {
            perror("random model");
            exit(1);
        }
    }
}

static void put_layer(struct writer *w, const struct random_shape *s, uint32_t i)
{
    const uint32_t kv = s->dim / s->heads * s->kv_heads;
    const struct {
        const char *name;
        uint32_t rows, cols;
    } all[] = {
        { "input_layernorm", s->dim, 1 },       { "self_attn.q_proj", s->dim, s->dim },
        { "self_attn.k_proj", kv, s->dim },     { "self_attn.v_proj", kv, s->dim },
        { "self_attn.o_proj", s->dim, s->dim }, { "post_attention_layernorm", s->dim, 1 },
        { "mlp.gate_proj", s->ffn, s->dim },    { "mlp.up_proj", s->ffn, s->dim },
        { "mlp.down_proj", s->dim, s->ffn },
    };

    for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
        char name[128];
        snprintf(name, sizeof(name), "model.layers.%u.%s.weight", i, all[k].name);
        put(w, name, all[k].rows, all[k].cols);
    }
}

static void write_config(const char *dir, const struct random_shape *s)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    if (f == NULL) {
        perror(path);
        exit(1);
    }
    fprintf(f,
            "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_act\":\"silu\",\"hidden_size\":%u,"
            "\"intermediate_size\":%u,\"num_hidden_layers\":%u,\"num_attention_heads\":%u,"
            "\"num_key_value_heads\":%u,\"vocab_size\":%u,\"max_position_embeddings\":%u,"
            "\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,\"torch_dtype\":\"bfloat16\","
            "\"tie_word_embeddings\":false,\"bos_token_id\":1,\"eos_token_id\":2}\n",
            s->dim, s->ffn, s->layers, s->heads, s->kv_heads, s->vocab, s->ctx);
    fclose(f);
}

/* Length, header, then the data that was collected in `from`. */
static void join(const char *path, const char *header, size_t len, FILE *from)
{
    static char piece[1 << 20];
    FILE *out = fopen(path, "w");
    uint64_t n = len;

    if (out == NULL) {
        perror(path);
        exit(1);
    }
    fwrite(&n, 8, 1, out);
    fwrite(header, 1, len, out);
    rewind(from);
    for (size_t got; (got = fread(piece, 1, sizeof(piece), from)) != 0;) {
        if (fwrite(piece, 1, got, out) != got) {
            perror(path);
            exit(1);
        }
    }
    fclose(out);
}

static void write_weights(const char *dir, const struct random_shape *s)
{
    char path[4096], part[4096];
    char *header = NULL;
    size_t len = 0;

    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    snprintf(part, sizeof(part), "%s/data.part", dir);
    struct writer w = { .header = open_memstream(&header, &len), .data = fopen(part, "w+") };
    if (w.header == NULL || w.data == NULL) {
        perror(part);
        exit(1);
    }
    fputc('{', w.header);
    put(&w, "model.embed_tokens.weight", s->vocab, s->dim);
    for (uint32_t i = 0; i < s->layers; i++) {
        put_layer(&w, s, i);
    }
    put(&w, "model.norm.weight", s->dim, 1);
    put(&w, "lm_head.weight", s->vocab, s->dim);
    fputc('}', w.header);
    fclose(w.header);
    join(path, header, len, w.data);
    fclose(w.data);
    remove(part);
    free(header);
}

void random_model_write(const char *dir, const struct random_shape *shape)
{
    state = 88172645463325252ull;
    write_config(dir, shape);
    write_weights(dir, shape);
}
