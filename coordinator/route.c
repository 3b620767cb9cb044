/* coordinator/route.c - which replica a stream runs on, and what becomes of it when that is lost.
 *
 *   new stream ──place──► the replica of the lowest score
 *   replica lost ──evacuate──► attempt + 1, the journal's tokens with it ──place──► another one
 *        none can take it ──► it waits here (replica -1) for one to serve, or for its deadline
 *
 * The load of a replica is what its streams may come to need: blocks for the prompt and max_tokens.
 * The coordinator's own count, not the heartbeats': those are a quarter of a second old, and a
 * burst of requests would all go to one replica.
 *
 * The score, in KV blocks: load, the stream's own included, times how much slower the replica is than
 * the fastest - KEPT_WEIGHT * (blocks of this prompt that are probably kept there, prefix_map.h). A replica
 * that could not hold the stream beside what it has comes after all that can. So a prompt of n kept
 * blocks goes to its replica while that is at most KEPT_WEIGHT * n blocks ahead of the idlest one: a
 * popular beginning fills one replica, spills over to the next and is then kept there too; none starves,
 * and none is ever ahead by more than what the cache saves it.
 *
 * How slow: a stream gets a token per step, so the shortest mean step that a leader of the replica's kind
 * (same profile, cut and kernels) has reported, over the fastest kind's. The shortest, because the last ones
 * say how much a replica has to do, which is what the blocks count. By kind, because a replica that has
 * only ever run beside others on a busy host would look slow, get nothing to do and look so for ever. Kinds
 * within ALIKE count as equal, and so does a replica of which nothing is known yet: somebody has
 * to try it.
 *
 * Profiles. Replicas that join may compute other bits (--mixed-profiles). A stream that has begun
 * goes on under its own profile where a replica of that serves, else under another and says so at its
 * end; one that was asked to be exact waits.
 *
 * Fencing. An event counts only if it comes from the stream's replica and carries its attempt;
 * whatever a lost replica still says is dropped (front.c, event_owner). */
#include "coordinator/coord_impl.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool route_can_take(const struct replica *r)
{
    /* Of a service that ends; one that is drained alone takes nothing more. */
    const bool drains =
        r->state == REPLICA_DRAINING && !r->coord->ranks_are_told && !r->drain.is_on;

    return (r->state == REPLICA_SERVING || drains) && r->n_ready == r->shape.n_ranks &&
           r->ranks[0].call != NULL;
}

uint32_t route_count(const struct coord *c)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        n += route_can_take(c->replicas[i]) ? 1 : 0;
    }
    return n;
}

/* Room for the keys of the longest stream. */
status route_init(struct coord *c, struct err *err)
{
    struct replica_shape shape;

    if (!c->config.prefix_cache) {
        return ST_OK;
    }
    shape_of_plan(c->config.plan, &shape);
    c->key_tokens = shape.block_tokens;
    c->n_keys_max = shape.ctx_max / shape.block_tokens + 1;
    c->keys = malloc(c->n_keys_max * sizeof(*c->keys));
    return c->keys != NULL ? ST_OK : err_set(err, ST_ERR_NOMEM, "no memory for the router");
}

/* What the largest replica can hold: those that join may have more or less than our own. */
uint32_t route_kv_tokens(const struct coord *c)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        if (r->state != REPLICA_GONE && r->state != REPLICA_FAILED) {
            most = MAX(most, (uint64_t)r->shape.kv_blocks * r->shape.block_tokens);
        }
    }
    return (uint32_t)MIN(most, UINT32_MAX);
}

static uint32_t blocks_of(const struct replica *r, const struct journal_entry *e)
{
    const uint32_t per_block = MAX(r->shape.block_tokens, 1u);

    return (e->n_prompt + e->max_tokens + per_block - 1) / per_block;
}

/* ---- the choice ---- */

enum {
    KEPT_WEIGHT = 2,
    PACE_STEPS = 64, /* the leader's mean is over some 16 */
    HUNDRED = 100,   /* slowness is in hundredths, and so is the score */
    ALIKE = 2 * HUNDRED,
    SLOWNESS_MAX = 1000 * HUNDRED
};

