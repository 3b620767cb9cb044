/* kernels/cuda/plugin_main.cu - what the library exports (kernels/plugin.h).
 *
 * A profile carries the compute capability in its name: how a tensor core adds the products of one
 * instruction is fixed for a generation and nowhere written down, so generations are not promised to
 * agree. */
#include "kernels/cuda/stream.cuh"
#include "kernels/plugin.h"

#include <cstdio>

enum { DEVICES_MAX = 64, PROFILE_BYTES = 32, CAPABILITY_MIN = 80 };

static char profiles[DEVICES_MAX][KERN_FMTS]
                    [PROFILE_BYTES]; /* written by `open`, before it is used */

static status refuse(struct err *err, uint32_t device, const char *what, cudaError_t e)
{
    return cu_fail(err, ST_ERR_NOT_FOUND, "no CUDA device %u: %s: %s", device, what,
                   cudaGetErrorString(e));
}

static status open_device(uint32_t device, struct kern_ops *ops_p, struct err *err)
{
    struct kern_ops ops = {};
    int n = 0, major = 0, minor = 0, driver = 0;
    cudaError_t e = cudaDriverGetVersion(&driver);

    if (e == cudaSuccess && driver == 0) {
        return cu_fail(err, ST_ERR_NOT_FOUND, "no CUDA device %u: this machine has no CUDA driver",
                       device);
    }
    e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) {
        return refuse(err, device, "the driver does not answer", e);
    }
    if (device >= (uint32_t)n || device >= DEVICES_MAX) {
        return cu_fail(err, ST_ERR_NOT_FOUND, "no CUDA device %u: this machine shows %d", device,
                       n);
    }
    e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, (int)device);
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, (int)device);
    }
    if (e != cudaSuccess) {
        return refuse(err, device, "its compute capability is not told", e);
    }
    if (major * 10 + minor < CAPABILITY_MIN) {
        return cu_fail(err, ST_ERR_UNSUPPORTED,
                       "CUDA device %u has compute capability %d.%d, at least %d.%d is needed",
                       device, major, minor, CAPABILITY_MIN / 10, CAPABILITY_MIN % 10);
    }
    for (int fmt = 0; fmt < KERN_FMTS; fmt++) {
        static const char *const names[KERN_FMTS] = { "f32", "bf16", "fp8" };

        snprintf(profiles[device][fmt], PROFILE_BYTES, "cuda-sm%d-%s-v1", major * 10 + minor,
                 names[fmt]);
        ops.profile[fmt] = profiles[device][fmt];
    }
    ops.name = "cuda";
    ops.on_device = true;
    cu_ops_life(&ops);
    cu_ops_pack(&ops);
    cu_ops_elem(&ops);
    cu_ops_gemm(&ops);
    cu_ops_attention(&ops);
    cu_ops_scan(&ops);
    cu_ops_feed(&ops);
    cu_ops_peer(&ops);
    *ops_p = ops;
    return ST_OK;
}

extern "C" {
extern const struct kern_plugin gantry_cuda_plugin __attribute__((visibility("default")));
const struct kern_plugin gantry_cuda_plugin = { KERN_PLUGIN_ABI, sizeof(struct kern_ops),
                                                open_device };
}
