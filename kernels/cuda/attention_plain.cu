/* kernels/cuda/attention_plain.cu - attention by plain f32 arithmetic in the CPU's own order
 * (docs/numerics.md, "Attention"): for f32, and for head dims that are no multiple of 8 or above 256.
 *
 * A warp takes one row and head and walks the spans of 256 positions. Scores: lanes are positions,
 * each one chain over D. Values: lanes are dims, each one chain over the positions. Slow and simple. */
#include "kernels/cuda/attention.cuh"

enum { WARPS = 4 };

/* What a warp keeps in shared memory; D floats of o and of o_next follow. */
struct plain {
    float p[KERN_SPAN];
};

__device__ static inline float load_fmt(const void *data, enum kern_fmt fmt, size_t i)
{
    return fmt == KERN_BF16 ? bf16_to_f32(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

__device__ static inline float q_at(const struct attn &a, const float *q, uint32_t d)
{
    return a.kv.fmt == KERN_BF16 ? bf16_to_f32(bf16_from_f32(q[d])) : q[d];
}

/* The score of one position. */
__device__ static inline float score(const struct attn &a, const float *q, uint32_t row,
                                     uint32_t kv_head, uint32_t pos)
{
    const size_t base = cu_kv_base(&a.kv, block_of(a, row, pos / KERN_KV_BLOCK), kv_head) +
                        cu_k_at(&a.kv, 0, pos % KERN_KV_BLOCK);
    float acc = 0.0f;

    if (a.kv.fmt == KERN_F32) {
        for (uint32_t d = 0; d < a.g.head_dim; d++) {
            acc = fmaf(q[d], load_fmt(a.kv.k, KERN_F32, base + d), acc);
        }
    } else {
        for (uint32_t d = 0; d < a.g.head_dim; d += 2) {
            acc = fmaf(q_at(a, q, d + 1), load_fmt(a.kv.k, KERN_BF16, base + d + 1), acc);
            acc = fmaf(q_at(a, q, d), load_fmt(a.kv.k, KERN_BF16, base + d), acc);
        }
    }
    return acc * a.g.scale;
}

/* p[0, n) <- exp(score - max); the warp's max and the sum by 16 accumulators. */
__device__ static void weights(const struct attn &a, float *p, const float *q, uint32_t row,
                               uint32_t kv_head, uint32_t begin, uint32_t n, float *m_p, float *l_p)
{
    const uint32_t lane = threadIdx.x % 32;
    float m = -INFINITY, acc = 0.0f;

    for (uint32_t j = lane; j < n; j += 32) {
        p[j] = score(a, q, row, kv_head, begin + j);
        m = p[j] > m ? p[j] : m;
    }
    for (int d = 16; d > 0; d /= 2) {
        m = fmaxf(m, __shfl_xor_sync(~0u, m, d));
    }
    for (uint32_t j = lane; j < n; j += 32) {
        p[j] = k_expf(p[j] - m);
    }
    __syncwarp();
    for (uint32_t j = lane; lane < 16 && j < n; j += 16) {
        acc = acc + p[j];
    }
    for (int d = 8; d > 0; d /= 2) {
        acc = acc + __shfl_xor_sync(~0u, acc, d);
    }
    *m_p = m;
    *l_p = __shfl_sync(~0u, acc, 0);
}

/* The next span's maximum and sum into those so far, and the factors of their values. */
__device__ static inline void merge_spans(float *m, float *l, float m_next, float l_next,
                                          float *a_p, float *b_p)
{
    const float most = m_next > *m ? m_next : *m;

    *a_p = lse_factor(*m, most);
    *b_p = lse_factor(m_next, most);
    *l = fmaf(*l, *a_p, l_next * *b_p);
    *m = most;
}

__global__ static void attention_plain_kernel(const __grid_constant__ struct attn a, void *out)
{
    DYNAMIC_SHARED(float, shared); /* [warps][KERN_SPAN + D]: p, o */
    const uint32_t lane = threadIdx.x % 32, dim = a.g.head_dim;
    const uint32_t i = blockIdx.x * WARPS + threadIdx.x / 32;
    float *p = shared + (size_t)(threadIdx.x / 32) * (KERN_SPAN + dim), *o = p + KERN_SPAN;

    begin_op();
    if (i >= a.map.n_rows * a.g.n_heads) {
        return;
    }
    const uint32_t row = i / a.g.n_heads, h = i % a.g.n_heads;
    const uint32_t kv_head = (a.g.head0 + h) / a.g.group - a.g.kv_head0;
    const float *q = a.qkv + ((size_t)row * (a.g.n_heads + 2 * a.g.n_kv_heads) + h) * dim;
    const uint32_t n_all = a.map.pos[row] + 1;
    float m = 0.0f, l = 0.0f;

    for (uint32_t begin = 0; begin < n_all; begin += KERN_SPAN) {
        const uint32_t n = min(n_all - begin, (uint32_t)KERN_SPAN);
        float m_next, l_next, fa = 0.0f, fb = 0.0f;

        weights(a, p, q, row, kv_head, begin, n, &m_next, &l_next);
        if (begin == 0) {
            m = m_next;
            l = l_next;
        } else {
            merge_spans(&m, &l, m_next, l_next, &fa, &fb);
        }
        for (uint32_t d = lane; d < dim; d += 32) {
            float sum = 0.0f;

            for (uint32_t j = 0; j < n; j++) {
                const uint32_t pos = begin + j;
                const size_t base =
                    cu_kv_base(&a.kv, block_of(a, row, pos / KERN_KV_BLOCK), kv_head);

                sum = fmaf(
                    p[j], load_fmt(a.kv.v, a.kv.fmt, base + cu_v_at(&a.kv, d, pos % KERN_KV_BLOCK)),
                    sum);
            }
            o[d] = begin == 0 ? sum : fmaf(o[d], fa, sum * fb);
        }
        __syncwarp(); /* p has been read */
    }
    for (uint32_t d = lane; d < dim; d += 32) {
        store_fmt(out, a.kv.fmt, (size_t)i * dim + d, o[d] / l);
    }
}

void cu_attention_plain(struct kern_stream *s, void *out, const struct kern_kv *kv,
                        const float *qkv, const struct kern_qkv *g, const struct kern_rows_map *map)
{
    struct attn a = {};

    a.kv = *kv;
    a.g = *g;
    a.map = *map;
    a.qkv = qkv;
    cu_launch(s, "attention", attention_plain_kernel,
              dim3(div_up((size_t)map->n_rows * g->n_heads, WARPS)), WARPS * 32,
              WARPS * (KERN_SPAN + (size_t)g->head_dim) * sizeof(float), a, out);
}
