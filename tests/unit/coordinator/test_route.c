/* Which replica a stream goes to, by load, pace and what is kept: choices of route.c over replicas that are made
 * by hand. How streams then get there and away is test_failover.c's. */
#include "coordinator/route.c"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { BLOCK = 32, KV_BLOCKS = 100, N_MAX = 3, KEYS_MAX = 16 };

struct table {
    struct coord coord;
    struct replica replicas[N_MAX];
    struct rank ranks[N_MAX];
    uint64_t keys[KEYS_MAX];
    uint32_t prompt[KEYS_MAX * BLOCK];
};

/* n idle replicas that serve, each of a kind of its own. */
static void table_make(struct table *t, uint32_t n)
{
    static int somebody; /* a call that is never looked into */

    memset(t, 0, sizeof(*t));
    t->coord.n_replicas = n;
    for (uint32_t i = 0; i < n; i++) {
        struct replica *r = &t->replicas[i];
        snprintf(t->ranks[i].kernels, sizeof(t->ranks[i].kernels), "kernels of %u", i);
        t->ranks[i].call = (struct rpc_call *)(void *)&somebody;
        *r = (struct replica){
            .coord = &t->coord,
            .index = i,
            .state = REPLICA_SERVING,
            .shape = { .n_ranks = 1, .kv_blocks = KV_BLOCKS, .block_tokens = BLOCK },
            .ranks = &t->ranks[i],
            .n_ready = 1
        };
        t->coord.replicas[i] = r;
    }
}

static void beat(struct table *t, uint32_t i, uint64_t step, double step_us)
{
    const struct msg_heartbeat h = { .step = step, .step_us = step_us };

    route_note_pace(&t->replicas[i], &h);
}

/* A stream of so many blocks, its prompt all but the last of them: where it goes, and stays. */
static uint32_t goes_to(struct table *t, uint32_t n_blocks)
{
    const struct journal_entry e = { .prompt = t->prompt,
                                     .n_prompt = (n_blocks - 1) * BLOCK,
                                     .max_tokens = BLOCK };
    const struct choice choice = pick(&t->coord, &e);

    assert_non_null(choice.replica);
    choice.replica->n_blocks += n_blocks;
    if (choice.n_keys != 0) {
        prefix_map_note(choice.replica->kept, t->coord.keys, choice.n_keys);
    }
    return choice.replica->index;
}

/* Streams of one block each, one digit for each. */
static void expect(struct table *t, const char *digits)
{
    for (const char *c = digits; *c != '\0'; c++) {
        const uint32_t want = (uint32_t)(*c - '0'), got = goes_to(t, 1);
        if (got != want) {
            fail_msg("stream %d of %s goes to replica %u", (int)(c - digits), digits, got);
        }
    }
}

/* ---- pace ---- */

static void test_pace__without_any_streams_are_spread_by_load(void **state UNUSED)
{
    struct table t;

    table_make(&t, 3);
    expect(&t, "012012");
    assert_int_equal(goes_to(&t, 5), 0);
    expect(&t, "1212");
}

static void test_pace__replicas_within_twice_are_alike(void **state UNUSED)
{
    struct table t;

    table_make(&t, 2);
    beat(&t, 0, PACE_STEPS, 1999);
    beat(&t, 1, PACE_STEPS, 1000);
    expect(&t, "010101");
}

/* Three times as slow: a third of the load. With the stream's own block: 3 and 1, 3 and 2, 3 and 3, 6 and 3 .. */
static void test_pace__a_slow_replica_gets_its_share(void **state UNUSED)
{
    struct table t;

    table_make(&t, 2);
    beat(&t, 0, PACE_STEPS, 3000);
    beat(&t, 1, PACE_STEPS, 1000);
    expect(&t, "11011101110");
    table_make(&t, 2);
    beat(&t, 0, PACE_STEPS, 1000);
    beat(&t, 1, PACE_STEPS, 2000);
    expect(&t, "00100100");
}

static void test_pace__one_that_has_hardly_run_is_tried(void **state UNUSED)
{
    struct table t;

    table_make(&t, 2);
    beat(&t, 0, PACE_STEPS, 1000);
    beat(&t, 1, PACE_STEPS - 1, 9000);
    expect(&t, "0101");
    beat(&t, 1, PACE_STEPS, 9000);
    expect(&t, "0000");
}

static void test_pace__the_shortest_mean_counts(void **state UNUSED)
{
    struct table t;

    table_make(&t, 2);
    beat(&t, 0, 100, 8000);
    beat(&t, 0, 200, 1000);
    beat(&t, 0, 300, 8000); /* much to do, or others on its host */
    beat(&t, 1, 100, 1000);
    expect(&t, "0101");
}

