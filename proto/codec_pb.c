/* proto/codec_pb.c - see codec_pb.h. */
#include "proto/codec_pb.h"

#include <math.h>
#include <string.h>

/* ---- memory ---- */

/* In front of each allocation stands its size: the only trace of a string's length on the wire,
 * since protobuf-c hands out `len + 1` bytes and keeps no length. */
enum { HEAD_BYTES = 16 };

struct budget {
    struct arena *arena;
    bool is_full;
};

static void *budget_alloc(void *self, size_t size)
{
    struct budget *b = self;
    char *p = size < SIZE_MAX - HEAD_BYTES ? arena_alloc(b->arena, size + HEAD_BYTES) : NULL;

    if (p == NULL) {
        b->is_full = true;
        return NULL;
    }
    memcpy(p, &size, sizeof(size));
    return p + HEAD_BYTES;
}

/* Everything goes at once, with the arena. A message that names one field a million times therefore
 * runs into the bound instead of running for ever in place. */
static void budget_free(void *self UNUSED, void *p UNUSED)
{
}

static size_t allocated_bytes(const void *p)
{
    size_t size;

    memcpy(&size, (const char *)p - HEAD_BYTES, sizeof(size));
    return size;
}

/* ---- checks ---- */

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool is_utf8(const unsigned char *s, size_t len)
{
    size_t i = 0;

    while (i < len) {
        const unsigned char c = s[i];
        size_t more;
        unsigned char lo = 0x80, hi = 0xBF;

        if (c < 0x80) {
            i++;
            continue;
        }
        if (c >= 0xC2 && c <= 0xDF) {
            more = 1;
        } else if (c >= 0xE0 && c <= 0xEF) {
            more = 2;
            lo = c == 0xE0 ? 0xA0 : lo;
            hi = c == 0xED ? 0x9F : hi;
        } else if (c >= 0xF0 && c <= 0xF4) {
            more = 3;
            lo = c == 0xF0 ? 0x90 : lo;
            hi = c == 0xF4 ? 0x8F : hi;
        } else {
            return false;
        }
        if (len - i <= more || s[i + 1] < lo || s[i + 1] > hi) {
            return false;
        }
        for (size_t k = 2; k <= more; k++) {
            if ((s[i + k] & 0xC0) != 0x80) {
                return false;
            }
        }
        i += more + 1;
    }
    return true;
}

struct walk {
    const ProtobufCMessageDescriptor *nul_ok;
    struct err *err;
};

static status message_check(const struct walk *w, const ProtobufCMessage *msg);

static status string_check(const struct walk *w, const ProtobufCMessageDescriptor *desc,
                           const ProtobufCFieldDescriptor *field, const char *str)
{
    if (str == NULL || str == (const char *)field->default_value) {
        return ST_OK;
    }
    const size_t len = allocated_bytes(str) - 1;
    if (desc != w->nul_ok && memchr(str, 0, len) != NULL) {
        return err_set(w->err, ST_ERR_PROTO, "%s.%s holds a NUL at byte %zu of %zu",
                       desc->short_name, field->name, strlen(str), len);
    }
    if (!is_utf8((const unsigned char *)str, len)) {
        return err_set(w->err, ST_ERR_PROTO, "%s.%s (%zu bytes) is not UTF-8", desc->short_name,
                       field->name, len);
    }
    return ST_OK;
}

static status value_check(const struct walk *w, const ProtobufCMessageDescriptor *desc,
                          const ProtobufCFieldDescriptor *field, const void *at)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_FLOAT:
        if (!isfinite(*(const float *)at)) {
            return err_set(w->err, ST_ERR_PROTO, "%s.%s is not a finite number", desc->short_name,
                           field->name);
        }
        return ST_OK;
    case PROTOBUF_C_TYPE_DOUBLE:
        if (!isfinite(*(const double *)at)) {
            return err_set(w->err, ST_ERR_PROTO, "%s.%s is not a finite number", desc->short_name,
                           field->name);
        }
        return ST_OK;
    case PROTOBUF_C_TYPE_ENUM:
        if (protobuf_c_enum_descriptor_get_value(field->descriptor, *(const int *)at) == NULL) {
            return err_set(w->err, ST_ERR_PROTO, "%s.%s is %d, which is no known value",
                           desc->short_name, field->name, *(const int *)at);
        }
        return ST_OK;
    case PROTOBUF_C_TYPE_STRING:
        return string_check(w, desc, field, *(char *const *)at);
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *sub = *(ProtobufCMessage *const *)at;
        return sub == NULL ? ST_OK : message_check(w, sub);
    }
    default:
        return ST_OK;
    }
}

