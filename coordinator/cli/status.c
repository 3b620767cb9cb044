/* coordinator/cli/status.c - `gantry status`: what a service does now, for people or programs. */
#include "coordinator/cli/cli.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/signals.h"

#include "base/clock.h"
#include "model/json_memory.h"
#include "proto/msg.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { CALL_S = 5, RETRY_MS = 200, LOOK_S = 5, WATCH_MS = 1000, STATUS_ARENA_BYTES = 64 << 20 };

struct run {
    struct client client;
    struct client_opts client_opts;
    struct signals signals;
    bool watch, json, is_waiting;
    uint32_t wait_s;
    uint64_t wait_end_ns;
    struct rpc_timer timer;
    struct rpc_call *call;
    bool is_serving, is_ending;
    status st;
    char text[1100];
};

static const char about[] =
    "Shows a running service: its replica, its ranks with host and phase, tokens per second and "
    "how full the KV cache is. With --wait it says nothing and ends with 0 as soon as the service "
    "answers requests, which is what a script wants after gantry serve &. With --run-dir as well "
    "it "
    "also waits for the service to be started, anywhere that shares this directory.";

/* ---- table ---- */

enum { WAIT_SHOWN_US = 1000 * 1000 };

static void print_rank(const struct msg_rank_status *r)
{
    char loaded[32] = "-", waits[96] = "";

    if (r->weight_bytes != 0) {
        snprintf(loaded, sizeof(loaded), "%.0f%%",
                 100.0 * (double)MIN(r->loaded_bytes, r->weight_bytes) / (double)r->weight_bytes);
    }
    if (r->waited_us >= WAIT_SHOWN_US && strcmp(r->phase, "idle") != 0) {
        const int n = snprintf(waits, sizeof(waits), "  waits %.1f s in %s #%" PRIu64,
                               (double)r->waited_us / 1e6, r->op, r->op_seq);
        if (n > 0 && (size_t)n < sizeof(waits) && r->waits_for != 0) {
            snprintf(waits + n, sizeof(waits) - (size_t)n, " for rank %u", r->waits_for - 1);
        }
    }
    printf("  %4u %5u %5u  %-16s %7u  %-14s %10" PRIu64 " %7s %9.2fs  %s%s\n", r->rank, r->stage,
           r->slice, r->host, r->pid, r->phase, r->step, loaded, (double)r->heartbeat_age_us / 1e6,
           r->kernels, waits);
}

/* What had joined and is no more: its slot, until another takes it. */
static bool print_gone(const struct msg_replica_status *p)
{
    if (strcmp(p->state, "gone") != 0) {
        return false;
    }
    printf("replica %u.%u  gone  job %s: %s\n", p->replica, p->generation, p->job, p->detail);
    return true;
}

static void print_self_test(const struct msg_self_test *t)
{
    if (t->n_links == 0) {
        return;
    }
    printf("  %u links tested: round trips up to %.1f us (rank %u - %u), bandwidth from %.0f MiB/s "
           "(rank %u - %u)\n",
           t->n_links, (double)t->worst_latency.latency_us, t->worst_latency.a, t->worst_latency.b,
           (double)t->worst_bandwidth.mib_per_s, t->worst_bandwidth.a, t->worst_bandwidth.b);
    for (uint32_t i = 0; i < t->n_slow; i++) {
        const struct msg_link *l = &t->slow[i];
        printf("  slow link: rank %u - %u, %.1f us, %.0f MiB/s; usual %s are %.1f us, %.0f MiB/s\n",
               l->a, l->b, (double)l->latency_us, (double)l->mib_per_s,
               l->is_across ? "between hosts" : "on a host", (double)l->usual_latency_us,
               (double)l->usual_mib_per_s);
    }
}

/* Which way sums go: once, or per stage where stages differ. */
static void print_sums(const struct msg_replica_status *p)
{
    const char *before = "";

    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const struct msg_rank_status *r = &p->ranks[i];
        if (r->slice == 0 && r->sums[0] != '\0' && strcmp(r->sums, before) != 0) {
            printf("  sums inside a stage, from stage %u on: %s\n", r->stage, r->sums);
            before = r->sums;
        }
    }
}

