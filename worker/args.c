/* worker/args.c - the command line of `gantry worker`. */
#include "worker/args.h"

#include "base/cpu.h"
#include "base/log.h"
#include "base/opts.h"
#include "base/secret.h"
#include "cluster/network.h"
#include "partition/plan_opts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct raw {
    const char *network, *slots;
    struct plan_opts plan;
    const char *coordinator, *join, *secret_file, *token_file, *cpu_mask, *log_level;
    const char *prefix_cache, *self_test;
    uint32_t step_timeout_s;
};

static const char about[] =
    "One rank of a replica. Usually started for you: gantry serve writes this command line (see "
    "gantry serve --dry-run) and mpirun starts it once per rank.\n"
    "\n"
    "With --join the ranks of this MPI job become one more replica of a service that runs "
    "elsewhere: under another mpirun or srun, in another job or rack. It brings its own --tp, --pp "
    "and KV memory; build, model, weights, context and numeric profile must be the service's. "
    "When it is refused it ends with 6 and the coordinator's sentence (7: a wrong secret), when "
    "the "
    "service stops with 0.";

static const char examples[] =
    "  mpirun -n 4 gantry worker --join head:7001 --secret-file token ./Llama-3.1-8B --tp 2 --pp "
    "2\n"
    "  srun -n 8 gantry worker --join head:7001 --secret-file token ./Llama-3.1-70B\n";

static status parse(int argc, char **argv, struct worker_args *a, struct raw *raw, struct err *err)
{
    struct opt rows[PLAN_OPTS_ROWS + 18];
    const struct opt own[] = {
        { .kind = OPT_HEADING, .help = "Worker" },
        { OPT_STRING, "join", "HOST:PORT", &raw->join, 0, 0,
          "attach all ranks of this MPI job as one more replica of that service", NULL },
        { OPT_STRING, "secret-file", "FILE", &raw->secret_file, 0, 0,
          "with --join: file of mode 0600 with the service's token (RUN_DIR/token there)", NULL },
        { OPT_STRING, "coordinator", "HOST:PORT", &raw->coordinator, 0, 0,
          "control address of the coordinator", NULL },
        { OPT_STRING, "token-file", "FILE", &raw->token_file, 0, 0,
          "file of mode 0600 that holds the service's token", NULL },
        { OPT_U32, "replica", "N", &a->replica, 0, 65535, "which replica this is", NULL },
        { OPT_U32, "generation", "N", &a->generation, 0, 4294967295.0,
          "how often the replica has been started", NULL },
        { OPT_U32, "threads", "N", &a->threads, 0, 1024,
          "threads of this rank (0: the host's cores over its ranks)", NULL },
        { OPT_U32, "chunk", "N", &a->chunk, 0, 1 << 20,
          "prompt rows of one stream in one step (0: as many as a step has)", NULL },
        { OPT_U32, "queue", "N", &a->queue, 1, 1 << 20, "streams that may wait in the leader",
          NULL },
        { OPT_STRING, "prefix-cache", "on|off", &raw->prefix_cache, 0, 0,
          "keep KV of finished streams for those that begin alike (default on)", NULL },
        { OPT_STRING, "self-test", "quick|off", &raw->self_test, 0, 0,
          "of the links between the ranks, before they serve (default quick)", NULL },
        { OPT_U32, "step-timeout", "SECONDS", &raw->step_timeout_s, 1, 86400,
          "longest wait for other ranks inside a step", NULL },
        { OPT_U32, "attach-timeout", "SECONDS", &a->attach_timeout_s, 1, 86400,
          "longest wait for the coordinator at the start", NULL },
        { OPT_STRING, "slots", "FIRST:COUNT:TOTAL", &raw->slots, 0, 0,
          "keep to that part of the host's cores and devices: other replicas have the rest", NULL },
        { OPT_STRING, "network", "ADDRESS/BITS", &raw->network, 0, 0,
          "the network that ranks use among themselves, as in 10.80.0.0/16", NULL },
        { OPT_STRING, "cpu-mask", "PATH", &raw->cpu_mask, 0, 0,
          "use no better kernels than: scalar, avx2, avx512, avx512bf16, native", NULL },
        { OPT_STRING, "log-level", "LEVEL", &raw->log_level, 0, 0,
          "error, warn, info, debug or trace", NULL },
    };
    _Static_assert(sizeof(own) / sizeof(own[0]) == 18, "room in rows");

    plan_opts_rows(&raw->plan, rows);
    memcpy(rows + PLAN_OPTS_ROWS, own, sizeof(own));
    const struct opts opts = {
        .usage = "gantry worker MODEL --join HOST:PORT --secret-file FILE [options]",
        .about = about,
        .options = rows,
        .n_options = ARRAY_LEN(rows),
        .examples = examples,
        .n_args_min = 1,
        .n_args_max = 1
    };
    const char *model[1];
    uint32_t n = 0;
    const status st = opts_parse(&opts, argc, argv, model, &n, err);
    if (st == ST_OK) {
        a->model = model[0];
        a->coordinator = raw->join != NULL ? raw->join : raw->coordinator;
        a->join = raw->join != NULL;
    }
    return st;
}

