/* model/weights.c - see weights.h. Finds the files, reads their headers, sorts the tensors.
 *
 * model.safetensors wins over model.safetensors.index.json, as in transformers. With an index the
 * set of shards is what weight_map names; every entry must be found in the shard it names. Shards
 * may be symbolic links (the Hugging Face cache consists of them) but their names may not lead out
 * of the directory. Reading tensors is weights_read.c, holding them against a description
 * weights_check.c, digests weights_digest.c. */
#include "model/weights_private.h"

#include "base/buf.h"
#include "model/config_field.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINGLE_NAME     "model.safetensors"
#define INDEX_NAME      "model.safetensors.index.json"
#define TOTAL_BYTES_MAX ((uint64_t)1 << 50) /* of all files: a sparse file may claim anything */
enum { INDEX_BYTES_MAX = 64 << 20, FILES_MAX = 1024 };

/* ---- files ---- */

/* DIR/NAME. */
static status path_of(const struct weights *w, const char *name, struct buf *path, struct err *err)
{
    buf_reset(path);
    const status st = buf_printf(path, "%s/%s", w->dir, name);

    return st == ST_OK ? st : buf_fail(path, st, "path of a weight file", err);
}

static status file_open(const struct weights *w, struct weights_file *file, struct err *err)
{
    struct buf path = BUF_INIT_MAX(PATH_MAX);
    struct stat info;
    status st = path_of(w, file->name, &path, err);

    if (st != ST_OK) {
        buf_fini(&path);
        return st;
    }
    /* O_NONBLOCK: a FIFO of that name must not hang the process. */
    file->fd = open(path.data, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0) {
        st = err_set_errno(err, errno == ENOENT ? ST_ERR_NOT_FOUND : ST_ERR_IO, errno, "%s: open",
                           path.data);
    } else if (fstat(file->fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        st = err_set(err, ST_ERR_IO, "%s: not a regular file", path.data);
    } else {
        file->bytes = (uint64_t)info.st_size;
        file->device = (uint64_t)info.st_dev;
        file->inode = (uint64_t)info.st_ino;
        file->mtime_s = (int64_t)info.st_mtim.tv_sec;
        file->mtime_ns = (int64_t)info.st_mtim.tv_nsec;
        /* Advice only: not every file system takes it. */
        (void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    }
    buf_fini(&path);
    return st;
}

status weights_pread(const struct weights *w, uint32_t i_file, uint64_t offset, void *dst,
                     uint64_t bytes, struct err *err)
{
    const struct weights_file *file = &w->files[i_file];
    uint64_t done = 0;

    while (done < bytes) {
        /* One call moves at most 2 GiB less a page on Linux. */
        const size_t want = (size_t)MIN(bytes - done, (uint64_t)1 << 30);
        const ssize_t n = pread(file->fd, (char *)dst + done, want, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_set_errno(err, ST_ERR_IO, errno, "%s/%s: read at byte %" PRIu64, w->dir,
                                 file->name, offset + done);
        }
        if (n == 0) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s/%s: ends at byte %" PRIu64 "; it had %" PRIu64 " when it was opened",
                           w->dir, file->name, offset + done, file->bytes);
        }
        done += (uint64_t)n;
    }
    return ST_OK;
}

static status file_header(const struct weights *w, uint32_t i_file, struct safetensors *st_p,
                          struct err *err)
{
    const struct weights_file *file = &w->files[i_file];
    unsigned char prefix[SAFETENSORS_PREFIX_BYTES];
    uint64_t json_bytes = 0;

    if (file->bytes < SAFETENSORS_PREFIX_BYTES) {
        return err_set(err, ST_ERR_FORMAT, "%s: has %" PRIu64 " bytes, too few for a header",
                       file->name, file->bytes);
    }
    status st = weights_pread(w, i_file, 0, prefix, sizeof(prefix), err);
    if (st == ST_OK) {
        st = safetensors_header_bytes(file->name, prefix, file->bytes, &json_bytes, err);
    }
    if (st != ST_OK) {
        return st;
    }
    char *json = malloc((size_t)json_bytes + 1);
    if (json == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for a header of %" PRIu64 " bytes",
                       file->name, json_bytes);
    }
    st = weights_pread(w, i_file, sizeof(prefix), json, json_bytes, err);
    if (st == ST_OK) {
        st = safetensors_parse(file->name, json, (size_t)json_bytes, file->bytes, st_p, err);
    }
    free(json);
    return st;
}

