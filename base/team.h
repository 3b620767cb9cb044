/* base/team.h - a fixed team of threads that run one function together, then wait for the next.
 *
 *   owner:  team_run(fn) ──► all threads: fn(arg, part, n_parts) ──►
 *           the owner returns when all are done
 *
 * The owner is part 0 and works too. Waiting threads spin a short while (a decode step has hundreds
 * of runs), then sleep on a futex, so that ranks which share cores do not starve each other. Every
 * thread has the float environment of base/cpu.h set. Callers cut *outputs* over the parts, never a
 * sum, so that n_threads never changes a bit. One owner thread; not re-entrant. */
#ifndef BASE_TEAM_H
#define BASE_TEAM_H

#include "base/err.h"

#include <stdint.h>

struct team;

typedef void (*team_fn)(void *arg, uint32_t part, uint32_t n_parts);

/* n_threads >= 1 counts the owner. ST_ERR_NOMEM, ST_ERR_LIMIT (no more threads: says how many). */
status team_create(uint32_t n_threads, struct team **team_p, struct err *err);
void team_destroy(struct team *team); /* NULL is fine */

uint32_t team_size(const struct team *team);
void team_run(struct team *team, team_fn fn, void *arg);

/* Part i of n of [0, total), cut at multiples of `grain` (except the end). */
struct team_range {
    uint32_t begin, end; /* half open */
};
struct team_range team_cut(uint32_t total, uint32_t grain, uint32_t part, uint32_t n_parts);

#endif
