/* coordinator/dir.c - see dir.h. */
#include "coordinator/dir.h"

#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Every new part with mode 0700. */
static status make_path(const char *path, const char *what, struct err *err)
{
    char part[DIR_PATH_BYTES];

    if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part)) {
        return err_set(err, ST_ERR_ARG, "%s: a path of more than %d bytes", what,
                       (int)DIR_PATH_BYTES - 1);
    }
    for (char *p = part + 1;; p++) {
        if (*p != '/' && *p != '\0') {
            continue;
        }
        const char end = *p;
        *p = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST) {
            return err_set_errno(err, ST_ERR_IO, errno, "%s %s", what, part);
        }
        *p = end;
        if (end == '\0') {
            return ST_OK;
        }
    }
}

status dir_make(const char *path, const char *what, unsigned mask, struct err *err)
{
    struct stat info;
    const status st = path[0] != '\0' ? make_path(path, what, err)
                                      : err_set(err, ST_ERR_ARG, "%s: no path", what);

    if (st < 0) {
        return st;
    }
    if (stat(path, &info) != 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "%s %s", what, path);
    }
    if (!S_ISDIR(info.st_mode)) {
        return err_set(err, ST_ERR_ARG, "%s %s is not a directory", what, path);
    }
    if (info.st_uid != geteuid() || (info.st_mode & mask) != 0) {
        return err_set(err, ST_ERR_DENIED,
                       "%s %s can be %s by others (owner %u, mode %03o): chmod 700", what, path,
                       (mask & 044) != 0 ? "read" : "written", (unsigned)info.st_uid,
                       (unsigned)(info.st_mode & 0777));
    }
    return ST_OK;
}

/* ---- files ---- */

static status file_write(const char *path, const char *data, size_t len, struct err *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written", path);
    }
    /* An existing file keeps its mode on open. Synced before it is renamed: else the new name may be on the
     * disk without the bytes when the machine dies. */
    const bool ok =
        fchmod(fd, 0600) == 0 && fd_write_all(fd, data, len) == ST_OK && fdatasync(fd) == 0;
    const int errnum = errno;
    if (close(fd) != 0 || !ok) {
        return err_set_errno(err, ST_ERR_IO, ok ? errno : errnum, "%s cannot be written", path);
    }
    return ST_OK;
}

/* The folder's names as well: what was replaced must not come back. Some file systems cannot. */
static void folder_sync(const char *path)
{
    char dir[DIR_PATH_BYTES + 64];
    const char *slash = strrchr(path, '/');

    snprintf(dir, sizeof(dir), "%.*s", slash != NULL ? (int)(slash - path) : 1,
             slash != NULL ? path : ".");
    const int fd = open(dir[0] != '\0' ? dir : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
}

status file_replace(const char *path, const char *data, size_t len, struct err *err)
{
    char temp[DIR_PATH_BYTES + 64];

    if (snprintf(temp, sizeof(temp), "%s.new", path) >= (int)sizeof(temp)) {
        return err_set(err, ST_ERR_ARG, "%s: the path is too long", path);
    }
    status st = file_write(temp, data, len, err);
    if (st == ST_OK && rename(temp, path) != 0) {
        st = err_set_errno(err, ST_ERR_IO, errno, "%s cannot be replaced", path);
    }
    if (st == ST_OK) {
        folder_sync(path);
    }
    return st;
}
