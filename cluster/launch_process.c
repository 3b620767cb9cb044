/* cluster/launch_process.c - fork and exec with everything prepared before the fork.
 *
 * Between fork and exec only async-signal-safe calls are made: the coordinator has threads, and one
 * of them may hold malloc's lock at that moment. posix_spawn would do that for us but knows neither
 * PR_SET_PDEATHSIG nor a way to close all descriptors in the glibc of Debian 12. */
#include "cluster/launch_process.h"

#include "base/buf.h"
#include "base/fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { ENV_EXTRA_MAX = 8 };

/* ---- environment ---- */

static bool has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* What a surrounding mpirun or PMIx tells its own ranks; a new mpirun would take itself for one of
 * them. The user's settings (OMPI_MCA_btl, orte_tmpdir_base ...) stay. */
static bool is_job_variable(const char *entry)
{
    static const char *const prefixes[] = { "PMIX_",
                                            "OMPI_COMM_WORLD_",
                                            "OMPI_UNIVERSE_SIZE=",
                                            "OMPI_FIRST_RANKS=",
                                            "OMPI_APP_CTX_NUM_PROCS=",
                                            "OMPI_NUM_APP_CTX=",
                                            "OMPI_ARGV=",
                                            "OMPI_COMMAND=",
                                            "OMPI_FILE_LOCATION=",
                                            "OMPI_MCA_ess",
                                            "OMPI_MCA_pmix",
                                            "OMPI_MCA_orte_ess",
                                            "OMPI_MCA_orte_jobid",
                                            "OMPI_MCA_orte_local_daemon_uri",
                                            "OMPI_MCA_orte_hnp_uri",
                                            "OMPI_MCA_orte_launch",
                                            "OMPI_MCA_orte_num",
                                            "OMPI_MCA_orte_app_num",
                                            "OMPI_MCA_orte_bound_at_launch",
                                            "OMPI_MCA_orte_precondition_transports",
                                            "OMPI_MCA_orte_top_session_dir",
                                            "OMPI_MCA_orte_jobfam_session_dir",
                                            "OMPI_MCA_mpi_oversubscribe=",
                                            "PRTE_LAUNCHED=" };

    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++) {
        if (has_prefix(entry, prefixes[i])) {
            return true;
        }
    }
    return false;
}

static bool is_replaced(const char *entry, const char *const *words)
{
    for (; words != NULL && *words != NULL; words++) {
        const size_t len = strcspn(*words, "=");
        if (strncmp(entry, *words, len) == 0 && entry[len] == '=') {
            return true;
        }
    }
    return false;
}

/* A NULL-ended copy of the pointers; the strings are borrowed. The caller frees it. */
static char **child_environment(const char *const *words)
{
    static const char *const root[] = { "OMPI_ALLOW_RUN_AS_ROOT=1",
                                        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                                        "PRTE_ALLOW_RUN_AS_ROOT=1",
                                        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1" };
    /* Without it a second mpirun in the same allocation waits for the first to end. */
    static const char overlap[] = "SLURM_OVERLAP=1";
    size_t n = 0, at = 0, n_words = 0;
    char **env;

    while (environ[n]) {
        n++;
    }
    while (words != NULL && words[n_words] != NULL) {
        n_words++;
    }
    env = malloc((n + n_words + ENV_EXTRA_MAX) * sizeof(*env));
    if (!env) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        if (!is_job_variable(environ[i]) && !is_replaced(environ[i], words)) {
            env[at++] = environ[i];
        }
    }
    for (size_t i = 0; i < n_words; i++) {
        if (strchr(words[i], '=') != NULL) {
            env[at++] = (char *)(uintptr_t)words[i];
        }
    }
    for (size_t i = 0; geteuid() == 0 && i < ARRAY_LEN(root); i++) {
        env[at++] = (char *)(uintptr_t)root[i];
    }
    if (getenv("SLURM_JOB_ID") && !getenv("SLURM_OVERLAP")) {
        env[at++] = (char *)(uintptr_t)overlap;
    }
    env[at] = NULL;
    return env;
}

/* ---- program ---- */

/* The path of argv[0] by PATH, as execvp would, but before the fork. */
static status find_program(const char *name, struct buf *path, struct err *err)
{
    const char *dirs = getenv("PATH");
    status st = ST_OK;

    if (strchr(name, '/')) {
        if (access(name, X_OK) != 0) {
            return err_set_errno(err, ST_ERR_NOT_FOUND, errno, "%s cannot be run", name);
        }
        return buf_append_str(path, name) == ST_OK ? ST_OK
                                                   : err_set(err, ST_ERR_NOMEM, "no memory");
    }
    for (dirs = dirs ? dirs : "/usr/local/bin:/usr/bin:/bin"; st == ST_OK; dirs++) {
        const size_t len = strcspn(dirs, ":");

        buf_reset(path);
        st = buf_printf(path, "%.*s/%s", (int)(len > 0 ? len : 1), len > 0 ? dirs : ".", name);
        if (st == ST_OK && access(path->data, X_OK) == 0) {
            return ST_OK;
        }
        dirs += len;
        if (*dirs == '\0') {
            return err_set(
                err, ST_ERR_NOT_FOUND,
                "no program \"%s\" in PATH: install Open MPI (Debian: openmpi-bin), load "
                "its module, or name it with --mpirun",
                name);
        }
    }
    return err_set(err, st, "no memory to look for \"%s\"", name);
}

/* ---- the child: async-signal-safe calls only ---- */

struct child {
    const char *path;
    char *const *argv;
    char *const *env;
    int out_fd, null_fd, error_fd;
    int parent;
    bool die_with_parent, hold_term;
};

