/* proto/codec_generate.c - gantry.v1: the request, and the ranges of its fields. */
#include "proto/codec_pb.h"

#include "gantry.pb-c.h"

#include <math.h>
#include <string.h>

/* ---- pack ---- */

static void options_fill(const struct msg_generate *m, Gantry__V1__GenerateRequest *r)
{
    r->ignore_eos = m->ignore_eos;
    r->request_id = pb_text(m->request_id);
    r->exact = m->exact;
    r->resume = m->resume;
    r->resume_from = m->resume_from;
    if (m->has_max_tokens) {
        r->opt_max_tokens_case = GANTRY__V1__GENERATE_REQUEST__OPT_MAX_TOKENS_MAX_TOKENS;
        r->max_tokens = m->max_tokens;
    }
    if (m->has_temperature) {
        r->opt_temperature_case = GANTRY__V1__GENERATE_REQUEST__OPT_TEMPERATURE_TEMPERATURE;
        r->temperature = m->temperature;
    }
    if (m->has_top_k) {
        r->opt_top_k_case = GANTRY__V1__GENERATE_REQUEST__OPT_TOP_K_TOP_K;
        r->top_k = m->top_k;
    }
    if (m->has_top_p) {
        r->opt_top_p_case = GANTRY__V1__GENERATE_REQUEST__OPT_TOP_P_TOP_P;
        r->top_p = m->top_p;
    }
    if (m->has_min_p) {
        r->opt_min_p_case = GANTRY__V1__GENERATE_REQUEST__OPT_MIN_P_MIN_P;
        r->min_p = m->min_p;
    }
    if (m->has_seed) {
        r->opt_seed_case = GANTRY__V1__GENERATE_REQUEST__OPT_SEED_SEED;
        r->seed = m->seed;
    }
    if (m->has_logprobs) {
        r->opt_logprobs_case = GANTRY__V1__GENERATE_REQUEST__OPT_LOGPROBS_LOGPROBS;
        r->logprobs = m->logprobs;
    }
    if (m->has_n) {
        r->opt_n_case = GANTRY__V1__GENERATE_REQUEST__OPT_N_N;
        r->n = m->n;
    }
    if (m->has_presence_penalty) {
        r->opt_presence_penalty_case =
            GANTRY__V1__GENERATE_REQUEST__OPT_PRESENCE_PENALTY_PRESENCE_PENALTY;
        r->presence_penalty = m->presence_penalty;
    }
    if (m->has_frequency_penalty) {
        r->opt_frequency_penalty_case =
            GANTRY__V1__GENERATE_REQUEST__OPT_FREQUENCY_PENALTY_FREQUENCY_PENALTY;
        r->frequency_penalty = m->frequency_penalty;
    }
    if (m->has_repetition_penalty) {
        r->opt_repetition_penalty_case =
            GANTRY__V1__GENERATE_REQUEST__OPT_REPETITION_PENALTY_REPETITION_PENALTY;
        r->repetition_penalty = m->repetition_penalty;
    }
}

static status lists_fill(const struct msg_generate *m, struct arena *arena,
                         Gantry__V1__GenerateRequest *r)
{
    r->prompt = arena_copy_str(arena, m->prompt.data, m->prompt.len);
    r->stop = arena_alloc(arena, m->n_stop * sizeof(*r->stop));
    r->stop_ids = arena_copy(arena, m->stop_ids, m->n_stop_ids * sizeof(uint32_t));
    r->resume_from_choices =
        arena_copy(arena, m->resume_from_choices, m->n_resume_from_choices * sizeof(uint32_t));
    r->logit_bias = (void *)pb_objects(arena, m->n_biases, sizeof(Gantry__V1__LogitBias));
    if (r->prompt == NULL || r->stop == NULL || r->stop_ids == NULL || r->logit_bias == NULL ||
        r->resume_from_choices == NULL) {
        return ST_ERR_NOMEM;
    }
    r->n_resume_from_choices = m->n_resume_from_choices;
    r->n_logit_bias = m->n_biases;
    for (uint32_t i = 0; i < m->n_biases; i++) {
        gantry__v1__logit_bias__init(r->logit_bias[i]);
        r->logit_bias[i]->id = m->biases[i].id;
        r->logit_bias[i]->bias = m->biases[i].bias;
    }
    r->n_stop_ids = m->n_stop_ids;
    for (r->n_stop = 0; r->n_stop < m->n_stop; r->n_stop++) {
        r->stop[r->n_stop] = arena_copy_str(arena, m->stop[r->n_stop].data, m->stop[r->n_stop].len);
        if (r->stop[r->n_stop] == NULL) {
            return ST_ERR_NOMEM;
        }
    }
    return ST_OK;
}

