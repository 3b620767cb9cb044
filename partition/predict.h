/* partition/predict.h - how long a plan's steps will take, from the measured rates of its hosts.
 *
 *   a rank      weights of its layers (and head) at so many rows     rates_weights_s
 *             + attention at so many positions + norms and the like + a little per layer
 *   a stage     its slowest slice + two sums per layer over the slices + what comes from the stage before
 *   a token     one after the other through all stages
 *   many        ranks keep pp plans going: a round takes the sum of the stages, or pp times the slowest
 *
 * Not in it: waiting for cores that others use, requests that come and go, the network's other users.
 * Pure, as all of this folder. */
#ifndef PARTITION_PREDICT_H
#define PARTITION_PREDICT_H

#include "partition/plan.h"

enum { PREDICT_PROMPT_DEFAULT = 512 };

/* What takes the time. */
enum predict_bound {
    PREDICT_READING,    /* weights, from memory */
    PREDICT_ARITHMETIC, /* products */
    PREDICT_ATTENTION,  /* K and V */
    PREDICT_LINKS,
    PREDICT_REST, /* norms, activations, sampling, and what a layer costs however small it is */
    PREDICT_BOUNDS
};
const char *predict_bound_name(enum predict_bound bound); /* "reading weights" */

struct predict_time {
    double s;
    double part[PREDICT_BOUNDS]; /* sums up to s */
};
enum predict_bound predict_bound_of(const struct predict_time *t); /* the largest part */

/* Rows of a step, and how far back each looks on the average. */
struct predict_step {
    uint32_t n_rows, n_samples;
    double positions;
    bool is_prompt; /* all rows are one stream's; else each is a stream's next token */
};

/* Are decode steps recorded once and launched as one (worker/exec_graph.c)? */
bool predict_records(const struct plan *plan);
/* Only of plans with rates (plan->sites). */
void predict_stage(const struct plan *plan, uint32_t stage, const struct predict_step *step,
                   struct predict_time *time_p);
/* One step through all stages, and the way back to the leader. */
void predict_step(const struct plan *plan, const struct predict_step *step,
                  struct predict_time *time_p);
/* A decode step of so many streams at so many positions, as gantry status shows it: of one of the pp
 * plans that they are spread over. 0: no rates. */
double predict_decode_s(const struct plan *plan, uint32_t n_streams, double positions);
/* The longest that a layer of a full step takes: rows_max rows at the end of the longest context. 0:
 * no rates. */
double predict_layer_most_s(const struct plan *plan);
/* Of one rank, whatever its stage: its layers, and what it has at its ends. For balancing. */
void predict_part(const struct plan *plan, const struct plan_part *part,
                  const struct plan_site *site, const struct predict_step *step,
                  struct predict_time *time_p);

struct prediction {
    uint32_t prompt;        /* tokens; also the position at which tokens are made */
    double first_s;         /* from an idle replica to the first token */
    double prompt_tokens_s; /* prompt / first_s */
    double token_s;         /* of one stream alone */
    uint32_t streams;       /* together: as many as a step and the KV cache hold */
    double round_s;         /* of each of them: from token to token */
    double tokens_s;        /* of all of them */
    enum predict_bound first_bound, token_bound, round_bound;
    uint32_t slowest_stage; /* of many streams */
    uint32_t n_assumed;     /* ranks whose host was not measured */
    /* Ranks that hold matrices in bf16 beside fp8 ones, and no rates of that; those of fp8 were taken. */
    uint32_t n_plain_assumed;
};
/* `prompt` 0: 512; cut to what the context holds. False: no rates. */
bool plan_predict(const struct plan *plan, uint32_t prompt, struct prediction *p_p);
/* For people: a few lines, or one that says how to get them. */
status predict_print(const struct plan *plan, uint32_t prompt, struct buf *out);

#endif
