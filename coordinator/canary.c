/* coordinator/canary.c - a few tokens that every replica must compute alike.
 *
 *   all ranks ready ──► canary ──answer known?──► equal: it serves     (the first one is the known)
 *                                             └──► other bits: it is not let in, and ends
 *   serves, nobody has asked it for --canary seconds ──► canary again: does it still take work?
 *
 * Ranks that agree on build, plan, profile and weights still compute on processors and memory that
 * may be broken; and a leader whose control thread beats may have stopped taking work. One answer
 * of CANARY_TOKENS greedy tokens with log-probabilities goes through all of it: every layer, every
 * collective, the sampler. It is compared as bits with the answer of the first replica of the same
 * numeric profile (docs/numerics.md makes them equal).
 *
 * It is a stream of the replica and of nobody else: no journal, no session, no queue; its number has
 * the highest bit set, and its attempt counts canaries. Its prompt is shorter than a KV block, so no
 * cache answers for the kernels. Health is SERVING only on such proof (health.c). */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const uint64_t canary_stream = UINT64_C(1) << 63;

static bool is_on(const struct coord *c)
{
    return c->config.canary_ns != 0;
}

bool canary_is(uint64_t stream)
{
    return (stream & canary_stream) != 0;
}

/* Of this coordinator: what a leader says of a dead one's must not be taken for its own. */
static uint64_t number_of(const struct replica *r)
{
    const uint64_t epoch = r->coord->config.first_stream >> 40;

    return canary_stream | epoch << 16 | r->index;
}

/* ---- out ---- */

/* Ids spread over the vocabulary; which ones does not matter. */
static void prompt_make(const struct coord *c, uint32_t ids[CANARY_PROMPT])
{
    for (uint32_t i = 0; i < CANARY_PROMPT; i++) {
        ids[i] = (uint32_t)((UINT64_C(7919) * (i + 1) + 13) % c->desc->vocab);
    }
}

static void submit(struct replica *r)
{
    struct canary *k = &r->canary;
    uint32_t ids[CANARY_PROMPT];
    const struct msg_coord m = { .kind = MSG_SUBMIT,
                                 .submit = { .stream = number_of(r),
                                             .attempt = k->serial + 1,
                                             .prompt = ids,
                                             .n_prompt = CANARY_PROMPT,
                                             .max_tokens = CANARY_TOKENS,
                                             .temperature = 0,
                                             .top_p = 1,
                                             .want_logprobs = true,
                                             .cache_scope = canary_stream } };

    prompt_make(r->coord, ids);
    if (replica_send_leader(r, &m) == ST_OK) {
        k->serial++;
        k->n_tokens = 0;
        k->is_out = true;
        k->sent_ns = coord_now(r->coord);
    } /* else its queue is full of work, or its stream is about to break */
}

/* ---- back ---- */

/* Where the known answer of this profile is, or is to go. NULL: too many profiles to know. */
static struct journal_canary *known_of(struct coord *c, const char *profile)
{
    for (uint32_t i = 0; i < ARRAY_LEN(c->known); i++) {
        if (c->known[i].profile[0] == '\0' || strcmp(c->known[i].profile, profile) == 0) {
            return &c->known[i];
        }
    }
    return NULL;
}

static void refuse(struct replica *r, const struct journal_canary *known, uint32_t at)
{
    const struct canary *k = &r->canary;
    char text[ERR_TEXT_BYTES];

    snprintf(text, sizeof(text),
             "replica %u computes other bits: token %u of the canary is %u (%a) here and was %u "
             "(%a) on replica %u, host %s; memory or a processor of its hosts may be broken",
             r->index, at, k->tokens[at].id, (double)k->tokens[at].logprob, known->tokens[at].id,
             (double)known->tokens[at].logprob, known->replica, known->host);
    replica_sign(r, SIGN_OWN_FAULT, ST_ERR_MISMATCH, text);
}

static uint32_t bits_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

/* What the canary is: another build, model or other weights have another answer. */
static uint64_t key_of(const struct coord *c)
{
    uint32_t ids[CANARY_PROMPT];
    uint64_t key = hash64_of(c->config.build, strlen(c->config.build), CANARY_TOKENS);

    prompt_make(c, ids);
    key = hash64_of(ids, sizeof(ids), key ^ plan_model_digest(c->config.plan));
    return hash64_of(&c->digest, sizeof(c->digest), key);
}

/* The first answer of its profile. */
static void learn(struct replica *r, struct journal_canary *known)
{
    struct coord *c = r->coord;

    *known = (struct journal_canary){ .key = key_of(c), .replica = r->index };
    memcpy(known->tokens, r->canary.tokens, sizeof(known->tokens));
    snprintf(known->profile, sizeof(known->profile), "%s", r->shape.profile);
    snprintf(known->host, sizeof(known->host), "%s", r->ranks[0].host);
    if (c->config.disk != NULL) {
        journal_disk_canary(c->config.disk, known);
    }
}

