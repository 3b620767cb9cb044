/* Products: every path the CPU has against kernels/ref, and what must not change a bit. */
#include "kern_case.h"

struct problem {
    struct kern_mat w;
    float *src;     /* [N, K] f32 */
    uint8_t *codes; /* [N, K], KERN_FP8 */
    float *scales;  /* [N, groups] */
    float *x;       /* [T, K] in the format of the product's inputs */
    uint32_t t;
};

static const char *const fmt_names[KERN_FMTS] = { "f32", "bf16", "fp8" };

/* Every code but NaN, and scales over 2^20. */
static void draw_fp8(struct problem *p)
{
    const size_t n = (size_t)p->w.n * p->w.k, n_scales = (size_t)p->w.n * kern_mat_groups(&p->w);

    p->codes = case_zeros(n);
    p->scales = case_floats(n_scales, 20);
    for (size_t i = 0; i < n; i++) {
        p->codes[i] = (uint8_t)(case_between(0, 126) | case_between(0, 1) << 7);
    }
    for (size_t i = 0; i < n_scales; i++) {
        p->scales[i] = fabsf(p->scales[i]);
    }
}

/* Rows [row0, row0 + n) of the problem's weights, from input k0 on, in whatever they are given. */
static struct kern_rows rows_of(const struct problem *p, uint32_t row0, uint32_t n, uint32_t k0)
{
    const size_t at = (size_t)row0 * p->w.k + k0;

    if (p->w.fmt == KERN_FP8) {
        return (struct kern_rows){ KERN_SRC_F8, p->codes + at,
                                   row0,        n,
                                   p->w.k,      p->scales + (size_t)row0 * kern_mat_groups(&p->w) };
    }
    return (struct kern_rows){ KERN_SRC_F32, p->src + at, row0, n, p->w.k, NULL };
}

static struct problem problem_make(enum kern_fmt fmt, uint32_t t, uint32_t n, uint32_t k,
                                   uint32_t n_leaves, struct kern_stream *s)
{
    struct problem p = { .w = { .fmt = fmt, .n = n, .k = k, .n_leaves = n_leaves }, .t = t };
    const struct kern_ops *ref = kern_ops_ref();
    struct kern_rows rows;
    const uint32_t split = n / 3;

    p.w.k0 = case_between(0, 3) == 0 ? 0 : case_between(1, 1000);

    for (uint32_t i = 0; i <= n_leaves; i++) {
        p.w.leaf[i] = kern_leaf_begin(k, n_leaves, i);
    }
    p.src = case_floats((size_t)n * k, 12);
    p.x = case_floats((size_t)t * k, 12);
    if (fmt != KERN_F32) {
        case_round(p.x, (size_t)t * k);
    }
    draw_fp8(&p);
    p.w.data = case_zeros(ref->mat_bytes(&p.w));
    rows = rows_of(&p, split, n - split, 0);
    ref->mat_pack(s, &p.w, &rows);
    rows = rows_of(&p, 0, split, 0);
    ref->mat_pack(s, &p.w, &rows);
    return p;
}

static void problem_free(struct problem *p)
{
    free(p->w.data);
    free(p->src);
    free(p->codes);
    free(p->scales);
    free(p->x);
}

static void one_size(struct case_paths *paths, enum kern_fmt fmt, uint32_t t, uint32_t n,
                     uint32_t k, uint32_t n_leaves)
{
    struct problem p = problem_make(fmt, t, n, k, n_leaves, paths->streams[0]);
    const size_t y_n = (size_t)t * n;
    float *want = case_floats(y_n, 4), *have = case_floats(y_n + 1, 4);
    char what[128];

    kern_ops_ref()->gemm(paths->streams[0], want, p.x, &p.w, t);
    for (uint32_t i = 0; i < paths->n; i++) {
        for (uint32_t j = 0; j < CASE_THREADS; j++) {
            memset(have, 0x7f, y_n * 4);
            have[y_n] = 42.0f;
            paths->ops[i]->gemm(paths->streams[j], have, p.x, &p.w, t);
            snprintf(what, sizeof what, "%s %s T %u N %u K %u leaves %u threads %u",
                     paths->ops[i]->name, fmt_names[fmt], t, n, k, n_leaves, j + 1);
            case_same(want, have, y_n, what);
            assert_true(have[y_n] == 42.0f);
        }
    }
    free(want);
    free(have);
    problem_free(&p);
}

