/* coordinator/journal_disk.h - the journal's streams on disk, so that another coordinator can go on
 * with them.
 *
 *   DIR/                         mode 0700, locked: one coordinator at a time
 *     lock
 *     journal-<16 hex digits>    one segment; the newest counts, others are left-overs
 *
 *   segment = head │ snapshot: every live stream │ record │ record │ …
 *   record  = sum u64 │ bytes u32 │ kind u32 │ payload, padded to 8
 *
 *   kind    payload (little-endian)
 *   OPEN    stream u64, attempt u32, 0 u32, then fields: tag u16, 0 u16, bytes u32, data padded to 8;
 *           the n answers to one request are streams `stream` .. `stream` + n - 1, opened by one record
 *   TOKENS  wall us u64, then groups: stream u64, first index u32, n u16, flags u16, then n times
 *           id u32 [, logprob f32, n_top u32, n_top times id u32, logprob f32]
 *   END     stream u64, code i32, reason u32, cached u32, 0 u32, queued us u64, first token us u64,
 *           ended us u64, text
 *   DROP    stream u64: nobody can ask for that request any more
 *   PROFILE stream u64, flags u32 (1: it was placed there first, 2: it got tokens from there), 0 u32,
 *           the profile's name
 *   CANARY  key u64, replica u32, n u32, n times id u32, logprob f32, then the profile's name, NUL and the host's
 *           name: what the first replica of that profile answered to the canary; a later one counts
 *
 * A sum covers its record's bytes, the segment's number and the record's place. A segment that has
 * grown too large is replaced: a new one begins with a snapshot of what is live, so its size is
 * bounded by that. Unknown fields of OPEN are skipped; tags from JOURNAL_TAG_MUST on are not.
 *
 * Nothing is synced but a snapshot: what a dead machine loses is computed again and comes out
 * equal. A disk that takes no more does not touch the service: journal_disk_status says so, and it
 * is tried again every few seconds with a new segment. One owner thread. */
#ifndef COORDINATOR_JOURNAL_DISK_H
#define COORDINATOR_JOURNAL_DISK_H

#include "base/clock.h"
#include "coordinator/journal.h"
#include "coordinator/record.h"
#include "model/stop.h"

#include <sys/types.h>

enum { JOURNAL_VERSION = 1, JOURNAL_TAG_MUST = 0x8000, JOURNAL_PATH_BYTES = 1024 };

enum journal_kind {
    JOURNAL_OPEN = 1,
    JOURNAL_TOKENS,
    JOURNAL_END,
    JOURNAL_DROP,
    JOURNAL_PROFILE,
    JOURNAL_CANARY
};
enum { JOURNAL_PLACED = 1, JOURNAL_PRODUCED = 2 };
enum { JOURNAL_CANARIES = 4, JOURNAL_CANARY_TOKENS = 4 };

/* An answer that all replicas of a profile must give (canary.c). */
struct journal_canary {
    uint64_t key;     /* what it is the answer to */
    uint32_t replica; /* that gave it first, with its host */
    struct msg_logprob tokens[JOURNAL_CANARY_TOKENS];
    char profile[MSG_PROFILE_BYTES]; /* "": none */
    char host[64];
};

/* ---- what was there ---- */

struct journal_stream {
    uint64_t stream;
    uint32_t attempt;
    const char *request_id, *weights_digest;
    const char *profile; /* under which it began; "": it was not placed yet */
    uint32_t n_profiles;
    const char *profiles[MSG_PROFILES_MAX]; /* that tokens came from */
    bool exact;
    uint64_t arrived_us, first_token_us, ended_us; /* wall time; 0: not yet */
    struct msg_submit submit;                      /* without emitted tokens; .choice counts */
    uint32_t n_choices;                            /* of its request */
    uint32_t n_stops;
    struct msg_str stops[STOP_STRINGS_MAX];
    uint32_t n_tokens, n_tokens_max;
    struct msg_token *tokens; /* [n_tokens_max] owned; .top is in the image's arena */
    bool has_end;
    struct msg_finish end;
    struct journal_stream *next; /* private: hash chain */
};

/* The live streams of a segment. Strings and lists live in `arena`. */
enum { JOURNAL_BUCKETS = 1024 };
struct journal_image {
    struct arena arena;
    struct journal_stream *buckets[JOURNAL_BUCKETS]; /* owned */
    uint32_t n_streams;
    struct journal_canary canaries[JOURNAL_CANARIES];
    uint64_t segment;
    size_t good_bytes; /* less than all: the rest is a write that was cut */
};

/* Bytes of a segment. ST_ERR_FORMAT: damaged other than by a cut at the end; names the place.
 * ST_ERR_UNSUPPORTED: a newer version. ST_ERR_NOMEM, ST_ERR_LIMIT. `name` is for the sentence. */