/* Why this replica: for the log. */
struct choice {
    struct replica *replica; /* NULL: none takes streams */
    uint32_t n_kept, n_keys;
    bool is_full, is_foreign; /* foreign: of another profile than its tokens so far */
    int64_t slowness, score;  /* hundredths */
};

/* The keys of an entry's known tokens, in c->keys. */
static uint32_t keys_of(struct coord *c, const struct journal_entry *e)
{
    if (c->keys == NULL) {
        return 0;
    }
    return prefix_keys(e->cache_scope, e->prompt, e->n_prompt, e->emitted, e->n_emitted,
                       c->key_tokens, c->keys, c->n_keys_max);
}

/* It could hold the stream, and may go on with it. */
static bool fits(const struct replica *r, const struct journal_entry *e)
{
    const bool is_bound = e->exact && e->profile[0] != '\0';

    return blocks_of(r, e) <= r->shape.kv_blocks &&
           (!is_bound || strcmp(e->profile, r->shape.profile) == 0);
}

static bool is_better(const struct choice *a, const struct choice *b)
{
    if (a->is_foreign != b->is_foreign) {
        return b->is_foreign;
    }
    return a->is_full != b->is_full ? b->is_full : a->score < b->score;
}

static bool is_of_kind(const struct replica *a, const struct replica *b)
{
    return a->shape.tp == b->shape.tp && a->shape.pp == b->shape.pp &&
           strcmp(a->shape.profile, b->shape.profile) == 0 &&
           strcmp(a->ranks[0].kernels, b->ranks[0].kernels) == 0;
}

void route_note_pace(struct replica *r, const struct msg_heartbeat *leader)
{
    const struct coord *c = r->coord;
    const double ns = leader->step_us * NS_PER_US; /* NaN, too, is not within: */
    uint64_t least = (uint64_t)(ns >= 1 && ns < 1e18 ? ns : 0);

    if (leader->step < PACE_STEPS || least == 0 || (r->pace_ns != 0 && least >= r->pace_ns)) {
        return;
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *other = c->replicas[i];
        if (other->pace_ns != 0 && is_of_kind(other, r)) {
            least = MIN(least, other->pace_ns);
        }
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        if (is_of_kind(c->replicas[i], r)) {
            c->replicas[i]->pace_ns = least;
        }
    }
}

/* In hundredths, 100: as fast as the fastest, or not known. */
static int64_t slowness_of(const struct replica *r, uint64_t fastest_ns)
{
    const double times = fastest_ns != 0 ? (double)r->pace_ns / (double)fastest_ns : 1;

    return times * HUNDRED < ALIKE ? HUNDRED : (int64_t)MIN(times * HUNDRED, (double)SLOWNESS_MAX);
}

/* Can any take it, and how fast is the fastest of them (0: not known)? */
static bool any_can_take(const struct coord *c, const struct journal_entry *e, uint64_t *fastest_p)
{
    uint64_t fastest = 0;
    bool any = false;

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        if (route_can_take(r) && fits(r, e)) {
            any = true;
            fastest =
                r->pace_ns != 0 && (fastest == 0 || r->pace_ns < fastest) ? r->pace_ns : fastest;
        }
    }
    *fastest_p = fastest;
    return any;
}

static int64_t score_of(const struct choice *now, uint64_t n_blocks)
{
    return now->slowness * (int64_t)n_blocks - (int64_t)HUNDRED * KEPT_WEIGHT * now->n_kept;
}

static struct choice pick(struct coord *c, const struct journal_entry *e)
{
    struct choice best = { .replica = NULL };
    uint64_t fastest_ns;

    if (!any_can_take(c, e, &fastest_ns)) { /* what waits is looked at often: no keys for nothing */
        return best;
    }
    best.n_keys = keys_of(c, e);
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        struct replica *r = c->replicas[i];
        if (!route_can_take(r) || !fits(r, e)) {
            continue;
        }
        struct choice now = { .replica = r, .n_keys = best.n_keys };
        now.n_kept = now.n_keys != 0 ? prefix_map_match(r->kept, c->keys, now.n_keys) : 0;
        const uint64_t n_blocks = r->n_blocks + blocks_of(r, e);
        now.is_full = n_blocks > r->shape.kv_blocks;
        now.is_foreign = e->profile[0] != '\0' && strcmp(e->profile, r->shape.profile) != 0;
        now.slowness = slowness_of(r, fastest_ns);
        now.score = score_of(&now, n_blocks);
        if (best.replica == NULL || is_better(&now, &best)) {
            best = now;
        }
    }
    return best;
}

