/* coordinator/journal_read.c - bytes of a segment to the streams that were live (journal_disk.h).
 *
 * Where a record does not hold together, the rest is either a write that was cut (then nothing after
 * it holds together, and it is left away) or damage (then something does, and the segment is
 * refused: to go on would be to forget what came after). */
#include "coordinator/journal_disk.h"

#include "base/hash.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STREAMS_MAX = 1 << 20, IMAGE_FACTOR = 16, IMAGE_EXTRA = 4 << 20 };

static const size_t scan_bytes_max = (size_t)256 << 20; /* hashed while looking for what follows */

const char journal_magic[8] = "GANTRYJ1";

uint64_t journal_head_sum(const struct journal_head *h)
{
    return hash64_of(h, offsetof(struct journal_head, sum), 0);
}

uint64_t journal_record_sum(const void *bytes_and_kind, size_t len, uint64_t segment,
                            uint64_t place)
{
    return hash64_of(bytes_and_kind, len, segment * 0x9E3779B97F4A7C15ull + place);
}

/* ---- a cursor over outside bytes ---- */

struct cursor {
    const char *at;
    size_t left;
};

static bool take(struct cursor *c, void *to, size_t n)
{
    if (c->left < n) {
        return false;
    }
    memcpy(to, c->at, n);
    c->at += n;
    c->left -= n;
    return true;
}

static bool skip(struct cursor *c, size_t n)
{
    if (c->left < n) {
        return false;
    }
    c->at += n;
    c->left -= n;
    return true;
}

/* ---- the streams ---- */

struct reader {
    const char *name;
    const char *data;
    size_t len, place; /* of the record being read */
    struct journal_image *image;
    struct err *err;
};

PRINTF_LIKE(2, 3)
static status bad(const struct reader *r, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(r->err, ST_ERR_FORMAT, "%s is damaged at byte %zu: %s", r->name, r->place, text);
}

static status no_memory(const struct reader *r)
{
    return err_set(r->err, ST_ERR_LIMIT, "%s: no memory for what it holds at byte %zu", r->name,
                   r->place);
}

static struct journal_stream **slot(struct journal_image *image, uint64_t stream)
{
    struct journal_stream **at =
        &image->buckets[(stream * 0x9E3779B97F4A7C15ull >> 32) % JOURNAL_BUCKETS];

    while (*at != NULL && (*at)->stream != stream) {
        at = &(*at)->next;
    }
    return at;
}

static void stream_free(struct journal_stream *s)
{
    free(s->tokens);
    free(s);
}

/* ---- OPEN ---- */

static status text_field(const struct reader *r, const struct cursor *data, size_t max,
                         const char **text_p)
{
    if (data->left > max || memchr(data->at, 0, data->left) != NULL) {
        return bad(r, "a text of %zu bytes (at most %zu, without NUL)", data->left, max);
    }
    *text_p = arena_copy_str(&r->image->arena, data->at, data->left);
    return *text_p != NULL ? ST_OK : no_memory(r);
}

static status submit_field(const struct reader *r, const struct cursor *data,
                           struct journal_stream *s)
{
    struct err err = ERR_INIT;
    struct msg_coord m;
    const status st = msg_coord_unpack(data->at, data->left, &r->image->arena, &m, &err);

    if (st == ST_ERR_NOMEM || st == ST_ERR_LIMIT) {
        return no_memory(r);
    }
    if (st < 0 || m.kind != MSG_SUBMIT) {
        return bad(r, "parameters: %s", st < 0 ? err.text : "not a Submit");
    }
    if (m.submit.n_prompt == 0 || m.submit.n_emitted != 0 || m.submit.choice != 0 ||
        m.submit.n_stop_ids > JOURNAL_STOP_IDS_MAX) {
        return bad(r, "parameters: %u prompt ids, %u emitted, choice %u, %u stop ids",
                   m.submit.n_prompt, m.submit.n_emitted, m.submit.choice, m.submit.n_stop_ids);
    }
    s->submit = m.submit;
    return ST_OK;
}

static status stop_field(const struct reader *r, const struct cursor *data,
                         struct journal_stream *s)
{
    const char *text = NULL;

    if (s->n_stops == STOP_STRINGS_MAX || data->left == 0) {
        return bad(r, "stop string %u of %zu bytes", s->n_stops, data->left);
    }
    const status st = text_field(r, data, STOP_BYTES_MAX, &text);
    if (st == ST_OK) {
        s->stops[s->n_stops++] = (struct msg_str){ text, data->left };
    }
    return st;
}

