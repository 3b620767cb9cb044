/* kernels/cpu.c - life and memory of a CPU stream.
 *
 * Large blocks (weights, KV) are mapped on 2 MiB boundaries and offered to transparent huge pages:
 * a decode step walks all weights once, and with 4 KiB pages the walk pays a TLB miss per page. */
#include "kernels/cpu.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

static void stream_destroy(struct kern_stream *s)
{
    if (s == NULL) {
        return;
    }
    team_destroy(s->team);
    free(s->scratch);
    free(s);
}

static status stream_create(const struct kern_stream_config *config, struct kern_stream **stream_p,
                            struct err *err)
{
    struct kern_stream *s;
    status st;

    if (config->n_threads == 0) {
        return err_set(err, ST_ERR_ARG, "a CPU stream needs at least 1 thread");
    }
    s = calloc(1, sizeof *s);
    if (s == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a CPU stream");
    }
    s->n_threads = config->n_threads;
    s->scratch =
        aligned_alloc(KERN_ALIGN, (size_t)config->n_threads * SCRATCH_FLOATS * sizeof(float));
    if (s->scratch == NULL) {
        stream_destroy(s);
        return err_set(err, ST_ERR_NOMEM, "no memory for the scratch of %u threads",
                       config->n_threads);
    }
    st = team_create(config->n_threads, &s->team, err);
    if (st != ST_OK) {
        stream_destroy(s);
        return st;
    }
    cpu_float_env_set();
    ASSERT(cpu_float_env_ok());
    *stream_p = s;
    return ST_OK;
}

static status stream_sync(struct kern_stream *s, struct err *err)
{
    (void)s; /* every op has finished when its call returns */
    (void)err;
    return ST_OK;
}

/* Map `bytes` (a multiple of HUGE_PAGE) on a HUGE_PAGE boundary: map one more, cut both ends. */
static void *map_aligned(size_t bytes)
{
    char *mem =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t head;

    if (mem == MAP_FAILED) {
        return NULL;
    }
    head = (HUGE_PAGE - (uintptr_t)mem % HUGE_PAGE) % HUGE_PAGE;
    if (head != 0) {
        munmap(mem, head);
    }
    if (head != HUGE_PAGE) {
        munmap(mem + head + bytes, HUGE_PAGE - head);
    }
    (void)madvise(mem + head, bytes, MADV_HUGEPAGE); /* a hint: the memory is good without */
    return mem + head;
}

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static status mem_alloc(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err)
{
    void *mem = NULL;

    (void)s;
    if (bytes <= SIZE_MAX / 2) {
        if (bytes >= HUGE_PAGE) {
            mem = map_aligned(round_up(bytes, HUGE_PAGE));
        } else {
            const size_t rounded = round_up(MAX(bytes, 1), KERN_ALIGN);

            mem = aligned_alloc(KERN_ALIGN, rounded);
            if (mem != NULL) {
                memset(mem, 0, rounded);
            }
        }
    }
    if (mem == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %zu bytes", bytes);
    }
    *mem_p = mem;
    return ST_OK;
}

static void mem_free(struct kern_stream *s, void *mem, size_t bytes)
{
    (void)s;
    if (mem != NULL && bytes >= HUGE_PAGE) {
        munmap(mem, round_up(bytes, HUGE_PAGE));
    } else {
        free(mem);
    }
}

static status host_alloc(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err)
{
    return mem_alloc(s, bytes, mem_p, err);
}

static status stream_poll(struct kern_stream *s, struct err *err)
{
    return stream_sync(s, err);
}

static status device_info(struct kern_stream *s, struct kern_device *info_p, struct err *err)
{
    (void)err;
    *info_p = (struct kern_device){ .name = "host memory", .n_units = s->n_threads };
    return ST_OK;
}

static void copy(struct kern_stream *s, void *dst, const void *src, size_t bytes)
{
    (void)s;
    if (bytes != 0) {
        memcpy(dst, src, bytes);
    }
}

static void gather(struct kern_stream *s, float *dst, const float *src, const uint32_t *rows,
                   uint32_t n_rows, uint32_t dim)
{
    (void)s;
    for (uint32_t i = 0; i < n_rows; i++) {
        memcpy(dst + (size_t)i * dim, src + (size_t)rows[i] * dim, dim * sizeof(float));
    }
}

void cpu_ops_life(struct kern_ops *ops)
{
    ops->stream_create = stream_create;
    ops->stream_destroy = stream_destroy;
    ops->stream_sync = stream_sync;
    ops->mem_alloc = mem_alloc;
    ops->mem_free = mem_free;
    ops->copy_in = copy;
    ops->copy_out = copy;
    ops->gather = gather;
    ops->profile[KERN_F32] = "cpu-f32-v1";
    ops->profile[KERN_BF16] = "cpu-bf16-v1";
    ops->profile[KERN_FP8] = "cpu-fp8-v1";
    ops->host_alloc = host_alloc;
    ops->host_free = mem_free;
    ops->copy_in_later = copy;
    ops->stream_poll = stream_poll;
    ops->device_info = device_info;
}
