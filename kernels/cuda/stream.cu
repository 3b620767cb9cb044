/* kernels/cuda/stream.cu - life, memory, copies and recorded steps of a CUDA stream. */
#include "kernels/cuda/stream.cuh"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

status cu_fail(struct err *err, status code, const char *fmt, ...)
{
    va_list args;

    if (err != nullptr) {
        err->code = code;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, args);
        va_end(args);
    }
    return code;
}

static status cuda_fail(struct err *err, cudaError_t e, const char *doing)
{
    const status code = e == cudaErrorMemoryAllocation ? ST_ERR_NOMEM : ST_ERR_INTERNAL;

    return cu_fail(err, code, "CUDA: %s: %s (%s)", doing, cudaGetErrorString(e),
                   cudaGetErrorName(e));
}

/* ---- create, destroy ---- */

static void stream_destroy(struct kern_stream *s)
{
    if (s == nullptr) {
        return;
    }
    if (s->raw != nullptr) {
        (void)cudaStreamSynchronize(s->raw);
    }
    for (struct stage &stage : s->stages) {
        if (stage.done != nullptr) {
            (void)cudaEventDestroy(stage.done);
        }
        (void)cudaFreeHost(stage.mem);
    }
    for (cudaEvent_t mark : s->marks) {
        if (mark != nullptr) {
            (void)cudaEventDestroy(mark);
        }
    }
    (void)cudaFree(s->scratch);
    if (s->raw != nullptr) {
        (void)cudaStreamDestroy(s->raw);
    }
    delete s;
}

static status create_parts(struct kern_stream *s, struct err *err)
{
    int major = 0, minor = 0, n_sm = 0, smem = 0;
    cudaError_t e = cudaSetDevice(s->device);

    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, s->device);
    }
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, s->device);
    }
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, s->device);
    }
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, s->device);
    }
    if (e == cudaSuccess) {
        e = cudaStreamCreateWithFlags(&s->raw, cudaStreamNonBlocking);
    }
    if (e == cudaSuccess) {
        e = cudaMalloc((void **)&s->scratch, SCRATCH_BYTES);
    }
    for (int i = 0; i < 2 && e == cudaSuccess; i++) {
        e = cudaMallocHost((void **)&s->stages[i].mem, STAGE_BYTES);
        if (e == cudaSuccess) {
            e = cudaEventCreateWithFlags(&s->stages[i].done, cudaEventDisableTiming);
        }
    }
    for (int i = 0; i < KERN_MARKS && e == cudaSuccess; i++) {
        e = cudaEventCreateWithFlags(&s->marks[i], cudaEventDisableTiming);
    }
    if (e != cudaSuccess) {
        return cuda_fail(err, e, "opening the device");
    }
    s->n_sm = (uint32_t)n_sm;
    s->smem_max = (size_t)smem;
    s->compute_version = (uint32_t)(major * 10 + minor);
    s->overlap = major >= 9 && getenv("GANTRY_CUDA_SERIAL") == nullptr;
    e = cu_choose_products(s);
    if (e != cudaSuccess) {
        return cuda_fail(err, e,
                         "the test of products by wgmma stopped the device for this process; "
                         "GANTRY_CUDA_WGMMA=0 leaves them and their test out");
    }
    return ST_OK;
}

static status stream_create(const struct kern_stream_config *config, struct kern_stream **stream_p,
                            struct err *err)
{
    struct kern_stream *s = new (std::nothrow) kern_stream();
    status st;

    if (s == nullptr) {
        return cu_fail(err, ST_ERR_NOMEM, "no memory for a CUDA stream");
    }
    s->device = (int)config->device;
    st = create_parts(s, err);
    if (st != ST_OK) {
        stream_destroy(s);
        return st;
    }
    *stream_p = s;
    return ST_OK;
}

/* ---- waiting ---- */

static status noted(const struct kern_stream *s, struct err *err)
{
    return cu_fail(err, ST_ERR_INTERNAL, "CUDA: %s: %s (%s)", s->error_op,
                   cudaGetErrorString(s->error), cudaGetErrorName(s->error));
}

static status stream_sync(struct kern_stream *s, struct err *err)
{
    cu_note(s, cudaStreamSynchronize(s->raw), "work on the device");
    return s->error != cudaSuccess ? noted(s, err) : ST_OK;
}

static status stream_poll(struct kern_stream *s, struct err *err)
{
    const cudaError_t e = cudaStreamQuery(s->raw);

    if (e != cudaErrorNotReady) {
        cu_note(s, e, "work on the device");
    } else if (s->error == cudaSuccess) {
        return ST_BUSY;
    }
    return s->error != cudaSuccess ? noted(s, err) : ST_OK;
}

