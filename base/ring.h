/* base/ring.h - a bounded queue of pointers between threads, with a descriptor that wakes a
 * sleeper.
 *
 * Any thread pushes, one thread pops. When full, push returns ST_BUSY at once and the caller
 * decides (refuse, or drop, or wait): a ring never grows. `fd` becomes readable when something is
 * queued; ring_pop clears it when the ring runs empty. Mutex inside; no callback runs under it. */
#ifndef BASE_RING_H
#define BASE_RING_H

#include "base/err.h"

#include <stdint.h>

struct ring;

status ring_create(uint32_t capacity, struct ring **ring_p, struct err *err);
void ring_destroy(
    struct ring *ring); /* NULL is fine; items left inside are the caller's to free first */

status ring_push(struct ring *ring,
                 void *item);      /* ST_OK: the ring's reader owns it; ST_BUSY: full */
void *ring_pop(struct ring *ring); /* NULL: empty */
uint32_t ring_count(struct ring *ring);
int ring_fd(const struct ring *ring); /* borrowed eventfd, for poll() */

#endif
