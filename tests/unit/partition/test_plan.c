/* tests/unit/partition/test_plan.c - who owns what, over real and random shapes. Memory and
 * choosing are test_plan_fit.c. */
#include "partition/plan.h"

#include "models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct plan *make(const struct model_desc *d, const struct plan_request *r)
{
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    if (plan_create(d, r, &plan, &err) != ST_OK) {
        fail_msg("%s: %s", d->name, err.text);
    }
    return plan;
}

static void expect_refused(const struct model_desc *d, const struct plan_request *r, status want,
                           const char *word)
{
    struct plan *plan = NULL;
    struct err err = ERR_INIT;
    const status st = plan_create(d, r, &plan, &err);

    if (st != want || strstr(err.text, word) == NULL) {
        fail_msg("got %d \"%s\", wanted %d and \"%s\"", st, err.text, want, word);
    }
    assert_null(plan);
}

/* Slices of one stage: ranges that follow each other from 0 to n. */
static void check_cover(const struct plan *plan, uint32_t stage, uint32_t n, size_t offset)
{
    uint32_t at = 0;

    for (uint32_t slice = 0; slice < plan->tp; slice++) {
        const struct plan_part *part = &plan->parts[stage * plan->tp + slice];
        struct range r;
        memcpy(&r, (const char *)part + offset, sizeof(r));
        assert_int_equal(r.begin, at);
        assert_true(r.end >= r.begin);
        at = r.end;
    }
    assert_int_equal(at, n);
}

static void check_leaves(const struct plan *plan, const struct plan_part *part)
{
    const struct model_desc *d = &plan->desc;
    struct kern_mat o, down;

    plan_mat(plan, part, 0, PLAN_MAT_O, &o);
    plan_mat(plan, part, 0, PLAN_MAT_DOWN, &down);
    assert_int_equal(o.n_leaves, plan->n_leaves / plan->tp);
    assert_int_equal(o.k, range_len(part->q_heads) * d->head_dim);
    assert_int_equal(down.k, range_len(part->ffn_cols));
    assert_int_equal(o.leaf[0], 0);
    assert_int_equal(down.leaf[0], 0);
    for (uint32_t i = 0; i < o.n_leaves; i++) {
        const uint32_t leaf = part->leaves.begin + i;
        /* A leaf is the same run of heads and columns whatever tp is. */
        assert_int_equal(part->q_heads.begin * d->head_dim + o.leaf[i],
                         (uint64_t)leaf * d->n_heads / plan->n_leaves * d->head_dim);
        const uint64_t column = (uint64_t)leaf * ((d->ffn_dim + 1) / 2) / plan->n_leaves * 2;
        assert_int_equal(part->ffn_cols.begin + down.leaf[i], MIN(column, (uint64_t)d->ffn_dim));
        assert_true(o.leaf[i] < o.leaf[i + 1]);
        assert_true(down.leaf[i] <= down.leaf[i + 1]);
    }
}

static void check_kv_heads(const struct plan *plan, const struct plan_part *part)
{
    const uint32_t group = plan->desc.n_heads / plan->desc.n_kv_heads;

    for (uint32_t kv = 0; kv < plan->desc.n_kv_heads; kv++) {
        bool read = false;
        for (uint32_t head = part->q_heads.begin; head < part->q_heads.end; head++) {
            read = read || head / group == kv;
        }
        assert_int_equal(read, kv >= part->kv_heads.begin && kv < part->kv_heads.end);
    }
}

