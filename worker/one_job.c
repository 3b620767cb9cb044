/* worker/one_job.c - `mpirun -n N gantry serve MODEL ...`: coordinator and one replica, one job.
 *
 *   first rank: fork + exec `gantry serve ... --external-ranks N --announce-fd F`, environment scrubbed;
 *               read from F the worker's arguments that the coordinator made (it planned, it listens)
 *   all ranks:  MPI_Init, the arguments and the token by broadcast, then the same life as any worker
 *
 * The coordinator is a process of its own, started before MPI: gRPC and MPI each keep their threads
 * and signals, and a rank's crash does not take the front down in mid-sentence. It gets SIGTERM
 * when its parent dies. It does not restart in this mode (DESIGN, "Orphans").
 *
 * An orderly end, running answers and all: SIGUSR1 to mpirun, which passes it on. */
#include "worker/args.h"
#include "worker/main.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ANNOUNCE_BYTES_MAX = 64 << 10, ARGS_MAX = 128, EXIT_WAIT_S = 15 };

extern char **environ;

static pid_t coordinator_pid; /* for the signal handler; 0: none */

int worker_in_mpi_job(void)
{
    return getenv("OMPI_COMM_WORLD_RANK") != NULL || getenv("PMIX_RANK") != NULL;
}

static long env_number(const char *a, const char *b)
{
    const char *text = getenv(a) != NULL ? getenv(a) : getenv(b);
    return text != NULL ? strtol(text, NULL, 10) : 0;
}

/* SIGUSR1 reaches the ranks through mpirun and nothing else happens; on SIGINT and SIGTERM mpirun
 * kills them a second later. */
static void forward_signal(int sig)
{
    if (coordinator_pid > 0) {
        kill(coordinator_pid, sig == SIGUSR1 ? SIGTERM : sig);
    }
}

/* ---- the coordinator's process ---- */

static bool is_mpi_variable(const char *entry)
{
    static const char *const prefixes[] = { "OMPI_", "PMIX_", "PRTE_", "ORTE_", "PMI_", "MPI_" };

    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++) {
        if (strncmp(entry, prefixes[i], strlen(prefixes[i])) == 0) {
            return true;
        }
    }
    return false;
}

static char **scrubbed_environment(void)
{
    size_t n = 0, kept = 0;

    while (environ[n] != NULL) {
        n++;
    }
    char **env = calloc(n + 1, sizeof(*env));
    for (size_t i = 0; env != NULL && i < n; i++) {
        if (!is_mpi_variable(environ[i])) {
            env[kept++] = environ[i];
        }
    }
    return env;
}

/* What the coordinator cannot see for itself: are all ranks on this host? Options that the user
 * gave come after these and win. Returns how many arguments were added. */
static int add_placement(char **args, long n_ranks)
{
    static char host[256];
    int n = 0;

    if (env_number("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE") == n_ranks) {
        args[n++] = (char *)"--external-local";
    } else {
        gethostname(host, sizeof(host) - 1);
        args[n++] = (char *)"--control-listen";
        args[n++] = (char *)"0.0.0.0:0";
        args[n++] = (char *)"--advertise";
        args[n++] = host;
    }
    return n;
}

NORETURN static void exec_coordinator(int argc, char **argv, long n_ranks, int fd, pid_t parent)
{
    char ranks[16], announce[16];
    char *args[ARGS_MAX];
    int n = 0;

    /* mpirun signals its ranks' process groups: the coordinator would hear everything twice, and a
     * second SIGTERM means "at once". */
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) {
        _exit(1); /* it died before the line above */
    }
    snprintf(ranks, sizeof(ranks), "%ld", n_ranks);
    snprintf(announce, sizeof(announce), "%d", fd);
    args[n++] = (char *)"gantry";
    args[n++] = (char *)"serve";
    n += add_placement(args + n, n_ranks);
    for (int i = 1; i < argc && n < ARGS_MAX - 6; i++) {
        args[n++] = argv[i];
    }
    args[n++] = (char *)"--external-ranks";
    args[n++] = ranks;
    args[n++] = (char *)"--announce-fd";
    args[n++] = announce;
    args[n] = NULL;
    char **env = scrubbed_environment();
    if (env != NULL) {
        execve("/proc/self/exe", args, env);
    }
    fprintf(stderr, "gantry serve: cannot start the coordinator: %s\n", strerror(errno));
    _exit(70);
}

/* The child writes its worker arguments, NUL-ended each, then closes. Nothing: it failed and said
 * why. */
static status read_announcement(int fd, struct buf *out)
{
    char piece[4096];

    for (;;) {
        const ssize_t n = read(fd, piece, sizeof(piece));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return out->len != 0 && out->data[out->len - 1] == '\0' ? ST_OK : ST_ERR_UNAVAILABLE;
        }
        if (buf_append(out, piece, (size_t)n) != ST_OK) {
            return ST_ERR_NOMEM;
        }
    }
}

