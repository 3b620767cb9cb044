/* worker/selftest.c - see selftest.h. Judging is selftest_judge.c. */
#include "worker/selftest.h"

#include "base/hash.h"
#include "kernels/math.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    TAG_HELLO = 100,
    TAG_PING,
    TAG_DATA,
    TAG_LINKS,
    ROUND_TRIPS = 15,
    LEADER_TRIPS = 5,
    LEADER_BYTES = 4 << 10,
    REPEATS = 3,
    BYTES_MIN = 64 << 10, /* of a pair and direction */
    BYTES_MAX = 1 << 20,
    BYTES_ALL = 8 << 20, /* of a rank and direction, over its pairs, while BYTES_MIN allows */
    SUM_SMALL = 4099,    /* floats: one message a level */
    SUM_LARGE = 65539,   /* reduce-scatter and all-gather */
    SUM_LARGE_TP = 32    /* with more slices the small one is enough */
};

struct test {
    struct coll *c;
    const struct selftest_config *config;
    size_t pair_bytes;           /* of this replica's pairs of slices and of stages */
    uint64_t *mine, *theirs;     /* [BYTES_MAX / 8] owned, as all below */
    struct selftest_link *links; /* [n_links_max] those that this rank measures */
    uint32_t n_links, n_links_max;
    struct selftest_link *all; /* leader: everybody's */
    uint32_t n_all;
    struct test *next; /* of those that failed */
};

/* ---- what travels ---- */

