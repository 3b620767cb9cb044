/* Replicas that others start (coord_world.h; each is one scripted rank, or two): they join, are
 * refused, go, come again; and what their numeric profile means for streams. */
#include "unit/coordinator/coord_world.h"

#define LONG  REQ("wait", .has_max_tokens = true, .max_tokens = 50)
#define SHORT REQ("wait", .has_max_tokens = true, .max_tokens = 4)
#define EXACT REQ("wait", .has_max_tokens = true, .max_tokens = 4, .exact = true)

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct world *w = arg;

    w->n_lost++;
    w->last_lost = replica;
    w->last_delay_ns = delay_ns;
}

/* ranks[i] will join, as rank 0 of a job of one rank. */
static struct msg_hello *joiner(struct world *w, uint32_t i, uint8_t job)
{
    struct msg_hello *h = &w->ranks[i].hello;

    h->replica = h->generation = 77; /* not looked at */
    h->rank = 0;
    h->n_ranks = 1;
    h->plan_digest = 0xF00 + job;
    h->has_join = true;
    h->join = (struct msg_join){ .job = { job, 7 },
                                 .tp = 1,
                                 .pp = 1,
                                 .kv_blocks = w->plan->kv_blocks,
                                 .block_tokens = KERN_KV_BLOCK,
                                 .ctx_max = CTX,
                                 .rows_max = 16,
                                 .layer_bytes = 1,
                                 .model_digest = plan_model_digest(w->plan) };
    return h;
}

static void open_join(struct world *w, const struct coord_config *more)
{
    world_open_as(w, 1, more);
    rank_ready(rank_attach(w, 0));
    await_count(w, &w->n_states, 1);
    assert_int_equal(w->states[0], COORD_SERVING);
}

static const struct coord_config taking = {
    .n_replicas = 1, .join_max = 2, .retries = 3, .restarts = 3, .on_lost = on_lost
};
static const struct coord_config mixed = { .n_replicas = 1,
                                           .join_max = 2,
                                           .retries = 3,
                                           .restarts = 3,
                                           .mixed_profiles = true,
                                           .rejoin_ns = 700 * NS_PER_MS,
                                           .on_lost = on_lost };

static void lose(struct world *w, uint32_t i)
{
    rpc_call_cancel(w->ranks[i].call);
    await(w, &w->ranks[i].is_done);
    w->ranks[i].call = NULL;
}

/* It attaches and serves. */
static struct rank *join(struct world *w, uint32_t i)
{
    struct rank *r = rank_attach(w, i);

    r->n_welcomes = 0;
    await_count(w, &r->n_welcomes, 1);
    rank_ready(r);
    settle_ms(w, 30);
    return r;
}

static void says(const char *text, const char *word)
{
    if (strstr(text, word) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", text, word);
    }
}

/* ---- joining ---- */

