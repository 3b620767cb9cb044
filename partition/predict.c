/* partition/predict.c - see predict.h. */
#include "partition/predict.h"

#include "partition/plan_private.h"

#include <stdlib.h>
#include <string.h>

const char *predict_bound_name(enum predict_bound bound)
{
    static const char *const names[PREDICT_BOUNDS] = { "reading weights", "arithmetic", "attention",
                                                       "links", "what is not in kernels' rates" };

    return (uint32_t)bound < PREDICT_BOUNDS ? names[bound] : "?";
}

static void add(struct predict_time *t, enum predict_bound bound, double s)
{
    t->part[bound] += s;
    t->s += s;
}

static void add_all(struct predict_time *t, const struct predict_time *other)
{
    for (uint32_t i = 0; i < PREDICT_BOUNDS; i++) {
        add(t, (enum predict_bound)i, other->part[i]);
    }
}

enum predict_bound predict_bound_of(const struct predict_time *t)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < PREDICT_BOUNDS; i++) {
        best = t->part[i] > t->part[best] ? i : best;
    }
    return (enum predict_bound)best;
}

/* ---- a rank ---- */

static double element_bytes(const struct plan *plan)
{
    return kern_fmt_of_x(plan->fmt) == KERN_F32 ? 4 : 2;
}

/* Packed bytes of matrices: of the plan's format, and of those that it holds in another. */
struct mats_bytes {
    uint64_t own, plain;
};

static void count_mat(const struct plan *plan, const struct plan_part *part, uint32_t layer,
                      enum plan_mat which, struct mats_bytes *bytes)
{
    struct kern_mat mat;

    plan_mat(plan, part, layer, which, &mat);
    *(mat.fmt == plan->fmt ? &bytes->own : &bytes->plain) +=
        plan_mat_bytes(plan, part, layer, which);
}

static void add_format(const struct plan_part *part, const struct plan_site *site,
                       const struct rates_entry *e, uint64_t bytes, uint32_t n_rows,
                       struct predict_time *t)
{
    /* The caches are the host's: what all of its ranks hold goes through them. */
    const uint64_t total = (uint64_t)((double)part->weight_bytes / site->share);

    if (bytes != 0 && n_rows != 0) {
        add(t, rates_reading_bounds(e, total, n_rows) ? PREDICT_READING : PREDICT_ARITHMETIC,
            rates_weights_s(e, bytes, total, n_rows) / site->share);
    }
}

static void add_weights(const struct plan_part *part, const struct plan_site *site,
                        const struct mats_bytes *bytes, uint32_t n_rows, struct predict_time *t)
{
    const struct rates_entry *plain = site->rates_plain != NULL ? site->rates_plain : site->rates;

    add_format(part, site, site->rates, bytes->own, n_rows, t);
    add_format(part, site, plain, bytes->plain, n_rows, t);
}

/* One layer's. K and V of each stream are read once by a decode row; where those of all layers stay in the
 * caches, reading them costs nothing beside computing. */
static double attention_s(const struct plan *plan, const struct plan_part *part,
                          const struct plan_site *site, const struct predict_step *step)
{
    const struct rates_entry *e = site->rates;
    const uint32_t d = plan->desc.head_dim;
    const double rows = step->n_rows * step->positions;
    const double scores = range_len(part->q_heads) * rows;
    const double bytes = 2.0 * range_len(part->kv_heads) * element_bytes(plan) * d * rows;

    if (step->is_prompt) {
        return rates_scores_s(&e->prompt, scores, d) / site->share;
    }
    const double computing_s = rates_scores_s(&e->decode, scores, d);
    const double all = bytes * range_len(part->layers) + (double)part->weight_bytes;
    const double reading_s =
        all / site->share <= (double)e->cached_bytes ? 0 : bytes / e->kv_bytes_s;
    return MAX(computing_s, reading_s) / site->share;
}

/* What norms (twice), rotation, storing K and V, activation and residual (twice) read and write of a
 * row. worker/measure.c runs just these. */
static double vector_bytes(const struct plan *plan, const struct plan_part *part)
{
    const double c = plan->desc.dim, d = plan->desc.head_dim, w = element_bytes(plan);
    const double h = range_len(part->q_heads), k = range_len(part->kv_heads);
    const double f = range_len(part->ffn_cols);

    return 2 * c * (4 + w) + 8 * (h + k) * d + 2 * k * d * (4 + w) + f * (8 + w) + 2 * 12 * c;
}

/* The matrices of all its layers, which differ where an fp8 checkpoint holds some in another format. */
static struct mats_bytes layers_mats(const struct plan *plan, const struct plan_part *part)
{
    struct mats_bytes bytes = { 0, 0 }, layer = bytes;

    for (uint32_t i = part->layers.begin; i < part->layers.end; i++) {
        if (i == part->layers.begin || plan->desc.plain[i] != plan->desc.plain[i - 1]) {
            layer = (struct mats_bytes){ 0, 0 };
            for (uint32_t mat = 0; mat < MODEL_MATS; mat++) {
                count_mat(plan, part, i, (enum plan_mat)mat, &layer);
            }
        }
        bytes.own += layer.own;
        bytes.plain += layer.plain;
    }
    return bytes;
}

