/* worker/measure_links.c - round trips and bandwidth of the ranks of a job (see measure.h).
 *
 * Rank 0 with each other rank in turn, so that no pair disturbs another. What is wanted is what a sum or a
 * residual would meet: small messages for the latency, MEGABYTE ones for the bandwidth. */
#include "worker/measure.h"

#include <stdlib.h>
#include <string.h>

enum { TAG_PING = 200, TAG_DATA, TRIPS = 41, REPEATS = 5, BYTES = 1 << 20 };

struct pair {
    double latency_s, bytes_s;
};

/* To and fro, begun by rank 0; half of its time. */
static status bounce(struct coll *c, uint32_t peer, uint32_t tag, unsigned char *data, size_t bytes,
                     double *s_p, struct err *err)
{
    const uint64_t from = clock_now_ns(clock_real());
    status st;

    if (c->rank == 0) {
        (void)((st = coll_send_now(c, NULL, peer, tag, data, bytes, err)) ||
               (st = coll_recv_now(c, NULL, peer, tag, data, bytes, err)));
    } else {
        (void)((st = coll_recv_now(c, NULL, 0, tag, data, bytes, err)) ||
               (st = coll_send_now(c, NULL, 0, tag, data, bytes, err)));
    }
    *s_p = (double)MAX(clock_now_ns(clock_real()) - from, UINT64_C(1)) / 2e9;
    return st;
}

static int by_size(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;

    return a < b ? -1 : a > b;
}

static double median(double *x, uint32_t n)
{
    qsort(x, n, sizeof(*x), by_size);
    return x[n / 2];
}

static status measure_pair(struct coll *c, uint32_t peer, unsigned char *data, struct pair *pair_p,
                           struct err *err)
{
    double s[TRIPS];
    status st = ST_OK;

    for (uint32_t i = 0; i < TRIPS && st == ST_OK; i++) {
        st = bounce(c, peer, TAG_PING, data, sizeof(uint64_t), &s[i], err);
    }
    pair_p->latency_s = st == ST_OK ? median(s, TRIPS) : 0;
    for (uint32_t i = 0; i < REPEATS && st == ST_OK; i++) {
        st = bounce(c, peer, TAG_DATA, data, BYTES, &s[i], err);
    }
    if (st == ST_OK) {
        const double all_s = median(s, REPEATS);
        pair_p->bytes_s = BYTES / MAX(all_s - pair_p->latency_s, all_s / 10);
    }
    return st;
}

/* The median of the pairs of one kind. */
static void link_of(const struct pair *pairs, const bool *is_kind, uint32_t n, double *scratch,
                    struct rates_link *link_p)
{
    struct rates_link l = { .is_measured = false };
    uint32_t m = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (is_kind[i]) {
            scratch[m++] = pairs[i].latency_s;
        }
    }
    if (m != 0) {
        l.is_measured = true;
        l.latency_s = median(scratch, m);
        m = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (is_kind[i]) {
                scratch[m++] = pairs[i].bytes_s;
            }
        }
        l.bytes_s = median(scratch, m);
    }
    *link_p = l;
}

static status judge(const struct coll *c, const struct pair *pairs, const uint64_t *hosts,
                    struct rates_link *on_host_p, struct rates_link *across_p, struct err *err)
{
    double *scratch = calloc(c->n_ranks, sizeof(*scratch));
    bool *is_kind = calloc(c->n_ranks, sizeof(*is_kind));
    const bool ok = scratch != NULL && is_kind != NULL;

    for (uint32_t kind = 0; kind < 2 && ok; kind++) {
        for (uint32_t i = 1; i < c->n_ranks; i++) {
            is_kind[i] = (hosts[i] != hosts[0]) == (kind == 1);
        }
        link_of(pairs, is_kind, c->n_ranks, scratch, kind == 1 ? across_p : on_host_p);
    }
    free(scratch);
    free(is_kind);
    return ok ? ST_OK : err_set(err, ST_ERR_NOMEM, "no memory for %u links", c->n_ranks);
}

status measure_links(struct coll *c, const uint64_t *hosts, struct rates_link *on_host_p,
                     struct rates_link *across_p, struct err *err)
{
    struct pair *pairs = calloc(c->n_ranks, sizeof(*pairs));
    unsigned char *data = calloc(1, BYTES);
    status st = ST_OK;

    if (pairs == NULL || data == NULL) {
        st = err_set(err, ST_ERR_NOMEM, "no memory to measure %u links", c->n_ranks);
    }
    for (uint32_t i = 1; i < c->n_ranks && st == ST_OK; i++) {
        if (c->rank == 0 || c->rank == i) {
            st = measure_pair(c, i, data, &pairs[i], err);
        }
    }
    if (st == ST_OK && c->rank == 0) {
        st = judge(c, pairs, hosts, on_host_p, across_p, err);
    }
    free(pairs);
    free(data);
    return st;
}
