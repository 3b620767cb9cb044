/* tests/gpu/bench.cu - speed of the CUDA table beside two ceilings measured in the same run.
 *
 *   bench PLUGIN
 *
 * Ceilings: a large copy on the device (bytes read plus bytes written), and a bf16 product of 8192^3
 * on random data through cuBLASLt. Then the products of Llama-3.1-8B and of one rank of Llama-3.1-70B
 * at tp=4, each beside cuBLASLt's free order at the same size (and, of many rows by wgmma, beside
 * mma.sync), and in fp8; then whole steps, recorded:
 * decode at batch 1 and 64, a prompt of 8,192, in bf16 and in fp8, and each op of a layer alone. Weights are random and in rotation, so that none is found in the
 * second-level cache. Times are by device events, medians. One table comes last.
 *
 * "limit" of a step is the larger of bytes that must be read (weights, K and V of the context) over
 * the copy ceiling and operations (products and attention) over the matrix ceiling. */
extern "C" {
#include "kernels/kern.h"
#include "kernels/plugin.h"
}

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <functional>
#include <string>
#include <vector>

static const struct kern_ops *ops;
static struct kern_stream *stream;
static cudaStream_t raw;
static struct kern_stream
    *other_stream; /* products by mma.sync alone; null: so do those of `stream` */
static cublasLtHandle_t lt;
static double copy_rate, matrix_rate; /* bytes/s, flop/s */
static std::vector<std::string> table;

static void line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void line(const char *fmt, ...)
{
    char text[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    table.push_back(text);
    printf("%s\n", text);
    fflush(stdout);
}

static void must(bool ok, const char *what)
{
    if (!ok) {
        printf("FAILED %s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
        exit(1);
    }
}

static void cuda(cudaError_t e, const char *what)
{
    must(e == cudaSuccess, what);
}

static void sync_all()
{
    struct err err = ERR_INIT;

    if (ops->stream_sync(stream, &err) != ST_OK) {
        printf("FAILED %s\n", err.text);
        exit(1);
    }
}

/* Median seconds of one of `n` calls in a row. */
static double time_of_runs(const std::function<void()> &call, double budget, int n)
{
    cudaEvent_t a, b;
    std::vector<float> ms;
    double spent = 0.0;

    cuda(cudaEventCreate(&a), "event");
    cuda(cudaEventCreate(&b), "event");
    call();
    call();
    sync_all();
    while (ms.size() < (budget > 0.0 ? 5u : 2u) || (spent < budget && ms.size() < 200)) {
        float t;

        cuda(cudaEventRecord(a, raw), "event");
        for (int i = 0; i < n; i++) {
            call();
        }
        cuda(cudaEventRecord(b, raw), "event");
        sync_all();
        cuda(cudaEventElapsedTime(&t, a, b), "event");
        ms.push_back(t / (float)n);
        spent += t * 1e-3;
    }
    cuda(cudaEventDestroy(a), "event");
    cuda(cudaEventDestroy(b), "event");
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2] * 1e-3;
}

static void swap_streams()
{
    std::swap(stream, other_stream);
    raw = (cudaStream_t)ops->native(stream);
}

/* Median seconds of one call, over about `budget` seconds after two calls to warm up. Short calls are
 * timed several in a row, some 300 us at a time: else the host's way to a launch is in the time. */
static double time_of(const std::function<void()> &call, double budget = 0.3)
{
    const double once = time_of_runs(call, 0.0, 1);
    const int n = once > 3e-4 ? 1 : once > 1.5e-5 ? (int)(3e-4 / once) + 1 : 20;

    return time_of_runs(call, budget, n);
}

/* ---- random memory ---- */

__device__ static uint32_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

/* Uniform in [-scale, scale]. */
__global__ static void fill_kernel(void *p, size_t n, bool bf16, float scale, uint64_t seed)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        const float x =
            ((float)(mix(seed * 0x9e3779b97f4a7c15ULL + i) >> 8) * 0x1p-23f - 1.0f) * scale;

        if (bf16) {
            ((__nv_bfloat16 *)p)[i] = __float2bfloat16(x);
        } else {
            ((float *)p)[i] = x;
        }
    }
}

