/* tests/layout/test_bits.c - promise P2: tokens and log-probabilities do not depend on how a model
 * is cut, batched, chunked, threaded, or on which instruction set computes it. Everything is
 * compared for equality with one undisturbed run: tp = pp = 1, one thread, the best CPU path.
 *
 * GANTRY_TEST_DEVICE=cuda asks the same of a CUDA device: the undisturbed run and all others are on
 * device 0, whose ranks exchange by way of the host; =cuda-nccl gives each rank a device and NCCL
 * between them. Cases about CPUs and about the made-up device are left out then. With
 * GANTRY_TEST_PLUGIN=build/simt/gantry_cuda.so "the device" is the kernels' own code on this
 * processor. GANTRY_TEST_MODEL names another
 * model's folder; it needs ids up to 512 and 200 positions. */
#include "common/fixture.h"
#include "replica/replica.h"

#include "base/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_TOKENS = 120, N_KINDS = 6, N_CROWD = 15 };

static const char *model; /* directory of the model under test */
static enum replica_device device = REPLICA_CPU;
/* 2: without the kind that has filters, beside which a device makes no step ahead. */
static uint32_t n_kinds = N_KINDS;

struct answer {
    uint32_t n;
    uint32_t tokens[N_TOKENS];
    float logprobs[N_TOKENS];
};

/* A prompt that spans several KV blocks and two attention spans' worth of chunk borders; ids are
 * arbitrary. */
static uint32_t prompt[70];

static void fill_prompt(void)
{
    prompt[0] = 1;
    for (uint32_t i = 1; i < ARRAY_LEN(prompt); i++) {
        prompt[i] = 3 + (i * 37 + i * i) % 500;
    }
}

/* What kind 5 adds, to ids of several slices. */
static const struct msg_bias biases[] = {
    { 400, 2.5f }, { 7, -100.0f }, { 31, 1.25f }, { 270, 0.5f }, { 13, -1.0f }
};

/* Kind 0 greedy from BOS, 1 sampled over everything from a prompt, 2 sampled with filters. 3 to 5 are
 * the same with penalties, which look back at all that the stream holds; 5 with biases too. */
static void set_stream(struct replica_stream *q, struct answer *a, uint32_t kind)
{
    const uint32_t base = kind % 3;

    memset(q, 0, sizeof(*q));
    q->submit = (struct msg_submit){ .n_prompt = base == 0 ? 1 : ARRAY_LEN(prompt),
                                     .prompt = prompt,
                                     .max_tokens = N_TOKENS,
                                     .temperature = base == 0 ? 0.0f : 0.9f,
                                     .top_k = base == 2 ? 40 : 0,
                                     .top_p = base == 2 ? 0.9f : 1.0f,
                                     .min_p = base == 2 ? 0.02f : 0.0f,
                                     .seed = 1234567 + kind,
                                     .want_logprobs = true,
                                     .n_logprobs = 3,
                                     .repetition_penalty = kind == 3 ? 1.3f : 1.0f,
                                     .presence_penalty = kind >= 4 ? 0.7f : 0.0f,
                                     .frequency_penalty = kind >= 4 ? 0.4f : 0.0f,
                                     .n_biases = kind == 5 ? ARRAY_LEN(biases) : 0,
                                     .biases = biases };
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
                                    .device = device,
                                    .fmt = fmt,
                                    .tp = 1,
                                    .pp = 1,
                                    .n_threads = 1,
                                    .cpu_flags = cpu_flags(),
                                    .ctx_max = 512,
                                    .seqs_max = 32,
                                    .rows_max = 128 };
}

static void run(const struct replica_config *config, struct answer answers[N_KINDS])
{
    struct replica_stream streams[N_KINDS];
    struct replica_stats stats;
    struct err err = ERR_INIT;

    for (uint32_t k = 0; k < n_kinds; k++) {
        set_stream(&streams[k], &answers[k], k);
    }
    check_ok(replica_run(config, streams, n_kinds, &stats, &err), &err);
    assert_int_equal(stats.kv_used_at_end, 0);
    for (uint32_t k = 0; k < n_kinds; k++) {
        assert_int_equal(streams[k].reason, FINISH_LENGTH);
        answers[k].n = streams[k].n_tokens;
        assert_int_equal(answers[k].n, N_TOKENS);
    }
}

