/* coordinator/cli/client.c - see client.h. */
#include "coordinator/cli/client.h"
#include "base/secret.h"

#include "coordinator/run_find.h"

#include <string.h>

enum { PEM_BYTES_MAX = 1 << 20 };

void client_opts_rows(struct client_opts *o, struct opt *rows)
{
    const struct opt all[CLIENT_OPT_ROWS] = {
        { OPT_STRING, "connect", "HOST:PORT", &o->connect, 0, 0,
          "where the service listens (default 127.0.0.1:50051)", NULL },
        { OPT_STRING, "run-dir", "DIR", &o->run_dir, 0, 0,
          "run directory of the service, on a file system that we see: says where it listens, and "
          "holds its token",
          NULL },
        { OPT_STRING, "token-file", "FILE", &o->token_file, 0, 0,
          "file of mode 0600 with the service's token in its first line", NULL },
        { OPT_STRING, "tls-ca", "FILE", &o->tls_ca, 0, 0,
          "talk TLS and trust certificates signed by these (PEM)", NULL },
        { OPT_STRING, "tls-cert", "FILE", &o->tls_cert, 0, 0,
          "show this certificate to the service (PEM)", NULL },
        { OPT_STRING, "tls-key", "FILE", &o->tls_key, 0, 0, "its private key (PEM)", NULL },
    };

    memcpy(rows, all, sizeof(all));
}

status pem_read(const char *path, struct buf *b, struct err *err)
{
    const status st = buf_read_file(b, path, PEM_BYTES_MAX, err);

    /* gRPC takes anything and fails later, at each connection and without a reason. */
    if (st == ST_OK && (memchr(b->data, 0, b->len) != NULL || !strstr(b->data, "-----BEGIN "))) {
        return err_set(err, ST_ERR_FORMAT, "%s is not PEM: no line with -----BEGIN in it", path);
    }
    return st;
}

/* What --run-dir says and other options do not. */
static status dir_read(const struct client_opts *o, struct run_found *f,
                       struct client_opts *whole_p, struct err *err)
{
    const status st = run_find(o->run_dir, f, err);

    if (st != ST_OK) {
        return st;
    }
    if (whole_p->connect == NULL && f->service[0] == '\0') {
        return err_set(err, ST_ERR_ARG, "the service of --run-dir %s has no port for clients",
                       f->path);
    }
    whole_p->connect = whole_p->connect != NULL ? whole_p->connect : f->service;
    whole_p->token_file = whole_p->token_file != NULL ? whole_p->token_file : f->token_path;
    return ST_OK;
}

static status files_read(struct client *c, const struct client_opts *o, struct err *err)
{
    status st = ST_OK;

    if ((o->tls_cert == NULL) != (o->tls_key == NULL)) {
        return err_set(err, ST_ERR_ARG, "--tls-cert and --tls-key go together");
    }
    if (o->tls_cert != NULL && o->tls_ca == NULL) {
        return err_set(err, ST_ERR_ARG, "--tls-cert needs --tls-ca: whom to trust");
    }
    if (o->token_file != NULL) {
        st = secret_read(o->token_file, &c->token, err);
    }
    if (st == ST_OK && o->tls_ca != NULL) {
        st = pem_read(o->tls_ca, &c->ca, err);
    }
    if (st == ST_OK && o->tls_cert != NULL) {
        st = pem_read(o->tls_cert, &c->cert, err);
    }
    if (st == ST_OK && o->tls_key != NULL) {
        st = pem_read(o->tls_key, &c->key, err);
    }
    return st;
}

static const char *content(const struct buf *b)
{
    return b->len != 0 ? b->data : NULL;
}

status client_open(struct client *c, const struct client_opts *opts, struct err *err)
{
    struct client_opts whole = *opts;
    const struct client_opts *o = &whole;
    struct run_found found;
    status st = ST_OK;

    *c = (struct client){ .token = BUF_INIT, .ca = BUF_INIT, .cert = BUF_INIT, .key = BUF_INIT };
    if (opts->run_dir != NULL) {
        st = dir_read(opts, &found, &whole, err);
    }
    if (st == ST_OK) {
        st = files_read(c, o, err);
    }
    if (st == ST_OK) {
        st = rpc_loop_create(&c->loop, err);
    }
    if (st == ST_OK) {
        const struct rpc_channel_config config = {
            .target = o->connect != NULL ? o->connect : "127.0.0.1:50051",
            .token = content(&c->token),
            .tls_ca_pem = content(&c->ca),
            .tls_cert_pem = content(&c->cert),
            .tls_key_pem = content(&c->key),
            .message_bytes_max = CLIENT_MESSAGE_BYTES,
            .send_queue_max = 4,
            .keepalive_ms = 0,
        };
        st = rpc_channel_create(c->loop, &config, &c->channel, err);
    }
    if (st < 0) {
        client_close(c);
    }
    return st;
}

void client_close(struct client *c)
{
    rpc_channel_destroy(c->channel);
    rpc_loop_destroy(c->loop);
    c->channel = NULL;
    c->loop = NULL;
    buf_fini(&c->token);
    buf_fini(&c->ca);
    buf_fini(&c->cert);
    buf_fini(&c->key);
}
