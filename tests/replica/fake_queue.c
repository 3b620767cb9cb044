/* tests/replica/fake_queue.c - see fake_device.h: streams, memory and recordings of the device.
 *
 * Memory: one memfd mapped twice, once without rights (the addresses that are given out) and once
 * with (what ops work on). Pinned memory is a window of its own, so that it can be told from any
 * other. Both are handed out in a row and begin again when all was freed. */
#include "replica/fake_queue.h"

#include "base/cpu.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WINDOW_BYTES = 1 << 30 };

struct window {
    char *outside, *inside; /* the same where the host may look */
    size_t used;
    uint32_t n_live;
};

static struct {
    const struct kern_ops *base;
    enum fake_mode mode;
    struct window device, pinned;
    struct fake_counts counts;
    pthread_mutex_t lock; /* over windows and counts */
} fake = { .lock = PTHREAD_MUTEX_INITIALIZER };

struct kern_graph {
    struct fake_list list;
};

/* ---- memory ---- */

static void windows_open(void)
{
    const int fd = memfd_create("fake device", 0);

    FAKE_CHECK(fd >= 0 && ftruncate(fd, WINDOW_BYTES) == 0, "no memory file");
    fake.device.outside = mmap(NULL, WINDOW_BYTES, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    fake.device.inside =
        mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    fake.pinned.outside = mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FAKE_CHECK(fake.device.outside != MAP_FAILED && fake.device.inside != MAP_FAILED &&
                   fake.pinned.outside != MAP_FAILED,
               "no address space");
    fake.pinned.inside = fake.pinned.outside;
    close(fd);
}

static bool is_in(const struct window *w, const void *p)
{
    return (const char *)p >= w->outside && (const char *)p < w->outside + WINDOW_BYTES;
}

bool fake_is_device(const void *p)
{
    return is_in(&fake.device, p);
}

bool fake_is_pinned(const void *p)
{
    return is_in(&fake.pinned, p);
}

void *fake_bytes(const void *device, const char *who)
{
    if (device == NULL) {
        return NULL;
    }
    if (!fake_is_device(device)) {
        fprintf(stderr, "fake device: %s was given host memory as the device's\n", who);
        abort();
    }
    return fake.device.inside + ((const char *)device - fake.device.outside);
}

void *fake_device_bytes(const void *device)
{
    return fake_bytes(device, "a library");
}

/* An empty page between two pieces, so that runs past an end are seen in the sums at least. */
static void *take(struct window *w, size_t bytes)
{
    pthread_mutex_lock(&fake.lock);
    const size_t at = w->used;
    w->used += (bytes + 4096 + 4095) / 4096 * 4096;
    w->n_live++;
    FAKE_CHECK(w->used <= WINDOW_BYTES, "the window is full");
    pthread_mutex_unlock(&fake.lock);
    memset(w->inside + at, 0, bytes);
    return w->outside + at;
}

static void give(struct window *w, const void *mem)
{
    if (mem == NULL) {
        return;
    }
    FAKE_CHECK(is_in(w, mem), "freed where it was not taken");
    pthread_mutex_lock(&fake.lock);
    w->n_live--;
    w->used = w->n_live == 0 ? 0 : w->used;
    pthread_mutex_unlock(&fake.lock);
}

static status mem_alloc(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err UNUSED)
{
    FAKE_CHECK(!fake_stream_of(s)->is_recording, "mem_alloc inside a recording");
    *mem_p = take(&fake.device, bytes);
    return ST_OK;
}

static void mem_free(struct kern_stream *s UNUSED, void *mem, size_t bytes UNUSED)
{
    give(&fake.device, mem);
}

static status host_alloc(struct kern_stream *s UNUSED, size_t bytes, void **mem_p,
                         struct err *err UNUSED)
{
    *mem_p = take(&fake.pinned, bytes);
    return ST_OK;
}

static void host_free(struct kern_stream *s UNUSED, void *mem, size_t bytes UNUSED)
{
    give(&fake.pinned, mem);
}

/* ---- tasks ---- */

struct fake_task *fake_task_new(void (*run)(struct fake_stream *s, struct fake_task *t))
{
    struct fake_task *t = calloc(1, sizeof(*t));

    FAKE_CHECK(t != NULL, "no memory for a call");
    t->run = run;
    return t;
}

void *fake_copy(const void *src, size_t bytes)
{
    void *copy = malloc(bytes + 1);

    FAKE_CHECK(copy != NULL, "no memory for a copy");
    memcpy(copy, src, bytes);
    return copy;
}

static void task_free(struct fake_task *t)
{
    free(t->copy);
    free(t->scales);
    free(t);
}

static void append(struct fake_list *list, struct fake_task *t)
{
    if (list->end == NULL) {
        list->end = &list->first;
    }
    t->next = NULL;
    *list->end = t;
    list->end = &t->next;
}

static struct fake_task *pop(struct fake_list *list)
{
    struct fake_task *t = list->first;

    if (t != NULL) {
        list->first = t->next;
        list->end = list->first != NULL ? list->end : NULL;
    }
    return t;
}

static void list_free(struct fake_list *list)
{
    for (struct fake_task *t = pop(list); t != NULL; t = pop(list)) {
        task_free(t);
    }
}

static void queue(struct fake_stream *s, struct fake_task *t)
{
    pthread_mutex_lock(&s->lock);
    append(&s->queue, t);
    s->was_polled = false;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_lock(&fake.lock);
    fake.counts.ops++;
    pthread_mutex_unlock(&fake.lock);
}

void fake_push(struct fake_stream *s, struct fake_task *t)
{
    if (s->is_recording) {
        append(&s->recorded, t);
    } else {
        queue(s, t);
    }
}

static void run_call(struct fake_stream *s UNUSED, struct fake_task *t)
{
    t->call(t->blob);
}

void fake_device_queue(void *stream, void (*run)(void *blob), const void *blob, size_t bytes)
{
    struct fake_task *t = fake_task_new(run_call);

    FAKE_CHECK(bytes <= FAKE_BLOB_BYTES, "a call with too many arguments");
    t->call = run;
    memcpy(t->blob, blob, bytes);
    fake_push(stream, t);
}

/* ---- running ---- */

static void run_all(struct fake_stream *s)
{
    for (struct fake_task *t = pop(&s->queue); t != NULL; t = pop(&s->queue)) {
        t->run(s, t);
        task_free(t);
    }
}

static void *thread_main(void *arg)
{
    struct fake_stream *s = arg;

    cpu_float_env_set();
    FAKE_CHECK(s->base_ops->stream_create(&s->config, &s->base, &s->failed) == ST_OK, "no stream");
    pthread_mutex_lock(&s->lock);
    s->is_up = true;
    pthread_cond_broadcast(&s->changed);
    while (!s->shall_end) {
        struct fake_task *t = pop(&s->queue);
        if (t == NULL) {
            pthread_cond_wait(&s->changed, &s->lock);
            continue;
        }
        s->is_busy = true;
        pthread_mutex_unlock(&s->lock);
        t->run(s, t);
        task_free(t);
        pthread_mutex_lock(&s->lock);
        s->is_busy = false;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    s->base_ops->stream_destroy(s->base);
    return NULL;
}

static status stream_sync(struct kern_stream *stream, struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);

    FAKE_CHECK(!s->is_recording, "stream_sync inside a recording");
    pthread_mutex_lock(&fake.lock);
    fake.counts.syncs++;
    pthread_mutex_unlock(&fake.lock);
    if (fake.mode == FAKE_LAZY) {
        run_all(s);
        return ST_OK;
    }
    pthread_mutex_lock(&s->lock);
    while (s->queue.first != NULL || s->is_busy) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return ST_OK;
}

static status stream_poll(struct kern_stream *stream, struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);

    FAKE_CHECK(!s->is_recording, "stream_poll inside a recording");
    pthread_mutex_lock(&s->lock);
    const bool is_done = s->queue.first == NULL && !s->is_busy, again = s->was_polled;
    s->was_polled = true;
    pthread_mutex_unlock(&s->lock);
    if (!is_done && fake.mode == FAKE_LAZY && again) {
        run_all(s);
        return ST_OK;
    }
    return is_done ? ST_OK : ST_BUSY;
}

