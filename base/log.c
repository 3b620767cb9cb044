/* base/log.c - see log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 1024 };

enum log_level log_level_now = LOG_INFO;

static int log_fd = STDERR_FILENO;
static int log_rank = -1;

static const char *const level_words[] = { "error", "warn", "info", "debug", "trace" };

void log_init(enum log_level level, int fd)
{
    log_level_now = level;
    log_fd = fd;
}

void log_set_rank(int rank)
{
    log_rank = rank;
}

status log_level_parse(const char *word, enum log_level *level_p, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(level_words); i++) {
        if (strcmp(word, level_words[i]) == 0) {
            *level_p = (enum log_level)i;
            return ST_OK;
        }
    }
    return err_set(err, ST_ERR_ARG, "log level \"%s\" is none of error, warn, info, debug, trace",
                   word);
}

/* Time, level, subject, rank, request. Returns the length written. */
static size_t put_head(char *line, enum log_level level, const char *subject, const char *request)
{
    struct timespec now;
    struct tm tm;
    char rank[16] = "-";

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    if (log_rank >= 0) {
        snprintf(rank, sizeof(rank), "r%d", log_rank);
    }
    const size_t n = strftime(line, LINE_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
    const int m =
        snprintf(line + n, LINE_BYTES - n, ".%03ldZ %-5s %s %s %s ", now.tv_nsec / 1000000,
                 level_words[level], subject, rank, request != NULL ? request : "-");
    return MIN(n + (size_t)m, (size_t)LINE_BYTES - 2);
}

void log_line(enum log_level level, const char *subject, const char *request, const char *fmt, ...)
{
    char line[LINE_BYTES];
    va_list ap;
    size_t n = put_head(line, level, subject, request);

    va_start(ap, fmt);
    const int m = vsnprintf(line + n, LINE_BYTES - 1 - n, fmt, ap);
    va_end(ap);
    n = MIN(n + (size_t)MAX(m, 0), (size_t)LINE_BYTES - 2);
    /* A newline in the text would forge a line of its own: names come from outside. */
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)line[i] < 0x20) {
            line[i] = ' ';
        }
    }
    line[n] = '\n';
    if (write(log_fd, line, n + 1) < 0) {
        return; /* nowhere to say it */
    }
}
