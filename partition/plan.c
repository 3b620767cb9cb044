/* partition/plan.c - see plan.h. Checks what was asked, chooses what was not, fits the KV cache.
 *
 * Candidates (tp, pp) are tried in order of preference; the first whose ranks all hold their
 * weights, working memory and at least one KV block is the plan. Ranges and byte counts of a rank
 * are plan_cut.c. Everything is integer arithmetic: equal on every node. */
#include "partition/plan_private.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQS_DEFAULT = 64, ROWS_DEFAULT = 512, CUDA_VERSION_DEFAULT = 90 };

const char *plan_bytes_text(uint64_t bytes, char text[BYTES_TEXT_BYTES])
{
    static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB" };
    uint64_t unit = 1024;
    size_t i = 0;

    if (bytes < 1024) {
        snprintf(text, BYTES_TEXT_BYTES, "%" PRIu64 " B", bytes);
        return text;
    }
    while (i + 1 < ARRAY_LEN(units) && bytes / unit >= 1024) {
        unit *= 1024;
        i++;
    }
    /* Hundredths by integers: no rounding mode, no locale. */
    const uint64_t whole = bytes / unit, rest = bytes % unit;
    snprintf(text, BYTES_TEXT_BYTES, "%" PRIu64 ".%02" PRIu64 " %s", whole,
             rest / (unit / 1024) * 100 / 1024, units[i]);
    return text;
}

const char *plan_fmt_name(enum kern_fmt fmt)
{
    static const char *const names[KERN_FMTS] = { "f32", "bf16", "fp8" };

    return (uint32_t)fmt < KERN_FMTS ? names[fmt] : "?";
}

