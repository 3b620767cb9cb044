/* kernels/cuda/elem.cu - ops whose outputs depend on a few inputs each, and the norms.
 *
 * Element by element the operations are those of kernels/ref, with the same roundings (the file is
 * compiled without contraction). The norm before a product differs in bf16: 256 accumulators in
 * place of 16 (docs/numerics.md, "The CUDA profiles"); norms in f32 and per head keep the 16.
 * Bytes: each input once, each output once; at decode sizes the launch is the cost. */
#include "kernels/cuda/stream.cuh"

enum { THREADS = 256 };

/* A grid that covers n elements, a thread each, in at most so many blocks as fill the device. */
static dim3 cover(const struct kern_stream *s, size_t n)
{
    const uint32_t most = s->n_sm * 16, want = div_up(n, THREADS);

    return dim3(want < most ? want : most);
}

/* A grid for rows of `width` elements: columns in x, rows in y, so that no thread divides. */
static dim3 rows_of(uint32_t n_rows, uint32_t width)
{
    return dim3(div_up(width, THREADS), n_rows < 65535 ? n_rows : 65535);
}

__device__ static uint32_t column()
{
    return blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ static size_t first_index()
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ static size_t index_step()
{
    return (size_t)gridDim.x * blockDim.x;
}

/* ---- rows of a table ---- */

__global__ static void embed_kernel(float *x, struct kern_embed e, const uint32_t *ids,
                                    uint32_t n_rows)
{
    const uint32_t i = column();

    begin_op();
    for (uint32_t t = blockIdx.y; i < e.dim && t < n_rows; t += gridDim.y) {
        const uint32_t id = ids[t];
        float v = 0.0f;

        if (id >= e.row0 && id - e.row0 < e.n_rows) {
            const size_t at = (size_t)(id - e.row0) * e.dim + i;

            v = e.fmt == KERN_BF16 ? bf16_to_f32(((const uint16_t *)e.data)[at])
                                   : ((const float *)e.data)[at];
        }
        x[(size_t)t * e.dim + i] = v + 0.0f;
    }
}

static void embed(struct kern_stream *s, float *x, const struct kern_embed *e, const uint32_t *ids,
                  uint32_t n_rows)
{
    cu_launch(s, "embed", embed_kernel, rows_of(n_rows, e->dim), THREADS, 0, x, *e, ids, n_rows);
}

__global__ static void gather_kernel(float *dst, const float *src, const uint32_t *rows,
                                     uint32_t n_rows, uint32_t dim)
{
    const uint32_t i = column();

    begin_op();
    for (uint32_t t = blockIdx.y; i < dim && t < n_rows; t += gridDim.y) {
        dst[(size_t)t * dim + i] = src[(size_t)rows[t] * dim + i];
    }
}

static void gather(struct kern_stream *s, float *dst, const float *src, const uint32_t *rows,
                   uint32_t n_rows, uint32_t dim)
{
    cu_launch(s, "gather", gather_kernel, rows_of(n_rows, dim), THREADS, 0, dst, src, rows, n_rows,
              dim);
}

/* ---- sums of two ---- */

/* dst may be a or b: an element is read and written by one thread. 16 bytes at a time; pointers
 * are KERN_ALIGN-aligned. */
__global__ static void add_kernel(float *dst, const float *a, const float *b, size_t n)
{
    begin_op();
    for (size_t i = first_index(); i < n / 4; i += index_step()) {
        const float4 p = ((const float4 *)a)[i], q = ((const float4 *)b)[i];

        ((float4 *)dst)[i] = make_float4(p.x + q.x, p.y + q.y, p.z + q.z, p.w + q.w);
    }
    for (size_t i = n / 4 * 4 + first_index(); i < n; i += index_step()) {
        dst[i] = a[i] + b[i];
    }
}

static void add(struct kern_stream *s, float *dst, const float *a, const float *b, size_t n)
{
    cu_launch(s, "add", add_kernel, cover(s, (n + 3) / 4), THREADS, 0, dst, a, b, n);
}

__global__ static void add_bias_kernel(float *y, const float *b, uint32_t n_rows, uint32_t n)
{
    const uint32_t i = column();

    begin_op();
    for (uint32_t t = blockIdx.y; i < n && t < n_rows; t += gridDim.y) {
        y[(size_t)t * n + i] = y[(size_t)t * n + i] + b[i];
    }
}

static void add_bias(struct kern_stream *s, float *y, const float *b, uint32_t n_rows, uint32_t n)
{
    cu_launch(s, "add_bias", add_bias_kernel, rows_of(n_rows, n), THREADS, 0, y, b, n_rows, n);
}

__global__ static void silu_mul_kernel(void *y, enum kern_fmt fmt, const float *gu, uint32_t n_rows,
                                       uint32_t ffn)
{
    const uint32_t i = column();

    begin_op();
    for (uint32_t t = blockIdx.y; i < ffn && t < n_rows; t += gridDim.y) {
        const float *gate = gu + (size_t)t * 2 * ffn + i;
        const float x = gate[0];

        store_fmt(y, fmt, (size_t)t * ffn + i, x / (1.0f + k_expf(-x)) * gate[ffn]);
    }
}

static void silu_mul(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *gu,
                     uint32_t n_rows, uint32_t ffn)
{
    cu_launch(s, "silu_mul", silu_mul_kernel, rows_of(n_rows, ffn), THREADS, 0, y, fmt, gu, n_rows,
              ffn);
}

/* ---- norms ---- */

/* Sum over 256 accumulators, one per thread: pairs of lanes 16, 8, 4, 2, 1 apart, then of warps 4,
 * 2, 1 apart. A sum of two does not depend on which is first, so every thread gets the same. */
__device__ static float sum_256(float acc, float warps[8])
{
    for (int d = 16; d > 0; d /= 2) {
        acc = acc + __shfl_xor_sync(~0u, acc, d);
    }
    if (threadIdx.x % 32 == 0) {
        warps[threadIdx.x / 32] = acc;
    }
    __syncthreads();
    const float a = warps[0] + warps[4], b = warps[1] + warps[5];
    const float c = warps[2] + warps[6], d = warps[3] + warps[7];

    return (a + c) + (b + d);
}

/* Elements 4i .. 4i+3 of a row, i = threadIdx.x + 256 j. A thread keeps KEEP such in registers (rows of
 * up to 8,192 elements): all are asked for before the first is used, and none is read twice. */
enum { KEEP = 8 };

__device__ static float4 plus(const float4 &p, const float4 &q)
{
    return make_float4(p.x + q.x, p.y + q.y, p.z + q.z, p.w + q.w);
}

__device__ static float squares(const float4 &v, float acc)
{
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, acc))));
}

