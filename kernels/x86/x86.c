/* kernels/x86/x86.c - what each path is made of. */
#include "kernels/x86/x86.h"

void x86_ops_avx2(struct kern_ops *ops)
{
    ops->name = "avx2";
    x86_gemm_avx2(ops);
    x86_attention_avx2(ops);
    x86_elem_avx2(ops);
    x86_scan_avx2(ops);
}

void x86_ops_avx512(struct kern_ops *ops)
{
    ops->name = "avx512";
    x86_gemm_avx512(ops);
    x86_attention_avx512(ops);
    x86_elem_avx512(ops);
    x86_scan_avx512(ops);
}

void x86_ops_avx512bf16(struct kern_ops *ops)
{
    ops->name = "avx512bf16";
    x86_gemm_avx512bf16(ops);
    x86_attention_avx512bf16(ops);
}