static status choices_field(const struct reader *r, struct cursor data, struct journal_stream *s)
{
    uint32_t n = 0;

    if (data.left != sizeof(n) || !take(&data, &n, sizeof(n)) || n < 2 || n > MSG_CHOICES_MAX) {
        return bad(r, "%u choices (2 .. %d)", n, (int)MSG_CHOICES_MAX);
    }
    s->n_choices = n;
    return ST_OK;
}

static status field_read(const struct reader *r, uint16_t tag, struct cursor data,
                         struct journal_stream *s)
{
    switch (tag) {
    case JOURNAL_TAG_REQUEST:
        return text_field(r, &data, MSG_REQUEST_ID_MAX, &s->request_id);
    case JOURNAL_TAG_FLAGS:
        s->exact = data.left == 4 && (data.at[0] & JOURNAL_EXACT) != 0;
        return data.left == 4 ? ST_OK : bad(r, "flags of %zu bytes", data.left);
    case JOURNAL_TAG_DIGEST:
        return text_field(r, &data, HASH_HEX_BYTES - 1, &s->weights_digest);
    case JOURNAL_TAG_CHOICES:
        return choices_field(r, data, s);
    case JOURNAL_TAG_STOP:
        return stop_field(r, &data, s);
    case JOURNAL_TAG_SUBMIT:
        return submit_field(r, &data, s);
    case JOURNAL_TAG_TIMES:
        return take(&data, &s->arrived_us, 8) && take(&data, &s->first_token_us, 8)
                   ? ST_OK
                   : bad(r, "times of %zu bytes", data.left);
    default:
        return tag >= JOURNAL_TAG_MUST ? bad(r, "a field %u, of a newer gantry", tag) : ST_OK;
    }
}

static status fields_read(const struct reader *r, struct cursor *c, struct journal_stream *s)
{
    while (c->left != 0) {
        uint16_t tag = 0, zero = 0;
        uint32_t bytes = 0;

        if (!take(c, &tag, 2) || !take(c, &zero, 2) || !take(c, &bytes, 4) || bytes > c->left) {
            return bad(r, "a field of %u bytes where %zu are left", bytes, c->left);
        }
        const status st = field_read(r, tag, (struct cursor){ c->at, bytes }, s);
        if (st < 0) {
            return st;
        }
        if (!skip(c, MIN(c->left, ((size_t)bytes + 7) / 8 * 8))) {
            return bad(r, "a field without its end");
        }
    }
    if (s->request_id == NULL || s->request_id[0] == '\0' || s->submit.n_prompt == 0) {
        return bad(r, "a stream without a request id or prompt");
    }
    return ST_OK;
}

/* One of a request's streams, which `first` describes. */
static status choice_add(const struct reader *r, const struct journal_stream *first,
                         uint32_t choice)
{
    struct journal_stream **at = slot(r->image, first->stream + choice);

    if (*at != NULL || r->image->n_streams == STREAMS_MAX) {
        return bad(r, "stream %" PRIu64 " is opened again", first->stream + choice);
    }
    struct journal_stream *s = malloc(sizeof(*s));
    if (s == NULL) {
        return no_memory(r);
    }
    *s = *first;
    s->stream += choice;
    s->submit.choice = choice;
    *at = s;
    r->image->n_streams++;
    return ST_OK;
}

static status open_read(const struct reader *r, struct cursor *c)
{
    struct journal_stream s;
    uint32_t zero = 0;

    memset(&s, 0, sizeof(s));
    s.profile = s.weights_digest = "";
    s.n_choices = 1;
    if (!take(c, &s.stream, 8) || !take(c, &s.attempt, 4) || !take(c, &zero, 4)) {
        return bad(r, "a stream of %zu bytes", c->left);
    }
    status st = fields_read(r, c, &s);
    if (st == ST_OK && s.stream > UINT64_MAX - s.n_choices) {
        st = bad(r, "%u choices from stream %" PRIu64 " on", s.n_choices, s.stream);
    }
    for (uint32_t i = 0; st == ST_OK && i < s.n_choices; i++) {
        st = choice_add(r, &s, i);
    }
    return st;
}

/* ---- TOKENS ---- */

