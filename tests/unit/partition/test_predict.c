/* tests/unit/partition/test_predict.c - predicted times, by examples that can be reckoned by hand, and
 * stages of hosts that differ.
 *
 * The model: a layer has 3 + 1 + 4 + 2 Mi weights, 20 MiB in bf16; the head 8 MiB. Host `a` reads 20 MiB in
 * 1 ms, host `b` in 3 ms; all else costs nothing unless a case says so. */
#include "partition/predict.h"

#include "models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Of doubles; cmocka's own compares floats. */
#define assert_near(x, want, by) assert_true((x) - (want) <= (by) && (want) - (x) <= (by))

#define MS   1e-3
#define NEAR 1e-9
#define MIB  ((uint64_t)1 << 20)

static const struct model_row row = { "test", 16, 1024, 8, 8, 128, 2048, 4096, 4096, false, false };

/* Rates that cost nothing but for the weights. */
static struct rates_entry entry(const char *host, double layer_ms)
{
    struct rates_entry e;

    memset(&e, 0, sizeof(e));
    snprintf(e.host, sizeof(e.host), "%s", host);
    e.fmt = KERN_BF16;
    e.weights.n = 2;
    e.weights.at[0] = (struct rates_point){ 1, (double)(20 * MIB) / (layer_ms * MS) };
    e.weights.at[1] = (struct rates_point){ 512, (double)(20 * MIB) / (layer_ms * MS) };
    e.kv_bytes_s = e.vector_bytes_s = e.scan_ids_s = 1e30;
    e.decode = e.prompt = (struct rates_scores){ 1e30, 1e30 };
    return e;
}

/* Which host each rank is on: "ab" is rank 0 on a, rank 1 on b. */
struct world {
    struct rates_entry entries[2];
    struct rates_entry *plain; /* NULL: bf16 was not measured beside fp8 */
    struct rates rates;
    struct plan_sites sites;
    const char *where;
    uint64_t memory[2];
};

static status fill(void *arg, const struct plan *plan, struct plan_site *sites,
                   struct err *err UNUSED)
{
    const struct world *w = arg;

    for (uint32_t i = 0; i < plan->n_ranks; i++) {
        const uint32_t host = (uint32_t)(w->where[i % strlen(w->where)] - 'a');
        uint32_t n = 0;
        for (uint32_t k = 0; k < plan->n_ranks; k++) {
            n += w->where[k % strlen(w->where)] == w->where[i % strlen(w->where)] ? 1 : 0;
        }
        sites[i] = (struct plan_site){ .rates = &w->entries[host],
                                       .rates_plain = w->plain,
                                       .share = 1.0 / n,
                                       .memory_bytes = w->memory[host],
                                       .host = host };
    }
    return ST_OK;
}

static void world_make(struct world *w, const char *where)
{
    memset(w, 0, sizeof(*w));
    w->entries[0] = entry("a", 1);
    w->entries[1] = entry("b", 3);
    w->rates = (struct rates){
        .entries = w->entries, .n = 2, .on_host = { 0, 1e30, true }, .across = { 0, 1e30, true }
    };
    w->sites = (struct plan_sites){ &w->rates, fill, w };
    w->where = where;
}

