/* tests/unit/cluster/test_rpc_storm.c - many calls that end in every way at any moment, by seed.
 *
 * What must hold whatever happens: on_done once per call on either side, no callback after it, and
 * nothing left when all is destroyed (rpc_loop_destroy asserts that, the sanitizer the memory). */
#include "unit/cluster/rpc_fixture.h"

#include <pthread.h>

enum { CALLS = 400, AT_ONCE = 40, SERVER_CALLS_MAX = 32, STORMS = 3, STORMS_MAX = 40 };

struct storm_call {
    struct rpc_call *call; /* NULL: over */
    struct rpc_timer timer;
    uint32_t n_done, left;
};

static struct storm {
    struct fixture f;
    uint32_t seed, n_started, n_over, n_open, n_server_open;
    uint32_t outcomes[64]; /* by -status */
    struct storm_call calls[CALLS];
} s;

static uint32_t rnd(uint32_t n)
{
    s.seed = s.seed * 1664525u + 1013904223u;
    return (s.seed >> 8) % n;
}

/* Whatever a user may do with a call, at random. */
static void mess_with(struct rpc_call *call, bool server, bool unary)
{
    char data[3000];

    memset(data, 'm', sizeof(data));
    switch (rnd(8)) {
    case 0:
        rpc_call_cancel(call);
        break;
    case 1:
        if (server) {
            rpc_call_finish(call, rnd(2) == 0 ? ST_OK : ST_ERR_NOT_FOUND, "by chance");
        }
        break;
    case 2:
        if (server && unary) {
            rpc_call_reply(call, data, rnd(sizeof(data)));
        }
        break;
    default:
        for (uint32_t n = server && unary ? 0 : rnd(20); n > 0; n--) {
            (void)rpc_call_send(call, data, rnd(sizeof(data)));
        }
        break;
    }
}

static void server_request(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    (void)arg;
    (void)data;
    (void)len;
    s.n_server_open++;
    rpc_call_set_user(call, &s);
    mess_with(call, true, false);
    if (rnd(3) == 0) {
        rpc_call_finish(call, ST_OK, NULL);
    }
}

static void server_unary(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    (void)arg;
    (void)data;
    (void)len;
    s.n_server_open++;
    rpc_call_set_user(call, &s);
    mess_with(call, true, true);
    if (rnd(2) == 0) {
        rpc_call_reply(call, "late", 4);
    }
}

static void server_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    (void)arg;
    (void)len;
    assert_ptr_equal(rpc_call_user(call), &s);
    if (data == NULL) {
        rpc_call_finish(call, ST_OK, NULL);
        return;
    }
    mess_with(call, true, false);
}

static void server_writable(void *arg, struct rpc_call *call)
{
    server_message(arg, call, "", 0);
}

static void server_over(void *arg, struct rpc_call *call, bool cancelled)
{
    (void)arg;
    (void)cancelled;
    assert_ptr_equal(rpc_call_user(call), &s);
    rpc_call_set_user(call, NULL);
    s.n_server_open--;
}

static const struct rpc_method storm_methods[] = {
    { "/s/Unary", RPC_UNARY, server_unary, NULL, NULL, server_over, false },
    { "/s/Stream", RPC_SERVER_STREAM, server_request, NULL, server_writable, server_over, false },
    { "/s/Bidi", RPC_BIDI, server_request, server_message, server_writable, server_over, false },
};

static void storm_start(void);

static void storm_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct storm_call *c = arg;

    (void)data;
    (void)len;
    assert_int_equal(c->n_done, 0);
    assert_ptr_equal(c->call, call);
    if (c->left > 0 && --c->left == 0) {
        rpc_call_cancel(call);
    }
}

static void storm_done(void *arg, struct rpc_call *call, status st, const char *text)
{
    struct storm_call *c = arg;

    (void)call;
    assert_non_null(text);
    assert_int_equal(++c->n_done, 1);
    c->call = NULL;
    assert_int_equal(rpc_timer_set(s.f.loop, &c->timer, CLOCK_NEVER), ST_OK);
    s.outcomes[-st & 63]++;
    s.n_open--;
    s.n_over++;
    if (s.n_over == CALLS) {
        rpc_loop_stop(s.f.loop);
    }
    storm_start();
}

static void storm_tick(void *arg)
{
    struct storm_call *c = arg;

    if (rnd(3) == 0) {
        rpc_call_cancel(c->call);
    } else {
        assert_int_equal(rpc_timer_set(s.f.loop, &c->timer, in_ms(rnd(10))), ST_OK);
    }
}

static void storm_bidi_tick(void *arg)
{
    struct storm_call *c = arg;

    if (rnd(4) == 0) {
        rpc_call_half_close(c->call);
    }
    mess_with(c->call, false, false);
    assert_int_equal(rpc_timer_set(s.f.loop, &c->timer, in_ms(rnd(10))), ST_OK);
}

static const struct rpc_client storm_client = { storm_message, NULL, storm_done };

static void storm_start(void)
{
    while (s.n_open < AT_ONCE && s.n_started < CALLS) {
        struct storm_call *c = &s.calls[s.n_started++];
        const uint32_t i_method = rnd(4);
        const struct rpc_call_config config = {
            .path = i_method == 3 ? "/s/None" : storm_methods[i_method].path,
            .kind = i_method == 3 ? RPC_UNARY : storm_methods[i_method].kind,
            .data = "x",
            .len = 1,
            .deadline_ns = rnd(4) == 0 ? in_ms(rnd(20)) : in_ms(5000),
            .client = &storm_client,
            .arg = c
        };

        c->left = rnd(50);
        c->timer.fn = config.kind == RPC_BIDI ? storm_bidi_tick : storm_tick;
        c->timer.arg = c;
        s.n_open++;
        assert_int_equal(rpc_call_start(s.f.channel, &config, &c->call, NULL), ST_OK);
        assert_int_equal(rpc_timer_set(s.f.loop, &c->timer, in_ms(rnd(10))), ST_OK);
        if (rnd(10) == 0) {
            rpc_call_cancel(c->call); /* before it went anywhere */
        }
    }
}