/* Everything that must hold for any plan. */
static void check_plan(const struct plan *plan)
{
    const struct model_desc *d = &plan->desc;
    uint32_t layer = 0;

    assert_int_equal(plan->n_ranks, plan->tp * plan->pp);
    assert_int_equal(plan->tp & (plan->tp - 1), 0);
    assert_int_equal(plan->n_leaves % plan->tp, 0);
    assert_int_equal(plan->kv_tokens, plan->kv_blocks * KERN_KV_BLOCK);
    assert_true(plan->kv_blocks > 0 && plan->ctx_max > 0 && plan->ctx_max <= plan->kv_tokens);
    for (uint32_t stage = 0; stage < plan->pp; stage++) {
        const bool ends = stage == 0 || stage == plan->pp - 1;
        check_cover(plan, stage, plan->n_leaves, offsetof(struct plan_part, leaves));
        check_cover(plan, stage, d->n_heads, offsetof(struct plan_part, q_heads));
        check_cover(plan, stage, d->ffn_dim, offsetof(struct plan_part, ffn_cols));
        if (ends) {
            check_cover(plan, stage, d->vocab, offsetof(struct plan_part, vocab));
        }
        for (uint32_t slice = 0; slice < plan->tp; slice++) {
            const struct plan_part *part = &plan->parts[stage * plan->tp + slice];
            assert_int_equal(part->rank, stage * plan->tp + slice);
            assert_int_equal(part->stage, stage);
            assert_int_equal(part->slice, slice);
            assert_int_equal(part->layers.begin, layer);
            assert_int_equal(part->layers.end, plan->parts[stage * plan->tp].layers.end);
            assert_true(range_len(part->layers) >= 1 && range_len(part->q_heads) >= 1);
            assert_true(range_len(part->ffn_cols) >= 1);
            assert_int_equal(part->has_embed, stage == 0);
            assert_int_equal(part->has_head, stage == plan->pp - 1);
            assert_true(ends || range_len(part->vocab) == 0);
            assert_true(part->vocab.begin % KERN_VOCAB_BLOCK == 0 || part->vocab.begin == d->vocab);
            assert_true(part->vocab.end % KERN_VOCAB_BLOCK == 0 || part->vocab.end == d->vocab);
            check_kv_heads(plan, part);
            check_leaves(plan, part);
            assert_true(part->weight_bytes == plan_weight_bytes(plan, part));
            assert_true(part->kv_bytes == plan_kv_bytes(plan, part));
            assert_true(part->scratch_bytes == plan_scratch_bytes(plan, part));
        }
        layer = plan->parts[stage * plan->tp].layers.end;
    }
    assert_int_equal(layer, d->n_layers);
}

static void test_plan__every_piece_of_a_real_model_has_one_owner(void **state UNUSED)
{
    for (int i = 0; i < MODEL_ROWS; i++) {
        const struct model_desc d = model_of(&model_rows[i]);
        for (uint32_t tp = 1; tp <= kern_leaves_for(d.n_heads); tp *= 2) {
            for (uint32_t pp = 1; pp <= MIN(d.n_layers, 9u); pp++) {
                const struct plan_request r = { .tp = tp, .pp = pp, .fmt = KERN_BF16 };
                struct plan *plan = make(&d, &r);
                assert_int_equal(plan->tp, tp);
                assert_int_equal(plan->pp, pp);
                check_plan(plan);
                plan_destroy(plan);
            }
        }
    }
}

static void test_plan__every_piece_of_a_random_model_has_one_owner(void **state UNUSED)
{
    uint32_t made = 0;

    for (uint64_t seed = 1; seed <= 2000; seed++) {
        uint64_t rng = seed;
        const struct model_desc d = model_random(&rng);
        const struct plan_request r = { .tp = 1u << random_below(&rng, 4),
                                        .pp = 1 + random_below(&rng, d.n_layers),
                                        .fmt = (enum kern_fmt)random_below(&rng, KERN_FMTS),
                                        .seqs_max = 1 + random_below(&rng, 9),
                                        .kv_tokens = random_below(&rng, 5000) };
        struct plan *plan = NULL;
        struct err err = ERR_INIT;
        const status st = plan_create(&d, &r, &plan, &err);
        if (st == ST_OK) {
            check_plan(plan);
            made++;
        } else if (st != ST_ERR_ARG || strstr(err.text, "tp ") == NULL) {
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
        }
        plan_destroy(plan);
    }
    assert_in_range(made, 1000, 2000);
}

static void test_plan__kv_heads_are_held_by_several_slices_when_tp_is_larger(void **state UNUSED)
{
    const struct model_desc d = model_named("Qwen2-0.5B"); /* 14 heads, 2 kv, R 8 */
    const struct plan_request r = { .tp = 8, .pp = 1, .fmt = KERN_BF16, .kv_tokens = 4096 };
    struct plan *plan = make(&d, &r);

    check_plan(plan);
    assert_int_equal(plan->n_leaves, 8);
    for (uint32_t i = 0; i < 8; i++) {
        assert_in_range(range_len(plan->parts[i].q_heads), 1, 2);
        assert_int_equal(range_len(plan->parts[i].kv_heads), 1);
    }
    plan_destroy(plan);
}

