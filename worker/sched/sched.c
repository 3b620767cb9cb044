/* worker/sched/sched.c - the life of a stream: queued, run, ended. Choosing rows is sched_plan.c.
 */
#include "worker/sched/sched_priv.h"

#include <stdlib.h>
#include <string.h>

/* ---- lists ---- */

void stream_list_insert(struct stream_list *list, struct stream *q)
{
    struct stream *after = list->last;

    while (after != NULL && after->age > q->age) {
        after = after->prev;
    }
    q->prev = after;
    q->next = after != NULL ? after->next : list->first;
    *(q->next != NULL ? &q->next->prev : &list->last) = q;
    *(after != NULL ? &after->next : &list->first) = q;
    list->n++;
}

void stream_list_remove(struct stream_list *list, struct stream *q)
{
    *(q->prev != NULL ? &q->prev->next : &list->first) = q->next;
    *(q->next != NULL ? &q->next->prev : &list->last) = q->prev;
    q->prev = NULL;
    q->next = NULL;
    list->n--;
}

/* ---- create, destroy ---- */

static status alloc_tables(struct sched *s)
{
    const struct sched_config *c = &s->config;

    s->streams = calloc(s->n_streams_max, sizeof(*s->streams));
    s->flights = calloc(s->n_flights_max, sizeof(*s->flights));
    s->event_tokens = calloc(s->event_max, sizeof(*s->event_tokens));
    s->event_tops = calloc((size_t)s->event_max * SAMPLE_LOGPROBS_MAX, sizeof(*s->event_tops));
    s->event_ends = calloc(s->ends_max, sizeof(*s->event_ends));
    if (s->streams == NULL || s->flights == NULL || s->event_tokens == NULL ||
        s->event_tops == NULL || s->event_ends == NULL) {
        return ST_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < s->n_flights_max; i++) {
        struct flight *f = &s->flights[i];
        f->seqs = calloc(c->limits.seqs_max, sizeof(struct stream *));
        f->sample = calloc(c->limits.seqs_max, sizeof(*f->sample));
        f->end = calloc(c->limits.seqs_max, sizeof(*f->end));
        if (f->seqs == NULL || f->sample == NULL || f->end == NULL) {
            return ST_ERR_NOMEM;
        }
    }
    return ST_OK;
}

status sched_create(const struct sched_config *config, struct sched **sched_p, struct err *err)
{
    ASSERT(config->limits.seqs_max > 0 && config->limits.rows_max > 0 && config->kv_blocks > 0);
    ASSERT(config->in_flight_max > 0 && config->ctx_max > 1);
    ASSERT(!config->ahead || config->in_flight_max == 1);
    struct sched *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for the scheduler");
    }
    s->config = *config;
    if (s->config.chunk_max == 0 || s->config.chunk_max > config->limits.rows_max) {
        s->config.chunk_max = config->limits.rows_max;
    }
    s->n_streams_max = config->queue_max + config->limits.seqs_max;
    s->n_flights_max = config->in_flight_max + (config->ahead ? 1 : 0);
    s->event_max = config->limits.seqs_max;
    s->ends_max = s->n_streams_max * 2;
    s->next_step = 1;
    status st = alloc_tables(s);
    if (st != ST_OK) {
        err_set(err, st, "no memory for a table of %u streams", s->n_streams_max);
    } else {
        (void)((st = blocks_init(&s->blocks, config->kv_blocks, err)) ||
               (st = prefix_init(&s->prefix, &s->blocks, config->prefix_cache, err)));
    }
    if (st != ST_OK) {
        sched_destroy(s);
        return st;
    }
    *sched_p = s;
    return ST_OK;
}

static void stream_fini(struct stream *q)
{
    free(q->tokens);
    free(q->table);
    counts_fini(&q->counts);
    free(q->biases);
    memset(q, 0, sizeof(*q));
}

void sched_destroy(struct sched *s)
{
    if (s == NULL) {
        return;
    }
    for (uint32_t i = 0; s->streams != NULL && i < s->n_streams_max; i++) {
        stream_fini(&s->streams[i]);
    }
    for (uint32_t i = 0; s->flights != NULL && i < s->n_flights_max; i++) {
        free(s->flights[i].seqs);
        free(s->flights[i].sample);
        free(s->flights[i].end);
    }
    prefix_fini(&s->prefix);
    blocks_fini(&s->blocks);
    free(s->streams);
    free(s->flights);
    free(s->event_tokens);
    free(s->event_tops);
    free(s->event_ends);
    free(s);
}