static const struct answer *golden(enum kern_fmt fmt)
{
    static struct answer kept[KERN_FMTS][N_KINDS];
    static bool have[KERN_FMTS];

    if (!have[fmt]) {
        const struct replica_config config = base_config(fmt);
        const uint32_t n = n_kinds;
        n_kinds = N_KINDS;
        run(&config, kept[fmt]);
        n_kinds = n;
        have[fmt] = true;
    }
    return kept[fmt];
}

static void assert_same(const struct answer *want, const struct answer *got, const char *what)
{
    for (uint32_t k = 0; k < n_kinds; k++) {
        for (uint32_t i = 0; i < N_TOKENS; i++) {
            if (want[k].tokens[i] != got[k].tokens[i] ||
                memcmp(&want[k].logprobs[i], &got[k].logprobs[i], sizeof(float)) != 0) {
                fail_msg("%s: kind %u, token %u: %u (%a), wanted %u (%a)", what, k, i,
                         got[k].tokens[i], (double)got[k].logprobs[i], want[k].tokens[i],
                         (double)want[k].logprobs[i]);
            }
        }
    }
}

static void compare(const struct replica_config *config, const char *what)
{
    static struct answer got[N_KINDS];
    struct err err = ERR_INIT;
    char text[160];

    if (replica_device_check(config->device, config->tp * config->pp, &err) != ST_OK) {
        print_message("tp %u, pp %u: not compared: %s\n", config->tp, config->pp, err.text);
        return;
    }
    snprintf(text, sizeof(text), "%s: %s, tp %u, pp %u, %u threads, chunk %u", what,
             plan_fmt_name(config->fmt), config->tp, config->pp, config->n_threads,
             config->chunk_max);
    run(config, got);
    assert_same(golden(config->fmt), got, text);
}

static void test_bits__are_equal_over_tp_and_pp(void **state UNUSED)
{
    static const uint32_t shapes[][2] = { { 2, 1 }, { 4, 1 }, { 8, 1 }, { 1, 2 }, { 1, 5 },
                                          { 2, 2 }, { 4, 2 }, { 2, 5 }, { 4, 5 } };

    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
            struct replica_config config = base_config((enum kern_fmt)fmt);
            config.tp = shapes[i][0];
            config.pp = shapes[i][1];
            compare(&config, "layout");
        }
    }
}

static void test_bits__are_equal_over_uneven_stages(void **state UNUSED)
{
    struct replica_config config = base_config(KERN_BF16);

    config.tp = 2;
    config.pp = 2;
    config.n_stage_layers = 2;
    config.stage_layers[0] = 1;
    config.stage_layers[1] = 4;
    compare(&config, "stages 1 + 4");
}

static void test_bits__are_equal_over_threads(void **state UNUSED)
{
    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (uint32_t n = 2; n <= 3; n++) {
            struct replica_config config = base_config((enum kern_fmt)fmt);
            config.n_threads = n;
            compare(&config, "threads");
        }
    }
}

static void test_bits__are_equal_over_chunks(void **state UNUSED)
{
    static const uint32_t chunks[] = { 1, 7, 64 };

    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
            struct replica_config config = base_config((enum kern_fmt)fmt);
            config.chunk_max = chunks[i];
            compare(&config, "chunks");
        }
    }
}

static void test_bits__are_equal_over_instruction_sets(void **state UNUSED)
{
    static const uint32_t paths[] = { 0, CPU_AVX2, CPU_AVX2 | CPU_AVX512,
                                      CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16 };

    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
            struct replica_config config = base_config((enum kern_fmt)fmt);
            if ((paths[i] & cpu_flags()) != paths[i]) {
                print_message("this CPU has no path %#x: not compared\n", paths[i]);
                continue;
            }
            config.cpu_flags = paths[i] == 0 ? UINT32_MAX : paths[i];
            compare(&config, kern_ops_path(paths[i])->name);
        }
    }
}