static void test_plan__stages_may_differ_and_take_the_head_into_account(void **state UNUSED)
{
    const struct model_desc stories = model_named("stories260k");
    const struct plan_request two = { .tp = 2, .pp = 2, .fmt = KERN_F32 };
    struct plan *plan = make(&stories, &two);
    assert_int_equal(range_len(plan->parts[0].layers), 3);
    assert_int_equal(range_len(plan->parts[2].layers), 2);
    plan_destroy(plan);

    /* The head of Llama-3.1-8B reads as much as 2.4 of its layers. */
    const struct model_desc llama = model_named("Llama-3.1-8B");
    const struct plan_request four = { .tp = 1, .pp = 4, .fmt = KERN_BF16, .kv_tokens = 4096 };
    plan = make(&llama, &four);
    assert_int_equal(range_len(plan->parts[0].layers), 8);
    assert_int_equal(range_len(plan->parts[1].layers), 9);
    assert_int_equal(range_len(plan->parts[2].layers), 9);
    assert_int_equal(range_len(plan->parts[3].layers), 6);
    plan_destroy(plan);

    const struct plan_request given = {
        .tp = 1, .fmt = KERN_F32, .n_stage_layers = 3, .stage_layers = { 1, 3, 1 }
    };
    plan = make(&stories, &given);
    assert_int_equal(plan->pp, 3);
    assert_int_equal(range_len(plan->parts[1].layers), 3);
    check_plan(plan);
    plan_destroy(plan);
}

static void test_plan__what_cannot_be_cut_is_refused_with_what_can(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    struct plan_request r = { .tp = 3, .pp = 1 };

    expect_refused(&d, &r, ST_ERR_ARG, "tp can be 1, 2, 4, 8");
    r.tp = 16;
    expect_refused(&d, &r, ST_ERR_ARG, "tp can be 1, 2, 4, 8");
    r = (struct plan_request){ .tp = 1, .pp = 6 };
    expect_refused(&d, &r, ST_ERR_ARG, "5 layers make at most 5 stages");
    r = (struct plan_request){ .tp = 2, .pp = 2, .n_ranks = 3 };
    expect_refused(&d, &r, ST_ERR_ARG, "needs 4 ranks, there are 3");
    r = (struct plan_request){ .tp = 1, .n_stage_layers = 2, .stage_layers = { 3, 3 } };
    expect_refused(&d, &r, ST_ERR_ARG, "given 6 layers, the model has 5");
    r = (struct plan_request){ .tp = 1, .n_stage_layers = 2, .stage_layers = { 5, 0 } };
    expect_refused(&d, &r, ST_ERR_ARG, "given no layers");
    r = (struct plan_request){ .tp = 1, .pp = 3, .n_stage_layers = 2, .stage_layers = { 3, 2 } };
    expect_refused(&d, &r, ST_ERR_ARG, "pp is 3");
    r = (struct plan_request){ .tp = 1, .pp = 1, .ctx_max = 513 };
    expect_refused(&d, &r, ST_ERR_ARG, "made for 512");
    r = (struct plan_request){ .tp = 1, .pp = 1, .seqs_max = 64, .rows_max = 63 };
    expect_refused(&d, &r, ST_ERR_ARG, "63 rows");
    r = (struct plan_request){ .tp = 1, .pp = 1, .seqs_max = 1u << 20 };
    expect_refused(&d, &r, ST_ERR_ARG, "streams");
    r = (struct plan_request){ .n_ranks = 5000 };
    expect_refused(&d, &r, ST_ERR_ARG, "5000 ranks, at most 4096");
    struct model_desc thin = d;
    thin.ffn_dim = 3; /* two pairs: at most two slices */
    r = (struct plan_request){ .tp = 4, .pp = 1 };
    expect_refused(&thin, &r, ST_ERR_ARG, "tp can be 1, 2");
}

static void test_plan__equal_arguments_give_equal_bytes(void **state UNUSED)
{
    for (uint64_t seed = 1; seed <= 200; seed++) {
        uint64_t rng = seed;
        const struct model_desc d = model_random(&rng);
        const struct plan_request r = { .n_ranks = 1 + random_below(&rng, 16),
                                        .fmt = KERN_BF16,
                                        .rank_memory_bytes = (uint64_t)1 << 30 };
        struct plan *a = make(&d, &r), *b = make(&d, &r);
        assert_memory_equal(a->parts, b->parts, a->n_ranks * sizeof(*a->parts));
        assert_true(a->digest == b->digest);
        assert_string_equal(a->why, b->why);
        plan_destroy(a);
        plan_destroy(b);
    }
}

