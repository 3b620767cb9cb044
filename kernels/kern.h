/* kernels/kern.h - the operations of a forward pass, as a table that a CPU path or a device fills.
 *
 * Dimension letters, used everywhere: T rows (tokens of a step), C model dim, H query heads of this
 * rank, K kv heads of this rank, D head_dim, F ffn columns of this rank, V vocabulary rows of this
 * rank, N outputs and K inputs of a product (in gemm only), R leaves. Row-major unless said.
 *
 * What the numbers must be is docs/numerics.md; kernels/ref/ is that text as code. "Lanes are
 * outputs": each output element is computed by one fixed sequence of operations, so every path
 * below gives equal bits, for every number of threads and every T.
 *
 * Streams. Every op takes a stream. On CPU a stream is a team of threads and ops are done when the
 * call returns; on a device they are queued in order and `stream_sync` waits. Pointers are memory
 * of the stream's device (mem_alloc) unless marked host. Ops cannot fail: shapes were checked when
 * the plan was made, and a device's asynchronous error comes out of stream_sync. Threads: a stream
 * belongs to one thread. Kernels start no threads of their own, read no clock.
 *
 * Two kinds of host memory. Ordinary memory is read while copy_in runs. Memory of host_alloc
 * ("pinned") is what a device reads and writes by itself: copy_in_later and scan_rows read it when
 * the op's turn comes, so that a recorded step (graph_*) sees what stands there at each launch. */
#ifndef KERNELS_KERN_H
#define KERNELS_KERN_H

#include "base/err.h"
#include "kernels/hd.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    KERN_LEAVES_MAX = 64,    /* R at most */
    KERN_KV_BLOCK = 32,      /* tokens in a KV block */
    KERN_SPAN = 256,         /* tokens in an attention span: a multiple of KERN_KV_BLOCK */
    KERN_VOCAB_BLOCK = 1024, /* ids in a block of (max, sum); vocabulary slices end on blocks */
    KERN_CAND_MAX = 1024,    /* candidates kept for top-k / top-p / min-p / top log-probabilities */
    KERN_HEAD_DIM_MAX = 1024, /* D at most */
    KERN_MARKS = 2,           /* of a stream: steps that may be queued at a time */
    KERN_PEERS_MAX = 8, /* ranks that sum through each other's memory: a power of two of them */
    KERN_PEER_FLOATS = 128 * 1024, /* in one such sum at most */
    KERN_PEER_ID_BYTES = 192,
    KERN_ALIGN = 64, /* bytes; every pointer given to an op is so aligned unless marked */
    KERN_GROUP = 128 /* inputs that share a scale in KERN_FP8 */
};

/* Storage and product format. In KERN_BF16 operands of products are bf16, sums f32. In KERN_FP8
 * weights are e4m3 with an f32 scale per output and group of inputs; the inputs of products are
 * bf16, and so are the cache, the embedding and the matrix of the head. */
enum kern_fmt { KERN_F32, KERN_BF16, KERN_FP8, KERN_FMTS };

/* What the inputs of a product with a matrix of `fmt` are in. */
KERN_HD static inline enum kern_fmt kern_fmt_of_x(enum kern_fmt fmt)
{
    return fmt == KERN_FP8 ? KERN_BF16 : fmt;
}

/* How tensors stand in files (host). F8 is e4m3 ("F8_E4M3"), packed into KERN_FP8 only: what else
 * is made of it is the caller's to convert (kernels/quant.h). */
enum kern_src { KERN_SRC_F32, KERN_SRC_F16, KERN_SRC_BF16, KERN_SRC_F8 };

struct kern_stream; /* opaque, one per rank */

struct kern_stream_config {
    uint32_t n_threads; /* CPU: threads in the team, the caller counted */
    uint32_t device;    /* device index; 0 on CPU */
};

/* ---- matrices ---- */

/* W[N,K], packed by mat_pack for streaming. A column-parallel product (qkv, gate/up, head) has one
 * leaf; a row-parallel one (attention output, ffn down) has this rank's R/tp leaves, each summed on
 * its own and combined by the binary tree over leaf indices. n_leaves is a power of two. */
