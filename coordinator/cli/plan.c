/* coordinator/cli/plan.c - `gantry plan MODEL`: what would run where, before anything is started.
 *
 * Reads config.json only, so that a model need not be downloaded to be planned for. */
#include "coordinator/cli/cli.h"

#include "base/cpu.h"
#include "coordinator/cli/device.h"
#include "coordinator/cli/hosts.h"
#include "coordinator/cli/rates.h"
#include "model/weights.h"
#include "partition/predict.h"

#include <stdio.h>
#include <string.h>

static const char about[] =
    "Shows how a model is cut over ranks and what each of them needs: weights as packed, KV cache, "
    "working memory. Only MODEL/config.json is read; nothing is started.\n"
    "\n"
    "Without --tp, --pp, --ranks and --memory the plan is for this machine: one rank whose threads "
    "share the weights, with the memory that is free now. With --memory alone: the fewest ranks of "
    "that size which hold the model. With --device cuda it is for GPUs, which need not be here if\n"
    "--memory says how much one has.\n"
    "\n"
    "With --rates it also says how fast it will be, and stages are cut by the speed and memory of "
    "the "
    "hosts of --hostfile. gantry measure makes such a file. Without --hostfile all ranks are "
    "taken to be on one host, as gantry serve would start them.";

static const char examples[] =
    "  gantry plan ./Llama-3.1-8B\n"
    "  gantry plan ./Llama-3.1-70B --memory 80GiB\n"
    "  gantry plan ./Llama-3.1-70B --ranks 16 --memory 64GiB --ctx 32768 --json\n"
    "  gantry plan ./Llama-3.1-70B --device cuda --memory 131GiB\n"
    "  gantry plan ./stories --tp 2 --pp 2 --stage-layers 3,2\n"
    "  gantry plan ./Llama-3.1-70B --memory 64GiB --hostfile hosts --replicas 2 --tp 4 --pp 2\n"
    "  gantry measure -o rates && gantry plan ./Llama-3.1-8B --rates rates\n";

struct places {
    const char *hostfile; /* NULL: not asked for */
    const char *rates;    /* NULL: not given */
    uint32_t replicas;
    uint32_t prompt; /* tokens; times are predicted for such a one; 0: 512 */
};

/* As many ranks as the hosts have slots for, where nothing else was said. */
static status take_hosts(const struct places *p, struct plan_request *r, struct err *err)
{
    uint32_t n_slots = 0, n_hosts = 0;

    if (p->hostfile == NULL || r->n_ranks != 0 || r->tp != 0 || r->pp != 0 ||
        r->n_stage_layers != 0) {
        return ST_OK;
    }
    const status st = hostfile_slots(p->hostfile, &n_slots, &n_hosts, err);
    r->n_ranks = st == ST_OK ? MAX(n_slots / p->replicas, 1u) : 0;
    return st;
}

static struct hosts_config hosts_of(const struct places *p, const struct plan *plan)
{
    return (struct hosts_config){ .hostfile = p->hostfile,
                                  .n_replicas = p->replicas,
                                  .tp = plan != NULL ? plan->tp : 0,
                                  .pp = plan != NULL ? plan->pp : 0,
                                  .alone = plan != NULL && plan->device == PLAN_CUDA };
}

/* What the hosts can do, for plan_create. */
static status take_rates(const struct places *p, struct cli_rates *rates, struct plan_request *r,
                         struct err *err)
{
    const struct cli_rates_config config = { .file = p->rates,
                                             .hosts = hosts_of(p, NULL),
                                             .has_memory = r->rank_memory_bytes != 0 };

    return cli_rates_open(&config, rates, &r->sites, err);
}

/* Which rank would be where. */
static status print_hosts(const struct places *p, const struct plan *plan, struct err *err)
{
    const struct hosts_config config = hosts_of(p, plan);
    struct hosts *hosts = NULL;
    struct buf text = BUF_INIT;
    status st = p->hostfile != NULL ? hosts_open(&config, &hosts, err) : ST_OK;

    if (st == ST_OK && hosts != NULL) {
        st = hosts_print(hosts, &text);
        if (st != ST_OK) {
            err_set(err, st, "no memory to print the hosts");
        } else if (fputs(text.data, stdout) < 0 || fflush(stdout) != 0 || ferror(stdout)) {
            st = err_set(err, ST_ERR_IO, "standard output cannot be written");
        }
    }
    buf_fini(&text);
    hosts_close(hosts);
    return st;
}

static int fail(const struct err *err)
{
    fprintf(stderr, "gantry plan: %s\n", err->text);
    return status_exit_code(err->code);
}

/* Nothing was said about where: this machine. One rank, because threads of a process share weights
 * without sending anything; or as few CUDA devices as hold the model. */
