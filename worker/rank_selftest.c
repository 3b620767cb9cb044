/* worker/rank_selftest.c - the self-test of a rank's fabric: the ranks' messages in host memory
 * (selftest.h), and what goes through device memory, which is another fabric: a sum over the stage
 * and residuals from stage to stage, against known bits. NCCL also makes its connections here, and
 * not in the first request. */
#include "worker/rank_priv.h"

#include "base/log.h"
#include "kernels/math.h"

#include <stdlib.h>
#include <string.h>

enum { DEVICE_FLOATS_MAX = 64 << 10, DEVICE_STAMP = 3 };

struct pieces {
    float *host; /* [n] pinned, owned */
    float *x;    /* [n] device, borrowed: a residual buffer */
    size_t n;
};

static size_t bytes_of(const struct pieces *p)
{
    return p->n * sizeof(float);
}

/* What the slice brings, into the device. */
static void load(struct rank *r, const struct pieces *p, uint32_t slice, bool exact)
{
    for (size_t i = 0; i < p->n; i++) {
        p->host[i] = selftest_float(slice, i, exact);
    }
    r->ops->copy_in(r->stream, p->x, p->host, bytes_of(p));
}

static status device_sum(struct rank *r, const struct pieces *p, struct err *err)
{
    const bool exact = r->plan->free_order; /* NCCL's own order is any */
    status st = ST_OK;

    load(r, p, r->coll->slice, exact);
    st = r->coll->ops->all_reduce_tree(r->coll, r->stream, p->x, p->n, DEVICE_STAMP, err);
    if (st == ST_OK) {
        r->ops->copy_out(r->stream, p->host, p->x, bytes_of(p));
        st = exec_drain(r->exec, err);
    }
    return st == ST_OK ? selftest_sum_check(r->coll, p->host, p->n, exact, err) : st;
}

/* Down the stages: what has come is compared, and sent on. */
static status device_stages(struct rank *r, const struct pieces *p, struct err *err)
{
    const uint32_t stage = r->coll->stage, tp = r->plan->tp;
    status st = ST_OK;

    load(r, p, stage == 0 ? r->coll->slice : UINT32_MAX, false);
    if (stage > 0) {
        st = coll_recv_now(r->coll, r->stream, r->rank - tp, RANK_TAG_X, p->x, bytes_of(p), err);
    }
    if (st == ST_OK) {
        r->ops->copy_out(r->stream, p->host, p->x, bytes_of(p));
        st = exec_drain(r->exec, err);
    }
    for (size_t i = 0; st == ST_OK && i < p->n; i++) {
        const float want = selftest_float(r->coll->slice, i, false);
        if (f32_bits(p->host[i]) != f32_bits(want)) {
            st = err_set(err, ST_ERR_MISMATCH,
                         "self-test: float %zu of %zu that rank %u sends from its device arrives "
                         "at rank %u as %a, %a was sent",
                         i, p->n, r->rank - tp, r->rank, (double)p->host[i], (double)want);
        }
    }
    if (st == ST_OK && stage + 1 < r->plan->pp) {
        (void)((st = coll_send_now(r->coll, r->stream, r->rank + tp, RANK_TAG_X, p->x, bytes_of(p),
                                   err)) ||
               (st = exec_drain(r->exec, err)));
    }
    return st;
}

static status device_test(struct rank *r, struct err *err)
{
    struct pieces p = { .x = r->x[0],
                        .n = MIN(r->x_bytes / sizeof(float), (size_t)DEVICE_FLOATS_MAX) };
    void *mem = NULL;
    status st = r->ops->host_alloc(r->stream, bytes_of(&p), &mem, err);

    if (st != ST_OK) {
        return st;
    }
    p.host = mem;
    if (r->plan->tp > 1) {
        st = device_sum(r, &p, err);
    }
    if (st == ST_OK && r->plan->pp > 1) {
        st = device_stages(r, &p, err);
    }
    r->ops->host_free(r->stream, mem, bytes_of(&p));
    return st;
}

status rank_selftest(struct rank *r, const struct selftest_config *config,
                     struct msg_self_test *report_p, struct err *err)
{
    if (r->plan->n_ranks == 1) {
        *report_p = (struct msg_self_test){ 0 };
        return ST_OK;
    }
    status st = selftest_run(r->coll, config, report_p, err);
    if (st == ST_OK && r->coll_device != NULL) {
        st = device_test(r, err);
    }
    atomic_fetch_add(&r->progress->ticks, 1); /* whoever watches sees that it moves */
    return st;
}
