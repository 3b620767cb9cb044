/* model/weights_digest.c - one digest for all weight files, and a place where it is remembered.
 *
 * The files, sorted by name, are seen as one string of bytes cut into chunks of WEIGHTS_CHUNK_BYTES
 * (a chunk may begin in one file and end in the next). Digest = hash of (version, total bytes,
 * number of chunks, hashes of the chunks). Reading hundreds of gigabytes for it at each start is
 * what the cache avoids; its key holds all that changes when somebody writes the files. */
#include "model/weights_private.h"

#include "base/buf.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char version[] = "gantry-weights-v1";

static uint64_t total_bytes(const struct weights *w)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < w->n_files; i++) {
        total += w->files[i].bytes;
    }
    return total;
}

uint32_t weights_chunk_count(const struct weights *w)
{
    return (uint32_t)((total_bytes(w) + WEIGHTS_CHUNK_BYTES - 1) / WEIGHTS_CHUNK_BYTES);
}

status weights_chunk_hash(const struct weights *w, uint32_t i_chunk, struct hash128 *hash_p,
                          struct err *err)
{
    const uint64_t begin = (uint64_t)i_chunk * WEIGHTS_CHUNK_BYTES;
    const uint64_t end = MIN(begin + WEIGHTS_CHUNK_BYTES, total_bytes(w));
    uint64_t file_begin = 0;
    status st = ST_OK;

    ASSERT(begin < end);
    char *chunk = malloc((size_t)(end - begin));
    if (chunk == NULL) {
        return err_set(err, ST_ERR_NOMEM, "%s: no memory for a chunk of %" PRIu64 " bytes", w->dir,
                       end - begin);
    }
    for (uint32_t i = 0; i < w->n_files && st == ST_OK; i++) {
        const uint64_t file_end = file_begin + w->files[i].bytes;
        const uint64_t from = MAX(begin, file_begin), to = MIN(end, file_end);
        if (from < to) {
            st = weights_pread(w, i, from - file_begin, chunk + (from - begin), to - from, err);
        }
        file_begin = file_end;
    }
    if (st == ST_OK) {
        *hash_p = hash128_of(chunk, (size_t)(end - begin));
    }
    free(chunk);
    return st;
}

static void put_u64(uint8_t *dst, uint64_t x)
{
    for (int i = 0; i < 8; i++) {
        dst[i] = (uint8_t)(x >> (8 * i));
    }
}

struct hash128 weights_digest(const struct weights *w, const struct hash128 *chunk_hashes)
{
    const uint32_t n = weights_chunk_count(w);
    uint8_t head[sizeof(version) + 16 + HASH_BYTES];

    memcpy(head, version, sizeof(version));
    put_u64(head + sizeof(version), total_bytes(w));
    put_u64(head + sizeof(version) + 8, n);
    const struct hash128 inner = hash128_of(chunk_hashes, n * sizeof(*chunk_hashes));
    memcpy(head + sizeof(version) + 16, inner.bytes, HASH_BYTES);
    return hash128_of(head, sizeof(head));
}

/* ---- the cache: DIR/weights-<key>, one line "<version> <digest>" ---- */

const char *weights_cache_dir(char *path, size_t bytes)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;

    if (base != NULL && base[0] == '/') {
        n = snprintf(path, bytes, "%s/gantry", base);
    } else if (home != NULL && home[0] == '/') {
        n = snprintf(path, bytes, "%s/.cache/gantry", home);
    }
    return n >= 0 && (size_t)n < bytes ? path : NULL;
}

static status cache_path(const struct weights *w, const char *cache_dir, struct buf *path)
{
    struct buf key = BUF_INIT;
    char hex[HASH_HEX_BYTES];
    char *real = realpath(w->dir, NULL);
    status st = buf_printf(&key, "%s\n%s\n", version, real != NULL ? real : w->dir);

    free(real);
    for (uint32_t i = 0; i < w->n_files && st == ST_OK; i++) {
        const struct weights_file *f = &w->files[i];
        st = buf_printf(&key, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 ".%09" PRId64 "\n",
                        f->name, f->bytes, f->device, f->inode, f->mtime_s, f->mtime_ns);
    }
    if (st == ST_OK) {
        const struct hash128 hash = hash128_of(key.data, key.len);
        hash128_hex(&hash, hex);
        st = buf_printf(path, "%s/weights-%s", cache_dir, hex);
    }
    buf_fini(&key);
    return st;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_digest(const char *text, size_t len, struct hash128 *digest_p)
{
    const size_t head = sizeof(version); /* the blank counted instead of the NUL */
    struct hash128 digest;

    if (len != head + 2 * HASH_BYTES + 1 || memcmp(text, version, head - 1) != 0 ||
        text[head - 1] != ' ' || text[len - 1] != '\n') {
        return false;
    }
    for (int i = 0; i < HASH_BYTES; i++) {
        const int high = hex_digit(text[head + 2 * (size_t)i]);
        const int low = hex_digit(text[head + 2 * (size_t)i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        digest.bytes[i] = (uint8_t)(high << 4 | low);
    }
    *digest_p = digest;
    return true;
}

status weights_digest_cached(const struct weights *w, const char *cache_dir,
                             struct hash128 *digest_p)
{
    struct buf path = BUF_INIT_MAX(PATH_MAX), text = BUF_INIT_MAX(4096);
    status st = cache_path(w, cache_dir, &path);

    if (st == ST_OK) {
        st = buf_read_file(&text, path.data, 1024, NULL);
    }
    if (st == ST_OK && !parse_digest(text.data, text.len, digest_p)) {
        st = ST_ERR_NOT_FOUND;
    }
    buf_fini(&text);
    buf_fini(&path);
    return st;
}

/* A cache that cannot be written costs time at the next start, nothing else: failures are silent.
 * mkostemp gives mode 0600; the rename makes the file appear whole or not at all. */
void weights_digest_store(const struct weights *w, const char *cache_dir,
                          const struct hash128 *digest)
{
    struct buf path = BUF_INIT_MAX(PATH_MAX), temp = BUF_INIT_MAX(PATH_MAX);
    char hex[HASH_HEX_BYTES], line[sizeof(version) + HASH_HEX_BYTES + 1];
    int fd = -1;

    hash128_hex(digest, hex);
    const int len = snprintf(line, sizeof(line), "%s %s\n", version, hex);
    if (mkdir(cache_dir, 0700) != 0 && errno != EEXIST) {
        return;
    }
    if (cache_path(w, cache_dir, &path) == ST_OK &&
        buf_printf(&temp, "%s.XXXXXX", path.data) == ST_OK) {
        fd = mkostemp(temp.data, O_CLOEXEC);
    }
    if (fd >= 0) {
        const bool written = fd_write_all(fd, line, (size_t)len) == ST_OK;
        if (close(fd) != 0 || !written || rename(temp.data, path.data) != 0) {
            (void)unlink(temp.data);
        }
    }
    buf_fini(&temp);
    buf_fini(&path);
}
