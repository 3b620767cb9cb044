/* coordinator/blame.c - a replica is lost: who is to blame, and whether it is started again.
 *
 *   first sign ──streams move at once──► LOST ──VERDICT_MS──► verdict ──► may it come back?
 *                                          yes: on_lost ends its job, waits, coord_replica_restart
 *                                          no:  FAILED; when all are, the service has FAILED
 *
 * Blame. When a rank dies, MPI takes the others down within milliseconds, and each of them may
 * report or break off as well. So the first sign of a failure only starts a short collection
 * (VERDICT_MS), and the best sign is blamed: a fault of a rank's own; then the rank that, says the
 * launcher, a signal ended (two streams that broke within a millisecond may be seen in either
 * order); then one that has said nothing for half of --hang-timeout; then the first broken stream; then
 * a fault that only says "my peer is gone"; then the launcher's end.
 *
 * Whose fault it is does not matter to the streams, so they do not wait for the verdict. With the
 * verdict every rank that is still attached is cut off, and a rank whose stream breaks ends itself:
 * also one that the launcher cannot reach. A generation that was lost never comes back. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BACKOFF_MAX_S = 30 };

bool replica_is_alive(const struct replica *r)
{
    return r->state != REPLICA_LOST && r->state != REPLICA_FAILED && r->state != REPLICA_DRAINED &&
           r->state != REPLICA_GONE;
}

/* ---- the state of all of it ---- */

/* Why nothing serves any more, with every replica's story as far as it fits. */
static void failure_tell(struct coord *c)
{
    char *at = c->failure;
    size_t left = sizeof(c->failure);

    c->failure_code = c->replicas[0]->why_code;
    if (c->n_own == 1) {
        snprintf(at, left, "%s", c->replicas[0]->why);
        return;
    }
    for (uint32_t i = 0; i < c->n_own; i++) {
        const int n =
            snprintf(at, left, "%sreplica %u: %s", i == 0 ? "" : "; ", i, c->replicas[i]->why);
        if (n < 0 || (size_t)n >= left) {
            return;
        }
        at += n;
        left -= (size_t)n;
    }
}

bool replica_is_over(const struct replica *r)
{
    return r->state == REPLICA_FAILED || r->state == REPLICA_GONE ||
           (r->state == REPLICA_DRAINED && drain_keeps_down(r));
}

void coord_judge(struct coord *c)
{
    uint32_t n_serving = 0, n_over = 0;
    char text[ERR_TEXT_BYTES + 64];

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        n_serving += c->replicas[i]->state == REPLICA_SERVING ? 1 : 0;
        n_over += replica_is_over(c->replicas[i]) ? 1 : 0;
    }
    if (n_over == c->n_replicas && !c->config.external_only) { /* joined ones have left as well */
        if (c->state != COORD_FAILED) {
            failure_tell(c);
            snprintf(text, sizeof(text), "%s lost: %s",
                     c->n_own == 1 ? "the replica was" : "all replicas were", c->failure);
            resume_freeze(c); /* whoever starts the service again may go on with them */
            front_fail_all(c, ST_ERR_UNAVAILABLE, text);
            coord_set_state(c, COORD_FAILED);
        }
        return;
    }
    if (c->is_stopping) {
        return;
    }
    if (n_serving != 0) {
        c->has_served = true;
        coord_set_state(c, COORD_SERVING);
    } else if (c->has_served) {
        coord_set_state(c, COORD_RECOVERING);
    }
    health_push(c);
}

/* ---- the verdict ---- */

/* Someone else has started it, and may do so again: here its slot is free. */
static void let_go(struct replica *r)
{
    log_error("replica", "replica %u had joined and is gone; whoever started it may start it again",
              r->index);
    table_remove(r);
}

/* Another start makes sense: there is somebody to do it, it has not failed too often in a row, and
 * the service has shown that it can work, or another replica still may. */
static bool may_restart(const struct replica *r)
{
    const struct coord *c = r->coord;
    bool others = false;

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        others = others || (i != r->index && replica_is_alive(c->replicas[i]));
    }
    return !drain_keeps_down(r) && c->config.on_lost != NULL && !c->is_stopping &&
           r->n_restarts < c->config.restarts && (c->has_served || others);
}

