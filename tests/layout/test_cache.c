/* tests/layout/test_cache.c - promise P2 and the prefix cache: a stream that starts after kept blocks
 * has the tokens and log-probabilities of one that computed everything. Compared for equality with a
 * run that keeps nothing, alone, on one rank. More of it (a crowd that shares, preemption) is in
 * test_bits.c. */
#include "common/fixture.h"
#include "replica/replica.h"

#include "base/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 120, N_KINDS = 2 };

static const char *model; /* directory of the model under test */
static uint32_t prompt[70];

struct answer {
    uint32_t tokens[N_TOKENS];
    float logprobs[N_TOKENS];
};

struct layout {
    enum replica_device device;
    uint32_t tp, pp, chunk;
};

static const struct layout layouts[] = { { REPLICA_CPU, 1, 1, 0 },
                                         { REPLICA_CPU, 1, 2, 7 },
                                         { REPLICA_CPU, 2, 2, 0 },
                                         { REPLICA_NCCL, 2, 2, 33 } };

static void layout_set(struct replica_config *config, struct layout l)
{
    config->device = l.device;
    config->tp = l.tp;
    config->pp = l.pp;
    config->chunk_max = l.chunk;
}

static void fill_prompt(void)
{
    prompt[0] = 1;
    for (uint32_t i = 1; i < ARRAY_LEN(prompt); i++) {
        prompt[i] = 3 + (i * 37 + i * i) % 500;
    }
}

/* Sampled over everything; the kinds differ in their seed. */
static void set_stream(struct replica_stream *q, struct answer *a, uint32_t kind)
{
    memset(q, 0, sizeof(*q));
    q->submit = (struct msg_submit){ .n_prompt = ARRAY_LEN(prompt),
                                     .prompt = prompt,
                                     .max_tokens = N_TOKENS,
                                     .temperature = 0.9f,
                                     .top_p = 1.0f,
                                     .seed = 1234567 + kind,
                                     .want_logprobs = true,
                                     .n_logprobs = 3 };
    q->tokens = a->tokens;
    q->logprobs = a->logprobs;
}

static void check_ok(status st, const struct err *err)
{
    if (st != ST_OK) {
        fail_msg("%s: %s", status_name(st), err->text);
    }
}

static struct replica_config base_config(enum kern_fmt fmt)
{
    return (struct replica_config){ .model = model,
                                    .fmt = fmt,
                                    .tp = 1,
                                    .pp = 1,
                                    .n_threads = 1,
                                    .cpu_flags = cpu_flags(),
                                    .ctx_max = 512,
                                    .seqs_max = 32,
                                    .rows_max = 128 };
}

static const struct answer *golden(enum kern_fmt fmt, uint32_t kind)
{
    static struct answer kept[KERN_FMTS][N_KINDS];
    static bool have[KERN_FMTS][N_KINDS];
    struct replica_config config = base_config(fmt);
    struct replica_stream stream;
    struct replica_stats stats;
    struct err err = ERR_INIT;

    if (!have[fmt][kind]) {
        config.no_prefix_cache = true;
        set_stream(&stream, &kept[fmt][kind], kind);
        check_ok(replica_run(&config, &stream, 1, &stats, &err), &err);
        assert_int_equal(stream.n_tokens, N_TOKENS);
        assert_int_equal(stats.cache_hits + stats.kv_cached_at_end, 0);
        have[fmt][kind] = true;
    }
    return &kept[fmt][kind];
}

/* One sampled stream four times: cold; twice at once when that has ended, warm; and cut off in the
 * middle and continued with what it had emitted, which finds the answer's own blocks as well. */