struct kern_mat {
    enum kern_fmt fmt;
    uint32_t n, k;                      /* outputs, inputs held by this rank */
    uint32_t n_leaves;                  /* 1 .. KERN_LEAVES_MAX */
    uint32_t leaf[KERN_LEAVES_MAX + 1]; /* K offsets: leaf[0] = 0 <= ... <= leaf[n_leaves] = k */
    uint32_t k0; /* KERN_FP8: where input 0 stands in the whole tensor; groups are counted there */
    void *data;  /* mat_bytes() bytes, owner: whoever allocated it */
};

/* KERN_FP8: a group is the inputs of one leaf with the same (k0 + k) / KERN_GROUP, so a leaf may
 * begin and end with shorter ones and no group straddles leaves. End of the group that input k of
 * `leaf` is in. */
KERN_HD static inline uint32_t kern_group_end(const struct kern_mat *mat, uint32_t leaf, uint32_t k)
{
    const uint32_t end = k + KERN_GROUP - (mat->k0 + k) % KERN_GROUP;

    return end < mat->leaf[leaf + 1] ? end : mat->leaf[leaf + 1];
}
/* Groups of leaf `leaf`. */
KERN_HD static inline uint32_t kern_leaf_groups(const struct kern_mat *mat, uint32_t leaf)
{
    const uint32_t begin = mat->k0 + mat->leaf[leaf], end = mat->k0 + mat->leaf[leaf + 1];

    return begin == end ? 0 : (end - 1) / KERN_GROUP - begin / KERN_GROUP + 1;
}
/* Groups of all leaves, in the order in which scales are given. */
uint32_t kern_mat_groups(const struct kern_mat *mat);

/* Rows of a weight tensor in file format, host memory. */
struct kern_rows {
    enum kern_src type;
    const void *data;      /* host, no alignment promised */
    uint32_t row0, n_rows; /* rows of the kern_mat that these are; any row0 */
    uint32_t ld;           /* elements from one row to the next; the first k of each are used */
    /* KERN_SRC_F8: [n_rows, groups of the kern_mat], ordinary host memory, read while mat_pack runs;
     * else NULL. */
    const float *scales;
};

/* ---- embedding ---- */

struct kern_embed {
    enum kern_fmt fmt;
    uint32_t row0, n_rows; /* ids [row0, row0 + n_rows) are held here */
    uint32_t dim;          /* C */
    void *data;            /* [n_rows, C] in fmt, not packed */
};

/* ---- KV cache ---- */

/* One layer's cache. Token t of a sequence is slot t % KERN_KV_BLOCK of block table[t /
 * KERN_KV_BLOCK]. The layout inside is the path's own affair (CPU: K as [block][K][D/2][slot][2] so
 * that lanes are positions, V as [block][K][slot][D]). */
struct kern_kv {
    enum kern_fmt fmt;
    uint32_t n_heads, head_dim; /* K, D; D is even */
    uint32_t n_blocks;
    void *k, *v; /* kv_bytes() each */
};

/* Which rows belong to which sequence. Arrays are device memory, written by copy_in. Rows of one
 * sequence are adjacent and at consecutive positions. */
struct kern_rows_map {
    uint32_t n_rows; /* T */
    uint32_t n_seqs;
    uint32_t table_stride;  /* entries per row of `tables` */
    const uint32_t *pos;    /* [T] absolute position */
    const uint32_t *seq;    /* [T] index into tables, < n_seqs */
    const uint32_t *tables; /* [n_seqs, table_stride] block ids; entry b covers positions
                               [b * KERN_KV_BLOCK, ...); valid up to the row's own position */
};

/* cos and sin of pos * freq[i], built by rope_table_fill (kernels/rope.h), [n_pos, D/2] each, f32.
 */
struct kern_rope {
    uint32_t n_pos, head_dim;
    const float *cos, *sin;
};