static void *random_mem(size_t n, bool bf16, float scale)
{
    static uint64_t seed = 1;
    struct err err = ERR_INIT;
    void *p = nullptr;

    if (ops->mem_alloc(stream, n * (bf16 ? 2 : 4), &p, &err) != ST_OK) {
        printf("FAILED %s\n", err.text);
        exit(1);
    }
    fill_kernel<<<1024, 256, 0, raw>>>(p, n, bf16, scale, seed++);
    cuda(cudaGetLastError(), "fill");
    return p;
}

static void drop(void *p)
{
    ops->mem_free(stream, p, 0);
}

/* ---- cuBLASLt: y[t, n] f32 = x[t, k] w[n, k]^T ---- */

struct free_order {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
    void *space;
};

enum { SPACE_BYTES = 64 << 20 };

static bool free_order_init(struct free_order *f, int n, int k, int t, void *space)
{
    const cublasOperation_t trans = CUBLAS_OP_T;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found;
    size_t bytes = SPACE_BYTES;
    int n_found = 0;

    f->space = space;
    must(cublasLtMatmulDescCreate(&f->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0, "cublasLt");
    must(cublasLtMatmulDescSetAttribute(f->desc, CUBLASLT_MATMUL_DESC_TRANSA, &trans,
                                        sizeof trans) == 0,
         "cublasLt");
    must(cublasLtMatrixLayoutCreate(&f->w, CUDA_R_16BF, k, n, k) == 0, "cublasLt");
    must(cublasLtMatrixLayoutCreate(&f->x, CUDA_R_16BF, k, t, k) == 0, "cublasLt");
    must(cublasLtMatrixLayoutCreate(&f->y, CUDA_R_32F, n, t, n) == 0, "cublasLt");
    must(cublasLtMatmulPreferenceCreate(&pref) == 0, "cublasLt");
    must(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &bytes, sizeof bytes) == 0,
         "cublasLt");
    const cublasStatus_t st = cublasLtMatmulAlgoGetHeuristic(lt, f->desc, f->w, f->x, f->y, f->y,
                                                             pref, 1, &found, &n_found);

    (void)cublasLtMatmulPreferenceDestroy(pref);
    f->algo = found.algo;
    return st == 0 && n_found == 1;
}

static void free_order_run(const struct free_order *f, float *y, const void *x, const void *w)
{
    const float one = 1.0f, zero = 0.0f;

    must(cublasLtMatmul(lt, f->desc, &one, w, f->w, x, f->x, &zero, y, f->y, y, f->y, &f->algo,
                        f->space, SPACE_BYTES, raw) == 0,
         "cublasLtMatmul");
}

static void free_order_fini(struct free_order *f)
{
    (void)cublasLtMatrixLayoutDestroy(f->w);
    (void)cublasLtMatrixLayoutDestroy(f->x);
    (void)cublasLtMatrixLayoutDestroy(f->y);
    (void)cublasLtMatmulDescDestroy(f->desc);
}

static void ceilings(void *space)
{
    const size_t bytes = (size_t)4 << 30;
    char *a = (char *)random_mem(bytes / 4, false, 1.0f),
         *b = (char *)random_mem(bytes / 4, false, 1);
    const double t =
        time_of([&] { cuda(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, raw), "copy"); });

    copy_rate = 2.0 * (double)bytes / t;
    drop(a);
    drop(b);
    const int n = 8192;
    void *x = random_mem((size_t)n * n, true, 1.0f), *w = random_mem((size_t)n * n, true, 1.0f);
    float *y = (float *)random_mem((size_t)n * n, false, 1.0f);
    struct free_order f;

    must(free_order_init(&f, n, n, n, space), "cublasLt finds no algorithm");
    matrix_rate = 2.0 * n * n * (double)n / time_of([&] { free_order_run(&f, y, x, w); });
    free_order_fini(&f);
    drop(x);
    drop(w);
    drop(y);
    line("ceilings: copy %.2f TB/s, bf16 matrix %.0f TFLOP/s", copy_rate * 1e-12,
         matrix_rate * 1e-12);
}

/* ---- products ---- */

struct product {
    const char *name;
    uint32_t n, k, n_leaves;
};

struct model {
    const char *name;
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn, vocab;
    struct product qkv, o, gate_up, down, head;
};

