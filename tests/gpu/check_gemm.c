/* tests/gpu/check_gemm.c - products: packing, every kernel that may run one, leaves, and that no
 * kernel or number of rows changes a bit of a row. */
#include "tests/gpu/check.h"

struct shape {
    uint32_t n, k, n_leaves, unit; /* leaves are cut at multiples of `unit` inputs */
    uint32_t k0;                   /* fp8: where input 0 stands in the tensor */
};

/* Weights as a file has them, and their values. */
struct weights {
    enum kern_src type;
    void *file;   /* [n, ld] */
    float *value; /* [n, k] as the product sees them */
    uint32_t ld;
    float *scales; /* fp8: [n, n_groups], by place in the tensor */
    uint32_t n_groups;
};

static const char *const fmt_names[KERN_FMTS] = { "f32", "bf16", "fp8" };
static const char *const type_names[] = { "f32", "f16", "bf16", "fp8" };

static uint16_t f16_from_small(float x) /* exact for the few values that are drawn */
{
    uint16_t best = 0;

    for (uint32_t h = 0; h < 0x7c00; h++) {
        if (f16_to_f32((uint16_t)h) <= (x < 0 ? -x : x)) {
            best = (uint16_t)h;
        } else {
            break;
        }
    }
    return (uint16_t)(best | (x < 0 ? 0x8000 : 0));
}

/* Every code but NaN, and scales whose products with codes are exact. */
static void draw_fp8(struct check *c, const struct shape *shape, struct weights *w)
{
    w->n_groups = (shape->k0 + shape->k + KERN_GROUP - 1) / KERN_GROUP;
    w->scales = check_host((size_t)shape->n * w->n_groups * sizeof(float));
    for (size_t i = 0; i < (size_t)shape->n * w->n_groups; i++) {
        w->scales[i] = ldexpf((float)check_between(c, 8, 15), (int)check_between(c, 0, 6) - 12);
    }
    for (size_t i = 0; i < (size_t)shape->n * w->ld; i++) {
        const size_t row = i / w->ld, k = i % w->ld;
        const uint8_t code = (uint8_t)(check_between(c, 0, 126) | check_between(c, 0, 1) << 7);

        ((uint8_t *)w->file)[i] = code;
        if (k < shape->k) {
            w->value[row * shape->k + k] =
                e4m3_to_f32(code) * w->scales[row * w->n_groups + (shape->k0 + k) / KERN_GROUP];
        }
    }
}

/* Scales of rows [row0, row0 + n) in the groups of `mat`, a new array; NULL: not fp8. */
static float *scales_for(const struct kern_mat *mat, const struct weights *w, uint32_t row0,
                         uint32_t n)
{
    float *scales = check_host(((size_t)n * kern_mat_groups(mat) + 1) * sizeof(float)),
          *at = scales;

    if (mat->fmt != KERN_FP8) {
        free(scales);
        return NULL;
    }
    for (uint32_t row = row0; row < row0 + n; row++) {
        for (uint32_t leaf = 0; leaf < mat->n_leaves; leaf++) {
            for (uint32_t k = mat->leaf[leaf]; k < mat->leaf[leaf + 1];
                 k = kern_group_end(mat, leaf, k)) {
                *at++ = w->scales[row * w->n_groups + (mat->k0 + k) / KERN_GROUP];
            }
        }
    }
    return scales;
}

static struct weights draw(struct check *c, const struct shape *shape, enum kern_src type,
                           enum kern_fmt fmt)
{
    const uint32_t ld = shape->k + check_between(c, 0, 3);
    const size_t n = (size_t)shape->n * ld;
    struct weights w = {
        type, check_host(n * 4), check_host((size_t)shape->n * shape->k * 4), ld, NULL, 0
    };

    if (type == KERN_SRC_F8) {
        draw_fp8(c, shape, &w);
        return w;
    }
    for (size_t i = 0; i < n; i++) {
        float x = check_normal(c);

        if (type == KERN_SRC_F32) {
            ((float *)w.file)[i] = x;
        } else if (type == KERN_SRC_BF16) {
            ((uint16_t *)w.file)[i] = bf16_from_f32(x);
            x = bf16_to_f32(bf16_from_f32(x));
        } else {
            x = (float)(check_between(c, 0, 64)) / 32.0f - 1.0f;
            ((uint16_t *)w.file)[i] = f16_from_small(x);
            x = f16_to_f32(((uint16_t *)w.file)[i]);
        }
        if (i % ld < shape->k) {
            w.value[i / ld * shape->k + i % ld] =
                fmt == KERN_BF16 ? bf16_to_f32(bf16_from_f32(x)) : x;
        }
    }
    return w;
}

