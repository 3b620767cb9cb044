/* base/secret.h - a secret from a file that only its owner may read. Never from the command line, where everybody
 * on the host sees it. */
#ifndef BASE_SECRET_H
#define BASE_SECRET_H

#include "base/buf.h"

/* The first line of the file, at most 64 KiB in all. ST_ERR_NOT_FOUND; ST_ERR_DENIED: others may read it (names the
 * mode); ST_ERR_FORMAT: the line is empty; ST_ERR_IO, ST_ERR_LIMIT. `secret` is reset first. */
status secret_read(const char *path, struct buf *secret, struct err *err);

#endif
