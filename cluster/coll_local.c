/* cluster/coll_local.c - ranks as threads of one process: the hub, and meetings.
 *
 *   arrive ──► everybody here: round opens ──► compare posts, work ──► leave ──► all left: closed
 *
 * In an open round each rank may read what the others posted, and writes only what belongs to it.
 * The sum: rank i adds its own part of the elements over all sources in tree order and writes the
 * result into everybody's vector; nobody else touches those elements, so there is no copy and two
 * waits in all. Before the round opens a rank may give up (deadline, abort) under the lock, which
 * fails the hub; once it is open everybody stays until it closes, because the others are inside
 * each other's buffers, and that lasts only as long as an addition. */
#include "cluster/coll_local.h"

#include "cluster/coll_add.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TP_MAX = 256, RANKS_MAX = 1024, SEGMENT_FLOATS = 16 };

/* ---- failure ---- */

void coll_hub_fail(struct coll_hub *hub, const char *text)
{
    pthread_mutex_lock(&hub->fail_lock);
    if (!atomic_load(&hub->failed)) {
        snprintf(hub->fail_text, sizeof(hub->fail_text), "%s", text);
        atomic_store(&hub->failed, true);
    }
    pthread_mutex_unlock(&hub->fail_lock);
    for (uint32_t i = 0; i < hub->n_ranks; i++) {
        coll_bell_ring(&hub->bells[i]);
    }
}

status coll_hub_failure(struct coll_hub *hub, const char *op, struct err *err)
{
    status st;

    pthread_mutex_lock(&hub->fail_lock);
    st = err_set(err, ST_ERR_PEER, "%s: this replica's exchange failed before: %s", op,
                 hub->fail_text);
    pthread_mutex_unlock(&hub->fail_lock);
    return st;
}

/* ---- meetings ---- */

static status meet_init(struct coll_meet *m, uint32_t first_rank, uint32_t n)
{
    pthread_mutex_init(&m->lock, NULL);
    m->first_rank = first_rank;
    m->n = n;
    m->posts = calloc(n, sizeof(*m->posts));
    return m->posts ? ST_OK : ST_ERR_NOMEM;
}

static void meet_fini(struct coll_meet *m)
{
    if (m->n > 0) {
        pthread_mutex_destroy(&m->lock);
        free(m->posts);
    }
}

static void meet_ring(struct coll_hub *hub, const struct coll_meet *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        coll_bell_ring(&hub->bells[m->first_rank + i]);
    }
}

/* "all_reduce_tree: rank 1, 3 not there after 0.100 s"; the meet is locked. */
static status absent(struct coll_local *l, const struct coll_meet *m, const struct coll_post *post,
                     status why, struct err *err)
{
    char names[160] = "";
    size_t len = 0;

    for (uint32_t i = 0; i < m->n && len < sizeof(names) - 16; i++) {
        if (m->posts[i].round != post->round) {
            len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%u", len ? ", " : "",
                                    m->first_rank + i);
        }
    }
    if (why == ST_ERR_CANCELLED) {
        return err_set(err, why, "%s: given up on request while waiting for rank %s", post->op,
                       names);
    }
    return err_set(err, why, "%s: rank %s did not come within %.3f s", post->op, names,
                   (double)l->base.timeout_ns / (double)NS_PER_S);
}

/* The first rank that is not here; the meet is locked. */
static uint32_t first_absent(const struct coll_meet *m, uint64_t round)
{
    for (uint32_t i = 0; i < m->n; i++) {
        if (m->posts[i].round != round) {
            return m->first_rank + i;
        }
    }
    return COLL_PEER_NONE;
}

