/* partition/rates.c - see rates.h: the entry of a host, and what it says that work takes. */
#include "partition/rates.h"

#include <stdlib.h>
#include <string.h>

void rates_fini(struct rates *rates)
{
    free(rates->entries);
    *rates = (struct rates){ .entries = NULL };
}

/* ---- which entry ---- */

static bool is_kind(const struct rates_entry *e, const struct rates_key *key)
{
    return e->cuda_version == key->cuda_version && e->fmt == key->fmt;
}

/* "user@node1.site" and "node1" are one host: where one of them has no domain, its name decides. */
static bool is_host(const char *name, const char *asked)
{
    const char *at = strrchr(asked, '@');
    const char *host = at != NULL ? at + 1 : asked;
    const size_t n = strcspn(name, "."), m = strcspn(host, ".");

    return strcmp(name, host) == 0 ||
           ((name[n] == '\0' || host[m] == '\0') && n == m && strncmp(name, host, n) == 0);
}

const struct rates_entry *rates_find(const struct rates *rates, const struct rates_key *key)
{
    const struct rates_entry *any = NULL;

    for (uint32_t i = 0; i < rates->n; i++) {
        const struct rates_entry *e = &rates->entries[i];
        if (is_kind(e, key) && is_host(e->host, key->host)) {
            return e;
        }
        any = is_kind(e, key) && strcmp(e->host, "*") == 0 ? e : any;
    }
    return any;
}

const struct rates_entry *rates_slowest(const struct rates *rates, const struct rates_key *key)
{
    const struct rates_entry *slow = NULL;

    for (uint32_t i = 0; i < rates->n; i++) {
        const struct rates_entry *e = &rates->entries[i];
        if (is_kind(e, key) &&
            (slow == NULL || e->weights.at[0].bytes_s < slow->weights.at[0].bytes_s)) {
            slow = e;
        }
    }
    return slow;
}

/* ---- seconds ---- */

static const struct rates_points *points_for(const struct rates_entry *e, uint64_t total)
{
    return total <= e->cached_bytes && e->cached.n != 0 ? &e->cached : &e->weights;
}

/* Seconds of a byte. */
static double at_rows(const struct rates_points *p, uint32_t n_rows)
{
    const struct rates_point *last = &p->at[p->n - 1];
    uint32_t i = 0;

    if (n_rows >= last->rows) {
        return (double)n_rows / last->rows / last->bytes_s;
    }
    if (n_rows <= p->at[0].rows) {
        return 1.0 / p->at[0].bytes_s;
    }
    while (p->at[i + 1].rows < n_rows) {
        i++;
    }
    const double a = 1.0 / p->at[i].bytes_s, b = 1.0 / p->at[i + 1].bytes_s;
    return a + (b - a) * (n_rows - p->at[i].rows) / (p->at[i + 1].rows - p->at[i].rows);
}

double rates_weights_s(const struct rates_entry *e, uint64_t bytes, uint64_t total, uint32_t n_rows)
{
    return (double)bytes * at_rows(points_for(e, total), n_rows);
}

double rates_scores_s(const struct rates_scores *s, double n, uint32_t head_dim)
{
    return n / s->scores_s + 4.0 * n * head_dim / s->flops;
}

bool rates_reading_bounds(const struct rates_entry *e, uint64_t total, uint32_t n_rows)
{
    const struct rates_points *p = points_for(e, total);

    return at_rows(p, n_rows) < 2 * at_rows(p, 1);
}