/* An event that was never recorded counts as done. */
static void mark(struct kern_stream *s, uint32_t mark)
{
    cu_note(s, cudaEventRecord(s->marks[mark], s->raw), "work on the device");
}

static status mark_poll(struct kern_stream *s, uint32_t mark, struct err *err)
{
    const cudaError_t e = cudaEventQuery(s->marks[mark]);

    if (e != cudaErrorNotReady) {
        cu_note(s, e, "work on the device");
    } else if (s->error == cudaSuccess) {
        return ST_BUSY;
    }
    return s->error != cudaSuccess ? noted(s, err) : ST_OK;
}

static status mark_wait(struct kern_stream *s, uint32_t mark, struct err *err)
{
    cu_note(s, cudaEventSynchronize(s->marks[mark]), "work on the device");
    return s->error != cudaSuccess ? noted(s, err) : ST_OK;
}

static status device_info(struct kern_stream *s, struct kern_device *info_p, struct err *err)
{
    struct kern_device info = {};
    cudaDeviceProp prop;
    size_t free_bytes = 0, bytes = 0;
    cudaError_t e = cudaGetDeviceProperties(&prop, s->device);

    if (e == cudaSuccess) {
        e = cudaMemGetInfo(&free_bytes, &bytes);
    }
    if (e != cudaSuccess) {
        return cuda_fail(err, e, "asking the device for its properties");
    }
    snprintf(info.name, sizeof info.name, "%.63s", prop.name);
    info.mem_bytes = bytes;
    info.mem_free_bytes = free_bytes;
    info.compute_version = s->compute_version;
    info.n_units = s->n_sm;
    snprintf(info.products, sizeof info.products, "%s", s->products);
    *info_p = info;
    return ST_OK;
}

/* ---- memory ---- */

static status mem_alloc(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err)
{
    void *mem = nullptr;
    cudaError_t e = cudaMalloc(&mem, bytes != 0 ? bytes : 1);

    if (e == cudaSuccess && bytes != 0) {
        e = cudaMemsetAsync(mem, 0, bytes, s->raw);
    }
    if (e != cudaSuccess) {
        (void)cudaFree(mem);
        (void)cudaGetLastError(); /* a refusal is not a failure of the stream */
        if (e == cudaErrorMemoryAllocation) {
            size_t free_bytes = 0, total = 0;

            (void)cudaMemGetInfo(&free_bytes, &total);
            return cu_fail(err, ST_ERR_NOMEM,
                           "no memory for %zu bytes on CUDA device %d: %zu of %zu bytes are free",
                           bytes, s->device, free_bytes, total);
        }
        return cuda_fail(err, e, "allocating device memory");
    }
    *mem_p = mem;
    return ST_OK;
}

static void mem_free(struct kern_stream *s, void *mem, size_t bytes)
{
    (void)bytes;
    if (mem != nullptr) {
        cu_note(s, cudaStreamSynchronize(s->raw), "work on the device");
        cu_note(s, cudaFree(mem), "freeing device memory");
    }
}

static status host_alloc(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err)
{
    void *mem = nullptr;
    const cudaError_t e = cudaMallocHost(&mem, bytes != 0 ? bytes : 1);

    (void)s;
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return cu_fail(err, ST_ERR_NOMEM, "no memory for %zu bytes of pinned host memory: %s",
                       bytes, cudaGetErrorString(e));
    }
    memset(mem, 0, bytes);
    *mem_p = mem;
    return ST_OK;
}

static void host_free(struct kern_stream *s, void *mem, size_t bytes)
{
    (void)bytes;
    if (mem != nullptr) {
        cu_note(s, cudaStreamSynchronize(s->raw), "work on the device");
        cu_note(s, cudaFreeHost(mem), "freeing pinned memory");
    }
}

/* ---- copies ---- */

char *cu_stage(struct kern_stream *s, size_t bytes)
{
    struct stage *stage = &s->stages[s->stage];

    bytes = (bytes + KERN_ALIGN - 1) & ~(size_t)(KERN_ALIGN - 1);
    if (stage->used + bytes > STAGE_BYTES) {
        cu_note(s, cudaEventRecord(stage->done, s->raw), "copy to the device");
        stage->pending = true;
        s->stage ^= 1;
        stage = &s->stages[s->stage];
        if (stage->pending) {
            cu_note(s, cudaEventSynchronize(stage->done), "copy to the device");
            stage->pending = false;
        }
        stage->used = 0;
    }
    stage->used += bytes;
    return stage->mem + stage->used - bytes;
}

