/* tests/sim/sim_ask.c - what clients want: requests, drawn from the seed, and when they come. */
#include "sim/sim_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void draw_prompt(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    const uint32_t ctx = c->sim->shape.ctx_max;
    struct sim_rng shared = { .state = rng_below(r, 3) }; /* one of three common beginnings */
    const uint32_t n = rng_in(r, 2, MIN(ctx - 2, (uint32_t)SIM_PROMPT_MAX - 2));
    const uint32_t n_shared = rng_chance(r, 500) ? rng_below(r, n) : 0;
    const bool is_text = rng_chance(r, 300);

    c->n_prompt = n;
    c->prompt[0] = SIM_BOS;
    for (uint32_t i = 1; i < n; i++) {
        c->prompt[i] = 0x20 + rng_below(i < n_shared ? &shared : r, 0x5F);
        c->text[i - 1] = (char)c->prompt[i];
    }
    if (is_text) {
        c->request.prompt = (struct msg_str){ c->text, n - 1 };
    } else {
        c->request.has_prompt_ids = true;
        c->request.prompt_ids = c->prompt;
        c->request.n_prompt_ids = n;
    }
}

static void draw_stops(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;

    c->request.ignore_eos = rng_chance(r, 300);
    if (rng_chance(r, 300)) {
        c->request.n_stop = rng_in(r, 1, 2);
        for (uint32_t i = 0; i < c->request.n_stop; i++) {
            const uint32_t len = rng_in(r, 1, 2);
            for (uint32_t k = 0; k < len; k++) {
                c->stop_text[i][k] = (char)rng_in(r, 0x30, 0x7E);
            }
            c->stops[i] = (struct msg_str){ c->stop_text[i], len };
        }
        c->request.stop = c->stops;
    }
    if (rng_chance(r, 200)) {
        c->request.n_stop_ids = 1;
        c->stop_ids[0] = rng_in(r, 0x20, 0x7E);
        c->request.stop_ids = c->stop_ids;
    }
}

static void draw_sampling(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    struct msg_generate *m = &c->request;

    m->has_temperature = rng_chance(r, 600);
    m->temperature = rng_chance(r, 500) ? 0.0f : 0.25f * (float)rng_in(r, 1, 4);
    m->has_top_k = rng_chance(r, 300);
    m->top_k = rng_in(r, 1, 50);
    m->has_top_p = rng_chance(r, 300);
    m->top_p = 0.25f * (float)rng_in(r, 1, 4);
    m->has_seed = rng_chance(r, 500);
    m->seed = rng_u64(r);
    m->has_presence_penalty = rng_chance(r, 100);
    m->presence_penalty = m->has_presence_penalty ? 0.5f * (float)rng_below(r, 4) : 0.0f;
    m->has_repetition_penalty = rng_chance(r, 100);
    m->repetition_penalty = 1.0f + 0.25f * (float)rng_below(r, 3);
    if (rng_chance(r, 100)) {
        m->n_biases = 2;
        c->biases[0] = (struct msg_bias){ rng_in(r, 60, 90), 1.5f };
        c->biases[1] = (struct msg_bias){ rng_in(r, 20, 50), -2.5f };
        m->biases = c->biases;
    }
    m->has_n = rng_chance(r, 100);
    m->n = rng_in(r, 1, MIN((uint32_t)SIM_CHOICES_MAX, c->sim->shape.queue_max));
    c->n_answers = m->has_n ? m->n : 1;
    m->has_logprobs = rng_chance(r, 300);
    m->logprobs = m->has_logprobs ? rng_below(r, 4) : 0;
}

static void draw_length(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    const uint32_t room = c->sim->shape.ctx_max - c->n_prompt;

    c->request.has_max_tokens = rng_chance(r, 900);
    c->request.max_tokens = rng_in(r, 1, MIN(room + room / 8 + 1, c->sim->shape.ctx_max));
    c->max_tokens = c->request.has_max_tokens ? MIN(c->request.max_tokens, room) : room;
}