/* ---- marks ---- */

static void run_mark(struct fake_stream *s, struct fake_task *t)
{
    pthread_mutex_lock(&s->lock);
    s->reached[t->u[0]]++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void mark(struct kern_stream *stream, uint32_t mark)
{
    struct fake_stream *s = fake_stream_of(stream);
    struct fake_task *t = fake_task_new(run_mark);

    FAKE_CHECK(!s->is_recording && mark < KERN_MARKS, "a mark inside a recording, or none such");
    t->u[0] = mark;
    pthread_mutex_lock(&s->lock);
    s->marked[mark]++;
    pthread_mutex_unlock(&s->lock);
    queue(s, t);
}

static bool is_reached(struct fake_stream *s, uint32_t mark)
{
    return s->reached[mark] == s->marked[mark];
}

/* FAKE_LAZY: the queue up to the mark, and no more. */
static void run_to(struct fake_stream *s, uint32_t mark)
{
    while (!is_reached(s, mark)) {
        struct fake_task *t = pop(&s->queue);
        t->run(s, t);
        task_free(t);
    }
}

static status mark_wait(struct kern_stream *stream, uint32_t mark, struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);

    FAKE_CHECK(!s->is_recording, "mark_wait inside a recording");
    pthread_mutex_lock(&fake.lock);
    fake.counts.syncs++;
    pthread_mutex_unlock(&fake.lock);
    if (fake.mode == FAKE_LAZY) {
        run_to(s, mark);
        return ST_OK;
    }
    pthread_mutex_lock(&s->lock);
    while (!is_reached(s, mark)) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return ST_OK;
}

