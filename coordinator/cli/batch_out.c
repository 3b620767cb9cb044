/* coordinator/cli/batch_out.c - see batch.h: answers as they come, then the file in order.
 *
 *   PATH.part   {"gantry_batch": 1, "input": digest, "profile": .., "weights_digest": ..}
 *               {"id": .., ...}   answers, in the order in which they came
 *
 * A line counts with its newline. One that was torn by a kill is cut off at the next start. */
#include "base/fd.h"
#include "coordinator/cli/batch.h"
#include "model/json_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ANSWER_LINE_MAX = 1 << 30, COPY_BYTES = 1 << 16 };

/* ---- a part that is there ---- */

static status line_take(struct batch_out *out, struct batch_in *in, const char *line, size_t len,
                        uint64_t offset, uint32_t *n_done, struct err *err)
{
    json_error_t at;
    json_t *root = json_read(line, len, JSON_ALLOW_NUL, &at);
    const char *id = json_string_value(json_object_get(root, "id"));
    uint32_t i;
    status st = ST_OK;

    if (root == NULL && json_read_lacked_memory()) {
        st = err_set(err, ST_ERR_NOMEM, "%s: no memory for an answer", out->part_path);
    } else if (root == NULL || (id == NULL && out->has_header)) {
        st = err_set(err, ST_ERR_FORMAT,
                     "%s: the line at byte %llu is no answer of a batch; remove the file to begin "
                     "anew",
                     out->part_path, (unsigned long long)offset);
    } else if (!out->has_header) {
        out->has_header = json_object_get(root, "gantry_batch") != NULL;
        if (!out->has_header) {
            st = err_set(err, ST_ERR_FORMAT, "%s was not written by gantry batch", out->part_path);
        }
    } else if (batch_in_find(in, id, &i)) { /* else: the header will not match */
        *n_done += in->records[i].part_len == 0 ? 1 : 0;
        out->n_errors += json_object_get(root, "error") != NULL ? 1 : 0;
        in->records[i].part_offset = offset;
        in->records[i].part_len = (uint32_t)len;
    }
    json_decref(root);
    return st;
}

static status part_read(struct batch_out *out, struct batch_in *in, uint32_t *n_done,
                        struct err *err)
{
    const int copy = dup(out->fd);
    FILE *file = copy >= 0 ? fdopen(copy, "r") : NULL;
    char *line = NULL;
    size_t size = 0;
    uint64_t offset = 0;
    status st = ST_OK;

    if (file == NULL) {
        if (copy >= 0) {
            close(copy);
        }
        return err_set_errno(err, ST_ERR_IO, errno, "%s", out->part_path);
    }
    for (ssize_t n; st == ST_OK && (n = getline(&line, &size, file)) > 0; offset += (uint64_t)n) {
        if (line[n - 1] != '\n') {
            break; /* torn */
        }
        st = line_take(out, in, line, (size_t)n - 1, offset, n_done, err);
    }
    if (st == ST_OK && !feof(file)) { /* what was not seen would be cut off below */
        st = err_set_errno(err, errno == ENOMEM ? ST_ERR_NOMEM : ST_ERR_IO, errno,
                           "%s cannot be read", out->part_path);
    }
    free(line);
    fclose(file);
    if (st == ST_OK && fd_truncate(out->fd, (off_t)offset) != 0) {
        st = err_set_errno(err, ST_ERR_IO, errno, "%s cannot be cut", out->part_path);
    }
    out->size = offset;
    return st;
}

static status line_is_of(const char *line, size_t len, const char *id, bool *is_same_p,
                         struct err *err)
{
    json_error_t at;
    json_t *root = json_read(line, len, JSON_ALLOW_NUL, &at);
    const char *there = json_string_value(json_object_get(root, "id"));

    if (root == NULL && json_read_lacked_memory()) {
        return err_set(err, ST_ERR_NOMEM, "no memory for an answer");
    }
    *is_same_p = there != NULL && strcmp(there, id) == 0;
    json_decref(root);
    return ST_OK;
}