/* ---- which files: one, or an index ---- */

static int by_file_name(const void *a, const void *b)
{
    return strcmp(((const struct weights_file *)a)->name, ((const struct weights_file *)b)->name);
}

static status files_add(struct weights *w, const char *name, struct err *err)
{
    if (w->n_files == FILES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%s/" INDEX_NAME ": more than %d weight files", w->dir,
                       FILES_MAX);
    }
    struct weights_file *file = &w->files[w->n_files];
    file->fd = -1;
    file->name = strdup(name);
    if (file->name == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for a file name", w->dir);
    }
    w->n_files++;
    return ST_OK;
}

static status index_shard(struct weights *w, const char *tensor, const json_t *value,
                          struct err *err)
{
    const char *shard = json_string_value(value);

    if (shard == NULL) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s/" INDEX_NAME ": weight_map of \"%.128s\" is not a file name", w->dir,
                       tensor);
    }
    if (shard[0] == '\0' || strlen(shard) > 255 || strchr(shard, '/') != NULL ||
        strcmp(shard, ".") == 0 || strcmp(shard, "..") == 0) {
        return err_set(err, ST_ERR_FORMAT,
                       "%s/" INDEX_NAME
                       ": weight_map of \"%.100s\" is \"%.100s\", not the name of a file in "
                       "this directory",
                       w->dir, tensor, shard);
    }
    /* Entries of one shard mostly stand together: look from the end. */
    for (uint32_t i = w->n_files; i-- > 0;) {
        if (strcmp(w->files[i].name, shard) == 0) {
            return ST_OK;
        }
    }
    return files_add(w, shard, err);
}

/* Fills w->files from the index; *map_p is borrowed from *index_p, which the caller owns. */
static status index_read(struct weights *w, json_t **index_p, json_t **map_p, struct err *err)
{
    struct buf path = BUF_INIT_MAX(PATH_MAX), text = BUF_INIT_MAX(INDEX_BYTES_MAX + 2);
    json_t *value;
    const char *tensor;
    status st = path_of(w, INDEX_NAME, &path, err);

    if (st != ST_OK) {
        goto out;
    }
    st = buf_read_file(&text, path.data, INDEX_BYTES_MAX, err);
    if (st == ST_ERR_NOT_FOUND) {
        err_set(err, st, "%s: holds neither " SINGLE_NAME " nor " INDEX_NAME, w->dir);
    }
    if (st == ST_OK) {
        st = field_parse_object(path.data, text.data, text.len, index_p, err);
    }
    if (st != ST_OK) {
        goto out;
    }
    *map_p = json_object_get(*index_p, "weight_map");
    if (!json_is_object(*map_p) || json_object_size(*map_p) == 0) {
        st = err_set(err, ST_ERR_FORMAT, "%s: weight_map is not an object with entries", path.data);
        goto out;
    }
    json_object_foreach(*map_p, tensor, value)
    {
        st = index_shard(w, tensor, value, err);
        if (st != ST_OK) {
            break;
        }
    }
out:
    buf_fini(&text);
    buf_fini(&path);
    return st;
}

/* ---- the tensors ---- */

