/* tests/unit/cluster/test_rpc_guard.c - who is let in, and where a server may listen. */
#include "unit/cluster/rpc_fixture.h"

#include "base/buf.h"

#include <unistd.h>

static status call_once(struct fixture *f, const char *path)
{
    f->n_client_done = 0;
    call_start(f, path, RPC_UNARY, "x", 1, in_ms(5000));
    rpc_loop_run(f->loop);
    return f->st;
}

static void test_rpc_guard__token_is_asked_of_every_call(void **state)
{
    static const struct {
        const char *token;
        status echo, open, unknown;
    } rows[] = {
        { "right-token", ST_OK, ST_OK, ST_ERR_UNSUPPORTED },
        { "wrong-token", ST_ERR_UNAUTH, ST_OK, ST_ERR_UNAUTH },
        { "right-toke", ST_ERR_UNAUTH, ST_OK, ST_ERR_UNAUTH },
        { "right-tokenn", ST_ERR_UNAUTH, ST_OK, ST_ERR_UNAUTH },
        { NULL, ST_ERR_UNAUTH, ST_OK, ST_ERR_UNAUTH },
    };
    struct rpc_server_config config = { .listen = "127.0.0.1:0", .token = "right-token" };
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, &config);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct rpc_channel_config channel = { .token = rows[i].token };

        fixture_channel(&f, &channel);
        assert_int_equal(call_once(&f, "/t/Echo"), rows[i].echo);
        if (rows[i].echo != ST_OK) {
            assert_non_null(strstr(f.text, "token"));
            assert_null(strstr(f.text, "right-token"));
        }
        assert_int_equal(call_once(&f, "/t/Open"), rows[i].open);
        assert_int_equal(call_once(&f, "/t/Nothing"), rows[i].unknown);
        rpc_channel_destroy(f.channel);
        f.channel = NULL;
    }
    assert_int_equal(f.n_requests, 6);
    fixture_close(&f);
}

static void test_rpc_guard__calls_are_bounded(void **state)
{
    struct rpc_server_config config = { .listen = "127.0.0.1:0", .calls_max = 3 };
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, &config);
    fixture_channel(&f, NULL);
    for (int i = 0; i < 4; i++) {
        call_start(&f, "/t/Hold", RPC_SERVER_STREAM, "x", 1, CLOCK_NEVER);
    }
    rpc_loop_run(f.loop); /* until the first ends: the one too many */
    assert_int_equal(f.st, ST_ERR_LIMIT);
    assert_non_null(strstr(f.text, "3 calls"));
    assert_int_equal(f.n_client_done, 1);
    fixture_close(&f);
    assert_int_equal(f.n_client_done, 4);
}

static status try_listen(struct fixture *f, struct rpc_server_config config, struct err *err)
{
    struct rpc_server *server = NULL;
    status st;

    config.methods = methods;
    config.n_methods = 1;
    config.arg = f;
    st = rpc_server_create(f->loop, &config, &server, err);
    if (st != ST_OK) {
        assert_null(server);
        assert_true(err->text[0] != '\0');
    }
    rpc_server_destroy(server);
    return st;
}

static void test_rpc_guard__port_in_use_is_named(void **state)
{
    struct rpc_server_config config = { .methods = methods };
    struct err err = ERR_INIT;
    struct fixture f;

    (void)state;
    fixture_open(&f);
    config.listen = f.target;
    assert_int_equal(try_listen(&f, config, &err), ST_ERR_EXISTS);
    assert_non_null(strstr(err.text, f.target));
    fixture_close(&f);
}

static void test_rpc_guard__open_address_needs_a_guard(void **state)
{
    static const char *const refused[] = { "0.0.0.0:0", "[::]:0", "10.1.2.3:0", "128.0.0.1:0",
                                           "some-host:0" };
    struct err err = ERR_INIT;
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        assert_int_equal(try_listen(&f, (struct rpc_server_config){ .listen = refused[i] }, &err),
                         ST_ERR_DENIED);
        assert_non_null(strstr(err.text, refused[i]));
    }
    assert_int_equal(
        try_listen(&f, (struct rpc_server_config){ .listen = "0.0.0.0:0", .token = "t" }, &err),
        ST_OK);
    assert_int_equal(try_listen(&f, (struct rpc_server_config){ .listen = "localhost:0" }, &err),
                     ST_OK);
    fixture_close(&f);
}

static void test_rpc_guard__what_is_no_address_is_said(void **state)
{
    static const char *const bad[] = { "",       "127.0.0.1", "127.0.0.1:",     "127.0.0.1:http",
                                       ":50051", "::1:50051", "127.0.0.1:70000" };
    struct err err = ERR_INIT;
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(try_listen(&f, (struct rpc_server_config){ .listen = bad[i] }, &err),
                         ST_ERR_ARG);
    }
    assert_int_equal(
        try_listen(&f, (struct rpc_server_config){ .listen = "192.0.2.1:0", .token = "t" }, &err),
        ST_ERR_ARG); /* not an address of this machine */
    assert_int_equal(
        try_listen(&f, (struct rpc_server_config){ .listen = "127.0.0.1:0", .token = "" }, &err),
        ST_ERR_ARG);
    assert_int_equal(
        try_listen(&f, (struct rpc_server_config){ .listen = "127.0.0.1:0", .token = "a\nb" },
                   &err),
        ST_ERR_ARG);
    fixture_close(&f);
}

