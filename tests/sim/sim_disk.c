/* tests/sim/sim_disk.c - see sim_disk.h. */
#include "sim/sim_disk.h"

#include "sim/sim_wrap.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAMES_MAX = 64, PATH_BYTES = 64, FILES_MAX = 16, FD_FIRST = 1 << 20, CHANGES_MAX = 256 };

struct inode {
    struct inode *next; /* in disk->inodes */
    char *data;         /* [cap] owned */
    size_t len, cap, n_synced;
    bool is_locked;
};

struct name {
    char path[PATH_BYTES];
    struct inode *inode;
};

struct names {
    struct name at[NAMES_MAX];
    uint32_t n;
};

enum change_kind { CHANGE_CREATE, CHANGE_RENAME, CHANGE_UNLINK };

struct change {
    enum change_kind kind;
    char path[PATH_BYTES], to[PATH_BYTES];
    struct inode *inode; /* CREATE */
};

struct sim_disk {
    struct sim *sim;
    struct inode *inodes; /* all there ever were, owned */
    struct names live, stable;
    struct change changes[CHANGES_MAX]; /* of names, since the last sync */
    uint32_t n_changes;
    struct open_file {
        struct inode *inode; /* NULL: free */
        size_t at;
        bool has_lock;
    } files[FILES_MAX];
    uint32_t die_in, n_boots;
    bool is_mute, is_full;
    struct names listed; /* opendir: one at a time */
    uint32_t i_listed;
    struct dirent entry;
};

/* ---- names ---- */

static struct inode *find(const struct names *n, const char *path)
{
    for (uint32_t i = 0; i < n->n; i++) {
        if (strcmp(n->at[i].path, path) == 0) {
            return n->at[i].inode;
        }
    }
    return NULL;
}

static void drop(struct names *n, const char *path)
{
    for (uint32_t i = 0; i < n->n; i++) {
        if (strcmp(n->at[i].path, path) == 0) {
            n->at[i] = n->at[--n->n];
            return;
        }
    }
}

static void put(struct names *n, const char *path, struct inode *inode)
{
    drop(n, path);
    ASSERT(n->n < NAMES_MAX && strlen(path) < PATH_BYTES);
    snprintf(n->at[n->n].path, PATH_BYTES, "%s", path);
    n->at[n->n++].inode = inode;
}

static void apply(struct names *n, const struct change *c)
{
    struct inode *inode = c->kind == CHANGE_CREATE ? c->inode : find(n, c->path);

    if (c->kind != CHANGE_CREATE) {
        drop(n, c->path);
    }
    if (c->kind != CHANGE_UNLINK && inode != NULL) {
        put(n, c->kind == CHANGE_RENAME ? c->to : c->path, inode);
    }
}

static bool is_used(const struct sim_disk *d, const struct inode *inode)
{
    for (uint32_t i = 0; i < FILES_MAX; i++) {
        if (d->files[i].inode == inode) {
            return true;
        }
    }
    for (uint32_t i = 0; i < MAX(d->live.n, d->stable.n); i++) {
        if ((i < d->live.n && d->live.at[i].inode == inode) ||
            (i < d->stable.n && d->stable.at[i].inode == inode)) {
            return true;
        }
    }
    return false;
}

static void settle(struct sim_disk *d)
{
    d->stable = d->live;
    d->n_changes = 0;
    for (struct inode **at = &d->inodes; *at != NULL;) {
        struct inode *inode = *at;
        if (is_used(d, inode)) {
            at = &inode->next;
        } else {
            *at = inode->next;
            free(inode->data);
            free(inode);
        }
    }
}

static void change(struct sim_disk *d, const struct change *c)
{
    apply(&d->live, c);
    if (d->n_changes == CHANGES_MAX) { /* the kernel's own time to write has come */
        settle(d);
    } else {
        d->changes[d->n_changes++] = *c;
    }
}

static struct change change_of(enum change_kind kind, const char *path, const char *to)
{
    struct change c = { .kind = kind };

    snprintf(c.path, sizeof(c.path), "%s", path);
    snprintf(c.to, sizeof(c.to), "%s", to);
    return c;
}

/* ---- life and death ---- */

struct sim_disk *sim_disk_create(struct sim *s)
{
    struct sim_disk *d = calloc(1, sizeof(*d));

