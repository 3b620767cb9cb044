/* kernels/src.h - elements of a weight file's row, which may be unaligned. Private to kernels/. */
#ifndef KERNELS_SRC_H
#define KERNELS_SRC_H

#include "kernels/kern.h"
#include "kernels/math.h"

static inline size_t src_bytes(enum kern_src type)
{
    return type == KERN_SRC_F32 ? 4 : type == KERN_SRC_F8 ? 1 : 2;
}

/* Element i of a row that starts at `row`; fp8 without its scale. */
static inline float src_f32(enum kern_src type, const char *row, size_t i)
{
    uint16_t h;
    float x;

    if (type == KERN_SRC_F32) {
        memcpy(&x, row + i * 4, 4);
        return x;
    }
    if (type == KERN_SRC_F8) {
        return e4m3_to_f32((uint8_t)row[i]);
    }
    memcpy(&h, row + i * 2, 2);
    return type == KERN_SRC_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

#endif
