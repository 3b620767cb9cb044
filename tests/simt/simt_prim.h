/* tests/simt/simt_prim.h - kernels/cuda/prim.cuh for a processor. */
#ifndef TESTS_SIMT_SIMT_PRIM_H
#define TESTS_SIMT_SIMT_PRIM_H

typedef uintptr_t smem_at;
extern char *simt_shared;
#define DYNAMIC_SHARED(type, name) type *const name = (type *)(void *)simt_shared

static inline smem_at smem_of(const void *p)
{
    return (uintptr_t)p;
}

static inline void let_next_start()
{
}
static inline void wait_for_previous()
{
}

/* c + the sum of 16 products of bf16 (simt_dot.cpp). */
float simt_dot(float c, const uint16_t a[16], const uint16_t b[16]);

static inline void mma(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                       uint32_t b1)
{
    const uint32_t mine[8] = { a0, a1, a2, a3, b0, b1, 0, 0 };
    const uint32_t *all = simt_exchange_words(mine);
    const uint32_t g = simt_lane() / 4, c = simt_lane() % 4;

    for (uint32_t i = 0; i < 4; i++) { /* rows g, g+8; columns 2c, 2c+1 */
        uint16_t x[16], y[16];

        for (uint32_t k = 0; k < 16; k++) {
            const uint32_t a_lane = g * 4 + k % 8 / 2, b_lane = (2 * c + i % 2) * 4 + k % 8 / 2;

            x[k] = (uint16_t)(all[a_lane * 8 + i / 2 + k / 8 * 2] >> k % 2 * 16);
            y[k] = (uint16_t)(all[b_lane * 8 + 4 + k / 8] >> k % 2 * 16);
        }
        d[i] = simt_dot(d[i], x, y);
    }
}

#define HAVE_WGMMA 1
/* wgmma: simt.cpp keeps what a product was given until it is waited for. */
uint32_t simt_smem_offset(const void *p);
void simt_wg_fence();
void simt_wg_mma(float *d, const uint32_t *const a[4], uint64_t b);
void simt_wg_commit();
void simt_wg_wait();
void simt_write_4(void *at, uint32_t v);
void simt_publish();

static inline uint64_t wg_operand(smem_at at, uint32_t next_k, uint32_t next_rows)
{
    return (uint64_t)(simt_smem_offset((const void *)at) >> 4) | (uint64_t)(next_k >> 4) << 16 |
           (uint64_t)(next_rows >> 4) << 32;
}

static inline void wg_fence()
{
    simt_wg_fence();
}

static inline void wg_commit()
{
    simt_wg_commit();
}

static inline void wg_wait()
{
    simt_wg_wait();
}

static inline void hold(float &)
{
}

static inline void hold(uint4 &)
{
}

static inline void wg_mma(float (&d)[64], const uint32_t &a0, const uint32_t &a1,
                          const uint32_t &a2, const uint32_t &a3, uint64_t b)
{
    const uint32_t *const a[4] = { &a0, &a1, &a2, &a3 };

    simt_wg_mma(d, a, b);
}

static inline void write_4(smem_at smem, uint32_t v)
{
    simt_write_4((void *)smem, v);
}

static inline void publish_smem()
{
    simt_publish();
}

static inline uint4 load_once(const void *p)
{
    return *(const uint4 *)p;
}

/* A hint. */
static inline void prefetch_l2(const void *, uint32_t)
{
}

void simt_copy_16(void *dst, const void *src, uint32_t bytes);
void simt_copies_commit();
void simt_copies_wait(size_t n_groups);

static inline void copy_16(smem_at smem, const void *src, bool valid)
{
    simt_copy_16((void *)smem, src, valid ? 16 : 0);
}

static inline void copy_some(smem_at smem, const void *src, uint32_t bytes)
{
    simt_copy_16((void *)smem, src, bytes);
}

static inline void copies_commit()
{
    simt_copies_commit();
}

template <int N> static inline void copies_wait()
{
    simt_copies_wait(N);
}

static inline uint4 read_16(smem_at smem)
{
    return *(const uint4 *)smem;
}

static inline void write_16(smem_at smem, const uint4 &v)
{
    *(uint4 *)smem = v;
}

static inline void store_release(uint32_t *at, uint32_t v)
{
    __atomic_store_n(at, v, __ATOMIC_RELEASE);
}

static inline uint32_t load_acquire(const uint32_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static inline float4 load_peer_16(const float *at)
{
    return *(const float4 *)(const void *)at;
}

uint64_t simt_clock_ns();
static inline uint64_t clock_ns()
{
    return simt_clock_ns();
}

/* Give way to the launches of other host threads. */
void simt_spin();
static inline void spin()
{
    simt_spin();
}

static inline uint32_t half_times_2_120(uint32_t h) /* not negative, below 2^7 */
{
    const uint32_t fraction = h & 0x7fu, e = h >> 7;

    return e != 0 ? h + (120u << 7) : bf16_from_f32((float)fraction * 0x1p-13f);
}

static inline uint32_t times_2_120(uint32_t v)
{
    return half_times_2_120(v & 0xffffu) | half_times_2_120(v >> 16) << 16;
}

static inline float max_nan(float a, float b)
{
    return a != a || a > b ? a : b;
}

static inline uint32_t pack_pair(float lo, float hi)
{
    return (uint32_t)bf16_from_f32(lo) | (uint32_t)bf16_from_f32(hi) << 16;
}

#endif
