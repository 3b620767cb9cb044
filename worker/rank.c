/* worker/rank.c - see rank.h. The leader's loop is leader.c. */
#include "worker/rank_priv.h"

#include "base/log.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *rank_phase_name(enum rank_phase phase)
{
    static const char *const names[] = {
        "starting", "loading", "idle", "step", "waiting", "ended"
    };
    return phase < ARRAY_LEN(names) ? names[phase] : "unknown";
}

/* ---- create, destroy ---- */

static size_t x_bytes_of(const struct plan *plan)
{
    return (size_t)plan->rows_max * plan->desc.dim * sizeof(float);
}

static status alloc_buffers(struct rank *r, struct err *err)
{
    const size_t x_bytes = x_bytes_of(r->plan);

    r->is_ahead = exec_is_ahead(r->exec);
    r->n_plans = r->plan->pp + (r->is_ahead ? 3 : 1);
    r->plan_bytes_max = step_bytes_max(&r->limits);
    r->plans = calloc(r->n_plans, r->plan_bytes_max);
    r->results = calloc(r->limits.seqs_max, sizeof(*r->results));
    r->plan_reqs = calloc((size_t)r->n_plans * PLAN_REQS_MAX, sizeof(*r->plan_reqs));
    r->n_plan_reqs = calloc(r->n_plans, sizeof(*r->n_plan_reqs));
    if (r->plans == NULL || r->results == NULL || r->plan_reqs == NULL || r->n_plan_reqs == NULL) {
        return err_set(err, ST_ERR_NOMEM, "rank %u: no memory for step plans", r->rank);
    }
    for (uint32_t i = 0; i < RANK_X_BUFFERS; i++) {
        void *mem = NULL;
        const status st = r->ops->mem_alloc(r->stream, x_bytes, &mem, err);
        if (st != ST_OK) {
            err_prefix(err, "rank %u: residual buffer: ", r->rank);
            return st;
        }
        r->x[i] = mem;
    }
    r->x_bytes = x_bytes;
    /* The plan's figure, again to the byte. */
    ASSERT(exec_scratch_bytes(r->exec) + r->shard->rope_bytes + plan_coll_bytes(r->plan) +
               RANK_X_BUFFERS * ((x_bytes + KERN_ALIGN - 1) / KERN_ALIGN * KERN_ALIGN) ==
           r->plan->parts[r->rank].scratch_bytes);
    return ST_OK;
}

/* Collectives that move memory of this device, over those that were given. */
static status wrap_coll(struct rank *r, struct err *err)
{
    const struct kern_ops *ops = r->ops;
    const size_t scratch_bytes = plan_coll_bytes(r->plan);
    struct coll_nccl_config nccl = { .device = { .stream = r->stream,
                                                 .add = ops->add,
                                                 .copy_in = ops->copy_in,
                                                 .copy_out = ops->copy_out,
                                                 .sync = ops->stream_sync,
                                                 .poll = ops->stream_poll,
                                                 .mark_poll = ops->mark_poll,
                                                 .host_alloc = ops->host_alloc,
                                                 .host_free = ops->host_free,
                                                 .peers_create = ops->peers_create,
                                                 .peers_open = ops->peers_open,
                                                 .peers_sum = ops->peers_sum,
                                                 .peers_check = ops->peers_check,
                                                 .peers_abort = ops->peers_abort,
                                                 .peers_destroy = ops->peers_destroy,
                                                 .peer_floats = KERN_PEER_FLOATS,
                                                 .peer_id_bytes = KERN_PEER_ID_BYTES,
                                                 .scratch_bytes = scratch_bytes,
                                                 .bytes_max = x_bytes_of(r->plan) },
                                     .free_order = r->plan->free_order,
                                     .api = r->config.nccl };
    status st = ST_OK;

    if (!ops->on_device || r->plan->n_ranks == 1) {
        return ST_OK;
    }
    if (r->plan->no_peer_sums || r->plan->tp > KERN_PEERS_MAX) {
        nccl.device.peers_create = NULL;
    }
    if (scratch_bytes != 0) {
        st = ops->mem_alloc(r->stream, scratch_bytes, &r->coll_scratch, err);
    }
    if (st == ST_OK && r->plan->plane == PLAN_PLANE_NCCL) {
        nccl.device.raw = ops->native(r->stream);
        nccl.device.scratch = r->coll_scratch;
        st = coll_nccl_create(r->config.coll, &nccl, &r->coll_device, err);
    } else if (st == ST_OK) {
        st = coll_staged_create(r->config.coll, &nccl.device, &r->coll_device, err);
    }
    if (st != ST_OK) {
        err_prefix(err, "rank %u: ", r->rank);
        return st;
    }
    r->coll = r->coll_device;
    return ST_OK;
}

