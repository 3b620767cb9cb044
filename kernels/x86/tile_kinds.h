/* kernels/x86/tile_kinds.h - the two tiles that gemm and attention scores use: tile_bf16 over pairs
 * and tile_f32. Needs vec_*.h before it. */
#include <string.h>

struct bf16_pair { /* two inputs, aligned to 2 bytes only: a leaf may begin at an odd input */
    uint16_t e[2];
};

static ALWAYS_INLINE vp pair_set1(const struct bf16_pair *p)
{
    uint32_t u;

    memcpy(&u, p, sizeof u);
    return vp_set1(u);
}

#define TILE_NAME           bf16
#define TILE_W              vp
#define TILE_LOAD(p)        vp_load(p)
#define TILE_LANE           64
#define TILE_LINES          4
#define TILE_X              struct bf16_pair
#define TILE_DOT(acc, x, w) vp_dot(acc, x, w)
#define TILE_SET1(p)        pair_set1(p)
#include "kernels/x86/tile.h"

#define TILE_NAME           f32
#define TILE_W              vf
#define TILE_LOAD(p)        vf_load((const float *)(const void *)(p))
#define TILE_LANE           64
#define TILE_LINES          4
#define TILE_X              float
#define TILE_DOT(acc, x, w) vf_fma(x, w, acc)
#define TILE_SET1(p)        vf_set1(*(p))
#include "kernels/x86/tile.h"
