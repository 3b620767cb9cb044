/* coordinator/cli/serve.c - `gantry serve`: plan, listen, launch, watch, end.
 *
 *   main thread: all of the set-up, then the loop      signal thread: sigwait, posts to the loop
 *
 *   tick (100 ms): is mpirun still there? how far is the loading? is the start overdue?
 *
 * The order is: bind before launch (a port in use costs nothing), launch before the loop (ranks
 * retry until somebody answers), and at the end ranks, then mpirun, then our own listeners' last
 * calls. Whatever fails on the way, mpirun's group is ended before this process is. */
#include "coordinator/cli/cli.h"
#include "coordinator/cli/client.h"
#include "coordinator/cli/durable.h"
#include "coordinator/cli/jobs.h"
#include "coordinator/cli/reach.h"
#include "coordinator/cli/serve_args.h"
#include "coordinator/cli/signals.h"

#include "base/cpu.h"
#include "base/fd.h"
#include "base/secret.h"
#include "cluster/launch.h"
#include "coordinator/coord.h"
#include "coordinator/run_dir.h"
#include "partition/predict.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TICK_MS = 100, SAY_MS = 500, CANCELLED_S = 2 };

struct serve {
    struct serve_args args;
    struct serve_setup setup;
    struct run_dir dir;
    struct durable durable;
    struct buf secret, token, cert, key, client_ca; /* contents of files; empty: none */
    struct rpc_loop *loop;
    struct coord *coord;
    struct jobs jobs;
    struct signals signals;
    struct reach reach;
    struct rpc_timer tick;

    char host[256];    /* of the public address, for people */
    char control[300]; /* HOST:PORT that ranks dial */

    uint64_t started_ns, said_ns;
    uint64_t drain_at_ns; /* before the scheduler ends the job; 0: no end is known */
    char said[160];       /* the last progress line */
    uint32_t n_signals;
    bool is_stopping, was_ready;
    bool
        own_token; /* clients need the service's own token: none was given and it is not loopback */
    struct err failure; /* code ST_OK: none */
};

/* ---- words ---- */

PRINTF_LIKE(1, 2)
static void say(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    fflush(stdout);
}

/* In a job of mpirun's the terminal is only mpirun's way to collect output. */
static bool has_terminal(const struct serve *s)
{
    return s->args.announce_fd == 0 && isatty(STDOUT_FILENO);
}

/* On a terminal one line that changes, else a line per change, at most two a second. */
static void say_progress(struct serve *s, uint64_t now)
{
    struct coord_progress p;
    char line[160];

    if (now - s->said_ns < SAY_MS * NS_PER_MS) {
        return;
    }
    coord_progress(s->coord, &p);
    if (p.n_ranks == 0) {
        snprintf(line, sizeof(line), "waiting for replicas to join");
    } else if (p.n_attached < p.n_ranks) {
        snprintf(line, sizeof(line), "starting: %u of %u ranks attached", p.n_attached, p.n_ranks);
    } else if (p.weight_bytes > 0) {
        snprintf(line, sizeof(line), "loading: %.1f of %.1f MiB, %u of %u ranks ready",
                 (double)MIN(p.loaded_bytes, p.weight_bytes) / 1048576.0,
                 (double)p.weight_bytes / 1048576.0, p.n_ready, p.n_ranks);
    } else {
        snprintf(line, sizeof(line), "loading: %u of %u ranks ready", p.n_ready, p.n_ranks);
    }
    if (strcmp(line, s->said) == 0) {
        return;
    }
    s->said_ns = now;
    snprintf(s->said, sizeof(s->said), "%s", line);
    if (has_terminal(s)) {
        say("\r\033[K%s", line);
    } else {
        say("%s\n", line);
    }
}

static void progress_end(const struct serve *s)
{
    if (s->said[0] != '\0' && has_terminal(s)) {
        say("\r\033[K");
    }
}

/* ---- set-up ---- */

static status secrets_read(struct serve *s, struct err *err)
{
    const struct serve_args *a = &s->args;
    status st = ST_OK;

    if (a->token_file != NULL) {
        st = secret_read(a->token_file, &s->token, err);
    }
    if (st == ST_OK && a->tls_cert != NULL) {
        st = pem_read(a->tls_cert, &s->cert, err);
    }
    if (st == ST_OK && a->tls_key != NULL) {
        st = pem_read(a->tls_key, &s->key, err);
    }
    if (st == ST_OK && a->tls_client_ca != NULL) {
        st = pem_read(a->tls_client_ca, &s->client_ca, err);
    }
    return st;
}

