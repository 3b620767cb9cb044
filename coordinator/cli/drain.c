/* coordinator/cli/drain.c - `gantry drain`: empty a replica without losing a stream; with --restart
 * start it again; with --all, one after the other.
 *
 *   run directory ──► control port, token ──► Drain(replica) ──► progress ... OK ──► next replica
 */
#include "coordinator/cli/cli.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/signals.h"
#include "coordinator/run_find.h"

#include "base/clock.h"
#include "proto/msg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPLICAS_ARGS_MAX = 64 };

struct run {
    struct client client;
    struct signals signals;
    const char *run_dir;
    bool restart, all;
    uint32_t grace_s, timeout_s;

    uint32_t replicas[REPLICAS_ARGS_MAX]; /* those named */
    uint32_t n_replicas, at;
    uint32_t n_done, n_skipped;
    struct rpc_call *call;
    bool is_ending, was_told;
    status st;
    char text[1100];
};

static const char about[] =
    "Empties one replica of a running service, for maintenance of its hosts or to start it anew: "
    "it "
    "takes no new streams, its own may end within the grace, and what is left then goes on in the "
    "other replicas with the same tokens. Then its job is ended. It stays down until it is drained "
    "again with --restart. With --all --restart every replica is started again, one after the "
    "other, "
    "each when the one before serves: no stream is lost, also while there is only one (its streams "
    "wait). Operators are known by the run directory's token.";

static void ask(struct run *r);

static uint32_t current(const struct run *r)
{
    return r->all ? r->at : r->replicas[r->at];
}

static void on_progress(void *arg, struct rpc_call *call UNUSED, const void *data, size_t len)
{
    struct run *r = arg;
    struct arena arena = ARENA_INIT(1 << 16);
    struct err err = ERR_INIT;
    struct msg_drain_progress m;

    if (data != NULL && msg_drain_progress_unpack(data, len, &arena, &m, &err) == ST_OK) {
        printf("replica %u.%u: %s, %u stream%s there\n", current(r), m.generation, m.state,
               m.streams, m.streams == 1 ? "" : "s");
        fflush(stdout);
        r->was_told = true;
    }
    arena_fini(&arena);
}

static void give_up(struct run *r, status st, const char *text)
{
    r->st = st;
    snprintf(r->text, sizeof(r->text), "%s", text);
    rpc_loop_stop(r->client.loop);
}

static void on_done(void *arg, struct rpc_call *call UNUSED, status st, const char *text)
{
    struct run *r = arg;

    r->call = NULL;
    if (r->is_ending) {
        give_up(r, ST_ERR_CANCELLED,
                r->was_told ? "interrupted; what was begun goes on" : "interrupted");
        return;
    }
    /* With --all the end of the list is found by asking beyond it. */
    if (r->all && st == ST_ERR_NOT_FOUND && r->at > 0) {
        rpc_loop_stop(r->client.loop);
        return;
    }
    if (r->all && st == ST_ERR_UNSUPPORTED) {
        printf("replica %u: left as it is: %s\n", current(r), text);
        r->n_skipped++;
    } else if (st < 0) {
        give_up(r, st, text);
        return;
    } else {
        r->n_done++;
    }
    r->at++;
    if (!r->all && r->at == r->n_replicas) {
        rpc_loop_stop(r->client.loop);
        return;
    }
    ask(r);
}

static void ask(struct run *r)
{
    static const struct rpc_client client = { on_progress, NULL, on_done };
    const struct msg_drain m = { current(r), r->restart, r->grace_s * UINT64_C(1000000) };
    struct buf bytes = BUF_INIT;
    struct err err = ERR_INIT;
    status st = msg_drain_pack(&m, &bytes);

    if (st == ST_OK) {
        const struct rpc_call_config config = {
            .path = "/gantry.control.v1.Control/Drain",
            .kind = RPC_SERVER_STREAM,
            .data = bytes.data,
            .len = bytes.len,
            .deadline_ns = clock_now_ns(clock_real()) + r->timeout_s * NS_PER_S,
            .client = &client,
            .arg = r,
        };
        st = rpc_call_start(r->client.channel, &config, &r->call, &err);
    }
    buf_fini(&bytes);
    if (st < 0) {
        give_up(r, st, err.text);
    }
}

static void ask_first(void *arg)
{
    ask(arg);
}

