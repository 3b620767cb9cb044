/* cluster/launch.c - the life of one mpirun.
 *
 *   RUNS ──mpirun exits──► SWEEP ──nothing of its session left──► ENDED
 *    │                       ▲  SIGKILL to what is left, each poll
 *    └─launch_end: SIGTERM at 0 s and 1 s, SIGKILL to the session at 3 s
 *
 * In a job of SLURM's everything gets SIGTERM at once when the job is cancelled or its time is over, mpirun,
 * its daemons and the ranks included, and mpirun would kill a replica whose streams still have KillWait
 * seconds to end. So there SIGTERM is held off from all of them, and SIGINT takes its place.
 *
 * The second SIGTERM is for an mpirun that waits for a host behind a cut link: the first makes it
 * wait, the second makes it go at once. mpirun's exit code is a hint (it has been 0 after a node
 * failure); who needs to know why a rank died asks the coordinator's members. */
#include "cluster/launch.h"

#include "base/clock.h"
#include "base/log.h"
#include "cluster/launch_process.h"
#include "cluster/launch_words.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TAIL_BYTES = 2048, LOOK_BYTES = 4 << 20, PROBE_TEXT_MAX = 64 * 1024 };

static const uint64_t term_again_ns = 1 * NS_PER_S;
static const uint64_t kill_ns = 3 * NS_PER_S;
static const uint64_t sweep_ns = 5 * NS_PER_S; /* a process in an uninterruptible wait stays */
static const uint64_t probe_ns = 5 * NS_PER_S;

enum launch_state {
    LAUNCH_RUNS,  /* waiting for mpirun's end */
    LAUNCH_SWEEP, /* it has ended and is collected; waiting for its ranks to be gone */
    LAUNCH_ENDED  /* nothing is left; code is final */
};

struct launch {
    enum launch_state state;
    int pid;              /* of mpirun, also its session */
    bool is_adopted;      /* not our child */
    uint64_t start_ticks; /* with the pid, which process it is; adopted only */
    int code;
    int end_sig;          /* SIGTERM; SIGINT where that is held off; 0: not known, so SIGINT */
    uint32_t n_terms;     /* of them sent */
    uint64_t end_at_ns;   /* first launch_end, 0 before */
    uint64_t sweep_at_ns; /* when SWEEP began */
    int log_fd;           /* owned; < 0: none */
    off_t log_begin;      /* where this launch's output begins */
    char layout[LAUNCH_PATH_BYTES]; /* srun's list of hosts, a file of ours; "": none */
    char tail[TAIL_BYTES + 1];
};

/* ---- start ---- */

static status open_log(struct launch *l, const char *dir, const char *name, struct err *err)
{
    char path[4096];

    l->log_fd = -1;
    if (!dir) {
        return ST_OK;
    }
    if (snprintf(path, sizeof(path), "%s/%s", dir, name ? name : "mpirun.log") >=
        (int)sizeof(path)) {
        return err_set(err, ST_ERR_ARG, "the log folder's name has more than %zu bytes",
                       sizeof(path));
    }
    l->log_fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (l->log_fd < 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "%s cannot be opened", path);
    }
    l->log_begin = lseek(l->log_fd, 0, SEEK_END);
    return ST_OK;
}

/* What differs between the launchers beside their words: how they are ended, and what they find in the
 * environment. */
static status prepare(const struct launch_config *config, struct launch *l,
                      struct process_config *process, const char **env, struct buf *text,
                      struct err *err)
{
    const bool by_srun = config->kind == LAUNCH_SRUN;

    l->end_sig = config->in_slurm && !by_srun ? SIGINT : SIGTERM;
    process->hold_term = config->in_slurm && !by_srun;
    process->die_with_parent = !config->outlive;
    process->env = config->env;
    if (!by_srun) {
        return ST_OK;
    }
    process->env = env;
    return launch_srun_prepare(config, l->layout, env, text, err);
}

static void forget(struct launch *l)
{
    if (l->layout[0] != '\0') {
        unlink(l->layout);
    }
    if (l->log_fd >= 0) {
        close(l->log_fd);
    }
    free(l);
}

