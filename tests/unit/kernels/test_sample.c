/* The sampler, from logits to token, through the scan of kernels/ref: what the filters mean against
 * a naive oracle in f64, what chance does, and that slices cannot be seen. */
#include "base/cpu.h"
#include "kernels/philox.h"
#include "kernels/sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 5000, SLICES = 4 };

static uint64_t rng_state = 7;

static double rng(void) /* (0, 1) */
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return ((double)((z ^ (z >> 31)) >> 12) + 0.5) * 0x1p-52;
}

static const struct sample_params plain = { .temperature = 1.0f, .top_p = 1.0f, .seed = 99 };

/* Adjustments of a row, for `run`. */
static const struct kern_adjust *entries;
static uint32_t n_counts, n_biases;

/* Scan `logits` in n_slices pieces, pass each through its flat form, merge. */
static struct sample_result run(const float *logits, uint32_t vocab, uint32_t n_slices,
                                const struct sample_params *p, uint32_t pos)
{
    struct kern_scan_row row = sample_row(p, pos, vocab, n_counts + n_biases != 0);
    const uint32_t n_blocks = (vocab + KERN_VOCAB_BLOCK - 1) / KERN_VOCAB_BLOCK;
    float *copy = malloc(vocab * sizeof(float)), *saved = malloc(vocab * 2 * sizeof(float));
    const struct kern_adjusts adjusts = { entries, saved };
    struct sample_slice slices[SLICES];
    struct sample_result result;
    void *flat[SLICES], *moved[SLICES];

    assert_non_null(copy);
    assert_non_null(saved);
    memcpy(copy, logits, vocab * sizeof(float));
    row.n_counts = n_counts;
    row.n_biases = n_biases;
    for (uint32_t i = 0; i < n_slices; i++) {
        const uint32_t id0 = n_blocks * i / n_slices * KERN_VOCAB_BLOCK;
        const uint32_t end = MIN(n_blocks * (i + 1) / n_slices * KERN_VOCAB_BLOCK, vocab);
        const size_t bytes = sample_row_bytes(&row, end - id0);

        flat[i] = aligned_alloc(KERN_ALIGN, bytes);
        moved[i] = aligned_alloc(KERN_ALIGN, bytes);
        assert_non_null(flat[i]);
        assert_non_null(moved[i]);
        memset(flat[i], 0xa5, bytes);
        kern_scan_rows(kern_ops_ref(), NULL, copy + id0, id0, end - id0, 1, &row, adjusts, flat[i]);
        memcpy(moved[i], flat[i], bytes);
        slices[i].id0 = id0;
        slices[i].n_ids = end - id0;
        sample_row_load(moved[i], &row, &slices[i]);
    }
    assert_memory_equal(copy, logits, vocab * sizeof(float));
    sample_merge(slices, n_slices, p, &row, vocab, &result);
    for (uint32_t i = 0; i < n_slices; i++) {
        free(flat[i]);
        free(moved[i]);
    }
    free(copy);
    free(saved);
    return result;
}

static void random_logits(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        x[i] = (float)(4.0 * sqrt(-2.0 * log(rng())) * cos(6.283185307 * rng()));
        if (i % 5 == 0) {
            x[i] = (float)(int)x[i]; /* ties */
        }
    }
}

static double log_sum(const float *x, uint32_t n)
{
    double max = -1e300, sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        max = MAX(max, (double)x[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - max);
    }
    return max + log(sum);
}

static void test_greedy__takes_the_highest_logit_and_the_lower_id_of_equals(void **state)
{
    struct sample_params p = { .temperature = 0.0f, .top_p = 1.0f, .n_logprobs = 3 };
    float *x = calloc(VOCAB, sizeof *x);
    struct sample_result r;

    (void)state;
    random_logits(x, VOCAB);
    x[4321] = x[1234] = x[2000] = 50.0f;
    x[17] = NAN;
    r = run(x, VOCAB, 1, &p, 3);
    assert_int_equal(r.token, 1234);
    assert_int_equal(r.n_top, 3);
    assert_int_equal(r.top[0].id, 1234);
    assert_int_equal(r.top[1].id, 2000);
    assert_int_equal(r.top[2].id, 4321);
    assert_true(fabsf(r.logprob - logf(1.0f / 3.0f)) < 1e-5f);
    assert_true(r.logprob == r.top[0].logit);
    free(x);
}

