/* tests/sim/main.c - run seeds; see README.md.
 *
 *   sim --seeds 1..10000 [--replicas R] [--twice] [--keep-going]
 *   sim --seed 4711 --trace
 *
 * Exit code 0: nothing was violated. 1: something was; its seed is named. 2: usage. */
#include "base/log.h"
#include "sim/sim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct options {
    uint64_t first, last;
    uint32_t n_replicas;
    bool trace, twice, keep_going;
};

static uint64_t seed_now;

static void usage(const char *what)
{
    fprintf(stderr,
            "sim: %s\n"
            "usage: sim [--seeds A..B | --seeds N] [--seed S] [--replicas R] [--twice] [--trace] "
            "[--keep-going]\n",
            what);
    exit(2);
}

static uint64_t number(const char *text, const char **rest_p)
{
    char *end = NULL;

    errno = 0;
    const unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || end == text) {
        usage("a number is expected");
    }
    *rest_p = end;
    return n;
}

static struct options options_read(int argc, char **argv)
{
    struct options o = { .first = 1, .last = 0 };
    uint64_t n = 1, seed = 0;
    const char *rest = "";

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--trace") == 0) {
            o.trace = true;
        } else if (strcmp(argv[i], "--twice") == 0) {
            o.twice = true;
        } else if (strcmp(argv[i], "--keep-going") == 0) {
            o.keep_going = true;
        } else if (value == NULL) {
            usage(argv[i]);
        } else if (strcmp(argv[i], "--seeds") == 0) {
            n = number(value, &rest);
            if (strncmp(rest, "..", 2) == 0) {
                seed = n;
                n = number(rest + 2, &rest) - seed + 1;
            }
            i++;
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = number(value, &rest);
            i++;
        } else if (strcmp(argv[i], "--replicas") == 0) {
            o.n_replicas = (uint32_t)number(value, &rest);
            i++;
        } else {
            usage(argv[i]);
        }
        if (*rest != '\0') {
            usage(argv[i]);
        }
    }
    if (n == 0 || n > (uint64_t)1 << 40 || o.n_replicas > 1000) {
        usage("no seeds, or more than 1000 replicas");
    }
    o.first = seed != 0 ? seed : 1;
    o.last = o.first + n - 1;
    return o;
}

static void on_abort(int sig UNUSED)
{
    char text[64];
    const int n =
        snprintf(text, sizeof(text), "sim: seed %llu aborted\n", (unsigned long long)seed_now);

    if (write(STDERR_FILENO, text, (size_t)n) < 0) {
        return;
    }
}

static void print_totals(const struct sim_totals *t, uint64_t real_ns, uint32_t n_violations)
{
    uint64_t n_faults = 0;

    for (int i = 0; i < N_FAULTS; i++) {
        n_faults += t->faults[i];
    }
    printf("%llu seeds, %.1f virtual hours, %.1f s (%.1f ms a seed), %llu events\n",
           (unsigned long long)t->seeds, (double)t->virtual_ns / 3.6e12, (double)real_ns / 1e9,
           (double)real_ns / 1e6 / (double)MAX(t->seeds, 1u), (unsigned long long)t->events);
    printf("%llu calls: %llu answered in full (%llu tokens), %llu ended early, %llu refused, %llu "
           "given up by their clients\n",
           (unsigned long long)t->requests, (unsigned long long)t->ok,
           (unsigned long long)t->tokens, (unsigned long long)t->failed,
           (unsigned long long)t->refused, (unsigned long long)t->abandoned);
    printf("%llu steps, %llu preemptions, %llu prefixes found; %llu replicas lost, %llu started "
           "again\n",
           (unsigned long long)t->steps, (unsigned long long)t->preemptions,
           (unsigned long long)t->cache_hits, (unsigned long long)t->losses,
           (unsigned long long)t->restarts);
    printf(
        "%llu ranks came back to another coordinator, %llu streams restored, %llu calls resumed, "
        "%llu answers forgotten\n",
        (unsigned long long)t->reattached, (unsigned long long)t->restored,
        (unsigned long long)t->resumed, (unsigned long long)t->forgotten);
    printf("%llu faults:", (unsigned long long)n_faults);
    for (int i = 0; i < N_FAULTS; i++) {
        printf("%s %llu %s", i == 0 ? "" : ",", (unsigned long long)t->faults[i],
               fault_name((enum sim_fault)i));
    }
    printf("\n%u seeds violate an invariant\n", n_violations);
}

static bool run_seed(const struct options *o, uint64_t seed, struct sim_totals *totals)
{
    struct sim_totals again = { .seeds = 0 };
    struct sim s;

    seed_now = seed;
    if (!sim_run(&s, seed, o->n_replicas, o->trace, totals)) {
        printf("seed %llu: %s\n  again: build/tests/sim --seed %llu%s --trace\n",
               (unsigned long long)seed, s.violation, (unsigned long long)seed,
               o->n_replicas != 0 ? " --replicas ..." : "");
        return false;
    }
    const uint64_t digest = s.digest;
    if (o->twice && (!sim_run(&s, seed, o->n_replicas, false, &again) || s.digest != digest)) {
        printf("seed %llu: its second history is another one (%016llx, %016llx)\n",
               (unsigned long long)seed, (unsigned long long)digest, (unsigned long long)s.digest);
        return false;
    }
    if (o->first == o->last) {
        printf("seed %llu: history %016llx\n", (unsigned long long)seed,
               (unsigned long long)digest);
    }
    return true;
}

int main(int argc, char **argv)
{
    const struct options o = options_read(argc, argv);
    struct sim_totals totals = { .seeds = 0 };
    uint32_t n_violations = 0;
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);

    log_init(o.trace ? LOG_DEBUG : LOG_ERROR, o.trace ? STDERR_FILENO : nowhere);
    signal(SIGABRT, on_abort);
    const uint64_t began = sim_real_ns();
    for (uint64_t seed = o.first; seed <= o.last; seed++) {
        const bool good = run_seed(&o, seed, &totals);
        n_violations += !good;
        if (!good && !o.keep_going) {
            break;
        }
        if (totals.seeds % 1000 == 0) {
            printf("%llu seeds, %.0f s, %u violations\n", (unsigned long long)totals.seeds,
                   (double)(sim_real_ns() - began) / 1e9, n_violations);
            fflush(stdout);
        }
    }
    print_totals(&totals, sim_real_ns() - began, n_violations);
    return n_violations == 0 ? 0 : 1;
}
