/* coordinator/cli/inspect.c - `gantry inspect MODEL`: what a directory holds, and can Gantry run
 * it.
 *
 * Config, weights and tokenizer are each opened by the reader that serving uses; what fails is
 * shown beside what works, and the first failure in that order gives the exit code. */
#include "coordinator/cli/cli.h"

#include "base/buf.h"
#include "base/opts.h"
#include "model/desc.h"
#include "model/json_memory.h"
#include "model/tokenizer.h"
#include "model/weights.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* What was found. Each reader's failure is kept; a NULL object means it failed. */
struct found {
    const char *dir;
    bool has_desc;
    struct model_desc desc;
    struct weights *weights;     /* owned */
    struct tokenizer *tokenizer; /* owned */
    struct err config_err, weights_err, fit_err, tokenizer_err;
};

static void look(struct found *f)
{
    f->has_desc = model_desc_read(f->dir, &f->desc, &f->config_err) == ST_OK;
    (void)weights_open(f->dir, &f->weights, &f->weights_err);
    if (f->has_desc && f->weights != NULL) {
        (void)weights_check(f->weights, &f->desc, &f->fit_err);
    }
    if (tokenizer_open(f->dir, &f->tokenizer, &f->tokenizer_err) != ST_OK) {
        f->tokenizer = NULL;
    }
}

/* The first reason why this cannot run; NULL: it can. */
static const struct err *reason(const struct found *f)
{
    if (!f->has_desc) {
        return &f->config_err;
    }
    if (f->weights == NULL) {
        return &f->weights_err;
    }
    if (f->fit_err.code < 0) {
        return &f->fit_err;
    }
    return f->tokenizer == NULL ? &f->tokenizer_err : NULL;
}

/* ---- sums over the weight files ---- */

struct dtype_sum {
    const char *name;
    uint32_t n;
    uint64_t bytes;
};

