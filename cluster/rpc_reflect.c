/* cluster/rpc_reflect.c - see rpc_reflect.h: the index over a descriptor set, and the answers.
 *
 *   FileDescriptorSet   1 file ─┬─ 1 name  2 package  3 dependency
 *                               ├─ 4 message ─ 1 name  3 message  4 enum      (nested)
 *                               ├─ 5 enum ─ 1 name
 *                               └─ 6 service ─ 1 name  2 method ─ 1 name
 *
 * Only these fields are looked at, so a walk over the wire format is enough; a parsed and packed
 * file would not be the same bytes, and clients compare them. The set is a page or two, so look-ups
 * are linear. */
#include "cluster/rpc_reflect.h"

#include "cluster/rpc_reflect_wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NESTING_MAX = 32, NAME_BYTES_MAX = 512, FILES_MAX = 1024 };

/* ---- index ---- */

struct symbol {
    char *name; /* owned; full, without a leading dot */
    uint32_t i_file;
    bool is_service;
};

struct rpc_reflect {
    struct wire_bytes *files; /* owned array [n_files] of borrowed FileDescriptorProtos */
    uint32_t n_files;
    struct symbol *symbols; /* owned, [n_symbols] */
    uint32_t n_symbols, symbols_cap;
};

void rpc_reflect_destroy(struct rpc_reflect *reflect)
{
    if (reflect == NULL) {
        return;
    }
    for (uint32_t i = 0; i < reflect->n_symbols; i++) {
        free(reflect->symbols[i].name);
    }
    free(reflect->symbols);
    free(reflect->files);
    free(reflect);
}

/* What encloses a name: a package, a message or a service; the file it stands in. */
struct scope {
    const char *name;
    uint32_t i_file;
    int depth;
};

/* Add scope.name + "." + field 1 of `element`; the full name goes to `full` [NAME_BYTES_MAX]. */
static status symbol_add(struct rpc_reflect *r, struct scope scope, struct wire_bytes element,
                         bool is_service, char *full)
{
    const struct wire_bytes name = wire_field_get(element, 1);
    const int n =
        snprintf(full, NAME_BYTES_MAX, "%s%s%.*s", scope.name, scope.name[0] == '\0' ? "" : ".",
                 (int)MIN(name.len, NAME_BYTES_MAX), (const char *)name.data);

    if (name.len == 0 || n >= NAME_BYTES_MAX || scope.depth >= NESTING_MAX) {
        return ST_ERR_FORMAT;
    }
    if (r->n_symbols == r->symbols_cap) {
        const uint32_t cap = r->symbols_cap == 0 ? 64 : r->symbols_cap * 2;
        struct symbol *symbols = realloc(r->symbols, cap * sizeof(*symbols));

        if (symbols == NULL) {
            return ST_ERR_NOMEM;
        }
        r->symbols = symbols;
        r->symbols_cap = cap;
    }
    r->symbols[r->n_symbols] = (struct symbol){ strdup(full), scope.i_file, is_service };
    if (r->symbols[r->n_symbols].name == NULL) {
        return ST_ERR_NOMEM;
    }
    r->n_symbols++;
    return ST_OK;
}

/* Which fields of an element hold named elements, and which table describes those. */
struct kind {
    uint32_t message, enumeration, service, method; /* field numbers, 0: none */
};
static const struct kind in_file = { .message = 4, .enumeration = 5, .service = 6 };
static const struct kind in_message = { .message = 3, .enumeration = 4 };
static const struct kind in_service = { .method = 2 };
static const struct kind in_leaf = { 0 };

static status scope_index(struct rpc_reflect *r, struct scope scope, struct wire_bytes in,
                          const struct kind *kind)
{
    struct wire_field f;
    status st;

    while ((st = wire_field_next(&in, &f)) == ST_OK) {
        char full[NAME_BYTES_MAX];
        const struct kind *inner;

        if (!f.is_bytes) {
            continue;
        }
        if (f.number == kind->message) {
            inner = &in_message;
        } else if (f.number == kind->service) {
            inner = &in_service;
        } else if (f.number == kind->enumeration || f.number == kind->method) {
            inner = &in_leaf;
        } else {
            continue;
        }
        st = symbol_add(r, scope, f.bytes, inner == &in_service, full);
        if (st == ST_OK && inner != &in_leaf) {
            st = scope_index(r, (struct scope){ full, scope.i_file, scope.depth + 1 }, f.bytes,
                             inner);
        }
        if (st != ST_OK) {
            return st;
        }
    }
    return st == ST_END ? ST_OK : st;
}

