/* tests/layout/test_device_coll.c - collectives on device memory, on the device made of CPU
 * kernels (tests/replica): the sums are the tree's to the bit, host messages pass through, and a
 * rank that does not come ends the exchange of the others in time. What is said about NCCL here is
 * about our use of it; the library itself needs GPUs (tests/gpu). */
#include "common/coll_checks.h"
#include "replica/fake_device.h"
#include "replica/fake_nccl.h"

#include "base/cpu.h"
#include "cluster/coll_add.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RANKS_MAX = 8, N_MAX = 3000 };

/* NCCL alone; sums over mapped memory where all ranks can; NCCL's own order. */
enum way { STAGED, NCCL, NCCL_SMALL_SCRATCH, NCCL_PEERS, NCCL_FREE, N_WAYS };

/* One rank of a test: its own thread, stream and collectives. */
struct seat {
    const struct kern_ops *ops;
    const struct coll_nccl_api *nccl;
    struct coll_hub *hub;
    uint32_t rank;
    enum way way;
    bool (*play)(struct seat *s);
    const struct coll_case *one;
    uint64_t timeout_ns;
    const _Atomic bool *abort;

    struct kern_stream *stream;
    struct coll *inner, *coll;
    void *scratch;
    bool ok;
    struct coll_note note;
};

static bool failed(struct seat *s, const char *text)
{
    snprintf(s->note.text, sizeof(s->note.text), "%s", text);
    return false;
}

static size_t scratch_bytes(const struct seat *s)
{
    const size_t least = s->inner->tp * 64;
    return s->way == NCCL_SMALL_SCRATCH ? least * 3 : (size_t)1 << 20;
}

static status open_coll(struct seat *s, struct err *err)
{
    const struct kern_ops *k = s->ops;
    struct coll_nccl_config config = { .device = { .stream = s->stream,
                                                   .raw = k->native(s->stream),
                                                   .add = k->add,
                                                   .copy_in = k->copy_in,
                                                   .copy_out = k->copy_out,
                                                   .sync = k->stream_sync,
                                                   .poll = k->stream_poll,
                                                   .mark_poll = k->mark_poll,
                                                   .host_alloc = k->host_alloc,
                                                   .host_free = k->host_free,
                                                   .scratch_bytes = scratch_bytes(s),
                                                   .bytes_max = N_MAX * 4 * RANKS_MAX },
                                       .free_order = s->way == NCCL_FREE,
                                       .api = s->nccl };
    status st = k->mem_alloc(s->stream, scratch_bytes(s), &s->scratch, err);

    config.device.scratch = s->scratch;
    if (s->way == NCCL_PEERS) {
        config.device.peers_create = k->peers_create;
        config.device.peers_open = k->peers_open;
        config.device.peers_sum = k->peers_sum;
        config.device.peers_check = k->peers_check;
        config.device.peers_abort = k->peers_abort;
        config.device.peers_destroy = k->peers_destroy;
        config.device.peer_floats = 2000; /* so that some of the sums are too long */
        config.device.peer_id_bytes = KERN_PEER_ID_BYTES;
    }
    if (st == ST_OK) {
        st = s->way == STAGED ? coll_staged_create(s->inner, &config.device, &s->coll, err)
                              : coll_nccl_create(s->inner, &config, &s->coll, err);
    }
    return st;
}

static void *sit(void *arg)
{
    struct seat *s = arg;
    struct err err = ERR_INIT;

    cpu_float_env_set();
    if (s->ops->stream_create(&(struct kern_stream_config){ 1, 0 }, &s->stream, &err) == ST_OK &&
        coll_local_create(s->hub, s->rank, &s->inner, &err) == ST_OK &&
        open_coll(s, &err) == ST_OK && s->inner->ops->barrier(s->inner, &err) == ST_OK) {
        /* Everybody has joined: a rank that gives up early is not the end of one that still does. */
        s->coll->timeout_ns = s->timeout_ns;
        s->coll->abort = s->abort;
        s->ok = s->play(s);
        s->coll->ops->destroy(s->coll);
    } else {
        (void)failed(s, err.text);
    }
    s->ops->mem_free(s->stream, s->scratch, 0);
    if (s->inner != NULL) {
        s->inner->ops->destroy(s->inner);
    }
    s->ops->stream_destroy(s->stream);
    return NULL;
}

