/* tests/unit/cluster/test_rpc_reflect.c - the index over a descriptor set, and its answers.
 *
 * The set is written by hand, so that the expected answers can be, too:
 *   a.proto  package p, imports b.proto, message M { message N }, service S { method Do }
 *   b.proto  no package, enum E */
#include "cluster/rpc_reflect.h"

#include "unit/cluster/rpc_fixture.h"

#define N_FIELD "\x0a\x01N"
#define M_BODY  "\x0a\x01M\x1a\x03" N_FIELD /* name M, nested N: 8 bytes */
#define S_BODY                                                                                     \
    "\x0a\x01S\x12\x04\x0a\x02"                                                                    \
    "Do" /* name S, method Do: 9 bytes */
#define FILE_A                                                                                     \
    "\x0a\x07"                                                                                     \
    "a.proto"                                                                                      \
    "\x12\x01p"                                                                                    \
    "\x1a\x07"                                                                                     \
    "b.proto"                                                                                      \
    "\x22\x08" M_BODY "\x32\x09" S_BODY
#define FILE_B                                                                                     \
    "\x0a\x07"                                                                                     \
    "b.proto"                                                                                      \
    "\x2a\x03\x0a\x01"                                                                             \
    "E"
/* 9 + 3 + 9 + 10 + 11 = 42 bytes, 9 + 5 = 14 bytes */
#define SET "\x0a\x2a" FILE_A "\x0a\x0e" FILE_B

static const char set[] = SET;

static struct rpc_reflect *reflect_open(void)
{
    struct rpc_reflect *r = NULL;
    struct err err = ERR_INIT;

    if (rpc_reflect_create(set, sizeof(set) - 1, &r, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    return r;
}

/* `tail` is the answer after the echoed host and request. */
static void expect(const struct rpc_reflect *r, const char *request, size_t request_len,
                   const char *tail, size_t tail_len)
{
    struct buf answer = BUF_INIT;
    const size_t head_len = 2 + 2 + request_len;

    assert_int_equal(rpc_reflect_answer(r, request, request_len, &answer, NULL), ST_OK);
    assert_int_equal(answer.len, head_len + tail_len);
    assert_memory_equal(answer.data, "\x0a\x00\x12", 3);
    assert_int_equal(answer.data[3], (char)request_len);
    assert_memory_equal(answer.data + 4, request, request_len);
    assert_memory_equal(answer.data + head_len, tail, tail_len);
    buf_fini(&answer);
}

#define EXPECT(r, request, tail)                                                                   \
    expect((r), (request), sizeof(request) - 1, (tail), sizeof(tail) - 1)

static void test_rpc_reflect__services_are_listed(void **state)
{
    struct rpc_reflect *r = reflect_open();

    (void)state;
    EXPECT(r, "\x3a\x00", "\x32\x07\x0a\x05\x0a\x03p.S");
    rpc_reflect_destroy(r);
}

static void test_rpc_reflect__file_comes_with_its_imports(void **state)
{
    static const char both[] = "\x22\x3c" SET; /* 44 + 16 bytes: the same framing as the set's */
    struct rpc_reflect *r = reflect_open();

    (void)state;
    EXPECT(r,
           "\x1a\x07"
           "a.proto",
           both);
    EXPECT(r, "\x22\x03p.S", both);
    EXPECT(r, "\x22\x06p.S.Do", both);
    EXPECT(r, "\x22\x03p.M", both);
    EXPECT(r, "\x22\x05p.M.N", both);
    EXPECT(r,
           "\x22\x01"
           "E",
           "\x22\x10\x0a\x0e" FILE_B);
    rpc_reflect_destroy(r);
}

static void test_rpc_reflect__what_is_unknown_is_an_answer(void **state)
{
    struct rpc_reflect *r = reflect_open();

    (void)state;
    EXPECT(r, "\x22\x01x", "\x3a\x15\x08\x05\x12\x11no such symbol: x");
    EXPECT(r, "\x1a\x01x", "\x3a\x13\x08\x05\x12\x0fno such file: x");
    EXPECT(r,
           "\x32\x01"
           "E",
           "\x2a\x03\x0a\x01"
           "E");
    rpc_reflect_destroy(r);
}

static void test_rpc_reflect__broken_bytes_are_refused(void **state)
{
    struct rpc_reflect *r = reflect_open();
    struct buf answer = BUF_INIT;
    struct err err = ERR_INIT;
    size_t n_ok = 0;

    (void)state;
    assert_int_equal(rpc_reflect_answer(r, "\x22\x05p", 3, &answer, &err), ST_ERR_FORMAT);
    assert_int_equal(rpc_reflect_answer(r, "\x23", 1, &answer, &err), ST_ERR_FORMAT);
    buf_fini(&answer);
    rpc_reflect_destroy(r);
    for (size_t len = 0; len < sizeof(set) - 1; len++) {
        char *copy = malloc(len == 0 ? 1 : len); /* its end is guarded by the sanitizer */

        memcpy(copy, set, len);
        r = NULL;
        n_ok += rpc_reflect_create(copy, len, &r, &err) == ST_OK;
        rpc_reflect_destroy(r);
        free(copy);
    }
    assert_int_equal(n_ok, 1); /* the first file alone is a set */
}

/* ---- over the wire ---- */

static struct rpc_reflect *served;

static void reflect_opened(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    (void)arg;
    (void)call;
    (void)data;
    (void)len;
}

static void reflect_asked(void *arg, struct rpc_call *call, const void *data, size_t len)
{
    (void)arg;
    rpc_reflect_message(served, call, data, len);
}

static void test_rpc_reflect__is_served_as_a_bidi_method(void **state)
{
    static const struct rpc_method table[] = {
        { RPC_REFLECT_PATH_V1, RPC_BIDI, reflect_opened, reflect_asked, NULL, NULL, false },
    };
    struct rpc_server_config config = { .listen = "127.0.0.1:0", .methods = table, .n_methods = 1 };
    struct rpc_call *call;
    struct fixture f;

    (void)state;
    served = reflect_open();
    fixture_loop(&f);
    assert_int_equal(rpc_server_create(f.loop, &config, &f.server, NULL), ST_OK);
    snprintf(f.target, sizeof(f.target), "127.0.0.1:%u", rpc_server_port(f.server));
    fixture_channel(&f, NULL);
    call = call_start(&f, RPC_REFLECT_PATH_V1, RPC_BIDI, "\x3a\x00", 2, CLOCK_NEVER);
    assert_int_equal(rpc_call_send(call,
                                   "\x22\x01"
                                   "E",
                                   3),
                     ST_OK);
    rpc_call_half_close(call);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_OK);
    assert_int_equal(f.n_messages, 2);

    call_start(&f, RPC_REFLECT_PATH_V1, RPC_BIDI, "\xff", 1, CLOCK_NEVER);
    rpc_loop_run(f.loop);
    assert_int_equal(f.st, ST_ERR_ARG);
    fixture_close(&f);
    rpc_reflect_destroy(served);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc_reflect__services_are_listed),
        cmocka_unit_test(test_rpc_reflect__file_comes_with_its_imports),
        cmocka_unit_test(test_rpc_reflect__what_is_unknown_is_an_answer),
        cmocka_unit_test(test_rpc_reflect__broken_bytes_are_refused),
        cmocka_unit_test(test_rpc_reflect__is_served_as_a_bidi_method),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
