/* cluster/place.h - which host each rank of a replica runs on.
 *
 *   hostfile ──► hosts (free slots, rack, who is there, who does not answer) ──► a run of ranks per host
 *
 *   rank = stage * tp + slice: ranks of a run are neighbours, so a stage's slices (an all-reduce twice a
 *   layer) are on one host where one has the slots, and stages follow each other over the hosts.
 *
 * In this order:
 *   1  hosts that answer before those that are blamed; hosts that no other replica uses before shared
 *      ones (a lost host should cost one replica). What is left over is spare, and is where a lost
 *      replica finds its place.
 *   2  every stage whole on a host before stages that are cut
 *   3  the replica inside one rack before one over several; the rack that has the fewest replicas
 *   4  hosts that it was on before (they have the weights in memory), then the order of the file
 *
 * A pure function: no files, no clock, nobody is asked. */
#ifndef CLUSTER_PLACE_H
#define CLUSTER_PLACE_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct place_host {
    uint32_t slots;      /* free ones */
    uint32_t rack;       /* a number per rack */
    uint32_t n_replicas; /* other ones that have ranks there */
    uint32_t blame;      /* 0: it answers; else how often it has not */
    bool was_mine;       /* this replica was there before */
};

struct place_request {
    uint32_t tp, pp;
    bool alone; /* never on a host that another replica uses */
    bool
        whole_hosts; /* mpirun sees all slots of the hosts that are taken, and fills them in turn */
};

struct place_run { /* ranks [first, first + n) of the replica, in the hosts' order */
    uint32_t host, first, n;
};

/* runs_p: room for n_hosts. *n_runs_p of them are written. ST_ERR_LIMIT: no room (names the slots that
 * are free and those that are needed); nothing is written. */
status place_replica(const struct place_host *hosts, uint32_t n_hosts,
                     const struct place_request *request, struct place_run *runs_p,
                     uint32_t *n_runs_p, struct err *err);

#endif
