/* coordinator/join.c - replicas that someone else has started: under another mpirun, in another job
 * or rack.
 *
 *   first Hello of a job ──checked──► a replica in the table ──its other ranks──► LOADING ──► ...
 *
 * A job is known by 128 random bits that its rank 0 has drawn, so ranks find their replica in
 * whatever order they come. What a joining replica must have in common with the service is what the
 * streams rely on: build and protocol, the model, the context, and the numeric profile. How it
 * is cut, and how much KV memory it has, is its own affair.
 *
 * Its weights are compared before it takes traffic (replica.c, digest_take). When it is lost its streams
 * move as from any other replica, but nobody here can start it again, so its slot is free. */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void join_job_hex(const struct replica *r, char hex_p[2 * MSG_JOB_BYTES + 1])
{
    hex_p[0] = '\0';
    for (size_t i = 0; replica_has_joined(r) && i < MSG_JOB_BYTES; i++) {
        snprintf(hex_p + 2 * i, 3, "%02x", r->job[i]);
    }
}

static struct replica *find(const struct coord *c, const uint8_t job[MSG_JOB_BYTES])
{
    for (uint32_t i = c->n_own; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        if (replica_has_joined(r) && r->state != REPLICA_GONE &&
            memcmp(r->job, job, MSG_JOB_BYTES) == 0) {
            return r;
        }
    }
    return NULL;
}

/* Numbers that come from outside, before anything is allocated by them. */
static status check_numbers(const struct msg_hello *h, struct err *err)
{
    const struct msg_join *j = &h->join;

    if (j->tp == 0 || j->pp == 0 || j->tp > PLAN_RANKS_MAX || j->pp > PLAN_STAGES_MAX ||
        j->tp * j->pp > PLAN_RANKS_MAX || j->tp * j->pp != h->n_ranks) {
        return err_set(err, ST_ERR_MISMATCH, "rank %u: tp %u x pp %u are not %u ranks (at most %d)",
                       h->rank, j->tp, j->pp, h->n_ranks, (int)PLAN_RANKS_MAX);
    }
    if (j->kv_blocks == 0 || j->kv_blocks > PLAN_KV_BLOCKS_MAX || j->rows_max == 0 ||
        j->rows_max > PLAN_ROWS_MAX) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u: %u KV blocks (1 .. %d) and %u rows in a step (1 .. %d)", h->rank,
                       j->kv_blocks, (int)PLAN_KV_BLOCKS_MAX, j->rows_max, (int)PLAN_ROWS_MAX);
    }
    return ST_OK;
}

static status check_model(const struct coord *c, const struct msg_hello *h, struct err *err)
{
    const struct plan *plan = c->config.plan;
    const struct msg_join *j = &h->join;
    struct replica_shape own;

    shape_of_plan(plan, &own);
    if (j->model_digest != own.model_digest) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u on %s has a model whose description has digest %016" PRIx64
                       ", the service's has %016" PRIx64 "; is MODEL the same there?",
                       h->rank, h->host, j->model_digest, own.model_digest);
    }
    if (strcmp(h->profile, plan->profile) != 0 && !c->config.mixed_profiles) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u computes profile %s, the coordinator serves %s; the service may "
                       "take both (--mixed-profiles)",
                       h->rank, h->profile, plan->profile);
    }
    if (j->ctx_max < plan->ctx_max) {
        return err_set(err, ST_ERR_MISMATCH,
                       "the replica has a context of %u tokens, the service promises %u; give the "
                       "replica more (--ctx, --kv-tokens, --memory), or serve with a smaller --ctx",
                       j->ctx_max, plan->ctx_max);
    }
    if (j->block_tokens != own.block_tokens) {
        return err_set(err, ST_ERR_MISMATCH,
                       "the replica has KV blocks of %u tokens, the service of %u", j->block_tokens,
                       own.block_tokens);
    }
    return ST_OK;
}

/* There is room, and the service is not about to end. */
static status check_room(const struct coord *c, struct err *err)
{
    const uint32_t n = table_count_joined(c);

    if (c->is_stopping) {
        return err_set(err, ST_ERR_UNAVAILABLE, "the service is shutting down");
    }
    if (c->config.join_max == 0) {
        return err_set(err, ST_ERR_UNAVAILABLE,
                       "this service takes no replicas from elsewhere (--join-max 0)");
    }
    if (n >= c->config.join_max) {
        return err_set(err, ST_ERR_UNAVAILABLE,
                       "%u replicas have joined, and at most %u may (--join-max)", n,
                       c->config.join_max);
    }
    return ST_OK;
}

