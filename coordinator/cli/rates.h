/* coordinator/cli/rates.h - --rates FILE: what the hosts of a plan can do, and which rank is where.
 *
 *   file ──► rates (partition/rates.h) ──┐
 *   hosts of the service ──place─────────┴──► plan_sites: a site for each rank, whatever the shape
 *
 * A CPU rank has the share of its host that it has of the ranks there (of all replicas); a rank on a device
 * has the device. With several replicas a rank's site is the slowest one that any of them gives it: one
 * plan is made for all. */
#ifndef COORDINATOR_CLI_RATES_H
#define COORDINATOR_CLI_RATES_H

#include "coordinator/cli/hosts.h"
#include "partition/plan.h"

/* Where ranks will run. */
struct cli_rates_config {
    const char *file;          /* --rates; NULL: not given */
    struct hosts_config hosts; /* hostfile NULL: all on this host */
    bool is_elsewhere;         /* nobody knows where: ranks that others start */
    bool has_memory;           /* --memory was given: it counts, not the hosts' own */
};

struct cli_rates {
    struct cli_rates_config config;
    struct rates rates;      /* owned */
    struct plan_sites sites; /* `arg` is this struct: it must stay where it is */
    char here[RATES_HOST_BYTES];
};

/* Reads the file. *sites_p is NULL without one. ST_ERR_FORMAT and so on name file and line. */
status cli_rates_open(const struct cli_rates_config *config, struct cli_rates *r,
                      const struct plan_sites **sites_p, struct err *err);
void cli_rates_close(struct cli_rates *r); /* zeroed storage is fine */

#endif
