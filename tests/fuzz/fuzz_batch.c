/* tests/fuzz/fuzz_batch.c - any bytes as a record of a batch: a request that packs, or a sentence. */
#include "coordinator/cli/batch.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct batch_request r;
    struct err err = ERR_INIT;
    struct buf out = BUF_INIT;
    const status st = batch_request_parse((const char *)data, size, 7, &r, &err);

    if (st == ST_OK) {
        ASSERT(r.id[0] != '\0' && r.m.has_seed && strlen(r.id) <= MSG_REQUEST_ID_MAX);
        (void)msg_generate_pack(&r.m, &out);
        batch_request_fini(&r);
    } else {
        ASSERT(st < 0 && err.text[0] != '\0');
    }
    buf_fini(&out);
    return 0;
}
