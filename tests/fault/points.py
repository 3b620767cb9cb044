"""What can go wrong with which call, and how what went wrong is told."""
import board

ALLOCATIONS = ("malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign")
ERRORS = {
    **{call: ["ENOMEM"] for call in ALLOCATIONS}, "mmap": ["ENOMEM"],
    "read": ["EINTR", "short", "EIO"], "pread": ["EINTR", "short", "EIO"], "recv": ["EINTR", "short", "ECONNRESET"],
    "write": ["EINTR", "short", "ENOSPC"], "pwrite": ["EINTR", "short", "ENOSPC"], "send": ["EINTR", "short", "EPIPE"],
    "open": ["EMFILE"], "create": ["ENOSPC", "EMFILE"], "fopen": ["EMFILE"], "fcreate": ["ENOSPC"], "fdopen": ["ENOMEM"],
    "fclose": ["ENOSPC"], "fflush": ["ENOSPC"], "fwrite": ["ENOSPC"], "opendir": ["EMFILE"], "readdir": ["EIO"],
    "mkdir": ["ENOSPC"], "mkdtemp": ["ENOSPC"], "mkstemp": ["ENOSPC"], "rename": ["ENOSPC"], "unlink": ["EIO"], "rmdir": ["EIO"],
    "ftruncate": ["EINTR", "EIO"], "fsync": ["EIO"], "fdatasync": ["EIO"], "fchmod": ["EPERM"], "flock": ["EINTR", "ENOLCK"],
    "lseek": ["EIO"], "stat": ["ENOMEM"], "realpath": ["ENOMEM"], "readlink": ["EACCES"],
    "pipe": ["EMFILE"], "pipe2": ["EMFILE"], "eventfd": ["EMFILE"], "dup": ["EMFILE"], "dup2": ["EINTR", "EMFILE"],
    "dup3": ["EINTR", "EMFILE"], "fork": ["EAGAIN"], "execv": ["ENOMEM"], "execve": ["ENOMEM"], "execvp": ["ENOMEM"],
    "waitpid": ["EINTR"], "setpgid": ["EACCES"], "setrlimit": ["EPERM"], "sched_setaffinity": ["EINVAL"],
    "pthread_create": ["EAGAIN"], "poll": ["EINTR"], "nanosleep": ["EINTR"],
    "epoll_create1": ["EMFILE"], "epoll_wait": ["EINTR"], "epoll_ctl": ["ENOSPC"], "socket": ["EMFILE"],
    "connect": ["ECONNREFUSED", "EINTR"], "bind": ["EADDRINUSE"], "listen": ["EADDRINUSE"], "accept4": ["EMFILE", "ECONNABORTED"],
    "getsockname": ["ENOBUFS"], "recvmsg": ["EINTR", "ECONNRESET"], "sendmsg": ["EINTR", "EPIPE"],
    "getaddrinfo": ["EAI_AGAIN", "EAI_MEMORY"],
}
# Of other libraries: where a network or a full machine may fail them. Their allocations are asked for apart (--foreign).
FOREIGN = {"socket", "connect", "bind", "listen", "accept4", "recvmsg", "sendmsg", "epoll_create1", "epoll_wait", "epoll_ctl", "poll",
           "eventfd", "pthread_create", "getaddrinfo"}
INVISIBLE = {"EINTR", "short"}  # nobody may notice


class Point:
    """The n-th call of a site fails with an error."""

    def __init__(self, site, error, n):
        self.site, self.error, self.n = site, error, n

    @property
    def is_invisible(self):
        return self.error in INVISIBLE and self.site.is_ours

    def arm(self, page):
        page.arm(self.site, board.code(self.error), self.n)

    def words(self, names):
        return f"{self.error} at call {self.n} of {names.of(self.site)}"


def is_wanted(site, foreign):
    """foreign: "calls", "allocations" or None."""
    if site.is_ours:
        return foreign is None
    return (foreign == "calls" and site.call in FOREIGN) or (foreign == "allocations" and site.call in ALLOCATIONS)


def plan(sites, rng, foreign=None, late=True):
    """Every error of every site, at its first call and, where it has more, at a later one."""
    points = []
    for site in sorted(sites, key=lambda s: s.id):
        if not is_wanted(site, foreign):
            continue
        for error in ERRORS.get(site.call, []):
            points.append(Point(site, error, 1))
            if late and site.calls > 1:
                points.append(Point(site, error, rng.randrange(2, site.calls + 1)))
    return points
