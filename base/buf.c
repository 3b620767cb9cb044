/* base/buf.c - see buf.h. */
#include "base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char buf_empty[1] = "";

void buf_fini(struct buf *b)
{
    if (b == NULL || b->data == NULL) {
        return;
    }
    if (b->cap != 0) {
        free(b->data);
    }
    b->data = buf_empty;
    b->len = 0;
    b->cap = 0;
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    if (b->cap != 0) {
        b->data[0] = '\0';
    }
}

status buf_reserve(struct buf *b, size_t extra)
{
    if (extra >= b->max || b->len > b->max - extra) {
        return ST_ERR_LIMIT;
    }
    const size_t need = b->len + extra + 1;
    if (need <= b->cap) {
        return ST_OK;
    }
    const size_t cap = MAX(need, b->cap + b->cap / 2 + 64);
    char *data = realloc(b->cap != 0 ? b->data : NULL, cap);

    if (data == NULL) {
        return ST_ERR_NOMEM;
    }
    data[b->len] = '\0';
    b->data = data;
    b->cap = cap;
    return ST_OK;
}

status buf_append(struct buf *b, const void *data, size_t len)
{
    if (len == 0) {
        return ST_OK;
    }
    const status st = buf_reserve(b, len);
    if (st != ST_OK) {
        return st;
    }
    memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
    return ST_OK;
}

status buf_append_str(struct buf *b, const char *str)
{
    return buf_append(b, str, strlen(str));
}

status buf_append_char(struct buf *b, char c)
{
    return buf_append(b, &c, 1);
}

status buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) {
        return ST_ERR_ARG;
    }
    const status st = buf_reserve(b, (size_t)n);
    if (st != ST_OK) {
        return st;
    }
    if (n == 0) {
        return ST_OK;
    }
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return ST_OK;
}

status buf_fail(const struct buf *b, status st, const char *what, struct err *err)
{
    return st == ST_ERR_LIMIT ? err_set(err, st, "%s: over %zu bytes", what, b->max)
                              : err_set(err, st, "%s: no memory", what);
}

void buf_consume(struct buf *b, size_t n)
{
    ASSERT(n <= b->len);
    if (n == 0) {
        return;
    }
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

static status read_all(struct buf *b, int fd, size_t max, const char *path, struct err *err)
{
    for (;;) {
        const size_t room = MIN((size_t)1 << 16, max + 1 - b->len);
        if (room == 0) {
            return err_set(err, ST_ERR_LIMIT, "%s: larger than the limit of %zu bytes", path, max);
        }
        status st = buf_reserve(b, room);
        if (st != ST_OK) {
            return err_set(err, st, "%s: no memory for a file of over %zu bytes", path, b->len);
        }
        const ssize_t n = read(fd, b->data + b->len, room);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set_errno(err, ST_ERR_IO, errno, "%s: read", path);
        }
        if (n == 0) {
            return ST_OK;
        }
        b->len += (size_t)n;
        b->data[b->len] = '\0';
    }
}

status buf_read_file(struct buf *b, const char *path, size_t max, struct err *err)
{
    struct stat info;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    buf_reset(b);
    if (fd < 0) {
        return err_set_errno(err, errno == ENOENT ? ST_ERR_NOT_FOUND : ST_ERR_IO, errno, "%s: open",
                             path);
    }
    status st = ST_OK;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        st = err_set(err, ST_ERR_IO, "%s: not a regular file", path);
    } else {
        st = read_all(b, fd, max, path, err);
    }
    close(fd);
    return st;
}