/* The answer's blocks stay behind as well: the next turn of a conversation begins with them. */
static void note_answer(struct coord *c, struct replica *r, const struct journal_entry *e)
{
    const uint32_t n_keys = e->n_emitted >= r->shape.block_tokens ? keys_of(c, e) : 0;

    if (n_keys != 0 && replica_is_alive(r)) {
        prefix_map_note(r->kept, c->keys, n_keys);
    }
}

void route_leave(struct coord *c, struct journal_entry *e)
{
    if (e->replica >= 0) {
        struct replica *r = c->replicas[e->replica];
        note_answer(c, r, e);
        r->n_blocks -= e->n_blocks;
        r->n_streams--;
        e->replica = -1;
    }
}

/* ST_ERR_UNAVAILABLE: no replica can take it now. ST_BUSY: the chosen one takes no more now. */
static status place(struct coord *c, struct journal_entry *e)
{
    const struct msg_coord m = { .kind = MSG_SUBMIT, .submit = journal_submit(e, coord_now(c)) };
    const struct choice choice = pick(c, e);
    struct replica *r = choice.replica;

    if (r == NULL) {
        return ST_ERR_UNAVAILABLE;
    }
    const status st = replica_send_leader(r, &m);
    if (st != ST_OK) {
        return st == ST_BUSY ? ST_BUSY : ST_ERR_UNAVAILABLE;
    }
    e->replica = (int32_t)r->index;
    e->stranded_ns = 0;
    if (e->profile[0] == '\0') {
        snprintf(e->profile, sizeof(e->profile), "%s", r->shape.profile);
    } else if (choice.is_foreign) {
        log_req(LOG_INFO, "route", e->request_id,
                "began under profile %s and goes on under %s: its bits may differ from here on",
                e->profile, r->shape.profile);
    }
    e->n_blocks = blocks_of(r, e);
    r->n_blocks += e->n_blocks;
    r->n_streams++;
    if (choice.n_keys != 0) {
        prefix_map_note(r->kept, c->keys, choice.n_keys);
    }
    log_req(LOG_DEBUG, "route", e->request_id,
            "attempt %u goes to replica %u (score %.2f: %u of %u blocks may be kept there, its "
            "steps take "
            "%.2f of the fastest one's%s), which then has %u streams that may need %llu blocks",
            e->attempt, r->index, (double)choice.score / HUNDRED, choice.n_kept, choice.n_keys,
            (double)choice.slowness / HUNDRED, choice.is_full ? "; all are full" : "", r->n_streams,
            (unsigned long long)r->n_blocks);
    return ST_OK;
}

status route_submit(struct coord *c, struct journal_entry *e, struct err *err)
{
    const status st = place(c, e);

    if (st == ST_BUSY) {
        return err_set(err, ST_ERR_LIMIT,
                       "the replica takes no more requests now; try again later");
    }
    return ST_OK; /* placed; or it waits for the verdict on what was lost just now */
}

void route_cancel(struct coord *c, const struct journal_entry *e)
{
    const struct msg_coord m = { .kind = MSG_CANCEL, .cancel = { e->stream, e->attempt } };

    if (e->replica < 0) {
        return;
    }
    /* A leader that is gone computes nothing; one whose queue of 4,096 is full is about to be. */
    if (replica_send_leader(c->replicas[e->replica], &m) != ST_OK) {
        log_req(LOG_DEBUG, "stream", e->request_id, "cancel not sent, ignoring");
    }
}

/* ---- what waits ---- */

/* One that could take it is there, though it may not serve now. */
static bool may_go_on(const struct coord *c, const struct journal_entry *e)
{
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        if (!replica_is_over(r) && fits(r, e)) {
            return true;
        }
    }
    return false;
}