static status mark_poll(struct kern_stream *stream, uint32_t mark, struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);

    FAKE_CHECK(!s->is_recording, "mark_poll inside a recording");
    pthread_mutex_lock(&s->lock);
    const bool is_done = is_reached(s, mark), again = s->was_polled;
    s->was_polled = true;
    pthread_mutex_unlock(&s->lock);
    if (!is_done && fake.mode == FAKE_LAZY && again) {
        run_to(s, mark);
        return ST_OK;
    }
    return is_done ? ST_OK : ST_BUSY;
}

/* ---- life ---- */

static status stream_create(const struct kern_stream_config *config, struct kern_stream **stream_p,
                            struct err *err)
{
    struct fake_stream *s = calloc(1, sizeof(*s));

    FAKE_CHECK(s != NULL, "no memory for a stream");
    s->base_ops = fake.base;
    s->config = *config;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (fake.mode == FAKE_LAZY) {
        FAKE_CHECK(fake.base->stream_create(config, &s->base, err) == ST_OK, "no stream");
    } else {
        FAKE_CHECK(pthread_create(&s->thread, NULL, thread_main, s) == 0, "no thread");
        pthread_mutex_lock(&s->lock);
        while (!s->is_up) {
            pthread_cond_wait(&s->changed, &s->lock);
        }
        pthread_mutex_unlock(&s->lock);
    }
    *stream_p = (struct kern_stream *)(void *)s;
    return ST_OK;
}