static uint64_t mix(uint64_t v)
{
    v += UINT64_C(0x9e3779b97f4a7c15);
    v = (v ^ (v >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    v = (v ^ (v >> 27)) * UINT64_C(0x94d049bb133111eb);
    return v ^ (v >> 31);
}

static void fill(uint64_t *words, size_t bytes, uint32_t from, uint32_t to)
{
    const uint64_t seed = mix(((uint64_t)from << 32) + to);

    for (size_t i = 0; i < bytes / sizeof(*words); i++) {
        words[i] = mix(seed + i);
    }
}

static status check(const struct test *t, size_t bytes, uint32_t from, struct err *err)
{
    const uint32_t me = t->c->rank;
    const uint64_t seed = mix(((uint64_t)from << 32) + me);

    for (size_t i = 0; i < bytes / sizeof(*t->theirs); i++) {
        if (t->theirs[i] != mix(seed + i)) {
            return err_set(err, ST_ERR_MISMATCH,
                           "self-test: what rank %u sends arrives harmed at rank %u (host %s): "
                           "bytes %zu to %zu of %zu are %016llx, %016llx were sent",
                           from, me, t->config->host, i * 8, i * 8 + 7, bytes,
                           (unsigned long long)t->theirs[i], (unsigned long long)mix(seed + i));
        }
    }
    return ST_OK;
}

/* Send and receive at once: neither side waits for the other to begin. */
static status swap(struct coll *c, uint32_t peer, uint32_t tag, const void *out, void *in,
                   size_t bytes, struct err *err)
{
    struct coll_req recv, send;
    status st = c->ops->recv_start(c, NULL, peer, tag, in, bytes, &recv, err);

    (void)(st || (st = c->ops->send_start(c, NULL, peer, tag, out, bytes, &send, err)) ||
           (st = c->ops->wait(c, recv, err)) || (st = c->ops->wait(c, send, err)));
    return st;
}

/* To and fro, begun by the lower rank; *ns_p is its time. */
static status bounce(struct test *t, uint32_t peer, uint32_t tag, size_t bytes, uint64_t *ns_p,
                     struct err *err)
{
    struct coll *c = t->c;
    const uint64_t from = clock_now_ns(clock_real());
    status st = ST_OK;

    if (c->rank < peer) {
        (void)((st = coll_send_now(c, NULL, peer, tag, t->mine, bytes, err)) ||
               (st = coll_recv_now(c, NULL, peer, tag, t->theirs, bytes, err)));
    } else {
        (void)((st = coll_recv_now(c, NULL, peer, tag, t->theirs, bytes, err)) ||
               (st = coll_send_now(c, NULL, peer, tag, t->mine, bytes, err)));
    }
    *ns_p = clock_now_ns(clock_real()) - from;
    return st;
}

static int by_size(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static status measure_trips(struct test *t, uint32_t peer, uint32_t n, float *us_p, struct err *err)
{
    uint64_t ns[ROUND_TRIPS];
    status st = ST_OK;

    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        st = bounce(t, peer, TAG_PING, sizeof(uint64_t), &ns[i], err);
    }
    if (st == ST_OK) {
        qsort(ns, n, sizeof(ns[0]), by_size);
        const uint64_t p50 = ns[n / 2];
        *us_p = (float)((double)p50 / 1e3);
    }
    return st;
}

/* The best of some times: the others were disturbed. What came is compared each time, off the clock. */
static status measure_bytes(struct test *t, uint32_t peer, size_t bytes, uint32_t n, float *mib_p,
                            struct err *err)
{
    uint64_t best = UINT64_MAX, ns = 0;
    status st = ST_OK;

    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        st = bounce(t, peer, TAG_DATA, bytes, &ns, err);
        best = MIN(best, ns);
        if (st == ST_OK) {
            st = check(t, bytes, peer, err);
        }
    }
    *mib_p = (float)(2.0 * (double)bytes / (1 << 20) / ((double)MAX(best, UINT64_C(1)) / 1e9));
    return st;
}

/* One pair. `bytes` 0: the leader's kind, whose bandwidth nobody needs. */
static status test_pair(struct test *t, uint32_t peer, size_t bytes, struct err *err)
{
    struct selftest_link link = { .a = MIN(t->c->rank, peer), .b = MAX(t->c->rank, peer) };
    float unused;

    t->mine[0] = hash64_of(t->config->host, strlen(t->config->host), 0);
    status st = swap(t->c, peer, TAG_HELLO, t->mine, t->theirs, sizeof(t->mine[0]), err);
    if (st == ST_OK) {
        link.is_across = t->mine[0] != t->theirs[0];
        fill(t->mine, MAX(bytes, (size_t)LEADER_BYTES), t->c->rank, peer);
        st = measure_trips(t, peer, bytes != 0 ? ROUND_TRIPS : LEADER_TRIPS, &link.latency_us, err);
    }
    if (st == ST_OK) {
        st = bytes != 0 ? measure_bytes(t, peer, bytes, REPEATS, &link.mib_per_s, err)
                        : measure_bytes(t, peer, LEADER_BYTES, 1, &unused, err);
    }
    if (st == ST_OK && link.a == t->c->rank) {
        ASSERT(t->n_links < t->n_links_max);
        t->links[t->n_links++] = link;
    }
    return st;
}

/* ---- rounds ---- */

static status test_slices(struct test *t, struct err *err)
{
    status st = ST_OK;

    for (uint32_t d = 1; st == ST_OK && d < t->c->tp; d++) {
        st = test_pair(t, t->c->stage * t->c->tp + (t->c->slice ^ d), t->pair_bytes, err);
    }
    return st;
}

/* Even stages with the next one, then odd ones. */
static status test_stages(struct test *t, struct err *err)
{
    const uint32_t stage = t->c->stage, tp = t->c->tp;
    status st = ST_OK;

    for (uint32_t odd = 0; st == ST_OK && odd < 2; odd++) {
        const bool is_first = stage % 2 == odd;
        if (is_first && stage + 1 < t->c->pp) {
            st = test_pair(t, t->c->rank + tp, t->pair_bytes, err);
        } else if (!is_first && stage > 0) {
            st = test_pair(t, t->c->rank - tp, t->pair_bytes, err);
        }
    }
    return st;
}

/* Was the leader's link to this rank tested as one of slices or stages? */
static bool is_tested(const struct coll *c, uint32_t rank)
{
    return rank < c->tp || rank == c->tp;
}

static status test_leader(struct test *t, struct err *err)
{
    const struct coll *c = t->c;
    status st = ST_OK;

    if (c->rank != 0) {
        return is_tested(c, c->rank) ? ST_OK : test_pair(t, 0, 0, err);
    }
    for (uint32_t rank = 1; st == ST_OK && rank < c->n_ranks; rank++) {
        if (!is_tested(c, rank)) {
            st = test_pair(t, rank, 0, err);
        }
    }
    return st;
}

/* Links that `rank` measures: as many on every side that counts them. */
static uint32_t links_of(const struct coll *c, uint32_t rank)
{
    const uint32_t slice = rank % c->tp, stage = rank / c->tp;
    uint32_t n = c->tp - 1 - slice; /* slices above it */

    n += stage + 1 < c->pp ? 1 : 0;
    for (uint32_t i = 1; rank == 0 && i < c->n_ranks; i++) {
        n += is_tested(c, i) ? 0 : 1;
    }
    return n;
}

/* ---- the sum ---- */

/* Signed, of exponents 2^-12 to 2^11 and full mantissas: another order of additions gives other
 * bits almost everywhere. */
float selftest_float(uint32_t slice, size_t i, bool exact)
{
    const uint64_t h = mix(mix(slice) + i);
    const double v = (double)(h >> 40) / (double)(UINT64_C(1) << 23) - 1.0; /* [-1, 1), 24 bits */

    if (exact) {
        return (float)((int32_t)(h % 2001) - 1000);
    }
    return (float)ldexp(v, (int)(h % 24) - 12);
}

static float tree(uint32_t first, uint32_t n, size_t i, bool exact)
{
    if (n == 1) {
        return selftest_float(first, i, exact);
    }
    const float lower = tree(first, n / 2, i, exact), upper = tree(first + n / 2, n / 2, i, exact);
    return lower + upper;
}

float selftest_sum(uint32_t tp, size_t i, bool exact)
{
    return tree(0, tp, i, exact);
}

status selftest_sum_check(const struct coll *c, const float *x, size_t n, bool exact,
                          struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        const float want = selftest_sum(c->tp, i, exact);
        if (f32_bits(x[i]) != f32_bits(want)) {
            return err_set(err, ST_ERR_MISMATCH,
                           "self-test: float %zu of a sum over the %u ranks of stage %u (ranks %u "
                           "to %u) is %a on rank %u, %a was due",
                           i, c->tp, c->stage, c->stage * c->tp, c->stage * c->tp + c->tp - 1,
                           (double)x[i], c->rank, (double)want);
        }
    }
    return ST_OK;
}