static const struct model models[] = {
    { "8B",
      32,
      4096,
      32,
      8,
      128,
      14336,
      128256,
      { "qkv", 6144, 4096, 1 },
      { "o", 4096, 4096, 8 },
      { "gate_up", 28672, 4096, 1 },
      { "down", 4096, 14336, 8 },
      { "head", 128256, 4096, 1 } },
    { "70B tp4",
      20,
      8192,
      16,
      2,
      128,
      7168,
      32064,
      { "qkv", 2560, 8192, 1 },
      { "o", 8192, 2048, 4 },
      { "gate_up", 14336, 8192, 1 },
      { "down", 8192, 7168, 4 },
      { "head", 32064, 8192, 1 } },
};

/* No byte is 0x7f or 0xff, and no f32 of such bytes is infinite. */
__global__ static void finite_kernel(uint32_t *p, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        p[i] &= 0xbfbfbfbfu;
    }
}

static struct kern_mat mat_of(const struct product &p, enum kern_fmt fmt)
{
    struct kern_mat mat = {};

    mat.fmt = fmt;
    mat.n = p.n;
    mat.k = p.k;
    mat.n_leaves = p.n_leaves;
    for (uint32_t i = 0; i <= p.n_leaves; i++) {
        mat.leaf[i] = kern_leaf_begin(p.k, p.n_leaves, i);
    }
    mat.data =
        random_mem(ops->mat_bytes(&mat) / 2, true, 0.02f); /* any order of weights is random */
    if (fmt == KERN_FP8) {
        finite_kernel<<<1024, 256, 0, raw>>>((uint32_t *)mat.data, ops->mat_bytes(&mat) / 4);
        cuda(cudaGetLastError(), "finite");
    }
    return mat;
}

static void bench_product(const struct model &m, const struct product &p, enum kern_fmt fmt,
                          void *space)
{
    static const uint32_t rows[] = { 1, 8, 16, 32, 64, 256, 2048 };
    std::vector<struct kern_mat> mats = { mat_of(p, fmt) };
    const double bytes = (double)ops->mat_bytes(&mats[0]);
    const uint32_t n_copies = (uint32_t)(4e8 / bytes) + 1;

    while (mats.size() < n_copies) {
        mats.push_back(mat_of(p, fmt));
    }
    void *x = random_mem((size_t)2048 * p.k, true, 1.0f);
    float *y = (float *)random_mem((size_t)2048 * p.n, false, 1.0f);

    for (uint32_t t : rows) {
        uint32_t i = 0;
        const double ours = time_of(
            [&] {
                const struct kern_mat &mat = mats[i++ % n_copies];
                ops->gemm(stream, y, x, &mat, t);
            },
            0.05);
        struct free_order f;
        double other = 0.0;
        char by_mma[48] = "";

        if (fmt == KERN_BF16 && other_stream != nullptr && t > 64) {
            sync_all();
            swap_streams();
            const double slow =
                time_of([&] { ops->gemm(stream, y, x, &mats[i++ % n_copies], t); }, 0.05);
            swap_streams();
            snprintf(by_mma, sizeof by_mma, "  mma.sync %9.1f us", slow * 1e6);
        }

        if (fmt == KERN_BF16 && free_order_init(&f, (int)p.n, (int)p.k, (int)t, space)) {
            other = time_of([&] { free_order_run(&f, y, x, mats[i++ % n_copies].data); }, 0.05);
        }
        if (fmt == KERN_BF16) {
            free_order_fini(&f);
        }
        line("%-4s %-8s %-8s %6u x %-6u T %-5u %9.1f us  %4.0f %% of copy  %4.0f %% of matrix  "
             "cuBLASLt "
             "%9.1f us%s",
             fmt == KERN_FP8 ? "fp8" : "bf16", m.name, p.name, p.n, p.k, t, ours * 1e6,
             100.0 * (bytes + 2.0 * t * p.k + 4.0 * t * p.n) / ours / copy_rate,
             100.0 * 2.0 * t * p.n * p.k / ours / matrix_rate, other * 1e6, by_mma);
    }
    for (struct kern_mat &mat : mats) {
        drop(mat.data);
    }
    drop(x);
    drop(y);
}

/* ---- whole steps ---- */

struct layer {
    struct kern_mat qkv, o, gate_up, down;
    struct kern_kv kv;
};

struct step {
    const struct model *m;
    std::vector<struct layer> layers;
    struct kern_mat head;
    enum kern_fmt fmt; /* of the layers' matrices */
    float *norm, *x, *qkv, *gate_up, *partial, *logits;
    void *normed, *att, *act;
    struct kern_qkv g;
    struct kern_rope rope;
    struct kern_rows_map map;
    uint32_t n_rows, n_out;
};