static void print_table(const struct msg_status *m)
{
    printf("%s  model %s  profile %s  build %.20s  up %.0f s  streams %u of %u\n", m->state,
           m->model, m->profile, m->version, (double)m->uptime_us / 1e6, m->streams,
           m->queue_limit);
    if (m->journal[0] != '\0') {
        printf("journal: %s, %.1f MiB, %u complete answers kept\n", m->journal,
               (double)m->journal_bytes / 1048576.0, m->kept_answers);
    }
    for (uint32_t i = 0; i < m->n_replicas; i++) {
        const struct msg_replica_status *p = &m->replicas[i];
        if (print_gone(p)) {
            continue;
        }
        const double kv =
            p->kv_blocks_total != 0 ? 100.0 * p->kv_blocks_used / (double)p->kv_blocks_total : 0.0;
        printf("replica %u.%u  %s  tp %u x pp %u  step %" PRIu64 "  running %u  waiting %u  "
               "%.1f tokens/s  KV %u of %u blocks (%.0f%%), %u cached  step %.2f ms, kernels %.2f "
               "ms",
               p->replica, p->generation, p->state, p->tp, p->pp, p->step, p->running, p->waiting,
               p->tokens_per_second, p->kv_blocks_used, p->kv_blocks_total, kv, p->kv_blocks_cached,
               p->step_us / 1e3, p->step_kernel_us / 1e3);
        if (p->predicted_step_us > 0) {
            printf(", predicted %.2f ms", p->predicted_step_us / 1e3);
        }
        putchar('\n');
        if (p->hosts[0] != '\0') {
            printf("  hosts: %s\n", p->hosts);
        }
        if (p->joined) {
            printf("  joined: job %s, profile %s\n", p->job, p->profile);
        }
        printf("  prefix cache: %" PRIu64 " hits, %" PRIu64 " tokens not computed again\n",
               p->cache_hits, p->cache_tokens);
        if (p->losses != 0) {
            printf("  lost %u time%s, the last: %s\n", p->losses, p->losses == 1 ? "" : "s",
                   p->detail);
            if (p->waits[0] != '\0') {
                printf("  who waited for whom: %s\n", p->waits);
            }
        }
        print_self_test(&p->self_test);
        print_sums(p);
        printf("  rank stage slice  %-16s %7s  %-14s %10s %7s %10s  kernels\n", "host", "pid",
               "phase", "step", "loaded", "heard");
        for (uint32_t k = 0; k < p->n_ranks; k++) {
            print_rank(&p->ranks[k]);
        }
    }
}

/* ---- json ---- */

static json_t *rank_json(const struct msg_rank_status *r)
{
    char digest[24];

    snprintf(digest, sizeof(digest), "%016" PRIx64, r->step_digest);
    return json_pack("{s:I, s:I, s:I, s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:I, "
                     "s:s, s:s}",
                     "rank", (json_int_t)r->rank, "stage", (json_int_t)r->stage, "slice",
                     (json_int_t)r->slice, "host", r->host, "pid", (json_int_t)r->pid, "phase",
                     r->phase, "step", (json_int_t)r->step, "heartbeat_age_us",
                     (json_int_t)r->heartbeat_age_us, "loaded_bytes", (json_int_t)r->loaded_bytes,
                     "weight_bytes", (json_int_t)r->weight_bytes, "kernels", r->kernels, "op",
                     r->op, "op_seq", (json_int_t)r->op_seq, "waits_for",
                     (json_int_t)r->waits_for - 1, "waited_us", (json_int_t)r->waited_us,
                     "step_digest", digest, "sums", r->sums);
}

static json_t *link_json(const struct msg_link *l)
{
    return json_pack("{s:I, s:I, s:b, s:f, s:f}", "a", (json_int_t)l->a, "b", (json_int_t)l->b,
                     "across", (int)l->is_across, "latency_us", (double)l->latency_us, "mib_per_s",
                     (double)l->mib_per_s);
}

static json_t *self_test_json(const struct msg_self_test *t)
{
    json_t *slow = json_array();
    bool ok = true;

    for (uint32_t i = 0; i < t->n_slow; i++) {
        json_add(slow, link_json(&t->slow[i]), &ok);
    }
    return json_pack("{s:I, s:f, s:o, s:o, s:o}", "links", (json_int_t)t->n_links, "took_ms",
                     t->took_ms, "worst_latency", link_json(&t->worst_latency), "worst_bandwidth",
                     link_json(&t->worst_bandwidth), "slow", json_whole(slow, ok));
}

