/* kernels/x86/gemm_avx512bf16.c - gemm_tmpl.h for avx512bf16. */
#define VEC_HAS_BF16
#define ISA_FN(name) name##_avx512bf16
/* clang-format off: the vocabulary before the template */
#include "kernels/x86/gemm_tmpl.h"
#include "kernels/x86/vec_avx512.h"
/* clang-format on */
