/* coordinator/service_state.h - what the next coordinator must know to take over the ranks of this
 * one: `service.json` in the journal's folder.
 *
 * Written before a job is started (without its pid: should we die then, nobody takes that job over,
 * and its generation is not used again) and once more with the pid. Replaced by rename. */
#ifndef COORDINATOR_SERVICE_STATE_H
#define COORDINATOR_SERVICE_STATE_H

#include "base/buf.h"
#include "base/hash.h"
#include "coordinator/dir.h"

#include <stdbool.h>
#include <stdint.h>

enum { SERVICE_REPLICAS_MAX = 1024, SERVICE_VERSION = 1 };

struct service_replica {
    uint32_t generation;
    int pid; /* of its mpirun; 0: none runs */
    uint64_t start_ticks;
    uint64_t log_begin; /* in its mpirun's log */
    char shm_dir[64];
};

struct service_state {
    uint64_t epoch;   /* coordinators that this journal has had, this one counted */
    char build[128];  /* ranks of another build are not taken over */
    char host[256];   /* on which the coordinator and the mpiruns run */
    char boot_id[64]; /* and since which start of it */
    char run_dir[DIR_PATH_BYTES];
    char weights_digest[HASH_HEX_BYTES]; /* "": not known yet */
    uint64_t plan_digest;
    uint16_t port, control_port;
    uint32_t n_replicas;
    struct service_replica *replicas; /* [n_replicas] owned */
};

void service_state_fini(struct service_state *s); /* zeroed storage is fine */
/* This host and this start of it; "" where it does not say. */
void service_state_here(struct service_state *s);

/* ST_ERR_NOT_FOUND: there is none. ST_ERR_FORMAT: names the field. */
status service_state_read(const char *dir, struct service_state *state_p, struct err *err);
status service_state_parse(const char *name, const char *data, size_t len,
                           struct service_state *state_p, struct err *err);
status service_state_write(const char *dir, const struct service_state *s, struct err *err);
void service_state_remove(const char *dir);

#endif
