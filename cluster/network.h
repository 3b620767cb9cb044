/* cluster/network.h - which of a host's addresses the others reach it by.
 *
 * A node of a cluster has several: a management network, one or two fast ones, bridges of containers.
 * Either the user names the network ("10.80.0.0/16", "fd00:80::/64"), and every host finds its own
 * address and interface in it; or the way to another host decides, as the kernel's routes have it.
 * Nothing is sent. */
#ifndef CLUSTER_NETWORK_H
#define CLUSTER_NETWORK_H

#include "base/err.h"

#include <stdint.h>

enum { NETWORK_ADDRESS_BYTES = 64, NETWORK_INTERFACE_BYTES = 32 };

struct network {
    int family; /* AF_INET, AF_INET6 */
    uint8_t
        bytes[16]; /* the address, the first 4 of them for AF_INET; what is behind `bits` is 0 */
    uint32_t bits;
    char text[NETWORK_ADDRESS_BYTES]; /* as it was given */
};

/* ST_ERR_ARG names what is wrong: not an address, too many bits, bits set behind the prefix. */
status network_parse(const char *text, struct network *net_p, struct err *err);

struct network_self {
    char address[NETWORK_ADDRESS_BYTES];     /* "10.80.0.3" */
    char interface[NETWORK_INTERFACE_BYTES]; /* "ib0" */
};

/* This host's address in that network, the first where it has several. ST_ERR_NOT_FOUND lists the
 * addresses that it has. */
status network_find(const struct network *net, struct network_self *self_p, struct err *err);

/* The address of this host from which a packet to `host` would leave. ST_ERR_NOT_FOUND: that name is
 * not known, or there is no way to it. May ask a name server. */
status network_toward(const char *host, char address_p[NETWORK_ADDRESS_BYTES], struct err *err);

#endif
