/* kernels/x86/gemm_avx512bf16.c - gemm_tmpl.h for avx512bf16. The vocabulary comes before the
 * template. */
#define VEC_HAS_BF16
#define ISA_FN(name) name##_avx512bf16
#include "kernels/x86/vec_avx512.h"

#include "kernels/x86/gemm_tmpl.h"
