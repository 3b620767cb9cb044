/* kernels/cuda/agree.cu - may this device multiply many rows by wgmma? Only if its sums are mma.sync's, bit by
 * bit, since one profile has one result for every number of rows.
 *
 * Nothing written says how either adds the products of one instruction. So the first stream of a process on a
 * device runs whole products by both kernels, over inputs that are hard to add (kinds below, each of
 * the weights' kinds against each of x's: 81 pairs in every 16 outputs by 16 rows), and compares all bits. What differs,
 * or fails, leaves mma.sync. The same comparison finds a kernel that is wrong on this device, or not built for it.
 *
 * An error in these kernels that ends the context (an illegal address, say) cannot be undone by anything in a
 * process: stream_create then fails and names the variable that leaves wgmma alone. Nothing is on the device yet. */
#include "kernels/cuda/product.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

enum { KINDS = 9, DEVICES_MAX = 64 };

/* ---- inputs ---- */

static uint32_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

/* bf16 with sign bit, exponent (of two) and 7 bits of fraction. */
static uint16_t bf16_of(uint32_t sign, int exponent, uint32_t fraction)
{
    return (uint16_t)((sign & 1) << 15 | (uint32_t)(exponent + 127) << 7 | (fraction & 127));
}

/* Value k of a chain; `before` is the one before it. */
static uint16_t value(uint32_t kind, uint32_t k, uint16_t before, uint64_t *state)
{
    const uint32_t r = draw(state), any = r >> 8, of = r >> 16;

    switch (kind) {
    case 0: /* of one size */
        return bf16_of(r, (int)(of % 4) - 2, any);
    case 1: /* of every size */
        return bf16_of(r, (int)(of % 81) - 40, any);
    case 2: /* mostly what cancels the one before, or its neighbour */
        return k % 2 == 0 || of % 4 == 0 ? bf16_of(r, (int)(of % 8), any)
                                         : (uint16_t)((before ^ 0x8000u) + of % 8 / 7);
    case 3: /* denormal, or near it */
        return (uint16_t)((r & 1) << 15 | (of % 12) << 7 | (any & 127));
    case 4: /* powers of two: exact ties */
        return bf16_of(r, (int)(of % 25) - 12, 0);
    case 5: /* ones far behind a large one: ties of 2^24 and 1 */
        return k % 64 == 0 ? bf16_of(0, 12, 0) : bf16_of(r % 8 == 0, -(int)(of % 2), r % 16 == 1);
    case 6: /* each half of the one before: what is cut off on alignment */
        return bf16_of(r % 4 == 0, 20 - (int)(k % 40), any);
    case 7: /* zeros of both signs */
        return of % 8 == 0 ? bf16_of(r, 0, any) : (uint16_t)((r & 1) << 15);
    default: /* sums that end as infinity */
        return bf16_of(of % 512 == 0, 58 + (int)(of % 6), any);
    }
}

/* A product: weights as they lie packed, rows of x. */
struct problem {
    struct kern_mat mat;
    uint32_t n_rows;
    std::vector<uint16_t> w, x;
};

static void fill(struct problem *p, uint64_t seed)
{
    const uint32_t n_steps = cu_leaf_step(&p->mat, p->mat.n_leaves);

    p->w.assign(cu_mat_bytes(&p->mat) / 2, 0);
    p->x.assign((size_t)p->n_rows * p->mat.k, 0);
    for (uint32_t n = 0; n < p->mat.n; n++) {
        uint16_t v = 0;

        for (uint32_t leaf = 0; leaf < p->mat.n_leaves; leaf++) {
            const uint32_t step = cu_leaf_step(&p->mat, leaf), k0 = p->mat.leaf[leaf];

            for (uint32_t k = k0; k < p->mat.leaf[leaf + 1]; k++) {
                v = value(n % KINDS, k - k0, v, &seed);
                p->w[cu_mat_at(KERN_BF16, n_steps, n, step, k - k0) / 2] = v;
            }
        }
    }
    for (uint32_t t = 0; t < p->n_rows; t++) {
        uint16_t v = 0;

        for (uint32_t k = 0; k < p->mat.k; k++) {
            v = value(t % KINDS, k, v, &seed);
            p->x[(size_t)t * p->mat.k + k] = v;
        }
    }
}

/* ---- comparing ---- */

/* Equal bits; which NaN it is does not count. */
static bool same(const std::vector<uint32_t> &a, const std::vector<uint32_t> &b)
{
    for (size_t i = 0; i < a.size(); i++) {
        const bool nan = (a[i] & 0x7fffffffu) > 0x7f800000u && (b[i] & 0x7fffffffu) > 0x7f800000u;

        if (a[i] != b[i] && !nan) {
            return false;
        }
    }
    return true;
}

/* y <- the product that was queued. Memory begins as a NaN that no kernel writes. */
static cudaError_t take(struct kern_stream *s, std::vector<uint32_t> *y, const float *at)
{
    cudaError_t e = cudaMemcpyAsync(y->data(), at, y->size() * 4, cudaMemcpyDeviceToHost, s->raw);

    if (e == cudaSuccess) {
        e = cudaStreamSynchronize(s->raw);
    }
    return s->error != cudaSuccess ? s->error : e;
}

