/* The self-test of a replica's fabric, over threads, with links that are slow or harm data. */
#include "worker/selftest.h"

#include "common/coll_wrap.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { RANKS_MAX = 8 };

/* What is wrong between two ranks. UINT32_MAX: nothing. */
struct damage {
    uint32_t a, b;
    uint32_t delay_us; /* of each message between them */
    size_t harm_bytes; /* messages of this size at least lose a bit from a to b */
    uint32_t sum_rank; /* its sums come out with another last bit */
};

static const struct damage none = { UINT32_MAX, UINT32_MAX, 0, SIZE_MAX, UINT32_MAX };

struct seat {
    struct coll_hub *hub;
    const struct damage *damage;
    _Atomic bool *abort;
    uint32_t rank;
    const char *host;
    struct msg_self_test report;
    status st;
    struct err err;
};

static void on_message(void *arg, const struct coll_wrap_msg *m)
{
    const struct damage *d = arg;
    const bool there = m->from == d->a && m->to == d->b, back = m->from == d->b && m->to == d->a;

    if ((there || back) && d->delay_us != 0) {
        const struct timespec nap = { .tv_nsec = (long)d->delay_us * 1000 };
        (void)nanosleep(&nap, NULL);
    }
    if (there && m->bytes >= d->harm_bytes) {
        ((unsigned char *)m->data)[m->bytes / 2] ^= 4;
    }
}

static void on_sum(void *arg, uint32_t rank, float *x, size_t n)
{
    const struct damage *d = arg;
    uint32_t bits;

    if (rank == d->sum_rank) {
        memcpy(&bits, &x[n - 1], sizeof(bits));
        bits ^= 1;
        memcpy(&x[n - 1], &bits, sizeof(bits));
    }
}

static void *sit(void *arg)
{
    struct seat *s = arg;
    const struct selftest_config config = { s->host, false };
    struct coll *c = NULL;

    s->st = coll_local_create(s->hub, s->rank, &c, &s->err);
    if (s->st == ST_OK) {
        union {
            const struct damage *in;
            void *out;
        } u = { s->damage };
        c = coll_wrap_create(c, on_message, on_sum, u.out);
        c->abort = s->abort;
        s->st = selftest_run(c, &config, &s->report, &s->err);
        if (s->st != ST_OK) {
            *s->abort = true;
        }
        c->ops->destroy(c);
    }
    return NULL;
}

