/* cluster/launch_mpirun.c - the mpirun command as a pure function of the config, and the table of what
 * differs between versions of Open MPI.
 *
 * Why each knob (figures from Open MPI 4.1.4 on network namespaces as hosts):
 *   keepalive 2 + 3 x 1 s   a cut link or a dead host ends the job after 4.5 s, not 499 s, and the
 *                           ranks behind the cut end as well
 *   sigkill_timeout 0       a dead rank ends the job after 35 ms, not 4 s, and SIGTERM after 60 ms;
 *                           an orderly end is SIGUSR1 (a drain), never SIGTERM
 *   bind-to none            a rank is a team of threads: mpirun's default ties it to one core
 *   yield_when_idle         only with more ranks than cores (factor 200); otherwise a little slower
 *   *_backing_directory     ranks that are killed leave their shared memory behind; in a folder of the
 *                           job's own whoever ended the job can remove it
 * The names of version 5 (PRRTE) are from its documentation and were not run by us. A knob that a
 * version does not know is ignored by it; our own heartbeats judge life and death either way. */
#include "cluster/launch_words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KNOBS_MAX = 16 };

struct knobs {
    uint32_t major;
    const char *always[KNOBS_MAX]; /* NULL-ended */
    const char *one_host[KNOBS_MAX];
    const char *crowded[KNOBS_MAX];
    const char *shm[2];        /* the option and the knob whose value is a folder */
    const char *network[2][2]; /* options and knobs of the networks of daemons and of ranks */
    const char
        *agent[3]; /* option and knob for the command that starts a daemon, and that command */
};

static const struct knobs table[] = {
    { .major = 4,
      .always = { "--mca", "oob_tcp_keepalive_time", "2", "--mca", "oob_tcp_keepalive_intvl", "1",
                  "--mca", "oob_tcp_keepalive_probes", "3", "--mca", "odls_base_sigkill_timeout",
                  "0" },
      .one_host = { "--oversubscribe" },
      .crowded = { "--mca", "mpi_yield_when_idle", "1" },
      .shm = { "--mca", "btl_vader_backing_directory" },
      .network = { { "--mca", "oob_tcp_if_include" }, { "--mca", "btl_tcp_if_include" } },
      .agent = { "--mca", "orte_launch_agent", "orted" } },
    { .major = 5,
      .always = { "--prtemca", "oob_tcp_keepalive_time", "2", "--prtemca",
                  "oob_tcp_keepalive_intvl", "1", "--prtemca", "oob_tcp_keepalive_probes", "3",
                  "--prtemca", "odls_base_sigkill_timeout", "0" },
      .one_host = { "--map-by", ":OVERSUBSCRIBE" },
      .crowded = { "--mca", "mpi_yield_when_idle", "1" },
      .shm = { "--mca", "btl_sm_backing_directory" },
      .network = { { "--prtemca", "oob_tcp_if_include" }, { "--mca", "btl_tcp_if_include" } },
      .agent = { "--prtemca", "prte_launch_agent", "prted" } },
};

/* Versions we have no row for get none of the knobs but the words that all understand. */
static const struct knobs other = { .one_host = { "--oversubscribe" } };

static const struct knobs *knobs_of(uint32_t major)
{
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        if (table[i].major == major) {
            return &table[i];
        }
    }
    return &other;
}

/* A scheduler hands out slots itself; to overbook its allocation is the user's decision. */
static bool has_allocation(void)
{
    return getenv("SLURM_JOB_ID") || getenv("PBS_JOBID") || getenv("LSB_JOBID") ||
           getenv("JOB_ID") || getenv("FLUX_JOB_ID");
}

/* The agent's words are split at spaces: a path with one in it cannot be said. */
static void add_agent(struct words *w, const struct launch_config *config, const struct knobs *k)
{
    char agent[4200];

    if (!config->in_slurm || k->agent[0] == NULL || words_user_says(config, k->agent[1]) ||
        strpbrk(config->program, " \t") != NULL ||
        snprintf(agent, sizeof(agent), "%s hold %s", config->program, k->agent[2]) >=
            (int)sizeof(agent)) {
        return;
    }
    words_add(w, k->agent[0]);
    words_add(w, k->agent[1]);
    words_add(w, agent);
}

static void add_network(struct words *w, const struct launch_config *config, const struct knobs *k)
{
    for (size_t i = 0; i < ARRAY_LEN(k->network) && config->network; i++) {
        if (k->network[i][0] != NULL && !words_user_says(config, k->network[i][1])) {
            words_add(w, k->network[i][0]);
            words_add(w, k->network[i][1]);
            words_add(w, config->network);
        }
    }
}

void launch_mpirun_words(struct words *w, const struct launch_config *config, uint32_t major)
{
    const struct knobs *k = knobs_of(major);

    words_add(w, config->mpirun ? config->mpirun : "mpirun");
    words_add(w, "-n");
    words_add_number(w, config->n_ranks);
    if (config->hostfile) {
        words_add(w, "--hostfile");
        words_add(w, config->hostfile);
    }
    words_add_all(w, k->always);
    if (!words_user_says(config, "--bind-to")) {
        words_add(w, "--bind-to");
        words_add(w, "none");
    }
    if ((config->oversubscribe || (!config->hostfile && !has_allocation())) &&
        !words_user_says(config, k->one_host[0])) {
        words_add_all(w, k->one_host);
    }
    if (config->oversubscribe) {
        words_add_all(w, k->crowded);
    }
    if (config->shm_dir && k->shm[0] && !words_user_says(config, k->shm[1])) {
        words_add(w, k->shm[0]);
        words_add(w, k->shm[1]);
        words_add(w, config->shm_dir);
    }
    add_network(w, config, k);
    add_agent(w, config, k);
    words_add_split(w, config->extra);
    words_add(w, config->program);
    words_add_all(w, config->args);
}
