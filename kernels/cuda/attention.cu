/* kernels/cuda/attention.cu - attention: which kernels run.
 *
 * Rows of both kinds may stand in one step: a row whose neighbours belong to other sequences is decoded
 * (attention_decode.cuh), a run of rows of one sequence is a prompt (attention_prompt.cu). */
#include "kernels/cuda/attention_decode.cuh"

/* Rows alone in their sequence: there may be some unless all rows are one sequence's. */
static void decode(struct kern_stream *s, struct attn &a)
{
    switch (div_up(a.g.head_dim, 32)) {
    case 1:
        cu_attention_decode<1>(s, a);
        break;
    case 2:
        cu_attention_decode<2>(s, a);
        break;
    case 3:
        cu_attention_decode<3>(s, a);
        break;
    case 4:
        cu_attention_decode<4>(s, a);
        break;
    default:
        cu_attention_decode<8>(s, a);
        break;
    }
}

static void attention(struct kern_stream *s, void *out, const struct kern_kv *kv, const float *qkv,
                      const struct kern_qkv *g, const struct kern_rows_map *map)
{
    struct attn a = {};

    if (map->n_rows == 0) {
        return;
    }
    if (kv->fmt != KERN_BF16 || g->head_dim % 8 != 0 || g->head_dim > CU_DIM_MAX ||
        !(g->scale > 0.0f)) {
        cu_attention_plain(s, out, kv, qkv, g, map);
        return;
    }
    a.kv = *kv;
    a.g = *g;
    a.map = *map;
    a.qkv = qkv;
    a.out = (uint16_t *)out;
    a.c = g->scale * MATH_LOG2E;
    a.head_chunk = g->group < CU_QUERIES ? g->group : (uint32_t)CU_QUERIES;
    a.n_chunks = div_up(g->group, a.head_chunk);
    if (map->n_rows != map->n_seqs) { /* some sequence has several rows */
        cu_attention_prompt(s, a);
    }
    if (map->n_seqs != 1 || map->n_rows == 1) {
        decode(s, a);
    }
}

void cu_ops_attention(struct kern_ops *ops)
{
    ops->attention = attention;
}
