/* tests/common/coll_checks.c - see coll_checks.h. The oracle of a sum is a recursive scalar tree
 * over data that every rank can make for every slice. */
#include "common/coll_checks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOW_BUILD 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(SLOW_BUILD)
enum { N_MAX = 20000 };
#else
enum { N_MAX = 100000 };
#endif
enum { TIMEOUT_MS = 300 };

#define FAIL(...)                                                                                  \
    do {                                                                                           \
        snprintf(note->text, sizeof(note->text), __VA_ARGS__);                                     \
        return false;                                                                              \
    } while (0)
#define CHECK(x, ...)                                                                              \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            FAIL(__VA_ARGS__);                                                                     \
        }                                                                                          \
    } while (0)

/* Numbers of very different sizes and both signs: any other order of additions shows. */
static float datum(uint32_t slice, size_t i, uint64_t seed)
{
    static const float scale[] = { 1e-3f, 1.0f, 1e3f, 1e5f };
    uint64_t h = (seed + slice) * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull;

    h ^= h >> 29;
    h *= 0x94d049bb133111ebull;
    h ^= h >> 32;
    return ((float)(h & 0xffffff) / 8388608.0f - 1.0f) * scale[(h >> 24) & 3];
}

static float tree(uint32_t first, uint32_t n, size_t i, uint64_t seed)
{
    float lower, upper;

    if (n == 1) {
        return datum(first, i, seed);
    }
    lower = tree(first, n / 2, i, seed);
    upper = tree(first + n / 2, n / 2, i, seed);
    return lower + upper;
}

static float in_a_row(uint32_t n, size_t i, uint64_t seed)
{
    float sum = datum(0, i, seed);

    for (uint32_t s = 1; s < n; s++) {
        sum += datum(s, i, seed);
    }
    return sum;
}

static bool sum_once(struct coll *c, float *x, size_t n, uint64_t seed, struct coll_note *note)
{
    struct err err = ERR_INIT;

    for (size_t i = 0; i < n; i++) {
        x[i] = datum(c->slice, i, seed);
    }
    x[n] = 12345.0f;
    CHECK(c->ops->all_reduce_tree(c, NULL, x, n, seed, &err) == ST_OK, "n %zu: %s", n, err.text);
    for (size_t i = 0; i < n; i++) {
        const float due = tree(0, c->tp, i, seed);

        CHECK(memcmp(&x[i], &due, sizeof(due)) == 0, "n %zu: x[%zu] is %a, the tree gives %a", n, i,
              (double)x[i], (double)due);
    }
    CHECK(x[n] == 12345.0f, "n %zu: the float behind the vector was written", n);
    return true;
}

static bool sums(struct coll *c, size_t split_bytes, struct coll_note *note)
{
    static const size_t sizes[] = { 0,    1,    2,     3,     5,     7,         8,    15,   16,
                                    17,   31,   33,    100,   255,   1000,      2048, 4095, 8191,
                                    8192, 8193, 10001, 16384, 16385, N_MAX / 3, N_MAX };
    float *x = malloc((N_MAX + 1) * sizeof(float));
    const size_t was = c->split_bytes;
    bool ok = x != NULL;

    c->split_bytes = split_bytes;
    for (size_t k = 0; ok && k < ARRAY_LEN(sizes); k++) {
        ok = sum_once(c, x, sizes[k], 1000 + k, note);
    }
    c->split_bytes = was;
    free(x);
    return ok;
}

static bool sum_is_the_tree_whole(struct coll *c, struct coll_note *note)
{
    return sums(c, SIZE_MAX, note);
}

static bool sum_is_the_tree_split(struct coll *c, struct coll_note *note)
{
    return sums(c, 0, note);
}

static bool sum_data_tells_orders_apart(struct coll *c, struct coll_note *note)
{
    size_t n_differ = 0;

    for (size_t i = 0; i < 1000; i++) {
        n_differ += tree(0, c->tp, i, 7) != in_a_row(c->tp, i, 7);
    }
    CHECK(c->tp < 4 || n_differ > 100, "only %zu of 1000 sums depend on the order", n_differ);
    return true;
}