static status meet_open(struct coll_local *l, struct coll_meet *m, uint32_t i,
                        const struct coll_post *post, struct err *err)
{
    struct coll_hub *hub = l->hub;
    struct coll_waiter w;
    status st = ST_OK;

    pthread_mutex_lock(&m->lock);
    if (atomic_load(&hub->failed)) {
        pthread_mutex_unlock(&m->lock);
        return coll_hub_failure(hub, post->op, err);
    }
    m->posts[i] = *post;
    if (++m->n_here == m->n) {
        m->n_here = 0;
        atomic_store(&m->n_inside, m->n);
        atomic_store(&m->opened, post->round);
    }
    const uint32_t peer = first_absent(m, post->round);
    pthread_mutex_unlock(&m->lock);
    if (atomic_load(&m->opened) >= post->round) {
        meet_ring(hub, m);
        return ST_OK;
    }
    coll_waiter_init(&w, &l->base, hub->spin_ns, &hub->bells[l->base.rank]);
    w.peer = peer;
    while (atomic_load(&m->opened) < post->round) {
        st = atomic_load(&hub->failed) ? ST_ERR_PEER : coll_waiter_step(&w);
        if (st == ST_OK) {
            if (w.is_told) { /* whom it waited for may have come, and another one not */
                pthread_mutex_lock(&m->lock);
                coll_watch_wait(l->base.watch, first_absent(m, post->round), w.begin_ns);
                pthread_mutex_unlock(&m->lock);
            }
            continue;
        }
        pthread_mutex_lock(&m->lock);
        if (atomic_load(&m->opened) >= post->round) {
            st = ST_OK; /* the last one came in this very moment: nobody can leave now */
        } else if (st == ST_ERR_PEER) {
            coll_hub_failure(hub, post->op, err);
        } else {
            struct err why = ERR_INIT;

            absent(l, m, post, st, &why);
            coll_hub_fail(hub, why.text);
            err_set(err, st, "%s", why.text);
        }
        pthread_mutex_unlock(&m->lock);
        break;
    }
    return st;
}

static void meet_close(struct coll_local *l, struct coll_meet *m, uint64_t round)
{
    const struct coll forever = { .timeout_ns = CLOCK_NEVER };
    struct coll_waiter w;

    if (atomic_fetch_sub(&m->n_inside, 1) == 1) {
        atomic_store(&m->closed, round);
        meet_ring(l->hub, m);
        return;
    }
    coll_waiter_init(&w, &forever, l->hub->spin_ns, &l->hub->bells[l->base.rank]);
    while (atomic_load(&m->closed) < round) {
        (void)coll_waiter_step(&w);
    }
}

/* Do all posts of the open round ask for the same thing? Everybody sees the same answer. */
static status compare(const struct coll_meet *m, struct err *err)
{
    const struct coll_post *a = &m->posts[0];

    for (uint32_t i = 1; i < m->n; i++) {
        const struct coll_post *b = &m->posts[i];

        if (strcmp(a->op, b->op) != 0) {
            return err_set(err, ST_ERR_MISMATCH, "rank %u is in %s, rank %u in %s", m->first_rank,
                           a->op, m->first_rank + i, b->op);
        }
        if (a->stamp != b->stamp) {
            return err_set(err, ST_ERR_MISMATCH,
                           "%s: rank %u has stamp %016llx, rank %u has %016llx", a->op,
                           m->first_rank, (unsigned long long)a->stamp, m->first_rank + i,
                           (unsigned long long)b->stamp);
        }
        if (a->bytes != b->bytes || a->root != b->root) {
            return err_set(err, ST_ERR_MISMATCH,
                           "%s: rank %u has %zu bytes (root %u), rank %u has %zu (root %u)", a->op,
                           m->first_rank, a->bytes, a->root, m->first_rank + i, b->bytes, b->root);
        }
    }
    return ST_OK;
}

typedef void (*meet_work)(const struct coll_meet *m, uint32_t i, const struct coll_post *mine);

static status meet(struct coll_local *l, bool world, struct coll_post *post, meet_work work,
                   struct err *err)
{
    struct coll_hub *hub = l->hub;
    struct coll_meet *m = world ? &hub->world : &hub->stages[l->base.stage];
    const uint32_t i = l->base.rank - m->first_rank;
    struct err differs = ERR_INIT;
    status st;

    post->round = world ? ++l->round_world : ++l->round_stage;
    coll_watch_begin(l->base.watch, post->kind, post->round);
    st = meet_open(l, m, i, post, err);
    if (st != ST_OK) {
        return st;
    }
    st = compare(m, &differs);
    if (st == ST_OK && work) {
        work(m, i, post);
    }
    meet_close(l, m, post->round);
    coll_watch_end(l->base.watch);
    if (st != ST_OK) {
        coll_hub_fail(hub, differs.text);
        err_set(err, st, "%s", differs.text);
    }
    return st;
}