    ASSERT(d != NULL);
    d->sim = s;
    return d;
}

void sim_disk_destroy(struct sim_disk *d)
{
    if (d == NULL) {
        return;
    }
    for (struct inode *inode = d->inodes, *next; inode != NULL; inode = next) {
        next = inode->next;
        free(inode->data);
        free(inode);
    }
    free(d);
}

void sim_disk_die_in(struct sim_disk *d, uint32_t n)
{
    d->die_in = n;
}

void sim_disk_mute(struct sim_disk *d, bool mute)
{
    d->is_mute = mute;
}

void sim_disk_process_over(struct sim_disk *d)
{
    for (uint32_t i = 0; i < FILES_MAX; i++) {
        if (d->files[i].inode != NULL && d->files[i].has_lock) {
            d->files[i].inode->is_locked = false;
        }
        d->files[i] = (struct open_file){ NULL, 0, false };
    }
    d->die_in = 0;
    d->is_mute = false;
}

void sim_disk_power_cut(struct sim_disk *d)
{
    struct sim_rng *r = &d->sim->rng;
    const uint32_t n = rng_below(r, d->n_changes + 1);

    for (uint32_t i = 0; i < n; i++) {
        apply(&d->stable, &d->changes[i]);
    }
    d->live = d->stable;
    for (struct inode *inode = d->inodes; inode != NULL; inode = inode->next) {
        const size_t lost = inode->len - inode->n_synced;
        if (lost != 0) {
            inode->len = inode->n_synced + (size_t)(rng_u64(r) % (lost + 1));
        }
        inode->n_synced = inode->len;
    }
    settle(d);
    d->n_boots++;
}

void sim_disk_set_full(struct sim_disk *d, bool is_full)
{
    d->is_full = is_full;
}

bool sim_disk_is_full(const struct sim_disk *d)
{
    return d->is_full;
}

bool sim_disk_text(const struct sim_disk *d, const char *path, char *text_p, size_t bytes)
{
    const struct inode *inode = find(&d->live, path);

    if (inode == NULL || inode->len == 0) {
        return false;
    }
    snprintf(text_p, bytes, "%.*s", (int)inode->len, inode->data);
    return true;
}

uint64_t sim_disk_bytes(const struct sim_disk *d, const char *dir, uint32_t *n_files_p)
{
    uint64_t sum = 0;

    *n_files_p = 0;
    for (uint32_t i = 0; i < d->live.n; i++) {
        if (strncmp(d->live.at[i].path, dir, strlen(dir)) == 0) {
            sum += d->live.at[i].inode->len;
            *n_files_p += 1;
        }
    }
    return sum;
}

/* ---- what a process does ---- */

/* NULL: a path of the real machine. */
static struct sim_disk *disk_of(const char *path)
{
    const bool is_ours =
        strncmp(path, "/sim", 4) == 0 || strcmp(path, "/proc/sys/kernel/random/boot_id") == 0;

    return sim_now_running != NULL && is_ours ? sim_now_running->disk : NULL;
}

static struct open_file *file_of(int fd)
{
    return fd >= FD_FIRST ? &sim_now_running->disk->files[fd - FD_FIRST] : NULL;
}

enum effect { EFFECT_ALL, EFFECT_PART, EFFECT_NONE };

/* Of a change that is being made now. */
static enum effect effect_of(struct sim_disk *d)
{
    if (d->is_mute) {
        return EFFECT_NONE;
    }
    const bool may_die = d->sim->now_ns < d->sim->shape.healed_ns && !d->sim->is_stopping;
    if (may_die && d->die_in != 0 && --d->die_in == 0) {
        d->is_mute = true;
        serve_dies(d->sim);
        return EFFECT_PART;
    }
    return EFFECT_ALL;
}

static bool happens(struct sim_disk *d)
{
    const enum effect effect = effect_of(d);

    return effect == EFFECT_ALL || (effect == EFFECT_PART && rng_chance(&d->sim->rng, 500));
}

static struct inode *inode_make(struct sim_disk *d)
{
    struct inode *inode = calloc(1, sizeof(*inode));

    ASSERT(inode != NULL);
    inode->next = d->inodes;
    d->inodes = inode;
    return inode;
}

