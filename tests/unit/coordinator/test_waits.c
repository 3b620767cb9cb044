/* Whom to name when nothing moves: graphs of who waits for whom. */
#include "coordinator/waits.h"

#include "base/compiler.h"
#include "base/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MANY = 4096 };

#define S UINT64_C(1000000000)

static struct wait_rank busy(uint64_t step)
{
    return (struct wait_rank){ .host = "a", .phase = "step", .step = step, .peer = COLL_PEER_NONE };
}

static struct wait_rank waits(enum coll_op op, uint64_t seq, uint32_t peer)
{
    struct wait_rank r = busy(8);

    r.host = "b";
    r.op = op;
    r.op_seq = seq;
    r.peer = peer;
    r.waited_ns = 51 * S / 10;
    return r;
}

static struct wait_rank silent(struct wait_rank r, uint64_t s)
{
    r.is_silent = true;
    r.silent_ns = s * S;
    return r;
}

static void expect(struct wait_rank *ranks, uint32_t n, enum waits_kind kind, uint32_t rank,
                   uint32_t other)
{
    struct waits_verdict v;

    waits_judge(ranks, n, &v);
    assert_int_equal(v.kind, kind);
    assert_int_equal(v.rank, rank);
    assert_int_equal(v.other, other);
}

/* ---- one that does not wait ---- */

static void test_waits__a_rank_alone_is_named(void **state UNUSED)
{
    struct wait_rank r[] = { busy(8) };

    expect(r, 1, WAITS_BUSY, 0, 0);
}

static void test_waits__the_slice_that_computes_is_named(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_SUM, 812, 1), busy(8) };

    expect(r, 2, WAITS_BUSY, 1, 1);
    assert_int_equal(r[1].n_waiters, 1);
}

/* tp 2 x pp 2: the last stage waits for the residual, the leader for the result, rank 1 stands. */
static void test_waits__a_chain_over_stages_ends_at_the_culprit(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_RESULT, 8, 2), busy(8), waits(COLL_OP_SUM, 30, 3),
                             waits(COLL_OP_RECV, 9, 1) };

    expect(r, 4, WAITS_BUSY, 1, 1);
    assert_int_equal(r[0].root, 1);
    assert_int_equal(r[1].n_waiters, 3);
}

/* A binomial tree of resting ranks: nobody of them is to blame, the leader is. */
static void test_waits__the_leader_is_named_when_all_wait_for_plans(void **state UNUSED)
{
    struct wait_rank r[] = { busy(8), waits(COLL_OP_PLAN, 9, 0), waits(COLL_OP_PLAN, 9, 0),
                             waits(COLL_OP_PLAN, 9, 1) };

    expect(r, 4, WAITS_BUSY, 0, 0);
    assert_int_equal(r[0].n_waiters, 3);
}

static void test_waits__of_two_the_one_that_more_wait_for_is_named(void **state UNUSED)
{
    struct wait_rank r[] = { busy(8), waits(COLL_OP_SUM, 1, 0), busy(9), waits(COLL_OP_SUM, 1, 2),
                             waits(COLL_OP_SUM, 1, 2) };

    expect(r, 5, WAITS_BUSY, 2, 2);
}

static void test_waits__of_equals_the_one_furthest_behind_is_named(void **state UNUSED)
{
    struct wait_rank r[] = { busy(8), busy(7), busy(8) };

    expect(r, 3, WAITS_BUSY, 1, 1);
    r[1].step = 8;
    r[0].ticks = 5;
    r[1].ticks = 5;
    r[2].ticks = 4;
    expect(r, 3, WAITS_BUSY, 2, 2);
}

static void test_waits__a_wait_for_a_device_names_its_rank_last(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_DEVICE, 5, COLL_PEER_NONE),
                             waits(COLL_OP_DEVICE, 5, COLL_PEER_NONE),
                             waits(COLL_OP_RESULT, 8, 1) };

    expect(r, 3, WAITS_DEVICE, 1, 1);
    r[0].waited_ns = 0; /* this one's host computes */
    expect(r, 3, WAITS_BUSY, 0, 0);
}

/* ---- silent ---- */

static void test_waits__the_silent_rank_is_named_whatever_it_said(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_SUM, 812, 1), silent(waits(COLL_OP_SUM, 811, 0), 6),
                             busy(8) };

    expect(r, 3, WAITS_SILENT, 1, 1);
    assert_false(r[0].is_ring);
}

