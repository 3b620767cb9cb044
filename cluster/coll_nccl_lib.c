/* cluster/coll_nccl_lib.c - libnccl.so.2, found at run time, as the table of coll_nccl.h.
 *
 * The header is asked for at build time (GANTRY_NCCL), the library at run time; without the former
 * this file only says so. GANTRY_NCCL_LIB in the environment names another file. Needed: 2.18, the
 * first whose non-blocking communicators can be finalised and aborted as coll_nccl.c does. */
#include "cluster/coll_nccl.h"

#include <stdio.h>
#include <stdlib.h>

#ifdef GANTRY_NCCL

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <string.h>

enum { VERSION_MIN = 21800 };

_Static_assert((int)COLL_NCCL_OK == (int)ncclSuccess, "NCCL's code of success");
_Static_assert((int)COLL_NCCL_BUSY == (int)ncclInProgress, "NCCL's code of a call under way");
_Static_assert(COLL_NCCL_ID_BYTES == NCCL_UNIQUE_ID_BYTES, "NCCL's id");

/* The library's own functions, by their own types. */
static struct {
    __typeof__(ncclGetVersion) *get_version;
    __typeof__(ncclGetUniqueId) *get_unique_id;
    __typeof__(ncclCommInitRankConfig) *comm_init;
    __typeof__(ncclCommGetAsyncError) *comm_state;
    __typeof__(ncclCommFinalize) *comm_finalize;
    __typeof__(ncclCommDestroy) *comm_destroy;
    __typeof__(ncclCommAbort) *comm_abort;
    __typeof__(ncclGroupStart) *group_start;
    __typeof__(ncclGroupEnd) *group_end;
    __typeof__(ncclSend) *send;
    __typeof__(ncclRecv) *recv;
    __typeof__(ncclAllGather) *all_gather;
    __typeof__(ncclAllReduce) *all_reduce;
    __typeof__(ncclGetErrorString) *error_text;
    __typeof__(ncclGetLastError) *last_error;
} lib;

static struct coll_nccl_api api; /* written once, by load */
static struct err load_err;
static pthread_once_t load_once = PTHREAD_ONCE_INIT;

static int lib_unique_id(void *id)
{
    ncclUniqueId made;
    const ncclResult_t code = lib.get_unique_id(&made);

    if (code == ncclSuccess) {
        memcpy(id, &made, sizeof(made));
    }
    return (int)code;
}

static int lib_comm_init(void **comm_p, uint32_t n_ranks, const void *id, uint32_t rank)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId copy;
    ncclComm_t comm = NULL;

    config.blocking = 0;
    memcpy(&copy, id, sizeof(copy));
    const ncclResult_t code = lib.comm_init(&comm, (int)n_ranks, copy, (int)rank, &config);
    *comm_p = comm;
    return (int)code;
}

static int lib_comm_state(void *comm)
{
    ncclResult_t state = ncclSuccess;
    const ncclResult_t code = lib.comm_state(comm, &state);

    return (int)(code != ncclSuccess ? code : state);
}

static int lib_comm_finalize(void *comm)
{
    return (int)lib.comm_finalize(comm);
}

static int lib_comm_destroy(void *comm)
{
    return (int)lib.comm_destroy(comm);
}

static int lib_comm_abort(void *comm)
{
    return (int)lib.comm_abort(comm);
}

static int lib_group_start(void)
{
    return (int)lib.group_start();
}

static int lib_group_end(void)
{
    return (int)lib.group_end();
}

static int lib_send(const void *data, size_t bytes, uint32_t peer, void *comm, void *stream)
{
    return (int)lib.send(data, bytes, ncclUint8, (int)peer, comm, stream);
}

static int lib_recv(void *data, size_t bytes, uint32_t peer, void *comm, void *stream)
{
    return (int)lib.recv(data, bytes, ncclUint8, (int)peer, comm, stream);
}

static int lib_all_gather(const void *mine, void *all, size_t bytes, void *comm, void *stream)
{
    return (int)lib.all_gather(mine, all, bytes, ncclUint8, comm, stream);
}

