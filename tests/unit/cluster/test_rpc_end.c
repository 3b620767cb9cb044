/* tests/unit/cluster/test_rpc_end.c - how calls end before their time: cancel, deadline, shutdown,
 * nobody at the other end. */
#include "unit/cluster/rpc_fixture.h"

/* Poll a condition every millisecond; the loop stops when it holds. */
struct until {
    struct fixture *f;
    struct rpc_timer timer;
    bool (*holds)(const struct fixture *f);
};

static void look(void *arg)
{
    struct until *u = arg;

    if (u->holds(u->f)) {
        rpc_loop_stop(u->f->loop);
    } else {
        assert_int_equal(rpc_timer_set(u->f->loop, &u->timer, in_ms(1)), ST_OK);
    }
}

static void run_until(struct fixture *f, bool (*holds)(const struct fixture *f))
{
    struct until u = { .f = f, .holds = holds };

    f->stop_on_server_done = false;
    u.timer.fn = look;
    u.timer.arg = &u;
    while (!holds(f)) { /* a callback may stop the loop for reasons of its own */
        assert_int_equal(rpc_timer_set(f->loop, &u.timer, in_ms(1)), ST_OK);
        rpc_loop_run(f->loop);
    }
    assert_int_equal(rpc_timer_set(f->loop, &u.timer, CLOCK_NEVER), ST_OK);
}

static bool is_held(const struct fixture *f)
{
    return f->held != NULL;
}

static bool both_done(const struct fixture *f)
{
    return f->n_client_done > 0 && f->n_done > 0;
}

static bool is_down(const struct fixture *f)
{
    return f->down;
}

static void test_rpc__client_cancel_is_seen_by_the_server(void **state)
{
    static const struct {
        const char *path;
        enum rpc_kind kind;
    } held[] = { { "/t/Hold", RPC_SERVER_STREAM },
                 { "/t/HoldUnary", RPC_UNARY },
                 { "/t/HoldBidi", RPC_BIDI } };

    (void)state;
    for (size_t i = 0; i < sizeof(held) / sizeof(held[0]); i++) {
        struct fixture f;
        struct rpc_call *call;

        fixture_open(&f);
        call = call_start(&f, held[i].path, held[i].kind, "x", 1, CLOCK_NEVER);
        run_until(&f, is_held);
        rpc_call_cancel(call);
        assert_int_equal(f.n_client_done, 0); /* never from inside */
        rpc_call_cancel(call);
        run_until(&f, both_done);
        assert_int_equal(f.st, ST_ERR_CANCELLED);
        assert_int_equal(f.n_client_done, 1);
        assert_int_equal(f.n_done, 1);
        assert_int_equal(f.n_cancelled, 1);
        fixture_close(&f);
        assert_int_equal(f.n_done, 1);
    }
}

static void test_rpc__server_cancel_is_seen_by_the_client(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Hold", RPC_SERVER_STREAM, "x", 1, CLOCK_NEVER);
    run_until(&f, is_held);
    rpc_call_cancel(f.held);
    assert_int_equal(rpc_call_send(f.held, "late", 4), ST_ERR_PEER);
    run_until(&f, both_done);
    assert_int_equal(f.st, ST_ERR_CANCELLED);
    assert_int_equal(f.n_cancelled, 1);
    fixture_close(&f);
}

static void test_rpc__deadline_ends_both_sides(void **state)
{
    struct fixture f;
    const uint64_t deadline_ns = in_ms(150);

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Hold", RPC_SERVER_STREAM, "x", 1, deadline_ns);
    run_until(&f, is_held);
    /* Both sides speak of the same instant, the transport rounds up to milliseconds. */
    assert_in_range(f.deadline_ns, deadline_ns - 2 * NS_PER_MS, deadline_ns + 5 * NS_PER_S);
    run_until(&f, both_done);
    assert_int_equal(f.st, ST_ERR_DEADLINE);
    assert_int_equal(f.n_cancelled, 1);
    assert_true(in_ms(0) >= deadline_ns);
    fixture_close(&f);
}

static void test_rpc__deadline_already_past_fails(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Echo", RPC_UNARY, "x", 1, 1);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_DEADLINE);
    fixture_close(&f);
}