static bool many_small_sums(struct coll *c, struct coll_note *note)
{
    float x[65];

    for (uint64_t k = 0; k < 300; k++) {
        if (!sum_once(c, x, (size_t)(k % 64) + 1, 5000 + k, note)) {
            return false;
        }
    }
    return true;
}

static bool gather_once(struct coll *c, size_t bytes, bool in_place, struct coll_note *note)
{
    unsigned char *all = malloc(bytes * c->tp + 1), *mine = malloc(bytes + 1);
    struct err err = ERR_INIT;
    size_t i_bad = SIZE_MAX;
    status st = ST_ERR_NOMEM;

    if (all && mine) {
        memset(all, 0xee, bytes * c->tp + 1);
        for (size_t i = 0; i < bytes; i++) {
            mine[i] = (unsigned char)(c->slice * 31 + i * 7 + c->stage);
        }
        if (in_place) {
            memcpy(all + c->slice * bytes, mine, bytes);
        }
        st = c->ops->all_gather(c, NULL, in_place ? all + c->slice * bytes : mine, bytes, all,
                                77 + bytes, &err);
        for (size_t i = 0; st == ST_OK && i < bytes * c->tp; i++) {
            if (all[i] != (unsigned char)(i / bytes * 31 + i % bytes * 7 + c->stage)) {
                i_bad = i;
                break;
            }
        }
        if (all[bytes * c->tp] != 0xee) {
            i_bad = bytes * c->tp;
        }
    }
    free(all);
    free(mine);
    CHECK(st == ST_OK, "%zu bytes: %s", bytes, err.text);
    CHECK(i_bad == SIZE_MAX, "%zu bytes: byte %zu is wrong", bytes, i_bad);
    return true;
}

static bool gather_puts_slices_in_order(struct coll *c, struct coll_note *note)
{
    static const size_t sizes[] = { 0, 1, 8, 4096, 32768, 32769, 100000 };

    for (size_t k = 0; k < ARRAY_LEN(sizes); k++) {
        if (!gather_once(c, sizes[k], false, note) || !gather_once(c, sizes[k], true, note)) {
            return false;
        }
    }
    return true;
}

/* ---- send, receive, probe ---- */

enum { IN_FLIGHT = 12, MESSAGE_BYTES = 50000 };

/* Twelve messages around a ring, three tags, posted before any is awaited. */
static bool messages_in_flight_keep_their_order(struct coll *c, struct coll_note *note)
{
    static const size_t sizes[] = { 1, 64, 4097, MESSAGE_BYTES };
    const uint32_t to = (c->rank + 1) % c->n_ranks, from = (c->rank + c->n_ranks - 1) % c->n_ranks;
    unsigned char *out = malloc((size_t)IN_FLIGHT * MESSAGE_BYTES);
    unsigned char *in = malloc((size_t)IN_FLIGHT * MESSAGE_BYTES);
    struct coll_req sends[IN_FLIGHT], recvs[IN_FLIGHT];
    struct err err = ERR_INIT;
    status st = out && in ? ST_OK : ST_ERR_NOMEM;
    uint32_t k_bad = UINT32_MAX;

    for (uint32_t k = 0; st == ST_OK && k < IN_FLIGHT; k++) {
        unsigned char *m = out + (size_t)k * MESSAGE_BYTES;

        memset(m, (int)(c->rank * 16 + k), MESSAGE_BYTES);
        st = c->ops->send_start(c, NULL, to, k % 3, m, sizes[k % 4], &sends[k], &err);
    }
    for (uint32_t k = IN_FLIGHT; st == ST_OK && k-- > 0;) {
        /* of one tag in order, the tags themselves backwards */
        const uint32_t i = (2 - k / 4) + 3 * (3 - k % 4);

        st = c->ops->recv_start(c, NULL, from, i % 3, in + (size_t)i * MESSAGE_BYTES, sizes[i % 4],
                                &recvs[i], &err);
    }
    for (uint32_t k = 0; st == ST_OK && k < IN_FLIGHT; k++) {
        st = c->ops->wait(c, recvs[k], &err);
        if (st == ST_OK) {
            st = c->ops->wait(c, sends[k], &err);
        }
        for (size_t i = 0; st == ST_OK && i < sizes[k % 4]; i++) {
            if (in[(size_t)k * MESSAGE_BYTES + i] != (unsigned char)(from * 16 + k)) {
                k_bad = k;
            }
        }
    }
    free(out);
    free(in);
    CHECK(st == ST_OK, "%s", err.text);
    CHECK(k_bad == UINT32_MAX, "message %u has other bytes than were sent", k_bad);
    return true;
}

