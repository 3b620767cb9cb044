/* cluster/launch_command.c - the mpirun command as a pure function of the config, and the table of
 * what differs between versions of Open MPI.
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
#include "cluster/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KNOBS_MAX = 16 };

struct knobs {
    uint32_t major;
    const char *always[KNOBS_MAX]; /* NULL-ended */
    const char *one_host[KNOBS_MAX];
    const char *crowded[KNOBS_MAX];
    const char *shm[2]; /* the option and the knob whose value is a folder */
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
      .agent = { "--mca", "orte_launch_agent", "orted" } },
    { .major = 5,
      .always = { "--prtemca", "oob_tcp_keepalive_time", "2", "--prtemca",
                  "oob_tcp_keepalive_intvl", "1", "--prtemca", "oob_tcp_keepalive_probes", "3",
                  "--prtemca", "odls_base_sigkill_timeout", "0" },
      .one_host = { "--map-by", ":OVERSUBSCRIBE" },
      .crowded = { "--mca", "mpi_yield_when_idle", "1" },
      .shm = { "--mca", "btl_sm_backing_directory" },
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

/* ---- collecting words: offsets first, because `text` may move while it grows ---- */

struct words {
    struct buf *text;
    uint32_t n, max; /* max: without the NULL at the end */
    status st;
};

static void add(struct words *w, const char *word, size_t len)
{
    if (w->st != ST_OK) {
        return;
    }
    if (w->n == w->max) {
        w->st = ST_ERR_LIMIT;
        return;
    }
    w->st = buf_append(w->text, word, len);
    if (w->st == ST_OK) {
        w->st = buf_append_char(w->text, '\0');
        w->n++;
    }
}

static void add_str(struct words *w, const char *word)
{
    add(w, word, strlen(word));
}

static void add_all(struct words *w, const char *const *list)
{
    for (; list && *list; list++) {
        add_str(w, *list);
    }
}

static void add_split(struct words *w, const char *line)
{
    while (line && *line) {
        const size_t len = strcspn(line, " \t\n");

        if (len > 0) {
            add(w, line, len);
        }
        line += len + (line[len] != '\0');
    }
}

/* Does the user's own line decide this already? mpirun refuses an option that is given twice. */
static bool user_says(const struct launch_config *config, const char *option)
{
    return config->extra && strstr(config->extra, option) != NULL;
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

    if (!config->in_slurm || k->agent[0] == NULL || user_says(config, k->agent[1]) ||
        strpbrk(config->program, " \t") != NULL ||
        snprintf(agent, sizeof(agent), "%s hold %s", config->program, k->agent[2]) >=
            (int)sizeof(agent)) {
        return;
    }
    add_str(w, k->agent[0]);
    add_str(w, k->agent[1]);
    add_str(w, agent);
}

static void add_command(struct words *w, const struct launch_config *config, uint32_t major)
{
    const struct knobs *k = knobs_of(major);
    char n_ranks[16];

    snprintf(n_ranks, sizeof(n_ranks), "%u", config->n_ranks);
    add_str(w, config->mpirun ? config->mpirun : "mpirun");
    add_str(w, "-n");
    add_str(w, n_ranks);
    if (config->hostfile) {
        add_str(w, "--hostfile");
        add_str(w, config->hostfile);
    }
    add_all(w, k->always);
    if (!user_says(config, "--bind-to")) {
        add_str(w, "--bind-to");
        add_str(w, "none");
    }
    if ((config->oversubscribe || (!config->hostfile && !has_allocation())) &&
        !user_says(config, k->one_host[0])) {
        add_all(w, k->one_host);
    }
    if (config->oversubscribe) {
        add_all(w, k->crowded);
    }
    if (config->shm_dir && k->shm[0] && !user_says(config, k->shm[1])) {
        add_str(w, k->shm[0]);
        add_str(w, k->shm[1]);
        add_str(w, config->shm_dir);
    }
    add_agent(w, config, k);
    add_split(w, config->extra);
    add_str(w, config->program);
    add_all(w, config->args);
}

status launch_command(const struct launch_config *config, uint32_t major, const char **argv,
                      uint32_t argv_max, struct buf *text, struct err *err)
{
    struct words w = { .text = text, .max = argv_max - 1 };
    const char *at;

    ASSERT(argv_max > 0);
    if (config->n_ranks == 0 || !config->program || config->program[0] == '\0') {
        return err_set(err, ST_ERR_ARG, "launch of %u ranks of \"%s\"", config->n_ranks,
                       config->program ? config->program : "");
    }
    buf_reset(text);
    add_command(&w, config, major);
    if (w.st == ST_ERR_LIMIT) {
        return err_set(err, w.st, "the mpirun command has more than %u words", w.max);
    }
    if (w.st != ST_OK) {
        return err_set(err, w.st, "no memory for the mpirun command");
    }
    at = text->data;
    for (uint32_t i = 0; i < w.n; i++) {
        argv[i] = at;
        at += strlen(at) + 1;
    }
    argv[w.n] = NULL;
    return ST_OK;
}

/* ---- as a line for a shell ---- */

static status quote(struct buf *out, const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_./:=,@%+";
    status st;

    if (*word && word[strspn(word, plain)] == '\0') {
        return buf_append_str(out, word);
    }
    st = buf_append_char(out, '\'');
    for (; st == ST_OK && *word; word++) {
        st = *word == '\'' ? buf_append_str(out, "'\\''") : buf_append_char(out, *word);
    }
    return st == ST_OK ? buf_append_char(out, '\'') : st;
}

status launch_command_line(const struct launch_config *config, uint32_t major, struct buf *out,
                           struct err *err)
{
    const char *argv[LAUNCH_ARGS_MAX] = { NULL };
    struct buf text = BUF_INIT;
    status st = launch_command(config, major, argv, LAUNCH_ARGS_MAX, &text, err);
    const bool built = st == ST_OK;

    for (uint32_t i = 0; st == ST_OK && argv[i]; i++) {
        if (i > 0) {
            st = buf_append_char(out, ' ');
        }
        if (st == ST_OK) {
            st = quote(out, argv[i]);
        }
    }
    buf_fini(&text);
    return st == ST_OK || !built ? st : err_set(err, st, "no room for the mpirun command");
}
