/* tests/common/fixture.h - where a test finds its files, and a folder that is its own.
 *
 * GANTRY_SOURCE_DIR is the tree, GANTRY_SHARED_DIR material beside it that need not be there; ctest
 * sets both. Run by hand from the root of the tree, "." and "../shared" are taken. */
#ifndef COMMON_FIXTURE_H
#define COMMON_FIXTURE_H

#include <limits.h>
#include <stdbool.h>

enum { FIXTURE_PATH_BYTES = PATH_MAX };

/* The exit code that ctest counts as skipped. */
enum { TEST_SKIPPED = 77 };

/* Path of `rel` in the tree, or in tests/ and else in the shared material; false if there is no
 * such file. */
bool fixture_source(const char *rel, char path[FIXTURE_PATH_BYTES]);
bool fixture_shared(const char *rel, char path[FIXTURE_PATH_BYTES]);

/* As fixture_shared, but where it is absent says so and leaves the whole program with
 * TEST_SKIPPED. Only for programs that can do nothing without it: call first in main. */
void fixture_shared_or_exit(const char *rel, char path[FIXTURE_PATH_BYTES]);

/* A new empty folder under $TMPDIR; aborts where none can be made. */
void fixture_dir_create(char path[FIXTURE_PATH_BYTES]);
/* Removes it with all that is in it. */
void fixture_dir_remove(const char *path);
/* Writes `text` to <dir>/<name>; aborts on failure. */
void fixture_write(const char *dir, const char *name, const char *text);

#endif
