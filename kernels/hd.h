/* kernels/hd.h - marks functions of headers that are also compiled for a CUDA device, so that host
 * and device share one text of the arithmetic that must agree. */
#ifndef KERNELS_HD_H
#define KERNELS_HD_H

#if defined(__CUDACC__)
#define KERN_HD __host__ __device__
#else
#define KERN_HD
#endif

#endif
