/* tests/common/coll_checks.h - what every implementation of cluster/coll.h must do.
 *
 * A case is run by every rank of a replica at the same time: the threads of
 * tests/unit/cluster/test_coll_local.c and the processes of tests/mpi/test_coll.c run the same
 * ones. A rank answers true, or false with a sentence. A case that `breaks` ends with a failed
 * collective: the coll is destroyed and the next case gets a fresh one. */
#ifndef TESTS_COMMON_COLL_CHECKS_H
#define TESTS_COMMON_COLL_CHECKS_H

#include "cluster/coll.h"

struct coll_note {
    char text[768];
};

struct coll_case {
    const char *name;
    bool breaks;
    bool (*run)(struct coll *c, struct coll_note *note);
};

extern const struct coll_case coll_cases[];
extern const size_t n_coll_cases;

#endif