struct kern_qkv {
    uint32_t n_heads, n_kv_heads, head_dim; /* H, K, D of this rank */
    uint32_t kv_head0;                      /* global index of this rank's first kv head */
    uint32_t head0;                         /* global index of this rank's first query head */
    uint32_t group; /* query heads per kv head in the whole model: kv head = head / group */
    float scale;    /* score = scale * (q . k) */
};

/* ---- sampling ---- */

/* Parameters of one sampled row, as they reach the kernels (host struct, copied by value). */
struct kern_sample {
    uint64_t seed;
    uint32_t choice;   /* which of the request's answers */
    uint32_t pos;      /* absolute position of the token being chosen: counter of the generator */
    float temperature; /* 0: greedy (argmax, ties to the lower id) */
    uint32_t n_cand;   /* candidates wanted, 1 .. KERN_CAND_MAX */
    bool gumbel_all;   /* plain temperature sampling: Gumbel-max over the whole vocabulary */
};

struct kern_cand {
    float logit;
    uint32_t id;
};

/* (max, sum of exp(x - max)) over one block of KERN_VOCAB_BLOCK ids. */
struct kern_lse {
    float max, sum;
};

/* What a vocabulary slice contributes to one row; merged by sample_merge (kernels/sample.h). Host.
 */
struct kern_scan {
    struct kern_lse *lse; /* [n_vblocks] of logits */
    struct kern_lse
        *lse_temp;          /* [n_vblocks] of logits / temperature; untouched if temperature is 0 */
    struct kern_cand *cand; /* [min(n_cand, V)] sorted by (logit descending, id ascending) */
    struct kern_cand gumbel; /* best (logit / temperature + gumbel noise, id); if gumbel_all */
    float gumbel_logit;      /* the logit of gumbel.id, for its log-probability; if gumbel_all */
};

/* What is done to single logits before a token is chosen (docs/numerics.md; kernels/adjust.h). */
struct kern_penalties {
    float repetition;          /* 1: off */
    float presence, frequency; /* 0: off */
};

/* One id of a row's adjustments: how often it was generated, or what is added to its logit. */
struct kern_adjust {
    uint32_t id;
    union {
        uint32_t n_made; /* of a count; 0: it stands in the prompt only */
        float bias;      /* of a bias */
    };
};

/* The adjustments of all rows of a step; host_alloc memory, both arrays. entries NULL: no row of
 * the step has any. */
struct kern_adjusts {
    const struct kern_adjust *entries;
    float *saved; /* one per entry: scratch of the op */
};

/* One row of scan_rows. Lies in host_alloc memory; read when the op's turn comes, so it stays as it
 * is until stream_sync. An adjusted row (n_raw not 0) is scanned twice: as the model gave it, for
 * its log-probabilities, and adjusted, for the choice. */
struct kern_scan_row {
    struct kern_sample params; /* n_cand 0: the row is skipped (a graph's padding) */
    uint64_t flat_offset;      /* of this row in `flat`: a multiple of KERN_ALIGN */
    struct kern_penalties penalties;
    uint32_t n_raw; /* candidates wanted of the row as the model gave it; 0: it is not adjusted */
    /* Entries [entry0, entry0 + n_counts) are counts, the n_biases behind them biases; ids ascend
     * in each. Those that the slice does not hold are left out. */
    uint32_t entry0, n_counts, n_biases;
    uint32_t pad;
};

/* ---- the device ---- */

struct kern_device {
    char name[64];            /* "NVIDIA H200"; "host memory" on CPU */
    uint64_t mem_bytes;       /* of the device; 0: not known (CPU) */
    uint64_t mem_free_bytes;  /* now */
    uint32_t compute_version; /* 90 for compute capability 9.0; 0 on CPU */
    uint32_t n_units;         /* multiprocessors, or threads of the team */
    /* Which instruction multiplies many rows and, if it is not the best one, why: "wgmma", "mma.sync
     * (wgmma gives other bits)". Never a matter of bits. Empty on CPU. */
    char products[64];
};

struct kern_graph; /* opaque: a recorded run of ops */
struct kern_peers; /* opaque: a rank's window, and those of its peers as they are mapped here */

/* ---- the table ---- */