static void drop_weights(struct weights *w)
{
    free(w->file);
    free(w->value);
    free(w->scales);
}

/* Leaves [first, first + n) of the shape's, rows in two uneven calls. */
static struct kern_mat pack(struct check *c, const struct shape *shape, const struct weights *w,
                            enum kern_fmt fmt, uint32_t first, uint32_t n_leaves)
{
    struct kern_mat mat = { .fmt = fmt, .n = shape->n, .n_leaves = n_leaves };
    const uint32_t units = shape->k / shape->unit, cut = shape->n / 3;
    const uint32_t k0 = kern_leaf_begin(units, shape->n_leaves, first) * shape->unit;
    const size_t bytes = w->type == KERN_SRC_F32 ? 4 : w->type == KERN_SRC_F8 ? 1 : 2;
    struct err err = ERR_INIT;

    mat.k0 = shape->k0 + k0;
    for (uint32_t i = 0; i <= n_leaves; i++) {
        const uint32_t at = first + i;

        mat.leaf[i] =
            (at == shape->n_leaves ? shape->k
                                   : kern_leaf_begin(units, shape->n_leaves, at) * shape->unit) -
            k0;
    }
    mat.k = mat.leaf[n_leaves];
    if (c->ops->mat_bytes(&mat) != kern_mat_bytes_cuda(&mat) ||
        c->ops->mem_alloc(c->s, c->ops->mat_bytes(&mat), &mat.data, &err) != ST_OK) {
        check_true(c, err.text, false);
        exit(1);
    }
    for (uint32_t row = 0; row < shape->n; row = row == 0 && cut != 0 ? cut : shape->n) {
        const uint32_t n = row == 0 && cut != 0 ? cut : shape->n - row;
        float *scales = scales_for(&mat, w, row, n);
        const struct kern_rows rows = {
            w->type, (char *)w->file + ((size_t)row * w->ld + k0) * bytes, row, n, w->ld, scales
        };

        c->ops->mat_pack(c->s, &mat, &rows);
        free(scales);
    }
    return mat;
}

static void multiply(struct check *c, float *y, const void *x, size_t x_bytes,
                     const struct kern_mat *mat, uint32_t n_rows)
{
    const size_t bytes = (size_t)n_rows * mat->n * 4;
    void *dx = check_up(c, x, x_bytes), *dy = check_up(c, NULL, bytes);

    c->ops->gemm(c->s, dy, dx, mat, n_rows);
    check_down(c, y, dy, bytes);
    check_drop(c, dx, x_bytes);
    check_drop(c, dy, bytes);
}

/* y against f64 for several numbers of rows; rows of few against the same rows of many. */
static void run_shape(struct check *c, const struct shape *shape, enum kern_src type,
                      enum kern_fmt fmt)
{
    static const uint32_t counts[] = { 70, 1, 5, 8, 9, 16, 17, 32, 33, 64 };
    const uint32_t most = c->quick ? 70 : 300;
    struct weights w = draw(c, shape, type, fmt);
    struct kern_mat mat = pack(c, shape, &w, fmt, 0, shape->n_leaves);
    const size_t nx = (size_t)most * shape->k, ny = (size_t)most * shape->n;
    const size_t el = fmt == KERN_F32 ? 4 : 2;
    float *x = check_floats(c, nx, 1.0f), *all = check_host(ny * 4), *y = check_host(ny * 4);
    double *ref = check_host(ny * sizeof *ref);
    void *in = fmt != KERN_F32 ? (void *)check_round(x, nx) : (void *)x;

    for (uint32_t t = 0; t < most; t++) {
        for (uint32_t n = 0; n < shape->n; n++) {
            double sum = 0.0;

            for (uint32_t k = 0; k < shape->k; k++) {
                sum +=
                    (double)x[(size_t)t * shape->k + k] * (double)w.value[(size_t)n * shape->k + k];
            }
            ref[(size_t)t * shape->n + n] = sum;
        }
    }
    multiply(c, all, in, nx * el, &mat, most);
    check_near(c,
               check_name("gemm %s [%u,%u] R=%u T=%u from %s", fmt_names[fmt], shape->n, shape->k,
                          shape->n_leaves, most, type_names[type]),
               all, ref, ny, 1e-5);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        const uint32_t n = counts[i], row = check_between(c, 0, most - n);