status batch_out_is_done(const char *path, const struct batch_in *in, bool *is_done_p,
                         struct err *err)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t size = 0;
    uint32_t n = 0;
    bool is_same = true;
    status st = ST_OK;

    if (file == NULL) {
        return errno == ENOENT ? ST_OK : err_set_errno(err, ST_ERR_IO, errno, "%s", path);
    }
    for (ssize_t len; is_same && (len = getline(&line, &size, file)) > 0; n++) {
        is_same = n < in->n;
        st = is_same ? line_is_of(line, (size_t)len, batch_in_id(in, n), &is_same, err) : ST_OK;
        is_same = is_same && st == ST_OK;
    }
    if (is_same && !feof(file)) {
        st = err_set_errno(err, errno == ENOMEM ? ST_ERR_NOMEM : ST_ERR_IO, errno,
                           "%s cannot be read", path);
    }
    free(line);
    fclose(file);
    if (st < 0) {
        return st;
    }
    if (!is_same || n != in->n) {
        return err_set(
            err, ST_ERR_EXISTS,
            "%s is there already and is not the answer to %s; remove it, or name another", path,
            in->path);
    }
    *is_done_p = true;
    return ST_OK;
}

status batch_out_open(const char *path, struct batch_in *in, struct batch_out *out_p,
                      uint32_t *n_done_p, struct err *err)
{
    struct batch_out out = { .fd = -1 };
    uint32_t n_done = 0;

    if (strlen(path) >= sizeof(out.path)) {
        return err_set(err, ST_ERR_ARG, "-o: a path of %zu bytes", strlen(path));
    }
    snprintf(out.path, sizeof(out.path), "%s", path);
    snprintf(out.part_path, sizeof(out.part_path), "%s.part", path);
    snprintf(out.new_path, sizeof(out.new_path), "%s.new", path);
    out.fd = open(out.part_path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (out.fd < 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "%s", out.part_path);
    }
    if (!fd_lock(out.fd)) {
        const int errnum = errno;
        close(out.fd);
        return errnum == EWOULDBLOCK
                   ? err_set(err, ST_ERR_EXISTS, "another gantry batch writes %s", out.part_path)
                   : err_set_errno(err, ST_ERR_IO, errnum, "%s cannot be locked", out.part_path);
    }
    const status st = part_read(&out, in, &n_done, err);
    if (st < 0) {
        close(out.fd);
        return st;
    }
    *out_p = out;
    *n_done_p = n_done;
    return ST_OK;
}

/* ---- writing ---- */

/* A line that does not fit the disk is taken back whole. */
static status write_line(struct batch_out *out, const char *line, size_t len, struct err *err)
{
    size_t done = 0;
    int errnum = 0;

    while (done < len && errnum == 0) {
        const ssize_t n = pwrite(out->fd, line + done, len - done, (off_t)(out->size + done));
        if (n > 0) {
            done += (size_t)n;
        } else if (n == 0 || errno != EINTR) {
            errnum = n == 0 ? ENOSPC : errno;
        }
    }
    if (errnum != 0) {
        if (fd_truncate(out->fd, (off_t)out->size) != 0) {
            errnum = errno; /* the next start cuts it */
        }
        return err_set_errno(err, ST_ERR_IO, errnum, "%s cannot be written", out->part_path);
    }
    out->size += len;
    return ST_OK;
}

static status header_compare(struct batch_out *out, const char *mine, size_t len, struct err *err)
{
    char *there = malloc(len + 1);
    size_t n = 0;
    status st = ST_OK;

    if (there == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for its first line", out->part_path);
    }
    for (ssize_t more = 1; n < len && more != 0; n += more > 0 ? (size_t)more : 0) {
        more = pread(out->fd, there + n, len - n, (off_t)n);
        if (more < 0 && errno != EINTR) {
            st = err_set_errno(err, ST_ERR_IO, errno, "%s cannot be read", out->part_path);
            break;
        }
    }
    if (st == ST_OK && (n != len || memcmp(there, mine, len) != 0)) {
        st = err_set(err, ST_ERR_MISMATCH,
                     "%s was begun with another input, model or numeric profile: its first line is "
                     "%.*s, this batch's %.*s; remove it to begin anew",
                     out->part_path, n > 0 ? (int)MIN(n - 1, (size_t)300) : 0, n > 0 ? there : "",
                     (int)MIN(len - 1, (size_t)300), mine);
    }
    free(there);
    return st;
}

