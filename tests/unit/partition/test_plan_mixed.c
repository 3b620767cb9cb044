/* Plans of checkpoints of which a part is fp8: bytes to the byte, stages by bytes, digests, and what is
 * refused. */
#include "partition/plan_private.h"
#include "unit/partition/models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static struct plan *make(const struct model_desc *d, const struct plan_request *r)
{
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    if (plan_create(d, r, &plan, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return plan;
}

static struct model_desc fp8_model(const char *name)
{
    struct model_desc d = model_named(name);

    d.quant.kind = MODEL_QUANT_FP8;
    return d;
}

static uint64_t weights_of(const struct plan *plan)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        bytes += plan->parts[i].weight_bytes;
    }
    return bytes;
}

/* One matrix in all slices, as it is packed. */
static uint64_t mat_in(const struct plan *plan, uint32_t layer, enum plan_mat which)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < plan->tp; i++) {
        struct kern_mat mat;
        plan_mat(plan, &plan->parts[i], layer, which, &mat);
        const size_t n =
            plan->device == PLAN_CUDA ? kern_mat_bytes_cuda(&mat) : kern_ops_ref()->mat_bytes(&mat);
        bytes += (n + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN;
    }
    return bytes;
}

static void test_plan_mixed__every_matrix_counts_in_its_own_format(void **state UNUSED)
{
    static const enum plan_device devices[] = { PLAN_CPU, PLAN_CUDA };

    for (size_t i = 0; i < ARRAY_LEN(devices); i++) {
        struct model_desc d = fp8_model("Qwen2-0.5B");
        const struct plan_request r = { .tp = 4, .pp = 1, .fmt = KERN_FP8, .device = devices[i] };
        struct plan *all = make(&d, &r);
        d.plain[3] = 1u << PLAN_MAT_O | 1u << PLAN_MAT_DOWN;
        d.plain[23] = 1u << PLAN_MAT_QKV;
        struct plan *mixed = make(&d, &r);
        uint64_t want = weights_of(all), scales = 0, scales_all = 0;

        assert_int_equal(plan_plain_mats(mixed), 3);
        assert_int_equal(plan_plain_mats(all), 0);
        want += mat_in(mixed, 3, PLAN_MAT_O) - mat_in(all, 3, PLAN_MAT_O);
        want += mat_in(mixed, 3, PLAN_MAT_DOWN) - mat_in(all, 3, PLAN_MAT_DOWN);
        want += mat_in(mixed, 23, PLAN_MAT_QKV) - mat_in(all, 23, PLAN_MAT_QKV);
        assert_true(weights_of(mixed) == want && want > weights_of(all));
        for (uint32_t k = 0; k < mixed->n_ranks; k++) {
            scales += mixed->parts[k].scale_bytes;
            scales_all += all->parts[k].scale_bytes;
        }
        assert_true(scales < scales_all);
        assert_int_equal(mat_in(mixed, 4, PLAN_MAT_O), mat_in(all, 4, PLAN_MAT_O));
        plan_destroy(mixed);
        plan_destroy(all);
    }
}

static void test_plan_mixed__what_is_bf16_is_in_the_digest(void **state UNUSED)
{
    struct model_desc d = fp8_model("stories260k");
    const struct plan_request fp8 = {
        .tp = 2, .pp = 2, .fmt = KERN_FP8, .n_stage_layers = 2, .stage_layers = { 3, 2 }
    };
    struct plan_request bf16 = fp8;
    uint64_t digests[4];

    bf16.fmt = KERN_BF16;
    for (uint32_t i = 0; i < 4; i++) {
        memset(d.plain, 0, sizeof(d.plain));
        if (i != 0) {
            d.plain[i] = 1u << PLAN_MAT_O;
        }
        struct plan *plan = make(&d, &fp8);
        digests[i] = plan->digest;
        assert_string_equal(plan->profile, "cpu-fp8-v1");
        for (uint32_t k = 0; k < i; k++) {
            assert_false(digests[k] == digests[i]);
        }
        plan_destroy(plan);
    }
    /* In another format all matrices are alike. */
    struct plan *mixed = make(&d, &bf16);
    memset(d.plain, 0, sizeof(d.plain));
    struct plan *even = make(&d, &bf16);
    assert_true(mixed->digest == even->digest);
    assert_true(weights_of(mixed) == weights_of(even));
    assert_int_equal(plan_plain_mats(mixed), 0);
    plan_destroy(even);
    plan_destroy(mixed);
}

