/* cluster/coll_device.h - collectives on memory of a device, over a coll in host memory.
 *
 *   coll_staged   copy out, inner coll, copy in: any device, ranks may share one, slow
 *   coll_nccl     NCCL between the devices, queued on the step's stream, no host in between; small
 *                 sums of devices of one host over each other's memory instead (coll_nccl_peer.c)
 *
 * Both pass messages in host memory (plans, results, digests) to the inner coll as they are, and
 * give the same bits: the ordered tree of coll.h. The inner coll is borrowed and must outlive the
 * outer one; whoever holds the outer one sets `timeout_ns`, `split_bytes` and `abort` there.
 *
 * cluster does not know kernels/: what it needs of the device comes as function pointers, with the
 * signatures of the slots of kern_ops. */
#ifndef CLUSTER_COLL_DEVICE_H
#define CLUSTER_COLL_DEVICE_H

#include "cluster/coll.h"

/* Alignment of every pointer given to `add`, in floats. */
enum { COLL_ALIGN_FLOATS = 16 };

struct kern_peers; /* kernels/kern.h */

struct coll_device {
    struct kern_stream *stream; /* borrowed; of the rank that calls */
    void *raw;                  /* the stream as NCCL wants it (cudaStream_t); coll_nccl only */
    /* dst[n] = a[n] + b[n], queued on the stream. */
    void (*add)(struct kern_stream *s, float *dst, const float *a, const float *b, size_t n);
    void (*copy_in)(struct kern_stream *s, void *dst, const void *src_host, size_t bytes);
    void (*copy_out)(struct kern_stream *s, void *dst_host, const void *src, size_t bytes);
    status (*sync)(struct kern_stream *s, struct err *err);
    /* Is the stream's work done? ST_BUSY if not, never blocks. NULL: only `sync` can say. */
    status (*poll)(struct kern_stream *s, struct err *err);
    /* The same of a mark of the stream; together with `poll`. */
    status (*mark_poll)(struct kern_stream *s, uint32_t mark, struct err *err);
    /* Host memory that the device copies from and to at full speed. */
    status (*host_alloc)(struct kern_stream *s, size_t bytes, void **mem_p, struct err *err);
    void (*host_free)(struct kern_stream *s, void *mem, size_t bytes);
    /* Device memory for partial sums, borrowed; coll_nccl only, at least 64 bytes x tp. Its size
     * decides about speed, not about bits. */
    void *scratch;
    size_t scratch_bytes;
    size_t bytes_max; /* the largest message in device memory; coll_staged only */
    /* Small sums over mapped memory, where devices reach each other's; peers_create NULL: none. As in
     * kernels/kern.h; peer_floats and peer_id_bytes are its KERN_PEER_FLOATS and KERN_PEER_ID_BYTES. */
    status (*peers_create)(struct kern_stream *s, uint32_t n, uint32_t self,
                           struct kern_peers **peers_p, void *id, struct err *err);
    status (*peers_open)(struct kern_stream *s, struct kern_peers *peers, const void *ids,
                         struct err *err);
    void (*peers_sum)(struct kern_stream *s, struct kern_peers *peers, float *x, size_t n);
    status (*peers_check)(const struct kern_peers *peers, struct err *err);
    void (*peers_abort)(struct kern_peers *peers);
    void (*peers_destroy)(struct kern_stream *s, struct kern_peers *peers);
    size_t peer_floats, peer_id_bytes;
};

/* Four host buffers of dev->bytes_max are taken here. ST_ERR_NOMEM. */
status coll_staged_create(struct coll *inner, const struct coll_device *dev, struct coll **coll_p,
                          struct err *err);

struct coll_nccl_api; /* coll_nccl.h */

struct coll_nccl_config {
    struct coll_device device;
    /* Sum by ncclAllReduce, whose order of additions is NCCL's own: other bits, another profile. */
    bool free_order;
    const struct coll_nccl_api *api; /* NULL: the library, found at run time */
};

/* Is there a library to load, and which? ST_ERR_UNSUPPORTED says what is missing. `text` gets
 * "NCCL 2.28.9". */
status coll_nccl_find(char text[64], struct err *err);
/* Makes the communicators: all ranks call it together; bounded by inner->timeout_ns. */
status coll_nccl_create(struct coll *inner, const struct coll_nccl_config *config,
                        struct coll **coll_p, struct err *err);

#endif