static json_t *replica_json(const struct msg_replica_status *p)
{
    json_t *ranks = json_array();
    bool ok = true;

    for (uint32_t i = 0; i < p->n_ranks; i++) {
        json_add(ranks, rank_json(&p->ranks[i]), &ok);
    }
    return json_pack(
        "{s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, "
        "s:f, s:I, s:s, s:s, s:o, s:b, s:s, s:s, s:s, s:o}",
        "replica", (json_int_t)p->replica, "generation", (json_int_t)p->generation, "state",
        p->state, "tp", (json_int_t)p->tp, "pp", (json_int_t)p->pp, "step", (json_int_t)p->step,
        "running", (json_int_t)p->running, "waiting", (json_int_t)p->waiting, "kv_blocks_used",
        (json_int_t)p->kv_blocks_used, "kv_blocks_total", (json_int_t)p->kv_blocks_total,
        "kv_block_tokens", (json_int_t)p->kv_block_tokens, "kv_blocks_cached",
        (json_int_t)p->kv_blocks_cached, "cache_hits", (json_int_t)p->cache_hits, "cache_tokens",
        (json_int_t)p->cache_tokens, "tokens_per_second", p->tokens_per_second, "step_us",
        p->step_us, "step_kernel_us", p->step_kernel_us, "predicted_step_us", p->predicted_step_us,
        "losses", (json_int_t)p->losses, "detail", p->detail, "waits", p->waits, "self_test",
        self_test_json(&p->self_test), "joined", p->joined, "profile", p->profile, "job", p->job,
        "hosts", p->hosts, "ranks", json_whole(ranks, ok));
}

static status print_json(const struct msg_status *m)
{
    json_t *replicas = json_array();
    bool ok = true;

    for (uint32_t i = 0; i < m->n_replicas; i++) {
        json_add(replicas, replica_json(&m->replicas[i]), &ok);
    }
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:I, s:I, s:o}", "state", m->state,
                  "model", m->model, "profile", m->profile, "version", m->version, "weights_digest",
                  m->weights_digest, "uptime_us", (json_int_t)m->uptime_us, "streams",
                  (json_int_t)m->streams, "queue_limit", (json_int_t)m->queue_limit, "journal",
                  m->journal, "kept_answers", (json_int_t)m->kept_answers, "journal_bytes",
                  (json_int_t)m->journal_bytes, "replicas", json_whole(replicas, ok));
    ok = json_dumpf(root, stdout, JSON_COMPACT) == 0;
    putchar('\n');
    json_decref(root);
    return ok ? ST_OK : ST_ERR_NOMEM;
}

/* ---- calls ---- */

static void ask(void *arg);

static void again(struct run *r, uint32_t after_ms)
{
    rpc_timer_set(r->client.loop, &r->timer, clock_now_ns(clock_real()) + after_ms * NS_PER_MS);
}

static void on_status(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct run *r = arg;
    struct arena arena = ARENA_INIT(STATUS_ARENA_BYTES);
    struct err err = ERR_INIT;
    struct msg_status m;

    const status st = msg_status_unpack(data, len, &arena, &m, &err);
    if (st < 0) {
        r->st = st;
        snprintf(r->text, sizeof(r->text), "%s", err.text);
    } else if (r->json) {
        r->st = print_json(&m);
        if (r->st != ST_OK) {
            snprintf(r->text, sizeof(r->text), "no memory to print it");
        }
    } else {
        if (r->watch && isatty(STDOUT_FILENO)) {
            fputs("\033[H\033[J", stdout);
        }
        print_table(&m);
    }
    if ((fflush(stdout) != 0 || ferror(stdout)) &&
        r->st == ST_OK) { /* the reader of a pipe has left */
        r->st = ST_ERR_IO;
        snprintf(r->text, sizeof(r->text), "standard output cannot be written");
    }
    arena_fini(&arena);
}

static void on_health(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct run *r = arg;
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;
    enum health_state state = HEALTH_UNKNOWN;

    if (msg_health_response_unpack(data, len, &arena, &state, &err) == ST_OK) {
        r->is_serving = state == HEALTH_SERVING;
    }
    arena_fini(&arena);
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct run *r = arg;

    r->call = NULL;
    if (r->is_ending || r->is_serving) {
        rpc_loop_stop(r->client.loop);
        return;
    }
    if (r->is_waiting) {
        if (clock_now_ns(clock_real()) + RETRY_MS * NS_PER_MS < r->wait_end_ns) {
            again(r, RETRY_MS);
            return;
        }
        r->st = ST_ERR_DEADLINE;
        snprintf(r->text, sizeof(r->text), "the service is not serving after %u s%s%s", r->wait_s,
                 st < 0 ? ": " : "", st < 0 ? text : "");
    } else if (r->st == ST_OK && st < 0) {
        r->st = st;
        snprintf(r->text, sizeof(r->text), "%s", text);
    }
    if (r->st == ST_OK && r->watch) {
        again(r, WATCH_MS);
        return;
    }
    rpc_loop_stop(r->client.loop);
}

