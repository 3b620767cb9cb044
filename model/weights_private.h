/* model/weights_private.h - what weights.c, weights_read.c, weights_check.c and weights_digest.c
 * share. */
#ifndef MODEL_WEIGHTS_PRIVATE_H
#define MODEL_WEIGHTS_PRIVATE_H

#include "model/safetensors.h"
#include "model/weights.h"

#include <sys/types.h>

struct weights_file {
    char *name; /* inside the directory; owned */
    int fd;     /* owned; -1 before the file is open */
    uint64_t bytes;
    /* Identity when it was opened, for the digest's cache. */
    uint64_t device, inode;
    int64_t mtime_s, mtime_ns;
};

/* A tensor that stands in a file and cannot be read: another dtype, or too many dimensions. */
struct weights_foreign {
    const char *name; /* owned by the names below */
    char dtype_name[SAFETENSORS_DTYPE_BYTES];
    uint32_t n_dims;
};

struct weights {
    char *dir; /* as given; owned */
    uint32_t n_files;
    struct weights_file *files; /* [n_files] by name; owned */
    uint32_t n;
    struct weights_tensor *tensors; /* [n] by name; owned */
    uint32_t n_foreign;
    struct weights_foreign *foreign; /* [n_foreign] by name; owned */
    uint32_t n_names;
    char **names; /* [n_names], each owned: what tensors and foreign point to */
};

/* All of [offset, offset + bytes) of a file. ST_ERR_IO; ST_ERR_FORMAT when the file ends early. */
status weights_pread(const struct weights *w, uint32_t i_file, uint64_t offset, void *dst,
                     uint64_t bytes, struct err *err);

#endif
