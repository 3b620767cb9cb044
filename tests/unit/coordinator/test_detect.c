/* How long a replica may stand still before it is given up: every bound to the nanosecond, on a clock that is set
 * by hand. That a replica which is given up is moved away from is test_failover.c's. */
#include "coordinator/detect.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { RANKS = 2 };

#define S NS_PER_S

/* One replica of two ranks that serves, its leader with a stream. */
struct world {
    uint64_t now_ns;
    struct clock clock;
    struct rpc_loop *loop;
    struct coord *coord;
    struct replica *replica;
    struct rank ranks[RANKS];
};

static uint64_t hand_ns(void *self)
{
    const uint64_t *now_ns = self;

    return *now_ns;
}

static struct world *world_make(uint64_t hang_ns)
{
    static int somebody; /* a call that is never looked into */
    struct world *w = calloc(1, sizeof(*w));
    struct err err = ERR_INIT;

    assert_non_null(w);
    w->now_ns = 1000 * S;
    w->clock = (struct clock){ hand_ns, &w->now_ns };
    w->coord = calloc(1, sizeof(*w->coord));
    w->replica = calloc(1, sizeof(*w->replica));
    assert_true(w->coord != NULL && w->replica != NULL);
    assert_int_equal(rpc_loop_create(&w->loop, &err), ST_OK);
    assert_int_equal(journal_create(4, &w->coord->journal, &err), ST_OK);
    w->coord->clock = &w->clock;
    w->coord->loop = w->loop;
    w->coord->state = COORD_SERVING;
    w->coord->config.hang_ns = hang_ns;
    w->coord->config.plan = NULL;
    w->coord->n_replicas = w->coord->n_own = 1;
    w->coord->replicas[0] = w->replica;
    *w->replica = (struct replica){ .coord = w->coord,
                                    .state = REPLICA_SERVING,
                                    .shape = { .n_ranks = RANKS, .rows_max = 512 },
                                    .ranks = w->ranks,
                                    .n_attached = RANKS,
                                    .n_ready = RANKS,
                                    .started_ns = w->now_ns,
                                    .proven_ns = w->now_ns };
    blame_init(w->replica);
    for (uint32_t i = 0; i < RANKS; i++) {
        w->ranks[i] = (struct rank){ .call = (struct rpc_call *)(void *)&somebody,
                                     .was_attached = true,
                                     .is_ready = true,
                                     .host = "h",
                                     .phase = "step",
                                     .heard_ns = w->now_ns };
    }
    w->ranks[0].heartbeat.running = 1;
    check_movement(w->replica, w->now_ns); /* the first look */
    assert_true(w->replica->moved_ns == w->now_ns);
    return w;
}

static void world_free(struct world *w)
{
    rpc_timer_set(w->loop, &w->replica->verdict_timer, CLOCK_NEVER);
    if (w->coord->watch_timer.fn != NULL) {
        detect_stop(w->coord);
    }
    rpc_loop_destroy(w->loop);
    journal_destroy(w->coord->journal);
    free(w->replica);
    free(w->coord);
    free(w);
}

static bool is_lost(const struct world *w)
{
    return w->replica->state == REPLICA_LOST;
}

/* ---- the bound ---- */

