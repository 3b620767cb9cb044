/* kernels/cuda/scan.cu - from rows of logits to flat scans (kernels/flat.h) in pinned memory.
 *
 * 1. A block per 1,024 ids and row: (max, sum) in the CPU's order (16 accumulators), the block's best
 *    key, its best Gumbel score. To scratch.
 * 2. A block per row: the best of the blocks' bests, the n best candidates by digit selection over
 *    the row's keys and one sort, and everything out to host memory, whose pages the device writes.
 *
 * An adjusted row goes through both steps twice: as it is; then a block per row changes single logits,
 * keeping what stood there (in pinned memory, a word per id); steps 1 and 2 again for these rows
 * alone; and a block per row puts back what stood there and reports it for the ids that were found.
 *
 * All of it depends on the row alone, and equals the CPU's scan of the same logits operation for
 * operation. Bytes: the logits once in step 1; in step 2 once per digit that is needed (mostly 4) and
 * once more, from the second-level cache. */
#include "kernels/adjust.h"
#include "kernels/cuda/select.cuh"
#include "kernels/cuda/stream.cuh"
#include "kernels/flat.h"
#include "kernels/philox.h"

#include <cstring>

enum { BLOCK_THREADS = 256, ROW_THREADS = 1024, LANES = 16 };

/* What step 1 says of a block of ids. */
struct block_scan {
    struct kern_lse lse, lse_temp;
    uint64_t best, gumbel; /* keys */
};

struct scan_args {
    float *logits; /* [n_rows, n_ids] */
    uint32_t id0, n_ids, n_blocks;
    bool is_second;                   /* of adjusted rows, as they are adjusted */
    const struct kern_scan_row *rows; /* device copy */
    struct block_scan *blocks;        /* [n_rows, n_blocks] */
    struct kern_adjusts adjusts;      /* pinned host memory */
    char *flat;                       /* pinned host memory */
};

/* One scan of a row: what is asked, and where it goes. n_cand 0: there is none in this pass. */
struct request {
    struct kern_sample params;
    size_t flat_offset;
};

__device__ static struct request request_of(const struct scan_args &a, uint32_t row)
{
    const struct kern_scan_row &line = a.rows[row];
    const struct kern_sample &p = line.params;
    struct request r = { p, line.flat_offset };

    if (a.is_second) {
        r.params.n_cand = line.n_raw != 0 ? p.n_cand : 0;
    } else if (line.n_raw != 0) {
        r.params = flat_raw_params(line.n_raw);
        r.flat_offset += flat_parts(p.temperature != 0.0f, p.n_cand, line.n_raw, a.n_ids).raw;
    }
    return r;
}

/* ---- step 1 ---- */

/* The largest of `key` over the block's threads, in thread 0. */
__device__ static uint64_t block_max(uint64_t key, uint64_t *warps)
{
    for (int d = 16; d > 0; d /= 2) {
        const uint64_t other = __shfl_xor_sync(~0u, key, d);

        key = other > key ? other : key;
    }
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = key;
    }
    __syncthreads();
    for (uint32_t i = 1; threadIdx.x == 0 && i < blockDim.x / 32; i++) {
        key = warps[i] > key ? warps[i] : key;
    }
    __syncthreads();
    return key;
}

/* (max, sum of exp(x - max)) of x[n], n <= KERN_VOCAB_BLOCK, without NaN; e is as large. */
__device__ static struct kern_lse block_lse(const float *x, float *e, uint32_t n, float *warps)
{
    struct kern_lse r = { -INFINITY, 0.0f };

    for (uint32_t i = threadIdx.x; i < n; i += BLOCK_THREADS) {
        r.max = x[i] > r.max ? x[i] : r.max;
    }
    for (int d = 16; d > 0; d /= 2) {
        r.max = fmaxf(r.max, __shfl_xor_sync(~0u, r.max, d));
    }
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = r.max;
    }
    __syncthreads();
    for (uint32_t i = 0; i < BLOCK_THREADS / 32; i++) {
        r.max = fmaxf(r.max, warps[i]);
    }
    r.max = r.max + 0.0f;
    if (r.max != -INFINITY) {
        for (uint32_t i = threadIdx.x; i < n; i += BLOCK_THREADS) {
            e[i] = x[i] == r.max ? 1.0f : k_expf(x[i] - r.max);
        }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        if (threadIdx.x < LANES && r.max != -INFINITY) {
            for (uint32_t i = threadIdx.x; i < n; i += LANES) {
                r.sum = r.sum + e[i];
            }
        }
        for (int d = LANES / 2; d > 0; d /= 2) {
            r.sum = r.sum + __shfl_xor_sync(~0u, r.sum, d);
        }
    }
    __syncthreads();
    return r; /* the sum is thread 0's */
}

