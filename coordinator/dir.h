/* coordinator/dir.h - a folder of the service's own: made with its parents, mode 0700, checked; and
 * small files in it. */
#ifndef COORDINATOR_DIR_H
#define COORDINATOR_DIR_H

#include "base/err.h"

#include <stddef.h>

enum { DIR_PATH_BYTES = 768 };

/* mkdir -p. `what` names it in sentences ("run directory"). ST_ERR_IO, ST_ERR_ARG (not a folder).
 * ST_ERR_DENIED: it has one of the mode bits `mask` (022: others may write) or another owner. */
status dir_make(const char *path, const char *what, unsigned mask, struct err *err);

/* A file of mode 0600, all of it or as it was, also when the machine dies: written beside it, synced and
 * renamed. */
status file_replace(const char *path, const char *data, size_t len, struct err *err);

#endif
