/* coordinator/cli/generate_json.c - a message of an answer as one line of JSON (--json). */
#include "coordinator/cli/generate_json.h"

#include <jansson.h>
#include <stdio.h>

static json_t *token_json(const struct msg_piece *p)
{
    json_t *token = json_pack("{s:I}", "id", (json_int_t)p->id);

    if (p->has_logprob) {
        json_object_set_new(token, "logprob", json_real((double)p->logprob));
    }
    if (p->n_top != 0) {
        json_t *list = json_array();
        for (uint32_t i = 0; i < p->n_top; i++) {
            char hex[129] = "";
            for (size_t k = 0; k < p->top[i].piece.len && k < 64; k++) {
                snprintf(hex + 2 * k, 3, "%02x", (unsigned char)p->top[i].piece.data[k]);
            }
            json_array_append_new(list, json_pack("{s:I, s:f, s:s}", "id", (json_int_t)p->top[i].id,
                                                  "logprob", (double)p->top[i].logprob, "piece_hex",
                                                  hex));
        }
        json_object_set_new(token, "top", list);
    }
    return token;
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

    for (uint32_t i = 0; i < f->n_profiles; i++) {
        json_array_append_new(profiles, json_string(f->profiles[i]));
    }
    if (profiles != NULL) {
        json_object_set_new(root, "profiles", profiles);
    }
    return root;
}

void generate_print_json(const struct msg_chunk *c)
{
    json_t *root = json_object(), *tokens = json_array();

    if (c->has_started) {
        const struct msg_started *s = &c->started;
        char seed[24];
        snprintf(seed, sizeof(seed), "%llu", (unsigned long long)s->seed);
        /* A seed has 64 bits, more than a JSON number is safe for: it is a string. */
        json_object_set_new(root, "started",
                            json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "request_id", s->request_id,
                                      "model", s->model, "profile", s->profile, "weights_digest",
                                      s->weights_digest, "seed", seed, "prompt_tokens",
                                      (json_int_t)s->prompt_tokens));
    }
    json_object_set_new(root, "choice", json_integer((json_int_t)c->choice));
    json_object_set_new(root, "text", json_stringn(c->text.data, c->text.len));
    for (uint32_t i = 0; i < c->n_tokens; i++) {
        json_array_append_new(tokens, token_json(&c->tokens[i]));
    }
    json_object_set_new(root, "tokens", tokens);
    if (c->has_finished) {
        json_object_set_new(root, "finished", finished_json(&c->finished));
    }
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(root);
}
