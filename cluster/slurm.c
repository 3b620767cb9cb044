/* cluster/slurm.c - the environment of a job, read into rows; see slurm.h.
 *
 *   SLURM_JOB_ID, SLURM_JOB_NODELIST                  the job and its hosts
 *   SLURM_ARRAY_JOB_ID, SLURM_ARRAY_TASK_ID           the element of an array
 *   SLURM_TASKS_PER_NODE "2(x3),1"                    tasks; without it one each
 *   SLURM_JOB_CPUS_PER_NODE "8(x4)"                   CPUs
 *   SLURM_MEM_PER_NODE, else _PER_CPU, else _PER_GPU  memory in MiB
 *   SLURM_GPUS_ON_NODE, else SLURM_JOB_GPUS "0,1"     GPUs of the node that we run on; SLURM says no
 *                                                     more, so the others are taken to have as many
 *   SLURM_JOB_END_TIME                                (23.02 and later; before, squeue knows)
 *
 * A step (`srun gantry ...`) has its own lists, which may hold fewer nodes: we want the job's. */
#include "cluster/slurm.h"

#include "cluster/slurm_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT_MAX = 65536 };

static const uint64_t mib = (uint64_t)1 << 20;

struct env {
    slurm_env_fn get;
    void *arg;
};

const char *slurm_getenv(void *arg, const char *name)
{
    (void)arg;
    return getenv(name);
}

static const char *value(const struct env *e, const char *name)
{
    const char *text = e->get(e->arg, name);

    return text != NULL && text[0] != '\0' ? text : NULL;
}

bool slurm_in_job(slurm_env_fn env, void *arg)
{
    const struct env e = { env, arg };

    return value(&e, "SLURM_JOB_ID") != NULL && value(&e, "SLURM_JOB_NODELIST") != NULL;
}

static status bad(const char *name, const char *text, const char *why, struct err *err)
{
    char shown[SLURM_SHOWN_BYTES];

    return err_set(err, ST_ERR_FORMAT, "%s=\"%s\": %s", name,
                   slurm_shown(text, strlen(text), shown), why);
}

/* Digits at *at_p up to `max`; *at_p moves behind them. */
static bool digits(const char **at_p, uint64_t max, uint64_t *value_p)
{
    const char *at = *at_p;
    uint64_t v = 0;

    for (; *at >= '0' && *at <= '9'; at++) {
        v = v * 10 + (uint64_t)(*at - '0');
        if (v > max) {
            return false;
        }
    }
    if (at == *at_p) {
        return false;
    }
    *at_p = at;
    *value_p = v;
    return true;
}

/* A number alone; absent: *value_p stays. */
static status number(const struct env *e, const char *name, uint64_t max, uint64_t *value_p,
                     struct err *err)
{
    const char *text = value(e, name), *at = text;
    uint64_t v = 0;

    if (text == NULL) {
        return ST_OK;
    }
    if (!digits(&at, max, &v) || *at != '\0') {
        char why[64];
        snprintf(why, sizeof(why), "not a number from 0 to %" PRIu64, max);
        return bad(name, text, why, err);
    }
    *value_p = v;
    return ST_OK;
}

/* "2(x3),1" into counts[0 .. n): what stands there must be n numbers, all of them at least 1. */
static status counts(const char *name, const char *text, uint32_t *out, uint32_t n, struct err *err)
{
    const char *at = text;
    uint32_t i = 0;

    for (;;) {
        uint64_t v = 0, times = 1;

        if (!digits(&at, COUNT_MAX, &v) || v == 0) {
            return bad(name, text, "not a list of counts from 1 to 65536, as in 2(x3),1", err);
        }
        if (at[0] == '(') {
            at += 1 + (at[1] == 'x');
            if (!digits(&at, SLURM_NODES_MAX, &times) || times == 0 || *at++ != ')') {
                return bad(name, text, "not a list of counts from 1 to 65536, as in 2(x3),1", err);
            }
        }
        if (times > n - i) {
            return bad(name, text, "more nodes than the job's list has", err);
        }
        for (; times > 0; times--) {
            out[i++] = (uint32_t)v;
        }
        if (*at == '\0') {
            break;
        }
        if (*at++ != ',') {
            return bad(name, text, "not a list of counts from 1 to 65536, as in 2(x3),1", err);
        }
    }
    return i == n ? ST_OK : bad(name, text, "fewer nodes than the job's list has", err);
}

/* ---- rows ---- */

static status read_nodes(const struct env *e, struct slurm_job *job, struct err *err)
{
    const char *here = value(e, "SLURMD_NODENAME");
    struct hostlist list;
    status st = hostlist_expand("SLURM_JOB_NODELIST", value(e, "SLURM_JOB_NODELIST"), &list, err);

    if (st != ST_OK) {
        return st;
    }
    job->nodes = calloc(list.n, sizeof(*job->nodes));
    if (job->nodes == NULL) {
        st = err_set(err, ST_ERR_NOMEM, "no memory for the %u nodes of the job", list.n);
    } else {
        job->n_nodes = list.n;
        for (uint32_t i = 0; i < list.n; i++) {
            memcpy(job->nodes[i].name, list.names[i], sizeof(list.names[i]));
            job->nodes[i].is_here = here != NULL && strcmp(here, list.names[i]) == 0;
        }
    }
    hostlist_fini(&list);
    return st;
}

