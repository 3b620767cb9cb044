/* kernels/cuda/prim.cuh - the instructions that C++ has no word for, one function each.
 *
 * Everything else under kernels/cuda is C++ that a host compiler takes as well: with
 * GANTRY_CUDA_HOST the same kernels run thread by thread on a processor (tests/simt/), which
 * supplies its own version of this file's functions. */
#ifndef KERNELS_CUDA_PRIM_CUH
#define KERNELS_CUDA_PRIM_CUH

#include "kernels/kern.h"
#include "kernels/math.h"

#include <cuda_runtime.h>

#if defined(GANTRY_CUDA_HOST)
#include "simt_prim.h"
#else

/* A place in shared memory, and the block's dynamic part of it as `type name[]`. */
typedef uint32_t smem_at;
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]

__device__ static inline smem_at smem_of(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static inline void let_next_start()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ static inline void wait_for_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* D[16,8] += A[16,16] B[16,8], bf16 in, f32 sums. Lane (g, c) = (lane / 4, lane % 4) holds of A
 * rows g, g+8 at columns 2c, 2c+1 (a0, a1) and 2c+8, 2c+9 (a2, a3), of B rows as A's columns at
 * column g, of D rows g, g+8 at columns 2c, 2c+1. */
__device__ static inline void mma(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                  uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* 16 bytes that are read once: past the first-level cache. */
__device__ static inline uint4 load_once(const void *p)
{
    uint4 v;

    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* Bring `bytes` (a multiple of 16, as the address) to the second-level cache. A hint. */
__device__ static inline void prefetch_l2(const void *p, uint32_t bytes)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#else
    (void)p;
    (void)bytes;
#endif
}

/* Start the copy of 16 bytes, or of zeros. */
__device__ static inline void copy_16(smem_at smem, const void *src, bool valid)
{
    const int bytes = valid ? 16 : 0; /* the rest is zero-filled */

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(src), "r"(bytes));
}

/* Start the copy of the first `bytes` (up to 16) of 16 bytes; the rest are zeros. */
__device__ static inline void copy_some(smem_at smem, const void *src, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(src), "r"(bytes));
}

/* What was started since the last call is a group. */
__device__ static inline void copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most N groups of this thread are on the way. */
template <int N> __device__ static inline void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ static inline uint4 read_16(smem_at smem)
{
    uint4 v;

    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(smem));
    return v;
}

__device__ static inline void write_16(smem_at smem, const uint4 &v)
{
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(smem), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w));
}

/* ---- products of four warps (wgmma), which compute capability 9.0 alone has ----
 *
 * Relied upon, from the PTX ISA ("Asynchronous warpgroup level matrix instructions") and not seen on a device:
 *
 *   fragments   A[64,16] from registers: warp w of the four holds rows 16w .. 16w + 15 as mma's A
 *               above; D[64,N]: the same rows, d[4j + e] as mma's d[e] of columns 8j .. 8j + 7.
 *   operand B   lies in shared memory in core matrices of 8 rows (of x) by 16 bytes (8 values of k),
 *               128 bytes in a row. Descriptor, all in units of 16 bytes: bits 0-13 where it starts;
 *               16-29 "leading" offset, here (k-major, no swizzle) from a core matrix to the one of the
 *               next 8 k; 32-45 "stride" offset, to that of the next 8 rows; 62-63 swizzle, 0 none.
 *   order       the instructions of a warp are one chain. Registers of A and D, and B, belong to the
 *               instruction until wg_wait; wg_fence comes between their last use and the instruction.
 *   proxies     what threads store to shared memory is seen by wgmma after each has called
 *               publish_smem and all have met at a barrier. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAVE_WGMMA 1
#else
#define HAVE_WGMMA                                                                                 \
    0 /* the kernel is compiled and computes nothing, which kernels/cuda/agree.cu finds */
#endif

__device__ static inline uint64_t wg_operand(smem_at at, uint32_t next_k, uint32_t next_rows)
{
    return (uint64_t)(at >> 4) | (uint64_t)(next_k >> 4) << 16 | (uint64_t)(next_rows >> 4) << 32;
}