/* Two flops per weight and row at 5 Gflop/s, of two bytes per weight: bytes * rows / 5e9 seconds. */
static void test_detect__the_bound_is_the_largest_of_its_three(void **state UNUSED)
{
    static const struct {
        uint64_t hang_ns, layer_bytes, layer_ns;
        uint32_t rows_max;
        uint64_t want_ns;
    } rows[] = {
        { 10 * S, 1000000, 0, 512, 10 * S },           /* a guess of 0.1 s */
        { 10 * S, 1000000000, 0, 512, 102400000000 },  /* a layer of 1 GB */
        { 10 * S, 1000000000, 0, 1024, 204800000000 }, /* and of longer steps */
        { 10 * S, 2000000000, 0, 512, 204800000000 },  /* and of twice the weights */
        { 300 * S, 1000000000, 0, 512, 300 * S },      /* who waits longer anyway */
        { 10 * S, 1000000000, 20 * S, 512, 200 * S },  /* rates say that a layer takes 20 s */
        { 10 * S, 1000000000, 10240000000, 512, 102400000000 }, /* as long as was guessed */
        { 10 * S, 1000000000, 10240000001, 512, 102400000010 },
        { 10 * S, 1000000000, 1000, 512, 102400000000 }, /* rates make nothing tighter */
        { 10 * S, 1000000, 1000, 512, 10 * S },
        { 0, 1000000, 0, 512, 102400000 }, /* never by --hang-timeout */
    };

    for (uint32_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct world *w = world_make(rows[i].hang_ns);
        w->replica->shape.layer_bytes = rows[i].layer_bytes;
        w->replica->shape.layer_ns = rows[i].layer_ns;
        w->replica->shape.rows_max = rows[i].rows_max;
        const uint64_t got = detect_bound_ns(w->replica);
        if (got != rows[i].want_ns) {
            fail_msg("row %u: %llu ns, wanted %llu", i, (unsigned long long)got,
                     (unsigned long long)rows[i].want_ns);
        }
        world_free(w);
    }
}

/* ---- what uses it ---- */

static void test_detect__a_long_step_has_all_of_the_bound(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    const uint64_t began = w->now_ns;

    w->replica->shape.layer_bytes = 1000000000; /* 102.4 s */
    check_movement(w->replica, began + 102400000000);
    assert_false(is_lost(w));
    assert_true(w->replica->moved_ns == began);
    w->now_ns = began + 102400000001;
    check_movement(w->replica, w->now_ns);
    assert_true(is_lost(w));
    assert_int_equal(w->replica->sign.weight, SIGN_OWN_FAULT);
    assert_non_null(strstr(w->replica->sign.text, "stuck for 102.4 s"));
    world_free(w);
}

/* Chunk after chunk, each within a nanosecond of the bound, and layer after layer within a chunk. */
static void test_detect__each_chunk_of_a_prompt_has_a_bound_of_its_own(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    const uint64_t bound = detect_bound_ns(w->replica);

    assert_true(bound == 10 * S);
    for (uint32_t chunk = 0; chunk < 40; chunk++) {
        w->now_ns += bound;
        check_movement(w->replica, w->now_ns); /* it is about to be given up */
        assert_true(w->replica->moved_ns == w->now_ns - bound);
        if (chunk % 2 == 0) {
            w->ranks[0].heartbeat.step++;
        } else {
            w->ranks[1].heartbeat.ticks++;
        }
        check_movement(w->replica, w->now_ns);
        assert_true(w->replica->moved_ns == w->now_ns);
        assert_false(is_lost(w));
    }
    check_movement(w->replica, w->now_ns + bound + 1);
    assert_true(is_lost(w));
    world_free(w);
}

static void test_detect__who_has_nothing_to_do_stands_still_in_peace(void **state UNUSED)
{
    struct world *w = world_make(10 * S);

    w->ranks[0].heartbeat.running = 0;
    w->now_ns += 1000 * S;
    check_movement(w->replica, w->now_ns);
    assert_true(w->replica->moved_ns == w->now_ns);
    w->ranks[0].heartbeat.waiting = 1; /* from now on it has */
    check_movement(w->replica, w->now_ns + 10 * S);
    assert_false(is_lost(w));
    check_movement(w->replica, w->now_ns + 10 * S + 1);
    assert_true(is_lost(w));
    world_free(w);
}

static void test_detect__silence_has_the_hang_timeout_whatever_a_layer_takes(void **state UNUSED)
{
    struct world *w = world_make(10 * S);

    w->replica->shape.layer_bytes = 1000000000;
    w->ranks[0].heard_ns += 5 * S;
    check_silence(w->replica, w->now_ns + 10 * S);
    assert_false(is_lost(w));
    check_silence(w->replica, w->now_ns + 10 * S + 1);
    assert_true(is_lost(w));
    assert_non_null(
        strstr(w->replica->sign.text, "rank 1 (host h, pid 0) has been silent for 10.0 s"));
    world_free(w);
}