/* ---- operations ---- */

static void work_reduce(const struct coll_meet *m, uint32_t i, const struct coll_post *mine)
{
    const size_t n = mine->bytes / sizeof(float);
    const size_t step = (n / m->n + SEGMENT_FLOATS) / SEGMENT_FLOATS * SEGMENT_FLOATS;
    const size_t begin = MIN(n, step * i);
    const size_t end = i + 1 == m->n ? n : MIN(n, step * (i + 1));
    const float *src[TP_MAX];

    for (uint32_t j = 0; j < m->n; j++) {
        src[j] = (const float *)m->posts[j].in + begin;
    }
    if (begin == end) {
        return;
    }
    coll_add_tree((float *)mine->out + begin, src, m->n, end - begin);
    for (uint32_t j = 0; j < m->n; j++) {
        if (j != i) {
            memcpy((float *)m->posts[j].out + begin, (float *)mine->out + begin,
                   (end - begin) * sizeof(float));
        }
    }
}

static status local_all_reduce_tree(struct coll *c, struct kern_stream *s, float *x, size_t n,
                                    uint64_t stamp, struct err *err)
{
    struct coll_post post = { .op = "all_reduce_tree",
                              .kind = COLL_OP_SUM,
                              .stamp = stamp,
                              .bytes = n * sizeof(float),
                              .in = x,
                              .out = x };

    (void)s;
    return meet(coll_local_of(c), false, &post, c->tp > 1 ? work_reduce : NULL, err);
}

static void work_gather(const struct coll_meet *m, uint32_t i, const struct coll_post *mine)
{
    (void)i;
    for (uint32_t j = 0; j < m->n && mine->bytes > 0; j++) {
        char *place = (char *)mine->out + j * mine->bytes;

        if (place != m->posts[j].in) { /* `mine` may be its place in `all` already */
            memcpy(place, m->posts[j].in, mine->bytes);
        }
    }
}

static status local_all_gather(struct coll *c, struct kern_stream *s, const void *mine,
                               size_t bytes, void *all, uint64_t stamp, struct err *err)
{
    struct coll_post post = { .op = "all_gather",
                              .kind = COLL_OP_GATHER,
                              .stamp = stamp,
                              .bytes = bytes,
                              .in = mine,
                              .out = all };

    (void)s;
    return meet(coll_local_of(c), false, &post, work_gather, err);
}

static status local_barrier(struct coll *c, struct err *err)
{
    struct coll_post post = { .op = "barrier", .kind = COLL_OP_BARRIER };

    return meet(coll_local_of(c), true, &post, NULL, err);
}

static void work_bcast(const struct coll_meet *m, uint32_t i, const struct coll_post *mine)
{
    if (i != mine->root && mine->bytes > 0) {
        memcpy(mine->out, m->posts[mine->root].in, mine->bytes);
    }
}

static status local_bcast(struct coll *c, void *data, size_t bytes, uint32_t root, struct err *err)
{
    struct coll_post post = {
        .op = "bcast", .kind = COLL_OP_BCAST, .bytes = bytes, .root = root, .in = data, .out = data
    };

    if (root >= c->n_ranks) {
        return err_set(err, ST_ERR_ARG, "bcast: root %u of a replica of %u", root, c->n_ranks);
    }
    return meet(coll_local_of(c), true, &post, work_bcast, err);
}

/* ---- life ---- */

static void local_destroy(struct coll *c)
{
    struct coll_local *l = coll_local_of(c);

    coll_local_mail_drop(l);
    atomic_store(&l->hub->taken[c->rank], false);
    free(l);
}

static const struct coll_ops local_ops = {
    .name = "local",
    .all_reduce_tree = local_all_reduce_tree,
    .all_gather = local_all_gather,
    .send_start = coll_local_send_start,
    .recv_start = coll_local_recv_start,
    .test = coll_local_test,
    .wait = coll_local_wait,
    .probe = coll_local_probe,
    .barrier = local_barrier,
    .bcast = local_bcast,
    .destroy = local_destroy,
};