static void test_logprobs__are_those_of_the_model(void **state)
{
    struct sample_params p = plain;
    float *x = calloc(VOCAB, sizeof *x);
    double lse;

    (void)state;
    random_logits(x, VOCAB);
    lse = log_sum(x, VOCAB);
    p.n_logprobs = SAMPLE_LOGPROBS_MAX;
    p.temperature = 0.5f; /* must not show */
    for (uint32_t pos = 0; pos < 20; pos++) {
        const struct sample_result r = run(x, VOCAB, 2, &p, pos);

        assert_true(fabs((double)r.logprob - ((double)x[r.token] - lse)) < 2e-5);
        assert_int_equal(r.n_top, SAMPLE_LOGPROBS_MAX);
        for (uint32_t i = 0; i < r.n_top; i++) {
            assert_true(fabs((double)r.top[i].logit - ((double)x[r.top[i].id] - lse)) < 2e-5);
            assert_true(i == 0 || r.top[i - 1].logit >= r.top[i].logit);
        }
    }
    free(x);
}

/* ---- slices ---- */

static void test_slices__one_two_and_four_give_equal_bits(void **state)
{
    float *x = calloc(VOCAB, sizeof *x);

    (void)state;
    for (uint32_t round = 0; round < 40; round++) {
        struct sample_params p = plain;
        struct sample_result one, many;

        random_logits(x, VOCAB);
        p.temperature = round % 4 == 0 ? 0.0f : 0.3f + 0.1f * (float)(round % 7);
        p.top_k = round % 3 == 0 ? 40 : 0;
        p.top_p = round % 5 < 2 ? 0.9f : 1.0f;
        p.min_p = round % 7 == 0 ? 0.05f : 0.0f;
        p.n_logprobs = round % 6;
        p.seed = round;
        one = run(x, VOCAB, 1, &p, round);
        for (uint32_t n = 2; n <= 4; n += 2) {
            many = run(x, VOCAB, n, &p, round);
            assert_int_equal(one.token, many.token);
            assert_memory_equal(&one.logprob, &many.logprob, sizeof one.logprob);
            assert_int_equal(one.n_top, many.n_top);
            assert_memory_equal(one.top, many.top, one.n_top * sizeof one.top[0]);
        }
    }
    free(x);
}

/* ---- filters ---- */

static const float *sort_x;

static int by_rank(const void *a, const void *b)
{
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;

    if (sort_x[i] != sort_x[j]) {
        return sort_x[i] > sort_x[j] ? -1 : 1;
    }
    return i < j ? -1 : 1;
}

/* The tokens that the filters leave, in f64 and in the order of the definition. `edge_p` tells
 * whether a cut was too close to call in f32. */
static uint32_t oracle(const float *x, uint32_t n, const struct sample_params *p, uint32_t *ids,
                       bool *edge_p)
{
    double total = 0, before = 0, *w = calloc(n, sizeof *w);
    uint32_t left = n, keep;

    *edge_p = false;
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = i;
    }
    sort_x = x;
    qsort(ids, n, sizeof *ids, by_rank);
    for (uint32_t i = 0; i < n; i++) {
        w[i] = exp(((double)x[ids[i]] - (double)x[ids[0]]) / (double)p->temperature);
    }
    if (p->top_k > 0) {
        left = MIN(left, p->top_k);
    }
    for (uint32_t i = 0; i < left; i++) {
        total += w[i];
    }
    for (keep = 0; keep < left; keep++) {
        const double gap = before / total - (double)p->top_p;

        if (p->top_p < 1.0f && fabs(gap) < 1e-5) {
            *edge_p = true;
        }
        if (keep > 0 && p->top_p < 1.0f && gap >= 0) {
            break;
        }
        before += w[keep];
    }
    left = keep;
    for (keep = 1; keep < left && w[keep] >= (double)p->min_p; keep++) {
    }
    if (p->min_p > 0.0f && keep < n && fabs(w[keep] - (double)p->min_p) < 1e-5) {
        *edge_p = true;
    }
    free(w);
    return keep;
}

