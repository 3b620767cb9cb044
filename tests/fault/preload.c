/* tests/fault/preload.c - the functions that can be made to fail; loaded by LD_PRELOAD. See board.h.
 *
 * Each asks fault_now() whether it is the one that fails, and else does what it is for. A *short* call
 * does half of what it was asked, where the kernel may do so too: on files, pipes and sockets. stdio
 * fails at its own calls, because those it makes itself do not come by here. */
#include "board.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALLER __builtin_return_address(0)

#define REAL(name)                                                                                 \
    ({                                                                                             \
        static __typeof__(&name) real_;                                                            \
        if (real_ == NULL) {                                                                       \
            real_ = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                    \
        }                                                                                          \
        real_;                                                                                     \
    })

/* Ends the function when this call fails. */
#define FAIL(name, failed)                                                                         \
    const int fault_ = fault_now(#name, CALLER);                                                   \
    if (fault_ != 0 && fault_ != FAULT_SHORT) {                                                    \
        errno = fault_;                                                                            \
        return failed;                                                                             \
    }

#define WRAP(type, name, params, args, failed)                                                     \
    type name params                                                                               \
    {                                                                                              \
        FAIL(name, failed)                                                                         \
        return REAL(name) args;                                                                    \
    }

/* ---- memory ---- */

/* dlsym may allocate: these use glibc's own names. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);
extern void __libc_free(void *p);

static void *made(void *block, size_t bytes, uint64_t site)
{
    live_add(block, bytes, site);
    return block;
}

#define FAIL_ALLOC(name, failed)                                                                   \
    uint64_t site;                                                                                 \
    if (fault_alloc_now(#name, CALLER, &site) != 0) {                                              \
        errno = ENOMEM;                                                                            \
        return failed;                                                                             \
    }

void *malloc(size_t n)
{
    FAIL_ALLOC(malloc, NULL)
    return made(__libc_malloc(n), n, site);
}

void *calloc(size_t n, size_t size)
{
    FAIL_ALLOC(calloc, NULL)
    return made(__libc_calloc(n, size), n * size, site);
}

void *realloc(void *p, size_t n)
{
    FAIL_ALLOC(realloc, NULL)
    live_remove(p); /* first: its address may be another's at once */
    void *block = __libc_realloc(p, n);
    return made(block != NULL || n == 0 ? block : p, n, site) == block ? block : NULL;
}

void *aligned_alloc(size_t align, size_t n)
{
    FAIL_ALLOC(aligned_alloc, NULL)
    return made(__libc_memalign(align, n), n, site);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    FAIL_ALLOC(posix_memalign, ENOMEM)
    *p = made(__libc_memalign(align, n), n, site);
    return *p != NULL ? 0 : ENOMEM;
}

void free(void *p)
{
    live_remove(p);
    __libc_free(p);
}

WRAP(void *, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t from),
     (at, n, prot, flags, fd, from), MAP_FAILED)

/* ---- files ---- */

/* A small write to a pipe is done whole. */
static bool may_be_short(int fd, bool writes, size_t n)
{
    struct stat info;

    return fstat(fd, &info) == 0 && (S_ISREG(info.st_mode) || S_ISSOCK(info.st_mode) ||
                                     (S_ISFIFO(info.st_mode) && !(writes && n <= PIPE_BUF)));
}

static size_t cut(size_t n, int fd, bool writes, int fault)
{
    return fault == FAULT_SHORT && n > 1 && may_be_short(fd, writes, n) ? n / 2 : n;
}

#define WRAP_BYTES(name, buffer, writes, more_params, more_args)                                   \
    ssize_t name(int fd, buffer buf, size_t n more_params)                                         \
    {                                                                                              \
        FAIL(name, -1)                                                                             \
        return REAL(name)(fd, buf, cut(n, fd, writes, fault_) more_args);                          \
    }

#define AND(...) , __VA_ARGS__

WRAP_BYTES(read, void *, false, , )
WRAP_BYTES(pread, void *, false, AND(off_t at), AND(at))
WRAP_BYTES(pread64, void *, false, AND(off64_t at), AND(at))
WRAP_BYTES(recv, void *, false, AND(int flags), AND(flags))
WRAP_BYTES(write, const void *, true, , )
WRAP_BYTES(pwrite, const void *, true, AND(off_t at), AND(at))
WRAP_BYTES(pwrite64, const void *, true, AND(off64_t at), AND(at))
WRAP_BYTES(send, const void *, true, AND(int flags), AND(flags))

/* With O_CREAT a name of its own: only that can find the disk full. */
#define OPEN_BODY(name, args)                                                                      \
    va_list ap;                                                                                    \
    va_start(ap, flags);                                                                           \
    const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(ap, mode_t) : 0;             \
    va_end(ap);                                                                                    \
    const int fault = fault_now((flags & O_CREAT) != 0 ? "create" : "open", CALLER);               \
    if (fault != 0) {                                                                              \
        errno = fault;                                                                             \
        return -1;                                                                                 \
    }                                                                                              \
    return REAL(name) args

int open(const char *path, int flags, ...)
{
    OPEN_BODY(open, (path, flags, mode));
}

int open64(const char *path, int flags, ...)
{
    OPEN_BODY(open64, (path, flags, mode));
}

int openat(int dir, const char *path, int flags, ...)
{
    OPEN_BODY(openat, (dir, path, flags, mode));
}