void coll_hub_destroy(struct coll_hub *hub)
{
    if (!hub) {
        return;
    }
    meet_fini(&hub->world);
    for (uint32_t i = 0; hub->stages && i < hub->shape.pp; i++) {
        meet_fini(&hub->stages[i]);
    }
    for (uint32_t i = 0; hub->boxes && i < hub->n_ranks; i++) {
        pthread_mutex_destroy(&hub->boxes[i].lock);
    }
    pthread_mutex_destroy(&hub->fail_lock);
    free(hub->stages);
    free(hub->boxes);
    free(hub->bells);
    free(hub->taken);
    free(hub);
}

status coll_hub_create(struct coll_shape shape, struct coll_hub **hub_p, struct err *err)
{
    const uint32_t tp = shape.tp, pp = shape.pp;
    struct coll_hub *hub;
    status st;

    if (tp == 0 || (tp & (tp - 1)) != 0 || tp > TP_MAX || pp == 0 || pp > RANKS_MAX / tp) {
        return err_set(err, ST_ERR_ARG,
                       "%u slices by %u stages: slices are a power of two up to %d, ranks up to %d",
                       tp, pp, TP_MAX, RANKS_MAX);
    }
    hub = calloc(1, sizeof(*hub));
    if (!hub) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a hub of %u ranks", tp * pp);
    }
    hub->shape = shape;
    hub->n_ranks = tp * pp;
    hub->spin_ns = coll_spin_ns(hub->n_ranks);
    pthread_mutex_init(&hub->fail_lock, NULL);
    hub->stages = calloc(pp, sizeof(*hub->stages));
    hub->boxes = calloc(hub->n_ranks, sizeof(*hub->boxes));
    hub->bells = calloc(hub->n_ranks, sizeof(*hub->bells));
    hub->taken = calloc(hub->n_ranks, sizeof(*hub->taken));
    for (uint32_t i = 0; hub->boxes && i < hub->n_ranks; i++) {
        pthread_mutex_init(&hub->boxes[i].lock, NULL);
    }
    st = hub->stages && hub->boxes && hub->bells && hub->taken ? ST_OK : ST_ERR_NOMEM;
    if (st == ST_OK) {
        st = meet_init(&hub->world, 0, hub->n_ranks);
    }
    for (uint32_t i = 0; st == ST_OK && i < pp; i++) {
        st = meet_init(&hub->stages[i], i * tp, tp);
    }
    if (st != ST_OK) {
        coll_hub_destroy(hub);
        return err_set(err, st, "no memory for a hub of %u ranks", tp * pp);
    }
    *hub_p = hub;
    return ST_OK;
}

status coll_local_create(struct coll_hub *hub, uint32_t rank, struct coll **coll_p, struct err *err)
{
    struct coll_local *l;

    if (rank >= hub->n_ranks) {
        return err_set(err, ST_ERR_ARG, "rank %u of a hub of %u ranks", rank, hub->n_ranks);
    }
    if (atomic_exchange(&hub->taken[rank], true)) {
        return err_set(err, ST_ERR_EXISTS, "rank %u of this hub is taken", rank);
    }
    l = calloc(1, sizeof(*l));
    if (!l) {
        atomic_store(&hub->taken[rank], false);
        return err_set(err, ST_ERR_NOMEM, "no memory for rank %u", rank);
    }
    l->hub = hub;
    l->base = (struct coll){ .ops = &local_ops,
                             .rank = rank,
                             .n_ranks = hub->n_ranks,
                             .tp = hub->shape.tp,
                             .pp = hub->shape.pp,
                             .stage = rank / hub->shape.tp,
                             .slice = rank % hub->shape.tp,
                             .timeout_ns = 30 * NS_PER_S };
    /* A new view goes on where the hub's meetings are: all closed, or this rank's first. */
    l->round_world = atomic_load(&hub->world.opened);
    l->round_stage = atomic_load(&hub->stages[l->base.stage].opened);
    *coll_p = &l->base;
    return ST_OK;
}
