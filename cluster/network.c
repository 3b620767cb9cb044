/* cluster/network.c - see network.h. */
#include "cluster/network.h"

#include "base/buf.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- a network as text ---- */

static bool number(const char *text, uint32_t max, uint32_t *value_p)
{
    uint32_t v = 0;

    if (*text == '\0') {
        return false;
    }
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9' || v > max) {
            return false;
        }
        v = v * 10 + (uint32_t)(*text - '0');
    }
    *value_p = v;
    return v <= max;
}

/* The bits behind the prefix. */
static bool has_host_bits(const struct network *n)
{
    const uint32_t all = n->family == AF_INET ? 32 : 128;

    for (uint32_t bit = n->bits; bit < all; bit++) {
        if (n->bytes[bit / 8] & (0x80u >> bit % 8)) {
            return true;
        }
    }
    return false;
}

status network_parse(const char *text, struct network *net_p, struct err *err)
{
    struct network n = { .family = strchr(text, ':') != NULL ? AF_INET6 : AF_INET };
    char address[NETWORK_ADDRESS_BYTES];
    const char *slash = strchr(text, '/');
    const size_t len = slash != NULL ? (size_t)(slash - text) : 0;

    if (slash == NULL || strlen(text) >= sizeof(address) ||
        !number(slash + 1, n.family == AF_INET ? 32 : 128, &n.bits)) {
        return err_set(err, ST_ERR_ARG,
                       "--network %.60s: wanted is ADDRESS/BITS, as in 10.80.0.0/16", text);
    }
    memcpy(address, text, len);
    address[len] = '\0';
    if (inet_pton(n.family, address, n.bytes) != 1) {
        return err_set(err, ST_ERR_ARG, "--network %.60s: \"%s\" is not an address", text, address);
    }
    if (has_host_bits(&n)) {
        return err_set(err, ST_ERR_ARG,
                       "--network %.60s: bits are set behind the first %u of the address", text,
                       n.bits);
    }
    memcpy(n.text, text, strlen(text));
    *net_p = n;
    return ST_OK;
}

/* ---- this host ---- */

static const uint8_t *bytes_of(const struct sockaddr *a)
{
    const void *p = a;

    return a->sa_family == AF_INET ? (const uint8_t *)&((const struct sockaddr_in *)p)->sin_addr
                                   : (const uint8_t *)&((const struct sockaddr_in6 *)p)->sin6_addr;
}

static bool is_inside(const struct network *n, const struct sockaddr *a)
{
    const uint8_t *bytes;
    const uint32_t whole = n->bits / 8, rest = n->bits % 8;

    if (a == NULL || a->sa_family != n->family) {
        return false;
    }
    bytes = bytes_of(a);
    return memcmp(bytes, n->bytes, whole) == 0 &&
           (rest == 0 || ((bytes[whole] ^ n->bytes[whole]) & (0xff00u >> rest & 0xffu)) == 0);
}

static void list_addresses(const struct ifaddrs *all, struct buf *text)
{
    for (const struct ifaddrs *i = all; i != NULL; i = i->ifa_next) {
        char address[NETWORK_ADDRESS_BYTES];

        if (i->ifa_addr != NULL && (i->ifa_flags & IFF_UP) &&
            (i->ifa_addr->sa_family == AF_INET || i->ifa_addr->sa_family == AF_INET6) &&
            inet_ntop(i->ifa_addr->sa_family, bytes_of(i->ifa_addr), address, sizeof(address)) !=
                NULL) {
            buf_printf(text, "%s%s on %s", text->len > 0 ? ", " : "", address, i->ifa_name);
        }
    }
}

status network_find(const struct network *net, struct network_self *self_p, struct err *err)
{
    struct ifaddrs *all = NULL;
    const struct ifaddrs *i;

    if (getifaddrs(&all) != 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "the addresses of this host cannot be listed");
    }
    for (i = all; i != NULL && !((i->ifa_flags & IFF_UP) && is_inside(net, i->ifa_addr));) {
        i = i->ifa_next;
    }
    if (i == NULL) {
        struct buf text = BUF_INIT_MAX(300);
        list_addresses(all, &text);
        err_set(err, ST_ERR_NOT_FOUND, "this host has no address in --network %s; it has %s",
                net->text, text.len > 0 ? text.data : "none that is up");
        buf_fini(&text);
        freeifaddrs(all);
        return ST_ERR_NOT_FOUND;
    }
    snprintf(self_p->interface, sizeof(self_p->interface), "%s", i->ifa_name);
    inet_ntop(net->family, bytes_of(i->ifa_addr), self_p->address, sizeof(self_p->address));
    freeifaddrs(all);
    return ST_OK;
}

/* ---- the way to another host ---- */

/* connect() of a datagram socket sends nothing; it chooses the route and with it our address. */
static bool local_address(const struct addrinfo *to, char address_p[NETWORK_ADDRESS_BYTES])
{
    struct sockaddr_storage self = { .ss_family = AF_UNSPEC };
    socklen_t len = sizeof(self);
    const int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    void *p = &self;

    if (fd < 0) {
        return false;
    }
    const bool ok = connect(fd, to->ai_addr, to->ai_addrlen) == 0 &&
                    getsockname(fd, p, &len) == 0 &&
                    inet_ntop(to->ai_family, bytes_of(p), address_p, NETWORK_ADDRESS_BYTES) != NULL;
    close(fd);
    return ok;
}

status network_toward(const char *host, char address_p[NETWORK_ADDRESS_BYTES], struct err *err)
{
    const struct addrinfo hints = { .ai_socktype = SOCK_DGRAM };
    struct addrinfo *all = NULL;
    const int code = getaddrinfo(host, "9", &hints, &all);
    bool found = false;

    if (code != 0) {
        return err_set(err, ST_ERR_NOT_FOUND, "host %.200s: %s", host, gai_strerror(code));
    }
    for (const struct addrinfo *a = all; a != NULL && !found; a = a->ai_next) {
        found =
            (a->ai_family == AF_INET || a->ai_family == AF_INET6) && local_address(a, address_p);
    }
    freeaddrinfo(all);
    return found ? ST_OK : err_set(err, ST_ERR_NOT_FOUND, "there is no way to host %.200s", host);
}
