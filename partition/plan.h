/* partition/plan.h - which rank holds which piece of the model, and what that costs.
 *
 *   layers [0, n_layers)  cut into `pp` contiguous stages, sizes may differ  -> send/recv between stages
 *   leaves [0, R)         cut into `tp` equal runs per stage                 -> all-reduce in a stage
 *   rank = stage * tp + slice
 *
 * Heads and ffn columns follow the leaves of the numeric profile (docs/numerics.md): leaf i holds
 * heads [iH/R, (i+1)H/R) and ffn column pairs [iP/R, (i+1)P/R), so a slice is a run of whole leaves
 * and the reduction over slices is the upper part of one fixed tree. tp is a power of two that
 * divides R. KV heads are those that the slice's query heads read; several slices may hold the same
 * one. The vocabulary is cut at blocks of KERN_VOCAB_BLOCK ids.
 *
 * A plan is a pure function of its arguments: every node computes it alone and gets the same bytes,
 * so ranks compare digests instead of exchanging plans. No MPI, no files, no clock here. */
#ifndef PARTITION_PLAN_H
#define PARTITION_PLAN_H

#include "base/buf.h"
#include "kernels/kern.h"
#include "model/desc.h"
#include "partition/rates.h"

enum { PLAN_RANKS_MAX = 4096, PLAN_STAGES_MAX = 256 };

struct range {
    uint32_t begin, end; /* half open */
};

static inline uint32_t range_len(struct range r)
{
    return r.end - r.begin;
}

enum {
    PLAN_SEQS_MAX = 4096,          /* streams in one step */
    PLAN_KV_BLOCKS_MAX = 1 << 22,  /* 128 Mi tokens: keeps byte counts inside 64 bits */
    PLAN_ROWS_MAX = 65536,         /* rows in one step */
    PLAN_RESERVE_BYTES = 64 << 20, /* of rank_memory_bytes left to code, stacks and MPI */
    /* On a CUDA device: its context, kernels, recorded steps, NCCL's own buffers. Not measured. */
    PLAN_RESERVE_CUDA_BYTES = 1536 << 20
};

/* What the ranks compute on. A replica is all of one kind. */
enum plan_device { PLAN_CPU, PLAN_CUDA };
/* How tensors go from rank to rank: through host memory (MPI), or from device to device. */
enum plan_plane { PLAN_PLANE_HOST, PLAN_PLANE_NCCL };

struct plan_shape {
    uint32_t tp, pp;
};

/* What a rank runs on, as far as that is known. */
struct plan_site {
    const struct rates_entry *rates; /* borrowed: the table outlives the plan */
    /* Of the same place in kern_fmt_of_x(plan->fmt), where that is another format: of matrices that an fp8 plan
     * holds in bf16 (plan_mat). Borrowed; NULL: not measured, `rates` count for them as well. */
    const struct rates_entry *rates_plain;
    double share;          /* of these rates that the rank has */
    uint64_t memory_bytes; /* that it may use; 0: plan_request.rank_memory_bytes */
    uint32_t host;         /* a number; ranks of one host have the same */
    bool is_assumed;       /* its host was not measured: the slowest one's rates */
};

struct plan;

/* Where the ranks would be. A pure function, too: equal plans, equal sites. */
struct plan_sites {
    const struct rates *rates; /* borrowed, as above */
    /* All of sites[plan->n_ranks], by rank; of `plan` shape, format and device are set. ST_ERR_LIMIT:
     * there is no room for that shape, another is tried. */
    status (*fill)(void *arg, const struct plan *plan, struct plan_site *sites, struct err *err);
    void *arg;
};

/* What the operator asked for. Zero means: choose.
 *
 * How tp and pp are chosen when 0: tp is the largest power of two that the leaves and n_ranks
 * allow (a step then reads the fewest bytes per rank), pp what is left of n_ranks; if that does not
 * fit the memory, the next smaller tp that uses more ranks. With n_ranks 0: the fewest ranks whose
 * memory holds the model. */
struct plan_request {
    uint32_t tp, pp;
    enum kern_fmt fmt;          /* product and KV format: the profile */
    bool fmt_of_model;          /* fp8 where the checkpoint is fp8, `fmt` for others */
    uint32_t n_ranks;           /* ranks at hand; 0: tp * pp, or as few as fit the memory */
    uint64_t rank_memory_bytes; /* memory that one rank may use; 0: not limited */
    uint32_t ctx_max;           /* positions per stream at most; 0: the model's */
    uint32_t kv_tokens;         /* KV capacity wanted; 0: what fits, at most seqs_max * ctx_max */
    uint32_t seqs_max;          /* streams in one step at most; 0: 64 */
    uint32_t rows_max;          /* rows (tokens) in one step at most; 0: 512 */
    enum plan_device device;
    uint32_t cuda_version; /* PLAN_CUDA: compute capability, 90 for 9.0; 0: 90 */
    enum plan_plane plane;
    bool free_order;         /* sums in NCCL's own order: other bits, a profile of its own */
    bool no_peer_sums;       /* NCCL also for small sums of devices that map each other's memory */
    uint32_t n_stage_layers; /* entries in stage_layers; 0: balance */
    uint32_t stage_layers[PLAN_STAGES_MAX];
    /* NULL: not known, and stages are balanced by weight bytes. Else by seconds, where ranks differ in
     * speed or memory (plan_speed.c). */
    const struct plan_sites *sites;
};