/* Over the tokens that the oracle leaves, the drawn one has the best noisy logit. */
static void test_filters__leave_what_the_definition_leaves(void **state)
{
    float *x = calloc(VOCAB, sizeof *x);
    uint32_t *ids = calloc(VOCAB, sizeof *ids), n_compared = 0;

    (void)state;
    for (uint32_t round = 0; round < 300; round++) {
        struct sample_params p = plain;
        struct sample_result r;
        uint32_t left, want;
        double best = -1e300;
        bool edge;

        random_logits(x, VOCAB);
        p.temperature = (float)(0.3 + 1.2 * rng());
        p.top_k = round % 3 == 0 ? 0 : 1 + (uint32_t)(rng() * 60);
        p.top_p = round % 3 == 1 ? 1.0f : (float)(0.05 + 0.9 * rng());
        p.min_p = round % 2 == 0 ? 0.0f : (float)(0.2 * rng());
        p.seed = round * 1000003u;
        r = run(x, VOCAB, 1 + round % 2, &p, round);
        left = oracle(x, VOCAB, &p, ids, &edge);
        if (edge || left > KERN_CAND_MAX) {
            continue;
        }
        want = ids[0];
        for (uint32_t i = 0; i < left; i++) {
            const float score = x[ids[i]] / p.temperature + gumbel_noise(p.seed, 0, round, ids[i]);

            if ((double)score > best) {
                best = (double)score;
                want = ids[i];
            }
        }
        assert_int_equal(r.token, want);
        n_compared++;
    }
    assert_true(n_compared > 200);
    free(x);
    free(ids);
}

static void test_top_k_1__is_greedy(void **state)
{
    struct sample_params p = plain, greedy = plain;
    float *x = calloc(VOCAB, sizeof *x);

    (void)state;
    p.top_k = 1;
    p.temperature = 2.0f;
    greedy.temperature = 0.0f;
    for (uint32_t i = 0; i < 20; i++) {
        random_logits(x, VOCAB);
        assert_int_equal(run(x, VOCAB, 1, &p, i).token, run(x, VOCAB, 1, &greedy, i).token);
    }
    free(x);
}

static void test_request__asks_for_what_the_parameters_need(void **state)
{
    struct sample_params p = plain;
    struct kern_sample r = sample_row(&p, 5, VOCAB, false).params;

    (void)state;
    assert_true(r.gumbel_all && r.n_cand == 1 && r.pos == 5);
    p.top_k = 50;
    r = sample_row(&p, 5, VOCAB, false).params;
    assert_true(!r.gumbel_all && r.n_cand == 50);
    p.top_k = 0;
    p.top_p = 0.9f;
    assert_int_equal(sample_row(&p, 5, VOCAB, false).params.n_cand, KERN_CAND_MAX);
    assert_int_equal(sample_row(&p, 5, 300, false).params.n_cand, 300);
    p.top_k = 1u << 31;
    assert_int_equal(sample_row(&p, 5, VOCAB, false).params.n_cand, KERN_CAND_MAX);
    p.temperature = 0.0f;
    p.n_logprobs = 5;
    r = sample_row(&p, 5, VOCAB, false).params;
    assert_true(!r.gumbel_all && r.n_cand == 5);
}

/* ---- chance ---- */

/* Counts against expected counts; 8 cells or fewer, 7 degrees of freedom: 99.99 % lies below 30. */
static void check_chi_square(const uint32_t *count, const double *prob, uint32_t n_cells,
                             uint32_t draws)
{
    double chi2 = 0;

    for (uint32_t i = 0; i < n_cells; i++) {
        const double expected = prob[i] * draws;

        chi2 += (count[i] - expected) * (count[i] - expected) / expected;
    }
    if (chi2 > 30.0) {
        fail_msg("chi-square is %.1f", chi2);
    }
}

