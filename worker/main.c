/* worker/main.c - `gantry worker`: one rank of a replica, started by mpirun.
 *
 *   parse -> MPI -> plan (computed here, compared by digest) -> attach
 *         -> load -> agree -> digest -> ready -> run
 *
 * With --join the job is a replica that the coordinator has not started: rank 0 draws the job's id,
 * and the plan is this job's own.
 *
 * Usually the coordinator writes this command line (gantry serve --dry-run shows it). Nothing
 * secret is on it: the token comes from a file. A rank that fails says why on its log and to the
 * coordinator, then ends the whole MPI job. */
#include "worker/main.h"

#include "base/cpu.h"
#include "base/log.h"
#include "base/opts.h"
#include "partition/plan_opts.h"
#include "worker/args.h"
#include "worker/ctrl.h"
#include "worker/device.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { LAST_WORDS_US = 250 * 1000 };

/* Everything a rank owns, in the order in which it comes to be. */
struct life {
    const struct worker_args *args;
    struct coll_mpi_world world;
    struct model_desc desc;
    struct weights *weights;
    struct plan *plan;
    struct coll *coll;
    struct ctrl *ctrl;
    struct rank *rank;
    struct rank_progress progress;
    _Atomic bool abort;
    struct worker_device device;
    uint8_t job[MSG_JOB_BYTES]; /* with --join */
};

/* ---- steps of a life ---- */

/* Ranks of this job on this host, as Open MPI says it. */
static uint32_t n_local_ranks(void)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    const long n = local != NULL ? strtol(local, NULL, 10) : 1;

    return (uint32_t)MAX(n, 1L);
}

static status job_draw(struct life *l, struct err *err)
{
    if (l->world.rank == 0 && getrandom(l->job, sizeof(l->job), 0) != (ssize_t)sizeof(l->job)) {
        return err_set_errno(err, ST_ERR_INTERNAL, errno, "no random id for this job");
    }
    return coll_mpi_bcast(l->job, sizeof(l->job), 0, err);
}

/* What a rank may use, where nobody has planned for us: the least that any host has for each of its
 * ranks. All ranks come to the same figure. */
static status memory_agree(const struct life *l, uint64_t *bytes_p, struct err *err)
{
    const uint64_t mine = cpu_memory_bytes() / n_local_ranks();
    uint64_t least = UINT64_MAX;

    for (uint32_t i = 0; i < l->world.n_ranks; i++) {
        uint64_t theirs = mine;
        const status st = coll_mpi_bcast(&theirs, sizeof(theirs), i, err);
        if (st != ST_OK) {
            return st;
        }
        least = MIN(least, theirs);
    }
    *bytes_p = least;
    return ST_OK;
}

/* What gantry serve completes for the ranks that it starts. */
static status join_complete(struct life *l, struct plan_request *r, struct err *err)
{
    status st = job_draw(l, err);

    if (r->n_ranks == 0 && (r->tp == 0 || (r->pp == 0 && r->n_stage_layers == 0))) {
        r->n_ranks = l->world.n_ranks;
    }
    if (st == ST_OK && r->rank_memory_bytes == 0 && r->device == PLAN_CPU) {
        st = memory_agree(l, &r->rank_memory_bytes, err);
    }
    return st;
}

/* The options, with what "auto" came to and the compute capability that is there. */
static status make_request(const struct life *l, struct plan_request *request_p, struct err *err)
{
    struct plan_opts o = l->args->plan;
    char word[24];

    if (l->device.ops->on_device) {
        snprintf(word, sizeof(word), "cuda-sm%u", l->device.cuda_version);
        o.device = word;
    }
    return plan_opts_to_request(&o, request_p, err);
}

