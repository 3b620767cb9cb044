/* base/err.c - see err.h. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* vsnprintf cuts in the middle of a UTF-8 character; step back to the last whole one. */
static void trim_partial_utf8(char *text, size_t len)
{
    size_t at = len;

    while (at > 0 && ((unsigned char)text[at - 1] & 0xC0u) == 0x80u) {
        at--;
    }
    if (at == 0) {
        return;
    }
    const unsigned char lead = (unsigned char)text[at - 1];
    const size_t need = lead >= 0xF0u ? 4 : lead >= 0xE0u ? 3 : lead >= 0xC0u ? 2 : 1;

    if (len - (at - 1) < need) {
        text[at - 1] = '\0';
    }
}

PRINTF_LIKE(3, 0)
static void format(struct err *err, status code, const char *fmt, va_list ap)
{
    err->code = code;
    const int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
    if (n >= (int)sizeof(err->text)) {
        trim_partial_utf8(err->text, sizeof(err->text) - 1);
    }
}

status err_set(struct err *err, status code, const char *fmt, ...)
{
    if (err != NULL) {
        va_list ap;
        va_start(ap, fmt);
        format(err, code, fmt, ap);
        va_end(ap);
    }
    return code;
}

status err_set_errno(struct err *err, status code, int errnum, const char *fmt, ...)
{
    if (err != NULL) {
        char reason[96];
        va_list ap;

        va_start(ap, fmt);
        format(err, code, fmt, ap);
        va_end(ap);
        /* The XSI and GNU strerror_r differ in type; strerror_l is neither and is thread-safe. */
        snprintf(reason, sizeof(reason), "%s", strerror(errnum));
        const size_t at = strlen(err->text);
        snprintf(err->text + at, sizeof(err->text) - at, ": %s", reason);
    }
    return code;
}

status err_prefix(struct err *err, const char *fmt, ...)
{
    struct err old;
    va_list ap;

    if (err == NULL) {
        return ST_ERR_INTERNAL;
    }
    old = *err;
    va_start(ap, fmt);
    format(err, old.code, fmt, ap);
    va_end(ap);
    const size_t at = strlen(err->text);
    const int n = snprintf(err->text + at, sizeof(err->text) - at, "%s", old.text);
    if (n >= (int)(sizeof(err->text) - at)) {
        trim_partial_utf8(err->text, sizeof(err->text) - 1);
    }
    return err->code;
}

static const struct {
    status code;
    int exit_code;
    const char *name;
} table[] = {
    { ST_OK, 0, "ok" },
    { ST_BUSY, 0, "busy" },
    { ST_END, 0, "end" },
    { ST_ERR_ARG, 2, "invalid argument" },
    { ST_ERR_NOMEM, 4, "out of memory" },
    { ST_ERR_IO, 3, "input/output error" },
    { ST_ERR_FORMAT, 3, "malformed data" },
    { ST_ERR_UNSUPPORTED, 3, "not supported" },
    { ST_ERR_LIMIT, 4, "limit reached" },
    { ST_ERR_NOT_FOUND, 3, "not found" },
    { ST_ERR_EXISTS, 5, "already exists" },
    { ST_ERR_CANCELLED, 9, "cancelled" },
    { ST_ERR_DEADLINE, 8, "deadline exceeded" },
    { ST_ERR_UNAUTH, 7, "not authenticated" },
    { ST_ERR_DENIED, 7, "not allowed" },
    { ST_ERR_UNAVAILABLE, 6, "unavailable" },
    { ST_ERR_PEER, 6, "peer lost" },
    { ST_ERR_PROTO, 6, "protocol violation" },
    { ST_ERR_MISMATCH, 6, "mismatch" },
    { ST_ERR_INTERNAL, 70, "internal error" },
};

const char *status_name(status st)
{
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        if (table[i].code == st) {
            return table[i].name;
        }
    }
    return "unknown status";
}

int status_exit_code(status st)
{
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        if (table[i].code == st) {
            return table[i].exit_code;
        }
    }
    return 70;
}

void assert_failed(const char *expr, const char *file, int line)
{
    fprintf(stderr, "gantry: assertion failed: %s (%s:%d)\n", expr, file, line);
    abort();
}
