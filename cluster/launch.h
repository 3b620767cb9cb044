/* cluster/launch.h - start, watch and end the MPI job of a replica.
 *
 * The child is mpirun in a session (so also a process group) of its own. What differs between Open
 * MPI versions (options, names of knobs) stands in one table in launch_mpirun.c; correctness needs
 * none of them. Ending: SIGTERM, again after 1 s, then after 2 s SIGKILL to all of the session; a
 * launch that has ended left no process behind on this host. Threads: one owner; launch_poll never
 * blocks. The thread that calls launch_start must live as long as the job: mpirun gets SIGTERM when
 * that *thread* ends (PR_SET_PDEATHSIG), so that a killed coordinator leaves no ranks behind. */
#ifndef CLUSTER_LAUNCH_H
#define CLUSTER_LAUNCH_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum { LAUNCH_ARGS_MAX = 256 };

/* What starts the ranks. srun needs a SLURM job and a SLURM with PMIx. */
enum launch_kind { LAUNCH_MPIRUN, LAUNCH_SRUN };

struct launch_config {
    enum launch_kind kind;
    uint32_t n_ranks;
    const char *hostfile;    /* NULL: this host (or the scheduler's allocation) */
    const char *mpirun;      /* NULL: "mpirun" from PATH */
    const char *program;     /* absolute path of gantry on every host */
    const char *const *args; /* NULL-ended, after the program: "worker", "--run-dir", ... */
    const char *log_dir;     /* mpirun's own output goes to log_dir/mpirun.log; NULL: to stderr */
    const char *log_name;    /* NULL: "mpirun.log" */
    const char *extra;       /* more options of mpirun or srun, split at spaces; NULL: none */
    const char *shm_dir;     /* for shared memory of ranks on this host; NULL: where MPI likes */
    const char *network;     /* "10.80.0.0/16": the one that ranks and daemons use; NULL: any */
    bool oversubscribe;      /* more ranks than cores on some host */
    bool outlive;            /* the job goes on when the process that started it dies */
    const char *const *env;  /* as process_config.env (launch_process.h) */
    bool in_slurm;           /* inside a job of SLURM's, whose SIGTERM must not end the ranks */
};

struct launch; /* a running (or ended) job */

/* Major version of that mpirun, and its name line ("mpirun (Open MPI) 4.1.4"). ST_ERR_NOT_FOUND: no
 * such program (says how to install or name it). Runs it once with --version (at most 5 s). */
status launch_probe(const char *mpirun, uint32_t *major_p, char *line, size_t line_bytes,
                    struct err *err);
/* As launch_probe, for what config->kind starts ("slurm 22.05.8"; the major is then 0). srun:
 * ST_ERR_UNSUPPORTED outside of a job, and where its list of MPI kinds has no pmix. */
status launch_probe_kind(const struct launch_config *config, uint32_t *major_p, char *line,
                         size_t line_bytes, struct err *err);
/* The exact argument vector, NULL-ended; strings live in `text` (arena-like, owned by the caller).
 */
status launch_command(const struct launch_config *config, uint32_t major, const char **argv,
                      uint32_t argv_max, struct buf *text, struct err *err);
/* The command as one shell line, quoted where needed (--dry-run). */
status launch_command_line(const struct launch_config *config, uint32_t major, struct buf *out,
                           struct err *err);
status launch_start(const struct launch_config *config, struct launch **launch_p, struct err *err);
/* A job that another process has started with `outlive`, by its mpirun's pid and the time at which
 * that began (launch_identity). Where mpirun has ended meanwhile, what is left of its session is
 * swept by launch_poll; where the pid is another process's, nothing is left. Its exit code cannot be
 * known: 255. */
struct launch_adoption {
    int pid;
    uint64_t start_ticks;
    const char *log_dir, *log_name; /* as they were given to launch_start */
    uint64_t log_begin;             /* launch_log_begin of that one */
};
status launch_adopt(const struct launch_adoption *a, struct launch **launch_p, struct err *err);
uint64_t launch_identity(const struct launch *l); /* start_ticks; 0: it runs no more */
/* What stands before this byte of its log is of an earlier job. */
uint64_t launch_log_begin(const struct launch *l);
/* ST_BUSY: runs. ST_END: has ended; *code_p its exit code (128 + signal if killed) and the tail of
 * its output by launch_tail. Collects the child (no zombie). */
status launch_poll(struct launch *l, int *code_p);
/* Begin or go on ending it; call again from a timer until launch_poll says ST_END. now_ns by
 * clock_real(). */
void launch_end(struct launch *l, uint64_t now_ns);
int launch_pid(const struct launch *l);
/* Last lines of mpirun's output, for the error sentence. Borrowed. */
const char *launch_tail(struct launch *l);
/* Which rank died first of a signal, if mpirun says so in its last lines, and of which: "signal 9
 * (Killed)". A hint for a sentence, in the words of Open MPI 4 and 5; nothing else may depend on it. */
bool launch_culprit(struct launch *l, uint32_t *rank_p, char *signal_p, size_t signal_bytes);
/* Kills at once if still running, waits for it, frees. NULL is fine. */
void launch_destroy(struct launch *l);

/* Slots that a hostfile offers (sum of slots=, 1 per line without). ST_ERR_FORMAT names line and
 * word. */
status hostfile_slots(const char *path, uint32_t *n_slots_p, uint32_t *n_hosts_p, struct err *err);

/* The same over bytes; `name` is for the sentence. */
struct hostfile_text {
    const char *name;
    const char *data;
    size_t len;
};

enum { HOST_NAME_BYTES = 256, HOST_RACK_BYTES = 64 };

struct host {
    char name[HOST_NAME_BYTES];
    char rack[HOST_RACK_BYTES]; /* "rack=NAME"; "": not said */
    uint32_t slots;
};

struct host_list {      /* at most 4,096 hosts, in the file's order; a name is there once */
    struct host *hosts; /* [n] owned */
    uint32_t n, n_slots;
};

status host_list_read(const char *path, struct host_list *list_p, struct err *err);
status host_list_parse(const struct hostfile_text *text, struct host_list *list_p, struct err *err);
void host_list_fini(struct host_list *list); /* zeroed storage is fine */

status hostfile_parse(const struct hostfile_text *text, uint32_t *n_slots_p, uint32_t *n_hosts_p,
                      struct err *err);

#endif