static bool probe_until(struct coll *c, uint32_t from, uint32_t tag, size_t *bytes_p,
                        struct coll_note *note)
{
    const uint64_t end_ns = clock_now_ns(clock_real()) + 5 * NS_PER_S;
    struct err err = ERR_INIT;
    status st;

    while ((st = c->ops->probe(c, from, tag, bytes_p, &err)) == ST_BUSY) {
        CHECK(clock_now_ns(clock_real()) < end_ns, "no message seen within 5 s");
    }
    CHECK(st == ST_OK, "%s", err.text);
    return true;
}

static bool probe_tells_the_size(struct coll *c, struct coll_note *note)
{
    const uint32_t to = (c->rank + 1) % c->n_ranks, from = (c->rank + c->n_ranks - 1) % c->n_ranks;
    char out[300] = "x", in[300];
    struct coll_req send, recv;
    struct err err = ERR_INIT;
    size_t bytes = 0;

    CHECK(c->ops->probe(c, from, 999, &bytes, &err) == ST_BUSY, "a message that nobody sent");
    CHECK(c->ops->send_start(c, NULL, to, 9, out, 100 + to, &send, &err) == ST_OK, "%s", err.text);
    if (!probe_until(c, from, 9, &bytes, note)) {
        return false;
    }
    CHECK(bytes == 100 + c->rank, "probe says %zu bytes, sent were %u", bytes, 100 + c->rank);
    CHECK(c->ops->recv_start(c, NULL, from, 9, in, bytes, &recv, &err) == ST_OK, "%s", err.text);
    CHECK(c->ops->wait(c, recv, &err) == ST_OK, "%s", err.text);
    CHECK(c->ops->wait(c, send, &err) == ST_OK, "%s", err.text);
    return true;
}

/* A receive of another size is refused, shorter or longer, and the next message is well. */
static bool other_size_is_refused(struct coll *c, struct coll_note *note)
{
    const uint32_t to = (c->rank + 1) % c->n_ranks, from = (c->rank + c->n_ranks - 1) % c->n_ranks;
    static const size_t due[] = { 60, 40, 50 };
    char out[64] = { 0 }, in[64];

    if (c->n_ranks == 1 && strcmp(c->ops->name, "mpi") == 0) {
        return true; /* Open MPI 4.1 cuts a message to oneself without a word: cluster/README.md */
    }
    for (size_t k = 0; k < ARRAY_LEN(due); k++) {
        struct coll_req send, recv;
        struct err err = ERR_INIT;
        status st;

        CHECK(c->ops->recv_start(c, NULL, from, 4, in, due[k], &recv, &err) == ST_OK, "%s",
              err.text);
        CHECK(c->ops->send_start(c, NULL, to, 4, out, 50, &send, &err) == ST_OK, "%s", err.text);
        st = c->ops->wait(c, recv, &err);
        CHECK(st == (due[k] == 50 ? ST_OK : ST_ERR_PROTO), "50 sent, %zu due: status %d, %s",
              due[k], st, err.text);
        CHECK(st == ST_OK || strstr(err.text, "tag 4"), "the sentence names no tag: %s", err.text);
        CHECK(c->ops->wait(c, send, &err) == ST_OK, "%s", err.text);
    }
    return true;
}

