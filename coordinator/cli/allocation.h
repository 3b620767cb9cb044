/* coordinator/cli/allocation.h - the scheduler's job around `gantry serve`, and what it decides.
 *
 * Inside a job of SLURM's that nobody gave a --hostfile for, its nodes are the hosts, its tasks the
 * slots, its CPUs over its tasks the threads of a rank and its memory over its tasks what a rank may
 * use. Options that the user gave are left as they are. What was chosen is printed (allocation_say).
 * Zeroed storage is "no job". */
#ifndef COORDINATOR_CLI_ALLOCATION_H
#define COORDINATOR_CLI_ALLOCATION_H

#include "cluster/launch.h"
#include "cluster/slurm.h"

struct allocation_wish {
    bool uses_gpus; /* the user did not say --device cpu */
    uint32_t wall_margin_s;
    const char *tmp_dir; /* for the hostfile; NULL: $TMPDIR, else /tmp */
};

struct allocation {
    bool is_used;
    struct slurm_job job;       /* owned */
    uint32_t n_slots;           /* ranks that it holds, over all nodes */
    uint32_t node_slots_min;    /* of the node that has the fewest */
    uint32_t threads;           /* CPUs of a slot, on the node where they are fewest; 0: not said */
    uint64_t slot_memory_bytes; /* of a slot, on the node where it is least; 0: not said */
    bool slots_are_gpus;        /* a slot is a GPU: one task was asked for, and more GPUs */
    uint64_t kill_wait_s;       /* between SLURM's SIGTERM and its SIGKILL; 0: not known */
    struct err note;            /* a command of SLURM's that did not answer; code ST_OK: none */
    uint32_t wall_margin_s;
    char hostfile[256];    /* ours, with all nodes; "": one node, none is needed */
    struct buf slots_word; /* "SLURM_TASKS_PER_NODE=4,4": what mpirun shall take for slots */
    const char *env[2];    /* for the launch: that word, NULL-ended */
};

/* Reads it, where there is one, asks SLURM's commands for what is missing (seconds, at worst) and
 * writes the hostfile. ST_ERR_FORMAT, ST_ERR_LIMIT, ST_ERR_IO; ST_ERR_DEADLINE: the job ends within
 * wall_margin_s. */
status allocation_open(const struct allocation_wish *wish, struct allocation *x, struct err *err);
/* How many replicas of `n_ranks` ranks it holds; at least 1. Several on a node only where one fits a
 * node, and not if `alone`. */
uint32_t allocation_replicas(const struct allocation *x, uint32_t n_ranks, bool alone);
/* "SLURM_TASKS_PER_NODE=...": for the mpirun of one replica, which may use what its hostfile says and
 * nothing else. Appends to `out`. */
status allocation_slots_word(const struct allocation *x, const struct host_list *hosts,
                             struct buf *out, struct err *err);
/* Slots of a node; 0: no node of the job. */
uint32_t allocation_slots_on(const struct allocation *x, const char *node);
/* When to begin to stop so that the job's end finds nothing running; 0: its end is not known. By
 * clock_real(). */
uint64_t allocation_drain_at_ns(const struct allocation *x, uint32_t wall_margin_s);
/* What running answers then have: the margin, less what the end of the ranks takes. */
uint32_t allocation_wall_grace_s(uint32_t wall_margin_s);
/* What running answers have after SLURM's own SIGTERM; UINT32_MAX: not known. */
uint32_t allocation_kill_grace_s(const struct allocation *x);
/* A few lines on standard output. */
void allocation_say(const struct allocation *x);
void allocation_close(struct allocation *x); /* the hostfile goes */

#endif
