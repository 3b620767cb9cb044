/* base/compiler.h - the few GNU attributes and macros that the rest of the tree uses.
 *
 * ASSERT stays on in release builds: it guards what a caller promised, never what a peer or a file
 * sent (that is a status, base/err.h). ASSERT_HOT is for per-element checks and exists in debug
 * only. */
#ifndef BASE_COMPILER_H
#define BASE_COMPILER_H

#include <stddef.h>

#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define NORETURN               __attribute__((noreturn))
#define UNUSED                 __attribute__((unused))
#define WARN_UNUSED            __attribute__((warn_unused_result))
#define ALWAYS_INLINE          inline __attribute__((always_inline))
#define LIKELY(x)              __builtin_expect(!!(x), 1)
#define UNLIKELY(x)            __builtin_expect(!!(x), 0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)    ((a) < (b) ? (a) : (b))
#define MAX(a, b)    ((a) > (b) ? (a) : (b))

/* The struct that holds `member` at `ptr`. */
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

NORETURN void assert_failed(const char *expr, const char *file, int line);

#define ASSERT(x) (LIKELY(x) ? (void)0 : assert_failed(#x, __FILE__, __LINE__))
#ifdef NDEBUG
#define ASSERT_HOT(x) ((void)0)
#else
#define ASSERT_HOT(x) ASSERT(x)
#endif

#endif
