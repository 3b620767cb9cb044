/* coordinator/cli/device.h - which device a plan is for, where --device leaves it open.
 *
 * The coordinator computes nothing and must not hold a context on a device (some hundred MiB of
 * it): a child process looks, answers through a pipe and ends. */
#ifndef COORDINATOR_CLI_DEVICE_H
#define COORDINATOR_CLI_DEVICE_H

#include "partition/plan_opts.h"

struct cli_device {
    bool is_cuda;          /* what the plan is for */
    uint32_t n_here;       /* CUDA devices of this host */
    uint32_t cuda_version; /* of the first that is looked at */
    uint64_t memory_bytes; /* free on it; 0: none here */
    char name[64];
    char why[256]; /* none here: what is missing */
    char word[24]; /* backs opts->device where "auto" was settled */
};

/* Settle opts->device: "auto" (or nothing) becomes "cpu" or "cuda-smNN", "cuda" gets the compute
 * capability of the device that is here, if one is. Not an error: CUDA on a host without (it may be
 * planned for others); the caller knows. ST_ERR_ARG: not a device's word. */
status cli_device_settle(struct plan_opts *opts, struct cli_device *device_p, struct err *err);

/* One line on standard output: what the ranks compute on, and why. */
void cli_device_say(const struct cli_device *d);

#endif
