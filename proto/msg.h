/* proto/msg.h - the messages of proto/control.proto and proto/gantry.proto as plain structs.
 *
 * The rest of Gantry uses these; only proto/codec_*.c sees generated code. Pointers inside a struct
 * are borrowed: when packing from the caller, when unpacking from the arena given to the unpack
 * call (and live until that is reset). Unpacking validates form (UTF-8, sizes, required parts,
 * finite floats); ranges of meaning (top_p in (0,1]) are checked by generate_check and by the
 * coordinator. Protocol numbers are append-only. */
#ifndef PROTO_MSG_H
#define PROTO_MSG_H

#include "base/arena.h"
#include "base/buf.h"
#include "base/hash.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    MSG_PROTOCOL = 1,
    MSG_STOP_STRINGS_MAX = 16,
    MSG_STOP_BYTES_MAX = 256,
    MSG_STOP_IDS_MAX = 64,
    MSG_LOGPROBS_MAX = 20,
    MSG_TOP_K_MAX = 1024,
    MSG_BIASES_MAX = 300,
    MSG_CHOICES_MAX = 16, /* answers to one request */
    MSG_REQUEST_ID_MAX = 128,
    MSG_PROFILE_BYTES = 64,         /* with its NUL */
    MSG_PROFILES_MAX = 8,           /* numeric profiles in one service at a time */
    MSG_PROMPT_BYTES_MAX = 4 << 20, /* of text in one request */
    MSG_BYTES_MAX = 16 << 20        /* one packed message, either side */
};

/* A borrowed byte string; `data` has a NUL behind it when it came from an unpack call. */
struct msg_str {
    const char *data;
    size_t len;
};

/* What is added to the logit of a token. */
struct msg_bias {
    uint32_t id;
    float bias;
};

/* Names this very binary ("0.1.0+<GNU build id>"): what Hello and Welcome carry, so that ranks of
 * another build are told apart. Static storage; any thread. */
const char *msg_build(void);
const char *msg_version(void); /* "0.1.0" */

/* FileDescriptorSet of gantry.proto and health.proto, for server reflection. Static storage. */
struct msg_str msg_descriptors(void);

/* ---- control ---- */

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_FAILED, FINISH_CANCELLED };

enum { MSG_JOB_BYTES = 16 };

struct msg_join { /* a replica that the coordinator has not started */
    uint8_t job[MSG_JOB_BYTES];
    uint32_t tp, pp, kv_blocks, block_tokens, ctx_max, rows_max;
    uint64_t layer_bytes, model_digest;
};

struct msg_hello {
    const char *build;
    uint32_t protocol;
    uint32_t replica, generation, rank, n_ranks;
    uint64_t plan_digest;
    const char *profile, *host, *kernels;
    uint32_t pid;
    bool has_join; /* then replica and generation mean nothing */
    struct msg_join join;
    bool is_reattach;
};

enum { MSG_SLOW_LINKS_MAX = 8 };

/* Between two ranks, as the lower one measured it. */
struct msg_link {
    uint32_t a, b;
    bool is_across;              /* between hosts */
    float latency_us, mib_per_s; /* p50 round trip; 0: not measured */
    float usual_latency_us,
        usual_mib_per_s; /* of slow ones: the median of their kind; 0: too few */
};

struct msg_self_test {
    uint32_t n_links; /* 0: none were tested */
    double took_ms;
    struct msg_link worst_latency, worst_bandwidth;
    uint32_t n_slow, n_slow_all; /* in the list; in all */
    struct msg_link slow[MSG_SLOW_LINKS_MAX];
};

struct msg_ready {
    struct hash128 weights_digest; /* zero except from the leader */
    uint64_t weight_bytes, kv_bytes;
    struct msg_self_test self_test; /* all zero except from the leader */
    const char *sums;               /* which way sums inside the stage go; "": one slice */
};

enum { MSG_QUEUED_MAX = 128 };

struct msg_heartbeat {
    const char *phase;
    uint64_t step, loaded_bytes, weight_bytes;
    uint32_t running, waiting, kv_blocks_used, kv_blocks_total; /* leader only */
    uint32_t kv_blocks_cached;                                  /* leader only, as the next two */
    uint64_t cache_hits, cache_tokens;
    double step_us, step_kernel_us;
    uint64_t ticks;
    uint32_t op, op_peer; /* enum coll_op; rank waited for + 1, 0: nobody */
    uint64_t op_seq, waited_us, digest;
    uint32_t n_queued; /* leader only */
    const uint64_t *queued;
};

struct msg_logprob {
    uint32_t id;
    float logprob;
};

struct msg_token {
    uint64_t stream;
    uint32_t attempt, index, token;
    float logprob;
    uint32_t n_top;
    const struct msg_logprob *top;
};

