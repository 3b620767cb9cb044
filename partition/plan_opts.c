/* partition/plan_opts.c - see plan_opts.h. */
#include "partition/plan_opts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void plan_opts_rows(struct plan_opts *o, struct opt *rows)
{
    const struct opt all[PLAN_OPTS_ROWS] = {
        { OPT_U32, "tp", "T", &o->tp, 1, KERN_LEAVES_MAX,
          "slices of each stage (tensor parallel): a power of two up to the model's leaves", NULL },
        { OPT_U32, "pp", "P", &o->pp, 1, PLAN_STAGES_MAX,
          "pipeline stages, at most the model's layers", NULL },
        { OPT_U32, "ranks", "N", &o->ranks, 1, PLAN_RANKS_MAX,
          "ranks at hand, when --tp or --pp is to be chosen", NULL },
        { OPT_BYTES, "memory", "BYTES", &o->memory_bytes, 0, 0,
          "memory that one rank may use, e.g. 16GiB", NULL },
        { OPT_STRING, "format", "F", &o->format, 0, 0,
          "f32, bf16 or fp8: products and KV cache, the numeric profile; fp8: e4m3 weights, bf16 "
          "inputs and cache (fp8 where config.json says the checkpoint is, else bf16)",
          NULL },
        { OPT_U32, "ctx", "N", &o->ctx, 1, 1 << 24,
          "positions of one stream at most (the model's own limit)", NULL },
        { OPT_U32, "kv-tokens", "N", &o->kv_tokens, 1, 1u << 31,
          "tokens in the KV cache (what fits the memory, at most seqs x ctx)", NULL },
        { OPT_U32, "seqs", "N", &o->seqs, 1, PLAN_SEQS_MAX, "streams in one step at most (64)",
          NULL },
        { OPT_U32, "rows", "N", &o->rows, 1, PLAN_ROWS_MAX,
          "tokens in one step at most, prompt chunks included (512)", NULL },
        { OPT_STRING, "stage-layers", "A,B,...", &o->stage_layers, 0, 0,
          "layers of each stage, e.g. 3,2 (balanced by bytes)", NULL },
        { OPT_STRING, "device", "D", &o->device, 0, 0,
          "auto, cpu, cuda, or cuda:I for that device of each host (auto: cuda where one is); "
          "the CUDA path has not run on a device yet",
          NULL },
        { OPT_STRING, "data-plane", "P", &o->data_plane, 0, 0,
          "between devices: nccl, or mpi by way of the host (nccl)", NULL },
        { OPT_FLAG, "free-order", NULL, &o->free_order, 0, 0,
          "sums in NCCL's own order: bits may differ between layouts, under a profile of that name",
          NULL },
        { OPT_FLAG, "no-peer-sums", NULL, &o->no_peer_sums, 0, 0,
          "NCCL for all sums, also small ones of devices that map each other's memory", NULL },
    };

    memcpy(rows, all, sizeof(all));
}

static status read_stages(const char *list, struct plan_request *r, struct err *err)
{
    const char *at = list;

    for (;;) {
        char *end = NULL;
        const bool digit = *at >= '0' && *at <= '9';
        const unsigned long n = digit ? strtoul(at, &end, 10) : 0;
        if (!digit || n == 0 || n > UINT16_MAX || (*end != ',' && *end != '\0')) {
            return err_set(err, ST_ERR_ARG,
                           "--stage-layers %.80s: not numbers of layers with commas between, as in "
                           "3,2",
                           list);
        }
        if (r->n_stage_layers == PLAN_STAGES_MAX) {
            return err_set(err, ST_ERR_ARG, "--stage-layers: more than %d stages", PLAN_STAGES_MAX);
        }
        r->stage_layers[r->n_stage_layers++] = (uint32_t)n;
        if (*end == '\0') {
            return ST_OK;
        }
        at = end + 1;
    }
}

/* ---- devices ---- */

/* A number of at most four digits that is all of `text`. */
static bool read_number(const char *text, uint32_t *number_p)
{
    const size_t len = strspn(text, "0123456789");

    if (len == 0 || len > 4 || text[len] != '\0') {
        return false;
    }
    *number_p = (uint32_t)strtoul(text, NULL, 10);
    return true;
}

status plan_device_word(const char *text, struct plan_device_word *word_p, struct err *err)
{
    struct plan_device_word w = { .kind = PLAN_CUDA };
    bool ok = true;

    if (text == NULL || strcmp(text, "auto") == 0) {
        w = (struct plan_device_word){ .is_auto = true, .kind = PLAN_CPU };
    } else if (strcmp(text, "cpu") == 0) {
        w.kind = PLAN_CPU;
    } else if (strncmp(text, "cuda:", 5) == 0) {
        w.has_index = ok = read_number(text + 5, &w.index);
    } else if (strncmp(text, "cuda-sm", 7) == 0) {
        ok = read_number(text + 7, &w.cuda_version) && w.cuda_version != 0;
    } else {
        ok = strcmp(text, "cuda") == 0;
    }
    if (!ok) {
        return err_set(err, ST_ERR_ARG,
                       "--device %.40s: not auto, cpu, cuda, cuda:I (a device by its number) or "
                       "cuda-smNN (planning for that compute capability)",
                       text);
    }
    *word_p = w;
    return ST_OK;
}

