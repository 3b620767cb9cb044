/* tests/fuzz/fuzz_hostfile.c - any bytes as a host list: counts within their bounds, or a sentence
 * of printable characters (it goes into logs). */
#include "cluster/launch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct hostfile_text text = { "hosts", (const char *)data, size };
    uint32_t n_slots = 0, n_hosts = 0;
    struct err err = ERR_INIT;

    if (hostfile_parse(&text, &n_slots, &n_hosts, &err) == ST_OK) {
        ASSERT(n_hosts > 0 && n_hosts <= n_slots && n_slots <= 65536);
        return 0;
    }
    ASSERT(err.text[0] != '\0');
    for (const char *p = err.text; *p; p++) {
        ASSERT(*p >= ' ' && *p <= '~');
    }
    return 0;
}
