/* worker/args.h - what `gantry worker` is told on its command line. */
#ifndef WORKER_ARGS_H
#define WORKER_ARGS_H

#include "base/buf.h"
#include "base/cpu.h"
#include "cluster/coll.h"
#include "partition/plan_opts.h"

enum { PATH_BYTES = 4096 };

struct worker_args {
    const char *model;       /* borrowed from argv, as all strings but the token */
    const char *coordinator; /* host:port */
    struct buf token;        /* owned */
    struct plan_opts plan;   /* checked; a request once "auto" has come to a device */
    struct plan_device_word device;
    struct cpu_parts slots; /* of the host's, those that this replica's ranks have; total 0: all */
    bool join;              /* no replica of the coordinator's: it makes one for this job */
    uint32_t replica, generation;
    uint32_t threads;        /* 0: cores of the host over its ranks */
    uint32_t chunk, queue;   /* scheduler: prompt rows of a stream in one step; streams waiting */
    bool self_test;          /* of the links between the ranks, at the start */
    bool prefix_cache;       /* scheduler: keep full KV blocks for streams that begin alike */
    uint64_t step_timeout_s; /* of one collective */
    uint32_t attach_timeout_s;
};

/* ST_END: --help was printed. Log level and CPU mask are put in force. */
status worker_args_parse(int argc, char **argv, struct worker_args *args_p, struct err *err);
void worker_args_fini(struct worker_args *args);

/* Play a rank to its end. Returns the exit code, or ends the MPI job on failure. */
int worker_run(const struct worker_args *args, const struct coll_mpi_world *world);

#endif
