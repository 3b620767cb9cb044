/* proto/codec_fabric.c - what a replica's self-test found. */
#include "proto/codec_fabric.h"

#include "proto/codec_pb.h"

#include "gantry.pb-c.h"

#include <math.h>

static void link_fill(const struct msg_link *m, Gantry__V1__Link *l)
{
    gantry__v1__link__init(l);
    l->a = m->a;
    l->b = m->b;
    l->across = m->is_across;
    l->latency_us = m->latency_us;
    l->mib_per_s = m->mib_per_s;
    l->usual_latency_us = m->usual_latency_us;
    l->usual_mib_per_s = m->usual_mib_per_s;
}

status pb_self_test_fill(const struct msg_self_test *m, struct arena *arena,
                         struct Gantry__V1__SelfTest **test_p)
{
    const size_t n_slow = MIN(m->n_slow, (uint32_t)MSG_SLOW_LINKS_MAX);

    *test_p = NULL;
    if (m->n_links == 0) {
        return ST_OK;
    }
    Gantry__V1__SelfTest *t = arena_alloc(arena, sizeof(*t));
    Gantry__V1__Link **links = (void *)pb_objects(arena, n_slow + 2, sizeof(Gantry__V1__Link));
    if (t == NULL || links == NULL) {
        return ST_ERR_NOMEM;
    }
    gantry__v1__self_test__init(t);
    t->links = m->n_links;
    t->took_ms = m->took_ms;
    t->slow_all = m->n_slow_all;
    t->worst_latency = links[n_slow];
    t->worst_bandwidth = links[n_slow + 1];
    link_fill(&m->worst_latency, t->worst_latency);
    link_fill(&m->worst_bandwidth, t->worst_bandwidth);
    t->n_slow = n_slow;
    t->slow = links;
    for (size_t i = 0; i < n_slow; i++) {
        link_fill(&m->slow[i], links[i]);
    }
    *test_p = t;
    return ST_OK;
}

static status link_read(const Gantry__V1__Link *in, struct msg_link *m, struct err *err)
{
    if (in == NULL) {
        *m = (struct msg_link){ 0 };
        return ST_OK;
    }
    if (!isfinite(in->latency_us) || !isfinite(in->mib_per_s) || !isfinite(in->usual_latency_us) ||
        !isfinite(in->usual_mib_per_s)) {
        return err_set(err, ST_ERR_PROTO,
                       "SelfTest: a figure of the link between rank %u and rank %u is no number",
                       in->a, in->b);
    }
    *m = (struct msg_link){ .a = in->a,
                            .b = in->b,
                            .is_across = in->across != 0,
                            .latency_us = in->latency_us,
                            .mib_per_s = in->mib_per_s,
                            .usual_latency_us = in->usual_latency_us,
                            .usual_mib_per_s = in->usual_mib_per_s };
    return ST_OK;
}

status pb_self_test_read(const struct Gantry__V1__SelfTest *in, struct msg_self_test *m_p,
                         struct err *err)
{
    struct msg_self_test m = { 0 };
    status st = ST_OK;

    if (in != NULL && (in->n_slow > MSG_SLOW_LINKS_MAX || !isfinite(in->took_ms))) {
        return err_set(err, ST_ERR_PROTO, "SelfTest has %zu slow links (at most %d), took %g ms",
                       in->n_slow, (int)MSG_SLOW_LINKS_MAX, in->took_ms);
    }
    if (in != NULL && in->links != 0) {
        m.n_links = in->links;
        m.took_ms = in->took_ms;
        m.n_slow = (uint32_t)in->n_slow;
        m.n_slow_all = in->slow_all;
        (void)((st = link_read(in->worst_latency, &m.worst_latency, err)) ||
               (st = link_read(in->worst_bandwidth, &m.worst_bandwidth, err)));
        for (size_t i = 0; st == ST_OK && i < in->n_slow; i++) {
            st = link_read(in->slow[i], &m.slow[i], err);
        }
    }
    if (st == ST_OK) {
        *m_p = m;
    }
    return st;
}
