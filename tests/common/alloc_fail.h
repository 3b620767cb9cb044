/* tests/common/alloc_fail.h - make the n-th allocation fail, to walk every out-of-memory path.
 *
 *   for (uint32_t n = 1;; n++) {
 *       alloc_fail_at(n);
 *       st = x_create(..., &x, &err);
 *       if (!alloc_fail_off()) { break; }          // n is past the last allocation: it succeeded
 *       assert_int_equal(st, ST_ERR_NOMEM);
 *   }
 *
 * malloc, calloc, realloc, aligned_alloc and posix_memalign are wrapped by the linker in every test
 * program. Counted per thread: other threads' allocations neither count nor fail. Allocations
 * inside shared libraries (strdup in libc too) are not seen. */
#ifndef COMMON_ALLOC_FAIL_H
#define COMMON_ALLOC_FAIL_H

#include <stdbool.h>
#include <stdint.h>

/* The n-th allocation of this thread from now on returns NULL; n >= 1. */
void alloc_fail_at(uint32_t n);
/* Back to normal; true if an allocation was made to fail since alloc_fail_at. */
bool alloc_fail_off(void);

#endif