__device__ static inline void wg_fence()
{
#if HAVE_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

/* All products issued so far are under way as one group; wait for all groups. */
__device__ static inline void wg_commit()
{
#if HAVE_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

__device__ static inline void wg_wait()
{
#if HAVE_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}

/* The compiler moves no use of `v` over this. */
__device__ static inline void hold(float &v)
{
    asm volatile("" : "+f"(v)::"memory");
}

__device__ static inline void hold(uint4 &v)
{
    asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)::"memory");
}

/* D[64,128] += A[64,16] B[16,128], of four warps; the sum before is always taken (scale-d = 1). */
__device__ static inline void wg_mma(float (&d)[64], const uint32_t &a0, const uint32_t &a1,
                                     const uint32_t &a2, const uint32_t &a3, uint64_t b)
{
#if HAVE_WGMMA
#define D4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, p, 1, 1, 0;\n"
                 "}\n"
                 : D16(0), D16(16), D16(32), D16(48)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "n"(1));
#undef D16
#undef D4
#else
    (void)d, (void)a0, (void)a1, (void)a2, (void)a3, (void)b;
#endif
}

__device__ static inline void write_4(smem_at smem, uint32_t v)
{
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(smem), "r"(v) : "memory");
}

/* This thread's stores to shared memory, for wgmma behind the next barrier. */
__device__ static inline void publish_smem()
{
#if HAVE_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* ---- between devices: what another one writes or reads while this kernel runs ---- */

/* All that the block wrote before its last barrier is seen by whoever then acquires `v`. */
__device__ static inline void store_release(uint32_t *at, uint32_t v)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}

__device__ static inline uint32_t load_acquire(const uint32_t *at)
{
    uint32_t v;

    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}

/* 16 bytes of another device's memory, never from this one's first-level cache. */
__device__ static inline float4 load_peer_16(const float *at)
{
    float4 v;

    asm volatile("ld.relaxed.sys.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

/* Nanoseconds of a clock that only goes on. */
__device__ static inline uint64_t clock_ns()
{
    uint64_t t;

    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

/* Once a turn of a loop that waits for another device. */
__device__ static inline void spin()
{
}

/* Two bf16, each times 2^120. Denormals are taken as they are: bf16 arithmetic has no flushing. */
__device__ static inline uint32_t times_2_120(uint32_t v)
{
    uint32_t r;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(v), "r"(0x7b807b80u), "r"(0x80008000u));
    return r;
}

/* The larger one; NaN if either is. */
__device__ static inline float max_nan(float a, float b)
{
    float m;

    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
    return m;
}

/* Two f32, 0 or normal, to two bf16, to nearest even; lo in the low half. */
__device__ static inline uint32_t pack_pair(float lo, float hi)
{
    uint32_t v;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
    return v;
}

#endif

/* Let the next op's blocks come, and wait for the op before. */
__device__ static inline void begin_op()
{
    let_next_start();
    wait_for_previous();
}

/* The pair of products of a step of 32 (kernels/cuda/layout_cuda.h): lo is A's row g, hi its row
 * g+8, b the column g of B; 8 inputs each. */
__device__ static inline void mma_step(float d[4], const uint4 &lo, const uint4 &hi, const uint4 &b)
{
    mma(d, lo.x, hi.x, lo.y, hi.y, b.x, b.y);
    mma(d, lo.z, hi.z, lo.w, hi.w, b.z, b.w);
}

/* Two f32 to a register of two bf16, first in the low half; the rounding of bf16_from_f32. */
__device__ static inline uint32_t pack_bf16(float lo, float hi)
{
    return (uint32_t)bf16_from_f32(lo) | (uint32_t)bf16_from_f32(hi) << 16;
}

/* y[i] in fmt <- x */
__device__ static inline void store_fmt(void *y, enum kern_fmt fmt, size_t i, float x)
{
    if (fmt == KERN_BF16) {
        ((uint16_t *)y)[i] = bf16_from_f32(x);
    } else {
        ((float *)y)[i] = x;
    }
}

#endif
