/* partition/plan_opts.h - the command line options that make a plan_request.
 *
 * `gantry plan`, `gantry serve` and `gantry worker` take the same ones: plan_opts_rows fills their
 * rows of an option table, plan_opts_to_request checks and converts. plan_opts_args goes the other
 * way: the options that make another process come to exactly this plan (equal digest). */
#ifndef PARTITION_PLAN_OPTS_H
#define PARTITION_PLAN_OPTS_H

#include "base/opts.h"
#include "partition/plan.h"

/* Zero it first; what is not given stays zero (plan.h: choose). */
struct plan_opts {
    uint32_t tp, pp, ranks, ctx, kv_tokens, seqs, rows;
    uint64_t memory_bytes;
    const char *format;       /* "f32", "bf16", "fp8"; NULL: the checkpoint's; borrowed */
    const char *stage_layers; /* "3,2"; borrowed */
    const char *device;       /* "auto" (also if NULL), "cpu", "cuda", ...; borrowed */
    const char *data_plane;   /* "mpi", "nccl"; NULL: what the device has; borrowed */
    bool free_order, no_peer_sums;
};

enum { PLAN_OPTS_ROWS = 14 };

/* What --device says. This folder sees no devices: "auto" is for the command to find out, which
 * then says "cpu" or "cuda-sm90" in its place. As it stands "auto" plans for CPU. */
struct plan_device_word {
    bool is_auto;
    enum plan_device kind;
    uint32_t cuda_version; /* "cuda-sm80"; 0: not said */
    bool has_index;
    uint32_t index; /* "cuda:1" */
};
/* ST_ERR_ARG names the words that there are. */
status plan_device_word(const char *text, struct plan_device_word *word_p, struct err *err);

/* Fill rows[0 .. PLAN_OPTS_ROWS); they point into `o`, which must outlive the parse. */
void plan_opts_rows(struct plan_opts *o, struct opt *rows);
/* ST_ERR_ARG names the option. */
status plan_opts_to_request(const struct plan_opts *o, struct plan_request *request_p,
                            struct err *err);
/* "--tp", "4", ... into args[0 .. *n_args_p); strings live in `text` (reset first, and not touched
 * while args are in use). ST_ERR_LIMIT: args_max is too small (PLAN_OPTS_ARGS is enough). */
enum { PLAN_OPTS_ARGS = 2 * PLAN_OPTS_ROWS + 2 };
status plan_opts_args(const struct plan *plan, struct buf *text, const char **args,
                      uint32_t args_max, uint32_t *n_args_p);

#endif