static uint64_t n_peer_sums(void)
{
    struct fake_counts counts;

    fake_device_counts(&counts);
    return counts.peer_sums;
}

static void run(const struct seat *like, struct coll_shape shape)
{
    const uint32_t n = shape.tp * shape.pp;
    const enum fake_mode mode = like->way == STAGED ? FAKE_LAZY : FAKE_THREAD;
    struct seat seats[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    struct coll_hub *hub = NULL;
    const struct kern_ops *ops = fake_device_ops(kern_ops_path(cpu_flags()), mode);
    const struct coll_nccl_api *nccl = fake_nccl_api();

    assert_true(n <= RANKS_MAX);
    assert_int_equal(coll_hub_create(shape, &hub, NULL), ST_OK);
    for (uint32_t i = 0; i < n; i++) {
        seats[i] = *like;
        seats[i].ops = ops;
        seats[i].nccl = nccl;
        seats[i].hub = hub;
        seats[i].rank = i;
        seats[i].timeout_ns = like->timeout_ns != 0 ? like->timeout_ns : 20 * NS_PER_S;
        assert_int_equal(pthread_create(&threads[i], NULL, sit, &seats[i]), 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    coll_hub_destroy(hub);
    for (uint32_t i = 0; i < n; i++) {
        if (!seats[i].ok) {
            fail_msg("way %d, tp %u pp %u, rank %u: %s %s", (int)like->way, shape.tp, shape.pp, i,
                     like->one != NULL ? like->one->name : "", seats[i].note.text);
        }
    }
}

/* ---- sums ---- */

/* Numbers whose sum depends on the order: magnitudes over 2^20, signs by turns. */
static float value(uint32_t slice, size_t i)
{
    const uint32_t h = (uint32_t)(i * 2654435761u) ^ (slice * 40503u + 77u) * 2246822519u;
    const float x = (float)(h >> 8) * 0x1p-24f + 0.5f;

    return (h & 1 ? -x : x) * (float)(1u << (h >> 1) % 21);
}

static bool sum_once(struct seat *s, size_t n, size_t split_bytes)
{
    static const char wrong[] = "the sum is not the tree's";
    const uint32_t tp = s->coll->tp;
    float *host = malloc(n * sizeof(float)), *want = malloc(n * sizeof(float));
    float *parts[RANKS_MAX];
    const float *sources[RANKS_MAX];
    void *x = NULL;
    struct err err = ERR_INIT;
    bool ok = s->ops->mem_alloc(s->stream, n * sizeof(float), &x, &err) == ST_OK;

    for (uint32_t k = 0; k < tp; k++) {
        sources[k] = parts[k] = malloc(n * sizeof(float));
        for (size_t i = 0; i < n; i++) {
            parts[k][i] = value(k, i);
        }
    }
    coll_add_tree(want, sources, tp, n);
    s->coll->split_bytes = split_bytes;
    s->ops->copy_in(s->stream, x, parts[s->coll->slice], n * sizeof(float));
    ok = ok && s->coll->ops->all_reduce_tree(s->coll, s->stream, x, n, 1, &err) == ST_OK;
    s->ops->copy_out(s->stream, host, x, n * sizeof(float));
    ok = ok && s->ops->stream_sync(s->stream, &err) == ST_OK;
    if (!ok) {
        (void)failed(s, err.text);
    } else if (s->way != NCCL_FREE && memcmp(host, want, n * sizeof(float)) != 0) {
        ok = failed(s, wrong);
    } else if (s->way == NCCL_FREE && tp > 2 && memcmp(host, want, n * sizeof(float)) == 0) {
        ok = failed(s, "the free sum has the tree's bits: these numbers show no order");
    }
    for (uint32_t k = 0; k < tp; k++) {
        free(parts[k]);
    }
    s->ops->mem_free(s->stream, x, 0);
    free(host);
    free(want);
    return ok;
}

/* What the status says of the way that sums go. */
static bool says_way(const struct seat *s)
{
    static const char *const words[N_WAYS] = { [STAGED] = "by way of the hosts",
                                               [NCCL] = "nccl",
                                               [NCCL_SMALL_SCRATCH] = "nccl",
                                               [NCCL_FREE] = "nccl, in its own order",
                                               [NCCL_PEERS] =
                                                   "mapped memory up to 7 KiB, else nccl" };
    const char *said = coll_sums(s->coll);

    if (s->coll->tp == 1) {
        return said[0] == '\0';
    }
    return s->way == NCCL_PEERS && getenv("FAKE_PEERS_REFUSE") != NULL
               ? strncmp(said, "nccl (", 6) == 0 && strlen(said) > 10
               : strcmp(said, words[s->way]) == 0;
}

static bool play_sums(struct seat *s)
{
    if (!says_way(s)) {
        return failed(s, coll_sums(s->coll));
    }
    static const size_t sizes[] = { 1, 15, 16, 64, 100, 127, 128, 1000, 1024, N_MAX };

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        /* The free sum needs some numbers to differ in. */
        if (s->way == NCCL_FREE && sizes[i] < 1000) {
            continue;
        }
        if (!sum_once(s, sizes[i], SIZE_MAX) || !sum_once(s, sizes[i], 0)) {
            return false;
        }
    }
    return true;
}

static void test_device_coll__a_sum_is_the_tree(void **state UNUSED)
{
    for (int way = STAGED; way < N_WAYS; way++) {
        for (uint32_t tp = 1; tp <= RANKS_MAX; tp *= 2) {
            run(&(struct seat){ .way = (enum way)way, .play = play_sums },
                (struct coll_shape){ tp, 1 });
            assert_int_equal(way == NCCL_PEERS && tp > 1, n_peer_sums() != 0);
        }
        run(&(struct seat){ .way = (enum way)way, .play = play_sums }, (struct coll_shape){ 4, 2 });
    }
}

static void test_device_coll__one_rank_without_windows_is_all_without(void **state UNUSED)
{
    setenv("FAKE_PEERS_REFUSE", "1", 1);
    run(&(struct seat){ .way = NCCL_PEERS, .play = play_sums }, (struct coll_shape){ 8, 1 });
    assert_int_equal(n_peer_sums(), 0);
    run(&(struct seat){ .way = NCCL_PEERS, .play = play_sums }, (struct coll_shape){ 4, 2 });
    assert_int_equal(n_peer_sums(), 0);
    unsetenv("FAKE_PEERS_REFUSE");
}

/* ---- agreement ---- */

/* What the last slice does otherwise: nothing, one sum more, another size, another stamp. */
enum turn { ALIKE, ONE_MORE, OTHER_SIZE, OTHER_STAMP, N_TURNS };
static enum turn deviation;

static bool play_agree(struct seat *s)
{
    struct coll *c = s->coll;
    const bool odd = c->slice + 1 == c->tp;
    struct err err = ERR_INIT, last = ERR_INIT;
    void *x = NULL;
    status st = ST_OK;

    (void)s->ops->mem_alloc(s->stream, 8192, &x, &err);
    for (uint64_t step = 1; st == ST_OK && step <= 3; step++) {
        const enum turn how = odd && step == 2 ? deviation : ALIKE;
        st = c->ops->all_reduce_tree(c, s->stream, x, how == OTHER_SIZE ? 1000 : 1024, step * 10,
                                     &err);
        if (st == ST_OK && how == ONE_MORE) {
            st = c->ops->all_reduce_tree(c, s->stream, x, 16, step * 10 + 1, &err);
        }
        if (st == ST_OK) {
            st = c->ops->agree(c, how == OTHER_STAMP ? 77 : step * 10 + 2, &err);
        }
    }
    /* Found before anybody has waited for a device, and the devices are free to go. */
    bool ok = s->ops->stream_sync(s->stream, &last) == ST_OK;
    s->ops->mem_free(s->stream, x, 0);
    if (deviation == ALIKE) {
        ok = ok && st == ST_OK;
    } else {
        ok = ok && (st == ST_ERR_MISMATCH || st == ST_ERR_PEER);
        ok = ok && (st != ST_ERR_MISMATCH || strstr(err.text, "disagree about a step") != NULL);
        ok = ok && (!odd || st == ST_ERR_PEER || strstr(err.text, "ranks 3 and 0") != NULL);
    }
    return ok || failed(s, err.text);
}

static void test_device_coll__slices_that_queue_different_things_are_named(void **state UNUSED)
{
    for (int how = ALIKE; how < N_TURNS; how++) {
        deviation = (enum turn)how;
        run(&(struct seat){ .way = NCCL_PEERS, .play = play_agree }, (struct coll_shape){ 4, 1 });
        if (how != OTHER_SIZE) { /* the made-up NCCL ends the program at that */
            run(&(struct seat){ .way = NCCL, .play = play_agree }, (struct coll_shape){ 4, 1 });
        }
    }
}

/* ---- gathers and residuals ---- */

static bool play_gather(struct seat *s)
{
    const uint32_t tp = s->coll->tp;
    uint32_t mine[5], all[5 * RANKS_MAX];
    void *from = NULL, *to = NULL;
    struct err err = ERR_INIT;

    for (uint32_t i = 0; i < ARRAY_LEN(mine); i++) {
        mine[i] = s->coll->slice * 100 + i;
    }
    (void)s->ops->mem_alloc(s->stream, sizeof(mine), &from, &err);
    (void)s->ops->mem_alloc(s->stream, sizeof(all), &to, &err);
    s->ops->copy_in(s->stream, from, mine, sizeof(mine));
    bool ok =
        s->coll->ops->all_gather(s->coll, s->stream, from, sizeof(mine), to, 2, &err) == ST_OK;
    s->ops->copy_out(s->stream, all, to, sizeof(mine) * tp);
    ok = s->ops->stream_sync(s->stream, &err) == ST_OK && ok;
    for (uint32_t k = 0; ok && k < tp; k++) {
        for (uint32_t i = 0; i < ARRAY_LEN(mine); i++) {
            ok = ok && all[k * ARRAY_LEN(mine) + i] == k * 100 + i;
        }
    }
    s->ops->mem_free(s->stream, from, 0);
    s->ops->mem_free(s->stream, to, 0);
    return ok || failed(s, err.text[0] != '\0' ? err.text : "slices are out of order");
}

static void test_device_coll__a_gather_puts_slices_in_order(void **state UNUSED)
{
    for (int way = STAGED; way <= NCCL; way++) {
        for (uint32_t tp = 2; tp <= RANKS_MAX; tp *= 2) {
            run(&(struct seat){ .way = (enum way)way, .play = play_gather },
                (struct coll_shape){ tp, 1 });
        }
    }
}

/* ---- what is not device memory ---- */

static bool play_case(struct seat *s)
{
    return s->one->run(s->coll, &s->note);
}

static void test_device_coll__host_messages_pass_through(void **state UNUSED)
{
    for (int way = STAGED; way <= NCCL; way++) {
        for (size_t i = 0; i < n_coll_cases; i++) {
            /* Cases that look into coll_local's own state by its timeout or its slots included. */
            run(&(struct seat){ .way = (enum way)way, .play = play_case, .one = &coll_cases[i] },
                (struct coll_shape){ 2, 2 });
        }
    }
}

/* ---- failure ---- */

/* The last slice does not come; the others are done by their deadline (or when the first of them
 * has given up), their streams drain, and what they try next is refused with the first cause. */
static bool play_absent(struct seat *s)
{
    struct coll *c = s->coll;
    struct err err = ERR_INIT;
    void *x = NULL;
    bool ok = true;

    (void)s->ops->mem_alloc(s->stream, 4096, &x, &err);
    if (c->slice + 1 != c->tp) {
        status st = c->ops->all_reduce_tree(c, s->stream, x, 1024, 3, &err);
        if (st == ST_OK) {
            st = c->ops->sync(c, s->stream, COLL_MARK_ALL, &err);
        }
        const status want = s->abort != NULL ? ST_ERR_CANCELLED : ST_ERR_DEADLINE;
        ok = (st == want || st == ST_ERR_PEER) && s->ops->stream_sync(s->stream, &err) == ST_OK;
        struct err again = ERR_INIT;
        ok = ok && c->ops->all_reduce_tree(c, s->stream, x, 1024, 4, &again) == ST_ERR_PEER &&
             strstr(again.text, "failed before") != NULL;
    }
    s->ops->mem_free(s->stream, x, 0);
    return ok || failed(s, err.text);
}

static void test_device_coll__an_absent_rank_ends_the_wait(void **state UNUSED)
{
    static const _Atomic bool told = true;
    const struct seat late = { .way = NCCL, .play = play_absent, .timeout_ns = 100 * NS_PER_MS };
    const struct seat told_to = { .way = NCCL, .play = play_absent, .abort = &told };

    const struct seat late_peers = { .way = NCCL_PEERS,
                                     .play = play_absent,
                                     .timeout_ns = 100 * NS_PER_MS };

    run(&late_peers, (struct coll_shape){ 2, 1 });
    run(&late_peers, (struct coll_shape){ 8, 1 });
    run(&late, (struct coll_shape){ 2, 1 });
    run(&late, (struct coll_shape){ 4, 1 });
    run(&told_to, (struct coll_shape){ 2, 1 });
}

static bool play_wrong_peer(struct seat *s)
{
    struct coll *c = s->coll;
    struct coll_req req;
    struct err err = ERR_INIT;
    const status st = c->ops->send_start(c, s->stream, c->rank ^ 1, 1, s->scratch, 64, &req, &err);

    return (st == ST_ERR_ARG && strstr(err.text, "not of one slice") != NULL) ||
           failed(s, err.text);
}

static void test_device_coll__residuals_stay_within_a_slice(void **state UNUSED)
{
    run(&(struct seat){ .way = NCCL, .play = play_wrong_peer }, (struct coll_shape){ 2, 2 });
}

/* ---- the library ---- */

static void test_device_coll__the_library_is_found_or_its_absence_explained(void **state UNUSED)
{
    char text[64] = "";
    struct err err = ERR_INIT;
    const status st = coll_nccl_find(text, &err);

    print_message("%s\n", st == ST_OK ? text : err.text);
    if (st == ST_OK) {
        assert_true(strncmp(text, "NCCL 2.", 7) == 0);
    } else {
        assert_int_equal(st, ST_ERR_UNSUPPORTED);
        assert_true(err.text[0] != '\0');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_coll__a_sum_is_the_tree),
        cmocka_unit_test(test_device_coll__one_rank_without_windows_is_all_without),
        cmocka_unit_test(test_device_coll__slices_that_queue_different_things_are_named),
        cmocka_unit_test(test_device_coll__a_gather_puts_slices_in_order),
        cmocka_unit_test(test_device_coll__host_messages_pass_through),
        cmocka_unit_test(test_device_coll__an_absent_rank_ends_the_wait),
        cmocka_unit_test(test_device_coll__residuals_stay_within_a_slice),
        cmocka_unit_test(test_device_coll__the_library_is_found_or_its_absence_explained),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