__device__ static void store_normed(uint16_t *y, const float4 &v, float inv, const float4 &w)
{
    *(uint2 *)y = make_uint2(pack_bf16((v.x * inv) * w.x, (v.y * inv) * w.y),
                             pack_bf16((v.z * inv) * w.z, (v.w * inv) * w.w));
}

/* One block per row. Accumulator t takes elements 4t .. 4t+3 of every 1,024. The row is x, or x + b,
 * which then becomes x. w is asked for before the op ahead is over: it does not change. */
template <bool ADD>
__global__ static void __launch_bounds__(THREADS)
    rmsnorm_kept_kernel(uint16_t *y, float *x, const float *b, const float *w, uint32_t dim,
                        float eps)
{
    __shared__ float warps[8];
    float4 *const row = (float4 *)(x + (size_t)blockIdx.x * dim);
    const float4 *const more = ADD ? (const float4 *)(b + (size_t)blockIdx.x * dim) : nullptr;
    uint16_t *const out = y + (size_t)blockIdx.x * dim;
    const uint32_t n = dim / 4;
    float4 v[KEEP], wv[KEEP];
    float acc = 0.0f;

    let_next_start();
#pragma unroll
    for (uint32_t j = 0; j < KEEP; j++) {
        const uint32_t i = threadIdx.x + j * THREADS;

        if (i < n) {
            wv[j] = ((const float4 *)w)[i];
        }
    }
    wait_for_previous();
#pragma unroll
    for (uint32_t j = 0; j < KEEP; j++) {
        const uint32_t i = threadIdx.x + j * THREADS;

        if (i < n) {
            v[j] = row[i];
            if constexpr (ADD) {
                v[j] = plus(v[j], more[i]);
            }
        }
    }
#pragma unroll
    for (uint32_t j = 0; j < KEEP; j++) {
        const uint32_t i = threadIdx.x + j * THREADS;

        if (i < n) {
            acc = squares(v[j], acc);
            if constexpr (ADD) {
                row[i] = v[j];
            }
        }
    }
    const float inv = 1.0f / sqrtf(sum_256(acc, warps) / (float)dim + eps);

#pragma unroll
    for (uint32_t j = 0; j < KEEP; j++) {
        const uint32_t i = threadIdx.x + j * THREADS;

        if (i < n) {
            store_normed(out + 4 * i, v[j], inv, wv[j]);
        }
    }
}

