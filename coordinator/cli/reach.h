/* coordinator/cli/reach.h - the address by which ranks reach the coordinator. */
#ifndef COORDINATOR_CLI_REACH_H
#define COORDINATOR_CLI_REACH_H

#include "cluster/network.h"
#include "coordinator/cli/serve_args.h"

enum { REACH_BYTES = 256 };

struct reach {
    char host[REACH_BYTES];                 /* what ranks dial, the port left out */
    char listen[NETWORK_ADDRESS_BYTES + 8]; /* where the control port is bound: HOST:PORT */
};

/* In this order: --advertise; the address of --control-listen; loopback, if all ranks are on this host;
 * our address in --network; the address from which packets leave for the other hosts; our own name.
 * ST_ERR_ARG, ST_ERR_NOT_FOUND: of --network. */
status reach_find(const struct serve_args *a, bool is_local, struct reach *reach_p,
                  struct err *err);

#endif
