/* tests/gpu/nccl_try.c - nccl_try PLUGIN [RANKS]: NCCL itself between processes, by the table that the
 * worker uses (cluster/coll_nccl.h). A device for each rank where there are enough; else all on device
 * 0, each with a NCCL_HOSTID of its own, so that NCCL takes them for hosts and goes over sockets. That
 * is outside of what NCCL promises: what happened is printed, and only wrong bytes are a failure.
 *
 * Exit 0: gathered and exchanged, all bytes right; 77: no library, no device, or NCCL refused (printed);
 * 1: wrong bytes, or a rank that died. */
#include "cluster/coll_nccl.h"
#include "kernels/plugin.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 8, FLOATS = 4096, LIMIT_S = 40, REFUSED = 77 };

/* Shared by the processes. */
struct table {
    unsigned char id[COLL_NCCL_ID_BYTES];
    _Atomic int has_id; /* 1: made; -1: could not be */
};

struct rank {
    const struct coll_nccl_api *api;
    const struct kern_ops *ops;
    struct kern_stream *s;
    void *comm;
    uint32_t n, self;
    struct err err;
};

static int say(const struct rank *r, const char *what, int code)
{
    printf("rank %u: %s: NCCL: %s (%d) %s\n", r->self, what, r->api->error_text(code), code,
           r->comm != NULL ? r->api->last_error(r->comm) : "");
    fflush(stdout);
    return code;
}

static int settle(const struct rank *r, const char *what, int code)
{
    const struct timespec nap = { 0, 100000 };

    while (code == COLL_NCCL_OK || code == COLL_NCCL_BUSY) {
        code = r->api->comm_state(r->comm);
        if (code == COLL_NCCL_OK) {
            return code;
        }
        nanosleep(&nap, NULL);
    }
    return say(r, what, code);
}

static int join(struct rank *r, struct table *t)
{
    const struct timespec nap = { 0, 1000000 };
    int code = COLL_NCCL_OK;

    if (r->self == 0) {
        code = r->api->unique_id(t->id);
        t->has_id = code == COLL_NCCL_OK ? 1 : -1;
    }
    while (t->has_id == 0) {
        nanosleep(&nap, NULL);
    }
    if (t->has_id < 0) {
        return code != COLL_NCCL_OK ? say(r, "making an id", code) : REFUSED;
    }
    code = r->api->comm_init(&r->comm, r->n, t->id, r->self);
    return r->comm == NULL ? say(r, "joining", code) : settle(r, "joining", code);
}

static float value(uint32_t rank, uint32_t i)
{
    return (float)(rank * 100000 + i);
}

/* A gather, and a message round the ring; *right_p: all bytes are. */
static int exchange(struct rank *r, bool *right_p)
{
    const size_t bytes = FLOATS * sizeof(float);
    float *host = calloc((size_t)r->n + 1, bytes);
    void *mine = NULL, *all = NULL, *raw = r->ops->native(r->s);
    const uint32_t next = (r->self + 1) % r->n, before = (r->self + r->n - 1) % r->n;

    if (host == NULL || r->ops->mem_alloc(r->s, bytes, &mine, &r->err) != ST_OK ||
        r->ops->mem_alloc(r->s, bytes * (r->n + 1), &all, &r->err) != ST_OK) {
        printf("rank %u: %s\n", r->self, r->err.text);
        return REFUSED;
    }
    for (uint32_t i = 0; i < FLOATS; i++) {
        host[i] = value(r->self, i);
    }
    r->ops->copy_in(r->s, mine, host, bytes);
    int code = settle(r, "gather", r->api->all_gather(mine, all, bytes, r->comm, raw));
    if (code == COLL_NCCL_OK) {
        (void)r->api->group_start();
        (void)r->api->send(mine, bytes, next, r->comm, raw);
        (void)r->api->recv((char *)all + bytes * r->n, bytes, before, r->comm, raw);
        code = settle(r, "send and receive", r->api->group_end());
    }
    if (code != COLL_NCCL_OK) {
        return code;
    }
    r->ops->copy_out(r->s, host, all, bytes * (r->n + 1));
    if (r->ops->stream_sync(r->s, &r->err) != ST_OK) {
        printf("rank %u: %s\n", r->self, r->err.text);
        return REFUSED;
    }
    *right_p = true;
    for (uint32_t k = 0; k <= r->n; k++) {
        for (uint32_t i = 0; i < FLOATS; i++) {
            *right_p = *right_p && host[k * FLOATS + i] == value(k < r->n ? k : before, i);
        }
    }
    free(host);
    return COLL_NCCL_OK;
}

