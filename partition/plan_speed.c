/* partition/plan_speed.c - stages for ranks that differ in speed or memory.
 *
 * Layers are handed out one at a time to the stage that would be through with it first, of those whose
 * ranks have memory for it; for equal items this greedy order makes the slowest stage as fast as can be.
 * Time is that of a decode step of one row: what a stage reads, over what its host reads in a second.
 *
 * Memory that a fast stage's layers take cannot hold their KV, and the cache is as large as the tightest
 * rank's. So speed may cost half of it: of the KV that the roomiest stages would hold (at most what the
 * streams can use), half must still fit, or all that was asked for by --kv-tokens. */
#include "partition/plan_private.h"

#include "partition/predict.h"

struct stage {
    double ends_s, layer_s; /* its slowest slice's */
    uint32_t cap;           /* layers that its ranks have memory for */
};

/* What the search for memory asks again and again. */
struct sizes {
    uint64_t layer[KERN_LEAVES_MAX]; /* by slice: the largest layer's weights */
};

static struct plan_part part_at(const struct plan *plan, uint32_t stage, uint32_t slice,
                                uint32_t n_layers)
{
    struct plan_part part = { .rank = stage * plan->tp + slice, .stage = stage, .slice = slice };

    plan_cut_rank(plan, (struct range){ 0, n_layers }, &part);
    return part;
}

/* Layers count alike: their mean is taken (they differ in checkpoints that are partly fp8). How much of them the
 * host's caches hold depends on how many a stage gets, which is what is looked for: an even part. */
static void stage_times(const struct plan *plan, uint32_t stage, struct stage *s)
{
    static const struct predict_step step = { .n_rows = 1, .n_samples = 1 };
    const uint32_t n = plan->desc.n_layers;

    s->ends_s = s->layer_s = 0;
    for (uint32_t slice = 0; slice < plan->tp; slice++) {
        struct plan_part part = part_at(plan, stage, slice, n);
        const struct plan_site *site = &plan->sites[part.rank];
        struct predict_time none, all;
        part.weight_bytes = plan_weight_bytes(plan, &part) / plan->pp;
        predict_part(plan, &part, site, &step, &all);
        part.layers.end = 0;
        predict_part(plan, &part, site, &step, &none);
        s->ends_s = MAX(s->ends_s, none.s);
        s->layer_s = MAX(s->layer_s, (all.s - none.s) / n);
    }
}

static void sizes_find(const struct plan *plan, struct sizes *sizes)
{
    for (uint32_t slice = 0; slice < plan->tp; slice++) {
        const struct plan_part part = part_at(plan, 0, slice, 1);
        sizes->layer[slice] = 0;
        for (uint32_t i = 0; i < plan->desc.n_layers; i++) {
            if (i == 0 || plan->desc.plain[i] != plan->desc.plain[i - 1]) {
                sizes->layer[slice] = MAX(sizes->layer[slice], plan_layer_bytes_of(plan, &part, i));
            }
        }
    }
}

/* Layers that fit each of the stage's ranks beside plan->kv_blocks of KV. */
static uint32_t layers_fitting(const struct plan *plan, const struct plan_request *r,
                               const struct sizes *sizes, uint32_t stage)
{
    uint32_t cap = plan->desc.n_layers;

    for (uint32_t slice = 0; slice < plan->tp; slice++) {
        const struct plan_part part = part_at(plan, stage, slice, 1);
        const uint64_t memory = plan_memory_of(plan, r, part.rank);
        const uint64_t fixed = plan_ends_bytes_of(plan, &part) + plan_scratch_bytes(plan, &part) +
                               plan_reserve_of(plan);
        const uint64_t layer = sizes->layer[slice] + plan_kv_bytes(plan, &part);
        if (memory != 0) {
            const uint64_t n = memory > fixed ? (memory - fixed) / layer : 0;
            cap = (uint32_t)MIN((uint64_t)cap, n);
        }
    }
    return cap;
}

/* Of all stages; false: together they have no room for the layers, or one has none for any. */
static bool caps_with(const struct plan *plan, const struct plan_request *r,
                      const struct sizes *sizes, uint32_t blocks, uint32_t caps[PLAN_STAGES_MAX])
{
    struct plan sized = *plan;
    uint64_t sum = 0;
    bool is_empty = false;

    sized.kv_blocks = blocks;
    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        caps[stage] = layers_fitting(&sized, r, sizes, stage);
        is_empty = is_empty || caps[stage] == 0;
        sum += caps[stage];
    }
    return !is_empty && sum >= plan->desc.n_layers;
}

/* The most blocks, up to `most`, with which some stages fit; 0: none do. */
static uint32_t blocks_roomiest(const struct plan *plan, const struct plan_request *r,
                                const struct sizes *sizes, uint32_t most)
{
    uint32_t caps[PLAN_STAGES_MAX];
    uint32_t low = 0, high = most; /* low fits, or is 0 */

    while (low < high) {
        const uint32_t middle = low + (high - low + 1) / 2;
        if (caps_with(plan, r, sizes, middle, caps)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static bool are_alike(const struct plan *plan)
{
    const struct plan_site *a = &plan->sites[0];

    for (uint32_t i = 1; i < plan->n_ranks; i++) {
        const struct plan_site *b = &plan->sites[i];
        if (a->rates != b->rates || a->rates_plain != b->rates_plain || a->share < b->share ||
            a->share > b->share || a->memory_bytes != b->memory_bytes) {
            return false;
        }
    }
    return true;
}

static void deal(const struct plan *plan, const struct stage *stages, uint32_t *stage_layers)
{
    for (uint32_t i = 0; i < plan->pp; i++) {
        stage_layers[i] = 1; /* no stage is empty */
    }
    for (uint32_t n = plan->pp; n < plan->desc.n_layers; n++) {
        uint32_t best = UINT32_MAX;
        double best_s = 0;
        for (uint32_t i = 0; i < plan->pp; i++) {
            const double s = stages[i].ends_s + (stage_layers[i] + 1) * stages[i].layer_s;
            if (stage_layers[i] < stages[i].cap && (best == UINT32_MAX || s < best_s)) {
                best = i;
                best_s = s;
            }
        }
        ASSERT(best != UINT32_MAX); /* the caps sum up to the layers at least */
        stage_layers[best]++;
    }
}

bool plan_balance_speed(const struct plan *plan, const struct plan_request *r,
                        uint32_t *stage_layers)
{
    struct stage stages[PLAN_STAGES_MAX];
    uint32_t caps[PLAN_STAGES_MAX];
    struct sizes sizes = { .layer = { 0 } };

    if (plan->pp == 1 || are_alike(plan)) {
        return false;
    }
    sizes_find(plan, &sizes);
    const uint32_t most = blocks_roomiest(plan, r, &sizes, plan_blocks_wanted(plan, r));
    const uint32_t floor = r->kv_tokens != 0 ? most : MAX(most / 2, 1u);
    if (most == 0 || !caps_with(plan, r, &sizes, floor, caps)) {
        return false; /* even stages will say what is missing */
    }
    for (uint32_t i = 0; i < plan->pp; i++) {
        stage_times(plan, i, &stages[i]);
        stages[i].cap = caps[i];
    }
    deal(plan, stages, stage_layers);
    return true;
}
