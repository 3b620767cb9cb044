/* tests/gpu/check_peer.c - sums over mapped memory: ranks as threads, each with a stream and a window
 * of its own, on a device each where there are enough and they reach each other, else all on one.
 * Equal to the tree to the bit, many in a row and of all sizes (a buffer that is written too early
 * shows as a wrong sum), recorded and launched again, and ended by the host when a rank is missing. */
#include "tests/gpu/check.h"

#include "kernels/plugin.h"

#include <pthread.h>
#include <time.h>

enum { ROUNDS = 40, LAUNCHES = 6 };

struct seat {
    const struct kern_ops *ops;
    struct kern_stream *s;
    struct kern_peers *peers;
    uint32_t n, rank, seed;
    pthread_barrier_t *all;
    float *x, *pinned; /* [KERN_PEER_FLOATS] device, pinned */
    float *out;        /* [ROUNDS + LAUNCHES][KERN_PEER_FLOATS] what came of each */
    size_t sizes[ROUNDS];
    struct kern_graph *graph;
    struct err err;
    bool ok;
};

/* Part `rank` of element i in round r: magnitudes and signs whose sum depends on the order. */
static float part_of(uint32_t seed, uint32_t rank, uint32_t r, size_t i)
{
    const uint32_t h =
        (uint32_t)(i * 2654435761u) ^ (rank * 40503u + r * 977u + seed) * 2246822519u;
    const float v = (float)(h >> 8) * 0x1p-24f + 0.5f;

    return (h & 1 ? -v : v) * (float)(1u << (h >> 1) % 21);
}

static float tree_of(uint32_t seed, uint32_t n, uint32_t r, size_t i)
{
    float v[KERN_PEERS_MAX];

    for (uint32_t k = 0; k < n; k++) {
        v[k] = part_of(seed, k, r, i);
    }
    for (uint32_t half = 1; half < n; half *= 2) {
        for (uint32_t k = 0; k < n; k += 2 * half) {
            v[k] = v[k] + v[k + half];
        }
    }
    return v[0];
}

static void fill(struct seat *q, uint32_t r, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        q->pinned[i] = part_of(q->seed, q->rank, r, i);
    }
}

static void sum_rounds(struct seat *q)
{
    for (uint32_t r = 0; r < ROUNDS && q->ok; r++) {
        const size_t n = q->sizes[r];

        fill(q, r, n);
        q->ops->copy_in_later(q->s, q->x, q->pinned, n * sizeof(float));
        q->ops->peers_sum(q->s, q->peers, q->x, n);
        q->ops->copy_out(q->s, q->pinned, q->x, n * sizeof(float));
        q->ok = q->ops->stream_sync(q->s, &q->err) == ST_OK;
        memcpy(q->out + (size_t)r * KERN_PEER_FLOATS, q->pinned, n * sizeof(float));
    }
}

/* Two sums of different sizes in one recording, each launch on new parts. */
static void sum_recorded(struct seat *q)
{
    for (uint32_t l = 0; l < LAUNCHES && q->ok; l++) {
        fill(q, ROUNDS + l, 5000);
        q->ok = q->ops->graph_launch(q->s, q->graph, &q->err) == ST_OK;
        q->ops->copy_out(q->s, q->pinned, q->x, 5000 * sizeof(float));
        q->ok = q->ok && q->ops->stream_sync(q->s, &q->err) == ST_OK;
        memcpy(q->out + (size_t)(ROUNDS + l) * KERN_PEER_FLOATS, q->pinned, 5000 * sizeof(float));
    }
}

static void *sit(void *arg)
{
    struct seat *q = arg;

    /* Nothing that makes a device wait for all its work may come between here and the end: sums of
     * ranks on one device would wait for each other through it. */
    pthread_barrier_wait(q->all);
    sum_rounds(q);
    sum_recorded(q);
    return NULL;
}

