/* The coordinator against a scripted rank and real clients (coord_world.h): what is streamed,
 * refused, cancelled, bounded, pushed to watchers, and who is blamed for a loss. */
#include "unit/coordinator/coord_world.h"

/* ---- cases ---- */

static void test_coord__streams_what_the_rank_says(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("hi", .has_max_tokens = true, .max_tokens = 12, .has_seed = true, .seed = 5),
        false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "hello hello ");
    assert_int_equal(c.n_tokens, 12);
    assert_int_equal(c.reason, FINISH_LENGTH);
    assert_int_equal(c.seed, 5);
    assert_true(c.n_messages >= 2);
    assert_int_equal(w.ranks[0].last.n_prompt, 3); /* BOS h i */
    assert_int_equal(w.ranks[0].last_stop_id, BYTES_EOS);
    assert_true(w.ranks[0].last.temperature == 1.0f && w.ranks[0].last.top_p == 1.0f);
    world_close(&w);
}

static void test_coord__unary_is_the_same_in_one_piece(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("hi", .ignore_eos = true), true, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_int_equal(c.n_messages, 1);
    assert_int_equal(c.n_tokens, CTX - 3); /* absent: until the context is full */
    assert_int_equal(strncmp(c.text, "hello hello ", 12), 0);
    assert_int_equal(w.ranks[0].last.n_stop_ids, 0);
    world_close(&w);
}

static void test_coord__a_stop_string_cancels_at_the_leader(void **state UNUSED)
{
    static const struct msg_str stop = { "o h", 3 };
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("hi", .n_stop = 1, .stop = &stop), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "hell");
    assert_int_equal(c.reason, FINISH_STOP);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    world_close(&w);
}

static void test_coord__a_client_that_leaves_cancels_at_once(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("wait"), false, CLOCK_NEVER);
    await_count(&w, &c.n_messages, 1);
    rpc_call_cancel(c.call);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_CANCELLED);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    world_close(&w);
}

static void test_coord__a_deadline_is_forwarded_and_cancels(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("wait"), false, clock_now_ns(clock_real()) + 200 * NS_PER_MS);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_DEADLINE);
    /* gRPC rounds the time left up on its way, and counts it from the receipt. */
    assert_in_range(w.ranks[0].last.deadline_us, 1, 250000);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    world_close(&w);
}