status launch_start(const struct launch_config *config, struct launch **launch_p, struct err *err)
{
    const char *argv[LAUNCH_ARGS_MAX], *env[LAUNCH_ENV_MAX];
    struct process_config process = { .argv = argv };
    struct buf text = BUF_INIT, env_text = BUF_INIT;
    struct launch *l = calloc(1, sizeof(*l));
    uint32_t major = 0;
    char line[128];
    status st;

    if (!l) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a launch");
    }
    l->log_fd = -1;
    (void)((st = launch_probe_kind(config, &major, line, sizeof(line), err)) ||
           (st = launch_command(config, major, argv, LAUNCH_ARGS_MAX, &text, err)) ||
           (st = prepare(config, l, &process, env, &env_text, err)) ||
           (st = open_log(l, config->log_dir, config->log_name, err)));
    if (st == ST_OK) {
        process.out_fd = l->log_fd;
        st = process_start(&process, &l->pid, err);
    }
    buf_fini(&text);
    buf_fini(&env_text);
    if (st != ST_OK) {
        forget(l);
        return st;
    }
    log_info("launch", "%s started for %u ranks, pid %d", line, config->n_ranks, l->pid);
    *launch_p = l;
    return ST_OK;
}

/* Its session: while one of its members lives, the kernel gives its number to nobody else. */
static enum launch_state adopted_state(const struct launch_adoption *a)
{
    bool exists = false;
    const uint64_t ticks = process_start_ticks(a->pid, &exists);

    if (ticks == a->start_ticks && ticks != 0) {
        return LAUNCH_RUNS;
    }
    return exists && ticks != 0 ? LAUNCH_ENDED : LAUNCH_SWEEP;
}

status launch_adopt(const struct launch_adoption *a, struct launch **launch_p, struct err *err)
{
    struct launch *l = calloc(1, sizeof(*l));
    status st;

    if (!l) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a launch");
    }
    if (a->pid <= 1) {
        free(l);
        return err_set(err, ST_ERR_ARG, "pid %d is no mpirun's", a->pid);
    }
    st = open_log(l, a->log_dir, a->log_name, err);
    if (st != ST_OK) {
        free(l);
        return st;
    }
    l->log_begin = (off_t)MIN(a->log_begin, (uint64_t)INT64_MAX);
    l->pid = a->pid;
    l->is_adopted = true;
    l->start_ticks = a->start_ticks;
    l->state = adopted_state(a);
    l->code = 255;
    l->sweep_at_ns = clock_now_ns(clock_real());
    *launch_p = l;
    return ST_OK;
}

uint64_t launch_identity(const struct launch *l)
{
    bool exists;

    return process_start_ticks(l->pid, &exists);
}

uint64_t launch_log_begin(const struct launch *l)
{
    return (uint64_t)l->log_begin;
}

/* ---- watch and end ---- */

static int exit_code(int how)
{
    return WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
}

static void sweep(struct launch *l)
{
    const uint64_t now_ns = clock_now_ns(clock_real());
    const uint32_t n_left = process_session_signal(l->pid, SIGKILL);

    if (n_left == 0) {
        l->state = LAUNCH_ENDED;
    } else if (clock_since(now_ns, l->sweep_at_ns) > sweep_ns) {
        log_warn("launch", "%u processes of mpirun %d do not end on SIGKILL, ignoring", n_left,
                 l->pid);
        l->state = LAUNCH_ENDED;
    }
}

/* As waitpid for a process that is not our child. */
static pid_t adopted_wait(const struct launch *l)
{
    bool exists;

    if (process_start_ticks(l->pid, &exists) == l->start_ticks) {
        return 0;
    }
    errno = ECHILD;
    return -1;
}

