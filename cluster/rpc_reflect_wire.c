/* cluster/rpc_reflect_wire.c - see rpc_reflect_wire.h. */
#include "cluster/rpc_reflect_wire.h"

#include <string.h>

static bool varint_read(struct wire_bytes *in, uint64_t *value_p)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte;

        if (in->len == 0) {
            return false;
        }
        byte = *in->data++;
        in->len--;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value_p = value;
            return true;
        }
    }
    return false;
}

static bool skip(struct wire_bytes *in, uint64_t n)
{
    if (n > in->len) {
        return false;
    }
    in->data += n;
    in->len -= (size_t)n;
    return true;
}

status wire_field_next(struct wire_bytes *in, struct wire_field *f)
{
    uint64_t key, value;

    if (in->len == 0) {
        return ST_END;
    }
    if (!varint_read(in, &key) || key >> 3 == 0 || key >> 3 > 0x1fffffff) {
        return ST_ERR_FORMAT;
    }
    *f = (struct wire_field){ .number = (uint32_t)(key >> 3), .is_bytes = (key & 7) == 2 };
    switch (key & 7) {
    case 0:
        return varint_read(in, &value) ? ST_OK : ST_ERR_FORMAT;
    case 1:
        return skip(in, 8) ? ST_OK : ST_ERR_FORMAT;
    case 2:
        if (!varint_read(in, &value)) {
            return ST_ERR_FORMAT;
        }
        f->bytes = (struct wire_bytes){ in->data, (size_t)value };
        return skip(in, value) ? ST_OK : ST_ERR_FORMAT;
    case 5:
        return skip(in, 4) ? ST_OK : ST_ERR_FORMAT;
    default:
        return ST_ERR_FORMAT; /* groups do not occur in descriptors */
    }
}

static size_t varint_put(uint8_t out[10], uint64_t value)
{
    size_t n = 0;

    do {
        out[n++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value != 0);
    return n;
}

status wire_put_varint(struct buf *b, uint64_t value)
{
    uint8_t out[10];

    return buf_append(b, out, varint_put(out, value));
}

status wire_put_bytes(struct buf *b, uint32_t number, struct wire_bytes bytes)
{
    status st = wire_put_varint(b, (uint64_t)number << 3 | 2);

    if (st == ST_OK) {
        st = wire_put_varint(b, bytes.len);
    }
    return st == ST_OK ? buf_append(b, bytes.data, bytes.len) : st;
}

bool wire_equals(struct wire_bytes a, struct wire_bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

struct wire_bytes wire_of(const char *text)
{
    return (struct wire_bytes){ (const uint8_t *)text, strlen(text) };
}

struct wire_bytes wire_field_get(struct wire_bytes message, uint32_t number)
{
    struct wire_bytes found = { (const uint8_t *)"", 0 };
    struct wire_field f;

    while (wire_field_next(&message, &f) == ST_OK) {
        if (f.number == number && f.is_bytes) {
            found = f.bytes;
        }
    }
    return found;
}

struct wire_bytes wire_of_buf(const struct buf *b)
{
    return (struct wire_bytes){ (const uint8_t *)b->data, b->len };
}

size_t wire_varint_size(uint64_t value)
{
    uint8_t out[10];

    return varint_put(out, value);
}