static void test_coord__the_queue_is_bounded(void **state UNUSED)
{
    struct world w;
    struct client waiting[QUEUE], c;

    world_serve(&w);
    for (uint32_t i = 0; i < QUEUE; i++) {
        ask(&w, &waiting[i], REQ("wait"), false, CLOCK_NEVER);
    }
    await_count(&w, &w.ranks[0].n_submits, QUEUE);
    ask(&w, &c, REQ("hi"), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_LIMIT);
    assert_non_null(strstr(c.error, "3 streams are open"));
    rpc_call_cancel(waiting[0].call);
    await(&w, &waiting[0].is_done);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    ask(&w, &c, REQ("hi", .has_max_tokens = true, .max_tokens = 2), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    world_close(&w);
    assert_true(waiting[1].is_done && waiting[2].is_done);
    assert_int_equal(waiting[1].st, ST_ERR_UNAVAILABLE);
}

static void test_coord__a_live_request_id_is_not_used_twice(void **state UNUSED)
{
    struct world w;
    struct client first, second;
    struct msg_generate m = *REQ("wait");

    m.request_id = "mine";
    world_serve(&w);
    ask(&w, &first, &m, false, CLOCK_NEVER);
    await_count(&w, &first.n_messages, 1);
    assert_string_equal(first.request_id, "mine");
    ask(&w, &second, &m, false, CLOCK_NEVER);
    await(&w, &second.is_done);
    assert_int_equal(second.st, ST_ERR_EXISTS);
    assert_non_null(strstr(second.error, "mine"));
    rpc_call_cancel(first.call);
    await(&w, &first.is_done);
    await_count(&w, &w.ranks[0].n_cancels, 1);
    m = *REQ("hi", .has_max_tokens = true, .max_tokens = 1);
    m.request_id = "mine";
    for (int i = 0; i < 3; i++) { /* free again as soon as the answer is over */
        ask(&w, &second, &m, true, CLOCK_NEVER);
        await(&w, &second.is_done);
        assert_int_equal(second.st, ST_OK);
    }
    world_close(&w);
}

static void refused(struct world *w, const struct msg_generate *m, status st, const char *word)
{
    struct client c;

    ask(w, &c, m, false, CLOCK_NEVER);
    await(w, &c.is_done);
    assert_int_equal(c.st, st);
    if (strstr(c.error, word) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", c.error, word);
    }
}

static void test_coord__refusals_say_what_and_how_much(void **state UNUSED)
{
    static const uint32_t ids[] = { BYTES_VOCAB };
    char longer[CTX + 1];
    struct world w;

    memset(longer, 'a', sizeof(longer));
    world_serve(&w);
    refused(&w, REQ("hi", .has_temperature = true, .temperature = -1.0f), ST_ERR_ARG,
            "temperature is -1; 0 .. 100");
    refused(&w, REQ("", .has_prompt_ids = true, .n_prompt_ids = 1, .prompt_ids = ids), ST_ERR_ARG,
            "prompt_ids[0] is 258");
    refused(&w, REQ("hi", .has_max_tokens = true, .max_tokens = CTX + 1), ST_ERR_ARG,
            "max_tokens is 65");
    struct msg_generate m = *REQ("");
    m.prompt = (struct msg_str){ longer, CTX };
    refused(&w, &m, ST_ERR_ARG, "the prompt has 65 tokens and the context 64");
    refused(&w, REQ("hi", .has_top_p = true, .top_p = 2.0f), ST_ERR_ARG, "top_p is 2");
    refused(&w, REQ("e"), ST_ERR_LIMIT, "no KV for you");
    refused(&w, REQ("g"), ST_ERR_INTERNAL, "out of order");
    assert_int_equal(w.ranks[0].n_submits, 2);
    world_close(&w);
}

static void test_coord__an_empty_prompt_is_bos_alone(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("", .has_max_tokens = true, .max_tokens = 1), true, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_int_equal(w.ranks[0].last.n_prompt, 1);
    world_close(&w);
}

static void test_coord__events_of_an_older_attempt_are_dropped(void **state UNUSED)
{
    struct world w;
    struct client c;

    world_serve(&w);
    ask(&w, &c, REQ("stale", .has_max_tokens = true, .max_tokens = 5), true, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "hello");
    world_close(&w);
}

static void test_coord__serves_when_every_rank_is_ready(void **state UNUSED)
{
    struct world w;
    struct client watcher, unknown, c;

    world_open(&w, 2);
    watch(&w, &watcher, "gantry.v1.Generation");
    watch(&w, &unknown, "no.such.Service");
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.ranks[0].n_welcomes, 1);
    await_count(&w, &watcher.n_health, 1);
    assert_int_equal(watcher.health[0], HEALTH_NOT_SERVING);
    assert_int_equal(check(&w), HEALTH_NOT_SERVING);
    ask(&w, &c, REQ("hi"), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    assert_non_null(strstr(c.error, "1 of 2 ranks"));
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &watcher.n_health, 2);
    assert_int_equal(watcher.health[1], HEALTH_SERVING);
    assert_int_equal(check(&w), HEALTH_SERVING);
    assert_int_equal(unknown.n_health, 1);
    assert_int_equal(unknown.health[0], HEALTH_SERVICE_UNKNOWN);
    assert_false(unknown.is_done);
    coord_stop(w.coord, 0, on_stopped, &w);
    await_count(&w, &watcher.n_health, 3);
    assert_int_equal(watcher.health[2], HEALTH_NOT_SERVING);
    world_close(&w);
    assert_true(watcher.is_done && unknown.is_done);
}

static void test_coord__a_lost_rank_is_named(void **state UNUSED)
{
    struct world w;
    struct client c, watcher;
    status code = ST_OK;

    world_open(&w, 2);
    rank_ready(rank_attach(&w, 0));
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &w.n_states, 1);
    watch(&w, &watcher, "");
    ask(&w, &c, REQ("wait"), false, CLOCK_NEVER);
    await_count(&w, &c.n_messages, 1);
    /* What a killed rank looks like, with its partner's complaint behind it. */
    rpc_call_cancel(w.ranks[1].call);
    await(&w, &w.ranks[1].is_done);
    rank_say(&w.ranks[0], &(struct msg_rank){
                              MSG_FAULT, .fault = { ST_ERR_PEER, 0, "rank 1 does not answer" } });
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_ERR_UNAVAILABLE);
    assert_non_null(strstr(c.error, "rank 1 (host here, pid 101)"));
    await_count(&w, &w.n_states, 2);
    assert_int_equal(w.states[1], COORD_FAILED);
    assert_non_null(strstr(coord_failure(w.coord, &code), "rank 1 (host here"));
    assert_int_equal(code, ST_ERR_PEER);
    await_count(&w, &watcher.n_health, 2);
    assert_int_equal(watcher.health[1], HEALTH_NOT_SERVING);
    world_close(&w);
}

static void test_coord__a_fault_is_the_reason_of_the_failure(void **state UNUSED)
{
    struct world w;
    status code = ST_OK;

    world_open(&w, 1);
    rank_attach(&w, 0);
    rank_say(&w.ranks[0],
             &(struct msg_rank){ MSG_FAULT, .fault = { ST_ERR_NOMEM, 0, "needs 9 GiB, has 8" } });
    await_count(&w, &w.n_states, 1);
    coord_job_ended(w.coord, 0, "mpirun has ended with exit code 1"); /* comes later, says less */
    assert_string_equal(coord_failure(w.coord, &code), "rank 0 (host here): needs 9 GiB, has 8");
    assert_int_equal(code, ST_ERR_NOMEM);
    world_close(&w);
}

