/* coordinator/cli/serve_args.c - see serve_args.h. */
#include "coordinator/cli/serve_args.h"

#include "base/cpu.h"
#include "cluster/launch.h"
#include "model/weights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_ROWS_MAX = 64 };

static const char about[] =
    "Serves MODEL (a Hugging Face directory) over gRPC. Makes a plan, starts its ranks with "
    "mpirun, loads, and says \"ready\". On this machine nothing else is needed; with --hostfile "
    "the ranks are spread over its hosts. Ctrl-C lets running answers "
    "end (--grace) and leaves nothing behind; a second Ctrl-C does not wait.\n"
    "\n"
    "It listens on loopback. On any other address clients need a token: --token-file, or else the "
    "one in the run directory.";

static const char examples[] =
    "  gantry serve ./Llama-3.1-8B\n"
    "  gantry serve ./Llama-3.1-8B --tp 4\n"
    "  gantry serve ./Llama-3.1-70B --hostfile hosts --tp 4 --pp 2 --listen 0.0.0.0:50051 "
    "--token-file token\n"
    "  gantry serve ./stories --tp 2 --dry-run\n";

/* How many rows there are. */
static uint32_t rows_fill(struct serve_args *a, struct opt *rows)
{
    const struct opt own[] = {
        { .kind = OPT_HEADING, .help = "Service" },
        { OPT_STRING, "listen", "HOST:PORT", &a->listen, 0, 0,
          "where clients connect (default 127.0.0.1:50051; port 0: any), or unix:/PATH", NULL },
        { OPT_STRING, "token-file", "FILE", &a->token_file, 0, 0,
          "file of mode 0600; clients must know its first line", NULL },
        { OPT_STRING, "tls-cert", "FILE", &a->tls_cert, 0, 0, "certificate chain (PEM)", NULL },
        { OPT_STRING, "tls-key", "FILE", &a->tls_key, 0, 0, "its private key (PEM)", NULL },
        { OPT_STRING, "tls-client-ca", "FILE", &a->tls_client_ca, 0, 0,
          "clients must show a certificate signed by these (PEM)", NULL },
        { OPT_U32, "queue", "N", &a->queue, 1, 1 << 20,
          "streams open at a time; more are refused (default 256)", NULL },
        { OPT_U32, "grace", "SECONDS", &a->grace_s, 0, 86400,
          "how long running answers may go on at the end (default 10)", NULL },
        { OPT_U32, "wall-margin", "SECONDS", &a->wall_margin_s, 1, 86400,
          "inside a scheduler's job with a time limit: stop that long before its end (default 60)",
          NULL },
        { .kind = OPT_HEADING, .help = "Ranks" },
        { OPT_STRING, "hostfile", "FILE", &a->hostfile, 0, 0,
          "hosts and slots, as mpirun reads them (default: this host)", NULL },
        { OPT_STRING, "rates", "FILE", &a->rates, 0, 0,
          "measured rates of the hosts (gantry measure): predict times, and cut stages by the "
          "speed "
          "and memory of the hosts",
          NULL },
        { OPT_U32, "threads", "N", &a->threads, 1, 1024,
          "threads of each rank (default: a host's cores over its ranks)", NULL },
        { OPT_U32, "chunk", "N", &a->chunk, 1, 1 << 20, "prompt rows of one stream in one step",
          NULL },
        { OPT_STRING, "prefix-cache", "on|off", &a->prefix_cache, 0, 0,
          "keep KV of finished streams for those that begin alike (default on)", NULL },
        { OPT_STRING, "self-test", "quick|off", &a->self_test, 0, 0,
          "of the links between the ranks, before they serve (default quick)", NULL },
        { OPT_STRING, "cpu-mask", "PATH", &a->cpu_mask, 0, 0,
          "no better kernels than: scalar, avx2, avx512, avx512bf16, native", NULL },
        { OPT_STRING, "launcher", "mpirun|srun", &a->launcher, 0, 0,
          "what starts the ranks; srun inside a SLURM job only (default mpirun)", NULL },
        { OPT_STRING, "mpirun", "PATH", &a->mpirun, 0, 0, "that mpirun (default: from PATH)",
          NULL },
        { OPT_STRING, "mpirun-args", "\"...\"", &a->mpirun_args, 0, 0,
          "further options for mpirun or srun, split at spaces", NULL },
        { OPT_STRING, "advertise", "HOST", &a->advertise, 0, 0,
          "name or address by which ranks on other hosts reach this one", NULL },
        { OPT_STRING, "network", "ADDRESS/BITS", &a->network, 0, 0,
          "the network that ranks use among themselves and to this host, as in 10.80.0.0/16",
          NULL },
        { OPT_U32, "start-timeout", "SECONDS", &a->start_timeout_s, 1, 86400,
          "ranks must be ready within this (default 600)", NULL },
        { .kind = OPT_HEADING, .help = "Replicas and failures" },
        { OPT_U32, "replicas", "N", &a->replicas, 0, 1024,
          "copies of the model, each an MPI job of its own (default 1, inside an allocation as "
          "many "
          "as it holds, where --tp or --pp say how large one is; 0: as --external-only)",
          &a->replicas_given },
        { OPT_U32, "hang-timeout", "SECONDS", &a->hang_timeout_s, 1, 86400,
          "a rank that is silent or stuck for longer is taken for dead (default 5)", NULL },
        { OPT_U32, "canary", "SECONDS", &a->canary_s, 0, 86400,
          "try a replica at its start, and when it was idle for so long (default 10; 0: never)",
          NULL },
        { OPT_U32, "restarts", "N", &a->restarts, 0, 1 << 30,
          "starts in a row that may fail before a lost replica is given up (default 5)", NULL },
        { OPT_U32, "retries", "N", &a->retries, 0, 1 << 30,
          "replicas that may be lost under one request before it fails (default 3)", NULL },
        { .kind = OPT_HEADING, .help = "When this process dies, or a client's connection does" },
        { OPT_STRING, "journal", "DIR", &a->journal, 0, 0,
          "keep streams there; the next service with the same DIR goes on with them", NULL },
        { OPT_U32, "resume-window", "SECONDS", &a->resume_window_s, 0, 86400,
          "with --journal: how long an answer with a request id is kept without a client "
          "(default 60)",
          NULL },
        { OPT_U32, "orphan-grace", "SECONDS", &a->orphan_grace_s, 0, 86400,
          "with --journal: how long ranks wait for another service (default 60)", NULL },
        { OPT_STRING, "on-term", "drain|handover", &a->on_term, 0, 0,
          "with --journal: at the end streams end (default), or stay in it for the next service",
          NULL },
        { .kind = OPT_HEADING, .help = "Replicas that others start (gantry worker --join)" },
        { OPT_FLAG, "external-only", NULL, &a->external_only, 0, 0,
          "start no replica: wait for those that join", NULL },
        { OPT_U32, "join-max", "N", &a->join_max, 0, 1023,
          "replicas that may join at a time (default 64; 0: none)", NULL },
        { OPT_FLAG, "mixed-profiles", NULL, &a->mixed_profiles, 0, 0,
          "let replicas of other numeric profiles join: a stream that moves may go on with other "
          "bits, "
          "and says so",
          NULL },
        { OPT_U32, "rejoin-wait", "SECONDS", &a->rejoin_s, 0, 86400,
          "how long a stream waits for one that could take it to join (default 60)", NULL },
        { OPT_STRING, "secret-file", "FILE", &a->secret_file, 0, 0,
          "file of mode 0600; ranks must know its first line (default: drawn, RUN_DIR/token)",
          NULL },
        { .kind = OPT_HEADING, .help = "Other" },
        { OPT_STRING, "run-dir", "DIR", &a->run_dir, 0, 0,
          "token, endpoint.json and mpirun.log go there (default ~/.gantry/run/HOST-PID)", NULL },
        { OPT_FLAG, "dry-run", NULL, &a->dry_run, 0, 0,
          "print the plan and the mpirun command, start nothing", NULL },
        { OPT_STRING, "log-level", "LEVEL", &a->log_level, 0, 0,
          "error, warn (default), info, debug or trace", NULL },
        { OPT_U32, "external-ranks", "N", &a->external_ranks, 1, PLAN_RANKS_MAX,
          "start no ranks: N of them are started elsewhere and attach", NULL },
        { OPT_FLAG, "external-local", NULL, &a->external_local, 0, 0,
          "with --external-ranks: all of them are on this host and share its memory", NULL },
        { OPT_U32, "announce-fd", "N", &a->announce_fd, 3, 1 << 20,
          "with --external-ranks: write the ranks' command line to this descriptor", NULL },
        { OPT_STRING, "control-listen", "HOST:PORT", &a->control_listen, 0, 0,
          "where ranks attach (default: any port, loopback if all are on this host)", NULL },
    };

    _Static_assert(sizeof(own) / sizeof(own[0]) <= OWN_ROWS_MAX, "room in rows");
    plan_opts_rows(&a->plan, rows);
    memcpy(rows + PLAN_OPTS_ROWS, own, sizeof(own));
    return PLAN_OPTS_ROWS + ARRAY_LEN(own);
}

