/* tests/sim/sim_model.c - see sim_model.h. */
#include "sim/sim_model.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

static const uint64_t first = 0x243F6A8885A308D3ull;

static uint64_t entry(uint64_t before, uint32_t token)
{
    return mix(before + 0x9E3779B97F4A7C15ull * (token + 1));
}

static uint64_t bits(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

struct chosen {
    uint32_t token;
    float logprob;
};

/* Printable ASCII, two-byte characters in both their halves, and an end now and then. */
static struct chosen choose(uint64_t sum, const struct sim_params *p, uint32_t pos, uint32_t last)
{
    uint64_t z = sum ^ mix(bits(p->top_p) << 32 ^ bits(p->min_p) ^ (uint64_t)p->top_k << 8);

    z ^= p->adjusts ^ mix(bits(p->penalties.repetition) ^ bits(p->penalties.presence) << 16 ^
                          bits(p->penalties.frequency) << 32);
    if (p->temperature > 0.0f) {
        z ^= mix(p->seed ^ mix(pos + ((uint64_t)p->choice << 32)) ^ bits(p->temperature));
    }
    z = mix(z);
    const uint32_t byte = (uint32_t)(z >> 8) & 0xff;
    const float logprob = -(float)((z >> 40) & 0xfff) / 256.0f;
    if (z % 61 == 0) {
        return (struct chosen){ SIM_EOS, logprob };
    }
    if (last == 0xC3) {
        return (struct chosen){ 0x80 + byte % 0x40, logprob };
    }
    return (struct chosen){ byte >= 0xF0 ? 0xC3 : 0x20 + byte % 0x5F, logprob };
}

static uint64_t adjusts_add(uint64_t sum, uint32_t id, uint32_t what)
{
    return mix(sum + 0x9E3779B97F4A7C15ull + ((uint64_t)id << 32 | what));
}

static uint64_t adjusts_of(const struct step_head *plan, const struct step_seq *q)
{
    const struct kern_adjust *at = step_adjusts_const(plan) + q->adjust0;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < q->n_counts; i++) {
        sum = adjusts_add(sum, at[i].id, at[i].n_made);
    }
    for (uint32_t i = 0; i < q->n_biases; i++) {
        const struct kern_adjust *b = &at[q->n_counts + i];
        sum = adjusts_add(sum, b->id, (uint32_t)bits(b->bias));
    }
    return sum;
}

/* ---- a replica ---- */

void sim_kv_init(struct sim_kv *kv, uint32_t n_blocks)
{
    kv->n_blocks = n_blocks;
    kv->at = calloc((size_t)n_blocks * KERN_KV_BLOCK, sizeof(*kv->at));
    ASSERT(kv->at != NULL);
}

void sim_kv_fini(struct sim_kv *kv)
{
    free(kv->at);
    kv->at = NULL;
}

static uint64_t *slot(struct sim_kv *kv, const uint32_t *table, uint32_t pos)
{
    const uint32_t block = table[pos / KERN_KV_BLOCK];

    ASSERT(block < kv->n_blocks);
    return &kv->at[(size_t)block * KERN_KV_BLOCK + pos % KERN_KV_BLOCK];
}

void sim_model_run(struct sim_kv *kv, const struct step_head *plan, const struct sim_lie *lie,
                   const uint32_t *fed, struct step_result *results)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *q = &step_seqs_const(plan)[i];
        const uint32_t *tokens =
            q->feed != 0 ? &fed[q->feed - 1] : step_tokens_const(plan) + q->row0;
        const uint32_t *table = step_tables_const(plan) + q->table0;
        uint64_t before = q->pos0 != 0 ? *slot(kv, table, q->pos0 - 1) : first, sum = 0;

        for (uint32_t k = 0; k < q->n_rows; k++) {
            before = entry(before, tokens[k]);
            *slot(kv, table, q->pos0 + k) = before;
        }
        if (!q->sample) {
            continue;
        }
        const uint32_t pos = q->pos0 + q->n_rows - 1;
        for (uint32_t k = 0; k <= pos; k++) {
            sum += *slot(kv, table, k);
        }
        const struct sim_params p = { .temperature = q->params.temperature,
                                      .top_p = q->params.top_p,
                                      .min_p = q->params.min_p,
                                      .top_k = q->params.top_k,
                                      .choice = q->params.choice,
                                      .seed = q->params.seed,
                                      .penalties = q->params.penalties,
                                      .adjusts = adjusts_of(plan, q) };
        struct chosen c = choose(sum, &p, pos, tokens[q->n_rows - 1]);
        const uint64_t spoils = q->stream < lie->before ? lie->old : lie->all;
        if (spoils != 0) {
            c.token = 0x20 + (uint32_t)(mix(sum ^ spoils) % 0x5F);
        }
        struct step_result *r = &results[n++];
        *r = (struct step_result){ .stream = q->stream, .attempt = q->attempt };
        r->sampled.token = c.token;
        r->sampled.logprob = c.logprob;
        r->sampled.n_top = q->params.n_logprobs;
        for (uint32_t k = 0; k < q->params.n_logprobs; k++) {
            const struct msg_logprob top = sim_top(c.token, c.logprob, k);
            r->sampled.top[k].id = top.id;
            r->sampled.top[k].logit = top.logprob;
        }
    }
}

struct msg_logprob sim_top(uint32_t token, float logprob, uint32_t k)
{
    return (struct msg_logprob){ (token + k * 7) % SIM_VOCAB, logprob - (float)k };
}

/* ---- the truth ---- */

