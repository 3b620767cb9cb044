/* proto/codec_status.c - gantry.v1: what the model is and how the service does. */
#include "proto/codec_fabric.h"
#include "proto/codec_pb.h"

#include "gantry.pb-c.h"

#include <string.h>

/* ---- GetModelResponse ---- */

status msg_model_pack(const struct msg_model *m, struct buf *out)
{
    Gantry__V1__GetModelResponse r = GANTRY__V1__GET_MODEL_RESPONSE__INIT;

    r.name = pb_text(m->name);
    r.family = pb_text(m->family);
    r.n_layers = m->n_layers;
    r.dim = m->dim;
    r.n_heads = m->n_heads;
    r.n_kv_heads = m->n_kv_heads;
    r.vocab = m->vocab;
    r.context = m->context;
    r.parameters = m->parameters;
    r.profile = pb_text(m->profile);
    r.weights_digest = pb_text(m->weights_digest);
    r.tokenizer = pb_text(m->tokenizer);
    return pb_pack(&r.base, out);
}

status msg_model_unpack(const void *data, size_t len, struct arena *arena, struct msg_model *m_p,
                        struct err *err)
{
    void *in;
    const status st =
        pb_unpack(&gantry__v1__get_model_response__descriptor, data, len, arena, NULL, &in, err);

    if (st < 0) {
        return st;
    }
    const Gantry__V1__GetModelResponse *r = in;
    *m_p = (struct msg_model){ .name = r->name,
                               .family = r->family,
                               .profile = r->profile,
                               .weights_digest = r->weights_digest,
                               .tokenizer = r->tokenizer,
                               .n_layers = r->n_layers,
                               .dim = r->dim,
                               .n_heads = r->n_heads,
                               .n_kv_heads = r->n_kv_heads,
                               .vocab = r->vocab,
                               .context = r->context,
                               .parameters = r->parameters };
    return ST_OK;
}

/* ---- GetStatusResponse: pack ---- */

static void rank_fill(const struct msg_rank_status *m, Gantry__V1__RankStatus *r)
{
    gantry__v1__rank_status__init(r);
    r->rank = m->rank;
    r->stage = m->stage;
    r->slice = m->slice;
    r->host = pb_text(m->host);
    r->pid = m->pid;
    r->phase = pb_text(m->phase);
    r->step = m->step;
    r->heartbeat_age_us = m->heartbeat_age_us;
    r->loaded_bytes = m->loaded_bytes;
    r->weight_bytes = m->weight_bytes;
    r->kernels = pb_text(m->kernels);
    r->op = pb_text(m->op);
    r->op_seq = m->op_seq;
    r->waits_for = m->waits_for;
    r->waited_us = m->waited_us;
    r->step_digest = m->step_digest;
    r->sums = pb_text(m->sums);
}

static status replica_fill(const struct msg_replica_status *m, struct arena *arena,
                           Gantry__V1__ReplicaStatus *r)
{
    gantry__v1__replica_status__init(r);
    r->replica = m->replica;
    r->generation = m->generation;
    r->state = pb_text(m->state);
    r->tp = m->tp;
    r->pp = m->pp;
    r->step = m->step;
    r->running = m->running;
    r->waiting = m->waiting;
    r->kv_blocks_used = m->kv_blocks_used;
    r->kv_blocks_total = m->kv_blocks_total;
    r->kv_blocks_cached = m->kv_blocks_cached;
    r->cache_hits = m->cache_hits;
    r->cache_tokens = m->cache_tokens;
    r->kv_block_tokens = m->kv_block_tokens;
    r->tokens_per_second = m->tokens_per_second;
    r->step_us = m->step_us;
    r->step_kernel_us = m->step_kernel_us;
    r->predicted_step_us = m->predicted_step_us;
    r->losses = m->losses;
    r->detail = pb_text(m->detail);
    r->waits = pb_text(m->waits);
    r->joined = m->joined;
    r->profile = pb_text(m->profile);
    r->job = pb_text(m->job);
    r->hosts = pb_text(m->hosts);
    r->ranks = (void *)pb_objects(arena, m->n_ranks, sizeof(Gantry__V1__RankStatus));
    if (r->ranks == NULL) {
        return ST_ERR_NOMEM;
    }
    r->n_ranks = m->n_ranks;
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        rank_fill(&m->ranks[i], r->ranks[i]);
    }
    return pb_self_test_fill(&m->self_test, arena, &r->self_test);
}

