/* coordinator/coord_impl.h - what the files of the coordinator object share. Private to
 * the files of this folder.
 *
 *   front.c    Generate, GenerateStream, GetModel: requests in, sessions out
 *   choices.c  several answers to one call: their ends, and the whole answer
 *   resume.c   answers that outlive their client's connection
 *   resume_disk.c  and their coordinator
 *   health.c   grpc.health.v1: Check, Watch
 *   table.c    the slots of the replicas
 *   join.c     replicas that someone else has started
 *   replica.c  Attach: ranks come, speak and go; events to sessions
 *   route.c    which replica a stream runs on; moving streams from a lost one
 *   blame.c    a replica is lost: why, and does it come back; the state of the whole
 *   detect.c   ranks that are silent, stuck or overdue
 *   fabric.c   what a replica's self-test found
 *   waits.c    who waits for whom, and so whom to name
 *   canary.c   a few tokens that every replica must compute alike
 *   drain.c    one replica is emptied on purpose
 *   status.c   GetStatus
 *   coord.c    life, state, stopping
 *
 * Deferred deletion. A callback of a call may end that call, and its on_done may come from inside;
 * so sessions whose call is over go to `dead` and are freed when the outermost callback returns
 * (coord_enter, coord_leave). */
#ifndef COORDINATOR_COORD_IMPL_H
#define COORDINATOR_COORD_IMPL_H

#include "coordinator/coord.h"
#include "coordinator/journal.h"
#include "coordinator/journal_disk.h"
#include "coordinator/prefix_map.h"
#include "coordinator/session.h"
#include "coordinator/waits.h"

enum {
    COORD_QUEUE_DEFAULT = 256,
    PUBLIC_MESSAGE_BYTES = 8 << 20, /* prompt text or ids of one request */
    PUBLIC_SEND_QUEUE = 64,         /* messages waiting per client call */
    PUBLIC_ARENA_BYTES = 96 << 20,  /* one request, unpacked */
    CONTROL_SEND_QUEUE = 4096,
    CONTROL_ARENA_BYTES = 256 << 20,
    RATE_SLOTS = 25, /* of 200 ms each: tokens per second over the last 5 s */
    RATE_SLOT_MS = 200,
    WATCH_MS = 100,
    LATE_MS = 100, /* a call that ends so shortly before its deadline was ended by it */
    REPLICAS_MAX = 1024,
    VERDICT_MS = 250, /* signs of a failure are collected this long before one is blamed */
    STOP_RANKS_MS = 5000
};

struct rpc_reflect;

/* ---- a client's call ---- */

struct front_call {
    struct coord *coord;
    struct rpc_call *call;       /* NULL once it is over */
    struct session *session;     /* owned */
    struct journal_entry *entry; /* NULL once the answer is over: its request id is free again */
    struct front_call *next_dirty;
    bool is_dirty;
    struct front_call *next_dead;

    /* choices.c: one of these per answer, all with the same call, chained from choice 0 */
    struct front_call *head, *next_choice; /* head: choice 0's, for n = 1 its own */
    uint32_t n_choices, n_ending;          /* of the head: all, and those that the call waits for */
    bool is_ended;                         /* of the head: the call has been told its end */
    struct buf reply;                      /* owned: a whole answer that waits for the others */
    /* resume.c, where entry->is_kept */
    struct front_call *next_kept, **link_kept; /* of the head; link_kept NULL: not in the list */
    uint64_t left_ns;      /* of the head: since when nobody reads; 0: somebody does */
    uint64_t over_ns;      /* when its answer was complete; 0: it is not */
    bool is_place_written; /* the journal on disk has its first profile */
    bool is_end_written;   /* and its end */
    uint32_t n_profiles_written;
};

struct watcher { /* one health Watch */
    struct rpc_call *call;
    char service[64];
    enum health_state sent;
    struct watcher *next, **link;
};

/* ---- the replica ---- */