static void why_add(struct plan *plan, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void why_add(struct plan *plan, const char *fmt, ...)
{
    const size_t len = strlen(plan->why);
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(plan->why + len, sizeof(plan->why) - len, fmt, ap);
    va_end(ap);
}

/* ---- what was asked ---- */

static status check_tp(const struct plan *plan, uint32_t tp, struct err *err)
{
    const struct model_desc *d = &plan->desc;
    const uint32_t pairs = (d->ffn_dim + 1) / 2;
    char words[64] = "";
    size_t len = 0;

    if (tp <= plan->n_leaves && (tp & (tp - 1)) == 0 && tp <= pairs) {
        return ST_OK;
    }
    for (uint32_t t = 1; t <= plan->n_leaves && t <= pairs; t *= 2) {
        len += (size_t)snprintf(words + len, sizeof(words) - len, "%s%u", t == 1 ? "" : ", ", t);
    }
    return err_set(err, ST_ERR_ARG,
                   "tp %u: %u heads make %u leaves (ffn: %u columns); tp can be %s", tp, d->n_heads,
                   plan->n_leaves, d->ffn_dim, words);
}

static status check_pp(const struct plan *plan, uint32_t pp, struct err *err)
{
    const uint32_t most = MIN(plan->desc.n_layers, (uint32_t)PLAN_STAGES_MAX);

    return pp <= most ? ST_OK
                      : err_set(err, ST_ERR_ARG, "pp %u: %u layers make at most %u stages", pp,
                                plan->desc.n_layers, most);
}

static status check_stages(const struct plan_request *r, const struct plan *plan, struct err *err)
{
    uint64_t sum = 0;

    if (r->n_stage_layers == 0) {
        return ST_OK;
    }
    if (r->n_stage_layers > PLAN_STAGES_MAX || (r->pp != 0 && r->pp != r->n_stage_layers)) {
        return err_set(err, ST_ERR_ARG,
                       "stage layers are given for %u stages, pp is %u (at most %d)",
                       r->n_stage_layers, r->pp, PLAN_STAGES_MAX);
    }
    for (uint32_t i = 0; i < r->n_stage_layers; i++) {
        if (r->stage_layers[i] == 0) {
            return err_set(err, ST_ERR_ARG, "stage %u is given no layers; at least 1", i);
        }
        sum += r->stage_layers[i];
    }
    if (sum != plan->desc.n_layers) {
        return err_set(err, ST_ERR_ARG, "the stages are given %" PRIu64 " layers, the model has %u",
                       sum, plan->desc.n_layers);
    }
    return ST_OK;
}

/* Limits of a step, defaults filled in. */
static status check_step(const struct plan_request *r, struct plan *plan, struct err *err)
{
    const uint32_t model_ctx = plan->desc.ctx_max;

    plan->ctx_max = r->ctx_max != 0 ? r->ctx_max : model_ctx;
    plan->seqs_max = r->seqs_max != 0 ? r->seqs_max : SEQS_DEFAULT;
    plan->rows_max = r->rows_max != 0 ? r->rows_max : MAX(ROWS_DEFAULT, plan->seqs_max);
    if (plan->ctx_max > model_ctx) {
        return err_set(err, ST_ERR_ARG, "context of %u positions: the model was made for %u",
                       plan->ctx_max, model_ctx);
    }
    if (plan->seqs_max > PLAN_SEQS_MAX) {
        return err_set(err, ST_ERR_ARG, "%u streams in a step, at most %d", plan->seqs_max,
                       PLAN_SEQS_MAX);
    }
    if (plan->rows_max > PLAN_ROWS_MAX || plan->rows_max < plan->seqs_max) {
        return err_set(err, ST_ERR_ARG, "%u rows in a step, not from %u (one per stream) to %d",
                       plan->rows_max, plan->seqs_max, PLAN_ROWS_MAX);
    }
    return ST_OK;
}

/* Device, plane and the name of the numeric profile. */
static status check_device(const struct plan_request *r, struct plan *plan, struct err *err)
{
    const char *fmt = plan_fmt_name(plan->fmt);

    plan->device = r->device;
    plan->plane = r->plane;
    plan->free_order = r->free_order;
    plan->no_peer_sums = r->no_peer_sums;
    if (r->free_order && r->plane != PLAN_PLANE_NCCL) {
        return err_set(err, ST_ERR_ARG,
                       "sums in free order are NCCL's: they need a device and NCCL between them");
    }
    if (r->device == PLAN_CPU) {
        snprintf(plan->profile, sizeof(plan->profile), "cpu-%s-v1", fmt);
        return ST_OK;
    }
    plan->cuda_version = r->cuda_version != 0 ? r->cuda_version : CUDA_VERSION_DEFAULT;
    snprintf(plan->profile, sizeof(plan->profile), "cuda-sm%u-%s%s-v1", plan->cuda_version, fmt,
             r->free_order ? "-free" : "");
    return ST_OK;
}

/* Products are of whole matrices: parts in two formats would be two products, or one of them rounded
 * to the other's numbers. Nobody else runs such a checkpoint either (partition/README.md). */
static status check_mixed(const struct plan *plan, struct err *err)
{
    static const char *const names[MODEL_MATS] = { "q_proj, k_proj and v_proj", "o_proj",
                                                   "gate_proj and up_proj", "down_proj" };
    const struct model_desc *d = &plan->desc;

    if (plan->fmt != KERN_FP8) {
        return ST_OK;
    }
    for (uint32_t layer = 0; layer < d->n_layers; layer++) {
        for (uint32_t mat = 0; mat < MODEL_MATS; mat++) {
            if ((d->torn[layer] >> mat & 1) != 0) {
                return err_set(
                    err, ST_ERR_UNSUPPORTED,
                    "layer %u: some of %s are fp8 in the checkpoint and some are not; they "
                    "are multiplied as one matrix; --format bf16 takes them all",
                    layer, names[mat]);
            }
        }
    }
    if (plan_plain_mats(plan) == d->n_layers * MODEL_MATS) {
        return err_set(
            err, ST_ERR_UNSUPPORTED,
            "config.json says that the checkpoint is fp8, and no matrix of its layers is; "
            "--format bf16 takes it as it is");
    }
    return ST_OK;
}

static status check_request(const struct plan_request *r, struct plan *plan, struct err *err)
{
    const uint64_t ranks = (uint64_t)MAX(r->tp, 1u) * MAX(MAX(r->pp, r->n_stage_layers), 1u);
    status st = r->tp != 0 ? check_tp(plan, r->tp, err) : ST_OK;

    if (st == ST_OK) {
        st = check_stages(r, plan, err);
    }
    if (st == ST_OK) {
        st = check_pp(plan, MAX(r->pp, r->n_stage_layers), err);
    }
    if (st == ST_OK && (uint32_t)r->fmt >= KERN_FMTS) {
        st = err_set(err, ST_ERR_ARG, "format %d is none of f32, bf16, fp8", (int)r->fmt);
    }
    if (st == ST_OK && (ranks > PLAN_RANKS_MAX || r->n_ranks > PLAN_RANKS_MAX)) {
        st = err_set(err, ST_ERR_ARG, "%" PRIu64 " ranks, at most %d",
                     MAX(ranks, (uint64_t)r->n_ranks), PLAN_RANKS_MAX);
    }
    if (st == ST_OK && r->n_ranks != 0 && ranks > r->n_ranks) {
        st = err_set(err, ST_ERR_ARG, "tp %u x pp %u needs %" PRIu64 " ranks, there are %u",
                     MAX(r->tp, 1u), MAX(MAX(r->pp, r->n_stage_layers), 1u), ranks, r->n_ranks);
    }
    return st == ST_OK ? check_step(r, plan, err) : st;
}

/* ---- memory ---- */

/* Blocks that seqs_max streams of ctx_max positions can use at most. */
static uint32_t blocks_useful(const struct plan *plan)
{
    const uint64_t per_seq = (plan->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    return (uint32_t)MIN(per_seq * plan->seqs_max, (uint64_t)PLAN_KV_BLOCKS_MAX);
}

uint32_t plan_blocks_wanted(const struct plan *plan, const struct plan_request *r)
{
    const uint32_t useful = blocks_useful(plan);
    const uint32_t asked = r->kv_tokens / KERN_KV_BLOCK + (r->kv_tokens % KERN_KV_BLOCK != 0);

    return asked != 0 ? MIN(asked, useful) : useful;
}

/* The most blocks, up to `most`, whose K and V take at most `room` bytes on `part`. */
static uint32_t blocks_fitting(struct plan *plan, const struct plan_part *part, uint64_t room,
                               uint32_t most)
{
    uint32_t low = 0, high = most; /* low fits */

    while (low < high) {
        plan->kv_blocks = low + (high - low + 1) / 2;
        if (plan_kv_bytes(plan, part) <= room) {
            low = plan->kv_blocks;
        } else {
            high = plan->kv_blocks - 1;
        }
    }
    return low;
}

uint64_t plan_reserve_of(const struct plan *plan)
{
    return plan->device == PLAN_CUDA ? PLAN_RESERVE_CUDA_BYTES : PLAN_RESERVE_BYTES;
}

uint64_t plan_memory_of(const struct plan *plan, const struct plan_request *r, uint32_t rank)
{
    return plan->sites != NULL && plan->sites[rank].memory_bytes != 0
               ? plan->sites[rank].memory_bytes
               : r->rank_memory_bytes;
}

static status too_small(const struct plan *plan, const struct plan_part *part, uint64_t memory,
                        const char *what, struct err *err)
{
    char weights[BYTES_TEXT_BYTES], scratch[BYTES_TEXT_BYTES], reserve[BYTES_TEXT_BYTES];
    char have[BYTES_TEXT_BYTES];

    return err_set(
        err, ST_ERR_LIMIT,
        "with tp %u and pp %u, rank %u needs %s of weights, %s of working memory, %s of reserve%s, "
        "and may use %s; more ranks, fewer rows per step or a shorter context would help",
        plan->tp, plan->pp, part->rank, plan_bytes_text(part->weight_bytes, weights),
        plan_bytes_text(part->scratch_bytes, scratch),
        plan_bytes_text(plan_reserve_of(plan), reserve), what, plan_bytes_text(memory, have));
}

/* Choose plan->kv_blocks: what was wanted or is useful, the least that fits over all ranks. */
static status fit_kv(const struct plan_request *r, struct plan *plan, struct err *err)
{
    const uint32_t useful = blocks_useful(plan), wanted = plan_blocks_wanted(plan, r);
    const uint32_t asked = r->kv_tokens / KERN_KV_BLOCK + (r->kv_tokens % KERN_KV_BLOCK != 0);
    const struct plan_part *tight = &plan->parts[0]; /* the rank that decides */
    uint32_t blocks = wanted;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const struct plan_part *part = &plan->parts[i];
        const uint64_t memory = plan_memory_of(plan, r, i);
        if (memory == 0) {
            continue;
        }
        const uint64_t fixed = part->weight_bytes + part->scratch_bytes + plan_reserve_of(plan);
        if (fixed > memory) {
            return too_small(plan, part, memory, "", err);
        }
        const uint32_t n = blocks_fitting(plan, part, memory - fixed, blocks);
        tight = n < blocks ? part : tight;
        blocks = n;
    }
    if (blocks == 0) {
        return too_small(plan, tight, plan_memory_of(plan, r, tight->rank),
                         " and has no room for a KV block", err);
    }
    if (asked != 0 && blocks < wanted) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u KV tokens were asked for; with tp %u and pp %u, rank %u has room for %u",
                       r->kv_tokens, plan->tp, plan->pp, tight->rank, blocks * KERN_KV_BLOCK);
    }
    plan->kv_blocks = blocks;
    plan->kv_tokens = blocks * KERN_KV_BLOCK;
    why_add(plan, "; KV %u tokens %s", plan->kv_tokens,
            asked > useful    ? "(all that the streams can use)"
            : asked != 0      ? "as asked"
            : blocks < wanted ? "is what fits"
                              : "for every stream at full length");
    return ST_OK;
}

