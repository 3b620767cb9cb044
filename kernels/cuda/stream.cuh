/* kernels/cuda/stream.cuh - what every file of the CUDA table shares: the stream, how a kernel is
 * queued, the words of the device. Private to kernels/cuda.
 *
 * A stream is one CUDA stream of one device, one run of device scratch and two pinned staging
 * buffers. Ops of a stream run in order, so the scratch belongs to whichever op runs; nothing is
 * allocated after stream_create. The first error of a queued op is kept and comes out of
 * stream_sync, with the op's name.
 *
 * Kernels overlap. Each is queued with programmatic serialisation (compute capability 9.0 on): its
 * blocks may start while the one before still runs, and `begin_op` waits until all of that is done
 * and visible. Every kernel calls it before it touches anything that another op writes - every
 * thread, also of blocks that have nothing to do, or the op after would not be ordered behind the
 * op before. Only a product reads weights ahead of it; they are constant but for packing, after which
 * the next kernel is queued without overlap (`fence`). */
#ifndef KERNELS_CUDA_STREAM_CUH
#define KERNELS_CUDA_STREAM_CUH

#include "kernels/cuda/layout_cuda.h"
#include "kernels/cuda/prim.cuh"
#include "kernels/kern.h"

enum {
    STAGE_BYTES = 16 << 20,   /* of one pinned staging buffer; a row to be packed fits in it */
    SCRATCH_BYTES = 64 << 20, /* of device scratch */
    PIECES_MAX = 128          /* segments of one product */
};

struct stage {
    char *mem;        /* [STAGE_BYTES] pinned */
    size_t used;      /* bytes handed out since it was last free */
    cudaEvent_t done; /* recorded when it was left for the other one */
    bool pending;
};

struct kern_stream {
    cudaStream_t raw;
    int device;
    char *scratch; /* device, [SCRATCH_BYTES] */
    struct stage stages[2];
    uint32_t stage; /* in use */
    cudaEvent_t marks[KERN_MARKS];
    uint32_t n_sm, compute_version;
    size_t smem_max;   /* shared memory that one block may have: 99 KiB on 8.6, 8.9 and 12.x */
    bool overlap;      /* programmatic serialisation is on */
    bool wgmma;        /* it gives mma.sync's bits (agree.cu) */
    char products[64]; /* which many rows are multiplied by, for people */
    bool fence;        /* the next kernel starts only after all before it: weights were written */
    bool recording;    /* between graph_begin and graph_end */
    cudaError_t error; /* first failure of a queued op, or cudaSuccess */
    const char *error_op;
};

struct kern_graph {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
};

/* err_set of base, without base: the plug-in links nothing of the program. */
status cu_fail(struct err *err, status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Keep the first failure of op `what`. */
static inline void cu_note(struct kern_stream *s, cudaError_t e, const char *what)
{
    if (e != cudaSuccess && s->error == cudaSuccess) {
        s->error = e;
        s->error_op = what;
    }
}

/* Room for `bytes` (<= STAGE_BYTES) in pinned memory that no queued copy reads any more. */
char *cu_stage(struct kern_stream *s, size_t bytes);

/* Queue a kernel. */
template <typename... Params, typename... Args>
static inline void cu_launch(struct kern_stream *s, const char *what, void (*kernel)(Params...),
                             dim3 grid, uint32_t threads, size_t smem, Args... args)
{
    cudaLaunchAttribute attr[1] = {};
    cudaLaunchConfig_t config = {};

    if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return;
    }
    attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr[0].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem;
    config.stream = s->raw;
    config.attrs = attr;
    config.numAttrs = s->overlap && !s->fence ? 1 : 0;
    s->fence = false;
    if (smem > 48u << 10) {
        cu_note(
            s, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem),
            what);
    }
    cu_note(s, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), what);
}

static inline uint32_t div_up(size_t a, size_t b)
{
    return (uint32_t)((a + b - 1) / b);
}

/* Set s->wgmma and s->products. Fails where the device does no more work for this process. */
cudaError_t cu_choose_products(struct kern_stream *s);

/* ---- the files of the table ---- */

void cu_ops_life(struct kern_ops *ops);
void cu_ops_pack(struct kern_ops *ops);
void cu_ops_elem(struct kern_ops *ops);
void cu_ops_gemm(struct kern_ops *ops);
void cu_ops_attention(struct kern_ops *ops);
void cu_ops_scan(struct kern_ops *ops);
void cu_ops_feed(struct kern_ops *ops);
void cu_ops_peer(struct kern_ops *ops);
/* Products of f32, called by gemm.cu. */
void cu_gemm_f32(struct kern_stream *s, float *y, const float *x, const struct kern_mat *w,
                 uint32_t n_rows);
/* Attention in the CPU's own order, called by attention.cu for f32 and unusual head dims. */
void cu_attention_plain(struct kern_stream *s, void *out, const struct kern_kv *kv,
                        const float *qkv, const struct kern_qkv *g,
                        const struct kern_rows_map *map);

#endif