static void chance(bool filtered, bool over_choices)
{
    enum { N = 8, DRAWS = 20000 };
    const float x[N] = { 0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 1.5f, -2.0f, 2.0f };
    const float temperature = 0.8f;
    struct sample_params p = plain;
    uint32_t count[N] = { 0 };
    double prob[N], total = 0;

    p.temperature = temperature;
    p.top_k = filtered ? N : 0; /* keeps all, but takes the other way through the code */
    for (uint32_t i = 0; i < N; i++) {
        prob[i] = exp((double)x[i] / (double)temperature);
        total += prob[i];
    }
    for (uint32_t i = 0; i < N; i++) {
        prob[i] /= total;
    }
    for (uint32_t i = 0; i < DRAWS; i++) {
        p.choice = over_choices ? i : 0;
        count[run(x, N, 1, &p, over_choices ? 7 : i).token]++;
    }
    check_chi_square(count, prob, N, DRAWS);
}

static void test_gumbel__draws_from_the_softmax(void **state)
{
    (void)state;
    chance(false, false);
    chance(false, true);
    chance(true, false);
}

static void test_gumbel__a_filter_that_keeps_all_changes_nothing(void **state)
{
    struct sample_params a = plain, b = plain;
    float x[700];

    (void)state;
    b.top_k = 700;
    for (uint32_t pos = 0; pos < 100; pos++) {
        random_logits(x, 700);
        assert_int_equal(run(x, 700, 1, &a, pos).token, run(x, 700, 1, &b, pos).token);
    }
}

/* A thousand draws that use the seed, position or choice of their neighbour by mistake would be
 * equal; independent ones agree as often as chance says. */
static void test_gumbel__seed_position_and_choice_all_matter(void **state)
{
    float x[16] = { 0 };
    struct sample_params p = plain;
    uint32_t same[3] = { 0 };

    (void)state;
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t first;

        p = plain;
        p.seed = i;
        first = run(x, 16, 1, &p, i).token;
        assert_int_equal(first, run(x, 16, 1, &p, i).token);
        same[0] += first == run(x, 16, 1, &p, i + 1).token;
        p.choice = 1;
        same[1] += first == run(x, 16, 1, &p, i).token;
        p.choice = 0;
        p.seed = i + (1ULL << 32);
        same[2] += first == run(x, 16, 1, &p, i).token;
    }
    for (uint32_t i = 0; i < 3; i++) {
        assert_in_range(same[i], 25, 110); /* 62 expected, standard deviation 7.6 */
    }
}

/* ---- adjusted rows ---- */

/* What the page about numerics says, done to a copy. */
static float naive_adjust(float x, const struct kern_penalties *p, uint32_t n_made)
{
    x = x < 0.0f ? x * p->repetition : x / p->repetition;
    x = n_made != 0 ? x - (float)n_made * p->frequency : x;
    return n_made != 0 ? x - p->presence : x;
}

enum { N_COUNTS = 700, N_BIASES = 60 };

/* Random adjustments, some ids in both lists, applied to `x`. */
static void adjust_some(struct kern_adjust *list, float *x, const struct kern_penalties *p)
{
    for (uint32_t i = 0; i < N_COUNTS; i++) {
        const uint32_t made = (uint32_t)(rng() * 5);
        list[i] = (struct kern_adjust){ .id = i * 7, .n_made = made };
        x[i * 7] = naive_adjust(x[i * 7], p, made);
    }
    for (uint32_t i = 0; i < N_BIASES; i++) {
        const float bias = (float)(int)(rng() * 20) - 10.0f;
        list[N_COUNTS + i] = (struct kern_adjust){ .id = i * 77 + i % 3, .bias = bias };
        x[i * 77 + i % 3] = x[i * 77 + i % 3] + bias;
    }
    entries = list;
    n_counts = N_COUNTS;
    n_biases = N_BIASES;
}

