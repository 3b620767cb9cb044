/* cluster/coll_watch.c - see coll_watch.h. */
#include "cluster/coll_watch.h"

#include "base/compiler.h"

const char *coll_op_name(uint32_t op)
{
    static const char *const names[COLL_OP_COUNT] = { "no exchange", "sum",     "gather",
                                                      "broadcast",   "barrier", "send",
                                                      "receive",     "plan",    "result",
                                                      "device" };

    return op < COLL_OP_COUNT ? names[op] : "unknown";
}
