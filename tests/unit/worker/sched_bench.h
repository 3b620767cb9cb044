/* tests/unit/worker/sched_bench.h - the scheduler without a model: a bench that plays the ranks, and
 * random lives of streams on it.
 *
 * The fake model chooses tokens by (stream, position). The fake KV holds at each slot a hash of
 * everything up to its position, and two fake stages run the plans in order: one as soon as a plan
 * is made, one as late as a pipeline may, when its results are due. A plan that finds other KV than
 * that of its own stream's tokens fails the test, and so does one whose adjustments are not what
 * counting the stream's tokens anew gives. */
#ifndef TESTS_UNIT_WORKER_SCHED_BENCH_H
#define TESTS_UNIT_WORKER_SCHED_BENCH_H

#include "worker/sched/sched.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCK = KERN_KV_BLOCK, IDS_MAX = 4096, STAGES = 2, ACTORS_MAX = 32, CTX_MAX = 256 };

static uint64_t fake_now_ns = 1;
static inline uint64_t fake_clock(void *self UNUSED)
{
    return fake_now_ns;
}
static const struct clock test_clock = { fake_clock, NULL };

static uint32_t ids[IDS_MAX]; /* prompts point here: token i is i, from the stream's family on */
static const struct msg_bias bench_biases[] = { { 90, 1.5f }, { 7, -100.0f }, { 2000, 0.25f } };

/* What the bench knows of stream i + 1. */
struct actor {
    uint32_t family; /* the first id of its prompt */
    uint64_t scope;
    uint32_t n_prompt;
    float repetition, presence;
    uint32_t n_biases;
    bool is_filtered;     /* its tokens are chosen by the host */
    uint64_t kv[CTX_MAX]; /* what the fake KV must hold at each position */
};

struct bench {
    struct sched *s;
    struct sched_config config;
    struct step_head *plans[4]; /* out, oldest first */
    uint32_t n_out;
    struct actor actors[ACTORS_MAX];
    uint64_t *kv[STAGES]; /* [kv_blocks, BLOCK] */
};

static inline void setup(struct bench *b, struct sched_config config)
{
    struct err err = ERR_INIT;

    memset(b, 0, sizeof(*b));
    config.clock = &test_clock;
    config.limits.tables_max = config.limits.seqs_max * ((config.ctx_max + BLOCK - 1) / BLOCK);
    if (config.limits.adjusts_max == 0) {
        config.limits.adjusts_max =
            step_adjusts_max(config.limits.seqs_max, config.ctx_max, IDS_MAX);
    }
    b->config = config;
    assert_true(config.ctx_max <= CTX_MAX);
    assert_int_equal(sched_create(&config, &b->s, &err), ST_OK);
    for (uint32_t i = 0; i < ARRAY_LEN(b->plans); i++) {
        b->plans[i] = malloc(step_bytes_max(&config.limits));
    }
    for (uint32_t i = 0; i < STAGES; i++) {
        b->kv[i] = calloc((size_t)config.kv_blocks * BLOCK, sizeof(uint64_t));
    }
    for (uint32_t i = 0; i < IDS_MAX; i++) {
        ids[i] = i;
    }
}

static inline void teardown(struct bench *b)
{
    sched_destroy(b->s);
    for (uint32_t i = 0; i < ARRAY_LEN(b->plans); i++) {
        free(b->plans[i]);
    }
    for (uint32_t i = 0; i < STAGES; i++) {
        free(b->kv[i]);
    }
}

static inline struct sched_config small_config(void)
{
    return (struct sched_config){ .limits = { .seqs_max = 4, .rows_max = 64 },
                                  .kv_blocks = 16,
                                  .ctx_max = 256,
                                  .chunk_max = 0,
                                  .queue_max = 8,
                                  .in_flight_max = 1,
                                  .prefix_cache = true };
}

/* The token that the fake model chooses for a stream's position `pos`. Odd streams choose alike, so
 * that answers are shared as well as prompts. */
static inline uint32_t fake_token(uint64_t stream, uint32_t pos)
{
    return (uint32_t)((stream % 2 == 0 ? stream * 1000 : 77) + pos) % IDS_MAX;
}

