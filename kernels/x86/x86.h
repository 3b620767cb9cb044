/* kernels/x86/x86.h - each path overwrites the slots of a table that it does better. Call in rising
 * order; a function of an instruction set that the CPU lacks must not be called. */
#ifndef KERNELS_X86_X86_H
#define KERNELS_X86_X86_H

#include "kernels/kern.h"

void x86_ops_avx2(struct kern_ops *ops);
void x86_ops_avx512(struct kern_ops *ops);
void x86_ops_avx512bf16(struct kern_ops *ops);

/* Parts of the above, one file each. */
void x86_gemm_avx2(struct kern_ops *ops);
void x86_gemm_avx512(struct kern_ops *ops);
void x86_gemm_avx512bf16(struct kern_ops *ops);
void x86_attention_avx2(struct kern_ops *ops);
void x86_attention_avx512(struct kern_ops *ops);
void x86_attention_avx512bf16(struct kern_ops *ops);
void x86_elem_avx2(struct kern_ops *ops);
void x86_elem_avx512(struct kern_ops *ops);
void x86_scan_avx2(struct kern_ops *ops);
void x86_scan_avx512(struct kern_ops *ops);

#endif