static void ask(void *arg)
{
    static const struct rpc_client status_client = { on_status, NULL, on_done };
    static const struct rpc_client health_client = { on_health, NULL, on_done };
    struct run *r = arg;
    const uint64_t now = clock_now_ns(clock_real());
    struct err err = ERR_INIT;
    const struct rpc_call_config config = {
        .path = r->is_waiting ? "/grpc.health.v1.Health/Check" : "/gantry.v1.Cluster/GetStatus",
        .kind = RPC_UNARY,
        .data = "",
        .len = 0, /* both requests with nothing set */
        .deadline_ns =
            r->is_waiting ? MIN(r->wait_end_ns, now + 2 * NS_PER_S) : now + CALL_S * NS_PER_S,
        .client = r->is_waiting ? &health_client : &status_client,
        .arg = r,
    };

    const status st = rpc_call_start(r->client.channel, &config, &r->call, &err);
    if (st < 0) {
        r->st = st;
        snprintf(r->text, sizeof(r->text), "%s", err.text);
        rpc_loop_stop(r->client.loop);
    }
}

static void on_signal(void *arg)
{
    struct run *r = arg;

    r->is_ending = true;
    if (!r->watch) {
        r->st = ST_ERR_CANCELLED;
        snprintf(r->text, sizeof(r->text), "interrupted");
    }
    rpc_timer_set(r->client.loop, &r->timer, CLOCK_NEVER);
    if (r->call != NULL) {
        rpc_call_cancel(r->call);
    } else {
        rpc_loop_stop(r->client.loop);
    }
}

static status parse(struct run *r, int argc, char **argv, struct err *err)
{
    struct opt rows[4 + CLIENT_OPT_ROWS] = {
        { OPT_FLAG, "watch", NULL, &r->watch, 0, 0, "again every second, until Ctrl-C", NULL },
        { OPT_U32, "wait", "SECONDS", &r->wait_s, 1, 86400,
          "say nothing and end with 0 as soon as the service is serving", &r->is_waiting },
        { OPT_FLAG, "json", NULL, &r->json, 0, 0, "one JSON object", NULL },
        { .kind = OPT_HEADING, .help = "Service" },
    };

    client_opts_rows(&r->client_opts, rows + 4);
    const struct opts opts = { .usage = "gantry status [options]",
                               .about = about,
                               .options = rows,
                               .n_options = ARRAY_LEN(rows),
                               .examples = "  gantry status --connect 127.0.0.1:50051\n"
                                           "  gantry status --run-dir gantry-4711 --wait 3600\n"
                                           "  gantry status --wait 60 && gantry generate \"Hi\"\n",
                               .n_args_min = 0,
                               .n_args_max = 0 };
    uint32_t n = 0;
    return opts_parse(&opts, argc, argv, NULL, &n, err);
}

static status look(struct run *r, struct err *err)
{
    *err = (struct err)ERR_INIT;
    r->st = ST_OK;
    status st = client_open(&r->client, &r->client_opts, err);
    if (st != ST_OK) {
        return st;
    }
    r->timer.fn = ask;
    r->timer.arg = r;
    st = signals_start(&r->signals, r->client.loop, on_signal, r, err);
    if (st == ST_OK) {
        again(r, 0);
        rpc_loop_run(r->client.loop);
        signals_stop(&r->signals);
    }
    if (st == ST_OK && r->st < 0) {
        st = err_set(err, r->st, "%s", r->text);
    }
    client_close(&r->client);
    return st;
}

/* Naps where nothing is there yet. */
static bool may_look_again(const struct run *r, status st, uint64_t end_ns)
{
    const bool is_late = clock_now_ns(clock_real()) + RETRY_MS * NS_PER_MS >= end_ns;

    if (!r->is_waiting || r->client_opts.run_dir == NULL || is_late) {
        return false;
    }
    if (st == ST_ERR_NOT_FOUND) {
        return !signals_pause(RETRY_MS * NS_PER_MS);
    }
    return st == ST_ERR_DEADLINE;
}

int cli_status(int argc, char **argv)
{
    struct run r;
    struct err err = ERR_INIT;

    memset(&r, 0, sizeof(r));
    status st = parse(&r, argc, argv, &err);
    if (st == ST_END) {
        return 0;
    }
    signals_block();
    if (st == ST_OK) {
        const uint64_t end_ns = clock_now_ns(clock_real()) + r.wait_s * NS_PER_S;
        do { /* where a service may move, and be started later, its directory is looked at again */
            r.wait_end_ns = r.client_opts.run_dir != NULL
                                ? MIN(end_ns, clock_now_ns(clock_real()) + LOOK_S * NS_PER_S)
                                : end_ns;
            st = look(&r, &err);
        } while (may_look_again(&r, st, end_ns));
    }
    if (st < 0) {
        fprintf(stderr, "gantry status: %s\n", err.text[0] != '\0' ? err.text : status_name(st));
    }
    return status_exit_code(st);
}
