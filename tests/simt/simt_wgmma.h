/* tests/simt/simt_wgmma.h - what simt.cpp and simt_wgmma.cpp know of each other. */
#ifndef TESTS_SIMT_SIMT_WGMMA_H
#define TESTS_SIMT_SIMT_WGMMA_H

#include <cstddef>
#include <cstdint>

enum { SIMT_SHARED_BYTES = 227 << 10 };

extern uint32_t simt_barriers; /* that this block has passed */

/* A block with `smem` bytes of shared memory begins; this thread ends. */
void simt_wg_begin(size_t smem);
void simt_wg_end();

#endif
