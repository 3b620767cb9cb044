/* Every message: packed, unpacked and packed again gives the same bytes and the fields that went
 * in; every truncation and a few thousand mutations either fail with a sentence or unpack whole. */
#include "proto/msg.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- one of each ---- */

typedef status (*again_fn)(const void *data, size_t len, struct arena *arena, struct buf *out,
                           struct err *err);

#define AGAIN(name, type, unpack, pack)                                                            \
    static status name(const void *data, size_t len, struct arena *arena, struct buf *out,         \
                       struct err *err)                                                            \
    {                                                                                              \
        struct type m;                                                                             \
        const status st = unpack(data, len, arena, &m, err);                                       \
        return st < 0 ? st : pack(&m, out);                                                        \
    }
AGAIN(again_rank, msg_rank, msg_rank_unpack, msg_rank_pack)
AGAIN(again_coord, msg_coord, msg_coord_unpack, msg_coord_pack)
AGAIN(again_generate, msg_generate, msg_generate_unpack, msg_generate_pack)
AGAIN(again_chunk, msg_chunk, msg_chunk_unpack, msg_chunk_pack)
AGAIN(again_model, msg_model, msg_model_unpack, msg_model_pack)
AGAIN(again_status, msg_status, msg_status_unpack, msg_status_pack)
AGAIN(again_drain, msg_drain, msg_drain_unpack, msg_drain_pack)
AGAIN(again_drain_progress, msg_drain_progress, msg_drain_progress_unpack, msg_drain_progress_pack)

static status again_health_request(const void *data, size_t len, struct arena *arena,
                                   struct buf *out, struct err *err)
{
    const char *service;
    const status st = msg_health_request_unpack(data, len, arena, &service, err);

    return st < 0 ? st : msg_health_request_pack(service, out);
}

static status again_health_response(const void *data, size_t len, struct arena *arena,
                                    struct buf *out, struct err *err)
{
    enum health_state state;
    const status st = msg_health_response_unpack(data, len, arena, &state, err);

    return st < 0 ? st : msg_health_response_pack(state, out);
}

static const struct msg_logprob tops[] = { { 5, -0.25f }, { 6, -3.5f } };
static const struct msg_token event_tokens[] = {
    { .stream = 1ull << 40, .attempt = 2, .index = 3, .token = 77, .logprob = -1.5f },
    { .stream = 9, .attempt = 1, .token = 5, .logprob = -0.25f, .n_top = 2, .top = tops },
};
static const struct msg_finish event_finishes[] = {
    { .stream = 9, .attempt = 1, .reason = FINISH_LENGTH, .text = "", .cached_tokens = 32 },
    { .stream = 10,
      .attempt = 1,
      .reason = FINISH_FAILED,
      .code = ST_ERR_LIMIT,
      .text = "no KV",
      .queued_us = 5 },
};
static const uint32_t ids[] = { 1, 0, 300, 4000000000u };
static const struct msg_str stops[] = { { "\n\n", 2 }, { "ende\xC3\xA9", 6 } };
static const struct msg_top piece_tops[] = { { 7, -0.5f, { "\xC3", 1 } },
                                             { 8, -2.f, { "a\0b", 3 } } };