struct kern_ops {
    const char *name; /* "scalar", "avx2", "avx512", "avx512bf16", "cuda" */
    /* Name of the numeric profile per enum kern_fmt: "cpu-bf16-v1", "cuda-sm90-bf16-v1". Static. */
    const char *profile[KERN_FMTS];
    bool on_device; /* memory of mem_alloc is not host memory */

    /* Life, memory. mem_alloc is KERN_ALIGN-aligned and zeroed. copy_* are ordered with the ops of
     * the stream; the host side may be reused when the call returns (in) or after sync (out). */
    status (*stream_create)(const struct kern_stream_config *config, struct kern_stream **stream_p,
                            struct err *err);
    void (*stream_destroy)(struct kern_stream *s); /* NULL is fine */
    status (*stream_sync)(struct kern_stream *s, struct err *err);
    status (*mem_alloc)(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err);
    void (*mem_free)(struct kern_stream *s, void *mem, size_t bytes); /* NULL is fine */
    void (*copy_in)(struct kern_stream *s, void *dst, const void *src_host, size_t bytes);
    void (*copy_out)(struct kern_stream *s, void *dst_host, const void *src, size_t bytes);

    /* Pinned host memory, KERN_ALIGN-aligned and zeroed; ordinary memory on CPU. */
    status (*host_alloc)(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err);
    void (*host_free)(struct kern_stream *s, void *mem, size_t bytes); /* NULL is fine */
    /* As copy_in, from host_alloc memory, read when its turn comes. */
    void (*copy_in_later)(struct kern_stream *s, void *dst, const void *src_pinned, size_t bytes);
    /* ST_OK: everything queued is done; ST_BUSY: not yet. For waits with a deadline. */
    status (*stream_poll)(struct kern_stream *s, struct err *err);
    status (*device_info)(struct kern_stream *s, struct kern_device *info_p, struct err *err);

    /* NULL where there is nothing to gain (CPU: run eagerly). Between begin and end ops are
     * recorded and not run; only ops, copy_in_later and copy_out to host_alloc memory may be called
     * then. Sizes and pointers are those of the recording, contents those at each launch. */
    status (*graph_begin)(struct kern_stream *s, struct err *err);
    status (*graph_end)(struct kern_stream *s, struct kern_graph **graph_p, struct err *err);
    status (*graph_launch)(struct kern_stream *s, struct kern_graph *graph, struct err *err);
    void (*graph_destroy)(struct kern_stream *s, struct kern_graph *graph); /* NULL is fine */
    /* The device's own handle of the stream (cudaStream_t), for libraries that queue on it; NULL
     * slot on CPU. */
    void *(*native)(struct kern_stream *s);

    /* Weights. mat->data holds mat_bytes(mat) zeroed bytes; every row of [0, n) is packed once. A
     * KERN_FP8 matrix takes rows of KERN_SRC_F8 with scales, and no other matrix does. */
    size_t (*mat_bytes)(const struct kern_mat *mat);
    void (*mat_pack)(struct kern_stream *s, struct kern_mat *mat, const struct kern_rows *rows);
    size_t (*embed_bytes)(const struct kern_embed *e);
    void (*embed_pack)(struct kern_stream *s, struct kern_embed *e, const struct kern_rows *rows);
    size_t (*kv_bytes)(const struct kern_kv *kv); /* of k, and the same again of v */