static int lib_all_reduce_f32(const float *in, float *out, size_t n, void *comm, void *stream)
{
    return (int)lib.all_reduce(in, out, n, ncclFloat32, ncclSum, comm, stream);
}

static const char *lib_error_text(int code)
{
    return lib.error_text((ncclResult_t)code);
}

static const char *lib_last_error(void *comm)
{
    const char *text = lib.last_error(comm);
    return text != NULL ? text : "";
}

struct symbol {
    const char *name;
    void *at; /* a function pointer's address */
};

static status find_symbols(void *handle, const char *file)
{
    const struct symbol symbols[] = {
        { "ncclGetVersion", &lib.get_version },
        { "ncclGetUniqueId", &lib.get_unique_id },
        { "ncclCommInitRankConfig", &lib.comm_init },
        { "ncclCommGetAsyncError", &lib.comm_state },
        { "ncclCommFinalize", &lib.comm_finalize },
        { "ncclCommDestroy", &lib.comm_destroy },
        { "ncclCommAbort", &lib.comm_abort },
        { "ncclGroupStart", &lib.group_start },
        { "ncclGroupEnd", &lib.group_end },
        { "ncclSend", &lib.send },
        { "ncclRecv", &lib.recv },
        { "ncclAllGather", &lib.all_gather },
        { "ncclAllReduce", &lib.all_reduce },
        { "ncclGetErrorString", &lib.error_text },
        { "ncclGetLastError", &lib.last_error },
    };

    for (size_t i = 0; i < ARRAY_LEN(symbols); i++) {
        void *found = dlsym(handle, symbols[i].name);
        if (found == NULL) {
            return err_set(&load_err, ST_ERR_UNSUPPORTED, "%s has no %s; NCCL 2.18 is needed", file,
                           symbols[i].name);
        }
        memcpy(symbols[i].at, &found, sizeof(found)); /* POSIX's way around C's rule */
    }
    return ST_OK;
}

static void load(void)
{
    const char *other = getenv("GANTRY_NCCL_LIB");
    const char *file = other != NULL ? other : "libnccl.so.2";
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    int version = 0;

    if (handle == NULL) {
        err_set(&load_err, ST_ERR_UNSUPPORTED, "NCCL cannot be loaded: %s", dlerror());
        return;
    }
    if (find_symbols(handle, file) != ST_OK) {
        return;
    }
    const ncclResult_t code = lib.get_version(&version);
    if (code != ncclSuccess || version < VERSION_MIN) {
        err_set(&load_err, ST_ERR_UNSUPPORTED, "%s is NCCL version %d, at least %d is needed", file,
                version, VERSION_MIN);
        return;
    }
    api = (struct coll_nccl_api){
        .unique_id = lib_unique_id,
        .comm_init = lib_comm_init,
        .comm_state = lib_comm_state,
        .comm_finalize = lib_comm_finalize,
        .comm_destroy = lib_comm_destroy,
        .comm_abort = lib_comm_abort,
        .group_start = lib_group_start,
        .group_end = lib_group_end,
        .send = lib_send,
        .recv = lib_recv,
        .all_gather = lib_all_gather,
        .all_reduce_f32 = lib_all_reduce_f32,
        .error_text = lib_error_text,
        .last_error = lib_last_error,
    };
    snprintf(api.version, sizeof(api.version), "%d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
}

status coll_nccl_api_load(const struct coll_nccl_api **api_p, struct err *err)
{
    pthread_once(&load_once, load);
    if (api.unique_id == NULL) {
        return err_set(err, load_err.code, "%s", load_err.text);
    }
    *api_p = &api;
    return ST_OK;
}

#else

status coll_nccl_api_load(const struct coll_nccl_api **api_p UNUSED, struct err *err)
{
    return err_set(err, ST_ERR_UNSUPPORTED,
                   "this Gantry was built without NCCL's header (nccl.h); --data-plane mpi goes "
                   "without NCCL");
}

#endif

status coll_nccl_find(char text[64], struct err *err)
{
    const struct coll_nccl_api *found = NULL;
    const status st = coll_nccl_api_load(&found, err);

    if (found != NULL) {
        snprintf(text, 64, "NCCL %.31s", found->version);
    }
    return st;
}
