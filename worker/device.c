/* worker/device.c - see device.h. */
#include "worker/device.h"

#include "base/log.h"
#include "kernels/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void choose_cpu(struct worker_device *d)
{
    struct err note = ERR_INIT;

    *d = (struct worker_device){ .ops = kern_ops_cpu(&note) };
    snprintf(d->text, sizeof(d->text), "%s", d->ops->name);
    if (note.text[0] != '\0') {
        log_warn("kernels", "%s", note.text);
        snprintf(d->text, sizeof(d->text), "%s (partly)", d->ops->name);
    }
}

/* This rank's number on its host. */
static uint32_t local_rank(void)
{
    /* A task of srun's has SLURM's; below mpirun that one is the daemon's. */
    const char *open_mpi = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    const char *text = open_mpi != NULL ? open_mpi : getenv("SLURM_LOCALID");
    const long n = text != NULL ? strtol(text, NULL, 10) : 0;

    return n > 0 && n < 1 << 16 ? (uint32_t)n : 0;
}

/* "cuda-sm90-bf16-v1" -> 90: the table knows which numbers its kernels give. */
static uint32_t version_of(const struct kern_ops *ops)
{
    static const char head[] = "cuda-sm";
    const char *profile = ops->profile[KERN_BF16];

    return profile != NULL && strncmp(profile, head, sizeof(head) - 1) == 0
               ? (uint32_t)strtoul(profile + sizeof(head) - 1, NULL, 10)
               : 0;
}

static status choose_cuda(const struct plan_device_word *word, uint32_t first,
                          struct worker_device *d, struct err *err)
{
    const uint32_t index = word->has_index ? word->index : first + local_rank();
    const struct kern_ops *ops = NULL;
    struct err why = ERR_INIT;

    if (kern_ops_cuda(index, &ops, &why) != ST_OK) {
        /* Whatever is missing, it is this machine that cannot: exit code 3. */
        return err_set(err, ST_ERR_UNSUPPORTED, "device cuda:%u: %.440s", index, why.text);
    }
    *d = (struct worker_device){ .ops = ops, .index = index, .cuda_version = version_of(ops) };
    if (word->cuda_version != 0 && word->cuda_version != d->cuda_version) {
        return err_set(err, ST_ERR_MISMATCH,
                       "device cuda:%u computes profile %s, the plan is for cuda-sm%u; serve with "
                       "--device cuda-sm%u",
                       index, ops->profile[KERN_BF16], word->cuda_version, d->cuda_version);
    }
    snprintf(d->text, sizeof(d->text), "%s, device %u", ops->name, index);
    return ST_OK;
}

status worker_device_choose(const struct plan_device_word *word, uint32_t first,
                            struct worker_device *device_p, struct err *err)
{
    struct worker_device d;
    struct err why = ERR_INIT;

    if (word->kind == PLAN_CUDA || word->is_auto) {
        const status st = choose_cuda(word, first, &d, &why);
        if (st == ST_OK) {
            *device_p = d;
            return ST_OK;
        }
        if (!word->is_auto) {
            return err_set(err, st, "%s", why.text);
        }
    }
    choose_cpu(&d);
    if (word->is_auto) {
        log_info("kernels", "no CUDA device is used: %s", why.text);
    }
    *device_p = d;
    return ST_OK;
}
