/* cluster/rpc_code.c - our status <-> gRPC's status codes, by number.
 *
 * The way out keeps what a client needs to decide (is it my fault, may I try again); the way back
 * cannot be exact, because several of ours share one code. gRPC's numbers are part of its wire
 * format, so they are written here and no gRPC header is needed. */
#include "cluster/rpc.h"

#include "base/compiler.h"

enum {
    OK = 0,
    CANCELLED = 1,
    UNKNOWN = 2,
    INVALID_ARGUMENT = 3,
    DEADLINE_EXCEEDED = 4,
    NOT_FOUND = 5,
    ALREADY_EXISTS = 6,
    PERMISSION_DENIED = 7,
    RESOURCE_EXHAUSTED = 8,
    FAILED_PRECONDITION = 9,
    ABORTED = 10,
    OUT_OF_RANGE = 11,
    UNIMPLEMENTED = 12,
    INTERNAL = 13,
    UNAVAILABLE = 14,
    DATA_LOSS = 15,
    UNAUTHENTICATED = 16
};

static const struct {
    const char *name;
    status st; /* what a caller is told who received this code */
} codes[] = {
    [OK] = { "OK", ST_OK },
    [CANCELLED] = { "CANCELLED", ST_ERR_CANCELLED },
    [UNKNOWN] = { "UNKNOWN", ST_ERR_INTERNAL }, /* an exception in a Python server */
    [INVALID_ARGUMENT] = { "INVALID_ARGUMENT", ST_ERR_ARG },
    [DEADLINE_EXCEEDED] = { "DEADLINE_EXCEEDED", ST_ERR_DEADLINE },
    [NOT_FOUND] = { "NOT_FOUND", ST_ERR_NOT_FOUND },
    [ALREADY_EXISTS] = { "ALREADY_EXISTS", ST_ERR_EXISTS },
    [PERMISSION_DENIED] = { "PERMISSION_DENIED", ST_ERR_DENIED },
    [RESOURCE_EXHAUSTED] = { "RESOURCE_EXHAUSTED", ST_ERR_LIMIT },
    [FAILED_PRECONDITION] = { "FAILED_PRECONDITION", ST_ERR_MISMATCH },
    [ABORTED] = { "ABORTED", ST_ERR_UNAVAILABLE },
    [OUT_OF_RANGE] = { "OUT_OF_RANGE", ST_ERR_ARG },
    [UNIMPLEMENTED] = { "UNIMPLEMENTED", ST_ERR_UNSUPPORTED },
    [INTERNAL] = { "INTERNAL", ST_ERR_INTERNAL },
    [UNAVAILABLE] = { "UNAVAILABLE", ST_ERR_UNAVAILABLE },
    [DATA_LOSS] = { "DATA_LOSS", ST_ERR_FORMAT },
    [UNAUTHENTICATED] = { "UNAUTHENTICATED", ST_ERR_UNAUTH },
};

int rpc_code(status st)
{
    switch (st) {
    case ST_OK:
    case ST_BUSY:
    case ST_END:
        return OK;
    case ST_ERR_ARG:
    case ST_ERR_FORMAT:
    case ST_ERR_PROTO:
        return INVALID_ARGUMENT;
    case ST_ERR_NOMEM:
    case ST_ERR_LIMIT:
        return RESOURCE_EXHAUSTED;
    case ST_ERR_DEADLINE:
        return DEADLINE_EXCEEDED;
    case ST_ERR_CANCELLED:
        return CANCELLED;
    case ST_ERR_UNAVAILABLE:
    case ST_ERR_PEER:
        return UNAVAILABLE;
    case ST_ERR_UNAUTH:
        return UNAUTHENTICATED;
    case ST_ERR_DENIED:
        return PERMISSION_DENIED;
    case ST_ERR_NOT_FOUND:
        return NOT_FOUND;
    case ST_ERR_EXISTS:
        return ALREADY_EXISTS;
    case ST_ERR_UNSUPPORTED:
        return UNIMPLEMENTED;
    case ST_ERR_MISMATCH:
        return FAILED_PRECONDITION;
    case ST_ERR_IO:
    case ST_ERR_INTERNAL:
        return INTERNAL;
    }
    return INTERNAL;
}

status rpc_status(int grpc_code)
{
    if (grpc_code < 0 || grpc_code >= (int)ARRAY_LEN(codes)) {
        return ST_ERR_PROTO;
    }
    return codes[grpc_code].st;
}

const char *rpc_code_name(int grpc_code)
{
    if (grpc_code < 0 || grpc_code >= (int)ARRAY_LEN(codes)) {
        return "a code that gRPC does not have";
    }
    return codes[grpc_code].name;
}
