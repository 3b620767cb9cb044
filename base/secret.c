/* base/secret.c - see secret.h. */
#include "base/secret.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { FILE_BYTES_MAX = 64 << 10 };

status secret_read(const char *path, struct buf *secret, struct err *err)
{
    struct stat info;

    if (stat(path, &info) != 0) {
        return err_set_errno(err, ST_ERR_NOT_FOUND, errno, "token file %s", path);
    }
    if ((info.st_mode & 077) != 0) {
        return err_set(err, ST_ERR_DENIED,
                       "token file %s has mode %03o, others may read it: chmod 600", path,
                       (unsigned)(info.st_mode & 0777));
    }
    const status st = buf_read_file(secret, path, FILE_BYTES_MAX, err);
    if (st < 0) {
        return st;
    }
    secret->len = strcspn(secret->data, "\r\n");
    if (secret->len == 0) {
        return err_set(err, ST_ERR_FORMAT, "token file %s has an empty first line", path);
    }
    secret->data[secret->len] = '\0';
    return ST_OK;
}
