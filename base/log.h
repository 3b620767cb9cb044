/* base/log.h - one line per fact on stderr (or in a rank's log file).
 *
 *   2026-11-21T19:20:03.123Z info  launch r2 - mpirun started, pid 4711
 *   time                     level subject rank request text
 *
 * Text is lower case, states the fact and the numbers, not the guess. Levels by volume: error, warn
 * ("..., ignoring"), info (state changes), debug (per request), trace (per message). Pure folders
 * (model, partition, kernels, proto) report through struct err and do not log.
 * Threads: any, after log_init; a line is written whole, by one write(2). */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/err.h"

#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

/* Level and destination descriptor (borrowed). Defaults before the call: LOG_INFO, stderr. */
void log_init(enum log_level level, int fd);
/* "rN" in each line from here on; rank < 0 (the default) prints "-". */
void log_set_rank(int rank);
/* "error" .. "trace" -> level; ST_ERR_ARG names the words that are known. */
status log_level_parse(const char *word, enum log_level *level_p, struct err *err);

extern enum log_level log_level_now; /* read-only outside log.c */

void log_line(enum log_level level, const char *subject, const char *request, const char *fmt, ...)
    PRINTF_LIKE(4, 5);

/* `request` is a request id or NULL. Arguments are not evaluated below the level. */
#define log_req(level, subject, request, ...)                                                      \
    ((level) <= log_level_now ? log_line((level), (subject), (request), __VA_ARGS__) : (void)0)
#define log_error(subject, ...) log_req(LOG_ERROR, subject, NULL, __VA_ARGS__)
#define log_warn(subject, ...)  log_req(LOG_WARN, subject, NULL, __VA_ARGS__)
#define log_info(subject, ...)  log_req(LOG_INFO, subject, NULL, __VA_ARGS__)
#define log_debug(subject, ...) log_req(LOG_DEBUG, subject, NULL, __VA_ARGS__)
#define log_trace(subject, ...) log_req(LOG_TRACE, subject, NULL, __VA_ARGS__)

#endif