static void storm_open(uint32_t seed)
{
    const struct rpc_server_config config = { .listen = "127.0.0.1:0",
                                              .methods = storm_methods,
                                              .n_methods = 3,
                                              .send_queue_max = 8,
                                              .calls_max = SERVER_CALLS_MAX };
    const struct rpc_channel_config channel = { .send_queue_max = 4 };

    memset(&s, 0, sizeof(s));
    s.seed = seed;
    fixture_loop(&s.f);
    assert_int_equal(rpc_server_create(s.f.loop, &config, &s.f.server, NULL), ST_OK);
    snprintf(s.f.target, sizeof(s.f.target), "127.0.0.1:%u", rpc_server_port(s.f.server));
    fixture_channel(&s.f, &channel);
}

static const status shores[] = { ST_OK, ST_ERR_CANCELLED, ST_ERR_UNSUPPORTED, ST_ERR_NOT_FOUND,
                                 ST_ERR_DEADLINE };

/* The shores that no storm has reached yet. */
static uint32_t unreached(const uint32_t *reached)
{
    uint32_t n = 0;

    for (size_t i = 0; i < ARRAY_LEN(shores); i++) {
        n += reached[-shores[i]] == 0;
    }
    return n;
}

/* Which ends occur is a matter of time: on a loaded machine most calls of a storm may be cancelled
 * before the server gets to answer. Hence up to STORMS_MAX of them, until every end was seen. */
static void test_rpc_storm__every_call_ends_once(void **state)
{
    uint32_t reached[ARRAY_LEN(s.outcomes)] = { 0 };

    (void)state;
    for (uint32_t seed = 1; seed <= STORMS || (unreached(reached) > 0 && seed <= STORMS_MAX);
         seed++) {
        storm_open(seed);
        storm_start();
        rpc_loop_run(s.f.loop);
        fixture_close(&s.f);
        assert_int_equal(s.n_over, CALLS);
        assert_int_equal(s.n_server_open, 0);
        for (uint32_t i = 0; i < CALLS; i++) {
            assert_int_equal(s.calls[i].n_done, 1);
        }
        for (size_t i = 0; i < ARRAY_LEN(reached); i++) {
            reached[i] += s.outcomes[i];
        }
    }
    assert_int_equal(unreached(reached), 0);
}

static void test_rpc_storm__teardown_in_the_middle_ends_everything(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 20; seed++) {
        struct rpc_server *server;

        storm_open(seed);
        s.n_started = CALLS - AT_ONCE;
        storm_start();
        for (uint32_t i = 0; i < 1 + seed * 3; i++) { /* a few events each */
            rpc_loop_stop(s.f.loop);
            rpc_loop_run(s.f.loop);
        }
        server = s.f.server;
        if (seed % 2 == 0) {
            rpc_server_destroy(server);
            s.f.server = NULL;
        }
        fixture_close(&s.f);
        assert_int_equal(s.n_open, 0);
        assert_int_equal(s.n_server_open, 0);
    }
}

/* ---- two loops, two threads ---- */

static void *server_thread(void *arg)
{
    rpc_loop_run(arg);
    return NULL;
}

enum { ROUNDS = 300 };

static void round_done(void *arg, struct rpc_call *call, status st, const char *text)
{
    struct fixture *f = arg;

    f->stop_on_server_done = true; /* client_done then leaves the loop alone */
    client_done(arg, call, st, text);
    if (st != ST_OK || f->n_client_done == ROUNDS) {
        rpc_loop_stop(f->loop);
        return;
    }
    {
        static const struct rpc_client again = { client_message, NULL, round_done };
        const struct rpc_call_config config = { .path = "/t/Echo",
                                                .kind = RPC_UNARY,
                                                .data = "x",
                                                .len = 1,
                                                .deadline_ns = CLOCK_NEVER,
                                                .client = &again,
                                                .arg = f };
        struct rpc_call *next;

        assert_int_equal(rpc_call_start(f->channel, &config, &next, NULL), ST_OK);
    }
}

static void test_rpc_storm__two_loops_of_one_process_talk(void **state)
{
    struct fixture server, caller;
    struct rpc_call_config config = { .path = "/t/Echo", .deadline_ns = CLOCK_NEVER };
    static const struct rpc_client first = { client_message, NULL, round_done };
    struct rpc_call *call;
    pthread_t thread;

    (void)state;
    fixture_loop(&server);
    fixture_server(&server, NULL);
    fixture_loop(&caller);
    snprintf(caller.target, sizeof(caller.target), "%s", server.target);
    fixture_channel(&caller, NULL);
    assert_int_equal(pthread_create(&thread, NULL, server_thread, server.loop), 0);
    config.client = &first;
    config.arg = &caller;
    assert_int_equal(rpc_call_start(caller.channel, &config, &call, NULL), ST_OK);
    rpc_loop_run(caller.loop);
    assert_int_equal(caller.st, ST_OK);
    assert_int_equal(caller.n_messages, ROUNDS);
    rpc_loop_stop(server.loop);
    pthread_join(thread, NULL);
    fixture_close(&caller);
    fixture_close(&server);
    assert_int_equal(server.n_done, ROUNDS);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc_storm__every_call_ends_once),
        cmocka_unit_test(test_rpc_storm__teardown_in_the_middle_ends_everything),
        cmocka_unit_test(test_rpc_storm__two_loops_of_one_process_talk),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