static void sum_dtypes(const struct weights *w, struct dtype_sum sums[MODEL_DTYPES])
{
    static const char *const names[MODEL_DTYPES] = {
        [MODEL_F32] = "F32", [MODEL_F16] = "F16", [MODEL_BF16] = "BF16", [MODEL_F8] = "F8_E4M3"
    };

    for (int i = 0; i < MODEL_DTYPES; i++) {
        sums[i] = (struct dtype_sum){ names[i], 0, 0 };
    }
    for (uint32_t i = 0; i < weights_count(w); i++) {
        const struct weights_tensor *t = weights_at(w, i);
        sums[t->dtype].n++;
        sums[t->dtype].bytes += t->bytes;
    }
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static const char *rope_word(const struct model_rope *rope)
{
    return rope->kind == MODEL_ROPE_LINEAR   ? "linear"
           : rope->kind == MODEL_ROPE_LLAMA3 ? "llama3"
                                             : "plain";
}

/* ---- for people ---- */

static void print_desc(const struct model_desc *d)
{
    uint32_t n_plain = 0;

    for (uint32_t i = 0; i < d->n_layers; i++) {
        n_plain += (uint32_t)__builtin_popcount(d->plain[i]);
    }
    printf("config      %s, %.2f M parameters\n", d->family, (double)model_desc_params(d) / 1e6);
    printf("            %u layers, dim %u, %u heads (%u kv) of %u, ffn %u, vocabulary %u\n",
           d->n_layers, d->dim, d->n_heads, d->n_kv_heads, d->head_dim, d->ffn_dim, d->vocab);
    printf("            context %u, rope %s (theta %g), norm eps %g%s%s%s%s%s\n", d->ctx_max,
           rope_word(&d->rope), d->rope.theta, (double)d->norm_eps, d->tied ? ", tied" : "",
           d->qkv_bias ? ", qkv bias" : "", d->o_bias ? ", o bias" : "",
           d->mlp_bias ? ", mlp bias" : "", d->qk_norm ? ", qk norm" : "");
    if (d->quant.block_rows != 0) {
        printf("            fp8 weights with scales per block of %u x %u\n", d->quant.block_rows,
               d->quant.block_cols);
    } else if (d->quant.kind == MODEL_QUANT_FP8) {
        printf("            fp8 weights with scales per matrix or row\n");
    }
    if (n_plain != 0) {
        printf("            %u of the %u matrices of the layers are not fp8\n", n_plain,
               d->n_layers * MODEL_MATS);
    }
}

static void print_weights(const struct weights *w)
{
    struct dtype_sum sums[MODEL_DTYPES];
    uint64_t bytes = 0, total = 0;
    const char *dtype = NULL;

    for (uint32_t i = 0; i < weights_file_count(w); i++) {
        (void)weights_file_at(w, i, &bytes);
        total += bytes;
    }
    printf("weights     %u file%s, %.2f MiB, %u tensors\n", weights_file_count(w),
           weights_file_count(w) == 1 ? "" : "s", mib(total), weights_count(w));
    for (uint32_t i = 0; i < weights_file_count(w); i++) {
        const char *name = weights_file_at(w, i, &bytes);
        printf("            %s %.2f MiB\n", name, mib(bytes));
    }
    sum_dtypes(w, sums);
    for (int i = 0; i < MODEL_DTYPES; i++) {
        if (sums[i].n != 0) {
            printf("            %s: %u tensors, %.2f MiB\n", sums[i].name, sums[i].n,
                   mib(sums[i].bytes));
        }
    }
    if (weights_foreign_count(w) != 0) {
        const char *name = weights_foreign_at(w, 0, &dtype);
        printf("            %u tensors that cannot be read, the first: %s (%s)\n",
               weights_foreign_count(w), name, dtype);
    }
}

static void print_token(const struct tokenizer *tok, const char *what, int64_t id)
{
    size_t len = 0;
    const char *bytes = id >= 0 ? tokenizer_token_bytes(tok, (uint32_t)id, &len) : NULL;

    if (id < 0) {
        printf(", no %s", what);
    } else {
        printf(", %s %" PRId64 " \"%.*s\"", what, id, (int)MIN(len, (size_t)64),
               len != 0 ? bytes : "");
    }
}

static void print_tokenizer(const struct found *f)
{
    const struct tok_stats stats = tokenizer_stats(f->tokenizer);

    printf("tokenizer   %s, %u tokens (%u special)", tokenizer_kind(f->tokenizer), stats.n_tokens,
           stats.n_special);
    print_token(f->tokenizer, "bos", tokenizer_bos(f->tokenizer));
    print_token(f->tokenizer, "eos", tokenizer_eos(f->tokenizer));
    printf("\n");
    if (f->has_desc && f->desc.n_eos > 0) {
        printf("            a stream ends at");
        for (uint32_t i = 0; i < f->desc.n_eos; i++) {
            size_t len = 0;
            const char *bytes = tokenizer_token_bytes(f->tokenizer, f->desc.eos[i], &len);
            printf("%s id %u \"%.*s\"", i == 0 ? "" : ",", f->desc.eos[i],
                   (int)MIN(len, (size_t)64), len != 0 ? bytes : "");
        }
        printf("\n");
    }
}

static void print_text(const struct found *f)
{
    const struct err *why = reason(f);

    printf("directory   %s\n", f->dir);
    if (f->has_desc) {
        print_desc(&f->desc);
    } else {
        printf("config      %s\n", f->config_err.text);
    }
    if (f->weights != NULL) {
        print_weights(f->weights);
    } else {
        printf("weights     %s\n", f->weights_err.text);
    }
    if (f->fit_err.code < 0) {
        printf("            %s\n", f->fit_err.text);
    }
    if (f->tokenizer != NULL) {
        print_tokenizer(f);
    } else {
        printf("tokenizer   %s\n", f->tokenizer_err.text);
    }
    if (why == NULL) {
        printf("runs        yes\n");
    } else {
        printf("runs        no: %s\n", why->text);
    }
}

/* ---- for programs ---- */

static json_t *desc_json(const struct model_desc *d)
{
    json_t *eos = json_array();
    bool ok = true;

    for (uint32_t i = 0; i < d->n_eos; i++) {
        json_add(eos, json_integer(d->eos[i]), &ok);
    }
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:b, s:s?, s:I, s:o}",
                     "family", d->family, "parameters", (json_int_t)model_desc_params(d), "layers",
                     (json_int_t)d->n_layers, "dim", (json_int_t)d->dim, "heads",
                     (json_int_t)d->n_heads, "kv_heads", (json_int_t)d->n_kv_heads, "head_dim",
                     (json_int_t)d->head_dim, "ffn_dim", (json_int_t)d->ffn_dim, "vocabulary",
                     (json_int_t)d->vocab, "context", (json_int_t)d->ctx_max, "rope",
                     rope_word(&d->rope), "tied", (int)d->tied, "quantisation",
                     d->quant.kind == MODEL_QUANT_FP8 ? "fp8" : NULL, "bos", (json_int_t)d->bos,
                     "eos", json_whole(eos, ok));
}

