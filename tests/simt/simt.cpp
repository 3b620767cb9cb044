/* tests/simt/simt.cpp - see cuda_runtime.h. Fibers by a context switch of our own (x86-64): the
 * C library's makes a system call each time, and a product of the tensor cores changes over 32 times.
 *
 * Launches of several host threads take turns; one whose threads all wait for another device (spin)
 * lets the others on, with its fibers and its dynamic shared memory kept. Kernels that spin have no
 * static shared memory, which there is once. A block in which no thread can go on (a barrier that
 * some threads never reach) ends the program with a word. */
#include "cuda_runtime.h"
#include "simt_wgmma.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <time.h>
#include <utility>
#include <vector>
#include <xmmintrin.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;
char *simt_shared;

/* ---- fibers ---- */

enum fiber_state { READY, IN_WARP, IN_BLOCK, DONE };

struct copy {
    void *dst;
    const void *src;
    uint32_t bytes; /* of 16; the rest are zeros */
};

struct fiber {
    void *sp;
    char *stack;
    fiber_state state;
    dim3 thread;
    uint32_t phase; /* which of the warp's two mail boxes comes next */
    std::vector<std::vector<copy>> groups;
    std::vector<copy> open;
};

struct warp {
    uint32_t alive, arrived, met; /* masks; met: who took part in the last meeting */
    uint64_t box[2][32];
    uint32_t words[2][32][8];
};

enum { STACK_BYTES = 64 << 10, SHARED_BYTES = SIMT_SHARED_BYTES };

static std::vector<fiber> fibers;
static std::vector<warp> warps;
static uint32_t current, n_threads, n_done, n_in_block;
static void *scheduler_sp;
static const std::function<void()> *kernel_body;
static std::mutex turn; /* over all of these, and the running thread's indices */
static bool has_spun;   /* the fiber that was just left waits for another launch */
uint32_t simt_barriers; /* that this block has passed */

