/* tests/golden/record.h - reading the records in tests/golden/data (their layout: README.md), for the test programs beside it.
 *
 * A record that is not as it should be fails the test. Other people's sums are in another order: greedy tokens are compared up to the
 * first step whose two best logits are too close to tell (record_greedy). */
#ifndef TESTS_GOLDEN_RECORD_H
#define TESTS_GOLDEN_RECORD_H

#include "common/fixture.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Tolerance of logits and log-probabilities in f32, as a share of the rms of the logits. */
static const double record_share_f32 = 1e-3;

static inline const json_t *record_need(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL) {
        fail_msg("the record has no %s", key);
    }
    return value;
}

/* The caller frees it with json_decref. */
static inline json_t *record_load(const char *rel)
{
    char path[FIXTURE_PATH_BYTES];
    json_error_t why;

    if (!fixture_source(rel, path)) {
        fail_msg("no %s", rel);
    }
    json_t *root = json_load_file(path, 0, &why);
    if (root == NULL) {
        fail_msg("%s: %s", path, why.text);
    }
    return root;
}

/* At least one, max_ids at most; returns how many. */
static inline uint32_t record_ids(const json_t *array, uint32_t max_ids, uint32_t *ids)
{
    const size_t n = json_array_size(array);

    assert_true(n > 0 && n <= max_ids);
    for (size_t i = 0; i < n; i++) {
        ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    }
    return (uint32_t)n;
}

struct record_bounds {
    double gap;     /* a step whose two best logits are nearer may choose the other one */
    double logprob; /* how far a token's log-probability may be from the recorded one */
};

/* want has ids, gaps and logprobs; tokens and logprobs are as many, ours. Returns how many tokens were equal before the texts part;
 * what names the case in a failure. */
static inline uint32_t record_greedy(const char *what, const json_t *want,
                                     struct record_bounds bounds, const uint32_t *tokens,
                                     const float *logprobs)
{
    const json_t *ids = record_need(want, "ids"), *gaps = record_need(want, "gaps");
    const json_t *recorded = record_need(want, "logprobs");
    const uint32_t n = (uint32_t)json_array_size(ids);

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t id = (uint32_t)json_integer_value(json_array_get(ids, i));
        const double gap = json_number_value(json_array_get(gaps, i));
        const double logprob = json_number_value(json_array_get(recorded, i));
        if (tokens[i] != id && gap > bounds.gap) {
            fail_msg("%s: token %u is %u, recorded %u with a gap of %.6f", what, i, tokens[i], id,
                     gap);
        }
        if (tokens[i] != id) {
            return i; /* another text from here on */
        }
        if (!(fabs((double)logprobs[i] - logprob) <= bounds.logprob)) {
            fail_msg("%s: token %u has log-probability %.6f, recorded %.6f", what, i,
                     (double)logprobs[i], logprob);
        }
    }
    return n;
}

#endif
