/* coordinator/fabric.c - what a replica's self-test found, as its leader says with Ready. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <stdio.h>

static const char *host_of(const struct replica *r, uint32_t rank)
{
    return rank < r->shape.n_ranks ? r->ranks[rank].host : "?";
}

static void link_text(const struct replica *r, const struct msg_link *l, char *text, size_t bytes)
{
    snprintf(text, bytes, "rank %u (host %s) and rank %u (host %s)", l->a, host_of(r, l->a), l->b,
             host_of(r, l->b));
}

void fabric_take(struct replica *r, const struct msg_self_test *m)
{
    char late[256], thin[256];

    r->self_test = *m;
    if (m->n_links == 0) {
        return;
    }
    link_text(r, &m->worst_latency, late, sizeof(late));
    link_text(r, &m->worst_bandwidth, thin, sizeof(thin));
    log_info("replica",
             "replica %u.%u: %u links tested in %.0f ms; the longest round trip takes %.1f us "
             "(%s), the least bandwidth is %.0f MiB/s (%s)",
             r->index, r->generation, m->n_links, m->took_ms, (double)m->worst_latency.latency_us,
             late, (double)m->worst_bandwidth.mib_per_s, thin);
    for (uint32_t i = 0; i < m->n_slow; i++) {
        const struct msg_link *l = &m->slow[i];
        link_text(r, l, late, sizeof(late));
        log_warn("replica",
                 "replica %u.%u: the link between %s is slow: a round trip takes %.1f us, %.0f "
                 "MiB/s; usual %s are %.1f us, %.0f MiB/s",
                 r->index, r->generation, late, (double)l->latency_us, (double)l->mib_per_s,
                 l->is_across ? "between hosts" : "on a host", (double)l->usual_latency_us,
                 (double)l->usual_mib_per_s);
    }
    if (m->n_slow_all > m->n_slow) {
        log_warn("replica", "replica %u.%u: %u further links are slow", r->index, r->generation,
                 m->n_slow_all - m->n_slow);
    }
}
