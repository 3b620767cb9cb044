/* coordinator/cli/batch_child.c - see batch_child.h. */
#include "coordinator/cli/batch_child.h"

#include "base/buf.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGS_MAX = 256, TAIL_BYTES = 4096, END_S = 60 };

/* ---- start ---- */

/* In the child: only calls that are allowed between fork and exec. */
static void run_serve(const struct batch_child *c, int log_fd, int parent, char *const *argv)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    const int null_fd = open("/dev/null", O_RDONLY);
    if (getppid() != parent) {
        _exit(70); /* nobody is there who would hear why */
    }
    if (null_fd >= 0 && fd_put(null_fd, 0) && fd_put(log_fd, 1) && fd_put(log_fd, 2)) {
        execv("/proc/self/exe", argv);
    }
    dprintf(log_fd, "gantry serve cannot be started for %s: %s\n", c->model, strerror(errno));
    _exit(status_exit_code(ST_ERR_UNAVAILABLE));
}

static status paths_make(struct batch_child *c, struct err *err)
{
    const char *tmp = getenv("TMPDIR");

    /* A socket's path has at most 107 bytes. */
    if (tmp == NULL || tmp[0] != '/' || strlen(tmp) > 40) {
        tmp = "/tmp";
    }
    snprintf(c->dir, sizeof(c->dir), "%s/gantry-XXXXXX", tmp);
    if (mkdtemp(c->dir) == NULL) {
        c->dir[0] = '\0';
        return err_set_errno(err, ST_ERR_IO, errno, "no directory in %s", tmp);
    }
    snprintf(c->target, sizeof(c->target), "unix:%s/socket", c->dir);
    snprintf(c->log_path, sizeof(c->log_path), "%s/log", c->dir);
    return ST_OK;
}

/* `words` are the user's, after ours, so that the last one counts; except where we listen. */
static status argv_make(const struct batch_child *c, char *const *words, int n_words, char *queue,
                        char **argv, struct err *err)
{
    static char program[] = "gantry", serve[] = "serve", listen_at[] = "--listen",
                queue_word[] = "--queue";
    int n = 0;

    if (n_words > ARGS_MAX - 8) {
        return err_set(err, ST_ERR_ARG, "%d words for gantry serve; at most %d", n_words,
                       ARGS_MAX - 8);
    }
    for (int i = 0; i < n_words; i++) {
        if (strncmp(words[i], "--listen", 8) == 0 || strncmp(words[i], "--token-file", 12) == 0 ||
            strncmp(words[i], "--tls", 5) == 0 || strcmp(words[i], "--dry-run") == 0) {
            return err_set(err, ST_ERR_ARG, "%s makes no sense for a batch: it listens on no port",
                           words[i]);
        }
    }
    argv[n++] = program;
    argv[n++] = serve;
    argv[n++] = (char *)(uintptr_t)c->model; /* execv takes no const */
    argv[n++] = queue_word;
    argv[n++] = queue;
    for (int i = 0; i < n_words; i++) {
        argv[n++] = words[i];
    }
    argv[n++] = listen_at;
    argv[n++] = (char *)(uintptr_t)c->target;
    argv[n] = NULL;
    return ST_OK;
}

status batch_child_start(struct batch_child *c, char *const *args, int n_args, uint32_t queue,
                         struct err *err)
{
    char *argv[ARGS_MAX + 1], queue_text[16];
    int log_fd = -1;
    status st = paths_make(c, err);

    /* The canary and a request whose predecessor is on its way out need room, too. */
    snprintf(queue_text, sizeof(queue_text), "%u", MAX(queue * 2, 256u));
    if (st == ST_OK) {
        st = argv_make(c, args, n_args, queue_text, argv, err);
    }
    if (st == ST_OK) {
        log_fd = open(c->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0) {
            st = err_set_errno(err, ST_ERR_IO, errno, "%s", c->log_path);
        }
    }
    if (st < 0) {
        return st;
    }
    fflush(NULL);
    const int parent = (int)getpid();
    const int pid = (int)fork();
    if (pid == 0) {
        run_serve(c, log_fd, parent, argv);
    }
    if (pid < 0) {
        st = err_set_errno(err, ST_ERR_LIMIT, errno, "gantry serve cannot be started");
    }
    close(log_fd);
    c->pid = pid > 0 ? pid : 0;
    return st;
}

/* ---- what it says ---- */

static size_t tail_read(const struct batch_child *c, char *tail, size_t bytes)
{
    const int fd = open(c->log_path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    ssize_t n = 0;

    if (fd >= 0) {
        const off_t from =
            fstat(fd, &info) == 0 && info.st_size > (off_t)bytes ? info.st_size - (off_t)bytes : 0;
        n = pread(fd, tail, bytes, from);
        close(fd);
    }
    return n > 0 ? (size_t)n : 0;
}

const char *batch_child_last_line(struct batch_child *c)
{
    char tail[sizeof(c->last)];
    size_t n = tail_read(c, tail, sizeof(tail) - 1);

    while (n > 0 && tail[n - 1] == '\n') {
        n--;
    }
    tail[n] = '\0';
    const char *line = strrchr(tail, '\n');
    snprintf(c->last, sizeof(c->last), "%s",
             n == 0         ? "gantry serve"
             : line != NULL ? line + 1
                            : tail);
    return c->last;
}

void batch_child_print_tail(const struct batch_child *c, bool matters)
{
    char tail[TAIL_BYTES + 1];

    if (!matters) {
        return;
    }
    tail[tail_read(c, tail, TAIL_BYTES)] = '\0';
    fprintf(stderr, "the last words of gantry serve:\n");
    for (char *line = strtok(tail, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        fprintf(stderr, "  | %s\n", line);
    }
}

/* ---- the end ---- */

bool batch_child_ended(struct batch_child *c, int *code_p)
{
    int how;

    if (c->pid == 0 || waitpid(c->pid, &how, WNOHANG) != c->pid) {
        return false;
    }
    c->pid = 0;
    *code_p = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
    return true;
}

void batch_child_end(struct batch_child *c)
{
    char path[96];
    int code;

    if (c->pid != 0) {
        kill(c->pid, SIGTERM);
        kill(c->pid, SIGTERM); /* again: running answers need not end */
    }
    for (int ms = 0; c->pid != 0 && !batch_child_ended(c, &code); ms += 20) {
        if (ms == END_S * 1000) {
            kill(c->pid, SIGKILL);
        }
        usleep(20000);
    }
    if (c->dir[0] != '\0') {
        unlink(c->log_path);
        snprintf(path, sizeof(path), "%s/socket", c->dir);
        unlink(path);
        rmdir(c->dir);
        c->dir[0] = '\0';
    }
}
