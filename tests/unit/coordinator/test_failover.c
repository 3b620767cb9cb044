/* Several replicas behind one coordinator (coord_world.h; each is one scripted rank): routing by
 * load, streams that move with their tokens, what fences off a lost replica, restarts, and ranks
 * that are there and do nothing. */
#include "unit/coordinator/coord_world.h"

#include "cluster/coll_watch.h"

/* ---- two replicas ---- */

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct world *w = arg;

    w->n_lost++;
    w->last_lost = replica;
    w->last_delay_ns = delay_ns;
}

static void open_two(struct world *w, uint32_t retries, uint32_t restarts)
{
    const struct coord_config more = {
        .n_replicas = 2, .retries = retries, .restarts = restarts, .on_lost = on_lost
    };

    world_open_as(w, 1, &more);
    rank_ready(rank_attach(w, 0));
    await_count(w, &w->n_states, 1);
    assert_int_equal(w->states[0], COORD_SERVING); /* one is enough */
    rank_ready(rank_attach(w, 1));
    await_count(w, &w->ranks[1].n_welcomes, 1);
    settle_ms(w, 20);
}

/* What a killed leader looks like. */
static void lose(struct world *w, uint32_t i)
{
    rpc_call_cancel(w->ranks[i].call);
    await(w, &w->ranks[i].is_done);
    w->ranks[i].call = NULL;
}

/* Another rank plays the next generation of replica i. */
static void come_back(struct world *w, uint32_t i)
{
    w->ranks[i].hello.generation = coord_replica_restart(w->coord, i);
    rank_ready(rank_attach(w, i));
}

#define WAITING REQ("wait", .has_max_tokens = true, .max_tokens = 4)

/* ---- cases ---- */

static void test_route__streams_go_where_the_load_is_least(void **state UNUSED)
{
    struct world w;
    struct client c[3];

    open_two(&w, 3, 0);
    ask(&w, &c[0], REQ("wait", .has_max_tokens = true, .max_tokens = 50), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1); /* of equals the first */
    ask(&w, &c[1], WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    ask(&w, &c[2], WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 2); /* two small ones weigh less than the large one */
    assert_int_equal(w.ranks[0].n_submits, 1);
    world_close(&w);
}

static void test_route__streams_go_where_their_beginning_is_kept(void **state UNUSED)
{
    const struct coord_config more = { .n_replicas = 2, .prefix_cache = true };
    static const char prompt[] = "hello, this is a beginning of more than a block";
    static const char other[] = "hello, that is a beginning of more than a block";
    struct msg_generate m = *REQ("", .has_max_tokens = true, .max_tokens = 4);
    struct world w;
    struct client c, blocker;

    world_open_as(&w, 1, &more);
    rank_ready(rank_attach(&w, 0));
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &w.n_states, 1);
    settle_ms(&w, 20);
    ask(&w, &blocker, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    m.prompt = (struct msg_str){ prompt, sizeof(prompt) - 1 };
    ask(&w, &c, &m, true, CLOCK_NEVER); /* the idler one */
    await(&w, &c.is_done);
    assert_int_equal(w.ranks[1].n_submits, 1);
    rpc_call_cancel(blocker.call);
    await(&w, &blocker.is_done);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &c, &m, true, CLOCK_NEVER); /* both are idle: of equals it would be the first */
    await(&w, &c.is_done);
    assert_int_equal(w.ranks[1].n_submits, 2);
    m.prompt.data = other;
    ask(&w, &c, &m, true, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(w.ranks[0].n_submits, 2);
    world_close(&w);
}

/* One kept block outweighs two of load, not three. */
static void test_route__a_kept_beginning_overloads_nobody(void **state UNUSED)
{
    const struct coord_config more = { .n_replicas = 2, .prefix_cache = true };
    static const char prompt[] = "wait, this is a beginning of more than a block";
    struct msg_generate m = *REQ("", .has_max_tokens = true, .max_tokens = 4);
    struct world w;
    struct client c[3];

    world_open_as(&w, 1, &more);
    rank_ready(rank_attach(&w, 0));
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &w.n_states, 1);
    settle_ms(&w, 20);
    m.prompt = (struct msg_str){ prompt, sizeof(prompt) - 1 };
    for (uint32_t i = 0; i < 3; i++) {
        ask(&w, &c[i], &m, false, CLOCK_NEVER);
        await_count(&w, i < 2 ? &w.ranks[0].n_submits : &w.ranks[1].n_submits, i < 2 ? i + 1 : 1);
    }
    world_close(&w);
}

