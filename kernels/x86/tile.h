/* kernels/x86/tile.h - the register tile: sums[rows, 16 * WIDE] += x[rows, steps] times
 * w[steps, 16 * WIDE], every sum one chain of operations in ascending step. A template.
 *
 * One shape serves five products: weights in bf16 pairs, f32 or fp8 pairs (gemm), scores (lanes are
 * positions) and probabilities times V (lanes are D). Before including, define
 *   TILE_NAME   suffix of the functions
 *   TILE_W      type of 16 lanes of w;   TILE_LOAD(p)  loads one from const char *p
 *   TILE_LANE   bytes of 16 lanes of w
 *   TILE_X      type of one step of x (its bytes are the distance between steps)
 *   TILE_DOT(acc, x, w)   acc + x * w;   TILE_SET1(p)  16 copies of the step at const TILE_X *p
 *   TILE_LINES  cache lines of a step of w, 64 outputs
 *   TILE_TALL   optional: also a tile of 7 to 12 rows by 32 outputs, for w that is dear to load
 * Sums are loaded from and stored to `acc` (fresh: start at +0), so a caller may cut the steps
 * anywhere without changing a bit. With `scale` the steps are a whole group: its sum starts at +0
 * and acc = fma(sum, scale, acc). */

#define TILE_CAT_(a, b) a##b
#define TILE_CAT(a, b)  TILE_CAT_(a, b)
#define TILE_FN(n)      TILE_CAT(n, TILE_NAME)

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
/* One copy with loops: twenty unrolled ones full of checks take minutes to compile. */
#define TILE_INLINE __attribute__((noinline))
#define TILE_UNROLL
#elif defined(__clang__)
#define TILE_INLINE ALWAYS_INLINE
#define TILE_UNROLL _Pragma("unroll")
#else
#define TILE_INLINE ALWAYS_INLINE
#define TILE_UNROLL _Pragma("GCC unroll 12")
#endif

#ifndef KERNELS_X86_TILE_ARGS
#define KERNELS_X86_TILE_ARGS
struct tile_args {
    float *acc;
    size_t acc_stride; /* floats between rows */
    const void *x;
    size_t x_stride; /* bytes between rows */
    const char *w;
    size_t w_stride; /* bytes between steps */
    uint32_t n_steps;
    bool fresh;
    const float *scale; /* [16 * WIDE], or NULL */
    const char
        *ahead; /* where w goes on after these steps, to be fetched meanwhile; NULL: nowhere */
    uint32_t ahead_lines; /* cache lines of it per step: 0, 1, 2 or 4 */
};
#endif

/* `wide` is 1, 2 or 4, spelled out: clang 14 does not unroll an inner loop over it. */
#define TILE_EACH(v_do)                                                                            \
    v_do(0) if (wide > 1)                                                                          \
    {                                                                                              \
        v_do(1)                                                                                    \
    }                                                                                              \
    if (wide > 2) {                                                                                \
        v_do(2) v_do(3)                                                                            \
    }

