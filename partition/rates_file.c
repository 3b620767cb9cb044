/* partition/rates_file.c - see rates_file.h. Reading is strict: an unknown word is a misspelt one. */
#include "partition/rates_file.h"

#include "partition/plan.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- words ---- */

struct line {
    const struct rates_text *text;
    const char *at, *end; /* what is left of it, comment cut off */
    uint32_t number;
};

struct word {
    char key[RATES_WORD_BYTES_MAX], value[RATES_WORD_BYTES_MAX];
};

static status bad(const struct line *l, const char *word, const char *what, struct err *err)
{
    char shown[41];
    size_t n = 0;

    /* Outside bytes go into a log: printable ASCII only, and not too much of it. */
    for (; word[n] != '\0' && n < sizeof(shown) - 1; n++) {
        shown[n] = word[n] >= ' ' && word[n] <= '~' ? word[n] : '?';
    }
    shown[n] = '\0';
    return err_set(err, ST_ERR_FORMAT, "%s line %u: \"%s\": %s", l->text->name, l->number, shown,
                   what);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next KEY=VALUE (VALUE "" without "="). ST_END: the line is over. */
static status next(struct line *l, struct word *w, struct err *err)
{
    while (l->at < l->end && is_space(*l->at)) {
        l->at++;
    }
    const char *from = l->at;
    while (l->at < l->end && !is_space(*l->at)) {
        if (*l->at == '\0') {
            return bad(l, "", "a NUL byte", err);
        }
        l->at++;
    }
    const size_t len = (size_t)(l->at - from);
    const char *equals = len != 0 ? memchr(from, '=', len) : NULL;
    const size_t key = equals != NULL ? (size_t)(equals - from) : len;
    if (len == 0) {
        return ST_END;
    }
    if (len >= RATES_WORD_BYTES_MAX) {
        memcpy(w->key, from, RATES_WORD_BYTES_MAX - 1);
        w->key[RATES_WORD_BYTES_MAX - 1] = '\0';
        return bad(l, w->key, "a word of more than 255 bytes", err);
    }
    memcpy(w->key, from, key);
    w->key[key] = '\0';
    w->value[0] = '\0';
    if (equals != NULL) {
        memcpy(w->value, equals + 1, len - key - 1);
        w->value[len - key - 1] = '\0';
    }
    return ST_OK;
}

/* A decimal number within [1e-6, 1e12]: rates and times of machines, in the units of the file. */
static bool read_real(const char *text, double *x_p)
{
    char *end = NULL;

    if (text[0] == '\0' || text[strspn(text, "0123456789.eE+-")] != '\0') {
        return false;
    }
    const double x = strtod(text, &end);
    if (*end != '\0' || !(x >= 1e-6 && x <= 1e12)) {
        return false;
    }
    *x_p = x;
    return true;
}

static bool read_whole(const char *text, uint32_t most, uint32_t *n_p)
{
    uint64_t n = 0;

    for (const char *c = text; *c != '\0'; c++) {
        if (*c < '0' || *c > '9' || n > most) {
            return false;
        }
        n = n * 10 + (uint64_t)(*c - '0');
    }
    if (text[0] == '\0' || n == 0 || n > most) {
        return false;
    }
    *n_p = (uint32_t)n;
    return true;
}

/* ---- values ---- */

static const char real_words[] = "not a number from 1e-6 to 1e12";

static status take_real(const struct line *l, const struct word *w, double unit, double *x_p,
                        struct err *err)
{
    if (!read_real(w->value, x_p)) {
        return bad(l, w->value, real_words, err);
    }
    *x_p *= unit;
    return ST_OK;
}

static status take_mib(const struct line *l, const struct word *w, uint64_t *bytes_p,
                       struct err *err)
{
    uint32_t mib = 0;

    if (!read_whole(w->value, 1u << 30, &mib)) {
        return bad(l, w->value, "not a number of MiB from 1 to 2^30", err);
    }
    *bytes_p = (uint64_t)mib << 20;
    return ST_OK;
}

static status take_text(const struct line *l, const struct word *w, char *text, size_t bytes,
                        struct err *err)
{
    const size_t len = strlen(w->value);

    if (len == 0 || len >= bytes) {
        return bad(l, w->value, "not a word of this key: empty or too long", err);
    }
    for (size_t i = 0; i < len; i++) {
        if (w->value[i] <= ' ' || w->value[i] > '~') {
            return bad(l, w->value, "a word has printable characters only", err);
        }
    }
    memcpy(text, w->value, len + 1);
    return ST_OK;
}

/* "cpu", "cuda-sm90" */
static status take_device(const struct line *l, const struct word *w, uint32_t *version_p,
                          struct err *err)
{
    static const char head[] = "cuda-sm";

    *version_p = 0;
    if (strcmp(w->value, "cpu") == 0 ||
        (strncmp(w->value, head, sizeof(head) - 1) == 0 &&
         read_whole(w->value + sizeof(head) - 1, 9999, version_p))) {
        return ST_OK;
    }
    return bad(l, w->value, "known devices are cpu and cuda-smNN", err);
}

static status take_format(const struct line *l, const struct word *w, enum kern_fmt *fmt_p,
                          struct err *err)
{
    for (uint32_t f = 0; f < KERN_FMTS; f++) {
        if (strcmp(w->value, plan_fmt_name((enum kern_fmt)f)) == 0) {
            *fmt_p = (enum kern_fmt)f;
            return ST_OK;
        }
    }
    return bad(l, w->value, "known formats are f32, bf16 and fp8", err);
}

/* "1:48.1,16:40.0": rows ascending, GB/s. */
static status take_points(const struct line *l, struct word *w, struct rates_points *p_p,
                          struct err *err)
{
    struct rates_points p = { .n = 0 };
    char *at = w->value;

    while (at != NULL) {
        char *comma = strchr(at, ','), *colon;
        struct rates_point point = { 0, 0 };
        if (comma != NULL) {
            *comma = '\0';
        }
        colon = strchr(at, ':');
        if (colon != NULL) {
            *colon = '\0';
        }
        if (colon == NULL || !read_whole(at, PLAN_ROWS_MAX, &point.rows) ||
            !read_real(colon + 1, &point.bytes_s)) {
            return bad(l, at, "not ROWS:GB/s with commas between, as in 1:48.1,16:40", err);
        }
        if (p.n == RATES_POINTS_MAX || (p.n != 0 && point.rows <= p.at[p.n - 1].rows)) {
            return bad(l, at, "at most 12 numbers of rows, each larger than the one before", err);
        }
        point.bytes_s *= 1e9;
        p.at[p.n++] = point;
        at = comma != NULL ? comma + 1 : NULL;
    }
    *p_p = p;
    return ST_OK;
}

/* ---- keys of an entry ---- */

enum kind { A_TEXT, A_DEVICE, A_FORMAT, A_COUNT, SOME_MIB, SOME_POINTS, A_REAL };

/* In the order in which they are printed; where each is in struct rates_entry. */
static const struct key {
    const char *name;
    enum kind kind;
    bool is_needed;
    size_t at;    /* bytes from the entry's begin */
    size_t bytes; /* A_TEXT: of its array */
    double unit;  /* A_REAL: times this it is in SI units */
} keys[] = {
#define KEY(name, kind, is_needed, field, unit)                                                    \
    {                                                                                              \
        name, kind, is_needed, offsetof(struct rates_entry, field),                                \
            sizeof(((struct rates_entry *)NULL)->field), unit                                      \
    }
    KEY("host", A_TEXT, true, host, 0),
    KEY("device", A_DEVICE, true, cuda_version, 0),
    KEY("format", A_FORMAT, true, fmt, 0),
    KEY("kernels", A_TEXT, false, kernels, 0),
    KEY("threads", A_COUNT, false, threads, 0),
    KEY("measured", A_TEXT, false, measured, 0),
    KEY("memory_mib", SOME_MIB, false, memory_bytes, 0),
    KEY("weights_gb_s", SOME_POINTS, true, weights, 0),
    KEY("cached_mib", SOME_MIB, false, cached_bytes, 0),
    KEY("cached_gb_s", SOME_POINTS, false, cached, 0),
    KEY("kv_gb_s", A_REAL, true, kv_bytes_s, 1e9),
    KEY("decode_gflop_s", A_REAL, true, decode.flops, 1e9),
    KEY("decode_gscore_s", A_REAL, true, decode.scores_s, 1e9),
    KEY("prompt_gflop_s", A_REAL, true, prompt.flops, 1e9),
    KEY("prompt_gscore_s", A_REAL, true, prompt.scores_s, 1e9),
    KEY("vector_gb_s", A_REAL, true, vector_bytes_s, 1e9),
    KEY("scan_mid_s", A_REAL, true, scan_ids_s, 1e6),
    KEY("layer_us", A_REAL, true, layer_s, 1e-6),
    KEY("recorded_layer_us", A_REAL, false, recorded_layer_s, 1e-6),
#undef KEY
};
enum { KEYS = ARRAY_LEN(keys) };

static status take_key(const struct line *l, const struct key *key, struct word *w,
                       struct rates_entry *e, struct err *err)
{
    void *field = (char *)e + key->at;

    switch (key->kind) {
    case A_TEXT:
        return take_text(l, w, field, key->bytes, err);
    case A_DEVICE:
        return take_device(l, w, field, err);
    case A_FORMAT:
        return take_format(l, w, field, err);
    case SOME_MIB:
        return take_mib(l, w, field, err);
    case SOME_POINTS:
        return take_points(l, w, field, err);
    case A_REAL:
        return take_real(l, w, key->unit, field, err);
    case A_COUNT:
    default:
        return read_whole(w->value, 1 << 16, field)
                   ? ST_OK
                   : bad(l, w->value, "not a number of threads from 1 to 65536", err);
    }
}

/* ---- lines ---- */

static status read_entry(struct line *l, struct word *w, struct rates_entry *e_p, struct err *err)
{
    struct rates_entry e;
    uint32_t seen = 0;
    status st = ST_OK;

    memset(&e, 0, sizeof(e));
    do {
        uint32_t key = 0;
        while (key < KEYS && strcmp(w->key, keys[key].name) != 0) {
            key++;
        }
        if (key == KEYS) {
            return bad(l, w->key, "no such key; gantry measure shows those that there are", err);
        }
        if ((seen & (1u << key)) != 0) {
            return bad(l, w->key, "stands twice in the line", err);
        }
        seen |= 1u << key;
        st = take_key(l, &keys[key], w, &e, err);
    } while (st == ST_OK && (st = next(l, w, err)) == ST_OK);
    for (uint32_t key = 0; st == ST_END && key < KEYS; key++) {
        if (keys[key].is_needed && (seen & (1u << key)) == 0) {
            return bad(l, keys[key].name, "is missing in this line", err);
        }
    }
    if (st == ST_END && (e.cached.n == 0) != (e.cached_bytes == 0)) {
        return bad(l, e.cached.n == 0 ? "cached_mib" : "cached_gb_s",
                   "cached_mib and cached_gb_s go together", err);
    }
    if (st == ST_END) {
        *e_p = e;
        return ST_OK;
    }
    return st;
}

static status read_link(struct line *l, struct word *w, struct rates *r, struct err *err)
{
    struct rates_link link = { .is_measured = true };
    const bool is_across = strcmp(w->value, "network") == 0;
    bool has_latency = false, has_rate = false;
    status st;

    if (!is_across && strcmp(w->value, "host") != 0) {
        return bad(l, w->value, "known links are host and network", err);
    }
    while ((st = next(l, w, err)) == ST_OK) {
        if (strcmp(w->key, "latency_us") == 0) {
            st = take_real(l, w, 1e-6, &link.latency_s, err);
            has_latency = true;
        } else if (strcmp(w->key, "gb_s") == 0) {
            st = take_real(l, w, 1e9, &link.bytes_s, err);
            has_rate = true;
        } else {
            st = bad(l, w->key, "a link has latency_us and gb_s", err);
        }
        if (st != ST_OK) {
            return st;
        }
    }
    if (st != ST_END) {
        return st;
    }
    if (!has_latency || !has_rate) {
        return bad(l, has_latency ? "gb_s" : "latency_us", "is missing in this line", err);
    }
    *(is_across ? &r->across : &r->on_host) = link;
    return ST_OK;
}

static bool is_same(const struct rates_entry *a, const struct rates_entry *b)
{
    return a->cuda_version == b->cuda_version && a->fmt == b->fmt && strcmp(a->host, b->host) == 0;
}

/* The later line counts. Files are read once, and of thousands of hosts at most. */
static status keep(const struct line *l, struct rates *r, const struct rates_entry *e,
                   struct err *err)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (is_same(&r->entries[i], e)) {
            r->entries[i] = *e;
            return ST_OK;
        }
    }
    if (r->n == RATES_ENTRIES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s line %u: more than %d hosts, devices and formats",
                       l->text->name, l->number, RATES_ENTRIES_MAX);
    }
    r->entries[r->n++] = *e;
    return ST_OK;
}

