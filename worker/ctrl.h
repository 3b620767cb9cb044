/* worker/ctrl.h - a rank's control stream to the coordinator, on a thread of its own.
 *
 *   rank thread ── events, fault ──► [post] ──► control thread ── Attach stream ──► coordinator
 *   rank thread ◄── inbox (bounded ring of raw messages) ◄──── Submit, Cancel, Stop ◄──┘
 *   heartbeat every 250 ms from struct rank_progress
 *
 * A stuck collective cannot silence it. When the stream breaks and no other coordinator is to be
 * waited for (ctrl_orphan.c), or the coordinator refuses this rank, the rank has lost its purpose:
 * `abort` is set, and if the rank's thread has not ended the process within LOST_GRACE it is ended
 * from here, because it may wait in a collective for a rank that is gone. Threads: create, ready, events, fault, destroy on the rank's thread; feed and wait
 * on it too. */
#ifndef WORKER_CTRL_H
#define WORKER_CTRL_H

#include "proto/msg.h"
#include "worker/rank.h"

struct ctrl;

struct ctrl_config {
    const char *coordinator; /* host:port */
    const char *token;
    struct msg_hello hello; /* what it points to lives as long as the ctrl */
    struct rank_progress *progress;
    _Atomic bool *abort; /* set when the coordinator is lost or says stop at once */
};

/* Connect and be welcomed, within timeout_s. ST_ERR_UNAVAILABLE (not reached), ST_ERR_MISMATCH
 * (refused; the sentence is the coordinator's). */
status ctrl_create(const struct ctrl_config *config, uint32_t timeout_s, struct ctrl **ctrl_p,
                   struct err *err);
/* The shard is loaded and agreed on. */
status ctrl_ready(struct ctrl *c, const struct msg_ready *ready, struct err *err);
/* The coordinator has ended the stream, or it broke; err says why. */
bool ctrl_is_lost(struct ctrl *c, struct err *err);
/* The coordinator has told this rank to stop, and nothing has gone wrong. A rank that is not ready then
 * finds `abort` set; one that is hears of it through its io. */
bool ctrl_is_told_to_stop(struct ctrl *c);
/* Say why this rank ends; flushed before ctrl_destroy returns. */
void ctrl_fault(struct ctrl *c, const struct err *why);
/* The leader's io over this stream. */
struct rank_io ctrl_io(struct ctrl *c);
void ctrl_destroy(struct ctrl *c); /* closes the stream; NULL is fine */

#endif
