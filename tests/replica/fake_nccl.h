/* tests/replica/fake_nccl.h - NCCL's part of coll_nccl.h, between the threads of one process, on
 * streams of the fake device.
 *
 * Calls are queued on the stream and run in its thread (FAKE_THREAD): a send holds the stream up
 * until it was received, as the real one may. Communicators are non-blocking: every call answers
 * "in progress" first. The free sum adds in descending order, so that it differs from the tree. */
#ifndef TESTS_REPLICA_FAKE_NCCL_H
#define TESTS_REPLICA_FAKE_NCCL_H

#include "cluster/coll_nccl.h"

/* Static. To be called while no communicator is in use: forgets those of before. */
const struct coll_nccl_api *fake_nccl_api(void);

#endif
