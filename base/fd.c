/* base/fd.c - see fd.h. */
#include "base/fd.h"

#include <errno.h>
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
