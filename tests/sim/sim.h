/* tests/sim/sim.h - a cluster that never was: one seed, one thread, one clock, one queue of events.
 *
 *   clients ══wire══► coordinator (the real one) ◄══wire══ leaders (the real scheduler) and ranks
 *       ▲                     ▲                                  ▲
 *       └──────────── sim: (time, number) ► event ───────────────┘
 *
 * Everything that happens is an event in one heap, ordered by time and then by number; whatever is
 * left to chance is drawn from one generator in the order of events. A seed therefore is a whole
 * history, and running it again is the same history: sim->digest is a hash over all of it.
 *
 * The coordinator is linked as it is. Its outside is replaced at three seams: cluster/rpc.h
 * (sim_rpc.c), the clock (clock_gettime, in sim_core.c) and getrandom.
 *
 * Memory. Objects that events may point to (calls, jobs, clients) live until sim_fini. */
#ifndef TESTS_SIM_H
#define TESTS_SIM_H

#include "base/clock.h"
#include "base/compiler.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#define NS_PER_MIN (60 * NS_PER_S)

struct sim_rng {
    uint64_t state;
};

uint64_t rng_u64(struct sim_rng *r);
uint32_t rng_below(struct sim_rng *r, uint32_t n);                     /* [0, n), n > 0 */
uint32_t rng_in(struct sim_rng *r, uint32_t low, uint32_t high);       /* [low, high] */
uint64_t rng_ns(struct sim_rng *r, uint64_t low_ns, uint64_t high_ns); /* [low, high] */
bool rng_chance(struct sim_rng *r, uint32_t per_mille);
/* Mostly about `usual_ns`, sometimes ten times that. */
uint64_t rng_delay(struct sim_rng *r, uint64_t usual_ns);

typedef void (*sim_fn)(void *arg);

struct sim_event {
    uint64_t at_ns, number;
    sim_fn fn;
    void *arg;
    bool at_coord;     /* waits while the coordinator's process stands still */
    uint64_t timer_ns; /* a timer of that process's: when it was due; 0 for all else */
};

/* What goes into the digest, and into --trace: `what`, and two numbers that tell it apart. */
struct sim;
struct rpc_loop;

enum sim_fault {
    FAULT_KILL,       /* a rank dies; MPI takes the others down */
    FAULT_SILENT,     /* its host has no power: nobody is told */
    FAULT_STOP,       /* SIGSTOP, sometimes SIGCONT later */
    FAULT_STUCK,      /* a collective that never ends; heartbeats go on */
    FAULT_SLOW,       /* steps that take ten times as long */
    FAULT_CUT,        /* the link to the coordinator, for some time or for good */
    FAULT_RESET,      /* the control stream breaks, the process lives */
    FAULT_OWN,        /* a rank reports a fault of its own, then goes */
    FAULT_LAUNCHER,   /* mpirun ends, its ranks some time later */
    FAULT_STALL,      /* the coordinator stands still */
    FAULT_START,      /* a start that fails, drawn at the start */
    FAULT_STRANGER,   /* a visitor at the control port */
    FAULT_CLIENT_CUT, /* a client's link, or its process */
    FAULT_BROKEN,     /* hosts that compute wrongly, drawn at the start */
    FAULT_DRAIN,      /* not a fault: an operator empties a replica */
    FAULT_DEATH,      /* the coordinator's process is killed, --journal */
    FAULT_POWER,      /* its host loses power: mpiruns, and what was not synced */
    FAULT_WRITE,      /* it is killed between two changes of a file, or within one */
    FAULT_FULL,       /* the disk takes nothing for some time */
    N_FAULTS
};

struct sim_totals {
    uint64_t seeds, requests, ok, failed, refused, abandoned, tokens, moves;
    uint64_t events, faults[N_FAULTS], losses, restarts, virtual_ns;
    uint64_t steps, preemptions, cache_hits;
    uint64_t reattached, restored, resumed, forgotten; /* ranks, streams, calls, streams */
};

