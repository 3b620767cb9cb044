/* base/clock.c - see clock.h. */
#include "base/clock.h"

#include "base/compiler.h"

#include <time.h>

static uint64_t monotonic_ns(void *self UNUSED)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

const struct clock *clock_real(void)
{
    static const struct clock real = { monotonic_ns, 0 };
    return &real;
}

uint64_t clock_wall_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}
