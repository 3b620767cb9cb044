/* tests/sim/sim_check.c - what must hold of the coordinator at every moment, looked at from inside.
 * The one file here that reads its private state. What must hold of answers is sim_client.c, of
 * losses and restarts sim_job.c, of schedulers sim_leader.c, of calls sim_rpc.c. */
#include "coordinator/coord_impl.h"
#include "sim/sim_job.h"

#include <stdlib.h>
#include <string.h>

enum { LOOK_EVERY = 64 };

struct load {
    uint32_t n_streams;
    uint64_t n_blocks;
};

struct look {
    struct sim *sim;
    struct load *loads; /* [n_replicas] */
    uint32_t n_waiting, n_entries;
};

/* ---- streams ---- */

static void look_at_entry(void *arg, struct journal_entry *e)
{
    struct look *l = arg;
    struct sim *s = l->sim;

    l->n_entries++;
    if (e->owner == NULL) {
        sim_fail(s, "stream %llu belongs to nobody", (unsigned long long)e->stream);
        return;
    }
    /* A drain moves as well, and counts for nothing. */
    if (front_is_running(e) && (e->attempt < e->n_moves + 1 || e->n_moves > s->shape.retries)) {
        sim_fail(s, "stream %llu is at attempt %u after %u moves, %u are allowed",
                 (unsigned long long)e->stream, e->attempt, e->n_moves, s->shape.retries);
    }
    if (e->n_emitted > e->max_tokens) {
        sim_fail(s, "stream %llu has %u tokens of %u", (unsigned long long)e->stream, e->n_emitted,
                 e->max_tokens);
    }
    if (e->replica < 0) {
        l->n_waiting += front_is_running(e) ? 1 : 0;
        return;
    }
    l->loads[e->replica].n_streams++;
    l->loads[e->replica].n_blocks += e->n_blocks;
    if (!replica_is_alive(s->coord->replicas[e->replica])) {
        sim_fail(s, "stream %llu is on replica %d, which is lost", (unsigned long long)e->stream,
                 e->replica);
    }
}

/* A stream waits although a replica takes streams: the next tick must end that. A full control
 * queue may be the reason, where queues are cut short. */
static void look_for_starvation(struct sim *s, const struct look *l)
{
    const bool is_idle = l->n_waiting != 0 && route_count(s->coord) != 0 &&
                         s->shape.control_queue_max >= CONTROL_SEND_QUEUE;

    if (!is_idle) {
        s->idle_since_ns = 0;
        return;
    }
    s->idle_since_ns = s->idle_since_ns != 0 ? s->idle_since_ns : s->now_ns;
    s->idle_since_ns = MAX(s->idle_since_ns, s->coord_free_ns);
    if (s->now_ns > s->idle_since_ns + NS_PER_S) {
        sim_fail(s, "%u streams wait, and %u replicas would take them", l->n_waiting,
                 route_count(s->coord));
    }
}

/* ---- replicas ---- */

static void look_at_replica(struct sim *s, const struct replica *r, const struct load *load)
{
    uint32_t n_attached = 0, n_ready = 0;

    for (uint32_t i = 0; i < r->shape.n_ranks; i++) {
        const struct rank *k = &r->ranks[i];
        n_attached += k->call != NULL;
        n_ready += k->is_ready;
        if (k->call != NULL && replica_is_alive(r) && !r->drain.ranks_are_told && !s->is_stopping &&
            s->now_ns > MAX(k->heard_ns, s->coord_free_ns) + s->shape.hang_ns + NS_PER_S) {
            sim_fail(s, "rank %u of replica %u has been silent for longer than --hang-timeout", i,
                     r->index);
        }
    }
    if (n_attached != r->n_attached || n_ready != r->n_ready) {
        sim_fail(s, "replica %u counts %u attached and %u ready, there are %u and %u", r->index,
                 r->n_attached, r->n_ready, n_attached, n_ready);
    }
    if (r->n_streams != load->n_streams || r->n_blocks != load->n_blocks) {
        sim_fail(s, "replica %u counts %u streams and %llu blocks, there are %u and %llu", r->index,
                 r->n_streams, (unsigned long long)r->n_blocks, load->n_streams,
                 (unsigned long long)load->n_blocks);
    }
    if (r->state == REPLICA_SERVING && n_ready != r->shape.n_ranks) {
        sim_fail(s, "replica %u serves with %u of %u ranks ready", r->index, n_ready,
                 r->shape.n_ranks);
    }
}

static void look_at_state(struct sim *s)
{
    const struct coord *c = s->coord;
    uint32_t n_serving = 0, n_pending = 0, n_failed = 0;

    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct replica *r = c->replicas[i];
        n_serving += r->state == REPLICA_SERVING;
        n_pending += r->state == REPLICA_LOST && !r->has_verdict;
        n_failed += replica_is_over(r);
    }
    if (c->is_stopping) {
        return;
    }
    if ((c->state == COORD_SERVING && n_serving + n_pending == 0) ||
        (c->state != COORD_SERVING && n_serving != 0) ||
        ((c->state == COORD_FAILED) != (n_failed == c->n_replicas))) {
        sim_fail(s,
                 "the service is %s with %u replicas serving, %u lost just now and %u of %u failed",
                 coord_state_name(c->state), n_serving, n_pending, n_failed, c->n_replicas);
    }
}

