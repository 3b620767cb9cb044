/* base/buf.h - a growable byte string: text being built, a message being packed, output of a child.
 *
 * Invariant: data[len] is always NUL, so that `data` is a C string where the content has no NUL of
 * its own. BUF_INIT needs no allocation. Every call that may grow has a hard bound (`max`), because
 * most of what is appended comes from outside. One owner, no locks. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include "base/err.h"

struct buf {
    char *data; /* owned; never NULL (points to a static empty string before the first growth) */
    size_t len; /* bytes used, the NUL not counted */
    size_t cap; /* bytes allocated, 0 before the first growth */
    size_t max; /* bytes at most; growing past it fails with ST_ERR_LIMIT */
};

extern char buf_empty[1];
#define BUF_INIT                                                                                   \
    {                                                                                              \
        buf_empty, 0, 0, (size_t)1 << 30                                                           \
    }
#define BUF_INIT_MAX(m)                                                                            \
    {                                                                                              \
        buf_empty, 0, 0, (m)                                                                       \
    }

void buf_fini(struct buf *b);  /* frees; the buf is as after BUF_INIT, its bound kept */
void buf_reset(struct buf *b); /* len = 0, memory kept */

/* ST_ERR_NOMEM or ST_ERR_LIMIT: nothing was appended. */
status buf_reserve(struct buf *b, size_t extra) WARN_UNUSED; /* room for len + extra */
status buf_append(struct buf *b, const void *data, size_t len) WARN_UNUSED;
status buf_append_str(struct buf *b, const char *str) WARN_UNUSED;
status buf_append_char(struct buf *b, char c) WARN_UNUSED;
status buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* What a failed append above means for `what`: the sentence, and `st` again. */
status buf_fail(const struct buf *b, status st, const char *what, struct err *err);

/* Drop the first n bytes (n <= len). */
void buf_consume(struct buf *b, size_t n);

/* Read a whole file of at most `max` bytes. ST_ERR_NOT_FOUND, ST_ERR_IO, ST_ERR_LIMIT; the sentence
 * names the path and the limit. `b` is reset first. */
status buf_read_file(struct buf *b, const char *path, size_t max, struct err *err) WARN_UNUSED;

#endif