/* Nobody here will start what it needs. Somebody elsewhere may: for so long it waits. */
static void wait_on(struct coord *c, struct journal_entry *e)
{
    const uint64_t now = coord_now(c);
    char text[ERR_TEXT_BYTES];

    if (may_go_on(c, e)) {
        e->stranded_ns = 0;
        return;
    }
    if (e->stranded_ns == 0) {
        e->stranded_ns = now;
    }
    if (c->config.join_max != 0 && clock_since(now, e->stranded_ns) < c->config.rejoin_ns) {
        return;
    }
    if (e->exact && e->profile[0] != '\0') {
        snprintf(text, sizeof(text),
                 "the stream has begun under profile %s and is exact, and no replica of that "
                 "profile is left",
                 e->profile);
    } else {
        snprintf(text, sizeof(text), "no replica is left that could hold the stream's %u tokens",
                 e->n_prompt + e->max_tokens);
    }
    front_fail(e, ST_ERR_UNAVAILABLE, text);
}

static void place_one(void *arg, struct journal_entry *e)
{
    struct coord *c = arg;

    if (e->replica >= 0 || e->owner == NULL || !front_is_running(e)) {
        return;
    }
    if (place(c, e) == ST_OK) {
        front_placed(e);
    } else {
        wait_on(c, e);
    }
}

void route_waiting(struct coord *c)
{
    if (journal_count(c->journal) != 0) {
        journal_each(c->journal, place_one, c);
    }
}

/* ---- when a replica is lost ---- */

struct move {
    struct coord *coord;
    struct replica *from;
    uint32_t n_moved, n_failed, n_spared;
};

/* Had it only waited there? Then it has no part in the loss. The leader's word is up to a quarter of a
 * second old, and a stream that kills at its first row may have been waiting then: so nobody is
 * spared more often than this. */
enum { SPARED_MAX = 8 };

static bool is_spared(const struct replica *r, const struct journal_entry *e)
{
    for (uint32_t i = 0; e->n_spared < SPARED_MAX && i < r->n_queued; i++) {
        if (r->queued[i] == e->stream) {
            return true;
        }
    }
    return false;
}

static void move_one(void *arg, struct journal_entry *e)
{
    struct move *m = arg;
    struct coord *c = m->coord;
    char text[ERR_TEXT_BYTES + 160];

    if (e->replica != (int32_t)m->from->index) {
        return;
    }
    route_leave(c, e);
    if (!front_is_running(e)) {
        return; /* its answer is complete, only the client has not taken all of it */
    }
    e->attempt++;
    if (m->from->state == REPLICA_LOST) { /* a drain is nobody's fault */
        const bool spared = is_spared(m->from, e);
        e->n_spared += spared ? 1 : 0;
        e->n_moves += spared ? 0 : 1;
        m->n_spared += spared ? 1 : 0;
    }
    if (e->lost_ns == 0) {
        e->lost_ns = coord_now(c);
    }
    if (e->n_moves > c->config.retries) {
        snprintf(text, sizeof(text),
                 "%u replicas were lost while they ran this request, and it is moved at most %u "
                 "times (--retries); the last: %s",
                 e->n_moves, c->config.retries, m->from->sign.text);
        m->n_failed++;
        front_fail(e, ST_ERR_UNAVAILABLE, text);
        return;
    }
    m->n_moved++;
    if (place(c, e) == ST_OK) {
        front_placed(e);
    }
}

void route_evacuate(struct replica *r)
{
    struct coord *c = r->coord;
    struct move m = { .coord = c, .from = r };

    journal_each(c->journal, move_one, &m);
    ASSERT(r->n_streams == 0 && r->n_blocks == 0);
    if (m.n_moved + m.n_failed != 0) {
        log_info("route",
                 "replica %u.%u: %u streams leave it for %u serving replicas, %u fail; %u had only "
                 "waited there",
                 r->index, r->generation, m.n_moved, route_count(c), m.n_failed, m.n_spared);
    }
    r->n_queued = 0;
}

/* A token of a stream that was moved: its client's pause is over. */
void route_resumed(struct coord *c, struct journal_entry *e)
{
    if (e->lost_ns != 0) {
        log_req(LOG_INFO, "stream", e->request_id,
                "goes on at token %u on replica %d after a pause of %.1f ms (attempt %u)",
                e->n_emitted, (int)e->replica, (double)(coord_now(c) - e->lost_ns) / 1e6,
                e->attempt);
        e->lost_ns = 0;
    }
}