static void draw_id(struct sim_client *c)
{
    struct sim_rng *r = &c->sim->rng;
    struct sim_client *other = c->next;

    snprintf(c->id, sizeof(c->id), "c%u", c->index);
    if (rng_chance(r, 200)) {
        c->id[0] = '\0';
    } else if (other != NULL && rng_chance(r, 30)) {
        snprintf(c->id, sizeof(c->id), "%s", other->id);
        c->is_duplicate = true;
        other->is_duplicate = true; /* whichever comes first */
        other->is_keeper = false;
    }
    c->request.request_id = c->id;
}

static void spoil(struct sim_client *c)
{
    struct msg_generate *m = &c->request;

    switch (c->index % 4) {
    case 0:
        m->has_temperature = true;
        m->temperature = -1.0f;
        break;
    case 1:
        m->has_top_p = true;
        m->top_p = 1.5f;
        break;
    case 2:
        m->has_max_tokens = true;
        m->max_tokens = 0;
        break;
    default:
        m->has_prompt_ids = true;
        c->prompt[0] = SIM_VOCAB + 5;
        m->prompt_ids = c->prompt;
        m->n_prompt_ids = c->n_prompt;
        m->prompt.len = 0;
        break;
    }
}

static enum client_kind draw_kind(struct sim_rng *r)
{
    const uint32_t n = rng_below(r, 1000);

    return n < 700   ? CLIENT_STREAM
           : n < 900 ? CLIENT_UNARY
           : n < 930 ? CLIENT_INVALID
           : n < 940 ? CLIENT_NO_TOKEN
           : n < 960 ? CLIENT_STATUS
           : n < 980 ? CLIENT_CHECK
                     : CLIENT_WATCH;
}

static struct sim_client *client_make(struct sim *s, enum client_kind kind)
{
    struct sim_client *c = calloc(1, sizeof(*c));

    ASSERT(c != NULL);
    c->sim = s;
    c->index = s->n_clients++;
    c->next = s->clients;
    s->clients = c;
    c->kind = kind;
    c->deadline_ns = CLOCK_NEVER;
    draw_prompt(c);
    draw_stops(c);
    draw_sampling(c);
    draw_length(c);
    draw_id(c);
    if (kind == CLIENT_INVALID) {
        spoil(c);
    }
    c->is_keeper = s->shape.journal && kind <= CLIENT_UNARY && c->id[0] != '\0' && !c->is_duplicate;
    s->n_clients_open += kind != CLIENT_WATCH;
    s->n_watchers += kind == CLIENT_WATCH;
    s->totals->requests++;
    return c;
}

static void arrive(void *arg)
{
    struct sim_client *c = arg;
    struct sim *s = c->sim;

    if (c->kind <= CLIENT_UNARY && rng_chance(&s->rng, 150)) {
        c->deadline_ns = s->now_ns + rng_ns(&s->rng, 20 * NS_PER_MS, 5 * NS_PER_S);
    }
    c->is_slow = c->kind == CLIENT_STREAM && rng_chance(&s->rng, 100);
    if (c->kind <= CLIENT_UNARY && rng_chance(&s->rng, 100)) {
        sim_after(s, rng_ns(&s->rng, 0, 2 * NS_PER_S), client_cancel_later, c);
    }
    client_ask(c);
}

void clients_begin(struct sim *s)
{
    const uint64_t span_ns = s->shape.healed_ns - s->now_ns;
    uint64_t at_ns = s->now_ns;

    for (uint32_t i = 0; i < s->shape.n_requests; i++) {
        if (!rng_chance(&s->rng, s->shape.burst_per_mille)) {
            at_ns = s->now_ns + rng_u64(&s->rng) % span_ns;
        }
        sim_at(s, at_ns, arrive, client_make(s, draw_kind(&s->rng)));
    }
}

void clients_probe(struct sim *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct sim_client *c = client_make(s, i % 2 != 0 ? CLIENT_STREAM : CLIENT_UNARY);
        c->is_probe = true;
        c->is_duplicate = false;
        snprintf(c->id, sizeof(c->id), "probe%u", i);
        c->is_keeper = s->shape.journal;
        sim_after(s, 0, client_ask, c);
    }
}
