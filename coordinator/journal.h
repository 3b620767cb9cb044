/* coordinator/journal.h - every running request as it could be started again: prompt ids, emitted
 * ids, parameters, seed.
 *
 *   open (by the front, before Submit) ──► append each token that counts ──► close (call is over)
 *
 * In memory; journal_disk.h has what of it is on disk. What an entry holds is exactly what a Submit needs, therefore moving a stream to
 * another replica is journal_submit with the next attempt (docs/numerics.md makes the rest equal).
 * Overshoot past a stop string is never appended. Entries are found by stream number (events) and
 * by request id (duplicates). One owner thread, no locks. */
#ifndef COORDINATOR_JOURNAL_H
#define COORDINATOR_JOURNAL_H

#include "proto/msg.h"

enum { JOURNAL_STOP_IDS_MAX = MSG_STOP_IDS_MAX + 8 };

struct journal;

struct journal_entry {
    uint64_t stream;  /* unique in the coordinator's life */
    uint32_t attempt; /* 1 for the first Submit */
    uint32_t choice;  /* which answer to the request; only 0 is found by the request id */
    char request_id[MSG_REQUEST_ID_MAX + 1];
    uint32_t n_prompt, n_emitted, n_emitted_max;
    uint32_t *prompt;  /* [n_prompt] owned */
    uint32_t *emitted; /* [n_emitted_max] owned, n_emitted used */
    uint32_t max_tokens;
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t seed;
    uint32_t n_stop_ids;
    uint32_t
        stop_ids[JOURNAL_STOP_IDS_MAX]; /* the request's, then the model's ends unless ignored */
    bool want_logprobs;
    uint32_t n_logprobs;
    float presence_penalty, frequency_penalty; /* 0: off */
    float repetition_penalty;                  /* 1: off */
    uint32_t n_biases;
    struct msg_bias *biases; /* [n_biases] owned (journal_set_biases) */
    uint64_t cache_scope;    /* whose prefixes it may share; 0: everybody's */
    uint64_t deadline_ns;    /* on the coordinator's clock; CLOCK_NEVER: none */

    /* Numeric profiles: of the replica that it was placed on first (Started), and all that have
     * produced tokens of it, in the order of their first one. */
    bool exact;                      /* it goes on under `profile` or not at all */
    char profile[MSG_PROFILE_BYTES]; /* "": not placed yet */
    uint32_t n_profiles;
    char profiles[MSG_PROFILES_MAX][MSG_PROFILE_BYTES];

    /* Where it runs (route.c). */
    int32_t replica;      /* -1: nowhere, it waits for one */
    uint32_t n_moves;     /* replicas that were lost under it */
    uint32_t n_spared;    /* and while it only waited there */
    uint32_t n_blocks;    /* KV blocks it counts for there */
    uint64_t stranded_ns; /* no replica that there is could take it, since then; 0: one could */
    uint64_t lost_ns; /* its replica was lost then and no token has come since; 0: all is well */

    /* resume.c */
    bool is_kept;    /* its client may come back for it */
    bool is_retired; /* its answer is complete: found by request id only */

    void *owner;                                      /* the session; borrowed */
    struct journal_entry *next_stream, *next_request; /* private: hash chains */
    bool is_closed;                                   /* private: closed within journal_each */
};

/* At most n_max entries are open. */
status journal_create(uint32_t n_max, struct journal **journal_p, struct err *err);
void journal_destroy(struct journal *j); /* entries included; NULL is fine */

/* A zeroed entry with stream, attempt 1 and request_id set and `prompt` copied; the caller fills in
 * the parameters.
 * ST_ERR_LIMIT: n_max are open (names the bound). ST_ERR_EXISTS: the request id is in use.
 * ST_ERR_NOMEM. */
status journal_open(struct journal *j, const char *request_id, const uint32_t *prompt,
                    uint32_t n_prompt, struct journal_entry **entry_p, struct err *err);
/* Another answer to the request of `first` (its choice 0): the same prompt and parameters, a stream
 * of its own. ST_ERR_LIMIT, ST_ERR_NOMEM. */
status journal_open_choice(struct journal *j, const struct journal_entry *first, uint32_t choice,
                           struct journal_entry **entry_p, struct err *err);
void journal_close(struct journal *j, struct journal_entry *entry);
/* The answer is complete and may still be asked for: it counts as open no more, and only
 * journal_find_request finds it (choice 0 alone). */
void journal_retire(struct journal *j, struct journal_entry *entry);
/* At most n_max from here on; what is open stays. */
void journal_set_bound(struct journal *j, uint32_t n_max);
/* Numbers of streams go up from here; never back. */
void journal_number_from(struct journal *j, uint64_t stream);
status journal_append(struct journal_entry *entry, uint32_t token) WARN_UNUSED; /* ST_ERR_NOMEM */

/* Copy the list. ST_ERR_NOMEM. */
status journal_set_biases(struct journal_entry *entry, const struct msg_bias *biases,
                          uint32_t n) WARN_UNUSED;

/* A token of it came from a replica of this profile. */
void journal_note_profile(struct journal_entry *entry, const char *profile);
/* Its tokens are of this one profile, as far as there are any. */
bool journal_is_of(const struct journal_entry *entry, const char *profile);

struct journal_entry *journal_find(const struct journal *j, uint64_t stream); /* NULL: not open */
struct journal_entry *journal_find_request(const struct journal *j, const char *request_id);
uint32_t journal_count(const struct journal *j);
/* Call fn for every open entry; fn may close any, and opens none. */
void journal_each(struct journal *j, void (*fn)(void *arg, struct journal_entry *entry), void *arg);

/* The Submit that starts this stream, or starts it again from where it is. Borrows from the entry.
 */
struct msg_submit journal_submit(const struct journal_entry *entry, uint64_t now_ns);

#endif
