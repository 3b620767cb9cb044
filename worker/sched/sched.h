/* worker/sched/sched.h - the leader's scheduler: continuous batching over paged KV.
 *
 *             submit                       admit (blocks for the known tokens are free)
 *   coordinator ────► waiting (bounded FIFO) ────► running ──► every step: a chunk of prompt rows,
 *                        ▲                            │        or one decode row; rows join and
 *                        └── preempted (youngest) ◄───┘        leave at each step
 *
 * Passive: it never waits, sends or computes. The caller asks for the next step plan (sched_next),
 * runs it on the ranks, and hands the results back (sched_done); with pp stages up to pp plans are
 * out at a time, and then the running streams are spread over pp plans so that no stage waits. Time
 * comes from the config. The simulation and the leader run this same code.
 *
 * Ahead. Where a device finds tokens by itself, one plan more is made before the one out has come
 * back (config.ahead): its decode rows are fed by the samples of that plan (step_seq.feed), so the
 * device never waits for the host. Nothing else changes: a stream whose token turns out to be its
 * last has one row too many out, which is dropped as a cancelled stream's is. Filters and
 * penalties are the host's, so a plan is made ahead only if all samples that are out are plain (sample_is_plain).
 *
 * Order. Streams are served by age. Decode rows go first, then chunks of prompts, within rows_max.
 * A stream whose sampled token is still out is not scheduled. KV is taken block by block as
 * positions are scheduled; when none is free the youngest running stream is preempted and later
 * computed again from its tokens, which changes nothing that its client sees (docs/numerics.md).
 * The oldest stream therefore always gets on: what fits at all is served. Full blocks stay behind
 * when their streams go, until somebody needs the memory, and a stream that begins like an earlier
 * one starts after what they share (prefix.h); they are given up before anyone is preempted.
 *
 * One owner thread, no locks. Memory: a table of queue_max + seqs_max streams, and per live stream
 * its tokens and block table (at most ctx_max entries). */
#ifndef WORKER_SCHED_SCHED_H
#define WORKER_SCHED_SCHED_H

#include "base/clock.h"
#include "proto/msg.h"
#include "worker/sched/step.h"

struct sched;

struct sched_config {
    struct step_limits limits;
    uint32_t kv_blocks;
    uint32_t ctx_max;       /* positions of one stream, prompt and answer */
    uint32_t chunk_max;     /* prompt rows of one stream in one step; 0: rows_max */
    uint32_t queue_max;     /* streams waiting; more are refused */
    uint32_t in_flight_max; /* step plans out at a time: pp */
    bool ahead;             /* one more, fed by the one out; in_flight_max is 1 then */
    bool prefix_cache;      /* keep full blocks for streams that begin alike */
    const struct clock *clock;
};

struct sched_stats {
    uint32_t running, waiting, in_flight;
    uint32_t kv_blocks_used, kv_blocks_total; /* used: held by streams */
    uint32_t kv_blocks_cached;                /* kept and held by no stream */
    uint64_t steps, tokens;                   /* planned, chosen, since the start */
    uint64_t cache_hits, cache_tokens;        /* streams admitted with a kept beginning; its size */
    uint64_t preemptions;
};

status sched_create(const struct sched_config *config, struct sched **sched_p, struct err *err);
void sched_destroy(struct sched *s); /* NULL is fine */

/* Queue a stream; what `m` points to is copied. ST_ERR_LIMIT: it can never fit (names need and
 * capacity), or the queue is full. ST_ERR_ARG: sizes that contradict each other. ST_ERR_EXISTS,
 * ST_ERR_NOMEM. */
status sched_submit(struct sched *s, const struct msg_submit *m, struct err *err);
/* Forget a stream. Its blocks are free at once, or when the step that it is in comes back. Unknown:
 * ignored. */
void sched_cancel(struct sched *s, uint64_t stream, uint32_t attempt);
void sched_cancel_all(struct sched *s); /* what they have computed stays behind for others */

/* Write the next plan to `plan` (step_bytes_max(limits) bytes, 8-byte aligned). ST_BUSY: nothing to
 * run now. */
status sched_next(struct sched *s, struct step_head *plan);
/* The oldest plan that is out has come back: `results` in the order of its sampled sequences.
 * ST_ERR_PROTO: another step, or other streams, than were asked for. */
status sched_done(struct sched *s, uint64_t step, const struct step_result *results,
                  uint32_t n_results, struct err *err);

/* What happened since the last call: tokens and ends. Borrowed until the next sched_* call.
 * n_tokens and n_finishes both 0: nothing. */
const struct msg_events *sched_events(struct sched *s);

void sched_stats(const struct sched *s, struct sched_stats *stats_p);
/* Streams that wait and have no rows in a plan that is out, the youngest first, at most n_max: how
 * many. */
uint32_t sched_queued(const struct sched *s, uint64_t *streams, uint32_t n_max);
bool sched_is_idle(const struct sched *s); /* no stream, no plan out */
bool sched_is_valid(const struct sched *s);

#endif