status launch_poll(struct launch *l, int *code_p)
{
    if (l->state == LAUNCH_RUNS) {
        int how = 0;
        const pid_t got = l->is_adopted ? adopted_wait(l) : waitpid(l->pid, &how, WNOHANG);

        if (got == 0 || (got < 0 && errno == EINTR)) {
            return ST_BUSY;
        }
        /* ECHILD: somebody else collected it (SIGCHLD ignored); the code is lost, the end is not */
        l->code = got == l->pid ? exit_code(how) : 255;
        l->state = LAUNCH_SWEEP;
        l->sweep_at_ns = clock_now_ns(clock_real());
    }
    if (l->state == LAUNCH_SWEEP) {
        sweep(l);
    }
    if (l->state != LAUNCH_ENDED) {
        return ST_BUSY;
    }
    *code_p = l->code;
    return ST_END;
}

void launch_end(struct launch *l, uint64_t now_ns)
{
    uint64_t since_ns;

    if (l->state != LAUNCH_RUNS) {
        return;
    }
    if (l->n_terms == 0) {
        l->end_at_ns = now_ns;
    }
    since_ns = clock_since(now_ns, l->end_at_ns);
    if (since_ns >= kill_ns) {
        (void)process_session_signal(l->pid, SIGKILL);
    } else if (l->n_terms == 0 || (l->n_terms == 1 && since_ns >= term_again_ns)) {
        l->n_terms++;
        (void)kill(l->pid, l->end_sig != 0 ? l->end_sig : SIGINT);
    }
}

int launch_pid(const struct launch *l)
{
    return l->pid;
}

void launch_destroy(struct launch *l)
{
    const struct timespec nap = { .tv_sec = 0, .tv_nsec = 5 * (long)NS_PER_MS };
    int code;

    if (!l) {
        return;
    }
    if (l->state == LAUNCH_RUNS) {
        (void)process_session_signal(l->pid, SIGKILL);
    }
    while (launch_poll(l, &code) != ST_END) {
        (void)nanosleep(&nap, NULL);
    }
    forget(l);
}

/* ---- output ---- */

/* Ranks that fail write down their last steps (worker/trail.h), a line each: they stay in the log,
 * but would push what was said about the failure out of its end. */
static bool is_trail(const char *line, size_t len)
{
    static const char word[] = "trail r";

    return len >= sizeof(word) - 1 && memcmp(line, word, sizeof(word) - 1) == 0;
}

/* The last lines of text[n] without the trails, as many whole ones as fit into `tail`. */
static void keep_last(const char *text, size_t n, char tail[TAIL_BYTES + 1])
{
    size_t at = TAIL_BYTES, end = n;

    tail[TAIL_BYTES] = '\0';
    while (end > 0) {
        const char *before = end > 1 ? memrchr(text, '\n', end - 1) : NULL;
        const size_t begin = before != NULL ? (size_t)(before + 1 - text) : 0;
        const size_t len = end - begin;
        if (!is_trail(text + begin, len)) {
            const size_t take = len <= at ? len : (at == TAIL_BYTES ? at : 0);
            at -= take;
            memcpy(tail + at, text + end - take, take);
            if (take != len) {
                break;
            }
        }
        end = begin;
    }
    memmove(tail, tail + at, TAIL_BYTES + 1 - at);
}

const char *launch_tail(struct launch *l)
{
    char *text = NULL;

    l->tail[0] = '\0';
    if (l->log_fd < 0) {
        return l->tail;
    }
    const off_t end = lseek(l->log_fd, 0, SEEK_END);
    const off_t begin = MAX(l->log_begin, end - (off_t)LOOK_BYTES);
    if (end > begin) {
        text = malloc((size_t)(end - begin));
    }
    if (text != NULL) {
        const ssize_t n = pread(l->log_fd, text, (size_t)(end - begin), begin);
        size_t from = 0;
        if (begin > l->log_begin && n > 0) { /* cut in the middle: begin with a whole line */
            const char *line = memchr(text, '\n', (size_t)n);
            from = line != NULL ? (size_t)(line + 1 - text) : 0;
        }
        keep_last(text + from, (size_t)MAX(n, (ssize_t)0) - from, l->tail);
        free(text);
    }
    for (size_t n = strlen(l->tail); n > 0 && l->tail[n - 1] == '\n'; n--) {
        l->tail[n - 1] = '\0';
    }
    return l->tail;
}

