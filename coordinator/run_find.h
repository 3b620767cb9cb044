/* coordinator/run_find.h - a service that runs, found by its run directory (run_dir.h). */
#ifndef COORDINATOR_RUN_FIND_H
#define COORDINATOR_RUN_FIND_H

#include "coordinator/run_dir.h"

struct run_found {
    char path[RUN_DIR_PATH_BYTES];
    char token_path[RUN_DIR_PATH_BYTES + 16];
    char control[300]; /* HOST:PORT that ranks and operators dial */
    char service[300]; /* HOST:PORT of the clients' side; "": it has none (a unix socket) */
};

/* path NULL: the only one below ~/.gantry/run. ST_ERR_NOT_FOUND: none is there (yet). ST_ERR_ARG: several
 * are, and some are named. ST_ERR_FORMAT: endpoint.json is none. */
status run_find(const char *path, struct run_found *found_p, struct err *err);

#endif
