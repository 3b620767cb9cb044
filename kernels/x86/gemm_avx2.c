/* kernels/x86/gemm_avx2.c - gemm_tmpl.h for avx2. */
#define ISA_FN(name) name##_avx2
/* clang-format off: the vocabulary before the template */
#include "kernels/x86/gemm_tmpl.h"
#include "kernels/x86/vec_avx2.h"
/* clang-format on */