extern "C" void simt_switch(void **save, void *load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");

static void wake_block()
{
    if (n_in_block != 0 && n_in_block + n_done == n_threads) {
        for (fiber &f : fibers) {
            f.state = f.state == IN_BLOCK ? READY : f.state;
        }
        n_in_block = 0;
        simt_barriers++;
    }
}

static void wake_warp(uint32_t w)
{
    warp &of = warps[w];

    if (of.arrived != 0 && of.arrived == of.alive) {
        of.met = of.alive;
        of.arrived = 0;
        for (uint32_t i = 0; i < 32 && w * 32 + i < n_threads; i++) {
            fiber &f = fibers[w * 32 + i];
            f.state = f.state == IN_WARP ? READY : f.state;
        }
    }
}

static void fiber_main()
{
    (*kernel_body)();
    fiber &f = fibers[current];

    simt_wg_end();
    f.groups.clear();
    f.open.clear();
    f.state = DONE;
    n_done++;
    warps[current / 32].alive &= ~(1u << current % 32);
    wake_warp(current / 32);
    wake_block();
    simt_switch(&f.sp, scheduler_sp);
    abort(); /* nobody switches to a fiber that has ended */
}

static void give_way()
{
    fiber &f = fibers[current];

    if (f.state != READY) {
        simt_switch(&f.sp, scheduler_sp);
    }
}

void __syncthreads()
{
    fibers[current].state = IN_BLOCK;
    n_in_block++;
    wake_block();
    give_way();
}

/* Left as READY: the scheduler comes back when it has seen whether anybody else can go on. */
void simt_spin()
{
    has_spun = true;
    simt_switch(&fibers[current].sp, scheduler_sp);
}

uint64_t simt_clock_ns()
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* All that could go on wait for other launches. */
static void let_others()
{
    std::vector<fiber> my_fibers;
    std::vector<warp> my_warps;
    const uint32_t counts[] = { n_threads, n_done, n_in_block };
    const dim3 indices[] = { blockIdx, blockDim, gridDim };
    const std::function<void()> *body = kernel_body;
    char *shared = simt_shared;

    my_fibers.swap(fibers);
    my_warps.swap(warps);
    turn.unlock();
    std::this_thread::yield();
    turn.lock();
    my_fibers.swap(fibers);
    my_warps.swap(warps);
    for (fiber &f : my_fibers) { /* another launch's, which has ended or is itself kept elsewhere */
        free(f.stack);
    }
    n_threads = counts[0];
    n_done = counts[1];
    n_in_block = counts[2];
    blockIdx = indices[0];
    blockDim = indices[1];
    gridDim = indices[2];
    kernel_body = body;
    simt_shared = shared;
}

/* Arrive with what lies in the mail box of this phase, wait for the others. Two boxes: a lane can
 * be one operation ahead of a lane that has yet to read. */
static uint32_t meet()
{
    fiber &f = fibers[current];
    warp &w = warps[current / 32];

    w.arrived |= 1u << current % 32;
    f.phase ^= 1;
    f.state = IN_WARP;
    wake_warp(current / 32);
    give_way();
    return w.met;
}

const uint64_t *simt_exchange(uint64_t mine, uint32_t *alive_p)
{
    uint64_t *box = warps[current / 32].box[fibers[current].phase];

    box[current % 32] = mine;
    *alive_p = meet();
    return box;
}

const uint32_t *simt_exchange_words(const uint32_t mine[8])
{
    uint32_t(*box)[8] = warps[current / 32].words[fibers[current].phase];

    memcpy(box[current % 32], mine, sizeof box[0]);
    if (meet() != ~0u) {
        fprintf(stderr, "simt: a product of the tensor cores with lanes missing\n");
        abort();
    }
    return &box[0][0];
}

/* ---- copies to shared memory ---- */

static void finish_copies(std::vector<copy> &group)
{
    for (const copy &c : group) {
        memcpy(c.dst, c.src, c.bytes);
        memset((char *)c.dst + c.bytes, 0, 16 - c.bytes);
    }
}

void simt_copy_16(void *dst, const void *src, uint32_t bytes)
{
    if (((uintptr_t)dst | (uintptr_t)src) % 16 != 0 || bytes > 16) {
        fprintf(stderr, "simt: an asynchronous copy that is not of 16 aligned bytes\n");
        abort();
    }
    fibers[current].open.push_back({ dst, src, bytes });
}

void simt_copies_commit()
{
    fibers[current].groups.push_back(std::move(fibers[current].open));
    fibers[current].open.clear();
}

void simt_copies_wait(size_t n_groups)
{
    std::vector<std::vector<copy>> &groups = fibers[current].groups;

    while (groups.size() > n_groups) {
        finish_copies(groups.front());
        groups.erase(groups.begin());
    }
}

/* ---- a launch ---- */

static void start(fiber &f, uint32_t i)
{
    void **sp = (void **)(void *)(f.stack + STACK_BYTES);

    *--sp = nullptr; /* keeps the stack 16-byte-aligned at fiber_main's entry */
    *--sp = (void *)fiber_main;
    for (int r = 0; r < 6; r++) {
        *--sp = nullptr;
    }
    f.sp = sp;
    f.state = READY;
    f.thread = dim3(i, 0, 0);
    f.phase = 0;
}

/* The fibers of one warp until none can go on. True: some could. */
static bool run_warp(uint32_t first, uint32_t threads, bool *spun)
{
    bool went = false;

    for (bool again = true; again;) {
        again = false;
        for (uint32_t i = first; i < first + 32 && i < threads; i++) {
            if (fibers[i].state == READY) {
                went = true;
                has_spun = false;
                current = i;
                threadIdx = fibers[i].thread;
                simt_switch(&scheduler_sp, fibers[i].sp);
                *spun = *spun && has_spun;
                again = again || !has_spun;
            }
        }
    }
    return went;
}

static void run_block(uint32_t threads, const std::function<void()> &body)
{
    n_threads = threads;
    n_done = n_in_block = simt_barriers = 0;
    kernel_body = &body;
    warps.assign((threads + 31) / 32, warp());
    while (fibers.size() < threads) {
        fibers.push_back(fiber());
        fibers.back().stack = (char *)aligned_alloc(64, STACK_BYTES);
    }
    fibers.resize(threads > fibers.size() ? threads : fibers.size());
    for (uint32_t i = 0; i < fibers.size(); i++) {
        fibers[i].state = DONE;
        if (i < threads) {
            start(fibers[i], i);
            warps[i / 32].alive |= 1u << i % 32;
        }
    }
    while (n_done < threads) {
        bool went = false, spun = true;

        /* A warp runs as far as it can before the next one does, by turns from either end: what only an even
         * pace keeps apart then meets. */
        for (uint32_t i = 0; i < warps.size(); i++) {
            const uint32_t w = simt_barriers % 2 == 0 ? i : (uint32_t)warps.size() - 1 - i;

            went = run_warp(w * 32, threads, &spun) || went;
        }
        if (went && spun) {
            let_others();
        }
        if (!went) {
            fprintf(stderr, "simt: no thread of the block can go on\n");
            abort();
        }
    }
}

void simt_run(const dim3 &grid, uint32_t threads, size_t smem, const std::function<void()> &body)
{
    static thread_local char *shared = (char *)aligned_alloc(128, SHARED_BYTES);
    const std::lock_guard<std::mutex> mine(turn);
    const unsigned int env = _mm_getcsr();

    _mm_setcsr((env & ~0x6000u) | 0x8040u); /* to nearest; denormals are zero, in and out */
    simt_shared = shared;
    blockDim = dim3(threads);
    gridDim = grid;
    for (uint32_t z = 0; z < grid.z; z++) {
        for (uint32_t y = 0; y < grid.y; y++) {
            for (uint32_t x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                memset(shared, 0xff, smem);
                simt_wg_begin(smem);
                run_block(threads, body);
            }
        }
    }
    _mm_setcsr(env);
}

static size_t shared_max()
{
    int bytes = 0;

    (void)cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    return (size_t)bytes;
}

cudaError_t simt_check(const cudaLaunchConfig_t *c)
{
    const bool ok = c->gridDim.x >= 1 && c->gridDim.x <= 0x7fffffffu && c->gridDim.y >= 1 &&
                    c->gridDim.y <= 65535 && c->gridDim.z >= 1 && c->gridDim.z <= 65535 &&
                    c->blockDim.x >= 1 && c->blockDim.x <= 1024 &&
                    c->dynamicSmemBytes <= shared_max();

    return ok ? cudaSuccess : cudaErrorInvalidConfiguration;
}

/* ---- streams, graphs ---- */

struct simt_graph {
    std::vector<std::function<void()>> calls;
};
struct simt_stream {
    simt_graph *recording;
};

cudaError_t simt_queue(cudaStream_t stream, std::function<void()> what)
{
    if (stream->recording != nullptr) {
        stream->recording->calls.push_back(std::move(what));
    } else {
        what();
    }
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_p, unsigned int)
{
    *stream_p = new simt_stream();
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return stream->recording != nullptr ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int)
{
    stream->recording = new simt_graph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph_p)
{
    *graph_p = stream->recording;
    stream->recording = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec_p, cudaGraph_t graph, unsigned int)
{
    *exec_p = new simt_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t)
{
    for (const std::function<void()> &call : exec->calls) {
        call();
    }
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_p, unsigned int)
{
    *event_p = (cudaEvent_t)calloc(1, 1);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return cudaSuccess;
}

/* ---- memory ---- */

static std::set<void *> pinned;
static std::mutex pinned_lock;

static void *poisoned(size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);

    if (p != nullptr) {
        memset(p, 0xff, bytes);
    }
    return p;
}
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    *p = poisoned(bytes);
    return *p != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    const std::lock_guard<std::mutex> mine(pinned_lock);

    *p = poisoned(bytes);
    pinned.insert(*p);
    return *p != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *p)
{
    const std::lock_guard<std::mutex> mine(pinned_lock);

    pinned.erase(p);
    free(p);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attr_p, const void *p)
{
    const std::lock_guard<std::mutex> mine(pinned_lock);

    attr_p->type = pinned.count((void *)p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream)
{
    return simt_queue(stream, [=] { memset(dst, value, bytes); });
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream)
{
    return simt_queue(stream, [=] { memcpy(dst, src, bytes); });
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream)
{
    return simt_queue(stream, [=] {
        for (size_t i = 0; i < height; i++) {
            memcpy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
        }
    });
}
cudaError_t cudaMemGetInfo(size_t *free_p, size_t *total_p)
{
    *free_p = *total_p = (size_t)1 << 30;
    return cudaSuccess;
}

/* ---- the device ---- */

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaSuccess ? "no error" : "an error of the emulation";
}
const char *cudaGetErrorName(cudaError_t e)
{
    return e == cudaErrorInvalidConfiguration ? "configuration" : "other";
}
cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version_p)
{
    *version_p = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n_p)
{
    *n_p = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value_p, cudaDeviceAttr attr, int)
{
    /* One multiprocessor: two tiles fill the device, and small tests reach both ways of every op. */
    const char *units = getenv("SIMT_UNITS");

    *value_p = 0;
    if (attr == cudaDevAttrMultiProcessorCount) {
        *value_p = units != nullptr ? atoi(units) : 1;
    }
    if (attr == cudaDevAttrComputeCapabilityMajor) {
        *value_p = 9;
    }
    if (attr == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
        const char *kib =
            getenv("SIMT_SHARED_KIB"); /* a smaller device, so that both ways are run */
        *value_p = kib != nullptr ? atoi(kib) << 10 : (int)SHARED_BYTES;
    }
    return cudaSuccess;
}
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *, void *)
{
    return cudaErrorInvalidValue;
}
cudaError_t cudaIpcOpenMemHandle(void **, cudaIpcMemHandle_t, unsigned int)
{
    return cudaErrorInvalidValue;
}
cudaError_t cudaIpcCloseMemHandle(void *)
{
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int)
{
    snprintf(id, (size_t)bytes, "0000:00:00.0");
    return cudaSuccess;
}
cudaError_t cudaDeviceGetByPCIBusId(int *device_p, const char *)
{
    *device_p = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can_p, int, int)
{
    *can_p = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned int)
{
    return cudaErrorInvalidValue;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop_p, int)
{
    memset(prop_p, 0, sizeof *prop_p);
    strcpy(prop_p->name, "emulated, on this processor");
    return cudaSuccess;
}