/* Rank i is on host "a" or "b" by hosts[i]. The leader's report, or the first cause. */
static status run(struct coll_shape shape, const char *hosts, const struct damage *damage,
                  struct msg_self_test *report_p, struct err *err)
{
    const uint32_t n = shape.tp * shape.pp;
    struct seat seats[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    struct coll_hub *hub = NULL;
    _Atomic bool abort = false;
    status st = ST_OK;

    assert_true(n <= RANKS_MAX);
    assert_int_equal(coll_hub_create(shape, &hub, err), ST_OK);
    for (uint32_t i = 0; i < n; i++) {
        seats[i] = (struct seat){ .hub = hub,
                                  .damage = damage,
                                  .abort = &abort,
                                  .rank = i,
                                  .host = hosts[i] == 'a' ? "a" : "b" };
        assert_int_equal(pthread_create(&threads[i], NULL, sit, &seats[i]), 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    coll_hub_destroy(hub);
    for (uint32_t i = 0; i < n; i++) {
        if (seats[i].st == ST_ERR_MISMATCH || (st == ST_OK && seats[i].st != ST_OK)) {
            st = seats[i].st;
            *err = seats[i].err;
        }
    }
    *report_p = seats[0].report;
    return st;
}

/* ---- a fabric that is well ---- */

static void test_selftest__every_pair_that_talks_is_tested(void **state UNUSED)
{
    static const struct {
        struct coll_shape shape;
        uint32_t n_links;
    } cases[] = {
        { { 1, 1 }, 0 },  { { 2, 1 }, 1 }, { { 1, 2 }, 1 }, { { 4, 1 }, 6 },
        { { 8, 1 }, 28 }, { { 2, 2 }, 5 }, /* 2 pairs of slices, 2 of stages, leader to 3 */
        { { 2, 3 }, 10 },                  /* 3, 4, leader to 3, 4, 5 */
        { { 1, 4 }, 5 },                   /* 3, leader to 2 and 3 */
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct msg_self_test report;
        struct err err = ERR_INIT;
        const status st = run(cases[i].shape, "aaaaaaaa", &none, &report, &err);
        if (st != ST_OK) {
            fail_msg("tp %u pp %u: %s", cases[i].shape.tp, cases[i].shape.pp, err.text);
        }
        assert_int_equal(report.n_links, cases[i].n_links);
        assert_true(report.took_ms > 0);
        assert_true(report.n_links == 0 || report.worst_latency.latency_us > 0);
        assert_true(report.n_links == 0 || report.worst_bandwidth.mib_per_s > 0);
        assert_false(report.worst_latency.is_across);
    }
}

static void test_selftest__links_between_hosts_are_told_apart(void **state UNUSED)
{
    const struct damage slow = { 1, 3, 100000, SIZE_MAX,
                                 UINT32_MAX }; /* more than a busy machine adds */
    struct msg_self_test report;
    struct err err = ERR_INIT;

    assert_int_equal(run((struct coll_shape){ 2, 2 }, "aabb", &slow, &report, &err), ST_OK);
    assert_int_equal(report.worst_latency.a, 1);
    assert_int_equal(report.worst_latency.b, 3);
    assert_true(report.worst_latency.is_across);
}

/* ---- one that is not ---- */

static void test_selftest__a_slow_link_is_named(void **state UNUSED)
{
    const struct damage slow = { 2, 5, 100000, SIZE_MAX, UINT32_MAX }; /* likewise */
    struct msg_self_test report;
    struct err err = ERR_INIT;
    bool is_named = false;

    assert_int_equal(run((struct coll_shape){ 8, 1 }, "aaaaaaaa", &slow, &report, &err), ST_OK);
    for (uint32_t i = 0; i < report.n_slow; i++) {
        is_named = is_named || (report.slow[i].a == 2 && report.slow[i].b == 5);
    }
    assert_true(is_named);
    assert_int_equal(report.worst_latency.a, 2);
    assert_int_equal(report.worst_latency.b, 5);
    assert_true(report.worst_latency.latency_us > 100000);
}

static void expect_harm(struct coll_shape shape, uint32_t a, uint32_t b, size_t bytes)
{
    const struct damage harm = { a, b, 0, bytes, UINT32_MAX };
    struct msg_self_test report;
    struct err err = ERR_INIT;
    char want[96];

    assert_int_equal(run(shape, "aaaaaaaa", &harm, &report, &err), ST_ERR_MISMATCH);
    snprintf(want, sizeof(want), "what rank %u sends arrives harmed at rank %u (host a)", a, b);
    if (strstr(err.text, want) == NULL) {
        fail_msg("%s", err.text);
    }
}

static void test_selftest__a_link_that_harms_data_ends_it(void **state UNUSED)
{
    expect_harm((struct coll_shape){ 2, 1 }, 0, 1, 4096);
    expect_harm((struct coll_shape){ 4, 1 }, 3, 1, 60000);
    expect_harm((struct coll_shape){ 2, 2 }, 3, 1, 60000); /* stages */
    expect_harm((struct coll_shape){ 2, 2 }, 0, 3, 4096);  /* leader */
}

static void test_selftest__a_wrong_sum_ends_it(void **state UNUSED)
{
    const struct damage wrong = { UINT32_MAX, UINT32_MAX, 0, SIZE_MAX, 3 };
    struct msg_self_test report;
    struct err err = ERR_INIT;

    assert_int_equal(run((struct coll_shape){ 2, 2 }, "aaaa", &wrong, &report, &err),
                     ST_ERR_MISMATCH);
    assert_non_null(strstr(err.text, "float 4098 of a sum over the 2 ranks of stage 1 (ranks 2 to "
                                     "3) is "));
    assert_non_null(strstr(err.text, " on rank 3, "));
}

/* ---- the sum ---- */

/* The values must be such that another order gives other bits, or the sum proves nothing. */
static void test_selftest__another_order_of_additions_shows(void **state UNUSED)
{
    uint32_t n_other = 0;

    for (size_t i = 0; i < 1000; i++) {
        float in_turn = 0, halved = 0;
        for (uint32_t s = 0; s < 4; s++) {
            in_turn += selftest_float(s, i, false);
        }
        /* Distance halving: 0 with 2 first. */
        halved = (selftest_float(0, i, false) + selftest_float(2, i, false)) +
                 (selftest_float(1, i, false) + selftest_float(3, i, false));
        const float want = selftest_sum(4, i, false);
        n_other += memcmp(&in_turn, &want, sizeof(want)) != 0 ? 1 : 0;
        n_other += memcmp(&halved, &want, sizeof(want)) != 0 ? 1 : 0;
    }
    assert_true(n_other > 200);
}

static void test_selftest__exact_values_have_one_sum(void **state UNUSED)
{
    for (size_t i = 0; i < 1000; i++) {
        float in_turn = 0;
        for (uint32_t s = 0; s < 256; s++) {
            in_turn += selftest_float(s, i, true);
        }
        const float want = selftest_sum(256, i, true);
        assert_memory_equal(&in_turn, &want, sizeof(want));
    }
}

/* ---- judging ---- */

static void test_judge__slow_links_are_found_among_their_kind(void **state UNUSED)
{
    struct selftest_link links[] = {
        { 0, 1, 0, 5, 4000 },  { 0, 2, 0, 6, 4100 },  { 1, 2, 0, 5, 900 },   /* thin */
        { 0, 4, 1, 30, 1000 }, { 1, 5, 1, 31, 1000 }, { 2, 6, 1, 290, 980 }, /* late */
        { 3, 7, 1, 29, 1000 }, { 0, 3, 0, 40, 4000 }, /* eight times, but microseconds */
    };
    struct msg_self_test r;

    selftest_judge(links, ARRAY_LEN(links), false, &r);
    assert_int_equal(r.n_links, 8);
    assert_int_equal(r.n_slow, 2);
    assert_int_equal(r.n_slow_all, 2);
    assert_int_equal(r.slow[0].a, 1);
    assert_int_equal(r.slow[0].b, 2);
    assert_int_equal(r.slow[1].a, 2);
    assert_int_equal(r.slow[1].b, 6);
    assert_true(r.slow[1].is_across && r.slow[1].usual_latency_us == 31);
    assert_int_equal(r.worst_latency.a, 2);
    assert_int_equal(r.worst_bandwidth.a, 1);
    selftest_judge(links, ARRAY_LEN(links), true, &r);
    assert_int_equal(r.n_slow, 0);
}

static void test_judge__two_links_say_not_what_is_usual(void **state UNUSED)
{
    const struct selftest_link links[] = { { 0, 1, 0, 5, 4000 }, { 0, 2, 0, 5000, 4 } };
    struct msg_self_test r;

    selftest_judge(links, ARRAY_LEN(links), false, &r);
    assert_int_equal(r.n_slow, 0);
    assert_int_equal(r.worst_latency.b, 2);
    selftest_judge(links, 0, false, &r);
    assert_int_equal(r.n_links, 0);
}

static void test_judge__the_list_of_slow_links_is_bounded(void **state UNUSED)
{
    struct selftest_link links[100];
    struct msg_self_test r;

    for (uint32_t i = 0; i < 100; i++) {
        links[i] = (struct selftest_link){ i, i + 1, 0, i < 60 ? 5 : 5000, 1000 };
    }
    selftest_judge(links, 100, false, &r);
    assert_int_equal(r.n_slow, MSG_SLOW_LINKS_MAX);
    assert_int_equal(r.n_slow_all, 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selftest__every_pair_that_talks_is_tested),
        cmocka_unit_test(test_selftest__links_between_hosts_are_told_apart),
        cmocka_unit_test(test_selftest__a_slow_link_is_named),
        cmocka_unit_test(test_selftest__a_link_that_harms_data_ends_it),
        cmocka_unit_test(test_selftest__a_wrong_sum_ends_it),
        cmocka_unit_test(test_selftest__another_order_of_additions_shows),
        cmocka_unit_test(test_selftest__exact_values_have_one_sum),
        cmocka_unit_test(test_judge__slow_links_are_found_among_their_kind),
        cmocka_unit_test(test_judge__two_links_say_not_what_is_usual),
        cmocka_unit_test(test_judge__the_list_of_slow_links_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