static const struct msg_piece pieces[] = {
    { .id = 7, .has_logprob = true, .logprob = -0.5f, .n_top = 2, .top = piece_tops },
    { .id = 8, .has_logprob = true, .logprob = 0.f },
    { .id = 9 },
};
static const struct msg_rank_status rank_states[] = {
    { .rank = 0, .pid = 12, .host = "a", .phase = "step", .kernels = "avx2", .step = 4 },
    { .rank = 1,
      .sums = "mpi",
      .stage = 1,
      .pid = 13,
      .host = "b",
      .phase = "idle",
      .kernels = "",
      .heartbeat_age_us = 250000,
      .loaded_bytes = 1ull << 41,
      .weight_bytes = 1ull << 42,
      .op = "sum",
      .op_seq = 1ull << 43,
      .waits_for = 1,
      .waited_us = 5100000,
      .step_digest = UINT64_MAX },
};
static const struct msg_replica_status replicas[] = {
    { .replica = 0,
      .generation = 1,
      .tp = 2,
      .pp = 1,
      .state = "serving",
      .step = 99,
      .running = 3,
      .waiting = 1,
      .kv_blocks_used = 5,
      .kv_blocks_total = 10,
      .kv_blocks_cached = 4,
      .cache_hits = 1ull << 33,
      .cache_tokens = 1ull << 40,
      .kv_block_tokens = 32,
      .tokens_per_second = 12.5,
      .step_us = 900.5,
      .step_kernel_us = 800,
      .predicted_step_us = 750.25,
      .losses = 2,
      .detail = "rank 1 is gone",
      .joined = true,
      .profile = "cpu-bf16-v1",
      .job = "00112233445566778899aabbccddeeff",
      .hosts = "a (ranks 0-1), b (rank 2)",
      .n_ranks = 2,
      .waits = "rank 1 (host b) waits",
      .self_test = { .n_links = 1,
                     .took_ms = 0.25,
                     .worst_latency = { 0, 1, false, 5, 6, 0, 0 },
                     .worst_bandwidth = { 0, 1, false, 5, 6, 0, 0 } },
      .ranks = rank_states },
};

struct sample {
    const char *name;
    again_fn again;
    struct buf bytes;
};

static struct sample samples[24];
static size_t n_samples;

static struct buf *sample_add(const char *name, again_fn again)
{
    assert_true(n_samples < ARRAY_LEN(samples));
    struct sample *s = &samples[n_samples++];
    *s = (struct sample){ name, again, BUF_INIT };
    return &s->bytes;
}

static void sample_rank(const char *name, const struct msg_rank *m)
{
    assert_int_equal(msg_rank_pack(m, sample_add(name, again_rank)), ST_OK);
}

static void sample_coord(const char *name, const struct msg_coord *m)
{
    assert_int_equal(msg_coord_pack(m, sample_add(name, again_coord)), ST_OK);
}

static const struct msg_bias biases[] = { { 4000000000u, -100.f }, { 0, 0.5f } };
static const struct msg_generate generate_full = {
    .prompt = { "caf\xC3\xA9", 5 },
    .has_max_tokens = true,
    .max_tokens = 12,
    .has_temperature = true,
    .temperature = 0.f,
    .has_top_k = true,
    .top_k = 0,
    .has_top_p = true,
    .top_p = 0.5f,
    .has_min_p = true,
    .min_p = 0.125f,
    .has_seed = true,
    .seed = UINT64_MAX,
    .has_logprobs = true,
    .logprobs = 0,
    .has_n = true,
    .n = 16,
    .has_presence_penalty = true,
    .presence_penalty = 0.f,
    .has_frequency_penalty = true,
    .frequency_penalty = -2.f,
    .has_repetition_penalty = true,
    .repetition_penalty = 1.5f,
    .n_biases = 2,
    .biases = biases,
    .n_stop = 2,
    .stop = stops,
    .n_stop_ids = 4,
    .stop_ids = ids,
    .ignore_eos = true,
    .request_id = "r-1",
    .exact = true,
    .resume = true,
    .resume_from = 7,
    .n_resume_from_choices = 4,
    .resume_from_choices = ids,
};
static const char *const profiles[] = { "cpu-bf16-v1", "cpu-f32-v1" };

static const struct msg_chunk chunk_full = {
    .has_started = true,
    .has_finished = true,
    .started = { "r-1", "cpu-bf16-v1", "00ff", "demo", 77, 5, 60, 2 },
    .text = { "a\0\xE2\x82\xAC", 5 },
    .n_tokens = 3,
    .tokens = pieces,
    .finished = { .reason = FINISH_STOP,
                  .stop = { "\n\n", 2 },
                  .prompt_tokens = 5,
                  .completion_tokens = 3,
                  .queued_us = 10,
                  .first_token_us = 20,
                  .total_us = 30,
                  .n_profiles = 2,
                  .profiles = profiles },
};

static const uint64_t event_streams[] = { 1, 2, UINT64_MAX, 0 };

