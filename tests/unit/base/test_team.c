/* tests/unit/base/test_team.c */
#include "base/team.h"

#include "base/clock.h"
#include "base/cpu.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { PARTS_MAX = 64 };

struct seen {
    uint32_t calls[PARTS_MAX]; /* written by that part only */
    uint32_t n_parts[PARTS_MAX];
    char name[PARTS_MAX][16];
    bool float_env[PARTS_MAX];
    bool term_blocked[PARTS_MAX];
};

static void look(void *arg, uint32_t part, uint32_t n_parts)
{
    struct seen *seen = arg;
    sigset_t mask;

    seen->calls[part]++;
    seen->n_parts[part] = n_parts;
    pthread_getname_np(pthread_self(), seen->name[part], sizeof(seen->name[part]));
    seen->float_env[part] = cpu_float_env_ok();
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    seen->term_blocked[part] = sigismember(&mask, SIGTERM) == 1;
}

static struct team *make(uint32_t n)
{
    struct team *team = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(team_create(n, &team, &err), ST_OK);
    assert_int_equal(team_size(team), n);
    return team;
}

static void test_team__every_part_runs_exactly_once_per_run(void **state UNUSED)
{
    static const uint32_t sizes[] = { 1, 2, 3, 7, 16 };

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct team *team = make(sizes[i]);
        struct seen seen = { 0 };
        for (uint32_t run = 1; run <= 200; run++) {
            team_run(team, look, &seen);
            for (uint32_t part = 0; part < PARTS_MAX; part++) {
                assert_int_equal(seen.calls[part], part < sizes[i] ? run : 0);
            }
        }
        assert_int_equal(seen.n_parts[sizes[i] - 1], sizes[i]);
        team_destroy(team);
    }
}

static void test_team__threads_have_name_float_env_and_no_signals(void **state UNUSED)
{
    struct team *team = make(4);
    struct seen seen = { 0 };

    team_run(team, look, &seen);
    for (uint32_t part = 0; part < 4; part++) {
        assert_true(seen.float_env[part]);
        if (part > 0) {
            assert_string_equal(seen.name[part], "gantry-team");
            assert_true(seen.term_blocked[part]);
        }
    }
    assert_false(seen.term_blocked[0]);
    team_destroy(team);
}

static void test_team__wakes_after_everybody_slept(void **state UNUSED)
{
    struct team *team = make(3);
    struct seen seen = { 0 };

    for (uint32_t run = 1; run <= 5; run++) {
        nanosleep(&(struct timespec){ .tv_nsec = 3000000 }, NULL);
        team_run(team, look, &seen);
        assert_int_equal(seen.calls[1], run);
        assert_int_equal(seen.calls[2], run);
    }
    team_destroy(team);
}

static void slow_part(void *arg, uint32_t part, uint32_t n_parts UNUSED)
{
    if (part == 1) {
        nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
        *(uint32_t *)arg += 1;
    }
}

static void test_team__owner_waits_for_the_slowest_part(void **state UNUSED)
{
    struct team *team = make(2);
    uint32_t done = 0;

    for (uint32_t run = 1; run <= 5; run++) {
        team_run(team, slow_part, &done);
        assert_int_equal(done, run);
    }
    team_destroy(team);
}

static void test_team__refuses_no_thread_and_too_many(void **state UNUSED)
{
    struct team *team = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(team_create(0, &team, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "0 threads"));
    assert_int_equal(team_create(1000000, &team, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "1000000"));
    assert_null(team);
    team_destroy(NULL);
}

static void test_team_cut__covers_everything_once_and_on_grains(void **state UNUSED)
{
    static const uint32_t totals[] = { 0, 1, 15, 16, 17, 1000, UINT32_MAX };
    static const uint32_t grains[] = { 1, 16, 1024 };

    for (size_t t = 0; t < ARRAY_LEN(totals); t++) {
        for (size_t g = 0; g < ARRAY_LEN(grains); g++) {
            for (uint32_t n = 1; n <= 9; n++) {
                uint32_t at = 0;
                for (uint32_t part = 0; part < n; part++) {
                    const struct team_range r = team_cut(totals[t], grains[g], part, n);
                    assert_int_equal(r.begin, at);
                    assert_true(r.end >= r.begin);
                    assert_true(r.end == totals[t] || r.end % grains[g] == 0);
                    at = r.end;
                }
                assert_int_equal(at, totals[t]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_team__every_part_runs_exactly_once_per_run),
        cmocka_unit_test(test_team__threads_have_name_float_env_and_no_signals),
        cmocka_unit_test(test_team__wakes_after_everybody_slept),
        cmocka_unit_test(test_team__owner_waits_for_the_slowest_part),
        cmocka_unit_test(test_team__refuses_no_thread_and_too_many),
        cmocka_unit_test(test_team_cut__covers_everything_once_and_on_grains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
