/* base/fd.h - file descriptors: what read and write leave to their callers. */
#ifndef BASE_FD_H
#define BASE_FD_H

#include "base/err.h"

#include <stddef.h>

/* All of it, however often the system interrupts or takes a part. ST_ERR_IO with errno set. */
status fd_write_all(int fd, const void *data, size_t len) WARN_UNUSED;

#endif
