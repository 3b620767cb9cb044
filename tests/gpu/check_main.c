/* tests/gpu/check_main.c - check_ops PLUGIN [SEED] [quick] [GROUP]: every op of the CUDA table against f64,
 * and equal bits over rows, neighbours, chunks, slices and recorded steps. Exit 0: all passed; 1: some
 * failed; 77: no device. */
#include "tests/gpu/check.h"

#include "kernels/plugin.h"

#include <math.h>
#include <stdarg.h>

void check_sync(struct check *c)
{
    struct err err = ERR_INIT;

    if (c->ops->stream_sync(c->s, &err) != ST_OK) {
        printf("FAILED %s\n", err.text);
        exit(1);
    }
}

void *check_up(struct check *c, const void *src, size_t bytes)
{
    struct err err = ERR_INIT;
    void *mem = NULL, *poison = NULL;

    if (c->ops->mem_alloc(c->s, bytes, &mem, &err) != ST_OK) {
        printf("FAILED %s\n", err.text);
        exit(1);
    }
    if (src == NULL) {
        poison = check_host(bytes);
        memset(poison, 0xff, bytes);
    }
    c->ops->copy_in(c->s, mem, src != NULL ? src : poison, bytes);
    free(poison);
    return mem;
}

void check_down(struct check *c, void *dst, const void *src, size_t bytes)
{
    c->ops->copy_out(c->s, dst, src, bytes);
    check_sync(c);
}

void check_drop(struct check *c, void *mem, size_t bytes)
{
    c->ops->mem_free(c->s, mem, bytes);
}

const char *check_name(const char *fmt, ...)
{
    static char name[128];
    va_list args;

    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return name;
}

static void verdict(struct check *c, const char *what, bool ok, const char *detail)
{
    c->n_run++;
    c->n_failed += !ok;
    printf("%-6s %-58s %s\n", ok ? "ok" : "FAILED", what, detail);
    fflush(stdout);
}

static void near(struct check *c, const char *what, double diff, double norm, double tolerance)
{
    const double error = sqrt(diff) / (norm > 0.0 ? sqrt(norm) : 1.0);
    char detail[64];

    snprintf(detail, sizeof detail, "%.2e <= %.0e", error, tolerance);
    verdict(c, what, error <= tolerance, detail); /* a NaN is not <= */
}

void check_near(struct check *c, const char *what, const float *out, const double *ref, size_t n,
                double tolerance)
{
    double diff = 0.0, norm = 0.0;

    for (size_t i = 0; i < n; i++) {
        diff += ((double)out[i] - ref[i]) * ((double)out[i] - ref[i]);
        norm += ref[i] * ref[i];
    }
    near(c, what, diff, norm, tolerance);
}

void check_near_bf16(struct check *c, const char *what, const uint16_t *out, const double *ref,
                     size_t n, double tolerance)
{
    double diff = 0.0, norm = 0.0;

    for (size_t i = 0; i < n; i++) {
        const double x = (double)bf16_to_f32(out[i]);

        diff += (x - ref[i]) * (x - ref[i]);
        norm += ref[i] * ref[i];
    }
    near(c, what, diff, norm, tolerance);
}

void check_equal(struct check *c, const char *what, const void *a, const void *b, size_t bytes)
{
    const char *p = a, *q = b;
    char detail[64] = "equal bits";
    size_t at = 0;

    while (at < bytes && p[at] == q[at]) {
        at++;
    }
    if (at < bytes) {
        snprintf(detail, sizeof detail, "byte %zu of %zu differs", at, bytes);
    }
    verdict(c, what, at == bytes, detail);
}

void check_true(struct check *c, const char *what, bool ok)
{
    verdict(c, what, ok, "");
}

/* In one process; or each in one of its own, where an error of the device must not end the others. */
static const struct {
    const char *name;
    void (*run)(struct check *c);
} groups[] = {
    { "elem", check_elem },     { "gemm", check_gemm }, { "attention", check_attention },
    { "scan", check_scan },     { "feed", check_feed }, { "peer", check_peer },
    { "stream", check_stream },
};

int main(int argc, char **argv)
{
    const struct kern_stream_config config = { 1, 0 };
    struct check c = { .random = 1 };
    struct kern_device device;
    struct err err = ERR_INIT;
    const char *only = NULL;
    status st;

    if (argc < 2) {
        fprintf(stderr, "usage: check_ops PLUGIN [SEED] [quick] [GROUP]\n");
        return 2;
    }
    c.random = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    for (int i = 3; i < argc; i++) {
        const bool quick = strcmp(argv[i], "quick") == 0;
        c.quick = c.quick || quick;
        only = quick ? only : argv[i];
    }
    c.plugin = argv[1];
    /* A kernel that is loaded late makes its device wait for all work, which check_peer cannot have. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    /* A queue of its own for each stream of check_peer: by default some share one. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
    st = kern_ops_cuda_from(argv[1], 0, &c.ops, &err);
    if (st == ST_OK) {
        st = c.ops->stream_create(&config, &c.s, &err);
    }
    if (st == ST_OK) {
        st = c.ops->device_info(c.s, &device, &err);
    }
    if (st != ST_OK) {
        printf("skipped: %s\n", err.text);
        return st == ST_ERR_NOT_FOUND ? 77 : 1;
    }
    printf("device %s, %u multiprocessors, profile %s, products by %s, seed %llu\n", device.name,
           device.n_units, c.ops->profile[KERN_BF16], device.products,
           (unsigned long long)c.random);
    for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
        if (only == NULL || strcmp(only, groups[i].name) == 0) {
            groups[i].run(&c);
        }
    }
    printf("%u checks, %u failed\n", c.n_run, c.n_failed);
    c.ops->stream_destroy(c.s);
    return c.n_failed != 0;
}
