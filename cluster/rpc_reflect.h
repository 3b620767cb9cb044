/* cluster/rpc_reflect.h - answers to gRPC server reflection, so that grpcurl and its like can call
 * us without our .proto files.
 *
 * The caller hands over a FileDescriptorSet (protoc --include_imports --descriptor_set_out) and
 * puts one RPC_BIDI method per path below into its table; their on_request has nothing to do, their
 * on_message passes everything on to rpc_reflect_message. Both versions of the service have the
 * same messages. Immutable once created: any thread may ask. */
#ifndef CLUSTER_RPC_REFLECT_H
#define CLUSTER_RPC_REFLECT_H

#include "base/buf.h"
#include "cluster/rpc.h"

#define RPC_REFLECT_PATH_V1      "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
#define RPC_REFLECT_PATH_V1ALPHA "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

struct rpc_reflect;

/* `set` is borrowed and must live as long as the result. ST_ERR_FORMAT: not a descriptor set. */
status rpc_reflect_create(const void *set, size_t len, struct rpc_reflect **reflect_p,
                          struct err *err);
void rpc_reflect_destroy(struct rpc_reflect *reflect); /* NULL is fine */

/* One ServerReflectionRequest in, one ServerReflectionResponse appended to `answer`. What is not
 * found is an answer too. ST_ERR_FORMAT: not a request. ST_ERR_NOMEM, ST_ERR_LIMIT: of `answer`. */
status rpc_reflect_answer(const struct rpc_reflect *reflect, const void *request, size_t len,
                          struct buf *answer, struct err *err);

/* The whole of an on_message callback: answers, or finishes the call. Loop thread. */
void rpc_reflect_message(const struct rpc_reflect *reflect, struct rpc_call *call, const void *data,
                         size_t len);

#endif
