/* Which host each rank runs on: a pure function. Results are read as "host:ranks host:ranks". */
#include "cluster/place.h"

#include "base/buf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LEN(a) (uint32_t)(sizeof(a) / sizeof((a)[0]))

static void placed(const struct place_host *hosts, uint32_t n, struct place_request q,
                   const char *due)
{
    struct place_run *runs = calloc(n, sizeof(*runs));
    struct buf text = BUF_INIT;
    struct err err = ERR_INIT;
    uint32_t n_runs = 0, first = 0;

    assert_non_null(runs);
    if (place_replica(hosts, n, &q, runs, &n_runs, &err) != ST_OK) {
        fail_msg("%s", err.text);
    }
    for (uint32_t i = 0; i < n_runs; i++) {
        assert_int_equal(runs[i].first, first);
        assert_true(runs[i].n != 0 && (i == 0 || runs[i].host > runs[i - 1].host));
        first += runs[i].n;
        assert_int_equal(buf_printf(&text, "%s%u:%u", i == 0 ? "" : " ", runs[i].host, runs[i].n),
                         ST_OK);
    }
    assert_int_equal(first, q.tp * q.pp);
    assert_string_equal(text.data, due);
    buf_fini(&text);
    free(runs);
}

static void refused(const struct place_host *hosts, uint32_t n, struct place_request q,
                    const char *word)
{
    struct place_run *runs = calloc(n, sizeof(*runs));
    struct err err = ERR_INIT;
    uint32_t n_runs = 77;

    assert_non_null(runs);
    assert_int_equal(place_replica(hosts, n, &q, runs, &n_runs, &err), ST_ERR_LIMIT);
    assert_int_equal(n_runs, 77);
    if (strstr(err.text, word) == NULL) {
        fail_msg("no \"%s\" in: %s", word, err.text);
    }
    free(runs);
}

static void test_place__the_first_hosts_of_the_file_are_filled(void **state)
{
    static const struct place_host hosts[] = { { .slots = 4 }, { .slots = 4 }, { .slots = 4 } };

    (void)state;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 4 }, "0:4");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 3 }, "0:4 1:2");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 4, .pp = 3 }, "0:4 1:4 2:4");
    refused(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 13 },
            "13 ranks (tp 1 x pp 13) need 13 slots, and 12 are free on 3 hosts");
}

static void test_place__a_stage_stays_on_one_host(void **state)
{
    static const struct place_host hosts[] = { { .slots = 3 }, { .slots = 3 }, { .slots = 2 } };
    static const struct place_host small[] = { { .slots = 1 }, { .slots = 1 }, { .slots = 2 } };

    (void)state;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 3 }, "0:2 1:2 2:2");
    /* Where it cannot, it is cut, before the replica is refused. */
    placed(small, LEN(small), (struct place_request){ .tp = 2, .pp = 2 }, "0:1 1:1 2:2");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 8, .pp = 1 }, "0:3 1:3 2:2");
}

static void test_place__a_replica_stays_in_one_rack(void **state)
{
    static const struct place_host hosts[] = {
        { .slots = 2, .rack = 0 }, { .slots = 2, .rack = 1 }, { .slots = 2, .rack = 0 },
        { .slots = 2, .rack = 1 }, { .slots = 2, .rack = 1 },
    };
    struct place_host used[LEN(hosts)];

    (void)state;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 2 }, "0:2 2:2");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 3 }, "1:2 3:2 4:2");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 4 }, "0:2 1:2 2:2 3:2");
    memcpy(used, hosts, sizeof(hosts));
    used[1].n_replicas = 1; /* the rack with the fewest replicas, though its hosts come later */
    used[1].slots = 0;
    placed(used, LEN(used), (struct place_request){ .tp = 1, .pp = 2 }, "0:2");
    used[0].n_replicas = 2;
    placed(used, LEN(used), (struct place_request){ .tp = 1, .pp = 2 }, "3:2");
}

static void test_place__replicas_share_no_host_while_they_need_not(void **state)
{
    static const struct place_host hosts[] = { { .slots = 4, .n_replicas = 1 }, { .slots = 2 } };

    (void)state;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 1 }, "1:2");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 4, .pp = 1 }, "0:4");
    refused(hosts, LEN(hosts), (struct place_request){ .tp = 4, .pp = 1, .alone = true },
            "2 are free on 1 hosts that no other replica uses");
}