static status token_room(const struct reader *r, struct journal_stream *s)
{
    const uint32_t n = s->n_tokens_max == 0 ? 64 : s->n_tokens_max * 2;

    if (s->n_tokens == s->submit.max_tokens) {
        return bad(r, "stream %" PRIu64 " has more than its %u tokens", s->stream,
                   s->submit.max_tokens);
    }
    if (s->n_tokens < s->n_tokens_max) {
        return ST_OK;
    }
    struct msg_token *tokens = realloc(s->tokens, n * sizeof(*tokens));
    if (tokens == NULL) {
        return no_memory(r);
    }
    s->tokens = tokens;
    s->n_tokens_max = n;
    return ST_OK;
}

static status logprobs_read(const struct reader *r, struct cursor *c, struct msg_token *t)
{
    if (!take(c, &t->logprob, 4) || !take(c, &t->n_top, 4) || t->n_top > MSG_LOGPROBS_MAX ||
        c->left < t->n_top * sizeof(struct msg_logprob)) {
        return bad(r, "%u candidates of a token in %zu bytes", t->n_top, c->left);
    }
    if (t->n_top != 0) {
        t->top = arena_copy(&r->image->arena, c->at, t->n_top * sizeof(struct msg_logprob));
        if (t->top == NULL) {
            return no_memory(r);
        }
    }
    (void)skip(c, t->n_top * sizeof(struct msg_logprob));
    return ST_OK;
}

/* `s` NULL: the stream is gone, its tokens are passed over. */
static status token_read(const struct reader *r, struct cursor *c, bool has_logprobs,
                         struct journal_stream *s)
{
    struct msg_token t = { .logprob = 0.0f };
    status st = take(c, &t.token, 4) ? ST_OK : bad(r, "a token that is cut");

    if (st == ST_OK && has_logprobs) {
        st = logprobs_read(r, c, &t);
    }
    if (st == ST_OK && s != NULL) {
        st = token_room(r, s);
    }
    if (st == ST_OK && s != NULL) {
        t.stream = s->stream;
        t.index = s->n_tokens;
        s->tokens[s->n_tokens++] = t;
    }
    return st;
}

static status tokens_read(const struct reader *r, struct cursor *c)
{
    uint64_t wall_us = 0;
    status st = take(c, &wall_us, 8) ? ST_OK : bad(r, "tokens without a time");

    while (st == ST_OK && c->left >= 16) {
        uint64_t stream = 0;
        uint32_t first = 0;
        uint16_t n = 0, flags = 0;

        (void)(take(c, &stream, 8) && take(c, &first, 4) && take(c, &n, 2) && take(c, &flags, 2));
        struct journal_stream *s = *slot(r->image, stream);
        if (s != NULL && (first != s->n_tokens || s->has_end)) {
            return bad(r, "token %u of stream %" PRIu64 " where %u is due", first, stream,
                       s->n_tokens);
        }
        if (s != NULL && s->first_token_us == 0) {
            s->first_token_us = wall_us;
        }
        for (uint16_t i = 0; i < n && st == ST_OK; i++) {
            st = token_read(r, c, (flags & JOURNAL_FLAG_LOGPROBS) != 0, s);
        }
    }
    return st < 0 || c->left == 0 ? st : bad(r, "%zu bytes behind the last token", c->left);
}

/* ---- END, PROFILE, CANARY, DROP ---- */

static status end_read(const struct reader *r, struct cursor *c)
{
    uint64_t stream = 0, queued_us = 0, first_us = 0, ended_us = 0;
    uint32_t reason = 0, cached = 0, zero = 0;
    int32_t code = 0;
    const char *text = "";

    if (!take(c, &stream, 8) || !take(c, &code, 4) || !take(c, &reason, 4) ||
        !take(c, &cached, 4) || !take(c, &zero, 4) || !take(c, &queued_us, 8) ||
        !take(c, &first_us, 8) || !take(c, &ended_us, 8)) {
        return bad(r, "an end that is cut");
    }
    if (reason == FINISH_NONE || reason > FINISH_CANCELLED || code > 0 || code < -99) {
        return bad(r, "an end with reason %u and code %d", reason, code);
    }
    const status st = text_field(r, c, 4096, &text);
    struct journal_stream *s = *slot(r->image, stream);
    if (st < 0 || s == NULL) {
        return st;
    }
    s->has_end = true;
    s->first_token_us = first_us != 0 ? first_us : s->first_token_us;
    s->ended_us = ended_us;
    s->end = (struct msg_finish){ .stream = stream,
                                  .reason = (enum finish_reason)reason,
                                  .code = (status)code,
                                  .text = text,
                                  .cached_tokens = cached,
                                  .queued_us = queued_us };
    return ST_OK;
}

