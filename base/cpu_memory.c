/* base/cpu_memory.c - how much memory this process may still take: cpu_memory_bytes() of cpu.h.
 *
 * Three bounds, the smallest counts: MemAvailable of the machine, and for each cgroup from ours up
 * to the root its limit less what is used. Page cache on a cgroup's inactive list is given back
 * under pressure, so it counts as free: weights just read would otherwise count twice. A file that
 * is missing or unreadable sets no bound. */
#include "base/cpu.h"

#include "base/buf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 1024, FILE_BYTES_MAX = 1 << 20 };

/* The file names of one cgroup version. */
struct names {
    const char *mount, *limit, *used, *reclaimable;
};

static const struct names v2 = { "/sys/fs/cgroup", "memory.max", "memory.current",
                                 "inactive_file" };
static const struct names v1 = { "/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                 "memory.usage_in_bytes", "total_inactive_file" };

static bool read_text(const char *root, const char *path, const char *name, struct buf *text)
{
    char full[PATH_BYTES];
    const int n =
        snprintf(full, sizeof(full), "%s%s%s%s", root, path, name[0] != '\0' ? "/" : "", name);

    return n > 0 && (size_t)n < sizeof(full) &&
           buf_read_file(text, full, FILE_BYTES_MAX, NULL) == ST_OK;
}

static bool read_number(const char *root, const char *path, const char *name, uint64_t *value_p)
{
    struct buf text = BUF_INIT;
    bool ok = false;

    if (read_text(root, path, name, &text)) {
        ok = sscanf(text.data, "%" SCNu64, value_p) == 1; /* "max" is no number and no bound */
    }
    buf_fini(&text);
    return ok;
}

/* The number behind `key` at the start of a line. */
static bool find_number(const char *text, const char *key, uint64_t *value_p)
{
    const size_t len = strlen(key);

    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, len) == 0 && strchr(": \t", line[len]) != NULL) {
            return sscanf(line + len, "%*[: \t]%" SCNu64, value_p) == 1;
        }
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return false;
}

static uint64_t group_free(const char *root, const struct names *names, const char *path)
{
    struct buf text = BUF_INIT;
    uint64_t limit, used = 0, reclaimable = 0;

    if (!read_number(root, path, names->limit, &limit)) {
        return UINT64_MAX;
    }
    if (!read_number(root, path, names->used, &used)) {
        used = 0;
    }
    if (read_text(root, path, "memory.stat", &text)) {
        (void)find_number(text.data, names->reclaimable, &reclaimable);
    }
    buf_fini(&text);
    used -= MIN(used, reclaimable);
    return limit > used ? limit - used : 0;
}

/* The least free of the groups from `group` up to the root of the mount. In a container the path of
 * /proc/self/cgroup often does not exist under the mount; the root, which is always visited, is
 * then the container's own group. */
static uint64_t least_free(const char *root, const struct names *names, const char *group)
{
    char path[PATH_BYTES];
    uint64_t least = UINT64_MAX;
    const size_t base = strlen(names->mount);
    const int n = snprintf(path, sizeof(path), "%s%s", names->mount, group);

    if (n < 0 || (size_t)n >= sizeof(path)) {
        return UINT64_MAX;
    }
    for (;;) {
        const uint64_t here = group_free(root, names, path);
        least = MIN(least, here);
        char *slash = strrchr(path + base, '/');
        if (slash == NULL) {
            return least;
        }
        *slash = '\0';
    }
}

/* A line of /proc/self/cgroup is "id:controllers:path"; v2 has no controllers in it. */
static uint64_t line_free(const char *root, char *line)
{
    char *controllers = strchr(line, ':');
    char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;

    if (path == NULL) {
        return UINT64_MAX;
    }
    *path++ = '\0';
    controllers++;
    if (controllers[0] == '\0') {
        return least_free(root, &v2, path);
    }
    char *save = NULL;
    for (char *word = strtok_r(controllers, ",", &save); word != NULL;
         word = strtok_r(NULL, ",", &save)) {
        if (strcmp(word, "memory") == 0) {
            return least_free(root, &v1, path);
        }
    }
    return UINT64_MAX;
}

uint64_t cpu_memory_bytes_under(const char *root)
{
    struct buf text = BUF_INIT;
    uint64_t least = UINT64_MAX, available_kib;

    if (read_text(root, "/proc/meminfo", "", &text) &&
        find_number(text.data, "MemAvailable", &available_kib)) {
        least = available_kib * 1024;
    }
    if (read_text(root, "/proc/self/cgroup", "", &text)) {
        char *save = NULL;
        for (char *line = strtok_r(text.data, "\n", &save); line != NULL;
             line = strtok_r(NULL, "\n", &save)) {
            const uint64_t group = line_free(root, line);
            least = MIN(least, group);
        }
    }
    buf_fini(&text);
    return least;
}

uint64_t cpu_memory_bytes(void)
{
    const uint64_t bytes = cpu_memory_bytes_under("");

    if (bytes != UINT64_MAX) {
        return bytes;
    }
    /* No /proc: what is installed is the best that is known. */
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}