/* What the kinds with penalties are here for: the answer changes, the model's log-probabilities do
 * not. */
static void test_bits__penalties_change_tokens_and_not_the_model(void **state UNUSED)
{
    for (uint32_t fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        const struct answer *want = golden((enum kern_fmt)fmt);
        for (uint32_t kind = 3; kind < N_KINDS; kind++) {
            assert_memory_not_equal(want[kind].tokens, want[kind - 3].tokens,
                                    sizeof(want[kind].tokens));
        }
        /* Greedy from BOS: nothing is counted yet, and then as long as the tokens are the same. */
        for (uint32_t i = 0; i < N_TOKENS; i++) {
            assert_memory_equal(&want[3].logprobs[i], &want[0].logprobs[i],
                                want[3].tokens[i] == want[0].tokens[i] ? sizeof(float) : 0);
            if (want[3].tokens[i] != want[0].tokens[i]) {
                break;
            }
        }
        uint32_t n_forbidden = 0;
        for (uint32_t i = 0; i < N_TOKENS; i++) {
            n_forbidden += want[5].tokens[i] == 7; /* bias -100 */
        }
        assert_int_equal(n_forbidden, 0);
    }
}

/* KV for the crowd of which some must be preempted: when each stream holds its own, and when they
 * share their common beginning; in a crowd of all kinds, and of the plain ones. */
enum { KV_OWN = 640, KV_SHARED = 320, KV_OWN_PLAIN = 288, KV_SHARED_PLAIN = 224 };

/* Beside 15 others that come and go, with so little KV, if said, that some are preempted. */
static void crowd(enum replica_device on, enum kern_fmt fmt, uint32_t tp, uint32_t pp,
                  uint32_t kv_tokens)
{
    static struct answer got[N_KINDS], others[N_CROWD];
    struct replica_stream streams[N_KINDS + N_CROWD];
    struct replica_config config = base_config(fmt);
    struct replica_stats stats;
    struct err err = ERR_INIT;

    config.tp = tp;
    config.pp = pp;
    config.kv_tokens = kv_tokens;
    config.device = on;
    config.no_prefix_cache = kv_tokens == KV_OWN || kv_tokens == KV_OWN_PLAIN;
    for (uint32_t i = 0; i < N_CROWD; i++) {
        set_stream(&streams[i], &others[i], i % n_kinds);
        streams[i].submit.seed = 99 + i;
        streams[i].submit.n_prompt = 1 + (i * 11) % ARRAY_LEN(prompt);
        streams[i].submit.max_tokens = 20 + i * 6;
        streams[i].cancel_at = i % 5 == 4 ? 9 : 0;
    }
    for (uint32_t k = 0; k < n_kinds; k++) {
        set_stream(&streams[N_CROWD + k], &got[k], k);
        streams[N_CROWD + k].after_steps = 5 * k;
    }
    check_ok(replica_run(&config, streams, n_kinds + N_CROWD, &stats, &err), &err);
    assert_int_equal(stats.kv_used_at_end, 0);
    if (kv_tokens != 0) {
        assert_true(stats.preemptions > 0);
    }
    assert_int_equal(stats.cache_hits != 0, !config.no_prefix_cache);
    for (uint32_t i = 0; i < N_CROWD; i++) {
        assert_int_equal(streams[i].reason, i % 5 == 4 ? FINISH_CANCELLED : FINISH_LENGTH);
    }
    assert_same(golden(fmt), got, kv_tokens != 0 ? "crowd, little KV" : "crowd");
}

static void test_bits__are_equal_beside_other_streams(void **state UNUSED)
{
    crowd(device, KERN_F32, 1, 1, 0);
    crowd(device, KERN_BF16, 1, 1, 0);
    crowd(device, KERN_BF16, 2, 2, 0);
    crowd(device, KERN_FP8, 2, 2, 0);
}