static bool pending_requests_are_bounded(struct coll *c, struct coll_note *note)
{
    struct coll_req recvs[COLL_REQS_MAX], send;
    char in[COLL_REQS_MAX], out = 'y';
    struct err err = ERR_INIT;

    for (uint32_t k = 0; k < COLL_REQS_MAX; k++) {
        CHECK(c->ops->recv_start(c, NULL, c->rank, k, &in[k], 1, &recvs[k], &err) == ST_OK, "%s",
              err.text);
    }
    CHECK(c->ops->send_start(c, NULL, c->rank, 0, &out, 1, &send, &err) == ST_ERR_LIMIT,
          "request %d was taken", COLL_REQS_MAX + 1);
    c->timeout_ns = 20 * NS_PER_MS;
    CHECK(c->ops->wait(c, recvs[0], &err) == ST_ERR_DEADLINE, "a message from nowhere");
    CHECK(c->ops->test(c, recvs[1], &err) == ST_BUSY, "a message from nowhere");
    return true;
}

static bool wrong_arguments_are_refused(struct coll *c, struct coll_note *note)
{
    struct coll_req req;
    struct err err = ERR_INIT;
    size_t bytes;
    char x = 0;

    CHECK(c->ops->send_start(c, NULL, c->n_ranks, 0, &x, 1, &req, &err) == ST_ERR_ARG, "sent");
    CHECK(c->ops->recv_start(c, NULL, c->n_ranks, 0, &x, 1, &req, &err) == ST_ERR_ARG, "received");
    CHECK(c->ops->probe(c, c->n_ranks, 0, &bytes, &err) == ST_ERR_ARG, "probed");
    CHECK(c->ops->bcast(c, &x, 1, c->n_ranks, &err) == ST_ERR_ARG, "sent to all");
    return true;
}

/* ---- whole replica ---- */

static bool bcast_reaches_everybody(struct coll *c, struct coll_note *note)
{
    static const size_t sizes[] = { 0, 1, 1000, 32768, 32769, 200000 };
    unsigned char *data = malloc(200001);
    struct err err = ERR_INIT;
    size_t bad = SIZE_MAX;
    status st = data ? ST_OK : ST_ERR_NOMEM;

    for (uint32_t root = 0; st == ST_OK && root < c->n_ranks; root++) {
        for (size_t k = 0; st == ST_OK && k < ARRAY_LEN(sizes); k++) {
            memset(data, c->rank == root ? (int)(root + k + 1) : 0, sizes[k]);
            data[sizes[k]] = 0xee;
            st = c->ops->bcast(c, data, sizes[k], root, &err);
            for (size_t i = 0; st == ST_OK && i < sizes[k]; i++) {
                bad = data[i] == (unsigned char)(root + k + 1) ? bad : sizes[k];
            }
            bad = data[sizes[k]] == 0xee ? bad : sizes[k];
        }
    }
    free(data);
    CHECK(st == ST_OK, "%s", err.text);
    CHECK(bad == SIZE_MAX, "wrong bytes in a broadcast of %zu", bad);
    return true;
}

/* Rank 0 comes late: nobody may leave before. */
static bool barrier_waits_for_the_last(struct coll *c, struct coll_note *note)
{
    const uint64_t begin_ns = clock_now_ns(clock_real());
    struct err err = ERR_INIT;

    for (int k = 0; k < 20; k++) {
        CHECK(c->ops->barrier(c, &err) == ST_OK, "%s", err.text);
    }
    while (c->rank == 0 && clock_now_ns(clock_real()) < begin_ns + 60 * NS_PER_MS) {
        /* late */
    }
    CHECK(c->ops->barrier(c, &err) == ST_OK, "%s", err.text);
    CHECK(c->ops->barrier(c, &err) == ST_OK, "%s", err.text);
    return true;
}