static inline uint32_t token_at(const struct actor *a, uint64_t stream, uint32_t pos)
{
    return pos < a->n_prompt ? ids[a->family + pos] : fake_token(stream, pos);
}

/* `m->prompt` points into ids. */
static inline status submit_msg(struct bench *b, const struct msg_submit *m)
{
    struct err err = ERR_INIT;
    const status st = sched_submit(b->s, m, &err);
    struct actor *a = &b->actors[m->stream - 1];
    uint64_t kv = m->cache_scope;

    assert_true(m->stream <= ACTORS_MAX);
    if (st != ST_OK) {
        return st;
    }
    *a = (struct actor){ .family = (uint32_t)(m->prompt - ids),
                         .scope = m->cache_scope,
                         .n_prompt = m->n_prompt,
                         .repetition = m->repetition_penalty,
                         .presence = m->presence_penalty,
                         .n_biases = m->n_biases,
                         .is_filtered = m->top_k != 0 };
    for (uint32_t i = 0; i < CTX_MAX; i++) {
        kv = (kv ^ token_at(a, m->stream, i)) * 0x9E3779B97F4A7C15ull;
        kv ^= kv >> 29;
        a->kv[i] = kv;
    }
    return ST_OK;
}

static inline status submit_as(struct bench *b, uint64_t stream, struct actor as,
                               uint32_t max_tokens)
{
    return submit_msg(b, &(struct msg_submit){ .stream = stream,
                                               .attempt = 1,
                                               .n_prompt = as.n_prompt,
                                               .prompt = ids + as.family,
                                               .max_tokens = max_tokens,
                                               .temperature = as.is_filtered ? 1.0f : 0.0f,
                                               .top_k = as.is_filtered ? 40 : 0,
                                               .top_p = 1.0f,
                                               .repetition_penalty = as.repetition,
                                               .presence_penalty = as.presence,
                                               .n_biases = as.n_biases,
                                               .biases = bench_biases,
                                               .cache_scope = as.scope });
}

static inline status submit(struct bench *b, uint64_t stream, uint32_t n_prompt,
                            uint32_t max_tokens)
{
    return submit_as(b, stream, (struct actor){ .n_prompt = n_prompt }, max_tokens);
}

/* The adjustments of a sampled sequence, counted anew from the stream's tokens. */
static inline void check_adjusts(const struct bench *b, const struct step_head *plan,
                                 const struct step_seq *q)
{
    static uint32_t seen[IDS_MAX], made[IDS_MAX];
    const struct actor *a = &b->actors[q->stream - 1];
    const bool repeats = a->repetition != 0.0f && a->repetition != 1.0f;
    const bool counts = q->sample != 0 && (repeats || a->presence != 0.0f);
    const struct kern_adjust *at = step_adjusts_const(plan) + q->adjust0;
    uint32_t n = 0;

    memset(seen, 0, sizeof(seen));
    memset(made, 0, sizeof(made));
    for (uint32_t pos = 0; counts && pos < q->pos0 + q->n_rows; pos++) {
        const uint32_t id = token_at(a, q->stream, pos);
        seen[id] += repeats || pos >= a->n_prompt;
        made[id] += pos >= a->n_prompt;
    }
    for (uint32_t id = 0; counts && id < IDS_MAX; id++) {
        if (seen[id] != 0) {
            assert_true(n < q->n_counts);
            assert_int_equal(at[n].id, id);
            assert_int_equal(at[n++].n_made, made[id]);
        }
    }
    assert_int_equal(q->n_counts, n);
    assert_int_equal(q->n_biases, q->sample != 0 ? a->n_biases : 0);
    for (uint32_t i = 1; i < q->n_biases; i++) { /* ascending; their sum tells which they are */
        assert_true(at[n + i].id > at[n + i - 1].id);
    }
}

