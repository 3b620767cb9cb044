/* coordinator/cli/batch.h - the parts of `gantry batch`: what comes in, what goes out.
 *
 *   in.jsonl ──index──► records (checked, ids unique) ──request──► service ──answer──► out.jsonl.part
 *                                                                                        │ all done
 *                                                             out.jsonl ◄──in the order of in.jsonl
 *
 * What makes the last file the same after any number of kills: a record is appended to .part in one
 * piece or is computed again; a request without a seed gets one from its own bytes; an answer holds
 * nothing that depends on when or where it was computed. One owner thread. */
#ifndef COORDINATOR_CLI_BATCH_H
#define COORDINATOR_CLI_BATCH_H

#include "proto/msg.h"

#include <jansson.h>

enum {
    BATCH_LINE_MAX = 8 << 20, /* of one record */
    BATCH_RECORDS_MAX = 1 << 28,
    BATCH_STOPS_MAX = MSG_STOP_STRINGS_MAX + 1
};

/* ---- in ---- */

struct batch_record {
    uint64_t offset, part_offset;
    uint32_t len, part_len; /* part_len 0: not done */
    uint64_t id;            /* offset of its id in batch_in.ids */
};

struct batch_in {
    const char *path; /* borrowed */
    int fd;
    struct batch_record *records; /* [n] owned */
    uint32_t n, n_max;
    struct buf ids;    /* NUL-ended, one behind the other */
    uint32_t *buckets; /* [mask + 1] record + 1, by id; owned */
    uint32_t *next;    /* [n_max] owned */
    uint32_t mask;
    struct hash128 digest; /* of all lines */
};

/* A record as a request; what `m` points to lives in it. */
struct batch_request {
    json_t *root;
    char id[MSG_REQUEST_ID_MAX + 1];
    struct msg_generate m;
    struct msg_str stops[BATCH_STOPS_MAX];
    uint32_t *ids; /* owned: of the prompt, then the stop ids */
    struct msg_bias *biases;
};

/* One line. `number` stands in for an absent id. ST_ERR_FORMAT names the field and its value. */
status batch_request_parse(const char *line, size_t len, uint64_t number,
                           struct batch_request *request_p, struct err *err);
void batch_request_fini(struct batch_request *r); /* zeroed storage is fine */

/* Reads and checks all of the file. ST_ERR_FORMAT names the line. */
status batch_in_open(const char *path, struct batch_in *in_p, struct err *err);
void batch_in_close(struct batch_in *in);
const char *batch_in_id(const struct batch_in *in, uint32_t i);
bool batch_in_find(const struct batch_in *in, const char *id, uint32_t *i_p);
status batch_in_request(const struct batch_in *in, uint32_t i, struct buf *line,
                        struct batch_request *request_p, struct err *err);

/* ---- out ---- */

struct batch_out {
    char path[4096], part_path[4096 + 8], new_path[4096 + 8];
    int fd; /* of the part; locked */
    uint64_t size;
    uint32_t n_errors; /* answers that are refusals */
    bool has_header;
};

/* What a part was begun with, and must be gone on with. */
struct batch_origin {
    const char *profile, *weights_digest;
    struct hash128 input;
};

/* PATH is there already. *is_done_p: with an answer to each record, in order; else ST_ERR_EXISTS. */
status batch_out_is_done(const char *path, const struct batch_in *in, bool *is_done_p,
                         struct err *err);
/* Opens PATH.part, takes its lock (ST_ERR_EXISTS: another batch has it), drops a torn last line and
 * marks the records that are done. */
status batch_out_open(const char *path, struct batch_in *in, struct batch_out *out_p,
                      uint32_t *n_done_p, struct err *err);
/* The first line; or, of a part that was there, compares. ST_ERR_MISMATCH. */
status batch_out_begin(struct batch_out *out, const struct batch_origin *origin, struct err *err);
/* A record's answer: one line with its newline. On failure (a full disk) nothing of it stays. */
status batch_out_append(struct batch_out *out, struct batch_record *r, const char *line, size_t len,
                        struct err *err);
/* All records are done: PATH appears whole, in the order of the input, and the part goes. */
status batch_out_finish(struct batch_out *out, const struct batch_in *in, struct err *err);
void batch_out_close(struct batch_out *out);

#endif
