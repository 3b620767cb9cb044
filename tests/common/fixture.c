/* tests/common/fixture.c - see fixture.h. */
#include "common/fixture.h"

#include "base/compiler.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

NORETURN static void stop(const char *what, const char *path)
{
    fprintf(stderr, "fixture: %s %s: %s\n", what, path, strerror(errno));
    abort();
}

static bool find(const char *variable, const char *otherwise, const char *rel,
                 char path[FIXTURE_PATH_BYTES])
{
    const char *dir = getenv(variable);
    const int n = snprintf(path, FIXTURE_PATH_BYTES, "%s/%s", dir != NULL ? dir : otherwise, rel);

    return n > 0 && n < FIXTURE_PATH_BYTES && access(path, F_OK) == 0;
}

bool fixture_source(const char *rel, char path[FIXTURE_PATH_BYTES])
{
    return find("GANTRY_SOURCE_DIR", ".", rel, path);
}

bool fixture_shared(const char *rel, char path[FIXTURE_PATH_BYTES])
{
    char in_tests[FIXTURE_PATH_BYTES], found[FIXTURE_PATH_BYTES];
    const int n = snprintf(in_tests, sizeof(in_tests), "tests/%s", rel);

    if (n > 0 && n < (int)sizeof(in_tests) && fixture_source(in_tests, found)) {
        snprintf(path, FIXTURE_PATH_BYTES, "%s", found);
        return true;
    }
    return find("GANTRY_SHARED_DIR", "../shared", rel, path);
}

void fixture_shared_or_exit(const char *rel, char path[FIXTURE_PATH_BYTES])
{
    if (!fixture_shared(rel, path)) {
        printf("skipped: %s is not here (GANTRY_SHARED_DIR)\n", path);
        exit(TEST_SKIPPED);
    }
}

void fixture_dir_create(char path[FIXTURE_PATH_BYTES])
{
    const char *tmp = getenv("TMPDIR");
    const int n = snprintf(path, FIXTURE_PATH_BYTES, "%s/gantry-test-XXXXXX",
                           tmp != NULL && tmp[0] != '\0' ? tmp : "/tmp");

    if (n < 0 || n >= FIXTURE_PATH_BYTES || mkdtemp(path) == NULL) {
        stop("no folder", path);
    }
}

static int remove_one(const char *path, const struct stat *info UNUSED, int kind UNUSED,
                      struct FTW *ftw UNUSED)
{
    return remove(path);
}

void fixture_dir_remove(const char *path)
{
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0) {
        stop("cannot remove", path);
    }
}

void fixture_write(const char *dir, const char *name, const char *text)
{
    char path[FIXTURE_PATH_BYTES];

    if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path)) {
        errno = ENAMETOOLONG;
        stop("cannot write", dir);
    }
    FILE *file = fopen(path, "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) {
        stop("cannot write", path);
    }
}
