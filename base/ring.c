/* base/ring.c - see ring.h.
 *
 * The descriptor is written and read under the mutex, exactly when the ring leaves and reaches
 * "empty", so "readable" and "something is queued" are the same thing for every poller. That is one
 * system call per burst, not per item. */
#include "base/ring.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct ring {
    int fd;
    uint32_t capacity;

    pthread_mutex_t lock; /* protects all below */
    uint32_t head, count;
    void *items[]; /* [capacity], borrowed; the oldest is items[head] */
};

status ring_create(uint32_t capacity, struct ring **ring_p, struct err *err)
{
    struct ring *ring;

    if (capacity == 0) {
        return err_set(err, ST_ERR_ARG, "a ring of capacity 0");
    }
    ring = calloc(1, sizeof(*ring) + (size_t)capacity * sizeof(ring->items[0]));
    if (ring == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a ring of %u items", capacity);
    }
    ring->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ring->fd < 0) {
        const int why = errno;
        free(ring);
        return err_set_errno(err, ST_ERR_LIMIT, why, "no descriptor for a ring");
    }
    ring->capacity = capacity;
    pthread_mutex_init(&ring->lock, NULL);
    *ring_p = ring;
    return ST_OK;
}

void ring_destroy(struct ring *ring)
{
    if (ring == NULL) {
        return;
    }
    pthread_mutex_destroy(&ring->lock);
    close(ring->fd);
    free(ring);
}

status ring_push(struct ring *ring, void *item)
{
    status st = ST_BUSY;

    ASSERT(item != NULL); /* NULL is ring_pop's word for "empty" */
    pthread_mutex_lock(&ring->lock);
    if (ring->count < ring->capacity) {
        const uint64_t at = ((uint64_t)ring->head + ring->count) % ring->capacity;

        ring->items[at] = item;
        if (ring->count++ == 0) {
            /* Cannot fail: the counter is 0 and the descriptor is ours. */
            const int rc = eventfd_write(ring->fd, 1);
            ASSERT(rc == 0);
        }
        st = ST_OK;
    }
    pthread_mutex_unlock(&ring->lock);
    return st;
}

void *ring_pop(struct ring *ring)
{
    void *item = NULL;

    pthread_mutex_lock(&ring->lock);
    if (ring->count > 0) {
        item = ring->items[ring->head];
        ring->head = ring->head + 1 == ring->capacity ? 0 : ring->head + 1;
        if (--ring->count == 0) {
            eventfd_t value;
            const int rc = eventfd_read(ring->fd, &value);
            ASSERT(rc == 0);
        }
    }
    pthread_mutex_unlock(&ring->lock);
    return item;
}

uint32_t ring_count(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    const uint32_t count = ring->count;
    pthread_mutex_unlock(&ring->lock);
    return count;
}

int ring_fd(const struct ring *ring)
{
    return ring->fd;
}
