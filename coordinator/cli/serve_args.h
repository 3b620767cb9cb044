/* coordinator/cli/serve_args.h - `gantry serve`: what was asked for, checked against the model and
 * the hosts, before anything is started. */
#ifndef COORDINATOR_CLI_SERVE_ARGS_H
#define COORDINATOR_CLI_SERVE_ARGS_H

#include "base/hash.h"
#include "base/log.h"
#include "cluster/launch.h"
#include "coordinator/cli/allocation.h"
#include "coordinator/cli/device.h"
#include "coordinator/cli/rates.h"
#include "model/tokenizer.h"

struct serve_args {
    const char *model;
    struct plan_opts plan;
    const char *hostfile, *listen, *mpirun, *mpirun_args, *run_dir, *cpu_mask, *token_file;
    const char *tls_cert, *tls_key, *tls_client_ca, *log_level, *advertise, *control_listen;
    uint32_t wall_margin_s; /* of a job with a time limit */
    uint32_t threads, queue, chunk, grace_s, start_timeout_s, external_ranks;
    const char *secret_file;
    bool external_only, mixed_profiles;
    uint32_t join_max, rejoin_s, replicas, retries, restarts, hang_timeout_s, canary_s;
    uint32_t announce_fd;          /* 0: none */
    const char *journal, *on_term; /* NULL: none; "drain" or "handover" */
    uint32_t resume_window_s, orphan_grace_s;
    bool handover;
    const char *prefix_cache; /* "on" or "off"; NULL: on */
    const char *self_test;    /* "quick" or "off"; NULL: quick */
    bool dry_run, external_local;
    bool replicas_given;
    const char *rates;    /* file of measured rates; NULL: none */
    const char *network;  /* "10.80.0.0/16"; NULL: any */
    const char *launcher; /* "mpirun" or "srun"; NULL: mpirun */
    enum launch_kind kind;
    enum log_level level;
};

/* What the ranks will run on, and what they will hold. */
struct serve_setup {
    struct plan *plan;     /* owned */
    struct tokenizer *tok; /* owned */
    char model_path[4096]; /* absolute: ranks have another working directory */
    uint32_t n_slots;      /* of the hostfile; 0: none given */
    uint32_t n_hosts;
    bool is_local;         /* every rank is on this host */
    struct allocation job; /* the scheduler's, around us; owned */
    bool has_digest;       /* of the weights, kept from an earlier run */
    struct hash128 digest;
    struct cli_device device;
    struct cli_rates rates; /* owned; the plan points into it */
    char device_word[16];   /* "cuda:1", where the user named one by its number; else empty */
};

/* ST_END: --help was printed. */
status serve_args_parse(int argc, char **argv, struct serve_args *a, struct err *err);
/* Reads the model's files and makes the plan; hosts, threads and replicas that were left open are
 * completed in `a` from the scheduler's allocation, if we are in one. On failure nothing is owned. */
status serve_setup_make(struct serve_args *a, struct serve_setup *s, struct err *err);
void serve_setup_fini(struct serve_setup *s);

/* How n replicas of tp x pp ranks are to be placed; hostfile NULL: they are not. */
struct hosts_config serve_hosts_config(const struct serve_args *a, const struct serve_setup *s,
                                       uint32_t n_replicas, enum plan_device device);

#endif