static bool open_seat(struct seat *q, const char *ids)
{
    const size_t bytes = KERN_PEER_FLOATS * sizeof(float);
    void *x = NULL, *pinned = NULL;

    q->out = check_host(bytes * (ROUNDS + LAUNCHES));
    q->ok = q->ops->peers_open(q->s, q->peers, ids, &q->err) == ST_OK &&
            q->ops->mem_alloc(q->s, bytes, &x, &q->err) == ST_OK &&
            q->ops->host_alloc(q->s, bytes, &pinned, &q->err) == ST_OK &&
            q->ops->graph_begin(q->s, &q->err) == ST_OK;
    q->x = x;
    q->pinned = pinned;
    if (q->ok) {
        q->ops->copy_in_later(q->s, q->x, q->pinned, 5000 * sizeof(float));
        q->ops->peers_sum(q->s, q->peers, q->x, 5000);
        q->ops->peers_sum(q->s, q->peers, q->x + 4096, 64);
        q->ok = q->ops->graph_end(q->s, &q->graph, &q->err) == ST_OK;
    }
    return q->ok && q->ops->stream_sync(q->s, &q->err) == ST_OK;
}

static bool create_seat(struct check *c, struct seat *q, uint32_t device, char *id)
{
    const struct kern_stream_config config = { 1, device };

    return kern_ops_cuda_from(c->plugin, device, &q->ops, &q->err) == ST_OK &&
           q->ops->stream_create(&config, &q->s, &q->err) == ST_OK &&
           q->ops->peers_create(q->s, q->n, q->rank, &q->peers, id, &q->err) == ST_OK;
}

static void close_seat(struct seat *q)
{
    if (q->s != NULL) {
        q->ops->peers_destroy(q->s, q->peers);
        q->ops->graph_destroy(q->s, q->graph);
        q->ops->mem_free(q->s, q->x, 0);
        q->ops->host_free(q->s, q->pinned, 0);
        q->ops->stream_destroy(q->s);
    }
    free(q->out);
}

/* A device for each, or device 0 for all. */
static bool open_all(struct check *c, struct seat *seats, uint32_t n, bool apart)
{
    char ids[KERN_PEERS_MAX * KERN_PEER_ID_BYTES];
    bool ok = true;

    for (uint32_t i = 0; i < n && ok; i++) {
        seats[i] = (struct seat){ .n = n, .rank = i, .seed = (uint32_t)c->random };
        ok = create_seat(c, &seats[i], apart ? i : 0, ids + i * KERN_PEER_ID_BYTES);
    }
    for (uint32_t i = 0; i < n && ok; i++) {
        ok = open_seat(&seats[i], ids);
    }
    return ok;
}

static void close_all(struct seat *seats, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        close_seat(&seats[i]);
    }
    memset(seats, 0, n * sizeof *seats);
}

