/* tests/fuzz/fuzz_dir.h - a folder for entries whose reader opens files by name: made at the first
 * input, removed when the program ends in order. */
#ifndef TESTS_FUZZ_DIR_H
#define TESTS_FUZZ_DIR_H

#include "base/compiler.h"
#include "base/err.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char fuzz_dir[PATH_MAX]; /* "" until made */

static inline void fuzz_dir_remove(void)
{
    char path[PATH_MAX + 256];
    DIR *dir = opendir(fuzz_dir);

    for (struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;) {
        snprintf(path, sizeof(path), "%s/%s", fuzz_dir, d->d_name);
        unlink(path); /* "." and ".." refuse */
    }
    if (dir != NULL) {
        closedir(dir);
    }
    rmdir(fuzz_dir);
}

/* True the first time. */
static inline bool fuzz_dir_make(void)
{
    const char *tmp = getenv("TMPDIR");

    if (fuzz_dir[0] != '\0') {
        return false;
    }
    snprintf(fuzz_dir, sizeof(fuzz_dir), "%s/gantry-fuzz-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(fuzz_dir) == NULL) {
        perror(fuzz_dir);
        exit(1);
    }
    atexit(fuzz_dir_remove);
    return true;
}

static inline void fuzz_dir_write(const char *name, const uint8_t *data, size_t size)
{
    char path[PATH_MAX + 256];

    snprintf(path, sizeof(path), "%s/%s", fuzz_dir, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

#endif
