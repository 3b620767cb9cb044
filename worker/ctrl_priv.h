/* worker/ctrl_priv.h - a control stream's state, shared by ctrl.c (the stream), ctrl_orphan.c (when
 * it breaks and its coordinator may come back) and ctrl_io.c (the leader's side of it). */
#ifndef WORKER_CTRL_PRIV_H
#define WORKER_CTRL_PRIV_H

#include "base/ring.h"
#include "cluster/rpc.h"
#include "worker/ctrl.h"

#include <pthread.h>

enum { CTRL_PATH_BYTES = 1024 };

/* A message on its way between the threads: bytes follow. To the rank's thread one without bytes
 * says that the coordinator is gone and `epoch` is a new one. */
struct parcel {
    struct ctrl *ctrl;
    enum msg_rank_kind kind; /* from the rank's thread */
    uint32_t epoch;
    size_t len;
    char data[];
};

enum link_state {
    LINK_OPENING,
    LINK_WELCOME,
    LINK_ORPHAN, /* the stream broke; another coordinator may come */
    LINK_LOST
};

/* Control thread only, but where said. */
struct orphan {
    uint32_t grace_s;            /* 0: a rank without coordinator ends */
    char file[CTRL_PATH_BYTES];  /* where the next one's address stands; "": nowhere */
    char target[300];            /* the last address tried */
    uint64_t until_ns, delay_ns; /* end of the grace; until the next try */
    struct rpc_timer timer;
    uint32_t epoch;   /* goes up when a coordinator is lost */
    struct buf ready; /* the packed Ready of this rank; empty: it is not */
};

struct ctrl {
    struct ctrl_config config;
    struct rpc_loop *loop;
    struct rpc_channel *channel;
    struct rpc_call *call; /* NULL once it is over */
    struct rpc_timer heartbeat, lost;
    struct orphan orphan;
    pthread_t thread;
    bool has_thread;
    struct ring *inbox;  /* of struct parcel, for the rank's thread */
    struct arena arena;  /* the rank's thread: the message being fed */
    struct buf out;      /* the rank's thread: packing */
    uint32_t feed_epoch; /* the rank's thread: what it computes for */
    struct buf beat;     /* control thread: packing */
    struct arena in;     /* control thread: welcome */

    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t changed;
    enum link_state state;
    struct err why; /* with LINK_LOST */
    bool was_told_to_stop;
    uint32_t n_unsent; /* parcels posted and not handed to the stream */
    bool closing;
};

/* ctrl.c */
void ctrl_set_state(struct ctrl *c, enum link_state state, status code, const char *text);
void ctrl_lose(struct ctrl *c, status code, const char *text);
status ctrl_channel_open(struct ctrl *c, const char *target, struct err *err);
/* Call, hello. On failure with a call its end follows. */
status ctrl_stream_start(struct ctrl *c, struct err *err);
/* From the rank's thread to the coordinator. */
status ctrl_post(struct ctrl *c, const struct msg_rank *m, struct err *err);

/* ctrl_orphan.c; control thread */
void orphan_welcome(struct ctrl *c, const struct msg_coord *welcome);
/* The stream is over. False: there is nothing to wait for. */
bool orphan_begin(struct ctrl *c, status code, const char *text);
void orphan_look(struct ctrl *c, const void *data, size_t len); /* a message that is passed on */
void orphan_stop(struct ctrl *c);

#endif