enum replica_state {
    REPLICA_STARTING, /* waits for ranks to attach */
    REPLICA_LOADING,  /* all have attached, some are not Ready */
    REPLICA_SERVING,
    REPLICA_DRAINING, /* all of the service, or this one (drain.is_on) */
    REPLICA_DRAINED,  /* down on purpose */
    REPLICA_LOST,     /* its streams have left; after the verdict it waits for another start */
    REPLICA_FAILED,   /* and is not started again */
    REPLICA_GONE /* a free slot; what was there had joined, and its story is kept until the next */
};

struct rank {
    struct rpc_call *call; /* NULL: not attached */
    bool was_attached, is_ready;
    bool was_silent; /* when its replica was lost */
    char host[64], kernels[32], phase[32];
    char sums[160]; /* which way they go inside its stage, since it was ready */
    uint32_t pid;
    struct msg_heartbeat heartbeat; /* .phase is not kept: see `phase` */
    uint64_t heard_ns;
};

struct attach { /* one Attach stream */
    struct coord *coord;
    struct rpc_call *call;
    struct replica *replica; /* NULL before a good Hello */
    int32_t rank;            /* -1 before a good Hello, and once it was cut off */
};

/* What may have killed the replica; the best one is blamed, of equals the first. */
enum sign_weight { SIGN_NONE, SIGN_JOB_ENDED, SIGN_PEER_FAULT, SIGN_BROKEN, SIGN_OWN_FAULT };

struct sign {
    enum sign_weight weight;
    status code;
    char text[ERR_TEXT_BYTES];
};

/* What a replica is cut into and what it can hold: its own, since replicas may differ. */
struct replica_shape {
    uint32_t tp, pp, n_ranks; /* rank = stage * tp + slice */
    uint32_t kv_blocks, block_tokens;
    uint32_t ctx_max, rows_max;
    uint64_t layer_bytes; /* weights of the heaviest layer of a rank */
    uint64_t
        layer_ns; /* predicted: its longest one, at the most rows and positions; 0: not known */
    uint64_t plan_digest;
    uint64_t model_digest;
    char profile[MSG_PROFILE_BYTES];
};

enum { CANARY_PROMPT = 8, CANARY_TOKENS = JOURNAL_CANARY_TOKENS };

struct canary {      /* canary.c */
    uint32_t serial; /* of the last one sent */
    bool is_out;
    uint64_t sent_ns;
    uint32_t n_tokens;
    struct msg_logprob tokens[CANARY_TOKENS];
};

struct drain {
    /* drain.c */
    bool is_on, restart;
    bool ranks_are_told;
    uint64_t by_ns;        /* the grace's end; then the ranks' */
    struct rpc_call *call; /* the operator's; NULL: nobody listens */
    enum replica_state said_state;
    uint32_t said_streams;
};

struct rate {
    uint32_t slots[RATE_SLOTS];
    uint64_t newest; /* number of the newest slot since the clock's start */
};

struct replica {
    struct coord *coord;
    uint32_t index, generation;
    enum replica_state state;
    struct replica_shape shape;
    uint8_t job[MSG_JOB_BYTES];
    bool has_digest; /* a joined one's weights, until the service's own are known */
    struct hash128 digest;
    struct rank *ranks; /* [shape.n_ranks] owned */
    uint32_t n_attached, n_ready;
    char hosts[ERR_TEXT_BYTES]; /* where its ranks were put, for people; "": nobody said */
    struct rate rate;
    uint64_t n_events; /* messages with tokens or ends */

    /* route.c: what its streams may come to need, and how fast it is */
    uint32_t n_streams;
    uint64_t n_blocks;
    uint64_t pace_ns;        /* the shortest mean step of its kind; 0: not known */
    struct prefix_map *kept; /* owned; NULL: prefixes are not cached */

    struct drain drain;
    struct canary canary;
    uint64_t proven_ns; /* it computed something then */