static void test_place__a_lost_host_is_replaced_by_a_spare_one(void **state)
{
    /* It was on 2 and 3; 3 has lost its power; 4 is spare. */
    struct place_host hosts[] = {
        { .slots = 0, .n_replicas = 1 },
        { .slots = 0, .n_replicas = 1 },
        { .slots = 1, .was_mine = true },
        { .slots = 1, .was_mine = true, .blame = 1 },
        { .slots = 1 },
    };

    (void)state;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 2 }, "2:1 4:1");
    hosts[4].slots = 0; /* no spare: the hosts that are left, when they have room */
    hosts[2].slots = 2;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 2 }, "2:2");
    hosts[2].slots = 1; /* none: the one that did not answer is tried again */
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 2 }, "2:1 3:1");
    hosts[4].slots = 1;
    hosts[4].blame = 2; /* of those, the one that failed less often */
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 2 }, "2:1 3:1");
    hosts[3].blame = 3;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 1, .pp = 2 }, "2:1 4:1");
}

static void test_place__it_goes_back_to_where_it_was(void **state)
{
    static const struct place_host hosts[] = { { .slots = 2 },
                                               { .slots = 2 },
                                               { .slots = 2, .was_mine = true } };

    (void)state;
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 1 }, "2:2");
    placed(hosts, LEN(hosts), (struct place_request){ .tp = 2, .pp = 2 }, "0:2 2:2");
}

static void test_place__whole_hosts_are_filled_in_turn(void **state)
{
    static const struct place_host hosts[] = { { .slots = 3 },
                                               { .slots = 4, .was_mine = true },
                                               { .slots = 4, .was_mine = true } };
    const struct place_request q = { .tp = 2, .pp = 3, .whole_hosts = true, .alone = true };

    (void)state;
    placed(hosts, LEN(hosts), q, "1:4 2:2");
    placed(hosts, 2, q,
           "0:3 1:3"); /* mpirun would cut the second stage, and there is no other way */
}

/* Random hosts: what is placed fits, and what fits is placed. */
static void test_place__whatever_has_room_is_placed(void **state)
{
    struct place_host hosts[12];
    struct place_run runs[12];
    uint32_t seed = 1;

    (void)state;
    for (uint32_t round = 0; round < 3000; round++) {
        uint32_t n = 1 + round % 12, total = 0, n_runs = 0, sum = 0;
        struct err err = ERR_INIT;
        for (uint32_t i = 0; i < n; i++) {
            seed = seed * 1664525u + 1013904223u;
            hosts[i] = (struct place_host){ .slots = seed >> 29,
                                            .rack = seed >> 20 & 3,
                                            .n_replicas = (seed >> 16 & 3) == 0,
                                            .blame = seed >> 12 & 1,
                                            .was_mine = (seed >> 8 & 3) == 0 };
            total += hosts[i].slots;
        }
        const struct place_request q = { .tp = 1u << (seed >> 5 & 3), .pp = 1 + (seed >> 3 & 3) };
        const status st = place_replica(hosts, n, &q, runs, &n_runs, &err);
        assert_int_equal(st == ST_OK, total >= q.tp * q.pp);
        for (uint32_t i = 0; st == ST_OK && i < n_runs; i++) {
            assert_true(runs[i].n <= hosts[runs[i].host].slots);
            sum += runs[i].n;
        }
        assert_true(st != ST_OK || sum == q.tp * q.pp);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_place__the_first_hosts_of_the_file_are_filled),
        cmocka_unit_test(test_place__a_stage_stays_on_one_host),
        cmocka_unit_test(test_place__a_replica_stays_in_one_rack),
        cmocka_unit_test(test_place__replicas_share_no_host_while_they_need_not),
        cmocka_unit_test(test_place__a_lost_host_is_replaced_by_a_spare_one),
        cmocka_unit_test(test_place__it_goes_back_to_where_it_was),
        cmocka_unit_test(test_place__whole_hosts_are_filled_in_turn),
        cmocka_unit_test(test_place__whatever_has_room_is_placed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