static void test_waits__of_silent_ranks_the_one_waited_for_is_named(void **state UNUSED)
{
    struct wait_rank r[] = { silent(busy(8), 9), silent(busy(8), 6), waits(COLL_OP_SUM, 1, 1) };

    expect(r, 3, WAITS_SILENT, 1, 1);
    r[2].waited_ns = 0;
    expect(r, 3, WAITS_SILENT, 0, 0);
}

/* ---- rings ---- */

static void test_waits__two_that_wait_for_each_other_name_their_link(void **state UNUSED)
{
    struct wait_rank r[] = { busy(8), waits(COLL_OP_SUM, 7, 2), waits(COLL_OP_SUM, 7, 1),
                             waits(COLL_OP_RECV, 3, 1) };

    expect(r, 4, WAITS_LINK, 1, 2);
    assert_true(r[1].is_ring && r[2].is_ring);
    assert_false(r[0].is_ring || r[3].is_ring);
    assert_int_equal(r[1].n_waiters, 2);
}

/* A plan that did not come: the leader waits for results of it. */
static void test_waits__a_lost_plan_names_the_link_to_its_parent(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_RESULT, 8, 1), waits(COLL_OP_PLAN, 8, 0) };

    expect(r, 2, WAITS_LINK, 0, 1);
}

static void test_waits__a_longer_ring_is_a_disagreement(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_GATHER, 7, 4), waits(COLL_OP_RECV, 3, 2),
                             waits(COLL_OP_SUM, 7, 3), waits(COLL_OP_RECV, 7, 1),
                             waits(COLL_OP_SUM, 7, 2) };

    expect(r, 5, WAITS_RING, 1, 2);
    assert_int_equal(r[1].n_waiters, 4);
}

static void test_waits__of_rings_the_one_that_more_wait_for_is_named(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_SUM, 1, 1), waits(COLL_OP_SUM, 1, 0),
                             waits(COLL_OP_SUM, 1, 3), waits(COLL_OP_SUM, 1, 2),
                             waits(COLL_OP_RECV, 1, 2) };

    expect(r, 5, WAITS_LINK, 2, 3);
}

static void test_waits__other_plans_under_one_step_are_a_disagreement(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_SUM, 7, 1), waits(COLL_OP_SUM, 7, 0), busy(8) };

    r[2].digest = 5;
    expect(r, 3, WAITS_DISAGREE, 0, 2);
    r[2].step = 9; /* another step: another plan */
    expect(r, 3, WAITS_LINK, 0, 1);
}

/* ---- lies ---- */

static void test_waits__ranks_that_are_not_there_are_nobody(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_SUM, 7, 99), waits(COLL_OP_SUM, 7, 1) };
    char text[64];

    r[0].step = 7;
    expect(r, 2, WAITS_DEVICE, 0, 0);
    waits_edge_text(r, 2, 0, text, sizeof(text));
    assert_string_equal(text, "");
}

/* Every graph of four ranks: somebody is named, who exists, and a root is never on a ring. */
static void test_waits__every_graph_of_four_has_an_answer(void **state UNUSED)
{
    for (uint32_t code = 0; code < 5 * 5 * 5 * 5; code++) {
        struct wait_rank r[4];
        struct waits_verdict v;
        uint32_t c = code, n_rooted = 0;
        for (uint32_t i = 0; i < 4; i++, c /= 5) {
            r[i] = c % 5 < 4 ? waits(COLL_OP_SUM, 1, c % 5) : busy(8);
        }
        waits_judge(r, 4, &v);
        assert_true(v.rank < 4 && v.other < 4);
        assert_true((v.kind == WAITS_LINK || v.kind == WAITS_RING) == r[v.rank].is_ring);
        assert_int_equal(v.rank, r[v.rank].root);
        for (uint32_t i = 0; i < 4; i++) {
            n_rooted += r[i].n_waiters + (r[i].root == i ? 1 : 0);
            assert_true(r[r[i].root].root == r[i].root);
        }
        assert_int_equal(n_rooted, 4);
    }
}

static void test_waits__the_longest_chain_is_followed(void **state UNUSED)
{
    struct wait_rank *r = calloc(MANY, sizeof(*r));

    assert_non_null(r);
    for (uint32_t i = 0; i < MANY; i++) {
        r[i] = i + 1 < MANY ? waits(COLL_OP_RECV, 1, i + 1) : busy(8);
    }
    expect(r, MANY, WAITS_BUSY, MANY - 1, MANY - 1);
    r[MANY - 1] = waits(COLL_OP_RECV, 1, 0);
    expect(r, MANY, WAITS_RING, 0, 1);
    free(r);
}

/* ---- sentences ---- */

