/* cluster/slurm_hostlist.c - SLURM's short form of many host names.
 *
 *   list  = item { "," item }                 n1,gpu[01-04,9],rack[0-1]u[1-2]
 *   item  = { character | "[" range { "," range } "]" }
 *   range = number [ "-" number ]             "08-10" keeps the width: 08, 09, 10
 *
 * Every bracket of an item multiplies; the item is walked once per name, brackets as an odometer that is
 * recursed into, at most BRACKETS_MAX deep. Nothing is allocated beyond SLURM_NODES_MAX names, and a range
 * is measured before it is counted out. Refused: `scontrol show hostnames` as the only reader (a process
 * for a string, and none where we plan outside of SLURM). */
#include "cluster/slurm.h"

#include "cluster/slurm_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BRACKETS_MAX = 4, NUMBER_DIGITS_MAX = 9, HOSTS_GROW = 64 };

struct expansion {
    const char *what; /* for the sentence */
    struct hostlist list;
    uint32_t cap;
};

static status bad(const struct expansion *x, const char *at, const char *why, struct err *err)
{
    char shown[SLURM_SHOWN_BYTES];

    return err_set(err, ST_ERR_FORMAT, "%s: \"%s\": %s", x->what,
                   slurm_shown(at, strlen(at), shown), why);
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_';
}

static status add(struct expansion *x, const char *name, struct err *err)
{
    struct hostlist *list = &x->list;

    if (list->n == SLURM_NODES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: more than %d hosts", x->what, SLURM_NODES_MAX);
    }
    if (list->n == x->cap) {
        const uint32_t cap = x->cap + MAX(x->cap, (uint32_t)HOSTS_GROW);
        void *names = realloc(list->names, cap * sizeof(*list->names));
        if (!names) {
            return err_set(err, ST_ERR_NOMEM, "%s: no memory for %u host names", x->what, cap);
        }
        list->names = names;
        x->cap = cap;
    }
    memcpy(list->names[list->n], name, strlen(name) + 1);
    list->n++;
    return ST_OK;
}

/* Digits at *at_p, which moves behind them. */
static status number(const struct expansion *x, const char **at_p, uint32_t *value_p,
                     uint32_t *width_p, struct err *err)
{
    const char *at = *at_p;
    uint32_t value = 0, width = 0;

    for (; at[width] >= '0' && at[width] <= '9'; width++) {
        if (width == NUMBER_DIGITS_MAX) {
            return bad(x, at, "a number of more than 9 digits", err);
        }
        value = value * 10 + (uint32_t)(at[width] - '0');
    }
    if (width == 0) {
        return bad(x, at, "not a number, in brackets", err);
    }
    *at_p = at + width;
    *value_p = value;
    *width_p = width;
    return ST_OK;
}

static status item(struct expansion *x, char name[SLURM_NAME_BYTES], size_t len, const char *at,
                   uint32_t depth, struct err *err);

/* One range of a bracket, with all that follows the bracket (`rest`). *at_p moves behind the range. */
static status range(struct expansion *x, char name[SLURM_NAME_BYTES], size_t len, const char **at_p,
                    const char *rest, uint32_t depth, struct err *err)
{
    const char *begin = *at_p;
    uint32_t first = 0, last = 0, width = 0, last_width = 0;
    status st = number(x, at_p, &first, &width, err);

    last = first;
    if (st == ST_OK && **at_p == '-') {
        (*at_p)++;
        st = number(x, at_p, &last, &last_width, err);
    }
    if (st != ST_OK) {
        return st;
    }
    if (last < first) {
        return bad(x, begin, "a range that ends before it begins", err);
    }
    if (last - first >= SLURM_NODES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: a range of %u hosts; at most %d", x->what,
                       last - first + 1, SLURM_NODES_MAX);
    }
    for (uint32_t i = first; i <= last; i++) {
        const size_t room = SLURM_NAME_BYTES - len;
        const int n = snprintf(name + len, room, "%0*u", (int)width, i);
        if (n < 0 || (size_t)n >= room) {
            return bad(x, begin, "a host name of more than 255 bytes", err);
        }
        st = item(x, name, len + (size_t)n, rest, depth, err);
        if (st != ST_OK) {
            return st;
        }
    }
    return ST_OK;
}

/* `at` is behind "[". */
static status bracket(struct expansion *x, char name[SLURM_NAME_BYTES], size_t len, const char *at,
                      uint32_t depth, struct err *err)
{
    const char *close = strchr(at, ']');

    if (!close) {
        return bad(x, at, "a bracket that is not closed", err);
    }
    if (depth == BRACKETS_MAX) {
        return bad(x, at, "more than 4 brackets in a name", err);
    }
    for (;;) {
        const status st = range(x, name, len, &at, close + 1, depth + 1, err);
        if (st != ST_OK) {
            return st;
        }
        if (at == close) {
            return ST_OK;
        }
        if (*at != ',') {
            return bad(x, at, "neither \",\" nor \"]\" behind a range", err);
        }
        at++;
    }
}

/* From `at` to the end of the item, behind the `len` bytes that stand in `name`. */
static status item(struct expansion *x, char name[SLURM_NAME_BYTES], size_t len, const char *at,
                   uint32_t depth, struct err *err)
{
    for (; *at != '\0' && *at != ','; at++) {
        if (*at == '[') {
            return bracket(x, name, len, at + 1, depth, err);
        }
        if (!is_name_char(*at)) {
            return bad(x, at, "not a host name (letters, digits and .-_)", err);
        }
        if (len == SLURM_NAME_BYTES - 1) {
            return bad(x, at, "a host name of more than 255 bytes", err);
        }
        name[len++] = *at;
    }
    if (len == 0) {
        return bad(x, at, "a name is missing", err);
    }
    name[len] = '\0';
    return add(x, name, err);
}

/* Behind the item at `at`: the comma inside brackets does not count. */
static const char *item_end(const char *at)
{
    bool inside = false;

    for (; *at != '\0' && (inside || *at != ','); at++) {
        inside = *at == '[' || (inside && *at != ']');
    }
    return at;
}

status hostlist_expand(const char *what, const char *text, struct hostlist *list_p, struct err *err)
{
    struct expansion x = { .what = what };
    char name[SLURM_NAME_BYTES];
    const char *at = text;

    for (;;) {
        const status st = item(&x, name, 0, at, 0, err);
        if (st != ST_OK) {
            hostlist_fini(&x.list);
            return st;
        }
        at = item_end(at);
        if (*at == '\0') {
            *list_p = x.list;
            return ST_OK;
        }
        at++;
    }
}

void hostlist_fini(struct hostlist *list)
{
    free(list->names);
    *list = (struct hostlist){ 0 };
}
