/* coordinator/cli/device.c - see device.h. */
#include "coordinator/cli/device.h"

#include "base/fd.h"

#include "kernels/plugin.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LOOK_MS = 30000, DEVICES_MAX = 64 }; /* a driver may take seconds to wake its devices */

/* What the child says, in one write. */
struct answer {
    uint32_t n, version;
    uint64_t memory_bytes;
    char name[64], why[256];
};

/* In the child: the device of that number, its memory, and how many there are. */
static void look(uint32_t index, struct answer *a)
{
    const struct kern_ops *ops = NULL;
    struct kern_stream *stream = NULL;
    struct kern_device info;
    struct err err = ERR_INIT;
    status st = kern_ops_cuda(index, &ops, &err);

    if (st == ST_OK) {
        st = ops->stream_create(&(struct kern_stream_config){ 1, index }, &stream, &err);
    }
    if (st == ST_OK) {
        st = ops->device_info(stream, &info, &err);
    }
    if (st != ST_OK) {
        snprintf(a->why, sizeof(a->why), "%.250s", err.text);
        return;
    }
    a->memory_bytes = info.mem_free_bytes;
    snprintf(a->name, sizeof(a->name), "%s", info.name);
    /* "cuda-sm90-bf16-v1": the table knows which numbers its kernels give. */
    (void)sscanf(ops->profile[KERN_BF16], "cuda-sm%u", &a->version);
    for (a->n = index + 1; a->n < DEVICES_MAX; a->n++) {
        if (kern_ops_cuda(a->n, &ops, NULL) != ST_OK) {
            break;
        }
    }
}

static bool read_answer(int fd, struct answer *a)
{
    struct pollfd p = { fd, POLLIN, 0 };
    ssize_t n = 0;
    int ready;

    do {
        ready = poll(&p, 1, LOOK_MS);
    } while (ready < 0 && errno == EINTR);
    if (ready == 1) {
        do {
            n = read(fd, a, sizeof(*a));
        } while (n < 0 && errno == EINTR);
    }
    return n == (ssize_t)sizeof(*a);
}

static void probe(uint32_t index, struct answer *a)
{
    struct answer got;
    int fds[2];

    memset(a, 0, sizeof(*a));
    snprintf(a->why, sizeof(a->why), "the process that looks for devices could not be started");
    if (pipe(fds) != 0) {
        return;
    }
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        memset(&got, 0, sizeof(got));
        look(index, &got);
        _exit(fd_write_all(fds[1], &got, sizeof(got)) == ST_OK ? 0 : 1);
    }
    close(fds[1]);
    if (pid > 0) {
        if (read_answer(fds[0], &got)) {
            *a = got;
        } else {
            snprintf(a->why, sizeof(a->why), "the CUDA driver did not answer within %d s",
                     LOOK_MS / 1000);
            kill(pid, SIGKILL);
        }
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    close(fds[0]);
}

status cli_device_settle(struct plan_opts *opts, struct cli_device *device_p, struct err *err)
{
    struct cli_device d;
    struct plan_device_word word;
    struct answer a;
    const status st = plan_device_word(opts->device, &word, err);

    if (st != ST_OK) {
        return st;
    }
    memset(&d, 0, sizeof(d));
    if (word.kind == PLAN_CUDA || word.is_auto) {
        probe(word.index, &a);
        d.n_here = a.n;
        d.cuda_version = word.cuda_version != 0 ? word.cuda_version : a.version;
        d.memory_bytes = a.memory_bytes;
        memcpy(d.name, a.name, sizeof(d.name));
        memcpy(d.why, a.why, sizeof(d.why));
    }
    d.is_cuda = word.kind == PLAN_CUDA || d.n_here != 0;
    *device_p = d;
    if (!d.is_cuda) {
        snprintf(device_p->word, sizeof(device_p->word), "cpu");
    } else if (d.cuda_version != 0) {
        snprintf(device_p->word, sizeof(device_p->word), "cuda-sm%u", d.cuda_version);
    } else {
        snprintf(device_p->word, sizeof(device_p->word), "cuda");
    }
    opts->device = device_p->word;
    return ST_OK;
}

void cli_device_say(const struct cli_device *d)
{
    if (!d->is_cuda) {
        printf("Device: cpu%s%s%s\n", d->why[0] != '\0' ? " (" : "", d->why,
               d->why[0] != '\0' ? ")" : "");
    } else if (d->n_here == 0) {
        printf("Device: %s, none on this host (%s)\n", d->word, d->why);
    } else {
        printf(
            "Device: %s, %u on this host, %s with %.1f GiB free; this path has not run on a device "
            "before (docs/gpu.md)\n",
            d->word, d->n_here, d->name, (double)d->memory_bytes / (double)(1 << 30));
    }
}
