/* kernels/plugin.h - the CUDA table, from a library that is looked for at run time.
 *
 * gantry_cuda.so is built where nvcc is (kernels/cuda/) and found beside the running program, in
 * ../lib/gantry from there, or one folder up (a build tree's tests). Nothing else of Gantry links
 * CUDA: a machine without a device, or a build without nvcc, only lacks this table. */
#ifndef KERNELS_PLUGIN_H
#define KERNELS_PLUGIN_H

#include "kernels/kern.h"

enum { KERN_PLUGIN_ABI = 5 }; /* goes up with every change of kern.h that the library sees */

#define KERN_PLUGIN_FILE   "gantry_cuda.so"
#define KERN_PLUGIN_SYMBOL "gantry_cuda_plugin"

/* What the library exports under KERN_PLUGIN_SYMBOL. abi comes first, for ever. */
struct kern_plugin {
    uint32_t abi, ops_bytes; /* KERN_PLUGIN_ABI, sizeof(struct kern_ops) of its build */
    /* Fill the table for CUDA device `device`. ST_ERR_NOT_FOUND: no driver, no such device;
     * ST_ERR_UNSUPPORTED: too old for these kernels. */
    status (*open)(uint32_t device, struct kern_ops *ops_p, struct err *err);
};

/* The table for CUDA device `device`; its streams are created with the same number. Static storage,
 * and the library stays loaded. Call from one thread.
 *   ST_ERR_NOT_FOUND     no library (the sentence says where it was looked for), driver or device
 *   ST_ERR_UNSUPPORTED   the device is too old
 *   ST_ERR_MISMATCH      the library is of another build */
status kern_ops_cuda(uint32_t device, const struct kern_ops **ops_p, struct err *err);

/* As kern_ops_cuda, from the library at `path`. For tests. */
status kern_ops_cuda_from(const char *path, uint32_t device, const struct kern_ops **ops_p,
                          struct err *err);

#endif
