/* tests/fuzz/fuzz_reflect.c - any bytes as a server reflection request to our own descriptors, and
 * any bytes as a descriptor set. An answer is a message, bounded; a refusal has its sentence. */
#include "cluster/rpc_reflect.h"
#include "proto/msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char list[] = { 0x3a, 0x01, '*' }; /* list_services = "*" */

static void ask(const struct rpc_reflect *r, const void *request, size_t len)
{
    struct buf answer = BUF_INIT_MAX(1 << 20);
    struct err err = ERR_INIT;
    const status st = rpc_reflect_answer(r, request, len, &answer, &err);

    if (st == ST_OK) {
        ASSERT(answer.len > 0);
    } else {
        ASSERT((st == ST_ERR_FORMAT || st == ST_ERR_LIMIT) && err.text[0] != '\0');
    }
    buf_fini(&answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct rpc_reflect *ours; /* lives as long as the program */
    const struct msg_str set = msg_descriptors();
    struct rpc_reflect *theirs = NULL;
    struct err err = ERR_INIT;

    if (ours == NULL) {
        ASSERT(rpc_reflect_create(set.data, set.len, &ours, &err) == ST_OK);
    }
    ask(ours, data, size);
    const status st = rpc_reflect_create(data, size, &theirs, &err);
    ASSERT((st == ST_OK) == (theirs != NULL));
    ASSERT(st == ST_OK || err.text[0] != '\0');
    if (theirs != NULL) {
        ask(theirs, list, sizeof(list));
        ask(theirs, data, size);
        rpc_reflect_destroy(theirs);
    }
    return 0;
}