static void test_bits__are_equal_after_preemption(void **state UNUSED)
{
    crowd(device, KERN_BF16, 1, 1, KV_OWN);
    crowd(device, KERN_BF16, 1, 2, KV_OWN);
    crowd(device, KERN_BF16, 1, 1, KV_SHARED);
    crowd(device, KERN_BF16, 1, 2, KV_SHARED);
    crowd(device, KERN_F32, 2, 2, KV_SHARED);
    crowd(device, KERN_FP8, 2, 1, KV_SHARED);
}

/* A stream that goes on elsewhere: the first tokens come as `emitted`, the rest must be the same.
 */
static void test_bits__are_equal_when_a_stream_is_continued(void **state UNUSED)
{
    const struct answer *want = golden(KERN_BF16);
    static struct answer got[N_KINDS];
    struct replica_stream streams[N_KINDS];
    struct replica_config config = base_config(KERN_BF16);
    struct err err = ERR_INIT;

    config.tp = 2;
    for (uint32_t k = 0; k < N_KINDS; k++) {
        set_stream(&streams[k], &got[k], k);
        streams[k].submit.n_emitted = 17 + k;
        streams[k].submit.emitted = want[k].tokens;
    }
    check_ok(replica_run(&config, streams, N_KINDS, NULL, &err), &err);
    for (uint32_t k = 0; k < N_KINDS; k++) {
        const uint32_t skip = 17 + k;
        assert_int_equal(streams[k].n_tokens, N_TOKENS - skip);
        assert_memory_equal(got[k].tokens, want[k].tokens + skip,
                            (N_TOKENS - skip) * sizeof(uint32_t));
        assert_memory_equal(got[k].logprobs, want[k].logprobs + skip,
                            (N_TOKENS - skip) * sizeof(float));
    }
}

/* ---- on a device that lets the host see nothing ---- */

static void compare_devices(enum replica_device on, uint32_t rows_max, const char *what)
{
    static const uint32_t shapes[][2] = { { 1, 1 }, { 2, 1 }, { 4, 2 }, { 8, 1 }, { 1, 3 } };

    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
            struct replica_config config = base_config((enum kern_fmt)fmt);
            config.device = on;
            config.tp = shapes[i][0];
            config.pp = shapes[i][1];
            config.rows_max = rows_max;
            compare(&config, what);
        }
    }
}

static void test_bits__are_equal_on_a_device_by_way_of_the_host(void **state UNUSED)
{
    compare_devices(REPLICA_STAGED, 128, "device, staged");
}

/* Small sums over mapped memory, or all over NCCL. */
static void test_bits__are_equal_without_peer_sums(void **state UNUSED)
{
    for (uint32_t fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        for (uint32_t no = 0; no <= 1; no++) {
            static struct answer got[N_KINDS];
            struct replica_stream stream;
            struct replica_config config = base_config((enum kern_fmt)fmt);
            struct replica_stats stats;
            struct err err = ERR_INIT;
            config.device = REPLICA_NCCL;
            config.tp = 4;
            config.no_peer_sums = no != 0;
            compare(&config, no != 0 ? "no peer sums" : "peer sums");
            set_stream(&stream, &got[0], 0);
            check_ok(replica_run(&config, &stream, 1, &stats, &err), &err);
            assert_int_equal(stats.peer_sums != 0, no == 0);
        }
    }
}

static void test_bits__are_equal_on_devices_with_nccl(void **state UNUSED)
{
    compare_devices(REPLICA_NCCL, 128, "device, NCCL");
    compare_devices(REPLICA_NCCL, 33, "device, NCCL, odd steps");
}

static void test_bits__are_equal_on_a_device_beside_other_streams(void **state UNUSED)
{
    for (uint32_t d = REPLICA_STAGED; d <= REPLICA_NCCL; d++) {
        crowd((enum replica_device)d, KERN_BF16, 1, 1, KV_OWN);
        crowd((enum replica_device)d, KERN_BF16, 1, 1, KV_SHARED);
        crowd((enum replica_device)d, KERN_BF16, 2, 2, 0);
    }
}

