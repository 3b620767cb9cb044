/* kernels/x86/attention_avx512.c - attention_tmpl.h for avx512. The vocabulary comes before the
 * template. */
#define ISA_FN(name) name##_avx512
#include "kernels/x86/vec_avx512.h"

#include "kernels/x86/attention_tmpl.h"
