/* kernels/cuda/peer.cu - small sums over memory that devices of one host map from each other.
 *
 * One launch: every rank writes its partial into a window of its own, says so to every peer, waits
 * for every peer's word, reads all partials and adds them in the order of the tree (cluster/coll.h).
 * Each rank adds the same numbers in the same order, so no second exchange is needed. A message of a
 * decoded row is some 16 KiB; what counts is the latency of one write and one read over the link,
 * where a gather through NCCL and its additions are three launches.
 *
 *   window of rank r     data[block][2][CHUNK]   r's partials: block b of the grid writes and is read
 *                        flags[block][peer]      the last sum for which `peer`'s part of it is there
 *                        seq[block]              sums that this rank's block b has begun
 *
 * A block depends on the same block of the peers only. Sums are numbered per block, in device
 * memory, so a recorded sum counts on from wherever it is launched. Two buffers are enough: rank r
 * writes buffer q % 2 again in sum q + 2, after it has seen every peer's word for q + 1; a peer gives
 * that word in its launch q + 1, which begins (begin_op) when its launch q has ended, reads and all.
 *
 * Words: store with release after a barrier of the block, load with acquire before one, at system
 * scope; partials are loaded at system scope too, past the first-level cache. Deadlock: blocks of a
 * launch wait for their namesakes only, the next op's blocks come when all of them run, and the grid
 * is at most 128 blocks of 256 threads, which a device of 132 multiprocessors holds at once. A wait
 * ends when the host says so, in a word that the device polls in host memory, or after the limit.
 *
 * Bytes a rank: n written, (ranks - 1) n read over the link. */
#include "kernels/cuda/stream.cuh"

#include <cstdio>
#include <cstring>
#include <new>
#include <unistd.h>

enum {
    THREADS = 256,
    CHUNK = THREADS * 4, /* floats of a block: one load of 16 bytes a thread */
    BLOCKS = KERN_PEER_FLOATS / CHUNK,
    POLLS = 1024,          /* between two looks at the host's word */
    LIMIT_S = 600,         /* ends a wait of which no host knows any more */
    WINDOW_BYTES = 2 << 20 /* an allocation of its own: what is exported is whole pages of 2 MiB */
};

struct window {
    float data[BLOCKS][2][CHUNK];
    uint32_t flags[BLOCKS][KERN_PEERS_MAX];
    uint32_t seq[BLOCKS];
};
static_assert(sizeof(struct window) <= WINDOW_BYTES, "a window is one page");

/* In pinned host memory: the device polls one word and writes the other. */
struct host_words {
    uint32_t abort;
    uint32_t missing; /* 1 + the peer that did not come within the limit */
};

struct peer_args {
    struct window *windows[KERN_PEERS_MAX];
    uint32_t self;
    struct host_words *words;
};

struct kern_peers {
    struct peer_args args;
    uint32_t n;
    bool imported[KERN_PEERS_MAX]; /* mapped by cudaIpcOpenMemHandle */
    bool aborted;
};

/* What travels. */
struct peer_id {
    char machine[40]; /* the kernel's boot id */
    char bus[16];     /* of the device, "0000:1b:00.0" */
    uint64_t process, window;
    uint32_t has_handle;
    cudaIpcMemHandle_t handle;
};
static_assert(sizeof(struct peer_id) <= KERN_PEER_ID_BYTES, "an id in its place");

/* ---- the kernel ---- */

/* Until sum q of the flag's rank is there. False: given up. */
__device__ static bool wait_for(const uint32_t *flag, uint32_t q, uint32_t peer,
                                struct host_words *words)
{
    uint64_t since = 0;

    for (uint32_t i = 1; (int32_t)(load_acquire(flag) - q) < 0; i++) {
        spin();
        if (i % POLLS == 0) {
            const uint64_t now = clock_ns();

            since = since != 0 ? since : now;
            if (load_acquire(&words->abort) != 0) {
                return false;
            }
            if (now - since > LIMIT_S * 1000000000ull) {
                store_release(&words->missing, 1 + peer);
                return false;
            }
        }
    }
    return true;
}

