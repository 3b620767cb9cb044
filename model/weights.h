/* model/weights.h - the tensors of a Hugging Face directory: where each lies, and one way to read
 * them.
 *
 * model.safetensors, or model.safetensors.index.json with its shards. Headers are read and checked
 * at open (sizes, overlaps, bounds against the real file length); bytes are read on demand by pread
 * into the caller's memory, never mapped: a truncated mapped file is a SIGBUS, and strided faults
 * are slow on Lustre. After weights_open the object is immutable: any number of threads may read.
 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "base/hash.h"
#include "model/desc.h"

struct weights; /* opaque; holds open descriptors */

enum { WEIGHTS_RANK_MAX = 4, WEIGHTS_CHUNK_BYTES = 64 << 20 };

struct weights_tensor {
    const char *name; /* borrowed from the weights */
    enum model_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[WEIGHTS_RANK_MAX];
    uint64_t bytes;
    uint32_t i_file;
    uint64_t offset; /* of its first byte in the file */
};

status weights_open(const char *dir, struct weights **weights_p, struct err *err);
void weights_close(struct weights *w); /* NULL is fine */

uint32_t weights_count(const struct weights *w);
const struct weights_tensor *weights_at(const struct weights *w, uint32_t i);
/* NULL: not there. */
const struct weights_tensor *weights_find(const struct weights *w, const char *name);

/* Tensors of another dtype than F32, F16, BF16, F8_E4M3 (or of more than WEIGHTS_RANK_MAX dimensions): not
 * among those above; weights_check complains if one is needed. Names and dtype names are borrowed.
 */
uint32_t weights_foreign_count(const struct weights *w);
const char *weights_foreign_at(const struct weights *w, uint32_t i, const char **dtype_p);
/* Its dtype as the file spells it; NULL: no such tensor. */
const char *weights_foreign_find(const struct weights *w, const char *name);

/* The files, by name (the order of the digest). Borrowed. */
uint32_t weights_file_count(const struct weights *w);
const char *weights_file_at(const struct weights *w, uint32_t i, uint64_t *bytes_p);

/* Every tensor that `desc` needs is there with the right shape (tied models: either of
 * model.embed_tokens.weight and lm_head.weight). The first that is not is named, with both shapes.
 * On success desc->plain and desc->torn are what the files say. */
status weights_check(const struct weights *w, struct model_desc *desc, struct err *err);
/* These two alone: all 0 where no matrix of a layer is fp8. */
void weights_mixed_find(const struct weights *w, struct model_desc *desc);

/* The scales of an fp8 matrix W[N,K]: w[n, k] = code[n, k] * scale[n / block_rows, k / block_cols].
 * Found in the files as `weight_scale` or `weight_scale_inv` (the same meaning) beside `weight`: one
 * number ([] or [1]), one per row ([N], [N, 1]), or one per block. */
struct weights_scale {
    const struct weights_tensor *tensor; /* F32, F16 or BF16; borrowed from the weights */
    uint64_t rows, cols;                 /* of scales */
    uint64_t block_rows, block_cols;     /* of the matrix, to a scale; 0: all of them */
};

/* The scales of matrix `t`, a tensor of MODEL_F8. ST_ERR_NOT_FOUND: there are none; ST_ERR_FORMAT,
 * ST_ERR_UNSUPPORTED: two of them, or a dtype or shape that does not go with the matrix. */
status weights_scale_find(const struct weights *w, const struct model_quant *quant,
                          const struct weights_tensor *t, struct weights_scale *scale_p,
                          struct err *err);
/* Rows [row0, row0 + n_rows) x columns [col0, col0 + n_cols) of a tensor of at most 2 dimensions
 * (one: a single row; none: one element), into `dst` densely ([n_rows, n_cols] in the tensor's dtype). Whole rows
 * are read in pieces of several MiB; column pieces are read one by one where a piece is 64 KiB or
 * more, else by whole rows and cut (a seek costs more than the bytes). *read_p (may be NULL) +=
 * bytes read from files. ST_ERR_IO, ST_ERR_FORMAT (file shorter than at open). */
struct weights_box {
    uint64_t row0, n_rows, col0, n_cols;
};
status weights_read(const struct weights *w, const struct weights_tensor *t,
                    const struct weights_box *box, void *dst, uint64_t *read_p, struct err *err);

/* Digest of all files, independent of tp and pp: hash of the hashes of fixed chunks of
 * WEIGHTS_CHUNK_BYTES, so that ranks can share the work (chunk i is rank i mod n's). */
uint32_t weights_chunk_count(const struct weights *w);
status weights_chunk_hash(const struct weights *w, uint32_t i_chunk, struct hash128 *hash_p,
                          struct err *err);
struct hash128 weights_digest(const struct weights *w, const struct hash128 *chunk_hashes);

/* Where digests are kept: $XDG_CACHE_HOME/gantry or ~/.cache/gantry. NULL: nowhere; else `path`. */
const char *weights_cache_dir(char *path, size_t bytes);
/* The digest kept from an earlier run: in `cache_dir` under a name made from paths, sizes, inodes
 * and mtimes. */
status weights_digest_cached(const struct weights *w, const char *cache_dir,
                             struct hash128 *digest_p);
void weights_digest_store(const struct weights *w, const char *cache_dir,
                          const struct hash128 *digest);

#endif
