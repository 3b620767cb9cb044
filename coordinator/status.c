/* coordinator/status.c - GetStatus: what the ranks last said, as one message. */
#include "coordinator/coord_impl.h"

#include <string.h>

const char *coord_state_name(enum coord_state state)
{
    switch (state) {
    case COORD_STARTING:
        return "starting";
    case COORD_SERVING:
        return "serving";
    case COORD_DRAINING:
        return "draining";
    case COORD_FAILED:
        return "failed";
    }
    return "unknown";
}

/* ---- rate ---- */

/* Slots older than the window are zeroed as the newest one moves. */
static void rate_advance(struct coord *c)
{
    const uint64_t slot = coord_now(c) / (RATE_SLOT_MS * NS_PER_MS);

    if (slot - c->rate_slot >= RATE_SLOTS) {
        memset(c->rate, 0, sizeof(c->rate));
        c->rate_slot = slot;
    }
    while (c->rate_slot < slot) {
        c->rate_slot++;
        c->rate[c->rate_slot % RATE_SLOTS] = 0;
    }
}

void status_count_tokens(struct coord *c, uint32_t n)
{
    rate_advance(c);
    c->rate[c->rate_slot % RATE_SLOTS] += n;
}

double status_tokens_per_second(struct coord *c)
{
    uint64_t sum = 0;

    rate_advance(c);
    for (uint32_t i = 0; i < RATE_SLOTS; i++) {
        sum += c->rate[i];
    }
    /* The newest slot is not over yet: the window is what has passed of it and 24 whole ones. */
    const uint64_t in_slot = coord_now(c) % (RATE_SLOT_MS * NS_PER_MS);
    const double seconds = (RATE_SLOTS - 1) * RATE_SLOT_MS / 1e3 + (double)in_slot / 1e9;
    return (double)sum / seconds;
}

/* ---- the message ---- */

static void rank_fill(struct coord *c, uint32_t i, uint64_t now, struct msg_rank_status *m)
{
    const struct rank *r = &c->replica.ranks[i];
    const struct plan_part *part = &c->config.plan->parts[i];

    *m = (struct msg_rank_status){
        .rank = i,
        .stage = part->stage,
        .slice = part->slice,
        .pid = r->pid,
        .host = r->host,
        .phase = r->call != NULL ? r->phase : (r->was_attached ? "lost" : "absent"),
        .kernels = r->kernels,
        .step = r->heartbeat.step,
        .heartbeat_age_us = r->was_attached ? (now - r->heard_ns) / NS_PER_US : 0,
        .loaded_bytes = r->heartbeat.loaded_bytes,
        .weight_bytes = r->heartbeat.weight_bytes,
    };
}

static status status_fill(struct coord *c, struct msg_status *m)
{
    const struct replica *r = &c->replica;
    const struct msg_heartbeat *leader = &r->ranks[0].heartbeat;
    const uint64_t now = coord_now(c);
    struct msg_rank_status *ranks = arena_alloc(&c->arena, r->n_ranks * sizeof(*ranks));
    struct msg_replica_status *replica = arena_alloc(&c->arena, sizeof(*replica));

    if (ranks == NULL || replica == NULL) {
        return ST_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < r->n_ranks; i++) {
        rank_fill(c, i, now, &ranks[i]);
    }
    *replica = (struct msg_replica_status){ .replica = c->config.replica,
                                            .generation = c->config.generation,
                                            .tp = c->config.plan->tp,
                                            .pp = c->config.plan->pp,
                                            .state = replica_state_name(r->state),
                                            .step = leader->step,
                                            .running = leader->running,
                                            .waiting = leader->waiting,
                                            .kv_blocks_used = leader->kv_blocks_used,
                                            .kv_blocks_total = leader->kv_blocks_total,
                                            .kv_blocks_cached = leader->kv_blocks_cached,
                                            .cache_hits = leader->cache_hits,
                                            .cache_tokens = leader->cache_tokens,
                                            .kv_block_tokens = c->config.plan->kv_blocks != 0
                                                                   ? c->config.plan->kv_tokens /
                                                                         c->config.plan->kv_blocks
                                                                   : 0,
                                            .tokens_per_second = status_tokens_per_second(c),
                                            .step_us = leader->step_us,
                                            .step_kernel_us = leader->step_kernel_us,
                                            .n_ranks = r->n_ranks,
                                            .ranks = ranks };
    *m = (struct msg_status){ .state = coord_state_name(c->state),
                              .model = c->desc->name,
                              .profile = c->config.plan->profile,
                              .version = c->config.build,
                              .weights_digest = r->digest_hex,
                              .uptime_us = (now - c->started_ns) / NS_PER_US,
                              .streams = journal_count(c->journal),
                              .queue_limit = c->config.queue_max,
                              .n_replicas = 1,
                              .replicas = replica };
    return ST_OK;
}

void status_get(void *arg, struct rpc_call *call, const void *data UNUSED, size_t len UNUSED)
{
    struct coord *c = arg;
    struct msg_status m;

    arena_reset(&c->arena);
    buf_reset(&c->out);
    if (status_fill(c, &m) < 0 || msg_status_pack(&m, &c->out) < 0) {
        rpc_call_finish(call, ST_ERR_NOMEM, "the coordinator is out of memory");
        return;
    }
    rpc_call_reply(call, c->out.data, c->out.len);
}

/* Calls that are answered at once own nothing. */
void status_call_done(void *arg UNUSED, struct rpc_call *call UNUSED, bool cancelled UNUSED)
{
}