__device__ static float4 sum_of(const float4 &a, const float4 &b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* x[i .. i+3]; what lies behind n is 0. */
__device__ static float4 load_part(const float *x, size_t i, size_t n)
{
    if (i + 4 <= n) {
        return *(const float4 *)(x + i);
    }
    return make_float4(i < n ? x[i] : 0.0f, i + 1 < n ? x[i + 1] : 0.0f,
                       i + 2 < n ? x[i + 2] : 0.0f, 0.0f);
}

__device__ static void store_part(float *x, size_t i, size_t n, const float4 &v)
{
    if (i + 4 <= n) {
        *(float4 *)(x + i) = v;
        return;
    }
    if (i < n) {
        x[i] = v.x;
    }
    if (i + 1 < n) {
        x[i + 1] = v.y;
    }
    if (i + 2 < n) {
        x[i + 2] = v.z;
    }
}

/* Block b sums x[b * CHUNK ..). N ranks. */
template <uint32_t N>
__global__ static void __launch_bounds__(THREADS)
    sum_kernel(float *x, size_t n, const __grid_constant__ struct peer_args a)
{
    DYNAMIC_SHARED(uint32_t, given_up); /* [N] by the thread that waits for the peer */
    const uint32_t b = blockIdx.x, t = threadIdx.x;
    const size_t i = (size_t)b * CHUNK + t * 4;
    struct window *own = a.windows[a.self];

    begin_op();
    const uint32_t q = own->seq[b] + 1;
    const float4 mine = load_part(x, i, n);
    float4 v[N];

    *(float4 *)&own->data[b][q % 2][t * 4] = mine;
    __syncthreads(); /* all have read the number, and written */
    if (t == 0) {
        own->seq[b] = q;
    }
    if (t < N) {
        bool is_there = true;

        if (t != a.self) {
            store_release(&a.windows[t]->flags[b][a.self], q);
            is_there = wait_for(&own->flags[b][t], q, t, a.words);
        }
        given_up[t] = !is_there;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; k < N; k++) {
        if (given_up[k] != 0) {
            return;
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < N; k++) {
        v[k] = k == a.self ? mine : load_peer_16(&a.windows[k]->data[b][q % 2][t * 4]);
    }
#pragma unroll
    for (uint32_t half = 1; half < N; half *= 2) {
#pragma unroll
        for (uint32_t k = 0; k < N; k += 2 * half) {
            v[k] = sum_of(v[k], v[k + half]);
        }
    }
    store_part(x, i, n, v[0]);
}

static void peers_sum(struct kern_stream *s, struct kern_peers *p, float *x, size_t n)
{
    const dim3 grid(div_up(n, CHUNK));

    if (p->n == 2) {
        cu_launch(s, "peer sum", sum_kernel<2>, grid, THREADS, KERN_PEERS_MAX * 4, x, n, p->args);
    } else if (p->n == 4) {
        cu_launch(s, "peer sum", sum_kernel<4>, grid, THREADS, KERN_PEERS_MAX * 4, x, n, p->args);
    } else {
        cu_launch(s, "peer sum", sum_kernel<8>, grid, THREADS, KERN_PEERS_MAX * 4, x, n, p->args);
    }
}

/* ---- windows ---- */

/* Which boot of which machine this is: devices of two containers on it can be mapped, of two
 * machines never. Empty if it is not told. */
static void machine_of(char machine[40])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");

    memset(machine, 0, 40);
    if (f != nullptr) {
        if (fgets(machine, 40, f) == nullptr) {
            machine[0] = '\0';
        }
        fclose(f);
    }
}

static status create_window(struct kern_stream *s, struct kern_peers *p, struct peer_id *id,
                            struct err *err)
{
    struct window *own = nullptr;
    cudaError_t e = cudaMalloc((void **)&own, WINDOW_BYTES);

    if (e == cudaSuccess) {
        p->args.windows[p->args.self] = own;
        e = cudaMemsetAsync(own, 0, WINDOW_BYTES, s->raw);
    }
    if (e == cudaSuccess) { /* before anybody writes a flag */
        e = cudaStreamSynchronize(s->raw);
    }
    if (e == cudaSuccess) {
        e = cudaMallocHost((void **)&p->args.words, sizeof *p->args.words);
    }
    if (e == cudaSuccess) {
        memset(p->args.words, 0, sizeof *p->args.words);
        e = cudaDeviceGetPCIBusId(id->bus, sizeof id->bus, s->device);
    }
    if (e != cudaSuccess) {
        (void)cudaGetLastError(); /* goes without: no failure of the stream */
        return cu_fail(err, ST_ERR_UNSUPPORTED, "a window for sums between devices: CUDA: %s",
                       cudaGetErrorString(e));
    }
    id->has_handle = cudaIpcGetMemHandle(&id->handle, own) == cudaSuccess;
    (void)cudaGetLastError();
    id->window = (uint64_t)(uintptr_t)own;
    id->process = (uint64_t)getpid();
    machine_of(id->machine);
    return ST_OK;
}

static void peers_destroy(struct kern_stream *s, struct kern_peers *p)
{
    if (p == nullptr) {
        return;
    }
    for (uint32_t k = 0; k < p->n; k++) {
        if (p->imported[k]) {
            cu_note(s, cudaIpcCloseMemHandle(p->args.windows[k]), "unmapping a window");
        }
    }
    if (!p->aborted) {
        (void)cudaFree(p->args.windows[p->args.self]);
        (void)cudaFreeHost(p->args.words);
    }
    delete p;
}

static status peers_create(struct kern_stream *s, uint32_t n, uint32_t self,
                           struct kern_peers **peers_p, void *id, struct err *err)
{
    struct peer_id mine = {};
    struct kern_peers *p = nullptr;

    if ((n != 2 && n != 4 && n != 8) || self >= n) {
        return cu_fail(err, ST_ERR_UNSUPPORTED, "sums between devices: rank %u of %u", self, n);
    }
    p = new (std::nothrow) kern_peers();
    if (p == nullptr) {
        return cu_fail(err, ST_ERR_NOMEM, "no memory for a window between devices");
    }
    p->n = n;
    p->args.self = self;
    const status st = create_window(s, p, &mine, err);

    if (st != ST_OK) {
        peers_destroy(s, p);
        return st;
    }
    memset(id, 0, KERN_PEER_ID_BYTES);
    memcpy(id, &mine, sizeof mine);
    *peers_p = p;
    return ST_OK;
}

static status cannot(struct err *err, uint32_t k, const char *why)
{
    (void)cudaGetLastError();
    return cu_fail(err, ST_ERR_UNSUPPORTED, "the memory of slice %u cannot be mapped: %s", k, why);
}

/* The window of slice k, as this process and device see it. */
static status map_window(struct kern_stream *s, struct kern_peers *p, uint32_t k,
                         const struct peer_id *mine, const struct peer_id *id, struct err *err)
{
    const bool same_process = id->process == mine->process;
    int device = 0, can = 0;
    void *mapped = (void *)(uintptr_t)id->window;

    if (mine->machine[0] == '\0' || memcmp(id->machine, mine->machine, sizeof id->machine) != 0) {
        return cannot(err, k, "it is on another host");
    }
    if (cudaDeviceGetByPCIBusId(&device, id->bus) != cudaSuccess) {
        return cannot(err, k, "this process does not see its device");
    }
    if (device == s->device) {
        if (!same_process) {
            return cannot(err, k, "two processes that take turns on one device");
        }
        p->args.windows[k] = (struct window *)mapped;
        return ST_OK;
    }
    if (cudaDeviceCanAccessPeer(&can, s->device, device) != cudaSuccess || can == 0) {
        return cannot(err, k, "no way between the two devices");
    }
    if (same_process) {
        const cudaError_t e = cudaDeviceEnablePeerAccess(device, 0);

        if (e != cudaSuccess && e != cudaErrorPeerAccessAlreadyEnabled) {
            return cannot(err, k, cudaGetErrorString(e));
        }
        (void)cudaGetLastError();
    } else {
        const cudaError_t e = id->has_handle ? cudaIpcOpenMemHandle(&mapped, id->handle,
                                                                    cudaIpcMemLazyEnablePeerAccess)
                                             : cudaErrorInvalidValue;

        if (e != cudaSuccess) {
            return cannot(err, k, cudaGetErrorString(e));
        }
        p->imported[k] = true;
    }
    p->args.windows[k] = (struct window *)mapped;
    return ST_OK;
}

static status peers_open(struct kern_stream *s, struct kern_peers *p, const void *ids,
                         struct err *err)
{
    struct peer_id mine, other;
    status st = ST_OK;

    memcpy(&mine, (const char *)ids + p->args.self * KERN_PEER_ID_BYTES, sizeof mine);
    for (uint32_t k = 0; st == ST_OK && k < p->n; k++) {
        if (k != p->args.self) {
            memcpy(&other, (const char *)ids + k * KERN_PEER_ID_BYTES, sizeof other);
            other.bus[sizeof other.bus - 1] = '\0';
            st = map_window(s, p, k, &mine, &other, err);
        }
    }
    return st;
}

/* ---- failure ---- */

static status peers_check(const struct kern_peers *p, struct err *err)
{
    const uint32_t missing = __atomic_load_n(&p->args.words->missing, __ATOMIC_ACQUIRE);

    return missing == 0 ? ST_OK
                        : cu_fail(err, ST_ERR_PEER,
                                  "a sum between devices: slice %u did not come within %d s",
                                  missing - 1, LIMIT_S);
}

static void peers_abort(struct kern_peers *p)
{
    p->aborted = true;
    __atomic_store_n(&p->args.words->abort, 1u, __ATOMIC_RELEASE);
}

void cu_ops_peer(struct kern_ops *ops)
{
    ops->peers_create = peers_create;
    ops->peers_open = peers_open;
    ops->peers_sum = peers_sum;
    ops->peers_check = peers_check;
    ops->peers_abort = peers_abort;
    ops->peers_destroy = peers_destroy;
}
