/* worker/rank_plan.c - step plans on their way from rank 0 to all others; see rank_priv.h.
 *
 *   ring of plans   | p-3 | p-2 | p-1 |  p  |      each with its sends to this rank's children
 *
 * A send holds a slot of the collectives (COLL_REQS_MAX) until somebody has asked about it. With many
 * stages many plans are out: 64 stages of 8 slices are 65 plans of 10 sends. So before a plan is passed
 * on, what has gone of the others is taken off; small plans have, nearly always. Where that leaves too
 * few slots the oldest are waited for. No ring of waiting can come of that: a rank passes a plan on before
 * it runs it, so whoever has not taken the oldest plan waits for older steps only. */
#include "worker/rank_priv.h"

#include <stdlib.h>

/* Left to residuals, results and digests. */
enum { OTHER_REQS = 16, PLAN_REQS_LIMIT = COLL_REQS_MAX - OTHER_REQS - PLAN_REQS_MAX };

struct step_head *rank_plan(const struct rank *r, uint32_t i)
{
    return (struct step_head *)(void *)((char *)r->plans + (size_t)i * r->plan_bytes_max);
}

status rank_settle_plan(struct rank *r, uint32_t i, struct err *err)
{
    struct coll_req *reqs = r->plan_reqs + (size_t)i * PLAN_REQS_MAX;

    for (uint32_t k = 0; k < r->n_plan_reqs[i]; k++) {
        const status st = r->coll->ops->wait(r->coll, reqs[k], err);
        if (st != ST_OK) {
            return st;
        }
    }
    r->n_plan_reqs[i] = 0;
    return ST_OK;
}

/* Take off what is over. */
static status take_off(struct rank *r, uint32_t i, struct err *err)
{
    struct coll_req *reqs = r->plan_reqs + (size_t)i * PLAN_REQS_MAX;
    uint32_t n = 0;

    for (uint32_t k = 0; k < r->n_plan_reqs[i]; k++) {
        const status st = r->coll->ops->test(r->coll, reqs[k], err);
        if (st == ST_BUSY) {
            reqs[n++] = reqs[k];
        } else if (st != ST_OK) {
            return st;
        }
    }
    r->n_plan_reqs[i] = n;
    return ST_OK;
}

/* Slots for the sends of plan i. The next one in the ring is the oldest. */
static status make_room(struct rank *r, uint32_t i, struct err *err)
{
    uint32_t n = 0;
    status st = ST_OK;

    ASSERT(r->n_plans > 1); /* pp plans and one more */
    for (uint32_t k = 0; st == ST_OK && k < r->n_plans; k++) {
        st = take_off(r, k, err);
        n += r->n_plan_reqs[k];
    }
    for (uint32_t k = (i + 1) % r->n_plans; st == ST_OK && n > PLAN_REQS_LIMIT && k != i;
         k = (k + 1) % r->n_plans) {
        n -= r->n_plan_reqs[k];
        st = rank_settle_plan(r, k, err);
    }
    return st;
}

status rank_pass_plan(struct rank *r, uint32_t i, struct err *err)
{
    const struct step_head *plan = rank_plan(r, i);
    struct coll_req *reqs = r->plan_reqs + (size_t)i * PLAN_REQS_MAX;
    status st = make_room(r, i, err);

    if (st != ST_OK) {
        return st;
    }
    for (uint32_t bit = 1; r->rank + bit < r->plan->n_ranks; bit <<= 1) {
        if (bit <= r->rank) {
            continue;
        }
        st = r->coll->ops->send_start(r->coll, NULL, r->rank + bit, RANK_TAG_PLAN, plan,
                                      plan->bytes, &reqs[r->n_plan_reqs[i]], err);
        if (st != ST_OK) {
            return st;
        }
        r->n_plan_reqs[i]++;
    }
    if (plan->kind == STEP_RUN && r->coll->stage + 1 < r->plan->pp) {
        st = r->coll->ops->send_start(r->coll, NULL, r->rank + r->plan->tp, RANK_TAG_STAMP,
                                      &plan->digest, sizeof(plan->digest), &reqs[r->n_plan_reqs[i]],
                                      err);
        if (st != ST_OK) {
            return st;
        }
        r->n_plan_reqs[i]++;
    }
    return ST_OK;
}
