/* base/clock.h - time as an argument, so that a simulation can run the same code on a false clock.
 */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

/* No deadline. */
#define CLOCK_NEVER UINT64_MAX

struct clock {
    uint64_t (*now_ns)(void *self); /* monotonic nanoseconds from an arbitrary start */
    void *self;
};

/* CLOCK_MONOTONIC. Static storage; any thread. */
const struct clock *clock_real(void);

static inline uint64_t clock_now_ns(const struct clock *clock)
{
    return clock->now_ns(clock->self);
}

/* How long ago `then` was; 0 if it is later than now: `now` may have been read before what it is compared with
 * happened, and a moment that comes from a file may be any. */
static inline uint64_t clock_since(uint64_t now_ns, uint64_t then_ns)
{
    return now_ns > then_ns ? now_ns - then_ns : 0;
}

/* Wall time in microseconds since 1970, for messages to people and for ids; never for durations. */
uint64_t clock_wall_us(void);

#endif
