/* coordinator/journal_disk.c - the writer, the lock, and the change of segments (journal_disk.h).
 *
 * Records gather in `pending` and go out in one write per turn of the loop. A segment past its
 * bound, or one that the disk did not take, is followed by another: written whole under a name that
 * no reader looks at, synced, renamed, and only then the old one goes. Whenever the process or the
 * machine dies, one whole segment is there. */
#include "coordinator/journal_disk.h"

#include "base/fd.h"
#include "base/hash.h"
#include "base/log.h"
#include "coordinator/dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PENDING_MAX = 256 << 20, FLUSH_AT = 1 << 20, TRY_AGAIN_S = 5, SNAPSHOT_FACTOR = 4 };

static const uint64_t segment_default = 16 << 20;
static const uint64_t file_bytes_max = (uint64_t)4 << 30;

struct journal_disk {
    struct journal_disk_config config;
    char dir[DIR_PATH_BYTES];
    int lock_fd, fd; /* owned; < 0: none */
    uint64_t segment;
    uint64_t place;     /* of what is written next */
    uint64_t limit;     /* a new segment from here on */
    struct buf pending; /* whole records, from `place` on */

    /* The TOKENS record that is being put together. */
    struct buf tokens; /* its payload; empty: none */
    size_t group_at;   /* in it: the head of the last group */
    uint64_t group_stream;
    uint32_t group_next; /* index that would join the group */
    uint16_t group_n;

    void (*snapshot)(void *arg);
    void *snapshot_arg;
    bool is_frozen, is_durable, in_snapshot;
    uint64_t try_at_ns;
    char why[DIR_PATH_BYTES + 160];
};

static ssize_t real_write(void *self UNUSED, int fd, const void *data, size_t len)
{
    return write(fd, data, len);
}

static int real_sync(void *self UNUSED, int fd)
{
    return fdatasync(fd);
}

static const struct journal_io real_io = { real_write, real_sync, NULL };

/* ---- a disk that takes no more ---- */

static void fail(struct journal_disk *d, const char *what, int errnum)
{
    if (d->is_durable) {
        snprintf(d->why, sizeof(d->why), "%s/journal-%016" PRIx64 ": %s: %s", d->dir, d->segment,
                 what, strerror(errnum));
        log_error("journal",
                  "not durable: %s; streams go on, and would not survive the coordinator", d->why);
    }
    d->is_durable = false;
    d->try_at_ns = clock_now_ns(d->config.clock) + TRY_AGAIN_S * NS_PER_S;
    buf_reset(&d->pending);
    buf_reset(&d->tokens);
}

static status write_all(struct journal_disk *d, int fd, const char *at, size_t left)
{
    const struct journal_io *io = d->config.io;

    while (left != 0) {
        const ssize_t n = io->write(io->self, fd, at, left);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            errno = n == 0 ? ENOSPC : errno;
            return ST_ERR_IO;
        }
        at += n;
        left -= (size_t)n;
    }
    return ST_OK;
}

static void write_pending(struct journal_disk *d)
{
    if (d->pending.len == 0 || !d->is_durable) {
        return;
    }
    if (write_all(d, d->fd, d->pending.data, d->pending.len) != ST_OK) {
        const int errnum = errno;
        /* Half a record at the end is what readers expect; none is better. */
        if (fd_truncate(d->fd, (off_t)d->place) != 0) {
            log_debug("journal", "the cut record stays (%s), ignoring", strerror(errno));
        }
        fail(d, "write", errnum);
        return;
    }
    d->place += d->pending.len;
    buf_reset(&d->pending);
}

/* ---- records ---- */

static bool is_writing(const struct journal_disk *d)
{
    return d->is_durable && !d->is_frozen;
}

static void record_put(struct journal_disk *d, enum journal_kind kind, const void *payload,
                       size_t len)
{
    static const char zeros[8];
    const uint64_t place = d->place + d->pending.len;
    const size_t at = d->pending.len, pad = (8 - len % 8) % 8;
    struct journal_record_head h = { 0, (uint32_t)len, (uint32_t)kind };
    status st = buf_append(&d->pending, &h, sizeof(h));

    if (st == ST_OK) {
        st = buf_append(&d->pending, payload, len);
    }
    if (st == ST_OK) {
        st = buf_append(&d->pending, zeros, pad);
    }
    if (st < 0) {
        fail(d, "no memory", ENOMEM);
        return;
    }
    h.sum = journal_record_sum(d->pending.data + at + 8, 8 + len, d->segment, place);
    memcpy(d->pending.data + at, &h.sum, sizeof(h.sum));
    if (d->pending.len >= FLUSH_AT) {
        write_pending(d);
    }
}