/* What a rank of this stage does with one sequence: read what is before its rows, write its rows. */
static inline void run_seq(struct bench *b, uint64_t *kv, const struct step_head *plan,
                           const struct step_seq *q)
{
    const struct actor *a = &b->actors[q->stream - 1];
    const uint32_t *table = step_tables_const(plan) + q->table0;

    for (uint32_t pos = 0; pos < q->pos0; pos += BLOCK) {
        const uint32_t n = MIN((uint32_t)BLOCK, q->pos0 - pos);
        if (memcmp(&kv[(size_t)table[pos / BLOCK] * BLOCK], &a->kv[pos], n * sizeof(*kv)) != 0) {
            fail_msg("step %llu: stream %llu reads another's KV in block %u",
                     (unsigned long long)plan->id, (unsigned long long)q->stream,
                     table[pos / BLOCK]);
        }
    }
    for (uint32_t i = 0; i < q->n_rows; i++) {
        const uint32_t pos = q->pos0 + i;
        assert_int_equal(step_tokens_const(plan)[q->row0 + i], token_at(a, q->stream, pos));
        kv[(size_t)table[pos / BLOCK] * BLOCK + pos % BLOCK] = a->kv[pos];
    }
}

static inline void run_stage(struct bench *b, uint32_t stage, const struct step_head *plan)
{
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        run_seq(b, b->kv[stage], plan, &step_seqs_const(plan)[i]);
    }
}

/* What the device does with fed rows: the tokens that the plan before, still out, chooses. */
static inline void feed(struct bench *b, struct step_head *plan)
{
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *q = &step_seqs(plan)[i];
        if (q->feed == 0) {
            continue;
        }
        assert_true(b->config.ahead && b->n_out == 2);
        const struct actor *a = &b->actors[q->stream - 1];
        assert_false(a->is_filtered || a->presence != 0.0f || a->repetition != 0.0f);
        const struct step_seq *from = step_seqs(b->plans[0]);
        for (uint32_t k = from->sample; k < q->feed; k += from->sample) {
            from++;
            assert_true(from < step_seqs(b->plans[0]) + b->plans[0]->n_seqs);
        }
        assert_int_equal(from->stream, q->stream);
        step_tokens(plan)[q->row0] = fake_token(from->stream, from->pos0 + from->n_rows);
    }
}