status msg_generate_pack(const struct msg_generate *m, struct buf *out)
{
    struct arena arena = PB_SCRATCH;
    Gantry__V1__GenerateRequest r = GANTRY__V1__GENERATE_REQUEST__INIT;
    Gantry__V1__TokenIds ids = GANTRY__V1__TOKEN_IDS__INIT;

    options_fill(m, &r);
    status st = lists_fill(m, &arena, &r);
    if (st == ST_OK && m->has_prompt_ids) {
        ids.n_ids = m->n_prompt_ids;
        ids.ids = arena_copy(&arena, m->prompt_ids, m->n_prompt_ids * sizeof(uint32_t));
        r.prompt_ids = &ids;
        st = ids.ids == NULL ? ST_ERR_NOMEM : ST_OK;
    }
    if (st == ST_OK) {
        st = pb_pack(&r.base, out);
    }
    arena_fini(&arena);
    return st;
}

/* ---- unpack ---- */

static void options_read(const Gantry__V1__GenerateRequest *r, struct msg_generate *m)
{
    m->ignore_eos = r->ignore_eos != 0;
    m->request_id = r->request_id;
    m->exact = r->exact != 0;
    m->resume = r->resume != 0;
    m->resume_from = r->resume_from;
    m->has_max_tokens = r->opt_max_tokens_case != 0;
    m->max_tokens = m->has_max_tokens ? r->max_tokens : 0;
    m->has_temperature = r->opt_temperature_case != 0;
    m->temperature = m->has_temperature ? r->temperature : 0.0f;
    m->has_top_k = r->opt_top_k_case != 0;
    m->top_k = m->has_top_k ? r->top_k : 0;
    m->has_top_p = r->opt_top_p_case != 0;
    m->top_p = m->has_top_p ? r->top_p : 0.0f;
    m->has_min_p = r->opt_min_p_case != 0;
    m->min_p = m->has_min_p ? r->min_p : 0.0f;
    m->has_seed = r->opt_seed_case != 0;
    m->seed = m->has_seed ? r->seed : 0;
    m->has_logprobs = r->opt_logprobs_case != 0;
    m->logprobs = m->has_logprobs ? r->logprobs : 0;
    m->has_n = r->opt_n_case != 0;
    m->n = m->has_n ? r->n : 0;
    m->has_presence_penalty = r->opt_presence_penalty_case != 0;
    m->presence_penalty = m->has_presence_penalty ? r->presence_penalty : 0.0f;
    m->has_frequency_penalty = r->opt_frequency_penalty_case != 0;
    m->frequency_penalty = m->has_frequency_penalty ? r->frequency_penalty : 0.0f;
    m->has_repetition_penalty = r->opt_repetition_penalty_case != 0;
    m->repetition_penalty = m->has_repetition_penalty ? r->repetition_penalty : 0.0f;
}

static status biases_read(const Gantry__V1__GenerateRequest *r, struct arena *arena,
                          struct msg_generate *m, struct err *err)
{
    struct msg_bias *biases = arena_alloc(arena, r->n_logit_bias * sizeof(*biases));

    if (biases == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu entries of logit_bias",
                       r->n_logit_bias);
    }
    for (size_t i = 0; i < r->n_logit_bias; i++) {
        biases[i] = (struct msg_bias){ r->logit_bias[i]->id, r->logit_bias[i]->bias };
    }
    m->n_biases = (uint32_t)r->n_logit_bias; /* < MSG_BYTES_MAX */
    m->biases = biases;
    return ST_OK;
}

status msg_generate_unpack(const void *data, size_t len, struct arena *arena,
                           struct msg_generate *m_p, struct err *err)
{
    struct msg_generate m;
    void *in;
    status st =
        pb_unpack(&gantry__v1__generate_request__descriptor, data, len, arena, NULL, &in, err);
    if (st < 0) {
        return st;
    }
    const Gantry__V1__GenerateRequest *r = in;
    memset(&m, 0, sizeof(m));
    options_read(r, &m);
    m.prompt = (struct msg_str){ r->prompt, strlen(r->prompt) };
    if (r->prompt_ids != NULL) {
        m.has_prompt_ids = true;
        m.n_prompt_ids = (uint32_t)r->prompt_ids->n_ids; /* < MSG_BYTES_MAX */
        m.prompt_ids = r->prompt_ids->ids;
    }
    struct msg_str *stop = arena_alloc(arena, r->n_stop * sizeof(*stop));
    if (stop == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu stop strings", r->n_stop);
    }
    for (size_t i = 0; i < r->n_stop; i++) {
        stop[i] = (struct msg_str){ r->stop[i], strlen(r->stop[i]) };
    }
    m.n_stop = (uint32_t)r->n_stop;
    m.stop = stop;
    m.n_stop_ids = (uint32_t)r->n_stop_ids;
    m.stop_ids = r->stop_ids;
    m.n_resume_from_choices = (uint32_t)r->n_resume_from_choices;
    m.resume_from_choices = r->resume_from_choices;
    st = biases_read(r, arena, &m, err);
    if (st == ST_OK) {
        *m_p = m;
    }
    return st;
}

