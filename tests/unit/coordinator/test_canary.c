/* The canary (coord_world.h): nobody serves without it, other bits are not let in, and an idle
 * replica that takes no work is found. */
#include "unit/coordinator/coord_world.h"

#include "coordinator/journal_disk.h"

#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct world *w = arg;

    w->n_lost++;
    w->last_lost = replica;
    w->last_delay_ns = delay_ns;
}

static void open_with(struct world *w, uint64_t canary_ns, uint64_t hang_ns)
{
    const struct coord_config more = { .n_replicas = 2,
                                       .restarts = 5,
                                       .canary_ns = canary_ns,
                                       .hang_ns = hang_ns,
                                       .on_lost = on_lost };
    world_open_as(w, 1, &more);
}

/* Heartbeats as an idle leader sends them, for `ms`. */
static void beat(struct world *w, uint32_t i, uint32_t ms)
{
    const struct msg_heartbeat beat = { .phase = "idle" };

    for (uint32_t t = 0; t < ms && !w->ranks[i].is_done; t += 20) {
        rank_say(&w->ranks[i], &(struct msg_rank){ MSG_HEARTBEAT, .heartbeat = beat });
        settle_ms(w, 20);
    }
}

static void test_canary__a_replica_serves_after_its_answer(void **state UNUSED)
{
    struct world w;

    open_with(&w, NS_PER_S, 0);
    w.ranks[0].is_mute = true;
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.ranks[0].n_submits, 1);
    settle_ms(&w, 50);
    assert_int_equal(w.n_states, 0);
    assert_int_equal(check(&w), HEALTH_NOT_SERVING);
    assert_true(w.ranks[0].last.max_tokens > 1 && w.ranks[0].last.want_logprobs);
    for (uint32_t i = 0; i < w.ranks[0].last.max_tokens; i++) {
        rank_token(&w.ranks[0], &w.ranks[0].last, i, 'x');
    }
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_LENGTH, ST_OK, "");
    await_count(&w, &w.n_states, 1);
    assert_int_equal(w.states[0], COORD_SERVING);
    assert_int_equal(check(&w), HEALTH_SERVING);
    world_close(&w);
}

static void test_canary__other_bits_are_not_let_in(void **state UNUSED)
{
    struct world w;

    open_with(&w, NS_PER_S, 0);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    w.ranks[1].logprob = 0x1p-25f; /* the last bit of -0.5 */
    rank_ready(rank_attach(&w, 1));
    await_count(&w, &w.n_lost, 1);
    assert_int_equal(w.last_lost, 1);
    await(&w, &w.ranks[1].is_done);
    assert_non_null(strstr(w.ranks[1].done_text, "computes other bits: token 0"));
    assert_non_null(strstr(w.ranks[1].done_text, "on replica 0, host here"));
    assert_int_equal(check(&w), HEALTH_SERVING);
    world_close(&w);
}

static void test_canary__one_that_fails_is_a_loss_with_its_sentence(void **state UNUSED)
{
    struct world w;

    open_with(&w, NS_PER_S, 0);
    w.ranks[0].is_mute = true;
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.ranks[0].n_submits, 1);
    rank_finish(&w.ranks[0], &w.ranks[0].last, FINISH_FAILED, ST_ERR_INTERNAL, "broken");
    await(&w, &w.ranks[0].is_done);
    assert_non_null(strstr(w.ranks[0].done_text, "the canary got 0 of 4 tokens: broken"));
    world_close(&w);
}

static void test_canary__an_idle_leader_that_takes_no_work_is_found(void **state UNUSED)
{
    struct world w;

    open_with(&w, 50 * NS_PER_MS, 1500 * NS_PER_MS);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    beat(&w, 0, 200);
    assert_true(w.ranks[0].n_submits >= 2); /* idle for 50 ms: tried again */
    assert_int_equal(check(&w), HEALTH_SERVING);
    w.ranks[0].is_mute = true;
    for (uint32_t i = 0; i < 100 && w.n_lost == 0; i++) {
        beat(&w, 0, 40);
    }
    await(&w, &w.ranks[0].is_done);
    assert_int_equal(w.n_lost, 1);
    assert_non_null(strstr(w.ranks[0].done_text, "takes no work"));
    assert_int_equal(check(&w), HEALTH_NOT_SERVING);
    world_close(&w);
}

