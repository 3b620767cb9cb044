/* coordinator/journal.c - see journal.h. Two chained hash tables over the same entries. */
#include "coordinator/journal.h"

#include "base/clock.h"
#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct journal {
    uint32_t n, n_max;
    uint32_t mask; /* buckets - 1 */
    uint64_t next_stream;
    uint32_t n_walks; /* journal_each, how deep */
    bool has_closed;  /* entries that the outermost of them must free at its end */
    struct journal_entry **by_stream, **by_request; /* [mask + 1] each, owned */
};

static uint32_t stream_slot(const struct journal *j, uint64_t stream)
{
    return (uint32_t)(stream * 0x9E3779B97F4A7C15ull >> 32) & j->mask;
}

static uint32_t request_slot(const struct journal *j, const char *request_id)
{
    return (uint32_t)hash64_of(request_id, strlen(request_id), 0) & j->mask;
}

status journal_create(uint32_t n_max, struct journal **journal_p, struct err *err)
{
    struct journal *j = calloc(1, sizeof(*j));
    uint32_t n_buckets = 16;

    while (n_buckets < n_max && n_buckets < 1u << 20) {
        n_buckets *= 2;
    }
    if (j != NULL) {
        j->by_stream = calloc(n_buckets, sizeof(*j->by_stream));
        j->by_request = calloc(n_buckets, sizeof(*j->by_request));
    }
    if (j == NULL || j->by_stream == NULL || j->by_request == NULL) {
        journal_destroy(j);
        return err_set(err, ST_ERR_NOMEM, "no memory for a journal of %u streams", n_max);
    }
    j->n_max = n_max;
    j->mask = n_buckets - 1;
    j->next_stream = 1;
    *journal_p = j;
    return ST_OK;
}

static void entry_free(struct journal_entry *e)
{
    free(e->prompt);
    free(e->emitted);
    free(e->biases);
    free(e);
}

void journal_destroy(struct journal *j)
{
    if (j == NULL) {
        return;
    }
    for (uint32_t i = 0; j->by_stream != NULL && i <= j->mask; i++) {
        while (j->by_stream[i] != NULL) {
            struct journal_entry *e = j->by_stream[i];
            j->by_stream[i] = e->next_stream;
            entry_free(e);
        }
    }
    free(j->by_stream);
    free(j->by_request);
    free(j);
}

static status room_check(const struct journal *j, struct err *err)
{
    if (j->n >= j->n_max) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u streams are open, the limit of this service (--queue); try again later",
                       j->n);
    }
    return ST_OK;
}

/* Into the chains, as an entry that runs nowhere. */
static void entry_link(struct journal *j, struct journal_entry *e)
{
    struct journal_entry **stream_at, **request_at;

    e->stream = j->next_stream++;
    e->attempt = 1;
    e->replica = -1;
    stream_at = &j->by_stream[stream_slot(j, e->stream)];
    e->next_stream = *stream_at;
    *stream_at = e;
    if (e->choice == 0) {
        request_at = &j->by_request[request_slot(j, e->request_id)];
        e->next_request = *request_at;
        *request_at = e;
    }
    j->n++;
}

status journal_open(struct journal *j, const char *request_id, const uint32_t *prompt,
                    uint32_t n_prompt, struct journal_entry **entry_p, struct err *err)
{
    ASSERT(strlen(request_id) <= MSG_REQUEST_ID_MAX && n_prompt > 0);
    if (journal_find_request(j, request_id) != NULL) {
        return err_set(err, ST_ERR_EXISTS,
                       "request_id \"%s\" belongs to a stream that is still running", request_id);
    }
    const status st = room_check(j, err);
    if (st < 0) {
        return st;
    }
    struct journal_entry *e = calloc(1, sizeof(*e));
    uint32_t *ids = malloc(n_prompt * sizeof(*ids));
    if (e == NULL || ids == NULL) {
        free(e);
        free(ids);
        return err_set(err, ST_ERR_NOMEM, "no memory for a prompt of %u tokens", n_prompt);
    }
    memcpy(ids, prompt, n_prompt * sizeof(*ids));
    e->prompt = ids;
    e->n_prompt = n_prompt;
    e->deadline_ns = CLOCK_NEVER;
    memcpy(e->request_id, request_id, strlen(request_id) + 1);
    entry_link(j, e);
    *entry_p = e;
    return ST_OK;
}