static void stream_destroy(struct kern_stream *stream)
{
    struct fake_stream *s = fake_stream_of(stream);

    if (s == NULL) {
        return;
    }
    if (fake.mode == FAKE_LAZY) {
        s->base_ops->stream_destroy(s->base);
    } else {
        pthread_mutex_lock(&s->lock);
        s->shall_end = true;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    list_free(&s->queue);
    list_free(&s->recorded);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

static status device_info(struct kern_stream *s UNUSED, struct kern_device *info_p,
                          struct err *err UNUSED)
{
    *info_p = (struct kern_device){ .name = "fake", .mem_bytes = WINDOW_BYTES };
    return ST_OK;
}

static void *native(struct kern_stream *s)
{
    return s;
}

/* ---- recordings ---- */

static status graph_begin(struct kern_stream *stream, struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);

    FAKE_CHECK(!s->is_recording, "a recording inside a recording");
    s->is_recording = true;
    return ST_OK;
}

static status graph_end(struct kern_stream *stream, struct kern_graph **graph_p,
                        struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);
    struct kern_graph *graph = calloc(1, sizeof(*graph));

    FAKE_CHECK(s->is_recording && graph != NULL, "no recording to end");
    s->is_recording = false;
    graph->list = s->recorded;
    s->recorded = (struct fake_list){ NULL, NULL };
    pthread_mutex_lock(&fake.lock);
    fake.counts.graphs++;
    pthread_mutex_unlock(&fake.lock);
    *graph_p = graph;
    return ST_OK;
}

static status graph_launch(struct kern_stream *stream, struct kern_graph *graph,
                           struct err *err UNUSED)
{
    struct fake_stream *s = fake_stream_of(stream);

    FAKE_CHECK(!s->is_recording, "a launch inside a recording");
    pthread_mutex_lock(&s->lock);
    const bool is_idle = s->queue.first == NULL && !s->is_busy;
    pthread_mutex_unlock(&s->lock);
    for (const struct fake_task *t = graph->list.first; t != NULL; t = t->next) {
        struct fake_task *again = fake_task_new(t->run);
        *again = *t; /* recorded calls own no copies */
        queue(s, again);
    }
    pthread_mutex_lock(&fake.lock);
    fake.counts.launches++;
    fake.counts.gaps += is_idle;
    pthread_mutex_unlock(&fake.lock);
    return ST_OK;
}

static void graph_destroy(struct kern_stream *s UNUSED, struct kern_graph *graph)
{
    if (graph != NULL) {
        list_free(&graph->list);
        free(graph);
    }
}

/* ---- the table ---- */

void fake_queue_begin(const struct kern_ops *base, enum fake_mode mode)
{
    if (fake.device.outside == NULL) {
        windows_open();
    }
    FAKE_CHECK(fake.device.n_live == 0 && fake.pinned.n_live == 0, "memory was left behind");
    fake.base = base;
    fake.mode = mode;
    fake.counts = (struct fake_counts){ 0 };
}

void fake_note_peer_sum(void)
{
    pthread_mutex_lock(&fake.lock);
    fake.counts.peer_sums++;
    pthread_mutex_unlock(&fake.lock);
}

void fake_device_counts(struct fake_counts *counts_p)
{
    pthread_mutex_lock(&fake.lock);
    *counts_p = fake.counts;
    pthread_mutex_unlock(&fake.lock);
}

void fake_queue_fill(struct kern_ops *ops)
{
    ops->stream_create = stream_create;
    ops->stream_destroy = stream_destroy;
    ops->stream_sync = stream_sync;
    ops->stream_poll = stream_poll;
    ops->mark = mark;
    ops->mark_poll = mark_poll;
    ops->mark_wait = mark_wait;
    ops->mem_alloc = mem_alloc;
    ops->mem_free = mem_free;
    ops->host_alloc = host_alloc;
    ops->host_free = host_free;
    ops->device_info = device_info;
    ops->native = native;
    ops->graph_begin = graph_begin;
    ops->graph_end = graph_end;
    ops->graph_launch = graph_launch;
    ops->graph_destroy = graph_destroy;
}
