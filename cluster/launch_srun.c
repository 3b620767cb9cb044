/* cluster/launch_srun.c - ranks by srun, as a step of the job that we run in.
 *
 * mpirun under SLURM starts a daemon per node by srun, and the ranks are the daemon's; here they are tasks
 * of SLURM's own, seen and bound and accounted one by one. Why each word (SLURM 22.05.8, Open MPI 4.1.4):
 *   --mpi=pmix              how the ranks find each other. Debian's Open MPI knows nothing else: with pmi2
 *                           or none MPI_Init fails, hence the look at `srun --mpi=list` before
 *   --overlap               a second step on the same CPUs otherwise waits for the first to end
 *   --overcommit            more ranks than CPUs of the job is a question of our plan, not of SLURM's
 *   --kill-on-bad-exit=1    without it the other ranks of a dead one hang on
 *   --cpu-bind=none         a rank is a team of threads; what it may use is cut by the job, not by srun
 *   --distribution=arbitrary, SLURM_HOSTFILE
 *                           a line per rank says where it runs: the one way in which unlike nodes get what
 *                           the plan says (block spreads them evenly), and no dead node is asked
 *   --input=none            srun reads the terminal otherwise
 * SLURM_NTASKS_PER_NODE and its like are the job's and contradict the step's words: they are taken out.
 * SIGTERM to srun kills its tasks by SIGKILL at once, a killed srun takes them along. scancel is different:
 * then they keep KillWait seconds (tests/slurm/test_srun.sh). */
#include "cluster/launch_words.h"

#include "base/clock.h"
#include "cluster/launch_process.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROBE_S = 5, TEXT_MAX = 64 * 1024, LAYOUT_MAX = 16 << 20 };

/* ---- the command ---- */

void launch_srun_words(struct words *w, const struct launch_config *config)
{
    static const char *const always[] = {
        "--mpi=pmix",   "--overlap", "--overcommit", "--kill-on-bad-exit=1", "--cpu-bind=none",
        "--input=none", NULL
    };

    words_add(w, "srun");
    words_add_all(w, always);
    words_add(w, config->hostfile ? "--distribution=arbitrary" : "--nodes=1");
    words_add(w, "--ntasks");
    words_add_number(w, config->n_ranks);
    words_add_split(w, config->extra);
    words_add(w, config->program);
    words_add_all(w, config->args);
}

/* ---- can it? ---- */

static bool has_word(const char *text, const char *word)
{
    const size_t len = strlen(word);

    for (const char *at = text; (at = strstr(at, word)) != NULL; at += len) {
        const char before = (char)(at == text ? ' ' : at[-1]), after = at[len];
        if (strchr(" \t\n,:", before) != NULL &&
            (after == '\0' || strchr(" \t\r\n,", after) != NULL)) {
            return true;
        }
    }
    return false;
}

static status output(const char *option, struct buf *text, struct err *err)
{
    const char *const argv[] = { "srun", option, NULL };
    int code = 0;

    buf_reset(text);
    const status st = process_output(argv, PROBE_S * NS_PER_S, text, &code, err);
    if (st != ST_OK || code == 0) {
        return st;
    }
    return err_set(err, ST_ERR_UNSUPPORTED, "srun %s ends with code %d: %.*s", option, code,
                   (int)MIN(strcspn(text->data, "\n"), (size_t)120), text->data);
}

status launch_srun_probe(char *line, size_t line_bytes, struct err *err)
{
    struct buf text = BUF_INIT_MAX(TEXT_MAX);
    status st;

    if (getenv("SLURM_JOB_ID") == NULL) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "--launcher srun works inside a job of SLURM's only (sbatch, salloc)");
    }
    st = output("--mpi=list", &text, err);
    if (st == ST_OK && !has_word(text.data, "pmix")) {
        st =
            err_set(err, ST_ERR_UNSUPPORTED,
                    "srun --mpi=list names no pmix, and Open MPI's ranks cannot start without: use "
                    "--launcher mpirun");
    }
    if (st == ST_OK) {
        st = output("--version", &text, err);
    }
    if (st == ST_OK) {
        snprintf(line, line_bytes, "%.*s", (int)strcspn(text.data, "\n"), text.data);
    }
    buf_fini(&text);
    return st;
}

/* ---- where each rank runs ---- */

