/* kernels/ref/ref.h - the specification as code: scalar, one thread, never optimised.
 *
 * Signatures are those of struct kern_ops. docs/numerics.md is this folder in words. */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/kern.h"

void ref_embed(struct kern_stream *s, float *x, const struct kern_embed *e, const uint32_t *ids,
               uint32_t n_rows);
void ref_rmsnorm(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *x, const float *w,
                 uint32_t n_rows, uint32_t dim, float eps);
void ref_gemm(struct kern_stream *s, float *y, const void *x, const struct kern_mat *w,
              uint32_t n_rows);
void ref_add_bias(struct kern_stream *s, float *y, const float *b, uint32_t n_rows, uint32_t n);
void ref_add(struct kern_stream *s, float *dst, const float *a, const float *b, size_t n);
void ref_qk_norm(struct kern_stream *s, float *qkv, const struct kern_qkv *g, const float *q_w,
                 const float *k_w, uint32_t n_rows, float eps);
void ref_rope(struct kern_stream *s, float *qkv, const struct kern_qkv *g,
              const struct kern_rope *rope, const struct kern_rows_map *map);
void ref_kv_store(struct kern_stream *s, const struct kern_kv *kv, const float *qkv,
                  const struct kern_qkv *g, const struct kern_rows_map *map);
void ref_attention(struct kern_stream *s, void *out, const struct kern_kv *kv, const float *qkv,
                   const struct kern_qkv *g, const struct kern_rows_map *map);
void ref_silu_mul(struct kern_stream *s, void *y, enum kern_fmt fmt, const float *gu,
                  uint32_t n_rows, uint32_t ffn);
void ref_scan(struct kern_stream *s, const float *logits, uint32_t id0, uint32_t n_ids,
              const struct kern_sample *params, struct kern_scan *scan);

#endif