/* The heaviest stage of all ways to cut, by trying each. */
static uint64_t least(const uint64_t *layers, uint32_t n, uint32_t pp, uint64_t head)
{
    uint64_t best = UINT64_MAX, work = 0;

    if (pp == 1) {
        for (uint32_t i = 0; i < n; i++) {
            work += layers[i];
        }
        return work + head;
    }
    for (uint32_t i = 1; i + pp - 1 <= n; i++) {
        work += layers[i - 1];
        best = MIN(best, MAX(work, least(layers + i, n - i, pp - 1, head)));
    }
    return best;
}

static void test_plan_mixed__no_stage_is_heavier_than_it_must_be(void **state UNUSED)
{
    uint64_t random = 11;

    for (uint32_t round = 0; round < 60; round++) {
        struct model_desc d = fp8_model("stories260k");
        uint64_t layers[12], head = 0, heaviest = 0;
        d.n_layers = 2 + random_below(&random, 10);
        for (uint32_t i = 0; i < d.n_layers; i++) {
            d.plain[i] = (uint8_t)random_below(&random, 15);
        }
        const struct plan_request r = { .tp = 1,
                                        .pp = 1 + random_below(&random, MIN(d.n_layers, 4u)),
                                        .fmt = KERN_FP8 };
        struct plan *plan = make(&d, &r);
        for (uint32_t i = 0; i < d.n_layers; i++) {
            struct plan_part one = plan->parts[0];
            one.layers = (struct range){ i, i + 1 };
            one.has_embed = one.has_head = false;
            one.vocab = (struct range){ 0, 0 };
            layers[i] = plan_weight_bytes(plan, &one);
        }
        for (uint32_t i = 0; i < plan->n_ranks; i++) {
            const struct plan_part *p = &plan->parts[i];
            uint64_t work = 0;
            assert_true(range_len(p->layers) != 0);
            for (uint32_t k = p->layers.begin; k < p->layers.end; k++) {
                work += layers[k];
            }
            if (p->has_head) {
                struct plan_part end = *p;
                end.layers = (struct range){ 0, 0 };
                end.has_embed = false;
                head = plan_weight_bytes(plan, &end);
                work += head;
            }
            heaviest = MAX(heaviest, work);
        }
        assert_true(heaviest == least(layers, d.n_layers, plan->pp, head));
        plan_destroy(plan);
    }
}

static void expect_unsupported(const struct model_desc *d, const char *word)
{
    const struct plan_request r = { .tp = 1, .pp = 1, .fmt = KERN_FP8 };
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(plan_create(d, &r, &plan, &err), ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, word));
    assert_non_null(strstr(err.text, "--format bf16"));
}

static void test_plan_mixed__parts_of_one_matrix_in_two_formats_are_refused(void **state UNUSED)
{
    const struct plan_request bf16 = { .tp = 1, .pp = 1, .fmt = KERN_BF16 };
    struct model_desc d = fp8_model("stories260k");

    d.torn[2] = 1u << PLAN_MAT_GATE_UP;
    expect_unsupported(&d, "layer 2: some of gate_proj and up_proj");
    plan_destroy(make(&d, &bf16));
    d = fp8_model("stories260k");
    memset(d.plain, (1u << MODEL_MATS) - 1, d.n_layers);
    expect_unsupported(&d, "no matrix of its layers");
    plan_destroy(make(&d, &bf16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_mixed__every_matrix_counts_in_its_own_format),
        cmocka_unit_test(test_plan_mixed__what_is_bf16_is_in_the_digest),
        cmocka_unit_test(test_plan_mixed__no_stage_is_heavier_than_it_must_be),
        cmocka_unit_test(test_plan_mixed__parts_of_one_matrix_in_two_formats_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