static status make_plan(struct life *l, struct err *err)
{
    const struct worker_args *a = l->args;
    struct plan_request request;
    status st = make_request(l, &request, err);

    if (st == ST_OK && a->join) {
        st = join_complete(l, &request, err);
    }
    (void)(st || (st = model_desc_read(a->model, &l->desc, err)) ||
           (st = weights_open(a->model, &l->weights, err)) ||
           (st = weights_check(l->weights, &l->desc, err)) ||
           (st = plan_create(&l->desc, &request, &l->plan, err)));
    if (st == ST_OK && l->plan->n_ranks != l->world.n_ranks) {
        st = err_set(err, ST_ERR_MISMATCH, "a plan of tp %u x pp %u is %u ranks, mpirun started %u",
                     l->plan->tp, l->plan->pp, l->plan->n_ranks, l->world.n_ranks);
    }
    if (st == ST_OK) {
        st = coll_mpi_create((struct coll_shape){ l->plan->tp, l->plan->pp }, &l->coll, err);
    }
    if (st == ST_OK) {
        l->coll->abort = &l->abort;
        l->coll->timeout_ns = a->step_timeout_s * NS_PER_S;
    }
    return st;
}

static struct msg_join join_of(const struct life *l)
{
    const struct plan *plan = l->plan;
    struct msg_join j = { .tp = plan->tp,
                          .pp = plan->pp,
                          .kv_blocks = plan->kv_blocks,
                          .block_tokens = KERN_KV_BLOCK,
                          .ctx_max = plan->ctx_max,
                          .rows_max = plan->rows_max,
                          .layer_bytes = plan_layer_bytes(plan),
                          .model_digest = plan_model_digest(plan) };

    memcpy(j.job, l->job, sizeof(j.job));
    return j;
}

static status attach(struct life *l, struct err *err)
{
    const struct worker_args *a = l->args;
    struct ctrl_config config = { .coordinator = a->coordinator,
                                  .token = a->token.data,
                                  .hello = { .build = msg_build(),
                                             .protocol = MSG_PROTOCOL,
                                             .replica = a->replica,
                                             .generation = a->generation,
                                             .rank = l->world.rank,
                                             .n_ranks = l->world.n_ranks,
                                             .plan_digest = l->plan->digest,
                                             .profile = l->plan->profile,
                                             .host = l->world.host,
                                             .kernels = l->device.text,
                                             .pid = (uint32_t)getpid(),
                                             .has_join = a->join },
                                  .progress = &l->progress,
                                  .abort = &l->abort };
    if (a->join) {
        config.hello.join = join_of(l);
    }
    status st = ctrl_create(&config, a->attach_timeout_s, &l->ctrl, err);
    if (st != ST_OK && a->join && status_exit_code(st) != status_exit_code(ST_ERR_UNAUTH)) {
        err->code = ST_ERR_MISMATCH; /* whatever it was: this replica does not become one */
        st = ST_ERR_MISMATCH;
    }
    return st;
}

/* Threads of this rank: what was asked for, or the cores of this host over its ranks. */
static uint32_t threads_of(const struct life *l)
{
    if (l->args->threads != 0) {
        return l->args->threads;
    }
    return MAX(1u, cpu_count() / n_local_ranks());
}

static status prepare(struct life *l, struct err *err)
{
    const struct rank_config config = { .plan = l->plan,
                                        .ops = l->device.ops,
                                        .device = l->device.index,
                                        .n_threads = threads_of(l),
                                        .chunk_max = l->args->chunk,
                                        /* and a canary beside them (coordinator/canary.c) */
                                        .queue_max = l->args->queue + 1,
                                        .prefix_cache = l->args->prefix_cache,
                                        .coll = l->coll,
                                        .progress = &l->progress,
                                        .abort = &l->abort };
    struct msg_ready ready = { .weight_bytes = l->plan->parts[l->world.rank].weight_bytes,
                               .kv_bytes = l->plan->parts[l->world.rank].kv_bytes };
    const struct selftest_config fabric = { .host = l->world.host,
                                            .is_crowded = n_local_ranks() > cpu_count() };
    char cache[PATH_BYTES];
    status st = rank_create(&config, &l->rank, err);

    (void)(st || (st = rank_load(l->rank, l->weights, err)) || (st = rank_agree(l->rank, err)) ||
           (st = l->args->self_test ? rank_selftest(l->rank, &fabric, &ready.self_test, err)
                                    : ST_OK) ||
           (st = rank_digest(l->rank, l->weights, weights_cache_dir(cache, sizeof(cache)),
                             &ready.weights_digest, err)) ||
           (st = l->coll->ops->barrier(l->coll, err)));
    if (st != ST_OK) {
        return st;
    }
    log_info("rank", "ready: stage %u, slice %u, %u threads, kernels %s", l->coll->stage,
             l->coll->slice, config.n_threads, l->device.text);
    ready.sums = rank_sums(l->rank);
    return ctrl_ready(l->ctrl, &ready, err);
}

