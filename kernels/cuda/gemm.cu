/* kernels/cuda/gemm.cu - products: the pieces of a product, and which kernel runs it. */
#include "kernels/cuda/product.cuh"

/* Cut the leaves of `w` into segments. False if there are more than a product may have. */
static bool cut(const struct kern_mat *w, struct product *p)
{
    uint32_t step = 0;

    p->n_leaves = w->n_leaves;
    p->aligned = w->k % 8 == 0;
    for (uint32_t i = 0; i < w->n_leaves; i++) {
        const uint32_t k0 = w->leaf[i], n_in = w->leaf[i + 1] - k0;
        const uint32_t n_seg = cu_segments(n_in);

        p->aligned = p->aligned && k0 % 8 == 0;
        if (p->n_pieces + n_seg > PIECES_MAX) {
            return false;
        }
        for (uint32_t j = 0; j < n_seg; j++) {
            const uint32_t begin = j * CU_SEGMENT;
            const uint32_t left = n_in - begin;

            p->piece[p->n_pieces++] = piece{ k0 + begin,
                                             left < CU_SEGMENT ? left : (uint32_t)CU_SEGMENT,
                                             step + begin / CU_STEP_BF16,
                                             (uint16_t)i,
                                             j == 0,
                                             j + 1 == n_seg };
        }
        step += cu_steps_of(w->fmt, n_in);
    }
    p->n_steps = step;
    return true;
}

static void gemm(struct kern_stream *s, float *y, const void *x, const struct kern_mat *w,
                 uint32_t n_rows)
{
    struct product p = {};

    if (n_rows == 0 || w->n == 0) {
        return;
    }
    if (w->fmt == KERN_F32) {
        cu_gemm_f32(s, y, (const float *)x, w, n_rows);
        return;
    }
    p.w = (const char *)w->data;
    p.x = (const uint16_t *)x;
    p.y = y;
    p.n = w->n;
    p.k = w->k;
    p.n_rows = n_rows;
    if (!cut(w, &p)) {
        cu_note(s, cudaErrorInvalidValue, "a product of more than 128 segments");
        return;
    }
    if (cu_gemm_stream_fits(p)) {
        cu_gemm_stream(s, p);
    } else {
        cu_gemm_tile(s, p);
    }
}

void cu_ops_gemm(struct kern_ops *ops)
{
    ops->gemm = gemm;
}