/* ---- submit ---- */

static uint32_t blocks_for(uint32_t n_tokens)
{
    return (n_tokens + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
}

static struct stream *find(struct sched *s, uint64_t id)
{
    for (uint32_t i = 0; i < s->n_streams_max; i++) {
        if (s->streams[i].state != STREAM_FREE && s->streams[i].id == id) {
            return &s->streams[i];
        }
    }
    return NULL;
}

static struct stream *free_slot(struct sched *s)
{
    for (uint32_t i = 0; i < s->n_streams_max; i++) {
        if (s->streams[i].state == STREAM_FREE) {
            return &s->streams[i];
        }
    }
    return NULL;
}

static status check_submit(struct sched *s, const struct msg_submit *m, struct err *err)
{
    const struct sched_config *c = &s->config;

    if (m->n_prompt == 0 || m->max_tokens == 0 || m->n_emitted >= m->max_tokens ||
        m->n_stop_ids > ARRAY_LEN(s->streams[0].stop_ids) || m->n_logprobs > SAMPLE_LOGPROBS_MAX ||
        m->n_biases > STEP_BIASES_MAX) {
        return err_set(
            err, ST_ERR_ARG,
            "%u prompt tokens, %u emitted of %u, %u stop ids, %u log-probabilities, %u biases",
            m->n_prompt, m->n_emitted, m->max_tokens, m->n_stop_ids, m->n_logprobs, m->n_biases);
    }
    if (m->n_prompt >= c->ctx_max || m->max_tokens > c->ctx_max - m->n_prompt) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u prompt tokens and %u to generate do not fit a context of %u tokens; "
                       "shorten the prompt or lower max_tokens",
                       m->n_prompt, m->max_tokens, c->ctx_max);
    }
    /* The last chosen token is never computed, so its position needs no KV. */
    const uint32_t need = blocks_for(m->n_prompt + m->max_tokens - 1);
    if (need > c->kv_blocks) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u prompt tokens and %u to generate need %u KV blocks of %d tokens, the "
                       "replica has %u; lower max_tokens or serve with more KV",
                       m->n_prompt, m->max_tokens, need, KERN_KV_BLOCK, c->kv_blocks);
    }
    if (s->waiting.n >= c->queue_max) {
        return err_set(err, ST_ERR_LIMIT,
                       "%u streams are waiting already, the limit; try again later", s->waiting.n);
    }
    if (find(s, m->stream) != NULL) {
        return err_set(err, ST_ERR_EXISTS, "stream %llu is here already",
                       (unsigned long long)m->stream);
    }
    return ST_OK;
}

static struct kern_penalties penalties_of(const struct msg_submit *m)
{
    return (struct kern_penalties){
        .repetition = m->repetition_penalty == 0.0f ? 1.0f : m->repetition_penalty,
        .presence = m->presence_penalty,
        .frequency = m->frequency_penalty,
    };
}

static int by_id(const void *a, const void *b)
{
    const uint32_t x = ((const struct kern_adjust *)a)->id, y = ((const struct kern_adjust *)b)->id;

    return x < y ? -1 : x > y;
}

/* What the stream's penalties and biases concern. Only repetition looks at the prompt. */
static status make_adjusts(struct stream *q, const struct msg_submit *m)
{
    const struct kern_penalties p = penalties_of(m);
    const bool repeats = p.repetition != 1.0f;
    status st = ST_OK;

    if (repeats || p.presence != 0.0f || p.frequency != 0.0f) {
        const struct counts_from from = { m->prompt, m->emitted, repeats ? m->n_prompt : 0,
                                          m->n_emitted };
        st = counts_init(&q->counts, &from, from.n_prompt + m->max_tokens);
    }
    if (st == ST_OK && m->n_biases != 0) {
        q->biases = malloc(m->n_biases * sizeof(*q->biases));
        st = q->biases == NULL ? ST_ERR_NOMEM : ST_OK;
    }
    if (st != ST_OK) {
        return st;
    }
    for (uint32_t i = 0; i < m->n_biases; i++) {
        q->biases[i] = (struct kern_adjust){ .id = m->biases[i].id, .bias = m->biases[i].bias };
    }
    q->n_biases = m->n_biases;
    if (q->n_biases != 0) {
        qsort(q->biases, q->n_biases, sizeof(*q->biases), by_id);
    }
    return ST_OK;
}

