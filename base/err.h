/* base/err.h - how a call fails: a status by value, and one sentence in the caller's `struct err`.
 *
 * The first function that knows the cause writes the sentence, with the numbers and names that a
 * person needs (`return err_set(err, ST_ERR_ARG, "%u heads over %u slices", ...)`); those above return
 * the status as it is, or put context in front (err_prefix). An error lives where the caller put it.
 *
 * 0 is done, positive is "still going", negative failed, in ranges by what is lost:
 *   -1 .. -29    this call or request only; the process and its peers are as before
 *   -30 .. -49   a peer (rank, replica, coordinator, client) or the way to it
 *   -50 ..       this process cannot go on
 * The numbers travel in control messages and in logs: append, never renumber. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include "base/compiler.h"

typedef enum {
    ST_OK = 0,
    ST_BUSY = 1, /* not finished (or no room now): call again later */
    ST_END = 2,  /* nothing more will come */

    ST_ERR_ARG = -1,         /* a value the caller or user gave is out of range or makes no sense */
    ST_ERR_NOMEM = -2,       /* memory, or a budget of it, is used up */
    ST_ERR_IO = -3,          /* the operating system refused a file or descriptor operation */
    ST_ERR_FORMAT = -4,      /* outside bytes are malformed, truncated or contradict themselves */
    ST_ERR_UNSUPPORTED = -5, /* well-formed, but Gantry cannot do this */
    ST_ERR_LIMIT = -6,       /* a stated bound (queue, size, KV capacity) is reached */
    ST_ERR_NOT_FOUND = -7,   /* the named file, tensor, request, replica does not exist */
    ST_ERR_EXISTS = -8,      /* it exists already (a port in use, a request id with another body) */
    ST_ERR_CANCELLED = -9,   /* the other side no longer wants the result */
    ST_ERR_DEADLINE = -10,   /* a deadline passed */
    ST_ERR_UNAUTH = -11,     /* no credentials, or wrong ones */
    ST_ERR_DENIED = -12,     /* known caller, not allowed */

    ST_ERR_UNAVAILABLE = -30, /* nobody can serve this now; trying again later makes sense */
    ST_ERR_PEER = -31,        /* the connection or process at the other end is gone */
    ST_ERR_PROTO = -32,       /* a peer broke the protocol */
    ST_ERR_MISMATCH = -33,    /* two sides that must agree (build, digest, profile) do not */

    ST_ERR_INTERNAL = -50 /* a bug of ours */
} status;

enum { ERR_TEXT_BYTES = 512 };

struct err {
    status code;
    char text[ERR_TEXT_BYTES]; /* one sentence, UTF-8, NUL-terminated, no newline at its end */
};

#define ERR_INIT                                                                                   \
    {                                                                                              \
        ST_OK, ""                                                                                  \
    }

/* Write code and sentence; returns `code`, so that a caller can `return err_set(...)`. `err` may be
 * NULL: then only the code is passed on. Long texts are cut at a character boundary. */
status err_set(struct err *err, status code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* As err_set, with ": " and strerror(errnum) behind the sentence. */
status err_set_errno(struct err *err, status code, int errnum, const char *fmt, ...)
    PRINTF_LIKE(4, 5);

/* Put context in front of the sentence that is there ("model/x.json: " ...). Returns err->code. */
status err_prefix(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* "ST_ERR_ARG" -> "invalid argument"; for logs and command line output. Never NULL. */
const char *status_name(status st);

/* The process exit code that belongs to a failure. 0 ok; 2 usage (ARG); 3 model or file (FORMAT,
 * UNSUPPORTED, NOT_FOUND, IO); 4 does not fit (NOMEM, LIMIT); 5 address in use (EXISTS);
 * 6 peer, launch or service (UNAVAILABLE, PEER, PROTO, MISMATCH); 7 refused (UNAUTH, DENIED);
 * 8 deadline; 9 cancelled; 70 internal. docs/operations.md prints this table for users. */
int status_exit_code(status st);

#endif