static int samples_make(void **state UNUSED)
{
    sample_rank("hello", &(struct msg_rank){ MSG_HELLO, .hello = { .build = "b1",
                                                                   .protocol = 1,
                                                                   .generation = 2,
                                                                   .rank = 3,
                                                                   .n_ranks = 4,
                                                                   .plan_digest = 1ull << 63,
                                                                   .profile = "cpu-f32-v1",
                                                                   .host = "host",
                                                                   .kernels = "avx512bf16",
                                                                   .pid = 4711 } });
    sample_rank(
        "hello of one that joins",
        &(struct msg_rank){ MSG_HELLO, .hello = { .build = "b1",
                                                  .protocol = 1,
                                                  .n_ranks = 2,
                                                  .profile = "cpu-f32-v1",
                                                  .host = "host",
                                                  .kernels = "scalar",
                                                  .has_join = true,
                                                  .join = { .job = { 1, 0, 255 },
                                                            .tp = 2,
                                                            .pp = 3,
                                                            .kv_blocks = 4,
                                                            .block_tokens = 32,
                                                            .ctx_max = 5,
                                                            .rows_max = 6,
                                                            .layer_bytes = 1ull << 40,
                                                            .model_digest = 1ull << 63 } } });
    sample_rank("ready", &(struct msg_rank){ MSG_READY,
                                             .ready = { { { 1, 0, 255 } }, 5, 6, { 0 }, "nccl" } });
    sample_rank(
        "ready with links",
        &(struct msg_rank){
            MSG_READY, .ready = { .self_test = { .n_links = 9,
                                                 .took_ms = 1.5,
                                                 .worst_latency = { 1, 2, true, 5, 6, 0, 0 },
                                                 .worst_bandwidth = { 3, 4, false, 7, 8, 0, 0 },
                                                 .n_slow = 1,
                                                 .n_slow_all = 12,
                                                 .slow = { { 1, 2, true, 5, 6, 1, 2 } } } } });
    sample_rank("ready of a follower", &(struct msg_rank){ MSG_READY, .ready = { .kv_bytes = 6 } });
    sample_rank(
        "heartbeat",
        &(struct msg_rank){ MSG_HEARTBEAT,
                            .heartbeat = { "load", 1,  2,  3,  4,          5,    6,
                                           7,      8,  9,  10, 8.5,        9.25, 11,
                                           12,     13, 14, 15, UINT64_MAX, 4,    event_streams } });
    sample_rank("events", &(struct msg_rank){
                              MSG_EVENTS, .events = { 8, 2, 2, event_tokens, event_finishes } });
    sample_rank("no events", &(struct msg_rank){ MSG_EVENTS, .events = { .step = 8 } });
    sample_rank("fault",
                &(struct msg_rank){ MSG_FAULT, .fault = { ST_ERR_NOMEM, 3, "no memory" } });
    sample_coord("welcome",
                 &(struct msg_coord){ MSG_WELCOME, .welcome = { "b1", 2, 3, 4, "/run/control" } });
    sample_coord("submit", &(struct msg_coord){ MSG_SUBMIT, .submit = { .stream = 5,
                                                                        .attempt = 1,
                                                                        .n_prompt = 4,
                                                                        .n_emitted = 2,
                                                                        .prompt = ids,
                                                                        .emitted = ids,
                                                                        .max_tokens = 7,
                                                                        .temperature = 0.5f,
                                                                        .top_p = 1.f,
                                                                        .min_p = 0.25f,
                                                                        .top_k = 40,
                                                                        .seed = 1ull << 63,
                                                                        .n_stop_ids = 1,
                                                                        .stop_ids = ids,
                                                                        .want_logprobs = true,
                                                                        .n_logprobs = 20,
                                                                        .deadline_us = 1000,
                                                                        .cache_scope = 1ull << 63,
                                                                        .presence_penalty = -2.f,
                                                                        .frequency_penalty = 0.25f,
                                                                        .repetition_penalty = 1.5f,
                                                                        .n_biases = 2,
                                                                        .biases = biases } });
    sample_coord("cancel", &(struct msg_coord){ MSG_CANCEL, .cancel = { 5, 1 } });
    sample_coord("stop", &(struct msg_coord){ MSG_STOP, .stop = { true } });
    assert_int_equal(msg_generate_pack(&generate_full, sample_add("generate", again_generate)), 0);
    const struct msg_generate by_ids = {
        .has_prompt_ids = true, .n_prompt_ids = 4, .prompt_ids = ids, .request_id = ""
    };
    assert_int_equal(msg_generate_pack(&by_ids, sample_add("generate by ids", again_generate)), 0);
    assert_int_equal(msg_chunk_pack(&chunk_full, sample_add("chunk", again_chunk)), 0);
    const struct msg_model model = {
        "demo", "LlamaForCausalLM", "cpu-f32-v1", "00", "bpe", 5, 64, 8, 4, 512, 512, 260032
    };
    assert_int_equal(msg_model_pack(&model, sample_add("model", again_model)), 0);
    const struct msg_status st = { "serving", "demo", "p",      "0.1",     "00", 5000000, 2,
                                   256,       1,      replicas, "durable", 3,    4096 };
    assert_int_equal(msg_status_pack(&st, sample_add("status", again_status)), 0);
    const struct msg_drain drain = { 3, true, 1ull << 40 };
    assert_int_equal(msg_drain_pack(&drain, sample_add("drain", again_drain)), 0);
    const struct msg_drain_progress progress = { "draining", 7, 2 };
    assert_int_equal(
        msg_drain_progress_pack(&progress, sample_add("drain progress", again_drain_progress)), 0);
    assert_int_equal(msg_health_request_pack("gantry.v1.Generation",
                                             sample_add("health request", again_health_request)),
                     0);
    assert_int_equal(
        msg_health_response_pack(HEALTH_SERVING, sample_add("health", again_health_response)), 0);
    return 0;
}