static const char *content(const struct buf *b)
{
    return b->len != 0 ? b->data : NULL;
}

static void on_change(void *arg, enum coord_state state);
static bool on_culprit(void *arg, uint32_t replica, uint32_t *rank_p, char *signal_p,
                       size_t signal_bytes);
static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns);

/* Where the coordinator before listened, if its ports are free. */
static status coord_bind(struct serve *s, struct coord_config config, struct err *err)
{
    const struct service_state *last = &s->durable.last;
    const char *listen = config.listen, *control = config.control_listen;
    char listen_text[300], control_text[300];

    config.listen = durable_listen(listen, last->port, listen_text);
    config.control_listen = durable_listen(control, last->control_port, control_text);
    status st = coord_create(s->loop, &config, &s->coord, err);
    if (st == ST_ERR_EXISTS && config.control_listen != control) {
        config.control_listen = control;
        st = coord_create(s->loop, &config, &s->coord, err);
    }
    if (st == ST_ERR_EXISTS && config.listen != listen) {
        config.listen = listen;
        st = coord_create(s->loop, &config, &s->coord, err);
    }
    return st;
}

static status coord_open(struct serve *s, struct err *err)
{
    const char *token = content(&s->token);
    const char *control = s->args.control_listen;
    struct coord_config config = { .plan = s->setup.plan,
                                   .tok = s->setup.tok,
                                   .n_replicas = s->args.replicas,
                                   .external_only = s->args.external_only,
                                   .join_max = s->args.join_max,
                                   .mixed_profiles = s->args.mixed_profiles,
                                   .rejoin_ns = s->args.rejoin_s * NS_PER_S,
                                   .generation = 1,
                                   .retries = s->args.retries,
                                   .restarts = s->args.restarts,
                                   .hang_ns = s->args.hang_timeout_s * NS_PER_S,
                                   .canary_ns = s->args.canary_s * NS_PER_S,
                                   .start_ns = s->args.start_timeout_s * NS_PER_S,
                                   .queue_max = s->args.queue,
                                   .prefix_cache = s->args.prefix_cache == NULL ||
                                                   strcmp(s->args.prefix_cache, "on") == 0,
                                   .listen = s->args.listen,
                                   .token = token,
                                   .tls_cert_pem = content(&s->cert),
                                   .tls_key_pem = content(&s->key),
                                   .tls_client_ca_pem = content(&s->client_ca),
                                   .control_token = s->dir.token,
                                   .on_change = on_change,
                                   .culprit = on_culprit,
                                   .on_lost = s->args.external_ranks == 0 ? on_lost : NULL,
                                   .arg = s };

    config.control_listen = control != NULL ? control : s->reach.listen;
    durable_config(&s->durable, &config);
    status st = coord_bind(s, config, err);
    if (st == ST_ERR_DENIED && token == NULL) {
        /* Not loopback and nothing to know clients by: the service's own token, then. */
        config.token = s->dir.token;
        s->own_token = true;
        st = coord_bind(s, config, err);
        if (st == ST_OK) {
            say("clients need the token in %s (gantry generate --token-file)\n", s->dir.token_path);
        }
    }
    if (st == ST_OK && s->args.external_only && s->setup.has_digest) {
        coord_expect_digest(s->coord, &s->setup.digest); /* else the first that joins says it */
    }
    return st;
}

static status endpoint_write(struct serve *s, const char *state, struct err *err)
{
    const struct run_endpoint e = { .host = s->host,
                                    .port = coord_port(s->coord),
                                    .control_port = coord_control_port(s->coord),
                                    .control = s->control,
                                    .profile = s->setup.plan->profile,
                                    .model = s->setup.plan->desc.name,
                                    .weights_digest = coord_weights_digest(s->coord),
                                    .state = state };
    return run_dir_endpoint(&s->dir, &e, err);
}

static status listen_open(struct serve *s, struct err *err)
{
    const char *colon = strrchr(s->args.listen, ':');
    status st = reach_find(&s->args, s->setup.is_local, &s->reach, err);

    (void)(st || (st = secrets_read(s, err)) || (st = coord_open(s, err)));
    if (st < 0) {
        return st;
    }
    snprintf(s->host, sizeof(s->host), "%.*s",
             colon != NULL ? (int)(colon - s->args.listen) : (int)strlen(s->args.listen),
             s->args.listen);
    snprintf(s->control, sizeof(s->control), "%s:%u", s->reach.host, coord_control_port(s->coord));
    st = durable_begin(&s->durable, s->control, s->coord, err);
    return st < 0 ? st : endpoint_write(s, "starting", err);
}

