/* Norms, rope, silu, embedding, sums, scan: every path against kernels/ref, equal bits. */
#include "kern_case.h"

struct buffers {
    float *in, *in2, *want, *have;
    size_t n;
};

static struct buffers buffers_make(size_t n)
{
    struct buffers b = { case_floats(n, 14), case_floats(n, 14), case_zeros(n * 4),
                         case_zeros(n * 4), n };
    return b;
}

static void buffers_free(struct buffers *b)
{
    free(b->in);
    free(b->in2);
    free(b->want);
    free(b->have);
}

typedef void (*elem_fn)(const struct kern_ops *ops, struct kern_stream *s, struct buffers *b,
                        float *out, uint32_t rows, uint32_t dim, enum kern_fmt fmt);

static void run_rmsnorm(const struct kern_ops *ops, struct kern_stream *s, struct buffers *b,
                        float *out, uint32_t rows, uint32_t dim, enum kern_fmt fmt)
{
    ops->rmsnorm(s, out, fmt, b->in, b->in2, rows, dim, 1e-5f);
}

static void run_silu(const struct kern_ops *ops, struct kern_stream *s, struct buffers *b,
                     float *out, uint32_t rows, uint32_t dim, enum kern_fmt fmt)
{
    ops->silu_mul(s, out, fmt, b->in, rows, dim);
}

static void run_add(const struct kern_ops *ops, struct kern_stream *s, struct buffers *b,
                    float *out, uint32_t rows, uint32_t dim, enum kern_fmt fmt)
{
    (void)fmt;
    memcpy(out, b->in, b->n * 4);
    ops->add(s, out, out, b->in2, (size_t)rows * dim); /* in place */
    ops->add_bias(s, out, b->in2, rows, dim);
}

static void run_embed(const struct kern_ops *ops, struct kern_stream *s, struct buffers *b,
                      float *out, uint32_t rows, uint32_t dim, enum kern_fmt fmt)
{
    const struct kern_embed e = { fmt, 3, 4, dim, b->in2 };
    uint32_t ids[64];

    for (uint32_t i = 0; i < rows; i++) {
        ids[i] = i % 9;
    }
    ops->embed(s, out, &e, ids, rows);
}

static void run_heads(const struct kern_ops *ops, struct kern_stream *s, struct buffers *b,
                      float *out, uint32_t rows, uint32_t dim, enum kern_fmt fmt)
{
    const uint32_t d = dim % 100 / 2 * 2 + 2;
    const struct kern_qkv g = { 2, 1, d, 0, 0, 2, 1.0f };
    const struct kern_rope rope = { 64, d, b->in2, b->in2 + 777 };
    uint32_t pos[64], seq[64] = { 0 };
    const struct kern_rows_map map = { rows, 1, 0, pos, seq, NULL };

    (void)fmt;
    for (uint32_t i = 0; i < rows; i++) {
        pos[i] = 63 - i;
    }
    memcpy(out, b->in, b->n * 4);
    ops->qk_norm(s, out, &g, b->in2, b->in2 + 300, rows, 1e-6f);
    ops->rope(s, out, &g, &rope, &map);
}

static void every_path(elem_fn fn, const char *name)
{
    struct case_paths paths = case_paths_get();

    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t rows = round < 40 ? round + 1 : 40, dim = case_between(1, 700);
        const enum kern_fmt fmt = round % 2 == 0 ? KERN_F32 : KERN_BF16;
        struct buffers b = buffers_make((size_t)64 * 1500);
        char what[96];

        fn(kern_ops_ref(), paths.streams[0], &b, b.want, rows, dim, fmt);
        for (uint32_t i = 0; i < paths.n; i++) {
            for (uint32_t j = 0; j < CASE_THREADS; j++) {
                memset(b.have, 0, b.n * 4);
                fn(paths.ops[i], paths.streams[j], &b, b.have, rows, dim, fmt);
                snprintf(what, sizeof what, "%s %s rows %u dim %u fmt %d threads %u", name,
                         paths.ops[i]->name, rows, dim, (int)fmt, j + 1);
                case_same(b.want, b.have, b.n, what);
            }
        }
        buffers_free(&b);
    }
    case_paths_put(&paths);
}

static void test_rmsnorm__every_path_gives_the_bits_of_ref(void **state)
{
    (void)state;
    every_path(run_rmsnorm, "rmsnorm");
}

static void test_silu_mul__every_path_gives_the_bits_of_ref(void **state)
{
    (void)state;
    every_path(run_silu, "silu_mul");
}

static void test_add__every_path_gives_the_bits_of_ref(void **state)
{
    (void)state;
    every_path(run_add, "add");
}

static void test_embed__every_path_gives_the_bits_of_ref(void **state)
{
    (void)state;
    every_path(run_embed, "embed");
}