static void cold_and_warm(enum kern_fmt fmt, struct layout l)
{
    enum { N = 4, N_EMITTED = 75 };
    const struct answer *want = golden(fmt, 0);
    static struct answer got[N];
    struct replica_stream streams[N];
    struct replica_config config = base_config(fmt);
    struct replica_stats stats;
    struct err err = ERR_INIT;

    layout_set(&config, l);
    for (uint32_t i = 0; i < N; i++) {
        set_stream(&streams[i], &got[i], 0);
        streams[i].after_streams = i == 0 ? 0 : i == 3 ? 3 : 1;
    }
    streams[3].submit.n_emitted = N_EMITTED;
    streams[3].submit.emitted = want->tokens;
    check_ok(replica_run(&config, streams, N, &stats, &err), &err);
    assert_int_equal(stats.kv_used_at_end, 0);
    assert_true(stats.kv_cached_at_end > 0);
    assert_int_equal(stats.cache_hits, N - 1);
    assert_int_equal(stats.cache_tokens, 64 + 64 + 128); /* 70 of prompt, 145 known at the last */
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t skip = i == 3 ? N_EMITTED : 0;
        assert_int_equal(streams[i].cached, i == 0 ? 0 : i == 3 ? 70 : 64);
        assert_int_equal(streams[i].n_tokens, N_TOKENS - skip);
        assert_memory_equal(got[i].tokens, want->tokens + skip,
                            (N_TOKENS - skip) * sizeof(uint32_t));
        assert_memory_equal(got[i].logprobs, want->logprobs + skip,
                            (N_TOKENS - skip) * sizeof(float));
    }
}

static void test_cache__bits_are_equal_cold_and_warm(void **state UNUSED)
{
    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (size_t i = 0; i < ARRAY_LEN(layouts); i++) {
            cold_and_warm((enum kern_fmt)fmt, layouts[i]);
        }
    }
}

/* Rounds of other prompts flush the cache between uses of ours: evicted, partly kept, kept. */
static void under_pressure(struct layout l)
{
    enum { ROUNDS = 6, N = ROUNDS * 3 };
    static struct answer got[N];
    static uint32_t other[N][100];
    struct replica_stream streams[N];
    struct replica_config config = base_config(KERN_BF16);
    struct replica_stats stats;
    struct err err = ERR_INIT;

    layout_set(&config, l);
    config.kv_tokens = 512;
    for (uint32_t i = 0; i < N; i++) {
        set_stream(&streams[i], &got[i], i / 3 % 2);
        streams[i].after_streams = i / 3 * 3;
        if (i % 3 != 0) {
            for (uint32_t k = 0; k < ARRAY_LEN(other[i]); k++) {
                other[i][k] = 3 + (i * 101 + k * 53 + k * k) % 500;
            }
            streams[i].submit.prompt = other[i];
            streams[i].submit.n_prompt = ARRAY_LEN(other[i]);
            streams[i].submit.max_tokens = 10 + i * 4;
        }
    }
    check_ok(replica_run(&config, streams, N, &stats, &err), &err);
    assert_int_equal(stats.kv_used_at_end, 0);
    assert_true(stats.kv_cached_at_end > 8); /* of 16 */
    for (uint32_t i = 0; i < N; i += 3) {
        const struct answer *want = golden(KERN_BF16, i / 3 % 2);
        assert_int_equal(streams[i].n_tokens, N_TOKENS);
        assert_memory_equal(got[i].tokens, want->tokens, sizeof(want->tokens));
        assert_memory_equal(got[i].logprobs, want->logprobs, sizeof(want->logprobs));
    }
}

static void test_cache__bits_are_equal_when_the_cache_is_under_pressure(void **state UNUSED)
{
    for (size_t i = 0; i < ARRAY_LEN(layouts); i++) {
        under_pressure(layouts[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache__bits_are_equal_cold_and_warm),
        cmocka_unit_test(test_cache__bits_are_equal_when_the_cache_is_under_pressure),
    };
    static char path[FIXTURE_PATH_BYTES];

    cpu_float_env_set();
    fill_prompt();
    fixture_shared_or_exit("models/stories260k", path);
    model = path;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
