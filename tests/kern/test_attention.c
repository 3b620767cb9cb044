/* Attention and the KV cache: every path against kernels/ref; a row alone is a row in company. */
#include "kern_case.h"

enum { MAX_ROWS = 40, MAX_SEQS = 4, STRIDE = 24, BLOCKS = MAX_SEQS * STRIDE };

struct problem {
    struct kern_kv kv;
    struct kern_qkv g;
    struct kern_rows_map map;
    uint32_t pos[MAX_ROWS], seq[MAX_ROWS], tables[MAX_SEQS * STRIDE];
    float *qkv; /* [rows, (H + 2K) D] */
    size_t row, kv_bytes;
};

static void problem_make(struct problem *p, enum kern_fmt fmt, struct kern_qkv g)
{
    *p = (struct problem){ .g = g };
    p->kv = (struct kern_kv){ fmt, g.n_kv_heads, g.head_dim, BLOCKS, NULL, NULL };
    p->kv_bytes = kern_ops_ref()->kv_bytes(&p->kv);
    p->kv.k = case_zeros(p->kv_bytes);
    p->kv.v = case_zeros(p->kv_bytes);
    p->row = (size_t)(g.n_heads + 2 * g.n_kv_heads) * g.head_dim;
    p->qkv = case_floats(MAX_ROWS * p->row, 6);
    p->map = (struct kern_rows_map){ 0, MAX_SEQS, STRIDE, p->pos, p->seq, p->tables };
    for (uint32_t i = 0; i < BLOCKS; i++) {
        p->tables[i] = (i * 37 + 11) % BLOCKS; /* 37 and 96 have no common divisor */
    }
}

static void problem_free(struct problem *p)
{
    free(p->kv.k);
    free(p->kv.v);
    free(p->qkv);
}

/* Every slot holds a number, but those past `n` positions of each sequence hold NaN. */
static void fill_cache(struct problem *p, const uint32_t *n)
{
    float *qkv = case_floats(p->row, 6);
    const uint32_t bytes = p->kv.fmt == KERN_BF16 ? 2 : 4;

    for (size_t i = 0; i < p->kv_bytes; i += bytes) {
        const uint32_t nan = bytes == 2 ? 0x7fc0u : 0x7fc00000u;

        memcpy((char *)p->kv.k + i, &nan, bytes);
        memcpy((char *)p->kv.v + i, &nan, bytes);
    }
    for (uint32_t s = 0; s < MAX_SEQS; s++) {
        for (uint32_t pos = 0; pos < n[s]; pos++) {
            const struct kern_rows_map map = { 1, MAX_SEQS, STRIDE, &pos, &s, p->tables };

            case_fill(qkv, p->row, 6);
            kern_ops_ref()->kv_store(NULL, &p->kv, qkv, &p->g, &map);
        }
    }
    free(qkv);
}

static void one_shape(struct case_paths *paths, enum kern_fmt fmt, struct kern_qkv g)
{
    struct problem p;
    uint32_t n[MAX_SEQS], n_rows = 0;
    const size_t out_n = (size_t)MAX_ROWS * g.n_heads * g.head_dim;
    float *want = case_zeros(out_n * 4), *have = case_zeros(out_n * 4);

    problem_make(&p, fmt, g);
    for (uint32_t s = 0; s < MAX_SEQS; s++) { /* a prefill, decodes, a chunk over a span's end */
        const uint32_t rows = s == 0 ? case_between(1, 17) : s == 1 ? 9 : 1;

        n[s] = s == 1 ? 260 : case_between(rows, STRIDE * KERN_KV_BLOCK);
        for (uint32_t i = 0; i < rows; i++, n_rows++) {
            p.seq[n_rows] = s;
            p.pos[n_rows] = n[s] - rows + i;
        }
    }
    p.map.n_rows = n_rows;
    fill_cache(&p, n);
    kern_ops_ref()->attention(NULL, want, &p.kv, p.qkv, &g, &p.map);
    for (uint32_t i = 0; i < paths->n; i++) {
        for (uint32_t j = 0; j < CASE_THREADS; j++) {
            memset(have, 0, out_n * 4);
            paths->ops[i]->attention(paths->streams[j], have, &p.kv, p.qkv, &g, &p.map);
            case_same(want, have, out_n, paths->ops[i]->name);
        }
    }
    for (size_t i = 0; i < out_n; i++) { /* nothing stale came through */
        const float x = fmt == KERN_F32 ? want[i] : bf16_to_f32(((uint16_t *)(void *)want)[i]);

        assert_true(x == x);
    }
    free(want);
    free(have);
    problem_free(&p);
}