static int samples_drop(void **state UNUSED)
{
    for (size_t i = 0; i < n_samples; i++) {
        buf_fini(&samples[i].bytes);
    }
    n_samples = 0;
    return 0;
}

/* ---- cases ---- */

static void test_codec__a_second_round_gives_the_same_bytes(void **state UNUSED)
{
    for (size_t i = 0; i < n_samples; i++) {
        struct arena arena = ARENA_INIT(1 << 20);
        struct buf out = BUF_INIT;
        struct err err = ERR_INIT;
        const struct sample *s = &samples[i];

        if (s->again(s->bytes.data, s->bytes.len, &arena, &out, &err) != ST_OK) {
            fail_msg("%s: %s", s->name, err.text);
        }
        assert_int_equal(out.len, s->bytes.len);
        assert_memory_equal(out.data, s->bytes.data, out.len);
        buf_fini(&out);
        arena_fini(&arena);
    }
}

static void test_codec__generate_keeps_every_field(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1 << 20);
    struct buf bytes = BUF_INIT;
    struct err err = ERR_INIT;
    struct msg_generate m;

    assert_int_equal(msg_generate_pack(&generate_full, &bytes), ST_OK);
    assert_int_equal(msg_generate_unpack(bytes.data, bytes.len, &arena, &m, &err), ST_OK);
    assert_string_equal(m.prompt.data, "caf\xC3\xA9");
    assert_false(m.has_prompt_ids);
    assert_true(m.has_temperature && m.temperature == 0.f); /* present and zero is not absent */
    assert_true(m.has_top_k && m.top_k == 0);
    assert_true(m.has_logprobs && m.logprobs == 0);
    assert_true(m.has_top_p && m.top_p == 0.5f && m.has_min_p && m.min_p == 0.125f);
    assert_true(m.has_seed && m.seed == UINT64_MAX && m.has_max_tokens && m.max_tokens == 12);
    assert_int_equal(m.n_stop, 2);
    assert_string_equal(m.stop[1].data, "ende\xC3\xA9");
    assert_int_equal(m.n_stop_ids, 4);
    assert_true(m.stop_ids[3] == 4000000000u && m.ignore_eos);
    assert_string_equal(m.request_id, "r-1");
    assert_true(m.exact && m.resume && m.resume_from == 7);
    assert_true(m.n_resume_from_choices == 4 && m.resume_from_choices[3] == 4000000000u);
    assert_true(m.has_presence_penalty && m.presence_penalty == 0.f);
    assert_true(m.has_frequency_penalty && m.frequency_penalty == -2.f);
    assert_true(m.has_repetition_penalty && m.repetition_penalty == 1.5f);
    assert_true(m.has_n && m.n == 16);
    assert_int_equal(m.n_biases, 2);
    assert_memory_equal(m.biases, biases, sizeof(biases));
    buf_fini(&bytes);
    arena_fini(&arena);
}