static status read_line(struct line *l, bool *has_head, struct rates *r, struct err *err)
{
    struct rates_entry e;
    struct word w;
    status st = next(l, &w, err);

    if (st == ST_END) {
        return ST_OK;
    }
    if (st != ST_OK) {
        return st;
    }
    if (strcmp(w.key, "gantry-rates") == 0) {
        st = next(l, &w, err);
        if (st != ST_OK || strcmp(w.key, "1") != 0) {
            return bad(l, st == ST_OK ? w.key : "", "this program reads \"gantry-rates 1\"", err);
        }
        *has_head = true;
        return ST_OK;
    }
    if (!*has_head) {
        return bad(l, w.key, "a file of rates begins with \"gantry-rates 1\"", err);
    }
    if (strcmp(w.key, "link") == 0) {
        return read_link(l, &w, r, err);
    }
    st = read_entry(l, &w, &e, err);
    return st == ST_OK ? keep(l, r, &e, err) : st;
}

/* What is taken where nobody has measured: shared memory, and ten gigabit Ethernet. */
static void links_assume(struct rates *r)
{
    r->on_host = (struct rates_link){ .latency_s = 1e-6, .bytes_s = 8e9 };
    r->across = (struct rates_link){ .latency_s = 25e-6, .bytes_s = 1.1e9 };
}