    /* blame.c */
    struct sign sign;
    struct rpc_timer verdict_timer;
    bool has_verdict;    /* of the generation that is LOST or FAILED */
    status why_code;     /* of the last loss */
    uint32_t n_losses;   /* in all */
    uint32_t n_restarts; /* since it served last */
    uint64_t started_ns;
    uint64_t reattach_ns; /* by then its ranks, another coordinator's, are back; 0: not expected */
    char why[ERR_TEXT_BYTES];

    /* detect.c */
    uint64_t mark, moved_ns;    /* what its ranks had done, and when that changed last */
    bool is_load_told;          /* that loading stands still */
    char waits[ERR_TEXT_BYTES]; /* who waited for whom when it was found silent or stuck last */

    /* What the leader said last of streams that only wait. */
    uint32_t n_queued;
    uint64_t queued[MSG_QUEUED_MAX];

    struct msg_self_test self_test; /* fabric.c: of this generation's links */
};

/* ---- all of it ---- */

struct coord {
    struct coord_config config;
    const struct model_desc *desc; /* borrowed from the plan */
    const struct clock *clock;
    struct rpc_loop *loop;
    struct rpc_server *public_server, *control_server; /* owned */
    enum coord_state state;
    char failure[ERR_TEXT_BYTES];
    status failure_code;
    uint64_t started_ns;

    struct rpc_reflect *reflect; /* owned */
    struct journal *journal;     /* owned */
    struct arena arena;          /* of the message being read */
    struct buf out;              /* of the message being written */
    struct watcher *watchers;
    /* Slots, owned; the first n_replicas are set, and stay where they are until the end. */
    struct replica *replicas[REPLICAS_MAX];
    uint32_t n_replicas,
        n_own; /* own: the first of them, started by whoever made the coordinator */
    bool has_served;
    struct journal_canary known[JOURNAL_CANARIES]; /* what canaries are compared with */
    struct hash128 digest; /* of the weights: all replicas must have the same */
    char digest_hex[HASH_HEX_BYTES];
    struct rpc_timer watch_timer;
    uint64_t watch_due_ns;
    struct front_call *dirty, *dead;
    uint64_t
        *keys; /* [n_keys_max] of the stream being placed; owned; NULL: prefixes are not cached */
    uint32_t n_keys_max, key_tokens; /* tokens per key: of a KV block */
    uint32_t depth;                  /* of callbacks */
    struct front_call *kept;         /* newest first */
    uint64_t n_request_ids;

    /* stopping */
    bool is_stopping, public_is_down, control_is_down, ranks_are_told;
    uint64_t grace_end_ns;
    struct rpc_timer stop_timer;
    rpc_fn on_stopped;
    void *on_stopped_arg;
};

void coord_enter(struct coord *c);
void coord_leave(struct coord *c);
void coord_set_state(struct coord *c, enum coord_state state);
uint64_t coord_now(const struct coord *c);

/* choices.c */
/* f answers the call of `head` as well, behind its other choices. */
void choices_add(struct front_call *head, struct front_call *f);
void choices_finish(struct front_call *f, status st, const char *text);
void choices_reply(struct front_call *f, const void *data, size_t len);
/* Those that have not been placed go where this profile is, if there is a choice. */
void choices_share_profile(struct front_call *head, const char *profile);
/* Is an answer behind choice 0 in the journal? */
bool choices_are_open(const struct front_call *head);

/* front.c */
void front_generate(void *arg, struct rpc_call *call, const void *data, size_t len);
void front_generate_stream(void *arg, struct rpc_call *call, const void *data, size_t len);
void front_get_model(void *arg, struct rpc_call *call, const void *data, size_t len);
void front_writable(void *arg, struct rpc_call *call);
void front_done(void *arg, struct rpc_call *call, bool cancelled);
/* Events of a leader; what belongs to no open stream, an older attempt or another replica is
 * dropped. */
