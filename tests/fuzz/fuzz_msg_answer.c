/* tests/fuzz/fuzz_msg_answer.c - any bytes as what a service answers: our client reads them. */
#include "fuzz_msg.h"

FUZZ_AGAIN(chunk_again, struct msg_chunk, msg_chunk_unpack, msg_chunk_pack)
FUZZ_AGAIN(model_again, struct msg_model, msg_model_unpack, msg_model_pack)
FUZZ_AGAIN(status_again, struct msg_status, msg_status_unpack, msg_status_pack)

FUZZ_AGAIN(drain_again, struct msg_drain_progress, msg_drain_progress_unpack,
           msg_drain_progress_pack)

static status health_again(const void *data, size_t len, struct arena *arena, struct buf *out,
                           struct err *err)
{
    enum health_state state = HEALTH_UNKNOWN;
    const status st = msg_health_response_unpack(data, len, arena, &state, err);

    return st < 0 ? st : msg_health_response_pack(state, out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_rounds(data, size, chunk_again);
    fuzz_rounds(data, size, model_again);
    fuzz_rounds(data, size, status_again);
    fuzz_rounds(data, size, health_again);
    fuzz_rounds(data, size, drain_again);
    return 0;
}