/* Ranks fill a host's slots before they go to the next one. */
static status layout_text(const struct launch_config *config, const struct hostfile_text *hosts,
                          struct buf *out, struct err *err)
{
    struct host_list list = { .n = 0 };
    uint32_t rank = 0;
    status st = host_list_parse(hosts, &list, err);

    for (uint32_t i = 0; st == ST_OK && i < list.n; i++) {
        const struct host *host = &list.hosts[i];
        for (uint32_t k = 0; st == ST_OK && k < host->slots && rank < config->n_ranks; k++) {
            st = buf_printf(out, "%s\n", host->name);
            rank++;
        }
    }
    host_list_fini(&list);
    if (st == ST_OK && rank < config->n_ranks) {
        st = err_set(err, ST_ERR_LIMIT, "%s has %u slots for %u ranks", hosts->name, rank,
                     config->n_ranks);
    }
    return st;
}

static status layout_write(const struct launch_config *config, const char *path, struct err *err)
{
    struct buf in = BUF_INIT_MAX(LAYOUT_MAX), out = BUF_INIT_MAX(LAYOUT_MAX);
    status st = buf_read_file(&in, config->hostfile, LAYOUT_MAX, err);

    if (st == ST_OK) {
        const struct hostfile_text hosts = { config->hostfile, in.data, in.len };
        st = layout_text(config, &hosts, &out, err);
    }
    if (st == ST_OK) {
        FILE *file = fopen(path, "we");
        bool ok = file != NULL && fwrite(out.data, 1, out.len, file) == out.len;
        if (file != NULL) {
            ok = fclose(file) == 0 && ok;
        }
        if (!ok) {
            st = err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written", path);
        }
    }
    buf_fini(&in);
    buf_fini(&out);
    return st;
}

/* The words that have to be made, one behind the other in `text`. */
static status env_words(const struct launch_config *config, const char *layout, const char **env,
                        uint32_t n, struct buf *text, struct err *err)
{
    size_t network_at;
    status st = ST_OK;

    buf_reset(text);
    if (layout[0] != '\0') {
        st = buf_printf(text, "SLURM_HOSTFILE=%s%c", layout, '\0');
    }
    network_at = text->len;
    if (st == ST_OK && config->network) {
        st = buf_printf(text, "OMPI_MCA_btl_tcp_if_include=%s", config->network);
    }
    if (st != ST_OK) {
        return err_set(err, st, "no memory for the environment of srun");
    }
    if (layout[0] != '\0') {
        env[n++] = text->data;
    }
    if (config->network) {
        env[n++] = text->data + network_at;
    }
    env[n] = NULL;
    return ST_OK;
}

status launch_srun_prepare(const struct launch_config *config, char layout[LAUNCH_PATH_BYTES],
                           const char **env, struct buf *text, struct err *err)
{
    static const char *const out_of_the_way[] = {
        "SLURM_NTASKS_PER_NODE",  "SLURM_NTASKS",        "SLURM_NPROCS",
        "SLURM_NNODES",           "SLURM_JOB_NUM_NODES", "SLURM_DISTRIBUTION",
        "SLURM_CPUS_PER_TASK",    "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_GPU",
        "SLURM_NTASKS_PER_SOCKET"
    };
    uint32_t n = 0;
    status st = ST_OK;

    layout[0] = '\0';
    for (; config->env != NULL && config->env[n] != NULL; n++) {
        ASSERT(n + ARRAY_LEN(out_of_the_way) + 4 < LAUNCH_ENV_MAX);
        env[n] = config->env[n];
    }
    for (size_t i = 0; i < ARRAY_LEN(out_of_the_way); i++) {
        env[n++] = out_of_the_way[i];
    }
    if (config->oversubscribe) {
        env[n++] = "OMPI_MCA_mpi_yield_when_idle=1";
    }
    if (config->hostfile) {
        if (snprintf(layout, LAUNCH_PATH_BYTES, "%s.ranks", config->hostfile) >=
            LAUNCH_PATH_BYTES) {
            layout[0] = '\0';
            return err_set(err, ST_ERR_LIMIT, "the hostfile's name is over %d bytes",
                           LAUNCH_PATH_BYTES);
        }
        st = layout_write(config, layout, err);
    }
    if (st == ST_OK) {
        st = env_words(config, layout, env, n, text, err);
    }
    return st;
}
