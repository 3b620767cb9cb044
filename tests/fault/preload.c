/* tests/fault/preload.c - makes the n-th call of a kind fail, in one process of a running service.
 *
 *   driver ── maps GANTRY_FAULT_FILE ──► struct fault_board ◄── the process whose role fits
 *     sets kind and countdown, any time            counts its calls; the one that reaches 0 fails
 *
 * Loaded by LD_PRELOAD. Only calls from the program's own text count (what Gantry must handle): what
 * gRPC and MPI do with a failed allocation is to abort, and not ours to change. A refused connection
 * is one of gRPC's, so that kind counts every caller's. Roles: "serve" is the coordinator, "leader" is
 * rank 0. EINTR strikes what can sleep: not open(), which Linux does not interrupt on files. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum fault_kind { ALLOC, EINTR_CALL, SHORT, NO_SPACE, NO_FILES, IO_ERROR, REFUSED, N_KINDS };

/* Read and written by the driver too (struct format "<7QqQQ"). */
struct fault_board {
    _Atomic uint64_t calls[N_KINDS]; /* so far */
    _Atomic int64_t countdown;       /* > 0: this many more calls of `kind`, the last one fails */
    _Atomic uint64_t kind, hits;
};

static struct fault_board *board; /* NULL: another process is meant */
static uintptr_t text_begin, text_end;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* ---- who we are ---- */

static int program_text(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size, (void)arg;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X) != 0) {
            text_begin = info->dlpi_addr + p->p_vaddr;
            text_end = text_begin + p->p_memsz;
        }
    }
    return 1; /* the program comes first */
}

static bool role_fits(const char *role)
{
    char line[256] = "";
    const int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd >= 0 ? read(fd, line, sizeof(line) - 1) : 0;
    const char *word = line + strlen(line) + 1; /* argv[1] */
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");

    if (fd >= 0) {
        close(fd);
    }
    if (n <= 0 || word >= line + n) {
        return false;
    }
    if (strcmp(role, "serve") == 0) {
        return strcmp(word, "serve") == 0;
    }
    return strcmp(word, "worker") == 0 && rank != NULL && strcmp(rank, "0") == 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("GANTRY_FAULT_FILE"), *role = getenv("GANTRY_FAULT_ROLE");

    if (path == NULL || role == NULL || !role_fits(role)) {
        return;
    }
    dl_iterate_phdr(program_text, NULL);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        void *at = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        board = at != MAP_FAILED ? at : NULL;
    }
}

/* ---- the count ---- */

/* Is this call the one? */
static bool strikes(enum fault_kind kind, const void *caller)
{
    const uintptr_t at = (uintptr_t)caller;

    if (board == NULL || (kind != REFUSED && (at < text_begin || at >= text_end))) {
        return false;
    }
    atomic_fetch_add(&board->calls[kind], 1);
    if (atomic_load(&board->kind) != (uint64_t)kind || atomic_load(&board->countdown) <= 0) {
        return false;
    }
    if (atomic_fetch_sub(&board->countdown, 1) != 1) {
        return false;
    }
    atomic_fetch_add(&board->hits, 1);
    return true;
}

#define CALLER __builtin_return_address(0)

static bool fails(enum fault_kind kind, int errnum, const void *caller)
{
    if (!strikes(kind, caller)) {
        return false;
    }
    errno = errnum;
    return true;
}

/* ---- memory ---- */

/* dlsym may allocate: these use glibc's own names. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

void *malloc(size_t n)
{
    return fails(ALLOC, ENOMEM, CALLER) ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails(ALLOC, ENOMEM, CALLER) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails(ALLOC, ENOMEM, CALLER) ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    return fails(ALLOC, ENOMEM, CALLER) ? NULL : __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    if (strikes(ALLOC, CALLER)) {
        return ENOMEM;
    }
    *p = __libc_memalign(align, n);
    return *p != NULL ? 0 : ENOMEM;
}

/* ---- files ---- */

static size_t cut(size_t n, const void *caller)
{
    return n > 1 && strikes(SHORT, caller) ? n / 2 : n;
}

ssize_t read(int fd, void *buf, size_t n)
{
    if (fails(EINTR_CALL, EINTR, CALLER) || fails(IO_ERROR, EIO, CALLER)) {
        return -1;
    }
    return REAL(read)(fd, buf, cut(n, CALLER));
}

ssize_t pread(int fd, void *buf, size_t n, off_t at)
{
    if (fails(EINTR_CALL, EINTR, CALLER) || fails(IO_ERROR, EIO, CALLER)) {
        return -1;
    }
    return REAL(pread)(fd, buf, cut(n, CALLER), at);
}

ssize_t pread64(int fd, void *buf, size_t n, off64_t at)
{
    if (fails(EINTR_CALL, EINTR, CALLER) || fails(IO_ERROR, EIO, CALLER)) {
        return -1;
    }
    return REAL(pread64)(fd, buf, cut(n, CALLER), at);
}

ssize_t write(int fd, const void *buf, size_t n)
{
    if (fails(EINTR_CALL, EINTR, CALLER) || fails(NO_SPACE, ENOSPC, CALLER)) {
        return -1;
    }
    return REAL(write)(fd, buf, cut(n, CALLER));
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t at)
{
    if (fails(EINTR_CALL, EINTR, CALLER) || fails(NO_SPACE, ENOSPC, CALLER)) {
        return -1;
    }
    return REAL(pwrite)(fd, buf, cut(n, CALLER), at);
}

#define OPEN_BODY(name, dir_args)                                                                  \
    va_list ap;                                                                                    \
    va_start(ap, flags);                                                                           \
    const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(ap, mode_t) : 0;             \
    va_end(ap);                                                                                    \
    if (fails(NO_FILES, EMFILE, CALLER) ||                                                         \
        ((flags & O_CREAT) != 0 && fails(NO_SPACE, ENOSPC, CALLER))) {                             \
        return -1;                                                                                 \
    }                                                                                              \
    return REAL(name) dir_args

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
    if (fails(NO_FILES, EMFILE, CALLER) || (mode[0] != 'r' && fails(NO_SPACE, ENOSPC, CALLER))) {
        return NULL;
    }
    return REAL(fopen)(path, mode);
}

int mkdir(const char *path, mode_t mode)
{
    return fails(NO_SPACE, ENOSPC, CALLER) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to)
{
    return fails(NO_SPACE, ENOSPC, CALLER) ? -1 : REAL(rename)(from, to);
}

int ftruncate(int fd, off_t n)
{
    return fails(EINTR_CALL, EINTR, CALLER) ? -1 : REAL(ftruncate)(fd, n);
}

int pipe2(int fds[2], int flags)
{
    return fails(NO_FILES, EMFILE, CALLER) ? -1 : REAL(pipe2)(fds, flags);
}

/* ---- waiting, sockets ---- */

int poll(struct pollfd *fds, nfds_t n, int ms)
{
    return fails(EINTR_CALL, EINTR, CALLER) ? -1 : REAL(poll)(fds, n, ms);
}

pid_t waitpid(pid_t pid, int *how, int options)
{
    return fails(EINTR_CALL, EINTR, CALLER) ? -1 : REAL(waitpid)(pid, how, options);
}

int socket(int domain, int type, int protocol)
{
    return fails(NO_FILES, EMFILE, CALLER) ? -1 : REAL(socket)(domain, type, protocol);
}

int connect(int fd, const struct sockaddr *to, socklen_t n)
{
    return fails(REFUSED, ECONNREFUSED, CALLER) ? -1 : REAL(connect)(fd, to, n);
}