/* ---- ranges ---- */

static status prompt_check(const struct msg_generate *m, uint32_t vocab, struct err *err)
{
    if (m->has_prompt_ids && m->prompt.len != 0) {
        return err_set(err, ST_ERR_ARG,
                       "prompt (%zu bytes) and prompt_ids (%u ids) are both set; send one of them",
                       m->prompt.len, m->n_prompt_ids);
    }
    if (m->has_prompt_ids && m->n_prompt_ids == 0) {
        return err_set(err, ST_ERR_ARG, "prompt_ids has no ids; at least 1 is needed");
    }
    if (m->prompt.len > MSG_PROMPT_BYTES_MAX) {
        return err_set(err, ST_ERR_ARG, "prompt has %zu bytes; at most %d are allowed",
                       m->prompt.len, (int)MSG_PROMPT_BYTES_MAX);
    }
    for (uint32_t i = 0; i < m->n_prompt_ids; i++) {
        if (m->prompt_ids[i] >= vocab) {
            return err_set(err, ST_ERR_ARG, "prompt_ids[%u] is %u; the model has ids 0 .. %u", i,
                           m->prompt_ids[i], vocab - 1);
        }
    }
    return ST_OK;
}

static status stops_check(const struct msg_generate *m, uint32_t vocab, struct err *err)
{
    if (m->n_stop > MSG_STOP_STRINGS_MAX) {
        return err_set(err, ST_ERR_ARG, "stop has %u strings; at most %d are allowed", m->n_stop,
                       (int)MSG_STOP_STRINGS_MAX);
    }
    for (uint32_t i = 0; i < m->n_stop; i++) {
        if (m->stop[i].len == 0 || m->stop[i].len > MSG_STOP_BYTES_MAX) {
            return err_set(err, ST_ERR_ARG, "stop[%u] has %zu bytes; 1 .. %d are allowed", i,
                           m->stop[i].len, (int)MSG_STOP_BYTES_MAX);
        }
    }
    if (m->n_stop_ids > MSG_STOP_IDS_MAX) {
        return err_set(err, ST_ERR_ARG, "stop_ids has %u ids; at most %d are allowed",
                       m->n_stop_ids, (int)MSG_STOP_IDS_MAX);
    }
    for (uint32_t i = 0; i < m->n_stop_ids; i++) {
        if (m->stop_ids[i] >= vocab) {
            return err_set(err, ST_ERR_ARG, "stop_ids[%u] is %u; the model has ids 0 .. %u", i,
                           m->stop_ids[i], vocab - 1);
        }
    }
    return ST_OK;
}

static status sampling_check(const struct msg_generate *m, struct err *err)
{
    /* Written so that NaN fails each of them. */
    if (m->has_temperature && !(m->temperature >= 0.0f && m->temperature <= 100.0f)) {
        return err_set(err, ST_ERR_ARG, "temperature is %g; 0 .. 100 is allowed",
                       (double)m->temperature);
    }
    if (m->has_top_k && m->top_k > MSG_TOP_K_MAX) {
        return err_set(err, ST_ERR_ARG, "top_k is %u; 0 (off) .. %d is allowed", m->top_k,
                       (int)MSG_TOP_K_MAX);
    }
    if (m->has_top_p && !(m->top_p > 0.0f && m->top_p <= 1.0f)) {
        return err_set(err, ST_ERR_ARG, "top_p is %g; above 0 and up to 1 (off) is allowed",
                       (double)m->top_p);
    }
    if (m->has_min_p && !(m->min_p >= 0.0f && m->min_p <= 1.0f)) {
        return err_set(err, ST_ERR_ARG, "min_p is %g; 0 (off) .. 1 is allowed", (double)m->min_p);
    }
    if (m->has_n && (m->n == 0 || m->n > MSG_CHOICES_MAX)) {
        return err_set(err, ST_ERR_ARG, "n is %u; 1 .. %d is allowed", m->n, (int)MSG_CHOICES_MAX);
    }
    if (m->has_logprobs && m->logprobs > MSG_LOGPROBS_MAX) {
        return err_set(err, ST_ERR_ARG, "logprobs is %u; 0 .. %d is allowed", m->logprobs,
                       (int)MSG_LOGPROBS_MAX);
    }
    return ST_OK;
}

