/* kernels/cuda/gemm.cu - products: the pieces of a product, and which kernel runs it. */
#include "kernels/cuda/product.cuh"

/* One more piece; its steps follow those of the piece before. */
static bool add(struct product *p, struct piece q, bool is_last)
{
    if (p->n_pieces == PIECES_MAX) {
        return false;
    }
    q.step0 = p->n_steps;
    q.last = is_last;
    p->piece[p->n_pieces++] = q;
    p->n_steps += piece_steps(q);
    return true;
}

/* Segments of a leaf by inputs. */
static bool cut_leaf(struct product *p, uint32_t leaf, uint32_t k0, uint32_t k1)
{
    for (uint32_t k = k0; k < k1; k += CU_SEGMENT) {
        struct piece q = {};

        q.k0 = k;
        q.n_in = (uint16_t)(k1 - k < CU_SEGMENT ? k1 - k : (uint32_t)CU_SEGMENT);
        q.head = q.n_in;
        q.leaf = (uint8_t)leaf;
        q.first = k == k0;
        if (!add(p, q, k + q.n_in == k1)) {
            return false;
        }
    }
    return true;
}

/* fp8: by groups. Those of a leaf are whole but for the first and the last. */
static bool cut_leaf_fp8(struct product *p, const struct kern_mat *w, uint32_t leaf)
{
    const uint32_t k1 = w->leaf[leaf + 1];

    for (uint32_t k = w->leaf[leaf], end; k < k1; k = end) {
        struct piece q = {};

        end = kern_group_end(w, leaf, k);
        p->aligned = p->aligned && k % 8 == 0 && (end % 8 == 0 || end == k1);
        q.k0 = k;
        q.head = (uint16_t)(end - k);
        q.group0 = (uint16_t)p->n_groups++;
        q.leaf = (uint8_t)leaf;
        q.first = k == w->leaf[leaf];
        for (uint32_t i = 1; i < CU_SEGMENT_GROUPS && end < k1; i++) {
            end = kern_group_end(w, leaf, end);
            p->n_groups++;
        }
        q.n_in = (uint16_t)(end - k);
        if (!add(p, q, end == k1)) {
            return false;
        }
    }
    return true;
}

bool cu_cut(const struct kern_mat *w, struct product *p)
{
    p->n = w->n;
    p->k = w->k;
    p->n_leaves = w->n_leaves;
    p->aligned = w->k % 8 == 0;
    for (uint32_t i = 0; i < w->n_leaves; i++) {
        p->aligned = p->aligned && w->leaf[i] % 8 == 0;
        if (w->fmt == KERN_FP8 ? !cut_leaf_fp8(p, w, i)
                               : !cut_leaf(p, i, w->leaf[i], w->leaf[i + 1])) {
            return false;
        }
    }
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
    p.n_rows = n_rows;
    if (!cu_cut(w, &p)) {
        cu_note(s, cudaErrorInvalidValue, "a product of more than 128 segments");
        return;
    }
    if (w->fmt == KERN_FP8) {
        p.scales = (const float *)(p.w + cu_codes_bytes(w));
        cu_gemm_stream_fits(p) ? cu_gemm_stream_fp8(s, p) : cu_gemm_tile_fp8(s, p);
    } else {
        cu_gemm_stream_fits(p) ? cu_gemm_stream(s, p) : cu_gemm_tile(s, p);
    }
}

void cu_ops_gemm(struct kern_ops *ops)
{
    ops->gemm = gemm;
}