static status take_this_machine(const struct cli_device *d, struct plan_request *r, bool *here_p,
                                struct err *err)
{
    *here_p = false;
    if (r->tp != 0 || r->pp != 0 || r->n_ranks != 0 || r->n_stage_layers != 0 ||
        r->rank_memory_bytes != 0) {
        return ST_OK;
    }
    if (d->is_cuda && d->n_here == 0) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "--device cuda: %s; to plan for devices elsewhere say how much memory one "
                       "has, as in --memory 80GiB",
                       d->why);
    }
    r->n_ranks = d->is_cuda ? 0 : 1;
    r->rank_memory_bytes = d->is_cuda ? d->memory_bytes : cpu_memory_bytes();
    *here_p = !d->is_cuda;
    return ST_OK;
}

static status print(const struct plan *plan, const struct places *p, bool json, bool here,
                    struct err *err)
{
    struct buf out = BUF_INIT;
    status st = json ? plan_print_json(plan, p->prompt, &out) : plan_print(plan, &out);

    if (st == ST_OK && !json) {
        st = predict_print(plan, p->prompt, &out);
    }

    if (st == ST_OK && here && !json) {
        st = buf_printf(&out,
                        "This machine: %u core%s, %.1f GiB free. One rank uses all cores as "
                        "threads.\n",
                        cpu_count(), cpu_count() == 1 ? "" : "s",
                        (double)cpu_memory_bytes() / (double)(1 << 30));
    }
    if (st != ST_OK) {
        err_set(err, st, "no memory to print the plan");
    } else if (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0 ||
               ferror(stdout)) {
        st = err_set(err, ST_ERR_IO, "standard output cannot be written");
    }
    buf_fini(&out);
    return st;
}

/* The config, and where weights lie beside it, which of an fp8 checkpoint's matrices are none. */
static status describe(const char *dir, struct model_desc *desc, struct err *err)
{
    struct weights *w = NULL;
    const status st = model_desc_read(dir, desc, err);

    if (st == ST_OK && weights_open(dir, &w, NULL) == ST_OK) {
        weights_mixed_find(w, desc);
        weights_close(w);
    }
    return st;
}

int cli_plan(int argc, char **argv)
{
    struct plan_opts asked;
    bool json = false;
    struct places places = { .replicas = 1 };
    struct opt rows[PLAN_OPTS_ROWS + 5];
    const struct opts opts = {
        "gantry plan MODEL [options]", about, rows, ARRAY_LEN(rows), examples, 1, 1
    };
    const char *dir = NULL;
    uint32_t n_args = 0;
    struct model_desc desc;
    struct plan_request request;
    struct cli_device device;
    struct cli_rates rates;
    struct plan *plan = NULL;
    bool here = false;
    struct err err = ERR_INIT;

    memset(&asked, 0, sizeof(asked));
    memset(&rates, 0, sizeof(rates));
    plan_opts_rows(&asked, rows);
    rows[PLAN_OPTS_ROWS] =
        (struct opt){ OPT_FLAG, "json", NULL, &json, 0, 0, "the plan as JSON, every rank in it",
                      NULL };
    rows[PLAN_OPTS_ROWS + 1] =
        (struct opt){ OPT_STRING,
                      "hostfile",
                      "FILE",
                      &places.hostfile,
                      0,
                      0,
                      "also show which host each rank would run on (slots=N, rack=NAME)",
                      NULL };
    rows[PLAN_OPTS_ROWS + 2] = (struct opt){
        OPT_U32, "replicas", "N", &places.replicas, 1, 1024, "with --hostfile: copies of the model",
        NULL
    };
    rows[PLAN_OPTS_ROWS + 3] = (struct opt){
        OPT_STRING,
        "rates",
        "FILE",
        &places.rates,
        0,
        0,
        "measured rates of the hosts (gantry measure): predict times, cut stages by them",
        NULL
    };
    rows[PLAN_OPTS_ROWS + 4] =
        (struct opt){ OPT_U32,
                      "prompt",
                      "N",
                      &places.prompt,
                      1,
                      1 << 24,
                      "with --rates: times of a request of so many tokens (512)",
                      NULL };
    status st = opts_parse(&opts, argc, argv, &dir, &n_args, &err);
    if (st == ST_END) {
        return 0;
    }
    if (st == ST_OK && json && places.hostfile != NULL && places.rates == NULL) {
        st = err_set(&err, ST_ERR_ARG,
                     "--hostfile and --json go together with --rates only: the JSON has no places");
    }
    (void)(st || (st = cli_device_settle(&asked, &device, &err)) ||
           (st = plan_opts_to_request(&asked, &request, &err)) ||
           (st = describe(dir, &desc, &err)) || (st = take_hosts(&places, &request, &err)) ||
           (st = take_rates(&places, &rates, &request, &err)) ||
           (st = take_this_machine(&device, &request, &here, &err)) ||
           (st = plan_create(&desc, &request, &plan, &err)) ||
           (st = print(plan, &places, json, here, &err)) ||
           (st = json ? ST_OK : print_hosts(&places, plan, &err)));
    if (st == ST_OK && !json) {
        cli_device_say(&device);
    }
    plan_destroy(plan);
    cli_rates_close(&rates);
    return st == ST_OK ? 0 : fail(&err);
}
