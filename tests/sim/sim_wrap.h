/* tests/sim/sim_wrap.h - functions of the C library and of base/clock.c that the linker turns
 * aside (-Wl,--wrap), so that a history depends on nothing but its seed. */
#ifndef TESTS_SIM_WRAP_H
#define TESTS_SIM_WRAP_H

#include "base/clock.h"

#include <sys/types.h>
#include <time.h>

int __wrap_clock_gettime(clockid_t id, struct timespec *at);
int __real_clock_gettime(clockid_t id, struct timespec *at);
const struct clock *__wrap_clock_real(void);
ssize_t __wrap_getrandom(void *data, size_t len, unsigned flags);

#endif