/* The same for rows of any length. */
template <bool ADD>
__global__ static void __launch_bounds__(THREADS)
    rmsnorm_any_kernel(uint16_t *y, float *x, const float *b, const float *w, uint32_t dim,
                       float eps)
{
    __shared__ float warps[8];
    float *const row = x + (size_t)blockIdx.x * dim;
    uint16_t *const out = y + (size_t)blockIdx.x * dim;
    float acc = 0.0f;

    begin_op();
    for (uint32_t i = threadIdx.x * 4; i < dim; i += THREADS * 4) {
        for (uint32_t e = i; e < i + 4 && e < dim; e++) {
            if constexpr (ADD) {
                row[e] = row[e] + b[(size_t)blockIdx.x * dim + e];
            }
            acc = fmaf(row[e], row[e], acc);
        }
    }
    const float inv = 1.0f / sqrtf(sum_256(acc, warps) / (float)dim + eps); /* a barrier is in it */

    for (uint32_t i = threadIdx.x; i < dim; i += THREADS) {
        out[i] = bf16_from_f32((row[i] * inv) * w[i]);
    }
}

template <bool ADD>
static void rmsnorm_bf16(struct kern_stream *s, void *y, float *x, const float *b, const float *w,
                         uint32_t n_rows, uint32_t dim, float eps)
{
    const bool kept = dim % 4 == 0 && dim <= THREADS * 4 * KEEP;

    cu_launch(s, "rmsnorm", kept ? rmsnorm_kept_kernel<ADD> : rmsnorm_any_kernel<ADD>, dim3(n_rows),
              THREADS, 0, (uint16_t *)y, x, b, w, dim, eps);
}

/* 1 / rms of x[dim] by the 16 accumulators of the CPU: lane l < 16 is accumulator l. A whole warp
 * calls it. */
__device__ static float inv_rms_16(const float *x, uint32_t dim, float eps)
{
    const uint32_t lane = threadIdx.x % 32;
    float acc = 0.0f;

    if (lane < 16) {
        for (uint32_t i = lane; i < dim; i += 16) {
            acc = fmaf(x[i], x[i], acc);
        }
    }
    for (int d = 8; d > 0; d /= 2) {
        acc = acc + __shfl_xor_sync(~0u, acc, d);
    }
    return 1.0f / sqrtf(__shfl_sync(~0u, acc, 0) / (float)dim + eps);
}

/* One warp per row: for f32, where order matters more than speed. */
__global__ static void rmsnorm_f32_kernel(float *y, const float *x, const float *w, uint32_t n_rows,
                                          uint32_t dim, float eps)
{
    const uint32_t t = (blockIdx.x * blockDim.x + threadIdx.x) / 32;

    begin_op();
    if (t < n_rows) {
        const float *row = x + (size_t)t * dim;
        const float inv = inv_rms_16(row, dim, eps);

        for (uint32_t i = threadIdx.x % 32; i < dim; i += 32) {
            y[(size_t)t * dim + i] = (row[i] * inv) * w[i];
        }
    }
}