/* The next plan, checked as a rank would. */
static inline const struct step_head *next(struct bench *b)
{
    struct err err = ERR_INIT;
    struct step_head *plan = b->plans[b->n_out];

    if (sched_next(b->s, plan) != ST_OK) {
        return NULL;
    }
    b->n_out++;
    if (step_check(plan, plan->bytes, &b->config.limits, b->config.kv_blocks, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        check_adjusts(b, plan, &step_seqs_const(plan)[i]);
    }
    feed(b, plan);
    run_stage(b, 0, plan);
    assert_true(sched_is_valid(b->s));
    return plan;
}

static inline const struct msg_events *done(struct bench *b)
{
    struct step_result results[64];
    struct err err = ERR_INIT;
    struct step_head *plan = b->plans[0];
    uint32_t n = 0;

    assert_true(b->n_out > 0);
    run_stage(b, 1, plan);
    memset(results, 0, sizeof(results));
    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *q = &step_seqs(plan)[i];
        if (q->sample) {
            results[n].stream = q->stream;
            results[n].attempt = q->attempt;
            results[n++].sampled.token = fake_token(q->stream, q->pos0 + q->n_rows);
        }
    }
    if (sched_done(b->s, plan->id, results, n, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    b->n_out--;
    memmove(b->plans, b->plans + 1, b->n_out * sizeof(b->plans[0]));
    b->plans[b->n_out] = plan;
    assert_true(sched_is_valid(b->s));
    return sched_events(b->s);
}

static inline struct sched_stats stats_of(const struct bench *b)
{
    struct sched_stats stats;

    sched_stats(b->s, &stats);
    return stats;
}

static inline uint32_t used(const struct bench *b)
{
    return stats_of(b).kv_blocks_used;
}

/* ---- random lives ---- */

static uint64_t rng_state;
static inline uint32_t rng(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((rng_state >> 33) % n);
}

struct life {
    uint32_t n_prompt, max_tokens, n_tokens;
    bool ended, cancelled;
};

enum { LIVES = 24 };

static inline void take(struct life *lives, const struct msg_events *events)
{
    for (uint32_t i = 0; i < events->n_tokens; i++) {
        const struct msg_token *t = &events->tokens[i];
        struct life *l = &lives[t->stream - 1];
        assert_false(l->ended);
        assert_int_equal(t->index, l->n_tokens);
        assert_int_equal(t->token, fake_token(t->stream, l->n_prompt + l->n_tokens));
        l->n_tokens++;
    }
    for (uint32_t i = 0; i < events->n_finishes; i++) {
        struct life *l = &lives[events->finishes[i].stream - 1];
        assert_false(l->ended);
        l->ended = true;
        if (events->finishes[i].reason == FINISH_LENGTH) {
            assert_int_equal(l->n_tokens, l->max_tokens);
        } else {
            assert_int_equal(events->finishes[i].reason, FINISH_CANCELLED);
            assert_true(l->cancelled);
        }
    }
}

static inline void start_life(struct bench *b, struct life *l, uint32_t n)
{
    const struct actor as = { .family = rng(3) * 40,
                              .scope = rng(4) == 0,
                              .n_prompt = 1 + rng(100),
                              .repetition = rng(3) == 0 ? 1.25f : 0.0f,
                              .presence = rng(4) == 0 ? 0.5f : 0.0f,
                              .n_biases = rng(5) == 0 ? 3 : 0,
                              .is_filtered = b->config.ahead && rng(4) == 0 };

    *l = (struct life){ .n_prompt = as.n_prompt, .max_tokens = 1 + rng(60) };
    assert_int_equal(submit_as(b, n, as, l->max_tokens), ST_OK);
}

/* Adds what happened to *sum. */
static inline void one_random_life(uint64_t seed, bool prefix_cache, struct sched_stats *sum)
{
    static struct bench b;
    struct life lives[LIVES];
    uint32_t n = 0, n_idle = 0;
    const bool ahead = seed % 3 == 0;

    rng_state = seed * 977 + 5;
    memset(lives, 0, sizeof(lives));
    setup(&b, (struct sched_config){ .limits = { .seqs_max = 1 + rng(8),
                                                 .rows_max = 1 + rng(80),
                                                 .adjusts_max = rng(2) * (160 + 3) },
                                     .kv_blocks = 6 + rng(12),
                                     .ctx_max = 160,
                                     .chunk_max = rng(40),
                                     .queue_max = LIVES,
                                     .in_flight_max = ahead ? 1 : 1 + rng(3),
                                     .ahead = ahead,
                                     .prefix_cache = prefix_cache });
    for (uint32_t turn = 0; turn < 40000; turn++) {
        if (n < LIVES && rng(3) == 0) {
            start_life(&b, &lives[n], n + 1);
            n++;
        }
        if (n != 0 && rng(60) == 0) {
            const uint32_t i = rng(n);
            if (!lives[i].ended) {
                lives[i].cancelled = true;
                sched_cancel(b.s, i + 1, 1);
            }
        }
        bool moved = false;
        if (rng(2) == 0) {
            moved = next(&b) != NULL;
        }
        if (b.n_out != 0 && (!moved || rng(2) == 0)) {
            take(lives, done(&b));
            moved = true;
        } else {
            take(lives, sched_events(b.s));
        }
        n_idle = moved ? 0 : n_idle + 1;
        assert_true(n_idle < 200 || sched_is_idle(b.s)); /* liveness */
        if (n == LIVES && sched_is_idle(b.s)) {
            break;
        }
    }
    assert_true(sched_is_idle(b.s));
    const struct sched_stats stats = stats_of(&b);
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_true(prefix_cache || stats.kv_blocks_cached + stats.cache_hits == 0);
    sum->preemptions += stats.preemptions;
    sum->cache_hits += stats.cache_hits;
    sum->kv_blocks_cached += stats.kv_blocks_cached;
    for (uint32_t i = 0; i < LIVES; i++) {
        assert_true(lives[i].ended);
    }
    teardown(&b);
}

#endif
