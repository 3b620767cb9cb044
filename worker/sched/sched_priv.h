/* worker/sched/sched_priv.h - the scheduler's own state, shared by sched.c (life of a stream) and
 * sched_plan.c (choosing the rows of a step). */
#ifndef WORKER_SCHED_SCHED_PRIV_H
#define WORKER_SCHED_SCHED_PRIV_H

#include "worker/sched/counts.h"
#include "worker/sched/prefix.h"
#include "worker/sched/sched.h"

enum stream_state {
    STREAM_FREE,    /* slot unused */
    STREAM_WAITING, /* queued; holds no blocks, n_sched is 0 */
    STREAM_RUNNING, /* holds blocks for [0, n_sched) at least */
    STREAM_ENDING /* cancelled or failed while in a plan that is out; freed when that comes back */
};

struct stream {
    enum stream_state state;
    struct stream *prev, *next; /* in waiting or running, ascending age */
    uint64_t age;               /* running number of submission: smaller is older */
    uint64_t id;
    uint32_t attempt;
    uint32_t *tokens;  /* [n_prompt + max_tokens] prompt, then answer; owned */
    uint32_t *table;   /* [blocks for tokens] KV block ids; owned */
    uint32_t n_blocks; /* entries of table in use */
    uint32_t n_prompt, n_tokens, n_tokens_max;
    uint32_t n_sched;     /* positions that are kept, or whose rows are in plans, out or done */
    uint32_t n_in_flight; /* plans that are out and hold rows of this stream */
    uint32_t n_awaited;   /* tokens that plans which are out will choose: 2 when it was fed */
    uint32_t i_sample;    /* place of the last of them among its plan's samples */
    uint64_t deadline_ns, submitted_ns;
    uint64_t queued_ns;        /* from submission to its first row; 0: none yet */
    struct prefix_chain chain; /* of the first chain.n blocks of table; 0 while waiting */
    uint32_t n_cached;         /* prompt tokens found kept when it was first admitted */
    struct sample_params params;
    struct counts counts;       /* what its penalties concern; empty without penalties */
    struct kern_adjust *biases; /* [n_biases] ids ascending; owned */
    uint32_t n_biases;
    uint32_t n_stop_ids;
    uint32_t stop_ids[MSG_STOP_IDS_MAX + 8];
};

struct stream_list {
    struct stream *first, *last;
    uint32_t n;
};

/* A plan that is out. */
struct flight {
    uint64_t id;
    uint32_t n_seqs;
    struct stream **seqs; /* [seqs_max] */
    bool *sample;         /* [seqs_max] */
    uint32_t *end;        /* [seqs_max] first position behind the stream's rows */
};

struct sched {
    struct sched_config config;
    struct blocks blocks;
    struct prefix prefix;
    uint32_t n_streams_max;
    struct stream *streams; /* [n_streams_max] */
    struct stream_list waiting, running;
    uint32_t n_ending;
    uint64_t next_age, next_step;

    struct flight *flights; /* [n_flights_max] ring */
    uint32_t n_flights_max; /* in_flight_max, one more with `ahead` */
    uint32_t i_flight, n_flights;

    struct msg_events events;       /* borrowed view of the arrays below */
    struct msg_token *event_tokens; /* [event_max] */
    struct msg_logprob *event_tops; /* [event_max][SAMPLE_LOGPROBS_MAX] */
    struct msg_finish *event_ends;  /* [ends_max] */
    uint32_t n_event_tokens, n_event_ends, event_max, ends_max;
    uint64_t event_step;
    bool events_taken;

    uint64_t n_chosen, n_preemptions, n_cache_hits, n_cache_tokens;
};

void stream_list_insert(struct stream_list *list, struct stream *q); /* by age */
void stream_list_remove(struct stream_list *list, struct stream *q);
/* Give back its blocks and forget that anything was computed. */
void stream_drop_kv(struct sched *s, struct stream *q);
/* End a stream with a finish event (now, or when its plans are back). */
void stream_end(struct sched *s, struct stream *q, enum finish_reason reason, status code,
                const char *text);

#endif