static void test_codec__biases_of_a_submit_are_whole_and_differ(void **state UNUSED)
{
    static const struct msg_bias twice[] = { { 5, 1.f }, { 6, 1.f }, { 5, 2.f } };
    struct msg_coord m = { MSG_SUBMIT, .submit = { .stream = 1, .n_biases = 3, .biases = twice } };
    struct arena arena = ARENA_INIT(1 << 20);
    struct buf bytes = BUF_INIT;
    struct err err = ERR_INIT;
    struct msg_coord got;

    assert_int_equal(msg_coord_pack(&m, &bytes), ST_OK);
    assert_int_equal(msg_coord_unpack(bytes.data, bytes.len, &arena, &got, &err), ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "names 5 twice"));
    buf_reset(&bytes);
    m.submit.n_biases = 2;
    m.submit.repetition_penalty = -1.f;
    assert_int_equal(msg_coord_pack(&m, &bytes), ST_OK);
    assert_int_equal(msg_coord_unpack(bytes.data, bytes.len, &arena, &got, &err), ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "repetition_penalty is -1"));
    buf_reset(&bytes);
    m.submit.repetition_penalty = 0.f;
    assert_int_equal(msg_coord_pack(&m, &bytes), ST_OK);
    assert_int_equal(msg_coord_unpack(bytes.data, bytes.len, &arena, &got, &err), ST_OK);
    assert_memory_equal(got.submit.biases, twice, 2 * sizeof(twice[0]));
    m.submit.n_biases = MSG_BIASES_MAX + 1;
    assert_int_equal(msg_coord_pack(&m, &bytes), ST_ERR_LIMIT);
    buf_fini(&bytes);
    arena_fini(&arena);
}

static void test_codec__an_empty_request_has_nothing_set(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1 << 20);
    struct err err = ERR_INIT;
    struct msg_generate m;

    assert_int_equal(msg_generate_unpack(NULL, 0, &arena, &m, &err), ST_OK);
    assert_true(m.prompt.len == 0 && !m.has_prompt_ids && !m.has_seed && !m.has_logprobs);
    assert_string_equal(m.request_id, "");
    arena_fini(&arena);
}

static void test_codec__text_may_hold_a_nul(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(1 << 20);
    struct buf bytes = BUF_INIT;
    struct err err = ERR_INIT;
    struct msg_chunk m;

    assert_int_equal(msg_chunk_pack(&chunk_full, &bytes), ST_OK);
    assert_int_equal(msg_chunk_unpack(bytes.data, bytes.len, &arena, &m, &err), ST_OK);
    assert_int_equal(m.text.len, 5);
    assert_memory_equal(m.text.data, "a\0\xE2\x82\xAC", 5);
    assert_int_equal(m.tokens[0].top[1].piece.len, 3);
    assert_true(m.tokens[1].has_logprob && !m.tokens[2].has_logprob);
    assert_int_equal(m.finished.total_us, 30);
    assert_int_equal(m.finished.n_profiles, 2);
    assert_string_equal(m.finished.profiles[1], "cpu-f32-v1");
    buf_fini(&bytes);
    arena_fini(&arena);
}