static void test_join__a_replica_takes_streams_when_it_is_ready(void **state UNUSED)
{
    struct world w;
    struct client c[3];

    open_join(&w, &taking);
    joiner(&w, 1, 1);
    rank_attach(&w, 1);
    await_count(&w, &w.ranks[1].n_welcomes, 1);
    assert_int_equal(w.ranks[1].replica, 1);
    assert_int_equal(w.ranks[1].generation, 4);
    ask(&w, &c[0], SHORT, false, CLOCK_NEVER);
    ask(&w, &c[1], SHORT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 2); /* it is there, and loads */
    rank_ready(&w.ranks[1]);
    settle_ms(&w, 30);
    ask(&w, &c[2], SHORT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    world_close(&w);
    assert_int_equal(w.ranks[1].n_stops, 1); /* it hears of the end as well */
}

static void test_join__a_lost_one_is_not_ours_to_restart(void **state UNUSED)
{
    struct world w;
    struct client c, blocker;

    open_join(&w, &taking);
    joiner(&w, 1, 1);
    join(&w, 1);
    ask(&w, &blocker, LONG, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    ask(&w, &c, SHORT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    rank_token(&w.ranks[1], &w.ranks[1].last, 0, 'x');
    settle_ms(&w, 30);
    lose(&w, 1);
    await_count(&w, &w.ranks[0].n_submits, 2);
    assert_int_equal(w.ranks[0].last.n_emitted, 1);
    assert_int_equal(w.ranks[0].last_emitted[0], 'x');
    settle_ms(&w, 400); /* the verdict */
    assert_int_equal(w.n_lost, 0);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    joiner(&w, 2, 2);
    join(&w, 2);
    assert_int_equal(w.ranks[2].replica, 1); /* its slot, and a generation of its own */
    assert_int_equal(w.ranks[2].generation, 5);
    world_close(&w);
}

static void test_join__two_ranks_of_one_job_are_one_replica(void **state UNUSED)
{
    struct world w;

    open_join(&w, &taking);
    for (uint32_t i = 1; i <= 2; i++) {
        struct msg_hello *h = joiner(&w, i, 1);
        h->rank = 2 - i; /* the leader last */
        h->n_ranks = 2;
        h->join.pp = 2;
        rank_attach(&w, i);
        await_count(&w, &w.ranks[i].n_welcomes, 1);
        assert_int_equal(w.ranks[i].replica, 1);
    }
    joiner(&w, 3, 1)->n_ranks = 2;
    w.ranks[3].hello.join.tp = 2;
    rank_attach(&w, 3);
    await(&w, &w.ranks[3].is_done);
    assert_int_equal(w.ranks[3].done_st, ST_ERR_MISMATCH);
    says(w.ranks[3].done_text, "tp 2 x pp 1, ");
    says(w.ranks[3].done_text, "the first rank of its job had tp 1 x pp 2");
    world_close(&w);
}

static void refused(void (*spoil)(struct msg_hello *), const struct coord_config *more, status st,
                    const char *word)
{
    struct world w;

    open_join(&w, more);
    spoil(joiner(&w, 1, 1));
    rank_attach(&w, 1);
    await(&w, &w.ranks[1].is_done);
    assert_int_equal(w.ranks[1].done_st, st);
    says(w.ranks[1].done_text, word);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    assert_int_equal(w.n_lost, 0);
    world_close(&w);
}

static void spoil_nothing(struct msg_hello *h UNUSED)
{
}
static void spoil_build(struct msg_hello *h)
{
    h->build = "other";
}
static void spoil_protocol(struct msg_hello *h)
{
    h->protocol = 99;
}
static void spoil_model(struct msg_hello *h)
{
    h->join.model_digest = 0xBAD;
}
static void spoil_profile(struct msg_hello *h)
{
    h->profile = "cpu-bf16-v1";
}
static void spoil_profile_name(struct msg_hello *h)
{
    h->profile = "a-name-that-is-longer-than-any-that-a-numeric-profile-will-ever-have";
}
static void spoil_ctx(struct msg_hello *h)
{
    h->join.ctx_max = CTX - 1;
}
static void spoil_blocks(struct msg_hello *h)
{
    h->join.block_tokens = 16;
}
static void spoil_kv(struct msg_hello *h)
{
    h->join.kv_blocks = 1u << 31;
}
static void spoil_shape(struct msg_hello *h)
{
    h->join.tp = h->join.pp = 65536; /* their product is 0 */
    h->n_ranks = 0;
}
static void spoil_ranks(struct msg_hello *h)
{
    h->n_ranks = 3;
}

static void test_join__what_does_not_fit_is_refused_with_both_values(void **state UNUSED)
{
    static const struct coord_config none = { .n_replicas = 1 };

    refused(spoil_build, &taking, ST_ERR_MISMATCH, "is build \"other\", the coordinator \"0.");
    refused(spoil_protocol, &taking, ST_ERR_MISMATCH, "protocol 99, the coordinator 1");
    refused(spoil_model, &taking, ST_ERR_MISMATCH, "digest 0000000000000bad, the service's has ");
    refused(spoil_profile, &taking, ST_ERR_MISMATCH,
            "profile cpu-bf16-v1, the coordinator serves cpu-f32-v1");
    refused(spoil_profile_name, &mixed, ST_ERR_MISMATCH, "name of 68 bytes (at most 63)");
    refused(spoil_ctx, &taking, ST_ERR_MISMATCH, "context of 63 tokens, the service promises 64");
    refused(spoil_blocks, &taking, ST_ERR_MISMATCH, "KV blocks of 16 tokens, the service of 32");
    refused(spoil_kv, &taking, ST_ERR_MISMATCH, "2147483648 KV blocks (1 .. 4194304)");
    refused(spoil_shape, &taking, ST_ERR_MISMATCH, "tp 65536 x pp 65536 are not 0 ranks");
    refused(spoil_ranks, &taking, ST_ERR_MISMATCH, "tp 1 x pp 1 are not 3 ranks");
    refused(spoil_nothing, &none, ST_ERR_UNAVAILABLE, "(--join-max 0)");
}

static void test_join__no_more_than_may_join(void **state UNUSED)
{
    struct world w;

    open_join(&w, &taking);
    for (uint8_t i = 1; i <= 3; i++) {
        joiner(&w, i, i);
        rank_attach(&w, i);
        await_count(&w, i == 3 ? (uint32_t[]){ 1 } : &w.ranks[i].n_welcomes, 1);
    }
    await(&w, &w.ranks[3].is_done);
    says(w.ranks[3].done_text, "2 replicas have joined, and at most 2 may (--join-max)");
    world_close(&w);
}

/* ---- weights ---- */

static void test_join__other_weights_take_no_traffic(void **state UNUSED)
{
    struct world w;

    open_join(&w, &taking);
    joiner(&w, 1, 1);
    rank_attach(&w, 1);
    await_count(&w, &w.ranks[1].n_welcomes, 1);
    rank_ready_of(&w.ranks[1], 0xCD);
    await(&w, &w.ranks[1].is_done);
    says(w.ranks[1].done_text, "weights with digest cd01");
    says(w.ranks[1].done_text, "the service has ab01");
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    world_close(&w);
}

static void test_join__the_services_own_say_which_weights_are_right(void **state UNUSED)
{
    struct world w;

    world_open_as(&w, 1, &taking);
    joiner(&w, 1, 1);
    joiner(&w, 2, 2);
    for (uint32_t i = 1; i <= 2; i++) {
        rank_attach(&w, i);
        await_count(&w, &w.ranks[i].n_welcomes, 1);
    }
    rank_ready_of(&w.ranks[1], 0xCD);
    rank_ready(&w.ranks[2]);
    settle_ms(&w, 50);
    assert_int_equal(coord_state(w.coord), COORD_STARTING); /* both are whole, and wait */
    rank_ready(rank_attach(&w, 0));
    await(&w, &w.ranks[1].is_done);
    says(w.ranks[1].done_text, "digest cd01");
    assert_false(w.ranks[2].is_done);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    assert_string_equal(coord_weights_digest(w.coord), "ab010000000000000000000000000000");
    world_close(&w);
}

static void test_join__without_own_replicas_the_first_serves(void **state UNUSED)
{
    static const struct coord_config only = { .external_only = true, .join_max = 2, .retries = 3 };
    struct world w;
    struct client c;

    world_open_as(&w, 1, &only);
    settle_ms(&w, 50);
    assert_int_equal(coord_state(w.coord), COORD_STARTING);
    joiner(&w, 1, 1);
    join(&w, 1);
    assert_int_equal(w.ranks[1].replica, 0);
    assert_int_equal(coord_state(w.coord), COORD_SERVING);
    ask(&w, &c, SHORT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    lose(&w, 1);
    settle_ms(&w, 20);
    joiner(&w, 2, 2); /* before the verdict: another slot */
    join(&w, 2);
    await_count(&w, &w.ranks[2].n_submits, 1);
    lose(&w, 2);
    await(&w, &c.is_done);                                    /* rejoin_ns is 0 here */
    assert_int_equal(coord_state(w.coord), COORD_RECOVERING); /* nobody there is no failure */
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    says(c.error, "no replica is left that could hold the stream's");
    world_close(&w);
}

/* ---- profiles ---- */

static void spread(struct world *w, struct client *blocker)
{
    joiner(w, 1, 1)->profile = "cpu-bf16-v1";
    join(w, 1);
    ask(w, blocker, LONG, false, CLOCK_NEVER);
    await_count(w, &w->ranks[0].n_submits, 1);
}

static void test_profile__a_stream_that_crosses_says_so(void **state UNUSED)
{
    struct world w;
    struct client c, blocker;

    open_join(&w, &mixed);
    spread(&w, &blocker);
    ask(&w, &c, SHORT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    rank_token(&w.ranks[1], &w.ranks[1].last, 0, 'x');
    settle_ms(&w, 30);
    assert_string_equal(c.profile, "cpu-bf16-v1"); /* where it was placed, not the plan's */
    lose(&w, 1);
    await_count(&w, &w.ranks[0].n_submits, 2);
    rank_token(&w.ranks[0], &w.ranks[0].last, 0, 'y'); /* what another profile may well compute */
    rank_token(&w.ranks[0], &w.ranks[0].last, 1, 'z');
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "xz");
    assert_string_equal(c.profiles, "cpu-bf16-v1 cpu-f32-v1 ");
    world_close(&w);
}

static void test_profile__one_profile_is_not_repeated(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_join(&w, &mixed);
    ask(&w, &c, REQ("hi", .has_max_tokens = true, .max_tokens = 3), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_string_equal(c.profile, "cpu-f32-v1");
    assert_string_equal(c.profiles, "");
    ask(&w, &c, REQ("hi", .has_max_tokens = true, .max_tokens = 3), true, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_string_equal(c.profile, "cpu-f32-v1");
    world_close(&w);
}

static void test_profile__an_exact_stream_waits_for_its_own(void **state UNUSED)
{
    struct world w;
    struct client c, blocker;

    open_join(&w, &mixed);
    spread(&w, &blocker);
    ask(&w, &c, EXACT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    rank_token(&w.ranks[1], &w.ranks[1].last, 0, 'x');
    settle_ms(&w, 30);
    lose(&w, 1);
    settle_ms(&w, 400);
    assert_int_equal(w.ranks[0].n_submits, 1); /* it could take it, and does not */
    assert_false(c.is_done);
    joiner(&w, 2, 2)->profile = "cpu-bf16-v1";
    join(&w, 2);
    await_count(&w, &w.ranks[2].n_submits, 1);
    assert_int_equal(w.ranks[2].last_emitted[0], 'x');
    rank_finish(&w.ranks[2], &w.ranks[2].last, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.profiles, "");
    world_close(&w);
}

static void test_profile__an_exact_stream_fails_when_none_will_come(void **state UNUSED)
{
    struct world w;
    struct client c, blocker;

    open_join(&w, &mixed);
    spread(&w, &blocker);
    ask(&w, &c, EXACT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    lose(&w, 1);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    says(c.error, "has begun under profile cpu-bf16-v1 and is exact");
    assert_int_equal(w.ranks[0].n_submits, 1);
    world_close(&w);
}

static void test_profile__a_stream_prefers_its_own(void **state UNUSED)
{
    struct world w;
    struct client c, blocker;

    open_join(&w, &mixed);
    spread(&w, &blocker);
    joiner(&w, 2, 2)->profile = "cpu-bf16-v1";
    join(&w, 2);
    ask(&w, &c, SHORT, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[1].n_submits, 1);
    rpc_call_cancel(blocker.call); /* the other profile's is the idlest by far */
    await(&w, &blocker.is_done);
    struct client more;
    ask(&w, &more, LONG, false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 2);
    rpc_call_cancel(more.call);
    await(&w, &more.is_done);
    settle_ms(&w, 30);
    lose(&w, 1);
    await_count(&w, &w.ranks[2].n_submits, 1);
    assert_int_equal(w.ranks[0].n_submits, 2);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join__a_replica_takes_streams_when_it_is_ready),
        cmocka_unit_test(test_join__a_lost_one_is_not_ours_to_restart),
        cmocka_unit_test(test_join__two_ranks_of_one_job_are_one_replica),
        cmocka_unit_test(test_join__what_does_not_fit_is_refused_with_both_values),
        cmocka_unit_test(test_join__no_more_than_may_join),
        cmocka_unit_test(test_join__other_weights_take_no_traffic),
        cmocka_unit_test(test_join__the_services_own_say_which_weights_are_right),
        cmocka_unit_test(test_join__without_own_replicas_the_first_serves),
        cmocka_unit_test(test_profile__a_stream_that_crosses_says_so),
        cmocka_unit_test(test_profile__one_profile_is_not_repeated),
        cmocka_unit_test(test_profile__an_exact_stream_waits_for_its_own),
        cmocka_unit_test(test_profile__an_exact_stream_fails_when_none_will_come),
        cmocka_unit_test(test_profile__a_stream_prefers_its_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