/* The ranks' arguments, NUL-ended each, to whoever starts them (worker/one_job.c). */
static status announce(const struct serve *s, const char *const *args, struct err *err)
{
    const int fd = (int)s->args.announce_fd;
    status st = ST_OK;

    for (uint32_t i = 0; st == ST_OK && args[i] != NULL; i++) {
        if (fd_write_all(fd, args[i], strlen(args[i]) + 1) < 0) {
            st = err_set_errno(err, ST_ERR_IO, errno, "descriptor %d (--announce-fd)", fd);
        }
    }
    close(fd);
    return st;
}

static void jobs_fill(struct serve *s)
{
    s->jobs = (struct jobs){ .args = &s->args,
                             .setup = &s->setup,
                             .dir = &s->dir,
                             .control = s->control,
                             .coord = s->coord,
                             .n = s->args.replicas,
                             .first_generation = 1 };
    durable_jobs(&s->durable, &s->jobs);
}

static status ranks_start(struct serve *s, struct err *err)
{
    struct worker_words words;
    status st;

    jobs_fill(s);
    if (s->args.external_only) {
        say("waiting for replicas: mpirun -n N gantry worker --join %s --secret-file %s MODEL\n",
            s->control, s->args.secret_file != NULL ? s->args.secret_file : s->dir.token_path);
        return ST_OK;
    }
    if (s->args.external_ranks == 0) {
        return jobs_start(&s->jobs, err);
    }
    say("waiting for %u ranks to attach at %s (token: %s)\n", s->args.external_ranks, s->control,
        s->dir.token_path);
    if (s->args.announce_fd == 0) {
        return ST_OK;
    }
    st = worker_words_make(&s->jobs, 0, 1, &words, err);
    if (st == ST_OK) {
        st = announce(s, words.args, err);
    }
    worker_words_fini(&words);
    return st;
}

/* ---- running ---- */

static void on_stopped(void *arg)
{
    struct serve *s = arg;

    rpc_loop_stop(s->loop);
}

static void stop(struct serve *s, uint64_t grace_ns)
{
    if (!s->is_stopping) {
        s->is_stopping = true;
        progress_end(s);
    }
    coord_stop(s->coord, grace_ns, on_stopped, s);
}

/* New requests are refused from here on. */
static void drain(struct serve *s, uint32_t grace_s, const char *why)
{
    progress_end(s);
    say("stopping%s: running answers have %u s to end (again to stop at once)\n", why, grace_s);
    stop(s, s->was_ready ? grace_s * NS_PER_S : 0);
}

static void on_signal(void *arg)
{
    struct serve *s = arg;
    uint32_t grace_s = s->args.grace_s;

    s->n_signals++;
    if (s->n_signals == 1 && !s->is_stopping) {
        if (signals_continued(&s->signals, CANCELLED_S * NS_PER_S)) {
            grace_s = MIN(grace_s, allocation_kill_grace_s(&s->setup.job));
        }
        drain(s, grace_s, "");
    } else {
        stop(s, 0);
    }
}

static bool listens_on_socket(const struct serve *s)
{
    return strncmp(s->args.listen, "unix:", 5) == 0;
}

static void say_ready(struct serve *s)
{
    const char *token_path = s->own_token ? s->dir.token_path : s->args.token_file;
    const uint32_t n_ranks = s->setup.plan->n_ranks;
    char ranks[64];

    if (s->args.external_only) {
        snprintf(ranks, sizeof(ranks), "replicas join at %.40s", s->control);
    } else if (s->args.replicas > 1) {
        snprintf(ranks, sizeof(ranks), "%u replicas of %u rank%s", s->args.replicas, n_ranks,
                 n_ranks == 1 ? "" : "s");
    } else {
        snprintf(ranks, sizeof(ranks), "%u rank%s", n_ranks, n_ranks == 1 ? "" : "s");
    }
    char at[300], dial[300];
    if (listens_on_socket(s)) {
        snprintf(at, sizeof(at), "%s", s->args.listen);
        snprintf(dial, sizeof(dial), "%s", s->args.listen);
    } else {
        snprintf(at, sizeof(at), "%s:%u", s->host, coord_port(s->coord));
        snprintf(dial, sizeof(dial), "%s:%u",
                 strcmp(s->host, "0.0.0.0") == 0 ? "127.0.0.1" : s->host, coord_port(s->coord));
    }
    progress_end(s);
    say("ready: listening on %s, %s, try: gantry generate --connect %s%s%s \"Once upon a time\"\n",
        at, ranks, dial, token_path != NULL ? " --token-file " : "",
        token_path != NULL ? token_path : "");
}

