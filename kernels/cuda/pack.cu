/* kernels/cuda/pack.cu - file rows into device memory: pinned staging, one copy, one kernel that
 * converts and places.
 *
 * The rows of a call are cut into pieces that fit a staging buffer; the copy of one piece runs while
 * the host fills the next. Rows that already lie in host_alloc memory are copied from there, and the
 * call then waits for the copy, because its caller may reuse them. The device's scratch takes the
 * raw rows. Bytes: the file's once over the bus, once written and read in scratch, once written. */
#include "kernels/cuda/stream.cuh"

#include <cstring>

__host__ __device__ static inline uint32_t src_bytes(enum kern_src type)
{
    return type == KERN_SRC_F32 ? 4 : type == KERN_SRC_F8 ? 1 : 2;
}

__device__ static float src_f32(enum kern_src type, const char *at)
{
    if (type == KERN_SRC_F32) {
        return *(const float *)at;
    }
    return type == KERN_SRC_BF16 ? bf16_to_f32(*(const uint16_t *)at)
                                 : f16_to_f32(*(const uint16_t *)at);
}

/* Element at `at` of a file's row, in fmt, to dst. bf16 passes as bits, NaN payloads too; fp8 comes as
 * fp8. */
__device__ static void convert(enum kern_src type, const char *at, enum kern_fmt fmt, char *dst)
{
    if (fmt == KERN_FP8) {
        *dst = *at;
    } else if (fmt == KERN_F32) {
        *(float *)dst = src_f32(type, at);
    } else if (type == KERN_SRC_BF16) {
        *(uint16_t *)dst = *(const uint16_t *)at;
    } else {
        *(uint16_t *)dst = bf16_from_f32(src_f32(type, at));
    }
}

struct pack_rows {
    const char *src; /* [n_rows, k] dense, in `type` */
    enum kern_src type;
    uint32_t row0, n_rows;
};

/* One thread per element, rows in y. */
__global__ static void pack_mat_kernel(char *data, const __grid_constant__ struct kern_mat mat,
                                       uint32_t n_steps, struct pack_rows rows)
{
    const uint32_t k = blockIdx.x * blockDim.x + threadIdx.x;

    begin_op();
    if (k >= mat.k) {
        return;
    }
    uint32_t leaf = 0, leaf_step = 0;

    while (k >= mat.leaf[leaf + 1]) {
        leaf_step += cu_leaf_steps(&mat, leaf);
        leaf++;
    }
    const struct cu_place place = cu_place_of(&mat, leaf, k - mat.leaf[leaf]);

    for (uint32_t r = blockIdx.y; r < rows.n_rows; r += gridDim.y) {
        const size_t at =
            cu_mat_at(mat.fmt, n_steps, rows.row0 + r, leaf_step + place.step, place.in);
        const char *src = rows.src + ((size_t)r * mat.k + k) * src_bytes(rows.type);

        convert(rows.type, src, mat.fmt, data + at);
    }
}

/* scales: [n_rows, n_groups] dense. */
__global__ static void pack_scales_kernel(float *dst, const float *scales, uint32_t n_groups,
                                          uint32_t row0, uint32_t n_rows)
{
    const size_t n = (size_t)n_rows * n_groups;

    begin_op();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        dst[cu_scale_at(n_groups, row0 + (uint32_t)(i / n_groups), (uint32_t)(i % n_groups))] =
            scales[i];
    }
}

__global__ static void pack_embed_kernel(char *data, enum kern_fmt fmt, uint32_t dim,
                                         struct pack_rows rows)
{
    const size_t n = (size_t)rows.n_rows * dim;
    const uint32_t bytes = fmt == KERN_F32 ? 4 : 2;

    begin_op();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        convert(rows.type, rows.src + i * src_bytes(rows.type), fmt,
                data + ((size_t)rows.row0 * dim + i) * bytes);
    }
}

