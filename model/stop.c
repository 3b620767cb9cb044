/* model/stop.c - see stop.h.
 *
 * Each string has its own state: how many of its first bytes the text ends with just now, moved on
 * by the failure table of Knuth, Morris and Pratt. What must be held is the longest of those.
 * Sixteen strings cost sixteen small steps for a byte, nothing beside making the byte. */
#include "model/stop.h"

#include <stdlib.h>
#include <string.h>

struct pattern {
    char text[STOP_BYTES_MAX];
    uint16_t fail[STOP_BYTES_MAX]; /* longest proper beginning that ends text[0..i] */
    uint16_t len, state;           /* state < len: bytes matched */
};

struct stop {
    uint32_t n;
    int32_t matched; /* index, -1 while none */
    uint32_t n_held;
    char held[STOP_BYTES_MAX]; /* the end of the text that was not given out */
    struct pattern patterns[]; /* [n] */
};

static uint16_t advance(const struct pattern *p, uint16_t state, char c)
{
    while (state != 0 && p->text[state] != c) {
        state = p->fail[state - 1];
    }
    return p->text[state] == c ? (uint16_t)(state + 1) : 0;
}

static void set_pattern(struct pattern *p, const char *s, size_t len)
{
    memcpy(p->text, s, len);
    p->len = (uint16_t)len;
    for (uint16_t i = 1; i < p->len; i++) {
        p->fail[i] = advance(p, p->fail[i - 1], p->text[i]);
    }
}

status stop_create(const char *const *strings, const size_t *lens, uint32_t n, struct stop **stop_p,
                   struct err *err)
{
    if (n > STOP_STRINGS_MAX) {
        return err_set(err, ST_ERR_ARG, "%u stop strings, the limit is %d", n, STOP_STRINGS_MAX);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (lens[i] == 0 || lens[i] > STOP_BYTES_MAX) {
            return err_set(err, ST_ERR_ARG, "stop string %u has %zu bytes; 1 to %d are allowed", i,
                           lens[i], STOP_BYTES_MAX);
        }
    }
    struct stop *stop = calloc(1, sizeof *stop + n * sizeof stop->patterns[0]);
    if (stop == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for %u stop strings", n);
    }
    stop->n = n;
    stop->matched = -1;
    for (uint32_t i = 0; i < n; i++) {
        set_pattern(&stop->patterns[i], strings[i], lens[i]);
    }
    *stop_p = stop;
    return ST_OK;
}

void stop_destroy(struct stop *stop)
{
    free(stop);
}

/* Move every string on by one byte. The index of the longest that is complete, or -1. */
static int32_t step(struct stop *stop, char c)
{
    int32_t best = -1;

    for (uint32_t i = 0; i < stop->n; i++) {
        struct pattern *p = &stop->patterns[i];
        p->state = advance(p, p->state, c);
        if (p->state == p->len && (best < 0 || p->len > stop->patterns[best].len)) {
            best = (int32_t)i;
        }
    }
    return best;
}

static uint32_t longest_state(const struct stop *stop)
{
    uint32_t best = 0;

    for (uint32_t i = 0; i < stop->n; i++) {
        best = MAX(best, stop->patterns[i].state);
    }
    return best;
}

status stop_push(struct stop *stop, const char *text, size_t len, struct buf *out, int32_t *match_p)
{
    size_t cut, used = 0;

    if (stop->matched >= 0) {
        *match_p = stop->matched;
        return ST_OK;
    }
    status st = buf_reserve(out, stop->n_held + len);
    if (st != ST_OK) {
        return st;
    }
    while (used < len && stop->matched < 0) {
        stop->matched = step(stop, text[used++]);
    }
    if (stop->matched >= 0) {
        cut = stop->n_held + used - stop->patterns[stop->matched].len;
    } else {
        cut = stop->n_held + len - longest_state(stop);
    }
    /* held + text is one string; [0, cut) of it goes out, the rest is kept unless it is over. */
    const size_t from_held = MIN(cut, (size_t)stop->n_held);
    st = buf_append(out, stop->held, from_held);
    ASSERT(st == ST_OK);
    st = buf_append(out, text, cut - from_held);
    ASSERT(st == ST_OK);
    stop->n_held -= (uint32_t)from_held;
    memmove(stop->held, stop->held + from_held, stop->n_held);
    if (stop->matched >= 0) {
        stop->n_held = 0;
    } else {
        const size_t rest = len - (cut - from_held);
        memcpy(stop->held + stop->n_held, text + (len - rest), rest);
        stop->n_held += (uint32_t)rest;
    }
    *match_p = stop->matched;
    return ST_OK;
}

status stop_flush(struct stop *stop, struct buf *out)
{
    const status st = buf_append(out, stop->held, stop->n_held);

    if (st == ST_OK) {
        stop->n_held = 0;
    }
    return st;
}

size_t stop_held(const struct stop *stop)
{
    return stop->n_held;
}
