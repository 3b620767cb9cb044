/* partition/plan_cut.c - ranges and bytes of a rank, once tp, pp and the stages are known. */
#include "partition/plan_private.h"

#include <stdio.h>
#include <string.h>

enum { COLL_SMALL_BYTES = 512 << 10, COLL_LARGE_BYTES = 32 << 20 };

/* ---- ranges ---- */

/* Slice of n_units cut into R leaves: the units of leaves [begin, end). */
static struct range units_of(uint32_t n_units, uint32_t n_leaves, struct range leaves)
{
    return (struct range){ kern_leaf_begin(n_units, n_leaves, leaves.begin),
                           kern_leaf_begin(n_units, n_leaves, leaves.end) };
}

static uint32_t ffn_pairs(uint32_t ffn_dim)
{
    return (ffn_dim + 1) / 2;
}

/* First ffn column of a leaf: leaves hold whole pairs, the last pair of an odd ffn_dim is half. */
static uint32_t ffn_begin(const struct plan *plan, uint32_t leaf)
{
    const uint32_t ffn = plan->desc.ffn_dim;
    return MIN(2 * kern_leaf_begin(ffn_pairs(ffn), plan->n_leaves, leaf), ffn);
}

static struct range vocab_of(const struct plan *plan, uint32_t slice)
{
    const uint32_t vocab = plan->desc.vocab;
    const uint32_t n_blocks = (vocab + KERN_VOCAB_BLOCK - 1) / KERN_VOCAB_BLOCK;

    return (struct range){
        MIN(kern_leaf_begin(n_blocks, plan->tp, slice) * KERN_VOCAB_BLOCK, vocab),
        MIN(kern_leaf_begin(n_blocks, plan->tp, slice + 1) * KERN_VOCAB_BLOCK, vocab)
    };
}

void plan_cut_rank(const struct plan *plan, struct range layers, struct plan_part *part)
{
    const struct model_desc *d = &plan->desc;
    const uint32_t run = plan->n_leaves / plan->tp, group = d->n_heads / d->n_kv_heads;

    part->layers = layers;
    part->leaves = (struct range){ part->slice * run, (part->slice + 1) * run };
    part->q_heads = units_of(d->n_heads, plan->n_leaves, part->leaves);
    part->kv_heads =
        (struct range){ part->q_heads.begin / group, (part->q_heads.end - 1) / group + 1 };
    part->ffn_cols =
        (struct range){ ffn_begin(plan, part->leaves.begin), ffn_begin(plan, part->leaves.end) };
    part->has_embed = part->stage == 0;
    part->has_head = part->stage == plan->pp - 1;
    part->vocab =
        part->has_embed || part->has_head ? vocab_of(plan, part->slice) : (struct range){ 0, 0 };
}

void plan_cut(struct plan *plan, const uint32_t *stage_layers)
{
    uint32_t layer = 0;

    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        const struct range layers = { layer, layer + stage_layers[stage] };
        for (uint32_t slice = 0; slice < plan->tp; slice++) {
            struct plan_part *part = &plan->parts[stage * plan->tp + slice];
            memset(part, 0, sizeof(*part));
            part->rank = stage * plan->tp + slice;
            part->stage = stage;
            part->slice = slice;
            plan_cut_rank(plan, layers, part);
            part->weight_bytes = plan_weight_bytes(plan, part);
            part->scale_bytes = plan_scale_bytes(plan, part);
            part->scratch_bytes = plan_scratch_bytes(plan, part);
        }
        layer = layers.end;
    }
    ASSERT(layer == plan->desc.n_layers);
}

/* ---- what a rank allocates ---- */

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN;
}

/* Of an element of what is no matrix of a layer. */
static uint64_t fmt_bytes(enum kern_fmt fmt)
{
    return kern_fmt_of_x(fmt) == KERN_BF16 ? 2 : 4;
}

static uint32_t qkv_rows(const struct plan *plan, const struct plan_part *part)
{
    return (range_len(part->q_heads) + 2 * range_len(part->kv_heads)) * plan->desc.head_dim;
}

static void one_leaf(struct kern_mat *mat, uint32_t n, uint32_t k)
{
    mat->n = n;
    mat->k = k;
    mat->n_leaves = 1;
    mat->leaf[0] = 0;
    mat->leaf[1] = k;
}

static void by_leaves(const struct plan *plan, const struct plan_part *part, bool ffn,
                      struct kern_mat *mat)
{
    const struct model_desc *d = &plan->desc;

