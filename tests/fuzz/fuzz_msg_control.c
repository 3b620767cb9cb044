/* tests/fuzz/fuzz_msg_control.c - any bytes as a message between rank and coordinator. What unpacks
 * is whole: it can be packed, and unpacks again to the same bytes. */
#include "fuzz_msg.h"

FUZZ_AGAIN(rank_again, struct msg_rank, msg_rank_unpack, msg_rank_pack)
FUZZ_AGAIN(coord_again, struct msg_coord, msg_coord_unpack, msg_coord_pack)
FUZZ_AGAIN(drain_again, struct msg_drain, msg_drain_unpack, msg_drain_pack)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_rounds(data, size, rank_again);
    fuzz_rounds(data, size, coord_again);
    fuzz_rounds(data, size, drain_again);
    return 0;
}