struct msg_finish {
    uint64_t stream;
    uint32_t attempt;
    enum finish_reason reason;
    status code;      /* < 0 with FINISH_FAILED */
    const char *text; /* sentence for the user when failed, else "" */
    uint32_t cached_tokens;
    uint64_t queued_us; /* from Submit to the first scheduled row */
};

struct msg_events {
    uint64_t step;
    uint32_t n_tokens, n_finishes;
    const struct msg_token *tokens;
    const struct msg_finish *finishes;
};

struct msg_fault {
    status code;
    uint32_t rank;
    const char *text;
};

enum msg_rank_kind { MSG_HELLO = 1, MSG_READY, MSG_HEARTBEAT, MSG_EVENTS, MSG_FAULT };

struct msg_rank {
    enum msg_rank_kind kind;
    union {
        struct msg_hello hello;
        struct msg_ready ready;
        struct msg_heartbeat heartbeat;
        struct msg_events events;
        struct msg_fault fault;
    };
};

struct msg_submit {
    uint64_t stream; /* the coordinator's number for it, unique in the coordinator's life */
    uint32_t attempt;
    uint32_t n_prompt, n_emitted;
    const uint32_t *prompt, *emitted;
    uint32_t max_tokens;
    float temperature, top_p, min_p;
    uint32_t top_k, choice;
    uint64_t seed;
    uint32_t n_stop_ids;
    const uint32_t *stop_ids;
    bool want_logprobs;
    uint32_t n_logprobs;
    uint64_t deadline_us;
    uint64_t cache_scope;                      /* of the principal; 0: shares prefixes with all */
    float presence_penalty, frequency_penalty; /* 0: off */
    float repetition_penalty;                  /* 0 or 1: off */
    uint32_t n_biases;
    const struct msg_bias *biases; /* different ids */
};

struct msg_cancel {
    uint64_t stream;
    uint32_t attempt;
};

enum msg_coord_kind { MSG_WELCOME = 1, MSG_SUBMIT, MSG_CANCEL, MSG_STOP };

struct msg_coord {
    enum msg_coord_kind kind;
    union {
        struct {
            const char *build;
            uint32_t replica, generation;
            uint32_t orphan_grace_s;
            const char *control_file;
        } welcome;
        struct msg_submit submit;
        struct msg_cancel cancel;
        struct {
            bool drain;
        } stop;
    };
};

/* Append to `out`. ST_ERR_NOMEM, ST_ERR_LIMIT. */
status msg_rank_pack(const struct msg_rank *m, struct buf *out);
status msg_coord_pack(const struct msg_coord *m, struct buf *out);
/* ST_ERR_PROTO (malformed), ST_ERR_LIMIT (over the arena's bound). */
status msg_rank_unpack(const void *data, size_t len, struct arena *arena, struct msg_rank *m_p,
                       struct err *err);
status msg_coord_unpack(const void *data, size_t len, struct arena *arena, struct msg_coord *m_p,
                        struct err *err);

struct msg_drain {
    uint32_t replica;
    bool restart;
    uint64_t grace_us;
};

struct msg_drain_progress {
    const char *state;
    uint32_t streams, generation;
};

status msg_drain_pack(const struct msg_drain *m, struct buf *out);
status msg_drain_unpack(const void *data, size_t len, struct arena *arena, struct msg_drain *m_p,
                        struct err *err);
status msg_drain_progress_pack(const struct msg_drain_progress *m, struct buf *out);
status msg_drain_progress_unpack(const void *data, size_t len, struct arena *arena,
                                 struct msg_drain_progress *m_p, struct err *err);

/* ---- gantry.v1 ---- */

struct msg_generate {
    bool has_prompt_ids;
    struct msg_str prompt;
    uint32_t n_prompt_ids;
    const uint32_t *prompt_ids;
    bool has_max_tokens, has_temperature, has_top_k, has_top_p, has_min_p, has_seed, has_logprobs;
    bool has_presence_penalty, has_frequency_penalty, has_repetition_penalty, has_n;
    uint32_t max_tokens, top_k, logprobs, n;
    float temperature, top_p, min_p;
    float presence_penalty, frequency_penalty, repetition_penalty;
    uint64_t seed;
    uint32_t n_biases;
    const struct msg_bias *biases;
    uint32_t n_stop, n_stop_ids;
    const struct msg_str *stop;
    const uint32_t *stop_ids;
    bool ignore_eos;
    const char *request_id; /* "" if absent */
    bool exact;
    bool resume;
    uint32_t resume_from; /* with resume: the first token wanted; */
    uint32_t n_resume_from_choices;
    const uint32_t *resume_from_choices; /* or of each choice */
};

struct msg_piece { /* a token as clients see it */
    uint32_t id;
    bool has_logprob;
    float logprob;
    uint32_t n_top;
    const struct msg_top {
        uint32_t id;
        float logprob;
        struct msg_str piece;
    } * top;
};