static status start_coordinator(int argc, char **argv, long n_ranks, struct buf *announced)
{
    int fds[2];
    const pid_t parent = getpid();

    if (pipe2(fds, O_CLOEXEC) != 0) {
        return ST_ERR_IO;
    }
    const pid_t pid = fork();
    if (pid == 0) {
        fcntl(fds[1], F_SETFD, 0);
        exec_coordinator(argc, argv, n_ranks, fds[1], parent);
    }
    close(fds[1]);
    const status st = pid > 0 ? read_announcement(fds[0], announced) : ST_ERR_LIMIT;
    close(fds[0]);
    coordinator_pid = pid > 0 ? pid : 0;
    return st;
}

/* Its exit code; SIGTERM when it outlives the replica for too long. */
static int end_coordinator(void)
{
    const uint64_t until = clock_now_ns(clock_real()) + EXIT_WAIT_S * NS_PER_S;
    int code = 0;

    while (coordinator_pid > 0) {
        const pid_t got = waitpid(coordinator_pid, &code, WNOHANG);
        if (got == coordinator_pid || (got < 0 && errno != EINTR)) {
            coordinator_pid = 0;
            return WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code);
        }
        if (clock_now_ns(clock_real()) > until) {
            kill(coordinator_pid, SIGKILL);
        }
        poll(NULL, 0, 10);
    }
    return 0;
}

/* ---- the ranks ---- */

static int split(struct buf *b, char **args)
{
    int n = 0;

    for (size_t at = 0; at < b->len && n < ARGS_MAX - 1; at += strlen(b->data + at) + 1) {
        args[n++] = b->data + at;
    }
    args[n] = NULL;
    return n;
}

/* Length first, then bytes, from rank 0 to all. */
static status share(struct buf *b, struct err *err)
{
    uint64_t len = b->len;
    status st = coll_mpi_bcast(&len, sizeof(len), 0, err);

    if (st != ST_OK || len > ANNOUNCE_BYTES_MAX) {
        return st != ST_OK
                   ? st
                   : err_set(err, ST_ERR_PROTO, "an announcement of %zu bytes", (size_t)len);
    }
    st = buf_reserve(b, len);
    if (st != ST_OK) {
        return err_set(err, st, "no memory for the announcement");
    }
    b->len = len;
    b->data[len] = '\0';
    return len != 0 ? coll_mpi_bcast(b->data, len, 0, err) : ST_OK;
}

static status join(struct buf *announced, struct worker_args *args, struct coll_mpi_world *world,
                   struct err *err)
{
    static char
        *list[ARGS_MAX]; /* the arguments point into `announced` for the life of the process */
    status st = coll_mpi_init(world, err);

    if (st == ST_OK) {
        st = share(announced, err);
    }
    if (st == ST_OK && announced->len == 0) {
        return ST_ERR_UNAVAILABLE; /* the coordinator said why */
    }
    if (st == ST_OK) {
        const int n = split(announced, list);
        st = worker_args_parse(n, list, args, err);
    }
    if (st == ST_OK && world->rank != 0 && args->token.len == 0) {
        st =
            err_set(err, ST_ERR_UNAUTH, "no token: the run directory is not shared with this host");
    }
    return st;
}

int worker_one_job(int argc, char **argv)
{
    const bool first = env_number("OMPI_COMM_WORLD_RANK", "PMIX_RANK") == 0;
    const struct sigaction on_signal = { .sa_handler = forward_signal, .sa_flags = SA_RESTART };
    struct buf announced = BUF_INIT_MAX(ANNOUNCE_BYTES_MAX);
    struct worker_args args;
    struct coll_mpi_world world;
    struct err err = ERR_INIT;

    memset(&args, 0, sizeof(args));
    if (first) {
        const long n = env_number("OMPI_COMM_WORLD_SIZE", "PMIX_SIZE");
        if (start_coordinator(argc, argv, n, &announced) != ST_OK) {
            buf_reset(&announced);
        }
        sigaction(SIGTERM, &on_signal, NULL);
        sigaction(SIGINT, &on_signal, NULL);
        sigaction(SIGUSR1, &on_signal, NULL);
    } else {
        signal(SIGINT, SIG_IGN); /* a terminal's Ctrl-C reaches every rank; the first one decides */
        signal(SIGTERM, SIG_IGN);
        signal(SIGUSR1, SIG_IGN);
    }
    const status st = join(&announced, &args, &world, &err);
    int code = status_exit_code(st);
    if (st == ST_OK) {
        code = worker_run(&args, &world);
    } else if (err.text[0] != '\0') {
        log_error("rank", "%s", err.text);
    }
    const int coordinator = first ? end_coordinator() : 0;
    coll_mpi_fini();
    worker_args_fini(&args);
    buf_fini(&announced);
    return coordinator != 0 ? coordinator : code;
}