static int by_tensor_name(const void *a, const void *b)
{
    const struct weights_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int name_by_tensor(const void *name, const void *tensor)
{
    return strcmp(name, ((const struct weights_tensor *)tensor)->name);
}

static int by_foreign_name(const void *a, const void *b)
{
    const struct weights_foreign *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int name_by_foreign(const void *name, const void *foreign)
{
    return strcmp(name, ((const struct weights_foreign *)foreign)->name);
}

static bool grow(struct weights *w, uint32_t extra)
{
    const size_t n = (size_t)w->n_names + extra;
    void *tensors = realloc(w->tensors, MAX(n, (size_t)1) * sizeof(*w->tensors));
    w->tensors = tensors != NULL ? tensors : w->tensors;
    void *foreign = realloc(w->foreign, MAX(n, (size_t)1) * sizeof(*w->foreign));
    w->foreign = foreign != NULL ? foreign : w->foreign;
    void *names = realloc(w->names, MAX(n, (size_t)1) * sizeof(*w->names));
    w->names = names != NULL ? names : w->names;
    return tensors != NULL && foreign != NULL && names != NULL;
}

/* Takes the names out of `st`. */
static void take(struct weights *w, uint32_t i_file, struct safetensors *st)
{
    for (uint32_t i = 0; i < st->n; i++) {
        struct safetensor *from = &st->tensors[i];
        char *name = from->name;

        from->name = NULL;
        w->names[w->n_names++] = name;
        if (!from->readable) {
            struct weights_foreign *f = &w->foreign[w->n_foreign++];
            f->name = name;
            f->n_dims = from->n_dims;
            memcpy(f->dtype_name, from->dtype_name, sizeof(f->dtype_name));
            continue;
        }
        struct weights_tensor *t = &w->tensors[w->n++];
        *t = (struct weights_tensor){ .name = name,
                                      .dtype = from->dtype,
                                      .n_dims = from->n_dims,
                                      .bytes = from->end - from->begin,
                                      .i_file = i_file,
                                      .offset = from->begin };
        memcpy(t->shape, from->shape, sizeof(t->shape));
    }
}

static status read_headers(struct weights *w, struct err *err)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < w->n_files; i++) {
        struct safetensors header = { 0, NULL };
        status st = file_open(w, &w->files[i], err);
        if (st != ST_OK) {
            return st;
        }
        if (w->files[i].bytes > TOTAL_BYTES_MAX - total) {
            return err_set(err, ST_ERR_LIMIT, "%s: the weight files have more than 2^50 bytes",
                           w->dir);
        }
        total += w->files[i].bytes;
        st = file_header(w, i, &header, err);
        if (st != ST_OK) {
            return err_prefix(err, "%s/", w->dir);
        }
        if (header.n > SAFETENSORS_TENSORS_MAX - w->n_names) {
            st = err_set(err, ST_ERR_LIMIT, "%s: more than %d tensors", w->dir,
                         SAFETENSORS_TENSORS_MAX);
        } else if (!grow(w, header.n)) {
            st = err_set(err, ST_ERR_NOMEM, "%s: no memory for %u tensors", w->dir, header.n);
        } else {
            take(w, i, &header);
        }
        safetensors_fini(&header);
        if (st != ST_OK) {
            return st;
        }
    }
    return ST_OK;
}

static status sort_tensors(struct weights *w, struct err *err)
{
    qsort(w->tensors, w->n, sizeof(*w->tensors), by_tensor_name);
    qsort(w->foreign, w->n_foreign, sizeof(*w->foreign), by_foreign_name);
    for (uint32_t i = 1; i < w->n; i++) {
        const struct weights_tensor *a = &w->tensors[i - 1], *b = &w->tensors[i];
        if (strcmp(a->name, b->name) == 0) {
            return err_set(err, ST_ERR_FORMAT, "%s: tensor \"%.128s\" is in both %s and %s", w->dir,
                           a->name, w->files[a->i_file].name, w->files[b->i_file].name);
        }
    }
    return ST_OK;
}

static status check_map(const struct weights *w, json_t *map, struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach(map, name, value)
    {
        const char *shard = json_string_value(value);
        const struct weights_tensor *t = weights_find(w, name);
        const bool foreign = t == NULL && bsearch(name, w->foreign, w->n_foreign,
                                                  sizeof(*w->foreign), name_by_foreign) != NULL;
        if (t == NULL && !foreign) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s/" INDEX_NAME
                           ": tensor \"%.128s\" is not in %s, where weight_map has it",
                           w->dir, name, shard);
        }
        if (t != NULL && strcmp(w->files[t->i_file].name, shard) != 0) {
            return err_set(err, ST_ERR_FORMAT,
                           "%s/" INDEX_NAME ": tensor \"%.128s\" is in %s, weight_map has it in %s",
                           w->dir, name, w->files[t->i_file].name, shard);
        }
    }
    return ST_OK;
}

