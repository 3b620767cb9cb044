/* coordinator/cli/jobs.h - the MPI jobs of a service, one per replica: started, watched, ended,
 * started again.
 *
 *   START_AT ──launch──► RUNS ──lost────────────► ENDING ──nothing is left──► START_AT
 *                          └─by itself─► ENDED ──────┘└── not again ──► OVER
 *
 * One owner: the loop's thread; jobs_tick never blocks for long. A job that is ended was wholly
 * ended (cluster/launch.h) before the next one of its replica begins, so two generations never run
 * at once on this host. */
#ifndef COORDINATOR_CLI_JOBS_H
#define COORDINATOR_CLI_JOBS_H

#include "base/cpu.h"
#include "cluster/launch.h"
#include "coordinator/cli/hosts.h"
#include "coordinator/cli/serve_args.h"
#include "coordinator/coord.h"
#include "coordinator/run_dir.h"
#include "coordinator/service_state.h"

enum { JOB_WORKER_ARGS_MAX = PLAN_OPTS_ARGS + 32 };

enum job_state { JOB_OVER, JOB_START_AT, JOB_RUNS, JOB_ENDED, JOB_ENDING };

struct job {
    enum job_state state;
    struct launch *launch; /* owned; NULL: none was started or its end was seen */
    uint64_t start_at_ns;  /* START_AT; ENDING: what follows, CLOCK_NEVER: nothing */
    uint64_t ended_by_ns;  /* ENDING: when it was begun */
    char hostfile[RUN_DIR_PATH_BYTES + 32]; /* this replica's part; "": none */
    struct buf slots_word;      /* inside SLURM: what its mpirun may use; empty: nothing to say */
    const char *env[2];         /* that word */
    char node[HOST_NAME_BYTES]; /* inside SLURM: all its ranks are there; "": on several */
    struct cpu_parts share;     /* of that node's slots */
    char log_name[32];
    char shm_dir[64];    /* of the job that runs; "": none */
    uint32_t generation; /* of the job that runs, or ran last */
    char tail[2048];     /* the last lines of the last job that ended */
};

/* The words of a worker's command line, and what backs them. */
struct worker_words {
    struct buf plan;
    char numbers[6][16], slots[40];
    const char *args[JOB_WORKER_ARGS_MAX];
};

struct jobs {
    const struct serve_args *args; /* borrowed, as all down to coord */
    const struct serve_setup *setup;
    const struct run_dir *dir;
    const char *control; /* HOST:PORT that ranks dial */
    struct coord *coord;
    struct hosts *hosts; /* owned; NULL: no hostfile */
    struct job *jobs;    /* [n] owned */
    uint32_t n;
    uint32_t first_generation; /* of their first starts; 0: 1 */

    /* --journal (durable.h); zero without */
    const struct coord_adopted *adopted; /* [n] borrowed, as the next; NULL: all start here */
    const struct service_replica *last;
    bool outlive;               /* jobs go on when this process dies */
    void (*changed)(void *arg); /* before a job starts, and when it has */
    void *changed_arg;
};

/* The command line of the ranks of a replica. */
status worker_words_make(const struct jobs *j, uint32_t replica, uint32_t generation,
                         struct worker_words *w, struct err *err);
void worker_words_fini(struct worker_words *w);
/* The mpirun command of a replica; `w` and `program` are borrowed. */
void jobs_config(const struct jobs *j, uint32_t replica, const struct worker_words *w,
                 const char *program, struct launch_config *c);
status jobs_self_path(char *path, size_t bytes, struct err *err);

/* Every replica gets its hosts. Nothing without a hostfile. */
status jobs_place(struct jobs *j, struct err *err);
/* The same, and every job is started. */
status jobs_start(struct jobs *j, struct err *err);
/* A replica is lost: end its job, start another after delay_ns (CLOCK_NEVER: none). */
void jobs_lost(struct jobs *j, uint32_t replica, uint64_t delay_ns);
/* What another coordinator must know to take the job over. */
void jobs_describe(const struct jobs *j, uint32_t replica, struct service_replica *r_p);
/* As launch_culprit, of the job of that replica. */
bool jobs_culprit(struct jobs *j, uint32_t replica, uint32_t *rank_p, char *signal_p,
                  size_t signal_bytes);
void jobs_tick(struct jobs *j, uint64_t now_ns);
/* Blocks until all have ended, 10 s at most; `rough`: do not wait for an end in order. */
void jobs_end(struct jobs *j, bool rough);
/* The last lines of every log, to stderr. */
void jobs_print_tails(struct jobs *j);
void jobs_fini(struct jobs *j); /* kills what is left; zeroed storage is fine */

#endif