static status file_index(struct rpc_reflect *r, uint32_t i_file)
{
    const struct wire_bytes package = wire_field_get(r->files[i_file], 2);
    char name[NAME_BYTES_MAX];

    if (package.len >= sizeof(name)) {
        return ST_ERR_FORMAT;
    }
    memcpy(name, package.data, package.len);
    name[package.len] = '\0';
    return scope_index(r, (struct scope){ name, i_file, 0 }, r->files[i_file], &in_file);
}

static status files_index(struct rpc_reflect *r, struct wire_bytes set)
{
    struct wire_field f;
    status st;

    while ((st = wire_field_next(&set, &f)) == ST_OK) {
        if (f.number != 1 || !f.is_bytes) {
            continue;
        }
        if (r->n_files == FILES_MAX) {
            return ST_ERR_LIMIT;
        }
        r->files[r->n_files++] = f.bytes;
        st = file_index(r, r->n_files - 1);
        if (st != ST_OK) {
            return st;
        }
    }
    return st == ST_END && r->n_files > 0 ? ST_OK : ST_ERR_FORMAT;
}

status rpc_reflect_create(const void *set, size_t len, struct rpc_reflect **reflect_p,
                          struct err *err)
{
    struct rpc_reflect *r = calloc(1, sizeof(*r));
    status st = ST_ERR_NOMEM;

    if (r != NULL) {
        r->files = calloc(FILES_MAX, sizeof(r->files[0]));
    }
    if (r != NULL && r->files != NULL) {
        st = files_index(r, (struct wire_bytes){ set, len });
    }
    if (st != ST_OK) {
        rpc_reflect_destroy(r);
        return err_set(err, st, "reflection: %zu bytes are not a descriptor set (%s)", len,
                       status_name(st));
    }
    *reflect_p = r;
    return ST_OK;
}

/* ---- answers ---- */

/* The fields of a ServerReflectionRequest and of its response. */
enum {
    REQ_HOST = 1,
    REQ_FILE = 3,
    REQ_SYMBOL = 4,
    REQ_EXTENSION = 5,
    REQ_NUMBERS = 6,
    REQ_LIST = 7
};
enum {
    RESP_HOST = 1,
    RESP_REQUEST = 2,
    RESP_FILES = 4,
    RESP_NUMBERS = 5,
    RESP_LIST = 6,
    RESP_ERROR = 7
};

static status put_error(struct buf *answer, int code, const char *what, struct wire_bytes name)
{
    struct buf error = BUF_INIT_MAX(1024);
    char text[600];
    status st;

    snprintf(text, sizeof(text), "%s: %.*s", what, (int)MIN(name.len, NAME_BYTES_MAX),
             (const char *)name.data);
    st = wire_put_varint(&error, 1 << 3);
    if (st == ST_OK) {
        st = wire_put_varint(&error, (uint64_t)code);
    }
    if (st == ST_OK) {
        st = wire_put_bytes(&error, 2, wire_of(text));
    }
    if (st == ST_OK) {
        st = wire_put_bytes(answer, RESP_ERROR, wire_of_buf(&error));
    }
    buf_fini(&error);
    return st;
}

static uint32_t file_by_name(const struct rpc_reflect *r, struct wire_bytes name)
{
    uint32_t i = 0;

    while (i < r->n_files && !wire_equals(wire_field_get(r->files[i], 1), name)) {
        i++;
    }
    return i;
}

static uint32_t file_by_symbol(const struct rpc_reflect *r, struct wire_bytes name)
{
    for (uint32_t i = 0; i < r->n_symbols; i++) {
        if (wire_equals(wire_of(r->symbols[i].name), name)) {
            return r->symbols[i].i_file;
        }
    }
    return r->n_files;
}

/* A file and all it imports, itself first: a client that has them need not ask again. */
static status put_files(const struct rpc_reflect *r, uint32_t i_file, struct buf *answer)
{
    struct buf files = BUF_INIT;
    uint32_t order[FILES_MAX], n = 0;
    bool taken[FILES_MAX] = { false };
    status st = ST_OK;

    order[n++] = i_file;
    taken[i_file] = true;
    for (uint32_t i = 0; i < n && st == ST_OK; i++) {
        struct wire_bytes in = r->files[order[i]];
        struct wire_field f;

        st = wire_put_bytes(&files, 1, in);
        while (st == ST_OK && wire_field_next(&in, &f) == ST_OK) {
            const uint32_t dep =
                f.number == 3 && f.is_bytes ? file_by_name(r, f.bytes) : r->n_files;

            if (dep < r->n_files && !taken[dep]) {
                taken[dep] = true;
                order[n++] = dep;
            }
        }
    }
    if (st == ST_OK) {
        st = wire_put_bytes(answer, RESP_FILES, wire_of_buf(&files));
    }
    buf_fini(&files);
    return st;
}