void front_token(struct replica *r, const struct msg_token *t);
void front_finish(struct replica *r, const struct msg_finish *f);
/* The stream has a replica: if this is its first, its client hears of it. May close the entry. */
void front_placed(struct journal_entry *e);
struct session_sink front_sink(struct front_call *f);
/* Whose prefixes and answers a caller may see. */
uint64_t front_scope(const struct coord *c);
/* After anything that may have ended the answer. */
void front_settle(struct front_call *f, bool cancel);
/* A stream of another coordinator's, without a client. `config`: stop strings, arrival. */
status front_restore(struct coord *c, struct journal_entry *e, const struct session_config *config,
                     struct front_call **f_p, struct err *err);
/* A request that comes to nothing: as if it had never been. NULL is fine. */
void front_undo(struct front_call *head);
void front_close(struct front_call *f); /* its entry goes; its request id is free again */
void front_bury(struct front_call *f);  /* freed when no callback is under way */
bool front_is_running(const struct journal_entry *e); /* its answer is not complete */
void front_fail(struct journal_entry *e, status st, const char *text);
void front_flush_dirty(struct coord *c);
void front_fail_all(struct coord *c, status st, const char *text);

/* resume.c; what is kept is a request, known by its choice 0 */
bool resume_applies(const struct coord *c, const struct msg_generate *m);
/* A new request wants this id: an old answer of that name goes, if nobody reads it. */
void resume_make_way(struct coord *c, const char *request_id);
void resume_keep(struct front_call *head);
void resume_link(struct front_call *head);
bool resume_is_over(const struct front_call *head); /* all of its answers are complete */
void resume_request(struct coord *c, struct rpc_call *call, const struct msg_generate *m,
                    bool is_unary);
void resume_left(struct front_call *head, bool is_late); /* its call is over */
void resume_settle(struct front_call *f);
uint32_t resume_count(const struct coord *c); /* requests whose complete answers are kept */
void resume_tick(struct coord *c);
void resume_fini(struct coord *c);

/* resume_disk.c */
void resume_write(struct front_call *head); /* it is in the journal on disk from here on */
void resume_write_end(const struct front_call *f);
/* Its entry knows its first profile, and its client is about to hear of it: that must not be
 * forgotten. */
void resume_placed(struct front_call *head);
/* What its client is about to be told is in the journal first, an end included. */
void resume_before_send(struct front_call *f);
/* Its session has taken this token, if n_before was fewer. */
void resume_token(struct front_call *f, const struct msg_token *t, uint32_t n_before);
/* The streams of another coordinator's journal; then the journal goes on with this one's. */
status resume_restore(struct coord *c, struct err *err);
/* What is on disk stays for another coordinator, whatever becomes of the streams here. */
void resume_freeze(struct coord *c);

/* health.c */
void health_check(void *arg, struct rpc_call *call, const void *data, size_t len);
void health_watch(void *arg, struct rpc_call *call, const void *data, size_t len);
void health_watch_done(void *arg, struct rpc_call *call, bool cancelled);
void health_push(struct coord *c);
void health_end_all(struct coord *c);

/* table.c */
void shape_of_plan(const struct plan *plan, struct replica_shape *shape_p);
status table_init(struct coord *c, struct err *err); /* the service's own */
void table_fini(struct coord *c);
/* A free slot, or a new one, that is STARTING with this shape and the slot's next generation.
 * ST_ERR_LIMIT, ST_ERR_NOMEM. */
status table_add(struct coord *c, const struct replica_shape *shape, struct replica **replica_p,
                 struct err *err);
void table_remove(struct replica *r); /* no rank of it is attached; its slot is free */
uint32_t table_count_joined(const struct coord *c);

/* join.c */
/* The replica of a rank that brings its own: the one of its job, or a new one. ST_ERR_MISMATCH,
 * ST_ERR_UNAVAILABLE (names the limit): it may not join. */
status join_take(struct coord *c, const struct msg_hello *h, struct replica **replica_p,
                 struct err *err);