    mat->n = d->dim;
    mat->k0 = ffn ? part->ffn_cols.begin : part->q_heads.begin * d->head_dim;
    mat->n_leaves = range_len(part->leaves);
    for (uint32_t i = 0; i <= mat->n_leaves; i++) {
        const uint32_t leaf = part->leaves.begin + i;
        mat->leaf[i] =
            ffn ? ffn_begin(plan, leaf) - part->ffn_cols.begin
                : (kern_leaf_begin(d->n_heads, plan->n_leaves, leaf) - part->q_heads.begin) *
                      d->head_dim;
    }
    mat->k = mat->leaf[mat->n_leaves];
}

static enum kern_fmt mat_fmt(const struct plan *plan, uint32_t layer, enum plan_mat which)
{
    const bool is_plain = which == PLAN_MAT_HEAD || (plan->desc.plain[layer] >> which & 1) != 0;

    return is_plain ? kern_fmt_of_x(plan->fmt) : plan->fmt;
}

uint32_t plan_plain_mats(const struct plan *plan)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < plan->desc.n_layers && plan->fmt == KERN_FP8; i++) {
        n += (uint32_t)__builtin_popcount(plan->desc.plain[i]);
    }
    return n;
}

void plan_mat(const struct plan *plan, const struct plan_part *part, uint32_t layer,
              enum plan_mat which, struct kern_mat *mat_p)
{
    const uint32_t dim = plan->desc.dim;
    struct kern_mat mat = { .fmt = mat_fmt(plan, layer, which) };

    switch (which) {
    case PLAN_MAT_QKV:
        one_leaf(&mat, qkv_rows(plan, part), dim);
        break;
    case PLAN_MAT_GATE_UP:
        one_leaf(&mat, 2 * range_len(part->ffn_cols), dim);
        break;
    case PLAN_MAT_HEAD:
        one_leaf(&mat, part->has_head ? range_len(part->vocab) : 0, dim);
        break;
    case PLAN_MAT_O:
        by_leaves(plan, part, false, &mat);
        break;
    case PLAN_MAT_DOWN:
        by_leaves(plan, part, true, &mat);
        break;
    }
    *mat_p = mat;
}

void plan_embed(const struct plan *plan, const struct plan_part *part, struct kern_embed *embed_p)
{
    *embed_p = (struct kern_embed){ .fmt = kern_fmt_of_x(plan->fmt),
                                    .row0 = part->vocab.begin,
                                    .n_rows = part->has_embed ? range_len(part->vocab) : 0,
                                    .dim = plan->desc.dim,
                                    .data = NULL };
}

void plan_kv(const struct plan *plan, const struct plan_part *part, struct kern_kv *kv_p)
{
    *kv_p = (struct kern_kv){ .fmt = kern_fmt_of_x(plan->fmt),
                              .n_heads = range_len(part->kv_heads),
                              .head_dim = plan->desc.head_dim,
                              .n_blocks = plan->kv_blocks,
                              .k = NULL,
                              .v = NULL };
}

uint64_t plan_mat_bytes(const struct plan *plan, const struct plan_part *part, uint32_t layer,
                        enum plan_mat which)
{
    struct kern_mat mat;

    plan_mat(plan, part, layer, which, &mat);
    return aligned(plan->device == PLAN_CUDA ? kern_mat_bytes_cuda(&mat)
                                             : kern_ops_ref()->mat_bytes(&mat));
}

uint64_t plan_layer_bytes_of(const struct plan *plan, const struct plan_part *part, uint32_t layer)
{
    const struct model_desc *d = &plan->desc;
    const uint64_t dim = d->dim;
    uint64_t bytes = 2 * aligned(4 * dim); /* two norms */

    for (uint32_t mat = 0; mat < MODEL_MATS; mat++) {
        bytes += plan_mat_bytes(plan, part, layer, (enum plan_mat)mat);
    }
    bytes += d->qkv_bias ? aligned(4 * (uint64_t)qkv_rows(plan, part)) : 0;
    bytes += d->o_bias ? aligned(4 * dim) : 0;
    bytes += d->mlp_bias ? aligned(8 * (uint64_t)range_len(part->ffn_cols)) + aligned(4 * dim) : 0;
    bytes += d->qk_norm ? 2 * aligned(4 * (uint64_t)d->head_dim) : 0;
    return bytes;
}