static void tokens_close(struct journal_disk *d)
{
    if (d->tokens.len != 0) {
        struct buf tokens = d->tokens;
        d->tokens = (struct buf)BUF_INIT_MAX(PENDING_MAX); /* record_put may fail, and reset it */
        record_put(d, JOURNAL_TOKENS, tokens.data, tokens.len);
        buf_fini(&d->tokens);
        d->tokens = tokens;
        buf_reset(&d->tokens);
    }
}

static status field_put(struct buf *b, enum journal_tag tag, const void *data, size_t len)
{
    static const char zeros[8];
    const uint16_t head[2] = { (uint16_t)tag, 0 };
    const uint32_t bytes = (uint32_t)len;
    status st = buf_append(b, head, sizeof(head));

    (void)(st || (st = buf_append(b, &bytes, sizeof(bytes))) || (st = buf_append(b, data, len)) ||
           (st = buf_append(b, zeros, (8 - len % 8) % 8)));
    return st;
}

static status submit_put(struct buf *b, const struct journal_entry *e)
{
    struct buf packed = BUF_INIT_MAX(MSG_BYTES_MAX);
    struct msg_coord m = { .kind = MSG_SUBMIT, .submit = journal_submit(e, 0) };

    m.submit.n_emitted = 0;
    m.submit.deadline_us = 0;
    status st = msg_coord_pack(&m, &packed);
    if (st == ST_OK) {
        st = field_put(b, JOURNAL_TAG_SUBMIT, packed.data, packed.len);
    }
    buf_fini(&packed);
    return st;
}

static status opening_put(struct buf *b, const struct journal_opening *o)
{
    const struct journal_entry *e = o->entry;
    const uint32_t attempt[2] = { e->attempt, 0 };
    const uint64_t times[2] = { o->arrived_us, 0 };
    const uint32_t flags = e->exact ? JOURNAL_EXACT : 0;
    status st = buf_append(b, &e->stream, sizeof(e->stream));

    (void)(st || (st = buf_append(b, attempt, sizeof(attempt))) ||
           (st = field_put(b, JOURNAL_TAG_REQUEST, e->request_id, strlen(e->request_id))) ||
           (st = field_put(b, JOURNAL_TAG_TIMES, times, sizeof(times))) ||
           (st = field_put(b, JOURNAL_TAG_FLAGS, &flags, sizeof(flags))) ||
           (st = field_put(b, JOURNAL_TAG_DIGEST, o->weights_digest, strlen(o->weights_digest))) ||
           (st = submit_put(b, e)));
    if (st == ST_OK && o->n_choices > 1) {
        st = field_put(b, JOURNAL_TAG_CHOICES, &o->n_choices, sizeof(o->n_choices));
    }
    for (uint32_t i = 0; st == ST_OK && i < o->n_stops; i++) {
        st = field_put(b, JOURNAL_TAG_STOP, o->stops[i].data, o->stops[i].len);
    }
    return st;
}

void journal_disk_stream(struct journal_disk *d, const struct journal_opening *o)
{
    struct buf b = BUF_INIT_MAX(PENDING_MAX);

    if (!is_writing(d)) {
        return;
    }
    tokens_close(d);
    if (opening_put(&b, o) == ST_OK) {
        record_put(d, JOURNAL_OPEN, b.data, b.len);
    } else {
        fail(d, "no memory", ENOMEM);
    }
    buf_fini(&b);
}

/* A head for the token's group, or one more in the one that is open. */
static status group_put(struct journal_disk *d, const struct msg_token *t, uint16_t flags)
{
    const uint16_t counts[2] = { 1, flags };
    status st = ST_OK;

    if (d->tokens.len != 0 && d->group_stream == t->stream && d->group_next == t->index &&
        d->group_n < JOURNAL_GROUP_MAX) {
        d->group_n++;
        d->group_next++;
        memcpy(d->tokens.data + d->group_at + 12, &d->group_n, sizeof(d->group_n));
        return ST_OK;
    }
    if (d->tokens.len == 0) {
        const uint64_t wall_us = clock_wall_us();
        st = buf_append(&d->tokens, &wall_us, sizeof(wall_us));
    }
    d->group_at = d->tokens.len;
    d->group_stream = t->stream;
    d->group_next = t->index + 1;
    d->group_n = 1;
    (void)(st || (st = buf_append(&d->tokens, &t->stream, sizeof(t->stream))) ||
           (st = buf_append(&d->tokens, &t->index, sizeof(t->index))) ||
           (st = buf_append(&d->tokens, counts, sizeof(counts))));
    return st;
}

