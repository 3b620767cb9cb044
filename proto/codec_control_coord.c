/* proto/codec_control_coord.c - gantry.control.v1, the coordinator's side of what is said. */
#include "proto/codec_pb.h"

#include "control.pb-c.h"

#include <string.h>

/* protobuf-c's structs lack const and never write through a pointer while packing. */
static uint32_t *ids_out(const uint32_t *ids)
{
    union {
        const uint32_t *in;
        uint32_t *out;
    } u = { ids };

    return u.out;
}

/* A Submit's biases as they travel. */
struct biases_out {
    uint32_t ids[MSG_BIASES_MAX];
    float biases[MSG_BIASES_MAX];
};

static void submit_fill(const struct msg_submit *m, struct biases_out *out,
                        Gantry__Control__V1__Submit *s)
{
    gantry__control__v1__submit__init(s);
    s->stream = m->stream;
    s->attempt = m->attempt;
    s->n_prompt = m->n_prompt;
    s->prompt = ids_out(m->prompt);
    s->n_emitted = m->n_emitted;
    s->emitted = ids_out(m->emitted);
    s->max_tokens = m->max_tokens;
    s->temperature = m->temperature;
    s->top_k = m->top_k;
    s->top_p = m->top_p;
    s->min_p = m->min_p;
    s->seed = m->seed;
    s->choice = m->choice;
    s->n_stop_ids = m->n_stop_ids;
    s->stop_ids = ids_out(m->stop_ids);
    s->want_logprobs = m->want_logprobs;
    s->n_logprobs = m->n_logprobs;
    s->deadline_us = m->deadline_us;
    s->cache_scope = m->cache_scope;
    s->presence_penalty = m->presence_penalty;
    s->frequency_penalty = m->frequency_penalty;
    s->repetition_penalty = m->repetition_penalty;
    for (uint32_t i = 0; i < m->n_biases; i++) {
        out->ids[i] = m->biases[i].id;
        out->biases[i] = m->biases[i].bias;
    }
    s->n_bias_ids = m->n_biases;
    s->bias_ids = out->ids;
    s->n_biases = m->n_biases;
    s->biases = out->biases;
}

status msg_coord_pack(const struct msg_coord *m, struct buf *out)
{
    union {
        Gantry__Control__V1__Welcome welcome;
        Gantry__Control__V1__Submit submit;
        Gantry__Control__V1__Cancel cancel;
        Gantry__Control__V1__Stop stop;
    } u;
    Gantry__Control__V1__CoordMessage msg = GANTRY__CONTROL__V1__COORD_MESSAGE__INIT;
    struct biases_out biases;

    if (m->kind == MSG_SUBMIT && m->submit.n_biases > MSG_BIASES_MAX) {
        return ST_ERR_LIMIT;
    }
    msg.body_case = (Gantry__Control__V1__CoordMessage__BodyCase)m->kind;
    msg.welcome = (void *)&u; /* the members of the oneof are one pointer */
    switch (m->kind) {
    case MSG_WELCOME:
        gantry__control__v1__welcome__init(&u.welcome);
        u.welcome.build = pb_text(m->welcome.build);
        u.welcome.replica = m->welcome.replica;
        u.welcome.generation = m->welcome.generation;
        u.welcome.orphan_grace_s = m->welcome.orphan_grace_s;
        u.welcome.control_file = pb_text(m->welcome.control_file);
        break;
    case MSG_SUBMIT:
        submit_fill(&m->submit, &biases, &u.submit);
        break;
    case MSG_CANCEL:
        gantry__control__v1__cancel__init(&u.cancel);
        u.cancel.stream = m->cancel.stream;
        u.cancel.attempt = m->cancel.attempt;
        break;
    case MSG_STOP:
        gantry__control__v1__stop__init(&u.stop);
        u.stop.drain = m->stop.drain;
        break;
    default:
        return ST_ERR_ARG;
    }
    return pb_pack(&msg.base, out);
}