/* Final norm and output matrix. */
static uint64_t head_bytes(const struct plan *plan, const struct plan_part *part)
{
    return part->has_head ? aligned(4 * (uint64_t)plan->desc.dim) +
                                plan_mat_bytes(plan, part, 0, PLAN_MAT_HEAD)
                          : 0;
}

static uint64_t embed_bytes(const struct plan *plan, const struct plan_part *part)
{
    struct kern_embed embed;

    plan_embed(plan, part, &embed);
    return aligned(kern_ops_ref()->embed_bytes(&embed));
}

uint64_t plan_ends_bytes_of(const struct plan *plan, const struct plan_part *part)
{
    return head_bytes(plan, part) + embed_bytes(plan, part);
}

uint64_t plan_weight_bytes(const struct plan *plan, const struct plan_part *part)
{
    /* A tied model's matrix is held twice where a rank has both ends: looked up by row it lies in
     * rows, multiplied it lies in panels. */
    uint64_t bytes = plan_ends_bytes_of(plan, part);

    for (uint32_t i = part->layers.begin; i < part->layers.end; i++) {
        bytes += plan_layer_bytes_of(plan, part, i);
    }
    return bytes;
}

uint64_t plan_scale_bytes(const struct plan *plan, const struct plan_part *part)
{
    uint64_t bytes = 0;

    for (uint32_t i = part->layers.begin; i < part->layers.end; i++) {
        for (uint32_t which = 0; which < MODEL_MATS; which++) {
            struct kern_mat mat;
            plan_mat(plan, part, i, (enum plan_mat)which, &mat);
            /* Both layouts pad outputs to 16. */
            bytes += mat.fmt == KERN_FP8
                         ? ((uint64_t)mat.n + 15) / 16 * 16 * kern_mat_groups(&mat) * sizeof(float)
                         : 0;
        }
    }
    return bytes;
}

uint64_t plan_kv_bytes(const struct plan *plan, const struct plan_part *part)
{
    struct kern_kv kv;

    plan_kv(plan, part, &kv);
    return 2 * aligned(kern_ops_ref()->kv_bytes(&kv)) * range_len(part->layers);
}

uint64_t plan_layer_bytes(const struct plan *plan)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const struct plan_part *p = &plan->parts[i];
        bytes = MAX(bytes, p->weight_bytes / MAX(range_len(p->layers), 1u));
    }
    return bytes;
}

/* Room for every slice's vector of a decode step (up to COLL_SMALL_BYTES each), or for one vector of
 * a prompt's rows (up to COLL_LARGE_BYTES; longer ones go in blocks). */
uint64_t plan_coll_bytes(const struct plan *plan)
{
    const uint64_t x = aligned(4 * (uint64_t)plan->rows_max * plan->desc.dim);
    const uint64_t run = KERN_ALIGN * (uint64_t)plan->tp; /* every slice's part is padded */

    if (plan->plane != PLAN_PLANE_NCCL || plan->tp == 1) {
        return 0;
    }
    return MAX(plan->tp * MIN(x, (uint64_t)COLL_SMALL_BYTES),
               MIN((x + run - 1) / run * run, (uint64_t)COLL_LARGE_BYTES));
}

