/* coordinator/session.h - one answer on its way to its client: ids become text, text meets stop
 * strings, and both become messages.
 *
 *   token ──► journal ──► detok ──► stop ──► record (text + tokens) ──flush──► sink (one message)
 *
 *   RUNNING ──end (leader's finish, or a stop string)──► ENDING ──last message taken──► OVER
 *      └────────── failure (leader's, ours, client too slow) ──────────────────────────►┘
 *
 * Pending is coalesced: while the sink is busy everything joins one message, up to
 * SESSION_BACKLOG_TOKENS; a client that reads slower than that loses its stream with
 * RESOURCE_EXHAUSTED. A unary answer is pending until its end. Once OVER, what still comes from the
 * leader (overshoot past a stop string) is dropped unseen.
 *
 * A kept session (config.is_kept) outlives its client: session_detach when the call is gone,
 * session_attach for the next one, which says from which token on it wants the answer. Its record
 * keeps all of it, so a slow reader costs nothing and is not thrown out. Without a client it ends in
 * ENDING, or, failed, in OVER with the failure for whoever asks.
 *
 * Calls that return bool say "tell the leader to cancel". The sink may end the call inside its own
 * functions; the session is not destroyed by that (the coordinator defers it). One owner thread. */
#ifndef COORDINATOR_SESSION_H
#define COORDINATOR_SESSION_H

#include "base/clock.h"
#include "coordinator/journal.h"
#include "coordinator/record.h"
#include "model/stop.h"
#include "model/tokenizer.h"

enum {
    SESSION_BACKLOG_TOKENS = 4096,
    SESSION_MESSAGE_TOKENS = 4096 /* in one message of a stream at most */
};

/* The call, as far as a session needs it (cluster/rpc.h; a fake one in tests). */
struct session_sink {
    /* ST_BUSY: nothing was taken, session_writable follows. ST_ERR_PEER: the call is over. */
    status (*send)(void *self, const void *data, size_t len);
    void (*finish)(void *self, status st, const char *text);
    void (*reply)(void *self, const void *data, size_t len);
    void *self; /* borrowed */
};

enum session_state {
    SESSION_RUNNING,
    SESSION_ENDING, /* the last message waits for room */
    SESSION_OVER    /* finish, reply or failure was handed to the sink */
};

struct session_config {
    const struct tokenizer *tok; /* borrowed, as all below */
    const struct clock *clock;
    struct journal_entry *entry;
    const struct msg_str *stop; /* copied */
    uint32_t n_stop;
    const char *weights_digest, *model;
    bool is_unary;
    bool is_kept;       /* may be resumed, */
    uint32_t window_s;  /* so long after its client is gone */
    uint32_t n_choices; /* of its request, this one counted */
    uint64_t arrived_ns;
    struct session_sink sink; /* is_kept: send may be NULL, then nobody is there yet */
};

struct session; /* opaque */

status session_create(const struct session_config *config, struct session **session_p,
                      struct err *err);
void session_destroy(struct session *s); /* NULL is fine */

/* It was placed, and its entry knows the profile. Streaming: sends `started` at once, so that a
 * client knows its id and seed before the first token. Once; later calls do nothing. */
bool session_start(struct session *s) WARN_UNUSED;
/* A token of this stream's current attempt. A gap or repetition in the index fails the stream. */
bool session_token(struct session *s, const struct msg_token *t) WARN_UNUSED;
void session_finish(struct session *s, const struct msg_finish *f);
/* Send what is pending, once per step. */
bool session_flush(struct session *s) WARN_UNUSED;
bool session_writable(struct session *s) WARN_UNUSED;
/* End with an error, whatever is pending. Nothing if OVER. */
void session_fail(struct session *s, status st, const char *text);
/* The call is gone: no sink function is called from here on. */
void session_abandon(struct session *s);

/* is_kept only. The client is gone; the answer goes on without one. */
void session_detach(struct session *s);
/* Another client takes it, from token `from` of the answer on: `started` and what is there are sent
 * at once. A client may be ahead of what is known (tokens that were sent and then lost are computed
 * again): it waits. */
struct session_reader {
    struct session_sink sink;
    bool is_unary; /* the whole answer in one message: `from` is 0 */
    uint32_t from;
};
void session_attach(struct session *s, const struct session_reader *reader); /* resumable only */
/* ST_ERR_ARG: the answer is complete and has fewer tokens. An answer that has failed: its failure. */
status session_resumable(const struct session *s, uint32_t from, struct err *err);

enum session_state session_state(const struct session *s);
/* The answer has an end, good or bad. */
bool session_is_complete(const struct session *s);
/* How a complete answer has ended, for the journal: reason, code and text, cached tokens, queue
 * time. Borrowed. */
struct msg_finish session_end(const struct session *s);
uint64_t session_arrived_ns(const struct session *s);
uint64_t session_first_token_ns(const struct session *s); /* 0: none yet */
void session_set_times(struct session *s, uint64_t first_token_ns, uint64_t ended_ns);
size_t session_bytes(const struct session *s);
const struct record *session_record(const struct session *s);
/* How many; borrowed. */
uint32_t session_stops(const struct session *s, struct msg_str stops_p[STOP_STRINGS_MAX]);
struct journal_entry *session_entry(const struct session *s);

#endif