static struct plan *make(struct plan_request r)
{
    const struct model_desc d = model_of(&row);
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    r.fmt = KERN_BF16;
    if (plan_create(&d, &r, &plan, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return plan;
}

static uint32_t layers_of(const struct plan *plan, uint32_t stage)
{
    return range_len(plan->parts[(size_t)stage * plan->tp].layers);
}

/* ---- times ---- */

static void test_predict__a_token_reads_all_weights_once(void **state UNUSED)
{
    struct world w;
    struct prediction p;

    world_make(&w, "a");
    struct plan *plan =
        make((struct plan_request){ .tp = 1, .pp = 1, .seqs_max = 8, .sites = &w.sites });
    assert_true(plan_predict(plan, 0, &p));
    assert_int_equal(p.prompt, 512);
    assert_near(p.token_s, 16.4 * MS, NEAR); /* 16 layers, and 8 of 20 MiB */
    assert_near(p.first_s, 16.4 * MS, NEAR); /* one chunk, as fast at 512 rows */
    assert_near(p.prompt_tokens_s, 512 / (16.4 * MS), 1e-3);
    assert_int_equal(p.streams, 8);
    assert_near(p.round_s, 16.4 * MS, NEAR);
    assert_near(p.tokens_s, 8 / (16.4 * MS), 1e-3);
    assert_int_equal(p.token_bound, PREDICT_READING);
    assert_near(predict_decode_s(plan, 3, 100), 16.4 * MS, NEAR);
    plan_destroy(plan);
}

static void test_predict__many_rows_are_bound_by_arithmetic(void **state UNUSED)
{
    struct world w;
    struct prediction p;

    world_make(&w, "a");
    w.entries[0].weights.at[1].bytes_s /= 10;
    struct plan *plan = make((struct plan_request){ .tp = 1, .pp = 1, .sites = &w.sites });
    assert_true(plan_predict(plan, 1024, &p));
    /* Two chunks of 512 rows, the head for the last row only. */
    assert_near(p.first_s, 320.4 * MS, NEAR);
    assert_int_equal(p.first_bound, PREDICT_ARITHMETIC);
    assert_near(predict_layer_most_s(plan), 10 * MS, NEAR);
    plan_destroy(plan);
}

static void test_predict__every_other_rate_has_its_part(void **state UNUSED)
{
    struct world w;
    struct predict_time t;

    world_make(&w, "a");
    struct rates_entry *e = &w.entries[0];
    e->layer_s = 2e-6;
    e->scan_ids_s = 4096e3;                           /* the vocabulary in 1 ms */
    e->decode = (struct rates_scores){ 8e3, 4096e3 }; /* 8 heads: 1 ms and 4 * 128 * 8: 1 ms */
    /* 1024 (4 + 2) twice, rotation 8 * 16 * 128, store 2 * 8 * 128 * 6, 2048 * 10, 24 * 1024 */
    e->vector_bytes_s = (12288 + 16384 + 12288 + 20480 + 24576) * 1e3;
    struct plan *plan = make((struct plan_request){ .tp = 1, .pp = 1, .sites = &w.sites });
    const struct predict_step step = { .n_rows = 1, .n_samples = 1, .positions = 1 };
    predict_step(plan, &step, &t);
    assert_near(t.part[PREDICT_READING], 16.4 * MS, NEAR);
    assert_near(t.part[PREDICT_ATTENTION], 32 * MS, NEAR);
    assert_near(t.part[PREDICT_REST], 16 * (1 * MS + 2e-6) + 1 * MS, NEAR);
    assert_near(t.part[PREDICT_LINKS], 0, NEAR);
    /* Where reading K and V takes longer than computing: 2 * 8 * 128 * 2 bytes in 5 ms a layer. */
    e->kv_bytes_s = 4096 / (5 * MS);
    predict_step(plan, &step, &t);
    assert_near(t.part[PREDICT_ATTENTION], 80 * MS, NEAR);
    assert_int_equal(predict_bound_of(&t), PREDICT_ATTENTION);
    plan_destroy(plan);
}

static void test_predict__slices_of_one_host_share_it_and_pay_for_sums(void **state UNUSED)
{
    struct world w;
    struct prediction p;

    world_make(&w, "aa");
    w.rates.on_host.latency_s = 10e-6;
    struct plan *plan = make((struct plan_request){ .tp = 2, .pp = 1, .sites = &w.sites });
    assert_true(plan_predict(plan, 0, &p));
    /* Half of the bytes each, at half of the host's rate; two sums a layer and one for the embedding. */
    assert_near(p.token_s, 16.4 * MS + 33 * 10e-6, NEAR);
    plan_destroy(plan);
    world_make(&w, "ab");
    w.rates.across = (struct rates_link){ 50e-6, 4096 / 1e-6, true };
    plan = make((struct plan_request){ .tp = 2, .pp = 1, .sites = &w.sites });
    assert_true(plan_predict(plan, 0, &p));
    /* The slower half decides: 24.6 ms; a sum is 4096 bytes, whole: 50 + 1 us. */
    assert_near(p.token_s, 24.6 * MS + 33 * 51e-6, NEAR);
    plan_destroy(plan);
}

static void test_predict__stages_work_at_the_same_time(void **state UNUSED)
{
    struct world w;
    struct prediction p;

    world_make(&w, "ab");
    w.entries[1] = w.entries[0];
    w.rates.across = (struct rates_link){ 1 * MS, 1e30, true };
    struct plan *plan = make((struct plan_request){
        .tp = 1, .n_stage_layers = 2, .stage_layers = { 8, 8 }, .seqs_max = 2, .sites = &w.sites });
    assert_true(plan_predict(plan, 1024, &p));
    /* 8 + 8.4, to the next stage and back to the leader. */
    assert_near(p.token_s, 18.4 * MS, NEAR);
    /* Chunks: stage 0 is through at 8 and 16; stage 1 at 17 and 26.4. */
    assert_near(p.first_s, 26.4 * MS, NEAR);
    /* Two streams, one in each stage at a time; the second one takes 8.4 and 1 for the link. */
    assert_int_equal(p.streams, 2);
    assert_near(p.round_s, 18.8 * MS, NEAR);
    assert_int_equal(p.slowest_stage, 1);
    plan_destroy(plan);
}

static void test_predict__without_rates_nothing_is_said(void **state UNUSED)
{
    struct plan *plan = make((struct plan_request){ .tp = 1, .pp = 1 });
    struct prediction p;
    struct buf out = BUF_INIT;

    assert_false(plan_predict(plan, 0, &p));
    assert_true(predict_decode_s(plan, 1, 1) <= 0);
    assert_true(predict_layer_most_s(plan) <= 0);
    assert_int_equal(predict_print(plan, 0, &out), ST_OK);
    assert_non_null(strstr(out.data, "gantry measure"));
    buf_reset(&out);
    assert_int_equal(plan_print_json(plan, 0, &out), ST_OK);
    assert_non_null(strstr(out.data, "\"predicted\": null"));
    buf_fini(&out);
    plan_destroy(plan);
}

static void test_predict__what_is_assumed_is_said(void **state UNUSED)
{
    struct world w;
    struct buf out = BUF_INIT;

    world_make(&w, "ab");
    w.rates.across.is_measured = false;
    struct plan *plan = make((struct plan_request){ .tp = 1, .pp = 2, .sites = &w.sites });
    plan->sites[1].is_assumed = true;
    assert_int_equal(predict_print(plan, 100, &out), ST_OK);
    assert_non_null(strstr(out.data, "prompt of 100 tokens"));
    assert_non_null(strstr(out.data, "1 of 2 ranks are on hosts that were not measured"));
    assert_non_null(strstr(out.data, "assumed: hosts reach each other"));
    assert_non_null(strstr(out.data, "most of it reading weights"));
    buf_reset(&out);
    assert_int_equal(plan_print_json(plan, 100, &out), ST_OK);
    assert_non_null(strstr(out.data, "\"rates_of\": \"b\""));
    assert_non_null(strstr(out.data, "\"prompt_tokens\": 100"));
    buf_fini(&out);
    plan_destroy(plan);
}

static void test_predict__recorded_steps_of_a_device_cost_what_recorded_ones_do(void **state UNUSED)
{
    struct plan_request r = { .tp = 1, .pp = 1, .device = PLAN_CUDA, .seqs_max = 1 };
    struct world w;
    struct prediction p;

    world_make(&w, "a");
    w.entries[0].layer_s = 50e-6;
    w.entries[0].recorded_layer_s = 10e-6;
    r.sites = &w.sites;
    struct plan *plan = make(r);
    assert_true(plan_predict(plan, 512, &p));
    assert_near(p.token_s, 16.4 * MS + 16 * 10e-6, NEAR);
    assert_near(p.first_s, 16.4 * MS + 16 * 50e-6, NEAR); /* prompts are not recorded */
    w.entries[0].recorded_layer_s = 0;
    assert_true(plan_predict(plan, 512, &p));
    assert_near(p.token_s, 16.4 * MS + 16 * 50e-6, NEAR);
    plan_destroy(plan);
    /* Exchanges through the host cannot be recorded; NCCL's are. */
    w.where = "ab";
    w.entries[1] = w.entries[0];
    w.entries[0].recorded_layer_s = w.entries[1].recorded_layer_s = 10e-6;
    r.tp = 2;
    for (uint32_t nccl = 0; nccl < 2; nccl++) {
        r.plane = nccl ? PLAN_PLANE_NCCL : PLAN_PLANE_HOST;
        plan = make(r);
        assert_int_equal(predict_records(plan), nccl);
        assert_true(plan_predict(plan, 512, &p));
        assert_near(p.token_s, 8.2 * MS + 16 * (nccl ? 10e-6 : 50e-6), NEAR);
        plan_destroy(plan);
    }
}

static void test_predict__what_is_left_out_of_a_device_is_said(void **state UNUSED)
{
    struct plan_request r = { .tp = 2, .pp = 1, .device = PLAN_CUDA, .plane = PLAN_PLANE_NCCL };
    struct world w;
    struct buf out = BUF_INIT;

    world_make(&w, "a");
    r.sites = &w.sites;
    struct plan *plan = make(r);
    assert_int_equal(predict_print(plan, 0, &out), ST_OK);
    assert_non_null(strstr(out.data, "left out: decode steps are recorded"));
    assert_non_null(strstr(out.data, "left out: NCCL's links"));
    buf_reset(&out);
    w.entries[0].recorded_layer_s = 1e-6;
    assert_int_equal(plan_print_json(plan, 0, &out), ST_OK);
    assert_null(strstr(out.data, "decode steps are recorded"));
    assert_non_null(strstr(out.data, "NCCL's links"));
    plan_destroy(plan);
    r.plane = PLAN_PLANE_HOST;
    plan = make(r);
    buf_reset(&out);
    assert_int_equal(predict_print(plan, 0, &out), ST_OK);
    assert_non_null(strstr(out.data, "left out: copies between device and host"));
    plan_destroy(plan);
    r.device = PLAN_CPU;
    plan = make(r);
    buf_reset(&out);
    assert_int_equal(predict_print(plan, 0, &out), ST_OK);
    assert_null(strstr(out.data, "left out"));
    buf_fini(&out);
    plan_destroy(plan);
}

/* ---- fp8, and what is bf16 in it ---- */

/* A layer is 10 MiB of codes and an f32 of scale to 128 of them: 10.3125 MiB. Host `a` reads it in 1 ms, and 20
 * MiB of bf16 in 3 ms. */
static struct plan *make_fp8(struct world *w, const uint8_t *plain, uint32_t layer)
{
    static struct rates_entry bf16;
    struct model_desc d = model_of(&row);
    const struct plan_request r = { .tp = 1, .pp = 1, .fmt = KERN_FP8, .sites = &w->sites };
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    world_make(w, "a");
    w->entries[0].fmt = KERN_FP8;
    w->entries[0].weights.at[0].bytes_s *= 10.3125 / 20;
    w->entries[0].weights.at[1].bytes_s *= 10.3125 / 20;
    bf16 = entry("a", 3);
    w->plain = &bf16;
    d.quant.kind = MODEL_QUANT_FP8;
    if (plain != NULL) {
        d.plain[layer] = *plain;
    }
    if (plan_create(&d, &r, &plan, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return plan;
}

static void test_mixed__each_matrix_passes_at_the_rate_of_its_format(void **state UNUSED)
{
    static const uint8_t all = (1u << MODEL_MATS) - 1, down = 1u << PLAN_MAT_DOWN;
    struct world w;
    struct prediction p;
    struct plan *plan = make_fp8(&w, NULL, 0);

    /* The head is bf16: 8 MiB. */
    assert_true(plan_predict(plan, 0, &p));
    assert_near(p.token_s, 17.2 * MS, NEAR);
    assert_near(predict_layer_most_s(plan), 1 * MS, NEAR);
    assert_int_equal(p.n_plain_assumed, 0);
    plan_destroy(plan);
    plan = make_fp8(&w, &all, 3);
    assert_true(plan_predict(plan, 0, &p));
    assert_near(p.token_s, 19.2 * MS, NEAR);
    assert_near(predict_layer_most_s(plan), 3 * MS, NEAR); /* whichever it is */
    plan_destroy(plan);
    /* Two of ten parts of the layer, in twice the bytes without scales. */
    plan = make_fp8(&w, &down, 3);
    assert_true(plan_predict(plan, 0, &p));
    assert_near(p.token_s, (15 + 0.8 + 0.6 + 1.2) * MS, NEAR);
    plan_destroy(plan);
}

static void test_mixed__without_rates_of_bf16_those_of_fp8_are_taken_and_it_is_said(
    void **state UNUSED)
{
    struct world w;
    struct prediction p;
    struct buf out = BUF_INIT;
    struct plan *plan = make_fp8(&w, NULL, 0);

    plan->sites[0].rates_plain = NULL;
    assert_true(plan_predict(plan, 0, &p));
    assert_near(p.token_s, (16 + 8 / 10.3125) * MS, NEAR);
    assert_int_equal(p.n_plain_assumed, 1);
    assert_int_equal(predict_print(plan, 0, &out), ST_OK);
    assert_non_null(strstr(out.data, "1 of 1 ranks hold matrices in bf16"));
    buf_reset(&out);
    assert_int_equal(plan_print_json(plan, 0, &out), ST_OK);
    assert_non_null(strstr(out.data, "\"ranks_plain_assumed\": 1"));
    buf_fini(&out);
    plan_destroy(plan);
}

/* ---- stages ---- */

static void test_stages__the_faster_host_gets_more_layers(void **state UNUSED)
{
    struct world w;

    /* 13 on a: 13 ms, and 3 on b: 9 and 1.2 for the head. With 12 it would be 13.2. */
    world_make(&w, "ab");
    struct plan *plan = make((struct plan_request){ .tp = 1, .pp = 2, .sites = &w.sites });
    assert_int_equal(layers_of(plan, 0), 13);
    assert_int_equal(layers_of(plan, 1), 3);
    assert_non_null(strstr(plan->why, "speed and memory"));
    plan_destroy(plan);
    /* The other way round: 4 on b are 12 ms, 12 on a are 12.4. */
    world_make(&w, "ba");
    plan = make((struct plan_request){ .tp = 1, .pp = 2, .sites = &w.sites });
    assert_int_equal(layers_of(plan, 0), 4);
    assert_int_equal(layers_of(plan, 1), 12);
    plan_destroy(plan);
    /* tp 2: a stage is as slow as its slower slice, so both are alike. */
    world_make(&w, "abab");
    plan = make((struct plan_request){ .tp = 2, .pp = 2, .sites = &w.sites });
    assert_int_equal(layers_of(plan, 0), 8);
    plan_destroy(plan);
}

static void test_stages__hosts_that_are_alike_change_no_digest(void **state UNUSED)
{
    struct world w;

    world_make(&w, "a");
    struct plan *with = make((struct plan_request){ .tp = 2, .pp = 3, .sites = &w.sites });
    struct plan *without = make((struct plan_request){ .tp = 2, .pp = 3 });
    assert_true(with->digest == without->digest);
    plan_destroy(with);
    plan_destroy(without);
}

static void test_stages__layers_that_were_asked_for_stay(void **state UNUSED)
{
    struct world w;

    world_make(&w, "ab");
    struct plan *plan = make((struct plan_request){
        .tp = 1, .n_stage_layers = 2, .stage_layers = { 2, 14 }, .sites = &w.sites });
    assert_int_equal(layers_of(plan, 0), 2);
    plan_destroy(plan);
}

static void test_stages__memory_bounds_what_speed_would_give(void **state UNUSED)
{
    struct world w;
    struct plan *half = make((struct plan_request){
        .tp = 1, .n_stage_layers = 2, .stage_layers = { 8, 8 }, .kv_tokens = 64, .ctx_max = 64 });
    const struct plan_part *p = &half->parts[0];

    world_make(&w, "ab");
    w.memory[0] = p->weight_bytes + p->kv_bytes + p->scratch_bytes + PLAN_RESERVE_BYTES;
    struct plan *plan = make((struct plan_request){
        .tp = 1, .pp = 2, .kv_tokens = 64, .ctx_max = 64, .sites = &w.sites });
    assert_int_equal(layers_of(plan, 0), 8);
    plan_destroy(plan);
    plan_destroy(half);
}

static void test_stages__speed_costs_half_of_the_kv_at_most(void **state UNUSED)
{
    const uint64_t memory = 500 * MIB;
    struct world w;

    world_make(&w, "ab");
    w.memory[0] = w.memory[1] = memory;
    struct plan *even =
        make((struct plan_request){ .tp = 1, .pp = 2, .rank_memory_bytes = memory });
    struct plan *plan = make((struct plan_request){ .tp = 1, .pp = 2, .sites = &w.sites });
    assert_true(layers_of(plan, 0) > layers_of(even, 0));
    assert_true(2 * (plan->kv_tokens + KERN_KV_BLOCK) >= even->kv_tokens);
    assert_true(plan->kv_tokens < even->kv_tokens);
    for (uint32_t i = 0; i < 2; i++) {
        const struct plan_part *p = &plan->parts[i];
        assert_true(p->weight_bytes + p->kv_bytes + p->scratch_bytes + PLAN_RESERVE_BYTES <=
                    memory);
    }
    plan_destroy(even);
    plan_destroy(plan);
}

static void test_stages__too_little_memory_is_refused_with_the_rank(void **state UNUSED)
{
    const struct model_desc d = model_of(&row);
    struct world w;
    struct plan *plan = NULL;
    struct err err = ERR_INIT;

    world_make(&w, "ab");
    w.memory[0] = w.memory[1] = 100 * MIB;
    const struct plan_request r = { .tp = 1, .pp = 2, .fmt = KERN_BF16, .sites = &w.sites };
    assert_int_equal(plan_create(&d, &r, &plan, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "rank 0 needs"));
    assert_null(plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_predict__a_token_reads_all_weights_once),
        cmocka_unit_test(test_predict__many_rows_are_bound_by_arithmetic),
        cmocka_unit_test(test_predict__every_other_rate_has_its_part),
        cmocka_unit_test(test_predict__slices_of_one_host_share_it_and_pay_for_sums),
        cmocka_unit_test(test_predict__stages_work_at_the_same_time),
        cmocka_unit_test(test_predict__without_rates_nothing_is_said),
        cmocka_unit_test(test_predict__what_is_assumed_is_said),
        cmocka_unit_test(test_predict__recorded_steps_of_a_device_cost_what_recorded_ones_do),
        cmocka_unit_test(test_predict__what_is_left_out_of_a_device_is_said),
        cmocka_unit_test(test_mixed__each_matrix_passes_at_the_rate_of_its_format),
        cmocka_unit_test(test_mixed__without_rates_of_bf16_those_of_fp8_are_taken_and_it_is_said),
        cmocka_unit_test(test_stages__the_faster_host_gets_more_layers),
        cmocka_unit_test(test_stages__hosts_that_are_alike_change_no_digest),
        cmocka_unit_test(test_stages__layers_that_were_asked_for_stay),
        cmocka_unit_test(test_stages__memory_bounds_what_speed_would_give),
        cmocka_unit_test(test_stages__speed_costs_half_of_the_kv_at_most),
        cmocka_unit_test(test_stages__too_little_memory_is_refused_with_the_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