static void test_detect__loading_that_stands_still_is_told_and_not_ended(void **state UNUSED)
{
    struct world *w = world_make(10 * S);

    w->replica->state = REPLICA_LOADING;
    check_loading(w->replica, w->now_ns + 120 * S);
    assert_false(w->replica->is_load_told);
    check_loading(w->replica, w->now_ns + 120 * S + 1);
    assert_true(w->replica->is_load_told);
    assert_int_equal(w->replica->state, REPLICA_LOADING);
    w->ranks[1].heartbeat.loaded_bytes++;
    check_loading(w->replica, w->now_ns + 121 * S);
    assert_false(w->replica->is_load_told);
    assert_true(w->replica->moved_ns == w->now_ns + 121 * S);
    world_free(w);
}

/* Health: with streams the bound, without them --canary more. */
static void test_detect__a_proof_is_good_for_the_bound(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    const uint64_t now = w->now_ns;

    w->coord->config.canary_ns = 30 * S;
    w->replica->shape.layer_bytes = 1000000000; /* 102.4 s */
    assert_true(canary_is_fresh(w->replica, now + 132400000000));
    assert_false(canary_is_fresh(w->replica, now + 132400000001));
    w->replica->n_streams = 1;
    assert_true(canary_is_fresh(w->replica, now + 102400000000));
    assert_false(canary_is_fresh(w->replica, now + 102400000001));
    w->replica->moved_ns = now + 50 * S; /* its steps are proof as well */
    assert_true(canary_is_fresh(w->replica, now + 152400000000));
    assert_false(canary_is_fresh(w->replica, now + 152400000001));
    assert_true(canary_is_fresh(w->replica, now)); /* later than now is now */
    w->replica->n_streams = 0;
    world_free(w);
}

static void test_detect__a_canary_that_nobody_takes_has_the_bound(void **state UNUSED)
{
    struct world *w = world_make(10 * S);

    w->coord->config.canary_ns = 30 * S;
    w->ranks[0].heartbeat.running = 0;
    w->replica->canary = (struct canary){ .is_out = true, .sent_ns = w->now_ns };
    canary_tick(w->replica, w->now_ns + 10 * S);
    assert_false(is_lost(w));
    canary_tick(w->replica, w->now_ns + 10 * S + 1);
    assert_true(is_lost(w));
    assert_non_null(strstr(w->replica->sign.text, "takes no work"));
    world_free(w);
}

/* ---- a coordinator that stands still ---- */

static void test_stall__is_nobodys_delay(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    struct replica *r = w->replica;
    const uint64_t t = w->now_ns, gap = 7 * S;

    r->moved_ns = t - 9 * S;
    r->started_ns = t - 60 * S;
    r->proven_ns = t - 8 * S;
    r->canary.sent_ns = t - 20 * S;
    r->reattach_ns = t + S;
    w->ranks[0].heard_ns = t - 10 * S;
    w->ranks[1].heard_ns = t - 7 * S;
    add_stall(w->coord, t, gap);
    assert_true(r->moved_ns == t - 2 * S);
    assert_true(r->started_ns == t - 53 * S);
    assert_true(r->proven_ns == t - S);
    assert_true(r->canary.sent_ns == t - 13 * S);
    assert_true(r->reattach_ns == t + 8 * S); /* a deadline: the ranks have as long as before */
    assert_true(w->ranks[0].heard_ns == t - 3 * S);
    assert_true(w->ranks[1].heard_ns == t);
    r->reattach_ns = 0;
    add_stall(w->coord, t, gap);
    assert_true(r->reattach_ns == 0); /* there is none */
    world_free(w);
}

