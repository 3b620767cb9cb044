/* kernels/philox.h - the counter-based generator behind sampling: Philox4x32 with 10 rounds.
 *
 * Written from the definition in Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3" (SC 2011). A draw is a pure function of (seed, choice, position, token id): no state, so
 * no order of evaluation and no neighbour in the batch can matter. */
#ifndef KERNELS_PHILOX_H
#define KERNELS_PHILOX_H

#include "kernels/math.h"

#include <stdint.h>

#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u /* golden ratio */
#define PHILOX_W1 0xBB67AE85u /* sqrt(3) - 1 */
enum { PHILOX_ROUNDS = 10 };

KERN_HD static inline void philox4x32(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int i = 0; i < PHILOX_ROUNDS; i++) {
        const uint64_t p0 = (uint64_t)PHILOX_M0 * c[0], p1 = (uint64_t)PHILOX_M1 * c[2];
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        const uint32_t n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;

        c[0] = n0;
        c[1] = (uint32_t)p1;
        c[2] = n2;
        c[3] = (uint32_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
}

/* 23 bits and a half: in [2^-24, 1 - 2^-24], exact in f32, so never 0 and never 1. */
KERN_HD static inline float uniform_from_bits(uint32_t u)
{
    return ((float)(u >> 9) + 0.5f) * 0x1p-23f;
}

/* Standard Gumbel noise of one token id. */
KERN_HD static inline float gumbel_noise(uint64_t seed, uint32_t choice, uint32_t pos, uint32_t id)
{
    uint32_t c[4] = { choice, pos, id, 0 };

    philox4x32(c, seed);
    return -k_logf(-k_logf(uniform_from_bits(c[0])));
}

#endif
