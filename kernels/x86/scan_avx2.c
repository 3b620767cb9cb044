/* kernels/x86/scan_avx2.c - scan_tmpl.h for avx2. */
#define ISA_FN(name) name##_avx2
/* clang-format off: the vocabulary before the template */
#include "kernels/x86/scan_tmpl.h"
#include "kernels/x86/vec_avx2.h"
/* clang-format on */