static void rmsnorm(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *x,
                    const float *w, uint32_t n_rows, uint32_t dim, float eps)
{
    if (fmt == KERN_BF16) {
        /* Without a second row nothing is written to x. */
        rmsnorm_bf16<false>(s, y, const_cast<float *>(x), nullptr, w, n_rows, dim, eps);
    } else {
        cu_launch(s, "rmsnorm", rmsnorm_f32_kernel, dim3(div_up(n_rows, 8)), THREADS, 0, (float *)y,
                  x, w, n_rows, dim, eps);
    }
}

static void add_rmsnorm(struct kern_stream *s, void *y, enum kern_fmt fmt, float *x, const float *b,
                        const float *w, uint32_t n_rows, uint32_t dim, float eps)
{
    if (fmt == KERN_BF16) {
        rmsnorm_bf16<true>(s, y, x, b, w, n_rows, dim, eps);
    } else {
        add(s, x, x, b, (size_t)n_rows * dim);
        rmsnorm(s, y, fmt, x, w, n_rows, dim, eps);
    }
}

/* One warp per row and head, q heads first, then k heads, as they lie. */
__global__ static void qk_norm_kernel(float *qkv, struct kern_qkv g, const float *q_w,
                                      const float *k_w, uint32_t n_rows, float eps)
{
    const uint32_t n_heads = g.n_heads + g.n_kv_heads, all = g.n_heads + 2 * g.n_kv_heads;
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) / 32;

    begin_op();
    if (i < n_rows * n_heads) {
        const uint32_t h = i % n_heads;
        float *x = qkv + ((size_t)(i / n_heads) * all + h) * g.head_dim;
        const float *w = h < g.n_heads ? q_w : k_w;
        const float inv = inv_rms_16(x, g.head_dim, eps);

        __syncwarp();
        for (uint32_t d = threadIdx.x % 32; d < g.head_dim; d += 32) {
            x[d] = (x[d] * inv) * w[d];
        }
    }
}

static void qk_norm(struct kern_stream *s, float *qkv, const struct kern_qkv *g, const float *q_w,
                    const float *k_w, uint32_t n_rows, float eps)
{
    const uint32_t warps = n_rows * (g->n_heads + g->n_kv_heads);

    cu_launch(s, "qk_norm", qk_norm_kernel, dim3(div_up(warps, 8)), THREADS, 0, qkv, *g, q_w, k_w,
              n_rows, eps);
}

/* ---- positions and the cache ---- */

__global__ static void rope_kernel(float *qkv, struct kern_qkv g, struct kern_rope rope,
                                   const uint32_t *pos, uint32_t n_rows)
{
    const uint32_t half = g.head_dim / 2, i = column(), d = i % half, h = i / half;
    const size_t row = (size_t)(g.n_heads + 2 * g.n_kv_heads) * g.head_dim;

    begin_op();
    for (uint32_t t = blockIdx.y; h < g.n_heads + g.n_kv_heads && t < n_rows; t += gridDim.y) {
        const size_t at = (size_t)pos[t] * half + d;
        const float c = rope.cos[at], s = rope.sin[at];
        float *x = qkv + t * row + (size_t)h * g.head_dim + d;
        const float x1 = x[0], x2 = x[half];

        x[0] = fmaf(x1, c, -(x2 * s));
        x[half] = fmaf(x2, c, x1 * s);
    }
}

static void rope(struct kern_stream *s, float *qkv, const struct kern_qkv *g,
                 const struct kern_rope *rope, const struct kern_rows_map *map)
{
    const uint32_t width = (g->n_heads + g->n_kv_heads) * (g->head_dim / 2);

    cu_launch(s, "rope", rope_kernel, rows_of(map->n_rows, width), THREADS, 0, qkv, *g, *rope,
              map->pos, map->n_rows);
}

/* A thread stores one element of k and one of v. */
__global__ static void kv_store_kernel(struct kern_kv kv, const float *qkv, struct kern_qkv g,
                                       struct kern_rows_map map)
{
    const uint32_t i = column(), d = i % g.head_dim, h = i / g.head_dim;
    const size_t row = (size_t)(g.n_heads + 2 * g.n_kv_heads) * g.head_dim;

