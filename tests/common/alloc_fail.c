/* tests/common/alloc_fail.c - see alloc_fail.h. The linker sends each call of malloc(x) to
 * __wrap_malloc(x), and __real_malloc(x) to the C library or the sanitizer. */
#include "common/alloc_fail.h"

#include <errno.h>
#include <stddef.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
int __real_posix_memalign(void **data_p, size_t align, size_t size);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
int __wrap_posix_memalign(void **data_p, size_t align, size_t size);

static _Thread_local uint32_t left; /* allocations up to the failing one; 0: none fails */
static _Thread_local bool failed;

void alloc_fail_at(uint32_t n)
{
    left = n;
    failed = false;
}

bool alloc_fail_off(void)
{
    const bool was = failed;

    left = 0;
    failed = false;
    return was;
}

static bool fails(void)
{
    if (left == 0 || --left != 0) {
        return false;
    }
    failed = true;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(align, size);
}

int __wrap_posix_memalign(void **data_p, size_t align, size_t size)
{
    return fails() ? ENOMEM : __real_posix_memalign(data_p, align, size);
}
