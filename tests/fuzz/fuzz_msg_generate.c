/* tests/fuzz/fuzz_msg_generate.c - any bytes as a client's request: what unpacks is either refused
 * by generate_check with a sentence, or within every range. */
#include "fuzz_msg.h"

FUZZ_AGAIN(generate_again, struct msg_generate, msg_generate_unpack, msg_generate_pack)

static status health_again(const void *data, size_t len, struct arena *arena, struct buf *out,
                           struct err *err)
{
    const char *service = NULL;
    const status st = msg_health_request_unpack(data, len, arena, &service, err);

    return st < 0 ? st : msg_health_request_pack(service, out);
}

static void ranges_hold(const uint8_t *data, size_t size)
{
    struct arena arena = ARENA_INIT(FUZZ_ARENA_BYTES);
    struct err err = ERR_INIT;
    struct msg_generate m;

    if (msg_generate_unpack(data, size, &arena, &m, &err) == ST_OK) {
        if (generate_check(&m, 512, &err) == ST_OK) {
            ASSERT(m.n_stop <= MSG_STOP_STRINGS_MAX && m.n_stop_ids <= MSG_STOP_IDS_MAX);
            ASSERT(!m.has_top_p || (m.top_p > 0.0f && m.top_p <= 1.0f));
            ASSERT(!m.has_prompt_ids || m.n_prompt_ids > 0);
            for (uint32_t i = 0; i < m.n_prompt_ids; i++) {
                ASSERT(m.prompt_ids[i] < 512);
            }
        } else {
            ASSERT(err.text[0] != '\0');
        }
    }
    arena_fini(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_rounds(data, size, generate_again);
    fuzz_rounds(data, size, health_again);
    ranges_hold(data, size);
    return 0;
}