static status apply_slots(const char *text, struct cpu_parts *slots_p, struct err *err)
{
    struct cpu_parts s;
    int used = 0;

    if (text == NULL) {
        return ST_OK;
    }
    if (sscanf(text, "%5u:%5u:%5u%n", &s.first, &s.count, &s.total, &used) != 3 ||
        text[used] != '\0' || s.count == 0 || s.first + s.count > s.total) {
        return err_set(
            err, ST_ERR_ARG,
            "--slots %.40s: wanted is FIRST:COUNT:TOTAL, with FIRST + COUNT at most TOTAL", text);
    }
    *slots_p = s;
    return cpu_take(&s, err);
}

/* MPI hears of it from its launcher; NCCL takes an interface's name, which may differ from host to host. */
static status apply_network(const char *text, struct err *err)
{
    struct network net;
    struct network_self self;
    char word[NETWORK_INTERFACE_BYTES + 1];
    status st = ST_OK;

    if (text == NULL) {
        return ST_OK;
    }
    (void)((st = network_parse(text, &net, err)) || (st = network_find(&net, &self, err)));
    if (st == ST_OK) {
        snprintf(word, sizeof(word), "=%s", self.interface);
        setenv("NCCL_SOCKET_IFNAME", word, 0);
    }
    return st;
}

static status apply(const struct raw *raw, struct err *err)
{
    enum log_level level = LOG_INFO;
    uint32_t mask = 0;
    status st = ST_OK;

    if (raw->log_level != NULL) {
        st = log_level_parse(raw->log_level, &level, err);
    }
    if (st == ST_OK && raw->cpu_mask != NULL) {
        st = cpu_mask_parse(raw->cpu_mask, &mask, err);
        if (st == ST_OK) {
            cpu_mask(mask);
        }
    }
    log_init(level, 2);
    return st;
}

status worker_args_parse(int argc, char **argv, struct worker_args *args_p, struct err *err)
{
    struct worker_args a = { .queue = 256,
                             .prefix_cache = true,
                             .self_test = true,
                             .attach_timeout_s = 60,
                             .token = BUF_INIT_MAX(1 << 20) };
    struct raw raw = { .step_timeout_s = 300 };
    struct plan_request request;
    status st = parse(argc, argv, &a, &raw, err);

    if (st != ST_OK) {
        return st;
    }
    const char *secret = raw.secret_file != NULL ? raw.secret_file : raw.token_file;
    if (raw.join != NULL && raw.coordinator != NULL) {
        return err_set(err, ST_ERR_ARG, "--join and --coordinator do not go together");
    }
    if (a.coordinator == NULL || secret == NULL) {
        return err_set(err, ST_ERR_ARG,
                       "--join and --secret-file are needed (see gantry worker --help); the "
                       "workers that gantry serve starts get --coordinator and --token-file");
    }
    (void)((st = apply(&raw, err)) || (st = apply_network(raw.network, err)) ||
           (st = apply_slots(raw.slots, &a.slots, err)) ||
           (st = plan_opts_to_request(&raw.plan, &request, err)) ||
           (st = plan_device_word(raw.plan.device, &a.device, err)) ||
           (st = opts_switch("prefix-cache", raw.prefix_cache, &a.prefix_cache, err)) ||
           (st = opts_either("self-test", raw.self_test, "quick", "off", &a.self_test, err)) ||
           (st = secret_read(secret, &a.token, err)));
    if (st != ST_OK) {
        buf_fini(&a.token);
        return st;
    }
    a.plan = raw.plan;
    a.step_timeout_s = raw.step_timeout_s;
    *args_p = a;
    return ST_OK;
}

void worker_args_fini(struct worker_args *args)
{
    buf_fini(&args->token);
}