static void test_rpc__peer_that_leaves_cancels_its_calls(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Hold", RPC_SERVER_STREAM, "x", 1, CLOCK_NEVER);
    run_until(&f, is_held);
    rpc_channel_destroy(f.channel); /* with its call open: reported from inside */
    f.channel = NULL;
    assert_int_equal(f.n_client_done, 1);
    assert_int_equal(f.st, ST_ERR_CANCELLED);
    run_until(&f, both_done);
    assert_int_equal(f.n_cancelled, 1);
    fixture_close(&f);
}

static void on_down(void *arg)
{
    struct fixture *f = arg;

    f->down = true;
    rpc_loop_stop(f->loop);
}

static void test_rpc__shutdown_waits_for_calls_that_finish(void **state)
{
    struct fixture f;
    uint64_t begin;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/HoldUnary", RPC_UNARY, "x", 1, CLOCK_NEVER);
    run_until(&f, is_held);
    begin = in_ms(0);
    rpc_server_shutdown(f.server, 10 * NS_PER_S, on_down, &f);
    assert_false(f.down);
    rpc_call_reply(f.held, "late but fine", 13);
    run_until(&f, is_down);
    assert_true(in_ms(0) - begin < 5 * NS_PER_S);
    run_until(&f, both_done);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_cancelled, 0);

    /* Nobody listens any more. */
    f.n_client_done = 0;
    call_start(&f, "/t/Echo", RPC_UNARY, "x", 1, in_ms(1000));
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_UNAVAILABLE);
    fixture_close(&f);
}

static void test_rpc__shutdown_cancels_what_outlives_the_grace(void **state)
{
    struct fixture f;
    uint64_t begin;

    (void)state;
    fixture_open(&f);
    for (int i = 0; i < 20; i++) {
        call_start(&f, i % 2 == 0 ? "/t/Hold" : "/t/HoldBidi",
                   i % 2 == 0 ? RPC_SERVER_STREAM : RPC_BIDI, "x", 1, CLOCK_NEVER);
    }
    while (f.n_requests < 20) {
        run_until(&f, is_held);
        f.held = NULL;
    }
    begin = in_ms(0);
    rpc_server_shutdown(f.server, 50 * NS_PER_MS, on_down, &f);
    run_until(&f, is_down);
    assert_in_range(in_ms(0) - begin, 45 * NS_PER_MS, 10 * NS_PER_S);
    assert_int_equal(f.n_done, 20);
    assert_int_equal(f.n_cancelled, 20);
    fixture_close(&f);
    assert_int_equal(f.n_client_done, 20);
}

static void test_rpc__destroy_without_shutdown_ends_what_is_open(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Hold", RPC_SERVER_STREAM, "x", 1, CLOCK_NEVER);
    run_until(&f, is_held);
    rpc_server_destroy(f.server);
    f.server = NULL;
    assert_int_equal(f.n_done, 1);
    assert_int_equal(f.n_cancelled, 1);
    run_until(&f, both_done);
    assert_int_equal(f.st, ST_ERR_UNAVAILABLE);
    fixture_close(&f);
}

static uint16_t dead_port(struct fixture *f)
{
    const uint16_t port = rpc_server_port(f->server);

    rpc_server_destroy(f->server);
    f->server = NULL;
    return port;
}

static void test_rpc__dead_port_fails_quickly(void **state)
{
    struct fixture f;
    uint64_t begin = in_ms(0);

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, NULL);
    (void)dead_port(&f);
    fixture_channel(&f, NULL);
    call_start(&f, "/t/Echo", RPC_UNARY, "x", 1, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_UNAVAILABLE);
    assert_true(f.text[0] != '\0');
    assert_true(in_ms(0) - begin < 5 * NS_PER_S);
    fixture_close(&f);
}

static void test_rpc__wait_ready_waits_until_the_deadline(void **state)
{
    struct rpc_call_config config = {
        .path = "/t/Echo", .kind = RPC_UNARY, .wait_ready = true, .client = &client
    };
    struct rpc_call *call;
    struct fixture f;
    uint64_t begin;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, NULL);
    (void)dead_port(&f);
    fixture_channel(&f, NULL);
    config.arg = &f;
    begin = in_ms(0);
    config.deadline_ns = in_ms(300);
    assert_int_equal(rpc_call_start(f.channel, &config, &call, NULL), ST_OK);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_DEADLINE);
    assert_true(in_ms(0) - begin >= 299 * NS_PER_MS);
    fixture_close(&f);
}