/* A reader that knows of one answer finds choice 0's. */
static void test_codec__choices_stand_behind_the_answer(void **state UNUSED)
{
    struct msg_chunk first = chunk_full, second = chunk_full, m;
    struct arena arena = ARENA_INIT(1 << 20);
    struct buf bytes = BUF_INIT, other = BUF_INIT;
    struct err err = ERR_INIT;

    second.has_started = false;
    second.choice = 1;
    second.text = (struct msg_str){ "other", 5 };
    assert_int_equal(msg_response_pack(&first, &bytes), ST_OK);
    assert_int_equal(msg_response_pack(&second, &other), ST_OK);
    const size_t before = bytes.len;
    assert_int_equal(msg_response_add_choice(other.data, other.len, &bytes), ST_OK);
    assert_true(bytes.len > before + other.len && bytes.len <= before + other.len + 4);
    assert_int_equal(msg_chunk_unpack(bytes.data, bytes.len, &arena, &m, &err), ST_OK);
    assert_true(m.choice == 0 && m.has_started && m.n_tokens == 3);
    assert_memory_equal(m.text.data, "a\0\xE2\x82\xAC", 5);
    assert_int_equal(msg_chunk_unpack(other.data, other.len, &arena, &m, &err), ST_OK);
    assert_true(m.choice == 1 && !m.has_started && m.has_finished);
    assert_string_equal(m.text.data, "other");
    buf_fini(&bytes);
    buf_fini(&other);
    arena_fini(&arena);
}

static void test_codec__every_truncation_is_an_answer(void **state UNUSED)
{
    for (size_t i = 0; i < n_samples; i++) {
        const struct sample *s = &samples[i];
        for (size_t len = 0; len < s->bytes.len; len++) {
            struct arena arena = ARENA_INIT(1 << 16);
            struct buf out = BUF_INIT;
            struct err err = ERR_INIT;
            char *exact = malloc(len + 1); /* so that a read past the end is seen */

            assert_non_null(exact);
            memcpy(exact, s->bytes.data, len);
            const status st = s->again(exact, len, &arena, &out, &err);
            assert_true(st == ST_OK || st == ST_ERR_PROTO);
            assert_true(st == ST_OK || err.text[0] != '\0');
            free(exact);
            buf_fini(&out);
            arena_fini(&arena);
        }
    }
}

static void test_codec__mutations_never_break_out(void **state UNUSED)
{
    uint64_t x = 0x9E3779B97F4A7C15ull;

    for (int round = 0; round < 20000; round++) {
        const struct sample *s = &samples[(size_t)round % n_samples];
        struct arena arena = ARENA_INIT(1 << 16);
        struct buf bytes = BUF_INIT, out = BUF_INIT;
        struct err err = ERR_INIT;

        assert_int_equal(buf_append(&bytes, s->bytes.data, s->bytes.len), ST_OK);
        for (int k = 0; k < 1 + round % 4 && bytes.len > 0; k++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            bytes.data[x % bytes.len] = (char)(x >> 32);
        }
        const status st = s->again(bytes.data, bytes.len, &arena, &out, &err);
        assert_true(st == ST_OK || st == ST_ERR_PROTO || st == ST_ERR_LIMIT);
        assert_true(arena.used <= arena.max);
        buf_fini(&out);
        buf_fini(&bytes);
        arena_fini(&arena);
    }
}

static status generate_raw(const char *bytes, size_t len, size_t max, struct err *err)
{
    struct arena arena = ARENA_INIT(max);
    struct msg_generate m;
    const status st = msg_generate_unpack(bytes, len, &arena, &m, err);

    arena_fini(&arena);
    return st;
}

static void test_codec__strings_are_whole_utf8_without_nul(void **state UNUSED)
{
    struct err err = ERR_INIT;

    assert_int_equal(generate_raw("\x0A\x03"
                                  "a\0b",
                                  5, 4096, &err),
                     ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "prompt holds a NUL at byte 1"));
    assert_int_equal(generate_raw("\x0A\x02\xC3\x28", 4, 4096, &err), ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "not UTF-8"));
    assert_int_equal(generate_raw("\x0A\x03\xED\xA0\x80", 5, 4096, &err), ST_ERR_PROTO); /* D800 */
    assert_int_equal(generate_raw("\x0A\x02\xC0\x80", 4, 4096, &err), ST_ERR_PROTO); /* overlong */
    assert_int_equal(generate_raw("\x0A\x04\xF4\x90\x80\x80", 6, 4096, &err), ST_ERR_PROTO);
    assert_int_equal(generate_raw("\x0A\x04\xF0\x9F\x98\x80", 6, 4096, &err), ST_OK);
    assert_int_equal(generate_raw("\x0A\x01\xE2", 3, 4096, &err), ST_ERR_PROTO); /* cut */
}