static status profile_read(const struct reader *r, struct cursor *c)
{
    uint64_t stream = 0;
    uint32_t flags = 0, zero = 0;
    const char *name = "";

    if (!take(c, &stream, 8) || !take(c, &flags, 4) || !take(c, &zero, 4)) {
        return bad(r, "a profile that is cut");
    }
    const status st = text_field(r, c, MSG_PROFILE_BYTES - 1, &name);
    struct journal_stream *s = *slot(r->image, stream);
    if (st < 0 || s == NULL) {
        return st;
    }
    if ((flags & JOURNAL_PLACED) != 0) {
        s->profile = name;
    }
    if ((flags & JOURNAL_PRODUCED) != 0 && s->n_profiles == MSG_PROFILES_MAX) {
        return bad(r, "profile %u of a stream", s->n_profiles + 1);
    }
    if ((flags & JOURNAL_PRODUCED) != 0) {
        s->profiles[s->n_profiles++] = name;
    }
    return ST_OK;
}

/* Where that profile's answer is, or is to go. NULL: there are too many. */
static struct journal_canary *canary_slot(struct journal_image *image, const char *profile)
{
    for (uint32_t i = 0; i < JOURNAL_CANARIES; i++) {
        struct journal_canary *k = &image->canaries[i];
        if (k->profile[0] == '\0' || strcmp(k->profile, profile) == 0) {
            return k;
        }
    }
    return NULL;
}

static status canary_read(const struct reader *r, struct cursor *c)
{
    struct journal_canary k = { .key = 0 };
    uint32_t n = 0;

    if (!take(c, &k.key, 8) || !take(c, &k.replica, 4) || !take(c, &n, 4) ||
        n != JOURNAL_CANARY_TOKENS || !take(c, k.tokens, sizeof(k.tokens))) {
        return bad(r, "a canary of %u tokens", n);
    }
    const size_t bytes = strnlen(c->at, c->left), host = c->left - MIN(c->left, bytes + 1);
    if (bytes == 0 || bytes == c->left || bytes >= sizeof(k.profile) || host >= sizeof(k.host) ||
        memchr(c->at + bytes + 1, 0, host) != NULL) {
        return bad(r, "a canary with names of %zu and %zu bytes", bytes, host);
    }
    memcpy(k.profile, c->at, bytes);
    memcpy(k.host, c->at + bytes + 1, host);
    struct journal_canary *at = canary_slot(r->image, k.profile);
    if (at == NULL) {
        return bad(r, "canaries of more than %d profiles", (int)JOURNAL_CANARIES);
    }
    *at = k;
    return ST_OK;
}

static status drop_read(const struct reader *r, struct cursor *c)
{
    uint64_t stream = 0;

    if (!take(c, &stream, 8) || c->left != 0) {
        return bad(r, "a record of %zu bytes", c->left + 8);
    }
    const struct journal_stream *first = *slot(r->image, stream);
    const uint32_t n = first != NULL ? first->n_choices : 0;
    if (first != NULL && first->submit.choice != 0) {
        return bad(r, "stream %" PRIu64 " is dropped, and is choice %u of a request", stream,
                   first->submit.choice);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct journal_stream **at = slot(r->image, stream + i), *s = *at;
        ASSERT(s != NULL); /* they come and go together */
        *at = s->next;
        stream_free(s);
        r->image->n_streams--;
    }
    return ST_OK;
}

/* ---- records ---- */

/* Bytes of the record at `place`, head and padding counted; 0: it does not hold together. */
static size_t record_at(const struct reader *r, size_t place)
{
    struct journal_record_head h;

    if (r->len - place < sizeof(h)) {
        return 0;
    }
    memcpy(&h, r->data + place, sizeof(h));
    const size_t all = sizeof(h) + ((size_t)h.bytes + 7) / 8 * 8;
    if (h.bytes == 0 || all > r->len - place ||
        h.sum != journal_record_sum(r->data + place + 8, 8 + (size_t)h.bytes, r->image->segment,
                                    place)) {
        return 0;
    }
    return all;
}

