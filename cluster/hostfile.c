/* cluster/hostfile.c - read a host list in Open MPI's syntax, for what it offers.
 *
 *   # comment                         blank lines and comments are skipped
 *   node1 slots=4 max_slots=8
 *   user@node2 slots = 2              spaces around "=" are allowed
 *   node3                             one slot
 *
 * mpirun reads the file again by itself; what is checked here is what would otherwise surface as a
 * launch that fails on some host minutes later. A host that is named twice adds its slots. Relative
 * names (+n0) and exclusions (^node) need an allocation that we do not see: refused. */
#include "cluster/launch.h"

#include <stdlib.h>
#include <string.h>

enum {
    FILE_BYTES_MAX = 1 << 20,
    HOSTS_MAX = 4096,
    HOST_BYTES_MAX = HOSTFILE_NAME_BYTES - 1,
    SLOTS_MAX = 65536
};

struct word {
    const char *at;
    size_t len;
};

struct cursor {
    const struct hostfile_text *text;
    const char *at, *end; /* of the line, comment cut off */
    uint32_t line;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

static bool is_host_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           strchr(".-_:@[]%", c) != NULL;
}

/* The next word, or "=" alone; len 0 at the end of the line. */
static struct word next(struct cursor *c)
{
    struct word w;

    while (c->at < c->end && is_space(*c->at)) {
        c->at++;
    }
    w = (struct word){ c->at, 0 };
    while (c->at < c->end && !is_space(*c->at) && (*c->at != '=' || w.len == 0)) {
        w.len++;
        c->at++;
        if (*w.at == '=') {
            break;
        }
    }
    return w;
}

static bool word_is(struct word w, const char *text)
{
    return w.len == strlen(text) && memcmp(w.at, text, w.len) == 0;
}

/* Outside bytes go into a log: printable ASCII only, and not too much of it. */
static status bad(const struct cursor *c, struct word w, const char *what, struct err *err)
{
    char shown[41];
    const size_t len = MIN(w.len, sizeof(shown) - 1);

    for (size_t i = 0; i < len; i++) {
        shown[i] = w.at[i] >= ' ' && w.at[i] <= '~' ? w.at[i] : '?';
    }
    shown[len] = '\0';
    return err_set(err, ST_ERR_FORMAT, "%s line %u: \"%s\": %s", c->text->name, c->line, shown,
                   what);
}

static status number(const struct cursor *c, struct word w, uint32_t *n_p, struct err *err)
{
    uint32_t n = 0;

    for (size_t i = 0; i < w.len; i++) {
        if (w.at[i] < '0' || w.at[i] > '9' || n > SLOTS_MAX) {
            return bad(c, w, "not a number of slots from 1 to 65536", err);
        }
        n = n * 10 + (uint32_t)(w.at[i] - '0');
    }
    if (n == 0 || n > SLOTS_MAX) {
        return bad(c, w, "not a number of slots from 1 to 65536", err);
    }
    *n_p = n;
    return ST_OK;
}

static status check_host(const struct cursor *c, struct word w, struct err *err)
{
    for (size_t i = 0; i < w.len; i++) {
        if (w.at[i] == '\0' || !is_host_char(w.at[i])) {
            return bad(c, w, "not a host name (letters, digits and .-_:@[]%)", err);
        }
    }
    return w.len > HOST_BYTES_MAX ? bad(c, w, "a host name of more than 255 bytes", err) : ST_OK;
}

/* "slots=4 max_slots=8" behind the host. */
static status options(struct cursor *c, uint32_t *n_slots_p, struct err *err)
{
    uint32_t slots = 1, max_slots = SLOTS_MAX;

    for (;;) {
        const struct word key = next(c);
        struct word value;
        uint32_t n = 0;
        status st;

        if (key.len == 0) {
            break;
        }
        if (!word_is(key, "slots") && !word_is(key, "max_slots") && !word_is(key, "max-slots")) {
            return bad(c, key, "known are slots=N and max_slots=N", err);
        }
        if (!word_is(next(c), "=")) {
            return bad(c, key, "without \"=\" and a number", err);
        }
        value = next(c);
        st = number(c, value, &n, err);
        if (st != ST_OK) {
            return st;
        }
        if (word_is(key, "slots")) {
            slots = n;
        } else {
            max_slots = n;
        }
    }
    if (slots > max_slots) {
        return err_set(err, ST_ERR_FORMAT, "%s line %u: slots=%u is more than max_slots=%u",
                       c->text->name, c->line, slots, max_slots);
    }
    *n_slots_p = slots;
    return ST_OK;
}

