/* tests/replica/fake_peer.c - windows that ranks as threads map from each other: the protocol of
 * kernels/cuda/peer.cu in C, so that coll_nccl's use of it runs without a device. Two buffers, written
 * and read without a lock; numbers under one. */
#include "replica/fake_queue.h"

#include <string.h>

struct kern_peers {
    float data[2][KERN_PEER_FLOATS];
    uint32_t seq; /* sums whose part is in `data`; under the lock */
    uint32_t n, self;
    bool is_aborted;
    struct kern_peers *peers[KERN_PEERS_MAX]; /* borrowed */
};

struct sum_call {
    struct kern_peers *p;
    float *x; /* device */
    size_t n;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over all seq and is_aborted */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static status peers_create(struct kern_stream *s UNUSED, uint32_t n, uint32_t self,
                           struct kern_peers **peers_p, void *id, struct err *err)
{
    struct kern_peers *p = calloc(1, sizeof(*p));

    FAKE_CHECK(p != NULL && n <= KERN_PEERS_MAX && self < n, "a window");
    if (n == 8 && self == 5 && getenv("FAKE_PEERS_REFUSE") != NULL) {
        free(p);
        return err_set(err, ST_ERR_UNSUPPORTED, "slice 5 has no windows today");
    }
    p->n = n;
    p->self = self;
    memset(id, 0, KERN_PEER_ID_BYTES);
    memcpy(id, &p, sizeof(void *));
    *peers_p = p;
    return ST_OK;
}

static status peers_open(struct kern_stream *s UNUSED, struct kern_peers *p, const void *ids,
                         struct err *err)
{
    for (uint32_t k = 0; k < p->n; k++) {
        memcpy(&p->peers[k], (const char *)ids + k * KERN_PEER_ID_BYTES, sizeof(void *));
    }
    return p->n == 4 && p->self == 2 && getenv("FAKE_PEERS_REFUSE") != NULL
               ? err_set(err, ST_ERR_UNSUPPORTED, "slice 2 sees nobody today")
               : ST_OK;
}

static void run_sum(void *blob)
{
    const struct sum_call *c = blob;
    struct kern_peers *p = c->p;
    float *x = fake_device_bytes(c->x);
    bool is_there = true;

    pthread_mutex_lock(&lock);
    const uint32_t q = p->seq + 1;
    pthread_mutex_unlock(&lock);
    memcpy(p->data[q % 2], x, c->n * sizeof(float));
    pthread_mutex_lock(&lock);
    p->seq = q;
    pthread_cond_broadcast(&changed);
    for (uint32_t k = 0; k < p->n; k++) {
        while (!p->is_aborted && p->peers[k]->seq < q) {
            pthread_cond_wait(&changed, &lock);
        }
    }
    is_there = !p->is_aborted;
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; is_there && i < c->n; i++) {
        float v[KERN_PEERS_MAX];
        for (uint32_t k = 0; k < p->n; k++) {
            v[k] = p->peers[k]->data[q % 2][i];
        }
        for (uint32_t half = 1; half < p->n; half *= 2) {
            for (uint32_t k = 0; k < p->n; k += 2 * half) {
                v[k] = v[k] + v[k + half];
            }
        }
        x[i] = v[0];
    }
}

static void peers_sum(struct kern_stream *s, struct kern_peers *p, float *x, size_t n)
{
    const struct sum_call call = { p, x, n };

    FAKE_CHECK(n <= KERN_PEER_FLOATS && (uintptr_t)x % KERN_ALIGN == 0 && fake_is_device(x),
               "a sum over windows");
    fake_device_queue(s, run_sum, &call, sizeof(call));
    fake_note_peer_sum();
}

static status peers_check(const struct kern_peers *p UNUSED, struct err *err UNUSED)
{
    return ST_OK;
}

static void peers_abort(struct kern_peers *p)
{
    pthread_mutex_lock(&lock);
    p->is_aborted = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Those of an exchange that failed stay for whoever still looks, as a device's do. */
static struct kern_peers *left[64];

static void peers_destroy(struct kern_stream *s UNUSED, struct kern_peers *p)
{
    if (p != NULL && p->is_aborted) {
        pthread_mutex_lock(&lock);
        for (size_t i = 0; i < ARRAY_LEN(left); i++) {
            if (left[i] == NULL) {
                left[i] = p;
                break;
            }
        }
        pthread_mutex_unlock(&lock);
        return;
    }
    free(p);
}

void fake_peer_fill(struct kern_ops *ops)
{
    for (size_t i = 0; i < ARRAY_LEN(left); i++) { /* no stream lives now */
        free(left[i]);
        left[i] = NULL;
    }
    ops->peers_create = peers_create;
    ops->peers_open = peers_open;
    ops->peers_sum = peers_sum;
    ops->peers_check = peers_check;
    ops->peers_abort = peers_abort;
    ops->peers_destroy = peers_destroy;
}
