/* tests/unit/cluster/test_rpc_loop.c - posts from other threads, timers, stopping. */
#include "unit/cluster/rpc_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

enum { POSTERS = 4, POSTS_EACH = 20000 };

struct poster {
    pthread_t thread;
    struct rpc_loop *loop;
    uint32_t i_poster;
};

struct post {
    uint32_t i_poster, i_post;
};

static uint32_t seen[POSTERS]; /* loop thread only */
static atomic_uint n_seen;
static struct rpc_loop *the_loop;
static struct post posts[POSTERS][POSTS_EACH];

static void take_post(void *arg)
{
    const struct post *post = arg;

    assert_int_equal(post->i_post, seen[post->i_poster]); /* in the order of posting */
    seen[post->i_poster]++;
    if (atomic_fetch_add(&n_seen, 1) + 1 == POSTERS * POSTS_EACH) {
        rpc_loop_stop(the_loop);
    }
}

static void *poster_main(void *arg)
{
    const struct poster *p = arg;

    for (uint32_t i = 0; i < POSTS_EACH; i++) {
        posts[p->i_poster][i] = (struct post){ p->i_poster, i };
        while (rpc_loop_post(p->loop, take_post, &posts[p->i_poster][i]) == ST_BUSY) {
            sched_yield();
        }
    }
    return NULL;
}

static void test_rpc_loop__posts_of_four_threads_run_in_order(void **state)
{
    struct poster posters[POSTERS];
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    memset(seen, 0, sizeof(seen));
    atomic_store(&n_seen, 0);
    the_loop = f.loop;
    for (uint32_t i = 0; i < POSTERS; i++) {
        posters[i].loop = f.loop;
        posters[i].i_poster = i;
        assert_int_equal(pthread_create(&posters[i].thread, NULL, poster_main, &posters[i]), 0);
    }
    rpc_loop_run(f.loop);
    for (uint32_t i = 0; i < POSTERS; i++) {
        pthread_join(posters[i].thread, NULL);
        assert_int_equal(seen[i], POSTS_EACH);
    }
    fixture_close(&f);
}

static void count(void *arg)
{
    (*(uint32_t *)arg)++;
}

static void test_rpc_loop__posts_are_bounded(void **state)
{
    uint32_t n_run = 0;
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    for (int i = 0; i < 65536; i++) {
        assert_int_equal(rpc_loop_post(f.loop, count, &n_run), ST_OK);
    }
    assert_int_equal(rpc_loop_post(f.loop, count, &n_run), ST_BUSY);
    rpc_loop_stop(f.loop);
    assert_int_equal(rpc_loop_post(f.loop, count, &n_run), ST_ERR_CANCELLED);
    rpc_loop_run(f.loop); /* the stop that came first is obeyed after the posts before it */
    assert_int_equal(n_run, 65536);
    assert_int_equal(rpc_loop_post(f.loop, count, &n_run), ST_ERR_CANCELLED);
    fixture_close(&f);
}

struct repost {
    struct rpc_loop *loop;
    uint32_t left;
};

static void post_again(void *arg)
{
    struct repost *r = arg;

    if (--r->left == 0) {
        rpc_loop_stop(r->loop);
    } else {
        assert_int_equal(rpc_loop_post(r->loop, post_again, r), ST_OK);
    }
}

static void test_rpc_loop__a_post_may_post(void **state)
{
    struct repost r = { .left = 1000 };
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    r.loop = f.loop;
    assert_int_equal(rpc_loop_post(f.loop, post_again, &r), ST_OK);
    rpc_loop_run(f.loop);
    assert_int_equal(r.left, 0);
    fixture_close(&f);
}

/* ---- timers ---- */

enum { TIMERS = 200 };

struct tick {
    struct rpc_timer timer;
    uint32_t id;
};

static struct {
    struct fixture f;
    uint64_t last_at;
    uint32_t last_id, n_fired;
    struct tick ticks[TIMERS];
} t;

static void fired(void *arg)
{
    const struct tick *tick = arg;

    assert_true(tick->timer.at_ns <= clock_now_ns(clock_real()));
    assert_true(tick->timer.at_ns >= t.last_at);
    if (tick->timer.at_ns == t.last_at) {
        assert_true(tick->id > t.last_id); /* equal times: in the order of setting */
    }
    assert_int_equal(tick->timer.i_heap, 0);
    t.last_at = tick->timer.at_ns;
    t.last_id = tick->id;
    t.n_fired++;
}

