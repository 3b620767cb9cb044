/* tests/layout/test_deep.c - many stages: one layer each, all of them with a step of their own.
 *
 * Then 65 plans are out at once, rank 0 passes each to 7 others (6 children and, with its digest, the next
 * stage), and the collectives have COLL_REQS_MAX slots for them: fewer than that (worker/rank_plan.c). */
#include "common/fixture.h"
#include "common/random_model.h"
#include "replica/replica.h"

#include "base/cpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { N_LAYERS = 64, N_STREAMS = 96, N_TOKENS = 12 };

_Static_assert((N_LAYERS + 1) * 7 > COLL_REQS_MAX, "or this test asks nothing");

static const struct random_shape shape = { .name = "deep",
                                           .layers = N_LAYERS,
                                           .dim = 64,
                                           .heads = 8,
                                           .kv_heads = 8,
                                           .ffn = 96,
                                           .vocab = 512,
                                           .ctx = 64 };

struct answers {
    uint32_t tokens[N_STREAMS][N_TOKENS];
    float logprobs[N_STREAMS][N_TOKENS];
};

static void run(const char *dir, uint32_t tp, uint32_t pp, struct answers *a)
{
    static uint32_t prompts[N_STREAMS][3];
    static struct replica_stream streams[N_STREAMS];
    const struct replica_config config = { .model = dir,
                                           .device = REPLICA_CPU,
                                           .fmt = KERN_BF16,
                                           .tp = tp,
                                           .pp = pp,
                                           .n_threads = 1,
                                           .cpu_flags = cpu_flags(),
                                           .ctx_max = 32,
                                           .seqs_max = N_STREAMS,
                                           .rows_max = 4 * N_STREAMS };
    struct err err = ERR_INIT;

    memset(a, 0, sizeof(*a));
    memset(streams, 0, sizeof(streams));
    for (uint32_t i = 0; i < N_STREAMS; i++) {
        for (uint32_t k = 0; k < ARRAY_LEN(prompts[i]); k++) {
            prompts[i][k] = 3 + (i * 31 + k * 7) % 500;
        }
        streams[i].submit = (struct msg_submit){ .n_prompt = ARRAY_LEN(prompts[i]),
                                                 .prompt = prompts[i],
                                                 .max_tokens = N_TOKENS,
                                                 .temperature = 0.9f,
                                                 .top_p = 1.0f,
                                                 .repetition_penalty = 1.0f,
                                                 .seed = i,
                                                 .want_logprobs = true };
        streams[i].tokens = a->tokens[i];
        streams[i].logprobs = a->logprobs[i];
    }
    if (replica_run(&config, streams, N_STREAMS, NULL, &err) != ST_OK) {
        fail_msg("tp %u x pp %u: %s", tp, pp, err.text);
    }
    for (uint32_t i = 0; i < N_STREAMS; i++) {
        assert_int_equal(streams[i].n_tokens, N_TOKENS);
    }
}

static void test_deep__sixty_four_stages_are_one_rank(void **state)
{
    static struct answers want, got;

    run(*state, 1, 1, &want);
    run(*state, 1, N_LAYERS, &got);
    assert_memory_equal(&got, &want, sizeof(got));
}

int main(void)
{
    static char dir[FIXTURE_PATH_BYTES];

    fixture_dir_create(dir);
    random_model_write(dir, &shape);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_deep__sixty_four_stages_are_one_rank, dir),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_dir_remove(dir);
    return failed;
}