void journal_disk_token(struct journal_disk *d, const struct msg_token *t, bool has_logprobs,
                        uint32_t n_top)
{
    status st;

    if (!is_writing(d)) {
        return;
    }
    st = group_put(d, t, has_logprobs ? JOURNAL_FLAG_LOGPROBS : 0);
    (void)(st || (st = buf_append(&d->tokens, &t->token, sizeof(t->token))));
    if (st == ST_OK && has_logprobs) {
        (void)((st = buf_append(&d->tokens, &t->logprob, sizeof(t->logprob))) ||
               (st = buf_append(&d->tokens, &n_top, sizeof(n_top))) ||
               (st = buf_append(&d->tokens, t->top, n_top * sizeof(*t->top))));
    }
    if (st < 0) {
        fail(d, "no memory", ENOMEM);
    } else if (d->tokens.len >= FLUSH_AT) {
        tokens_close(d);
    }
}

void journal_disk_end(struct journal_disk *d, const struct journal_ending *end)
{
    const struct msg_finish *f = &end->finish;
    const int32_t code = (int32_t)f->code;
    const uint32_t numbers[3] = { (uint32_t)f->reason, f->cached_tokens, 0 };
    const uint64_t times[3] = { f->queued_us, end->first_token_us, end->ended_us };
    struct buf b = BUF_INIT_MAX(8192);

    if (!is_writing(d)) {
        return;
    }
    tokens_close(d);
    status st = buf_append(&b, &f->stream, sizeof(f->stream));
    (void)(st || (st = buf_append(&b, &code, sizeof(code))) ||
           (st = buf_append(&b, numbers, sizeof(numbers))) ||
           (st = buf_append(&b, times, sizeof(times))) ||
           (st = buf_append(&b, f->text, MIN(strlen(f->text), (size_t)4096))));
    if (st == ST_OK) {
        record_put(d, JOURNAL_END, b.data, b.len);
    } else {
        fail(d, "no memory", ENOMEM);
    }
    buf_fini(&b);
}

void journal_disk_profile(struct journal_disk *d, uint64_t stream, const char *profile,
                          uint32_t flags)
{
    const uint32_t words[2] = { flags, 0 };
    struct buf b = BUF_INIT_MAX(256);

    if (!is_writing(d)) {
        return;
    }
    tokens_close(d);
    status st = buf_append(&b, &stream, sizeof(stream));
    (void)(st || (st = buf_append(&b, words, sizeof(words))) || (st = buf_append_str(&b, profile)));
    if (st == ST_OK) {
        record_put(d, JOURNAL_PROFILE, b.data, b.len);
    } else {
        fail(d, "no memory", ENOMEM);
    }
    buf_fini(&b);
}

void journal_disk_canary(struct journal_disk *d, const struct journal_canary *canary)
{
    const uint32_t numbers[2] = { canary->replica, JOURNAL_CANARY_TOKENS };
    struct buf b = BUF_INIT_MAX(512);

    if (!is_writing(d)) {
        return;
    }
    tokens_close(d);
    status st = buf_append(&b, &canary->key, sizeof(canary->key));
    (void)(st || (st = buf_append(&b, numbers, sizeof(numbers))) ||
           (st = buf_append(&b, canary->tokens, sizeof(canary->tokens))) ||
           (st = buf_append(&b, canary->profile, strlen(canary->profile) + 1)) ||
           (st = buf_append_str(&b, canary->host)));
    if (st == ST_OK) {
        record_put(d, JOURNAL_CANARY, b.data, b.len);
    } else {
        fail(d, "no memory", ENOMEM);
    }
    buf_fini(&b);
}

void journal_disk_drop(struct journal_disk *d, uint64_t stream)
{
    if (is_writing(d)) {
        tokens_close(d);
        record_put(d, JOURNAL_DROP, &stream, sizeof(stream));
    }
}

/* ---- segments ---- */