/* One process. Exit codes as the program's. */
static int play(struct rank *r, struct table *t, const char *plugin, bool apart)
{
    const struct kern_stream_config config = { 1, apart ? r->self : 0 };
    bool right = false;
    char name[32];

    if (!apart) {
        snprintf(name, sizeof(name), "gantry-try-%u", r->self);
        setenv("NCCL_HOSTID", name, 1);
    }
    if (coll_nccl_api_load(&r->api, &r->err) != ST_OK ||
        kern_ops_cuda_from(plugin, config.device, &r->ops, &r->err) != ST_OK ||
        r->ops->stream_create(&config, &r->s, &r->err) != ST_OK) {
        printf("rank %u: %s\n", r->self, r->err.text);
        t->has_id = t->has_id == 0 ? -1 : t->has_id;
        return REFUSED;
    }
    if (join(r, t) != COLL_NCCL_OK || exchange(r, &right) != COLL_NCCL_OK) {
        return REFUSED;
    }
    printf("rank %u of %u, NCCL %s, %s: %s\n", r->self, r->n, r->api->version,
           apart ? "a device each" : "all on device 0, a NCCL_HOSTID each",
           right ? "gathered and exchanged" : "FAILED: wrong bytes");
    fflush(stdout);
    return right ? 0 : 1;
}

static bool has_devices(const char *plugin, uint32_t n)
{
    /* Asked by a process of its own: one that has used CUDA must not fork. */
    const pid_t pid = fork();
    int code = 1;

    if (pid == 0) {
        const struct kern_ops *ops = NULL;
        struct err err = ERR_INIT;
        _exit(kern_ops_cuda_from(plugin, n - 1, &ops, &err) == ST_OK ? 0 : 1);
    }
    return pid > 0 && waitpid(pid, &code, 0) == pid && code == 0;
}

int main(int argc, char **argv)
{
    const uint32_t n = argc > 2 ? (uint32_t)atoi(argv[2]) : 2;
    struct table *t =
        mmap(NULL, sizeof(*t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[RANKS_MAX];
    int worst = 0;

    if (argc < 2 || n < 2 || n > RANKS_MAX || t == MAP_FAILED) {
        fprintf(stderr, "usage: nccl_try PLUGIN [RANKS, 2 to %d]\n", RANKS_MAX);
        return 2;
    }
    const bool apart = has_devices(argv[1], n);
    for (uint32_t i = 0; i < n; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            struct rank r = { .n = n, .self = i };
            alarm(LIMIT_S);
            const int code = play(&r, t, argv[1], apart);
            fflush(stdout);
            _exit(code); /* communicators end with their processes */
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        int code = 0;
        (void)waitpid(pids[i], &code, 0);
        if (WIFSIGNALED(code)) {
            printf("rank %u: ended by signal %d%s\n", i, WTERMSIG(code),
                   WTERMSIG(code) == SIGALRM ? " (out of time)" : "");
            worst = WTERMSIG(code) == SIGALRM && worst == 0 ? REFUSED
                    : WTERMSIG(code) == SIGALRM             ? worst
                                                            : 1;
        } else if (WEXITSTATUS(code) != 0 && worst != 1) {
            worst = WEXITSTATUS(code);
        }
    }
    printf("%s\n", worst == 0         ? "NCCL: ok"
                   : worst == REFUSED ? "NCCL: skipped: refused as printed above"
                                      : "NCCL: FAILED");
    return worst;
}
