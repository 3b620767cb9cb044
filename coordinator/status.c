/* coordinator/status.c - GetStatus: what the ranks last said, as one message. */
#include "coordinator/coord_impl.h"

#include "partition/predict.h"

#include <string.h>

const char *coord_state_name(enum coord_state state)
{
    switch (state) {
    case COORD_STARTING:
        return "starting";
    case COORD_SERVING:
        return "serving";
    case COORD_RECOVERING:
        return "recovering";
    case COORD_DRAINING:
        return "draining";
    case COORD_FAILED:
        return "failed";
    }
    return "unknown";
}

/* ---- rate ---- */

/* Slots older than the window are zeroed as the newest one moves. */
static void rate_advance(struct replica *r)
{
    const uint64_t slot = coord_now(r->coord) / (RATE_SLOT_MS * NS_PER_MS);

    if (slot - r->rate.newest >= RATE_SLOTS) {
        memset(r->rate.slots, 0, sizeof(r->rate.slots));
        r->rate.newest = slot;
    }
    while (r->rate.newest < slot) {
        r->rate.newest++;
        r->rate.slots[r->rate.newest % RATE_SLOTS] = 0;
    }
}

void status_count_tokens(struct replica *r, uint32_t n)
{
    rate_advance(r);
    r->rate.slots[r->rate.newest % RATE_SLOTS] += n;
}

double status_tokens_per_second(struct replica *r)
{
    uint64_t sum = 0;

    rate_advance(r);
    for (uint32_t i = 0; i < RATE_SLOTS; i++) {
        sum += r->rate.slots[i];
    }
    /* The newest slot is not over yet: the window is what has passed of it and 24 whole ones. */
    const uint64_t in_slot = coord_now(r->coord) % (RATE_SLOT_MS * NS_PER_MS);
    const double seconds = (RATE_SLOTS - 1) * RATE_SLOT_MS / 1e3 + (double)in_slot / 1e9;
    return (double)sum / seconds;
}

/* ---- the message ---- */

static void rank_fill(const struct replica *replica, uint32_t i, uint64_t now,
                      struct msg_rank_status *m)
{
    const struct rank *r = &replica->ranks[i];

    *m = (struct msg_rank_status){
        .rank = i,
        .stage = i / replica->shape.tp,
        .slice = i % replica->shape.tp,
        .pid = r->pid,
        .host = r->host,
        .phase = r->call != NULL ? r->phase : (r->was_attached ? "lost" : "absent"),
        .kernels = r->kernels,
        .step = r->heartbeat.step,
        .heartbeat_age_us = r->was_attached ? clock_since(now, r->heard_ns) / NS_PER_US : 0,
        .loaded_bytes = r->heartbeat.loaded_bytes,
        .weight_bytes = r->heartbeat.weight_bytes,
        .op = r->heartbeat.op != COLL_OP_NONE ? coll_op_name(r->heartbeat.op) : "",
        .op_seq = r->heartbeat.op_seq,
        .waits_for = r->heartbeat.op_peer,
        .waited_us = r->heartbeat.waited_us,
        .step_digest = r->heartbeat.digest,
        .sums = r->sums,
    };
}

/* A decode step of the streams that run, as far back as they are on the average; of our own replicas, whose
 * plan we know. */
static double predicted_step_us(const struct replica *r, const struct msg_heartbeat *leader)
{
    const uint32_t n = MAX(leader->running, 1u);
    const double positions = (double)leader->kv_blocks_used * r->shape.block_tokens / n;

    return r->index < r->coord->n_own ? 1e6 * predict_decode_s(r->coord->config.plan, n, positions)
                                      : 0;
}

static status replica_fill(struct replica *r, uint64_t now, struct msg_replica_status *m)
{
    const struct msg_heartbeat *leader = &r->ranks[0].heartbeat;
    struct msg_rank_status *ranks =
        arena_alloc(&r->coord->arena, r->shape.n_ranks * sizeof(*ranks));

    char *job = arena_alloc(&r->coord->arena, 2 * MSG_JOB_BYTES + 1);

    if (ranks == NULL || job == NULL) {
        return ST_ERR_NOMEM;
    }
    join_job_hex(r, job);
    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        rank_fill(r, i, now, &ranks[i]);
    }
    *m = (struct msg_replica_status){
        .replica = r->index,
        .generation = r->generation,
        .tp = r->shape.tp,
        .pp = r->shape.pp,
        .state = replica_state_name(r->state),
        .step = leader->step,
        .running = leader->running,
        .waiting = leader->waiting,
        .kv_blocks_used = leader->kv_blocks_used,
        .kv_blocks_total = leader->kv_blocks_total,
        .kv_blocks_cached = leader->kv_blocks_cached,
        .cache_hits = leader->cache_hits,
        .cache_tokens = leader->cache_tokens,
        .kv_block_tokens = r->shape.block_tokens,
        .tokens_per_second = status_tokens_per_second(r),
        .step_us = leader->step_us,
        .step_kernel_us = leader->step_kernel_us,
        .predicted_step_us = predicted_step_us(r, leader),
        .losses = r->n_losses,
        .detail = r->why,
        .waits = r->waits,
        .self_test = r->self_test,
        .joined = replica_has_joined(r),
        .profile = r->shape.profile,
        .job = job,
        .hosts = r->hosts,
        .n_ranks = r->shape.n_ranks,
        .ranks = ranks,
    };
    return ST_OK;
}

/* "degraded": it serves, with fewer replicas of its own than it should. How many may join is not
 * ours to expect. */
static const char *state_word(const struct coord *c)
{
    bool is_whole = true;

    for (uint32_t i = 0; i < c->n_own; i++) {
        is_whole = is_whole && route_can_take(c->replicas[i]);
    }

    return c->state == COORD_SERVING && !is_whole ? "degraded" : coord_state_name(c->state);
}

/* In the message's arena. */
static const char *journal_word(struct coord *c, const struct journal_disk_status *j)
{
    struct buf text = BUF_INIT_MAX(4096);
    const char *copy = NULL;

    if (c->config.disk == NULL || j->is_durable) {
        return c->config.disk == NULL ? "" : "durable";
    }
    if (buf_printf(&text, "not durable: %s", j->why) == ST_OK) {
        copy = arena_copy_str(&c->arena, text.data, text.len);
    }
    buf_fini(&text);
    return copy != NULL ? copy : "not durable";
}

static status status_fill(struct coord *c, struct msg_status *m)
{
    const struct journal_disk_status j = c->config.disk != NULL
                                             ? journal_disk_status(c->config.disk)
                                             : (struct journal_disk_status){ .why = "" };
    const char *text = journal_word(c, &j);
    const uint64_t now = coord_now(c);
    struct msg_replica_status *replicas = arena_alloc(&c->arena, c->n_replicas * sizeof(*replicas));
    status st = replicas != NULL ? ST_OK : ST_ERR_NOMEM;

    for (uint32_t i = 0; st == ST_OK && i < c->n_replicas; i++) {
        st = replica_fill(c->replicas[i], now, &replicas[i]);
    }
    *m = (struct msg_status){ .state = state_word(c),
                              .model = c->desc->name,
                              .profile = c->config.plan->profile,
                              .version = c->config.build,
                              .weights_digest = c->digest_hex,
                              .uptime_us = (now - c->started_ns) / NS_PER_US,
                              .streams = journal_count(c->journal),
                              .queue_limit = c->config.queue_max,
                              .journal = text,
                              .kept_answers = resume_count(c),
                              .journal_bytes = j.bytes,
                              .n_replicas = c->n_replicas,
                              .replicas = replicas };
    return st;
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