struct plan_part {
    uint32_t rank, stage, slice;
    struct range layers;   /* of desc->n_layers */
    struct range leaves;   /* of R */
    struct range q_heads;  /* of n_heads */
    struct range kv_heads; /* of n_kv_heads */
    struct range ffn_cols; /* of ffn_dim */
    /* Rows of the embedding (first stage) and of the head (last stage), else empty. It is also
     * empty on some slices when there are fewer vocabulary blocks than slices: such a rank holds no
     * rows, but still takes part in the stage's embedding and head. */
    struct range vocab;
    bool has_embed, has_head;                       /* the stage is the first, the last */
    uint64_t weight_bytes, kv_bytes, scratch_bytes; /* packed, as allocated */
    uint64_t scale_bytes; /* of weight_bytes: the scales of fp8 matrices */
};

struct plan {
    struct model_desc desc; /* copied */
    enum kern_fmt fmt;
    enum plan_device device;
    uint32_t cuda_version; /* 0 on CPU */
    enum plan_plane plane;
    bool free_order;
    bool no_peer_sums; /* no bit depends on it */
    uint32_t tp, pp, n_ranks;
    uint32_t n_leaves; /* R */
    uint32_t ctx_max, seqs_max, rows_max;
    uint32_t kv_blocks;      /* blocks of KERN_KV_BLOCK tokens; the same number on every rank */
    uint32_t kv_tokens;      /* kv_blocks * KERN_KV_BLOCK */
    uint64_t digest;         /* of everything that ranks must agree on */
    char profile[64];        /* "cpu-bf16-v1", "cuda-sm90-bf16-v1", "cuda-sm90-bf16-free-v1" */
    char why[256];           /* how tp, pp and KV were chosen, one sentence */
    struct plan_part *parts; /* [n_ranks], by rank; owned */
    /* What times are predicted from (predict.h); not in the digest. NULL: nothing is known. */
    const struct rates *rates; /* borrowed */
    struct plan_site *sites;   /* [n_ranks] owned */
};

/* ST_ERR_UNSUPPORTED: fp8 is asked for, and the checkpoint holds parts of one matrix in different formats
 * (names them). ST_ERR_ARG: cannot be cut so (names the dimension and the values that would do). ST_ERR_LIMIT:
 * does not fit the memory (names the rank, what is needed and what there is). On success the caller
 * owns *plan_p. */
status plan_create(const struct model_desc *desc, const struct plan_request *request,
                   struct plan **plan_p, struct err *err);
void plan_destroy(struct plan *plan); /* NULL is fine */

/* "f32", "bf16", "fp8": as --format takes it. */
const char *plan_fmt_name(enum kern_fmt fmt);

/* ---- what a rank allocates: the one place that knows, for the plan and for the worker ---- */

/* qkv [(H+2K)*D, C]; o [C, H*D], by leaves; gate_up [2F, C]; down [C, F], by leaves; head [V, C].
 * All with the rank's own H, K, F and V. */
enum plan_mat {
    PLAN_MAT_QKV = MODEL_MAT_QKV,
    PLAN_MAT_O = MODEL_MAT_O,
    PLAN_MAT_GATE_UP = MODEL_MAT_GATE_UP,
    PLAN_MAT_DOWN = MODEL_MAT_DOWN,
    PLAN_MAT_HEAD
};

/* Shape, format, leaves and place of a matrix of `part`, of layer `layer` of the model (of no matter for
 * the head); data is NULL. In fp8 the head stays bf16, and so does what an fp8 checkpoint holds in
 * another format (desc.plain). */
void plan_mat(const struct plan *plan, const struct plan_part *part, uint32_t layer,
              enum plan_mat which, struct kern_mat *mat_p);
/* Matrices of all layers (four each) that are bf16 in a plan for fp8. */
uint32_t plan_plain_mats(const struct plan *plan);
void plan_embed(const struct plan *plan, const struct plan_part *part, struct kern_embed *embed_p);
/* One layer's cache; k and v are NULL. */
void plan_kv(const struct plan *plan, const struct plan_part *part, struct kern_kv *kv_p);
/* Packed weights, each allocation rounded up to KERN_ALIGN: the five matrices, the embedding rows,
 * norms and biases in f32. */
uint64_t plan_weight_bytes(const struct plan *plan, const struct plan_part *part);
/* Of these, the scales of fp8 matrices; 0 in other formats. */
uint64_t plan_scale_bytes(const struct plan *plan, const struct plan_part *part);
/* K and V of all layers of the part, plan->kv_blocks blocks. */
uint64_t plan_kv_bytes(const struct plan *plan, const struct plan_part *part);
/* Working memory of a step, each allocation rounded up to KERN_ALIGN. T rows_max, S seqs_max:
 *   f32  x[2][T,C] residual (one computed, one still being sent), partial[T,C], qkv[T,(H+2K)*D],
 *        gate_up[T,2F]; last stage: picked[S,C], logits[S,V]; cos and sin[ctx_max,D/2]
 *   kern_fmt_of_x(fmt)  normed[T,C], att[T,H*D], act[T,F]
 *   u32  tokens[T], pos[T], seq[T], rows[S], tables[S, blocks of ctx_max]
 * and plan_coll_bytes. */
uint64_t plan_scratch_bytes(const struct plan *plan, const struct plan_part *part);

/* Of the model's description alone: equal for all plans of one model, however it is cut. */
uint64_t plan_model_digest(const struct plan *plan);
/* Weights of the heaviest layer of any rank, what a stage has at its ends spread over its layers. */
uint64_t plan_layer_bytes(const struct plan *plan);

/* Partial sums of the other slices on the device (PLAN_PLANE_NCCL and tp above 1, else 0). */
uint64_t plan_coll_bytes(const struct plan *plan);

/* For people: a table with a row per rank, then a picture of stages x slices. And for programs. */
status plan_print(const struct plan *plan, struct buf *out);
/* `prompt`: tokens of the request whose times are predicted (predict.h; 0: 512). */
status plan_print_json(const struct plan *plan, uint32_t prompt, struct buf *out);

#endif