static status read_device(const struct plan_opts *o, struct plan_request *r, struct err *err)
{
    struct plan_device_word word;
    const status st = plan_device_word(o->device, &word, err);

    if (st != ST_OK) {
        return st;
    }
    r->device = word.kind;
    r->cuda_version = word.cuda_version;
    r->plane = word.kind == PLAN_CUDA ? PLAN_PLANE_NCCL : PLAN_PLANE_HOST;
    r->free_order = o->free_order;
    r->no_peer_sums = o->no_peer_sums;
    if (o->data_plane != NULL && strcmp(o->data_plane, "mpi") == 0) {
        r->plane = PLAN_PLANE_HOST;
    } else if (o->data_plane != NULL && strcmp(o->data_plane, "nccl") != 0) {
        return err_set(err, ST_ERR_ARG, "--data-plane %.40s: neither nccl nor mpi", o->data_plane);
    } else if (o->data_plane != NULL && r->plane != PLAN_PLANE_NCCL) {
        return err_set(err, ST_ERR_ARG,
                       "--data-plane nccl: NCCL is between CUDA devices, this "
                       "plan is for CPU (--device cuda)");
    }
    if (o->free_order && r->plane != PLAN_PLANE_NCCL) {
        return err_set(err, ST_ERR_ARG,
                       "--free-order: the order that is freed is NCCL's; it needs --device cuda "
                       "and --data-plane nccl");
    }
    return ST_OK;
}

static status read_format(const char *word, struct plan_request *r, struct err *err)
{
    r->fmt_of_model = word == NULL;
    for (uint32_t fmt = 0; fmt < KERN_FMTS && word != NULL; fmt++) {
        if (strcmp(word, plan_fmt_name((enum kern_fmt)fmt)) == 0) {
            r->fmt = (enum kern_fmt)fmt;
            return ST_OK;
        }
    }
    return word == NULL ? ST_OK
                        : err_set(err, ST_ERR_ARG, "--format %.40s: none of f32, bf16, fp8", word);
}

status plan_opts_to_request(const struct plan_opts *o, struct plan_request *request_p,
                            struct err *err)
{
    struct plan_request r = { .tp = o->tp,
                              .pp = o->pp,
                              .fmt = KERN_BF16,
                              .n_ranks = o->ranks,
                              .rank_memory_bytes = o->memory_bytes,
                              .ctx_max = o->ctx,
                              .kv_tokens = o->kv_tokens,
                              .seqs_max = o->seqs,
                              .rows_max = o->rows };

    status st = read_format(o->format, &r, err);
    if (st == ST_OK) {
        st = read_device(o, &r, err);
    }
    if (st == ST_OK && o->stage_layers != NULL) {
        st = read_stages(o->stage_layers, &r, err);
    }
    if (st == ST_OK) {
        *request_p = r;
    }
    return st;
}

/* ---- from a plan back to options ---- */

/* --format F --device D, and where it is CUDA --data-plane P; strings, each with its NUL. The number
 * of a device is not the plan's: the rank that has none takes its place on its host. */
static status put_words(const struct plan *plan, struct buf *text, uint32_t *n_args)
{
    status st = buf_printf(text, "--format%c%s%c", 0, plan_fmt_name(plan->fmt), 0);

    *n_args += 2;
    if (st == ST_OK && plan->device == PLAN_CPU) {
        *n_args += 2;
        return buf_printf(text, "--device%ccpu%c", 0, 0);
    }
    if (st == ST_OK) {
        *n_args += 4;
        st = buf_printf(text, "--device%ccuda-sm%u%c--data-plane%c%s%c", 0, plan->cuda_version, 0,
                        0, plan->plane == PLAN_PLANE_NCCL ? "nccl" : "mpi", 0);
    }
    if (st == ST_OK && plan->free_order) {
        *n_args += 1;
        st = buf_printf(text, "--free-order%c", 0);
    }
    if (st == ST_OK && plan->no_peer_sums) {
        *n_args += 1;
        st = buf_printf(text, "--no-peer-sums%c", 0);
    }
    return st;
}

/* Everything that was chosen is spelled out, so that the other process chooses nothing. Memory is
 * left out on purpose: the KV cache is already cut to it. */
status plan_opts_args(const struct plan *plan, struct buf *text, const char **args,
                      uint32_t args_max, uint32_t *n_args_p)
{
    const struct {
        const char *name;
        uint32_t value;
    } numbers[] = { { "--tp", plan->tp },         { "--pp", plan->pp },
                    { "--ctx", plan->ctx_max },   { "--kv-tokens", plan->kv_tokens },
                    { "--seqs", plan->seqs_max }, { "--rows", plan->rows_max } };
    uint32_t n = 2 * (uint32_t)ARRAY_LEN(numbers) + 2;
    status st;

    /* Strings first, each with its NUL; pointers when the buffer no longer moves. */
    buf_reset(text);
    st = put_words(plan, text, &n);
    if (st == ST_OK && args_max < n) {
        return ST_ERR_LIMIT;
    }
    for (size_t i = 0; i < ARRAY_LEN(numbers) && st == ST_OK; i++) {
        st = buf_printf(text, "%s%c%" PRIu32 "%c", numbers[i].name, 0, numbers[i].value, 0);
    }
    if (st == ST_OK) {
        st = buf_append(text, "--stage-layers", sizeof("--stage-layers"));
    }
    for (uint32_t stage = 0; stage < plan->pp && st == ST_OK; stage++) {
        st = buf_printf(text, "%s%u", stage == 0 ? "" : ",",
                        range_len(plan->parts[(size_t)stage * plan->tp].layers));
    }
    if (st == ST_OK) {
        st = buf_append_char(text, '\0');
    }
    if (st != ST_OK) {
        return st;
    }
    const char *at = text->data;
    for (uint32_t i = 0; i < n; i++) {
        args[i] = at;
        at += strlen(at) + 1;
    }
    *n_args_p = n;
    return ST_OK;
}