static status create_parts(struct rank *r, const struct rank_config *config, struct err *err)
{
    const struct kern_stream_config stream = { config->n_threads, config->device };
    status st = r->ops->stream_create(&stream, &r->stream, err);

    (void)(st || (st = wrap_coll(r, err)) ||
           (st = shard_create(r->ops, r->stream, r->plan, r->rank, &r->shard, err)) ||
           (st = exec_create(r->shard, r->coll, &r->limits, &r->exec, err)));
    if (st == ST_OK) {
        exec_count(r->exec, &r->progress->ticks);
    }
    return st == ST_OK ? alloc_buffers(r, err) : st;
}

/* The plan's figure beside what the device says. */
static void say_memory(const struct rank *r)
{
    const struct plan_part *part = &r->plan->parts[r->rank];
    const double gib = (double)(1 << 30);
    struct kern_device d;

    if (r->ops->on_device && r->ops->device_info(r->stream, &d, NULL) == ST_OK) {
        log_info("device", "%s: prompts are multiplied by %s", d.name, d.products);
        log_info("device", "%s: %.3f GiB planned and taken, %.3f of %.3f GiB are free now", d.name,
                 (double)(part->weight_bytes + part->kv_bytes + part->scratch_bytes) / gib,
                 (double)d.mem_free_bytes / gib, (double)d.mem_bytes / gib);
    }
}

