/* kernels/ops.c - the tables: each path starts as the one below it and overwrites what it does
 * better; kern_ops_cpu compares as it climbs. */
#include "kernels/cpu.h"
#include "kernels/x86/x86.h"

#include <pthread.h>

struct path {
    uint32_t needs; /* CPU flags */
    void (*fill)(struct kern_ops *ops);
};

static const struct path paths[] = {
    { 0, cpu_ops_ref },
    { CPU_AVX2, x86_ops_avx2 },
    { CPU_AVX2 | CPU_AVX512, x86_ops_avx512 },
    { CPU_AVX2 | CPU_AVX512 | CPU_AVX512_BF16, x86_ops_avx512bf16 },
};

enum { N_PATHS = ARRAY_LEN(paths) };

static struct kern_ops tables[N_PATHS]; /* written once, by tables_fill */
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static struct kern_ops best; /* written once, by best_fill */
static struct err best_note;
static pthread_once_t best_once = PTHREAD_ONCE_INIT;

static void tables_fill(void)
{
    struct kern_ops ops = { 0 };

    cpu_ops_life(&ops);
    cpu_ops_pack(&ops);
    for (uint32_t i = 0; i < N_PATHS; i++) {
        paths[i].fill(&ops); /* only stores pointers: nothing of the instruction set runs */
        tables[i] = ops;
    }
}

static const struct kern_ops *table(uint32_t i)
{
    pthread_once(&tables_once, tables_fill);
    return &tables[i];
}

/* Highest path whose flags are all in `flags`. */
static uint32_t path_of(uint32_t flags)
{
    uint32_t i = N_PATHS - 1;

    while ((flags & paths[i].needs) != paths[i].needs) {
        i--;
    }
    return i;
}

static void best_fill(void)
{
    const uint32_t top = path_of(cpu_flags());

    best = *table(0);
    for (uint32_t i = 1; i <= top; i++) {
        struct kern_ops next = best;

        paths[i].fill(&next);
        cpu_ops_check(&next, &best, &best_note);
        best = next;
    }
}

const struct kern_ops *kern_ops_cpu(struct err *note)
{
    pthread_once(&best_once, best_fill);
    if (note != NULL) {
        *note = best_note;
    }
    return &best;
}

const struct kern_ops *kern_ops_ref(void)
{
    return table(0);
}

const struct kern_ops *kern_ops_path(uint32_t flags)
{
    if ((flags & ~cpu_flags()) != 0) {
        return NULL;
    }
    return table(path_of(flags));
}