static void test_codec__floats_are_finite(void **state UNUSED)
{
    struct err err = ERR_INIT;

    assert_int_equal(generate_raw("\x25\x00\x00\xC0\x7F", 5, 4096, &err), ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "temperature"));
    assert_int_equal(generate_raw("\x25\x00\x00\x80\x7F", 5, 4096, &err), ST_ERR_PROTO);
    assert_int_equal(generate_raw("\x25\x00\x00\x80\x3F", 5, 4096, &err), ST_OK);
}

static void test_codec__memory_has_a_bound(void **state UNUSED)
{
    struct buf bytes = BUF_INIT;
    struct err err = ERR_INIT;

    for (int i = 0; i < 100000; i++) { /* the same field again and again: the last one counts */
        assert_int_equal(buf_append(&bytes, "\x0A\x01x", 3), ST_OK);
    }
    assert_int_equal(generate_raw(bytes.data, bytes.len, 1 << 20, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "1048576"));
    buf_fini(&bytes);
}

static void test_codec__a_body_is_required_and_numbers_are_known(void **state UNUSED)
{
    struct arena arena = ARENA_INIT(4096);
    struct err err = ERR_INIT;
    struct msg_rank rank;
    struct msg_coord coord;
    enum health_state health;

    assert_int_equal(msg_rank_unpack("", 0, &arena, &rank, &err), ST_ERR_PROTO);
    assert_int_equal(msg_coord_unpack("", 0, &arena, &coord, &err), ST_ERR_PROTO);
    assert_int_equal(msg_health_response_unpack("\x08\x09", 2, &arena, &health, &err),
                     ST_ERR_PROTO);
    /* events { finishes { reason: 9 } } */
    assert_int_equal(msg_rank_unpack("\x22\x04\x1A\x02\x18\x09", 6, &arena, &rank, &err),
                     ST_ERR_PROTO);
    assert_non_null(strstr(err.text, "reason is 9"));
    /* ready { weights_digest: 1 byte } */
    assert_int_equal(msg_rank_unpack("\x12\x03\x0A\x01\x00", 5, &arena, &rank, &err), ST_ERR_PROTO);
    arena_fini(&arena);
}

static void test_build__starts_with_the_version_and_stays(void **state UNUSED)
{
    assert_int_equal(strncmp(msg_build(), msg_version(), strlen(msg_version())), 0);
    assert_true(strlen(msg_build()) > strlen(msg_version()) + 8); /* the build id */
    assert_ptr_equal(msg_build(), msg_build());
}

/* ---- ranges ---- */

static void check(const struct msg_generate *m, const char *word)
{
    struct err err = ERR_INIT;
    const status st = generate_check(m, 512, &err);

    if (word == NULL) {
        assert_int_equal(st, ST_OK);
    } else {
        assert_int_equal(st, ST_ERR_ARG);
        if (strstr(err.text, word) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", err.text, word);
        }
    }
}

#define REQ(...) (&(struct msg_generate){ .request_id = "", __VA_ARGS__ })

