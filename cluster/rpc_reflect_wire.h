/* cluster/rpc_reflect_wire.h - private to rpc_reflect.c: walking and writing protobuf's wire
 * format.
 *
 * Reads fields in order and hands out length-delimited ones; numbers are stepped over. Every length
 * is checked against what is left, nothing is allocated, nothing recurses. */
#ifndef CLUSTER_RPC_REFLECT_WIRE_H
#define CLUSTER_RPC_REFLECT_WIRE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

struct wire_bytes {
    const uint8_t *data; /* borrowed */
    size_t len;
};

struct wire_field {
    uint32_t number;
    bool is_bytes;
    struct wire_bytes bytes; /* if is_bytes */
};

struct wire_bytes wire_of(const char *text);
struct wire_bytes wire_of_buf(const struct buf *b);
bool wire_equals(struct wire_bytes a, struct wire_bytes b);

/* Takes the next field off `in`. ST_END: nothing left. ST_ERR_FORMAT. */
status wire_field_next(struct wire_bytes *in, struct wire_field *f);
/* The last length-delimited field `number` of a message; empty if there is none. */
struct wire_bytes wire_field_get(struct wire_bytes message, uint32_t number);

/* As buf_append. */
status wire_put_varint(struct buf *b, uint64_t value);
status wire_put_bytes(struct buf *b, uint32_t number, struct wire_bytes bytes);
size_t wire_varint_size(uint64_t value);

#endif