/* Is `p` memory that the device copies from by itself? */
static bool is_pinned(const void *p)
{
    cudaPointerAttributes attr;

    if (cudaPointerGetAttributes(&attr, p) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    return attr.type == cudaMemoryTypeHost;
}

/* Copy rows [first, first + n) of `rows` (k elements each) densely to the scratch. */
static void send(struct kern_stream *s, const struct kern_rows *rows, uint32_t first, uint32_t n,
                 uint32_t k, bool pinned)
{
    const size_t row = (size_t)k * src_bytes(rows->type);
    const size_t pitch = (size_t)rows->ld * src_bytes(rows->type);
    const char *src = (const char *)rows->data + first * pitch;

    if (pinned) {
        cu_note(
            s,
            cudaMemcpy2DAsync(s->scratch, row, src, pitch, row, n, cudaMemcpyHostToDevice, s->raw),
            "copy of weights");
        return;
    }
    char *stage = cu_stage(s, row * n);

    if (pitch == row) {
        memcpy(stage, src, row * n);
    } else {
        for (uint32_t r = 0; r < n; r++) {
            memcpy(stage + r * row, src + r * pitch, row);
        }
    }
    cu_note(s, cudaMemcpyAsync(s->scratch, stage, row * n, cudaMemcpyHostToDevice, s->raw),
            "copy of weights");
}

/* fp8: the scales of rows [first, first + n) into place. They go through the scratch behind rows. */
static void send_scales(struct kern_stream *s, const struct kern_mat *mat,
                        const struct kern_rows *rows, uint32_t first, uint32_t n)
{
    const uint32_t n_groups = cu_leaf_group(mat, mat->n_leaves);
    const size_t bytes = (size_t)n * n_groups * sizeof(float);
    char *stage = cu_stage(s, bytes), *at = s->scratch + STAGE_BYTES;

    memcpy(stage, rows->scales + (size_t)first * n_groups, bytes);
    cu_note(s, cudaMemcpyAsync(at, stage, bytes, cudaMemcpyHostToDevice, s->raw), "copy of scales");
    cu_launch(s, "mat_pack", pack_scales_kernel, dim3(div_up((size_t)n * n_groups, 1024)), 256, 0,
              (float *)((char *)mat->data + cu_codes_bytes(mat)), (const float *)at, n_groups,
              rows->row0 + first, n);
}

/* Rows per piece, or 0 with an error noted: a row is larger than a staging buffer. A row of scales
 * takes `extra` bytes. */
static uint32_t piece_rows(struct kern_stream *s, const struct kern_rows *rows, uint32_t k,
                           size_t extra)
{
    const size_t codes = (size_t)k * src_bytes(rows->type), row = codes > extra ? codes : extra;

    if (row > STAGE_BYTES) {
        cu_note(s, cudaErrorInvalidValue, "a row of weights of more than 16 MiB");
        return 0;
    }
    const size_t n = row != 0 ? (size_t)STAGE_BYTES / 2 / row : 0;

    return n != 0 ? (uint32_t)(n < 65535 ? n : 65535) : 1;
}

static void mat_pack(struct kern_stream *s, struct kern_mat *mat, const struct kern_rows *rows)
{
    const bool fp8 = mat->fmt == KERN_FP8;
    const size_t scale_bytes = fp8 ? cu_leaf_group(mat, mat->n_leaves) * sizeof(float) : 0;
    const uint32_t step = piece_rows(s, rows, mat->k, scale_bytes);
    const uint32_t n_steps = cu_leaf_step(mat, mat->n_leaves);
    const bool pinned = is_pinned(rows->data);

    for (uint32_t done = 0; mat->k != 0 && step != 0 && done < rows->n_rows; done += step) {
        const uint32_t n = rows->n_rows - done < step ? rows->n_rows - done : step;
        const struct pack_rows part = { s->scratch, rows->type, rows->row0 + done, n };

        send(s, rows, done, n, mat->k, pinned);
        cu_launch(s, "mat_pack", pack_mat_kernel, dim3(div_up(mat->k, 256), n), 256, 0,
                  (char *)mat->data, *mat, n_steps, part);
        if (fp8) {
            send_scales(s, mat, rows, done, n);
        }
    }
    s->fence = true;
    if (pinned) {
        cu_note(s, cudaStreamSynchronize(s->raw), "copy of weights");
    }
}

static void embed_pack(struct kern_stream *s, struct kern_embed *e, const struct kern_rows *rows)
{
    const uint32_t step = piece_rows(s, rows, e->dim, 0);
    const bool pinned = is_pinned(rows->data);

    for (uint32_t done = 0; e->dim != 0 && step != 0 && done < rows->n_rows; done += step) {
        const uint32_t n = rows->n_rows - done < step ? rows->n_rows - done : step;
        const struct pack_rows part = { s->scratch, rows->type, rows->row0 + done, n };

        send(s, rows, done, n, e->dim, pinned);
        cu_launch(s, "embed_pack", pack_embed_kernel, dim3(div_up((size_t)n * e->dim, 1024)), 256,
                  0, (char *)e->data, e->fmt, e->dim, part);
    }
    s->fence = true;
    if (pinned) {
        cu_note(s, cudaStreamSynchronize(s->raw), "copy of weights");
    }
}

static size_t mat_bytes(const struct kern_mat *mat)
{
    return cu_mat_bytes(mat);
}

static size_t fmt_bytes(enum kern_fmt fmt)
{
    return fmt == KERN_F32 ? 4 : 2;
}

static size_t embed_bytes(const struct kern_embed *e)
{
    return (size_t)e->n_rows * e->dim * fmt_bytes(e->fmt);
}

static size_t kv_bytes(const struct kern_kv *kv)
{
    return (size_t)kv->n_blocks * kv->n_heads * KERN_KV_BLOCK * kv->head_dim * fmt_bytes(kv->fmt);
}

void cu_ops_pack(struct kern_ops *ops)
{
    ops->mat_bytes = mat_bytes;
    ops->mat_pack = mat_pack;
    ops->embed_bytes = embed_bytes;
    ops->embed_pack = embed_pack;
    ops->kv_bytes = kv_bytes;
}
