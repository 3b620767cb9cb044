/* proto/codec_health.c - grpc.health.v1. */
#include "proto/codec_pb.h"

#include "health.pb-c.h"

status msg_health_request_pack(const char *service, struct buf *out)
{
    Grpc__Health__V1__HealthCheckRequest r = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;

    r.service = pb_text(service);
    return pb_pack(&r.base, out);
}

status msg_health_request_unpack(const void *data, size_t len, struct arena *arena,
                                 const char **service_p, struct err *err)
{
    void *in;
    const status st = pb_unpack(&grpc__health__v1__health_check_request__descriptor, data, len,
                                arena, NULL, &in, err);

    if (st == ST_OK) {
        *service_p = ((Grpc__Health__V1__HealthCheckRequest *)in)->service;
    }
    return st;
}

/* enum health_state has the numbers of ServingStatus. */
status msg_health_response_pack(enum health_state state, struct buf *out)
{
    Grpc__Health__V1__HealthCheckResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

    r.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)state;
    return pb_pack(&r.base, out);
}

status msg_health_response_unpack(const void *data, size_t len, struct arena *arena,
                                  enum health_state *state_p, struct err *err)
{
    void *in;
    const status st = pb_unpack(&grpc__health__v1__health_check_response__descriptor, data, len,
                                arena, NULL, &in, err);

    if (st == ST_OK) {
        *state_p = (enum health_state)((Grpc__Health__V1__HealthCheckResponse *)in)->status;
    }
    return st;
}