/* Does anything hold together behind a place that does not? */
static bool anything_after(const struct reader *r, size_t place)
{
    size_t budget = scan_bytes_max;

    for (size_t at = place + 8; at < r->len && r->len - at >= 16; at += 8) {
        struct journal_record_head h;

        memcpy(&h, r->data + at, sizeof(h));
        if (h.bytes == 0 || h.bytes > r->len - at - sizeof(h)) {
            continue;
        }
        if (h.bytes > budget) {
            return true; /* not seen in files that we have written */
        }
        budget -= h.bytes;
        if (record_at(r, at) != 0) {
            return true;
        }
    }
    return false;
}

static status record_read(const struct reader *r)
{
    struct journal_record_head h;
    struct cursor c = { r->data + r->place + sizeof(h), 0 };

    memcpy(&h, r->data + r->place, sizeof(h));
    c.left = h.bytes;
    switch (h.kind) {
    case JOURNAL_OPEN:
        return open_read(r, &c);
    case JOURNAL_TOKENS:
        return tokens_read(r, &c);
    case JOURNAL_END:
        return end_read(r, &c);
    case JOURNAL_DROP:
        return drop_read(r, &c);
    case JOURNAL_PROFILE:
        return profile_read(r, &c);
    case JOURNAL_CANARY:
        return canary_read(r, &c);
    default:
        return bad(r, "a record of kind %u, of a newer gantry", h.kind);
    }
}

static status head_read(const struct reader *r)
{
    struct journal_head h;

    if (r->len < sizeof(h)) {
        return bad(r, "%zu bytes, the head of a segment has %zu", r->len, sizeof(h));
    }
    memcpy(&h, r->data, sizeof(h));
    if (memcmp(h.magic, journal_magic, sizeof(h.magic)) != 0 || h.sum != journal_head_sum(&h)) {
        return bad(r, "this is not the head of a journal");
    }
    if (h.version != JOURNAL_VERSION) {
        return err_set(r->err, ST_ERR_UNSUPPORTED, "%s is of version %u, this gantry knows %d",
                       r->name, h.version, (int)JOURNAL_VERSION);
    }
    r->image->segment = h.segment;
    return ST_OK;
}

status journal_image_read(const char *name, const void *data, size_t len,
                          struct journal_image *image_p, struct err *err)
{
    struct journal_image image = { .arena = ARENA_INIT(len * IMAGE_FACTOR + IMAGE_EXTRA) };
    struct reader r = { name, data, len, 0, &image, err };
    status st = head_read(&r);

    r.place = sizeof(struct journal_head);
    while (st == ST_OK && r.place < len) {
        const size_t bytes = record_at(&r, r.place);

        if (bytes == 0 && anything_after(&r, r.place)) {
            st = bad(&r, "the record there does not hold together, and others follow it");
        }
        if (bytes == 0) {
            break;
        }
        st = record_read(&r);
        r.place += st == ST_OK ? bytes : 0;
    }
    image.good_bytes = r.place;
    if (st < 0) {
        journal_image_fini(&image);
        return st;
    }
    *image_p = image;
    return ST_OK;
}

void journal_image_fini(struct journal_image *image)
{
    for (uint32_t i = 0; i < JOURNAL_BUCKETS; i++) {
        while (image->buckets[i] != NULL) {
            struct journal_stream *s = image->buckets[i];
            image->buckets[i] = s->next;
            stream_free(s);
        }
    }
    arena_fini(&image->arena);
    image->n_streams = 0;
}

static int by_number(const void *a, const void *b)
{
    const struct journal_stream *const *x = a, *const *y = b;

    return ((*x)->stream > (*y)->stream) - ((*x)->stream < (*y)->stream);
}

status journal_image_list(const struct journal_image *image, struct journal_stream ***list_p,
                          struct err *err)
{
    struct journal_stream **list = calloc(image->n_streams + 1u, sizeof(struct journal_stream *));
    uint32_t n = 0;

    if (list == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u streams", image->n_streams);
    }
    for (uint32_t i = 0; i < JOURNAL_BUCKETS; i++) {
        for (struct journal_stream *s = image->buckets[i]; s != NULL; s = s->next) {
            list[n++] = s;
        }
    }
    qsort(list, n, sizeof(struct journal_stream *), by_number);
    *list_p = list;
    return ST_OK;
}
