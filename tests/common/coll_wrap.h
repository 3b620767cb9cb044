/* tests/common/coll_wrap.h - a coll that passes everything on to another one, and shows a test each
 * message that has come: to harm it, or to hold it up. Host memory only. */
#ifndef TESTS_COMMON_COLL_WRAP_H
#define TESTS_COMMON_COLL_WRAP_H

#include "cluster/coll.h"

struct coll_wrap_msg {
    uint32_t from, to, tag; /* to: this rank */
    void *data;
    size_t bytes;
};

/* A message was received and its receiver has not looked yet. On the rank's thread. */
typedef void (*coll_wrap_fn)(void *arg, const struct coll_wrap_msg *m);
/* As all_reduce_tree, when it is done; may be NULL. */
typedef void (*coll_wrap_sum_fn)(void *arg, uint32_t rank, float *x, size_t n);

/* Takes over `inner`, which destroy destroys too. */
struct coll *coll_wrap_create(struct coll *inner, coll_wrap_fn fn, coll_wrap_sum_fn sum_fn,
                              void *arg);

#endif
