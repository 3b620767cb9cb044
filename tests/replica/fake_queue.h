/* tests/replica/fake_queue.h - private to fake_*.c: a queue of calls and the memory they work on. */
#ifndef TESTS_REPLICA_FAKE_QUEUE_H
#define TESTS_REPLICA_FAKE_QUEUE_H

#include "replica/fake_device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define FAKE_CHECK(ok, text)                                                                       \
    do {                                                                                           \
        if (!(ok)) {                                                                               \
            fprintf(stderr, "fake device, %s: %s\n", __func__, text);                              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct fake_stream;

/* One call with its arguments, as they were when it was queued; each kind uses what it needs. */
struct fake_task {
    struct fake_task *next;
    void (*run)(struct fake_stream *s, struct fake_task *t);
    void *p[5];
    uint32_t u[3];
    float f;
    size_t n;
    enum kern_fmt fmt;
    struct kern_mat mat;
    struct kern_embed embed;
    struct kern_rows rows;
    struct kern_kv kv;
    struct kern_rows_map map;
    struct kern_rope rope;
    struct kern_qkv g;
    void *copy, *scales; /* owned: host bytes that were taken when the call was queued */
    void (*call)(void *blob);
    _Alignas(16) unsigned char blob[FAKE_BLOB_BYTES];
};

struct fake_list {
    struct fake_task *first, **end;
};

struct fake_stream {
    const struct kern_ops *base_ops;
    struct kern_stream *base; /* lives where calls are run */
    struct kern_stream_config config;
    bool is_recording;
    struct fake_list recorded;
    bool was_polled; /* FAKE_LAZY: the next poll runs the queue */
    struct err failed;

    pthread_mutex_t lock; /* FAKE_THREAD: over what follows */
    pthread_cond_t changed;
    struct fake_list queue;
    bool is_busy, is_up, shall_end;
    uint64_t marked[KERN_MARKS], reached[KERN_MARKS]; /* how often queued, and come to */
    pthread_t thread;
};

static inline struct fake_stream *fake_stream_of(struct kern_stream *s)
{
    return (struct fake_stream *)(void *)s;
}

void fake_queue_begin(const struct kern_ops *base, enum fake_mode mode);
/* Slots of life, memory, waiting and recording. */
void fake_queue_fill(struct kern_ops *ops);
void fake_peer_fill(struct kern_ops *ops); /* fake_peer.c */
void fake_note_peer_sum(void);             /* counted when it is queued or recorded */

struct fake_task *fake_task_new(void (*run)(struct fake_stream *s, struct fake_task *t));
void fake_push(struct fake_stream *s, struct fake_task *t);
void *fake_copy(const void *src, size_t bytes);

bool fake_is_device(const void *p);
bool fake_is_pinned(const void *p);
/* The bytes behind device memory; NULL for NULL. */
void *fake_bytes(const void *device, const char *who);

#endif