static void test_check__refusals_name_field_value_and_range(void **state UNUSED)
{
    static const uint32_t edge[] = { 511, 512 };
    static const struct msg_str empty = { "", 0 };

    check(REQ(.prompt = { "x", 1 }), NULL);
    check(REQ(.has_prompt_ids = true, .n_prompt_ids = 1, .prompt_ids = edge), NULL);
    check(REQ(.has_prompt_ids = true, .n_prompt_ids = 2, .prompt_ids = edge),
          "prompt_ids[1] is 512; the model has ids 0 .. 511");
    check(REQ(.has_prompt_ids = true, .prompt = { "x", 1 }, .n_prompt_ids = 1, .prompt_ids = edge),
          "both");
    check(REQ(.has_prompt_ids = true), "no ids");
    check(REQ(.has_max_tokens = true), "max_tokens is 0");
    check(REQ(.has_temperature = true, .temperature = 100.5f), "temperature is 100.5");
    check(REQ(.has_temperature = true, .temperature = -0.5f), "temperature");
    check(REQ(.has_top_k = true, .top_k = 1025), "top_k is 1025");
    check(REQ(.has_top_p = true, .top_p = 0.f), "top_p is 0");
    check(REQ(.has_top_p = true, .top_p = 1.f, .has_min_p = true, .min_p = 1.f), NULL);
    check(REQ(.has_min_p = true, .min_p = 1.5f), "min_p");
    check(REQ(.has_logprobs = true, .logprobs = 21), "logprobs is 21");
    check(REQ(.has_presence_penalty = true, .presence_penalty = 2.5f), "presence_penalty is 2.5");
    check(REQ(.has_frequency_penalty = true, .frequency_penalty = -2.5f),
          "frequency_penalty is -2.5; -2 .. 2 is allowed");
    check(REQ(.has_repetition_penalty = true), "repetition_penalty is 0; 0.01 .. 100");
    check(REQ(.has_repetition_penalty = true, .repetition_penalty = (float)NAN), "is nan");
    check(REQ(.has_presence_penalty = true, .presence_penalty = -2.f, .has_frequency_penalty = true,
              .frequency_penalty = 2.f, .has_repetition_penalty = true,
              .repetition_penalty = 0.01f),
          NULL);
    check(REQ(.has_n = true), "n is 0; 1 .. 16 is allowed");
    check(REQ(.has_n = true, .n = 17), "n is 17");
    check(REQ(.has_n = true, .n = 16), NULL);
    check(REQ(.n_biases = 301, .biases = biases), "logit_bias has 301 entries; at most 300");
    check(REQ(.n_biases = 1, .biases = biases), "logit_bias[0] names id 4000000000");
    check(REQ(.n_biases = 1, .biases = &(struct msg_bias){ 3, -100.5f }),
          "logit_bias of id 3 is -100.5");
    check(REQ(.n_biases = 2, .biases = (struct msg_bias[]){ { 3, 1.f }, { 3, 1.f } }),
          "names id 3 twice");
    check(REQ(.n_stop = 17, .stop = stops), "stop has 17");
    check(REQ(.n_stop = 1, .stop = &empty), "stop[0] has 0 bytes");
    check(REQ(.n_stop_ids = 65, .stop_ids = edge), "stop_ids has 65");
    check(REQ(.n_stop_ids = 2, .stop_ids = edge), "stop_ids[1] is 512");
    check(REQ(.resume = true), "resume needs the request_id");
    check(REQ(.resume_from = 3), "resume_from is 3 and resume is not set");
    check(REQ(.n_resume_from_choices = 2), "resume_from_choices has 2 numbers and resume is not");
    struct msg_generate again = *REQ(.resume = true, .resume_from = 1, .n_resume_from_choices = 2);
    again.request_id = "a";
    check(&again, "resume_from (1) and resume_from_choices (2 numbers) are both set");
    again.resume_from = 0;
    again.n_resume_from_choices = 17;
    check(&again, "resume_from_choices has 17 numbers; at most 16");
    check(&(struct msg_generate){ .request_id = "two words" }, "byte 0x20 at 3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codec__a_second_round_gives_the_same_bytes),
        cmocka_unit_test(test_codec__generate_keeps_every_field),
        cmocka_unit_test(test_codec__biases_of_a_submit_are_whole_and_differ),
        cmocka_unit_test(test_codec__an_empty_request_has_nothing_set),
        cmocka_unit_test(test_codec__text_may_hold_a_nul),
        cmocka_unit_test(test_codec__choices_stand_behind_the_answer),
        cmocka_unit_test(test_codec__every_truncation_is_an_answer),
        cmocka_unit_test(test_codec__mutations_never_break_out),
        cmocka_unit_test(test_codec__strings_are_whole_utf8_without_nul),
        cmocka_unit_test(test_codec__floats_are_finite),
        cmocka_unit_test(test_codec__memory_has_a_bound),
        cmocka_unit_test(test_codec__a_body_is_required_and_numbers_are_known),
        cmocka_unit_test(test_build__starts_with_the_version_and_stays),
        cmocka_unit_test(test_check__refusals_name_field_value_and_range),
    };

    return cmocka_run_group_tests(tests, samples_make, samples_drop);
}