static void inode_write(struct inode *inode, size_t at, const void *data, size_t len)
{
    if (at + len > inode->cap) {
        inode->cap = (at + len) * 2;
        inode->data = realloc(inode->data, inode->cap);
        ASSERT(inode->data != NULL);
    }
    if (len != 0) {
        memcpy(inode->data + at, data, len);
    }
    inode->len = MAX(inode->len, at + len);
}

static int fd_make(struct sim_disk *d, struct inode *inode)
{
    for (int i = 0; i < FILES_MAX; i++) {
        if (d->files[i].inode == NULL) {
            d->files[i] = (struct open_file){ inode, 0, false };
            return FD_FIRST + i;
        }
    }
    sim_fail(d->sim, "the coordinator has %d files open", FILES_MAX);
    errno = EMFILE;
    return -1;
}

static int boot_id_open(struct sim_disk *d)
{
    struct inode *inode = inode_make(d);
    char text[32];
    const int n = snprintf(text, sizeof(text), "boot-%u\n", d->n_boots);

    inode_write(inode, 0, text, (size_t)n);
    return fd_make(d, inode);
}

static int disk_open(struct sim_disk *d, const char *path, int flags)
{
    struct inode *inode = find(&d->live, path);

    if (path[1] == 'p') {
        return boot_id_open(d);
    }
    if ((flags & O_DIRECTORY) != 0) {
        return fd_make(d, inode_make(d));
    }
    if (inode == NULL && (flags & O_CREAT) == 0) {
        errno = ENOENT;
        return -1;
    }
    if (inode == NULL && d->is_full) {
        errno = ENOSPC;
        return -1;
    }
    if (inode == NULL) {
        struct change c = change_of(CHANGE_CREATE, path, "");
        inode = c.inode = inode_make(d);
        if (happens(d)) {
            change(d, &c);
        }
    } else if ((flags & O_TRUNC) != 0 && happens(d)) {
        inode->len = inode->n_synced = 0;
    }
    return fd_make(d, inode);
}

int __wrap_open(const char *path, int flags, ...)
{
    struct sim_disk *d = disk_of(path);
    va_list ap;

    if (d != NULL) {
        return disk_open(d, path, flags);
    }
    va_start(ap, flags);
    const unsigned mode = va_arg(ap, unsigned);
    va_end(ap);
    return __real_open(path, flags, mode);
}

int __wrap_close(int fd)
{
    struct open_file *f = file_of(fd);

    if (f == NULL) {
        return __real_close(fd);
    }
    if (f->has_lock) {
        f->inode->is_locked = false;
    }
    *f = (struct open_file){ NULL, 0, false };
    return 0;
}

ssize_t __wrap_write(int fd, const void *data, size_t len)
{
    struct open_file *f = file_of(fd);
    struct sim_disk *d = f != NULL ? sim_now_running->disk : NULL;

    if (f == NULL) {
        return __real_write(fd, data, len);
    }
    if (d->is_full && !d->is_mute) {
        len = rng_chance(&d->sim->rng, 500) ? rng_u64(&d->sim->rng) % (len + 1) : 0;
        if (len == 0) {
            errno = ENOSPC;
            return -1;
        }
    }
    const enum effect effect = effect_of(d);
    size_t n = effect == EFFECT_NONE ? 0 : len;
    if (effect == EFFECT_PART) {
        n = (size_t)(rng_u64(&d->sim->rng) % (len + 1));
    }
    inode_write(f->inode, f->at, data, n);
    f->at += effect == EFFECT_ALL ? n : 0;
    return (ssize_t)len;
}

ssize_t __wrap_read(int fd, void *data, size_t len)
{
    struct open_file *f = file_of(fd);

    if (f == NULL) {
        return __real_read(fd, data, len);
    }
    const size_t n = MIN(len, f->inode->len - f->at);
    if (n != 0) {
        memcpy(data, f->inode->data + f->at, n);
    }
    f->at += n;
    return (ssize_t)n;
}

int __wrap_ftruncate(int fd, off_t len)
{
    struct open_file *f = file_of(fd);

    if (f == NULL) {
        return __real_ftruncate(fd, len);
    }
    if (happens(sim_now_running->disk)) {
        f->inode->len = MIN(f->inode->len, (size_t)len);
        f->inode->n_synced = MIN(f->inode->n_synced, f->inode->len);
    }
    return 0;
}