/* The names of the profiles in one service go into a message: there is a bound. */
static status check_profile(const struct coord *c, const char *profile, struct err *err)
{
    uint32_t n = 1;

    if (strlen(profile) >= MSG_PROFILE_BYTES) {
        return err_set(err, ST_ERR_MISMATCH, "a profile's name of %zu bytes (at most %d)",
                       strlen(profile), (int)MSG_PROFILE_BYTES - 1);
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        bool is_new = r->state != REPLICA_GONE && strcmp(r->shape.profile, profile) != 0;
        for (uint32_t k = 0; k < i && is_new; k++) {
            const struct replica *o = c->replicas[k];
            is_new = o->state == REPLICA_GONE || strcmp(o->shape.profile, r->shape.profile) != 0;
        }
        n += is_new ? 1 : 0;
    }
    if (n > MSG_PROFILES_MAX) {
        return err_set(err, ST_ERR_MISMATCH,
                       "profile %s would be number %u in this service, at most %d are allowed",
                       profile, n, (int)MSG_PROFILES_MAX);
    }
    return ST_OK;
}

static void shape_fill(const struct msg_hello *h, struct replica_shape *s)
{
    const struct msg_join *j = &h->join;

    *s = (struct replica_shape){ .tp = j->tp,
                                 .pp = j->pp,
                                 .n_ranks = h->n_ranks,
                                 .kv_blocks = j->kv_blocks,
                                 .block_tokens = j->block_tokens,
                                 .ctx_max = j->ctx_max,
                                 .rows_max = j->rows_max,
                                 .layer_bytes = j->layer_bytes,
                                 .plan_digest = h->plan_digest,
                                 .model_digest = j->model_digest };
    snprintf(s->profile, sizeof(s->profile), "%s", h->profile);
}

/* The first Hello of a job. */
static status make(struct coord *c, const struct msg_hello *h, struct replica **replica_p,
                   struct err *err)
{
    struct replica_shape shape;
    struct replica *r;
    char job[2 * MSG_JOB_BYTES + 1];
    status st = check_numbers(h, err);

    (void)(st || (st = check_model(c, h, err)) || (st = check_profile(c, h->profile, err)) ||
           (st = check_room(c, err)));
    if (st == ST_OK) {
        shape_fill(h, &shape);
        st = table_add(c, &shape, &r, err);
    }
    if (st != ST_OK) {
        return st;
    }
    memcpy(r->job, h->join.job, MSG_JOB_BYTES);
    join_job_hex(r, job);
    log_info("replica",
             "replica %u.%u joins: job %s, tp %u x pp %u, profile %s, %u KV blocks of %u tokens",
             r->index, r->generation, job, shape.tp, shape.pp, shape.profile, shape.kv_blocks,
             shape.block_tokens);
    *replica_p = r;
    return ST_OK;
}

/* A later rank says what the first one of its job said. */
static status check_same(const struct replica *r, const struct msg_hello *h, struct err *err)
{
    struct replica_shape theirs;

    shape_fill(h, &theirs);
    if (theirs.plan_digest != r->shape.plan_digest || theirs.tp != r->shape.tp ||
        theirs.pp != r->shape.pp || theirs.kv_blocks != r->shape.kv_blocks ||
        strcmp(theirs.profile, r->shape.profile) != 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u on %s has tp %u x pp %u, %u KV blocks, profile %s; the first rank "
                       "of its job had tp %u x pp %u, %u KV blocks, profile %s",
                       h->rank, h->host, theirs.tp, theirs.pp, theirs.kv_blocks, theirs.profile,
                       r->shape.tp, r->shape.pp, r->shape.kv_blocks, r->shape.profile);
    }
    return ST_OK;
}

status join_take(struct coord *c, const struct msg_hello *h, struct replica **replica_p,
                 struct err *err)
{
    struct replica *r = find(c, h->join.job);

    if (r == NULL) {
        return make(c, h, replica_p, err);
    }
    const status st = check_same(r, h, err);
    if (st == ST_OK) {
        *replica_p = r;
    }
    return st;
}