static void fill_stream(struct sched *s, struct stream *q, const struct msg_submit *m)
{
    q->id = m->stream;
    q->attempt = m->attempt;
    q->age = s->next_age++;
    memcpy(q->tokens, m->prompt, m->n_prompt * sizeof(uint32_t));
    if (m->n_emitted != 0) {
        memcpy(q->tokens + m->n_prompt, m->emitted, m->n_emitted * sizeof(uint32_t));
    }
    q->chain.scope = m->cache_scope;
    q->n_prompt = m->n_prompt;
    q->n_tokens = m->n_prompt + m->n_emitted;
    q->n_tokens_max = m->n_prompt + m->max_tokens;
    q->submitted_ns = clock_now_ns(s->config.clock);
    q->deadline_ns =
        m->deadline_us == 0 ? CLOCK_NEVER : q->submitted_ns + m->deadline_us * NS_PER_US;
    q->params = (struct sample_params){ .temperature = m->temperature,
                                        .top_k = m->top_k,
                                        .top_p = m->top_p,
                                        .min_p = m->min_p,
                                        .n_logprobs = m->want_logprobs ? m->n_logprobs : 0,
                                        .penalties = penalties_of(m),
                                        .seed = m->seed,
                                        .choice = m->choice };
    q->n_stop_ids = m->n_stop_ids;
    if (m->n_stop_ids != 0) {
        memcpy(q->stop_ids, m->stop_ids, m->n_stop_ids * sizeof(uint32_t));
    }
}

status sched_submit(struct sched *s, const struct msg_submit *m, struct err *err)
{
    const status st = check_submit(s, m, err);
    if (st != ST_OK) {
        return st;
    }
    struct stream *q = free_slot(s);
    if (q == NULL) {
        return err_set(err, ST_ERR_LIMIT, "%u streams are here already, the limit",
                       s->n_streams_max);
    }
    const uint32_t n_max = m->n_prompt + m->max_tokens;
    q->tokens = malloc((size_t)n_max * sizeof(uint32_t));
    q->table = malloc((size_t)blocks_for(n_max) * sizeof(uint32_t));
    if (q->tokens == NULL || q->table == NULL || make_adjusts(q, m) != ST_OK) {
        stream_fini(q);
        return err_set(err, ST_ERR_NOMEM, "no memory for a stream of %u tokens", n_max);
    }
    fill_stream(s, q, m);
    q->state = STREAM_WAITING;
    stream_list_insert(&s->waiting, q);
    return ST_OK;
}

/* ---- end ---- */

void stream_drop_kv(struct sched *s, struct stream *q)
{
    /* The last first: of those that are kept, children are to be evicted before their parents. */
    while (q->n_blocks != 0) {
        blocks_put(&s->blocks, q->table[--q->n_blocks]);
    }
    q->chain = (struct prefix_chain){ .scope = q->chain.scope };
    q->n_sched = 0;
    q->n_awaited = 0;
}

static void release(struct sched *s, struct stream *q)
{
    stream_drop_kv(s, q);
    stream_fini(q);
}

static void start_events(struct sched *s)
{
    if (s->events_taken) {
        s->n_event_tokens = 0;
        s->n_event_ends = 0;
        s->events_taken = false;
    }
}

void stream_end(struct sched *s, struct stream *q, enum finish_reason reason, status code,
                const char *text)
{
    start_events(s);
    ASSERT(s->n_event_ends < s->ends_max);
    s->event_ends[s->n_event_ends++] = (struct msg_finish){ .stream = q->id,
                                                            .attempt = q->attempt,
                                                            .reason = reason,
                                                            .code = code,
                                                            .text = text,
                                                            .cached_tokens = q->n_cached,
                                                            .queued_us = q->queued_ns / NS_PER_US };
    stream_list_remove(q->state == STREAM_WAITING ? &s->waiting : &s->running, q);
    if (q->n_in_flight == 0) {
        release(s, q);
        return;
    }
    q->state = STREAM_ENDING; /* ranks may still write its blocks */
    s->n_ending++;
}