static void on_signal(void *arg)
{
    struct run *r = arg;

    r->is_ending = true;
    if (r->call != NULL) {
        rpc_call_cancel(r->call);
    } else {
        give_up(r, ST_ERR_CANCELLED, "interrupted");
    }
}

static status replicas_read(struct run *r, const char *const *args, uint32_t n, struct err *err)
{
    if (r->all != (n == 0)) {
        return err_set(err, ST_ERR_ARG, "name replicas by their numbers, or give --all");
    }
    if (r->all && !r->restart) {
        return err_set(err, ST_ERR_ARG,
                       "--all goes with --restart; to end the whole service, end gantry serve");
    }
    for (uint32_t i = 0; i < n; i++) {
        char *end;
        const unsigned long v = strtoul(args[i], &end, 10);
        if (args[i][0] < '0' || args[i][0] > '9' || *end != '\0' || v > UINT32_MAX) {
            return err_set(err, ST_ERR_ARG, "\"%s\" is not the number of a replica (0, 1, ..)",
                           args[i]);
        }
        r->replicas[i] = (uint32_t)v;
    }
    r->n_replicas = n;
    return ST_OK;
}

static status parse(struct run *r, int argc, char **argv, struct err *err)
{
    const struct opt rows[] = {
        { OPT_FLAG, "restart", NULL, &r->restart, 0, 0, "start it again when it is empty", NULL },
        { OPT_FLAG, "all", NULL, &r->all, 0, 0, "every replica in turn (with --restart)", NULL },
        { OPT_U32, "grace", "SECONDS", &r->grace_s, 0, 86400,
          "how long its streams may go on there (default 30); then they move", NULL },
        { OPT_U32, "timeout", "SECONDS", &r->timeout_s, 1, 86400,
          "give up watching a replica after this (default 3600); the drain goes on", NULL },
        { OPT_STRING, "run-dir", "DIR", &r->run_dir, 0, 0,
          "run directory of the service (default: the only one below ~/.gantry/run)", NULL },
    };
    const struct opts opts = { .usage = "gantry drain REPLICA.. [options]",
                               .about = about,
                               .options = rows,
                               .n_options = ARRAY_LEN(rows),
                               .examples = "  gantry drain 1                     down, for good\n"
                                           "  gantry drain 1 --restart           and up again\n"
                                           "  gantry drain --all --restart       rolling restart\n",
                               .n_args_min = 0,
                               .n_args_max = REPLICAS_ARGS_MAX };
    const char *args[REPLICAS_ARGS_MAX];
    uint32_t n = 0;
    status st = opts_parse(&opts, argc, argv, args, &n, err);

    return st == ST_OK ? replicas_read(r, args, n, err) : st;
}

static status drain(struct run *r, struct err *err)
{
    struct run_found found;
    status st = run_find(r->run_dir, &found, err);

    if (st == ST_OK) {
        const struct client_opts o = { .connect = found.control, .token_file = found.token_path };
        st = client_open(&r->client, &o, err);
    }
    if (st != ST_OK) {
        return st;
    }
    st = signals_start(&r->signals, r->client.loop, on_signal, r, err);
    if (st == ST_OK) {
        st = rpc_loop_post(r->client.loop, ask_first, r);
    }
    if (st == ST_OK) {
        rpc_loop_run(r->client.loop);
        signals_stop(&r->signals);
    }
    if (st == ST_OK && r->st < 0) {
        st = err_set(err, r->st, "%s", r->text);
        if (r->at > 0 || r->was_told) {
            err_prefix(err, "replica %u: ", current(r));
        }
    }
    client_close(&r->client);
    return st;
}

int cli_drain(int argc, char **argv)
{
    struct run r;
    struct err err = ERR_INIT;

    memset(&r, 0, sizeof(r));
    r.grace_s = 30;
    r.timeout_s = 3600;
    status st = parse(&r, argc, argv, &err);
    if (st == ST_END) {
        return 0;
    }
    if (st == ST_OK) {
        signals_block();
        st = drain(&r, &err);
    }
    if (st < 0) {
        fprintf(stderr, "gantry drain: %s\n", err.text[0] != '\0' ? err.text : status_name(st));
        return status_exit_code(st);
    }
    printf("%u replica%s %s\n", r.n_done, r.n_done == 1 ? "" : "s",
           r.restart ? "started again" : "drained");
    return 0;
}
