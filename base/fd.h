/* base/fd.h - file descriptors: what read and write leave to their callers. */
#ifndef BASE_FD_H
#define BASE_FD_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* All of it, however often the system interrupts or takes a part. ST_ERR_IO with errno set. */
status fd_write_all(int fd, const void *data, size_t len) WARN_UNUSED;

/* As read, but not to be interrupted. */
ssize_t fd_read(int fd, void *data, size_t len);

/* As dup2, but not to be interrupted; for a child before its exec, too. */
bool fd_put(int fd, int at);

/* As ftruncate, but not to be interrupted. */
int fd_truncate(int fd, off_t len);

/* Takes the whole file for this descriptor, without waiting. False with errno set: EWOULDBLOCK is another's lock. */
bool fd_lock(int fd);

#endif