status journal_open_choice(struct journal *j, const struct journal_entry *first, uint32_t choice,
                           struct journal_entry **entry_p, struct err *err)
{
    const status st = room_check(j, err);

    ASSERT(choice != 0 && first->choice == 0);
    if (st < 0) {
        return st;
    }
    struct journal_entry *e = malloc(sizeof(*e));
    uint32_t *ids = malloc(first->n_prompt * sizeof(*ids));
    if (e == NULL || ids == NULL) {
        goto fail;
    }
    *e = *first;
    e->choice = choice;
    e->prompt = memcpy(ids, first->prompt, first->n_prompt * sizeof(*ids));
    e->emitted = NULL;
    e->n_emitted = 0;
    e->n_emitted_max = 0;
    e->biases = NULL;
    e->owner = NULL;
    e->n_profiles = 0;
    if (journal_set_biases(e, first->biases, first->n_biases) < 0) {
        goto fail;
    }
    entry_link(j, e);
    *entry_p = e;
    return ST_OK;
fail:
    free(e);
    free(ids);
    return err_set(err, ST_ERR_NOMEM, "no memory for a prompt of %u tokens", first->n_prompt);
}

static void stream_unlink(struct journal *j, struct journal_entry *entry)
{
    struct journal_entry **at = &j->by_stream[stream_slot(j, entry->stream)];

    while (*at != entry) {
        ASSERT(*at != NULL);
        at = &(*at)->next_stream;
    }
    *at = entry->next_stream;
}

static void entry_unlink(struct journal *j, struct journal_entry *entry)
{
    struct journal_entry **at = &j->by_request[request_slot(j, entry->request_id)];

    if (!entry->is_retired) {
        stream_unlink(j, entry);
    }
    while (entry->choice == 0 && *at != entry) {
        ASSERT(*at != NULL);
        at = &(*at)->next_request;
    }
    if (entry->choice == 0) {
        *at = entry->next_request;
    }
    entry_free(entry);
}

/* A walk that stands on it goes on from it: its chain pointer stays. */
void journal_retire(struct journal *j, struct journal_entry *entry)
{
    ASSERT(!entry->is_retired && !entry->is_closed);
    j->n--;
    stream_unlink(j, entry);
    entry->is_retired = true;
}

void journal_close(struct journal *j, struct journal_entry *entry)
{
    ASSERT(!entry->is_closed);
    j->n -= entry->is_retired ? 0 : 1;
    if (j->n_walks != 0 && !entry->is_retired) { /* the walk may stand on it */
        entry->is_closed = true;
        j->has_closed = true;
        return;
    }
    entry_unlink(j, entry);
}

void journal_set_bound(struct journal *j, uint32_t n_max)
{
    j->n_max = n_max;
}

void journal_number_from(struct journal *j, uint64_t stream)
{
    j->next_stream = MAX(j->next_stream, stream);
}

status journal_append(struct journal_entry *entry, uint32_t token)
{
    if (entry->n_emitted == entry->n_emitted_max) {
        const uint32_t n = entry->n_emitted_max == 0 ? 64 : entry->n_emitted_max * 2;
        uint32_t *ids = realloc(entry->emitted, n * sizeof(*ids));
        if (ids == NULL) {
            return ST_ERR_NOMEM;
        }
        entry->emitted = ids;
        entry->n_emitted_max = n;
    }
    entry->emitted[entry->n_emitted++] = token;
    return ST_OK;
}

status journal_set_biases(struct journal_entry *entry, const struct msg_bias *biases, uint32_t n)
{
    struct msg_bias *list = n != 0 ? malloc(n * sizeof(*list)) : NULL;

    if (n != 0 && list == NULL) {
        return ST_ERR_NOMEM;
    }
    if (n != 0) {
        memcpy(list, biases, n * sizeof(*list));
    }
    free(entry->biases);
    entry->biases = list;
    entry->n_biases = n;
    return ST_OK;
}

