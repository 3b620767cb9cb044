/* base/fd.c - see fd.h. */
#include "base/fd.h"

#include <errno.h>
#include <sys/file.h>
#include <unistd.h>

status fd_write_all(int fd, const void *data, size_t len)
{
    const char *at = data;

    while (len != 0) {
        const ssize_t n = write(fd, at, len);
        if (n < 0 && errno != EINTR) {
            return ST_ERR_IO;
        }
        at += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return ST_OK;
}

ssize_t fd_read(int fd, void *data, size_t len)
{
    ssize_t n;

    do {
        n = read(fd, data, len);
    } while (n < 0 && errno == EINTR);
    return n;
}

bool fd_lock(int fd)
{
    int rc;

    do {
        rc = flock(fd, LOCK_EX | LOCK_NB);
    } while (rc != 0 && errno == EINTR);
    return rc == 0;
}

bool fd_put(int fd, int at)
{
    int rc;

    do {
        rc = dup2(fd, at);
    } while (rc < 0 && errno == EINTR);
    return rc == at;
}

int fd_truncate(int fd, off_t len)
{
    int rc;

    do {
        rc = ftruncate(fd, len);
    } while (rc != 0 && errno == EINTR);
    return rc;
}