/* blockIdx: block of ids, row. */
__global__ static void __launch_bounds__(BLOCK_THREADS)
    scan_blocks_kernel(const __grid_constant__ struct scan_args a)
{
    __shared__ float x[KERN_VOCAB_BLOCK], e[KERN_VOCAB_BLOCK], warps[BLOCK_THREADS / 32];
    __shared__ uint64_t keys[BLOCK_THREADS / 32];
    const uint32_t first = blockIdx.x * KERN_VOCAB_BLOCK;
    const uint32_t n = min(a.n_ids - first, (uint32_t)KERN_VOCAB_BLOCK);
    const float *row = a.logits + (size_t)blockIdx.y * a.n_ids + first;
    struct block_scan out = {};
    uint64_t best = 0, gumbel = 0;

    begin_op();
    const struct kern_sample params = request_of(a, blockIdx.y).params;

    if (params.n_cand == 0) {
        return;
    }
    for (uint32_t i = threadIdx.x; i < n; i += BLOCK_THREADS) {
        const uint32_t id = a.id0 + first + i;
        const uint64_t key = cu_key(row[i], id);

        x[i] = cu_clean(row[i]);
        best = key > best ? key : best;
        if (params.gumbel_all) {
            const uint64_t score =
                cu_key(x[i] / params.temperature +
                           gumbel_noise(params.seed, params.choice, params.pos, id),
                       id);

            gumbel = score > gumbel ? score : gumbel;
        }
    }
    __syncthreads();
    out.lse = block_lse(x, e, n, warps);
    if (params.temperature != 0.0f) {
        for (uint32_t i = threadIdx.x; i < n; i += BLOCK_THREADS) {
            x[i] = x[i] / params.temperature;
        }
        __syncthreads();
        out.lse_temp = block_lse(x, e, n, warps);
    }
    out.best = block_max(best, keys);
    out.gumbel = block_max(gumbel, keys);
    if (threadIdx.x == 0) {
        a.blocks[(size_t)blockIdx.y * a.n_blocks + blockIdx.x] = out;
    }
}

/* ---- step 2 ---- */

/* The n-th largest key of a row, n >= 1, n <= n_ids. */
__device__ static uint64_t nth_key(const struct scan_args &a, const float *row, uint32_t n,
                                   uint32_t *counts, uint32_t *shared_want)
{
    uint64_t prefix = 0;
    uint32_t want = n;

    for (uint32_t digit = 0; digit < CU_DIGITS; digit++) {
        for (uint32_t i = threadIdx.x; i < CU_BINS; i += ROW_THREADS) {
            counts[i] = 0;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < (a.n_ids + 31) / 32 * 32; i += ROW_THREADS) {
            const uint64_t key = i < a.n_ids ? cu_key(row[i], a.id0 + i) : 0;
            const bool in = i < a.n_ids && cu_key_matches(key, prefix, digit);
            const uint32_t bin = in ? cu_key_digit(key, digit) : (uint32_t)CU_BINS;
            /* Most keys share their first digit: one addition per value and warp. */
            const uint32_t same = __match_any_sync(~0u, bin);

            if (in && threadIdx.x % 32 == (uint32_t)__ffs((int)same) - 1) {
                atomicAdd(&counts[bin], (uint32_t)__popc(same));
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            shared_want[1] = cu_pick_digit(counts, want, &shared_want[0]);
            shared_want[2] = counts[shared_want[1]];
        }
        __syncthreads();
        const uint32_t bin = shared_want[1], have = shared_want[2];

        want = shared_want[0];
        prefix |= (uint64_t)bin << (64 - (digit + 1) * CU_DIGIT_BITS);
        __syncthreads();
        if (have == want) {
            break; /* all that share the digits so far are wanted: the rest of the key is 0 */
        }
    }
    return prefix;
}

/* Sort keys[KERN_CAND_MAX], largest first. */
__device__ static void sort_keys(uint64_t *keys)
{
    for (uint32_t size = 2; size <= KERN_CAND_MAX; size *= 2) {
        for (uint32_t d = size / 2; d > 0; d /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < KERN_CAND_MAX; i += ROW_THREADS) {
                const uint32_t j = i ^ d;

                if (j > i) {
                    const uint64_t lo = keys[i], hi = keys[j];

                    if ((lo < hi) == ((i & size) == 0)) {
                        keys[i] = hi;
                        keys[j] = lo;
                    }
                }
            }
        }
    }
    __syncthreads();
}

