/* base/cpu.h - what this processor and its operating system can do, and the float environment.
 *
 * Flags honour what the OS saves (XGETBV): a flag is set only if the registers survive a context
 * switch. `cpu_mask` (from --cpu-mask) removes flags, for tests and bug reports. */
#ifndef BASE_CPU_H
#define BASE_CPU_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum cpu_flag {
    CPU_AVX2 = 1u << 0,        /* AVX2 + FMA + F16C */
    CPU_AVX512 = 1u << 1,      /* F + BW + DQ + VL */
    CPU_AVX512_BF16 = 1u << 2, /* VDPBF16PS, VCVTNEPS2BF16 */
    CPU_AVX512_VNNI = 1u << 3
};

/* Flags of this machine, the mask applied. */
uint32_t cpu_flags(void);
/* Allow only flags in `allowed` from here on. Call before the first use of kernels. */
void cpu_mask(uint32_t allowed);
/* "scalar", "avx2", "avx512", "avx512bf16" or "native" -> the set of flags up to and including that
 * path (VNNI comes with avx512bf16). ST_ERR_ARG names the words. */
status cpu_mask_parse(const char *word, uint32_t *allowed_p, struct err *err);

/* Flush-to-zero and denormals-are-zero, round to nearest, for the calling thread. Every thread that
 * computes calls it once and asserts cpu_float_env_ok() (docs/numerics.md, "The environment"). */
void cpu_float_env_set(void);
bool cpu_float_env_ok(void);

/* Cores this process may run on (affinity mask counted), at least 1. */
uint32_t cpu_count(void);
/* Keep this process (and what it starts) to a part of those cores: of `total` equal parts the ones from
 * `first` on, `count` of them, by the cores' numbers. A part of less than one core is all of them. Call
 * before any thread is made. ST_ERR_IO: the system refused. */
struct cpu_parts {
    uint32_t first, count, total;
};
status cpu_take(const struct cpu_parts *parts, struct err *err);
/* Bytes of memory this process may use: the smaller of MemAvailable and the cgroup's limit. */
uint64_t cpu_memory_bytes(void);
/* The same, reading <root>/proc and <root>/sys; UINT64_MAX where nothing there sets a bound. */
uint64_t cpu_memory_bytes_under(const char *root);

#endif