static status penalties_check(const struct msg_generate *m, struct err *err)
{
    if (m->has_presence_penalty && !(m->presence_penalty >= -2.0f && m->presence_penalty <= 2.0f)) {
        return err_set(err, ST_ERR_ARG, "presence_penalty is %g; -2 .. 2 is allowed, 0 is off",
                       (double)m->presence_penalty);
    }
    if (m->has_frequency_penalty &&
        !(m->frequency_penalty >= -2.0f && m->frequency_penalty <= 2.0f)) {
        return err_set(err, ST_ERR_ARG, "frequency_penalty is %g; -2 .. 2 is allowed, 0 is off",
                       (double)m->frequency_penalty);
    }
    if (m->has_repetition_penalty &&
        !(m->repetition_penalty >= 0.01f && m->repetition_penalty <= 100.0f)) {
        return err_set(err, ST_ERR_ARG,
                       "repetition_penalty is %g; 0.01 .. 100 is allowed, 1 is off",
                       (double)m->repetition_penalty);
    }
    return ST_OK;
}

static status biases_check(const struct msg_generate *m, uint32_t vocab, struct err *err)
{
    if (m->n_biases > MSG_BIASES_MAX) {
        return err_set(err, ST_ERR_ARG, "logit_bias has %u entries; at most %d are allowed",
                       m->n_biases, (int)MSG_BIASES_MAX);
    }
    for (uint32_t i = 0; i < m->n_biases; i++) {
        const struct msg_bias *b = &m->biases[i];
        if (b->id >= vocab) {
            return err_set(err, ST_ERR_ARG, "logit_bias[%u] names id %u; the model has ids 0 .. %u",
                           i, b->id, vocab - 1);
        }
        if (!(b->bias >= -100.0f && b->bias <= 100.0f)) {
            return err_set(err, ST_ERR_ARG, "logit_bias of id %u is %g; -100 .. 100 is allowed",
                           b->id, (double)b->bias);
        }
        for (uint32_t k = 0; k < i; k++) { /* at most 300 */
            if (m->biases[k].id == b->id) {
                return err_set(err, ST_ERR_ARG, "logit_bias names id %u twice", b->id);
            }
        }
    }
    return ST_OK;
}

static status request_id_check(const struct msg_generate *m, struct err *err)
{
    const size_t len = strlen(m->request_id);

    if (len > MSG_REQUEST_ID_MAX) {
        return err_set(err, ST_ERR_ARG, "request_id has %zu bytes; at most %d are allowed", len,
                       (int)MSG_REQUEST_ID_MAX);
    }
    for (size_t i = 0; i < len; i++) {
        const unsigned char c = (unsigned char)m->request_id[i];
        /* Printable ASCII without the space: it stands in log lines as one word. */
        if (c <= 0x20 || c >= 0x7F) {
            return err_set(err, ST_ERR_ARG,
                           "request_id has byte 0x%02x at %zu; printable ASCII without spaces is "
                           "allowed",
                           c, i);
        }
    }
    return ST_OK;
}

status resume_check(const struct msg_generate *m, struct err *err)
{
    if (m->resume && m->request_id[0] == '\0') {
        return err_set(err, ST_ERR_ARG, "resume needs the request_id of the answer to go on with");
    }
    if (!m->resume && m->resume_from != 0) {
        return err_set(err, ST_ERR_ARG, "resume_from is %u and resume is not set", m->resume_from);
    }
    if (!m->resume && m->n_resume_from_choices != 0) {
        return err_set(err, ST_ERR_ARG, "resume_from_choices has %u numbers and resume is not set",
                       m->n_resume_from_choices);
    }
    if (m->resume_from != 0 && m->n_resume_from_choices != 0) {
        return err_set(
            err, ST_ERR_ARG,
            "resume_from (%u) and resume_from_choices (%u numbers) are both set; send one "
            "of them",
            m->resume_from, m->n_resume_from_choices);
    }
    if (m->n_resume_from_choices > MSG_CHOICES_MAX) {
        return err_set(err, ST_ERR_ARG,
                       "resume_from_choices has %u numbers; at most %d are allowed",
                       m->n_resume_from_choices, (int)MSG_CHOICES_MAX);
    }
    return request_id_check(m, err);
}

status generate_check(const struct msg_generate *m, uint32_t vocab, struct err *err)
{
    status st = prompt_check(m, vocab, err);

    if (st == ST_OK) {
        st = stops_check(m, vocab, err);
    }
    if (st == ST_OK) {
        st = sampling_check(m, err);
    }
    if (st == ST_OK) {
        st = penalties_check(m, err);
    }
    if (st == ST_OK) {
        st = biases_check(m, vocab, err);
    }
    if (st < 0) {
        return st;
    }
    if (m->has_max_tokens && m->max_tokens == 0) {
        return err_set(
            err, ST_ERR_ARG,
            "max_tokens is 0; at least 1 is allowed (absent: until the context is full)");
    }
    return resume_check(m, err);
}
