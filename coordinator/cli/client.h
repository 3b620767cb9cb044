/* coordinator/cli/client.h - what the commands that talk to a service share: where it is, how to
 * prove who asks, one loop and one channel. */
#ifndef COORDINATOR_CLI_CLIENT_H
#define COORDINATOR_CLI_CLIENT_H

#include "base/buf.h"
#include "base/opts.h"
#include "cluster/rpc.h"

enum { CLIENT_OPT_ROWS = 6, CLIENT_MESSAGE_BYTES = 16 << 20 };

struct client_opts { /* zero it first */
    const char *connect, *run_dir, *token_file, *tls_ca, *tls_cert, *tls_key;
};

struct client {
    struct rpc_loop *loop;       /* owned */
    struct rpc_channel *channel; /* owned */
    struct buf token, ca, cert, key;
};

/* Fill rows[0 .. CLIENT_OPT_ROWS). */
void client_opts_rows(struct client_opts *o, struct opt *rows);
/* Reads the files, makes loop and channel (nothing is sent yet). ST_ERR_NOT_FOUND: --run-dir has no service (yet). */
status client_open(struct client *c, const struct client_opts *o, struct err *err);
void client_close(struct client *c);
/* A whole file into `b` (reset first). */
status pem_read(const char *path, struct buf *b, struct err *err);

#endif