static status live(struct life *l, struct err *err)
{
    status st = worker_device_choose(&l->args->device, l->args->slots.first, &l->device, err);

    (void)(st || (st = make_plan(l, err)) || (st = attach(l, err)) || (st = prepare(l, err)));
    if (st == ST_OK) {
        const struct rank_io io = ctrl_io(l->ctrl);
        st = rank_run(l->rank, &io, err);
    }
    return st;
}

static void life_fini(struct life *l)
{
    rank_destroy(l->rank);
    if (l->coll != NULL) {
        l->coll->ops->destroy(l->coll);
    }
    plan_destroy(l->plan);
    weights_close(l->weights);
}

int worker_run(const struct worker_args *args, const struct coll_mpi_world *world)
{
    struct life l = { .args = args, .world = *world };
    struct err err = ERR_INIT;

    log_set_rank((int)world->rank);
    trail_watch_signals(&l.progress.trail, &l.progress.watch, (int)world->rank);
    status st = live(&l, &err);
    if (st == ST_ERR_CANCELLED && l.ctrl != NULL && ctrl_is_told_to_stop(l.ctrl)) {
        log_info("rank", "told to stop before it was ready");
        st = ST_OK;
    }
    if (st == ST_OK) {
        trail_forget();
        ctrl_destroy(l.ctrl);
        life_fini(&l);
        return 0;
    }
    if (st == ST_ERR_CANCELLED && l.ctrl != NULL && ctrl_is_lost(l.ctrl, &err)) {
        /* Who told this rank to end, and why, says more. CANCELLED: the replica was given up. */
        st = err.code == ST_ERR_CANCELLED ? ST_ERR_UNAVAILABLE : err.code;
    }
    trail_tell(status_name(st));
    log_error("rank", "%s: %s", status_name(st), err.text);
    if (l.ctrl != NULL) {
        ctrl_fault(l.ctrl, &err);
        ctrl_destroy(l.ctrl);
    }
    /* The other ranks may wait in a collective for this one: no orderly end is possible. What mpirun then
     * does to them it does at once; the coordinator tells them sooner, and they say their last steps. */
    usleep(LAST_WORDS_US);
    coll_mpi_abort(status_exit_code(st));
}

/* ---- command line ---- */

int worker_main(int argc, char **argv)
{
    struct worker_args args;
    struct coll_mpi_world world;
    struct err err = ERR_INIT;

    /* SLURM sends SIGTERM to all processes of a job that ends; the coordinator is one of them, and
     * lets running answers end. It says when to stop, and when it is gone so are we. */
    if (getenv("SLURM_JOB_ID") != NULL) {
        signal(SIGTERM, SIG_IGN);
    }
    status st = worker_args_parse(argc, argv, &args, &err);
    if (st == ST_END) {
        return 0;
    }
    if (st == ST_OK) {
        st = coll_mpi_init(&world, &err);
    }
    if (st != ST_OK) {
        fprintf(stderr, "gantry worker: %s\n", err.text);
        return status_exit_code(st);
    }
    const int code = worker_run(&args, &world);
    worker_args_fini(&args);
    coll_mpi_fini();
    return code;
}