static TILE_INLINE void TILE_FN(tile_fixed_)(const struct tile_args *t, const int rows,
                                             const int wide)
{
    vf acc[12][4]; /* registers, as many as rows and wide say */
    const char *w = t->w, *x = t->x, *ahead = t->ahead;
    const size_t w_stride = t->w_stride, x_stride = t->x_stride;
    const uint32_t lines = t->ahead_lines;

    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        const float *from = t->acc + (size_t)r * t->acc_stride;

#define TILE_DO(v) acc[r][v] = t->fresh || t->scale != NULL ? vf_zero() : vf_load(from + v * 16);
        TILE_EACH(TILE_DO)
#undef TILE_DO
    }
    for (uint32_t i = 0; i < t->n_steps; i++) {
        TILE_W b[4];

#define TILE_DO(v) b[v] = TILE_LOAD(w + v * TILE_LANE);
        TILE_EACH(TILE_DO)
#undef TILE_DO
        if (lines > 0) {
            _mm_prefetch(ahead, _MM_HINT_T0);
            if (lines > 1) {
                _mm_prefetch(ahead + 64, _MM_HINT_T0);
            }
            if (lines > 2) {
                _mm_prefetch(ahead + 128, _MM_HINT_T0);
                _mm_prefetch(ahead + 192, _MM_HINT_T0);
            }
            ahead += lines * 64;
        }
        TILE_UNROLL
        for (int r = 0; r < rows; r++) {
            const TILE_W a =
                TILE_SET1((const TILE_X *)(const void *)(x + (size_t)r * x_stride) + i);

#define TILE_DO(v) acc[r][v] = TILE_DOT(acc[r][v], a, b[v]);
            TILE_EACH(TILE_DO)
#undef TILE_DO
        }
        w += w_stride;
    }
    TILE_UNROLL
    for (int r = 0; r < rows; r++) {
        float *to = t->acc + (size_t)r * t->acc_stride;

        if (t->scale != NULL) {
#define TILE_DO(v)                                                                                 \
    acc[r][v] = vf_fma(acc[r][v], vf_load(t->scale + v * 16),                                      \
                       t->fresh ? vf_zero() : vf_load(to + v * 16));
            TILE_EACH(TILE_DO)
#undef TILE_DO
        }
#define TILE_DO(v) vf_store(to + v * 16, acc[r][v]);
        TILE_EACH(TILE_DO)
#undef TILE_DO
    }
}

/* Each size is a function of its own, called by table: compilers that see all of them at once
 * (clang 14) merge their loops before unrolling, and the sums fall out of the registers (a
 * fifth of the speed). */
#define TILE_SIZE(rows, wide)                                                                      \
    static __attribute__((noinline)) void TILE_FN(tile_##rows##x##wide##_)(                        \
        const struct tile_args *t)                                                                 \
    {                                                                                              \
        TILE_FN(tile_fixed_)(t, rows, wide);                                                       \
    }
TILE_SIZE(1, 1)
TILE_SIZE(1, 2)
TILE_SIZE(1, 4)
TILE_SIZE(2, 1)
TILE_SIZE(3, 1)
TILE_SIZE(4, 1)
#if VEC_TILE_WIDE == 4
TILE_SIZE(2, 2)
TILE_SIZE(2, 4)
TILE_SIZE(3, 2)
TILE_SIZE(3, 4)
TILE_SIZE(4, 2)
TILE_SIZE(4, 4)
TILE_SIZE(5, 1)
TILE_SIZE(5, 2)
TILE_SIZE(5, 4)
TILE_SIZE(6, 1)
TILE_SIZE(6, 2)
TILE_SIZE(6, 4)
#endif

/* [rows - 1][wide / 2]; NULL: vector by vector. */
static void (*const TILE_FN(tile_sizes_)[VEC_TILE_ROWS][3])(const struct tile_args *t) = {
    { TILE_FN(tile_1x1_), TILE_FN(tile_1x2_), TILE_FN(tile_1x4_) },
#if VEC_TILE_WIDE == 4
    { TILE_FN(tile_2x1_), TILE_FN(tile_2x2_), TILE_FN(tile_2x4_) },
    { TILE_FN(tile_3x1_), TILE_FN(tile_3x2_), TILE_FN(tile_3x4_) },
    { TILE_FN(tile_4x1_), TILE_FN(tile_4x2_), TILE_FN(tile_4x4_) },
    { TILE_FN(tile_5x1_), TILE_FN(tile_5x2_), TILE_FN(tile_5x4_) },
    { TILE_FN(tile_6x1_), TILE_FN(tile_6x2_), TILE_FN(tile_6x4_) },
#else
    { TILE_FN(tile_2x1_), NULL, NULL },
    { TILE_FN(tile_3x1_), NULL, NULL },
    { TILE_FN(tile_4x1_), NULL, NULL },
#endif
};

