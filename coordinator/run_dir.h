/* coordinator/run_dir.h - where a running service can be found: token, endpoint, log.
 *
 *   ~/.gantry/run/<host>-<pid>/   mode 0700
 *     token           mode 0600: 64 hex digits, or what was given; asked of every rank
 *     endpoint.json   host, port, control, control_port, pid, profile, model, weights_digest
 *     mpirun.log      what mpirun and the ranks said; stays when the service failed
 *
 * endpoint.json is replaced by rename, so a reader sees all of it or none. One owner thread. */
#ifndef COORDINATOR_RUN_DIR_H
#define COORDINATOR_RUN_DIR_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum { RUN_DIR_PATH_BYTES = 768, RUN_DIR_TOKEN_BYTES = 1025 };

struct run_dir {
    char path[RUN_DIR_PATH_BYTES];
    char token_path[RUN_DIR_PATH_BYTES + 16];
    char token[RUN_DIR_TOKEN_BYTES];
    bool is_default; /* we chose the name: the directory goes with the service */
    bool is_open;
};

struct run_endpoint {
    const char *host;
    uint16_t port, control_port;
    const char *control; /* HOST:PORT that ranks and operators dial */
    const char *profile, *model, *weights_digest, *state;
};

/* Make the directory (and its parents) and a fresh token. path NULL: the default.
 * ST_ERR_IO, ST_ERR_DENIED (others may write there), ST_ERR_EXISTS (a service that runs uses it;
 * names its pid). */
status run_dir_open(const char *path, struct run_dir *dir_p, struct err *err);
/* Another token in place of the fresh one. ST_ERR_LIMIT: more than 1,024 bytes. */
status run_dir_token(struct run_dir *dir, const char *token, struct err *err);
/* The same, but a token that is there already stays: ranks of a service before know it. */
status run_dir_open_kept(const char *path, struct run_dir *dir_p, struct err *err);
status run_dir_endpoint(const struct run_dir *dir, const struct run_endpoint *e, struct err *err);
/* Token and endpoint go; the log too, and a default directory, if `clean`. Zeroed storage is fine.
 */
void run_dir_close(struct run_dir *dir, bool clean);

#endif
