/* coordinator/coord.h - the coordinator: clients on one side, the ranks of a replica on the other.
 *
 *   clients ──► public server ──► front ──► session ──Submit──► replica ──► control server ◄── ranks
 *      ▲                                    │     ▲                         │  (an Attach stream each)
 *      └─────────────── text ◄──────────────┘     └───────── Events ◄───────┘
 *
 *   STARTING ──a replica is ready──► SERVING ──coord_stop──► DRAINING
 *       │                            │   ▲ one is ready again
 *       │                none serves ▼   │
 *       │                          RECOVERING
 *       └── no replica is left that could be started again ──► FAILED ◄── (from all of them)
 *
 * One thread owns it all: the one inside rpc_loop_run; every call below is made there or before it
 * runs. Nothing here starts processes or reads files; coordinator/cli/serve.c does. */
#ifndef COORDINATOR_COORD_H
#define COORDINATOR_COORD_H

#include "base/clock.h"
#include "cluster/rpc.h"
#include "model/tokenizer.h"
#include "partition/plan.h"
#include "proto/msg.h"

enum coord_state {
    COORD_STARTING,
    COORD_SERVING,    /* at least one replica is */
    COORD_RECOVERING, /* none is now, one is started again; streams wait */
    COORD_DRAINING,
    COORD_FAILED
};

struct journal_disk;
struct journal_image;

/* A replica of another coordinator, which has gone. */
struct coord_adopted {
    uint32_t generation;
    bool is_running; /* its ranks are expected back within orphan_ns; else it starts anew */
};

struct coord_config {
    const struct plan *plan;     /* borrowed, with the model's description */
    const struct tokenizer *tok; /* borrowed */
    const struct clock *clock;   /* NULL: clock_real() */
    const char *build;           /* NULL: msg_build(); what a rank's Hello must carry */
    uint32_t n_replicas;         /* that on_lost starts again; 0: 1 */
    bool external_only;          /* none of them: all have to join */
    bool mixed_profiles;         /* they may be of other numeric profiles than the plan's */
    uint64_t rejoin_ns;  /* a stream that only one of them could take waits so long for it */
    uint32_t join_max;   /* replicas that others started, at a time; 0: none may join */
    uint32_t generation; /* of their first starts */
    uint32_t retries;    /* replicas that may be lost under one request */
    uint32_t restarts;   /* of one replica in a row, without serving in between */
    uint64_t hang_ns;    /* a rank that is silent or stuck for longer is lost; 0: never */
    uint64_t canary_ns;  /* a replica that is idle so long is tried; 0: never, nor at its start */
    uint64_t start_ns;   /* a restart that takes longer has failed; 0: never */
    uint32_t queue_max;  /* streams open at a time; 0: 256 */
    bool prefix_cache;   /* replicas keep KV blocks: streams go where their beginning is */
    /* How long a stream with a request id goes on, and its answer is kept, without a client; 0: it
     * ends with its client's call. */
    uint64_t resume_ns;
    struct journal_disk *disk;         /* borrowed; NULL: what is kept is kept in memory only */
    const struct journal_image *image; /* borrowed until coord_create returns; NULL: nothing */
    uint64_t first_stream;             /* streams are numbered from here on; 0: 1 */
    /* How long ranks wait for another coordinator when they lose this one; 0: they end. */
    uint64_t orphan_ns;
    const char *control_file;            /* in which they find its address; NULL: none */
    bool handover;                       /* an end leaves open streams in the journal */
    bool is_successor;                   /* of another, whose ranks may still be about */
    const struct coord_adopted *adopted; /* [n_replicas]; NULL: all of them begin here */

    const char *listen; /* of the public server */
    const char *token;  /* bearer token asked of clients; NULL: none */
    const char *tls_cert_pem, *tls_key_pem, *tls_client_ca_pem;
    const char *control_listen; /* NULL: "127.0.0.1:0" */
    const char *control_token;  /* required */

    /* The state has changed. May stop the loop, may not destroy the coordinator. */
    void (*on_change)(void *arg, enum coord_state state);
    /* NULL, or asked when ranks are lost: does the launcher know which one of the replica a signal
     * ended first? signal_p takes the words ("signal 9 (Killed)"). */
    bool (*culprit)(void *arg, uint32_t replica, uint32_t *rank_p, char *signal_p,
                    size_t signal_bytes);
    /* One of the service's own is lost: end its job wholly, and after delay_ns (CLOCK_NEVER: not again) call
     * coord_replica_restart and start another. NULL: nobody can, what is lost stays lost. */
    void (*on_lost)(void *arg, uint32_t replica, uint64_t delay_ns);
    void *arg;
};

/* How far the ranks are. */
struct coord_progress {
    uint32_t n_ranks, n_attached, n_ready; /* of all replicas */
    uint64_t loaded_bytes, weight_bytes;   /* over all ranks that have said so */
};

struct coord;

/* Binds both listeners. ST_ERR_EXISTS (port in use), ST_ERR_ARG, ST_ERR_DENIED as
 * rpc_server_create. */
status coord_create(struct rpc_loop *loop, const struct coord_config *config,
                    struct coord **coord_p, struct err *err);
/* After coord_stop's `done`, or before the loop ran. NULL is fine. */
void coord_destroy(struct coord *c);

/* The digest of the weights that every replica must have, where it is known beforehand; else the
 * first replica says it, one of the service's own where it has any. */
void coord_expect_digest(struct coord *c, const struct hash128 *digest);

uint16_t coord_port(const struct coord *c);
uint16_t coord_control_port(const struct coord *c);
enum coord_state coord_state(const struct coord *c);
void coord_progress(const struct coord *c, struct coord_progress *progress_p);
/* 32 hex digits once known, else "". */
const char *coord_weights_digest(const struct coord *c);
/* Why the state is FAILED: one sentence that names the rank, and its status. "" before that. */
const char *coord_failure(const struct coord *c, status *code_p);

/* How a rank was when its replica was lost, or drained; to be asked from on_lost on. */
enum coord_rank_end {
    COORD_RANK_ABSENT, /* it never attached */
    COORD_RANK_SILENT, /* its connection stood, and it had said nothing for a good while */
    COORD_RANK_SEEN    /* alive, or its host said that it is gone */
};
enum coord_rank_end coord_rank_end(const struct coord *c, uint32_t replica, uint32_t rank);
/* Where it runs, for gantry status. */
void coord_replica_hosts(struct coord *c, uint32_t replica, const char *text);

/* The job that carries the ranks of a replica has ended by itself, or could not be started; `text`
 * says what the launcher saw. */
void coord_job_ended(struct coord *c, uint32_t replica, const char *text);
/* After on_lost, when nothing of the old job is left: its ranks may attach again, with the
 * generation that is returned. */
uint32_t coord_replica_restart(struct coord *c, uint32_t replica);

/* Refuse new streams, let the running ones end within grace_ns, tell the ranks to stop, close both
 * servers, then call done(arg). Again with a shorter grace: that one counts. */
void coord_stop(struct coord *c, uint64_t grace_ns, rpc_fn done, void *arg);

#endif
