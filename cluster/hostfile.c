/* cluster/hostfile.c - read a host list in Open MPI's syntax, and one word more.
 *
 *   # comment                         blank lines and comments are skipped
 *   node1 slots=4 max_slots=8
 *   user@node2 slots = 2              spaces around "=" are allowed
 *   node3                             one slot
 *   node4 slots=4 rack=r2             ours: what it shares a switch with (cluster/place.h)
 *
 * mpirun reads what is written from it for each replica (coordinator/cli/hosts.c); what is checked here
 * is what would otherwise surface as a launch that fails on some host minutes later. A host that is named twice adds its slots. Relative
 * names (+n0) and exclusions (^node) need an allocation that we do not see: refused. */
#include "cluster/launch.h"

#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES_MAX = 1 << 20, HOSTS_MAX = 4096, SLOTS_MAX = 65536 };

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
    return w.len >= HOST_NAME_BYTES ? bad(c, w, "a host name of more than 255 bytes", err) : ST_OK;
}

/* Behind "rack=". */
static status check_rack(const struct cursor *c, struct word w, struct err *err)
{
    for (size_t i = 0; i < w.len; i++) {
        if (w.at[i] == '\0' || !is_host_char(w.at[i])) {
            return bad(c, w, "not a rack's name (letters, digits and .-_:@[]%)", err);
        }
    }
    return w.len == 0 || w.len >= HOST_RACK_BYTES
               ? bad(c, w, "a rack's name has 1 to 63 bytes", err)
               : ST_OK;
}

/* "slots=4 max_slots=8 rack=r1" behind the host. */
static status options(struct cursor *c, uint32_t *n_slots_p, struct word *rack_p, struct err *err)
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
        const bool is_rack = word_is(key, "rack");
        if (!is_rack && !word_is(key, "slots") && !word_is(key, "max_slots") &&
            !word_is(key, "max-slots")) {
            return bad(c, key, "known are slots=N, max_slots=N and rack=NAME", err);
        }
        if (!word_is(next(c), "=")) {
            return bad(c, key, is_rack ? "without \"=\" and a name" : "without \"=\" and a number",
                       err);
        }
        value = next(c);
        st = is_rack ? check_rack(c, value, err) : number(c, value, &n, err);
        if (st != ST_OK) {
            return st;
        }
        if (is_rack) {
            *rack_p = value;
        } else if (word_is(key, "slots")) {
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

static struct host *find(const struct host_list *list, struct word w)
{
    for (uint32_t i = 0; i < list->n; i++) {
        if (strlen(list->hosts[i].name) == w.len && memcmp(list->hosts[i].name, w.at, w.len) == 0) {
            return &list->hosts[i];
        }
    }
    return NULL;
}

/* A name more than once adds its slots; the last rack that was said is its rack. */
static status take(const struct cursor *c, struct host_list *list, struct word name, uint32_t slots,
                   struct word rack, struct err *err)
{
    struct host *h = find(list, name);

    if (h == NULL && list->n == HOSTS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s line %u: more than %d hosts", c->text->name, c->line,
                       HOSTS_MAX);
    }
    list->n_slots += slots;
    if (list->n_slots > SLOTS_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s line %u: more than %d slots in all", c->text->name,
                       c->line, SLOTS_MAX);
    }
    if (h == NULL) {
        h = &list->hosts[list->n++];
        memcpy(h->name, name.at, name.len);
    }
    h->slots += slots;
    if (rack.len != 0) {
        memset(h->rack, 0, sizeof(h->rack));
        memcpy(h->rack, rack.at, rack.len);
    }
    return ST_OK;
}

static status parse(const struct hostfile_text *text, struct host_list *list, struct err *err)
{
    const char *at = text->data, *end = text->data + text->len;
    struct cursor c = { .text = text };

    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        const char *comment;
        struct word host, rack = { NULL, 0 };
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
            st = options(&c, &slots, &rack, err);
        }
        if (st == ST_OK) {
            st = take(&c, list, host, slots, rack, err);
        }
        if (st != ST_OK) {
            return st;
        }
    }
    if (list->n == 0) {
        return err_set(err, ST_ERR_FORMAT, "%s: names no host", text->name);
    }
    return ST_OK;
}

status host_list_parse(const struct hostfile_text *text, struct host_list *list_p, struct err *err)
{
    /* Its lines are an upper bound: no more memory than a small multiple of the text. */
    struct host_list list = { .n = 0 };
    size_t n_lines = 1;

    for (size_t i = 0; i < text->len; i++) {
        n_lines += text->data[i] == '\n' ? 1 : 0;
    }
    list.hosts = calloc(MIN(n_lines, (size_t)HOSTS_MAX), sizeof(*list.hosts));
    if (!list.hosts) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for its host names", text->name);
    }
    const status st = parse(text, &list, err);
    if (st != ST_OK) {
        host_list_fini(&list);
        return st;
    }
    *list_p = list;
    return ST_OK;
}

status host_list_read(const char *path, struct host_list *list_p, struct err *err)
{
    struct buf b = BUF_INIT_MAX(FILE_BYTES_MAX + 1);
    status st = buf_read_file(&b, path, FILE_BYTES_MAX, err);

    if (st == ST_OK) {
        const struct hostfile_text text = { path, b.data, b.len };

        st = host_list_parse(&text, list_p, err);
    }
    buf_fini(&b);
    return st;
}

void host_list_fini(struct host_list *list)
{
    free(list->hosts);
    *list = (struct host_list){ .hosts = NULL };
}

status hostfile_parse(const struct hostfile_text *text, uint32_t *n_slots_p, uint32_t *n_hosts_p,
                      struct err *err)
{
    struct host_list list;
    const status st = host_list_parse(text, &list, err);

    if (st == ST_OK) {
        *n_slots_p = list.n_slots;
        *n_hosts_p = list.n;
        host_list_fini(&list);
    }
    return st;
}

status hostfile_slots(const char *path, uint32_t *n_slots_p, uint32_t *n_hosts_p, struct err *err)
{
    struct host_list list;
    const status st = host_list_read(path, &list, err);

    if (st == ST_OK) {
        *n_slots_p = list.n_slots;
        *n_hosts_p = list.n;
        host_list_fini(&list);
    }
    return st;
}
