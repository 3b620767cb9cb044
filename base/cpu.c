/* base/cpu.c - see cpu.h. What memory may be used is base/cpu_memory.c. */
#include "base/cpu.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#if !defined(__x86_64__)
#error "Gantry runs on x86-64: the float environment of other processors is not written"
#endif
#include <cpuid.h>
#include <immintrin.h>

/* MXCSR */
#define DENORMALS_ARE_ZERO 0x0040u
#define ROUND_BITS         0x6000u /* 0: to nearest, ties to even */
#define FLUSH_TO_ZERO      0x8000u

/* XCR0: which registers the operating system saves. */
#define XCR0_YMM 0x06u /* xmm, upper ymm */
#define XCR0_ZMM 0xE6u /* the above, opmask, upper zmm, zmm16-31 */

static _Atomic uint32_t mask_now = UINT32_MAX;

static uint64_t xcr0(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

static uint32_t detect(void)
{
    uint32_t a, b, c, d, a1, b1, c1, d1;
    uint32_t flags = 0;

    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !has(c, bit_OSXSAVE | bit_AVX)) {
        return 0;
    }
    const bool ymm = (xcr0() & XCR0_YMM) == XCR0_YMM;
    const bool zmm = (xcr0() & XCR0_ZMM) == XCR0_ZMM;
    const bool fma_f16c = has(c, bit_FMA | bit_F16C);

    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
        return 0;
    }
    if (!ymm || !fma_f16c || !has(b, bit_AVX2)) {
        return 0;
    }
    flags |= CPU_AVX2;
    if (!zmm || !has(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL)) {
        return flags;
    }
    flags |= CPU_AVX512;
    if (has(c, bit_AVX512VNNI)) {
        flags |= CPU_AVX512_VNNI;
    }
    if (a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) != 0 && has(a1, 1u << 5)) {
        flags |= CPU_AVX512_BF16;
    }
    return flags;
}

uint32_t cpu_flags(void)
{
    return detect() & atomic_load_explicit(&mask_now, memory_order_relaxed);
}

void cpu_mask(uint32_t allowed)
{
    atomic_store_explicit(&mask_now, allowed, memory_order_relaxed);
}

status cpu_mask_parse(const char *word, uint32_t *allowed_p, struct err *err)
{
    static const struct {
        const char *word;
        uint32_t allowed;
    } paths[] = {
        { "scalar", 0 },
        { "avx2", CPU_AVX2 },
        { "avx512", CPU_AVX2 | CPU_AVX512 },
        { "avx512bf16", CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16 | CPU_AVX512_VNNI },
        { "native", UINT32_MAX },
    };

    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        if (strcmp(word, paths[i].word) == 0) {
            *allowed_p = paths[i].allowed;
            return ST_OK;
        }
    }
    return err_set(err, ST_ERR_ARG,
                   "cpu path \"%s\" is none of scalar, avx2, avx512, avx512bf16, native", word);
}

void cpu_float_env_set(void)
{
    _mm_setcsr((_mm_getcsr() & ~ROUND_BITS) | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
}

bool cpu_float_env_ok(void)
{
    const uint32_t want = FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
    return (_mm_getcsr() & (want | ROUND_BITS)) == want;
}

/* The affinity mask, or NULL with errno. The kernel refuses a set smaller than its own, so grow until it
 * fits. CPU_FREE by the caller. */
static cpu_set_t *mask_read(size_t *size_p)
{
    for (int bits = 1024; bits <= 1 << 20; bits *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)bits);
        const size_t size = CPU_ALLOC_SIZE((size_t)bits);

        if (set == NULL) {
            errno = ENOMEM;
            return NULL;
        }
        CPU_ZERO_S(size, set);
        if (sched_getaffinity(0, size, set) == 0) {
            *size_p = size;
            return set;
        }
        const int why = errno;
        CPU_FREE(set);
        errno = why;
        if (why != EINVAL) {
            return NULL;
        }
    }
    return NULL;
}

uint32_t cpu_count(void)
{
    size_t size = 0;
    cpu_set_t *set = mask_read(&size);
    const int n = set != NULL ? CPU_COUNT_S(size, set) : 1;

    if (set != NULL) {
        CPU_FREE(set);
    }
    return (uint32_t)MAX(n, 1);
}

status cpu_take(const struct cpu_parts *parts, struct err *err)
{
    size_t size = 0;
    cpu_set_t *set = mask_read(&size);
    const uint64_t n = set != NULL ? (uint64_t)CPU_COUNT_S(size, set) : 0;
    const uint64_t begin = n * parts->first / parts->total,
                   end = n * (parts->first + parts->count) / parts->total;
    uint64_t i = 0;
    int rc = 0;

    ASSERT(parts->count > 0 && parts->total >= parts->first + parts->count);
    if (set == NULL) {
        return err_set_errno(err, ST_ERR_IO, errno, "the cores of this process cannot be listed");
    }
    if (end > begin) {
        for (size_t cpu = 0; cpu < 8 * size; cpu++) {
            if (CPU_ISSET_S(cpu, size, set)) {
                if (i < begin || i >= end) {
                    CPU_CLR_S(cpu, size, set);
                }
                i++;
            }
        }
        rc = sched_setaffinity(0, size, set);
    }
    const int why = errno;
    CPU_FREE(set);
    return rc == 0 ? ST_OK
                   : err_set_errno(err, ST_ERR_IO, why, "cores %u to %u of %u cannot be taken",
                                   (unsigned)begin, (unsigned)end, (unsigned)n);
}