static status journal_args_check(struct serve_args *a, struct err *err)
{
    if (a->on_term != NULL && strcmp(a->on_term, "drain") != 0 &&
        strcmp(a->on_term, "handover") != 0) {
        return err_set(err, ST_ERR_ARG, "--on-term is \"%.40s\"; drain or handover is allowed",
                       a->on_term);
    }
    a->handover = a->on_term != NULL && strcmp(a->on_term, "handover") == 0;
    if (a->handover && a->journal == NULL) {
        return err_set(err, ST_ERR_ARG, "--on-term handover needs a --journal to hand over");
    }
    return ST_OK;
}

status serve_args_parse(int argc, char **argv, struct serve_args *a, struct err *err)
{
    struct opt rows[PLAN_OPTS_ROWS + OWN_ROWS_MAX];
    uint32_t n = 0;
    bool prefix_cache = true, self_test = true; /* only looked at: the workers get the words */

    *a = (struct serve_args){ .listen = "127.0.0.1:50051",
                              .queue = 256,
                              .grace_s = 10,
                              .start_timeout_s = 600,
                              .wall_margin_s = 60,
                              .replicas = 1,
                              .join_max = 64,
                              .rejoin_s = 60,
                              .retries = 3,
                              .restarts = 5,
                              .hang_timeout_s = 5,
                              .canary_s = 10,
                              .resume_window_s = 60,
                              .orphan_grace_s = 60,
                              .level = LOG_WARN };
    const uint32_t n_rows = rows_fill(a, rows);
    const struct opts opts = { .usage = "gantry serve MODEL [options]",
                               .about = about,
                               .options = rows,
                               .n_options = n_rows,
                               .examples = examples,
                               .n_args_min = 1,
                               .n_args_max = 1 };
    status st = opts_parse(&opts, argc, argv, &a->model, &n, err);
    if (st == ST_OK && a->log_level != NULL) {
        st = log_level_parse(a->log_level, &a->level, err);
    }
    if (st == ST_OK) {
        st = opts_switch("prefix-cache", a->prefix_cache, &prefix_cache, err);
    }
    if (st == ST_OK) {
        st = opts_either("self-test", a->self_test, "quick", "off", &self_test, err);
    }
    if (st == ST_OK) {
        st = journal_args_check(a, err);
    }
    if (st == ST_OK && a->launcher != NULL && strcmp(a->launcher, "srun") == 0) {
        a->kind = LAUNCH_SRUN;
    } else if (st == ST_OK && a->launcher != NULL && strcmp(a->launcher, "mpirun") != 0) {
        return err_set(err, ST_ERR_ARG, "--launcher %.40s: known are mpirun and srun", a->launcher);
    }
    if (st == ST_OK && (a->tls_cert == NULL) != (a->tls_key == NULL)) {
        return err_set(err, ST_ERR_ARG, "--tls-cert and --tls-key go together");
    }
    if (st == ST_OK && a->tls_client_ca != NULL && a->tls_cert == NULL) {
        return err_set(err, ST_ERR_ARG, "--tls-client-ca needs --tls-cert and --tls-key");
    }
    a->external_only = a->external_only || a->replicas == 0;
    if (st == ST_OK && a->external_only) {
        a->replicas = 0;
    }
    if (st == ST_OK && a->external_only && (a->external_ranks != 0 || a->join_max == 0)) {
        return err_set(err, ST_ERR_ARG,
                       "--external-only waits for replicas that join, it does not go together with "
                       "--external-ranks or --join-max 0");
    }
    if (st == ST_OK && a->replicas > 1 && a->external_ranks != 0) {
        return err_set(err, ST_ERR_ARG, "--replicas and --external-ranks do not go together");
    }
    return st;
}

