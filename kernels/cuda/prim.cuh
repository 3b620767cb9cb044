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