    begin_op();
    for (uint32_t t = blockIdx.y; h < g.n_kv_heads && t < map.n_rows; t += gridDim.y) {
        const uint32_t pos = map.pos[t], slot = pos % KERN_KV_BLOCK;
        const uint32_t block =
            map.tables[(size_t)map.seq[t] * map.table_stride + pos / KERN_KV_BLOCK];
        const float *k = qkv + t * row + (size_t)(g.n_heads + h) * g.head_dim + d;
        const size_t base = cu_kv_base(&kv, block, h);

        store_fmt(kv.k, kv.fmt, base + cu_k_at(&kv, d, slot), k[0]);
        store_fmt(kv.v, kv.fmt, base + cu_v_at(&kv, d, slot), k[(size_t)g.n_kv_heads * g.head_dim]);
    }
}

static void kv_store(struct kern_stream *s, const struct kern_kv *kv, const float *qkv,
                     const struct kern_qkv *g, const struct kern_rows_map *map)
{
    cu_launch(s, "kv_store", kv_store_kernel, rows_of(map->n_rows, g->n_kv_heads * g->head_dim),
              THREADS, 0, *kv, qkv, *g, *map);
}

/* rope and kv_store at once: a thread rotates one pair of q or k, and stores a pair of k or v. */
__global__ static void rope_store_kernel(struct kern_kv kv, float *qkv, struct kern_qkv g,
                                         struct kern_rope rope, struct kern_rows_map map)
{
    const uint32_t half = g.head_dim / 2, i = column(), d = i % half, h = i / half;
    const uint32_t first_v = g.n_heads + g.n_kv_heads, n_all = first_v + g.n_kv_heads;

    begin_op();
    for (uint32_t t = blockIdx.y; h < n_all && t < map.n_rows; t += gridDim.y) {
        const uint32_t pos = map.pos[t], slot = pos % KERN_KV_BLOCK;
        float *x = qkv + ((size_t)t * n_all + h) * g.head_dim + d;
        float x1 = x[0], x2 = x[half];

        if (h < first_v) {
            const size_t at = (size_t)pos * half + d;
            const float c = rope.cos[at], s = rope.sin[at], y1 = fmaf(x1, c, -(x2 * s));

            x2 = fmaf(x2, c, x1 * s);
            x1 = y1;
            x[0] = x1;
            x[half] = x2;
        }
        if (h >= g.n_heads) {
            const uint32_t kv_head = (h - g.n_heads) % g.n_kv_heads;
            const uint32_t block =
                map.tables[(size_t)map.seq[t] * map.table_stride + pos / KERN_KV_BLOCK];
            const size_t base = cu_kv_base(&kv, block, kv_head);

            if (h < first_v) {
                store_fmt(kv.k, kv.fmt, base + cu_k_at(&kv, d, slot), x1);
                store_fmt(kv.k, kv.fmt, base + cu_k_at(&kv, d + half, slot), x2);
            } else {
                store_fmt(kv.v, kv.fmt, base + cu_v_at(&kv, d, slot), x1);
                store_fmt(kv.v, kv.fmt, base + cu_v_at(&kv, d + half, slot), x2);
            }
        }
    }
}

static void rope_store(struct kern_stream *s, const struct kern_kv *kv, float *qkv,
                       const struct kern_qkv *g, const struct kern_rope *rope,
                       const struct kern_rows_map *map)
{
    const uint32_t width = (g->n_heads + 2 * g->n_kv_heads) * (g->head_dim / 2);

    cu_launch(s, "rope", rope_store_kernel, rows_of(map->n_rows, width), THREADS, 0, *kv, qkv, *g,
              *rope, *map);
}

void cu_ops_elem(struct kern_ops *ops)
{
    ops->embed = embed;
    ops->gather = gather;
    ops->add = add;
    ops->add_bias = add_bias;
    ops->silu_mul = silu_mul;
    ops->rmsnorm = rmsnorm;
    ops->add_rmsnorm = add_rmsnorm;
    ops->qk_norm = qk_norm;
    ops->rope = rope;
    ops->kv_store = kv_store;
    ops->rope_store = rope_store;
}