/* "" of one that has not joined. */
void join_job_hex(const struct replica *r, char hex_p[2 * MSG_JOB_BYTES + 1]);

/* replica.c */
void replica_attach_open(void *arg, struct rpc_call *call, const void *data, size_t len);
void replica_attach_message(void *arg, struct rpc_call *call, const void *data, size_t len);
void replica_attach_done(void *arg, struct rpc_call *call, bool cancelled);
status replica_send_leader(struct replica *r, const struct msg_coord *m);
void replica_serve(struct replica *r); /* all is loaded and proven: it takes streams */
void replica_stop(struct replica *r);  /* tell its ranks */
void replica_stop_ranks(struct coord *c);
bool replica_has_joined(const struct replica *r); /* others have started it */
/* Nothing of the service's own can say any more what the weights are. */
void replica_digest_settle(struct coord *c);
const char *replica_state_name(enum replica_state state);

/* route.c */
status route_init(struct coord *c, struct err *err);
/* Place a new stream. ST_ERR_LIMIT: the replica takes no more now. */
status route_submit(struct coord *c, struct journal_entry *e, struct err *err);
void route_cancel(struct coord *c, const struct journal_entry *e);
void route_leave(struct coord *c, struct journal_entry *e); /* it counts nowhere any more */
void route_waiting(struct coord *c);                        /* place what waits */
void route_evacuate(struct replica *r);
void route_resumed(struct coord *c, struct journal_entry *e);
/* How long its steps take, by its leader's heartbeat. */
void route_note_pace(struct replica *r, const struct msg_heartbeat *leader);
uint32_t route_kv_tokens(const struct coord *c);
bool route_can_take(const struct replica *r);
uint32_t route_count(const struct coord *c); /* replicas that take streams */

/* blame.c */
void blame_init(struct replica *r);
void blame_stop(struct coord *c);
bool blame_is_pending(const struct coord *c);
void replica_sign(struct replica *r, enum sign_weight weight, status code, const char *text);
bool replica_is_alive(const struct replica *r); /* it has ranks, or waits for its first */
void replica_cut_off(struct replica *r);        /* end its ranks' streams, saying `why` */
bool replica_is_over(const struct replica *r);  /* and nobody here starts it again */
void coord_judge(struct coord *c);              /* the state that follows from the replicas' */

/* fabric.c */
void fabric_take(struct replica *r, const struct msg_self_test *m);

/* detect.c */
uint64_t detect_bound_ns(const struct replica *r); /* it may stand still for so long */
status detect_start(struct coord *c);
void detect_stop(struct coord *c);

/* canary.c */
bool canary_admit(struct replica *r); /* false: it serves when its canary is back */
void canary_tick(struct replica *r, uint64_t now);
bool canary_is(uint64_t stream);
void canary_token(struct replica *r, const struct msg_token *t);
void canary_finish(struct replica *r, const struct msg_finish *m);
void canary_restore(struct coord *c, const struct journal_image *image);
void canary_write(const struct coord *c); /* what is known, into the journal on disk */
bool canary_is_fresh(const struct replica *r, uint64_t now); /* it has computed something lately */

/* drain.c */
void drain_call(void *arg, struct rpc_call *call, const void *data, size_t len);
void drain_call_done(void *arg, struct rpc_call *call, bool cancelled);
void drain_tick(struct coord *c, uint64_t now);
void drain_over(struct replica *r); /* its state says how */
void drain_end_all(struct coord *c);
bool drain_keeps_down(const struct replica *r); /* it is not to be started again */

/* status.c */
void status_get(void *arg, struct rpc_call *call, const void *data, size_t len);
void status_call_done(void *arg, struct rpc_call *call, bool cancelled);
void status_count_tokens(struct replica *r, uint32_t n);
double status_tokens_per_second(struct replica *r);
const char *coord_state_name(enum coord_state state);

#endif
