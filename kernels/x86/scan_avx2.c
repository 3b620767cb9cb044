/* kernels/x86/scan_avx2.c - scan_tmpl.h for avx2. The vocabulary comes before the template. */
#define ISA_FN(name) name##_avx2
#include "kernels/x86/vec_avx2.h"

#include "kernels/x86/scan_tmpl.h"
