/* tests/sim/sim_model.h - a model that costs nothing and forgets nothing.
 *
 * "K and V" of a position are one number: a hash of the one before and of the token. "Attention"
 * is the sum over all positions. The next token is a hash of that sum, the parameters and the
 * position (penalties and biases included). So a token is right only if every position's entry is the right one, in the right block
 * of the right table; and the right answer of any request is known without running anything. */
#ifndef TESTS_SIM_MODEL_H
#define TESTS_SIM_MODEL_H

#include "base/buf.h"
#include "proto/msg.h"
#include "worker/sched/step.h"

enum { SIM_BOS = 256, SIM_EOS = 257, SIM_VOCAB = 258 };

/* What a replica keeps for all its streams. */
struct sim_kv {
    uint64_t *at; /* [n_blocks, KERN_KV_BLOCK] owned */
    uint32_t n_blocks;
};

void sim_kv_init(struct sim_kv *kv, uint32_t n_blocks);
void sim_kv_fini(struct sim_kv *kv);

/* What spoils tokens: 0, or those of every stream (of a replica that was given up, and whose word no longer
 * counts); and those of streams with a number below `before`, of a coordinator that is gone. */
struct sim_lie {
    uint64_t all, old, before;
};

/* Run a plan: write its rows, choose its tokens. results: [plan->n_samples]. `fed`: the samples of
 * the plan before. */
void sim_model_run(struct sim_kv *kv, const struct step_head *plan, const struct sim_lie *lie,
                   const uint32_t *fed, struct step_result *results);

/* ---- what a request must be answered ---- */

struct sim_params {
    float temperature, top_p, min_p;
    uint32_t top_k, choice;
    uint64_t seed;
    struct kern_penalties penalties;
    uint64_t adjusts; /* hash over what penalties and biases concern, in its order; 0: nothing */
};

struct sim_truth {
    uint32_t *ids; /* [n] owned: what is generated, up to the end */
    uint32_t n;
    float *logprobs; /* [n] owned */
    struct buf text; /* without the stop string and what is behind it */
    enum finish_reason reason;
    int32_t i_stop; /* which stop string, or -1 */
};

/* The request as sent (ranges checked), with its prompt's ids. `max_tokens`: as admitted. */
void sim_truth_make(const struct msg_generate *m, const uint32_t *prompt, uint32_t n_prompt,
                    uint32_t max_tokens, uint64_t seed, uint32_t choice, struct sim_truth *truth);
void sim_truth_fini(struct sim_truth *t);

/* The k-th of the top log-probabilities that belongs to `token`. */
struct msg_logprob sim_top(uint32_t token, float logprob, uint32_t k);

#endif