/* keys[0, n) <- the n best of the row, best first. */
__device__ static void best_keys(const struct scan_args &a, const float *row, uint32_t n,
                                 uint64_t *keys, uint32_t *counts, uint32_t *shared_want)
{
    __shared__ uint32_t have;
    const uint64_t least = nth_key(a, row, n, counts, shared_want);

    for (uint32_t i = threadIdx.x; i < KERN_CAND_MAX; i += ROW_THREADS) {
        keys[i] = 0;
    }
    if (threadIdx.x == 0) {
        have = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.n_ids; i += ROW_THREADS) {
        const uint64_t key = cu_key(row[i], a.id0 + i);

        if (key >= least) {
            keys[atomicAdd(&have, 1u)] = key; /* in any order: they are sorted next */
        }
    }
    sort_keys(keys);
}

/* The largest of the row's blocks' keys, to every thread. */
__device__ static uint64_t best_of_blocks(const struct block_scan *blocks, uint32_t n, bool gumbel,
                                          uint64_t *warps)
{
    __shared__ uint64_t best;
    uint64_t key = 0;

    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        const uint64_t other = gumbel ? blocks[i].gumbel : blocks[i].best;

        key = other > key ? other : key;
    }
    key = block_max(key, warps);
    if (threadIdx.x == 0) {
        best = key;
    }
    __syncthreads();
    key = best;
    __syncthreads();
    return key;
}

/* The score of a Gumbel winner, once more. */
__device__ static struct kern_cand gumbel_of(const struct kern_sample &p, uint32_t id, float logit)
{
    return { cu_clean(logit) / p.temperature + gumbel_noise(p.seed, p.choice, p.pos, id), id };
}

/* blockIdx.x: row. */
__global__ static void __launch_bounds__(ROW_THREADS)
    scan_rows_kernel(const __grid_constant__ struct scan_args a)
{
    __shared__ uint64_t keys[KERN_CAND_MAX], warps[ROW_THREADS / 32];
    __shared__ uint32_t counts[CU_BINS], shared_want[3];

    begin_op();
    const struct request line = request_of(a, blockIdx.x);
    const struct kern_sample &p = line.params;
    const uint32_t n = min(p.n_cand, a.n_ids);
    const float *row = a.logits + (size_t)blockIdx.x * a.n_ids;
    const struct block_scan *blocks = a.blocks + (size_t)blockIdx.x * a.n_blocks;

    if (n == 0) {
        return;
    }
    const struct flat_layout f = flat_layout(p.temperature != 0.0f, p.n_cand, a.n_ids);
    char *flat = a.flat + line.flat_offset;
    const uint64_t best = best_of_blocks(blocks, a.n_blocks, false, warps);
    const uint64_t gumbel = best_of_blocks(blocks, a.n_blocks, true, warps);

    if (n == 1) {
        if (threadIdx.x == 0) {
            keys[0] = best;
        }
        __syncthreads();
    } else {
        best_keys(a, row, n, keys, counts, shared_want);
    }
    for (uint32_t i = threadIdx.x; i < a.n_blocks; i += ROW_THREADS) {
        ((struct kern_lse *)(flat + sizeof(struct flat_head)))[i] = blocks[i].lse;
        if (p.temperature != 0.0f) {
            ((struct kern_lse *)(flat + f.lse_temp))[i] = blocks[i].lse_temp;
        }
    }
    for (uint32_t i = threadIdx.x; i < n; i += ROW_THREADS) {
        const uint32_t id = cu_key_id(keys[i]);

        ((struct kern_cand *)(flat + f.cand))[i] = { cu_clean(row[id - a.id0]), id };
    }
    for (size_t i = f.end + threadIdx.x * 4; i < f.bytes; i += ROW_THREADS * 4) {
        *(uint32_t *)(flat + i) = 0; /* what has a length in bytes here is a multiple of 4 */
    }
    if (threadIdx.x == 0) {
        struct flat_head head = {};

        if (p.gumbel_all) {
            const uint32_t id = cu_key_id(gumbel);

            head.gumbel = gumbel_of(p, id, row[id - a.id0]);
            head.gumbel_logit = cu_clean(row[id - a.id0]);
        }
        *(struct flat_head *)flat = head;
    }
}