void sched_cancel(struct sched *s, uint64_t stream, uint32_t attempt)
{
    struct stream *q = find(s, stream);

    if (q != NULL && q->attempt == attempt && q->state != STREAM_ENDING) {
        stream_end(s, q, FINISH_CANCELLED, ST_ERR_CANCELLED, "cancelled");
    }
}

void sched_cancel_all(struct sched *s)
{
    while (s->waiting.first != NULL) {
        stream_end(s, s->waiting.first, FINISH_CANCELLED, ST_ERR_CANCELLED, "cancelled");
    }
    while (s->running.first != NULL) {
        stream_end(s, s->running.first, FINISH_CANCELLED, ST_ERR_CANCELLED, "cancelled");
    }
}

/* ---- results ---- */

static bool is_stop_id(const struct stream *q, uint32_t token)
{
    for (uint32_t i = 0; i < q->n_stop_ids; i++) {
        if (q->stop_ids[i] == token) {
            return true;
        }
    }
    return false;
}

static void take_token(struct sched *s, struct stream *q, const struct sample_result *r)
{
    const uint32_t i = s->n_event_tokens++;
    struct msg_logprob *top = s->event_tops + (size_t)i * SAMPLE_LOGPROBS_MAX;
    const uint32_t n_top = MIN(r->n_top, q->params.n_logprobs);

    ASSERT(i < s->event_max && q->n_tokens < q->n_tokens_max);
    for (uint32_t k = 0; k < n_top; k++) {
        top[k] = (struct msg_logprob){ r->top[k].id, r->top[k].logit };
    }
    s->event_tokens[i] = (struct msg_token){ .stream = q->id,
                                             .attempt = q->attempt,
                                             .index = q->n_tokens - q->n_prompt,
                                             .token = r->token,
                                             .logprob = r->logprob,
                                             .n_top = n_top,
                                             .top = top };
    q->tokens[q->n_tokens++] = r->token;
    if (q->counts.at != NULL) {
        counts_add(&q->counts, r->token);
    }
    q->n_awaited--;
    s->n_chosen++;
    if (is_stop_id(q, r->token)) {
        stream_end(s, q, FINISH_STOP, ST_OK, "");
    } else if (q->n_tokens == q->n_tokens_max) {
        stream_end(s, q, FINISH_LENGTH, ST_OK, "");
    }
}

/* One sequence of a plan that came back, with rows up to position `end`. */
static void land(struct sched *s, struct stream *q, uint32_t end, const struct step_result *result)
{
    q->n_in_flight--;
    /* A stream that ended before its token came has rows whose tokens nobody kept. */
    prefix_publish(&s->prefix, &q->chain, q->tokens, MIN(end, q->n_tokens), q->table);
    if (q->state == STREAM_ENDING) {
        if (q->n_in_flight == 0) {
            s->n_ending--;
            release(s, q);
        }
        return;
    }
    if (result != NULL) {
        take_token(s, q, &result->sampled);
    }
}

status sched_done(struct sched *s, uint64_t step, const struct step_result *results,
                  uint32_t n_results, struct err *err)
{
    struct flight *f = &s->flights[s->i_flight];
    uint32_t i_result = 0;

    if (s->n_flights == 0 || f->id != step) {
        return err_set(err, ST_ERR_PROTO, "results of step %llu, waiting for step %llu",
                       (unsigned long long)step, (unsigned long long)(s->n_flights ? f->id : 0));
    }
    for (uint32_t i = 0; i < f->n_seqs; i++) {
        if (f->sample[i]) {
            if (i_result >= n_results || results[i_result].stream != f->seqs[i]->id) {
                return err_set(err, ST_ERR_PROTO, "step %llu: result %u of %u is not stream %llu's",
                               (unsigned long long)step, i_result, n_results,
                               (unsigned long long)f->seqs[i]->id);
            }
            i_result++;
        }
    }
    if (i_result != n_results) {
        return err_set(err, ST_ERR_PROTO, "step %llu: %u results, %u were asked for",
                       (unsigned long long)step, n_results, i_result);
    }
    start_events(s);
    s->event_step = step;
    i_result = 0;
    for (uint32_t i = 0; i < f->n_seqs; i++) {
        land(s, f->seqs[i], f->end[i], f->sample[i] ? &results[i_result++] : NULL);
    }
    s->i_flight = (s->i_flight + 1) % s->n_flights_max;
    s->n_flights--;
    return ST_OK;
}