static json_t *weights_json(const struct weights *w)
{
    json_t *files = json_array(), *dtypes = json_object();
    bool ok = true;
    struct dtype_sum sums[MODEL_DTYPES];

    for (uint32_t i = 0; i < weights_file_count(w); i++) {
        uint64_t bytes = 0;
        const char *name = weights_file_at(w, i, &bytes);
        json_add(files, json_pack("{s:s, s:I}", "name", name, "bytes", (json_int_t)bytes), &ok);
    }
    sum_dtypes(w, sums);
    for (int i = 0; i < MODEL_DTYPES; i++) {
        if (sums[i].n != 0) {
            json_put(dtypes, sums[i].name,
                     json_pack("{s:I, s:I}", "tensors", (json_int_t)sums[i].n, "bytes",
                               (json_int_t)sums[i].bytes),
                     &ok);
        }
    }
    return json_whole(json_pack("{s:I, s:I, s:o, s:o}", "tensors", (json_int_t)weights_count(w),
                                "unreadable", (json_int_t)weights_foreign_count(w), "files", files,
                                "dtypes", dtypes),
                      ok);
}

static json_t *tokenizer_json(const struct tokenizer *tok)
{
    const struct tok_stats stats = tokenizer_stats(tok);

    return json_pack("{s:s, s:I, s:I, s:I, s:I}", "kind", tokenizer_kind(tok), "tokens",
                     (json_int_t)stats.n_tokens, "special", (json_int_t)stats.n_special, "bos",
                     (json_int_t)tokenizer_bos(tok), "eos", (json_int_t)tokenizer_eos(tok));
}

static status print_json(const struct found *f)
{
    const struct err *why = reason(f);
    json_t *root = json_object();
    bool ok = true;

    json_put(root, "directory", json_string(f->dir), &ok);
    json_put(root, "config", f->has_desc ? desc_json(&f->desc) : json_null(), &ok);
    json_put(root, "weights", f->weights != NULL ? weights_json(f->weights) : json_null(), &ok);
    json_put(root, "tokenizer", f->tokenizer != NULL ? tokenizer_json(f->tokenizer) : json_null(),
             &ok);
    json_put(root, "runs", json_boolean(why == NULL), &ok);
    json_put(root, "reason", why != NULL ? json_string(why->text) : json_null(), &ok);
    ok = ok && json_dumpf(root, stdout, JSON_INDENT(2)) == 0;
    printf("\n");
    json_decref(root);
    return ok ? ST_OK : ST_ERR_NOMEM;
}

int cli_inspect(int argc, char **argv)
{
    bool json = false;
    const struct opt rows[] = {
        { OPT_FLAG, "json", NULL, &json, 0, 0, "the same as JSON", NULL },
    };
    const struct opts opts = {
        "gantry inspect MODEL [options]",
        "Says what a model directory holds (config.json, *.safetensors, the tokenizer's files) and "
        "whether Gantry can run it. If not, the exit code is that of the first reason: 3 for a "
        "file "
        "that is missing, malformed or of a kind that is not supported.",
        rows,
        ARRAY_LEN(rows),
        "  gantry inspect ./Llama-3.1-8B\n",
        1,
        1
    };
    uint32_t n_args = 0;
    struct found found;
    struct err err = ERR_INIT;

    memset(&found, 0, sizeof(found));
    const status st = opts_parse(&opts, argc, argv, &found.dir, &n_args, &err);
    if (st == ST_END) {
        return 0;
    }
    if (st != ST_OK) {
        fprintf(stderr, "gantry inspect: %s\n", err.text);
        return status_exit_code(st);
    }
    look(&found);
    const struct err *why = reason(&found);
    int code = why == NULL ? 0 : status_exit_code(why->code);
    if (!json) {
        print_text(&found);
    } else if (print_json(&found) != ST_OK) {
        fprintf(stderr, "gantry inspect: no memory to print it\n");
        code = status_exit_code(ST_ERR_NOMEM);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "gantry inspect: standard output cannot be written\n");
        code = status_exit_code(ST_ERR_IO);
    }
    tokenizer_close(found.tokenizer);
    weights_close(found.weights);
    return code;
}
