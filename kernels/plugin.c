/* kernels/plugin.c - see plugin.h. */
#include "kernels/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEVICES_MAX = 64 };

static struct kern_ops tables[DEVICES_MAX]; /* filled by the first call for a device */

/* Folder of the running program, without the slash at its end. */
static status program_dir(char dir[PATH_MAX], struct err *err)
{
    const ssize_t n = readlink("/proc/self/exe", dir, PATH_MAX - 1);
    char *slash;

    if (n < 0) {
        return err_set(err, ST_ERR_NOT_FOUND, "/proc/self/exe cannot be read, so %s is not found",
                       KERN_PLUGIN_FILE);
    }
    dir[n] = '\0';
    slash = strrchr(dir, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
    return ST_OK;
}

/* The first of the three places that has the library. */
static status find(char path[PATH_MAX], struct err *err)
{
    static const char *const places[] = { "", "../lib/gantry/", "../" };
    char dir[PATH_MAX];
    const status st = program_dir(dir, err);

    if (st != ST_OK) {
        return st;
    }
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        const int n = snprintf(path, PATH_MAX, "%s/%s%s", dir, places[i], KERN_PLUGIN_FILE);

        if (n > 0 && n < PATH_MAX && access(path, R_OK) == 0) {
            return ST_OK;
        }
    }
    return err_set(err, ST_ERR_NOT_FOUND,
                   "this build has no CUDA kernels: %s is not in %s, its ../lib/gantry or its ..",
                   KERN_PLUGIN_FILE, dir);
}

/* Load the library and compare builds. It is never unloaded: tables point into it. */
static status load(const char *path, const struct kern_plugin **plugin_p, struct err *err)
{
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct kern_plugin *plugin = NULL;

    if (lib == NULL) {
        const char *why = dlerror();

        return err_set(err, ST_ERR_NOT_FOUND, "CUDA kernels cannot be loaded: %s",
                       why != NULL ? why : path);
    }
    plugin = dlsym(lib, KERN_PLUGIN_SYMBOL);
    if (plugin == NULL) {
        dlclose(lib);
        return err_set(err, ST_ERR_MISMATCH, "%s has no symbol %s", path, KERN_PLUGIN_SYMBOL);
    }
    if (plugin->abi != KERN_PLUGIN_ABI || plugin->ops_bytes != sizeof(struct kern_ops)) {
        err_set(err, ST_ERR_MISMATCH,
                "%s is of another build: table version %u of %u bytes, this program has version %u "
                "of %zu bytes",
                path, plugin->abi, plugin->ops_bytes, (unsigned int)KERN_PLUGIN_ABI,
                sizeof(struct kern_ops));
        dlclose(lib);
        return ST_ERR_MISMATCH;
    }
    *plugin_p = plugin;
    return ST_OK;
}

status kern_ops_cuda_from(const char *path, uint32_t device, const struct kern_ops **ops_p,
                          struct err *err)
{
    const struct kern_plugin *plugin = NULL;
    struct kern_ops ops = { 0 };
    status st;

    if (device >= DEVICES_MAX) {
        return err_set(err, ST_ERR_NOT_FOUND, "CUDA device %u: numbers end at %d", device,
                       DEVICES_MAX - 1);
    }
    if (tables[device].name == NULL) {
        st = load(path, &plugin, err);
        if (st == ST_OK) {
            st = plugin->open(device, &ops, err);
        }
        if (st != ST_OK) {
            return st;
        }
        tables[device] = ops;
    }
    *ops_p = &tables[device];
    return ST_OK;
}

status kern_ops_cuda(uint32_t device, const struct kern_ops **ops_p, struct err *err)
{
    char path[PATH_MAX];
    const status st = find(path, err);

    return st != ST_OK ? st : kern_ops_cuda_from(path, device, ops_p, err);
}