static void test_attention__every_path_gives_the_bits_of_ref(void **state)
{
    struct case_paths paths = case_paths_get();

    (void)state;
    for (int fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        one_shape(&paths, (enum kern_fmt)fmt, (struct kern_qkv){ 4, 2, 8, 0, 0, 2, 0.35f });
        one_shape(&paths, (enum kern_fmt)fmt, (struct kern_qkv){ 8, 1, 64, 0, 0, 8, 0.125f });
        one_shape(&paths, (enum kern_fmt)fmt, (struct kern_qkv){ 2, 2, 128, 0, 0, 1, 0.09f });
        one_shape(&paths, (enum kern_fmt)fmt, (struct kern_qkv){ 3, 2, 22, 1, 2, 2, 0.2f });
        one_shape(&paths, (enum kern_fmt)fmt, (struct kern_qkv){ 17, 1, 18, 0, 0, 17, 0.2f });
        one_shape(&paths, (enum kern_fmt)fmt, (struct kern_qkv){ 2, 1, 80, 0, 2, 4, 0.1f });
    }
    case_paths_put(&paths);
}

static void test_attention__a_row_in_prefill_is_the_row_in_decode(void **state)
{
    struct case_paths paths = case_paths_get();
    const struct kern_qkv g = { 4, 2, 32, 0, 0, 2, 0.2f };
    const size_t out_row = 4 * 32;
    const uint32_t n[MAX_SEQS] = { 290, 0, 0, 0 };
    struct problem p;
    float *all, *one;

    (void)state;
    problem_make(&p, KERN_F32, g);
    fill_cache(&p, n);
    all = case_zeros(MAX_ROWS * out_row * 4);
    one = case_zeros(out_row * 4);
    p.map.n_rows = MAX_ROWS;
    for (uint32_t i = 0; i < MAX_ROWS; i++) {
        p.pos[i] = 250 - MAX_ROWS / 2 + i;
    }
    for (uint32_t i = 0; i < paths.n; i++) {
        paths.ops[i]->attention(paths.streams[2], all, &p.kv, p.qkv, &g, &p.map);
        for (uint32_t t = 0; t < MAX_ROWS; t++) {
            const struct kern_rows_map map = { 1, 1, STRIDE, &p.pos[t], &p.seq[t], p.tables };

            paths.ops[i]->attention(paths.streams[0], one, &p.kv, p.qkv + t * p.row, &g, &map);
            case_same(all + t * out_row, one, out_row, "decode row");
        }
    }
    free(all);
    free(one);
    problem_free(&p);
    case_paths_put(&paths);
}

/* Two ranks with half of the heads each hold the two halves of the whole answer. */
static void test_attention__heads_do_not_depend_on_the_slice(void **state)
{
    enum { D = 16, T = 6 };
    struct case_paths paths = case_paths_get();
    const struct kern_ops *ops = kern_ops_cpu(NULL);
    const struct kern_qkv whole = { 4, 2, D, 0, 0, 2, 0.25f };
    struct problem p, half;
    float *want = case_zeros(T * 4 * D * 4), *have = case_zeros(T * 2 * D * 4);

    (void)state;
    problem_make(&p, KERN_F32, whole);
    p.map.n_rows = T;
    for (uint32_t t = 0; t < T; t++) {
        p.pos[t] = t;
    }
    ops->kv_store(paths.streams[0], &p.kv, p.qkv, &whole, &p.map);
    ops->attention(paths.streams[0], want, &p.kv, p.qkv, &whole, &p.map);
    for (uint32_t r = 0; r < 2; r++) {
        const struct kern_qkv g = { 2, 1, D, r, 2 * r, 2, 0.25f };

        problem_make(&half, KERN_F32, g);
        for (uint32_t t = 0; t < T; t++) {
            const float *from = p.qkv + t * p.row;
            float *to = half.qkv + t * half.row;

            memcpy(to, from + 2 * r * D, 2 * D * 4);
            memcpy(to + 2 * D, from + (4 + r) * D, D * 4);
            memcpy(to + 3 * D, from + (6 + r) * D, D * 4);
        }
        ops->kv_store(paths.streams[0], &half.kv, half.qkv, &g, &p.map);
        ops->attention(paths.streams[0], have, &half.kv, half.qkv, &g, &p.map);
        for (uint32_t t = 0; t < T; t++) {
            case_same(want + (t * 4 + 2 * r) * D, have + t * 2 * D, 2 * D, "slice");
        }
        problem_free(&half);
    }
    free(want);
    free(have);
    problem_free(&p);
    case_paths_put(&paths);
}

