/* tests/mpi/test_coll.c - the checks of tests/common/coll_checks.c over MPI. ranks: 1 2 4 8
 *
 *   mpirun -n N mpi.test_coll        every split of N into slices (powers of two) and stages
 *
 * Each rank prints its failures; the exit code is 1 if any rank had one. Cases that leave requests
 * in flight are followed by a fresh coll on the same MPI world. */
#include "common/coll_checks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *what, const char *text)
{
    fprintf(stderr, "%s: %s\n", what, text);
    coll_mpi_abort(1);
}

/* The ranks' verdicts, by rank: everybody learns everybody's, which also lines them up again. */
static int n_failed(const struct coll_mpi_world *w, bool ok)
{
    struct err err = ERR_INIT;
    int n = 0;

    for (uint32_t r = 0; r < w->n_ranks; r++) {
        char verdict = (char)ok;

        if (coll_mpi_bcast(&verdict, 1, r, &err) != ST_OK) {
            fail("verdict", err.text);
        }
        n += verdict ? 0 : 1;
    }
    return n;
}

static int run_shape(const struct coll_mpi_world *w, struct coll_shape shape)
{
    struct coll *c = NULL;
    struct err err = ERR_INIT;
    int n_bad = 0;

    for (size_t i = 0; i < n_coll_cases; i++) {
        struct coll_note note = { "" };
        const uint64_t begin_ns = clock_now_ns(clock_real());
        bool ok;
        int bad;

        if (!c && coll_mpi_create(shape, &c, &err) != ST_OK) {
            fail("coll_mpi_create", err.text);
        }
        ok = coll_cases[i].run(c, &note);
        if (!ok) {
            fprintf(stderr, "tp %u pp %u rank %u: %s: %s\n", shape.tp, shape.pp, w->rank,
                    coll_cases[i].name, note.text);
        }
        bad = n_failed(w, ok);
        n_bad += bad;
        if (w->rank == 0) {
            printf("%-4s tp %u pp %u %s, %llu ms\n", bad ? "FAIL" : "ok", shape.tp, shape.pp,
                   coll_cases[i].name,
                   (unsigned long long)((clock_now_ns(clock_real()) - begin_ns) / NS_PER_MS));
            fflush(stdout);
        }
        if (coll_cases[i].breaks) {
            c->ops->destroy(c);
            c = NULL;
        }
    }
    if (c) {
        c->ops->destroy(c);
    }
    return n_bad;
}

static int check_refusals(const struct coll_mpi_world *w)
{
    struct coll *c = NULL;
    struct err err = ERR_INIT;
    int n_bad = 0;

    n_bad += coll_mpi_create((struct coll_shape){ 1, w->n_ranks + 1 }, &c, &err) != ST_ERR_ARG;
    n_bad += strstr(err.text, "this MPI job has") == NULL;
    n_bad += coll_mpi_create((struct coll_shape){ 3, 1 }, &c, &err) != ST_ERR_ARG;
    n_bad += w->host[0] == '\0' || w->library[0] == '\0';
    if (w->rank == 0) {
        printf("%-4s refusals; host and library: %s, %s\n", n_bad ? "FAIL" : "ok", w->host,
               w->library);
    }
    return n_bad;
}

int main(void)
{
    struct coll_mpi_world w;
    struct err err = ERR_INIT;
    struct coll *c = NULL;
    int n_bad;

    if (coll_mpi_init(&w, &err) != ST_OK) {
        fprintf(stderr, "coll_mpi_init: %s\n", err.text);
        return 1;
    }
    n_bad = check_refusals(&w);
    for (uint32_t tp = 1; tp <= w.n_ranks; tp *= 2) {
        if (w.n_ranks % tp == 0) {
            n_bad += run_shape(&w, (struct coll_shape){ tp, w.n_ranks / tp });
        }
    }
    n_bad = n_failed(&w, n_bad == 0);
    coll_mpi_fini();
    if (coll_mpi_create((struct coll_shape){ 1, w.n_ranks }, &c, &err) != ST_ERR_INTERNAL ||
        coll_mpi_bcast(&n_bad, sizeof(n_bad), 0, &err) != ST_ERR_INTERNAL) {
        fprintf(stderr, "MPI was called after its end\n");
        n_bad++;
    }
    return n_bad == 0 ? 0 : 1;
}
