/* tests/replica/fake_nccl.c - see fake_nccl.h.
 *
 * The ranks of a communicator share a hub: a list of mails, each a pointer to what somebody sends.
 * A queued call posts its sends, then takes what it receives in order, then waits until its own
 * sends were taken. Hubs are kept until the next fake_nccl_api, because calls that were queued may
 * still look at one whose communicators are gone. */
#include "replica/fake_nccl.h"

#include "replica/fake_queue.h"

#include <string.h>

enum { RANKS_MAX = 16, MOVES_MAX = 28, BUSY_CALLS = 2, REMOTE_ERROR = 6 };

struct mail {
    struct mail *next;
    uint32_t from, to;
    const void *data;
    size_t bytes;
    bool is_taken;
};

struct hub {
    struct hub *next;
    unsigned char id[COLL_NCCL_ID_BYTES];
    uint32_t n_ranks, n_joined;
    bool is_aborted;
    struct mail *mails;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

struct comm {
    struct comm *next; /* all that were made */
    struct hub *hub;
    uint32_t rank, busy;
};

struct move {
    void *data; /* device */
    size_t bytes;
    uint32_t peer;
    bool is_send;
};

struct call {
    struct comm *comm;
    uint32_t n_moves;
    float *sum; /* all_reduce: into here, n floats; else NULL */
    struct move moves[MOVES_MAX];
};

_Static_assert(sizeof(struct call) <= FAKE_BLOB_BYTES, "a call is copied into the queue");

static struct {
    pthread_mutex_t lock; /* over what follows */
    struct hub *hubs;
    struct comm *comms;
    uint32_t n_ids;
} world = { .lock = PTHREAD_MUTEX_INITIALIZER };

static _Thread_local struct call group;
static _Thread_local void *group_stream;
static _Thread_local bool in_group;

/* ---- a queued call ---- */

static void post(struct hub *h, struct mail *m)
{
    struct mail **at = &h->mails;

    while (*at != NULL) {
        at = &(*at)->next;
    }
    m->next = NULL;
    *at = m;
    pthread_cond_broadcast(&h->changed);
}

static void unlink_mail(struct hub *h, const struct mail *m)
{
    struct mail **at = &h->mails;

    while (*at != NULL && *at != m) {
        at = &(*at)->next;
    }
    if (*at != NULL) {
        *at = m->next;
    }
}

static struct mail *find_mail(struct hub *h, uint32_t from, uint32_t to)
{
    struct mail *m = h->mails;

