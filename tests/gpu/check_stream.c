/* tests/gpu/check_stream.c - copies, pinned memory, and recorded steps: a recording sees what stands
 * in pinned memory at each launch and gives the bits of the eager ops. */
#include "tests/gpu/check.h"

enum { ROWS = 6, DIM = 256 };

static void run_copies(struct check *c)
{
    const size_t bytes = c->quick ? (size_t)1 << 20 : (size_t)70 << 20;
    uint32_t *a = check_host(bytes), *b = check_host(bytes);
    void *mem;

    for (size_t i = 0; i < bytes / 4; i++) {
        a[i] = check_u32(c);
    }
    mem = check_up(c, a, bytes);
    check_down(c, b, mem, bytes);
    check_equal(c, check_name("copy_in, copy_out of %zu bytes", bytes), a, b, bytes);
    check_drop(c, mem, bytes);
    free(a);
    free(b);
}

static void run_graph(struct check *c)
{
    const size_t bytes = ROWS * DIM * 4;
    float *w = check_floats(c, DIM, 1.0f), *eager = check_host(bytes), *got = check_host(bytes);
    float *in = NULL, *out = NULL, *dx = check_up(c, NULL, bytes), *dw = check_up(c, w, DIM * 4);
    float *dy = check_up(c, NULL, bytes);
    struct kern_graph *graph = NULL;
    struct err err = ERR_INIT;
    bool ok = c->ops->host_alloc(c->s, bytes, (void **)&in, &err) == ST_OK &&
              c->ops->host_alloc(c->s, bytes, (void **)&out, &err) == ST_OK;

    check_sync(c);
    if (!ok) {
        check_true(c, err.text, false);
        return;
    }
    ok = c->ops->graph_begin(c->s, &err) == ST_OK;
    c->ops->copy_in_later(c->s, dx, in, bytes);
    c->ops->rmsnorm(c->s, dy, KERN_F32, dx, dw, ROWS, DIM, 1e-5f);
    c->ops->add(c->s, dy, dy, dx, ROWS * DIM);
    c->ops->copy_out(c->s, out, dy, bytes);
    ok = ok && c->ops->graph_end(c->s, &graph, &err) == ST_OK;
    check_true(c, ok ? "a step is recorded" : err.text, ok);
    for (uint32_t i = 0; ok && i < 3; i++) {
        for (uint32_t j = 0; j < ROWS * DIM; j++) {
            in[j] = check_normal(c);
        }
        c->ops->copy_in(c->s, dx, in, bytes);
        c->ops->rmsnorm(c->s, dy, KERN_F32, dx, dw, ROWS, DIM, 1e-5f);
        c->ops->add(c->s, dy, dy, dx, ROWS * DIM);
        check_down(c, eager, dy, bytes);
        memset(out, 0xff, bytes);
        ok = c->ops->graph_launch(c->s, graph, &err) == ST_OK;
        while (ok && c->ops->stream_poll(c->s, &err) == ST_BUSY) {
        }
        check_sync(c);
        memcpy(got, out, bytes);
        check_equal(c, "  launched: the bits of the eager ops", got, eager, bytes);
    }
    c->ops->graph_destroy(c->s, graph);
    c->ops->host_free(c->s, in, bytes);
    c->ops->host_free(c->s, out, bytes);
    check_drop(c, dx, bytes);
    check_drop(c, dy, bytes);
    check_drop(c, dw, DIM * 4);
    free(w);
    free(eager);
    free(got);
}

void check_stream(struct check *c)
{
    run_copies(c);
    run_graph(c);
}
