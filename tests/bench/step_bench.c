/* tests/bench/step_bench.c - a replica over MPI without a coordinator: what a step costs, and how
 * much of it is kernels.
 *
 *   mpirun -n TP*PP step_bench MODEL TP PP THREADS STREAMS PROMPT TOKENS
 *
 * Decoding is measured from the last stream's first token to the first stream's end, so with all of them under way: TOKENS
 * must be more than the steps that the prompts take. Prints load time, prefill rate, mean decode step, the kernels' share on every rank, and what is
 * left: the time of a step that no kernel accounts for (scheduling, plans, collectives, waiting for
 * the slower slice). The kernels' part of a step is the sum over stages of the slowest slice's. */
#include "worker/rank.h"

#include "base/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct run {
    uint32_t n_streams, n_prompt, n_tokens;
    uint32_t n_submitted, n_ended, n_first;
    uint32_t *prompt;
    uint64_t began_ns, prefilled_ns, ended_ns, n_decoded;
    struct rank_progress *progress;
};

static bool feed(void *self, struct sched *sched, bool *drain_p)
{
    struct run *r = self;
    struct err err = ERR_INIT;

    while (r->n_submitted < r->n_streams) {
        const struct msg_submit m = { .stream = ++r->n_submitted,
                                      .attempt = 1,
                                      .n_prompt = r->n_prompt,
                                      .prompt = r->prompt,
                                      .max_tokens = r->n_tokens,
                                      .top_p = 1.0f };
        if (r->began_ns == 0) {
            r->began_ns = clock_now_ns(clock_real());
        }
        if (sched_submit(sched, &m, &err) != ST_OK) {
            fprintf(stderr, "step_bench: %s\n", err.text);
            exit(1);
        }
    }
    *drain_p = true;
    return r->n_ended < r->n_streams;
}

static status events(void *self, const struct msg_events *e, struct err *err UNUSED)
{
    struct run *r = self;

    for (uint32_t i = 0; i < e->n_tokens; i++) {
        if (e->tokens[i].index == 0 && ++r->n_first == r->n_streams) {
            r->prefilled_ns = clock_now_ns(clock_real());
            atomic_store(&r->progress->step_ns, 0); /* means of decode steps from here on */
            atomic_store(&r->progress->kernel_ns, 0);
        } else if (r->n_first == r->n_streams && r->n_ended == 0) {
            r->n_decoded++;
        }
    }
    if (r->n_ended == 0 && e->n_finishes != 0) {
        r->ended_ns = clock_now_ns(clock_real());
    }
    r->n_ended += e->n_finishes;
    return ST_OK;
}

static void nap(void *self UNUSED, uint32_t ms UNUSED)
{
}

static void check(status st, const struct err *err)
{
    if (st != ST_OK) {
        fprintf(stderr, "step_bench: %s: %s\n", status_name(st), err->text);
        coll_mpi_abort(1);
    }
}

static void report(const struct run *r, const struct plan *plan, const double *kernel_us,
                   double step_us, double load_s)
{
    const double prefill_s = (double)(r->prefilled_ns - r->began_ns) / 1e9;
    const double decode_s = (double)(r->ended_ns - r->prefilled_ns) / 1e9;
    double kernels = 0;

    for (uint32_t s = 0; s < plan->pp; s++) {
        double most = 0;
        for (uint32_t i = 0; i < plan->tp; i++) {
            most = MAX(most, kernel_us[s * plan->tp + i]);
        }
        kernels += most;
    }
    printf("load       %.2f s, %.2f GB/s of packed weights on rank 0\n", load_s,
           (double)plan->parts[0].weight_bytes / 1e9 / load_s);
    printf("prefill    %u x %u tokens: %.3f s, %.1f tokens/s\n", r->n_streams, r->n_prompt,
           prefill_s, r->n_streams * r->n_prompt / prefill_s);
    if (r->prefilled_ns != 0 && r->ended_ns > r->prefilled_ns) {
        printf("decode     %.1f tokens/s, %u streams\n", (double)r->n_decoded / decode_s,
               r->n_streams);
    } else {
        printf("decode     not measured: a stream ended before all had begun\n");
    }
    printf("step       %.1f us mean, kernels %.1f us, outside kernels %.1f us\n", step_us, kernels,
           step_us - kernels);
}

int main(int argc, char **argv)
{
    struct coll_mpi_world world;
    struct err err = ERR_INIT;
    struct model_desc desc;
    struct weights *weights = NULL;
    struct plan *plan = NULL;
    struct coll *coll = NULL;
    struct rank *rank = NULL;
    struct rank_progress progress;

    if (argc != 8) {
        fprintf(stderr,
                "usage: mpirun -n TP*PP step_bench MODEL TP PP THREADS STREAMS PROMPT TOKENS\n");
        return 2;
    }
    memset(&progress, 0, sizeof(progress));
    cpu_float_env_set();
    check(coll_mpi_init(&world, &err), &err);
    struct run run = { .n_streams = (uint32_t)atoi(argv[5]),
                       .n_prompt = (uint32_t)atoi(argv[6]),
                       .n_tokens = (uint32_t)atoi(argv[7]),
                       .progress = &progress };
    const struct plan_request request = { .tp = (uint32_t)atoi(argv[2]),
                                          .pp = (uint32_t)atoi(argv[3]),
                                          .fmt = KERN_BF16,
                                          .seqs_max = run.n_streams,
                                          .rows_max = 512,
                                          .ctx_max = run.n_prompt + run.n_tokens };
    run.prompt = calloc(run.n_prompt, sizeof(uint32_t));
    for (uint32_t i = 0; i < run.n_prompt; i++) {
        run.prompt[i] = 1 + i % 250;
    }
    check(model_desc_read(argv[1], &desc, &err), &err);
    check(weights_open(argv[1], &weights, &err), &err);
    check(plan_create(&desc, &request, &plan, &err), &err);
    check(coll_mpi_create((struct coll_shape){ plan->tp, plan->pp }, &coll, &err), &err);
    coll->timeout_ns = 300 * NS_PER_S;

    const struct rank_config config = { .plan = plan,
                                        .ops = kern_ops_cpu(NULL),
                                        .n_threads = (uint32_t)atoi(argv[4]),
                                        .queue_max = run.n_streams,
                                        .coll = coll,
                                        .progress = &progress };
    const struct rank_io io = { feed, events, nap, &run };
    const uint64_t from = clock_now_ns(clock_real());
    check(rank_create(&config, &rank, &err), &err);
    check(rank_load(rank, weights, &err), &err);
    check(coll->ops->barrier(coll, &err), &err);
    const double load_s = (double)(clock_now_ns(clock_real()) - from) / 1e9;
    check(rank_run(rank, world.rank == 0 ? &io : NULL, &err), &err);

    double *kernel_us = calloc(world.n_ranks, sizeof(double));
    for (uint32_t i = 0; i < world.n_ranks; i++) {
        kernel_us[i] = (double)atomic_load(&progress.kernel_ns) / 1e3;
        check(coll->ops->bcast(coll, &kernel_us[i], sizeof(double), i, &err), &err);
    }
    if (world.rank == 0) {
        report(&run, plan, kernel_us, (double)atomic_load(&progress.step_ns) / 1e3, load_s);
    }
    free(kernel_us);
    free(run.prompt);
    rank_destroy(rank);
    coll->ops->destroy(coll);
    plan_destroy(plan);
    weights_close(weights);
    coll_mpi_fini();
    return 0;
}