/* ---- adjusted rows ---- */

/* blockIdx.x: row. Counts first; ids of one kind differ, so the order within a kind is free. */
__global__ static void __launch_bounds__(BLOCK_THREADS)
    adjust_kernel(const __grid_constant__ struct scan_args a)
{
    begin_op();
    const struct kern_scan_row &line = a.rows[blockIdx.x];
    const uint32_t n = line.n_raw != 0 ? line.n_counts + line.n_biases : 0;
    const struct kern_adjust *e = a.adjusts.entries + line.entry0;
    float *saved = a.adjusts.saved + line.entry0;
    float *row = a.logits + (size_t)blockIdx.x * a.n_ids;

    for (uint32_t kind = 0; kind < 2; kind++) {
        const uint32_t begin = kind == 0 ? 0 : min(line.n_counts, n);
        const uint32_t end = kind == 0 ? min(line.n_counts, n) : n;

        for (uint32_t i = begin + threadIdx.x; i < end; i += BLOCK_THREADS) {
            const uint32_t at = e[i].id - a.id0;

            if (at < a.n_ids) {
                const float x = row[at];

                saved[i] = x;
                row[at] = kind == 0 ? adjust_count(x, &line.penalties, e[i].n_made)
                                    : adjust_bias(x, e[i].bias);
            }
        }
        __syncthreads();
    }
}

/* blockIdx.x: row. Biases are taken back first; then what the model gave to the ids of the scan. */
__global__ static void __launch_bounds__(BLOCK_THREADS)
    restore_kernel(const __grid_constant__ struct scan_args a)
{
    begin_op();
    const struct kern_scan_row &line = a.rows[blockIdx.x];
    const struct kern_sample &p = line.params;
    const uint32_t n = line.n_raw != 0 ? line.n_counts + line.n_biases : 0;
    const struct kern_adjust *e = a.adjusts.entries + line.entry0;
    const float *saved = a.adjusts.saved + line.entry0;
    float *row = a.logits + (size_t)blockIdx.x * a.n_ids;

    for (uint32_t kind = 0; kind < 2; kind++) {
        const uint32_t begin = kind == 0 ? min(line.n_counts, n) : 0;
        const uint32_t end = kind == 0 ? n : min(line.n_counts, n);

        for (uint32_t i = begin + threadIdx.x; i < end; i += BLOCK_THREADS) {
            const uint32_t at = e[i].id - a.id0;

            if (at < a.n_ids) {
                row[at] = saved[i];
            }
        }
        __syncthreads();
    }
    if (line.n_raw == 0) {
        return;
    }
    const struct flat_layout f = flat_layout(p.temperature != 0.0f, p.n_cand, a.n_ids);
    const struct flat_parts parts =
        flat_parts(p.temperature != 0.0f, p.n_cand, line.n_raw, a.n_ids);
    char *flat = a.flat + line.flat_offset;
    const struct kern_cand *cand = (const struct kern_cand *)(flat + f.cand);
    float *picked = (float *)(flat + parts.picked);
    const uint32_t n_cand = min(p.n_cand, a.n_ids);

    for (uint32_t i = threadIdx.x; i < n_cand; i += BLOCK_THREADS) {
        picked[1 + i] = cu_clean(row[cand[i].id - a.id0]);
    }
    for (size_t i = parts.end + threadIdx.x * 4; i < parts.bytes; i += BLOCK_THREADS * 4) {
        *(uint32_t *)(flat + i) = 0;
    }
    if (threadIdx.x == 0) {
        const struct flat_head *head = (const struct flat_head *)flat;

        picked[0] = p.gumbel_all ? cu_clean(row[head->gumbel.id - a.id0]) : 0.0f;
    }
}

