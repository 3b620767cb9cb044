/* cluster/slurm.h - what SLURM says about the job that we run in.
 *
 *   SLURM_JOB_NODELIST="n[1-4]"  SLURM_TASKS_PER_NODE="2(x3),1"  ...  ──►  struct slurm_job: a row per node
 *
 * slurm_job_read is a pure function of the environment that it is handed; slurm_time_left_parse,
 * slurm_kill_wait_parse and slurm_racks_parse are pure functions of what squeue and scontrol print.
 * All of it comes from outside: everything is bounded, and a refusal names the variable and the word.
 * Asking the commands themselves is slurm_ask.h. No thread, no clock, no SLURM library: a login node
 * without SLURM builds and runs the same program. */
#ifndef CLUSTER_SLURM_H
#define CLUSTER_SLURM_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum { SLURM_NODES_MAX = 4096, SLURM_NAME_BYTES = 256, SLURM_ID_BYTES = 32 };

/* ---- hostlist expressions: "login,n[1-3,08-10],rack[0-1]u[1-2]" ---- */

struct hostlist {
    uint32_t n;
    char (*names)[SLURM_NAME_BYTES]; /* [n] owned */
};

/* `what` names the source in the sentence. ST_ERR_FORMAT; ST_ERR_LIMIT over SLURM_NODES_MAX hosts;
 * ST_ERR_NOMEM. On success the caller owns *list_p (hostlist_fini). */
status hostlist_expand(const char *what, const char *text, struct hostlist *list_p,
                       struct err *err);
void hostlist_fini(struct hostlist *list); /* zeroed storage is fine */

/* ---- the job ---- */

struct slurm_node {
    char name[SLURM_NAME_BYTES];
    uint32_t tasks;        /* that SLURM gave it; at least 1 */
    uint32_t cpus;         /* of the job there; 0: not said */
    uint32_t gpus;         /* of the job there; 0: none, or not said */
    uint64_t memory_bytes; /* of the job there; 0: not said */
    bool is_here;          /* the node that we run on */
    char rack[64];         /* its switch of level 0; "": not known */
};

struct slurm_job {
    char id[SLURM_ID_BYTES]; /* "123", of an array's element its own number */
    /* What squeue is asked for: of an array's element "120_3", since its own number may be the whole
     * array's, and squeue then prints a line for every element. */
    char squeue_id[2 * SLURM_ID_BYTES];
    uint32_t n_restarts; /* SLURM_RESTART_COUNT */
    uint64_t end_s;      /* seconds since 1970 when SLURM ends it; 0: not said */
    bool is_step;        /* our process is one of a step's tasks, not the batch script's */
    uint32_t n_nodes;
    struct slurm_node *nodes; /* [n_nodes] owned */
};

/* The value of a variable, or NULL. */
typedef const char *(*slurm_env_fn)(void *arg, const char *name);
const char *slurm_getenv(void *arg, const char *name); /* getenv; arg is not looked at */

/* Inside a job that has a node list? */
bool slurm_in_job(slurm_env_fn env, void *arg);
/* ST_ERR_FORMAT, ST_ERR_LIMIT, ST_ERR_NOMEM. On success the caller owns *job_p (slurm_job_fini). */
status slurm_job_read(slurm_env_fn env, void *arg, struct slurm_job *job_p, struct err *err);
void slurm_job_fini(struct slurm_job *job); /* zeroed storage is fine */

/* ---- what its commands print ---- */

enum { SLURM_LEFT_UNLIMITED = 0 };
/* `squeue -h -j ID -o %L`: "59", "1:00", "2:00:00", "1-00:00:00" into seconds; "UNLIMITED", "NOT_SET"
 * and "INVALID" (over, or no limit that can be told): 0. ST_ERR_FORMAT. */
status slurm_time_left_parse(const char *text, uint64_t *seconds_p, struct err *err);

/* `scontrol show config`: KillWait, the seconds between SIGTERM and SIGKILL. 0: no such line. */
status slurm_kill_wait_parse(const char *text, uint64_t *seconds_p, struct err *err);

/* `scontrol show topology`: the switch of level 0 into nodes[].rack. A node that no line holds keeps
 * what it had. */
status slurm_racks_parse(const char *text, struct slurm_job *job, struct err *err);

/* ---- asking: blocks, at most SLURM_ASK_S per command ---- */

enum { SLURM_ASK_S = 5 };

/* What the environment does not say: the end of the job (into job->end_s, where it is 0), the switches
 * of its nodes, KillWait. A command that is missing or fails leaves its part as it was; the sentence of
 * the last one is in `note`. `now_s`: seconds since 1970. */
void slurm_ask(struct slurm_job *job, uint64_t now_s, uint64_t *kill_wait_s_p, struct err *note);

#endif