static void test_rope_and_qk_norm__every_path_gives_the_bits_of_ref(void **state)
{
    (void)state;
    every_path(run_heads, "heads");
}

static void test_embed__slices_sum_to_the_row(void **state)
{
    struct case_paths paths = case_paths_get();
    const struct kern_ops *ops = kern_ops_cpu(NULL);
    float table[6 * 20], whole[6 * 20], a[6 * 20], b[6 * 20];
    const uint32_t ids[6] = { 5, 0, 2, 3, 1, 4 };
    struct kern_embed e = { KERN_F32, 0, 6, 20, table };

    (void)state;
    case_fill(table, 120, 10);
    table[7] = -0.0f;
    ops->embed(paths.streams[0], whole, &e, ids, 6);
    e = (struct kern_embed){ KERN_F32, 0, 2, 20, table };
    ops->embed(paths.streams[0], a, &e, ids, 6);
    e = (struct kern_embed){ KERN_F32, 2, 4, 20, table + 40 };
    ops->embed(paths.streams[0], b, &e, ids, 6);
    ops->add(paths.streams[0], a, a, b, 120);
    case_same(whole, a, 120, "sum of slices");
    case_paths_put(&paths);
}

/* ---- scan ---- */

enum { VOCAB = 9000, CANDS = 300 };

struct scanned {
    struct kern_lse lse[9], lse_temp[9];
    struct kern_cand cand[CANDS], gumbel;
    float gumbel_logit;
};

static void do_scan(const struct kern_ops *ops, struct kern_stream *s, const float *logits,
                    uint32_t id0, uint32_t n_ids, const struct kern_sample *p, struct scanned *out)
{
    struct kern_scan scan = { .lse = out->lse, .lse_temp = out->lse_temp, .cand = out->cand };

    ops->scan(s, logits, id0, n_ids, p, &scan);
    out->gumbel = scan.gumbel;
    out->gumbel_logit = scan.gumbel_logit;
}

static void test_scan__every_path_gives_the_bits_of_ref(void **state)
{
    struct case_paths paths = case_paths_get();
    float *x = case_floats(VOCAB, 10);
    struct scanned *want = case_zeros(sizeof *want), *have = case_zeros(sizeof *have);

    (void)state;
    for (uint32_t round = 0; round < 40; round++) {
        const uint32_t n_ids = round < 4 ? VOCAB : case_between(1, VOCAB);
        const struct kern_sample p = { ((uint64_t)case_u32() << 32) | case_u32(),
                                       case_between(0, 5),
                                       case_u32(),
                                       round % 3 == 0 ? 0.0f : 0.1f * (float)case_between(1, 20),
                                       case_between(1, CANDS),
                                       round % 3 != 0 };

        case_fill(x, VOCAB, 10);
        for (uint32_t i = 0; i < VOCAB; i += 7) {
            x[i] = (float)(int)x[i]; /* ties, zeros of both signs */
        }
        x[case_u32() % VOCAB] = NAN;
        x[case_u32() % VOCAB] = -INFINITY;
        for (uint32_t i = 0; round == 1 && i < VOCAB; i++) {
            x[i] = i < 2000 ? -INFINITY : NAN; /* nothing can be chosen: id 0 */
        }
        memset(want, 0, sizeof *want);
        do_scan(kern_ops_ref(), paths.streams[0], x, 1024, n_ids, &p, want);
        for (uint32_t i = 0; i < paths.n; i++) {
            for (uint32_t j = 0; j < CASE_THREADS; j++) {
                memset(have, 0, sizeof *have);
                do_scan(paths.ops[i], paths.streams[j], x, 1024, n_ids, &p, have);
                case_same(want, have, sizeof *want / 4, paths.ops[i]->name);
            }
        }
    }
    free(x);
    free(want);
    free(have);
    case_paths_put(&paths);
}

static void test_ops_cpu__takes_the_best_path_and_finds_no_difference(void **state)
{
    struct err note = ERR_INIT;
    const struct kern_ops *best = kern_ops_cpu(&note), *path = kern_ops_path(cpu_flags());

    (void)state;
    assert_string_equal(note.text, "");
    assert_string_equal(best->name, path->name);
    assert_ptr_equal(best->gemm, path->gemm);
    assert_ptr_equal(best->attention, path->attention);
    assert_string_equal(kern_ops_path(0)->name, "scalar");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_silu_mul__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_add__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_embed__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_rope_and_qk_norm__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_embed__slices_sum_to_the_row),
        cmocka_unit_test(test_scan__every_path_gives_the_bits_of_ref),
        cmocka_unit_test(test_ops_cpu__takes_the_best_path_and_finds_no_difference),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