static void test_gemm__every_path_gives_the_bits_of_ref(void **state)
{
    struct case_paths paths = case_paths_get();

    (void)state;
    for (int fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        for (uint32_t t = 1; t <= 40; t++) {
            one_size(&paths, (enum kern_fmt)fmt, t, case_between(1, 150), case_between(1, 90),
                     1u << case_between(0, 4));
        }
        one_size(&paths, (enum kern_fmt)fmt, 3, 64, 1, 1);
        one_size(&paths, (enum kern_fmt)fmt, 2, 70, 5, 8);    /* empty leaves */
        one_size(&paths, (enum kern_fmt)fmt, 2, 66, 2500, 2); /* several segments of K */
        one_size(&paths, (enum kern_fmt)fmt, 7, 64, 130, 64);
        one_size(&paths, (enum kern_fmt)fmt, 200, 80, 33, 4); /* several blocks of rows */
        one_size(&paths, (enum kern_fmt)fmt, 64, 40, 50, 2);  /* cut by rows */
        one_size(&paths, (enum kern_fmt)fmt, 1, 130, 1024, 1);
        one_size(&paths, (enum kern_fmt)fmt, 6, 70, 777, 4); /* odd groups */
    }
    case_paths_put(&paths);
}

static void test_gemm__a_row_alone_is_the_row_in_a_batch(void **state)
{
    struct case_paths paths = case_paths_get();

    (void)state;
    for (uint32_t i = 0; i < 2 * paths.n; i++) {
        const struct kern_ops *ops = paths.ops[i / 2];
        struct problem p =
            problem_make(i % 2 == 0 ? KERN_BF16 : KERN_FP8, 23, 200, 301, 4, paths.streams[0]);
        float *all = case_floats(23 * 200, 1), *one = case_floats(200, 1);

        ops->gemm(paths.streams[1], all, p.x, &p.w, 23);
        for (uint32_t t = 0; t < 23; t++) {
            uint16_t *row = case_zeros(301 * 2);

            memcpy(row, (uint16_t *)(void *)p.x + t * 301, 301 * 2);
            ops->gemm(paths.streams[0], one, row, &p.w, 1);
            case_same(all + t * 200, one, 200, "row alone");
            free(row);
        }
        free(all);
        free(one);
        problem_free(&p);
    }
    case_paths_put(&paths);
}

/* R leaves on one rank, or R / tp on each of tp ranks and the partials added with partner r ^ 1,
 * r ^ 2, ... */
static void same_tree(enum kern_fmt fmt, struct case_paths paths)
{
    enum { T = 5, N = 90, K = 703, R = 8, GROUPS = 16 };
    struct problem p = problem_make(fmt, T, N, K, R, paths.streams[0]);
    const struct kern_ops *ops = kern_ops_cpu(NULL);
    const uint32_t n_groups = kern_mat_groups(&p.w);
    static float whole[T * N], part[8][T * N], scales[N * GROUPS];

    ops->gemm(paths.streams[0], whole, p.x, &p.w, T);
    for (uint32_t tp = 2; tp <= 8; tp *= 2) {
        uint32_t group0 = 0;

        for (uint32_t r = 0; r < tp; r++) {
            const uint32_t leaf0 = r * R / tp, k0 = p.w.leaf[leaf0];
            const uint32_t k1 = p.w.leaf[leaf0 + R / tp];
            struct kern_mat w = { .fmt = fmt, .n = N, .k = k1 - k0, .n_leaves = R / tp };
            struct kern_rows rows = rows_of(&p, 0, N, k0);
            uint16_t *x = case_zeros(T * (size_t)w.k * 2);

            for (uint32_t i = 0; i <= w.n_leaves; i++) {
                w.leaf[i] = p.w.leaf[leaf0 + i] - k0;
            }
            for (uint32_t t = 0; t < T; t++) {
                memcpy(x + t * w.k, (uint16_t *)(void *)p.x + t * K + k0, w.k * 2u);
            }
            w.k0 = p.w.k0 + k0;
            w.data = case_zeros(ops->mat_bytes(&w));
            const uint32_t groups = kern_mat_groups(&w);
            for (uint32_t i = 0; i < N * groups; i++) {
                scales[i] = p.scales[i / groups * n_groups + group0 + i % groups];
            }
            rows.scales = fmt == KERN_FP8 ? scales : NULL;
            group0 += groups;
            ops->mat_pack(paths.streams[0], &w, &rows);
            ops->gemm(paths.streams[0], part[r], x, &w, T);
            free(w.data);
            free(x);
        }
        for (uint32_t d = 1; d < tp; d *= 2) {
            for (uint32_t r = 0; r < tp; r += 2 * d) {
                ops->add(paths.streams[0], part[r], part[r], part[r + d], T * N);
            }
        }
        case_same(whole, part[0], T * N, "sliced");
    }
    problem_free(&p);
}