static status read_counts(const struct env *e, struct slurm_job *job, struct err *err)
{
    static const char tasks_name[] = "SLURM_TASKS_PER_NODE",
                      cpus_name[] = "SLURM_JOB_CPUS_PER_NODE";
    uint32_t *n = calloc(job->n_nodes, sizeof(*n));
    status st = ST_OK;

    if (n == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the %u nodes of the job", job->n_nodes);
    }
    const char *tasks = value(e, tasks_name), *cpus = value(e, cpus_name);
    /* Inside a step that list is the step's, and may be of fewer nodes: then a task each. */
    if (tasks != NULL && !job->is_step) {
        st = counts(tasks_name, tasks, n, job->n_nodes, err);
    }
    for (uint32_t i = 0; st == ST_OK && i < job->n_nodes; i++) {
        job->nodes[i].tasks = MAX(n[i], 1u);
    }
    if (st == ST_OK && cpus != NULL) {
        st = counts(cpus_name, cpus, n, job->n_nodes, err);
        for (uint32_t i = 0; st == ST_OK && i < job->n_nodes; i++) {
            job->nodes[i].cpus = n[i];
        }
    }
    free(n);
    return st;
}

/* "0,1,2,3", "gpu:0,1" or "0-3": how many. Only counted: which ones, the driver is told by SLURM. */
static uint32_t list_count(const char *text)
{
    uint32_t n = 0;

    for (const char *at = strrchr(text, ':') != NULL ? strrchr(text, ':') + 1 : text;;) {
        uint64_t first = 0, last = 0;
        if (!digits(&at, COUNT_MAX, &first)) {
            return 0;
        }
        last = first;
        if (*at == '-' && (at++, !digits(&at, COUNT_MAX, &last) || last < first)) {
            return 0;
        }
        n += (uint32_t)(last - first) + 1;
        if (*at != ',' || n > COUNT_MAX) {
            return *at == '\0' ? MIN(n, (uint32_t)COUNT_MAX) : 0;
        }
        at++;
    }
}

static status read_gpus(const struct env *e, struct slurm_job *job, struct err *err)
{
    const char *ids = value(e, "SLURM_JOB_GPUS");
    uint64_t n = ids != NULL ? list_count(ids) : 0;
    const status st = number(e, "SLURM_GPUS_ON_NODE", 1024, &n, err);

    for (uint32_t i = 0; st == ST_OK && i < job->n_nodes; i++) {
        job->nodes[i].gpus = (uint32_t)n;
    }
    return st;
}

static status read_memory(const struct env *e, struct slurm_job *job, struct err *err)
{
    const uint64_t max = UINT64_MAX / mib / COUNT_MAX;
    uint64_t node = 0, cpu = 0, gpu = 0;
    status st = number(e, "SLURM_MEM_PER_NODE", max, &node, err);

    (void)(st || (st = number(e, "SLURM_MEM_PER_CPU", max, &cpu, err)) ||
           (st = number(e, "SLURM_MEM_PER_GPU", max, &gpu, err)));
    for (uint32_t i = 0; st == ST_OK && i < job->n_nodes; i++) {
        struct slurm_node *n = &job->nodes[i];
        n->memory_bytes = node != 0  ? node * mib
                          : cpu != 0 ? cpu * n->cpus * mib
                                     : gpu * n->gpus * mib;
    }
    return st;
}

status slurm_job_read(slurm_env_fn env, void *arg, struct slurm_job *job_p, struct err *err)
{
    const struct env e = { env, arg };
    struct slurm_job job = { .is_step = false };
    const char *id = value(&e, "SLURM_JOB_ID"), *step = value(&e, "SLURM_STEP_ID");
    uint64_t id_number = 0, restarts = 0, array = 0, element = UINT64_MAX;
    status st = ST_OK;

    if (id == NULL || value(&e, "SLURM_JOB_NODELIST") == NULL) {
        return err_set(
            err, ST_ERR_NOT_FOUND,
            "not inside a job of SLURM's: SLURM_JOB_ID or SLURM_JOB_NODELIST is not set");
    }
    job.is_step = step != NULL;
    (void)(st || (st = number(&e, "SLURM_JOB_ID", UINT32_MAX, &id_number, err)) ||
           (st = number(&e, "SLURM_RESTART_COUNT", UINT32_MAX, &restarts, err)) ||
           (st = number(&e, "SLURM_ARRAY_JOB_ID", UINT32_MAX, &array, err)) ||
           (st = number(&e, "SLURM_ARRAY_TASK_ID", UINT32_MAX, &element, err)) ||
           (st = number(&e, "SLURM_JOB_END_TIME", INT64_MAX, &job.end_s, err)) ||
           (st = read_nodes(&e, &job, err)) || (st = read_counts(&e, &job, err)) ||
           (st = read_gpus(&e, &job, err)) || (st = read_memory(&e, &job, err)));
    if (st != ST_OK) {
        slurm_job_fini(&job);
        return st;
    }
    snprintf(job.id, sizeof(job.id), "%" PRIu64, id_number);
    if (array != 0 && element != UINT64_MAX) {
        snprintf(job.squeue_id, sizeof(job.squeue_id), "%" PRIu64 "_%" PRIu64, array, element);
    } else {
        snprintf(job.squeue_id, sizeof(job.squeue_id), "%s", job.id);
    }
    job.n_restarts = (uint32_t)restarts;
    *job_p = job;
    return ST_OK;
}

void slurm_job_fini(struct slurm_job *job)
{
    free(job->nodes);
    *job = (struct slurm_job){ .n_nodes = 0 };
}
