/* coordinator/waits.c - see waits.h. */
#include "coordinator/waits.h"

#include "base/compiler.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

enum { EDGE_BYTES = 320, MORE_BYTES = 24 };

/* Whom rank i waits for; itself if for nobody. */
static uint32_t next(const struct wait_rank *ranks, uint32_t n, uint32_t i)
{
    const struct wait_rank *r = &ranks[i];
    const bool waits = !r->is_silent && r->waited_ns != 0 && r->peer < n && r->peer != i;

    return waits ? r->peer : i;
}

/* ---- the graph ---- */

/* The lowest rank of the ring that i is on. */
static uint32_t ring_root(const struct wait_rank *ranks, uint32_t n, uint32_t i)
{
    uint32_t lowest = i;

    for (uint32_t at = next(ranks, n, i); at != i; at = next(ranks, n, at)) {
        lowest = MIN(lowest, at);
    }
    return lowest;
}

static void ring_mark(struct wait_rank *ranks, uint32_t n, uint32_t i)
{
    for (uint32_t at = i; !ranks[at].is_ring; at = next(ranks, n, at)) {
        ranks[at].is_ring = true;
    }
}

/* n steps from anywhere end at a root, or on a ring. */
static void find_roots(struct wait_rank *ranks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        ranks[i].is_ring = false;
        ranks[i].n_waiters = 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;

        for (uint32_t k = 0; k < n && next(ranks, n, at) != at && !ranks[at].is_ring; k++) {
            at = next(ranks, n, at);
        }
        if (next(ranks, n, at) != at) {
            ring_mark(ranks, n, at);
            at = ring_root(ranks, n, at);
        }
        ranks[i].root = at;
    }
    for (uint32_t i = 0; i < n; i++) {
        ranks[ranks[i].root].n_waiters += ranks[i].root != i ? 1 : 0;
    }
}

/* ---- the verdict ---- */

static bool find_silent(const struct wait_rank *ranks, uint32_t n, struct waits_verdict *v)
{
    const struct wait_rank *best = NULL;

    for (uint32_t i = 0; i < n; i++) {
        const struct wait_rank *r = &ranks[i];
        const bool more = best != NULL && r->n_waiters > best->n_waiters;
        const bool longer =
            best != NULL && r->n_waiters == best->n_waiters && r->silent_ns > best->silent_ns;
        if (r->is_silent && (best == NULL || more || longer)) {
            best = r;
        }
    }
    if (best != NULL) {
        *v = (struct waits_verdict){ WAITS_SILENT, (uint32_t)(best - ranks),
                                     (uint32_t)(best - ranks) };
    }
    return best != NULL;
}

/* Silent ranks are left out: what they said last may be of two moments. */
static bool find_disagreement(const struct wait_rank *ranks, uint32_t n, struct waits_verdict *v)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = i + 1; k < n && ranks[i].step != 0 && !ranks[i].is_silent; k++) {
            if (!ranks[k].is_silent && ranks[k].step == ranks[i].step &&
                ranks[k].digest != ranks[i].digest) {
                *v = (struct waits_verdict){ WAITS_DISAGREE, i, k };
                return true;
            }
        }
    }
    return false;
}

/* A ring never ends by itself, so it comes before whoever is only slow. */
static bool find_ring(const struct wait_rank *ranks, uint32_t n, struct waits_verdict *v)
{
    const struct wait_rank *best = NULL;

    for (uint32_t i = 0; i < n; i++) {
        const struct wait_rank *r = &ranks[i];
        if (r->is_ring && r->root == i && (best == NULL || r->n_waiters > best->n_waiters)) {
            best = r;
        }
    }
    if (best == NULL) {
        return false;
    }
    const uint32_t i = (uint32_t)(best - ranks);
    *v = (struct waits_verdict){ next(ranks, n, best->peer) == i ? WAITS_LINK : WAITS_RING, i,
                                 best->peer };
    return true;
}

/* Is a rather to be named than b? Neither waits for a rank. */
static bool is_rather(const struct wait_rank *a, const struct wait_rank *b)
{
    const bool a_waits = a->waited_ns != 0, b_waits = b->waited_ns != 0;

    if (a_waits != b_waits) { /* a device may wait for another rank's */
        return !a_waits;
    }
    if (a->n_waiters != b->n_waiters) {
        return a->n_waiters > b->n_waiters;
    }
    return a->step != b->step ? a->step < b->step : a->ticks < b->ticks;
}

void waits_judge(struct wait_rank *ranks, uint32_t n, struct waits_verdict *v_p)
{
    const struct wait_rank *best = NULL;

    find_roots(ranks, n);
    if (find_silent(ranks, n, v_p) || find_disagreement(ranks, n, v_p) ||
        find_ring(ranks, n, v_p)) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (ranks[i].root == i && (best == NULL || is_rather(&ranks[i], best))) {
            best = &ranks[i];
        }
    }
    if (best == NULL) { /* no ranks: without a ring there is a root */
        *v_p = (struct waits_verdict){ WAITS_BUSY, 0, 0 };
        return;
    }
    const uint32_t i = (uint32_t)(best - ranks);
    *v_p = (struct waits_verdict){ best->waited_ns != 0 ? WAITS_DEVICE : WAITS_BUSY, i, i };
}