status journal_image_read(const char *name, const void *data, size_t len,
                          struct journal_image *image_p, struct err *err);
void journal_image_fini(struct journal_image *image); /* zeroed storage is fine */
/* In the order in which they were opened. */
status journal_image_list(const struct journal_image *image, struct journal_stream ***list_p,
                          struct err *err);

/* ---- what is written ---- */

/* The operating system, as far as it may fail; tests have their own. */
struct journal_io {
    ssize_t (*write)(void *self, int fd, const void *data, size_t len);
    int (*sync)(void *self, int fd);
    void *self;
};

struct journal_disk;

struct journal_disk_config {
    const char *dir;
    const struct journal_io *io; /* NULL: the real one */
    const struct clock *clock;   /* NULL: clock_real() */
    uint64_t segment_bytes;      /* a new segment from here on; 0: 16 MiB */
};

struct journal_disk_status {
    bool is_durable;
    const char *why; /* it is not; "" else. Borrowed */
    uint64_t bytes;  /* of the segment */
};

/* Makes and locks the folder and reads what is there; nothing is written yet.
 * ST_ERR_EXISTS: another coordinator has it. ST_ERR_DENIED: others may look into it.
 * ST_ERR_FORMAT: damaged. ST_ERR_IO. */
status journal_disk_open(const struct journal_disk_config *config, struct journal_disk **disk_p,
                         struct journal_image *image_p, struct err *err);
/* `snapshot` calls journal_disk_stream, _token and _end for everything live, and _canary. Writes the first
 * segment. */
void journal_disk_begin(struct journal_disk *d, void (*snapshot)(void *arg), void *arg);
/* Nothing more is written. The segment stays for another coordinator, or, if `clean`, goes. NULL is
 * fine. */
void journal_disk_close(struct journal_disk *d, bool clean);
/* What is there stays as it is from here on. */
void journal_disk_freeze(struct journal_disk *d);

struct journal_opening {
    const struct journal_entry *entry;
    const struct msg_str *stops;
    uint32_t n_stops;
    uint32_t n_choices;
    const char *weights_digest;
    uint64_t arrived_us;
};
/* A request: choice 0's entry stands for all, whose numbers follow its own. */
void journal_disk_stream(struct journal_disk *d, const struct journal_opening *o);
/* The next token of a stream; n_top of its candidates are kept. */
void journal_disk_token(struct journal_disk *d, const struct msg_token *t, bool has_logprobs,
                        uint32_t n_top);
/* JOURNAL_PLACED, JOURNAL_PRODUCED. */
void journal_disk_profile(struct journal_disk *d, uint64_t stream, const char *profile,
                          uint32_t flags);
struct journal_ending {
    struct msg_finish finish;
    uint64_t first_token_us, ended_us; /* wall time */
};
void journal_disk_end(struct journal_disk *d, const struct journal_ending *end);
void journal_disk_drop(struct journal_disk *d, uint64_t stream);
/* At most JOURNAL_CANARIES profiles have one. */
void journal_disk_canary(struct journal_disk *d, const struct journal_canary *canary);
/* What was said since the last call goes out, in one write. */
void journal_disk_flush(struct journal_disk *d);
struct journal_disk_status journal_disk_status(const struct journal_disk *d);

/* ---- shared by reader and writer ---- */

struct journal_head { /* of a segment */
    char magic[8];
    uint32_t version, zero;
    uint64_t segment, sum;
};
struct journal_record_head {
    uint64_t sum;
    uint32_t bytes, kind;
};
_Static_assert(sizeof(struct journal_head) == 32, "on disk");
_Static_assert(sizeof(struct journal_record_head) == 16, "on disk");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the journal is little-endian");

enum journal_tag {
    JOURNAL_TAG_REQUEST = 1,
    JOURNAL_TAG_TIMES,  /* arrived us u64, first token us u64 */
    JOURNAL_TAG_STOP,   /* once for each */
    JOURNAL_TAG_SUBMIT, /* a packed CoordMessage */
    JOURNAL_TAG_DIGEST,
    JOURNAL_TAG_FLAGS,                         /* u32: JOURNAL_EXACT */
    JOURNAL_TAG_CHOICES = JOURNAL_TAG_MUST | 1 /* u32, where there are several */
};
enum { JOURNAL_EXACT = 1 };
enum { JOURNAL_FLAG_LOGPROBS = 1, JOURNAL_GROUP_MAX = 4096 };

extern const char journal_magic[8];
uint64_t journal_head_sum(const struct journal_head *h);
/* Of a record whose head (but the sum) and payload are at `bytes_and_kind`. */
uint64_t journal_record_sum(const void *bytes_and_kind, size_t len, uint64_t segment,
                            uint64_t place);

#endif