static void test_plan__the_digest_sees_all_that_ranks_must_agree_on(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct plan_request r = { .tp = 2, .pp = 2, .fmt = KERN_BF16 };
    struct model_desc other = d;
    struct plan_request changed[] = { r, r, r, r, r, r, r };
    struct plan *base = make(&d, &r);

    changed[0].fmt = KERN_F32;
    changed[1].tp = 4;
    changed[2].ctx_max = 511;
    changed[3].kv_tokens = 512;
    changed[4].rows_max = 513;
    changed[5].n_stage_layers = 2;
    changed[5].stage_layers[0] = 2;
    changed[5].stage_layers[1] = 3;
    changed[6].fmt = KERN_FP8;
    for (size_t i = 0; i < ARRAY_LEN(changed); i++) {
        struct plan *plan = make(&d, &changed[i]);
        assert_false(plan->digest == base->digest);
        plan_destroy(plan);
    }
    /* Devices: each of these is another profile or another way between ranks. */
    const struct plan_request cuda = { .tp = 2, .pp = 2, .fmt = KERN_BF16, .device = PLAN_CUDA };
    struct plan_request devices[] = { r, cuda, cuda, cuda, cuda };
    struct plan *plans[ARRAY_LEN(devices)];
    devices[2].cuda_version = 80;
    devices[3].plane = PLAN_PLANE_NCCL;
    devices[4].plane = PLAN_PLANE_NCCL;
    devices[4].free_order = true;
    for (size_t i = 0; i < ARRAY_LEN(devices); i++) {
        plans[i] = make(&d, &devices[i]);
        for (size_t k = 0; k < i; k++) {
            assert_false(plans[i]->digest == plans[k]->digest);
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(devices); i++) {
        plan_destroy(plans[i]);
    }
    other.norm_eps = 2e-5f;
    struct plan *plan = make(&other, &r);
    assert_false(plan->digest == base->digest);
    plan_destroy(plan);
    /* The directory may be called differently on another node. */
    other = d;
    snprintf(other.name, sizeof(other.name), "elsewhere");
    plan = make(&other, &r);
    assert_true(plan->digest == base->digest);
    plan_destroy(plan);
    plan_destroy(base);
    plan_destroy(NULL);
}

static void test_plan__fp8_halves_the_matrices_of_layers_and_counts_scales(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-8B");
    struct plan_request r = { .tp = 8, .pp = 1, .fmt = KERN_FP8, .kv_tokens = 4096 };
    const uint64_t weights = (uint64_t)32 * (6144 * 4096 + 4096 * 4096 + 3 * 4096 * 14336);
    const uint64_t ends = (uint64_t)2 * 128256 * 4096 * 2,
                   norms = (uint64_t)(2 * 32 + 1) * 4096 * 4;

    for (int device = PLAN_CPU; device <= PLAN_CUDA; device++) {
        uint64_t bytes = 0, scales = 0;
        r.device = (enum plan_device)device;
        struct plan *plan = make(&d, &r);
        for (uint32_t i = 0; i < 8; i++) {
            bytes += plan->parts[i].weight_bytes;
            scales += plan->parts[i].scale_bytes;
        }
        assert_true(scales == weights / KERN_GROUP * 4);
        assert_true(bytes == weights + scales + ends + 8 * norms);
        plan_destroy(plan);
    }
}

static void test_plan__a_groups_place_does_not_depend_on_tp(void **state UNUSED)
{
    const struct model_desc d = model_named("Qwen2-0.5B"); /* leaves that end inside groups */

    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        const struct plan_request r = { .tp = tp, .pp = 1, .fmt = KERN_FP8, .kv_tokens = 4096 };
        struct plan *plan = make(&d, &r);
        uint32_t n_o = 0, n_down = 0;
        for (uint32_t i = 0; i < tp; i++) {
            struct kern_mat o, down;
            plan_mat(plan, &plan->parts[i], 0, PLAN_MAT_O, &o);
            plan_mat(plan, &plan->parts[i], 0, PLAN_MAT_DOWN, &down);
            assert_int_equal(o.k0, plan->parts[i].q_heads.begin * d.head_dim);
            assert_int_equal(down.k0, plan->parts[i].ffn_cols.begin);
            n_o += kern_mat_groups(&o);
            n_down += kern_mat_groups(&down);
        }
        /* 896 inputs are 7 groups, and 4 of the borders between leaves are inside one. */
        assert_int_equal(n_o, 7 + 4);
        /* 4,864 are 38, leaves are 608 long, and only the fourth border ends a group. */
        assert_int_equal(n_down, 38 + 6);
        plan_destroy(plan);
    }
}

