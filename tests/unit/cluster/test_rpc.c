/* tests/unit/cluster/test_rpc.c - calls of all kinds, between a server and a client on one loop. */
#include "unit/cluster/rpc_fixture.h"

static void test_rpc__unary_call_is_echoed(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Echo", RPC_UNARY, "hello", 5, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_messages, 1);
    assert_memory_equal(f.last, "hello", 5);
    assert_int_equal(f.n_client_done, 1);
    assert_true(f.deadline_ns == CLOCK_NEVER);
    assert_int_equal(strncmp(f.peer, "ipv4:127.0.0.1:", 15), 0);
    fixture_close(&f);
    assert_int_equal(f.n_done, 1);
    assert_int_equal(f.n_cancelled, 0);
}

static void test_rpc__empty_message_is_a_message(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Echo", RPC_UNARY, NULL, 0, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_messages, 1);
    assert_int_equal(f.bytes, 0);
    fixture_close(&f);
}

static void test_rpc__large_message_arrives_whole(void **state)
{
    const size_t len = 3 << 20;
    char *data = calloc(1, len);
    struct fixture f;

    (void)state;
    fixture_open(&f);
    memset(data, 'x', len);
    call_start(&f, "/t/Echo", RPC_UNARY, data, len, CLOCK_NEVER);
    free(data); /* the call has its copy */
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.bytes, len);
    fixture_close(&f);
}

static uint32_t i_expected;

static void counted_message(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;

    (void)call;
    assert_int_equal(len, sizeof(i_expected));
    assert_memory_equal(data, &i_expected, len);
    i_expected++;
    f->n_messages++;
}

static void test_rpc__long_stream_waits_for_its_reader(void **state)
{
    static const struct rpc_client counting = { counted_message, NULL, client_done };
    struct rpc_server_config config = { .listen = "127.0.0.1:0", .send_queue_max = 16 };
    struct rpc_call_config call = { .path = "/t/Stream",
                                    .kind = RPC_SERVER_STREAM,
                                    .deadline_ns = CLOCK_NEVER,
                                    .client = &counting };
    struct rpc_call *started;
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, &config);
    fixture_channel(&f, NULL);
    call.arg = &f;
    i_expected = 0;
    assert_int_equal(rpc_call_start(f.channel, &call, &started, NULL), ST_OK);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_messages, STREAM_MESSAGES);
    assert_true(f.n_busy > 100);
    /* Each answer of "busy" is followed by one of "writable". */
    assert_int_equal(f.n_writable, f.n_busy);
    fixture_close(&f);
}

static void flood(void *arg, struct rpc_call *call)
{
    struct fixture *f = arg;

    for (; f->i_stream < STREAM_MESSAGES; f->i_stream++) {
        const status st = rpc_call_send(call, &f->i_stream, sizeof(f->i_stream));

        if (st == ST_BUSY) {
            f->n_busy++;
            return;
        }
        assert_int_equal(st, ST_OK);
    }
    rpc_call_half_close(call);
    assert_int_equal(rpc_call_send(call, "x", 1), ST_ERR_PEER);
}

static void flood_writable(void *arg, struct rpc_call *call)
{
    struct fixture *f = arg;

    f->n_writable++;
    flood(arg, call);
}

static void test_rpc__client_that_floods_is_held_back(void **state)
{
    static const struct rpc_client flooder = { client_message, flood_writable, client_done };
    const struct rpc_channel_config channel = { .send_queue_max = 8 };
    struct rpc_call_config config = {
        .path = "/t/Sink", .kind = RPC_BIDI, .deadline_ns = CLOCK_NEVER, .client = &flooder
    };
    struct rpc_call *call;
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, NULL);
    fixture_channel(&f, &channel);
    config.arg = &f;
    assert_int_equal(rpc_call_start(f.channel, &config, &call, NULL), ST_OK);
    flood(&f, call);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_sunk, STREAM_MESSAGES);
    assert_true(f.n_busy > 100);
    assert_int_equal(f.n_writable, f.n_busy);
    fixture_close(&f);
}

enum { PINGS = 500 };

static void pong(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    struct fixture *f = arg;
    char text[32];

    snprintf(text, sizeof(text), "ping %u", f->n_messages);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(data, text, len);
    if (++f->n_messages == PINGS) {
        rpc_call_half_close(call);
        return;
    }
    snprintf(text, sizeof(text), "ping %u", f->n_messages);
    assert_int_equal(rpc_call_send(call, text, strlen(text)), ST_OK);
}

static void test_rpc__bidi_goes_back_and_forth_until_half_close(void **state)
{
    static const struct rpc_client pinger = { pong, NULL, client_done };
    struct rpc_call_config config = {
        .path = "/t/Ping", .kind = RPC_BIDI, .deadline_ns = CLOCK_NEVER, .client = &pinger
    };
    struct rpc_call *call;
    struct fixture f;

    (void)state;
    fixture_open(&f);
    config.arg = &f;
    assert_int_equal(rpc_call_start(f.channel, &config, &call, NULL), ST_OK);
    assert_int_equal(rpc_call_send(call, "ping 0", 6), ST_OK);
    rpc_call_set_user(call, &f);
    assert_ptr_equal(rpc_call_user(call), &f);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_messages, PINGS);
    assert_true(f.half_closed);
    fixture_close(&f);
    assert_int_equal(f.n_cancelled, 0);
}

