/* model/stop.h - stop strings over streamed text.
 *
 * Text goes in as it is made; what can no longer be the beginning of a stop string comes out. The
 * match is the one that is complete first; of those that are complete with the same byte, the
 * longest. Everything before it comes out, the rest is dropped. The result does not depend on how
 * the text was divided into pushes.
 *
 *   text so far:  given out | held (a beginning of some stop string) |
 *
 * At most 16 strings of 1 to 256 bytes, so at most 255 bytes are ever held. While the strings and
 * the text are UTF-8, what comes out of each push ends with a whole character. One owner. */
#ifndef MODEL_STOP_H
#define MODEL_STOP_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { STOP_STRINGS_MAX = 16, STOP_BYTES_MAX = 256 };

struct stop; /* opaque */

/* Copies the strings. n == 0 is allowed: everything passes.
 *   ST_ERR_ARG     more than STOP_STRINGS_MAX, or one that is empty or over STOP_BYTES_MAX
 *   ST_ERR_NOMEM */
status stop_create(const char *const *strings, const size_t *lens, uint32_t n, struct stop **stop_p,
                   struct err *err) WARN_UNUSED;
void stop_destroy(struct stop *stop); /* NULL is fine */

/* Feed text[0..len); append to `out` what is certain. *match_p becomes -1, or the index of the
 * string that matched: then out has all text before it, and later pushes give nothing and the same
 * index. On failure (ST_ERR_NOMEM, ST_ERR_LIMIT of `out`) the text was not taken and nothing
 * changed. */
status stop_push(struct stop *stop, const char *text, size_t len, struct buf *out,
                 int32_t *match_p) WARN_UNUSED;
/* The stream ended without a match: give out what is held. Nothing after a match. */
status stop_flush(struct stop *stop, struct buf *out) WARN_UNUSED;
/* Bytes held back now. */
size_t stop_held(const struct stop *stop);

#endif