    while (m != NULL && (m->from != from || m->to != to)) {
        m = m->next;
    }
    return m;
}

static void receive(struct hub *h, const struct comm *c, const struct move *m)
{
    struct mail *mail;

    while ((mail = find_mail(h, m->peer, c->rank)) == NULL && !h->is_aborted) {
        pthread_cond_wait(&h->changed, &h->lock);
    }
    if (mail != NULL) {
        FAKE_CHECK(mail->bytes == m->bytes, "a receive of another size than was sent");
        memcpy(fake_device_bytes(m->data), mail->data, m->bytes);
        mail->is_taken = true;
        unlink_mail(h, mail);
        pthread_cond_broadcast(&h->changed);
    }
}

static void run_moves(struct call *call)
{
    const struct comm *c = call->comm;
    struct hub *h = c->hub;
    struct mail sends[MOVES_MAX];
    uint32_t n = 0;

    pthread_mutex_lock(&h->lock);
    for (uint32_t i = 0; i < call->n_moves; i++) {
        const struct move *m = &call->moves[i];
        if (m->is_send) {
            sends[n] = (struct mail){ NULL,     c->rank, m->peer, fake_device_bytes(m->data),
                                      m->bytes, false };
            post(h, &sends[n++]);
        }
    }
    for (uint32_t i = 0; i < call->n_moves; i++) {
        if (!call->moves[i].is_send) {
            receive(h, c, &call->moves[i]);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        while (!sends[i].is_taken && !h->is_aborted) {
            pthread_cond_wait(&h->changed, &h->lock);
        }
        if (!sends[i].is_taken) {
            unlink_mail(h, &sends[i]);
        }
    }
    pthread_mutex_unlock(&h->lock);
}

/* sum = x of the last rank + ... + x of the first; everybody's x is at rest until all have it. */
static void run_sum(struct call *call)
{
    const struct comm *c = call->comm;
    struct hub *h = c->hub;
    const size_t n = call->moves[0].bytes / sizeof(float);
    float *x = fake_device_bytes(call->moves[0].data);
    float *mine = fake_copy(x, n * sizeof(float)), *sum = calloc(n, sizeof(*sum));
    struct mail sends[RANKS_MAX];

    FAKE_CHECK(sum != NULL, "no memory for a sum");
    pthread_mutex_lock(&h->lock);
    for (uint32_t r = 0; r < h->n_ranks; r++) {
        sends[r] = (struct mail){ NULL, c->rank, r, mine, n * sizeof(float), false };
        post(h, &sends[r]);
    }
    for (uint32_t r = h->n_ranks; r-- > 0 && !h->is_aborted;) {
        struct mail *m;
        while ((m = find_mail(h, r, c->rank)) == NULL && !h->is_aborted) {
            pthread_cond_wait(&h->changed, &h->lock);
        }
        for (size_t i = 0; m != NULL && i < n; i++) {
            sum[i] += ((const float *)m->data)[i];
        }
        if (m != NULL) {
            m->is_taken = true;
            unlink_mail(h, m);
            pthread_cond_broadcast(&h->changed);
        }
    }
    for (uint32_t r = 0; r < h->n_ranks; r++) {
        while (!sends[r].is_taken && !h->is_aborted) {
            pthread_cond_wait(&h->changed, &h->lock);
        }
        if (!sends[r].is_taken) {
            unlink_mail(h, &sends[r]);
        }
    }
    pthread_mutex_unlock(&h->lock);
    memcpy(fake_device_bytes(call->sum), sum, n * sizeof(float));
    free(sum);
    free(mine);
}

static void run(void *blob)
{
    struct call *call = blob;

    if (call->sum != NULL) {
        run_sum(call);
    } else {
        run_moves(call);
    }
}

/* ---- the calls ---- */

static int queued(const struct call *call, void *stream)
{
    call->comm->busy = BUSY_CALLS;
    fake_device_queue(stream, run, call, sizeof(*call));
    return COLL_NCCL_BUSY;
}

static void check_idle(const struct comm *c)
{
    FAKE_CHECK(c->busy == 0, "a call while the one before is in progress");
}

static int move(struct comm *c, struct move m, void *stream)
{
    struct call one = { .comm = c, .n_moves = 1, .moves = { m } };

    check_idle(c);
    if (!in_group) {
        return queued(&one, stream);
    }
    FAKE_CHECK(group.comm == NULL || group.comm == c, "two communicators in one group");
    FAKE_CHECK(group.n_moves < MOVES_MAX, "too many calls in a group");
    group.comm = c;
    group_stream = stream;
    group.moves[group.n_moves++] = m;
    return COLL_NCCL_OK;
}

static int fake_send(const void *data, size_t bytes, uint32_t peer, void *comm, void *stream)
{
    return move(comm, (struct move){ (void *)(uintptr_t)data, bytes, peer, true }, stream);
}

static int fake_recv(void *data, size_t bytes, uint32_t peer, void *comm, void *stream)
{
    return move(comm, (struct move){ data, bytes, peer, false }, stream);
}

static int group_start(void)
{
    FAKE_CHECK(!in_group, "a group inside a group");
    in_group = true;
    group = (struct call){ .n_moves = 0 };
    return COLL_NCCL_OK;
}

static int group_end(void)
{
    in_group = false;
    return group.n_moves != 0 ? queued(&group, group_stream) : COLL_NCCL_OK;
}

static int all_gather(const void *mine, void *all, size_t bytes, void *comm, void *stream)
{
    struct comm *c = comm;
    struct call call = { .comm = c };

    check_idle(c);
    for (uint32_t r = 0; r < c->hub->n_ranks; r++) {
        void *from = (void *)(uintptr_t)mine, *to = (char *)all + r * bytes;
        call.moves[call.n_moves++] = (struct move){ from, bytes, r, true };
        call.moves[call.n_moves++] = (struct move){ to, bytes, r, false };
    }
    return queued(&call, stream);
}

static int all_reduce_f32(const float *in, float *out, size_t n, void *comm, void *stream)
{
    struct call call = { .comm = comm, .n_moves = 1, .sum = out };

    check_idle(comm);
    call.moves[0] = (struct move){ (void *)(uintptr_t)in, n * sizeof(float), 0, true };
    return queued(&call, stream);
}

/* ---- communicators ---- */

static int unique_id(void *id)
{
    pthread_mutex_lock(&world.lock);
    const uint32_t n = ++world.n_ids;
    pthread_mutex_unlock(&world.lock);
    memset(id, 0x5a, COLL_NCCL_ID_BYTES);
    memcpy(id, &n, sizeof(n));
    return COLL_NCCL_OK;
}

static struct hub *hub_of(const void *id, uint32_t n_ranks)
{
    struct hub *h = world.hubs;

    while (h != NULL && memcmp(h->id, id, sizeof(h->id)) != 0) {
        h = h->next;
    }
    if (h == NULL) {
        h = calloc(1, sizeof(*h));
        FAKE_CHECK(h != NULL, "no memory for a hub");
        memcpy(h->id, id, sizeof(h->id));
        h->n_ranks = n_ranks;
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->changed, NULL);
        h->next = world.hubs;
        world.hubs = h;
    }
    return h;
}

static int comm_init(void **comm_p, uint32_t n_ranks, const void *id, uint32_t rank)
{
    struct comm *c = calloc(1, sizeof(*c));

    FAKE_CHECK(c != NULL && n_ranks <= RANKS_MAX && rank < n_ranks, "a communicator of that size");
    pthread_mutex_lock(&world.lock);
    c->hub = hub_of(id, n_ranks);
    c->rank = rank;
    c->next = world.comms;
    world.comms = c;
    pthread_mutex_unlock(&world.lock);
    FAKE_CHECK(c->hub->n_ranks == n_ranks, "one id with two sizes");
    pthread_mutex_lock(&c->hub->lock);
    c->hub->n_joined++;
    pthread_mutex_unlock(&c->hub->lock);
    *comm_p = c;
    return COLL_NCCL_BUSY;
}

static int comm_state(void *comm)
{
    struct comm *c = comm;

    pthread_mutex_lock(&c->hub->lock);
    const bool all_here = c->hub->n_joined >= c->hub->n_ranks, is_lost = c->hub->is_aborted;
    pthread_mutex_unlock(&c->hub->lock);
    if (is_lost) {
        return REMOTE_ERROR; /* another rank has aborted */
    }
    if (!all_here || c->busy != 0) {
        c->busy -= c->busy != 0 ? 1 : 0;
        return COLL_NCCL_BUSY;
    }
    return COLL_NCCL_OK;
}

static int comm_finalize(void *comm)
{
    ((struct comm *)comm)->busy = BUSY_CALLS;
    return COLL_NCCL_BUSY;
}

static int comm_destroy(void *comm UNUSED)
{
    return COLL_NCCL_OK; /* kept in world.comms */
}

static int comm_abort(void *comm)
{
    struct hub *h = ((struct comm *)comm)->hub;

    pthread_mutex_lock(&h->lock);
    h->is_aborted = true;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
    return COLL_NCCL_OK;
}

static const char *error_text(int code UNUSED)
{
    return "a failure of the fake";
}

static const char *last_error(void *comm UNUSED)
{
    return "";
}

const struct coll_nccl_api *fake_nccl_api(void)
{
    static const struct coll_nccl_api api = {
        .version = "fake",
        .unique_id = unique_id,
        .comm_init = comm_init,
        .comm_state = comm_state,
        .comm_finalize = comm_finalize,
        .comm_destroy = comm_destroy,
        .comm_abort = comm_abort,
        .group_start = group_start,
        .group_end = group_end,
        .send = fake_send,
        .recv = fake_recv,
        .all_gather = all_gather,
        .all_reduce_f32 = all_reduce_f32,
        .error_text = error_text,
        .last_error = last_error,
    };

    while (world.comms != NULL) {
        struct comm *c = world.comms;
        world.comms = c->next;
        free(c);
    }
    while (world.hubs != NULL) {
        struct hub *h = world.hubs;
        world.hubs = h->next;
        pthread_mutex_destroy(&h->lock);
        pthread_cond_destroy(&h->changed);
        free(h);
    }
    return &api;
}