static void test_waits__the_sentences_name_ranks_hosts_and_exchanges(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_RESULT, 8, 3), busy(8), silent(busy(8), 6),
                             waits(COLL_OP_SUM, 812, 2) };
    struct waits_verdict v;
    char text[ERR_TEXT_BYTES];

    r[2].silent_ns = 53 * S / 10;
    waits_judge(r, 4, &v);
    waits_edge_text(r, 4, 3, text, sizeof(text));
    assert_string_equal(text, "rank 3 (host b) waits 5.1 s in sum #812 for rank 2 (host a), which "
                              "is silent since 5.3 s");
    waits_text(r, 4, &v, text, sizeof(text));
    assert_string_equal(text,
                        "rank 2 (host a) is silent since 5.3 s, and 2 of 4 ranks wait for it");
    waits_list_text(r, 4, &v, text, sizeof(text));
    assert_string_equal(text, "rank 3 (host b) waits 5.1 s in sum #812 for rank 2 (host a), which "
                              "is silent since 5.3 s; rank 0 (host b) waits 5.1 s in result #8 for "
                              "rank 3 (host b), which waits itself");
    waits_edge_text(r, 4, 1, text, sizeof(text));
    assert_string_equal(text, "");
}

static void test_waits__a_link_is_told_with_both_ends(void **state UNUSED)
{
    struct wait_rank r[] = { waits(COLL_OP_SEND, 7, 1), waits(COLL_OP_RECV, 9, 0) };
    struct waits_verdict v;
    char text[ERR_TEXT_BYTES];

    waits_judge(r, 2, &v);
    waits_text(r, 2, &v, text, sizeof(text));
    assert_string_equal(text, "the link between rank 0 (host b) and rank 1 (host b) carries "
                              "nothing: they wait for each other, 5.1 s in send #7 and 5.1 s in "
                              "receive #9");
}

static void test_waits__a_long_list_is_cut_with_a_count(void **state UNUSED)
{
    struct wait_rank r[40];
    struct waits_verdict v;
    char text[ERR_TEXT_BYTES];

    for (uint32_t i = 0; i < ARRAY_LEN(r); i++) {
        r[i] = i == 0 ? busy(8) : waits(COLL_OP_PLAN, 9, 0);
    }
    waits_judge(r, ARRAY_LEN(r), &v);
    waits_list_text(r, ARRAY_LEN(r), &v, text, sizeof(text));
    assert_true(strlen(text) < sizeof(text));
    uint32_t n_told = 0;
    for (const char *at = text; (at = strstr(at, " in plan #9 for rank 0")) != NULL; at++) {
        n_told++;
    }
    assert_true(n_told > 0);
    char tail[32];
    snprintf(tail, sizeof(tail), "; and %u more", 39 - n_told);
    assert_string_equal(text + strlen(text) - strlen(tail), tail);
    char tiny[8];
    waits_list_text(r, ARRAY_LEN(r), &v, tiny, sizeof(tiny));
    assert_string_equal(tiny, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waits__a_rank_alone_is_named),
        cmocka_unit_test(test_waits__the_slice_that_computes_is_named),
        cmocka_unit_test(test_waits__a_chain_over_stages_ends_at_the_culprit),
        cmocka_unit_test(test_waits__the_leader_is_named_when_all_wait_for_plans),
        cmocka_unit_test(test_waits__of_two_the_one_that_more_wait_for_is_named),
        cmocka_unit_test(test_waits__of_equals_the_one_furthest_behind_is_named),
        cmocka_unit_test(test_waits__a_wait_for_a_device_names_its_rank_last),
        cmocka_unit_test(test_waits__the_silent_rank_is_named_whatever_it_said),
        cmocka_unit_test(test_waits__of_silent_ranks_the_one_waited_for_is_named),
        cmocka_unit_test(test_waits__two_that_wait_for_each_other_name_their_link),
        cmocka_unit_test(test_waits__a_lost_plan_names_the_link_to_its_parent),
        cmocka_unit_test(test_waits__a_longer_ring_is_a_disagreement),
        cmocka_unit_test(test_waits__of_rings_the_one_that_more_wait_for_is_named),
        cmocka_unit_test(test_waits__other_plans_under_one_step_are_a_disagreement),
        cmocka_unit_test(test_waits__ranks_that_are_not_there_are_nobody),
        cmocka_unit_test(test_waits__every_graph_of_four_has_an_answer),
        cmocka_unit_test(test_waits__the_longest_chain_is_followed),
        cmocka_unit_test(test_waits__the_sentences_name_ranks_hosts_and_exchanges),
        cmocka_unit_test(test_waits__a_link_is_told_with_both_ends),
        cmocka_unit_test(test_waits__a_long_list_is_cut_with_a_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