static void test_rpc_guard__bad_channel_is_said(void **state)
{
    static const struct rpc_channel_config bad[] = {
        { .target = NULL },
        { .target = "host" },
        { .target = "host:" },
        { .target = "host:1", .token = "" },
        { .target = "host:1", .tls_cert_pem = "x" },
        { .target = "host:1", .tls_cert_pem = "x", .tls_key_pem = "y" },
    };
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = ERR_INIT;
        struct rpc_channel *channel = NULL;

        assert_int_equal(rpc_channel_create(f.loop, &bad[i], &channel, &err), ST_ERR_ARG);
        assert_null(channel);
        assert_true(err.text[0] != '\0');
    }
    fixture_close(&f);
}

/* ---- TLS ---- */

static char dir[] = "/tmp/gantry-rpc-XXXXXX";
static const char *const pem_names[] = { "ca.crt",  "ca.key",  "srv.crt", "srv.key",
                                         "cli.crt", "cli.key", "bad.crt", "bad.key" };
enum { CA_CRT, CA_KEY, SRV_CRT, SRV_KEY, CLI_CRT, CLI_KEY, BAD_CRT, BAD_KEY, N_PEMS };

static bool make_pems(struct buf pems[N_PEMS])
{
    static const char script[] =
        "cd %s || exit 1; exec >/dev/null 2>&1; "
        "K='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2'; "
        "openssl req -x509 $K -subj /CN=ca -keyout ca.key -out ca.crt && "
        "openssl req -x509 $K -subj /CN=bad -keyout bad.key -out bad.crt && "
        "echo subjectAltName=IP:127.0.0.1 >san && for n in srv cli; do "
        "openssl req $K -subj /CN=$n -keyout $n.key -out $n.csr && "
        "openssl x509 -req -in $n.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 "
        "-extfile san -out $n.crt || exit 1; done";
    char command[1200];
    bool ok;

    if (mkdtemp(dir) == NULL) {
        return false;
    }
    snprintf(command, sizeof(command), script, dir);
    ok = system(command) == 0;
    for (int i = 0; i < N_PEMS && ok; i++) {
        char path[128];

        snprintf(path, sizeof(path), "%s/%s", dir, pem_names[i]);
        ok = buf_read_file(&pems[i], path, 65536, NULL) == ST_OK;
    }
    snprintf(command, sizeof(command), "rm -r %s", dir);
    return system(command) == 0 && ok;
}

static status tls_call(struct fixture *f, const struct rpc_channel_config *channel)
{
    status st;

    fixture_channel(f, channel);
    st = call_once(f, "/t/Echo");
    rpc_channel_destroy(f->channel);
    f->channel = NULL;
    return st;
}

static void test_rpc_guard__tls_lets_in_who_has_a_certificate(void **state)
{
    struct buf pems[N_PEMS];
    struct rpc_server_config config = { .listen = "0.0.0.0:0" };
    struct rpc_channel_config channel = { 0 };
    struct err err = ERR_INIT;
    struct fixture f;

    (void)state;
    for (int i = 0; i < N_PEMS; i++) {
        pems[i] = (struct buf)BUF_INIT;
    }
    if (!make_pems(pems)) {
        print_message("skipped: no openssl command to make certificates with\n");
        skip();
    }
    fixture_loop(&f);
    config.tls_cert_pem = pems[SRV_CRT].data;
    config.tls_key_pem = pems[SRV_KEY].data;
    config.tls_client_ca_pem = pems[CA_CRT].data;
    fixture_server(&f, &config);

    channel.tls_ca_pem = pems[CA_CRT].data;
    channel.tls_cert_pem = pems[CLI_CRT].data;
    channel.tls_key_pem = pems[CLI_KEY].data;
    assert_int_equal(tls_call(&f, &channel), ST_OK);

    channel.tls_cert_pem = channel.tls_key_pem = NULL; /* no certificate */
    assert_int_equal(tls_call(&f, &channel), ST_ERR_UNAVAILABLE);
    channel.tls_cert_pem = pems[BAD_CRT].data; /* one of another CA */
    channel.tls_key_pem = pems[BAD_KEY].data;
    assert_int_equal(tls_call(&f, &channel), ST_ERR_UNAVAILABLE);
    channel = (struct rpc_channel_config){ .tls_ca_pem = pems[BAD_CRT].data }; /* other server CA */
    assert_int_equal(tls_call(&f, &channel), ST_ERR_UNAVAILABLE);
    channel.tls_ca_pem = NULL; /* plaintext */
    assert_int_equal(tls_call(&f, &channel), ST_ERR_UNAVAILABLE);
    assert_int_equal(f.n_requests, 1);

    config.tls_key_pem = pems[CA_CRT].data; /* not a key */
    assert_int_equal(try_listen(&f, config, &err), ST_ERR_ARG);
    fixture_close(&f);
    for (int i = 0; i < N_PEMS; i++) {
        buf_fini(&pems[i]);
    }
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc_guard__token_is_asked_of_every_call),
        cmocka_unit_test(test_rpc_guard__calls_are_bounded),
        cmocka_unit_test(test_rpc_guard__port_in_use_is_named),
        cmocka_unit_test(test_rpc_guard__open_address_needs_a_guard),
        cmocka_unit_test(test_rpc_guard__what_is_no_address_is_said),
        cmocka_unit_test(test_rpc_guard__bad_channel_is_said),
        cmocka_unit_test(test_rpc_guard__tls_lets_in_who_has_a_certificate),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