static void test_kv_store__every_path_gives_the_bits_of_ref(void **state)
{
    struct case_paths paths = case_paths_get();

    (void)state;
    for (int fmt = KERN_F32; fmt <= KERN_BF16; fmt++) {
        struct problem a, b;

        for (uint32_t i = 0; i < paths.n; i++) {
            const struct kern_qkv g = { 3, 3, case_between(1, 40) * 2, 0, 0, 1, 1.0f };

            problem_make(&a, (enum kern_fmt)fmt, g);
            problem_make(&b, (enum kern_fmt)fmt, g);
            a.map.n_rows = MAX_ROWS;
            for (uint32_t t = 0; t < MAX_ROWS; t++) {
                a.seq[t] = t / 10;
                a.pos[t] = t * 3;
            }
            kern_ops_ref()->kv_store(NULL, &a.kv, a.qkv, &g, &a.map);
            paths.ops[i]->kv_store(paths.streams[2], &b.kv, a.qkv, &g, &a.map);
            case_same(a.kv.k, b.kv.k, a.kv_bytes / 4, "k");
            case_same(a.kv.v, b.kv.v, a.kv_bytes / 4, "v");
            problem_free(&a);
            problem_free(&b);
        }
    }
    case_paths_put(&paths);
}

/* The specification against a plain softmax in f64. */
static void test_attention__is_near_the_softmax_in_f64(void **state)
{
    enum { D = 12, N = 600 };
    const struct kern_qkv g = { 1, 1, D, 0, 0, 1, 0.3f };
    const uint32_t n[MAX_SEQS] = { N, 0, 0, 0 };
    struct case_paths paths = case_paths_get();
    struct problem p;
    float out[D];
    double score[N], max = -1e300, sum = 0, o[D] = { 0 };

    (void)state;
    problem_make(&p, KERN_F32, g);
    fill_cache(&p, n);
    p.map.n_rows = 1;
    p.pos[0] = N - 1;
    kern_ops_ref()->attention(NULL, out, &p.kv, p.qkv, &g, &p.map);
    for (uint32_t j = 0; j < N; j++) {
        const size_t base = (size_t)p.tables[j / 32] * 32 * D;

        score[j] = 0;
        for (uint32_t d = 0; d < D; d++) {
            score[j] += (double)p.qkv[d] * (double)((float *)p.kv.k)[base + d * 32 + j % 32];
        }
        score[j] *= (double)g.scale;
        max = score[j] > max ? score[j] : max;
    }
    for (uint32_t j = 0; j < N; j++) {
        const size_t base = (size_t)p.tables[j / 32] * 32 * D + (j % 32) * D;
        const double e = exp(score[j] - max);

        sum += e;
        for (uint32_t d = 0; d < D; d++) {
            o[d] += e * (double)((float *)p.kv.v)[base + d];
        }
    }
    for (uint32_t d = 0; d < D; d++) {
        assert_true(fabs((double)out[d] - o[d] / sum) < 1e-4);
    }
    problem_free(&p);
    case_paths_put(&paths);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_attention__a_row_in_prefill_is_the_row_in_decode),
        cmocka_unit_test(test_attention__heads_do_not_depend_on_the_slice),
        cmocka_unit_test(test_kv_store__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_attention__is_near_the_softmax_in_f64),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
