/* The checks of tests/common/coll_checks.c on threads, for replicas of 1 to 8 ranks, and what only
 * coll_local has. */
#include "common/coll_checks.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS_MAX = 8 };

struct seat {
    struct coll_hub *hub;
    const struct coll_case *one;
    uint32_t rank;
    bool ok;
    struct coll_note note;
};

static void *sit(void *arg)
{
    struct seat *seat = arg;
    struct coll *c = NULL;
    struct err err = ERR_INIT;

    if (coll_local_create(seat->hub, seat->rank, &c, &err) != ST_OK) {
        snprintf(seat->note.text, sizeof(seat->note.text), "%s", err.text);
        return NULL;
    }
    seat->ok = seat->one->run(c, &seat->note);
    c->ops->destroy(c);
    return NULL;
}

static void run_case(const struct coll_case *one, struct coll_shape shape)
{
    const uint32_t n = shape.tp * shape.pp;
    struct seat seats[RANKS_MAX] = { 0 };
    pthread_t threads[RANKS_MAX];
    struct coll_hub *hub = NULL;
    struct err err = ERR_INIT;

    assert_true(n <= RANKS_MAX);
    assert_int_equal(coll_hub_create(shape, &hub, &err), ST_OK);
    for (uint32_t i = 0; i < n; i++) {
        seats[i] = (struct seat){ .hub = hub, .one = one, .rank = i };
        assert_int_equal(pthread_create(&threads[i], NULL, sit, &seats[i]), 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    coll_hub_destroy(hub);
    for (uint32_t i = 0; i < n; i++) {
        if (!seats[i].ok) {
            fail_msg("tp %u pp %u rank %u: %s", shape.tp, shape.pp, i, seats[i].note.text);
        }
    }
}

static void test_case(void **state)
{
    static const struct coll_shape shapes[] = { { 1, 1 }, { 2, 1 }, { 1, 2 },
                                                { 2, 2 }, { 4, 1 }, { 8, 1 } };

    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        run_case(*state, shapes[i]);
    }
}

static void test_coll_hub__refuses_three_slices(void **state)
{
    struct coll_hub *hub = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(coll_hub_create((struct coll_shape){ 3, 1 }, &hub, &err), ST_ERR_ARG);
    assert_int_equal(coll_hub_create((struct coll_shape){ 2, 0 }, &hub, &err), ST_ERR_ARG);
    assert_int_equal(coll_hub_create((struct coll_shape){ 2, 1u << 31 }, &hub, &err), ST_ERR_ARG);
    assert_null(hub);
}

static void test_coll_hub__seats_a_rank_once(void **state)
{
    struct coll_hub *hub = NULL;
    struct coll *a = NULL, *b = NULL;
    struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(coll_hub_create((struct coll_shape){ 2, 1 }, &hub, &err), ST_OK);
    assert_int_equal(coll_local_create(hub, 2, &a, &err), ST_ERR_ARG);
    assert_int_equal(coll_local_create(hub, 1, &a, &err), ST_OK);
    assert_int_equal(coll_local_create(hub, 1, &b, &err), ST_ERR_EXISTS);
    a->ops->destroy(a);
    assert_int_equal(coll_local_create(hub, 1, &b, &err), ST_OK);
    b->ops->destroy(b);
    coll_hub_destroy(hub);
    coll_hub_destroy(NULL);
}

/* A rank that goes takes its pending sends and receives along: nobody copies from freed memory. */
static void test_coll_local__destroy_takes_back_messages(void **state)
{
    struct coll_hub *hub = NULL;
    struct coll *a = NULL, *b = NULL;
    struct coll_req req;
    struct err err = ERR_INIT;
    char x[4] = "abc";
    size_t bytes = 0;

    (void)state;
    assert_int_equal(coll_hub_create((struct coll_shape){ 1, 2 }, &hub, &err), ST_OK);
    assert_int_equal(coll_local_create(hub, 0, &a, &err), ST_OK);
    assert_int_equal(coll_local_create(hub, 1, &b, &err), ST_OK);
    assert_int_equal(a->ops->send_start(a, NULL, 1, 3, x, 4, &req, &err), ST_OK);
    assert_int_equal(a->ops->recv_start(a, NULL, 1, 3, x, 4, &req, &err), ST_OK);
    assert_int_equal(b->ops->probe(b, 0, 3, &bytes, &err), ST_OK);
    assert_int_equal(bytes, 4);
    a->ops->destroy(a);
    assert_int_equal(b->ops->probe(b, 0, 3, &bytes, &err), ST_BUSY);
    b->ops->destroy(b);
    coll_hub_destroy(hub);
}

int main(void)
{
    struct CMUnitTest tests[32] = {
        cmocka_unit_test(test_coll_hub__refuses_three_slices),
        cmocka_unit_test(test_coll_hub__seats_a_rank_once),
        cmocka_unit_test(test_coll_local__destroy_takes_back_messages),
    };
    static char names[ARRAY_LEN(tests)][96];
    size_t n = 3;

    for (size_t i = 0; i < n_coll_cases && n < ARRAY_LEN(tests); i++, n++) {
        snprintf(names[n], sizeof(names[n]), "test_coll_local__%s", coll_cases[i].name);
        tests[n] = (struct CMUnitTest){ names[n], test_case, NULL, NULL,
                                        (void *)(uintptr_t)&coll_cases[i] };
    }
    return _cmocka_run_group_tests("coll_local", tests, n, NULL, NULL);
}