struct msg_started {
    const char *request_id, *profile, *weights_digest, *model;
    uint64_t seed;
    uint32_t prompt_tokens;
    uint32_t resume_window_s; /* 0: the answer ends with its call */
    uint32_t n;               /* choices */
};

struct msg_finished {
    enum finish_reason reason;
    struct msg_str stop;
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
    uint64_t queued_us, first_token_us, total_us;
    uint32_t n_profiles; /* 0: Started's alone */
    const char *const *profiles;
};

/* GenerateChunk and GenerateResponse have the same fields. */
struct msg_chunk {
    bool has_started, has_finished;
    struct msg_started started;
    struct msg_str text;
    uint32_t n_tokens;
    const struct msg_piece *tokens;
    uint32_t token_offset; /* number of the first of `tokens` in the answer */
    uint64_t text_offset;  /* where `text` begins in the answer, in bytes */
    struct msg_finished finished;
    uint32_t choice; /* whose text and tokens these are */
};

struct msg_model {
    const char *name, *family, *profile, *weights_digest, *tokenizer;
    uint32_t n_layers, dim, n_heads, n_kv_heads, vocab, context;
    uint64_t parameters;
};

struct msg_rank_status {
    uint32_t rank, stage, slice, pid;
    const char *host, *phase, *kernels;
    uint64_t step, heartbeat_age_us, loaded_bytes, weight_bytes;
    const char *op;       /* the exchange it is in; "": none */
    uint64_t op_seq;      /* which one of its kind */
    uint32_t waits_for;   /* rank + 1; 0: nobody */
    uint64_t waited_us;   /* 0: does not wait */
    uint64_t step_digest; /* of the plan of `step` */
    const char *sums;     /* which way sums inside its stage go; "": one slice, or not ready */
};

struct msg_replica_status {
    uint32_t replica, generation, tp, pp;
    const char *state;
    uint64_t step;
    uint32_t running, waiting, kv_blocks_used, kv_blocks_total, kv_block_tokens;
    uint32_t kv_blocks_cached;
    uint64_t cache_hits, cache_tokens;
    double tokens_per_second, step_us, step_kernel_us;
    double predicted_step_us; /* 0: not known */
    uint32_t losses;
    const char *detail;
    const char *waits; /* of the last loss: who waited for whom */
    struct msg_self_test self_test;
    bool joined;
    const char *profile, *job; /* job: 32 hex digits of a joined one, else "" */
    const char *hosts;
    uint32_t n_ranks;
    const struct msg_rank_status *ranks;
};

struct msg_status {
    const char *state, *model, *profile, *version, *weights_digest;
    uint64_t uptime_us;
    uint32_t streams, queue_limit;
    uint32_t n_replicas;
    const struct msg_replica_status *replicas;
    const char *journal;
    uint32_t kept_answers;
    uint64_t journal_bytes;
};

/* Packing appends to `out`; unpacking as above. Both sides exist for each, since the client is ours
 * too. */
status msg_generate_pack(const struct msg_generate *m, struct buf *out);
status msg_generate_unpack(const void *data, size_t len, struct arena *arena,
                           struct msg_generate *m_p, struct err *err);
status msg_chunk_pack(const struct msg_chunk *m, struct buf *out);    /* GenerateChunk */
status msg_response_pack(const struct msg_chunk *m, struct buf *out); /* GenerateResponse */
/* Append to a packed GenerateResponse what msg_response_pack made of another choice, without
 * `started`. ST_ERR_LIMIT: over MSG_BYTES_MAX. */
status msg_response_add_choice(const void *data, size_t len, struct buf *out);
status msg_chunk_unpack(const void *data, size_t len, struct arena *arena, struct msg_chunk *m_p,
                        struct err *err);
status msg_model_pack(const struct msg_model *m, struct buf *out);
status msg_model_unpack(const void *data, size_t len, struct arena *arena, struct msg_model *m_p,
                        struct err *err);
status msg_status_pack(const struct msg_status *m, struct buf *out);
status msg_status_unpack(const void *data, size_t len, struct arena *arena, struct msg_status *m_p,
                         struct err *err);

/* Every field of a request against its range; the sentence names the field, its value and the
 * range. vocab: of the model. */
status generate_check(const struct msg_generate *m, uint32_t vocab, struct err *err);

/* The fields that a request to go on with an answer has (resume), and those that it alone may have. */
status resume_check(const struct msg_generate *m, struct err *err);

/* grpc.health.v1 */
enum health_state { HEALTH_UNKNOWN, HEALTH_SERVING, HEALTH_NOT_SERVING, HEALTH_SERVICE_UNKNOWN };
status msg_health_request_pack(const char *service, struct buf *out);
status msg_health_request_unpack(const void *data, size_t len, struct arena *arena,
                                 const char **service_p, struct err *err);
status msg_health_response_pack(enum health_state state, struct buf *out);
status msg_health_response_unpack(const void *data, size_t len, struct arena *arena,
                                  enum health_state *state_p, struct err *err);

#endif