static status biases_read(const Gantry__Control__V1__Submit *in, struct arena *arena,
                          struct msg_submit *m, struct err *err)
{
    if (in->n_biases != in->n_bias_ids || in->n_biases > MSG_BIASES_MAX) {
        return err_set(err, ST_ERR_PROTO, "Submit has %zu biases for %zu ids (at most %d)",
                       in->n_biases, in->n_bias_ids, (int)MSG_BIASES_MAX);
    }
    struct msg_bias *biases = arena_alloc(arena, in->n_biases * sizeof(*biases));
    if (biases == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu biases", in->n_biases);
    }
    for (size_t i = 0; i < in->n_biases; i++) {
        biases[i] = (struct msg_bias){ in->bias_ids[i], in->biases[i] };
        for (size_t k = 0; k < i; k++) { /* at most 300 */
            if (biases[k].id == biases[i].id) {
                return err_set(err, ST_ERR_PROTO, "Submit.bias_ids names %u twice", biases[i].id);
            }
        }
    }
    m->n_biases = (uint32_t)in->n_biases;
    m->biases = biases;
    return ST_OK;
}

static status submit_read(const Gantry__Control__V1__Submit *in, struct arena *arena,
                          struct msg_submit *m, struct err *err)
{
    if (in->repetition_penalty < 0.0f) { /* finite: pb_unpack */
        return err_set(err, ST_ERR_PROTO, "Submit.repetition_penalty is %g (at least 0)",
                       (double)in->repetition_penalty);
    }
    if (in->n_stop_ids > MSG_STOP_IDS_MAX * 2) { /* the request's, and the model's own ends */
        return err_set(err, ST_ERR_PROTO, "Submit.stop_ids has %zu ids (at most %d)",
                       in->n_stop_ids, (int)MSG_STOP_IDS_MAX * 2);
    }
    if (in->n_logprobs > MSG_LOGPROBS_MAX) {
        return err_set(err, ST_ERR_PROTO, "Submit.n_logprobs is %u (at most %d)", in->n_logprobs,
                       (int)MSG_LOGPROBS_MAX);
    }
    *m = (struct msg_submit){ .stream = in->stream,
                              .attempt = in->attempt,
                              .n_prompt = (uint32_t)in->n_prompt, /* < MSG_BYTES_MAX */
                              .n_emitted = (uint32_t)in->n_emitted,
                              .prompt = in->prompt,
                              .emitted = in->emitted,
                              .max_tokens = in->max_tokens,
                              .temperature = in->temperature,
                              .top_p = in->top_p,
                              .min_p = in->min_p,
                              .top_k = in->top_k,
                              .choice = in->choice,
                              .seed = in->seed,
                              .n_stop_ids = (uint32_t)in->n_stop_ids,
                              .stop_ids = in->stop_ids,
                              .want_logprobs = in->want_logprobs != 0,
                              .n_logprobs = in->n_logprobs,
                              .deadline_us = in->deadline_us,
                              .cache_scope = in->cache_scope,
                              .presence_penalty = in->presence_penalty,
                              .frequency_penalty = in->frequency_penalty,
                              .repetition_penalty = in->repetition_penalty };
    return biases_read(in, arena, m, err);
}

status msg_coord_unpack(const void *data, size_t len, struct arena *arena, struct msg_coord *m_p,
                        struct err *err)
{
    void *msg;
    struct msg_coord m;
    status st = pb_unpack(&gantry__control__v1__coord_message__descriptor, data, len, arena, NULL,
                          &msg, err);

    if (st < 0) {
        return st;
    }
    const Gantry__Control__V1__CoordMessage *in = msg;
    memset(&m, 0, sizeof(m));
    m.kind = (enum msg_coord_kind)in->body_case;
    switch (in->body_case) {
    case GANTRY__CONTROL__V1__COORD_MESSAGE__BODY_WELCOME:
        m.welcome.build = in->welcome->build;
        m.welcome.replica = in->welcome->replica;
        m.welcome.generation = in->welcome->generation;
        m.welcome.orphan_grace_s = in->welcome->orphan_grace_s;
        m.welcome.control_file = in->welcome->control_file;
        break;
    case GANTRY__CONTROL__V1__COORD_MESSAGE__BODY_SUBMIT:
        st = submit_read(in->submit, arena, &m.submit, err);
        break;
    case GANTRY__CONTROL__V1__COORD_MESSAGE__BODY_CANCEL:
        m.cancel = (struct msg_cancel){ in->cancel->stream, in->cancel->attempt };
        break;
    case GANTRY__CONTROL__V1__COORD_MESSAGE__BODY_STOP:
        m.stop.drain = in->stop->drain != 0;
        break;
    default:
        return err_set(err, ST_ERR_PROTO, "CoordMessage has no body");
    }
    if (st == ST_OK) {
        *m_p = m;
    }
    return st;
}