    /* x[T,C] f32 <- rows `ids` of the table, -0 made +0; a row not held here becomes all +0, so
     * that a sum over the slices is the owner's row exactly. */
    void (*embed)(struct kern_stream *s, float *x, const struct kern_embed *e, const uint32_t *ids,
                  uint32_t n_rows);
    /* y[T,C] fmt <- x[T,C] f32 / rms(x) * w[C] f32 */
    void (*rmsnorm)(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *x,
                    const float *w, uint32_t n_rows, uint32_t dim, float eps);
    /* y[T,N] f32 <- x[T,K] (in kern_fmt_of_x(w->fmt)) times W[N,K] transposed. With leaves: this rank's partial.
     */
    void (*gemm)(struct kern_stream *s, float *y, const void *x, const struct kern_mat *w,
                 uint32_t n_rows);
    /* y[T,N] += b[N] */
    void (*add_bias)(struct kern_stream *s, float *y, const float *b, uint32_t n_rows, uint32_t n);
    /* dst[i] = a[i] + b[i]; dst may be a or b. Residual and the collectives' tree. */
    void (*add)(struct kern_stream *s, float *dst, const float *a, const float *b, size_t n);
    /* qkv[T, (H+2K)*D] f32: per-head rmsnorm of q and of k (qk-norm models), w[D], in place. */
    void (*qk_norm)(struct kern_stream *s, float *qkv, const struct kern_qkv *g, const float *q_w,
                    const float *k_w, uint32_t n_rows, float eps);
    /* Rotate q and k of qkv[T, (H+2K)*D] in place (halves: i with i + D/2, as Hugging Face stores).
     */
    void (*rope)(struct kern_stream *s, float *qkv, const struct kern_qkv *g,
                 const struct kern_rope *rope, const struct kern_rows_map *map);
    /* Write k and v of qkv[T, (H+2K)*D] into the cache, rounded to kv->fmt. */
    void (*kv_store)(struct kern_stream *s, const struct kern_kv *kv, const float *qkv,
                     const struct kern_qkv *g, const struct kern_rows_map *map);
    /* out[T, H*D] (in kv->fmt) <- softmax(scale q k^T) v over positions [0, pos] of the row's
     * sequence; reads q from qkv[T, (H+2K)*D], k and v from the cache only. */
    void (*attention)(struct kern_stream *s, void *out, const struct kern_kv *kv, const float *qkv,
                      const struct kern_qkv *g, const struct kern_rows_map *map);
    /* y[T,F] fmt <- silu(gu[T, 0:F]) * gu[T, F:2F] */
    void (*silu_mul)(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *gu,
                     uint32_t n_rows, uint32_t ffn);
    /* dst[n,C] f32 <- rows[i] of src[T,C] */
    void (*gather)(struct kern_stream *s, float *dst, const float *src, const uint32_t *rows,
                   uint32_t n_rows, uint32_t dim);
    /* Reduce logits[V] f32 of one row, ids starting at id0 (a multiple of KERN_VOCAB_BLOCK), to
     * `scan` (host memory, whose arrays the caller provides). Waits: scan is valid on return. */
    void (*scan)(struct kern_stream *s, const float *logits, uint32_t id0, uint32_t n_ids,
                 const struct kern_sample *params, struct kern_scan *scan);
    /* The same for rows 0 .. n_rows - 1 of logits[n_rows, n_ids], queued: row i lies at flat +
     * rows[i].flat_offset as sample.h's flat scan after stream_sync. rows and flat are host_alloc
     * memory. The logits are as they were afterwards. NULL on CPU: call kern_scan_rows
     * (kernels/sample.h), which serves both. */
    void (*scan_rows)(struct kern_stream *s, float *logits, uint32_t id0, uint32_t n_ids,
                      uint32_t n_rows, const struct kern_scan_row *rows,
                      struct kern_adjusts adjusts, void *flat);

    /* ---- two ops in one launch, the same operations; NULL on CPU: call them one by one ---- */

    /* add(x, x, b), then rmsnorm(y, x). */
    void (*add_rmsnorm)(struct kern_stream *s, void *y, enum kern_fmt fmt, float *x, const float *b,
                        const float *w, uint32_t n_rows, uint32_t dim, float eps);
    /* rope, then kv_store. */
    void (*rope_store)(struct kern_stream *s, const struct kern_kv *kv, float *qkv,
                       const struct kern_qkv *g, const struct kern_rope *rope,
                       const struct kern_rows_map *map);

    /* ---- one step behind the other on a device; NULL on CPU ---- */

