/* tests/sim/sim_job.h - replicas as processes: a launcher, ranks, and a leader that runs the real
 * scheduler.
 *
 *   start ─► ranks attach, load, are ready ─► the leader steps ─► something ends it ─► gone
 *     ▲                                                                                  │
 *     └────────── on_lost said when; the next generation ◄────────────────────────────────┘
 *
 * What coordinator/cli/jobs.c, worker/ctrl.c and worker/leader.c do with processes, threads and MPI is
 * played here: sim_job.c the launcher, sim_rank.c a rank's control stream, sim_leader.c the
 * leader's loop. */
#ifndef TESTS_SIM_JOB_H
#define TESTS_SIM_JOB_H

#include "proto/msg.h"
#include "sim/sim_model.h"
#include "sim/wire.h"
#include "worker/sched/sched.h"

enum { SIM_RANKS_MAX = 4, SIM_PLANS_MAX = 4 };

enum sim_rank_state {
    RANK_STARTING, /* its process is there */
    RANK_HELLO,    /* has said hello */
    RANK_LOADING,  /* is welcome */
    RANK_READY,
    RANK_LEAVING, /* was told to stop, has half-closed */
    RANK_GONE
};

struct sim_rank {
    struct sim_job *job;
    uint32_t index;
    enum sim_rank_state state;
    struct rpc_call *call;
    bool is_held; /* SIGSTOP: nothing of it runs */
    bool beat_is_due;
    uint64_t ticks, beat_ns; /* of the next heartbeat */

    /* worker/ctrl_orphan.c */
    uint32_t epoch;   /* of the coordinator that welcomed it last; 0: none */
    uint32_t grace_s; /* that it said; 0: do not wait for another */
    uint16_t port;    /* where it was dialled last */
    char control_file[64];
    bool is_orphan, was_told_to_stop;
    uint64_t until_ns, delay_ns, cut_until_ns;
};

enum sim_job_state {
    JOB_RUNS,
    JOB_ENDED,  /* by itself: the coordinator was told */
    JOB_ENDING, /* on_lost: it is being ended */
    JOB_OVER
};

enum sim_start { START_WELL, START_DIES, START_FAULTS, START_HANGS, START_MISMATCH, START_BROKEN };

struct sim_packet {
    struct sim_packet *next;
    size_t len;
    char data[];
};

struct sim_job {
    struct sim *sim;
    struct sim_job *next;         /* in sim->jobs */
    uint32_t replica, generation; /* UINT32_MAX: one that has not been let in */
    bool is_joined;               /* started by somebody else */
    uint8_t name[MSG_JOB_BYTES];  /* of a joined one */
    int pid;                      /* of its mpirun */
    bool is_launcher_gone;        /* it runs no more */
    bool is_out_of_sight;         /* no coordinator knows of it */
    bool is_condemned;   /* it was given up, and that is on disk: nothing of it may count again */
    uint16_t port;       /* where its ranks were told to dial */
    uint32_t join_epoch; /* the coordinator that gave a joined one its number */
    uint64_t started_ns;
    enum sim_job_state state;
    enum sim_start start;
    bool is_hurt;         /* something was done to it: it may be given up */
    bool is_touched;      /* something harmless: the second one may not be */
    bool is_reported;     /* on_lost was called for it */
    uint64_t start_at_ns; /* of the next one; CLOCK_NEVER: none */
    bool has_culprit;
    uint32_t culprit;
    struct sim_rank ranks[SIM_RANKS_MAX];
    uint32_t n_ranks;

    /* the leader */
    struct sched *sched; /* owned; NULL once it is over */
    struct clock clock;  /* the scheduler's */
    struct sim_kv kv;
    struct sim_packet *inbox_first, *inbox_last; /* owned */
    struct step_head *plans[SIM_PLANS_MAX];      /* ring, owned */
    uint64_t due_ns[SIM_PLANS_MAX];
    struct step_result *results; /* [seqs_max] owned */
    uint32_t *chosen;            /* [seqs_max] tokens of the step that came back last; owned */
    struct step_limits limits;
    uint32_t i_plan, i_oldest, n_out, n_out_max;
    uint64_t busy_until_ns, last_due_ns;
    uint64_t mean_ns;    /* of its last steps; 0: none yet */
    uint64_t turn_at_ns; /* of the next turn; CLOCK_NEVER: none is due */
    bool is_stuck, is_told_to_stop;
    uint32_t n_fences,
        n_fences_seen; /* coordinators lost, and those that its computing thread knows of */
    uint64_t slow_until_ns;
    uint32_t slowness;
    uint64_t n_turns;
    uint64_t orphan, orphan_ns; /* a stream that nobody waits for, seen first then; 0: none */
};

/* sim_job.c */
struct sim_job *job_of(const struct sim *s, uint32_t replica); /* NULL: none is there */
bool job_is_given_up(const struct sim_job *job); /* the coordinator no longer counts on it */
void job_collapse(struct sim_job *job, uint64_t within_ns); /* all ranks die; the launcher ends */
bool job_computes(const struct sim_job *job);               /* every rank is there and runs */
void job_check_over(struct sim_job *job);                   /* a rank has gone */
void job_launcher_ends(struct sim_job *job); /* mpirun goes, its ranks some time later */
void job_dies(struct sim_job *job);          /* all of it, now */

/* sim_rank.c */
void rank_begin(struct sim_rank *r);
void rank_say(struct sim_rank *r, const struct msg_rank *m);
void rank_die(struct sim_rank *r, bool silently);
void rank_fault(struct sim_rank *r, status code, const char *text);
void rank_hold(struct sim_rank *r, bool hold);
void rank_leave(struct sim_rank *r); /* in order */
/* Is there a coordinator that it speaks to, and is it the one that lives? */
bool rank_is_attached(const struct sim_rank *r);
void rank_attach(struct sim_rank *r, uint16_t port); /* a connection, hello */
void rank_ends_itself(struct sim_rank *r);

/* sim_orphan.c: worker/ctrl_orphan.c, played */
bool orphan_begin(struct sim_rank *r, status st); /* its stream is over. false: no reason to wait */
void orphan_welcome(struct sim_rank *r, uint32_t grace_s, const char *control_file);

/* sim_leader.c */
void leader_init(struct sim_job *job);
void leader_fini(struct sim_job *job);
void leader_take(struct sim_job *job, const void *data, size_t len); /* into its inbox */
void leader_wake(struct sim_job *job);
void leader_fence(struct sim_job *job); /* the coordinator is gone, and all that it wanted */
void leader_check(struct sim_job *job);
bool leader_is_unlike(const struct sim_job *job); /* of slower hosts than most */
bool leader_is_idle(const struct sim_job *job);   /* but for a canary */

#endif