/* ---- failures ---- */

static bool in_time(uint64_t begin_ns, struct coll_note *note)
{
    const uint64_t ms = (clock_now_ns(clock_real()) - begin_ns) / NS_PER_MS;

    CHECK(ms + 1 >= TIMEOUT_MS && ms < TIMEOUT_MS + 2000, "answered after %llu ms, limit %d",
          (unsigned long long)ms, TIMEOUT_MS);
    return true;
}

static bool absent_slice_is_named(struct coll *c, struct coll_note *note)
{
    struct err err = ERR_INIT;
    char name[32];
    float x[4] = { 0 };
    status st = c->ops->barrier(c, &err); /* all are awake */
    const uint64_t begin_ns = clock_now_ns(clock_real());

    CHECK(st == ST_OK, "the barrier before: %s", err.text);
    c->timeout_ns = TIMEOUT_MS * NS_PER_MS;
    if (c->tp == 1 || c->slice == c->tp - 1) {
        return true;
    }
    st = c->ops->all_reduce_tree(c, NULL, x, 4, 1, &err);
    /* ST_ERR_PEER: threads are told of the first failure of the replica, which names the rank too
     */
    CHECK(st == ST_ERR_DEADLINE || st == ST_ERR_PEER, "status %d, %s", st, err.text);
    snprintf(name, sizeof(name), "rank %u ", c->stage * c->tp + c->tp - 1);
    CHECK(st != ST_ERR_DEADLINE || (c->slice ^ 1) != c->tp - 1 || strstr(err.text, name),
          "the sentence does not name %s: %s", name, err.text);
    CHECK(strstr(err.text, "all_reduce_tree") != NULL, "no operation is named: %s", err.text);
    if (st == ST_ERR_DEADLINE && !in_time(begin_ns, note)) {
        return false;
    }
    st = c->ops->all_reduce_tree(c, NULL, x, 4, 2, &err);
    CHECK(st == ST_ERR_PEER, "a second sum on a lost replica: status %d", st);
    return true;
}

static bool absent_rank_is_named_by_rank_0(struct coll *c, struct coll_note *note)
{
    struct err err = ERR_INIT;
    char name[32];
    status st = c->ops->barrier(c, &err); /* all are awake */
    const uint64_t begin_ns = clock_now_ns(clock_real());

    CHECK(st == ST_OK, "the barrier before: %s", err.text);
    c->timeout_ns = TIMEOUT_MS * NS_PER_MS;
    if (c->n_ranks == 1 || c->rank == c->n_ranks - 1) {
        return true;
    }
    st = c->ops->barrier(c, &err);
    CHECK(st == ST_ERR_DEADLINE || st == ST_ERR_PEER, "status %d, %s", st, err.text);
    snprintf(name, sizeof(name), "rank %u did not come", c->n_ranks - 1);
    CHECK(c->rank != 0 || strstr(err.text, name), "no \"%s\" in: %s", name, err.text);
    return st == ST_ERR_DEADLINE ? in_time(begin_ns, note) : true;
}

static bool other_stamp_is_named(struct coll *c, struct coll_note *note)
{
    const bool odd = c->slice == c->tp - 1;
    struct err err = ERR_INIT;
    float x[8] = { 0 };
    status st;

    if (c->tp == 1) {
        return true;
    }
    c->timeout_ns = TIMEOUT_MS * NS_PER_MS;
    st = c->ops->all_reduce_tree(c, NULL, x, 8, odd ? 0xbadull : 0x600dull, &err);
    if (st != ST_ERR_MISMATCH) {
        /* Over MPI those further away see that the others do not come, and threads of another
         * stage are told of the first failure. */
        CHECK(c->slice + 2 < c->tp || (c->pp > 1 && st == ST_ERR_PEER), "status %d, %s", st,
              err.text);
        CHECK(st == ST_ERR_DEADLINE || st == ST_ERR_PEER, "status %d, %s", st, err.text);
        return true;
    }
    CHECK(strstr(err.text, "0000000000000bad") && strstr(err.text, "000000000000600d"),
          "stamps are not named: %s", err.text);
    return true;
}