/* As worker/exec.c queues it, without collectives. */
static void forward(const struct step &s)
{
    const struct model &m = *s.m;
    const uint32_t t = s.n_rows;

    ops->rmsnorm(stream, s.normed, KERN_BF16, s.x, s.norm, t, m.dim, 1e-5f);
    for (size_t i = 0; i < s.layers.size(); i++) {
        const struct layer &l = s.layers[i];

        ops->gemm(stream, s.qkv, s.normed, &l.qkv, t);
        ops->rope_store(stream, &l.kv, s.qkv, &s.g, &s.rope, &s.map);
        ops->attention(stream, s.att, &l.kv, s.qkv, &s.g, &s.map);
        ops->gemm(stream, s.partial, s.att, &l.o, t);
        ops->add_rmsnorm(stream, s.normed, KERN_BF16, s.x, s.partial, s.norm, t, m.dim, 1e-5f);
        ops->gemm(stream, s.gate_up, s.normed, &l.gate_up, t);
        ops->silu_mul(stream, s.act, KERN_BF16, s.gate_up, t, m.ffn);
        ops->gemm(stream, s.partial, s.act, &l.down, t);
        if (i + 1 < s.layers.size()) {
            ops->add_rmsnorm(stream, s.normed, KERN_BF16, s.x, s.partial, s.norm, t, m.dim, 1e-5f);
        } else {
            ops->add(stream, s.x, s.x, s.partial, (size_t)t * m.dim);
        }
    }
    ops->rmsnorm(stream, s.normed, KERN_BF16, s.x, s.norm, s.n_out, m.dim, 1e-5f);
    ops->gemm(stream, s.logits, s.normed, &s.head, s.n_out);
}

/* Where a layer's time goes: each op of it alone, in microseconds, over all layers in turn. */
static void bench_ops(const struct step &s, const char *what)
{
    const struct model &m = *s.m;
    const uint32_t t = s.n_rows;
    size_t i = 0;
    const auto next = [&]() -> const struct layer &
    {
        return s.layers[i++ % s.layers.size()];
    };
    const struct {
        const char *name;
        std::function<void()> call;
    } all[] = {
        { "qkv", [&] { ops->gemm(stream, s.qkv, s.normed, &next().qkv, t); } },
        { "rope_store",
          [&] { ops->rope_store(stream, &next().kv, s.qkv, &s.g, &s.rope, &s.map); } },
        { "attention", [&] { ops->attention(stream, s.att, &next().kv, s.qkv, &s.g, &s.map); } },
        { "o", [&] { ops->gemm(stream, s.partial, s.att, &next().o, t); } },
        { "add_rmsnorm",
          [&] {
              ops->add_rmsnorm(stream, s.normed, KERN_BF16, s.x, s.partial, s.norm, t, m.dim,
                               1e-5f);
          } },
        { "gate_up", [&] { ops->gemm(stream, s.gate_up, s.normed, &next().gate_up, t); } },
        { "silu_mul", [&] { ops->silu_mul(stream, s.act, KERN_BF16, s.gate_up, t, m.ffn); } },
        { "down", [&] { ops->gemm(stream, s.partial, s.act, &next().down, t); } },
    };
    std::string text;

    for (const auto &op : all) {
        char part[48];

        snprintf(part, sizeof part, " %s %.1f", op.name, time_of(op.call, 0.02) * 1e6);
        text += part;
    }
    line("  %s, us an op:%s", what, text.c_str());
}

static uint32_t *ids_up(const std::vector<uint32_t> &v)
{
    uint32_t *p = (uint32_t *)random_mem(v.size(), false, 1.0f);

    ops->copy_in(stream, p, v.data(), v.size() * 4);
    return p;
}