/* ---- model and plan ---- */

/* The scheduler's nodes, where the user named no hosts. */
static status allocation_take(struct serve_args *a, struct serve_setup *s, struct err *err)
{
    struct plan_device_word word;
    status st = plan_device_word(a->plan.device, &word, err);

    if (st != ST_OK || a->hostfile != NULL || a->external_ranks != 0 || a->external_only) {
        return st;
    }
    const struct allocation_wish wish = { .uses_gpus = word.kind == PLAN_CUDA || word.is_auto,
                                          .wall_margin_s = a->wall_margin_s };
    st = allocation_open(&wish, &s->job, err);
    if (st == ST_OK && s->job.is_used) {
        s->n_slots = s->job.n_slots;
        a->hostfile = s->job.hostfile[0] != '\0' ? s->job.hostfile : NULL;
        a->threads = a->threads != 0 ? a->threads : s->job.threads;
    }
    return st;
}

static status hosts_read(struct serve_args *a, struct serve_setup *s, struct err *err)
{
    const status st = allocation_take(a, s, err);

    s->n_hosts = 1;
    s->is_local = true;
    if (st != ST_OK || a->hostfile == NULL) {
        return st;
    }
    s->is_local = false;
    return hostfile_slots(a->hostfile, &s->n_slots, &s->n_hosts, err);
}