/* What penalties and biases concern, counted the plain way: a number per id. */
struct counted {
    bool is_on;
    bool is_there[SIM_VOCAB];
    uint32_t n_made[SIM_VOCAB];
};

static void counted_init(struct counted *c, const struct kern_penalties *p, const uint32_t *prompt,
                         uint32_t n)
{
    memset(c, 0, sizeof(*c));
    c->is_on = p->repetition != 1.0f || p->presence != 0.0f || p->frequency != 0.0f;
    for (uint32_t i = 0; p->repetition != 1.0f && i < n; i++) {
        c->is_there[prompt[i]] = true;
    }
}

static uint64_t counted_hash(const struct counted *c, const struct msg_generate *m)
{
    uint64_t sum = 0;

    for (uint32_t id = 0; c->is_on && id < SIM_VOCAB; id++) {
        if (c->is_there[id]) {
            sum = adjusts_add(sum, id, c->n_made[id]);
        }
    }
    for (uint32_t id = 0; m->n_biases != 0 && id < SIM_VOCAB; id++) {
        for (uint32_t i = 0; i < m->n_biases; i++) {
            if (m->biases[i].id == id) {
                sum = adjusts_add(sum, id, (uint32_t)bits(m->biases[i].bias));
            }
        }
    }
    return sum;
}

static bool is_stop_id(const struct msg_generate *m, uint32_t token)
{
    for (uint32_t i = 0; i < m->n_stop_ids; i++) {
        if (m->stop_ids[i] == token) {
            return true;
        }
    }
    return !m->ignore_eos && token == SIM_EOS;
}

/* The longest stop string that ends `text`, or -1. */
static int32_t stop_at(const struct msg_generate *m, const struct buf *text)
{
    int32_t found = -1;

    for (uint32_t i = 0; i < m->n_stop; i++) {
        const struct msg_str *stop = &m->stop[i];
        if (text->len >= stop->len &&
            memcmp(text->data + text->len - stop->len, stop->data, stop->len) == 0 &&
            (found < 0 || stop->len > m->stop[found].len)) {
            found = (int32_t)i;
        }
    }
    return found;
}

/* Text of one token. A first half waits in *half for its second; one that never comes is U+FFFD. */
static void text_push(struct buf *text, uint32_t token, bool *half)
{
    static const char lead = (char)0xC3;
    const char byte = (char)token;
    status st = ST_OK;

    if (token >= 0x80 && token < 0xC0 && *half) {
        st = buf_append(text, &lead, 1);
        *half = false;
    } else if (*half && token < 256) { /* after an EOS that was passed over (ignore_eos) */
        st = buf_append_str(text, "\xEF\xBF\xBD");
        *half = false;
    }
    if (token == 0xC3) {
        *half = true;
    } else if (token < 256 && st == ST_OK) {
        st = buf_append(text, &byte, 1);
    }
    ASSERT(st == ST_OK);
}

static void end_at_stop(struct sim_truth *t, const struct msg_generate *m)
{
    t->reason = FINISH_STOP;
    t->text.len -= m->stop[t->i_stop].len;
}

void sim_truth_make(const struct msg_generate *m, const uint32_t *prompt, uint32_t n_prompt,
                    uint32_t max_tokens, uint64_t seed, uint32_t choice, struct sim_truth *t)
{
    struct sim_params p = { .temperature = m->has_temperature ? m->temperature : 1.0f,
                            .top_p = m->has_top_p ? m->top_p : 1.0f,
                            .min_p = m->has_min_p ? m->min_p : 0.0f,
                            .top_k = m->has_top_k ? m->top_k : 0,
                            .seed = seed,
                            .choice = choice,
                            .penalties = { m->has_repetition_penalty ? m->repetition_penalty : 1.0f,
                                           m->presence_penalty, m->frequency_penalty } };
    struct counted counted;
    uint64_t before = first, sum = 0;
    uint32_t last = 0, pos = 0;
    bool half = false;

    memset(t, 0, sizeof(*t));
    counted_init(&counted, &p.penalties, prompt, n_prompt);
    t->text = (struct buf)BUF_INIT;
    t->i_stop = -1;
    t->reason = FINISH_LENGTH;
    t->ids = calloc(max_tokens, sizeof(*t->ids));
    t->logprobs = calloc(max_tokens, sizeof(*t->logprobs));
    ASSERT(t->ids != NULL && t->logprobs != NULL);
    for (; pos < n_prompt; pos++) {
        before = entry(before, last = prompt[pos]);
        sum += before;
    }
    while (t->n < max_tokens) {
        p.adjusts = counted_hash(&counted, m);
        const struct chosen c = choose(sum, &p, pos - 1, last);
        counted.is_there[c.token] = true;
        counted.n_made[c.token]++;
        t->logprobs[t->n] = c.logprob;
        t->ids[t->n++] = last = c.token;
        if (is_stop_id(m, c.token)) {
            t->reason = FINISH_STOP;
            break;
        }
        text_push(&t->text, c.token, &half);
        t->i_stop = half ? -1 : stop_at(m, &t->text);
        if (t->i_stop >= 0) {
            end_at_stop(t, m);
            return;
        }
        before = entry(before, last);
        sum += before;
        pos++;
    }
    if (half) {
        ASSERT(buf_append_str(&t->text, "\xEF\xBF\xBD") == ST_OK);
    }
}

void sim_truth_fini(struct sim_truth *t)
{
    free(t->ids);
    free(t->logprobs);
    buf_fini(&t->text);
}