static void adjust_none(void)
{
    entries = NULL;
    n_counts = 0;
    n_biases = 0;
}

/* The token is the one that a row so adjusted gives; the log-probabilities are the model's own; and
 * no slice can be seen. */
static void test_adjusted__token_of_the_adjusted_row_logprobs_of_the_model(void **state)
{
    float *x = calloc(VOCAB, sizeof *x), *y = calloc(VOCAB, sizeof *y);
    struct kern_adjust *list = calloc(N_COUNTS + N_BIASES, sizeof *list);
    uint32_t n_changed = 0;

    (void)state;
    for (uint32_t round = 0; round < 60; round++) {
        struct sample_params p = plain, greedy = plain;
        p.temperature = round % 4 == 0 ? 0.0f : 0.8f;
        p.top_k = round % 4 == 2 ? 40 : 0;
        p.min_p = round % 4 == 3 ? 0.01f : 0.0f;
        p.n_logprobs = round % 3 * 7;
        p.penalties = (struct kern_penalties){ round % 2 == 0 ? 1.3f : 0.7f, 0.6f, 0.25f };
        greedy.temperature = 0.0f;
        greedy.n_logprobs = p.n_logprobs;
        random_logits(x, VOCAB);
        x[round] = NAN;
        memcpy(y, x, VOCAB * sizeof *x);
        adjust_none();
        const struct sample_result model = run(x, VOCAB, 1, &greedy, 5 + round);
        x[round] = -INFINITY; /* what a NaN counts as */
        const double lse = log_sum(x, VOCAB);
        x[round] = NAN;
        adjust_some(list, y, &p.penalties);
        const struct sample_result got = run(x, VOCAB, 1, &p, 5 + round);
        const struct sample_result sliced = run(x, VOCAB, SLICES, &p, 5 + round);
        adjust_none();
        const struct sample_result want = run(y, VOCAB, 1, &p, 5 + round);

        assert_memory_equal(&got, &sliced, sizeof got);
        assert_int_equal(got.token, want.token);
        assert_true(fabs((double)got.logprob - ((double)x[got.token] - lse)) < 1e-4);
        assert_int_equal(got.n_top, p.n_logprobs);
        assert_memory_equal(got.top, model.top, got.n_top * sizeof got.top[0]);
        n_changed += got.logprob != want.logprob;
    }
    assert_true(n_changed > 40); /* the two rows do differ */
    free(x);
    free(y);
    free(list);
}

static void test_adjusted__a_bias_of_100_decides(void **state)
{
    struct sample_params p = plain;
    float *x = calloc(VOCAB, sizeof *x);
    const struct kern_adjust force = { .id = 4999, .bias = 100.0f };

    (void)state;
    random_logits(x, VOCAB);
    entries = &force;
    n_biases = 1;
    for (uint32_t i = 0; i < 20; i++) {
        assert_int_equal(run(x, VOCAB, SLICES, &p, i).token, 4999);
    }
    adjust_none();
    free(x);
}

static int setup(void **state)
{
    (void)state;
    cpu_float_env_set();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy__takes_the_highest_logit_and_the_lower_id_of_equals),
        cmocka_unit_test(test_logprobs__are_those_of_the_model),
        cmocka_unit_test(test_adjusted__token_of_the_adjusted_row_logprobs_of_the_model),
        cmocka_unit_test(test_adjusted__a_bias_of_100_decides),
        cmocka_unit_test(test_slices__one_two_and_four_give_equal_bits),
        cmocka_unit_test(test_filters__leave_what_the_definition_leaves),
        cmocka_unit_test(test_top_k_1__is_greedy),
        cmocka_unit_test(test_request__asks_for_what_the_parameters_need),
        cmocka_unit_test(test_gumbel__draws_from_the_softmax),
        cmocka_unit_test(test_gumbel__a_filter_that_keeps_all_changes_nothing),
        cmocka_unit_test(test_gumbel__seed_position_and_choice_all_matter),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
