/* worker/selftest_judge.c - which links of a replica are slow beside others of their kind. */
#include "worker/selftest.h"

#include <stdlib.h>
#include <string.h>

enum { FACTOR = 4, FACTOR_CROWDED = 64, KIND_MIN = 3 };

/* Round trips that differ by less than this do not matter to a step. */
static const float latency_floor_us = 50.0f;

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

/* Of the links of one kind that have a value; 0 where they are too few to say what is usual. */
static float median(const struct selftest_link *links, uint32_t n, bool is_across, bool of_latency,
                    float *scratch)
{
    uint32_t m = 0;

    for (uint32_t i = 0; i < n; i++) {
        const float v = of_latency ? links[i].latency_us : links[i].mib_per_s;
        if ((links[i].is_across != 0) == is_across && v > 0) {
            scratch[m++] = v;
        }
    }
    qsort(scratch, m, sizeof(*scratch), by_value);
    return m >= KIND_MIN ? scratch[m / 2] : 0;
}

static struct msg_link link_of(const struct selftest_link *l)
{
    return (struct msg_link){ .a = l->a,
                              .b = l->b,
                              .is_across = l->is_across != 0,
                              .latency_us = l->latency_us,
                              .mib_per_s = l->mib_per_s };
}

static void judge_one(const struct selftest_link *l, float latency, float mib, float factor,
                      struct msg_self_test *r)
{
    const bool is_late = latency > 0 && l->latency_us > factor * latency &&
                         l->latency_us - latency > latency_floor_us;
    const bool is_thin = mib > 0 && l->mib_per_s > 0 && l->mib_per_s * factor < mib;

    if (!is_late && !is_thin) {
        return;
    }
    if (r->n_slow < MSG_SLOW_LINKS_MAX) {
        r->slow[r->n_slow] = link_of(l);
        r->slow[r->n_slow].usual_latency_us = latency;
        r->slow[r->n_slow].usual_mib_per_s = mib;
        r->n_slow++;
    }
    r->n_slow_all++;
}

void selftest_judge(const struct selftest_link *links, uint32_t n, bool is_crowded,
                    struct msg_self_test *report_p)
{
    const float factor = is_crowded ? FACTOR_CROWDED : FACTOR;
    float *scratch = calloc(MAX(n, 1u), sizeof(*scratch));
    struct msg_self_test r = { .n_links = n };

    for (uint32_t kind = 0; scratch != NULL && kind < 2; kind++) {
        const float latency = median(links, n, kind == 1, true, scratch);
        const float mib = median(links, n, kind == 1, false, scratch);
        for (uint32_t i = 0; i < n; i++) {
            if ((links[i].is_across != 0) == (kind == 1)) {
                judge_one(&links[i], latency, mib, factor, &r);
            }
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct selftest_link *l = &links[i];
        if (i == 0 || l->latency_us > r.worst_latency.latency_us) {
            r.worst_latency = link_of(l);
        }
        if (l->mib_per_s > 0 &&
            (r.worst_bandwidth.mib_per_s <= 0 || l->mib_per_s < r.worst_bandwidth.mib_per_s)) {
            r.worst_bandwidth = link_of(l);
        }
    }
    free(scratch);
    *report_p = r;
}
