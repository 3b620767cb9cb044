/* tests/replica/fake_device.h - a device made of CPU kernels, as unforgiving as a real one.
 *
 * A wrapper around a CPU table that proves, without a GPU, that worker code keeps to the rules of
 * kern.h for devices:
 *
 *   device memory   mem_alloc gives addresses without any access right; the bytes lie elsewhere. A
 *                   host that reads or writes one dies of it, and so does an op that is given host
 *                   memory where device memory is due (and the other way round)
 *   queued ops      nothing is computed when an op is called: FAKE_LAZY does it inside stream_sync
 *                   (or the second stream_poll in a row), FAKE_THREAD in a thread of the stream
 *   copies          copy_in takes its bytes at once; copy_in_later, scan_rows and packing from
 *                   pinned memory read it when their turn comes; the target of copy_out holds
 *                   garbage until then
 *   marks           a wait for one runs, or lets run, what was queued before it and no more
 *   recordings      between graph_begin and graph_end only what kern.h allows may be called
 *
 * FAKE_PEERS_REFUSE in the environment: of 4 and of 8 ranks one cannot map the others' windows.
 * What breaks a rule ends the program with a sentence. One process has one window of device memory
 * for all its streams; it begins again when everything was freed. */
#ifndef TESTS_REPLICA_FAKE_DEVICE_H
#define TESTS_REPLICA_FAKE_DEVICE_H

#include "kernels/kern.h"

enum fake_mode { FAKE_LAZY, FAKE_THREAD };

struct fake_counts {
    uint64_t ops, syncs, graphs, launches; /* of all streams */
    uint64_t gaps;      /* launches of recordings on a stream with nothing to do */
    uint64_t peer_sums; /* queued or recorded */
};

/* The table over `base`. Static; to be called while no stream of it lives. */
const struct kern_ops *fake_device_ops(const struct kern_ops *base, enum fake_mode mode);
/* Since the last fake_device_ops. */
void fake_device_counts(struct fake_counts *counts_p);

/* ---- for libraries that queue on a stream themselves (fake_nccl.c) ---- */

enum { FAKE_BLOB_BYTES = 1024 };
/* Queue, or record, a call of `run` with a copy of `blob`. `stream`: what the slot `native` gave. */
void fake_device_queue(void *stream, void (*run)(void *blob), const void *blob, size_t bytes);
/* The bytes behind device memory; only inside a queued call. */
void *fake_device_bytes(const void *device);

#endif