void check_all(struct sim *s)
{
    struct coord *c = s->coord;
    struct look l = { .sim = s, .loads = calloc(c->n_replicas, sizeof(*l.loads)) };

    ASSERT(l.loads != NULL);
    journal_each(c->journal, look_at_entry, &l);
    if (l.n_entries != journal_count(c->journal)) {
        sim_fail(s, "the journal holds %u entries and counts %u", l.n_entries,
                 journal_count(c->journal));
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        look_at_replica(s, c->replicas[i], &l.loads[i]);
    }
    look_at_state(s);
    look_for_starvation(s, &l);
    free(l.loads);
}

void check_often(struct sim *s)
{
    const struct coord *c = s->coord;

    if (c == NULL) {
        return;
    }
    if (journal_count(c->journal) > s->shape.queue_max) {
        sim_fail(s, "%u streams are open, the bound is %u", journal_count(c->journal),
                 s->shape.queue_max);
    }
    if (c->depth != 0 || c->dirty != NULL || c->dead != NULL) {
        sim_fail(s, "a callback returns with depth %u, and answers not %s", c->depth,
                 c->dirty != NULL ? "flushed" : "freed");
    }
    if (s->totals->events % LOOK_EVERY == 0) {
        check_all(s);
    }
}

/* Each coordinator has numbers of its own. */
static void check_number(struct sim *s, uint64_t stream)
{
    const uint64_t base = stream >> 40 << 40;

    if (base != s->stream_base || (base == s->last_base && s->last_base_epoch != s->epoch)) {
        sim_fail(s, "coordinator %u gives a stream the number %llu, which is of coordinator %u",
                 s->epoch, (unsigned long long)stream, s->last_base_epoch);
    }
    s->last_base = base;
    s->last_base_epoch = s->epoch;
}

/* What a leader is sent is all that the journal holds. Nothing can be added while it is on its way: no
 * token counts before this attempt's. */
void check_submit(struct sim *s, uint32_t replica, const struct msg_submit *m)
{
    const char *wrong;

    const struct journal_entry *e =
        s->coord != NULL ? journal_find(s->coord->journal, m->stream) : NULL;

    if (e != NULL && e->attempt == m->attempt &&
        (e->replica != (int32_t)replica || e->n_emitted != m->n_emitted ||
         (m->n_emitted != 0 &&
          memcmp(e->emitted, m->emitted, m->n_emitted * sizeof(*m->emitted)) != 0))) {
        sim_fail(s,
                 "replica %u is sent stream %llu with %u tokens, the journal has %u for replica %d",
                 replica, (unsigned long long)m->stream, m->n_emitted, e->n_emitted, e->replica);
    }
    if (e != NULL && (wrong = clients_check_request(s, e->request_id)) != NULL) {
        sim_fail(s, "stream %llu (\"%s\"): %s", (unsigned long long)m->stream, e->request_id,
                 wrong);
    }
    if (m->stream >> 63 == 0 && s->shape.journal) {
        check_number(s, m->stream);
    }
}

/* ---- when everything is over ---- */

bool check_is_open(const struct sim *s, uint64_t stream)
{
    return s->coord != NULL && journal_find(s->coord->journal, stream) != NULL;
}

uint32_t check_n_slots(const struct sim *s)
{
    return s->coord != NULL ? s->coord->n_replicas : s->shape.n_replicas;
}

uint32_t check_n_serving(const struct sim *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; s->coord != NULL && i < s->coord->n_replicas; i++) {
        const struct replica *r = s->coord->replicas[i];
        n += r->n_ready == r->shape.n_ranks && replica_is_alive(r) && r->ranks[0].call != NULL;
    }
    return n;
}

uint32_t check_n_streams(const struct sim *s)
{
    return s->coord != NULL ? journal_count(s->coord->journal) : 0;
}

void check_end(struct sim *s)
{
    const struct coord *c = s->coord;
    bool is_proven = false;

    check_all(s);
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        is_proven = is_proven ||
                    (route_can_take(c->replicas[i]) && canary_is_fresh(c->replicas[i], s->now_ns));
    }
    if (journal_count(c->journal) != 0) {
        sim_fail(s, "all clients have gone, and %u streams are open", journal_count(c->journal));
    }
    for (uint32_t i = 0; i < c->n_replicas; i++) {
        const struct sim_job *job = job_of(s, i);
        if (c->replicas[i]->state == REPLICA_SERVING &&
            (job == NULL || !sched_is_valid(job->sched))) {
            sim_fail(s, "the scheduler of replica %u is not valid at the end", i);
        }
    }
    for (const struct watcher *w = c->watchers; w != NULL; w = w->next) {
        if (w->sent != (is_proven ? HEALTH_SERVING : HEALTH_NOT_SERVING)) {
            sim_fail(s, "a health watcher was told %d last, and %u replicas serve", w->sent,
                     route_count(c));
        }
    }
}