/* A stream longer than the whole cache cannot run: say so now, not when one comes. */
static void cap_ctx(struct plan *plan)
{
    if (plan->kv_tokens < plan->ctx_max) {
        why_add(plan, "; context cut from %u to %u positions by that", plan->ctx_max,
                plan->kv_tokens);
        plan->ctx_max = plan->kv_tokens;
    }
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        struct plan_part *part = &plan->parts[i];
        part->scratch_bytes = plan_scratch_bytes(plan, part);
        part->kv_bytes = plan_kv_bytes(plan, part);
    }
}

/* ---- one candidate ---- */

static status tables_make(const struct plan_request *r, struct plan_shape shape, struct plan *plan,
                          struct err *err)
{
    plan->tp = shape.tp;
    plan->pp = shape.pp;
    plan->n_ranks = shape.tp * shape.pp;
    free(plan->parts);
    free(plan->sites);
    plan->sites = NULL;
    plan->parts = calloc(plan->n_ranks, sizeof(*plan->parts));
    if (plan->parts != NULL && r->sites != NULL) {
        plan->sites = calloc(plan->n_ranks, sizeof(*plan->sites));
    }
    if (plan->parts == NULL || (r->sites != NULL && plan->sites == NULL)) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a plan of %u ranks", plan->n_ranks);
    }
    return r->sites != NULL ? r->sites->fill(r->sites->arg, plan, plan->sites, err) : ST_OK;
}

