/* cluster/rpc_grpc_listen.c - where a server may listen, with which certificates, and why not.
 *
 * gRPC answers a failed listen with port 0 and no reason. So the address is judged before (is it
 * one, is it loopback, what guards it), and after a failure a plain socket tries the same bind to
 * learn the reason. */
#include "cluster/rpc_grpc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct address {
    char host[256]; /* without brackets */
    char port[8];
};

static bool is_unix(const char *listen_at)
{
    return strncmp(listen_at, "unix:", 5) == 0;
}

/* "unix:/path", behind the permissions of its directory. */
static status unix_check(const char *listen_at, struct err *err)
{
    struct sockaddr_un room;
    const size_t len = strlen(listen_at + 5);

    if (listen_at[5] != '/' || len >= sizeof(room.sun_path)) {
        return err_set(err, ST_ERR_ARG,
                       "listen address \"%s\": a socket is unix: and an absolute path of at most "
                       "%zu bytes",
                       listen_at, sizeof(room.sun_path) - 1);
    }
    return ST_OK;
}

/* "host:port" or "[v6]:port". */
static status address_parse(const char *listen_at, struct address *address_p, struct err *err)
{
    struct address a;
    const char *colon = strrchr(listen_at, ':');
    const char *host = listen_at;
    size_t host_len = colon == NULL ? 0 : (size_t)(colon - listen_at);
    char *end;
    unsigned long port;

    if (host_len >= 2 && host[0] == '[' && host[host_len - 1] == ']') {
        host++;
        host_len -= 2;
    } else if (memchr(listen_at, ':', host_len) != NULL) {
        host_len = 0; /* a bare IPv6 address: which colon is the port's? */
    }
    if (host_len == 0 || host_len >= sizeof(a.host)) {
        return err_set(err, ST_ERR_ARG, "listen address \"%s\" is not host:port or [IPv6]:port",
                       listen_at);
    }
    port = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || port > 65535) {
        return err_set(err, ST_ERR_ARG, "listen address \"%s\": the port is not 0 to 65535",
                       listen_at);
    }
    memcpy(a.host, host, host_len);
    a.host[host_len] = '\0';
    snprintf(a.port, sizeof(a.port), "%lu", port);
    *address_p = a;
    return ST_OK;
}

static bool is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;

    if (inet_pton(AF_INET, host, &v4) == 1) {
        return ntohl(v4.s_addr) >> 24 == 127;
    }
    if (inet_pton(AF_INET6, host, &v6) == 1) {
        return IN6_IS_ADDR_LOOPBACK(&v6);
    }
    return strcmp(host, "localhost") == 0;
}

status rpc_listen_check(const struct rpc_server_config *config, struct err *err)
{
    struct address a;
    status st;

    if (config->listen == NULL) {
        return err_set(err, ST_ERR_ARG, "no listen address");
    }
    const bool is_local = is_unix(config->listen);
    st = is_local ? unix_check(config->listen, err) : address_parse(config->listen, &a, err);
    if (st == ST_OK && config->token != NULL) {
        st = rpc_token_check(config->token, err);
    }
    if (st != ST_OK) {
        return st;
    }
    if ((config->tls_cert_pem == NULL) != (config->tls_key_pem == NULL)) {
        return err_set(err, ST_ERR_ARG, "%s: a certificate and its key go together",
                       config->listen);
    }
    if (config->tls_client_ca_pem != NULL && config->tls_cert_pem == NULL) {
        return err_set(err, ST_ERR_ARG, "%s: client certificates need a server certificate",
                       config->listen);
    }
    if (!is_local && !is_loopback(a.host) && config->token == NULL &&
        config->tls_client_ca_pem == NULL) {
        return err_set(err, ST_ERR_DENIED,
                       "%s is reachable from other machines: a token or a CA for client "
                       "certificates is needed to listen there",
                       config->listen);
    }
    return ST_OK;
}

status rpc_listen_credentials(const struct rpc_server_config *config,
                              grpc_server_credentials **creds_p, struct err *err)
{
    const grpc_ssl_pem_key_cert_pair pair = { config->tls_key_pem, config->tls_cert_pem };
    grpc_ssl_server_certificate_config *certs;
    grpc_server_credentials *creds;

    if (config->tls_cert_pem == NULL) {
        *creds_p = grpc_insecure_server_credentials_create();
        return ST_OK;
    }
    certs = grpc_ssl_server_certificate_config_create(config->tls_client_ca_pem, &pair, 1);
    creds = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config(
            config->tls_client_ca_pem == NULL
                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY,
            certs)); /* owns the options, which own `certs` */
    if (creds == NULL) {
        return err_set(err, ST_ERR_ARG, "%s: the certificate or its key is not usable",
                       config->listen);
    }
    *creds_p = creds;
    return ST_OK;
}

/* The errno of a bind to one address, 0: it works. */
static int bind_errno(const struct addrinfo *info)
{
    const int on = 1;
    const int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int e = 0;

    if (fd < 0) {
        return errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)); /* as gRPC does */
    if (bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, 1) != 0) {
        e = errno;
    }
    close(fd);
    return e;
}

status rpc_listen_why(const struct rpc_server_config *config, struct err *err)
{
    const struct addrinfo hints = { .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                                    .ai_socktype = SOCK_STREAM };
    struct address a;
    struct addrinfo *infos;
    status st = ST_OK;
    int e;

    if (is_unix(config->listen)) {
        return err_set(err, ST_ERR_IO, "gRPC cannot listen on %s: is its directory there?",
                       config->listen);
    }
    st = address_parse(config->listen, &a, err);

    if (st != ST_OK) {
        return st;
    }
    e = getaddrinfo(a.host, a.port, &hints, &infos);
    if (e != 0) {
        return err_set(err, ST_ERR_ARG, "listen address \"%s\": %s", config->listen,
                       gai_strerror(e));
    }
    e = 0;
    for (const struct addrinfo *info = infos; info != NULL && e == 0; info = info->ai_next) {
        e = bind_errno(info);
    }
    freeaddrinfo(infos);
    if (e == EADDRINUSE) {
        return err_set(err, ST_ERR_EXISTS, "%s is in use: another server listens there",
                       config->listen);
    }
    if (e == EACCES || e == EPERM) {
        return err_set_errno(err, ST_ERR_DENIED, e, "%s", config->listen);
    }
    if (e != 0) {
        return err_set_errno(err, ST_ERR_ARG, e, "listen address \"%s\"", config->listen);
    }
    if (config->tls_cert_pem != NULL) {
        return err_set(err, ST_ERR_ARG,
                       "%s: the certificate, its key or the client CA is not usable PEM",
                       config->listen);
    }
    return err_set(err, ST_ERR_IO, "gRPC cannot listen on %s", config->listen);
}