FILE *fopen(const char *path, const char *mode)
{
    const int fault = fault_now(mode[0] == 'r' ? "fopen" : "fcreate", CALLER);

    if (fault != 0) {
        errno = fault;
        return NULL;
    }
    return REAL(fopen)(path, mode);
}

int fclose(FILE *file)
{
    const int fault = fault_now("fclose", CALLER);
    const int rc = REAL(fclose)(file); /* closed in any case */

    if (fault != 0) {
        errno = fault;
        return EOF;
    }
    return rc;
}

WRAP(FILE *, fdopen, (int fd, const char *mode), (fd, mode), NULL)
WRAP(int, fflush, (FILE * file), (file), EOF)

size_t fwrite(const void *from, size_t size, size_t n, FILE *file)
{
    const int fault = fault_now("fwrite", CALLER);

    if (fault != 0) {
        file->_flags |= 0x20; /* glibc's mark behind ferror() */
        errno = fault;
        return 0;
    }
    return REAL(fwrite)(from, size, n, file);
}

WRAP(DIR *, opendir, (const char *path), (path), NULL)
WRAP(struct dirent *, readdir, (DIR * dir), (dir), NULL)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), -1)
WRAP(char *, mkdtemp, (char *name), (name), NULL)
WRAP(int, mkstemp, (char *name), (name), -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), -1)
WRAP(int, unlink, (const char *path), (path), -1)
WRAP(int, rmdir, (const char *path), (path), -1)
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), -1)
WRAP(int, fsync, (int fd), (fd), -1)
WRAP(int, fdatasync, (int fd), (fd), -1)
WRAP(int, fchmod, (int fd, mode_t mode), (fd, mode), -1)
WRAP(int, flock, (int fd, int how), (fd, how), -1)
WRAP(off_t, lseek, (int fd, off_t at, int from), (fd, at, from), -1)
WRAP(int, stat, (const char *path, struct stat *info), (path, info), -1)
WRAP(char *, realpath, (const char *path, char *out), (path, out), NULL)
WRAP(ssize_t, readlink, (const char *path, char *out, size_t n), (path, out, n), -1)

/* ---- processes and threads ---- */

WRAP(int, pipe, (int fds[2]), (fds), -1)
WRAP(int, pipe2, (int fds[2], int flags), (fds, flags), -1)
WRAP(int, eventfd, (unsigned int n, int flags), (n, flags), -1)
WRAP(int, dup, (int fd), (fd), -1)
WRAP(int, dup2, (int fd, int to), (fd, to), -1)
WRAP(int, dup3, (int fd, int to, int flags), (fd, to, flags), -1)
WRAP(pid_t, fork, (void), (), -1)
WRAP(int, execv, (const char *path, char *const args[]), (path, args), -1)
WRAP(int, execve, (const char *path, char *const args[], char *const env[]), (path, args, env), -1)
WRAP(int, execvp, (const char *path, char *const args[]), (path, args), -1)
WRAP(int, execvpe, (const char *path, char *const args[], char *const env[]), (path, args, env), -1)
WRAP(pid_t, waitpid, (pid_t pid, int *how, int options), (pid, how, options), -1)
WRAP(int, setpgid, (pid_t pid, pid_t group), (pid, group), -1)
WRAP(int, setrlimit, (__rlimit_resource_t what, const struct rlimit *limit), (what, limit), -1)
WRAP(int, sched_setaffinity, (pid_t pid, size_t n, const cpu_set_t *set), (pid, n, set), -1)
WRAP(ssize_t, getrandom, (void *to, size_t n, unsigned int flags), (to, n, flags), -1)

/* A thread's stack goes back to a cache, and with it what hangs on it. */
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *arg)
{
    const int fault = fault_now("pthread_create", CALLER);

    if (fault != 0) {
        return fault;
    }
    live_pause(true);
    const int rc = REAL(pthread_create)(thread, how, run, arg);
    live_pause(false);
    return rc;
}

/* ---- waiting, sockets ---- */

WRAP(int, poll, (struct pollfd * fds, nfds_t n, int ms), (fds, n, ms), -1)
WRAP(int, nanosleep, (const struct timespec *time, struct timespec *left), (time, left), -1)
WRAP(int, epoll_create1, (int flags), (flags), -1)
WRAP(int, epoll_wait, (int fd, struct epoll_event *events, int n, int ms), (fd, events, n, ms), -1)
WRAP(int, epoll_ctl, (int fd, int op, int of, struct epoll_event *event), (fd, op, of, event), -1)
WRAP(int, socket, (int domain, int type, int protocol), (domain, type, protocol), -1)
WRAP(int, connect, (int fd, const struct sockaddr *to, socklen_t n), (fd, to, n), -1)
WRAP(int, bind, (int fd, const struct sockaddr *to, socklen_t n), (fd, to, n), -1)
WRAP(int, listen, (int fd, int n), (fd, n), -1)
WRAP(int, accept4, (int fd, struct sockaddr *from, socklen_t *n, int flags), (fd, from, n, flags),
     -1)
WRAP(int, getsockname, (int fd, struct sockaddr *to, socklen_t *n), (fd, to, n), -1)
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags), -1)
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags), -1)

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **all_p)
{
    const int fault = fault_now("getaddrinfo", CALLER);

    return fault != 0 ? fault : REAL(getaddrinfo)(host, port, hints, all_p);
}