/* ---- reports ---- */

const struct msg_events *sched_events(struct sched *s)
{
    start_events(s);
    s->events = (struct msg_events){ .step = s->event_step,
                                     .n_tokens = s->n_event_tokens,
                                     .n_finishes = s->n_event_ends,
                                     .tokens = s->event_tokens,
                                     .finishes = s->event_ends };
    s->events_taken = true;
    return &s->events;
}

void sched_stats(const struct sched *s, struct sched_stats *stats_p)
{
    *stats_p = (struct sched_stats){ .running = s->running.n + s->n_ending,
                                     .waiting = s->waiting.n,
                                     .in_flight = s->n_flights,
                                     .kv_blocks_used = blocks_held(&s->blocks),
                                     .kv_blocks_total = s->blocks.n_blocks,
                                     .kv_blocks_cached = s->blocks.n_idle,
                                     .steps = s->next_step - 1,
                                     .tokens = s->n_chosen,
                                     .preemptions = s->n_preemptions,
                                     .cache_hits = s->n_cache_hits,
                                     .cache_tokens = s->n_cache_tokens };
}

uint32_t sched_queued(const struct sched *s, uint64_t *streams, uint32_t n_max)
{
    uint32_t n = 0;

    for (const struct stream *q = s->waiting.last; q != NULL && n < n_max; q = q->prev) {
        if (q->n_in_flight == 0) {
            streams[n++] = q->id;
        }
    }
    return n;
}

bool sched_is_idle(const struct sched *s)
{
    return s->running.n == 0 && s->waiting.n == 0 && s->n_ending == 0 && s->n_flights == 0;
}

/* Count the stream's holds into `holders` [n_blocks]. A block that others may hold too must be the
 * right one for its place in every table. */
static bool stream_is_valid(const struct sched *s, const struct stream *q, uint32_t *holders)
{
    const bool waits = q->state == STREAM_WAITING;

    if (q->n_sched > q->n_tokens + (s->config.ahead ? 1 : 0) ||
        q->n_blocks < blocks_for(q->n_sched) || q->chain.n > q->n_blocks ||
        (waits && (q->n_blocks != 0 || q->n_sched != 0)) ||
        !prefix_is_chain(&s->prefix, q->chain.scope, q->tokens, q->table, q->chain.n)) {
        return false;
    }
    for (uint32_t i = 0; i < q->n_blocks; i++) {
        const bool is_named = i < q->chain.n;
        if (q->table[i] >= s->blocks.n_blocks || s->blocks.all[q->table[i]].is_kept != is_named ||
            (holders[q->table[i]]++ != 0 && !is_named)) {
            return false;
        }
    }
    return true;
}

static bool list_is_valid(const struct stream_list *list, enum stream_state state)
{
    uint32_t n = 0;

    for (const struct stream *q = list->first; q != NULL; q = q->next) {
        n++;
        if (q->state != state || (q->next != NULL && q->next->age <= q->age)) {
            return false;
        }
    }
    return n == list->n;
}

bool sched_is_valid(const struct sched *s)
{
    uint32_t *holders = calloc(s->blocks.n_blocks, sizeof(*holders));
    uint32_t ending = 0;
    bool ok = holders != NULL && list_is_valid(&s->waiting, STREAM_WAITING) &&
              list_is_valid(&s->running, STREAM_RUNNING) && blocks_is_valid(&s->blocks) &&
              prefix_is_valid(&s->prefix);

    for (uint32_t i = 0; ok && i < s->n_streams_max; i++) {
        const struct stream *q = &s->streams[i];
        ending += q->state == STREAM_ENDING;
        ok = q->state == STREAM_FREE || stream_is_valid(s, q, holders);
    }
    for (uint32_t i = 0; ok && i < s->blocks.n_blocks; i++) {
        ok = holders[i] == s->blocks.all[i].n_holders;
    }
    free(holders);
    return ok && ending == s->n_ending;
}
