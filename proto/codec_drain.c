/* proto/codec_drain.c - gantry.control.v1: Drain, for operators. */
#include "proto/codec_pb.h"

#include "control.pb-c.h"

status msg_drain_pack(const struct msg_drain *m, struct buf *out)
{
    Gantry__Control__V1__DrainRequest r = GANTRY__CONTROL__V1__DRAIN_REQUEST__INIT;

    r.replica = m->replica;
    r.restart = m->restart;
    r.grace_us = m->grace_us;
    return pb_pack(&r.base, out);
}

status msg_drain_unpack(const void *data, size_t len, struct arena *arena, struct msg_drain *m_p,
                        struct err *err)
{
    void *in;
    const status st = pb_unpack(&gantry__control__v1__drain_request__descriptor, data, len, arena,
                                NULL, &in, err);

    if (st == ST_OK) {
        const Gantry__Control__V1__DrainRequest *r = in;
        *m_p = (struct msg_drain){ r->replica, r->restart != 0, r->grace_us };
    }
    return st;
}

status msg_drain_progress_pack(const struct msg_drain_progress *m, struct buf *out)
{
    Gantry__Control__V1__DrainProgress r = GANTRY__CONTROL__V1__DRAIN_PROGRESS__INIT;

    r.state = pb_text(m->state);
    r.streams = m->streams;
    r.generation = m->generation;
    return pb_pack(&r.base, out);
}

status msg_drain_progress_unpack(const void *data, size_t len, struct arena *arena,
                                 struct msg_drain_progress *m_p, struct err *err)
{
    void *in;
    const status st = pb_unpack(&gantry__control__v1__drain_progress__descriptor, data, len, arena,
                                NULL, &in, err);

    if (st == ST_OK) {
        const Gantry__Control__V1__DrainProgress *r = in;
        *m_p = (struct msg_drain_progress){ r->state, r->streams, r->generation };
    }
    return st;
}