uint64_t plan_scratch_bytes(const struct plan *plan, const struct plan_part *part)
{
    const struct model_desc *d = &plan->desc;
    const uint64_t t = plan->rows_max, s = plan->seqs_max, dim = d->dim;
    const uint64_t fmt = fmt_bytes(plan->fmt), ffn = range_len(part->ffn_cols);
    const uint64_t table = (plan->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    uint64_t bytes = 3 * aligned(4 * t * dim); /* x twice, partial */

    bytes += aligned(4 * t * qkv_rows(plan, part)) + aligned(4 * t * 2 * ffn);
    bytes += aligned(fmt * t * dim) + aligned(fmt * t * ffn);
    bytes += aligned(fmt * t * range_len(part->q_heads) * d->head_dim);
    bytes += 2 * aligned(4 * (uint64_t)plan->ctx_max * (d->head_dim / 2)); /* cos, sin */
    bytes += aligned(4 * aligned(4 * t) + aligned(4 * s) + aligned(4 * s * table));
    if (part->has_head && part->has_embed) { /* what the next step is fed with */
        bytes += aligned(8 * s) + (plan->tp > 1 ? aligned(8 * s * plan->tp) : 0);
    }
    if (part->has_head) {
        bytes += aligned(4 * s * dim) + aligned(4 * s * range_len(part->vocab));
    }
    return bytes + plan_coll_bytes(plan);
}

/* ---- stages ---- */

/* What balancing knows: a layer's bytes over all slices, and the ends'. */
struct load {
    uint64_t layers[MODEL_LAYERS_MAX];
    uint64_t embed, head;
    bool is_even; /* all layers are alike */
};

static void weigh(const struct plan *plan, struct load *load)
{
    *load = (struct load){ .is_even = true };
    for (uint32_t slice = 0; slice < plan->tp; slice++) {
        struct plan_part first = { .slice = slice, .stage = 0 };
        struct plan_part end = { .slice = slice, .stage = plan->pp - 1 };
        plan_cut_rank(plan, (struct range){ 0, 1 }, &first);
        plan_cut_rank(plan, (struct range){ 0, 1 }, &end);
        load->embed += embed_bytes(plan, &first);
        load->head += head_bytes(plan, &end);
        const uint64_t even = plan_layer_bytes_of(plan, &first, 0);
        for (uint32_t i = 0; i < plan->desc.n_layers; i++) {
            const bool same = plan->desc.plain[i] == plan->desc.plain[0];
            load->layers[i] += same ? even : plan_layer_bytes_of(plan, &first, i);
            load->is_even = load->is_even && (same || plan->fmt != KERN_FP8);
        }
    }
}

/* Equal layers are handed out one at a time to the stage that has the least to do; for equal items
 * this greedy order is optimal. Equal stages: the one with less memory first, then the lower index. */
static void hand_out(const struct plan *plan, const struct load *load, bool count_embed,
                     uint32_t *stage_layers)
{
    uint64_t work[PLAN_STAGES_MAX] = { 0 }, memory[PLAN_STAGES_MAX] = { 0 };
    const uint64_t layer = load->layers[0];
    const uint32_t last = plan->pp - 1;

    work[0] += count_embed ? load->embed : 0;
    memory[0] += load->embed;
    work[last] += load->head;
    memory[last] += load->head;
    for (uint32_t i = 0; i < plan->pp; i++) {
        stage_layers[i] = 1; /* no stage is empty */
        work[i] += layer;
        memory[i] += layer;
    }
    for (uint32_t n = plan->pp; n < plan->desc.n_layers; n++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < plan->pp; i++) {
            if (work[i] < work[best] || (work[i] == work[best] && memory[i] < memory[best])) {
                best = i;
            }
        }
        stage_layers[best]++;
        work[best] += layer;
        memory[best] += layer;
    }
}

/* Stages from the first on, each with as many layers as stay within `most`, a layer kept back for each
 * stage behind it. False: some stage, at the latest the last, has more. */
static bool pack_stages(const struct plan *plan, const struct load *load, bool count_embed,
                        uint64_t most, uint32_t *stage_layers)
{
    uint32_t layer = 0;
    bool fits = true;

    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        const uint32_t behind = plan->pp - 1 - stage, end = plan->desc.n_layers - behind;
        uint64_t work = (stage == 0 && count_embed ? load->embed : 0) +
                        (behind == 0 ? load->head : 0) + load->layers[layer];
        uint32_t n = 1;
        while (layer + n < end && (behind == 0 || work + load->layers[layer + n] <= most)) {
            work += load->layers[layer + n++];
        }
        fits = fits && work <= most;
        stage_layers[stage] = n;
        layer += n;
    }
    return fits;
}

/* Layers of different sizes stay in their order: the least `most` that all can be packed under. */
static void pack_least(const struct plan *plan, const struct load *load, bool count_embed,
                       uint32_t *stage_layers)
{
    uint64_t low = 0, high = load->embed + load->head; /* not below the least, not above the sum */

    for (uint32_t i = 0; i < plan->desc.n_layers; i++) {
        high += load->layers[i];
    }
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (pack_stages(plan, load, count_embed, middle, stage_layers)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    (void)pack_stages(plan, load, count_embed, high, stage_layers);
}

/* A step reads every layer and the head once, of the embedding only a few rows, so the embedding counts
 * as work only if `count_embed` (memory is what is short). */
void plan_balance(const struct plan *plan, bool count_embed, uint32_t *stage_layers)
{
    struct load load;

    weigh(plan, &load);
    if (load.is_even) {
        hand_out(plan, &load, count_embed, stage_layers);
    } else {
        pack_least(plan, &load, count_embed, stage_layers);
    }
}