/* What was found on a device, once in a process. */
struct finding {
    bool tested, same, empty; /* empty: its kernel writes nothing */
    char why[48];
};

static cudaError_t compare(struct kern_stream *s, const struct problem &in, uint32_t repeats,
                           char *mem, struct finding *f)
{
    const size_t w_bytes = in.w.size() * 2, x_bytes = in.x.size() * 2;
    std::vector<uint32_t> ref((size_t)in.n_rows * in.mat.n), got(ref.size());
    struct product p = {};
    cudaError_t e = cudaMemcpyAsync(mem, in.w.data(), w_bytes, cudaMemcpyHostToDevice, s->raw);

    p.w = mem;
    p.x = (const uint16_t *)(mem + w_bytes);
    p.y = (float *)(mem + w_bytes + x_bytes);
    p.n_rows = in.n_rows;
    if (e == cudaSuccess) {
        e = cudaMemcpyAsync(mem + w_bytes, in.x.data(), x_bytes, cudaMemcpyHostToDevice, s->raw);
    }
    if (e != cudaSuccess || !cu_cut(&in.mat, &p)) {
        return e != cudaSuccess ? e : cudaErrorInvalidValue;
    }
    s->fence = true;
    cu_gemm_tile(s, p);
    e = take(s, &ref, p.y);
    for (uint32_t i = 0; i < repeats && e == cudaSuccess && f->same; i++) {
        e = cudaMemsetAsync(p.y, 0xff, ref.size() * 4, s->raw);
        s->fence = true;
        cu_gemm_wgmma(s, p);
        if (e == cudaSuccess) {
            e = take(s, &got, p.y);
        }
        f->same = same(ref, got);
        f->empty = got.front() == UINT32_MAX && got.back() == UINT32_MAX;
    }
    return e;
}

/* Leaves of two pieces with a short last step; leaves of one; leaves that are not aligned; all with outputs
 * and rows past the last whole tile. */
static cudaError_t compare_all(struct kern_stream *s, struct finding *f)
{
    static const struct {
        uint32_t n_leaves, inputs;
    } shapes[] = { { 2, 1032 }, { 8, 40 }, { 4, 43 } };
    const bool large = s->n_sm > 8; /* several tiles at once; tests/simt is slow */
    cudaError_t e = cudaSuccess;

    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0] && e == cudaSuccess && f->same; i++) {
        struct problem p = {};
        char *mem = nullptr;

        p.mat.fmt = KERN_BF16;
        p.mat.n = large ? 4 * 256 + 16 : 144;
        p.mat.n_leaves = shapes[i].n_leaves;
        p.mat.k = shapes[i].n_leaves * shapes[i].inputs;
        for (uint32_t leaf = 0; leaf <= p.mat.n_leaves; leaf++) {
            p.mat.leaf[leaf] = leaf * shapes[i].inputs;
        }
        p.n_rows = large ? 4 * 128 + 8 : 136;
        fill(&p, i + 1);
        e = cudaMalloc((void **)&mem,
                       p.w.size() * 2 + p.x.size() * 2 + (size_t)p.n_rows * p.mat.n * 4);
        if (e == cudaSuccess) {
            e = compare(s, p, large ? 3 : 1, mem, f);
        }
        if (mem != nullptr) {
            const cudaError_t freed = cudaFree(mem);
            e = e != cudaSuccess ? e : freed;
        }
    }
    return e;
}

static struct finding findings[DEVICES_MAX];
static std::mutex findings_lock;

static cudaError_t find(struct kern_stream *s, struct finding *f)
{
    cudaError_t e;

    f->same = true;
    s->wgmma = false; /* the other side of the comparison is mma.sync */
    e = compare_all(s, f);
    if (e != cudaSuccess) {
        f->same = false;
        snprintf(f->why, sizeof f->why, "its test failed, %.30s", cudaGetErrorName(e));
        s->error = cudaSuccess; /* a refusal is no failure of the stream, unless it stays */
        (void)cudaGetLastError();
        e = cudaStreamSynchronize(s->raw);
    } else if (!f->same) {
        snprintf(f->why, sizeof f->why, "%s",
                 f->empty ? "built without sm_90a" : "wgmma gives other bits");
    }
    f->tested = e == cudaSuccess;
    return e;
}

cudaError_t cu_choose_products(struct kern_stream *s)
{
    const char *word = getenv("GANTRY_CUDA_WGMMA");
    const std::lock_guard<std::mutex> mine(findings_lock);
    struct finding *const f = &findings[s->device % DEVICES_MAX];
    cudaError_t e = cudaSuccess;

    s->wgmma = false;
    snprintf(s->products, sizeof s->products, "mma.sync");
    if (s->compute_version != 90 || s->smem_max < cu_gemm_wgmma_smem()) {
        return cudaSuccess;
    }
    if (word != nullptr && strcmp(word, "0") == 0) {
        snprintf(s->products, sizeof s->products, "mma.sync (GANTRY_CUDA_WGMMA=0)");
        return cudaSuccess;
    }
    if (!f->tested) {
        e = find(s, f);
    }
    s->wgmma = f->same;
    snprintf(s->products, sizeof s->products, f->same ? "wgmma%s" : "mma.sync (%s)", f->why);
    return e;
}