/* The row of that host; n: none yet. */
static uint32_t find(const struct hostfile_row *rows, uint32_t n, struct word w)
{
    uint32_t i = 0;

    while (i < n && (strlen(rows[i].name) != w.len || memcmp(rows[i].name, w.at, w.len) != 0)) {
        i++;
    }
    return i;
}

static status parse(const struct hostfile_text *text, struct hostfile_row *rows,
                    uint32_t *n_slots_p, uint32_t *n_hosts_p, struct err *err)
{
    const char *at = text->data, *end = text->data + text->len;
    uint32_t n_slots = 0, n_hosts = 0;
    struct cursor c = { .text = text };

    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        const char *comment;
        struct word host;
        uint32_t slots = 0;
        status st;

        stop = stop ? stop : end;
        comment = memchr(at, '#', (size_t)(stop - at));
        c.at = at;
        c.end = comment ? comment : stop;
        c.line++;
        at = stop < end ? stop + 1 : end;
        host = next(&c);
        if (host.len == 0) {
            continue;
        }
        st = check_host(&c, host, err);
        if (st == ST_OK) {
            st = options(&c, &slots, err);
        }
        if (st != ST_OK) {
            return st;
        }
        const uint32_t i = find(rows, n_hosts, host);
        if (i == HOSTS_MAX) {
            return err_set(err, ST_ERR_LIMIT, "%s line %u: more than %d hosts", text->name, c.line,
                           HOSTS_MAX);
        }
        if (i == n_hosts) {
            rows[n_hosts++] = (struct hostfile_row){ .slots = 0 };
            memcpy(rows[i].name, host.at, host.len);
        }
        rows[i].slots += slots;
        n_slots += slots;
        if (n_slots > SLOTS_MAX) {
            return err_set(err, ST_ERR_LIMIT, "%s line %u: more than %d slots in all", text->name,
                           c.line, SLOTS_MAX);
        }
    }
    if (n_hosts == 0) {
        return err_set(err, ST_ERR_FORMAT, "%s: names no host", text->name);
    }
    *n_slots_p = n_slots;
    *n_hosts_p = n_hosts;
    return ST_OK;
}

status hostfile_rows(const struct hostfile_text *text, struct hostfile_row **rows_p, uint32_t *n_p,
                     struct err *err)
{
    struct hostfile_row *rows = malloc(HOSTS_MAX * sizeof(*rows));
    uint32_t n_slots;

    if (!rows) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for its host names", text->name);
    }
    const status st = parse(text, rows, &n_slots, n_p, err);
    if (st != ST_OK) {
        free(rows);
        return st;
    }
    *rows_p = rows;
    return ST_OK;
}

status hostfile_parse(const struct hostfile_text *text, uint32_t *n_slots_p, uint32_t *n_hosts_p,
                      struct err *err)
{
    struct hostfile_row *rows = NULL;
    uint32_t n_slots = 0, n = 0;
    const status st = hostfile_rows(text, &rows, &n, err);

    if (st != ST_OK) {
        return st;
    }
    for (uint32_t i = 0; i < n; i++) {
        n_slots += rows[i].slots;
    }
    free(rows);
    *n_slots_p = n_slots;
    *n_hosts_p = n;
    return ST_OK;
}

status hostfile_slots(const char *path, uint32_t *n_slots_p, uint32_t *n_hosts_p, struct err *err)
{
    struct buf b = BUF_INIT_MAX(FILE_BYTES_MAX + 1);
    status st = buf_read_file(&b, path, FILE_BYTES_MAX, err);

    if (st == ST_OK) {
        const struct hostfile_text text = { path, b.data, b.len };

        st = hostfile_parse(&text, n_slots_p, n_hosts_p, err);
    }
    buf_fini(&b);
    return st;
}