/* "srun: error: n3: task 2: Killed" */
static bool srun_culprit(const char *line, uint32_t *rank_p, char *signal_p, size_t signal_bytes)
{
    const char *at = strstr(line, "srun: error: "), *task = at ? strstr(at, ": task ") : NULL;
    uint32_t rank;
    int used = 0;

    if (!task || sscanf(task, ": task %u: %n", &rank, &used) != 1 || used == 0) {
        return false;
    }
    const int n = (int)strcspn(task + used, "\n");
    if (n == 0 || strncmp(task + used, "Exited", 6) == 0) {
        return false; /* an exit code is the rank's own affair, which it has told the coordinator */
    }
    snprintf(signal_p, signal_bytes, "a signal (%.*s)", MIN(n, 40), task + used);
    *rank_p = rank;
    return true;
}

/* "mpirun noticed that process rank 2 with PID 0 on node n1 exited on signal 9 (Killed)." The line
 * may be broken by mpirun at any space. */
bool launch_culprit(struct launch *l, uint32_t *rank_p, char *signal_p, size_t signal_bytes)
{
    static const char before[] = "noticed that process rank ", between[] = " exited on ";
    char line[TAIL_BYTES + 1];
    uint32_t rank;
    size_t n;

    snprintf(line, sizeof(line), "%s", launch_tail(l));
    if (srun_culprit(line, rank_p, signal_p, signal_bytes)) {
        return true;
    }
    for (char *p = line; *p != '\0'; p++) {
        *p = (char)(*p == '\n' ? ' ' : *p);
    }
    const char *at = strstr(line, before);
    const char *how = at ? strstr(at, between) : NULL;
    if (!how || sscanf(at + sizeof(before) - 1, "%u", &rank) != 1) {
        return false;
    }
    how += sizeof(between) - 1;
    n = strcspn(how, ".");
    if (strncmp(how, "signal ", 7) != 0 || n >= signal_bytes) {
        return false;
    }
    memcpy(signal_p, how, n);
    signal_p[n] = '\0';
    *rank_p = rank;
    return true;
}

/* ---- version ---- */

/* "mpirun (Open MPI) 4.1.4" */
static status parse_version(const char *name, struct buf *b, uint32_t *major_p, struct err *err)
{
    const char *at = strstr(b->data, "Open MPI");
    unsigned long major;

    b->data[strcspn(b->data, "\n")] = '\0';
    at = at ? strpbrk(at, "0123456789") : NULL;
    major = at ? strtoul(at, NULL, 10) : 0;
    if (major == 0 || major > 1000) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "\"%s --version\" says \"%.80s\": not an Open MPI that Gantry knows", name,
                       b->data);
    }
    *major_p = (uint32_t)major;
    return ST_OK;
}

status launch_probe(const char *mpirun, uint32_t *major_p, char *line, size_t line_bytes,
                    struct err *err)
{
    const char *const argv[] = { mpirun ? mpirun : "mpirun", "--version", NULL };
    struct buf b = BUF_INIT_MAX(PROBE_TEXT_MAX);
    int code = 0;
    status st = process_output(argv, probe_ns, &b, &code, err);

    if (st == ST_OK && b.len == 0) {
        st = err_set(err, ST_ERR_UNSUPPORTED, "%s --version says nothing", argv[0]);
    }
    if (st == ST_OK) {
        st = parse_version(argv[0], &b, major_p, err);
    }
    if (st == ST_OK) {
        snprintf(line, line_bytes, "%s", b.data);
    }
    buf_fini(&b);
    return st;
}

status launch_probe_kind(const struct launch_config *config, uint32_t *major_p, char *line,
                         size_t line_bytes, struct err *err)
{
    if (config->kind == LAUNCH_MPIRUN) {
        return launch_probe(config->mpirun, major_p, line, line_bytes, err);
    }
    *major_p = 0;
    return launch_srun_probe(line, line_bytes, err);
}
