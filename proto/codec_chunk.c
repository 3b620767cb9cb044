/* proto/codec_chunk.c - gantry.v1: the answer, whole (GenerateResponse) or in parts
 * (GenerateChunk).
 *
 * Both types have the same fields under the same numbers, and so has Choice but for `started`,
 * therefore one description serves all three. The choices of a whole answer are packed one by one as
 * their sessions end; put together they are choice 0's bytes with the others' behind them.
 * Generated text may hold NULs (a model can emit byte 0), and protobuf-c packs a string up to its
 * first NUL; so `text` is written by hand behind what protobuf-c packed (field order is free). */
#include "proto/codec_pb.h"

#include "gantry.pb-c.h"

#include <string.h>

enum { FIELD_TEXT = 2, FIELD_CHOICES = 8 };

/* ---- pack ---- */

static status piece_fill(const struct msg_piece *p, struct arena *arena, Gantry__V1__Token *t)
{
    gantry__v1__token__init(t);
    t->id = p->id;
    if (p->has_logprob) {
        t->opt_logprob_case = GANTRY__V1__TOKEN__OPT_LOGPROB_LOGPROB;
        t->logprob = p->logprob;
    }
    if (p->n_top == 0) {
        return ST_OK;
    }
    t->top = (void *)pb_objects(arena, p->n_top, sizeof(Gantry__V1__TokenLogprob));
    if (t->top == NULL) {
        return ST_ERR_NOMEM;
    }
    t->n_top = p->n_top;
    for (uint32_t i = 0; i < p->n_top; i++) {
        gantry__v1__token_logprob__init(t->top[i]);
        t->top[i]->id = p->top[i].id;
        t->top[i]->logprob = p->top[i].logprob;
        t->top[i]->piece.data = (uint8_t *)pb_text(p->top[i].piece.data);
        t->top[i]->piece.len = p->top[i].piece.len;
    }
    return ST_OK;
}

struct finished_parts {
    Gantry__V1__Finished finished;
    Gantry__V1__Usage usage;
    Gantry__V1__Timings timings;
    char *profiles[MSG_PROFILES_MAX];
};

static status finished_fill(const struct msg_finished *f, struct arena *arena,
                            struct finished_parts *parts)
{
    gantry__v1__finished__init(&parts->finished);
    gantry__v1__usage__init(&parts->usage);
    gantry__v1__timings__init(&parts->timings);
    /* FINISH_STOP and FINISH_LENGTH have the public numbers; the others never reach a client. */
    parts->finished.reason = f->reason == FINISH_STOP || f->reason == FINISH_LENGTH
                                 ? (Gantry__V1__FinishReason)f->reason
                                 : GANTRY__V1__FINISH_REASON__FINISH_UNSPECIFIED;
    parts->finished.stop = arena_copy_str(arena, f->stop.data, f->stop.len);
    if (parts->finished.stop == NULL) {
        return ST_ERR_NOMEM;
    }
    parts->usage.prompt_tokens = f->prompt_tokens;
    parts->usage.completion_tokens = f->completion_tokens;
    parts->usage.cached_tokens = f->cached_tokens;
    parts->timings.queued_us = f->queued_us;
    parts->timings.first_token_us = f->first_token_us;
    parts->timings.total_us = f->total_us;
    ASSERT(f->n_profiles <= MSG_PROFILES_MAX);
    for (uint32_t i = 0; i < f->n_profiles; i++) {
        parts->profiles[i] = pb_text(f->profiles[i]);
    }
    parts->finished.n_profiles = f->n_profiles;
    parts->finished.profiles = parts->profiles;
    parts->finished.usage = &parts->usage;
    parts->finished.timings = &parts->timings;
    return ST_OK;
}

static void started_fill(const struct msg_started *m, Gantry__V1__Started *s)
{
    gantry__v1__started__init(s);
    s->request_id = pb_text(m->request_id);
    s->seed = m->seed;
    s->profile = pb_text(m->profile);
    s->weights_digest = pb_text(m->weights_digest);
    s->prompt_tokens = m->prompt_tokens;
    s->resume_window_s = m->resume_window_s;
    s->n = m->n;
    s->model = pb_text(m->model);
}

/* Field `number` (below 16), length-delimited. */
static status bytes_append(unsigned int number, const struct msg_str *text, struct buf *out)
{
    unsigned char head[12];
    size_t n = 0, left = text->len;

    head[n++] = (unsigned char)(number << 3 | 2);
    do {
        head[n++] = (unsigned char)((left & 0x7F) | (left > 0x7F ? 0x80 : 0));
        left >>= 7;
    } while (left != 0);
    if (text->len > MSG_BYTES_MAX - out->len || n > MSG_BYTES_MAX - out->len - text->len) {
        return ST_ERR_LIMIT;
    }
    const status st = buf_append(out, head, n);
    return st < 0 ? st : buf_append(out, text->data, text->len);
}

static status chunk_append(const struct msg_chunk *m, struct arena *arena, struct buf *out)
{
    Gantry__V1__GenerateChunk c = GANTRY__V1__GENERATE_CHUNK__INIT;
    Gantry__V1__Started started;
    struct finished_parts parts;
    status st = ST_OK;

    if (m->has_started) {
        started_fill(&m->started, &started);
        c.started = &started;
    }
    c.tokens = (void *)pb_objects(arena, m->n_tokens, sizeof(Gantry__V1__Token));
    if (c.tokens == NULL) {
        return ST_ERR_NOMEM;
    }
    c.choice = m->choice;
    c.n_tokens = m->n_tokens;
    c.token_offset = m->token_offset;
    c.text_offset = m->text_offset;
    for (uint32_t i = 0; i < m->n_tokens && st == ST_OK; i++) {
        st = piece_fill(&m->tokens[i], arena, c.tokens[i]);
    }
    if (st == ST_OK && m->has_finished) {
        st = finished_fill(&m->finished, arena, &parts);
        c.finished = &parts.finished;
    }
    if (st == ST_OK) {
        st = pb_pack(&c.base, out);
    }
    return st < 0 || m->text.len == 0 ? st : bytes_append(FIELD_TEXT, &m->text, out);
}

