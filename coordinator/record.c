/* coordinator/record.c - see record.h. */
#include "coordinator/record.h"

#include <stdlib.h>
#include <string.h>

void record_init(struct record *r)
{
    *r = (struct record){ .text = BUF_INIT_MAX(MSG_BYTES_MAX),
                          .tops = ARENA_INIT(RECORD_TOPS_BYTES) };
}

void record_fini(struct record *r)
{
    if (r->text.data != NULL) {
        buf_fini(&r->text);
        arena_fini(&r->tops);
    }
    free(r->tokens);
    r->tokens = NULL;
}

static status grow(struct record *r)
{
    const uint32_t n = r->n_max == 0 ? 8 : r->n_max * 2;
    struct record_token *tokens;

    if (r->n < r->n_max) {
        return ST_OK;
    }
    tokens = realloc(r->tokens, n * sizeof(*tokens));
    if (tokens == NULL) {
        return ST_ERR_NOMEM;
    }
    r->tokens = tokens;
    r->n_max = n;
    return ST_OK;
}

status record_add(struct record *r, const struct msg_token *t, uint32_t n_top)
{
    const struct msg_logprob *top = NULL;
    const status st = grow(r);

    if (st < 0) {
        return st;
    }
    if (n_top != 0) {
        top = arena_copy(&r->tops, t->top, n_top * sizeof(*top));
        if (top == NULL) {
            return arena_lack(&r->tops, n_top * sizeof(*top));
        }
    }
    r->tokens[r->n++] = (struct record_token){ .id = t->token,
                                               .logprob = t->logprob,
                                               .n_top = n_top,
                                               .top = top,
                                               .text_end = record_text_end(r) };
    return ST_OK;
}

void record_seal(struct record *r)
{
    ASSERT(r->n > 0);
    r->tokens[r->n - 1].text_end = record_text_end(r);
}

void record_forget(struct record *r)
{
    r->base += r->n;
    r->text_base += r->text.len;
    r->n = 0;
    buf_reset(&r->text);
    arena_reset(&r->tops);
}

uint32_t record_end(const struct record *r)
{
    return r->base + r->n;
}

uint64_t record_text_at(const struct record *r, uint32_t i)
{
    ASSERT(i >= r->base && i <= record_end(r));
    return i == r->base ? r->text_base : r->tokens[i - r->base - 1].text_end;
}

uint64_t record_text_end(const struct record *r)
{
    return r->text_base + r->text.len;
}

size_t record_bytes(const struct record *r)
{
    return r->n_max * sizeof(*r->tokens) + r->text.cap + r->tops.used;
}

static status tops_fill(const struct record_token *t, const struct tokenizer *tok,
                        struct arena *arena, struct msg_piece *p)
{
    struct msg_top *top = arena_alloc(arena, t->n_top * sizeof(*top));

    if (top == NULL) {
        return ST_ERR_LIMIT;
    }
    for (uint32_t i = 0; i < t->n_top; i++) {
        size_t len = 0;
        const char *bytes = tokenizer_token_bytes(tok, t->top[i].id, &len);
        top[i] = (struct msg_top){ t->top[i].id, t->top[i].logprob, { bytes, len } };
    }
    p->n_top = t->n_top;
    p->top = top;
    return ST_OK;
}

status record_chunk(const struct record *r, struct record_range range, const struct tokenizer *tok,
                    struct arena *arena, struct msg_chunk *c)
{
    const uint64_t text_from = record_text_at(r, range.from);
    const uint64_t text_to = range.all_text ? record_text_end(r) : record_text_at(r, range.to);
    const uint32_t n = range.to - range.from;
    struct msg_piece *pieces = arena_alloc(arena, n * sizeof(*pieces));

    if (pieces == NULL) {
        return ST_ERR_LIMIT;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct record_token *t = &r->tokens[range.from - r->base + i];
        pieces[i] = (struct msg_piece){ .id = t->id,
                                        .has_logprob = range.has_logprobs,
                                        .logprob = t->logprob };
        const status st = t->n_top != 0 ? tops_fill(t, tok, arena, &pieces[i]) : ST_OK;
        if (st < 0) {
            return st;
        }
    }
    c->tokens = pieces;
    c->n_tokens = n;
    c->token_offset = range.from;
    c->text = (struct msg_str){ r->text.data + (text_from - r->text_base), text_to - text_from };
    c->text_offset = text_from;
    return ST_OK;
}