void replica_cut_off(struct replica *r)
{
    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        struct rpc_call *call = r->ranks[i].call;
        if (call != NULL) {
            struct attach *a = rpc_call_user(call);
            a->rank = -1;
            r->ranks[i].call = NULL;
            r->n_attached--;
            /* not UNAVAILABLE: that is what a coordinator that is gone looks like */
            rpc_call_finish(call, ST_ERR_CANCELLED, r->why);
        }
    }
}

/* Before they are cut off. Half of what makes a rank a silent one: its neighbours on a host that has lost
 * its power fell silent within a heartbeat of it. Time in which we stood still ourselves, and of which
 * the detector has not heard, is nobody's. Returns the rank that was heard longest ago, or null. */
static const struct rank *note_silent(struct replica *r)
{
    const struct coord *c = r->coord;
    const uint64_t now = coord_now(c);
    const uint64_t half = c->config.hang_ns / 2;
    const uint64_t bound = half + clock_since(now, c->watch_due_ns);
    const struct rank *most = NULL;

    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        struct rank *k = &r->ranks[i];
        k->was_silent = half != 0 && k->call != NULL && clock_since(now, k->heard_ns) > bound;
        if (k->was_silent && (most == NULL || k->heard_ns < most->heard_ns)) {
            most = k;
        }
    }
    return most;
}

enum coord_rank_end coord_rank_end(const struct coord *c, uint32_t replica, uint32_t rank)
{
    const struct rank *k = &c->replicas[replica]->ranks[rank];

    if (!k->was_attached) {
        return COORD_RANK_ABSENT;
    }
    return k->was_silent ? COORD_RANK_SILENT : COORD_RANK_SEEN;
}

void coord_replica_hosts(struct coord *c, uint32_t replica, const char *text)
{
    struct replica *r = c->replicas[replica];

    snprintf(r->hosts, sizeof(r->hosts), "%s", text);
}

/* False: it does not say. */
static bool ask_launcher(struct replica *r)
{
    const struct coord_config *config = &r->coord->config;
    struct sign *sign = &r->sign;
    char how[64];
    uint32_t rank;

    if (config->culprit == NULL || replica_has_joined(r) || sign->weight >= SIGN_OWN_FAULT ||
        !config->culprit(config->arg, r->index, &rank, how, sizeof(how)) ||
        rank >= r->shape.n_ranks) {
        return false;
    }
    const struct rank *k = &r->ranks[rank];
    snprintf(sign->text, sizeof(sign->text),
             "rank %u (host %s, pid %u) was ended by %s in phase \"%s\" at step %" PRIu64, rank,
             k->host, k->pid, how, k->phase, k->heartbeat.step);
    sign->code = ST_ERR_PEER;
    return true;
}

/* A host that has lost its power says nothing, and what its neighbours say when mpirun takes them down
 * comes before --hang-timeout is over. */
static void blame_quiet(struct replica *r, const struct rank *k)
{
    struct sign *sign = &r->sign;
    char then[ERR_TEXT_BYTES];

    if (k == NULL || sign->weight >= SIGN_OWN_FAULT) {
        return;
    }
    snprintf(then, sizeof(then), "%s", sign->text);
    snprintf(sign->text, sizeof(sign->text),
             "rank %u (host %s, pid %u) has been silent for %.1f s, last in phase \"%s\" at step "
             "%" PRIu64 "; after that: %.*s",
             (uint32_t)(k - r->ranks), k->host, k->pid,
             (double)(coord_now(r->coord) - k->heard_ns) / 1e9, k->phase, k->heartbeat.step,
             (int)sizeof(then) / 2, then);
    sign->code = ST_ERR_PEER;
}