static status build(const struct plan_request *r, struct plan_shape shape, struct plan *plan,
                    struct err *err)
{
    uint32_t stage_layers[PLAN_STAGES_MAX];
    status st = tables_make(r, shape, plan, err);
    const size_t why_len = strlen(plan->why);

    if (st != ST_OK) {
        return st;
    }
    if (r->n_stage_layers != 0) {
        plan_cut(plan, r->stage_layers);
        st = fit_kv(r, plan, err);
    } else if (plan->sites != NULL && plan_balance_speed(plan, r, stage_layers)) {
        why_add(plan, "; stages by the speed and memory of their hosts");
        plan_cut(plan, stage_layers);
        st = fit_kv(r, plan, err);
    } else {
        plan_balance(plan, false, stage_layers);
        plan_cut(plan, stage_layers);
        st = fit_kv(r, plan, err);
        if (st == ST_ERR_LIMIT) {
            plan_balance(plan, true, stage_layers);
            plan_cut(plan, stage_layers);
            st = fit_kv(r, plan, err);
        }
    }
    if (st == ST_OK) {
        cap_ctx(plan);
    } else {
        plan->why[why_len] = '\0';
    }
    return st;
}

/* ---- choosing ---- */

/* The largest tp that the leaves, ffn and n_ranks allow. */
static uint32_t tp_most(const struct plan *plan, uint32_t n_ranks)
{
    uint32_t tp = 1;

    while (tp * 2 <= n_ranks && check_tp(plan, tp * 2, NULL) == ST_OK) {
        tp *= 2;
    }
    return tp;
}

static uint32_t pp_most(const struct plan *plan)
{
    return MIN(plan->desc.n_layers, (uint32_t)PLAN_STAGES_MAX);
}

static void why_shape(const struct plan_request *r, struct plan_shape shape, struct plan *plan)
{
    const uint32_t used = shape.tp * shape.pp;

    plan->why[0] = '\0';
    if (r->tp != 0 && (r->pp != 0 || r->n_stage_layers != 0)) {
        why_add(plan, "tp %u and pp %u as asked", shape.tp, shape.pp);
    } else if (r->n_ranks == 0) {
        why_add(plan, "tp %u x pp %u are the fewest ranks that hold it", shape.tp, shape.pp);
    } else {
        why_add(plan, "tp %u%s, pp %u%s: of %u leaves and %u rank%s", shape.tp,
                r->tp != 0 ? " as asked" : "", shape.pp,
                r->pp != 0 || r->n_stage_layers != 0 ? " as asked" : "", plan->n_leaves, r->n_ranks,
                r->n_ranks == 1 ? "" : "s");
    }
    if (r->n_ranks > used) {
        why_add(plan, "; %u left over", r->n_ranks - used);
        /* Another pp would use another number; the sentence names the two nearest. */
        if (r->pp == 0 && r->n_stage_layers == 0 && shape.pp < pp_most(plan)) {
            why_add(plan, " (%u or %u use all)", used, used + shape.tp);
        }
    }
}