/* ---- queueing ---- */

static size_t align_up(size_t n)
{
    return (n + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
}

static void queue_scans(struct kern_stream *s, const struct scan_args &a, uint32_t n_rows)
{
    cu_launch(s, "scan", scan_blocks_kernel, dim3(a.n_blocks, n_rows), BLOCK_THREADS, 0, a);
    cu_launch(s, "scan", scan_rows_kernel, dim3(n_rows), ROW_THREADS, 0, a);
}

static void scan_rows(struct kern_stream *s, float *logits, uint32_t id0, uint32_t n_ids,
                      uint32_t n_rows, const struct kern_scan_row *rows,
                      struct kern_adjusts adjusts, void *flat)
{
    const uint32_t n_blocks = div_up(n_ids, KERN_VOCAB_BLOCK);
    const size_t per_row = n_blocks * sizeof(struct block_scan) + sizeof(struct kern_scan_row);
    const size_t room = (SCRATCH_BYTES - 2 * KERN_ALIGN) / per_row;
    const uint32_t most = (uint32_t)(room < 65535 ? room : 65535); /* rows are a grid's y */

    for (uint32_t done = 0; n_ids != 0 && done < n_rows; done += most) {
        const uint32_t n = n_rows - done < most ? n_rows - done : most;
        const size_t rows_bytes = n * sizeof(struct kern_scan_row);
        struct scan_args a = { logits + (size_t)done * n_ids,
                               id0,
                               n_ids,
                               n_blocks,
                               false,
                               (const struct kern_scan_row *)s->scratch,
                               (struct block_scan *)(s->scratch + align_up(rows_bytes)),
                               adjusts,
                               (char *)flat };

        cu_note(
            s, cudaMemcpyAsync(s->scratch, rows + done, rows_bytes, cudaMemcpyHostToDevice, s->raw),
            "scan");
        queue_scans(s, a, n);
        if (adjusts.entries != NULL) {
            a.is_second = true;
            cu_launch(s, "adjust", adjust_kernel, dim3(n), BLOCK_THREADS, 0, a);
            queue_scans(s, a, n);
            cu_launch(s, "adjust", restore_kernel, dim3(n), BLOCK_THREADS, 0, a);
        }
    }
}

/* One row, waited for: through pinned memory of the staging buffers. */
static void scan(struct kern_stream *s, const float *logits, uint32_t id0, uint32_t n_ids,
                 const struct kern_sample *params, struct kern_scan *scan)
{
    const struct kern_adjusts none = {};
    const struct flat_layout f = flat_layout(params->temperature != 0.0f, params->n_cand, n_ids);
    const size_t row_bytes = align_up(sizeof(struct kern_scan_row));
    char *at = cu_stage(s, row_bytes + f.bytes);
    struct kern_scan_row *row = (struct kern_scan_row *)at;
    const char *flat = at + row_bytes;
    const uint32_t n_blocks = div_up(n_ids, KERN_VOCAB_BLOCK);
    struct flat_head head;

    memset(row, 0, sizeof *row);
    row->params = *params;
    /* Without adjustments nothing is written to the logits. */
    scan_rows(s, const_cast<float *>(logits), id0, n_ids, 1, row, none, at + row_bytes);
    cu_note(s, cudaStreamSynchronize(s->raw), "scan");
    memcpy(&head, flat, sizeof head);
    memcpy(scan->lse, flat + sizeof head, n_blocks * sizeof(struct kern_lse));
    if (params->temperature != 0.0f) {
        memcpy(scan->lse_temp, flat + f.lse_temp, n_blocks * sizeof(struct kern_lse));
    }
    memcpy(scan->cand, flat + f.cand, f.end - f.cand);
    if (params->gumbel_all) {
        scan->gumbel = head.gumbel;
        scan->gumbel_logit = head.gumbel_logit;
    }
}

void cu_ops_scan(struct kern_ops *ops)
{
    ops->scan = scan;
    ops->scan_rows = scan_rows;
}