/* Replicas of one host divide its slots, and its devices where each rank has one. */
static status check_shares(const struct serve_args *a, const struct serve_setup *s, struct err *err)
{
    const uint32_t n_ranks = s->plan->n_ranks;
    const uint64_t n = (uint64_t)n_ranks * a->replicas;

    if (s->job.is_used && s->n_slots < n) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u replicas of %u ranks need %u slots, SLURM job %s has %u; ask for more "
                       "tasks, or lower --replicas, --tp or --pp",
                       a->replicas, n_ranks, (unsigned)n, s->job.job.id, s->n_slots);
    }
    if (s->plan->device == PLAN_CUDA && a->replicas > 1 && s->device_word[0] == '\0' &&
        s->device.n_here < n) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u replicas of %u ranks need %u CUDA devices, this host has %u; lower "
                       "--replicas, --tp or --pp, or add hosts",
                       a->replicas, n_ranks, (unsigned)n, s->device.n_here);
    }
    return ST_OK;
}

/* Once the plan says how many ranks one has. */
static status replicas_settle(struct serve_args *a, const struct serve_setup *s, struct err *err)
{
    const bool is_sized = a->plan.tp != 0 || a->plan.pp != 0 || a->plan.ranks != 0;

    if (s->job.is_used && !a->replicas_given && is_sized) {
        a->replicas = allocation_replicas(&s->job, s->plan->n_ranks, s->plan->device == PLAN_CUDA);
    }
    if (a->external_only || a->external_ranks != 0) {
        return ST_OK;
    }
    if (a->hostfile == NULL) {
        return check_shares(a, s, err);
    }
    if (s->n_hosts < a->replicas && (!s->job.is_used || s->plan->device == PLAN_CUDA)) {
        return err_set(err, ST_ERR_LIMIT, "%u replicas need a host each at least, %s %s has %u",
                       a->replicas, s->job.is_used ? "SLURM job" : "hostfile",
                       s->job.is_used ? s->job.job.id : a->hostfile, s->n_hosts);
    }
    return ST_OK;
}

/* How many ranks, where nothing was said: one on this machine (its threads share the weights
 * without sending anything); all slots of a hostfile, a host each of an allocation. */
