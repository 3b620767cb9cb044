/* kernels/cpu.h - what every CPU path shares: the stream, its scratch memory, and how an op is cut.
 *
 * A CPU stream is a team of threads plus one scratch area per thread. Any CPU table's ops accept
 * any CPU stream (the self-check runs two tables on one). Ops cut outputs over the parts, never a
 * sum, so the number of threads changes no bit. Private to kernels/. */
#ifndef KERNELS_CPU_H
#define KERNELS_CPU_H

#include "base/cpu.h"
#include "base/team.h"
#include "kernels/kern.h"

#include <stdatomic.h>
#include <stddef.h>

enum {
    GEMM_ROWS = 192, /* rows of x that a product works on at a time: a multiple of 6 and 4 */
    /* 7 levels of partial leaf sums (KERN_LEAVES_MAX = 2^6), GEMM_ROWS by 64 outputs each. */
    SCRATCH_ODD = 7 * GEMM_ROWS * 64,   /* fp8: the sum of a group with an odd number of inputs */
    SCRATCH_PAIRS = 8 * GEMM_ROWS * 64, /* fp8: a group of a panel as bf16 pairs */
    SCRATCH_FLOATS = SCRATCH_PAIRS + KERN_GROUP / 2 * 64,
    RUN_INLINE = 16384 /* elements below which waking the team costs more than it saves */
};

struct kern_stream {
    struct team *team; /* owned */
    uint32_t n_threads;
    float *scratch;        /* owned, [n_threads][SCRATCH_FLOATS], KERN_ALIGN-aligned */
    atomic_uint next_task; /* for ops whose tasks differ in cost */
};

static inline float *stream_scratch(struct kern_stream *s, uint32_t part)
{
    return s->scratch + (size_t)part * SCRATCH_FLOATS;
}

/* Run fn over the team, or in this thread alone if the op is small. */
static inline void stream_run(struct kern_stream *s, team_fn fn, void *arg, size_t n_elements)
{
    if (s->n_threads == 1 || n_elements < RUN_INLINE) {
        fn(arg, 0, 1);
    } else {
        team_run(s->team, fn, arg);
    }
}

/* The slots that have one implementation for all CPU paths: life and memory; packing. */
void cpu_ops_life(struct kern_ops *ops);
void cpu_ops_pack(struct kern_ops *ops);
/* Overwrite the slots that kernels/ref implements. */
void cpu_ops_ref(struct kern_ops *ops);

/* Compare every op of `path` with `below` (whose bits are known to be right) on canned vectors and
 * put below's op where they differ. Names of those ops go to `note` (NULL is fine); returns how
 * many. */
uint32_t cpu_ops_check(struct kern_ops *path, const struct kern_ops *below, struct err *note);

#endif