/* rows <= VEC_TILE_ROWS, wide 1, 2 or 4. */
static void TILE_FN(tile_few_)(const struct tile_args *t, uint32_t rows, uint32_t wide)
{
    struct tile_args one = *t;

    if (TILE_FN(tile_sizes_)[rows - 1][wide / 2] != NULL) {
        TILE_FN(tile_sizes_)[rows - 1][wide / 2](t);
        return;
    }
    for (uint32_t v = 0; v < wide; v++) {
        one.acc = t->acc + v * 16;
        one.w = t->w + (size_t)v * TILE_LANE;
        one.scale = t->scale != NULL ? t->scale + v * 16 : NULL;
        one.ahead_lines = v == 0 ? t->ahead_lines : 0;
        TILE_FN(tile_sizes_)[rows - 1][0](&one);
    }
}

/* Any number of rows. With 2 to 4 tiles `ahead` is fetched by all of them, a part by each, so that
 * memory works while they compute. Otherwise the first tile fetches what comes 4 KiB later in its
 * own w: one tile waits for memory anyway, and with many the first one is a small part. */
static void TILE_FN(tile_)(const struct tile_args *args, uint32_t rows, uint32_t wide)
{
    const uint32_t n_tiles = (rows + VEC_TILE_ROWS - 1) / VEC_TILE_ROWS;
    const bool shared = n_tiles > 1 && n_tiles <= 4;
    const uint32_t lines = !shared ? TILE_LINES : n_tiles < TILE_LINES ? TILE_LINES / 2 : 1;
    struct tile_args t = *args;
    uint32_t fetched = 0;

    for (uint32_t left = n_tiles; left > 0; left--) {
        /* 8 rows are 4 + 4, not 6 + 2: the last tile would have too few independent sums. */
        const uint32_t n = (rows + left - 1) / left;

        t.ahead_lines = args->ahead != NULL && fetched < TILE_LINES ? lines : 0;
        if (t.ahead_lines != 0) {
            t.ahead = shared ? args->ahead + (size_t)fetched * 64 * t.n_steps : t.w + 4096;
        }
        TILE_FN(tile_few_)(&t, n, wide);
        fetched += lines;
        t.acc += n * t.acc_stride;
        t.x = (const char *)t.x + n * t.x_stride;
        rows -= n;
    }
}

#ifdef TILE_TALL
TILE_SIZE(7, 2)
TILE_SIZE(8, 2)
TILE_SIZE(9, 2)
TILE_SIZE(10, 2)
TILE_SIZE(11, 2)
TILE_SIZE(12, 2)

static void (*const TILE_FN(tile_tall_sizes_)[6])(const struct tile_args *t) = {
    TILE_FN(tile_7x2_),  TILE_FN(tile_8x2_),  TILE_FN(tile_9x2_),
    TILE_FN(tile_10x2_), TILE_FN(tile_11x2_), TILE_FN(tile_12x2_),
};

/* 7 to 12 rows by 64 outputs: each piece of w is loaded once. The halves fetch half of `ahead` each. */
static void TILE_FN(tile_tall_)(const struct tile_args *t, uint32_t rows)
{
    for (uint32_t v = 0; v < 4; v += 2) {
        struct tile_args half = *t;

        half.acc += v * 16;
        half.w += (size_t)v * TILE_LANE;
        half.scale += v * 16;
        half.ahead_lines = t->ahead != NULL ? 1 : 0;
        if (half.ahead_lines != 0) {
            half.ahead += (size_t)v / 2 * 64 * t->n_steps;
        }
        TILE_FN(tile_tall_sizes_)[rows - 7](&half);
    }
}
#endif

#undef TILE_TALL
#undef TILE_NAME
#undef TILE_W
#undef TILE_LOAD
#undef TILE_LANE
#undef TILE_LINES
#undef TILE_X
#undef TILE_DOT
#undef TILE_SET1
#undef TILE_CAT_
#undef TILE_CAT
#undef TILE_FN
#undef TILE_UNROLL
#undef TILE_INLINE
#undef TILE_SIZE
#undef TILE_EACH
