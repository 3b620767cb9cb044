/* coordinator/table.c - the slots of the replicas.
 *
 *   0 .. own - 1      the service's own: there from the start to the end
 *   own .. n - 1      replicas that joined: a slot whose replica has left is used again, with the
 *                     next generation, so that nothing of the old one can be taken for the new one
 *
 * Slots are allocated one by one and never freed before the coordinator: attach streams, timers and
 * journal entries point to them or know their numbers. */
#include "coordinator/coord_impl.h"

#include "partition/predict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LAYER_S_MAX = 86400; /* whatever a file of rates says */

void shape_of_plan(const struct plan *plan, struct replica_shape *shape_p)
{
    *shape_p = (struct replica_shape){
        .tp = plan->tp,
        .pp = plan->pp,
        .n_ranks = plan->n_ranks,
        .kv_blocks = plan->kv_blocks,
        .block_tokens = plan->kv_blocks != 0 ? plan->kv_tokens / plan->kv_blocks : 1,
        .ctx_max = plan->ctx_max,
        .rows_max = plan->rows_max,
        .layer_bytes = plan_layer_bytes(plan),
        .layer_ns = (uint64_t)(MIN(predict_layer_most_s(plan), LAYER_S_MAX) * 1e9),
        .plan_digest = plan->digest,
        .model_digest = plan_model_digest(plan),
    };
    snprintf(shape_p->profile, sizeof(shape_p->profile), "%s", plan->profile);
}

static status slot_take(struct coord *c, struct replica **slot_p, struct err *err)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        if (c->replicas[i]->state == REPLICA_GONE) {
            *slot_p = c->replicas[i];
            return ST_OK;
        }
    }
    if (c->n_replicas == REPLICAS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "there are %u replicas, and at most %d are allowed",
                       c->n_replicas, (int)REPLICAS_MAX);
    }
    struct replica *r = calloc(1, sizeof(*r));
    if (r == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a replica");
    }
    r->coord = c;
    r->index = c->n_replicas;
    r->generation = c->config.generation - 1;
    r->state = REPLICA_GONE;
    blame_init(r);
    c->replicas[c->n_replicas++] = r;
    *slot_p = r;
    return ST_OK;
}

status table_add(struct coord *c, const struct replica_shape *shape, struct replica **replica_p,
                 struct err *err)
{
    struct rank *ranks = calloc(shape->n_ranks, sizeof(*ranks));
    struct prefix_map *kept = NULL;
    struct replica *r = NULL;
    status st = ranks != NULL
                    ? ST_OK
                    : err_set(err, ST_ERR_NOMEM, "no memory for %u ranks", shape->n_ranks);

    if (st == ST_OK && c->config.prefix_cache) {
        st = prefix_map_create(shape->kv_blocks, &kept, err);
    }
    if (st == ST_OK) {
        st = slot_take(c, &r, err);
    }
    if (st != ST_OK) {
        prefix_map_destroy(kept);
        free(ranks);
        return st;
    }
    const uint32_t index = r->index, generation = r->generation;
    ASSERT(r->n_streams == 0 && r->n_blocks == 0 && r->n_attached == 0);
    free(r->ranks);
    prefix_map_destroy(r->kept);
    memset(r, 0, sizeof(*r));
    r->coord = c;
    r->index = index;
    r->generation = generation + 1;
    r->shape = *shape;
    r->ranks = ranks;
    r->kept = kept;
    r->started_ns = coord_now(c);
    blame_init(r);
    *replica_p = r;
    return ST_OK;
}

void table_remove(struct replica *r)
{
    ASSERT(r->n_streams == 0 && r->n_attached == 0);
    rpc_timer_set(r->coord->loop, &r->verdict_timer, CLOCK_NEVER);
    r->state = REPLICA_GONE;
}

/* The service has served before, under another coordinator. */
static void adopt(struct replica *r, const struct coord_adopted *a)
{
    struct coord *c = r->coord;

    c->has_served = true;
    c->state = COORD_RECOVERING;
    r->generation = a->generation;
    r->n_losses = a->is_running ? 0 : 1;
    r->reattach_ns = a->is_running ? coord_now(c) + c->config.orphan_ns : 0;
}

status table_init(struct coord *c, struct err *err)
{
    const uint32_t n = c->config.external_only ? 0 : MAX(c->config.n_replicas, 1u);
    struct replica_shape shape;
    struct replica *r;
    status st = ST_OK;

    if (n > REPLICAS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%u replicas, at most %d are allowed", n,
                       (int)REPLICAS_MAX);
    }
    st = route_init(c, err);
    c->n_own = n;
    shape_of_plan(c->config.plan, &shape);
    for (uint32_t i = 0; st == ST_OK && i < n; i++) {
        st = table_add(c, &shape, &r, err);
        if (st == ST_OK && c->config.adopted != NULL) {
            adopt(r, &c->config.adopted[i]);
        }
    }
    return st;
}

uint32_t table_count_joined(const struct coord *c)
{
    uint32_t n = 0;

    for (uint32_t i = c->n_own; i < c->n_replicas; i++) {
        n += c->replicas[i]->state != REPLICA_GONE ? 1 : 0;
    }
    return n;
}

void table_fini(struct coord *c)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        rpc_timer_set(c->loop, &c->replicas[i]->verdict_timer, CLOCK_NEVER);
        prefix_map_destroy(c->replicas[i]->kept);
        free(c->replicas[i]->ranks);
        free(c->replicas[i]);
    }
    free(c->keys);
}
