/* kernels/x86/elem_avx512.c - elem_tmpl.h for avx512. */
#define ISA_FN(name) name##_avx512
/* clang-format off: the vocabulary before the template */
#include "kernels/x86/elem_tmpl.h"
#include "kernels/x86/vec_avx512.h"
/* clang-format on */