static void test_gemm__leaves_over_slices_make_the_same_tree(void **state)
{
    struct case_paths paths = case_paths_get();

    (void)state;
    same_tree(KERN_BF16, paths);
    for (uint32_t i = 0; i < 8; i++) { /* other places of the groups in the leaves */
        same_tree(KERN_FP8, paths);
    }
    case_paths_put(&paths);
}

/* Weight (n, k) as the product sees it. */
static double weight(const struct problem *p, uint32_t n, uint32_t k)
{
    const float w = p->src[n * p->w.k + k];
    uint32_t group = 0;

    if (p->w.fmt == KERN_F32) {
        return (double)w;
    }
    if (p->w.fmt == KERN_BF16) {
        return (double)bf16_to_f32(bf16_from_f32(w));
    }
    for (uint32_t leaf = 0, at = 0; at <= k; leaf++) {
        while (at <= k && at < p->w.leaf[leaf + 1]) {
            at = kern_group_end(&p->w, leaf, at);
            group++;
        }
    }
    return (double)e4m3_to_f32(p->codes[n * p->w.k + k]) *
           (double)p->scales[n * kern_mat_groups(&p->w) + group - 1];
}

/* The specification itself, against plain f64 arithmetic. */
static void test_gemm__is_near_the_product_in_f64(void **state)
{
    struct case_paths paths = case_paths_get();

    (void)state;
    for (int fmt = KERN_F32; fmt < KERN_FMTS; fmt++) {
        struct problem p = problem_make((enum kern_fmt)fmt, 3, 70, 333, 4, paths.streams[0]);
        float y[3 * 70];

        kern_ops_ref()->gemm(paths.streams[0], y, p.x, &p.w, 3);
        for (uint32_t t = 0; t < 3; t++) {
            for (uint32_t n = 0; n < 70; n++) {
                double sum = 0, size = 0;

                for (uint32_t k = 0; k < 333; k++) {
                    const double w = weight(&p, n, k);
                    const double x =
                        (double)(fmt == KERN_F32
                                     ? p.x[t * 333 + k]
                                     : bf16_to_f32(((uint16_t *)(void *)p.x)[t * 333 + k]));

                    sum += x * w;
                    size += fabs(x * w);
                }
                assert_true(fabs((double)y[t * 70 + n] - sum) <= size * 333 * 0x1p-24);
            }
        }
        problem_free(&p);
    }
    case_paths_put(&paths);
}

static void test_gemm__f16_and_bf16_files_are_read_exactly(void **state)
{
    struct case_paths paths = case_paths_get();
    const uint16_t f16[4] = { 0x3c00, 0xc000, 0x0001, 0x3555 }; /* 1, -2, 2^-24, 0.333 */
    const uint16_t bf16[4] = { 0x3f80, 0xc000, 0x3eab, 0x4049 };
    const float want16[4] = { 1.0f, -2.0f, 0x1p-24f, 0x1.554p-2f };
    struct kern_mat w = { .fmt = KERN_F32, .n = 4, .k = 1, .n_leaves = 1, .leaf = { 0, 1 } };
    struct kern_rows rows = { KERN_SRC_F16, f16, 0, 4, 1, NULL };
    float x = 1.0f, y[4];

    (void)state;
    w.data = case_zeros(kern_ops_ref()->mat_bytes(&w));
    kern_ops_ref()->mat_pack(paths.streams[0], &w, &rows);
    kern_ops_ref()->gemm(paths.streams[0], y, &x, &w, 1);
    case_same(want16, y, 4, "f16");
    rows = (struct kern_rows){ KERN_SRC_BF16, bf16, 0, 4, 1, NULL };
    kern_ops_ref()->mat_pack(paths.streams[0], &w, &rows);
    kern_ops_ref()->gemm(paths.streams[0], y, &x, &w, 1);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(f32_bits(y[i]), (uint32_t)bf16[i] << 16);
    }
    free(w.data);
    case_paths_put(&paths);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_gemm__a_row_alone_is_the_row_in_a_batch),
        cmocka_unit_test(test_gemm__leaves_over_slices_make_the_same_tree),
        cmocka_unit_test(test_gemm__is_near_the_product_in_f64),
        cmocka_unit_test(test_gemm__f16_and_bf16_files_are_read_exactly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