bool predict_records(const struct plan *plan)
{
    return plan->device == PLAN_CUDA && (plan->tp == 1 || plan->plane == PLAN_PLANE_NCCL);
}

/* What a layer costs however small it is: on a device mostly the host's way to a launch, which a recorded step
 * goes once. */
static double layer_s(const struct plan *plan, const struct rates_entry *e,
                      const struct predict_step *step)
{
    const bool is_recorded = predict_records(plan) && !step->is_prompt && e->recorded_layer_s > 0;

    return is_recorded ? e->recorded_layer_s : e->layer_s;
}

void predict_part(const struct plan *plan, const struct plan_part *part,
                  const struct plan_site *site, const struct predict_step *step,
                  struct predict_time *time_p)
{
    const double n = range_len(part->layers);
    const struct rates_entry *e = site->rates;
    const struct mats_bytes layers = layers_mats(plan, part);
    struct predict_time t = { .s = 0 };

    add_weights(part, site, &layers, step->n_rows, &t);
    add(&t, PREDICT_ATTENTION, n * attention_s(plan, part, site, step));
    add(&t, PREDICT_REST,
        n * (layer_s(plan, e, step) +
             step->n_rows * vector_bytes(plan, part) / e->vector_bytes_s / site->share));
    if (part->has_head && step->n_samples != 0) {
        struct mats_bytes head = { 0, 0 };
        count_mat(plan, part, 0, PLAN_MAT_HEAD, &head);
        add_weights(part, site, &head, step->n_samples, &t);
        add(&t, PREDICT_REST, step->n_samples * (double)range_len(part->vocab) / e->scan_ids_s);
    }
    *time_p = t;
}

/* ---- between ranks ---- */

static const struct rates_link *link_of(const struct plan *plan, uint32_t a, uint32_t b)
{
    return plan->sites[a].host == plan->sites[b].host ? &plan->rates->on_host
                                                      : &plan->rates->across;
}

/* The worst link of the stage's slices. */
static const struct rates_link *link_inside(const struct plan *plan, uint32_t stage)
{
    const uint32_t first = stage * plan->tp;

    for (uint32_t i = 1; i < plan->tp; i++) {
        if (plan->sites[first].host != plan->sites[first + i].host) {
            return &plan->rates->across;
        }
    }
    return &plan->rates->on_host;
}

/* A sum of `bytes` over tp slices: all of it log2(tp) times, or parts of it twice as often. */
static double sum_s(const struct rates_link *link, uint32_t tp, double bytes)
{
    uint32_t hops = 0;

    while (1u << hops < tp) {
        hops++;
    }
    const double whole = hops * (link->latency_s + bytes / link->bytes_s);
    const double parts = 2 * hops * link->latency_s + 2.0 * (tp - 1) / tp * bytes / link->bytes_s;
    return MIN(whole, parts);
}

static double links_s(const struct plan *plan, uint32_t stage, uint32_t n_rows)
{
    const struct plan_part *first = &plan->parts[(size_t)stage * plan->tp];
    const double bytes = 4.0 * n_rows * plan->desc.dim;
    double s = 0;

    if (plan->tp > 1) {
        s += (2 * range_len(first->layers) + (first->has_embed ? 1 : 0)) *
             sum_s(link_inside(plan, stage), plan->tp, bytes);
    }
    if (stage != 0) {
        const struct rates_link *l = link_of(plan, (stage - 1) * plan->tp, stage * plan->tp);
        s += l->latency_s + bytes / l->bytes_s;
    }
    return s;
}

/* ---- a stage, a step ---- */

void predict_stage(const struct plan *plan, uint32_t stage, const struct predict_step *step,
                   struct predict_time *time_p)
{
    struct predict_time slowest = { .s = 0 };

    for (uint32_t i = 0; i < plan->tp; i++) {
        const uint32_t rank = stage * plan->tp + i;
        struct predict_time t;
        predict_part(plan, &plan->parts[rank], &plan->sites[rank], step, &t);
        slowest = t.s > slowest.s ? t : slowest;
    }
    add(&slowest, PREDICT_LINKS, links_s(plan, stage, step->n_rows));
    *time_p = slowest;
}

void predict_step(const struct plan *plan, const struct predict_step *step,
                  struct predict_time *time_p)
{
    struct predict_time all = { .s = 0 };

    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        struct predict_time t;
        predict_stage(plan, stage, step, &t);
        add_all(&all, &t);
    }
    if (plan->pp > 1) {
        add(&all, PREDICT_LINKS, link_of(plan, 0, plan->n_ranks - 1)->latency_s);
    }
    *time_p = all;
}

static struct predict_step decode_of(const struct plan *plan, uint32_t n_streams, double positions)
{
    const uint32_t rows = (n_streams + plan->pp - 1) / plan->pp;

