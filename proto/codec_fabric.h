/* proto/codec_fabric.h - gantry.v1.SelfTest, which Ready and ReplicaStatus both carry. Private to
 * codec_*.c. */
#ifndef PROTO_CODEC_FABRIC_H
#define PROTO_CODEC_FABRIC_H

#include "proto/msg.h"

struct Gantry__V1__SelfTest;

/* In `arena`; *test_p NULL where no link was tested. ST_ERR_NOMEM. */
status pb_self_test_fill(const struct msg_self_test *m, struct arena *arena,
                         struct Gantry__V1__SelfTest **test_p);
/* in NULL: all zero. ST_ERR_PROTO. */
status pb_self_test_read(const struct Gantry__V1__SelfTest *in, struct msg_self_test *m_p,
                         struct err *err);

#endif
