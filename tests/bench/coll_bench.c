/* tests/bench/coll_bench.c - microseconds of the collectives over MPI.
 *
 *   mpirun -n 2 bench.coll_bench [slices]
 *
 * Every line is the median and the 10th percentile of `rounds` timed one by one on rank 0, after a
 * warm-up; send/recv is half of a round trip between ranks 0 and 1. `split` is the sum as
 * reduce-scatter + all-gather, `whole` by full exchanges. */
#include "cluster/coll.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS_MAX = 3000, BYTES_MAX = 4 << 20 };

static uint64_t times_ns[ROUNDS_MAX];

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void report(const struct coll *c, const char *what, size_t bytes, uint32_t rounds,
                   uint32_t part)
{
    if (c->rank != 0) {
        return;
    }
    qsort(times_ns, rounds, sizeof(*times_ns), by_value);
    printf("%-16s tp %u %8zu bytes  median %9.2f us  p10 %9.2f us\n", what, c->tp, bytes,
           (double)times_ns[rounds / 2] / 1e3 / part, (double)times_ns[rounds / 10] / 1e3 / part);
    fflush(stdout);
}

static void must(status st, const struct err *err)
{
    if (st != ST_OK) {
        fprintf(stderr, "%s\n", err->text);
        coll_mpi_abort(1);
    }
}

static void bench_sum(struct coll *c, float *x, size_t bytes, bool split, uint32_t rounds)
{
    struct err err = ERR_INIT;

    c->split_bytes = split ? 0 : SIZE_MAX;
    memset(x, 0, bytes);
    for (uint32_t k = 0; k < rounds + rounds / 10; k++) {
        const uint64_t begin_ns = clock_now_ns(clock_real());

        must(c->ops->all_reduce_tree(c, NULL, x, bytes / sizeof(float), k, &err), &err);
        if (k >= rounds / 10) {
            times_ns[k - rounds / 10] = clock_now_ns(clock_real()) - begin_ns;
        }
    }
    report(c, split ? "sum split" : "sum whole", bytes, rounds, 1);
}

static void one_way(struct coll *c, bool send, void *data, size_t bytes)
{
    const uint32_t peer = 1 - c->rank;
    struct coll_req req;
    struct err err = ERR_INIT;

    must(send ? c->ops->send_start(c, NULL, peer, 1, data, bytes, &req, &err)
              : c->ops->recv_start(c, NULL, peer, 1, data, bytes, &req, &err),
         &err);
    must(c->ops->wait(c, req, &err), &err);
}

static void bench_ping(struct coll *c, void *data, size_t bytes, uint32_t rounds)
{
    struct err err = ERR_INIT;

    for (uint32_t k = 0; c->rank < 2 && k < rounds + rounds / 10; k++) {
        const uint64_t begin_ns = clock_now_ns(clock_real());

        one_way(c, c->rank == 0, data, bytes);
        one_way(c, c->rank != 0, data, bytes);
        if (k >= rounds / 10) {
            times_ns[k - rounds / 10] = clock_now_ns(clock_real()) - begin_ns;
        }
    }
    report(c, "send/recv", bytes, rounds, 2);
    must(c->ops->barrier(c, &err), &err);
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = { 1024,   8192,      32768,      65536,
                                    131072, 256 << 10, 1024 << 10, BYTES_MAX };
    struct coll_mpi_world w;
    struct coll *c = NULL;
    struct err err = ERR_INIT;
    float *x = malloc(BYTES_MAX);

    if (!x || coll_mpi_init(&w, &err) != ST_OK) {
        fprintf(stderr, "coll_bench: %s\n", err.text);
        return 1;
    }
    const uint32_t tp = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : w.n_ranks;

    must(tp > 0 ? coll_mpi_create((struct coll_shape){ tp, w.n_ranks / tp }, &c, &err)
                : err_set(&err, ST_ERR_ARG, "slices: a number from 1"),
         &err);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        const uint32_t rounds = sizes[i] > 65536 ? 300 : ROUNDS_MAX;

        bench_sum(c, x, sizes[i], false, rounds);
        bench_sum(c, x, sizes[i], true, rounds);
        if (w.n_ranks > 1) {
            bench_ping(c, x, sizes[i], rounds);
        }
    }
    c->ops->destroy(c);
    coll_mpi_fini();
    free(x);
    return 0;
}
