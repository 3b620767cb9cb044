/* coordinator/cli/generate_json.c - a message of an answer as one line of JSON (--json). */
#include "coordinator/cli/generate_json.h"
#include "model/json_memory.h"

#include <jansson.h>
#include <stdio.h>

static json_t *token_json(const struct msg_piece *p)
{
    json_t *token = json_pack("{s:I}", "id", (json_int_t)p->id);
    bool ok = true;

    if (p->has_logprob) {
        json_put(token, "logprob", json_real((double)p->logprob), &ok);
    }
    if (p->n_top != 0) {
        json_t *list = json_array();
        for (uint32_t i = 0; i < p->n_top; i++) {
            char hex[129] = "";
            for (size_t k = 0; k < p->top[i].piece.len && k < 64; k++) {
                snprintf(hex + 2 * k, 3, "%02x", (unsigned char)p->top[i].piece.data[k]);
            }
            json_add(list,
                     json_pack("{s:I, s:f, s:s}", "id", (json_int_t)p->top[i].id, "logprob",
                               (double)p->top[i].logprob, "piece_hex", hex),
                     &ok);
        }
        json_put(token, "top", list, &ok);
    }
    return json_whole(token, ok);
}

static json_t *finished_json(const struct msg_finished *f)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "reason",
        f->reason == FINISH_STOP ? "stop" : "length", "stop", f->stop.data, "prompt_tokens",
        (json_int_t)f->prompt_tokens, "completion_tokens", (json_int_t)f->completion_tokens,
        "cached_tokens", (json_int_t)f->cached_tokens, "queued_us", (json_int_t)f->queued_us,
        "first_token_us", (json_int_t)f->first_token_us, "total_us", (json_int_t)f->total_us);
    json_t *profiles = f->n_profiles != 0 ? json_array() : NULL;
    bool ok = true;

    for (uint32_t i = 0; i < f->n_profiles; i++) {
        json_add(profiles, json_string(f->profiles[i]), &ok);
    }
    if (f->n_profiles != 0) {
        json_put(root, "profiles", profiles, &ok);
    }
    return json_whole(root, ok);
}

status generate_print_json(const struct msg_chunk *c)
{
    json_t *root = json_object(), *tokens = json_array();
    bool ok = true;

    if (c->has_started) {
        const struct msg_started *s = &c->started;
        char seed[24];
        snprintf(seed, sizeof(seed), "%llu", (unsigned long long)s->seed);
        /* A seed has 64 bits, more than a JSON number is safe for: it is a string. */
        json_put(root, "started",
                 json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "request_id", s->request_id, "model",
                           s->model, "profile", s->profile, "weights_digest", s->weights_digest,
                           "seed", seed, "prompt_tokens", (json_int_t)s->prompt_tokens),
                 &ok);
    }
    json_put(root, "choice", json_integer((json_int_t)c->choice), &ok);
    json_put(root, "text", json_stringn(c->text.data, c->text.len), &ok);
    for (uint32_t i = 0; i < c->n_tokens; i++) {
        json_add(tokens, token_json(&c->tokens[i]), &ok);
    }
    json_put(root, "tokens", tokens, &ok);
    if (c->has_finished) {
        json_put(root, "finished", finished_json(&c->finished), &ok);
    }
    ok = ok && json_dumpf(root, stdout, JSON_COMPACT) == 0;
    putchar('\n');
    json_decref(root);
    return ok ? ST_OK : ST_ERR_NOMEM;
}
