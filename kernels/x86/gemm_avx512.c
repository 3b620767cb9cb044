/* kernels/x86/gemm_avx512.c - gemm_tmpl.h for avx512. The vocabulary comes before the template. */
#define ISA_FN(name) name##_avx512
#include "kernels/x86/vec_avx512.h"

#include "kernels/x86/gemm_tmpl.h"