static void request_complete(const struct serve_args *a, const struct serve_setup *s,
                             struct plan_request *r)
{
    if (a->external_ranks != 0) {
        r->n_ranks = a->external_ranks;
    }
    const bool is_open = r->n_ranks == 0 && r->tp == 0 && r->pp == 0 && r->n_stage_layers == 0;
    if (a->external_only) {
        return; /* how replicas are cut, and what fits them, is theirs to say */
    }
    if (is_open && !(r->device == PLAN_CUDA && s->is_local)) {
        r->n_ranks = s->n_slots != 0 ? MAX(s->n_slots / a->replicas, 1u) : s->n_hosts;
    }
    if (r->rank_memory_bytes == 0 && r->device == PLAN_CPU) {
        r->rank_memory_bytes = s->job.slot_memory_bytes;
    }
    const bool is_here = s->is_local && (a->external_ranks == 0 || a->external_local);
    if (is_here && r->rank_memory_bytes == 0 && r->device == PLAN_CPU) {
        const uint32_t asked = MAX(r->tp, 1u) * MAX(r->pp, MAX(r->n_stage_layers, 1u));
        r->rank_memory_bytes = cpu_memory_bytes() / a->replicas / MAX(asked, MAX(r->n_ranks, 1u));
    }
}

/* A rank has a device of its own, so its memory is that of one device; where the user has put all
 * ranks on one by its number, they share it. Ranks on other hosts are taken to have the like of
 * this host's. */
static status request_device(const struct serve_args *a, const struct serve_setup *s,
                             struct plan_request *r, struct err *err)
{
    const struct cli_device *d = &s->device;
    const bool is_here = s->is_local && (a->external_ranks == 0 || a->announce_fd != 0);

    if (r->device != PLAN_CUDA || a->external_only) {
        return ST_OK;
    }
    if (is_here && d->n_here == 0) {
        return err_set(err, ST_ERR_UNSUPPORTED, "--device cuda: %s", d->why);
    }
    if (r->rank_memory_bytes == 0 && d->memory_bytes == 0) {
        return err_set(err, ST_ERR_ARG,
                       "there is no CUDA device here whose memory could be asked for (%s): say how "
                       "much a rank's device has, as in --memory 80GiB",
                       d->why);
    }
    if (r->rank_memory_bytes == 0) {
        const uint32_t asked = MAX(r->tp, 1u) * MAX(r->pp, MAX(r->n_stage_layers, 1u));
        const bool is_shared = s->is_local && s->device_word[0] != '\0';
        r->rank_memory_bytes = d->memory_bytes / (is_shared ? MAX(asked, MAX(r->n_ranks, 1u)) : 1u);
    }
    return ST_OK;
}

/* More ranks than devices only where the user put them all on one. */
static status check_devices(const struct serve_args *a, const struct serve_setup *s,
                            struct err *err)
{
    const bool is_here = s->is_local && a->external_ranks == 0 && !a->external_only;

    if (s->plan->device != PLAN_CUDA || !is_here || s->device_word[0] != '\0' ||
        s->plan->n_ranks <= s->device.n_here) {
        return ST_OK;
    }
    return err_set(err, ST_ERR_LIMIT,
                   "the plan has %u ranks and this host %u CUDA device%s; lower --tp and --pp, add "
                   "hosts, or put all ranks on one with --device cuda:0 --data-plane mpi",
                   s->plan->n_ranks, s->device.n_here, s->device.n_here == 1 ? "" : "s");
}

struct hosts_config serve_hosts_config(const struct serve_args *a, const struct serve_setup *s,
                                       uint32_t n_replicas, enum plan_device device)
{
    /* A hostfile of the user's inside an allocation: mpirun's slots are SLURM's, not the file's. */
    const bool foreign = !s->job.is_used && getenv("SLURM_JOB_ID") != NULL;

    return (struct hosts_config){ .hostfile = a->hostfile,
                                  .mpirun_args = a->mpirun_args,
                                  .n_replicas = n_replicas,
                                  .in_scheduler = foreign && a->kind != LAUNCH_SRUN,
                                  .shares = s->job.is_used,
                                  .alone = device == PLAN_CUDA };
}

/* What the hosts can do. Memory that was said, by the user or by a scheduler, counts; so does what this host
 * has now. */