/* What a seed decides before time begins. */
struct sim_shape {
    uint32_t n_replicas, tp, pp, n_ranks;
    uint32_t n_joins; /* replicas that others start, again and again until it is healed */
    uint32_t ctx_max, kv_tokens, seqs_max, rows_max, queue_max, chunk_max;
    bool prefix_cache, ahead;
    uint32_t retries, restarts;
    uint64_t hang_ns, start_ns;
    uint32_t n_requests, n_faults, burst_per_mille;
    uint64_t healed_ns;                           /* from then on nothing new fails */
    uint64_t step_ns;                             /* a usual step */
    uint32_t public_queue_max, control_queue_max; /* messages that wait per call, at most */
    uint32_t start_fails_per_mille;
    uint64_t canary_ns;        /* 0: none */
    uint32_t broken_per_mille; /* of restarts, where there are canaries */
    bool is_fair; /* no faults at all: nothing may be lost, refused for good, or moved */
    bool stops_early;
    uint64_t stop_ns, grace_ns;
    bool journal; /* --journal, and somebody who starts the coordinator again */
    uint32_t resume_s, orphan_s, segment_bytes, n_deaths;
};

struct coord;
struct sim_disk;
struct sim_serve;
struct plan;
struct tokenizer;
struct model_desc;
struct rpc_call;
struct sim_job;
struct sim_client;
struct sim_rescue;

struct sim {
    uint64_t seed;
    struct sim_rng rng;
    uint64_t now_ns, began_ns, n_numbers;
    struct sim_event *heap; /* [heap_cap] owned, n_heap used, from 1 */
    uint32_t n_heap, heap_cap;
    uint64_t coord_free_ns; /* its process stands still until then */
    uint64_t digest;
    bool trace, is_over;
    char violation[1024]; /* "": none */

    struct sim_shape shape;
    const struct tokenizer *tok; /* borrowed */
    struct model_desc *desc;     /* owned */
    struct plan *plan;           /* owned */
    struct clock clock;          /* the coordinator's */
    struct rpc_loop *loop;       /* owned, sim_rpc.c; NULL: the coordinator is dead */
    struct rpc_loop *dead_loops; /* owned: events may still name their servers */
    struct coord *coord;         /* NULL: it is dead */
    struct sim_serve *serve;     /* owned: its process */
    struct sim_disk *disk;       /* owned; the coordinator's host's */
    uint32_t epoch;              /* coordinators that there have been */
    uint16_t n_ports;
    uint64_t died_ns; /* when one did last; 0: none has */
    uint64_t stream_base,
        last_base; /* of this coordinator's numbers; of the last that has used one */
    uint32_t last_base_epoch;
    bool is_dying;       /* buried when the event is over */
    bool canary_is_kept; /* its answer is in the journal, or in the one coordinator that there is */
    bool has_failed;     /* it could not start, and is ended by itself */
    bool dies_silently;
    bool was_undurable;         /* its journal, before the event in which it dies */
    uint64_t tick_ns;           /* of the next tick of serve.c */
    uint64_t start_due_ns;      /* a service that has never served by then is ended */
    struct rpc_call *calls;     /* all there ever were, owned */
    struct sim_job **current;   /* [n_replicas] the newest job of each; borrowed */
    uint32_t *generations;      /* [n_replicas] that they have had, as jobs.c knows it; owned */
    uint32_t starting;          /* a job that is about to start; UINT32_MAX */
    struct sim_job *jobs;       /* all, owned */
    struct sim_rescue *rescues; /* all, owned */
    struct sim_client *clients;
    uint32_t n_clients, n_clients_open, n_watchers;
    bool is_stopping, is_stopped;
    uint64_t drain_end_ns, n_losses_at_stop;
    uint64_t idle_since_ns;    /* a stream waits and a replica is free since then; 0: no */
    struct sim_totals *totals; /* borrowed */
};

/* ---- sim_core.c ---- */

