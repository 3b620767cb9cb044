/* tests/fuzz/fuzz_config.c - config.json, and behind a NUL byte generation_config.json. What is
 * accepted must be inside the limits of model/desc.h, and a plan of it a plan or a status. */
#include "model/desc.h"
#include "partition/plan.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct model_desc *d)
{
    ASSERT(d->n_layers >= 1 && d->n_layers <= 1024);
    ASSERT(d->dim >= 2 && d->dim <= 65536 && d->dim % 2 == 0);
    ASSERT(d->n_heads >= 1 && d->n_heads <= 1024);
    ASSERT(d->n_kv_heads >= 1 && d->n_heads % d->n_kv_heads == 0);
    ASSERT(d->head_dim >= 2 && d->head_dim <= 512 && d->head_dim % 2 == 0);
    ASSERT(d->ffn_dim >= 1 && d->ffn_dim <= 1u << 20);
    ASSERT(d->vocab >= 2 && d->vocab <= 1u << 21);
    ASSERT(d->ctx_max >= 1 && d->ctx_max <= 1u << 24);
    ASSERT(d->norm_eps > 0 && d->rope.theta >= 1);
    ASSERT(d->bos >= -1 && d->bos < (int64_t)d->vocab);
    ASSERT(d->n_eos <= MODEL_EOS_MAX);
    ASSERT((d->quant.block_rows == 0) == (d->quant.block_cols == 0));
    ASSERT(d->quant.kind == MODEL_QUANT_FP8 || d->quant.block_rows == 0);
    ASSERT(d->quant.block_rows <= 1u << 20 && d->quant.block_cols % 128 == 0);
    for (uint32_t i = 0; i < d->n_eos; i++) {
        ASSERT(d->eos[i] < d->vocab);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *config = size != 0 ? (const char *)data : "";
    const char *generation = size != 0 ? memchr(data, 0, size) : NULL;
    const size_t config_len = generation != NULL ? (size_t)(generation - config) : size;
    const size_t generation_len = generation != NULL ? size - config_len - 1 : 0;
    struct model_desc desc;
    struct err err = ERR_INIT;

    const status st =
        model_desc_parse(config, config_len, generation != NULL ? generation + 1 : NULL,
                         generation_len, &desc, &err);
    if (st != ST_OK) {
        ASSERT(st < 0 && err.code == st && err.text[0] != '\0');
        return 0;
    }
    check(&desc);
    const struct plan_request request = { .n_ranks = 1 + (uint32_t)(size % 16),
                                          .fmt = (enum kern_fmt)(size % KERN_FMTS),
                                          .fmt_of_model = size % 2 == 0,
                                          .rank_memory_bytes = (uint64_t)(size % 7) << 30 };
    struct plan *plan = NULL;
    const status planned = plan_create(&desc, &request, &plan, &err);
    ASSERT((planned == ST_OK) == (plan != NULL));
    ASSERT(planned == ST_OK || err.text[0] != '\0');
    plan_destroy(plan);
    return 0;
}
