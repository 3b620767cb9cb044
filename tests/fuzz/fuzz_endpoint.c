/* tests/fuzz/fuzz_endpoint.c - any bytes as the endpoint.json that an earlier service left in its run
 * directory: it is read by an operator, and the directory is taken over, or refused because that
 * service still runs. */
#include "fuzz_dir.h"

#include "coordinator/run_dir.h"
#include "coordinator/run_find.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run_dir dir;
    struct err err = ERR_INIT;

    fuzz_dir_make();
    fuzz_dir_write("endpoint.json", data, size);
    struct run_found found;
    const status looked = run_find(fuzz_dir, &found, &err);
    ASSERT(looked == ST_OK ? strrchr(found.control, ':') != NULL : err.text[0] != '\0');
    err = (struct err)ERR_INIT;
    const status st = run_dir_open(fuzz_dir, &dir, &err);
    if (st == ST_OK) {
        ASSERT(dir.token[0] != '\0');
        run_dir_close(&dir, true);
    } else {
        ASSERT(st == ST_ERR_EXISTS && err.text[0] != '\0');
    }
    return 0;
}