/* ---- for people ---- */

static double seconds(uint64_t ns)
{
    return (double)ns / 1e9;
}

/* What rank i does, as the end of "..., which ". */
static void state_text(const struct wait_rank *ranks, uint32_t n, uint32_t i, char *text,
                       size_t bytes)
{
    const struct wait_rank *r = &ranks[i];

    if (r->is_silent) {
        snprintf(text, bytes, "is silent since %.1f s", seconds(r->silent_ns));
    } else if (next(ranks, n, i) != i) {
        snprintf(text, bytes, "waits itself");
    } else if (r->waited_ns != 0) {
        snprintf(text, bytes, "waits %.1f s for its device", seconds(r->waited_ns));
    } else {
        snprintf(text, bytes, "does not wait (phase \"%s\", step %" PRIu64 ")", r->phase, r->step);
    }
}

void waits_edge_text(const struct wait_rank *ranks, uint32_t n, uint32_t i, char *text,
                     size_t bytes)
{
    const struct wait_rank *r = &ranks[i];
    const uint32_t peer = next(ranks, n, i);
    char state[128];

    text[0] = '\0';
    if (peer == i) {
        return;
    }
    state_text(ranks, n, peer, state, sizeof(state));
    snprintf(text, bytes,
             "rank %u (host %s) waits %.1f s in %s #%" PRIu64 " for rank %u (host %s), which %s", i,
             r->host, seconds(r->waited_ns), coll_op_name(r->op), r->op_seq, peer, ranks[peer].host,
             state);
}

void waits_text(const struct wait_rank *ranks, uint32_t n, const struct waits_verdict *v,
                char *text, size_t bytes)
{
    const struct wait_rank *a = &ranks[v->rank], *b = &ranks[v->other];
    char state[128];

    state_text(ranks, n, v->rank, state, sizeof(state));
    switch (v->kind) {
    case WAITS_SILENT:
    case WAITS_BUSY:
    case WAITS_DEVICE:
        snprintf(text, bytes, "rank %u (host %s) %s, and %u of %u ranks wait for it", v->rank,
                 a->host, state, a->n_waiters, n);
        return;
    case WAITS_DISAGREE:
        snprintf(text, bytes,
                 "rank %u (host %s) and rank %u (host %s) run different plans as step %" PRIu64
                 " (digests %016" PRIx64 " and %016" PRIx64 ")",
                 v->rank, a->host, v->other, b->host, a->step, a->digest, b->digest);
        return;
    case WAITS_LINK:
        snprintf(text, bytes,
                 "the link between rank %u (host %s) and rank %u (host %s) carries nothing: they "
                 "wait for each other, %.1f s in %s #%" PRIu64 " and %.1f s in %s #%" PRIu64,
                 v->rank, a->host, v->other, b->host, seconds(a->waited_ns), coll_op_name(a->op),
                 a->op_seq, seconds(b->waited_ns), coll_op_name(b->op), b->op_seq);
        return;
    case WAITS_RING:
        snprintf(text, bytes,
                 "rank %u (host %s) waits in %s #%" PRIu64
                 " for rank %u (host %s), and over further ranks for itself: they disagree about "
                 "whose turn it is",
                 v->rank, a->host, coll_op_name(a->op), a->op_seq, v->other, b->host);
        return;
    }
}

/* Append if it fits and leaves room for "; and N more". */
static bool append(char *text, size_t bytes, size_t *len, const char *more)
{
    const int n = snprintf(NULL, 0, "%s%s", *len != 0 ? "; " : "", more);

    if (n < 0 || *len + (size_t)n + MORE_BYTES >= bytes) {
        return false;
    }
    *len += (size_t)snprintf(text + *len, bytes - *len, "%s%s", *len != 0 ? "; " : "", more);
    return true;
}

void waits_list_text(const struct wait_rank *ranks, uint32_t n, const struct waits_verdict *v,
                     char *text, size_t bytes)
{
    char edge[EDGE_BYTES];
    uint32_t n_left = 0;
    size_t len = 0;

    text[0] = '\0';
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < n; i++) {
            const bool is_near = next(ranks, n, i) == v->rank;
            if (next(ranks, n, i) == i || is_near != (pass == 0)) {
                continue;
            }
            waits_edge_text(ranks, n, i, edge, sizeof(edge));
            if (n_left != 0 || !append(text, bytes, &len, edge)) {
                n_left++;
            }
        }
    }
    if (n_left != 0 && bytes > MORE_BYTES) {
        snprintf(text + len, bytes - len, "%sand %u more", len != 0 ? "; " : "", n_left);
    }
}
