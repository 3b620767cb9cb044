/* tests/fault/board.c - who made a call, and must it fail? See board.h.
 *
 * Roles (GANTRY_FAULT_ROLE): a word is the first argument of the program that is meant ("serve", "batch");
 * "leader" is rank 0 of an MPI job, "rank1" its rank 1. Everything here may run inside malloc: no
 * allocation, no lock. */
#include "board.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <unwind.h>

enum owner { OURS, CLEAR, FOREIGN, SELF };

static struct fault_board *board; /* NULL: another process is meant */
static bool is_child;
static const void *self_map;
static _Thread_local bool is_inside __attribute__((tls_model("initial-exec")));

/* ---- who we are ---- */

static bool role_fits(const char *role)
{
    char line[256] = "";
    const int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd >= 0 ? read(fd, line, sizeof(line) - 1) : 0;
    const char *word = line + strlen(line) + 1; /* argv[1] */
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    const size_t name = strlen(line);

    if (fd >= 0) {
        close(fd);
    }
    if (n <= 0 || word >= line + n || name < 6 || strcmp(line + name - 6, "gantry") != 0) {
        return false;
    }
    if (strcmp(role, "leader") == 0) {
        role = "rank0";
    }
    if (strncmp(role, "rank", 4) == 0) {
        return strcmp(word, "worker") == 0 && rank != NULL && strcmp(rank, role + 4) == 0;
    }
    return strcmp(word, role) == 0;
}

static void in_child(void)
{
    is_child = true;
}

__attribute__((constructor)) static void begin(void)
{
    static char out[BUFSIZ];
    const char *path = getenv("GANTRY_FAULT_FILE"), *role = getenv("GANTRY_FAULT_ROLE");
    struct dl_find_object found;

    if (path == NULL || role == NULL || !role_fits(role)) {
        return;
    }
    if (_dl_find_object((void *)(uintptr_t)begin, &found) == 0) {
        self_map = found.dlfo_link_map;
    }
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    void *at = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) {
        return;
    }
    /* What the C library makes once and keeps is made now: it would go by the name of who comes first. */
    tzset();
    setvbuf(stdout, out, _IOFBF, sizeof(out));
    pthread_atfork(NULL, NULL, in_child);
    live_begin(path);
    board = at;
}

bool fault_is_on(void)
{
    return board != NULL && !is_child;
}

/* ---- whose call ---- */

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

/* The owner of a code address; *name_p is its library's file name, *place_p where it is in there. */
static enum owner owner_of(const void *at, const char **name_p, uint32_t *place_p)
{
    static const char *const clear[] = { "libc.so",  "ld-linux",    "libjansson", "libprotobuf-c",
                                         "libpcre2", "libutf8proc", "libpthread", "libdl.so" };
    struct dl_find_object found;

    *name_p = "unknown";
    *place_p = 0;
    if (_dl_find_object((void *)(uintptr_t)at, &found) != 0) {
        return FOREIGN;
    }
    const struct link_map *map = found.dlfo_link_map;
    *place_p = (uint32_t)((uintptr_t)at - (uintptr_t)map->l_addr);
    *name_p = file_name(map->l_name);
    if (map == self_map) {
        return SELF;
    }
    if (map->l_name[0] == '\0') {
        return OURS;
    }
    for (size_t i = 0; i < sizeof(clear) / sizeof(clear[0]); i++) {
        if (strncmp(*name_p, clear[i], strlen(clear[i])) == 0) {
            return CLEAR;
        }
    }
    return FOREIGN;
}

struct origin {
    const char *library; /* "" : ours */
    uint32_t frames[FAULT_FRAMES];
};

struct walk {
    struct origin o;
    uint32_t n, top; /* frames that are ours; the outermost clear one */
    const char *top_name;
};