static size_t value_bytes(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_ENUM:
        return 4;
    case PROTOBUF_C_TYPE_DOUBLE:
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return 8;
    default:
        return 0; /* integers, bool, bytes: every value is a good one */
    }
}

static status field_check(const struct walk *w, const ProtobufCMessage *msg,
                          const ProtobufCFieldDescriptor *field)
{
    const ProtobufCMessageDescriptor *desc = msg->descriptor;
    const char *base = (const char *)msg;
    const size_t bytes = value_bytes(field);

    if (bytes == 0) {
        return ST_OK;
    }
    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        const size_t n = *(const size_t *)(const void *)(base + field->quantifier_offset);
        const char *items = *(char *const *)(const void *)(base + field->offset);
        for (size_t i = 0; i < n; i++) {
            const status st = value_check(w, desc, field, items + i * bytes);
            if (st < 0) {
                return st;
            }
        }
        return ST_OK;
    }
    if ((field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0 &&
        *(const uint32_t *)(const void *)(base + field->quantifier_offset) != field->id) {
        return ST_OK;
    }
    return value_check(w, desc, field, base + field->offset);
}

static status message_check(const struct walk *w, const ProtobufCMessage *msg)
{
    for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
        const status st = field_check(w, msg, &msg->descriptor->fields[i]);
        if (st < 0) {
            return st;
        }
    }
    return ST_OK;
}

/* ---- the two ways ---- */

status pb_unpack(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
                 struct arena *arena, const ProtobufCMessageDescriptor *nul_ok, void **msg_p,
                 struct err *err)
{
    struct budget budget = { arena, false };
    ProtobufCAllocator alloc = { budget_alloc, budget_free, &budget };
    const struct walk walk = { nul_ok, err };

    if (len > MSG_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "a %s of %zu bytes is over the limit of %d",
                       desc->short_name, len, (int)MSG_BYTES_MAX);
    }
    ProtobufCMessage *msg =
        protobuf_c_message_unpack(desc, &alloc, len, len == 0 ? (const uint8_t *)"" : data);
    if (msg == NULL) {
        return budget.is_full
                   ? err_set(err, ST_ERR_LIMIT,
                             "a %s of %zu bytes needs more than the %zu bytes of memory that it "
                             "may take",
                             desc->short_name, len, arena->max)
                   : err_set(err, ST_ERR_PROTO, "%zu bytes are not a %s", len, desc->short_name);
    }
    const status st = message_check(&walk, msg);
    if (st < 0) {
        return st;
    }
    *msg_p = msg;
    return ST_OK;
}

size_t pb_str_len(const ProtobufCMessageDescriptor *desc, const char *name, const char *str)
{
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field_by_name(desc, name);

    ASSERT(field != NULL);
    if (str == NULL || str == (const char *)field->default_value) {
        return 0;
    }
    return allocated_bytes(str) - 1;
}

status pb_pack(const ProtobufCMessage *msg, struct buf *out)
{
    const size_t need = protobuf_c_message_get_packed_size(msg);

    if (need > MSG_BYTES_MAX) {
        return ST_ERR_LIMIT;
    }
    const status st = buf_reserve(out, need);
    if (st < 0) {
        return st;
    }
    const size_t n = protobuf_c_message_pack(msg, (uint8_t *)out->data + out->len);
    ASSERT(n == need);
    out->len += n;
    out->data[out->len] = '\0';
    return ST_OK;
}

char *pb_text(const char *str)
{
    union {
        const char *in;
        char *out;
    } u = { str == NULL ? "" : str };

    return u.out;
}

void **pb_objects(struct arena *arena, size_t n, size_t bytes)
{
    if (n > (arena->max / 2) / (bytes + sizeof(void *))) {
        return NULL;
    }
    void **list = arena_alloc(arena, n * sizeof(void *));
    char *objects = arena_alloc(arena, n * bytes);

    if (list == NULL || objects == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        list[i] = objects + i * bytes;
    }
    return list;
}