/* What happened within it, or as it ended, was now at the latest. */
static void test_stall__puts_nothing_into_the_future(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    struct replica *r = w->replica;
    const uint64_t t = w->now_ns, gap = 7 * S;

    r->moved_ns = r->started_ns = t;
    r->proven_ns = r->canary.sent_ns = t - 1;
    w->ranks[0].heard_ns = t - gap + 1;
    w->ranks[1].heard_ns = t;
    add_stall(w->coord, t, gap);
    assert_true(r->moved_ns == t && r->started_ns == t && r->proven_ns == t);
    assert_true(r->canary.sent_ns == t);
    assert_true(w->ranks[0].heard_ns == t && w->ranks[1].heard_ns == t);
    world_free(w);
}

/* A restart while the timer was overdue was given up "18446744074 s after its start". */
static void test_stall__a_replica_that_was_started_within_it_has_all_its_time(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    struct replica *r = w->replica;

    w->coord->config.start_ns = 60 * S;
    r->n_losses = 1;
    r->state = REPLICA_STARTING;
    w->ranks[0].call = w->ranks[1].call = NULL;
    r->n_attached = r->n_ready = 0;
    assert_int_equal(detect_start(w->coord), ST_OK);
    w->now_ns = w->coord->watch_due_ns + 260 * NS_PER_MS; /* mpirun takes so long to start .. */
    r->started_ns = w->now_ns;
    w->now_ns += 100 * NS_PER_MS;
    tick(w->coord); /* .. and the timer comes 360 ms late */
    assert_int_equal(r->state, REPLICA_STARTING);
    assert_true(r->started_ns == w->now_ns);
    const uint64_t from = r->started_ns;
    for (uint32_t i = 0; i < 600; i++) {
        w->now_ns += 100 * NS_PER_MS;
        tick(w->coord);
        assert_int_equal(r->state, REPLICA_STARTING);
        assert_true(r->started_ns == from);
    }
    w->now_ns++;
    tick(w->coord);
    assert_true(is_lost(w));
    assert_non_null(strstr(r->sign.text, "60 s after its start 0 of 2 ranks have attached"));
    world_free(w);
}

static void test_stall__a_tick_that_is_a_little_late_is_none(void **state UNUSED)
{
    struct world *w = world_make(10 * S);
    const uint64_t heard = w->ranks[0].heard_ns;

    assert_int_equal(detect_start(w->coord), ST_OK);
    assert_true(w->coord->watch_due_ns == w->now_ns + WATCH_MS * NS_PER_MS);
    w->now_ns = w->coord->watch_due_ns + 300 * NS_PER_MS;
    tick(w->coord);
    assert_true(w->ranks[0].heard_ns == heard);
    assert_true(w->coord->watch_due_ns == w->now_ns + WATCH_MS * NS_PER_MS);
    w->now_ns = w->coord->watch_due_ns + 300 * NS_PER_MS + 1;
    tick(w->coord);
    assert_true(w->ranks[0].heard_ns == heard + 300 * NS_PER_MS + 1);
    /* 20 s: twice the time that a rank may be silent or stand still, and nobody is lost. */
    w->now_ns = w->coord->watch_due_ns + 20 * S;
    tick(w->coord);
    assert_false(is_lost(w));
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detect__the_bound_is_the_largest_of_its_three),
        cmocka_unit_test(test_detect__a_long_step_has_all_of_the_bound),
        cmocka_unit_test(test_detect__each_chunk_of_a_prompt_has_a_bound_of_its_own),
        cmocka_unit_test(test_detect__who_has_nothing_to_do_stands_still_in_peace),
        cmocka_unit_test(test_detect__silence_has_the_hang_timeout_whatever_a_layer_takes),
        cmocka_unit_test(test_detect__loading_that_stands_still_is_told_and_not_ended),
        cmocka_unit_test(test_detect__a_proof_is_good_for_the_bound),
        cmocka_unit_test(test_detect__a_canary_that_nobody_takes_has_the_bound),
        cmocka_unit_test(test_stall__is_nobodys_delay),
        cmocka_unit_test(test_stall__puts_nothing_into_the_future),
        cmocka_unit_test(test_stall__a_replica_that_was_started_within_it_has_all_its_time),
        cmocka_unit_test(test_stall__a_tick_that_is_a_little_late_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
