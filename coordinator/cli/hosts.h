/* coordinator/cli/hosts.h - the hosts of a service: who runs where, who does not answer, what is spare.
 *
 *   hostfile ──► hosts ──place (cluster/place.h)──► a list of hosts for the mpirun of each replica
 *                  ▲ blame: ranks that fell silent with their host, jobs that did not start
 *
 * A host is never given up: one that did not answer is taken again when nothing else is left, and is in
 * good standing as soon as a rank of it is seen alive. One owner, the loop's thread. */
#ifndef COORDINATOR_CLI_HOSTS_H
#define COORDINATOR_CLI_HOSTS_H

#include "base/buf.h"
#include "cluster/launch.h"
#include "cluster/place.h"
#include "coordinator/coord.h"

/* How slots become places. */
enum hosts_mode {
    HOSTS_SLOTS, /* what mpirun is given has exactly the slots that a replica needs */
    HOSTS_WHOLE, /* a scheduler knows the slots: hosts are given whole, and to one replica */
    HOSTS_DEALT  /* the user maps ranks with mpirun's own options: even runs of the file */
};

struct hosts_config {
    const char *hostfile;
    const char *mpirun_args; /* NULL: none */
    uint32_t n_replicas, tp, pp;
    bool in_scheduler; /* the slots are a scheduler's */
    bool alone;        /* replicas share no host, even when one is lost */
    bool shares;       /* they may share hosts from the start, where there are too few for all */
};

struct hosts; /* opaque */

/* Reads the file and places every replica. ST_ERR_LIMIT: there is no room (names the replica). */
status hosts_open(const struct hosts_config *config, struct hosts **hosts_p, struct err *err);
void hosts_close(struct hosts *h); /* NULL is fine */

/* Its job ended: `end_of(arg, rank)` for each of its ranks. */
void hosts_judge(struct hosts *h, uint32_t replica,
                 enum coord_rank_end (*end_of)(void *arg, uint32_t rank), void *arg);
/* Find its place anew. ST_ERR_LIMIT; the old place stays then. */
status hosts_place(struct hosts *h, uint32_t replica, struct err *err);
/* What its mpirun reads. */
status hosts_write(const struct hosts *h, uint32_t replica, const char *path, struct err *err);
/* "a (ranks 0-3), b (4-7), rack r1; not b2, which did not answer", for people; borrowed until the next
 * call. */
const char *hosts_text(struct hosts *h, uint32_t replica);
/* Where a rank of a replica is. Where mpirun's own options decide it is not known: name "". */
struct hosts_spot {
    const char *name; /* borrowed from `h` */
    uint32_t host;    /* its number; not known: one per stage */
    uint32_t
        n_ranks; /* on that host, of all replicas; not known: as many as there are on the average */
};
struct hosts_spot hosts_spot(const struct hosts *h, uint32_t replica, uint32_t rank);
/* A line per replica, and what is spare. */
status hosts_print(struct hosts *h, struct buf *out);

#endif
