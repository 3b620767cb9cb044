/* worker/measure.h - what this host does in a second, by the real kernels (`gantry measure`).
 *
 *   measure_rates   products from memory and from the caches at 1 .. 512 rows, attention, norms, sampling,
 *                   what a layer costs however small (also in a recorded step, where there are such):
 *                   everything that partition/predict.c multiplies
 *   measure_links   round trips and bandwidth between the ranks of an MPI job
 *
 * Of many timings the lower quartile counts: what the machine does when little else disturbs it. A few
 * seconds per format; slower machines get fewer points, not longer waits. */
#ifndef WORKER_MEASURE_H
#define WORKER_MEASURE_H

#include "cluster/coll.h"
#include "kernels/kern.h"
#include "partition/rates.h"

struct measure_config {
    const struct kern_ops *ops;
    struct kern_stream *stream;
    enum kern_fmt fmt;
    uint64_t memory_bytes; /* free: the weights that are read take at most a quarter of it */
};

/* The rates of e_p; who and when is the caller's to fill in. ST_ERR_NOMEM; a device's own errors. */
status measure_rates(const struct measure_config *config, struct rates_entry *e_p, struct err *err);

/* By all ranks of `c` (tp 1) together, rank 0 with each other one in turn; hosts[n_ranks]: a number for
 * each rank's host. Rank 0 gets the medians of both kinds; is_measured false: no such pair. */
status measure_links(struct coll *c, const uint64_t *hosts, struct rates_link *on_host_p,
                     struct rates_link *across_p, struct err *err);

#endif
