/* kernels/ref/ref_ops.c - the specification as a table. */
#include "kernels/cpu.h"
#include "kernels/ref/ref.h"

void cpu_ops_ref(struct kern_ops *ops)
{
    ops->name = "scalar";
    ops->embed = ref_embed;
    ops->rmsnorm = ref_rmsnorm;
    ops->gemm = ref_gemm;
    ops->add_bias = ref_add_bias;
    ops->add = ref_add;
    ops->qk_norm = ref_qk_norm;
    ops->rope = ref_rope;
    ops->kv_store = ref_kv_store;
    ops->attention = ref_attention;
    ops->silu_mul = ref_silu_mul;
    ops->scan = ref_scan;
}
