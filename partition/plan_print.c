/* partition/plan_print.c - a plan for people (table and picture) and for programs (JSON).
 *
 * Large plans are shortened in the table and the picture, never in the JSON. */
#include "partition/plan_private.h"
#include "partition/predict_json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    TABLE_ROWS_MAX = 64,
    CELL_COLUMNS = 20, /* between two bars of the picture */
    LEFT_COLUMNS = 9,  /* "stage 12 " */
    SLICES_SHOWN = 4,
    STAGES_SHOWN = 8
};

/* A buf with the first failure kept: a page of output is one check at its end. */
struct page {
    struct buf *out;
    status st;
};

static void put(struct page *p, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void put(struct page *p, const char *fmt, ...)
{
    char line[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (p->st == ST_OK) {
        p->st = buf_append_str(p->out, line);
    }
}

enum { RANGE_TEXT_BYTES = 32 };

/* "0-15", or "-" if empty. */
static const char *range_text(struct range r, char text[RANGE_TEXT_BYTES])
{
    if (range_len(r) == 0) {
        snprintf(text, RANGE_TEXT_BYTES, "-");
    } else if (range_len(r) == 1) {
        snprintf(text, RANGE_TEXT_BYTES, "%u", r.begin);
    } else {
        snprintf(text, RANGE_TEXT_BYTES, "%u-%u", r.begin, r.end - 1);
    }
    return text;
}

static uint64_t part_bytes(const struct plan_part *part)
{
    return part->weight_bytes + part->kv_bytes + part->scratch_bytes;
}

/* ---- head ---- */

static void put_head(struct page *p, const struct plan *plan)
{
    const struct model_desc *d = &plan->desc;
    const uint64_t params = model_desc_params(d);
    char kv[BYTES_TEXT_BYTES], scales[BYTES_TEXT_BYTES];
    uint64_t kv_bytes = 0, scale_bytes = 0;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        kv_bytes += plan->parts[i].kv_bytes;
        scale_bytes += plan->parts[i].scale_bytes;
    }
    put(p, "%s: %s, %" PRIu64 ".%02" PRIu64 " M parameters\n",
        d->name[0] != '\0' ? d->name : "model", d->family, params / 1000000, params / 10000 % 100);
    put(p, "  %u layers, dim %u, %u heads (%u kv) of %u, ffn %u, vocabulary %u\n", d->n_layers,
        d->dim, d->n_heads, d->n_kv_heads, d->head_dim, d->ffn_dim, d->vocab);
    put(p, "  profile %s, %u leaves, digest %016" PRIx64 "\n", plan->profile, plan->n_leaves,
        plan->digest);
    put(p, "  %u rank%s = %u stage%s x %u slice%s\n", plan->n_ranks, plan->n_ranks == 1 ? "" : "s",
        plan->pp, plan->pp == 1 ? "" : "s", plan->tp, plan->tp == 1 ? "" : "s");
    put(p,
        "  KV cache: %u tokens (%u blocks, %s over all ranks); streams: %u of up to %u positions; "
        "%u rows per step\n",
        plan->kv_tokens, plan->kv_blocks, plan_bytes_text(kv_bytes, kv), plan->seqs_max,
        plan->ctx_max, plan->rows_max);
    if (plan->fmt == KERN_FP8) {
        const uint32_t n_plain = plan_plain_mats(plan);
        put(p, "  fp8: %s; %s of the weights are scales; head, embedding and KV are bf16\n",
            d->quant.kind == MODEL_QUANT_FP8 ? "the checkpoint's own" : "quantised at load",
            plan_bytes_text(scale_bytes, scales));
        if (n_plain != 0) {
            put(p,
                "  fp8: %u of the %u matrices of the layers are bf16, as the checkpoint has them\n",
                n_plain, d->n_layers * MODEL_MATS);
        }
    }
    put(p, "  why: %s\n\n", plan->why);
}

/* ---- table ---- */

static void put_row(struct page *p, const struct plan_part *part)
{
    char layers[RANGE_TEXT_BYTES], heads[RANGE_TEXT_BYTES], kv_heads[RANGE_TEXT_BYTES];
    char ffn[RANGE_TEXT_BYTES], vocab[RANGE_TEXT_BYTES];
    char weights[BYTES_TEXT_BYTES], kv[BYTES_TEXT_BYTES], scratch[BYTES_TEXT_BYTES];
    char total[BYTES_TEXT_BYTES];

    put(p, "%5u %5u %5u %9s %9s %8s %13s %15s %11s %11s %11s %11s\n", part->rank, part->stage,
        part->slice, range_text(part->layers, layers), range_text(part->q_heads, heads),
        range_text(part->kv_heads, kv_heads), range_text(part->ffn_cols, ffn),
        range_text(part->vocab, vocab), plan_bytes_text(part->weight_bytes, weights),
        plan_bytes_text(part->kv_bytes, kv), plan_bytes_text(part->scratch_bytes, scratch),
        plan_bytes_text(part_bytes(part), total));
}

static void put_table(struct page *p, const struct plan *plan)
{
    const uint32_t n = MIN(plan->n_ranks, (uint32_t)TABLE_ROWS_MAX);

    put(p, "%5s %5s %5s %9s %9s %8s %13s %15s %11s %11s %11s %11s\n", "rank", "stage", "slice",
        "layers", "heads", "kv", "ffn", "vocabulary", "weights", "KV", "work", "total");
    for (uint32_t i = 0; i < n; i++) {
        put_row(p, &plan->parts[i]);
    }
    if (n < plan->n_ranks) {
        put(p, "  ... and %u more ranks (all of them: --json)\n", plan->n_ranks - n);
    }
    put(p, "\n");
}

/* ---- picture ---- */

/* Which of n columns (or rows) are drawn: all, or the first ones, a gap, and the last. */
struct shown {
    uint32_t n, limit;
};

static uint32_t shown_count(struct shown s)
{
    return MIN(s.n, s.limit);
}

/* Index of the i-th drawn one; UINT32_MAX is the gap. */
static uint32_t shown_at(struct shown s, uint32_t i)
{
    if (s.n <= s.limit || i < s.limit - 2) {
        return i;
    }
    return i == s.limit - 1 ? s.n - 1 : UINT32_MAX;
}

static void put_rule(struct page *p, struct shown slices, const char *left, const char *middle,
                     const char *right)
{
    put(p, "%*s%s", LEFT_COLUMNS, "", left);
    for (uint32_t i = 0; i < shown_count(slices); i++) {
        for (int c = 0; c < CELL_COLUMNS; c++) {
            put(p, "─");
        }
        put(p, "%s", i + 1 < shown_count(slices) ? middle : right);
    }
    put(p, "\n");
}

enum { PICTURE_LINES = 4 };

static void cell_text(const struct plan_part *part, uint32_t line, char *text, size_t bytes)
{
    char a[RANGE_TEXT_BYTES], b[BYTES_TEXT_BYTES];

    switch (line) {
    case 0:
        snprintf(text, bytes, "rank %u%s", part->rank,
                 part->has_embed && part->has_head ? ": embed, head"
                 : part->has_embed                 ? ": embed"
                 : part->has_head                  ? ": head"
                                                   : "");
        break;
    case 1:
        snprintf(text, bytes, "heads %s", range_text(part->q_heads, a));
        break;
    case 2:
        snprintf(text, bytes, "ffn %s", range_text(part->ffn_cols, a));
        break;
    default:
        snprintf(text, bytes, "%s", plan_bytes_text(part_bytes(part), b));
        break;
    }
}

static void put_stage(struct page *p, const struct plan *plan, uint32_t stage, struct shown slices)
{
    const struct plan_part *first = &plan->parts[(size_t)stage * plan->tp];
    char left[48] = "", layers[RANGE_TEXT_BYTES], text[64];

    for (uint32_t line = 0; line < PICTURE_LINES; line++) {
        if (line == 0) {
            snprintf(left, sizeof(left), "stage %u", stage);
        } else if (line < 3) {
            snprintf(left, sizeof(left), "%s",
                     line == 1 ? "layers" : range_text(first->layers, layers));
        } else {
            left[0] = '\0';
        }
        put(p, "%-*s│", LEFT_COLUMNS, left);
        for (uint32_t i = 0; i < shown_count(slices); i++) {
            const uint32_t slice = shown_at(slices, i);
            snprintf(text, sizeof(text), "...");
            if (slice != UINT32_MAX) {
                cell_text(&first[slice], line, text, sizeof(text));
            }
            put(p, " %-*.*s│", CELL_COLUMNS - 1, CELL_COLUMNS - 1, text);
        }
        put(p, "\n");
    }
}

static void put_picture(struct page *p, const struct plan *plan)
{
    const struct shown slices = { plan->tp, SLICES_SHOWN }, stages = { plan->pp, STAGES_SHOWN };

    put(p, "%*s", LEFT_COLUMNS + 1, "");
    for (uint32_t i = 0; i < shown_count(slices); i++) {
        const uint32_t slice = shown_at(slices, i);
        char text[32] = "...";
        if (slice != UINT32_MAX) {
            snprintf(text, sizeof(text), "slice %u", slice);
        }
        put(p, " %-*s", CELL_COLUMNS, text);
    }
    put(p, "\n");
    put_rule(p, slices, "┌", "┬", "┐");
    for (uint32_t i = 0; i < shown_count(stages); i++) {
        const uint32_t stage = shown_at(stages, i);
        if (stage == UINT32_MAX) {
            put(p, "%*s  ... %u more stages\n", LEFT_COLUMNS, "", plan->pp - STAGES_SHOWN + 1);
        } else {
            put_stage(p, plan, stage, slices);
        }
        if (i + 1 < shown_count(stages)) {
            put_rule(p, slices, "├", "┼", "┤");
        }
    }
    put_rule(p, slices, "└", "┴", "┘");
    put(p, "%*s %s; %s\n", LEFT_COLUMNS, "",
        plan->tp > 1 ? "across: all-reduce inside a stage" : "one slice: no all-reduce",
        plan->pp > 1 ? "down: the residual stream from stage to stage" : "one stage: no sends");
}

status plan_print(const struct plan *plan, struct buf *out)
{
    struct page p = { out, ST_OK };

    put_head(&p, plan);
    put_table(&p, plan);
    put_picture(&p, plan);
    return p.st;
}

/* ---- for programs ---- */

static json_t *range_json(struct range r)
{
    return json_pack("[I, I]", (json_int_t)r.begin, (json_int_t)r.end);
}

static json_t *part_json(const struct plan_part *part)
{
    return json_pack("{s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:b, s:I, s:I, s:I, s:I}",
                     "rank", (json_int_t)part->rank, "stage", (json_int_t)part->stage, "slice",
                     (json_int_t)part->slice, "layers", range_json(part->layers), "leaves",
                     range_json(part->leaves), "heads", range_json(part->q_heads), "kv_heads",
                     range_json(part->kv_heads), "ffn_columns", range_json(part->ffn_cols),
                     "vocabulary", range_json(part->vocab), "embed", (int)part->has_embed, "head",
                     (int)part->has_head, "weight_bytes", (json_int_t)part->weight_bytes,
                     "scale_bytes", (json_int_t)part->scale_bytes, "kv_bytes",
                     (json_int_t)part->kv_bytes, "scratch_bytes", (json_int_t)part->scratch_bytes);
}

static json_t *model_json(const struct model_desc *d)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name", d->name,
                     "family", d->family, "parameters", (json_int_t)model_desc_params(d), "layers",
                     (json_int_t)d->n_layers, "dim", (json_int_t)d->dim, "heads",
                     (json_int_t)d->n_heads, "kv_heads", (json_int_t)d->n_kv_heads, "head_dim",
                     (json_int_t)d->head_dim, "ffn_dim", (json_int_t)d->ffn_dim, "vocabulary",
                     (json_int_t)d->vocab, "context", (json_int_t)d->ctx_max);
}

