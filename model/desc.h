/* model/desc.h - what a decoder-only model is, as numbers and kinds that one forward pass reads.
 *
 * Filled from a Hugging Face config.json by model_desc_read. A family is data here, not code: what
 * a family adds (a bias, a norm per head, a rope rule) is a field, and the forward pass looks at
 * the field, never at a name. Everything is checked on reading, so later folders only assert. */
#ifndef MODEL_DESC_H
#define MODEL_DESC_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_EOS_MAX = 8, MODEL_NAME_BYTES = 128, MODEL_LAYERS_MAX = 1024 };

/* F8 is e4m3; such a tensor means something only with its scales (model/weights.h). */
enum model_dtype { MODEL_F32, MODEL_F16, MODEL_BF16, MODEL_F8, MODEL_DTYPES };

enum model_rope_kind { MODEL_ROPE_PLAIN, MODEL_ROPE_LINEAR, MODEL_ROPE_LLAMA3 };

struct model_rope {
    enum model_rope_kind kind;
    double theta;
    double factor;                            /* LINEAR, LLAMA3 */
    double low_freq_factor, high_freq_factor; /* LLAMA3 */
    uint32_t original_ctx;                    /* LLAMA3 */
};

enum model_quant_kind { MODEL_QUANT_NONE, MODEL_QUANT_FP8 };

/* How the matrices of the layers are quantised, as config.json says it. The files have the last
 * word on which tensors are, and on scales per tensor or per row. */
struct model_quant {
    enum model_quant_kind kind;
    uint32_t block_rows, block_cols; /* scales per block of the matrix; 0: not by blocks */
};

/* The matrices of a layer as they are multiplied: q, k, v are one, and so are gate and up. */
enum model_mat { MODEL_MAT_QKV, MODEL_MAT_O, MODEL_MAT_GATE_UP, MODEL_MAT_DOWN, MODEL_MATS };

struct model_desc {
    char name[MODEL_NAME_BYTES];  /* last component of the directory, for people */
    char family[64];              /* architectures[0] of the config */
    uint32_t n_layers;            /* 1 .. MODEL_LAYERS_MAX */
    uint32_t dim;                 /* C: hidden_size; even */
    uint32_t n_heads, n_kv_heads; /* H, K of the whole model; n_heads % n_kv_heads == 0 */
    uint32_t head_dim;            /* D; even */
    uint32_t ffn_dim;             /* F: intermediate_size */
    uint32_t vocab;               /* V */
    uint32_t ctx_max;             /* max_position_embeddings */
    float norm_eps;
    struct model_rope rope;
    bool tied; /* output matrix is the embedding (or the reverse) */
    bool qkv_bias, o_bias, mlp_bias;
    bool qk_norm;           /* an rms norm per head on q and k before rope */
    enum model_dtype dtype; /* as the config says; the files have the last word per tensor */
    struct model_quant quant;
    /* Of an fp8 checkpoint, what its author left alone: per layer, bit `enum model_mat` of a matrix
     * that the files hold in another format, and of one some of whose parts they do. The config does
     * not tell: 0 until weights_check has looked. */
    uint8_t plain[MODEL_LAYERS_MAX], torn[MODEL_LAYERS_MAX];
    int64_t bos; /* -1: none */
    uint32_t n_eos;
    uint32_t eos[MODEL_EOS_MAX]; /* generation_config.json wins over config.json */
};

/* Read DIR/config.json (and generation_config.json if there). ST_ERR_NOT_FOUND, ST_ERR_FORMAT,
 * ST_ERR_UNSUPPORTED (another architecture or an option we do not compute: named), ST_ERR_LIMIT. */
status model_desc_read(const char *dir, struct model_desc *desc_p, struct err *err);
/* The same from bytes (config may not be NULL, generation may); for tests and fuzzing. */
status model_desc_parse(const char *config, size_t config_len, const char *generation,
                        size_t generation_len, struct model_desc *desc_p, struct err *err);
/* Parameters of the whole model, embeddings counted once if tied. */
uint64_t model_desc_params(const struct model_desc *desc);

#endif