/* Equal replicas are filled evenly, whatever a busy host makes of their times. */
static void test_pace__is_that_of_a_kind(void **state UNUSED)
{
    struct table t;

    table_make(&t, 3);
    memcpy(t.ranks[1].kernels, t.ranks[0].kernels, sizeof(t.ranks[0].kernels));
    beat(&t, 1, PACE_STEPS, 9000);
    beat(&t, 2, PACE_STEPS, 3000);
    assert_int_equal(t.replicas[0].pace_ns, 9000000);
    beat(&t, 0, PACE_STEPS, 1000);
    assert_int_equal(t.replicas[1].pace_ns, 1000000);
    beat(&t, 1, PACE_STEPS + 1, 8000);
    assert_int_equal(t.replicas[1].pace_ns, 1000000);
    assert_int_equal(t.replicas[2].pace_ns, 3000000);
    expect(&t, "0101012");
    t.replicas[1].pace_ns = 0; /* started again: it is what the others are as soon as it says so */
    beat(&t, 1, PACE_STEPS, 9000);
    assert_int_equal(t.replicas[1].pace_ns, 1000000);
    t.replicas[1].shape.pp = 2; /* cut in another way it is not */
    t.replicas[1].pace_ns = 0;
    beat(&t, 1, PACE_STEPS, 9000);
    assert_int_equal(t.replicas[1].pace_ns, 9000000);
}

static void test_pace__what_is_no_time_is_not_taken(void **state UNUSED)
{
    static const double wrong[] = { 0, -1, 1e-9, 1e18, INFINITY, -INFINITY, NAN };
    struct table t;

    table_make(&t, 2);
    beat(&t, 0, PACE_STEPS, 1000);
    for (uint32_t i = 0; i < ARRAY_LEN(wrong); i++) {
        beat(&t, 0, PACE_STEPS, wrong[i]);
        beat(&t, 1, PACE_STEPS, wrong[i]);
        assert_int_equal(t.replicas[0].pace_ns, 1000000);
        assert_int_equal(t.replicas[1].pace_ns, 0);
    }
    beat(&t, 1, PACE_STEPS, 1e14); /* three years: as slow as anything is taken for */
    assert_int_equal(slowness_of(&t.replicas[1], t.replicas[0].pace_ns), SLOWNESS_MAX);
    expect(&t, "0000");
}

static void test_pace__a_fast_one_that_is_full_or_gone_is_no_measure(void **state UNUSED)
{
    struct table t;

    table_make(&t, 2);
    beat(&t, 0, PACE_STEPS, 1000);
    beat(&t, 1, PACE_STEPS, 50000);
    t.replicas[0].n_blocks = KV_BLOCKS;
    expect(&t, "11");
    table_make(&t, 3);
    beat(&t, 0, PACE_STEPS, 100);
    beat(&t, 1, PACE_STEPS, 1000);
    beat(&t, 2, PACE_STEPS, 1500);
    t.replicas[0].state = REPLICA_LOST;
    expect(&t, "1212");
}

/* ---- and what is kept ---- */

static void table_keep(struct table *t)
{
    struct err err = ERR_INIT;

    t->coord.keys = t->keys;
    t->coord.n_keys_max = KEYS_MAX;
    t->coord.key_tokens = BLOCK;
    for (uint32_t i = 0; i < ARRAY_LEN(t->prompt); i++) {
        t->prompt[i] = i;
    }
    for (uint32_t i = 0; i < t->coord.n_replicas; i++) {
        assert_int_equal(prefix_map_create(KV_BLOCKS, &t->replicas[i].kept, &err), ST_OK);
    }
}

static void table_drop(struct table *t)
{
    for (uint32_t i = 0; i < t->coord.n_replicas; i++) {
        prefix_map_destroy(t->replicas[i].kept);
    }
}

/* 11 blocks, 10 of them kept at replica 1, which is so much slower. */
static uint32_t with_kept(double times, bool at_both)
{
    struct table t;

    table_make(&t, 2);
    table_keep(&t);
    t.replicas[0].n_blocks = at_both ? 0 : 1;
    if (at_both) {
        assert_int_equal(goes_to(&t, 11), 0);
        t.replicas[0].n_blocks = KV_BLOCKS;
    }
    assert_int_equal(goes_to(&t, 11), 1);
    t.replicas[0].n_blocks = t.replicas[1].n_blocks = 0;
    beat(&t, 0, PACE_STEPS, 1000);
    beat(&t, 1, PACE_STEPS, 1000 * times);
    const uint32_t to = goes_to(&t, 11);
    table_drop(&t);
    return to;
}

static void test_pace__what_is_kept_outweighs_a_little_slowness(void **state UNUSED)
{
    assert_int_equal(with_kept(1, false), 1);
    assert_int_equal(with_kept(2, false), 1); /* 22 - 20 against 11 */
    assert_int_equal(with_kept(3, false), 0); /* 33 - 20 against 11 */
    /* Kept by both: the slow one is no better for it. */
    assert_int_equal(with_kept(3, true), 0);
    assert_int_equal(with_kept(1, true), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace__without_any_streams_are_spread_by_load),
        cmocka_unit_test(test_pace__replicas_within_twice_are_alike),
        cmocka_unit_test(test_pace__a_slow_replica_gets_its_share),
        cmocka_unit_test(test_pace__one_that_has_hardly_run_is_tried),
        cmocka_unit_test(test_pace__the_shortest_mean_counts),
        cmocka_unit_test(test_pace__is_that_of_a_kind),
        cmocka_unit_test(test_pace__what_is_no_time_is_not_taken),
        cmocka_unit_test(test_pace__a_fast_one_that_is_full_or_gone_is_no_measure),
        cmocka_unit_test(test_pace__what_is_kept_outweighs_a_little_slowness),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