/* One wait per step, and most steps a recorded one. */
static void test_bits__a_device_is_waited_for_once_a_step(void **state UNUSED)
{
    static struct answer got[N_KINDS];
    struct replica_stream streams[N_KINDS];
    struct replica_config config = base_config(KERN_BF16);
    struct replica_stats stats;
    struct err err = ERR_INIT;

    config.device = REPLICA_STAGED;
    for (uint32_t k = 0; k < N_KINDS; k++) {
        set_stream(&streams[k], &got[k], k);
    }
    check_ok(replica_run(&config, streams, N_KINDS, &stats, &err), &err);
    assert_true(stats.n_steps >= N_TOKENS);
    assert_true(stats.launches + 10 >= stats.n_steps);
    const uint64_t of_loading = 100;
    assert_true(stats.syncs <= stats.n_steps + of_loading);
}

/* ---- one step ahead: tokens go from step to step on the device ---- */

static void ahead(enum replica_device on)
{
    static const uint32_t slices[] = { 1, 2, 8 };

    n_kinds = 2;
    for (uint32_t fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        for (size_t i = 0; i < ARRAY_LEN(slices); i++) {
            struct replica_config config = base_config((enum kern_fmt)fmt);
            config.device = on;
            config.tp = slices[i];
            compare(&config, "ahead");
            config.no_graphs = true;
            config.chunk_max = 7;
            compare(&config, "ahead, no graphs");
        }
        crowd(on, (enum kern_fmt)fmt, 1, 1, KV_OWN_PLAIN);
        crowd(on, (enum kern_fmt)fmt, 1, 1, KV_SHARED_PLAIN);
        crowd(on, (enum kern_fmt)fmt, 2, 1, 0);
    }
    n_kinds = N_KINDS;
}

static void test_bits__are_equal_with_steps_ahead(void **state UNUSED)
{
    if (device == REPLICA_CPU) {
        ahead(REPLICA_STAGED);
        ahead(REPLICA_NCCL);
    } else {
        ahead(device);
    }
}

/* Biases are known beforehand and hold no device back: what it picks is of the adjusted rows. */
static void test_bits__are_equal_with_biases_and_steps_ahead(void **state UNUSED)
{
    static struct answer want[2], got[2];
    const uint32_t on[] = { REPLICA_CPU, REPLICA_STAGED, REPLICA_NCCL };

    for (size_t i = 0; i < ARRAY_LEN(on); i++) {
        struct answer *answers = i == 0 ? want : got;
        struct replica_stream streams[2];
        struct replica_config config = base_config(KERN_BF16);
        struct replica_stats stats;
        struct err err = ERR_INIT;

        config.device = (enum replica_device)on[i];
        config.tp = i == 2 ? 2 : 1;
        for (uint32_t k = 0; k < 2; k++) {
            set_stream(&streams[k], &answers[k], k);
            streams[k].submit.n_biases = ARRAY_LEN(biases);
        }
        check_ok(replica_run(&config, streams, 2, &stats, &err), &err);
        assert_int_equal(i == 1 ? stats.gaps : 0, 0);
        for (uint32_t k = 0; k < 2; k++) {
            assert_memory_not_equal(answers[k].tokens, golden(KERN_BF16)[k].tokens,
                                    sizeof(answers[k].tokens));
            assert_memory_equal(answers[k].tokens, want[k].tokens, sizeof(want[k].tokens));
            assert_memory_equal(answers[k].logprobs, want[k].logprobs, sizeof(want[k].logprobs));
        }
    }
}

