/* kernels/slices.c - who holds what of a row-parallel dimension (docs/numerics.md, "Leaves"), and
 * what a matrix takes on a CUDA device. */
#include "kernels/cuda/layout_cuda.h"
#include "kernels/kern.h"

uint32_t kern_leaves_for(uint32_t n_heads)
{
    const uint32_t most = n_heads >= 64 ? 16 : 8;
    uint32_t r = 1;

    while (r * 2 <= n_heads && r * 2 <= most) {
        r *= 2;
    }
    return r;
}

uint32_t kern_leaf_begin(uint32_t n_units, uint32_t n_leaves, uint32_t i)
{
    return (uint32_t)((uint64_t)i * n_units / n_leaves);
}

uint32_t kern_mat_groups(const struct kern_mat *mat)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < mat->n_leaves; i++) {
        n += kern_leaf_groups(mat, i);
    }
    return n;
}

size_t kern_mat_bytes_cuda(const struct kern_mat *mat)
{
    return cu_mat_bytes(mat);
}
