/* Draining a replica (coord_world.h): who takes streams meanwhile, what moves and when, what is
 * refused, and what a loss during a drain does. */
#include "unit/coordinator/coord_world.h"

struct operator_call {
    struct rpc_call *call;
    char states[256]; /* "draining drained ..." */
    bool is_done;
    status st;
    char error[1100];
};

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct world *w = arg;

    w->n_lost++;
    w->last_lost = replica;
    w->last_delay_ns = delay_ns;
}

static void open_two(struct world *w)
{
    const struct coord_config more = { .n_replicas = 2, .restarts = 5, .on_lost = on_lost };

    world_open_as(w, 1, &more);
    rank_ready(rank_attach(w, 0));
    await_count(w, &w->n_states, 1);
    rank_ready(rank_attach(w, 1));
    await_count(w, &w->ranks[1].n_welcomes, 1);
    settle_ms(w, 20);
}

static void on_progress(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct operator_call *o = arg;
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;
    struct msg_drain_progress m;

    if (data != NULL) {
        const size_t used = strlen(o->states);
        assert_int_equal(msg_drain_progress_unpack(data, len, &arena, &m, &err), ST_OK);
        const char *last = strstr(o->states, m.state); /* once each: other lines count streams */
        if (last == NULL) {
            snprintf(o->states + used, sizeof(o->states) - used, "%s ", m.state);
        }
    }
    arena_fini(&arena);
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct operator_call *o = arg;

    o->is_done = true;
    o->st = st;
    snprintf(o->error, sizeof(o->error), "%s", text);
}

/* Over rank 0's channel: it leads to the control port and knows the secret. */
static void drain(struct world *w, struct operator_call *o, uint32_t replica, bool restart,
                  uint64_t grace_us)
{
    static const struct rpc_client client = { on_progress, NULL, on_done };
    const struct msg_drain m = { replica, restart, grace_us };
    struct buf bytes = BUF_INIT;
    struct err err = ERR_INIT;

    memset(o, 0, sizeof(*o));
    assert_int_equal(msg_drain_pack(&m, &bytes), ST_OK);
    const struct rpc_call_config call = { .path = "/gantry.control.v1.Control/Drain",
                                          .kind = RPC_SERVER_STREAM,
                                          .data = bytes.data,
                                          .len = bytes.len,
                                          .deadline_ns = CLOCK_NEVER,
                                          .wait_ready = true,
                                          .client = &client,
                                          .arg = o };
    assert_int_equal(rpc_call_start(w->ranks[0].channel, &call, &o->call, &err), ST_OK);
    buf_fini(&bytes);
}

#define WAITING REQ("wait", .has_max_tokens = true, .max_tokens = 4)
enum { LONG_US = 60 * 1000 * 1000 };

static void test_drain__streams_may_end_where_they_are(void **state UNUSED)
{
    struct world w;
    struct client c, next;
    struct operator_call o;

    open_two(&w);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    drain(&w, &o, 0, false, LONG_US);
    settle_ms(&w, 300);
    assert_string_equal(o.states, "draining ");
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    ask(&w, &next, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1); /* although replica 0 has less to do than both */
    assert_int_equal(w.ranks[0].n_stops, 0);
    for (uint32_t i = 0; i < 4; i++) {
        rank_token(&w.ranks[0], &w.ranks[0].last, i, 'x');
    }
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "xxxx");
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_OK);
    assert_string_equal(o.states, "draining drained ");
    assert_int_equal(w.ranks[0].n_stops, 1);
    assert_int_equal(w.n_lost, 1); /* its job is ended, and not started again */
    assert_true(w.last_lost == 0 && w.last_delay_ns == CLOCK_NEVER);
    world_close(&w);
}

static void test_drain__after_the_grace_streams_move_and_nobody_counts_it(void **state UNUSED)
{
    struct world w; /* retries 0: one counted move would fail the stream */
    struct client c;
    struct operator_call o;

    open_two(&w);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    rank_token(&w.ranks[0], &w.ranks[0].last, 0, 'g');
    await_count(&w, &c.n_tokens, 1);
    drain(&w, &o, 0, true, 0);
    await_count(&w, &w.ranks[1].n_submits, 1);
    assert_int_equal(w.ranks[1].last.attempt, 2);
    assert_int_equal(w.ranks[1].last.n_emitted, 1);
    await_count(&w, &w.n_lost, 1);
    assert_true(w.last_lost == 0 && w.last_delay_ns == 0);
    assert_false(o.is_done);
    w.ranks[0].hello.generation = coord_replica_restart(w.coord, 0);
    rank_ready(rank_attach(&w, 0));
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_OK);
    assert_non_null(strstr(o.states, "draining drained "));
    assert_non_null(strstr(o.states, " serving "));
    assert_false(c.is_done);
    world_close(&w);
}

static void test_drain__what_makes_no_sense_is_refused(void **state UNUSED)
{
    struct world w;
    struct operator_call o;

    open_two(&w);
    drain(&w, &o, 2, false, 0);
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_ERR_NOT_FOUND);
    drain(&w, &o, 1, false, 0);
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_OK);
    drain(&w, &o, 0, false, 0);
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_ERR_MISMATCH);
    assert_non_null(strstr(o.error, "the only one that serves"));
    drain(&w, &o, 1, false, 0); /* it is down: nothing to do */
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_OK);
    assert_int_equal(w.n_lost, 1);
    world_close(&w);
}

static void test_drain__a_loss_meanwhile_moves_its_streams_and_it_stays_down(void **state UNUSED)
{
    const struct coord_config more = {
        .n_replicas = 2, .retries = 1, .restarts = 5, .on_lost = on_lost
    };
    struct world w;
    struct client c;
    struct operator_call o;

    world_open_as(&w, 1, &more);
    rank_ready(rank_attach(&w, 0));
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &w.n_states, 1);
    settle_ms(&w, 20);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    drain(&w, &o, 0, false, LONG_US);
    settle_ms(&w, 20);
    rpc_call_cancel(w.ranks[0].call);
    await(&w, &w.ranks[0].is_done);
    w.ranks[0].call = NULL;
    await_count(&w, &w.ranks[1].n_submits, 1);
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_OK);
    await_count(&w, &w.n_lost, 1);
    assert_true(w.last_delay_ns == CLOCK_NEVER);
    world_close(&w);
}

static void test_drain__an_ending_service_keeps_the_streams_of_a_draining_replica(
    void **state UNUSED)
{
    struct world w;
    struct client c;
    struct operator_call o;

    open_two(&w);
    ask(&w, &c, WAITING, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    drain(&w, &o, 0, true, LONG_US);
    settle_ms(&w, 20);
    coord_stop(w.coord, 10 * NS_PER_S, on_stopped, &w);
    await(&w, &o.is_done);
    assert_int_equal(o.st, ST_ERR_UNAVAILABLE);
    for (uint32_t i = 0; i < 4; i++) {
        rank_token(&w.ranks[0], &w.ranks[0].last, i, 'x');
    }
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drain__streams_may_end_where_they_are),
        cmocka_unit_test(test_drain__after_the_grace_streams_move_and_nobody_counts_it),
        cmocka_unit_test(test_drain__what_makes_no_sense_is_refused),
        cmocka_unit_test(test_drain__a_loss_meanwhile_moves_its_streams_and_it_stays_down),
        cmocka_unit_test(test_drain__an_ending_service_keeps_the_streams_of_a_draining_replica),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