static void on_change(void *arg, enum coord_state state)
{
    struct serve *s = arg;
    struct err err = ERR_INIT;

    if (state == COORD_SERVING) {
        durable_write(&s->durable, &s->jobs, s->coord); /* the digest is known now */
        if (!s->was_ready) {
            say_ready(s);
        } else {
            say("serving again\n");
        }
        s->was_ready = true;
    } else if (state == COORD_RECOVERING) {
        say("no replica serves: streams wait until one %s again\n",
            s->args.external_only ? "joins" : "is started");
    } else if (state == COORD_FAILED) {
        status code;
        const char *text = coord_failure(s->coord, &code);
        err_set(&s->failure, code, "%s", text);
        stop(s, 0);
    }
    if ((state == COORD_SERVING || state == COORD_RECOVERING) &&
        endpoint_write(s, state == COORD_SERVING ? "serving" : "recovering", &err) < 0) {
        log_warn("serve", "%s, ignoring", err.text);
    }
}

static bool on_culprit(void *arg, uint32_t replica, uint32_t *rank_p, char *signal_p,
                       size_t signal_bytes)
{
    struct serve *s = arg;

    return jobs_culprit(&s->jobs, replica, rank_p, signal_p, signal_bytes);
}

static void on_lost(void *arg, uint32_t replica, uint64_t delay_ns)
{
    struct serve *s = arg;

    jobs_lost(&s->jobs, replica, s->is_stopping ? CLOCK_NEVER : delay_ns);
}

static void on_tick(void *arg)
{
    struct serve *s = arg;
    const uint64_t now = clock_now_ns(clock_real());

    if (s->is_stopping) {
        return;
    }
    if (s->drain_at_ns != 0 && now >= s->drain_at_ns) {
        /* What goes into the journal need not wait for its end. */
        const uint32_t wall_s = allocation_wall_grace_s(s->args.wall_margin_s);
        drain(s, s->args.handover ? MIN(wall_s, s->args.grace_s) : wall_s, " before the job's end");
        return;
    }
    jobs_tick(&s->jobs, now);
    durable_tick(&s->durable, now);
    if (coord_state(s->coord) == COORD_STARTING) {
        say_progress(s, now);
        if (!s->args.external_only && now - s->started_ns > s->args.start_timeout_s * NS_PER_S) {
            struct coord_progress p;
            coord_progress(s->coord, &p);
            err_set(&s->failure, ST_ERR_DEADLINE,
                    "after %u s (--start-timeout) %u of %u ranks have attached and %u are ready",
                    s->args.start_timeout_s, p.n_attached, p.n_ranks, p.n_ready);
            stop(s, 0);
            return;
        }
    }
    rpc_timer_set(s->loop, &s->tick, now + TICK_MS * NS_PER_MS);
}

static void loop_run(struct serve *s)
{
    s->started_ns = clock_now_ns(clock_real());
    s->drain_at_ns = allocation_drain_at_ns(&s->setup.job, s->args.wall_margin_s);
    s->tick.fn = on_tick;
    s->tick.arg = s;
    rpc_timer_set(s->loop, &s->tick, s->started_ns);
    rpc_loop_run(s->loop);
    rpc_timer_set(s->loop, &s->tick, CLOCK_NEVER);
}

/* ---- the end ---- */

static status serve_run(struct serve *s, struct err *err)
{
    status st = durable_open(&s->durable, &s->args, &s->setup, err);

    if (st == ST_OK) {
        const char *path = durable_run_dir(&s->durable);
        st = s->args.journal != NULL ? run_dir_open_kept(path, &s->dir, err)
                                     : run_dir_open(s->args.run_dir, &s->dir, err);
    }
    if (st == ST_OK) {
        durable_place(&s->durable, &s->dir);
    }
    if (st == ST_OK && s->args.secret_file != NULL) {
        st = secret_read(s->args.secret_file, &s->secret, err);
        if (st == ST_OK) {
            st = run_dir_token(&s->dir, s->secret.data, err);
        }
    }
    (void)(st || (st = rpc_loop_create(&s->loop, err)) || (st = listen_open(s, err)) ||
           (st = signals_start(&s->signals, s->loop, on_signal, s, err)) ||
           (st = ranks_start(s, err)));
    if (st == ST_OK) {
        loop_run(s);
        signals_stop(&s->signals);
        jobs_end(&s->jobs, s->failure.code != ST_OK || !s->was_ready);
        if (s->failure.code != ST_OK) {
            *err = s->failure;
            st = err->code;
            jobs_print_tails(&s->jobs);
        }
    }
    signals_stop(&s->signals);
    const bool had_jobs = s->jobs.jobs != NULL;
    jobs_fini(&s->jobs);
    const bool is_over = st == ST_OK && !s->args.handover;
    if (!is_over) {
        durable_freeze(&s->durable);
    }
    coord_destroy(s->coord);
    rpc_loop_destroy(s->loop);
    durable_close(&s->durable, is_over, had_jobs);
    run_dir_close(&s->dir, st == ST_OK);
    return st;
}