static void test_plan__the_format_is_the_checkpoints_where_it_is_asked_for(void **state UNUSED)
{
    struct model_desc d = model_named("stories260k");
    const struct plan_request of_model = { .tp = 2, .fmt = KERN_BF16, .fmt_of_model = true };
    const struct plan_request bf16 = { .tp = 2, .fmt = KERN_BF16 };
    struct plan *plan = make(&d, &of_model);

    assert_string_equal(plan->profile, "cpu-bf16-v1");
    plan_destroy(plan);
    d.quant = (struct model_quant){ MODEL_QUANT_FP8, 128, 128 };
    plan = make(&d, &of_model);
    assert_string_equal(plan->profile, "cpu-fp8-v1");
    d.quant.block_rows = 64;
    struct plan *other = make(&d, &of_model);
    assert_false(plan->digest == other->digest);
    plan_destroy(other);
    plan_destroy(plan);
    plan = make(&d, &bf16);
    assert_string_equal(plan->profile, "cpu-bf16-v1");
    plan_destroy(plan);
}

static void test_plan__a_profile_names_the_device_and_the_order(void **state UNUSED)
{
    const struct model_desc d = model_named("stories260k");
    const struct {
        struct plan_request r;
        const char *profile;
    } cases[] = {
        { { .fmt = KERN_F32 }, "cpu-f32-v1" },
        { { .fmt = KERN_FP8 }, "cpu-fp8-v1" },
        { { .fmt = KERN_FP8, .device = PLAN_CUDA }, "cuda-sm90-fp8-v1" },
        { { .fmt = KERN_BF16, .device = PLAN_CUDA }, "cuda-sm90-bf16-v1" },
        { { .fmt = KERN_F32, .device = PLAN_CUDA, .cuda_version = 100 }, "cuda-sm100-f32-v1" },
        { { .fmt = KERN_BF16, .device = PLAN_CUDA, .plane = PLAN_PLANE_NCCL, .free_order = true },
          "cuda-sm90-bf16-free-v1" },
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct plan *plan = make(&d, &cases[i].r);
        assert_string_equal(plan->profile, cases[i].profile);
        plan_destroy(plan);
    }
    const struct plan_request r = { .device = PLAN_CUDA, .free_order = true };
    expect_refused(&d, &r, ST_ERR_ARG, "free order");
}

/* A login node plans for devices that it does not have: by their sizes of weights, and with room
 * for the other slices' partial sums where NCCL brings them. */
static void test_plan__devices_are_planned_for_without_one(void **state UNUSED)
{
    const struct model_desc d = model_named("Llama-3.1-70B");
    struct plan_request r = { .fmt = KERN_BF16,
                              .device = PLAN_CUDA,
                              .plane = PLAN_PLANE_NCCL,
                              .rank_memory_bytes = (uint64_t)80 << 30,
                              .ctx_max = 8192 };
    struct plan *plan = make(&d, &r);
    struct kern_mat mat;

    assert_int_equal(plan->n_ranks, 2); /* 141 GB of weights */
    plan_mat(plan, &plan->parts[0], 0, PLAN_MAT_O, &mat);
    assert_true(kern_mat_bytes_cuda(&mat) >= (uint64_t)mat.n * mat.k * 2);
    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const struct plan_part *part = &plan->parts[i];
        assert_true(part->weight_bytes + part->kv_bytes + part->scratch_bytes +
                        PLAN_RESERVE_CUDA_BYTES <=
                    r.rank_memory_bytes);
    }
    const uint64_t partials = plan_coll_bytes(plan);
    assert_true(partials >= 2 * (512 << 10));
    const uint64_t with = plan->parts[0].scratch_bytes;
    r.plane = PLAN_PLANE_HOST;
    struct plan *host = make(&d, &r);
    assert_true(plan_coll_bytes(host) == 0);
    assert_true(with - host->parts[0].scratch_bytes == partials);
    plan_destroy(host);
    plan_destroy(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan__every_piece_of_a_real_model_has_one_owner),
        cmocka_unit_test(test_plan__every_piece_of_a_random_model_has_one_owner),
        cmocka_unit_test(test_plan__kv_heads_are_held_by_several_slices_when_tp_is_larger),
        cmocka_unit_test(test_plan__stages_may_differ_and_take_the_head_into_account),
        cmocka_unit_test(test_plan__what_cannot_be_cut_is_refused_with_what_can),
        cmocka_unit_test(test_plan__equal_arguments_give_equal_bytes),
        cmocka_unit_test(test_plan__fp8_halves_the_matrices_of_layers_and_counts_scales),
        cmocka_unit_test(test_plan__a_groups_place_does_not_depend_on_tp),
        cmocka_unit_test(test_plan__the_format_is_the_checkpoints_where_it_is_asked_for),
        cmocka_unit_test(test_plan__a_profile_names_the_device_and_the_order),
        cmocka_unit_test(test_plan__devices_are_planned_for_without_one),
        cmocka_unit_test(test_plan__the_digest_sees_all_that_ranks_must_agree_on),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