NORETURN static void child_fail(int fd)
{
    const int e = errno;

    (void)!write(fd, &e, sizeof(e));
    _exit(127);
}

static void close_above(int first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)first, ~0u, 0) == 0) {
        return;
    }
#endif
    for (int fd = first; fd < 65536; fd++) {
        close(fd);
    }
}

NORETURN static void child_run(const struct child *c)
{
    sigset_t none;
    int error_fd;

    setsid();
    for (int sig = 1; sig < NSIG; sig++) {
        signal(sig, SIG_DFL);
    }
    sigemptyset(&none);
    if (c->hold_term) {
        sigaddset(&none, SIGTERM);
    }
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (c->die_with_parent) {
        prctl(PR_SET_PDEATHSIG, c->hold_term ? SIGINT : SIGTERM);
        if (getppid() != c->parent) { /* it died before the line above */
            _exit(127);
        }
    }
    /* The pipe first goes out of the way of 0, 1, 2; it closes by itself when exec succeeds. */
    error_fd = fcntl(c->error_fd, F_DUPFD_CLOEXEC, 3);
    if (error_fd < 0 || !fd_put(c->null_fd, 0) ||
        (c->out_fd >= 0 && (!fd_put(c->out_fd, 1) || !fd_put(c->out_fd, 2)))) {
        child_fail(c->error_fd);
    }
    if (error_fd != 3 && (!fd_put(error_fd, 3) || fcntl(3, F_SETFD, FD_CLOEXEC) != 0)) {
        child_fail(error_fd);
    }
    close_above(4);
    execve(c->path, c->argv, c->env);
    child_fail(3);
}

/* ---- the parent ---- */

static status run(struct child *c, int *pid_p, struct err *err)
{
    int pipe_fd[2], why = 0, pid;
    ssize_t n;

    if (pipe2(pipe_fd, O_CLOEXEC) != 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "no pipe to start %s", c->path);
    }
    c->error_fd = pipe_fd[1];
    c->parent = getpid();
    pid = fork();
    if (pid == 0) {
        child_run(c);
    }
    close(pipe_fd[1]);
    if (pid < 0) {
        close(pipe_fd[0]);
        return err_set_errno(err, ST_ERR_LIMIT, errno, "no process to start %s", c->path);
    }
    do {
        n = read(pipe_fd[0], &why, sizeof(why));
    } while (n < 0 && errno == EINTR);
    close(pipe_fd[0]);
    if (n == (ssize_t)sizeof(why)) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
        return err_set_errno(err, why == ENOENT ? ST_ERR_NOT_FOUND : ST_ERR_IO, why,
                             "%s cannot be run", c->path);
    }
    *pid_p = pid;
    return ST_OK;
}

status process_start(const struct process_config *config, int *pid_p, struct err *err)
{
    struct buf path = BUF_INIT_MAX(8192);
    struct child c = { .out_fd = config->out_fd,
                       .die_with_parent = config->die_with_parent,
                       .hold_term = config->hold_term };
    char **env = NULL;
    status st = find_program(config->argv[0], &path, err);

    if (st != ST_OK) {
        goto free_path;
    }
    env = child_environment(config->env);
    if (!env) {
        st = err_set(err, ST_ERR_NOMEM, "no memory for the environment of %s", path.data);
        goto free_path;
    }
    c.null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (c.null_fd < 0) {
        st = err_set_errno(err, ST_ERR_IO, errno, "/dev/null cannot be opened");
        goto free_env;
    }
    c.path = path.data;
    c.argv = (char *const *)(uintptr_t)config->argv;
    c.env = env;
    st = run(&c, pid_p, err);
    close(c.null_fd);
free_env:
    free(env);
free_path:
    buf_fini(&path);
    return st;
}

/* ---- what is left ---- */

struct stat_line {
    char state;
    int session;
    unsigned long long start_ticks;
};

/* From /proc/PID/stat: "pid (comm) S ppid pgrp session ... (22nd) starttime"; comm may hold spaces
 * and brackets, hence the last ')'. */
static bool stat_read(const char *pid_name, struct stat_line *line_p)
{
    char path[64], text[1024];
    const char *p;
    int fd;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%.20s/stat", pid_name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    do {
        n = read(fd, text, sizeof(text) - 1);
    } while (n < 0 && errno == EINTR);
    close(fd);
    if (n <= 0) {
        return false;
    }
    text[n] = '\0';
    p = strrchr(text, ')');
    return p && sscanf(p + 1,
                       " %c %*d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d "
                       "%llu",
                       &line_p->state, &line_p->session, &line_p->start_ticks) == 3;
}

static bool is_over(const struct stat_line *line)
{
    return line->state == 'Z' || line->state == 'X';
}

static bool in_session(const char *pid_name, int sid)
{
    struct stat_line line;

    return stat_read(pid_name, &line) && line.session == sid && !is_over(&line);
}

uint64_t process_start_ticks(int pid, bool *exists_p)
{
    struct stat_line line;
    char name[16];

    snprintf(name, sizeof(name), "%d", pid);
    *exists_p = stat_read(name, &line);
    return *exists_p && !is_over(&line) ? line.start_ticks : 0;
}

uint32_t process_session_signal(int sid, int sig)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    uint32_t n = 0;

    if (!proc) { /* no /proc: the group is what we can reach */
        return kill(-sid, sig) == 0 ? 1 : 0;
    }
    while ((entry = readdir(proc)) != NULL) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && in_session(entry->d_name, sid)) {
            n++;
            if (sig != 0) {
                (void)kill((pid_t)strtol(entry->d_name, NULL, 10), sig);
            }
        }
    }
    closedir(proc);
    return n;
}
