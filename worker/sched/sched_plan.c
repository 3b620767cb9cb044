/* worker/sched/sched_plan.c - choosing the rows of a step: expire, decode, go on with prompts,
 * admit.
 *
 * The idea in one paragraph: walk the running streams by age, twice. First everyone who needs just
 * one row (decode), so that long prompts never delay running answers by more than one step of
 * rows_max rows; then chunks of prompts with the rows that are left; then waiting streams are
 * admitted while rows, slots and KV last, each with what is kept of its beginning. Taking a block
 * may evict a kept one that nobody holds, and when there is none preempt the youngest running stream
 * that is younger than the taker. */
#include "worker/sched/sched_priv.h"

#include <string.h>

/* A plan under construction. Sequences and tables go straight to their place; tokens are gathered
 * last because their place depends on the number of sequences. */
struct draft {
    struct step_head *head;
    struct flight *flight;
    uint32_t seqs_max; /* of this step: the streams are spread over in_flight_max plans */
    bool ahead;        /* the plan before is out, and its samples feed this one */
    bool is_short; /* somebody found no KV: younger streams stay out, to be preempted next time */
};

static uint32_t blocks_for(uint32_t n_tokens)
{
    return (n_tokens + KERN_KV_BLOCK - 1) / KERN_KV_BLOCK;
}

static void expire_list(struct sched *s, struct stream_list *list, uint64_t now)
{
    for (struct stream *q = list->first, *next; q != NULL; q = next) {
        next = q->next;
        if (q->deadline_ns <= now) {
            stream_end(s, q, FINISH_FAILED, ST_ERR_DEADLINE, "the deadline passed");
        }
    }
}

/* The youngest running stream that may be preempted in favour of `taker`: younger, in no plan that
 * is out. */
static struct stream *victim_for(const struct sched *s, const struct stream *taker)
{
    for (struct stream *q = s->running.last; q != NULL && q->age > taker->age; q = q->prev) {
        if (q->n_in_flight == 0 && q->n_blocks != 0) {
            return q;
        }
    }
    return NULL;
}

static void preempt(struct sched *s, struct stream *q)
{
    stream_list_remove(&s->running, q);
    stream_drop_kv(s, q);
    q->state = STREAM_WAITING;
    stream_list_insert(&s->waiting, q);
    s->n_preemptions++;
}

/* Blocks for positions [0, n_tokens), preempting if need be. The number of positions that are
 * covered. */
static uint32_t cover(struct sched *s, struct stream *q, uint32_t n_tokens)
{
    const uint32_t need = blocks_for(n_tokens);

    while (q->n_blocks < need) {
        if (prefix_get(&s->prefix, &q->table[q->n_blocks])) {
            q->n_blocks++;
            continue;
        }
        struct stream *victim = victim_for(s, q);
        if (victim == NULL) {
            return q->n_blocks * KERN_KV_BLOCK;
        }
        preempt(s, victim);
    }
    return n_tokens;
}

static bool is_full(const struct sched *s, const struct draft *d)
{
    return d->head->n_seqs == d->seqs_max || d->head->n_rows == s->config.limits.rows_max;
}

/* Does the plan that is out choose a token that q goes on from? */
static bool is_fed(const struct draft *d, const struct stream *q)
{
    return d->ahead && q->n_awaited == 1 && q->n_tokens + 1 < q->n_tokens_max;
}

/* Put up to `rows_max` next rows of q into the plan. False: it has no KV for even one now. */
static bool add_rows(struct sched *s, struct draft *d, struct stream *q, uint32_t rows_max)
{
    struct step_head *h = d->head;
    const uint32_t room = MIN(rows_max, s->config.limits.rows_max - h->n_rows);
    const uint32_t fed = is_fed(d, q) ? 1 : 0, known = q->n_tokens + fed;
    uint32_t end = MIN(known, q->n_sched + room);

    end = MIN(end, cover(s, q, end));
    if (end <= q->n_sched || h->n_tables + blocks_for(end) > s->config.limits.tables_max) {
        return false;
    }
    const bool sample = end == known;
    const uint32_t n_counts = sample ? q->counts.n : 0, n_biases = sample ? q->n_biases : 0;
    if (n_counts + n_biases > s->config.limits.adjusts_max - h->n_adjusts) {
        return false; /* the streams before it have taken the room; it is their junior */
    }
    step_seqs(h)[h->n_seqs] = (struct step_seq){ .stream = q->id,
                                                 .attempt = q->attempt,
                                                 .row0 = h->n_rows,
                                                 .n_rows = end - q->n_sched,
                                                 .pos0 = q->n_sched,
                                                 .table0 = h->n_tables,
                                                 .n_blocks = blocks_for(end),
                                                 .sample = sample,
                                                 .feed = fed != 0 ? q->i_sample + 1 : 0,
                                                 .adjust0 = h->n_adjusts,
                                                 .n_counts = n_counts,
                                                 .n_biases = n_biases,
                                                 .params = q->params };
    d->flight->seqs[h->n_seqs] = q;
    d->flight->sample[h->n_seqs] = sample;
    d->flight->end[h->n_seqs] = end;
    h->n_seqs++;
    h->n_rows += end - q->n_sched;
    h->n_tables += blocks_for(end);
    h->n_adjusts += n_counts + n_biases;
    if (q->queued_ns == 0) {
        q->queued_ns = MAX(clock_now_ns(s->config.clock) - q->submitted_ns, (uint64_t)1);
    }
    q->n_sched = end;
    if (sample) {
        q->i_sample = h->n_samples++;
        q->n_awaited++;
    }
    q->n_in_flight++;
    return true;
}