/* Slice 0 sums 10 floats, the others many more. */
static bool other_size_of_a_sum_is_named(struct coll *c, struct coll_note *note)
{
    static float kept[N_MAX]; /* over MPI a send may be in flight at the end */
    const bool threads = strcmp(c->ops->name, "local") == 0;
    float *x = threads ? calloc(N_MAX, sizeof(float)) : kept;
    struct err err = ERR_INIT;
    char many[32];
    status st = ST_OK;

    CHECK(x, "no memory");
    c->timeout_ns = TIMEOUT_MS * NS_PER_MS;
    if (c->tp > 1) {
        st = c->ops->all_reduce_tree(c, NULL, x, c->slice == 0 ? 10 : N_MAX, 1, &err);
    }
    if (threads) {
        free(x);
    }
    snprintf(many, sizeof(many), "%zu", N_MAX * sizeof(float));
    CHECK(c->tp == 1 || st != ST_OK, "sums of 10 and %d floats went well", N_MAX);
    if (c->tp > 1 && c->slice < 2 && !(c->pp > 1 && st == ST_ERR_PEER)) {
        CHECK(st == ST_ERR_MISMATCH, "status %d, %s", st, err.text);
        CHECK(strstr(err.text, many) && strstr(err.text, "40 "), "sizes are not named: %s",
              err.text);
    }
    return true;
}

static bool abort_flag_ends_a_wait(struct coll *c, struct coll_note *note)
{
    static const _Atomic bool yes = true;
    const uint64_t begin_ns = clock_now_ns(clock_real());
    struct coll_req req;
    struct err err = ERR_INIT;
    static char x[256];

    c->abort = &yes;
    CHECK(c->ops->recv_start(c, NULL, c->rank, 5, &x[c->rank % 256], 1, &req, &err) == ST_OK, "%s",
          err.text);
    CHECK(c->ops->wait(c, req, &err) == ST_ERR_CANCELLED, "%s", err.text);
    CHECK(clock_now_ns(clock_real()) - begin_ns < NS_PER_S, "took more than 1 s");
    return true;
}

const struct coll_case coll_cases[] = {
    { "sum_is_the_tree_when_sent_whole", false, sum_is_the_tree_whole },
    { "sum_is_the_tree_when_split", false, sum_is_the_tree_split },
    { "test_data_tells_orders_apart", false, sum_data_tells_orders_apart },
    { "many_small_sums_follow_each_other", false, many_small_sums },
    { "gather_puts_slices_in_order", false, gather_puts_slices_in_order },
    { "messages_in_flight_keep_their_order", false, messages_in_flight_keep_their_order },
    { "probe_tells_the_size", false, probe_tells_the_size },
    { "other_size_of_a_message_is_refused", false, other_size_is_refused },
    { "wrong_arguments_are_refused", false, wrong_arguments_are_refused },
    { "bcast_reaches_everybody", false, bcast_reaches_everybody },
    { "barrier_waits_for_the_last", false, barrier_waits_for_the_last },
    { "pending_requests_are_bounded", true, pending_requests_are_bounded },
    { "absent_slice_is_named", true, absent_slice_is_named },
    { "absent_rank_is_named_by_rank_0", true, absent_rank_is_named_by_rank_0 },
    { "other_stamp_is_named", true, other_stamp_is_named },
    { "other_size_of_a_sum_is_named", true, other_size_of_a_sum_is_named },
    { "abort_flag_ends_a_wait", true, abort_flag_ends_a_wait },
};
const size_t n_coll_cases = ARRAY_LEN(coll_cases);