static status rates_read(const struct serve_args *a, struct serve_setup *s, struct plan_request *r,
                         struct err *err)
{
    const struct cli_rates_config config = {
        .file = a->rates,
        .hosts = serve_hosts_config(a, s, MAX(a->replicas, 1u), r->device),
        .is_elsewhere = a->external_only || (a->external_ranks != 0 && !a->external_local),
        .has_memory = r->rank_memory_bytes != 0
    };

    return cli_rates_open(&config, &s->rates, &r->sites, err);
}

static status plan_make(const struct serve_args *a, const struct model_desc *desc,
                        struct serve_setup *s, struct err *err)
{
    struct plan_opts opts = a->plan;
    struct plan_device_word word;
    struct plan_request request;
    status st = plan_device_word(opts.device, &word, err);

    if (st == ST_OK && word.has_index) {
        snprintf(s->device_word, sizeof(s->device_word), "cuda:%u", word.index);
    }
    (void)(st || (st = cli_device_settle(&opts, &s->device, err)) ||
           (st = plan_opts_to_request(&opts, &request, err)) ||
           (st = request_device(a, s, &request, err)));
    if (st == ST_OK) {
        request_complete(a, s, &request);
        st = rates_read(a, s, &request, err);
    }
    if (st == ST_OK) {
        st = plan_create(desc, &request, &s->plan, err);
    }
    if (st == ST_OK) {
        st = check_devices(a, s, err);
    }
    if (st == ST_OK && s->n_slots != 0 && s->plan->n_ranks > s->n_slots) {
        st = err_set(err, ST_ERR_LIMIT,
                     "the plan has %u ranks and %s %s offers %u slots on %u host%s; add hosts or "
                     "%s, or lower "
                     "--tp and --pp",
                     s->plan->n_ranks, s->job.is_used ? "SLURM job" : "hostfile",
                     s->job.is_used ? s->job.job.id : a->hostfile, s->n_slots, s->n_hosts,
                     s->n_hosts == 1 ? "" : "s", s->job.is_used ? "tasks" : "slots");
    }
    if (st == ST_OK && a->external_ranks != 0 && s->plan->n_ranks != a->external_ranks) {
        st = err_set(err, ST_ERR_ARG, "the plan has %u ranks and %u will attach", s->plan->n_ranks,
                     a->external_ranks);
    }
    return st;
}

/* The weights are the ranks' to read; here only that all of them are there, so that what is missing
 * is said at once and by one process, and which of an fp8 checkpoint's matrices are none. */
static status weights_look(struct model_desc *desc, struct serve_setup *s, struct err *err)
{
    char cache[4096];
    struct weights *w = NULL;
    status st = weights_open(s->model_path, &w, err);

    if (st == ST_OK) {
        st = weights_check(w, desc, err);
    }
    if (st == ST_OK && weights_cache_dir(cache, sizeof(cache)) != NULL) {
        s->has_digest = weights_digest_cached(w, cache, &s->digest) == ST_OK;
    }
    weights_close(w);
    return st;
}

status serve_setup_make(struct serve_args *a, struct serve_setup *s, struct err *err)
{
    struct model_desc desc;

    memset(s, 0, sizeof(*s));
    char *path = realpath(a->model, NULL);
    if (path == NULL || strlen(path) >= sizeof(s->model_path)) {
        const int errnum = path == NULL ? errno : ENAMETOOLONG;
        free(path);
        return err_set_errno(err, ST_ERR_NOT_FOUND, errnum, "model directory %s", a->model);
    }
    strcpy(s->model_path, path);
    free(path);
    status st = model_desc_read(s->model_path, &desc, err);
    (void)(st || (st = weights_look(&desc, s, err)) ||
           (st = tokenizer_open(s->model_path, &s->tok, err)) || (st = hosts_read(a, s, err)) ||
           (st = plan_make(a, &desc, s, err)) || (st = replicas_settle(a, s, err)));
    if (st < 0) {
        serve_setup_fini(s);
    }
    return st;
}

void serve_setup_fini(struct serve_setup *s)
{
    plan_destroy(s->plan);
    cli_rates_close(&s->rates);
    tokenizer_close(s->tok);
    allocation_close(&s->job);
    s->plan = NULL;
    s->tok = NULL;
}
