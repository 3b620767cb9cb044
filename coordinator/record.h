/* coordinator/record.h - what an answer has come to: tokens and text, found again by token number.
 *
 *   tokens   base │ 0 1 2 3 4 5 6 …                    each knows where the text ended after it
 *   text          └─ "Once", " upon", "" , " a" …       (a token may complete none, or that of several)
 *
 * An answer that may be resumed keeps all of it; of the others only what no message has carried yet
 * is kept, and `base` goes up. One owner, no locks. */
#ifndef COORDINATOR_RECORD_H
#define COORDINATOR_RECORD_H

#include "model/tokenizer.h"
#include "proto/msg.h"

enum { RECORD_TOPS_BYTES = 32 << 20 /* of top log-probabilities */ };

struct record_token {
    uint32_t id;
    float logprob;
    uint32_t n_top;
    const struct msg_logprob *top; /* in the record's arena */
    uint64_t text_end;             /* bytes of the answer's text, this token counted */
};

struct record {
    struct record_token *tokens; /* [n_max] owned, n used */
    uint32_t base, n, n_max;     /* tokens[0] is token `base` of the answer */
    uint64_t text_base;          /* text.data[0] is byte text_base of the answer */
    struct buf text;             /* what is complete is appended here, then record_seal */
    struct arena tops;
};

void record_init(struct record *r);
void record_fini(struct record *r); /* zeroed storage is fine */

/* The next token, with the best n_top of its candidates. ST_ERR_NOMEM, ST_ERR_LIMIT. */
status record_add(struct record *r, const struct msg_token *t, uint32_t n_top) WARN_UNUSED;
/* The text that the last token has completed is in `text`. */
void record_seal(struct record *r);
/* All of it has been sent and will not be asked for again. */
void record_forget(struct record *r);

uint32_t record_end(const struct record *r); /* number of tokens of the answer */
uint64_t record_text_at(const struct record *r,
                        uint32_t i); /* text before token i: base <= i <= end */
uint64_t record_text_end(const struct record *r);
size_t record_bytes(const struct record *r);

/* Tokens [from, to) as a message's: fills tokens, token_offset, text and text_offset of *c; text
 * goes up to that of token to - 1, or, with all_text, to its end. Memory for the tokens from
 * `arena`; the rest is borrowed from the record. ST_ERR_LIMIT: no room in the arena. */
struct record_range {
    uint32_t from, to;
    bool all_text, has_logprobs;
};
status record_chunk(const struct record *r, struct record_range range, const struct tokenizer *tok,
                    struct arena *arena, struct msg_chunk *c) WARN_UNUSED;

#endif