        multiply(c, y, (char *)in + (size_t)row * shape->k * el, (size_t)n * shape->k * el, &mat,
                 n);
        check_equal(c, check_name("  T=%u: the rows of T=%u", n, most), y,
                    all + (size_t)row * shape->n, (size_t)n * shape->n * 4);
    }
    check_drop(c, mat.data, c->ops->mat_bytes(&mat));
    drop_weights(&w);
    free(in == (void *)x ? NULL : in);
    free(x);
    free(all);
    free(y);
    free(ref);
}

/* The same product over 2 and 4 ranks: partial sums along the tree. */
static void run_slices(struct check *c, const struct shape *shape, uint32_t n_rows,
                       enum kern_fmt fmt)
{
    struct weights w = draw(c, shape, fmt == KERN_FP8 ? KERN_SRC_F8 : KERN_SRC_BF16, fmt);
    const size_t ny = (size_t)n_rows * shape->n, nx = (size_t)n_rows * shape->k;
    float *x = check_floats(c, nx, 1.0f), *whole = check_host(ny * 4);
    uint16_t *in = check_round(x, nx), *part_in = check_host(nx * 2);
    struct kern_mat mat = pack(c, shape, &w, fmt, 0, shape->n_leaves);

    multiply(c, whole, in, nx * 2, &mat, n_rows);
    for (uint32_t tp = 2; tp <= shape->n_leaves; tp *= 2) {
        void *parts[64] = { NULL };
        float *y = check_host(ny * 4);
        uint32_t k0 = 0;

        for (uint32_t r = 0; r < tp; r++) {
            const uint32_t leaves = shape->n_leaves / tp;
            struct kern_mat slice = pack(c, shape, &w, fmt, r * leaves, leaves);

            for (uint32_t t = 0; t < n_rows; t++) {
                memcpy(part_in + (size_t)t * slice.k, in + (size_t)t * shape->k + k0, slice.k * 2);
            }
            k0 += slice.k;
            multiply(c, y, part_in, (size_t)n_rows * slice.k * 2, &slice, n_rows);
            parts[r] = check_up(c, y, ny * 4);
            check_drop(c, slice.data, c->ops->mat_bytes(&slice));
        }
        for (uint32_t d = 1; d < tp; d *= 2) {
            for (uint32_t r = 0; r < tp; r += 2 * d) {
                c->ops->add(c->s, parts[r], parts[r], parts[r + d], ny);
            }
        }
        check_down(c, y, parts[0], ny * 4);
        check_equal(c,
                    check_name("gemm %s [%u,%u] R=%u T=%u over %u ranks", fmt_names[fmt], shape->n,
                               shape->k, shape->n_leaves, n_rows, tp),
                    y, whole, ny * 4);
        for (uint32_t r = 0; r < tp; r++) {
            check_drop(c, parts[r], ny * 4);
        }
        free(y);
    }
    check_drop(c, mat.data, c->ops->mat_bytes(&mat));
    drop_weights(&w);
    free(x);
    free(in);
    free(part_in);
    free(whole);
}

/* As many outputs as it takes for the largest tiles to be chosen for `n_rows` on this device, the last
 * tile not full: rows of many against the same rows of few. */
static void run_wide(struct check *c, uint32_t n_rows, uint32_t k, uint32_t n_leaves, uint32_t unit)
{
    struct kern_device device;
    struct err err = ERR_INIT;

    if (c->ops->device_info(c->s, &device, &err) != ST_OK) {
        check_true(c, err.text, false);
        return;
    }
    /* One wave of tiles of 256 by 128, two of 128 by 128; 2 by 2 tiles at least. */
    const uint32_t row_tiles = (n_rows + 127) / 128, across = device.n_units / row_tiles;
    const struct shape shape = { (across > 2 ? across : 2) * 256 - 40, k, n_leaves, unit, 0 };
    struct weights w = draw(c, &shape, KERN_SRC_BF16, KERN_BF16);
    struct kern_mat mat = pack(c, &shape, &w, KERN_BF16, 0, n_leaves);
    const size_t nx = (size_t)n_rows * k, ny = (size_t)n_rows * shape.n;
    float *x = check_floats(c, nx, 1.0f), *all = check_host(ny * 4), *y = check_host(ny * 4);
    uint16_t *in = check_round(x, nx);

    multiply(c, all, in, nx * 2, &mat, n_rows);
    for (uint32_t row = 0; row < n_rows; row += 16 + check_u32(c) % 100) {
        const uint32_t n = n_rows - row < 16 ? n_rows - row : 16;

        multiply(c, y, in + (size_t)row * k, (size_t)n * k * 2, &mat, n);
        check_equal(c,
                    check_name("gemm bf16 [%u,%u] R=%u T=%u: rows from %u on", shape.n, k, n_leaves,
                               n_rows, row),
                    all + (size_t)row * shape.n, y, (size_t)n * shape.n * 4);
    }
    check_drop(c, mat.data, c->ops->mat_bytes(&mat));
    drop_weights(&w);
    free(x);
    free(in);
    free(all);
    free(y);
}