status msg_chunk_pack(const struct msg_chunk *m, struct buf *out)
{
    struct arena arena = PB_SCRATCH;
    const size_t at = out->len;
    const status st = chunk_append(m, &arena, out);

    if (st < 0) { /* all or nothing */
        out->len = at;
    }
    arena_fini(&arena);
    return st;
}

status msg_response_pack(const struct msg_chunk *m, struct buf *out)
{
    return msg_chunk_pack(m, out);
}

status msg_response_add_choice(const void *data, size_t len, struct buf *out)
{
    const struct msg_str bytes = { data, len };

    return bytes_append(FIELD_CHOICES, &bytes, out);
}

/* ---- unpack ---- */

static status pieces_read(const Gantry__V1__GenerateChunk *c, struct arena *arena,
                          struct msg_chunk *m, struct err *err)
{
    struct msg_piece *pieces = arena_alloc(arena, c->n_tokens * sizeof(*pieces));

    if (pieces == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu tokens", c->n_tokens);
    }
    for (size_t i = 0; i < c->n_tokens; i++) {
        const Gantry__V1__Token *t = c->tokens[i];
        struct msg_top *top = arena_alloc(arena, t->n_top * sizeof(*top));

        if (top == NULL) {
            return err_set(err, ST_ERR_LIMIT, "no memory for token %zu", i);
        }
        for (size_t k = 0; k < t->n_top; k++) {
            const ProtobufCBinaryData *piece = &t->top[k]->piece;
            const char *bytes = arena_copy_str(arena, (const char *)piece->data, piece->len);
            if (bytes == NULL) {
                return err_set(err, ST_ERR_LIMIT, "no memory for token %zu", i);
            }
            top[k] = (struct msg_top){ t->top[k]->id, t->top[k]->logprob, { bytes, piece->len } };
        }
        pieces[i].id = t->id;
        pieces[i].has_logprob = t->opt_logprob_case != 0;
        pieces[i].logprob = pieces[i].has_logprob ? t->logprob : 0.0f;
        pieces[i].n_top = (uint32_t)t->n_top;
        pieces[i].top = top;
    }
    m->n_tokens = (uint32_t)c->n_tokens; /* < MSG_BYTES_MAX */
    m->tokens = pieces;
    return ST_OK;
}

static status finished_read(const Gantry__V1__Finished *f, struct arena *arena,
                            struct msg_finished *m, struct err *err)
{
    if (f->n_profiles > MSG_PROFILES_MAX) {
        return err_set(err, ST_ERR_PROTO, "Finished.profiles has %zu names (at most %d)",
                       f->n_profiles, (int)MSG_PROFILES_MAX);
    }
    const char **profiles = arena_alloc(arena, MAX(f->n_profiles, (size_t)1) * sizeof(*profiles));
    if (profiles == NULL) {
        return err_set(err, ST_ERR_LIMIT, "no memory for %zu profiles", f->n_profiles);
    }
    for (size_t i = 0; i < f->n_profiles; i++) {
        profiles[i] = f->profiles[i];
    }
    m->n_profiles = (uint32_t)f->n_profiles;
    m->profiles = profiles;
    m->reason = (enum finish_reason)f->reason;
    m->stop = (struct msg_str){ f->stop, strlen(f->stop) };
    if (f->usage != NULL) {
        m->prompt_tokens = f->usage->prompt_tokens;
        m->completion_tokens = f->usage->completion_tokens;
        m->cached_tokens = f->usage->cached_tokens;
    }
    if (f->timings != NULL) {
        m->queued_us = f->timings->queued_us;
        m->first_token_us = f->timings->first_token_us;
        m->total_us = f->timings->total_us;
    }
    return ST_OK;
}

status msg_chunk_unpack(const void *data, size_t len, struct arena *arena, struct msg_chunk *m_p,
                        struct err *err)
{
    const ProtobufCMessageDescriptor *desc = &gantry__v1__generate_chunk__descriptor;
    struct msg_chunk m;
    void *in;
    status st = pb_unpack(desc, data, len, arena, desc, &in, err);

    if (st < 0) {
        return st;
    }
    const Gantry__V1__GenerateChunk *c = in;
    memset(&m, 0, sizeof(m));
    if (c->started != NULL) {
        m.has_started = true;
        m.started = (struct msg_started){ .request_id = c->started->request_id,
                                          .profile = c->started->profile,
                                          .weights_digest = c->started->weights_digest,
                                          .model = c->started->model,
                                          .seed = c->started->seed,
                                          .prompt_tokens = c->started->prompt_tokens,
                                          .resume_window_s = c->started->resume_window_s,
                                          .n = c->started->n };
    }
    m.choice = c->choice;
    m.text = (struct msg_str){ c->text, pb_str_len(desc, "text", c->text) };
    m.token_offset = c->token_offset;
    m.text_offset = c->text_offset;
    if (c->finished != NULL) {
        m.has_finished = true;
        st = finished_read(c->finished, arena, &m.finished, err);
    }
    if (st == ST_OK) {
        st = pieces_read(c, arena, &m, err);
    }
    if (st == ST_OK) {
        *m_p = m;
    }
    return st;
}
