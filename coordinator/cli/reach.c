/* coordinator/cli/reach.c - see reach.h. */
#include "coordinator/cli/reach.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ASKED_MAX = 3 };

/* An IPv6 address has colons of its own. */
static void put_address(const char *address, char *host, size_t bytes)
{
    snprintf(host, bytes, strchr(address, ':') != NULL ? "[%s]" : "%s", address);
}

/* Names that resolve nowhere cost time, so only the first few are tried. */
static bool toward_others(const char *hostfile, char address[NETWORK_ADDRESS_BYTES])
{
    struct host_list list = { .n = 0 };
    uint32_t n_asked = 0;
    bool found = false;

    if (host_list_read(hostfile, &list, NULL) != ST_OK) {
        return false;
    }
    for (uint32_t i = 0; i < list.n && !found && n_asked < ASKED_MAX; i++, n_asked++) {
        const char *at = strchr(list.hosts[i].name, '@');
        found = network_toward(at != NULL ? at + 1 : list.hosts[i].name, address, NULL) == ST_OK &&
                strncmp(address, "127.", 4) != 0 && strcmp(address, "::1") != 0;
    }
    host_list_fini(&list);
    return found;
}

static void own_name(char *host, size_t bytes)
{
    gethostname(host, bytes - 1);
    host[bytes - 1] = '\0';
}

status reach_find(const struct serve_args *a, bool is_local, struct reach *reach_p, struct err *err)
{
    const char *listen = a->control_listen, *colon = listen != NULL ? strrchr(listen, ':') : NULL;
    const bool is_any =
        listen != NULL && (strncmp(listen, "0.0.0.0:", 8) == 0 || strncmp(listen, "[::]:", 5) == 0);
    struct reach r = { .listen = "0.0.0.0:0" };
    char address[NETWORK_ADDRESS_BYTES];
    struct network_self self = { .address = "" };
    struct network net;
    status st = ST_OK;

    if (a->network != NULL) {
        (void)((st = network_parse(a->network, &net, err)) ||
               (st = network_find(&net, &self, err)));
    }
    if (st != ST_OK) {
        return st;
    }
    if (is_local && self.address[0] == '\0') {
        snprintf(r.listen, sizeof(r.listen), "127.0.0.1:0");
    } else if (self.address[0] != '\0') {
        put_address(self.address, r.host, sizeof(r.host));
        snprintf(r.listen, sizeof(r.listen), "%.66s:0", r.host);
    }
    if (a->advertise != NULL) {
        snprintf(r.host, sizeof(r.host), "%s", a->advertise);
    } else if (colon != NULL && !is_any) {
        snprintf(r.host, sizeof(r.host), "%.*s", (int)(colon - listen), listen);
    } else if (self.address[0] != '\0') {
        put_address(self.address, r.host, sizeof(r.host));
    } else if (is_local && !is_any) {
        snprintf(r.host, sizeof(r.host), "127.0.0.1");
    } else if (a->hostfile != NULL && toward_others(a->hostfile, address)) {
        put_address(address, r.host, sizeof(r.host));
    } else {
        own_name(r.host, sizeof(r.host));
    }
    *reach_p = r;
    return ST_OK;
}