    /* mark: all that is queued so far is `mark` (< KERN_MARKS), which forgets what it was before; not
     * inside a recording. ST_OK: that is done (or there is no such mark); mark_poll: ST_BUSY if not,
     * never blocks. */
    void (*mark)(struct kern_stream *s, uint32_t mark);
    status (*mark_poll)(struct kern_stream *s, uint32_t mark, struct err *err);
    status (*mark_wait)(struct kern_stream *s, uint32_t mark, struct err *err);
    /* best[i] <- what row i's scan of scan_rows would choose of this slice's ids, where the sampling
     * is plain (sample_is_plain): with gumbel_all the best score and its id, else the best logit and
     * its id. Rows that are skipped, and all rows where n_ids is 0: (-inf, UINT32_MAX). */
    void (*pick)(struct kern_stream *s, struct kern_cand *best, const struct kern_scan_row *rows,
                 const void *flat, uint32_t n_ids, uint32_t n_rows);
    /* tokens[i] <- the id of the first among best[slice * stride + from[i] - 1] over the slices, by
     * (logit descending, id ascending); from[i] 0 leaves it. */
    void (*feed)(struct kern_stream *s, uint32_t *tokens, const uint32_t *from,
                 const struct kern_cand *best, uint32_t n_slices, uint32_t stride, uint32_t n_rows);

    /* ---- small sums over memory that devices of one host map from each other; NULL on CPU ---- */

    /* A window of this rank's, `self` of n (2, 4 or 8). id[KERN_PEER_ID_BYTES] goes to the others. */
    status (*peers_create)(struct kern_stream *s, uint32_t n, uint32_t self,
                           struct kern_peers **peers_p, void *id, struct err *err);
    /* Map the windows: ids[n][KERN_PEER_ID_BYTES]. ST_ERR_UNSUPPORTED: one of them cannot be mapped
     * here (another host, a device without a way to that one ...); the sentence says which and why. */
    status (*peers_open)(struct kern_stream *s, struct kern_peers *peers, const void *ids,
                         struct err *err);
    /* x[n] f32 in place, n <= KERN_PEER_FLOATS, x aligned: the sum over the ranks in the order of
     * cluster/coll.h's tree. Queued; may be recorded; the same calls in the same order on all. */
    void (*peers_sum)(struct kern_stream *s, struct kern_peers *peers, float *x, size_t n);
    /* Has a sum given up, for want of a peer? ST_ERR_PEER names the first that was missing. May be
     * called while sums run. */
    status (*peers_check)(const struct kern_peers *peers, struct err *err);
    /* Sums that wait for a peer, now or later, end without a result. */
    void (*peers_abort)(struct kern_peers *peers);
    /* NULL is fine. Nobody's sums run any more; after an abort that is not known, and the window is
     * left to the end of the process. */
    void (*peers_destroy)(struct kern_stream *s, struct kern_peers *peers);
};

/* The best CPU table that this machine runs, cpu_mask() applied; every part of it was compared with
 * kernels/ref on canned vectors first, and what differed was left out (`note` gets one sentence
 * about it, empty if all agree; may be NULL). Static storage. */
const struct kern_ops *kern_ops_cpu(struct err *note);
/* The specification: scalar and slow. */
const struct kern_ops *kern_ops_ref(void);
/* The table of exactly the path named by CPU flags (base/cpu.h), for tests; NULL if this CPU
 * cannot. */
const struct kern_ops *kern_ops_path(uint32_t cpu_flags);

/* ---- sizes on a CUDA device, for planning where there is none ---- */

/* What the CUDA table's mat_bytes says: outputs in runs of 16, each leaf's (fp8: group's) inputs in
 * runs of 32 (f32: 4). embed_bytes and kv_bytes are those of every table. */
size_t kern_mat_bytes_cuda(const struct kern_mat *mat);

/* ---- slices: who holds what of a row-parallel dimension ---- */

/* R of a model: the largest power of two that is at most n_heads and at most 8 (16 from 64 heads
 * on). Part of the numeric profile. */
uint32_t kern_leaves_for(uint32_t n_heads);
/* First unit of leaf i when n_units are cut into n_leaves: floor(i * n_units / n_leaves). */
uint32_t kern_leaf_begin(uint32_t n_units, uint32_t n_leaves, uint32_t i);

#endif
