/* worker/main.c - `gantry worker`: one rank of a replica, started by mpirun.
 *
 *   parse -> MPI -> plan (computed here, compared by digest) -> attach
 *         -> load -> agree -> digest -> ready -> run
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

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
};

/* ---- steps of a life ---- */

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

static status attach(struct life *l, struct err *err)
{
    const struct worker_args *a = l->args;
    const struct ctrl_config config = { .coordinator = a->coordinator,
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
                                                   .pid = (uint32_t)getpid() },
                                        .progress = &l->progress,
                                        .abort = &l->abort };
    return ctrl_create(&config, a->attach_timeout_s, &l->ctrl, err);
}

/* Threads of this rank: what was asked for, or the cores of this host over its ranks. */
static uint32_t threads_of(const struct life *l)
{
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
    const long n_local = local != NULL ? strtol(local, NULL, 10) : 1;

    if (l->args->threads != 0) {
        return l->args->threads;
    }
    return MAX(1u, cpu_count() / (uint32_t)MAX(n_local, 1L));
}

static const char *cache_dir(char path[PATH_BYTES])
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

    if (base != NULL && base[0] == '/') {
        snprintf(path, PATH_BYTES, "%s/gantry", base);
    } else if (home != NULL && home[0] == '/') {
        snprintf(path, PATH_BYTES, "%s/.cache/gantry", home);
    } else {
        return NULL;
    }
    return path;
}

static status prepare(struct life *l, struct err *err)
{
    const struct rank_config config = { .plan = l->plan,
                                        .ops = l->device.ops,
                                        .device = l->device.index,
                                        .n_threads = threads_of(l),
                                        .chunk_max = l->args->chunk,
                                        .queue_max = l->args->queue,
                                        .prefix_cache = l->args->prefix_cache,
                                        .coll = l->coll,
                                        .progress = &l->progress,
                                        .abort = &l->abort };
    struct msg_ready ready = { .weight_bytes = l->plan->parts[l->world.rank].weight_bytes,
                               .kv_bytes = l->plan->parts[l->world.rank].kv_bytes };
    char cache[PATH_BYTES];
    status st = rank_create(&config, &l->rank, err);

    (void)(st || (st = rank_load(l->rank, l->weights, err)) || (st = rank_agree(l->rank, err)) ||
           (st = rank_digest(l->rank, l->weights, cache_dir(cache), &ready.weights_digest, err)) ||
           (st = l->coll->ops->barrier(l->coll, err)));
    if (st != ST_OK) {
        return st;
    }
    log_info("rank", "ready: stage %u, slice %u, %u threads, kernels %s", l->coll->stage,
             l->coll->slice, config.n_threads, l->device.text);
    return ctrl_ready(l->ctrl, &ready, err);
}

static status live(struct life *l, struct err *err)
{
    status st = worker_device_choose(&l->args->device, &l->device, err);

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
    const status st = live(&l, &err);
    if (st == ST_OK) {
        ctrl_destroy(l.ctrl);
        life_fini(&l);
        return 0;
    }
    log_error("rank", "%s: %s", status_name(st), err.text);
    if (l.ctrl != NULL) {
        ctrl_fault(l.ctrl, &err);
        ctrl_destroy(l.ctrl);
    }
    /* The other ranks may wait in a collective for this one: no orderly end is possible. */
    coll_mpi_abort(status_exit_code(st));
}

/* ---- command line ---- */

int worker_main(int argc, char **argv)
{
    struct worker_args args;
    struct coll_mpi_world world;
    struct err err = ERR_INIT;
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