static status hosts_say(const struct jobs *j, struct err *err)
{
    struct buf text = BUF_INIT;
    const status st = j->hosts != NULL ? hosts_print(j->hosts, &text) : ST_OK;

    if (st == ST_OK && text.len != 0) {
        say("%s", text.data);
    } else if (st != ST_OK) {
        err_set(err, st, "no memory to print the hosts");
    }
    buf_fini(&text);
    return st;
}

static status dry_run(struct serve *s, struct err *err)
{
    struct buf line = BUF_INIT;
    char program[4096];
    struct worker_words words;
    struct launch_config config;
    uint32_t major = 4;
    char name[128] = "";
    status st = jobs_self_path(program, sizeof(program), err);

    if (s->args.external_only) {
        say("no replica would be started: all of them join (gantry worker --join)\n");
        return ST_OK;
    }
    if (st == ST_OK) {
        st = reach_find(&s->args, s->setup.is_local, &s->reach, err);
    }
    snprintf(s->control, sizeof(s->control), "%s:PORT", s->reach.host);
    snprintf(s->dir.token_path, sizeof(s->dir.token_path), "RUN_DIR/token");
    snprintf(s->dir.path, sizeof(s->dir.path), "RUN_DIR");
    jobs_fill(s);
    (void)(st || (st = jobs_place(&s->jobs, err)) || (st = hosts_say(&s->jobs, err)) ||
           (st = worker_words_make(&s->jobs, 0, 1, &words, err)));
    if (st == ST_OK) {
        jobs_config(&s->jobs, 0, &words, program, &config);
        if (s->jobs.hosts != NULL) {
            config.hostfile = "RUN_DIR/hosts-0";
        }
        st = launch_probe_kind(&config, &major, name, sizeof(name), err);
        if (st == ST_OK) {
            st = launch_command_line(&config, major, &line, err);
        }
        worker_words_fini(&words);
    }
    if (st == ST_OK) {
        say("%s would be started as%s:\n%s\n", name, s->args.replicas > 1 ? " (replica 0)" : "",
            line.data);
    }
    buf_fini(&line);
    jobs_fini(&s->jobs);
    return st;
}

static status plan_say(const struct serve *s, struct err *err)
{
    struct buf text = BUF_INIT;
    status st = plan_print(s->setup.plan, &text);

    if (st == ST_OK) {
        st = predict_print(s->setup.plan, 0, &text);
    }
    if (st == ST_OK) {
        allocation_say(&s->setup.job);
        say("%s", text.data);
        cli_device_say(&s->setup.device);
    } else {
        err_set(err, st, "no memory to print the plan");
    }
    buf_fini(&text);
    return st;
}

int cli_serve(int argc, char **argv)
{
    static struct serve s; /* large, and one per process */
    struct err err = ERR_INIT;
    status st = serve_args_parse(argc, argv, &s.args, &err);

    if (st == ST_END) {
        return 0;
    }
    s.secret = s.token = s.cert = s.key = s.client_ca = (struct buf)BUF_INIT;
    signals_block();
    log_init(s.args.level, STDERR_FILENO);
    (void)(st || (st = serve_setup_make(&s.args, &s.setup, &err)) || (st = plan_say(&s, &err)) ||
           (st = s.args.dry_run ? dry_run(&s, &err) : serve_run(&s, &err)));
    serve_setup_fini(&s.setup);
    buf_fini(&s.secret);
    buf_fini(&s.token);
    buf_fini(&s.cert);
    buf_fini(&s.key);
    buf_fini(&s.client_ca);
    if (st < 0) {
        fprintf(stderr, "gantry serve: %s\n", err.text[0] != '\0' ? err.text : status_name(st));
    } else if (!s.args.dry_run) {
        say("stopped\n");
    }
    return status_exit_code(st);
}