static status read_all(const struct rates_text *text, struct rates *r, struct err *err)
{
    const char *at = text->data, *end = text->data + text->len;
    struct line l = { .text = text };
    bool has_head = false;
    status st = ST_OK;

    while (st == ST_OK && at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop != NULL ? stop : end;
        const char *comment = memchr(at, '#', (size_t)(stop - at));
        l.at = at;
        l.end = comment != NULL ? comment : stop;
        l.number++;
        at = stop < end ? stop + 1 : end;
        st = read_line(&l, &has_head, r, err);
    }
    if (st == ST_OK && r->n == 0) {
        st = err_set(err, ST_ERR_FORMAT, "%s: has the rates of no host (gantry measure -o FILE)",
                     text->name);
    }
    return st;
}

status rates_parse(const struct rates_text *text, struct rates *rates_p, struct err *err)
{
    struct rates r = { .n = 0 };
    size_t n_lines = 1;

    if (text->len > RATES_FILE_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s: %zu bytes, a file of rates has at most %d",
                       text->name, text->len, RATES_FILE_BYTES_MAX);
    }
    /* An entry has at least a hundred bytes: no more memory than a small multiple of the text. */
    for (size_t i = 0; i < text->len; i++) {
        n_lines += text->data[i] == '\n' ? 1 : 0;
    }
    r.entries = calloc(MIN(MIN(n_lines, text->len / 100 + 1), (size_t)RATES_ENTRIES_MAX),
                       sizeof(*r.entries));
    if (r.entries == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for its rates", text->name);
    }
    links_assume(&r);
    const status st = read_all(text, &r, err);
    if (st != ST_OK) {
        rates_fini(&r);
        return st;
    }
    *rates_p = r;
    return ST_OK;
}

