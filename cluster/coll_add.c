/* cluster/coll_add.c - see coll_add.h. Vector types instead of a plain loop: gcc 12 at -O2 does not
 * vectorise a loop of unknown length, and a scalar add (4 bytes a cycle) is slower than memory. */
#include "cluster/coll_add.h"

#include "base/compiler.h"

#include <string.h>

typedef float v8 __attribute__((vector_size(32)));

enum { BLOCK = 128, LEVELS_MAX = 10 };

void coll_add(float *sum, const float *lower, const float *upper, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        v8 a, b;

        memcpy(&a, lower + i, sizeof(a));
        memcpy(&b, upper + i, sizeof(b));
        a = a + b;
        memcpy(sum + i, &a, sizeof(a));
    }
    for (; i < n; i++) {
        sum[i] = lower[i] + upper[i];
    }
}

/* Like carrying in a binary counter: after source i the stack holds one finished subtree for each
 * set bit of i + 1, the largest (lowest indices) at the bottom. */
void coll_add_tree(float *sum, const float *const *src, size_t n_src, size_t n)
{
    float stack[LEVELS_MAX + 1][BLOCK];

    ASSERT(n_src > 0 && (n_src & (n_src - 1)) == 0 && n_src <= (size_t)1 << LEVELS_MAX);
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t len = MIN((size_t)BLOCK, n - at);
        size_t depth = 0;

        for (size_t i = 0; i < n_src; i++) {
            memcpy(stack[depth++], src[i] + at, len * sizeof(float));
            for (size_t carry = i + 1; (carry & 1) == 0; carry >>= 1) {
                depth--;
                coll_add(stack[depth - 1], stack[depth - 1], stack[depth], len);
            }
        }
        memcpy(sum + at, stack[0], len * sizeof(float));
    }
}
