/* kernels/cuda/feed.cu - the token that a step chose, as the next step's input, without the host.
 *
 * The host still chooses from the scans as on every path and is what clients hear; here the device
 * takes the same choice for itself where it is the best candidate and nothing else (sample_is_plain),
 * so that the next step can be queued before the host has looked. Both compare the same numbers of
 * the same flat scan in one total order. Bytes: some 16 a row, from pinned memory that scan_rows has
 * just written; the launches are the cost. */
#include "kernels/cuda/stream.cuh"
#include "kernels/flat.h"

enum { THREADS = 128 };

/* A row, and the place of its flat scan, as scan_rows found them. */
__global__ static void pick_kernel(struct kern_cand *best, const struct kern_scan_row *rows,
                                   const char *flat, uint32_t n_ids, uint32_t n_rows)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    begin_op();
    if (i < n_rows) {
        struct kern_cand c = { -INFINITY, UINT32_MAX };

        if (n_ids != 0 && rows[i].params.n_cand != 0) {
            const struct kern_sample p = rows[i].params;
            const struct flat_layout f = flat_layout(p.temperature != 0.0f, p.n_cand, n_ids);
            const char *at = flat + rows[i].flat_offset;

            c = p.gumbel_all ? ((const struct flat_head *)at)->gumbel
                             : *(const struct kern_cand *)(at + f.cand);
        }
        best[i] = c;
    }
}

static void pick(struct kern_stream *s, struct kern_cand *best, const struct kern_scan_row *rows,
                 const void *flat, uint32_t n_ids, uint32_t n_rows)
{
    cu_launch(s, "pick", pick_kernel, dim3(div_up(n_rows, THREADS)), THREADS, 0, best, rows,
              (const char *)flat, n_ids, n_rows);
}

__global__ static void feed_kernel(uint32_t *tokens, const uint32_t *from,
                                   const struct kern_cand *best, uint32_t n_slices, uint32_t stride,
                                   uint32_t n_rows)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    begin_op();
    if (i < n_rows && from[i] != 0) {
        struct kern_cand first = best[from[i] - 1];

        for (uint32_t slice = 1; slice < n_slices; slice++) {
            const struct kern_cand c = best[(size_t)slice * stride + from[i] - 1];

            if (c.logit > first.logit || (c.logit == first.logit && c.id < first.id)) {
                first = c;
            }
        }
        tokens[i] = first.id;
    }
}

static void feed(struct kern_stream *s, uint32_t *tokens, const uint32_t *from,
                 const struct kern_cand *best, uint32_t n_slices, uint32_t stride, uint32_t n_rows)
{
    cu_launch(s, "feed", feed_kernel, dim3(div_up(n_rows, THREADS)), THREADS, 0, tokens, from, best,
              n_slices, stride, n_rows);
}

void cu_ops_feed(struct kern_ops *ops)
{
    ops->pick = pick;
    ops->feed = feed;
}