static status put_list(const struct rpc_reflect *r, struct buf *answer)
{
    struct buf list = BUF_INIT;
    status st = ST_OK;

    for (uint32_t i = 0; i < r->n_symbols && st == ST_OK; i++) {
        const struct wire_bytes name = wire_of(r->symbols[i].name);
        if (!r->symbols[i].is_service) {
            continue;
        }
        st = wire_put_varint(&list, 1 << 3 | 2); /* ServiceResponse { name = 1 } */
        if (st == ST_OK) {
            st = wire_put_varint(&list, 1 + wire_varint_size(name.len) + name.len);
        }
        if (st == ST_OK) {
            st = wire_put_bytes(&list, 1, name);
        }
    }
    if (st == ST_OK) {
        st = wire_put_bytes(answer, RESP_LIST, wire_of_buf(&list));
    }
    buf_fini(&list);
    return st;
}

/* Nothing of ours has extensions: for a known type the list is empty. */
static status put_numbers(const struct rpc_reflect *r, struct wire_bytes type, struct buf *answer)
{
    struct buf numbers = BUF_INIT;
    status st;

    if (file_by_symbol(r, type) == r->n_files) {
        return put_error(answer, rpc_code(ST_ERR_NOT_FOUND), "no such type", type);
    }
    st = wire_put_bytes(&numbers, 1, type);
    if (st == ST_OK) {
        st = wire_put_bytes(answer, RESP_NUMBERS, wire_of_buf(&numbers));
    }
    buf_fini(&numbers);
    return st;
}

static status put_found(const struct rpc_reflect *r, uint32_t i_file, const char *what,
                        struct wire_bytes name, struct buf *answer)
{
    return i_file < r->n_files ? put_files(r, i_file, answer)
                               : put_error(answer, rpc_code(ST_ERR_NOT_FOUND), what, name);
}

static status put_answer(const struct rpc_reflect *r, const struct wire_field *asked,
                         struct buf *answer)
{
    const struct wire_bytes name = asked->bytes;

    switch (asked->number) {
    case REQ_FILE:
        return put_found(r, file_by_name(r, name), "no such file", name, answer);
    case REQ_SYMBOL:
        return put_found(r, file_by_symbol(r, name), "no such symbol", name, answer);
    case REQ_EXTENSION:
        return put_error(answer, rpc_code(ST_ERR_NOT_FOUND), "no extensions of",
                         wire_field_get(name, 1));
    case REQ_NUMBERS:
        return put_numbers(r, name, answer);
    case REQ_LIST:
        return put_list(r, answer);
    default:
        return put_error(answer, rpc_code(ST_ERR_ARG), "nothing was asked", wire_of(""));
    }
}

status rpc_reflect_answer(const struct rpc_reflect *reflect, const void *request, size_t len,
                          struct buf *answer, struct err *err)
{
    struct wire_bytes in = { request, len };
    struct wire_field f, asked = { .bytes = wire_of("") };
    struct wire_bytes host = wire_of("");
    status st;

    while ((st = wire_field_next(&in, &f)) == ST_OK) {
        if (f.number == REQ_HOST && f.is_bytes) {
            host = f.bytes;
        } else if (f.number >= REQ_FILE && f.number <= REQ_LIST && f.is_bytes) {
            asked = f; /* a oneof: the last counts */
        }
    }
    if (st != ST_END) {
        return err_set(err, ST_ERR_FORMAT, "%zu bytes are not a ServerReflectionRequest", len);
    }
    st = wire_put_bytes(answer, RESP_HOST, host);
    if (st == ST_OK) {
        st = wire_put_bytes(answer, RESP_REQUEST, (struct wire_bytes){ request, len });
    }
    if (st == ST_OK) {
        st = put_answer(reflect, &asked, answer);
    }
    return st == ST_OK ? ST_OK : err_set(err, st, "the reflection answer: %s", status_name(st));
}

void rpc_reflect_message(const struct rpc_reflect *reflect, struct rpc_call *call, const void *data,
                         size_t len)
{
    struct buf answer = BUF_INIT_MAX(1 << 20);
    struct err err = ERR_INIT;
    status st;

    if (data == NULL) {
        rpc_call_finish(call, ST_OK, NULL);
        return;
    }
    st = rpc_reflect_answer(reflect, data, len, &answer, &err);
    if (st == ST_OK) {
        st = rpc_call_send(call, answer.data, answer.len);
        if (st != ST_OK) { /* also ST_BUSY: a client that asks on and reads no answers */
            st = ST_ERR_LIMIT;
            (void)err_set(&err, st, "the client asks faster than it reads");
        }
    }
    buf_fini(&answer);
    if (st != ST_OK) {
        rpc_call_finish(call, st, err.text);
    }
}