static int disk_sync(struct open_file *f)
{
    struct sim_disk *d = sim_now_running->disk;

    if (d->is_full && !d->is_mute && rng_chance(&d->sim->rng, 300)) {
        errno = EIO;
        return -1;
    }
    if (happens(d)) {
        f->inode->n_synced = f->inode->len;
        settle(d);
    }
    return 0;
}

int __wrap_fdatasync(int fd)
{
    struct open_file *f = file_of(fd);

    return f != NULL ? disk_sync(f) : __real_fdatasync(fd);
}

int __wrap_fsync(int fd)
{
    struct open_file *f = file_of(fd);

    return f != NULL ? disk_sync(f) : __real_fsync(fd);
}

int __wrap_fstat(int fd, struct stat *info)
{
    const struct open_file *f = file_of(fd);

    if (f == NULL) {
        return __real_fstat(fd, info);
    }
    memset(info, 0, sizeof(*info));
    info->st_mode = S_IFREG | 0600;
    info->st_size = (off_t)f->inode->len;
    info->st_uid = geteuid();
    return 0;
}

int __wrap_fchmod(int fd, mode_t mode)
{
    return file_of(fd) != NULL ? 0 : __real_fchmod(fd, mode);
}

int __wrap_flock(int fd, int how)
{
    struct open_file *f = file_of(fd);

    if (f == NULL) {
        return __real_flock(fd, how);
    }
    if (f->inode->is_locked) {
        errno = EWOULDBLOCK;
        return -1;
    }
    f->inode->is_locked = true;
    f->has_lock = true;
    return 0;
}

int __wrap_rename(const char *from, const char *to)
{
    struct sim_disk *d = disk_of(from);

    if (d == NULL) {
        return __real_rename(from, to);
    }
    if (find(&d->live, from) == NULL && !d->is_mute) {
        errno = ENOENT;
        return -1;
    }
    if (happens(d)) {
        const struct change c = change_of(CHANGE_RENAME, from, to);
        change(d, &c);
    }
    return 0;
}

int __wrap_unlink(const char *path)
{
    struct sim_disk *d = disk_of(path);

    if (d == NULL) {
        return __real_unlink(path);
    }
    if (find(&d->live, path) == NULL) {
        errno = ENOENT;
        return -1;
    }
    if (happens(d)) {
        const struct change c = change_of(CHANGE_UNLINK, path, "");
        change(d, &c);
    }
    return 0;
}

/* ---- folders: they are always there ---- */

int __wrap_mkdir(const char *path, mode_t mode)
{
    if (disk_of(path) == NULL) {
        return __real_mkdir(path, mode);
    }
    errno = EEXIST;
    return -1;
}

int __wrap_stat(const char *path, struct stat *info)
{
    if (disk_of(path) == NULL) {
        return __real_stat(path, info);
    }
    memset(info, 0, sizeof(*info));
    info->st_mode = S_IFDIR | 0700;
    info->st_uid = geteuid();
    return 0;
}

char *__wrap_realpath(const char *path, char *to)
{
    return disk_of(path) != NULL ? strdup(path) : __real_realpath(path, to);
}

DIR *__wrap_opendir(const char *path)
{
    struct sim_disk *d = disk_of(path);
    const size_t len = strlen(path);

    if (d == NULL) {
        return __real_opendir(path);
    }
    d->listed.n = d->i_listed = 0;
    for (uint32_t i = 0; i < d->live.n; i++) {
        const char *at = d->live.at[i].path;
        if (strncmp(at, path, len) == 0 && at[len] == '/' && strchr(at + len + 1, '/') == NULL) {
            put(&d->listed, at + len + 1, d->live.at[i].inode);
        }
    }
    return (DIR *)(void *)d;
}

struct dirent *__wrap_readdir(DIR *dir)
{
    struct sim_disk *d = sim_now_running != NULL ? sim_now_running->disk : NULL;

    if ((void *)dir != (void *)d) {
        return __real_readdir(dir);
    }
    if (d->i_listed == d->listed.n) {
        return NULL;
    }
    snprintf(d->entry.d_name, sizeof(d->entry.d_name), "%s", d->listed.at[d->i_listed++].path);
    return &d->entry;
}

int __wrap_closedir(DIR *dir)
{
    const struct sim_disk *d = sim_now_running != NULL ? sim_now_running->disk : NULL;

    return (void *)dir == (const void *)d ? 0 : __real_closedir(dir);
}
