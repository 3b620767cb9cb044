/* tests/unit/base/test_ring.c */
#include "base/ring.h"

#include "common/alloc_fail.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include <cmocka.h>

static bool readable(struct ring *ring, int timeout_ms)
{
    struct pollfd fd = { .fd = ring_fd(ring), .events = POLLIN };
    return poll(&fd, 1, timeout_ms) == 1;
}

static struct ring *make(uint32_t capacity)
{
    struct ring *ring = NULL;

    assert_int_equal(ring_create(capacity, &ring, NULL), ST_OK);
    return ring;
}

static void test_ring__keeps_order_and_refuses_when_full(void **state UNUSED)
{
    struct ring *ring = make(3);
    int items[5];

    for (int round = 0; round < 4; round++) {
        assert_null(ring_pop(ring));
        for (int i = 0; i < 3; i++) {
            assert_int_equal(ring_push(ring, &items[i]), ST_OK);
        }
        assert_int_equal(ring_push(ring, &items[3]), ST_BUSY);
        assert_int_equal(ring_count(ring), 3);
        assert_ptr_equal(ring_pop(ring), &items[0]);
        assert_int_equal(ring_push(ring, &items[4]), ST_OK);
        assert_ptr_equal(ring_pop(ring), &items[1]);
        assert_ptr_equal(ring_pop(ring), &items[2]);
        assert_ptr_equal(ring_pop(ring), &items[4]);
    }
    ring_destroy(ring);
    ring_destroy(NULL);
}

static void test_ring__is_readable_exactly_while_something_is_queued(void **state UNUSED)
{
    struct ring *ring = make(4);
    int item;

    assert_false(readable(ring, 0));
    assert_int_equal(ring_push(ring, &item), ST_OK);
    assert_true(readable(ring, 0));
    assert_int_equal(ring_push(ring, &item), ST_OK);
    assert_non_null(ring_pop(ring));
    assert_true(readable(ring, 0));
    assert_non_null(ring_pop(ring));
    assert_false(readable(ring, 0));
    ring_destroy(ring);
}

enum { PUSHERS = 3, ITEMS = 2000 };

struct item {
    uint32_t from, number;
};

struct pusher {
    struct ring *ring;
    struct item items[ITEMS];
};

static void *push_all(void *arg)
{
    struct pusher *pusher = arg;

    for (uint32_t i = 0; i < ITEMS; i++) {
        while (ring_push(pusher->ring, &pusher->items[i]) == ST_BUSY) {
            sched_yield();
        }
    }
    return NULL;
}

static void test_ring__loses_nothing_between_threads(void **state UNUSED)
{
    static struct pusher pushers[PUSHERS];
    pthread_t threads[PUSHERS];
    uint32_t next[PUSHERS] = { 0 };
    struct ring *ring = make(16);

    for (uint32_t p = 0; p < PUSHERS; p++) {
        pushers[p].ring = ring;
        for (uint32_t i = 0; i < ITEMS; i++) {
            pushers[p].items[i] = (struct item){ p, i };
        }
        assert_int_equal(pthread_create(&threads[p], NULL, push_all, &pushers[p]), 0);
    }
    for (uint32_t got = 0; got < PUSHERS * ITEMS;) {
        assert_true(readable(ring, 10000)); /* a lost wake-up ends here */
        for (struct item *item; (item = ring_pop(ring)) != NULL; got++) {
            assert_int_equal(item->number, next[item->from]++);
        }
    }
    for (uint32_t p = 0; p < PUSHERS; p++) {
        pthread_join(threads[p], NULL);
    }
    assert_int_equal(ring_count(ring), 0);
    ring_destroy(ring);
}

static void test_ring_create__fails_with_a_word(void **state UNUSED)
{
    struct ring *ring = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(ring_create(0, &ring, &err), ST_ERR_ARG);
    alloc_fail_at(1);
    assert_int_equal(ring_create(8, &ring, &err), ST_ERR_NOMEM);
    assert_true(alloc_fail_off());
    assert_null(ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring__keeps_order_and_refuses_when_full),
        cmocka_unit_test(test_ring__is_readable_exactly_while_something_is_queued),
        cmocka_unit_test(test_ring__loses_nothing_between_threads),
        cmocka_unit_test(test_ring_create__fails_with_a_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