static void copy_in(struct kern_stream *s, void *dst, const void *src_host, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const size_t left = bytes - done;
        const size_t n = left < STAGE_BYTES / 2 ? left : STAGE_BYTES / 2;
        char *stage = cu_stage(s, n);

        memcpy(stage, (const char *)src_host + done, n);
        cu_note(s, cudaMemcpyAsync((char *)dst + done, stage, n, cudaMemcpyHostToDevice, s->raw),
                "copy to the device");
        done += n;
    }
}

static void copy_in_later(struct kern_stream *s, void *dst, const void *src_pinned, size_t bytes)
{
    if (bytes != 0) {
        cu_note(s, cudaMemcpyAsync(dst, src_pinned, bytes, cudaMemcpyHostToDevice, s->raw),
                "copy to the device");
    }
}

static void copy_out(struct kern_stream *s, void *dst_host, const void *src, size_t bytes)
{
    if (bytes != 0) {
        cu_note(s, cudaMemcpyAsync(dst_host, src, bytes, cudaMemcpyDeviceToHost, s->raw),
                "copy from the device");
    }
}

/* ---- recorded steps ---- */

static status graph_begin(struct kern_stream *s, struct err *err)
{
    const cudaError_t e = cudaStreamBeginCapture(s->raw, cudaStreamCaptureModeThreadLocal);

    if (e != cudaSuccess) {
        return cuda_fail(err, e, "recording a step");
    }
    s->recording = true;
    return ST_OK;
}

static status graph_end(struct kern_stream *s, struct kern_graph **graph_p, struct err *err)
{
    struct kern_graph *graph = new (std::nothrow) kern_graph();
    cudaGraph_t recorded = nullptr;
    cudaError_t e = cudaStreamEndCapture(s->raw, &recorded);

    s->recording = false;
    if (graph == nullptr) {
        if (recorded != nullptr) {
            (void)cudaGraphDestroy(recorded);
        }
        return cu_fail(err, ST_ERR_NOMEM, "no memory for a recorded step");
    }
    graph->graph = recorded;
    if (e == cudaSuccess && s->error != cudaSuccess) {
        e = s->error;
    }
    if (e == cudaSuccess) {
        e = cudaGraphInstantiate(&graph->exec, recorded, 0);
    }
    if (e == cudaSuccess) {
        e = cudaGraphUpload(graph->exec, s->raw);
    }
    if (e != cudaSuccess) {
        if (graph->exec != nullptr) {
            (void)cudaGraphExecDestroy(graph->exec);
        }
        if (recorded != nullptr) {
            (void)cudaGraphDestroy(recorded);
        }
        delete graph;
        return cuda_fail(err, e, "recording a step");
    }
    *graph_p = graph;
    return ST_OK;
}

static status graph_launch(struct kern_stream *s, struct kern_graph *graph, struct err *err)
{
    const cudaError_t e = cudaGraphLaunch(graph->exec, s->raw);

    return e == cudaSuccess ? ST_OK : cuda_fail(err, e, "launching a recorded step");
}

static void graph_destroy(struct kern_stream *s, struct kern_graph *graph)
{
    if (graph == nullptr) {
        return;
    }
    cu_note(s, cudaStreamSynchronize(s->raw), "work on the device");
    (void)cudaGraphExecDestroy(graph->exec);
    (void)cudaGraphDestroy(graph->graph);
    delete graph;
}

static void *native(struct kern_stream *s)
{
    return s->raw;
}

void cu_ops_life(struct kern_ops *ops)
{
    ops->stream_create = stream_create;
    ops->stream_destroy = stream_destroy;
    ops->stream_sync = stream_sync;
    ops->stream_poll = stream_poll;
    ops->mark = mark;
    ops->mark_poll = mark_poll;
    ops->mark_wait = mark_wait;
    ops->device_info = device_info;
    ops->mem_alloc = mem_alloc;
    ops->mem_free = mem_free;
    ops->host_alloc = host_alloc;
    ops->host_free = host_free;
    ops->copy_in = copy_in;
    ops->copy_in_later = copy_in_later;
    ops->copy_out = copy_out;
    ops->graph_begin = graph_begin;
    ops->graph_end = graph_end;
    ops->graph_launch = graph_launch;
    ops->graph_destroy = graph_destroy;
    ops->native = native;
}