static void test_rpc__bidi_opens_without_a_message(void **state)
{
    struct fixture f;
    struct rpc_call *call;

    (void)state;
    fixture_open(&f);
    call = call_start(&f, "/t/Ping", RPC_BIDI, NULL, 0, CLOCK_NEVER);
    rpc_call_half_close(call);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_messages, 0);
    assert_int_equal(f.n_requests, 1);
    fixture_close(&f);
}

static void test_rpc__failure_arrives_after_what_was_sent(void **state)
{
    static const char text[] = "r\xc3\xa9sum\xc3\xa9: 7 of 3 \xe2\x82\xac";
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Fail", RPC_SERVER_STREAM, text, strlen(text), CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_DENIED);
    assert_string_equal(f.text, text);
    assert_int_equal(f.n_messages, 2);
    assert_memory_equal(f.last, "two", 3);
    fixture_close(&f);
}

static void test_rpc__long_failure_text_is_cut_between_characters(void **state)
{
    char text[3001];
    struct fixture f;

    (void)state;
    for (size_t i = 0; i + 3 < sizeof(text); i += 3) {
        memcpy(text + i, "\xe2\x82\xac", 3);
    }
    fixture_open(&f);
    call_start(&f, "/t/Fail", RPC_SERVER_STREAM, text, 3000, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_DENIED);
    assert_int_equal(strlen(f.text), 1023); /* 341 characters of three bytes */
    fixture_close(&f);
}

static void test_rpc__unknown_method_is_unsupported(void **state)
{
    struct fixture f;

    (void)state;
    fixture_open(&f);
    call_start(&f, "/t/Nothing", RPC_UNARY, "x", 1, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_UNSUPPORTED);
    assert_non_null(strstr(f.text, "/t/Nothing"));
    fixture_close(&f);
    assert_int_equal(f.n_done, 0); /* no callback sees it */
}

static void test_rpc__message_over_the_limit_is_refused(void **state)
{
    struct rpc_server_config config = { .listen = "127.0.0.1:0", .message_bytes_max = 1000 };
    struct rpc_channel_config small = { .message_bytes_max = 100 };
    struct rpc_call_config call = { .path = "/t/Echo", .kind = RPC_UNARY, .client = &client };
    struct rpc_call *started = NULL;
    struct err err = ERR_INIT;
    char data[2000] = "";
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, &config);
    fixture_channel(&f, NULL);
    call_start(&f, "/t/Echo", RPC_UNARY, data, 1000, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    call_start(&f, "/t/Echo", RPC_UNARY, data, 1001, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_LIMIT);
    assert_int_equal(f.n_requests, 1);
    rpc_channel_destroy(f.channel);

    /* Our own side refuses before anything is sent, and an answer too large to take. */
    fixture_channel(&f, &small);
    call.data = data;
    call.len = 101;
    assert_int_equal(rpc_call_start(f.channel, &call, &started, &err), ST_ERR_LIMIT);
    assert_non_null(strstr(err.text, "101"));
    call_start(&f, "/t/Fail", RPC_SERVER_STREAM, data, 1, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_DENIED);
    fixture_close(&f);
}

static void test_rpc__codes_map_there_and_back(void **state)
{
    static const status same[] = { ST_OK,           ST_ERR_ARG,         ST_ERR_LIMIT,
                                   ST_ERR_DEADLINE, ST_ERR_CANCELLED,   ST_ERR_UNAVAILABLE,
                                   ST_ERR_UNAUTH,   ST_ERR_DENIED,      ST_ERR_NOT_FOUND,
                                   ST_ERR_EXISTS,   ST_ERR_UNSUPPORTED, ST_ERR_MISMATCH,
                                   ST_ERR_INTERNAL };

    (void)state;
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        assert_int_equal(rpc_status(rpc_code(same[i])), same[i]);
    }
    assert_string_equal(rpc_code_name(rpc_code(ST_ERR_FORMAT)), "INVALID_ARGUMENT");
    assert_string_equal(rpc_code_name(rpc_code(ST_ERR_NOMEM)), "RESOURCE_EXHAUSTED");
    assert_string_equal(rpc_code_name(rpc_code(ST_ERR_PEER)), "UNAVAILABLE");
    assert_string_equal(rpc_code_name(rpc_code(ST_ERR_MISMATCH)), "FAILED_PRECONDITION");
    assert_int_equal(rpc_status(-1), ST_ERR_PROTO);
    assert_int_equal(rpc_status(17), ST_ERR_PROTO);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc__unary_call_is_echoed),
        cmocka_unit_test(test_rpc__empty_message_is_a_message),
        cmocka_unit_test(test_rpc__large_message_arrives_whole),
        cmocka_unit_test(test_rpc__long_stream_waits_for_its_reader),
        cmocka_unit_test(test_rpc__client_that_floods_is_held_back),
        cmocka_unit_test(test_rpc__bidi_goes_back_and_forth_until_half_close),
        cmocka_unit_test(test_rpc__bidi_opens_without_a_message),
        cmocka_unit_test(test_rpc__failure_arrives_after_what_was_sent),
        cmocka_unit_test(test_rpc__long_failure_text_is_cut_between_characters),
        cmocka_unit_test(test_rpc__unknown_method_is_unsupported),
        cmocka_unit_test(test_rpc__message_over_the_limit_is_refused),
        cmocka_unit_test(test_rpc__codes_map_there_and_back),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