static void test_failover__a_stream_goes_on_where_it_was(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_two(&w, 3, 0);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    rank_token(&w.ranks[0], &w.ranks[0].last, 0, 'g');
    rank_token(&w.ranks[0], &w.ranks[0].last, 1, 'o');
    await_count(&w, &c.n_tokens, 2);
    const uint64_t seed = w.ranks[0].last.seed;
    lose(&w, 0);
    await_count(&w, &w.ranks[1].n_submits, 1);
    const struct msg_submit *m = &w.ranks[1].last;
    assert_int_equal(m->attempt, 2);
    assert_int_equal(m->n_emitted, 2);
    assert_int_equal(w.ranks[1].last_emitted[0], 'g');
    assert_int_equal(w.ranks[1].last_emitted[1], 'o');
    assert_true(m->seed == seed);
    /* The first attempt's number counts no more, whoever uses it. */
    struct msg_submit old = *m;
    old.attempt = 1;
    rank_token(&w.ranks[1], &old, 2, '?');
    rank_token(&w.ranks[1], m, 2, 'o');
    rank_token(&w.ranks[1], m, 3, 'd');
    rank_finish(&w.ranks[1], m, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "good");
    assert_int_equal(c.n_tokens, 4);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    world_close(&w);
}

static void test_failover__with_no_replica_streams_wait_for_the_restart(void **state UNUSED)
{
    struct world w;
    struct client c, late;

    open_two(&w, 3, 5);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    lose(&w, 1);
    lose(&w, 0);
    await_count(&w, &w.n_lost, 2);
    assert_true(w.last_delay_ns == NS_PER_S);
    assert_int_equal(coord_state(w.coord), COORD_RECOVERING);
    ask(&w, &late, REQ("hi"), false, CLOCK_NEVER);
    await(&w, &late.is_done);
    assert_int_equal(late.st, ST_ERR_UNAVAILABLE);
    assert_non_null(strstr(late.error, "no replica serves now"));
    assert_false(c.is_done);
    w.ranks[1].n_submits = 0;
    come_back(&w, 1);
    await_count(&w, &w.ranks[1].n_submits, 1);
    assert_int_equal(w.ranks[1].last.attempt, 2);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    rank_token(&w.ranks[1], &w.ranks[1].last, 0, 'k');
    rank_finish(&w.ranks[1], &w.ranks[1].last, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    world_close(&w);
}

static void test_failover__a_request_is_moved_so_often_and_no_more(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_two(&w, 1, 5);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    lose(&w, 0);
    await_count(&w, &w.ranks[1].n_submits, 1);
    lose(&w, 1);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    assert_non_null(strstr(c.error, "2 replicas were lost while they ran this request"));
    assert_non_null(strstr(c.error, "rank 0 (host here, pid 101)"));
    world_close(&w);
}

/* Two streams; the second one only waits in the leader, which says so. */
static void test_failover__a_stream_that_only_waited_is_spared(void **state UNUSED)
{
    struct world w;
    struct client runs, waits;

    open_two(&w, 1, 5);
    lose(&w, 1); /* all goes to replica 0 */
    await_count(&w, &w.n_lost, 1);
    ask(&w, &runs, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    ask(&w, &waits, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 2);
    const uint64_t queued[] = { w.ranks[0].last.stream };
    for (uint32_t i = 0; i < 2; i++) {
        const struct msg_heartbeat m = {
            .phase = "step", .running = 1, .waiting = 1, .n_queued = 1, .queued = queued
        };
        rank_say(&w.ranks[0], &(struct msg_rank){ MSG_HEARTBEAT, .heartbeat = m });
        settle_ms(&w, 50);
        w.ranks[0].n_submits = 0;
        const uint32_t n_lost = w.n_lost;
        lose(&w, 0);
        await_count(&w, &w.n_lost, n_lost + 1);
        if (i == 0) {
            come_back(&w, 0);
            await_count(&w, &w.ranks[0].n_submits, 2);
        }
    }
    await(&w, &runs.is_done);
    assert_int_equal(runs.st, ST_ERR_UNAVAILABLE);
    assert_non_null(strstr(runs.error, "2 replicas were lost while they ran this request"));
    assert_false(waits.is_done);
    world_close(&w);
}

/* The first choice is let go because the second one fails: it must not go on counting where it ran. */
static void test_failover__choices_that_are_let_go_count_nowhere(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_two(&w, 0, 0);
    ask(&w, &c, REQ("wait", .has_max_tokens = true, .max_tokens = 4, .has_n = true, .n = 2), false,
        CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    await_count(&w, &w.ranks[1].n_submits, 1);
    lose(&w, 1);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    lose(&w, 0); /* asserts that nothing is left there */
    settle_ms(&w, 400);
    assert_int_equal(coord_state(w.coord), COORD_FAILED);
    world_close(&w);
}

static void test_failover__a_lost_generation_never_comes_back(void **state UNUSED)
{
    struct world w;

    open_two(&w, 3, 5);
    lose(&w, 0);
    await_count(&w, &w.n_lost, 1);
    rank_attach(&w, 0); /* before the restart */
    await(&w, &w.ranks[0].is_done);
    assert_int_equal(w.ranks[0].done_st, ST_ERR_MISMATCH);
    assert_int_equal(coord_replica_restart(w.coord, 0), 5);
    rank_attach(&w, 0); /* after it */
    await(&w, &w.ranks[0].is_done);
    assert_non_null(strstr(w.ranks[0].done_text, "generation 4, the coordinator has 0 and 5"));
    assert_int_equal(w.n_lost, 1); /* which says nothing against generation 5 */
    w.ranks[0].hello.generation = 5;
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.ranks[0].n_welcomes, 2);
    world_close(&w);
}

static void test_failover__other_weights_are_refused(void **state UNUSED)
{
    const struct msg_ready other = { .weights_digest = { { 0xAB, 2 } }, .weight_bytes = 5 };
    struct world w;

    open_two(&w, 3, 5);
    lose(&w, 1);
    await_count(&w, &w.n_lost, 1);
    w.ranks[1].hello.generation = coord_replica_restart(w.coord, 1);
    rank_attach(&w, 1);
    rank_say(&w.ranks[1], &(struct msg_rank){ MSG_READY, .ready = other });
    await_count(&w, &w.n_lost, 2);
    assert_int_equal(w.last_lost, 1);
    assert_true(w.last_delay_ns == 2 * NS_PER_S); /* it has not served in between */
    await(&w, &w.ranks[1].is_done);
    assert_non_null(strstr(w.ranks[1].done_text, "have the files changed?"));
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    world_close(&w);
}

static void test_failover__it_ends_when_nothing_can_be_started_again(void **state UNUSED)
{
    struct world w;
    struct client c;
    status code = ST_OK;

    open_two(&w, 3, 0);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    lose(&w, 0);
    await_count(&w, &w.n_lost, 1);
    assert_true(w.last_delay_ns == CLOCK_NEVER);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    lose(&w, 1);
    await(&w, &c.is_done);
    assert_non_null(
        strstr(c.error, "all replicas were lost: replica 0: rank 0 (host here, pid 100)"));
    assert_int_equal(coord_state(w.coord), COORD_FAILED);
    assert_non_null(
        strstr(coord_failure(w.coord, &code), "replica 1: rank 0 (host here, pid 101)"));
    world_close(&w);
}

/* ---- there and idle ---- */

static void heartbeat(struct rank *r, const char *phase, uint64_t step, uint64_t ticks,
                      uint32_t running)
{
    const struct msg_heartbeat m = {
        .phase = phase, .step = step, .ticks = ticks, .running = running
    };
    rank_say(r, &(struct msg_rank){ MSG_HEARTBEAT, .heartbeat = m });
}

/* One replica of two ranks, both ready. */
static void open_pair(struct world *w, uint64_t hang_ms)
{
    const struct coord_config more = { .retries = 3, .hang_ns = hang_ms * NS_PER_MS };

    world_open_as(w, 2, &more);
    rank_ready(rank_attach(w, 0));
    rank_ready(rank_attach(w, 1));
    await_count(w, &w->n_states, 1);
}

static void test_detect__a_silent_rank_is_named(void **state UNUSED)
{
    struct world w;
    status code = ST_OK;

    open_pair(&w, 400);
    for (int i = 0; i < 40 && w.n_states < 2; i++) {
        heartbeat(&w.ranks[0], "idle", 7, 1, 0);
        if (i < 4) {
            heartbeat(&w.ranks[1], "step", 7, 1, 0);
        }
        settle_ms(&w, 50);
    }
    assert_int_equal(w.states[1], COORD_FAILED);
    const char *why = coord_failure(w.coord, &code);
    assert_non_null(strstr(why, "rank 1 (host here, pid 101) has been silent for 0."));
    assert_non_null(strstr(why, "phase \"step\" at step 7"));
    assert_int_equal(code, ST_ERR_DEADLINE);
    world_close(&w);
}

/* A host without power: mpirun takes the neighbours down before --hang-timeout is over. */
static void test_detect__a_quiet_rank_is_named_before_one_that_breaks(void **state UNUSED)
{
    struct world w;
    status code = ST_OK;

    open_pair(&w, 4000);
    heartbeat(&w.ranks[1], "step", 7, 1, 0);
    for (int i = 0; i < 24; i++) {
        heartbeat(&w.ranks[0], "waiting", 7, 1, 0);
        settle_ms(&w, 100);
    }
    assert_int_equal(w.n_states, 1);
    lose(&w, 0);
    await_count(&w, &w.n_states, 2);
    const char *why = coord_failure(w.coord, &code);
    assert_non_null(strstr(why, "rank 1 (host here, pid 101) has been silent for 2."));
    assert_non_null(strstr(why, "after that: rank 0 (host here, pid 100) is gone: its connection"));
    assert_int_equal(code, ST_ERR_PEER);
    world_close(&w);
}

static void test_detect__a_stuck_rank_is_named(void **state UNUSED)
{
    struct world w;
    status code = ST_OK;

    open_pair(&w, 400);
    for (uint32_t i = 0; i < 40 && w.n_states < 2; i++) {
        const uint64_t step = MIN(i, 10u); /* moves, and then no more */
        heartbeat(&w.ranks[0], "waiting", 100 + step, 6 * step, 3);
        heartbeat(&w.ranks[1], "step", 100 + step, 6 * step - step / 10, 0);
        settle_ms(&w, 50);
        assert_true(i > 12 || w.n_states == 1);
    }
    assert_int_equal(w.states[1], COORD_FAILED);
    const char *why = coord_failure(w.coord, &code);
    assert_non_null(strstr(why, "rank 1 (host here, pid 101) has been stuck for 0."));
    assert_non_null(
        strstr(why, "phase \"step\" at step 110, layer count 59, while 3 streams wait"));
    world_close(&w);
}

/* Both stand still; the one that computes is not the one that is furthest behind. */
static void test_detect__a_stuck_rank_is_the_one_that_others_wait_for(void **state UNUSED)
{
    const struct msg_heartbeat waits = {
        .phase = "step", .step = 8, .running = 2, .op = COLL_OP_SUM, .op_seq = 812, .op_peer = 2
    };
    struct world w;
    status code = ST_OK;

    open_pair(&w, 400);
    for (uint32_t i = 0; i < 40 && w.n_states < 2; i++) {
        struct msg_heartbeat m = waits;
        m.waited_us = 50000 * (i + 1);
        rank_say(&w.ranks[0], &(struct msg_rank){ MSG_HEARTBEAT, .heartbeat = m });
        heartbeat(&w.ranks[1], "step", 9, 70, 0);
        settle_ms(&w, 50);
    }
    assert_int_equal(w.states[1], COORD_FAILED);
    const char *why = coord_failure(w.coord, &code);
    assert_non_null(strstr(why, "rank 1 (host here, pid 101) has been stuck for 0."));
    assert_non_null(strstr(why,
                           "; rank 1 (host here) does not wait (phase \"step\", step 9), and 1 "
                           "of 2 ranks wait for it"));
    world_close(&w);
}

static void test_detect__two_that_wait_for_each_other_name_their_link(void **state UNUSED)
{
    struct world w;
    status code = ST_OK;

    open_pair(&w, 400);
    for (uint32_t i = 0; i < 40 && w.n_states < 2; i++) {
        for (uint32_t k = 0; k < 2; k++) {
            const struct msg_heartbeat m = { .phase = "step",
                                             .step = 8,
                                             .running = 2,
                                             .op = COLL_OP_SUM,
                                             .op_seq = 812,
                                             .op_peer = 2 - k,
                                             .waited_us = 50000 * (i + 1) };
            rank_say(&w.ranks[k], &(struct msg_rank){ MSG_HEARTBEAT, .heartbeat = m });
        }
        settle_ms(&w, 50);
    }
    assert_int_equal(w.states[1], COORD_FAILED);
    const char *why = coord_failure(w.coord, &code);
    assert_non_null(strstr(why, "at step 8: the link between rank 0 (host here) and rank 1 (host "
                                "here) carries nothing"));
    world_close(&w);
}

/* Its heartbeats say that it has nothing to do, because it never takes what it is sent. */
static void test_detect__a_leader_that_takes_no_streams_is_stuck(void **state UNUSED)
{
    struct world w;
    struct client c;
    status code = ST_OK;

    open_pair(&w, 400);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    for (uint32_t i = 0; i < 60 && w.n_states < 2; i++) {
        heartbeat(&w.ranks[0], "idle", 5, 30, 0);
        heartbeat(&w.ranks[1], "idle", 5, 30, 0);
        settle_ms(&w, 50);
    }
    assert_int_equal(w.n_states, 2);
    assert_int_equal(w.states[1], COORD_FAILED);
    assert_non_null(strstr(coord_failure(w.coord, &code), "while 1 streams wait"));
    await(&w, &c.is_done);
    world_close(&w);
}

/* While one serves, the coordinator judges the first start of the others. */
static void test_detect__a_first_start_that_hangs_is_overdue(void **state UNUSED)
{
    const struct coord_config more = {
        .n_replicas = 2, .restarts = 2, .start_ns = 300 * NS_PER_MS, .on_lost = on_lost
    };
    struct world w;

    world_open_as(&w, 1, &more);
    settle_ms(&w, 600);
    assert_int_equal(w.n_lost, 0); /* nobody serves yet: whoever started them looks */
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_lost, 1);
    assert_int_equal(w.last_lost, 1);
    assert_int_equal(w.last_delay_ns, NS_PER_S);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    world_close(&w);
}

static void test_detect__idle_ranks_are_left_alone(void **state UNUSED)
{
    struct world w;

    open_pair(&w, 300);
    for (uint32_t i = 0; i < 16; i++) {
        heartbeat(&w.ranks[0], "idle", 5, 30, 0);
        heartbeat(&w.ranks[1], "idle", 5, 30, 0);
        settle_ms(&w, 50);
    }
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route__streams_go_where_the_load_is_least),
        cmocka_unit_test(test_route__streams_go_where_their_beginning_is_kept),
        cmocka_unit_test(test_route__a_kept_beginning_overloads_nobody),
        cmocka_unit_test(test_failover__a_stream_goes_on_where_it_was),
        cmocka_unit_test(test_failover__with_no_replica_streams_wait_for_the_restart),
        cmocka_unit_test(test_failover__a_request_is_moved_so_often_and_no_more),
        cmocka_unit_test(test_failover__a_stream_that_only_waited_is_spared),
        cmocka_unit_test(test_failover__choices_that_are_let_go_count_nowhere),
        cmocka_unit_test(test_failover__a_lost_generation_never_comes_back),
        cmocka_unit_test(test_failover__other_weights_are_refused),
        cmocka_unit_test(test_failover__it_ends_when_nothing_can_be_started_again),
        cmocka_unit_test(test_detect__a_silent_rank_is_named),
        cmocka_unit_test(test_detect__a_quiet_rank_is_named_before_one_that_breaks),
        cmocka_unit_test(test_detect__a_stuck_rank_is_named),
        cmocka_unit_test(test_detect__a_stuck_rank_is_the_one_that_others_wait_for),
        cmocka_unit_test(test_detect__two_that_wait_for_each_other_name_their_link),
        cmocka_unit_test(test_detect__a_leader_that_takes_no_streams_is_stuck),
        cmocka_unit_test(test_detect__a_first_start_that_hangs_is_overdue),
        cmocka_unit_test(test_detect__idle_ranks_are_left_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