void journal_note_profile(struct journal_entry *e, const char *profile)
{
    for (uint32_t i = 0; i < e->n_profiles; i++) {
        if (strcmp(e->profiles[i], profile) == 0) {
            return;
        }
    }
    if (e->n_profiles < MSG_PROFILES_MAX) { /* so many there are at a time; more in a long life */
        snprintf(e->profiles[e->n_profiles++], MSG_PROFILE_BYTES, "%s", profile);
    }
}

bool journal_is_of(const struct journal_entry *e, const char *profile)
{
    return e->n_profiles == 0 || (e->n_profiles == 1 && strcmp(e->profiles[0], profile) == 0);
}

struct journal_entry *journal_find(const struct journal *j, uint64_t stream)
{
    struct journal_entry *e = j->by_stream[stream_slot(j, stream)];

    while (e != NULL && (e->stream != stream || e->is_closed)) {
        e = e->next_stream;
    }
    return e;
}

struct journal_entry *journal_find_request(const struct journal *j, const char *request_id)
{
    struct journal_entry *e = j->by_request[request_slot(j, request_id)];

    while (e != NULL && (e->is_closed || strcmp(e->request_id, request_id) != 0)) {
        e = e->next_request;
    }
    return e;
}

uint32_t journal_count(const struct journal *j)
{
    return j->n;
}

/* What was closed while journal_each walked. */
static void drop_closed(struct journal *j)
{
    j->has_closed = false;
    for (uint32_t i = 0; i <= j->mask; i++) {
        struct journal_entry *e = j->by_stream[i];
        while (e != NULL) {
            struct journal_entry *next = e->next_stream;
            if (e->is_closed) {
                entry_unlink(j, e);
            }
            e = next;
        }
    }
}

void journal_each(struct journal *j, void (*fn)(void *arg, struct journal_entry *entry), void *arg)
{
    j->n_walks++;
    for (uint32_t i = 0; i <= j->mask; i++) {
        for (struct journal_entry *e = j->by_stream[i]; e != NULL; e = e->next_stream) {
            if (!e->is_closed && !e->is_retired) { /* by what was done to the one before it */
                fn(arg, e);
            }
        }
    }
    j->n_walks--;
    if (j->n_walks == 0 && j->has_closed) {
        drop_closed(j);
    }
}

struct msg_submit journal_submit(const struct journal_entry *e, uint64_t now_ns)
{
    uint64_t deadline_us = 0;

    if (e->deadline_ns != CLOCK_NEVER) {
        /* 0 would mean "none": what is due now has a microsecond left. */
        deadline_us = e->deadline_ns > now_ns ? (e->deadline_ns - now_ns) / NS_PER_US : 0;
        deadline_us = MAX(deadline_us, (uint64_t)1);
    }
    return (struct msg_submit){ .stream = e->stream,
                                .attempt = e->attempt,
                                .n_prompt = e->n_prompt,
                                .n_emitted = e->n_emitted,
                                .prompt = e->prompt,
                                .emitted = e->emitted,
                                .max_tokens = e->max_tokens,
                                .temperature = e->temperature,
                                .top_p = e->top_p,
                                .min_p = e->min_p,
                                .top_k = e->top_k,
                                .choice = e->choice,
                                .seed = e->seed,
                                .n_stop_ids = e->n_stop_ids,
                                .stop_ids = e->stop_ids,
                                .want_logprobs = e->want_logprobs,
                                .n_logprobs = e->n_logprobs,
                                .deadline_us = deadline_us,
                                .cache_scope = e->cache_scope,
                                .presence_penalty = e->presence_penalty,
                                .frequency_penalty = e->frequency_penalty,
                                .repetition_penalty = e->repetition_penalty,
                                .n_biases = e->n_biases,
                                .biases = e->biases };
}