static void stop_loop(void *arg)
{
    rpc_loop_stop(arg);
}

static void test_rpc_loop__timers_fire_in_order(void **state)
{
    struct rpc_timer last = { .fn = stop_loop };
    uint64_t base;
    uint32_t seed = 7;

    (void)state;
    memset(&t, 0, sizeof(t));
    fixture_loop(&t.f);
    last.arg = t.f.loop;
    base = in_ms(5);
    for (uint32_t i = 0; i < TIMERS; i++) {
        seed = seed * 1664525u + 1013904223u;
        t.ticks[i] = (struct tick){ .timer = { .fn = fired, .arg = &t.ticks[i] }, .id = i };
        assert_int_equal(rpc_timer_set(t.f.loop, &t.ticks[i].timer, in_ms(1 + seed % 3)), ST_OK);
    }
    for (uint32_t i = 0; i < TIMERS; i++) { /* moved: only the last setting counts */
        seed = seed * 1664525u + 1013904223u;
        assert_int_equal(
            rpc_timer_set(t.f.loop, &t.ticks[i].timer, base + (seed >> 16) % 20 * NS_PER_MS),
            ST_OK);
    }
    for (uint32_t i = 0; i < TIMERS; i += 4) {
        assert_int_equal(rpc_timer_set(t.f.loop, &t.ticks[i].timer, CLOCK_NEVER), ST_OK);
        assert_int_equal(t.ticks[i].timer.i_heap, 0);
    }
    assert_int_equal(rpc_timer_set(t.f.loop, &last, base + 30 * NS_PER_MS), ST_OK);
    rpc_loop_run(t.f.loop);
    assert_int_equal(t.n_fired, TIMERS - TIMERS / 4);
    fixture_close(&t.f);
}

struct rearm {
    struct rpc_loop *loop;
    struct rpc_timer timer, other;
    uint32_t left;
    uint32_t n_other;
};

static void rearm(void *arg)
{
    struct rearm *r = arg;

    if (--r->left > 0) {
        assert_int_equal(rpc_timer_set(r->loop, &r->timer, 0), ST_OK); /* always past */
    }
}

static void other(void *arg)
{
    struct rearm *r = arg;

    r->n_other++;
    rpc_loop_stop(r->loop);
}

static void test_rpc_loop__timer_that_rearms_itself_keeps_nobody_out(void **state)
{
    struct rearm r = { .left = 1u << 30 };
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    r.loop = f.loop;
    r.timer = (struct rpc_timer){ .fn = rearm, .arg = &r };
    r.other = (struct rpc_timer){ .fn = other, .arg = &r };
    assert_int_equal(rpc_timer_set(f.loop, &r.timer, 0), ST_OK);
    assert_int_equal(rpc_timer_set(f.loop, &r.other, in_ms(10)), ST_OK);
    rpc_loop_run(f.loop);
    assert_int_equal(r.n_other, 1);
    assert_true(r.left > 1 && r.left < 1u << 30);
    fixture_close(&f);
}

static void *stopper_main(void *arg)
{
    rpc_loop_stop(arg);
    return NULL;
}

static void test_rpc_loop__another_thread_stops_it_and_it_runs_again(void **state)
{
    struct fixture f;

    (void)state;
    fixture_loop(&f);
    for (int i = 0; i < 50; i++) {
        pthread_t thread;

        assert_int_equal(pthread_create(&thread, NULL, stopper_main, f.loop), 0);
        rpc_loop_run(f.loop);
        pthread_join(thread, NULL);
    }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(test_rpc_loop__posts_of_four_threads_run_in_order),
        cmocka_unit_test(test_rpc_loop__posts_are_bounded),
        cmocka_unit_test(test_rpc_loop__a_post_may_post),
        cmocka_unit_test(test_rpc_loop__timers_fire_in_order),
        cmocka_unit_test(test_rpc_loop__timer_that_rearms_itself_keeps_nobody_out),
        cmocka_unit_test(test_rpc_loop__another_thread_stops_it_and_it_runs_again),
    };

    return cmocka_run_group_tests(cases, NULL, NULL);
}