static bool compare(struct replica *r)
{
    const struct canary *k = &r->canary;
    struct journal_canary *known = known_of(r->coord, r->shape.profile);

    if (known == NULL) {
        return true;
    }
    if (known->profile[0] == '\0' || known->key != key_of(r->coord)) {
        learn(r, known);
        return true;
    }
    for (uint32_t i = 0; i < CANARY_TOKENS; i++) {
        if (k->tokens[i].id != known->tokens[i].id ||
            bits_of(k->tokens[i].logprob) != bits_of(known->tokens[i].logprob)) {
            refuse(r, known, i);
            return false;
        }
    }
    return true;
}

/* ---- over restarts of the coordinator ---- */

/* A replica that computes wrongly could otherwise be the first that the next coordinator hears. */
void canary_restore(struct coord *c, const struct journal_image *image)
{
    memcpy(c->known, image->canaries, sizeof(c->known));
}

void canary_write(const struct coord *c)
{
    for (uint32_t i = 0; i < ARRAY_LEN(c->known); i++) {
        if (c->known[i].profile[0] != '\0') {
            journal_disk_canary(c->config.disk, &c->known[i]);
        }
    }
}

/* ---- its tokens ---- */

/* Of a replica that was given up nothing counts any more: its answer must not become the known one. */
static bool is_mine(const struct replica *r, uint64_t stream, uint32_t attempt)
{
    const struct canary *k = &r->canary;

    return replica_is_alive(r) && k->is_out && stream == number_of(r) && attempt == k->serial;
}

void canary_token(struct replica *r, const struct msg_token *t)
{
    struct canary *k = &r->canary;

    if (is_mine(r, t->stream, t->attempt) && t->index == k->n_tokens && t->index < CANARY_TOKENS) {
        k->tokens[t->index] = (struct msg_logprob){ t->token, t->logprob };
        k->n_tokens++;
    }
}

void canary_finish(struct replica *r, const struct msg_finish *m)
{
    struct canary *k = &r->canary;
    char text[ERR_TEXT_BYTES];

    if (!is_mine(r, m->stream, m->attempt)) {
        return;
    }
    k->is_out = false;
    if (m->code == ST_ERR_LIMIT && r->state == REPLICA_SERVING) {
        return; /* its queue is full of others: no proof, and no fault */
    }
    if (m->code < 0 || k->n_tokens != CANARY_TOKENS) {
        snprintf(text, sizeof(text), "the canary got %u of %d tokens: %s", k->n_tokens,
                 (int)CANARY_TOKENS, m->code < 0 ? m->text : "it ended early");
        replica_sign(r, SIGN_OWN_FAULT, m->code < 0 ? m->code : ST_ERR_INTERNAL, text);
        return;
    }
    if (!compare(r)) {
        return;
    }
    const uint64_t now = coord_now(r->coord);
    r->proven_ns = now;
    log_debug("canary", "replica %u.%u: canary %u is back after %.1f ms with the known bits",
              r->index, r->generation, k->serial, (double)(now - k->sent_ns) / 1e6);
    if (r->state == REPLICA_LOADING) {
        replica_serve(r);
    }
    health_push(r->coord);
}

/* ---- when ---- */

bool canary_admit(struct replica *r)
{
    if (is_on(r->coord) && !r->canary.is_out) {
        submit(r);
    }
    return !is_on(r->coord);
}

bool canary_is_fresh(const struct replica *r, uint64_t now)
{
    const uint64_t bound = detect_bound_ns(r);
    /* While it has streams its steps are the proof; a long prompt brings no token for a while. */
    const uint64_t since = r->n_streams != 0 ? MAX(r->moved_ns, r->proven_ns) : r->proven_ns;
    const uint64_t window = r->n_streams != 0 ? bound : r->coord->config.canary_ns + bound;

    return !is_on(r->coord) || r->coord->config.hang_ns == 0 || clock_since(now, since) <= window;
}

/* A leader that says it has nothing to do, while a canary waits for it. One that has something to do
 * is judged by its movement (detect.c). */
static void check_taken(struct replica *r, uint64_t now)
{
    const struct msg_heartbeat *leader = &r->ranks[0].heartbeat;
    const uint64_t waited = clock_since(now, r->canary.sent_ns);
    char text[ERR_TEXT_BYTES];

    if (waited <= detect_bound_ns(r) || leader->running + leader->waiting != 0) {
        return;
    }
    snprintf(text, sizeof(text),
             "rank 0 (host %s, pid %u) takes no work: a canary has waited for %.1f s in phase "
             "\"%s\" at step %" PRIu64,
             r->ranks[0].host, r->ranks[0].pid, (double)waited / 1e9, r->ranks[0].phase,
             leader->step);
    log_warn("replica", "replica %u.%u: %s", r->index, r->generation, text);
    replica_sign(r, SIGN_OWN_FAULT, ST_ERR_DEADLINE, text);
}

void canary_tick(struct replica *r, uint64_t now)
{
    const struct coord *c = r->coord;
    struct canary *k = &r->canary;

    if (!is_on(c) || (r->state != REPLICA_SERVING && r->state != REPLICA_LOADING)) {
        return;
    }
    if (k->is_out && c->config.hang_ns != 0) {
        check_taken(r, now);
    } else if (!k->is_out && r->state == REPLICA_SERVING && r->n_streams == 0 &&
               clock_since(now, r->proven_ns) >= c->config.canary_ns) {
        submit(r);
    }
}