static void segment_path(const struct journal_disk *d, uint64_t segment, const char *suffix,
                         char path[JOURNAL_PATH_BYTES])
{
    snprintf(path, JOURNAL_PATH_BYTES, "%s/journal-%016" PRIx64 "%s", d->dir, segment, suffix);
}

static void head_put(struct journal_disk *d)
{
    struct journal_head h = { .version = JOURNAL_VERSION, .segment = d->segment };

    memcpy(h.magic, journal_magic, sizeof(h.magic));
    h.sum = journal_head_sum(&h);
    if (buf_append(&d->pending, &h, sizeof(h)) < 0) {
        fail(d, "no memory", ENOMEM);
    }
}

static void snapshot_write(struct journal_disk *d)
{
    const struct journal_io *io = d->config.io;

    d->in_snapshot = true;
    head_put(d);
    d->snapshot(d->snapshot_arg);
    tokens_close(d);
    write_pending(d);
    if (d->is_durable && io->sync(io->self, d->fd) != 0) {
        fail(d, "sync", errno);
    }
    d->in_snapshot = false;
}

/* The next segment, with everything that is live; the one before it goes. */
static void segment_next(struct journal_disk *d)
{
    char path[JOURNAL_PATH_BYTES], temp[JOURNAL_PATH_BYTES], old[JOURNAL_PATH_BYTES];
    const bool was_durable = d->is_durable;
    const int old_fd = d->fd;

    segment_path(d, d->segment, "", old);
    d->segment++;
    segment_path(d, d->segment, "", path);
    segment_path(d, d->segment, ".new", temp);
    buf_reset(&d->pending);
    buf_reset(&d->tokens);
    d->place = 0;
    d->is_durable = true; /* until something says otherwise */
    d->fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (d->fd < 0) {
        fail(d, "open", errno);
    } else {
        snapshot_write(d);
    }
    if (d->is_durable && rename(temp, path) != 0) {
        fail(d, "rename", errno);
    }
    if (!d->is_durable) { /* the old segment stays: a part of the truth is better than none */
        unlink(temp);
        d->segment--; /* it is the one that goes when a next one is there */
        if (d->fd >= 0) {
            close(d->fd);
        }
        d->fd = old_fd;
        return;
    }
    if (old_fd >= 0) {
        close(old_fd);
    }
    unlink(old);
    d->limit = MAX(d->config.segment_bytes, d->place * SNAPSHOT_FACTOR);
    log_debug("journal", "segment %016" PRIx64 " begins with %" PRIu64 " bytes", d->segment,
              d->place);
    if (!was_durable && d->why[0] != '\0') {
        log_warn("journal", "durable again: %s takes what is written", d->dir);
        d->why[0] = '\0';
    }
}

void journal_disk_begin(struct journal_disk *d, void (*snapshot)(void *arg), void *arg)
{
    d->snapshot = snapshot;
    d->snapshot_arg = arg;
    segment_next(d);
}

void journal_disk_flush(struct journal_disk *d)
{
    if (d->is_frozen || d->in_snapshot || d->snapshot == NULL) {
        return;
    }
    if (!d->is_durable) {
        if (clock_now_ns(d->config.clock) >= d->try_at_ns) {
            segment_next(d);
        }
        return;
    }
    tokens_close(d);
    write_pending(d);
    if (d->is_durable && d->place >= d->limit) {
        segment_next(d);
    }
}

void journal_disk_freeze(struct journal_disk *d)
{
    journal_disk_flush(d);
    d->is_frozen = true;
}

struct journal_disk_status journal_disk_status(const struct journal_disk *d)
{
    return (struct journal_disk_status){ d->is_durable, d->is_durable ? "" : d->why, d->place };
}

/* ---- open, close ---- */

/* Number of a segment's name; false: another file. */
static bool segment_number(const char *name, uint64_t *number_p)
{
    int end = 0;

    return sscanf(name, "journal-%16" SCNx64 "%n", number_p, &end) == 1 && end == 24 &&
           name[end] == '\0';
}