static int append(const char *data, size_t len, void *out)
{
    return buf_append(out, data, len) == ST_OK ? 0 : -1;
}

status plan_print_json(const struct plan *plan, uint32_t prompt, struct buf *out)
{
    char digest[17];
    json_t *ranks = json_array();

    snprintf(digest, sizeof(digest), "%016" PRIx64, plan->digest);
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        json_array_append_new(ranks, part_json(&plan->parts[i]));
    }
    /* A directory's name need not be UTF-8; pack refuses that, so ask first. */
    json_t *model = model_json(&plan->desc);
    if (model == NULL) {
        struct model_desc unnamed = plan->desc;
        unnamed.name[0] = '\0';
        model = model_json(&unnamed);
    }
    json_t *root = json_pack(
        "{s:o, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "model", model,
        "profile", plan->profile, "digest", digest, "why", plan->why, "tp", (json_int_t)plan->tp,
        "pp", (json_int_t)plan->pp, "leaves", (json_int_t)plan->n_leaves, "ctx_max",
        (json_int_t)plan->ctx_max, "seqs_max", (json_int_t)plan->seqs_max, "rows_max",
        (json_int_t)plan->rows_max, "kv_blocks", (json_int_t)plan->kv_blocks, "kv_tokens",
        (json_int_t)plan->kv_tokens, "predicted", predict_json(plan, prompt), "ranks", ranks);
    if (root == NULL || json_array_size(json_object_get(root, "ranks")) != plan->n_ranks) {
        json_decref(root);
        return ST_ERR_NOMEM;
    }
    const int rc = json_dump_callback(root, append, out, JSON_INDENT(2));
    json_decref(root);
    return rc == 0 ? buf_append_char(out, '\n') : ST_ERR_NOMEM;
}