/* Rows of running streams: those with one row to go (decode), or the others. */
static void add_running(struct sched *s, struct draft *d, bool decode)
{
    for (struct stream *q = s->running.first, *next; q != NULL; q = next) {
        if (is_full(s, d)) {
            return;
        }
        const bool fed = is_fed(d, q);
        const uint32_t left = q->n_tokens + (fed ? 1 : 0) - q->n_sched;
        if ((fed ? !d->is_short : q->n_awaited == 0) && left != 0 && (left == 1) == decode &&
            !add_rows(s, d, q, decode ? 1 : s->config.chunk_max)) {
            d->is_short = true;
        }
        next = q->next; /* after add_rows: it may have preempted the neighbour */
    }
}

/* Hold what is kept of the stream's beginning, if there is room for the rest of its known tokens
 * and one block to spare per running stream (the margin: each will soon want its next block). Kept
 * blocks that nobody holds are room, except those that would be taken here. */
static bool take_prefix(struct sched *s, struct stream *q)
{
    const uint32_t margin = s->running.n;
    struct prefix_chain chain = { .scope = q->chain.scope };
    uint32_t n_idle = 0;
    const uint32_t n = prefix_match(&s->prefix, q->tokens, q->n_tokens, &chain, q->table, &n_idle);
    const uint32_t room = s->blocks.n_free + s->blocks.n_idle - n_idle;

    if (room < blocks_for(q->n_tokens) - n + margin && s->running.n != 0) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        blocks_hold(&s->blocks, q->table[i]);
    }
    q->chain = chain;
    q->n_blocks = n;
    q->n_sched = n * KERN_KV_BLOCK;
    if (q->queued_ns == 0) {
        q->n_cached = MIN(q->n_sched, q->n_prompt);
    }
    s->n_cache_hits += n != 0;
    s->n_cache_tokens += q->n_sched;
    return true;
}

/* Waiting streams, oldest first, while there are rows, slots and KV. */
static void admit(struct sched *s, struct draft *d)
{
    for (struct stream *q = s->waiting.first, *next; q != NULL; q = next) {
        next = q->next;
        if (is_full(s, d) || s->running.n >= s->config.limits.seqs_max || !take_prefix(s, q)) {
            return;
        }
        stream_list_remove(&s->waiting, q);
        q->state = STREAM_RUNNING;
        stream_list_insert(&s->running, q);
        add_rows(s, d, q, s->config.chunk_max);
    }
}

/* Adjusts, tokens and tables behind the sequences, now that their number is known. */
static void fill_arrays(struct draft *d)
{
    struct step_head *h = d->head;
    struct kern_adjust *adjusts = step_adjusts(h);
    uint32_t *tokens = step_tokens(h);
    uint32_t *tables = tokens + h->n_rows;

    for (uint32_t i = 0; i < h->n_seqs; i++) {
        const struct step_seq *e = &step_seqs(h)[i];
        const struct stream *q = d->flight->seqs[i];
        if (e->feed != 0) {
            tokens[e->row0] = 0;
        } else {
            memcpy(tokens + e->row0, q->tokens + e->pos0, e->n_rows * sizeof(uint32_t));
        }
        memcpy(tables + e->table0, q->table, e->n_blocks * sizeof(uint32_t));
        if (e->n_counts != 0) {
            memcpy(adjusts + e->adjust0, q->counts.at, e->n_counts * sizeof(*adjusts));
        }
        if (e->n_biases != 0) {
            memcpy(adjusts + e->adjust0 + e->n_counts, q->biases, e->n_biases * sizeof(*adjusts));
        }
    }
}

/* Can the device choose all tokens that are out and that somebody goes on from? Not beside filters,
 * nor where penalties will count a token that the host has yet to see. Everybody waits for the
 * host then, so that one batch does not become two. */
static bool all_plain(const struct sched *s)
{
    for (const struct stream *q = s->running.first; q != NULL; q = q->next) {
        if (q->n_awaited != 0 && q->n_tokens + 1 < q->n_tokens_max &&
            (q->counts.at != NULL || !sample_is_plain(&q->params))) {
            return false;
        }
    }
    return true;
}

status sched_next(struct sched *s, struct step_head *plan)
{
    const struct sched_config *c = &s->config;
    const uint64_t now = clock_now_ns(c->clock);

    expire_list(s, &s->running, now);
    expire_list(s, &s->waiting, now);
    const bool ahead = c->ahead && s->n_flights == c->in_flight_max;
    if (s->n_flights == s->n_flights_max || (ahead && !all_plain(s))) {
        return ST_BUSY;
    }
    struct flight *f = &s->flights[(s->i_flight + s->n_flights) % s->n_flights_max];
    const uint32_t live = s->running.n + s->waiting.n;
    struct draft d = { .head = plan,
                       .flight = f,
                       .ahead = ahead,
                       .seqs_max = MIN(c->limits.seqs_max,
                                       MAX(1u, (live + c->in_flight_max - 1) / c->in_flight_max)) };

    memset(plan, 0, sizeof(*plan));
    add_running(s, &d, true);
    add_running(s, &d, false);
    admit(s, &d);
    if (plan->n_seqs == 0) {
        return ST_BUSY;
    }
    plan->kind = STEP_RUN;
    plan->id = s->next_step++;
    fill_arrays(&d);
    step_seal(plan);
    f->id = plan->id;
    f->n_seqs = plan->n_seqs;
    s->n_flights++;
    return ST_OK;
}