/* ---- out ---- */

status rates_print_head(struct buf *out)
{
    return buf_append_str(out, "gantry-rates 1\n");
}

static status put_points(const struct rates_points *p, struct buf *out)
{
    status st = ST_OK;

    for (uint32_t i = 0; i < p->n && st == ST_OK; i++) {
        st = buf_printf(out, "%s%u:%.4g", i == 0 ? "" : ",", p->at[i].rows, p->at[i].bytes_s / 1e9);
    }
    return st;
}

static status put_value(const struct key *key, const void *field, struct buf *out)
{
    const uint32_t *number = field;

    switch (key->kind) {
    case A_TEXT:
        return buf_append_str(out, field);
    case A_DEVICE:
        return *number != 0 ? buf_printf(out, "cuda-sm%u", *number) : buf_append_str(out, "cpu");
    case A_FORMAT:
        return buf_append_str(out, plan_fmt_name(*(const enum kern_fmt *)field));
    case SOME_MIB:
        return buf_printf(out, "%" PRIu64, *(const uint64_t *)field >> 20);
    case SOME_POINTS:
        return put_points(field, out);
    case A_REAL:
        return buf_printf(out, "%.4g", *(const double *)field / key->unit);
    case A_COUNT:
    default:
        return buf_printf(out, "%u", *number);
    }
}

static bool is_said(const struct key *key, const struct rates_entry *e)
{
    const void *field = (const char *)e + key->at;

    return key->is_needed ||
           (key->kind == A_TEXT        ? *(const char *)field != '\0'
            : key->kind == SOME_MIB    ? *(const uint64_t *)field >> 20 != 0
            : key->kind == A_REAL      ? *(const double *)field > 0
            : key->kind == SOME_POINTS ? ((const struct rates_points *)field)->n != 0
                                       : *(const uint32_t *)field != 0);
}

status rates_print_entry(const struct rates_entry *e, struct buf *out)
{
    status st = ST_OK;

    for (uint32_t i = 0; i < KEYS && st == ST_OK; i++) {
        if (is_said(&keys[i], e)) {
            st = buf_printf(out, "%s%s=", i == 0 ? "" : " ", keys[i].name);
            (void)(st || (st = put_value(&keys[i], (const char *)e + keys[i].at, out)));
        }
    }
    return st == ST_OK ? buf_append_str(out, "\n") : st;
}

status rates_print_link(bool is_across, const struct rates_link *l, struct buf *out)
{
    return buf_printf(out, "link=%s latency_us=%.4g gb_s=%.4g\n", is_across ? "network" : "host",
                      l->latency_s * 1e6, l->bytes_s / 1e9);
}