status msg_status_pack(const struct msg_status *m, struct buf *out)
{
    struct arena arena = PB_SCRATCH;
    Gantry__V1__GetStatusResponse r = GANTRY__V1__GET_STATUS_RESPONSE__INIT;
    status st = ST_OK;

    r.state = pb_text(m->state);
    r.model = pb_text(m->model);
    r.profile = pb_text(m->profile);
    r.version = pb_text(m->version);
    r.weights_digest = pb_text(m->weights_digest);
    r.uptime_us = m->uptime_us;
    r.streams = m->streams;
    r.queue_limit = m->queue_limit;
    r.journal = pb_text(m->journal);
    r.kept_answers = m->kept_answers;
    r.journal_bytes = m->journal_bytes;
    r.replicas = (void *)pb_objects(&arena, m->n_replicas, sizeof(Gantry__V1__ReplicaStatus));
    if (r.replicas == NULL) {
        st = ST_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < m->n_replicas && st == ST_OK; i++) {
        r.n_replicas = i + 1;
        st = replica_fill(&m->replicas[i], &arena, r.replicas[i]);
    }
    if (st == ST_OK) {
        st = pb_pack(&r.base, out);
    }
    arena_fini(&arena);
    return st;
}

/* ---- GetStatusResponse: unpack ---- */

static status replica_read(const Gantry__V1__ReplicaStatus *r, struct arena *arena,
                           struct msg_replica_status *m, struct err *err)
{
    struct msg_rank_status *ranks = arena_alloc(arena, r->n_ranks * sizeof(*ranks));

    if (ranks == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for the status of %zu ranks", r->n_ranks);
    }
    for (size_t i = 0; i < r->n_ranks; i++) {
        const Gantry__V1__RankStatus *in = r->ranks[i];
        ranks[i] = (struct msg_rank_status){ .rank = in->rank,
                                             .stage = in->stage,
                                             .slice = in->slice,
                                             .pid = in->pid,
                                             .host = in->host,
                                             .phase = in->phase,
                                             .kernels = in->kernels,
                                             .step = in->step,
                                             .heartbeat_age_us = in->heartbeat_age_us,
                                             .loaded_bytes = in->loaded_bytes,
                                             .weight_bytes = in->weight_bytes,
                                             .op = in->op,
                                             .op_seq = in->op_seq,
                                             .waits_for = in->waits_for,
                                             .waited_us = in->waited_us,
                                             .step_digest = in->step_digest,
                                             .sums = in->sums };
    }
    *m = (struct msg_replica_status){ .replica = r->replica,
                                      .generation = r->generation,
                                      .tp = r->tp,
                                      .pp = r->pp,
                                      .state = r->state,
                                      .step = r->step,
                                      .running = r->running,
                                      .waiting = r->waiting,
                                      .kv_blocks_used = r->kv_blocks_used,
                                      .kv_blocks_total = r->kv_blocks_total,
                                      .kv_blocks_cached = r->kv_blocks_cached,
                                      .cache_hits = r->cache_hits,
                                      .cache_tokens = r->cache_tokens,
                                      .kv_block_tokens = r->kv_block_tokens,
                                      .tokens_per_second = r->tokens_per_second,
                                      .step_us = r->step_us,
                                      .step_kernel_us = r->step_kernel_us,
                                      .predicted_step_us = r->predicted_step_us,
                                      .losses = r->losses,
                                      .detail = r->detail,
                                      .waits = r->waits,
                                      .joined = r->joined != 0,
                                      .profile = r->profile,
                                      .job = r->job,
                                      .hosts = r->hosts,
                                      .n_ranks = (uint32_t)r->n_ranks, /* < MSG_BYTES_MAX */
                                      .ranks = ranks };
    return pb_self_test_read(r->self_test, &m->self_test, err);
}

status msg_status_unpack(const void *data, size_t len, struct arena *arena, struct msg_status *m_p,
                         struct err *err)
{
    void *in;
    status st =
        pb_unpack(&gantry__v1__get_status_response__descriptor, data, len, arena, NULL, &in, err);

    if (st < 0) {
        return st;
    }
    const Gantry__V1__GetStatusResponse *r = in;
    struct msg_replica_status *replicas = arena_alloc(arena, r->n_replicas * sizeof(*replicas));
    if (replicas == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu replicas", r->n_replicas);
    }
    for (size_t i = 0; i < r->n_replicas; i++) {
        st = replica_read(r->replicas[i], arena, &replicas[i], err);
        if (st < 0) {
            return st;
        }
    }
    *m_p = (struct msg_status){ .state = r->state,
                                .model = r->model,
                                .profile = r->profile,
                                .version = r->version,
                                .weights_digest = r->weights_digest,
                                .uptime_us = r->uptime_us,
                                .streams = r->streams,
                                .queue_limit = r->queue_limit,
                                .journal = r->journal,
                                .kept_answers = r->kept_answers,
                                .journal_bytes = r->journal_bytes,
                                .n_replicas = (uint32_t)r->n_replicas,
                                .replicas = replicas };
    return ST_OK;
}