/* The answer of a canary before the last one proves nothing, and no client sees a token of any. */
static void test_canary__late_answers_are_dropped(void **state UNUSED)
{
    struct world w;
    struct client c;

    open_with(&w, NS_PER_S, 0);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    struct msg_submit old = w.ranks[0].last;
    old.attempt--;
    rank_token(&w.ranks[0], &old, 0, '?');
    rank_finish(&w.ranks[0], &old, FINISH_FAILED, ST_ERR_INTERNAL, "late");
    ask(&w, &c, REQ("hi", .has_max_tokens = true, .max_tokens = 4), false, CLOCK_NEVER);
    await(&w, &c.is_done);
    assert_int_equal(c.st, ST_OK);
    assert_string_equal(c.text, "hell");
    assert_int_equal(w.n_lost, 0);
    world_close(&w);
}

/* ---- another coordinator ---- */

struct kept {
    char dir[64];
    struct journal_disk *disk;
    struct journal_image image;
    uint64_t epoch;
};

/* The next coordinator on the same journal. */
static void open_next(struct world *w, struct kept *k)
{
    const struct journal_disk_config disk = { .dir = k->dir };
    struct err err = ERR_INIT;

    k->epoch++;
    assert_int_equal(journal_disk_open(&disk, &k->disk, &k->image, &err), ST_OK);
    const struct coord_config more = { .n_replicas = 2,
                                       .restarts = 5,
                                       .canary_ns = NS_PER_S,
                                       .on_lost = on_lost,
                                       .disk = k->disk,
                                       .image = &k->image,
                                       .first_stream = (k->epoch << 40) + 1 };
    world_open_as(w, 1, &more);
}

static void close_this(struct world *w, struct kept *k)
{
    journal_disk_freeze(k->disk); /* as one that dies leaves it */
    world_close(w);
    journal_disk_close(k->disk, false);
    journal_image_fini(&k->image);
}

static void kept_make(struct kept *k)
{
    memset(k, 0, sizeof(*k));
    strcpy(k->dir, "/tmp/gantry-canary-XXXXXX");
    assert_non_null(mkdtemp(k->dir));
}

static void kept_free(struct kept *k)
{
    DIR *dir = opendir(k->dir);
    char file[400];

    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        snprintf(file, sizeof(file), "%s/%s", k->dir, e->d_name);
        unlink(file);
    }
    closedir(dir);
    assert_int_equal(rmdir(k->dir), 0);
}

/* Otherwise the first that it hears would say what is right. */
static void test_canary__the_next_coordinator_knows_the_answer(void **state UNUSED)
{
    struct kept k;
    struct world w;

    kept_make(&k);
    open_next(&w, &k);
    rank_ready(rank_attach(&w, 0));
    await_count(&w, &w.n_states, 1);
    assert_int_equal(w.states[0], COORD_SERVING);
    close_this(&w, &k);
    for (uint32_t i = 0; i < 2; i++) { /* the second one has it from the first one's snapshot */
        open_next(&w, &k);
        w.ranks[0].logprob = 0x1p-25f;
        rank_ready(rank_attach(&w, 0));
        await_count(&w, &w.n_lost, 1);
        await(&w, &w.ranks[0].is_done);
        assert_non_null(strstr(w.ranks[0].done_text, "computes other bits: token 0"));
        assert_non_null(strstr(w.ranks[0].done_text, "on replica 0, host here"));
        rank_ready(rank_attach(&w, 1));
        await_count(&w, &w.n_states, 1);
        assert_int_equal(w.states[0], COORD_SERVING);
        assert_int_equal(w.n_lost, 1);
        close_this(&w, &k);
    }
    kept_free(&k);
}

static void test_canary__other_weights_have_another_answer(void **state UNUSED)
{
    struct kept k;
    struct world w;

    kept_make(&k);
    for (uint32_t i = 0; i < 2; i++) {
        open_next(&w, &k);
        w.ranks[0].logprob = (float)i;
        rank_ready_of(rank_attach(&w, 0), (uint8_t)(0xAB + i));
        await_count(&w, &w.n_states, 1);
        assert_int_equal(w.states[0], COORD_SERVING);
        close_this(&w, &k);
    }
    open_next(&w, &k); /* and the later one counts */
    rank_ready_of(rank_attach(&w, 0), 0xAC);
    await_count(&w, &w.n_lost, 1);
    close_this(&w, &k);
    kept_free(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_canary__a_replica_serves_after_its_answer),
        cmocka_unit_test(test_canary__other_bits_are_not_let_in),
        cmocka_unit_test(test_canary__one_that_fails_is_a_loss_with_its_sentence),
        cmocka_unit_test(test_canary__an_idle_leader_that_takes_no_work_is_found),
        cmocka_unit_test(test_canary__late_answers_are_dropped),
        cmocka_unit_test(test_canary__the_next_coordinator_knows_the_answer),
        cmocka_unit_test(test_canary__other_weights_have_another_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