/* `n_seqs` sequences; with prompt each brings `ctx` rows, else one row at position ctx - 1. */
static void bench_step(const struct model &m, struct step &s, uint32_t n_seqs, uint32_t ctx,
                       bool prompt)
{
    const uint32_t per_seq = prompt ? ctx : 1, t = n_seqs * per_seq;
    const uint32_t stride = (ctx + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
    std::vector<uint32_t> pos, seq, tables;
    const size_t width = (size_t)(m.heads + 2 * m.kv_heads) * m.head_dim;

    for (uint32_t i = 0; i < n_seqs; i++) {
        for (uint32_t r = 0; r < per_seq; r++) {
            pos.push_back(ctx - per_seq + r);
            seq.push_back(i);
        }
        for (uint32_t b = 0; b < stride; b++) {
            tables.push_back(i * stride + b);
        }
    }
    uint32_t *dp = ids_up(pos), *ds = ids_up(seq), *dt = ids_up(tables);

    s.map = { t, n_seqs, stride, dp, ds, dt };
    s.n_rows = t;
    s.n_out = prompt ? n_seqs : t;
    s.x = (float *)random_mem((size_t)t * m.dim, false, 1.0f);
    s.qkv = (float *)random_mem(t * width, false, 1.0f);
    s.gate_up = (float *)random_mem((size_t)t * 2 * m.ffn, false, 1.0f);
    s.partial = (float *)random_mem((size_t)t * m.dim, false, 1.0f);
    s.logits = (float *)random_mem((size_t)s.n_out * m.vocab, false, 1.0f);
    s.normed = random_mem((size_t)t * m.dim, true, 1.0f);
    s.att = random_mem((size_t)t * m.heads * m.head_dim, true, 1.0f);
    s.act = random_mem((size_t)t * m.ffn, true, 1.0f);

    struct kern_graph *graph = nullptr;
    struct err err = ERR_INIT;

    forward(s); /* what is loaded and allocated on first use is so before the recording */
    sync_all();
    must(ops->graph_begin(stream, &err) == ST_OK, err.text);
    forward(s);
    must(ops->graph_end(stream, &graph, &err) == ST_OK, err.text);
    const double recorded =
        time_of([&] { must(ops->graph_launch(stream, graph, &err) == ST_OK, err.text); }, 1.0);
    const double eager = time_of([&] { forward(s); }, 0.5);
    const double matrices = (double)m.qkv.n * m.qkv.k + (double)m.o.n * m.o.k +
                            (double)m.gate_up.n * m.gate_up.k + (double)m.down.n * m.down.k;
    const double head = (double)m.vocab * m.dim, hd = (double)m.heads * m.head_dim;
    const double seen = prompt ? ctx / 2.0 : ctx; /* positions a row attends to, on average */
    const double weight = s.fmt == KERN_FP8 ? 1.0 + 4.0 / KERN_GROUP : 2.0;
    const double bytes = weight * m.layers * matrices + 2.0 * head +
                         4.0 * m.layers * n_seqs * (double)ctx * m.kv_heads * m.head_dim;
    const double flops =
        2.0 * t * m.layers * matrices + 2.0 * s.n_out * head + 4.0 * t * m.layers * seen * hd;
    const double limit = std::max(bytes / copy_rate, flops / matrix_rate);

    line(
        "%-4s %-8s %-7s seqs %-3u ctx %-5u %9.3f ms (eager %9.3f)  %8.0f tokens/s  %4.0f %% of the "
        "limit (%s, %.3f ms)",
        s.fmt == KERN_FP8 ? "fp8" : "bf16", m.name, prompt ? "prompt" : "decode", n_seqs, ctx,
        recorded * 1e3, eager * 1e3, t / recorded, 100.0 * limit / recorded,
        bytes / copy_rate > flops / matrix_rate ? "bytes" : "flops", limit * 1e3);
    bench_ops(s, prompt ? "prompt" : "decode");
    ops->graph_destroy(stream, graph);
    for (void *p :
         { (void *)dp, (void *)ds, (void *)dt, (void *)s.x, (void *)s.qkv, (void *)s.gate_up,
           (void *)s.partial, (void *)s.logits, s.normed, s.att, s.act }) {
        drop(p);
    }
}

static void bench_model(const struct model &m, enum kern_fmt fmt)
{
    const uint32_t ctx = 8192, n_blocks = 64 * 1024 / KERN_KV_BLOCK;
    struct step s = {};

    s.m = &m;
    s.fmt = fmt;
    s.g = { m.heads, m.kv_heads, m.head_dim, 0, 0, m.heads / m.kv_heads, 0.088388f };
    s.rope = { ctx, m.head_dim, (float *)random_mem((size_t)ctx * m.head_dim / 2, false, 0.7f),
               (float *)random_mem((size_t)ctx * m.head_dim / 2, false, 0.7f) };
    s.norm = (float *)random_mem(m.dim, false, 1.0f);
    s.head = mat_of(m.head, KERN_BF16);
    for (uint32_t i = 0; i < m.layers; i++) {
        struct layer l = {
            mat_of(m.qkv, fmt), mat_of(m.o, fmt), mat_of(m.gate_up, fmt), mat_of(m.down, fmt), {}
        };

        l.kv = { KERN_BF16, m.kv_heads, m.head_dim, n_blocks, nullptr, nullptr };
        l.kv.k = random_mem(ops->kv_bytes(&l.kv) / 2, true, 1.0f);
        l.kv.v = random_mem(ops->kv_bytes(&l.kv) / 2, true, 1.0f);
        s.layers.push_back(l);
    }
    bench_step(m, s, 1, 128, false);
    bench_step(m, s, 1, 8192, false);
    bench_step(m, s, 16, 1024, false);
    bench_step(m, s, 64, 1024, false);
    bench_step(m, s, 1, 8192, true);
    for (struct layer &l : s.layers) {
        for (void *p : { l.qkv.data, l.o.data, l.gate_up.data, l.down.data, l.kv.k, l.kv.v }) {
            drop(p);
        }
    }
    drop(s.head.data);
    drop(s.norm);
    drop((void *)s.rope.cos);
    drop((void *)s.rope.sin);
}

/* Rows from ordinary and from pinned memory into packed weights. */
static void bench_load()
{
    const struct product p = { "gate_up", 14336, 4096, 1 };
    struct kern_mat mat = mat_of(p, KERN_BF16);
    const size_t bytes = (size_t)p.n * p.k * 2;
    struct err err = ERR_INIT;
    void *pinned = nullptr, *plain = malloc(bytes);

    must(plain != nullptr && ops->host_alloc(stream, bytes, &pinned, &err) == ST_OK, err.text);
    memset(plain, 0x3c, bytes);
    for (void *from : { plain, pinned }) {
        const struct kern_rows rows = { KERN_SRC_BF16, from, 0, p.n, p.k, nullptr };
        const double t = time_of([&] { ops->mat_pack(stream, &mat, &rows); }, 0.5);

        line("packing from %s memory: %.1f GB/s", from == plain ? "ordinary" : "pinned",
             (double)bytes / t * 1e-9);
    }
    free(plain);
    ops->host_free(stream, pinned, bytes);
    drop(mat.data);
}

int main(int argc, char **argv)
{
    const struct kern_stream_config config = { 1, 0 };
    struct kern_device device;
    struct err err = ERR_INIT;
    void *space = nullptr;

    if (argc < 2) {
        fprintf(stderr, "usage: bench PLUGIN\n");
        return 2;
    }
    if (kern_ops_cuda_from(argv[1], 0, &ops, &err) != ST_OK ||
        ops->stream_create(&config, &stream, &err) != ST_OK ||
        ops->device_info(stream, &device, &err) != ST_OK) {
        printf("skipped: %s\n", err.text);
        return 77;
    }
    raw = (cudaStream_t)ops->native(stream);
    must(cublasLtCreate(&lt) == 0, "cublasLtCreate");
    cuda(cudaMalloc(&space, SPACE_BYTES), "cudaMalloc");
    line("%s, %u multiprocessors, %s, products by %s", device.name, device.n_units,
         ops->profile[KERN_BF16], device.products);
    if (strcmp(device.products, "wgmma") == 0) {
        (void)setenv("GANTRY_CUDA_WGMMA", "0", 1); /* from here on nothing else is created */
        must(ops->stream_create(&config, &other_stream, &err) == ST_OK, err.text);
    }
    ceilings(space);
    bench_load();
    for (const struct model &m : models) {
        bench_model(m, KERN_BF16);
        bench_model(m, KERN_FP8);
    }
    for (const struct model &m : models) {
        for (const struct product *p : { &m.qkv, &m.o, &m.gate_up, &m.down, &m.head }) {
            bench_product(m, *p, KERN_BF16, space);
            if (p != &m.head) { /* which stays bf16 */
                bench_product(m, *p, KERN_FP8, space);
            }
        }
    }
    printf("\n==== table ====\n");
    for (const std::string &text : table) {
        printf("%s\n", text.c_str());
    }
    (void)cublasLtDestroy(lt);
    cuda(cudaFree(space), "cudaFree");
    ops->stream_destroy(other_stream);
    ops->stream_destroy(stream);
    return 0;
}