status rank_create(const struct rank_config *config, struct rank **rank_p, struct err *err)
{
    const struct plan *plan = config->plan;
    ASSERT(config->coll->rank < plan->n_ranks && config->coll->n_ranks == plan->n_ranks);
    struct rank *r = calloc(1, sizeof(*r));

    if (r == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a rank");
    }
    r->config = *config;
    r->plan = plan;
    r->ops = config->ops;
    r->coll = config->coll;
    r->progress = config->progress;
    r->rank = config->coll->rank;
    config->coll->watch = &config->progress->watch;
    r->limits = (struct step_limits){ .seqs_max = plan->seqs_max,
                                      .rows_max = plan->rows_max,
                                      .tables_max = plan->kv_blocks };
    /* A plan never names a block twice for one stream, but a shared one once per stream. */
    r->limits.tables_max = plan->seqs_max * ((plan->ctx_max + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK);
    r->limits.adjusts_max = step_adjusts_max(plan->seqs_max, plan->ctx_max, plan->desc.vocab);
    const status st = create_parts(r, config, err);
    if (st != ST_OK) {
        rank_destroy(r);
        return st;
    }
    say_memory(r);
    *rank_p = r;
    return ST_OK;
}

void rank_destroy(struct rank *r)
{
    if (r == NULL) {
        return;
    }
    for (uint32_t i = 0; i < RANK_X_BUFFERS; i++) {
        if (r->x[i] != NULL) {
            r->ops->mem_free(r->stream, r->x[i], r->x_bytes);
        }
    }
    exec_destroy(r->exec);
    shard_destroy(r->shard);
    if (r->coll_device != NULL) {
        r->coll_device->ops->destroy(r->coll_device);
    }
    if (r->stream != NULL) {
        r->ops->mem_free(r->stream, r->coll_scratch, plan_coll_bytes(r->plan));
    }
    r->ops->stream_destroy(r->stream);
    free(r->plans);
    free(r->results);
    free(r->plan_reqs);
    free(r->n_plan_reqs);
    free(r);
}

const struct shard *rank_shard(const struct rank *r)
{
    return r->shard;
}

/* ---- before the first step ---- */

status rank_load(struct rank *r, const struct weights *weights, struct err *err)
{
    atomic_store(&r->progress->file_bytes, shard_file_bytes(r->plan, r->rank, weights));
    atomic_store(&r->progress->phase, RANK_LOADING);
    const status st =
        shard_load(r->shard, weights, &r->progress->loaded_bytes, r->config.abort, err);
    if (st != ST_OK) {
        err_prefix(err, "rank %u: ", r->rank);
    }
    return st;
}

const char *rank_sums(const struct rank *r)
{
    return coll_sums(r->coll);
}

status rank_agree(struct rank *r, struct err *err)
{
    struct {
        uint64_t plan, rope;
        char profile[64];
    } mine = { r->plan->digest, r->shard->rope_digest, "" }, theirs;

    memcpy(mine.profile, r->plan->profile, sizeof(mine.profile));
    theirs = mine;
    const status st = r->coll->ops->bcast(r->coll, &theirs, sizeof(theirs), 0, err);
    if (st != ST_OK) {
        return st;
    }
    if (memcmp(&mine, &theirs, sizeof(mine)) != 0) {
        return err_set(err, ST_ERR_MISMATCH,
                       "rank %u has plan %016llx, rope table %016llx, profile %s; the leader has "
                       "%016llx, %016llx, %s",
                       r->rank, (unsigned long long)mine.plan, (unsigned long long)mine.rope,
                       mine.profile, (unsigned long long)theirs.plan,
                       (unsigned long long)theirs.rope, theirs.profile);
    }
    return ST_OK;
}

/* ---- messages between ranks ---- */

void rank_pause(struct rank *r, uint64_t idle_since_ns)
{
    const uint64_t idle = clock_now_ns(clock_real()) - idle_since_ns;
    struct timespec nap = { 0, 0 };

    (void)r;
    if (idle < 2 * NS_PER_MS) {
        sched_yield();
        return;
    }
    /* Naps grow with the silence: 20 us after 2 ms, 1 ms from 100 ms on. */
    nap.tv_nsec = (long)MIN(idle / 100, NS_PER_MS);
    nanosleep(&nap, NULL);
}

status rank_send_x(struct rank *r, const struct step_head *plan, uint32_t i_x, struct err *err)
{
    const uint32_t to = r->rank + r->plan->tp;
    const size_t bytes = (size_t)exec_rows(r->exec, plan) * r->plan->desc.dim * sizeof(float);
    const status st = r->coll->ops->send_start(r->coll, r->stream, to, RANK_TAG_X, r->x[i_x], bytes,
                                               &r->x_reqs[i_x], err);

    r->x_pending[i_x] = st == ST_OK;
    return st;
}

/* A residual buffer that no send is reading any more. With one stage nothing is sent, and always
 * the same one halves the number of graphs. */
status rank_take_x(struct rank *r, uint32_t *i_x_p, struct err *err)
{
    const uint32_t i = r->plan->pp == 1 ? 0 : r->i_x++ % RANK_X_BUFFERS;

    if (r->x_pending[i]) {
        const status st = r->coll->ops->wait(r->coll, r->x_reqs[i], err);
        if (st != ST_OK) {
            return st;
        }
        r->x_pending[i] = false;
    }
    *i_x_p = i;
    return ST_OK;
}

status rank_finish_sends(struct rank *r, struct err *err)
{
    status st = ST_OK;

    for (uint32_t i = 0; i < r->n_plans && st == ST_OK; i++) {
        st = rank_settle_plan(r, i, err);
    }
    for (uint32_t i = 0; i < RANK_X_BUFFERS && st == ST_OK; i++) {
        if (r->x_pending[i]) {
            st = r->coll->ops->wait(r->coll, r->x_reqs[i], err);
            r->x_pending[i] = false;
        }
    }
    /* What is queued on a device (the last sends among it) ends before the rank does. */
    return st == ST_OK ? exec_drain(r->exec, err) : st;
}

/* ---- one step ---- */

static void note_times(struct rank *r)
{
    struct exec_times t;
    exec_times(r->exec, &t);
    const uint64_t kernel = t.total_ns - MIN(t.coll_ns, t.total_ns);
    const uint64_t mean = atomic_load(&r->progress->kernel_ns);

    atomic_store(&r->progress->kernel_ns, mean == 0 ? kernel : (mean * 15 + kernel) / 16);
}

static status of_step(const struct rank *r, const struct step_head *plan, status st,
                      struct err *err)
{
    if (st != ST_OK) {
        err_prefix(err, "rank %u, step %llu: ", r->rank, (unsigned long long)plan->id);
    }
    return st;
}

status rank_begin_stage(struct rank *r, const struct step_head *plan, uint32_t i_x, struct err *err)
{
    atomic_store(&r->progress->step, plan->id);
    atomic_store(&r->progress->digest, plan->digest);
    atomic_store(&r->progress->phase, RANK_STEP);
    trail_begin(&r->progress->trail,
                &(struct trail_note){ plan->id, plan->digest, plan->n_rows, plan->n_seqs });
    const status st = of_step(r, plan, exec_begin(r->exec, plan, r->x[i_x], err), err);
    return st == ST_OK && r->coll->stage + 1 < r->plan->pp ? rank_send_x(r, plan, i_x, err) : st;
}

status rank_finish_stage(struct rank *r, struct err *err)
{
    const struct step_head *plan = exec_oldest(r->exec);
    const status st = of_step(r, plan, exec_finish(r->exec, r->results, err), err);

    if (st == ST_OK) {
        trail_end(&r->progress->trail, &r->progress->watch);
    }
    note_times(r);
    return st;
}

/* ---- follower ---- */

/* Who passes plans to this rank: its number without the highest bit. */
static uint32_t plan_parent(uint32_t rank)
{
    uint32_t bit = 1;

    while (bit * 2 <= rank) {
        bit *= 2;
    }
    return rank - bit;
}

/* Wait, without a deadline, for the next plan: an idle service may be silent for days. */
static status await_plan(struct rank *r, struct step_head *plan, struct err *err)
{
    const uint64_t since = clock_now_ns(clock_real());
    const uint32_t parent = plan_parent(r->rank);
    size_t bytes = 0;
    status st;

    atomic_store(&r->progress->phase, RANK_IDLE);
    coll_watch_begin(&r->progress->watch, COLL_OP_PLAN, atomic_load(&r->progress->step) + 1);
    coll_watch_wait(&r->progress->watch, parent, since);
    while ((st = r->coll->ops->probe(r->coll, parent, RANK_TAG_PLAN, &bytes, err)) == ST_BUSY) {
        if (r->config.abort != NULL && *r->config.abort) {
            return err_set(err, ST_ERR_CANCELLED, "rank %u was told to end", r->rank);
        }
        rank_pause(r, since);
    }
    if (st == ST_OK && bytes > r->plan_bytes_max) {
        return err_set(err, ST_ERR_PROTO, "rank %u: a plan of %zu bytes, the limit is %zu", r->rank,
                       bytes, r->plan_bytes_max);
    }
    if (st == ST_OK) {
        st = coll_recv_now(r->coll, NULL, parent, RANK_TAG_PLAN, plan, bytes, err);
    }
    return st == ST_OK ? step_check(plan, bytes, &r->limits, r->plan->kv_blocks, err) : st;
}

/* The stage before runs the same plan? Inside a stage the collectives compare (their stamps). Its
 * message left with the plan, so it is here. */
static status compare_plans(struct rank *r, const struct step_head *plan, struct err *err)
{
    const uint32_t from = r->rank - r->plan->tp;
    const status st =
        coll_recv_now(r->coll, NULL, from, RANK_TAG_STAMP, &r->stamp, sizeof(r->stamp), err);

    if (st == ST_OK && r->stamp != plan->digest) {
        return err_set(err, ST_ERR_MISMATCH,
                       "step %llu: rank %u has plan %016llx, rank %u has %016llx",
                       (unsigned long long)plan->id, r->rank, (unsigned long long)plan->digest,
                       from, (unsigned long long)r->stamp);
    }
    return st;
}

static status follow(struct rank *r, const struct step_head *plan, struct err *err)
{
    uint32_t i_x = 0;
    status st = rank_take_x(r, &i_x, err);

    if (st == ST_OK && r->coll->stage > 0) {
        st = compare_plans(r, plan, err);
    }
    if (st == ST_OK && r->coll->stage > 0) {
        const size_t bytes = (size_t)exec_rows(r->exec, plan) * r->plan->desc.dim * sizeof(float);
        atomic_store(&r->progress->phase, RANK_WAITING);
        st = coll_recv_now(r->coll, r->stream, r->rank - r->plan->tp, RANK_TAG_X, r->x[i_x], bytes,
                           err);
    }
    if (st == ST_OK) {
        st = rank_begin_stage(r, plan, i_x, err);
    }
    if (st == ST_OK && exec_n_out(r->exec) > (r->is_ahead ? 1 : 0)) {
        st = rank_finish_stage(r, err);
    }
    if (st == ST_OK && !r->is_ahead && r->coll->stage + 1 == r->plan->pp && r->coll->slice == 0) {
        st = coll_send_now(r->coll, NULL, 0, RANK_TAG_RESULT, r->results,
                           plan->n_samples * sizeof(*r->results), err);
    }
    return st;
}

static status take(struct rank *r, struct err *err)
{
    return exec_n_out(r->exec) != 0
               ? rank_finish_stage(r, err)
               : err_set(err, ST_ERR_PROTO, "rank %u was told to finish a step, and has none",
                         r->rank);
}

static status follower_run(struct rank *r, struct err *err)
{
    uint32_t i = 0;

    for (;; i = (i + 1) % r->n_plans) {
        struct step_head *plan = rank_plan(r, i);
        status st;
        (void)((st = rank_settle_plan(r, i, err)) || (st = await_plan(r, plan, err)) ||
               (st = rank_pass_plan(r, i, err)));
        if (st != ST_OK) {
            return st;
        }
        if (plan->kind == STEP_EXIT) {
            break;
        }
        st = plan->kind == STEP_TAKE ? take(r, err) : follow(r, plan, err);
        if (st != ST_OK) {
            return st;
        }
    }
    return rank_finish_sends(r, err);
}

status rank_run(struct rank *r, const struct rank_io *io, struct err *err)
{
    const status st = r->rank == 0 ? leader_run(r, io, err) : follower_run(r, err);

    atomic_store(&r->progress->phase, RANK_ENDED);
    return st;
}
