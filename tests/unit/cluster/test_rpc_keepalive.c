/* tests/unit/cluster/test_rpc_keepalive.c - a peer that is there but silent is noticed.
 *
 * Between client and server stands a relay that can be frozen: it keeps both sockets open and moves
 * nothing, which is what a stopped machine or a cut link looks like. */
#include "unit/cluster/rpc_fixture.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

struct relay {
    pthread_t thread;
    int listener, ends[2];
    uint16_t port, server_port;
    atomic_bool frozen, stop;
};

static struct sockaddr_in loopback(uint16_t port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void move(int from, int to)
{
    char bytes[4096];
    const ssize_t n = recv(from, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (n > 0) {
        (void)!send(to, bytes, (size_t)n, MSG_NOSIGNAL);
    }
}

/* One connection at a time is enough. */
static void *relay_main(void *arg)
{
    struct relay *r = arg;

    while (!atomic_load(&r->stop)) {
        struct pollfd fds[3] = { { .fd = r->listener, .events = POLLIN },
                                 { .fd = r->ends[0], .events = POLLIN },
                                 { .fd = r->ends[1], .events = POLLIN } };

        if (atomic_load(&r->frozen)) {
            usleep(2000);
            continue;
        }
        if (poll(fds, 3, 5) <= 0) {
            continue;
        }
        if (fds[0].revents != 0 && r->ends[0] < 0) {
            const struct sockaddr_in to = loopback(r->server_port);

            r->ends[0] = accept(r->listener, NULL, NULL);
            r->ends[1] = socket(AF_INET, SOCK_STREAM, 0);
            (void)connect(r->ends[1], (const struct sockaddr *)&to, sizeof(to));
        }
        if (fds[1].revents != 0) {
            move(r->ends[0], r->ends[1]);
        }
        if (fds[2].revents != 0) {
            move(r->ends[1], r->ends[0]);
        }
    }
    return NULL;
}

static void relay_open(struct relay *r, struct fixture *f)
{
    struct sockaddr_in a = loopback(0);
    socklen_t len = sizeof(a);

    memset(r, 0, sizeof(*r));
    r->ends[0] = r->ends[1] = -1;
    r->server_port = rpc_server_port(f->server);
    r->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(r->listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(r->listener, 4), 0);
    assert_int_equal(getsockname(r->listener, (struct sockaddr *)&a, &len), 0);
    snprintf(f->target, sizeof(f->target), "127.0.0.1:%u", ntohs(a.sin_port));
    assert_int_equal(pthread_create(&r->thread, NULL, relay_main, r), 0);
}

static void relay_close(struct relay *r)
{
    atomic_store(&r->stop, true);
    pthread_join(r->thread, NULL);
    close(r->listener);
    for (int i = 0; i < 2; i++) {
        if (r->ends[i] >= 0) {
            close(r->ends[i]);
        }
    }
}

static void stop_loop(void *arg)
{
    rpc_loop_stop(arg);
}

static void run_for_ms(struct fixture *f, uint64_t ms)
{
    struct rpc_timer timer = { .fn = stop_loop, .arg = f->loop };

    assert_int_equal(rpc_timer_set(f->loop, &timer, in_ms(ms)), ST_OK);
    rpc_loop_run(f->loop);
    assert_int_equal(rpc_timer_set(f->loop, &timer, CLOCK_NEVER), ST_OK);
}

static void test_rpc_keepalive__silent_server_is_noticed(void **state)
{
    const struct rpc_channel_config config = { .keepalive_ms = 250 };
    struct relay relay;
    struct fixture f;
    uint64_t begin;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, NULL);
    relay_open(&relay, &f);
    fixture_channel(&f, &config);
    call_start(&f, "/t/HoldBidi", RPC_BIDI, NULL, 0, CLOCK_NEVER);
    run_for_ms(&f, 300);
    assert_int_equal(f.n_requests, 1);
    assert_int_equal(f.n_client_done, 0);

    atomic_store(&relay.frozen, true);
    begin = in_ms(0);
    rpc_loop_run(f.loop); /* until the client's on_done */
    assert_int_equal(f.n_client_done, 1);
    assert_int_equal(f.st, ST_ERR_UNAVAILABLE);
    assert_true(in_ms(0) - begin < 5 * NS_PER_S);
    relay_close(&relay);
    fixture_close(&f);
}

static void test_rpc_keepalive__silent_client_is_noticed(void **state)
{
    const struct rpc_server_config config = { .listen = "127.0.0.1:0", .keepalive_ms = 250 };
    struct relay relay;
    struct fixture f;
    uint64_t begin;

    (void)state;
    fixture_loop(&f);
    fixture_server(&f, &config);
    relay_open(&relay, &f);
    fixture_channel(&f, NULL);
    call_start(&f, "/t/HoldBidi", RPC_BIDI, NULL, 0, CLOCK_NEVER);
    run_for_ms(&f, 300);
    assert_int_equal(f.n_requests, 1);
    assert_int_equal(f.n_done, 0);

    atomic_store(&relay.frozen, true);
    f.stop_on_server_done = true;
    begin = in_ms(0);
    rpc_loop_run(f.loop);
    assert_int_equal(f.n_done, 1);
    assert_int_equal(f.n_cancelled, 1);
    assert_true(in_ms(0) - begin < 5 * NS_PER_S);
    relay_close(&relay);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc_keepalive__silent_server_is_noticed),
        cmocka_unit_test(test_rpc_keepalive__silent_client_is_noticed),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
