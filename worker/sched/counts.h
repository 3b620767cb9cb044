/* worker/sched/counts.h - which tokens a stream holds, for its penalties: each id once, ascending,
 * with how often the answer holds it.
 *
 * Built from what a Submit carries (so a stream that was moved here counts as it did elsewhere) and
 * kept up to date token by token; a preemption leaves it alone, since the tokens stay known. One
 * owner thread. */
#ifndef WORKER_SCHED_COUNTS_H
#define WORKER_SCHED_COUNTS_H

#include "kernels/kern.h"

struct counts {
    struct kern_adjust *at; /* [n_max] owned; NULL: the stream has no penalties */
    uint32_t n, n_max;
};

/* Ids of `prompt` (0 times in the answer) and of `made`. n_max: as many ids as there can ever be.
 * ST_ERR_NOMEM. */
struct counts_from {
    const uint32_t *prompt, *made;
    uint32_t n_prompt, n_made;
};
status counts_init(struct counts *c, const struct counts_from *from, uint32_t n_max) WARN_UNUSED;
void counts_fini(struct counts *c); /* zeroed is fine */
/* The answer holds `id` once more. */
void counts_add(struct counts *c, uint32_t id);

#endif