static void run_threads(struct seat *seats, uint32_t n)
{
    pthread_t threads[KERN_PEERS_MAX];
    pthread_barrier_t all;

    pthread_barrier_init(&all, NULL, n);
    for (uint32_t i = 0; i < n; i++) {
        seats[i].all = &all;
        if (pthread_create(&threads[i], NULL, sit, &seats[i]) != 0) {
            fprintf(stderr, "no thread\n");
            exit(2);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_barrier_destroy(&all);
}

/* Elements of round r that are not the tree's, over all ranks. */
static size_t count_wrong(const struct seat *seats, uint32_t n, uint32_t r, size_t size)
{
    size_t wrong = 0;

    for (size_t i = 0; i < size; i++) {
        float want = tree_of(seats[0].seed, n, r, i);

        if (r >= ROUNDS && i >= 4096 && i < 4096 + 64) { /* summed a second time */
            for (uint32_t k = 1; k < n; k *= 2) {
                want = want + want;
            }
        }
        for (uint32_t k = 0; k < n; k++) {
            wrong += memcmp(&seats[k].out[(size_t)r * KERN_PEER_FLOATS + i], &want, 4) != 0;
        }
    }
    return wrong;
}

static void run(struct check *c, uint32_t n)
{
    static const size_t some[] = { 1, 3, 4, 1023, 1024, 1025, 4096, 8192, 16384, 12345 };
    struct seat seats[KERN_PEERS_MAX];
    size_t sizes[ROUNDS], wrong = 0;

    memset(seats, 0, sizeof seats);
    if (!open_all(c, seats, n, true)) {
        close_all(seats, n);
        if (!open_all(c, seats, n, false)) {
            for (uint32_t i = 0; i < n; i++) {
                check_true(c, check_name("peer sums, %u ranks: %.60s", n, seats[i].err.text),
                           seats[i].err.code == ST_OK);
            }
            close_all(seats, n);
            return;
        }
    }
    for (uint32_t r = 0; r < ROUNDS; r++) {
        sizes[r] = r < ARRAY_LEN(some) ? some[r] : check_between(c, 1, c->quick ? 6000 : 40000);
    }
    /* On one device all blocks of all ranks must fit at once. */
    sizes[ROUNDS - 1] = c->quick ? 20000 : (size_t)KERN_PEER_FLOATS * 2 / n;
    for (uint32_t i = 0; i < n; i++) {
        memcpy(seats[i].sizes, sizes, sizeof sizes);
    }
    run_threads(seats, n);
    bool ok = true;
    for (uint32_t i = 0; i < n; i++) {
        ok = ok && seats[i].ok && seats[i].ops->peers_check(seats[i].peers, &seats[i].err) == ST_OK;
    }
    for (uint32_t r = 0; ok && r < ROUNDS; r++) {
        wrong += count_wrong(seats, n, r, sizes[r]);
    }
    check_true(c, check_name("peer sums, %u ranks: the tree's bits, %u sums", n, ROUNDS),
               ok && wrong == 0);
    for (uint32_t l = 0; ok && l < LAUNCHES; l++) {
        wrong += count_wrong(seats, n, ROUNDS + l, 5000);
    }
    check_true(c, check_name("peer sums, %u ranks: recorded, launched %u times", n, LAUNCHES),
               ok && wrong == 0);
    close_all(seats, n);
}

/* ---- a rank that does not come ---- */

static void *give_up_later(void *arg)
{
    const struct timespec nap = { 0, 50000000 };
    struct seat *q = arg;

    nanosleep(&nap, NULL);
    q->ops->peers_abort(q->peers);
    return NULL;
}

static void run_absent(struct check *c)
{
    struct seat seats[2];
    pthread_t thread;

    memset(seats, 0, sizeof seats);
    if (!open_all(c, seats, 2, false) ||
        pthread_create(&thread, NULL, give_up_later, &seats[0]) != 0) {
        check_true(c, check_name("peer sums: %.80s", seats[0].err.text), false);
        return;
    }
    seats[0].ops->peers_sum(seats[0].s, seats[0].peers, seats[0].x, 3000);
    seats[0].ops->peers_sum(seats[0].s, seats[0].peers, seats[0].x, 3000);
    check_true(c, "peer sums: ended by the host where a rank is missing",
               seats[0].ops->stream_sync(seats[0].s, &seats[0].err) == ST_OK);
    pthread_join(thread, NULL);
    close_all(seats, 2);
}

static void run_refused(struct check *c)
{
    char ids[2 * KERN_PEER_ID_BYTES];
    struct kern_peers *peers = NULL;
    struct err err = ERR_INIT;
    bool ok = c->ops->peers_create(c->s, 2, 0, &peers, ids, &err) == ST_OK;

    memset(ids + KERN_PEER_ID_BYTES, 'x', KERN_PEER_ID_BYTES);
    ok = ok && c->ops->peers_open(c->s, peers, ids, &err) == ST_ERR_UNSUPPORTED;
    check_true(c, check_name("peer sums: refused: %.60s", err.text), ok);
    c->ops->peers_destroy(c->s, peers);
    check_true(c, "peer sums: not of 3 ranks",
               c->ops->peers_create(c->s, 3, 0, &peers, ids, &err) == ST_ERR_UNSUPPORTED);
}

void check_peer(struct check *c)
{
    run(c, 2);
    run(c, 4);
    run(c, 8);
    run_absent(c);
    run_refused(c);
}
