/* proto/codec_pb.h - what the codec files share: protobuf-c under a memory budget. Private to
 * proto/codec_*.c, the only files that see generated code.
 *
 *   bytes ──► protobuf_c_message_unpack (allocating from the arena) ──► message_check ──► struct
 *
 * protobuf-c 1.4 bounds neither memory nor what a string holds. So every allocation is counted by
 * the caller's arena, and one walk over the descriptors refuses what the language does not: text
 * that is not UTF-8 or holds a NUL, floats that are not finite, numbers that no enum knows. No
 * message type is recursive, therefore depth is bounded by the types. */
#ifndef PROTO_CODEC_PB_H
#define PROTO_CODEC_PB_H

#include "proto/msg.h"

#include <protobuf-c/protobuf-c.h>

/* A file-specific message in `arena` (never freed alone), checked. `nul_ok` (may be NULL): the one
 * message type whose own strings may hold NULs. ST_ERR_PROTO, ST_ERR_LIMIT. */
status pb_unpack(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
                 struct arena *arena, const ProtobufCMessageDescriptor *nul_ok, void **msg_p,
                 struct err *err);
/* Length of a string field of an unpacked message, NULs counted. */
size_t pb_str_len(const ProtobufCMessageDescriptor *desc, const char *name, const char *str);
/* Append the packed message. */
status pb_pack(const ProtobufCMessage *msg, struct buf *out);
/* As char * for a field to pack: protobuf-c's structs lack const, and never write there. "" for
 * NULL. */
char *pb_text(const char *str);
/* An array of n pointers to n zeroed objects of `bytes` each; NULL: no memory. */
void **pb_objects(struct arena *arena, size_t n, size_t bytes);

/* Memory for the structs of one message while it is packed. */
#define PB_SCRATCH ARENA_INIT((size_t)256 << 20)

#endif