/* Try candidate after candidate for n ranks. On failure `err` is that of the candidate with the
 * most ranks: the one that came closest. */
static status choose_for(const struct plan_request *r, uint32_t n, struct plan *plan,
                         struct err *err)
{
    const uint32_t pp_asked = r->n_stage_layers != 0 ? r->n_stage_layers : r->pp;
    const uint32_t ctx_max = plan->ctx_max;
    uint32_t tp = r->tp != 0 ? r->tp : tp_most(plan, n / MAX(pp_asked, 1u));
    uint32_t most = 0;
    status st = ST_OK;

    for (; tp >= 1; tp /= 2) {
        const struct plan_shape shape = { tp,
                                          pp_asked != 0 ? pp_asked : MIN(n / tp, pp_most(plan)) };
        struct err why_not = ERR_INIT;

        if (shape.tp * shape.pp <= most) {
            continue; /* fewer slices and no more ranks: cannot fit better */
        }
        plan->ctx_max = ctx_max;
        why_shape(r, shape, plan);
        st = build(r, shape, plan, &why_not);
        if (st != ST_ERR_LIMIT) {
            if (st != ST_OK && err != NULL) {
                *err = why_not;
            }
            return st;
        }
        most = shape.tp * shape.pp;
        if (err != NULL) {
            *err = why_not;
        }
        if (r->tp != 0) {
            break;
        }
    }
    return ST_ERR_LIMIT;
}

/* n_ranks 0: the fewest ranks that hold the model. Counts that cannot hold even the weights are
 * passed over by their sum, so that little is built in vain. */
static status choose_fewest(const struct plan_request *r, struct plan *plan, struct err *err)
{
    const uint32_t pp_asked = r->n_stage_layers != 0 ? r->n_stage_layers : r->pp;
    const uint32_t tp_max = r->tp != 0 ? r->tp : tp_most(plan, UINT32_MAX / 2);
    const uint32_t pp_max = pp_asked != 0 ? pp_asked : pp_most(plan);
    const uint32_t least = MAX(r->tp, 1u) * MAX(pp_asked, 1u);
    const uint32_t n_max = MIN(tp_max * pp_max, (uint32_t)PLAN_RANKS_MAX);
    const uint64_t element = plan->fmt == KERN_FP8 ? 1 : plan->fmt == KERN_BF16 ? 2 : 4;
    const uint64_t weights = model_desc_params(&plan->desc) * element;
    status st = ST_ERR_LIMIT;

    for (uint32_t n = least; n <= n_max && st == ST_ERR_LIMIT; n++) {
        const bool hopeless =
            r->rank_memory_bytes != 0 && weights / n > r->rank_memory_bytes && n < n_max;
        const bool whole = n % (r->tp != 0 ? r->tp : pp_asked != 0 ? pp_asked : 1u) == 0;
        if (!hopeless && whole) {
            st = choose_for(r, n, plan, err);
        }
    }
    return st;
}

/* ---- life ---- */

status plan_create(const struct model_desc *desc, const struct plan_request *request,
                   struct plan **plan_p, struct err *err)
{
    const bool asked = request->tp != 0 && (request->pp != 0 || request->n_stage_layers != 0);
    struct plan *plan = calloc(1, sizeof(*plan));

    if (plan == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a plan");
    }
    ASSERT(desc->n_heads % desc->n_kv_heads == 0); /* model_desc_read refused anything else */
    plan->desc = *desc;
    plan->fmt =
        request->fmt_of_model && desc->quant.kind == MODEL_QUANT_FP8 ? KERN_FP8 : request->fmt;
    plan->n_leaves = kern_leaves_for(desc->n_heads);
    plan->rates = request->sites != NULL ? request->sites->rates : NULL;
    status st = check_device(request, plan, err);
    if (st == ST_OK) {
        st = check_request(request, plan, err);
    }
    if (st == ST_OK) {
        st = check_mixed(plan, err);
    }
    if (st == ST_OK) {
        st = request->n_ranks == 0 && !asked
                 ? choose_fewest(request, plan, err)
                 : choose_for(request,
                              request->n_ranks != 0
                                  ? request->n_ranks
                                  : request->tp * MAX(request->pp, request->n_stage_layers),
                              plan, err);
    }
    if (st != ST_OK) {
        plan_destroy(plan);
        return st;
    }
    plan->digest = plan_digest_of(plan);
    *plan_p = plan;
    return ST_OK;
}

void plan_destroy(struct plan *plan)
{
    if (plan != NULL) {
        free(plan->parts);
        free(plan->sites);
        free(plan);
    }
}
