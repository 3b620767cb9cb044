/* tests/simt/cuda_runtime.h - enough of CUDA's runtime to run kernels/cuda on a processor, for tests.
 *
 * A launch runs its blocks one after the other, a block's threads as fibers that change over at
 * barriers and warp operations (simt.cpp). Device memory is host memory, filled with a pattern that
 * is NaN as f32 and as bf16 until written; copies are done at once; asynchronous copies to shared
 * memory are done when they are waited for, not before; captures are lists of calls. What this
 * cannot show: races between threads that no barrier parts, the memory model, the tensor cores' own
 * rounding, and speed. */
#ifndef TESTS_SIMT_CUDA_RUNTIME_H
#define TESTS_SIMT_CUDA_RUNTIME_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__   static
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    uint32_t x, y, z;
    constexpr dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return { x, y };
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return { x, y, z, w };
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return { x, y, z, w };
}
template <typename T> static inline T min(T a, T b)
{
    return b < a ? b : a;
}
template <typename T> static inline T max(T a, T b)
{
    return a < b ? b : a;
}

/* ---- the running thread ---- */

extern dim3 threadIdx, blockIdx, blockDim, gridDim; /* set by the scheduler */

void __syncthreads();
/* 8 bytes of every lane to every lane of the warp; all that have not ended take part. `n` of them. */
const uint64_t *simt_exchange(uint64_t mine, uint32_t *alive_p);
/* As many of up to 8 words. [lane][8] */
const uint32_t *simt_exchange_words(const uint32_t mine[8]);

static inline uint32_t simt_lane()
{
    return threadIdx.x % 32;
}

template <typename T> static inline T simt_shuffle(T v, uint32_t lane)
{
    uint64_t bits = 0, got;
    uint32_t alive;

    static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
    __builtin_memcpy(&bits, &v, sizeof v);
    got = simt_exchange(bits, &alive)[lane % 32];
    __builtin_memcpy(&v, &got, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_xor_sync(uint32_t, T v, int d)
{
    return simt_shuffle(v, simt_lane() ^ (uint32_t)d);
}
template <typename T> static inline T __shfl_sync(uint32_t, T v, int lane)
{
    return simt_shuffle(v, (uint32_t)lane);
}
static inline bool __any_sync(uint32_t, bool v)
{
    uint32_t alive;
    const uint64_t *all = simt_exchange(v, &alive);
    bool any = false;

    for (int i = 0; i < 32; i++) {
        any = any || ((alive >> i & 1) && all[i] != 0);
    }
    return any;
}
static inline uint32_t __match_any_sync(uint32_t, uint32_t v)
{
    uint32_t alive, same = 0;
    const uint64_t *all = simt_exchange(v, &alive);

    for (uint32_t i = 0; i < 32; i++) {
        same |= (alive >> i & 1) && all[i] == v ? 1u << i : 0;
    }
    return same;
}
static inline void __syncwarp()
{
    uint32_t alive;

    (void)simt_exchange(0, &alive);
}
static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
static inline int __popc(uint32_t v)
{
    return __builtin_popcount(v);
}
static inline uint32_t atomicAdd(uint32_t *at, uint32_t n)
{
    const uint32_t old = *at;

    *at += n;
    return old;
}

/* ---- launching ---- */

typedef enum {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorMemoryAllocation,
    cudaErrorNotReady,
    cudaErrorInvalidConfiguration,
    cudaErrorPeerAccessAlreadyEnabled
} cudaError_t;

typedef struct simt_stream *cudaStream_t;
typedef struct simt_event *cudaEvent_t;
typedef struct simt_graph *cudaGraph_t;
typedef struct simt_graph *cudaGraphExec_t;

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        int programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned int numAttrs;
};

/* Do or record. */
cudaError_t simt_queue(cudaStream_t stream, std::function<void()> what);
void simt_run(const dim3 &grid, uint32_t threads, size_t smem, const std::function<void()> &body);
cudaError_t simt_check(const cudaLaunchConfig_t *config);

template <typename... Params, typename... Args>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config,
                                             void (*kernel)(Params...), Args... args)
{
    const dim3 grid = config->gridDim;
    const uint32_t threads = config->blockDim.x;
    const size_t smem = config->dynamicSmemBytes;
    const std::tuple<Params...> kept(args...);
    const cudaError_t e = simt_check(config);

    return e != cudaSuccess ? e : simt_queue(config->stream, [=] {
        simt_run(grid, threads, smem, [&] { std::apply(kernel, kept); });
    });
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute, int bytes)
{
    return bytes <= 227 << 10 ? cudaSuccess : cudaErrorInvalidValue;
}

/* ---- the runtime's functions that kernels/cuda calls ---- */

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaDeviceAttr {
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost };
struct cudaPointerAttributes {
    cudaMemoryType type;
};
struct cudaDeviceProp {
    char name[256];
};
enum { cudaStreamNonBlocking, cudaEventDisableTiming, cudaStreamCaptureModeThreadLocal };

const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int *version_p);
cudaError_t cudaGetDeviceCount(int *n_p);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int *value_p, cudaDeviceAttr attr, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop_p, int device);
cudaError_t cudaMemGetInfo(size_t *free_p, size_t *total_p);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attr_p, const void *p);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);
/* Ranks are threads here: windows are pointers, and nothing is exported to other processes. */
struct cudaIpcMemHandle_t {
    char reserved[64];
};
enum { cudaIpcMemLazyEnablePeerAccess = 1 };
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle_p, void *p);
cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t handle, unsigned int flags);
cudaError_t cudaIpcCloseMemHandle(void *p);
cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device);
cudaError_t cudaDeviceGetByPCIBusId(int *device_p, const char *id);
cudaError_t cudaDeviceCanAccessPeer(int *can_p, int device, int peer);
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_p, unsigned int flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_p, unsigned int flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph_p);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec_p, cudaGraph_t graph, unsigned int flags);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

#endif