static void verdict(void *arg)
{
    struct replica *r = arg;
    struct coord *c = r->coord;
    uint64_t delay_ns = CLOCK_NEVER;

    coord_enter(c);
    const struct rank *quiet = note_silent(r);
    if (!ask_launcher(r)) {
        blame_quiet(r, quiet);
    }
    r->has_verdict = true;
    r->n_losses++;
    snprintf(r->why, sizeof(r->why), "%s", r->sign.text);
    r->why_code = r->sign.code;
    log_error("replica", "replica %u.%u is lost: %s", r->index, r->generation, r->why);
    replica_cut_off(r);
    if (replica_has_joined(r)) {
        let_go(r);
        drain_over(r);
    } else if (may_restart(r)) {
        const uint64_t s = r->n_restarts < 5 ? 1u << r->n_restarts : BACKOFF_MAX_S;
        delay_ns = MIN(s, (uint64_t)BACKOFF_MAX_S) * NS_PER_S;
        r->n_restarts++;
        log_info("replica", "replica %u is started again in %llu s", r->index,
                 (unsigned long long)(delay_ns / NS_PER_S));
    } else if (drain_keeps_down(r)) {
        r->state = REPLICA_DRAINED;
        drain_over(r);
    } else {
        r->state = REPLICA_FAILED;
        drain_over(r);
        if (c->n_own > 1) {
            log_error("replica", "replica %u is not started again", r->index);
        }
        replica_digest_settle(c);
    }
    coord_judge(c);
    if (!replica_has_joined(r) && c->config.on_lost != NULL) {
        c->config.on_lost(c->config.arg, r->index, delay_ns);
    }
    coord_leave(c);
}

void replica_sign(struct replica *r, enum sign_weight weight, status code, const char *text)
{
    struct coord *c = r->coord;

    /* Ranks that were told to stop go; while streams drain, one that goes takes them along. */
    const bool are_told = c->ranks_are_told || r->drain.ranks_are_told;

    if ((r->state == REPLICA_DRAINING && are_told) || r->has_verdict) {
        log_debug("replica", "%s", text);
        return;
    }
    if (weight > r->sign.weight) { /* of equals the first */
        r->sign.weight = weight;
        r->sign.code = code;
        snprintf(r->sign.text, sizeof(r->sign.text), "%s", text);
    }
    if (r->state != REPLICA_LOST) {
        r->state = REPLICA_LOST;
        rpc_timer_set(c->loop, &r->verdict_timer, coord_now(c) + VERDICT_MS * NS_PER_MS);
        health_push(c);
        route_evacuate(r);
    }
}

/* ---- life ---- */

void blame_init(struct replica *r)
{
    r->verdict_timer.fn = verdict;
    r->verdict_timer.arg = r;
}

/* What waits for another start gets none: the service ends, and that is no failure. */
void blame_stop(struct coord *c)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        if ((r->state == REPLICA_LOST || r->state == REPLICA_DRAINED) && r->has_verdict) {
            r->state = REPLICA_DRAINING;
        }
    }
}

bool blame_is_pending(const struct coord *c)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        if (r->state == REPLICA_LOST && !r->has_verdict) {
            return true;
        }
    }
    return false;
}

uint32_t coord_replica_restart(struct coord *c, uint32_t replica)
{
    struct replica *r = c->replicas[replica];

    ASSERT(r->state == REPLICA_LOST || r->state == REPLICA_DRAINED);
    ASSERT(r->has_verdict && r->n_attached == 0);
    memset(r->ranks, 0, r->shape.n_ranks * sizeof(*r->ranks));
    memset(&r->sign, 0, sizeof(r->sign));
    memset(&r->canary, 0, sizeof(r->canary));
    if (r->kept != NULL) {
        prefix_map_clear(r->kept);
    }
    r->generation++;
    r->n_ready = 0;
    r->has_verdict = false;
    r->reattach_ns = 0;
    r->pace_ns = 0; /* it may come back on other hosts */
    r->drain.ranks_are_told = false;
    r->state = REPLICA_STARTING;
    r->started_ns = coord_now(c);
    log_info("replica", "replica %u.%u is starting", r->index, r->generation);
    return r->generation;
}

void coord_job_ended(struct coord *c, uint32_t replica, const char *text)
{
    coord_enter(c);
    /* The weakest sign: what a rank said, or whose stream broke first, tells more. */
    replica_sign(c->replicas[replica], SIGN_JOB_ENDED, ST_ERR_PEER, text);
    coord_leave(c);
}