/* A stop id is seen when the step behind it is out already: not a token more is heard of. */
static void test_bits__a_stop_behind_a_step_ahead_is_the_end(void **state UNUSED)
{
    for (uint32_t tp = 1; tp <= 2; tp++) {
        const struct answer *want = golden(KERN_BF16);
        static struct answer got[N_KINDS];
        struct replica_stream streams[2];
        struct replica_config config = base_config(KERN_BF16);
        struct replica_stats stats;
        struct err err = ERR_INIT;
        uint32_t stop[2], n[2] = { 0, 0 };

        config.device = device == REPLICA_CPU ? REPLICA_NCCL : device;
        config.tp = tp;
        for (uint32_t k = 0; k < 2; k++) {
            stop[k] = want[k].tokens[40 + 20 * k];
            while (want[k].tokens[n[k]] != stop[k]) {
                n[k]++;
            }
            set_stream(&streams[k], &got[k], k);
            streams[k].submit.stop_ids = &stop[k];
            streams[k].submit.n_stop_ids = 1;
        }
        check_ok(replica_run(&config, streams, 2, &stats, &err), &err);
        assert_int_equal(stats.kv_used_at_end, 0);
        for (uint32_t k = 0; k < 2; k++) {
            assert_int_equal(streams[k].reason, FINISH_STOP);
            assert_int_equal(streams[k].n_tokens, n[k] + 1);
            assert_memory_equal(got[k].tokens, want[k].tokens, (n[k] + 1) * sizeof(uint32_t));
        }
    }
}

/* The device has the next step before it has ended one. FAKE_LAZY computes when it is waited for, so
 * a step that is launched with nothing queued before it would have found the device idle. */
static void test_bits__a_device_does_not_wait_for_the_host(void **state UNUSED)
{
    for (uint32_t kind = 0; kind < N_KINDS; kind++) {
        static struct answer got[N_KINDS];
        struct replica_stream stream;
        struct replica_config config = base_config(KERN_BF16);
        struct replica_stats stats;
        struct err err = ERR_INIT;

        config.device = REPLICA_STAGED;
        set_stream(&stream, &got[kind], kind);
        check_ok(replica_run(&config, &stream, 1, &stats, &err), &err);
        print_message("kind %u: %u steps, %u recorded, %u of them on an idle device\n", kind,
                      stats.n_steps, (unsigned)stats.launches, (unsigned)stats.gaps);
        assert_true(stats.launches > 100);
        if (kind < 2) {
            assert_int_equal(stats.gaps, 0);
        }
    }
}

/* The other order of additions gives other bits somewhere, or it would not need its own name. */
static void test_bits__free_order_is_another_profile(void **state UNUSED)
{
    static struct answer got[N_KINDS];
    struct replica_config config = base_config(KERN_BF16);
    const struct answer *want = golden(KERN_BF16);
    uint32_t n_different = 0;

    config.device = REPLICA_NCCL_FREE;
    config.tp = 8;
    run(&config, got);
    for (uint32_t k = 0; k < N_KINDS; k++) {
        n_different += memcmp(got[k].logprobs, want[k].logprobs, sizeof(want[k].logprobs)) != 0;
    }
    assert_true(n_different != 0);
}

/* Queued op by op or launched as a recording: the same ops, the same bits. */
static void test_bits__are_equal_without_graphs(void **state UNUSED)
{
    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        struct replica_config config = base_config((enum kern_fmt)fmt);
        config.device = device == REPLICA_CPU ? REPLICA_NCCL : device;
        config.no_graphs = true;
        compare(&config, "no graphs");
    }
}

/* ---- CUDA: other profiles, other bits, but the same model ---- */

enum { GAP_PERMILLE = 100 }; /* a gap of log-probabilities that no rounding explains */