/* Which instruction many rows are multiplied by, if the caller knows what it should be. */
static void check_products(struct check *c)
{
    const char *want = getenv("GANTRY_CHECK_PRODUCTS");
    struct kern_device device = { .name = "" };
    struct err err = ERR_INIT;

    if (want != NULL) {
        const bool told = c->ops->device_info(c->s, &device, &err) == ST_OK;

        check_true(c, check_name("products are by %s", want),
                   told && strcmp(device.products, want) == 0);
    }
}

void check_gemm(struct check *c)
{
    static const struct shape shapes[] = {
        { 37, 75, 1, 1, 0 },      /* odd everything */
        { 128, 256, 1, 8, 0 },    /* whole tiles */
        { 200, 1100, 1, 8, 0 },   /* two segments */
        { 129, 172, 8, 2, 0 },    /* odd leaves: unaligned */
        { 64, 2304, 2, 8, 0 },    /* leaves of two segments */
        { 40, 24, 8, 8, 0 },      /* leaves without inputs */
        { 272, 4096, 8, 128, 0 }, /* an attention output */
    };
    static const struct shape shapes_fp8[] = {
        { 37, 75, 1, 1, 77 },      /* odd everything, groups that end inside */
        { 128, 256, 1, 8, 0 },     /* whole groups, whole tiles */
        { 200, 1100, 1, 8, 64 },   /* two segments, the first with a short group */
        { 129, 172, 8, 2, 1234 },  /* leaves shorter than a group: unaligned */
        { 64, 2432, 2, 8, 0 },     /* leaves that begin and end inside groups */
        { 40, 24, 8, 8, 0 },       /* leaves without inputs */
        { 144, 2690, 1, 2, 1000 }, /* three segments, unaligned */
        { 272, 4096, 8, 128, 0 },  /* an attention output */
    };

    check_products(c);
    for (size_t i = 0; i < ARRAY_LEN(shapes) - (c->quick ? 1 : 0); i++) {
        run_shape(c, &shapes[i], KERN_SRC_BF16, KERN_BF16);
    }
    run_wide(c, 512, 1100, 1, 8);  /* two segments; 256 rows and 128 without a rest */
    run_wide(c, 201, 2304, 2, 8);  /* leaves of two segments */
    run_wide(c, 333, 172, 8, 2);   /* odd leaves: unaligned */
    run_wide(c, 257, 24, 8, 8);    /* leaves without inputs */
    run_wide(c, 200, 1000, 16, 8); /* uneven ones */
    if (!c->quick) {
        run_wide(c, 600, 4096, 8, 128); /* an attention output */
        run_wide(c, 300, 4168, 4, 8);   /* leaves of two segments, uneven */
        run_wide(c, 513, 40, 1, 8);
    }
    run_shape(c, &shapes[0], KERN_SRC_F32, KERN_BF16);
    run_shape(c, &shapes[3], KERN_SRC_F16, KERN_BF16);
    run_shape(c, &shapes[0], KERN_SRC_F32, KERN_F32);
    run_shape(c, &shapes[3], KERN_SRC_BF16, KERN_F32);
    run_slices(c, &shapes[3], 3, KERN_BF16);
    run_slices(c, &shapes[4], 40, KERN_BF16);
    run_slices(c, &shapes[3], 70, KERN_BF16);
    for (size_t i = 0; i < ARRAY_LEN(shapes_fp8) - (c->quick ? 1 : 0); i++) {
        run_shape(c, &shapes_fp8[i], KERN_SRC_F8, KERN_FP8);
    }
    run_slices(c, &shapes_fp8[3], 3, KERN_FP8);
    run_slices(c, &shapes_fp8[4], 40, KERN_FP8);
    run_slices(c, &shapes_fp8[3], 70, KERN_FP8);
}
