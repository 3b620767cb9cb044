/* tests/simt/simt_dot.cpp - what a tensor core does inside one instruction, for mma and wgmma alike.
 *
 * By default 16 products are summed exactly and rounded once to f32: near what the hardware does, not
 * its bits. With SIMT_PRODUCTS=hopper as a published model has it for compute capability 9.0 (MMA-Sim, arXiv
 * 2511.10909; not seen on a device): products and c cut 25 bits below the largest exponent among
 * them, added exactly, cut to f32. That is slower, and shows whether tolerances bear cutting. */
#include "kernels/math.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

float simt_dot(float c, const uint16_t a[16], const uint16_t b[16]);

/* m 2^(e - bits), m >= 0 */
struct term {
    int64_t m;
    int e;
    bool minus;
};

static struct term term_of_product(uint16_t a, uint16_t b)
{
    const int ea = a >> 7 & 255, eb = b >> 7 & 255; /* 0: denormal, with the exponent of 1 */
    const int64_t ma = (a & 127) | (ea != 0 ? 128 : 0), mb = (b & 127) | (eb != 0 ? 128 : 0);

    /* 14 bits of fraction, here 25 */
    return { ma * mb << 11, (ea != 0 ? ea : 1) + (eb != 0 ? eb : 1) - 254, (a ^ b) >> 15 != 0 };
}

static struct term term_of_f32(float c)
{
    uint32_t bits;

    memcpy(&bits, &c, sizeof bits);
    const int e = bits >> 23 & 255;
    const int64_t m = (bits & 0x7fffffu) | (e != 0 ? 0x800000u : 0);

    return { m << 2, (e != 0 ? e : 1) - 127, bits >> 31 != 0 };
}

static float toward_zero(double x)
{
    const float f = (float)x;

    return std::fabs((double)f) > std::fabs(x) ? std::nextafter(f, 0.0f) : f;
}

static float as_published(float c, const uint16_t a[16], const uint16_t b[16])
{
    struct term terms[17];
    int top = -1000;
    int64_t sum = 0;

    for (int i = 0; i < 17; i++) {
        terms[i] = i < 16 ? term_of_product(a[i], b[i]) : term_of_f32(c);
        top = terms[i].m != 0 && terms[i].e > top ? terms[i].e : top;
    }
    for (const struct term &t : terms) {
        const int64_t m = top - t.e > 62 ? 0 : t.m >> (t.m != 0 ? top - t.e : 0);

        sum += t.minus ? -m : m;
    }
    return sum == 0 ? 0.0f : toward_zero(std::ldexp((double)sum, top - 25));
}

float simt_dot(float c, const uint16_t a[16], const uint16_t b[16])
{
    static const char *const word = getenv("SIMT_PRODUCTS");
    static const bool hopper = word != nullptr && strcmp(word, "hopper") == 0;
    double sum = 0.0;

    for (int k = 0; k < 16; k++) {
        sum += (double)bf16_to_f32(a[k]) * (double)bf16_to_f32(b[k]);
    }
    const double all = (double)c + sum;

    return hopper && std::isfinite(all) ? as_published(c, a, b) : (float)all;
}