static void hello_refused(void (*spoil)(struct msg_hello *), const char *word)
{
    struct world w;

    world_open(&w, 1);
    spoil(&w.ranks[0].hello);
    rank_attach(&w, 0);
    await(&w, &w.ranks[0].is_done);
    assert_int_equal(w.ranks[0].done_st, ST_ERR_MISMATCH);
    if (strstr(w.ranks[0].done_text, word) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", w.ranks[0].done_text, word);
    }
    await_count(&w, &w.n_states, 1);
    assert_int_equal(w.states[0], COORD_FAILED);
    world_close(&w);
}

static void spoil_build(struct msg_hello *h)
{
    h->build = "other";
}

static void spoil_protocol(struct msg_hello *h)
{
    h->protocol = 99;
}

static void spoil_digest(struct msg_hello *h)
{
    h->plan_digest = 0xBAD;
}

static void spoil_profile(struct msg_hello *h)
{
    h->profile = "cpu-int3-v9";
}

static void spoil_generation(struct msg_hello *h)
{
    h->generation = 3;
}

static void spoil_rank(struct msg_hello *h)
{
    h->rank = 1;
}

static void test_coord__a_rank_that_does_not_match_is_refused(void **state UNUSED)
{
    hello_refused(spoil_build, "is build \"other\", the coordinator \"0.");
    hello_refused(spoil_protocol, "protocol 99, the coordinator 1");
    hello_refused(spoil_digest, "plan 0000000000000bad");
    hello_refused(spoil_profile, "cpu-int3-v9, the coordinator serves cpu-f32-v1");
    hello_refused(spoil_generation, "generation 3, the coordinator has 0 and 4");
    hello_refused(spoil_rank, "rank 1 of 1");
}

static void test_coord__a_second_rank_of_the_same_number_is_refused(void **state UNUSED)
{
    struct world w;

    world_serve(&w);
    w.ranks[1].hello.rank = 0;
    w.ranks[1].hello.n_ranks = 1;
    rank_attach(&w, 1);
    await(&w, &w.ranks[1].is_done);
    assert_int_equal(w.ranks[1].done_st, ST_ERR_MISMATCH);
    assert_non_null(strstr(w.ranks[1].done_text, "rank 0 is pid 100 on here already; pid 101"));
    assert_int_equal(coord_state(w.coord), COORD_SERVING); /* a stranger does not end the service */
    world_close(&w);
}

static void test_coord__running_answers_may_end_within_the_grace(void **state UNUSED)
{
    struct world w;
    struct client c, late;

    world_serve(&w);
    ask(&w, &c, REQ("wait", .has_max_tokens = true, .max_tokens = 1), false, CLOCK_NEVER);
    await_count(&w, &w.ranks[0].n_submits, 1);
    coord_stop(w.coord, 5 * NS_PER_S, on_stopped, &w);
    ask(&w, &late, REQ("hi"), false, CLOCK_NEVER);
    await(&w, &late.is_done);
    assert_int_equal(late.st, ST_ERR_UNAVAILABLE);
    assert_int_equal(w.ranks[0].n_stops, 0);
    rank_token(&w.ranks[0], &w.ranks[0].last, 0, 'k');
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "k");
    world_close(&w);
    assert_int_equal(w.ranks[0].n_stops, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coord__streams_what_the_rank_says),
        cmocka_unit_test(test_coord__unary_is_the_same_in_one_piece),
        cmocka_unit_test(test_coord__a_stop_string_cancels_at_the_leader),
        cmocka_unit_test(test_coord__a_client_that_leaves_cancels_at_once),
        cmocka_unit_test(test_coord__a_deadline_is_forwarded_and_cancels),
        cmocka_unit_test(test_coord__the_queue_is_bounded),
        cmocka_unit_test(test_coord__a_live_request_id_is_not_used_twice),
        cmocka_unit_test(test_coord__refusals_say_what_and_how_much),
        cmocka_unit_test(test_coord__an_empty_prompt_is_bos_alone),
        cmocka_unit_test(test_coord__events_of_an_older_attempt_are_dropped),
        cmocka_unit_test(test_coord__serves_when_every_rank_is_ready),
        cmocka_unit_test(test_coord__a_lost_rank_is_named),
        cmocka_unit_test(test_coord__a_fault_is_the_reason_of_the_failure),
        cmocka_unit_test(test_coord__a_rank_that_does_not_match_is_refused),
        cmocka_unit_test(test_coord__a_second_rank_of_the_same_number_is_refused),
        cmocka_unit_test(test_coord__running_answers_may_end_within_the_grace),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