/* The newest segment's number, 0: none. What else was left behind goes, if `sweep`. */
static status segment_find(struct journal_disk *d, bool sweep, struct err *err)
{
    DIR *dir = opendir(d->dir);
    char path[JOURNAL_PATH_BYTES];

    if (dir == NULL) {
        return err_set_errno(err, ST_ERR_IO, errno, "journal %s", d->dir);
    }
    errno = 0;
    for (const struct dirent *e; (e = readdir(dir)) != NULL; errno = 0) {
        const size_t len = strlen(e->d_name);
        uint64_t number = 0;
        const bool is_segment = segment_number(e->d_name, &number);
        const bool is_new = strncmp(e->d_name, "journal-", 8) == 0 && len > 4 &&
                            strcmp(e->d_name + len - 4, ".new") == 0;

        if (is_segment && !sweep) {
            d->segment = MAX(d->segment, number);
        } else if (sweep && (is_new || (is_segment && number != d->segment))) {
            snprintf(path, sizeof(path), "%s/%s", d->dir, e->d_name);
            unlink(path);
        }
    }
    const int errnum =
        errno; /* of readdir: what was not seen may be the newest, and hold the streams */
    closedir(dir);
    return errnum == 0 ? ST_OK
                       : err_set_errno(err, ST_ERR_IO, errnum, "journal %s cannot be read", d->dir);
}

static status lock_take(struct journal_disk *d, struct err *err)
{
    char path[JOURNAL_PATH_BYTES];

    snprintf(path, sizeof(path), "%s/lock", d->dir);
    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (d->lock_fd < 0) {
        return err_set_errno(err, ST_ERR_IO, errno, "%s cannot be opened", path);
    }
    if (!fd_lock(d->lock_fd)) {
        return errno == EWOULDBLOCK
                   ? err_set(err, ST_ERR_EXISTS, "journal %s belongs to another running service",
                             d->dir)
                   : err_set_errno(err, ST_ERR_IO, errno, "%s cannot be locked", path);
    }
    return ST_OK;
}

static status load(struct journal_disk *d, struct journal_image *image_p, struct err *err)
{
    char path[JOURNAL_PATH_BYTES];
    struct buf bytes = BUF_INIT_MAX(file_bytes_max + 1);
    status st = segment_find(d, false, err);

    if (st < 0 || d->segment == 0) {
        return st;
    }
    segment_path(d, d->segment, "", path);
    st = buf_read_file(&bytes, path, file_bytes_max, err);
    if (st == ST_OK) {
        st = journal_image_read(path, bytes.data, bytes.len, image_p, err);
    }
    if (st == ST_OK && image_p->good_bytes < bytes.len) {
        log_warn("journal", "%s ends with %zu bytes of a write that was cut, ignoring", path,
                 bytes.len - image_p->good_bytes);
    }
    if (st < 0) {
        err_prefix(err, "journal: ");
    }
    buf_fini(&bytes);
    return st < 0 ? st : segment_find(d, true, err);
}

status journal_disk_open(const struct journal_disk_config *config, struct journal_disk **disk_p,
                         struct journal_image *image_p, struct err *err)
{
    struct journal_disk *d = calloc(1, sizeof(*d));
    status st;

    if (d == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a journal");
    }
    memset(image_p, 0, sizeof(*image_p));
    d->config = *config;
    d->config.io = config->io != NULL ? config->io : &real_io;
    d->config.clock = config->clock != NULL ? config->clock : clock_real();
    d->config.segment_bytes = config->segment_bytes != 0 ? config->segment_bytes : segment_default;
    d->lock_fd = d->fd = -1;
    d->pending = (struct buf)BUF_INIT_MAX(PENDING_MAX);
    d->tokens = (struct buf)BUF_INIT_MAX(PENDING_MAX);
    st = dir_make(config->dir, "journal", 077, err);
    if (st == ST_OK) {
        snprintf(d->dir, sizeof(d->dir), "%s", config->dir);
        st = lock_take(d, err);
    }
    if (st == ST_OK) {
        st = load(d, image_p, err);
    }
    if (st < 0) {
        journal_disk_close(d, false);
        return st;
    }
    *disk_p = d;
    return ST_OK;
}

void journal_disk_close(struct journal_disk *d, bool clean)
{
    char path[JOURNAL_PATH_BYTES];

    if (d == NULL) {
        return;
    }
    d->snapshot =
        NULL; /* whoever makes it is no more: what was said goes out, no segment is begun */
    if (is_writing(d)) {
        tokens_close(d);
        write_pending(d);
    }
    if (d->fd >= 0) {
        close(d->fd);
    }
    if (clean && d->segment != 0) {
        segment_path(d, d->segment, "", path);
        unlink(path);
    }
    if (d->lock_fd >= 0) {
        close(d->lock_fd);
    }
    buf_fini(&d->pending);
    buf_fini(&d->tokens);
    free(d);
}
