/* kernels/x86/attention_avx512bf16.c - attention_tmpl.h for avx512bf16. The vocabulary comes before
 * the template. */
#define VEC_HAS_BF16
#define ISA_FN(name) name##_avx512bf16
#include "kernels/x86/vec_avx512.h"

#include "kernels/x86/attention_tmpl.h"