/* ---- life ---- */

/* A dangling link counts as there: it is then refused by name, not passed over. */
static status single_exists(const struct weights *w, bool *exists_p, struct err *err)
{
    struct buf path = BUF_INIT_MAX(PATH_MAX);
    struct stat info;
    const status st = path_of(w, SINGLE_NAME, &path, err);

    if (st == ST_OK) {
        *exists_p = lstat(path.data, &info) == 0;
    }
    buf_fini(&path);
    return st;
}

static status open_all(struct weights *w, json_t **index_p, struct err *err)
{
    json_t *map = NULL;
    bool single = false;
    status st = single_exists(w, &single, err);

    w->files = calloc(FILES_MAX, sizeof(*w->files));
    if (w->files == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for a list of files", w->dir);
    }
    if (st == ST_OK) {
        st = single ? files_add(w, SINGLE_NAME, err) : index_read(w, index_p, &map, err);
    }
    if (st != ST_OK) {
        return st;
    }
    qsort(w->files, w->n_files, sizeof(*w->files), by_file_name);
    st = read_headers(w, err);
    if (st == ST_OK && w->n_names == 0) {
        st = err_set(err, ST_ERR_FORMAT, "%s: the weight files hold no tensors", w->dir);
    }
    if (st == ST_OK) {
        st = sort_tensors(w, err);
    }
    if (st == ST_OK && map != NULL) {
        st = check_map(w, map, err);
    }
    return st;
}

status weights_open(const char *dir, struct weights **weights_p, struct err *err)
{
    struct weights *w = calloc(1, sizeof(*w));
    json_t *index = NULL;

    if (w == NULL || (w->dir = strdup(dir)) == NULL) {
        free(w);
        return err_set(err, ST_ERR_NOMEM, "%s: no memory to open the weights", dir);
    }
    const status st = open_all(w, &index, err);
    json_decref(index);
    if (st != ST_OK) {
        weights_close(w);
        return st;
    }
    *weights_p = w;
    return ST_OK;
}

void weights_close(struct weights *w)
{
    if (w == NULL) {
        return;
    }
    for (uint32_t i = 0; i < w->n_files; i++) {
        if (w->files[i].fd >= 0) {
            close(w->files[i].fd);
        }
        free(w->files[i].name);
    }
    for (uint32_t i = 0; i < w->n_names; i++) {
        free(w->names[i]);
    }
    free(w->files);
    free(w->tensors);
    free(w->foreign);
    free(w->names);
    free(w->dir);
    free(w);
}

/* ---- looking ---- */

uint32_t weights_count(const struct weights *w)
{
    return w->n;
}

const struct weights_tensor *weights_at(const struct weights *w, uint32_t i)
{
    ASSERT(i < w->n);
    return &w->tensors[i];
}

const struct weights_tensor *weights_find(const struct weights *w, const char *name)
{
    return w->n == 0 ? NULL : bsearch(name, w->tensors, w->n, sizeof(*w->tensors), name_by_tensor);
}

uint32_t weights_foreign_count(const struct weights *w)
{
    return w->n_foreign;
}

const char *weights_foreign_at(const struct weights *w, uint32_t i, const char **dtype_p)
{
    ASSERT(i < w->n_foreign);
    *dtype_p = w->foreign[i].dtype_name;
    return w->foreign[i].name;
}

const char *weights_foreign_find(const struct weights *w, const char *name)
{
    const struct weights_foreign *f =
        w->n_foreign == 0
            ? NULL
            : bsearch(name, w->foreign, w->n_foreign, sizeof(*w->foreign), name_by_foreign);
    return f != NULL ? f->dtype_name : NULL;
}

uint32_t weights_file_count(const struct weights *w)
{
    return w->n_files;
}

const char *weights_file_at(const struct weights *w, uint32_t i, uint64_t *bytes_p)
{
    ASSERT(i < w->n_files);
    *bytes_p = w->files[i].bytes;
    return w->files[i].name;
}
