/* kernels/rope.c - see rope.h.
 *
 * Everything is f64 with explicit fma and fixed polynomials (Taylor: more terms than a fitted one,
 * but nothing to trust), so the table has equal bits everywhere; each entry is rounded to f32 once.
 * Angles are at most n_pos (freq <= 1): below 2^20 the three-part reduction leaves an error of
 * about 1e-16. */
#include "kernels/rope.h"

#include "base/compiler.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define PIO2_1 0x1.921fb54442d18p+0 /* pi/2 = PIO2_1 + PIO2_2 + ... */
#define PIO2_2 0x1.1a62633145c07p-54
#define PIO2_3 (-0x1.f1976b7ed8fbbp-110)
#define TWO_PI 0x1.45f306dc9c883p-1 /* 2 / pi */
#define LN2_1  0x1.62e42fefa39efp-1
#define LN2_2  0x1.abc9e3b39803fp-56
#define LOG2E  0x1.71547652b82fep+0
#define MAGIC  6755399441055744.0 /* 1.5 * 2^52: adding it rounds to an integer */
#define PI     3.14159265358979323846

static const double inv_factorial[] = {
    1.0,
    1.0,
    1.0 / 2,
    1.0 / 6,
    1.0 / 24,
    1.0 / 120,
    1.0 / 720,
    1.0 / 5040,
    1.0 / 40320,
    1.0 / 362880,
    1.0 / 3628800,
    1.0 / 39916800,
    1.0 / 479001600,
    1.0 / 6227020800.0,
    1.0 / 87178291200.0,
    1.0 / 1307674368000.0,
    1.0 / 20922789888000.0,
    1.0 / 355687428096000.0,
};

/* sum of (-1)^j r^(2j) / (2j + odd)!, j from 0 to 8: cos r, or sin r / r. |r| <= pi/4. */
static double alternating(double r2, int odd)
{
    double p = inv_factorial[16 + odd];

    for (int j = 7; j >= 0; j--) {
        p = fma(-p, r2, inv_factorial[2 * j + odd]);
    }
    return p;
}

static void sin_cos(double x, double *sin_p, double *cos_p)
{
    const double t = fma(x, TWO_PI, MAGIC), n = t - MAGIC;
    const int64_t quadrant = (int64_t)n & 3;
    double r = fma(-n, PIO2_1, x), s, c;

    r = fma(-n, PIO2_2, r);
    r = fma(-n, PIO2_3, r);
    s = r * alternating(r * r, 1);
    c = alternating(r * r, 0);
    switch (quadrant) {
    case 0:
        *sin_p = s;
        *cos_p = c;
        break;
    case 1:
        *sin_p = c;
        *cos_p = -s;
        break;
    case 2:
        *sin_p = -s;
        *cos_p = -c;
        break;
    default:
        *sin_p = -c;
        *cos_p = s;
        break;
    }
}

/* log of a finite normal x > 0: x = 2^e m, m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s). */
static double natural_log(double x)
{
    uint64_t u;
    int64_t e;
    double m, s, s2, p = 1.0 / 23;

    memcpy(&u, &x, sizeof u);
    e = (int64_t)(u - 0x3fe6a09e667f3bcdULL) >> 52; /* bits of sqrt(1/2) */
    u -= (uint64_t)e << 52;
    memcpy(&m, &u, sizeof m);
    s = (m - 1.0) / (m + 1.0);
    s2 = s * s;
    for (int k = 21; k >= 1; k -= 2) {
        p = fma(p, s2, 1.0 / k);
    }
    return fma((double)e, LN2_1, fma((double)e, LN2_2, 2.0 * s * p));
}

/* e^y for -700 < y < 700. */
static double exponential(double y)
{
    const double t = fma(y, LOG2E, MAGIC), n = t - MAGIC;
    const uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double r = fma(-n, LN2_1, y), p = inv_factorial[15], scale;

    r = fma(-n, LN2_2, r);
    for (int k = 14; k >= 0; k--) {
        p = fma(p, r, inv_factorial[k]);
    }
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, in between blended. */
static double llama3_freq(const struct rope_params *p, double freq)
{
    const double wavelength = 2.0 * PI / freq;
    const double ctx = (double)p->original_ctx;
    double blend;

    if (wavelength < ctx / p->high_freq_factor) {
        return freq;
    }
    if (wavelength > ctx / p->low_freq_factor) {
        return freq / p->factor;
    }
    blend = (ctx / wavelength - p->low_freq_factor) / (p->high_freq_factor - p->low_freq_factor);
    return (1.0 - blend) * (freq / p->factor) + blend * freq;
}

static double frequency(const struct rope_params *p, double log_theta, uint32_t i)
{
    const double freq = exponential(-2.0 * i / p->head_dim * log_theta);

    switch (p->kind) {
    case ROPE_LINEAR:
        return freq / p->factor;
    case ROPE_LLAMA3:
        return llama3_freq(p, freq);
    case ROPE_PLAIN:
        break;
    }
    return freq;
}

void rope_table_fill(const struct rope_params *p, uint32_t n_pos, float *cos_table,
                     float *sin_table)
{
    const uint32_t half = p->head_dim / 2;
    const double log_theta = natural_log(p->theta);

    ASSERT(p->head_dim % 2 == 0 && p->theta > 0.0);
    for (uint32_t i = 0; i < half; i++) {
        const double freq = frequency(p, log_theta, i);

        for (uint32_t pos = 0; pos < n_pos; pos++) {
            double s, c;

            sin_cos(pos * freq, &s, &c);
            cos_table[(size_t)pos * half + i] = (float)c;
            sin_table[(size_t)pos * half + i] = (float)s;
        }
    }
}
