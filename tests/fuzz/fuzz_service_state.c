/* tests/fuzz/fuzz_service_state.c - any bytes as service.json: fields within their ranges, or a
 * sentence. */
#include "coordinator/service_state.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct service_state s;
    struct err err = ERR_INIT;

    if (service_state_parse("service.json", (const char *)data, size, &s, &err) != ST_OK) {
        ASSERT(err.text[0] != '\0');
        return 0;
    }
    ASSERT(s.n_replicas <= SERVICE_REPLICAS_MAX);
    for (uint32_t i = 0; i < s.n_replicas; i++) {
        const char *shm = s.replicas[i].shm_dir;
        ASSERT(s.replicas[i].pid >= 0);
        ASSERT(shm[0] == '\0' || strchr(shm + strlen("/dev/shm/gantry-"), '/') == NULL);
    }
    service_state_fini(&s);
    return 0;
}
