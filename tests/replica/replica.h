/* tests/replica/replica.h - a whole replica in this process: real ranks as threads over coll_local,
 * real scheduler, real kernels, no MPI and no coordinator. For every test that asks "are the bits
 * the same?". */
#ifndef TESTS_REPLICA_REPLICA_H
#define TESTS_REPLICA_REPLICA_H

#include "worker/rank.h"

/* What the ranks compute on. */
enum replica_device {
    REPLICA_CPU, /* CPU kernels as they are */
    /* CPU kernels behind a device that lets the host see nothing (fake_device.h), with collectives
     * through the host, or over NCCL (fake_nccl.h) in our order and in its own. */
    REPLICA_STAGED,
    REPLICA_NCCL,
    REPLICA_NCCL_FREE,
    REPLICA_CUDA,     /* all ranks on CUDA device 0, collectives through the host */
    REPLICA_CUDA_NCCL /* rank i on CUDA device i, over NCCL itself */
};
/* ST_OK, or why this machine cannot have so many ranks on it. */
status replica_device_check(enum replica_device device, uint32_t n_ranks, struct err *err);

struct replica_config {
    const char *model; /* directory */
    enum replica_device device;
    bool no_graphs; /* devices: queue every step op by op */
    bool no_peer_sums;
    enum kern_fmt fmt;
    uint32_t tp, pp;
    uint32_t n_stage_layers; /* uneven stages; 0: the plan's choice */
    uint32_t stage_layers[8];
    uint32_t n_threads; /* per rank */
    uint32_t cpu_flags; /* kern_ops_path(flags); UINT32_MAX: the scalar specification */
    bool no_prefix_cache;
    /* This rank (+ 1; 0: none) runs its third plan with another token than it was sent. */
    uint32_t wrong_rank;
    uint32_t chunk_max, seqs_max, rows_max, ctx_max, kv_tokens; /* 0: the plan's choice */
};

/* One stream to run, and what came of it. */
struct replica_stream {
    struct msg_submit submit; /* `stream` and `attempt` are set by replica_run */
    uint32_t after_steps;     /* submitted when the leader has reported so many events */
    uint32_t after_streams;   /* and so many streams have ended */
    uint32_t cancel_at;       /* cancel after so many tokens; 0: never */

    uint32_t *tokens; /* [max_tokens]; owned by the caller */
    float *logprobs;  /* [max_tokens]; owned by the caller */
    float *gaps;      /* [max_tokens] of the two best log-probabilities, with n_logprobs > 1; may be
                         NULL; owned by the caller */
    uint32_t n_tokens;
    struct msg_logprob top[8]; /* of the last token */
    uint32_t n_top;
    enum finish_reason reason;
    status code;
    uint32_t cached; /* prompt tokens found in the prefix cache */
};

struct replica_stats {
    uint64_t n_events;
    uint32_t kv_used_at_end, n_steps;
    uint64_t preemptions, cache_hits, cache_tokens;
    uint32_t kv_cached_at_end;
    uint64_t syncs, launches; /* of the device: waits of all ranks, recorded steps launched */
    uint64_t gaps;            /* of those, launched on a device with nothing to do */
    uint64_t peer_sums;       /* over mapped memory, queued or recorded */
};

/* Start, run all streams to their ends, stop. ST_OK even if a stream failed (look at it). */
status replica_run(const struct replica_config *config, struct replica_stream *streams, uint32_t n,
                   struct replica_stats *stats_p, struct err *err);

#endif
