/* worker/selftest.h - before a replica serves: does its fabric carry data, unharmed, and how fast?
 *
 *   pairs of slices of a stage   round trips and some MiB     (they exchange sums)
 *   a stage and the next         the same                     (residuals)
 *   the leader and every other   round trips and 4 KiB        (plans, results)
 *   every stage                  a sum against known bits
 *
 * All ranks go through one list of rounds in the same order, so nobody waits for one that waits for
 * it; in a round over a stage every slice has another partner (slice ^ d). Every byte is compared
 * with what was due. The lower rank of a pair measures; the leader collects and judges.
 *
 * A link that harms data ends the start, with the pair named. A slow one is named and used: beside
 * others of its kind (on one host, or between hosts) its p50 round trip is four times as long, or its
 * bandwidth a quarter. Where ranks share cores the factor is 64, because there a round trip is a
 * matter of whose turn it is. */
#ifndef WORKER_SELFTEST_H
#define WORKER_SELFTEST_H

#include "cluster/coll.h"
#include "proto/msg.h"

struct selftest_config {
    const char *host; /* this rank's: links on one host and between hosts are judged apart */
    bool is_crowded;  /* ranks of this host share cores */
};

/* A link as one of its ranks measured it. */
struct selftest_link {
    uint32_t a, b;      /* a < b */
    uint32_t is_across; /* between hosts */
    float latency_us;   /* p50 of round trips */
    float mib_per_s;    /* 0: not measured */
};

/* By all ranks of `c` together. *report_p is set on the leader. ST_ERR_MISMATCH: data came out
 * harmed; the sentence names both ranks. */
status selftest_run(struct coll *c, const struct selftest_config *config,
                    struct msg_self_test *report_p, struct err *err);

/* Pure: worst links and slow ones of links[n]. */
void selftest_judge(const struct selftest_link *links, uint32_t n, bool is_crowded,
                    struct msg_self_test *report_p);

/* The value of float i that `slice` brings to the sum, and what a sum over tp slices must be. `exact`:
 * small integers, whose sum does not depend on the order. */
float selftest_float(uint32_t slice, size_t i, bool exact);
float selftest_sum(uint32_t tp, size_t i, bool exact);
/* Compare a sum of n floats with what it must be. */
status selftest_sum_check(const struct coll *c, const float *x, size_t n, bool exact,
                          struct err *err);

#endif
