/* cluster/coll_add.h - the one addition of the tree sums: lower slice group first.
 *
 * f32 addition commutes bit for bit except in the payload of a NaN, so both partners of a level
 * get the same sum; the order of operands is kept all the same, so that there is one rule. */
#ifndef CLUSTER_COLL_ADD_H
#define CLUSTER_COLL_ADD_H

#include <stddef.h>

/* sum[n] = lower[n] + upper[n]; sum may be one of the two, otherwise nothing overlaps. */
void coll_add(float *sum, const float *lower, const float *upper, size_t n);

/* sum[n] over src[n_src][n] (n_src a power of two, at most 1024) by the binary tree over the index:
 * ((0+1)+(2+3))+... `sum` may be one of the sources. */
void coll_add_tree(float *sum, const float *const *src, size_t n_src, size_t n);

#endif