/* Greedy tokens are the CPU's up to the first position at which the CPU's two best are close. */
static void test_bits__greedy_tokens_are_the_cpus_where_they_are_clear(void **state UNUSED)
{
    for (uint32_t fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        static struct answer cpu, cuda;
        static float gaps[N_TOKENS];
        struct replica_stream stream;
        struct replica_config config = base_config((enum kern_fmt)fmt);
        struct err err = ERR_INIT;
        uint32_t n = 0;

        config.device = REPLICA_CPU;
        set_stream(&stream, &cpu, 0);
        stream.gaps = gaps;
        check_ok(replica_run(&config, &stream, 1, NULL, &err), &err);
        config.device = device;
        set_stream(&stream, &cuda, 0);
        check_ok(replica_run(&config, &stream, 1, NULL, &err), &err);
        while (n < N_TOKENS && cpu.tokens[n] == cuda.tokens[n]) {
            n++;
        }
        print_message("%s: %u of %d tokens are the CPU's\n", plan_fmt_name((enum kern_fmt)fmt), n,
                      N_TOKENS);
        if (n < N_TOKENS && gaps[n] * 1000 > (float)GAP_PERMILLE) {
            fail_msg("token %u is %u, the CPU's %u, which leads by %g", n, cuda.tokens[n],
                     cpu.tokens[n], (double)gaps[n]);
        }
    }
}

static int run_cuda(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits__greedy_tokens_are_the_cpus_where_they_are_clear),
        cmocka_unit_test(test_bits__are_equal_without_graphs),
        cmocka_unit_test(test_bits__are_equal_over_chunks),
        cmocka_unit_test(test_bits__are_equal_beside_other_streams),
        cmocka_unit_test(test_bits__are_equal_after_preemption),
        cmocka_unit_test(test_bits__are_equal_when_a_stream_is_continued),
        cmocka_unit_test(test_bits__are_equal_with_steps_ahead),
        cmocka_unit_test(test_bits__a_stop_behind_a_step_ahead_is_the_end),
        cmocka_unit_test(test_bits__are_equal_over_uneven_stages),
        cmocka_unit_test(test_bits__are_equal_over_tp_and_pp),
    };
    struct err err = ERR_INIT;

    if (replica_device_check(device, 1, &err) != ST_OK) {
        printf("skipped: %s\n", err.text);
        return TEST_SKIPPED;
    }
    return cmocka_run_group_tests_name("bits on CUDA", tests, NULL, NULL);
}

static int run_cpu(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits__penalties_change_tokens_and_not_the_model),
        cmocka_unit_test(test_bits__are_equal_over_tp_and_pp),
        cmocka_unit_test(test_bits__are_equal_over_uneven_stages),
        cmocka_unit_test(test_bits__are_equal_over_threads),
        cmocka_unit_test(test_bits__are_equal_over_chunks),
        cmocka_unit_test(test_bits__are_equal_over_instruction_sets),
        cmocka_unit_test(test_bits__are_equal_beside_other_streams),
        cmocka_unit_test(test_bits__are_equal_after_preemption),
        cmocka_unit_test(test_bits__are_equal_when_a_stream_is_continued),
        cmocka_unit_test(test_bits__are_equal_on_a_device_by_way_of_the_host),
        cmocka_unit_test(test_bits__are_equal_on_devices_with_nccl),
        cmocka_unit_test(test_bits__are_equal_without_peer_sums),
        cmocka_unit_test(test_bits__are_equal_on_a_device_beside_other_streams),
        cmocka_unit_test(test_bits__a_device_is_waited_for_once_a_step),
        cmocka_unit_test(test_bits__are_equal_with_steps_ahead),
        cmocka_unit_test(test_bits__are_equal_with_biases_and_steps_ahead),
        cmocka_unit_test(test_bits__a_stop_behind_a_step_ahead_is_the_end),
        cmocka_unit_test(test_bits__a_device_does_not_wait_for_the_host),
        cmocka_unit_test(test_bits__free_order_is_another_profile),
        cmocka_unit_test(test_bits__are_equal_without_graphs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
    static char path[FIXTURE_PATH_BYTES];
    const char *on = getenv("GANTRY_TEST_DEVICE");

    cpu_float_env_set();
    fill_prompt();
    model = getenv("GANTRY_TEST_MODEL");
    if (model == NULL) {
        fixture_shared_or_exit("models/stories260k", path);
        model = path;
    }
    if (on != NULL && strncmp(on, "cuda", 4) == 0) {
        device = strcmp(on, "cuda-nccl") == 0 ? REPLICA_CUDA_NCCL : REPLICA_CUDA;
        return run_cuda();
    }
    return run_cpu();
}