static void restart(void *arg)
{
    struct fixture *f = arg;
    struct rpc_server_config config = { .listen = f->target };

    fixture_server(f, &config);
}

static void test_rpc__wait_ready_finds_a_server_that_comes_late(void **state)
{
    struct rpc_call_config config = { .path = "/t/Echo",
                                      .kind = RPC_UNARY,
                                      .data = "x",
                                      .len = 1,
                                      .wait_ready = true,
                                      .client = &client };
    struct rpc_timer later = { .fn = restart };
    struct rpc_call *call;
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, NULL);
    (void)dead_port(&f);
    fixture_channel(&f, NULL);
    config.arg = later.arg = &f;
    config.deadline_ns = in_ms(5000);
    assert_int_equal(rpc_timer_set(f.loop, &later, in_ms(50)), ST_OK);
    assert_int_equal(rpc_call_start(f.channel, &config, &call, NULL), ST_OK);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    fixture_close(&f);
}

static void done_and_destroy(void *arg, struct rpc_call *call, status st, const char *text)
{
    struct fixture *f = arg;

    client_done(arg, call, st, text);
    rpc_channel_destroy(f->channel);
    f->channel = NULL;
}

static void test_rpc__last_on_done_may_destroy_the_channel(void **state)
{
    static const struct rpc_client leaver = { client_message, NULL, done_and_destroy };
    struct rpc_call_config config = {
        .path = "/t/Echo", .kind = RPC_UNARY, .deadline_ns = CLOCK_NEVER, .client = &leaver
    };
    struct rpc_call *call;
    struct fixture f;

    (void)state;
    fixture_open(&f);
    config.arg = &f;
    assert_int_equal(rpc_call_start(f.channel, &config, &call, NULL), ST_OK);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_null(f.channel);
    fixture_close(&f);
}

/* Cancels in the middle of a stream, from inside on_message. */
static void cancelling_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    client_message(arg, call, data, len);
    rpc_call_cancel(call);
}

static void test_rpc__no_message_after_a_cancel(void **state)
{
    static const struct rpc_client impatient = { cancelling_message, NULL, client_done };
    struct rpc_call_config config = { .path = "/t/Stream",
                                      .kind = RPC_SERVER_STREAM,
                                      .deadline_ns = CLOCK_NEVER,
                                      .client = &impatient };
    struct rpc_call *call;
    struct fixture f;

    (void)state;
    fixture_open(&f);
    config.arg = &f;
    assert_int_equal(rpc_call_start(f.channel, &config, &call, NULL), ST_OK);
    run_until(&f, both_done);
    assert_int_equal(f.st, ST_ERR_CANCELLED);
    assert_int_equal(f.n_messages, 1);
    assert_int_equal(f.n_done, 1); /* cancelled or not: it may have sent all before */
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc__client_cancel_is_seen_by_the_server),
        cmocka_unit_test(test_rpc__server_cancel_is_seen_by_the_client),
        cmocka_unit_test(test_rpc__deadline_ends_both_sides),
        cmocka_unit_test(test_rpc__deadline_already_past_fails),
        cmocka_unit_test(test_rpc__peer_that_leaves_cancels_its_calls),
        cmocka_unit_test(test_rpc__shutdown_waits_for_calls_that_finish),
        cmocka_unit_test(test_rpc__shutdown_cancels_what_outlives_the_grace),
        cmocka_unit_test(test_rpc__destroy_without_shutdown_ends_what_is_open),
        cmocka_unit_test(test_rpc__dead_port_fails_quickly),
        cmocka_unit_test(test_rpc__wait_ready_waits_until_the_deadline),
        cmocka_unit_test(test_rpc__wait_ready_finds_a_server_that_comes_late),
        cmocka_unit_test(test_rpc__last_on_done_may_destroy_the_channel),
        cmocka_unit_test(test_rpc__no_message_after_a_cancel),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