    return (struct predict_step){ .n_rows = rows, .n_samples = rows, .positions = positions };
}

double predict_decode_s(const struct plan *plan, uint32_t n_streams, double positions)
{
    struct predict_time t;

    if (plan->sites == NULL || n_streams == 0) {
        return 0;
    }
    const struct predict_step step = decode_of(plan, n_streams, positions);
    predict_step(plan, &step, &t);
    return t.s;
}

/* Of one rank; layers with the same matrices in other formats take the same time. */
static double rank_layer_most_s(const struct plan *plan, uint32_t rank,
                                const struct predict_step *step)
{
    struct plan_part one = plan->parts[rank];
    const struct range layers = one.layers;
    double most = 0;

    for (uint32_t i = layers.begin; i < layers.end; i++) {
        struct predict_time t;
        if (i == layers.begin || plan->desc.plain[i] != plan->desc.plain[i - 1]) {
            one.layers = (struct range){ i, i + 1 };
            predict_part(plan, &one, &plan->sites[rank], step, &t);
            most = MAX(most, t.s);
        }
    }
    return most;
}

double predict_layer_most_s(const struct plan *plan)
{
    const struct predict_step step = { .n_rows = plan->rows_max,
                                       .positions = plan->ctx_max,
                                       .is_prompt = true };
    double most = 0;

    for (uint32_t i = 0; plan->sites != NULL && i < plan->n_ranks; i++) {
        most = MAX(most, rank_layer_most_s(plan, i, &step));
    }
    return most;
}

/* ---- a request ---- */

/* Chunks of rows_max go down the stages one behind the other. */
static double prompt_s(const struct plan *plan, uint32_t prompt, struct predict_time *sum_p)
{
    double done[PLAN_STAGES_MAX] = { 0 }; /* when a stage was through with the chunk before */
    struct predict_time sum = { .s = 0 };

    for (uint32_t at = 0; at < prompt;) {
        const uint32_t rows = MIN(plan->rows_max, prompt - at);
        const struct predict_step step = { .n_rows = rows,
                                           .n_samples = at + rows == prompt ? 1 : 0,
                                           .positions = at + (rows + 1) / 2.0,
                                           .is_prompt = true };
        double before = 0; /* when the stage above was through with this one */
        for (uint32_t stage = 0; stage < plan->pp; stage++) {
            struct predict_time t;
            predict_stage(plan, stage, &step, &t);
            add_all(&sum, &t);
            before = done[stage] = MAX(before, done[stage]) + t.s;
        }
        at += rows;
    }
    *sum_p = sum;
    return done[plan->pp - 1];
}

static void predict_many(const struct plan *plan, struct prediction *p)
{
    const uint32_t blocks = p->prompt / KERN_KV_BLOCK + 1; /* of a stream at that position */
    p->streams = MAX(MIN(plan->seqs_max, plan->kv_blocks / blocks), 1u);
    const struct predict_step step = decode_of(plan, p->streams, p->prompt);
    struct predict_time all, slowest = { .s = 0 };

    predict_step(plan, &step, &all);
    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        struct predict_time t;
        predict_stage(plan, stage, &step, &t);
        if (t.s > slowest.s) {
            slowest = t;
            p->slowest_stage = stage;
        }
    }
    const double turn_s = plan->pp * slowest.s;
    p->round_s = MAX(all.s, turn_s);
    p->tokens_s = p->streams / p->round_s;
    p->round_bound = predict_bound_of(all.s > turn_s ? &all : &slowest);
}

/* Does it hold a matrix in another format than the plan's? */
static bool has_plain(const struct plan *plan, const struct plan_part *part)
{
    struct mats_bytes bytes = layers_mats(plan, part);

    if (part->has_head) {
        count_mat(plan, part, 0, PLAN_MAT_HEAD, &bytes);
    }
    return bytes.plain != 0;
}

bool plan_predict(const struct plan *plan, uint32_t prompt, struct prediction *p_p)
{
    struct prediction p = { .prompt = prompt != 0 ? prompt : PREDICT_PROMPT_DEFAULT };
    struct predict_time t;

    if (plan->sites == NULL) {
        return false;
    }
    p.prompt = MAX(MIN(p.prompt, plan->ctx_max - 1), 1u);
    p.first_s = prompt_s(plan, p.prompt, &t);
    p.first_bound = predict_bound_of(&t);
    p.prompt_tokens_s = p.prompt / p.first_s;
    const struct predict_step one = decode_of(plan, 1, p.prompt);
    predict_step(plan, &one, &t);
    p.token_s = t.s;
    p.token_bound = predict_bound_of(&t);
    predict_many(plan, &p);
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const struct plan_site *site = &plan->sites[i];
        p.n_assumed += site->is_assumed ? 1 : 0;
        p.n_plain_assumed += has_plain(plan, &plan->parts[i]) && site->rates_plain == NULL ? 1 : 0;
    }
    *p_p = p;
    return true;
}
