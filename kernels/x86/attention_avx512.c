/* kernels/x86/attention_avx512.c - attention_tmpl.h for avx512. */
#define ISA_FN(name) name##_avx512
/* clang-format off: the vocabulary before the template */
#include "kernels/x86/attention_tmpl.h"
#include "kernels/x86/vec_avx512.h"
/* clang-format on */