static status test_sum(struct test *t, size_t n, uint64_t stamp, struct err *err)
{
    struct coll *c = t->c;
    float *x = (float *)(void *)t->mine;

    for (size_t i = 0; i < n; i++) {
        x[i] = selftest_float(c->slice, i, false);
    }
    const status st = c->ops->all_reduce_tree(c, NULL, x, n, stamp, err);
    return st == ST_OK ? selftest_sum_check(c, x, n, false, err) : st;
}

static status test_sums(struct test *t, struct err *err)
{
    status st = t->c->tp > 1 ? test_sum(t, SUM_SMALL, 1, err) : ST_OK;

    if (st == ST_OK && t->c->tp > 1 && t->c->tp <= SUM_LARGE_TP) {
        st = test_sum(t, SUM_LARGE, 2, err);
    }
    return st;
}

/* ---- all of it ---- */

/* Leader: everybody's links, behind its own. */
static status collect(struct test *t, struct err *err)
{
    const struct coll *c = t->c;

    for (uint32_t i = 0; i < c->n_ranks; i++) {
        t->n_all += links_of(c, i);
    }
    t->all = calloc(MAX(t->n_all, 1u), sizeof(*t->all));
    if (t->all == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for what %u links do", t->n_all);
    }
    memcpy(t->all, t->links, t->n_links * sizeof(*t->all));
    uint32_t at = t->n_links;
    status st = ST_OK;
    for (uint32_t i = 1; st == ST_OK && i < c->n_ranks; i++) {
        const uint32_t of_i = links_of(c, i);
        if (of_i != 0) {
            st = coll_recv_now(t->c, NULL, i, TAG_LINKS, t->all + at, of_i * sizeof(*t->all), err);
        }
        at += of_i;
    }
    return st;
}

static status report(struct test *t, struct msg_self_test *report_p, struct err *err)
{
    if (t->c->rank != 0) {
        return t->n_links != 0 ? coll_send_now(t->c, NULL, 0, TAG_LINKS, t->links,
                                               t->n_links * sizeof(*t->links), err)
                               : ST_OK;
    }
    const status st = collect(t, err);
    if (st == ST_OK) {
        selftest_judge(t->all, t->n_all, t->config->is_crowded, report_p);
    }
    return st;
}

/* A test that failed may have messages in flight, which are read from and written to its memory: that
 * is left to the process, which is about to end (as in coll_mpi.c). */
static void test_leave(struct test *t)
{
    static struct test *_Atomic left;

    t->next = atomic_load(&left);
    while (!atomic_compare_exchange_weak(&left, &t->next, t)) {
    }
}

static void test_destroy(struct test *t)
{
    free(t->mine);
    free(t->theirs);
    free(t->links);
    free(t->all);
    free(t);
}

static struct test *test_create(struct coll *c, const struct selftest_config *config)
{
    const uint32_t n_pairs = MAX(c->tp - 1 + (c->pp > 1 ? 2 : 0), 1u);
    const size_t share = (size_t)BYTES_ALL / n_pairs / sizeof(uint64_t) * sizeof(uint64_t);
    struct test *t = calloc(1, sizeof(*t));

    if (t == NULL) {
        return NULL;
    }
    t->c = c;
    t->config = config;
    t->pair_bytes = MIN(MAX(share, (size_t)BYTES_MIN), (size_t)BYTES_MAX);
    t->n_links_max = links_of(c, c->rank);
    t->mine = malloc(BYTES_MAX);
    t->theirs = malloc(BYTES_MAX);
    t->links = calloc(MAX(t->n_links_max, 1u), sizeof(*t->links));
    if (t->mine == NULL || t->theirs == NULL || t->links == NULL) {
        test_destroy(t);
        return NULL;
    }
    return t;
}

status selftest_run(struct coll *c, const struct selftest_config *config,
                    struct msg_self_test *report_p, struct err *err)
{
    const uint64_t from = clock_now_ns(clock_real());
    struct test *t = test_create(c, config);
    struct msg_self_test report_now = { 0 };
    status st = ST_OK;

    if (t == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the self-test");
    }
    (void)((st = test_slices(t, err)) || (st = test_stages(t, err)) || (st = test_leader(t, err)) ||
           (st = test_sums(t, err)) || (st = report(t, &report_now, err)));
    if (st != ST_OK) {
        test_leave(t);
        return st;
    }
    test_destroy(t);
    report_now.took_ms = (double)(clock_now_ns(clock_real()) - from) / 1e6;
    *report_p = report_now;
    return ST_OK;
}