/* One frame outwards; whatever else calls our functions is not asked any more. */
static _Unwind_Reason_Code step(struct _Unwind_Context *frame, void *arg)
{
    struct walk *w = arg;
    const char *name;
    uint32_t place;
    const enum owner who = owner_of((void *)_Unwind_GetIP(frame), &name, &place);

    if (who == OURS) {
        w->o.frames[w->n++] = place;
        return w->n < FAULT_FRAMES ? _URC_NO_REASON : _URC_NORMAL_STOP;
    }
    if (who != FOREIGN && w->n > 0) {
        return _URC_NO_REASON; /* ours, called back by a clear one */
    }
    if (w->n > 0) {
        return _URC_NORMAL_STOP;
    }
    if (who == FOREIGN) {
        w->o.library = name;
        w->o.frames[0] = place;
        return _URC_NORMAL_STOP;
    }
    if (who == CLEAR) {
        w->top = place;
        w->top_name = name;
    }
    return _URC_NO_REASON;
}

/* Looks through this library and the clear ones. */
static struct origin origin_of(const void *caller)
{
    struct walk w = { .o.library = "" };
    uint32_t place;
    const char *name;

    if (owner_of(caller, &name, &place) == FOREIGN) {
        w.o.library = name;
        w.o.frames[0] = place;
        return w.o;
    }
    _Unwind_Backtrace(step, &w);
    if (w.o.frames[0] == 0) { /* a thread of the C library's own */
        w.o.library = w.top_name != NULL ? w.top_name : "unknown";
        w.o.frames[0] = w.top;
    }
    return w.o;
}

/* ---- sites ---- */

static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    const unsigned char *bytes = data;

    for (size_t i = 0; i < n; i++) {
        h = (h ^ bytes[i]) * 0x100000001b3u; /* FNV-1a */
    }
    return h;
}

static uint64_t id_of(const char *call, const struct origin *o)
{
    uint64_t h = mix(0xcbf29ce484222325u, call, strlen(call));

    h = mix(h, o->library, strlen(o->library));
    h = mix(h, o->frames, sizeof(o->frames));
    return h != 0 ? h : 1;
}

/* NULL if there is no room. */
static struct fault_site *site_of(uint64_t id)
{
    for (uint64_t k = 0; k < FAULT_SITES; k++) {
        struct fault_site *s = &board->sites[(id + k) % FAULT_SITES];
        uint64_t none = 0;
        if (atomic_load(&s->id) == id || atomic_compare_exchange_strong(&s->id, &none, id) ||
            none == id) {
            return s;
        }
    }
    atomic_fetch_add(&board->n_lost, 1);
    return NULL;
}

static void count(struct fault_site *s, const char *call, const struct origin *o)
{
    if (atomic_fetch_add(&s->calls, 1) == 0 && atomic_load(&s->is_named) == 0) {
        strncpy(s->call, call, sizeof(s->call) - 1);
        strncpy(s->library, o->library, sizeof(s->library) - 1);
        memcpy(s->frames, o->frames, sizeof(s->frames));
        atomic_store(&s->is_named, 1);
    }
}

static int strike(struct fault_site *s)
{
    if (atomic_load(&s->countdown) <= 0 || atomic_fetch_sub(&s->countdown, 1) != 1) {
        return 0;
    }
    if (atomic_fetch_sub(&s->again, 1) > 0) {
        atomic_store(&s->countdown, 1);
    }
    atomic_store(&board->pid, (uint64_t)getpid());
    atomic_fetch_add(&s->hits, 1);
    atomic_fetch_add(&board->hits, 1);
    return (int)atomic_load(&s->error);
}

int fault_alloc_now(const char *call, const void *caller, uint64_t *site_p)
{
    *site_p = 0;
    if (board == NULL || is_inside) {
        return 0;
    }
    is_inside = true;
    const struct origin o = origin_of(caller);
    const uint64_t id = id_of(call, &o);
    struct fault_site *s = site_of(id);
    int error = 0;
    if (s != NULL) {
        count(s, call, &o);
        error = strike(s);
    }
    is_inside = false;
    *site_p = o.library[0] == '\0' ? id : 0;
    return error;
}

int fault_now(const char *call, const void *caller)
{
    uint64_t site;

    return fault_alloc_now(call, caller, &site);
}