status batch_out_begin(struct batch_out *out, const struct batch_origin *origin, struct err *err)
{
    char line[512], hex[HASH_HEX_BYTES];

    hash128_hex(&origin->input, hex);
    const int len = snprintf(line, sizeof(line),
                             "{\"gantry_batch\":1,\"input\":\"%s\",\"profile\":\"%s\","
                             "\"weights_digest\":\"%s\"}\n",
                             hex, origin->profile, origin->weights_digest);
    if (len < 0 || (size_t)len >= sizeof(line)) {
        return err_set(err, ST_ERR_LIMIT, "the profile's name has %zu bytes",
                       strlen(origin->profile));
    }
    if (out->has_header) {
        return header_compare(out, line, (size_t)len, err);
    }
    out->has_header = true;
    return write_line(out, line, (size_t)len, err);
}

status batch_out_append(struct batch_out *out, struct batch_record *r, const char *line, size_t len,
                        struct err *err)
{
    const uint64_t offset = out->size;

    if (len > ANSWER_LINE_MAX) {
        return err_set(err, ST_ERR_LIMIT, "an answer of %zu bytes", len);
    }
    const status st = write_line(out, line, len, err);
    if (st == ST_OK) {
        r->part_offset = offset;
        r->part_len = (uint32_t)(len - 1);
    }
    return st;
}

/* ---- the end ---- */

static status copy_line(const struct batch_out *out, const struct batch_record *r, FILE *to,
                        struct err *err)
{
    char block[COPY_BYTES];

    for (uint64_t done = 0; done < (uint64_t)r->part_len + 1;) {
        const uint64_t left = (uint64_t)r->part_len + 1 - done;
        const ssize_t n =
            pread(out->fd, block, (size_t)MIN(left, sizeof(block)), (off_t)(r->part_offset + done));
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return err_set_errno(err, ST_ERR_IO, n == 0 ? EIO : errno, "%s cannot be read",
                                 out->part_path);
        }
        if (n > 0 && fwrite(block, 1, (size_t)n, to) != (size_t)n) {
            return err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written", out->new_path);
        }
        done += n > 0 ? (uint64_t)n : 0;
    }
    return ST_OK;
}

status batch_out_finish(struct batch_out *out, const struct batch_in *in, struct err *err)
{
    FILE *to = fopen(out->new_path, "we");
    status st = ST_OK;

    if (to == NULL) {
        return err_set_errno(err, ST_ERR_IO, errno, "%s", out->new_path);
    }
    for (uint32_t i = 0; i < in->n && st == ST_OK; i++) {
        ASSERT(in->records[i].part_len != 0);
        st = copy_line(out, &in->records[i], to, err);
    }
    if (st == ST_OK && (fflush(to) != 0 || fsync(fileno(to)) != 0)) {
        st = err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written", out->new_path);
    }
    if (fclose(to) != 0 && st == ST_OK) {
        st = err_set_errno(err, ST_ERR_IO, errno, "%s cannot be written", out->new_path);
    }
    if (st == ST_OK && rename(out->new_path, out->path) != 0) {
        st = err_set_errno(err, ST_ERR_IO, errno, "%s", out->path);
    }
    if (st == ST_OK) {
        unlink(out->part_path);
    }
    return st;
}

void batch_out_close(struct batch_out *out)
{
    if (out->fd >= 0) {
        if (out->size == 0) {
            unlink(out->part_path);
        }
        close(out->fd);
        out->fd = -1;
    }
}
