/* coordinator/cli/durable.h - `gantry serve --journal`: what the coordinator before this one has
 * left, and what this one leaves.
 *
 *   open: lock, journal, service.json ──► may its ranks be taken over? ──► config of the coordinator
 *   write: service.json, before and after each start of a job
 *   close: the journal goes after an orderly end, and stays after any other
 *
 * Ranks are taken over when host, boot, build, plan and number of replicas are what they were; else
 * their jobs are ended wholly first, and everything starts with a new generation. */
#ifndef COORDINATOR_CLI_DURABLE_H
#define COORDINATOR_CLI_DURABLE_H

#include "coordinator/cli/jobs.h"
#include "coordinator/journal_disk.h"
#include "coordinator/service_state.h"

struct durable {
    const struct serve_args *args; /* borrowed; NULL: no --journal */
    struct journal_disk *disk;     /* owned, as what follows */
    struct journal_image image;
    struct service_state last, now;
    bool has_last, takes_over;
    struct coord_adopted *adopted; /* [replicas]; NULL: nothing is taken over */
    uint32_t first_generation;     /* where nothing is */
    const struct jobs *jobs;       /* borrowed, as the next one */
    const struct coord *coord;     /* NULL: does not listen yet */
    bool is_stale;                 /* service.json could not be written */
    uint64_t try_at_ns;
    char run_dir[DIR_PATH_BYTES];
    char control_file[DIR_PATH_BYTES + 16];
};

/* Without --journal it does nothing, and neither does anything below. */
status durable_open(struct durable *d, const struct serve_args *args,
                    const struct serve_setup *setup, struct err *err);
/* Where the run directory is, if the user did not say. NULL: the usual place. */
const char *durable_run_dir(const struct durable *d);
void durable_config(const struct durable *d, struct coord_config *config);
/* Listen where the coordinator before did, if a port is open to choice. `text` backs the result. */
const char *durable_listen(const char *listen, uint16_t port, char text[300]);
void durable_jobs(struct durable *d, struct jobs *j);
/* The run directory is open. */
void durable_place(struct durable *d, const struct run_dir *dir);
/* The coordinator listens: its address for ranks that look for one. */
status durable_begin(struct durable *d, const char *control, const struct coord *coord,
                     struct err *err);
/* What runs now (jobs), for the coordinator after this one. */
void durable_write(struct durable *d, const struct jobs *j, const struct coord *coord);
/* Now and then: what could not be written is tried again. */
void durable_tick(struct durable *d, uint64_t now_ns);
/* Before the coordinator is destroyed, unless its end is an orderly one: it lets go of its streams, and the
 * journal does not. */
void durable_freeze(struct durable *d);
/* `clean`: an orderly end, nothing is left to go on with. `had_jobs`: what this one has started, or
 * taken over, has been ended. */
void durable_close(struct durable *d, bool clean, bool had_jobs);

#endif
