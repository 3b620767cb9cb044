/* worker/device.h - what this rank computes on: the CPU, or one of the host's CUDA devices. */
#ifndef WORKER_DEVICE_H
#define WORKER_DEVICE_H

#include "kernels/kern.h"
#include "partition/plan_opts.h"

struct worker_device {
    const struct kern_ops *ops;
    uint32_t index;        /* of a CUDA device, else 0 */
    uint32_t cuda_version; /* 90 for compute capability 9.0; 0 on CPU */
    char text[160];        /* for people: the path or the device */
};

/* By what --device said. A device by its number is that one for every rank of the host; otherwise
 * ranks take devices by their number on the host, from `first` on. "auto" takes the CPU where there is no device,
 * and says why in device_p->text.
 *   ST_ERR_UNSUPPORTED  CUDA was asked for; the sentence names what is missing
 *   ST_ERR_MISMATCH     the device is of another compute capability than was planned for */
status worker_device_choose(const struct plan_device_word *word, uint32_t first,
                            struct worker_device *device_p, struct err *err);

#endif