void sim_core_init(struct sim *s, uint64_t seed);
void sim_core_fini(struct sim *s);
void sim_at(struct sim *s, uint64_t at_ns, sim_fn fn, void *arg);
void sim_after(struct sim *s, uint64_t delay_ns, sim_fn fn, void *arg);
/* In the coordinator's process: not while that stands still. */
void sim_coord_after(struct sim *s, uint64_t delay_ns, sim_fn fn, void *arg);
/* By a timer of the command's: after a stand-still the one that was due first comes first. */
void sim_coord_timer(struct sim *s, uint64_t delay_ns, sim_fn fn, void *arg);
/* The next event or timer of the coordinator. false: there is none. */
bool sim_step(struct sim *s);
void sim_note(struct sim *s, const char *what, uint64_t a, uint64_t b);
void sim_note_bytes(struct sim *s, const void *data, size_t len);
/* An invariant is violated: the first one counts, and ends the run. */
void sim_fail(struct sim *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
extern struct sim *sim_now_running; /* whose clock clock_gettime reads */
uint64_t sim_real_ns(void);         /* the machine's own clock, for speeds */

/* ---- sim_rpc.c ---- */

uint64_t sim_timer_next(const struct rpc_loop *loop); /* CLOCK_NEVER: none armed, or no loop */
void sim_timer_run(struct rpc_loop *loop);            /* the first one */
struct rpc_loop *sim_loop_create(struct sim *s);
void sim_loop_destroy(struct rpc_loop *loop);
/* Its process is no more: its calls break, and nothing that it still does has an effect. */
void sim_loop_dies(struct rpc_loop *loop, bool silently);
void sim_calls_free(struct sim *s);

/* ---- sim_serve.c ---- */

void serve_begin(struct sim *s);
void serve_kill(struct sim *s, enum sim_fault how); /* DEATH, POWER, WRITE */
void serve_fill_disk(struct sim *s);
void serve_dies(struct sim *s); /* from sim_disk.c: within this event */
void serve_bury(struct sim *s);
void serve_write(struct sim *s); /* service.json */
void serve_end(struct sim *s);   /* after coord_stop */
void serve_free(struct sim *s);
void serve_check(struct sim *s); /* what is on its disk */
bool serve_is_durable(const struct sim *s);

/* ---- sim_job.c, sim_client.c, sim_fault.c, sim_check.c ---- */

struct service_replica;
struct coord_adopted;
/* Another coordinator: those that it takes over, and new ones. adopted, last: [n_replicas] or NULL. */
void jobs_take_over(struct sim *s, const struct coord_adopted *adopted,
                    const struct service_replica *last, uint32_t first_generation);
/* The coordinator has died; is_stale: and could not write service.json. */
void jobs_orphaned(struct sim *s, bool is_stale);
void jobs_power_cut(struct sim *s); /* mpiruns go, and ranks that were on that host */
void jobs_describe_one(const struct sim *s, uint32_t replica, struct service_replica *r_p);
void jobs_end_pid(struct sim *s, int pid); /* all of it, at once */
void jobs_free(struct sim *s);
bool jobs_are_settled(const struct sim *s); /* every replica serves, or is down for good */
struct coord_config;
void jobs_callbacks(struct sim *s, struct coord_config *config);
void jobs_stop(struct sim *s, uint64_t grace_ns); /* coord_stop */
void clients_begin(struct sim *s);
void clients_probe(struct sim *s, uint32_t n); /* requests that nothing disturbs any more */
void clients_free(struct sim *s);
void clients_let_go(struct sim *s); /* those that never read hang up */
void clients_note(struct sim *s);   /* which are open */
void clients_doubt(struct sim *s);  /* what they were told may not be on disk */
struct journal_image;
void clients_check_image(struct sim *s, const struct journal_image *image);
/* NULL, or what is wrong with computing this request now. */
const char *clients_check_request(const struct sim *s, const char *request_id);
void faults_begin(struct sim *s);
void faults_free(struct sim *s);
const char *fault_name(enum sim_fault fault);
void fault_count(struct sim *s, enum sim_fault fault);
/* After each event of the coordinator (cheap), and now and then (all of it). */
void check_often(struct sim *s);
void check_all(struct sim *s);
bool check_is_open(const struct sim *s, uint64_t stream); /* in the journal */
uint32_t check_n_slots(const struct sim *s);              /* of the coordinator's table */
uint32_t check_n_serving(const struct sim *s);
struct msg_submit;
void check_submit(struct sim *s, uint32_t replica, const struct msg_submit *m); /* at a leader */
uint32_t check_n_streams(const struct sim *s); /* that are open in the journal */
void check_end(struct sim *s); /* nothing runs any more, the coordinator is still there */

/* ---- sim_world.c ---- */

/* One seed from beginning to end. true: nothing was violated. */
bool sim_run(struct sim *s, uint64_t seed, uint32_t n_replicas, bool trace,
             struct sim_totals *totals);

#endif
