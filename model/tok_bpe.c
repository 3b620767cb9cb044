/* model/tok_bpe.c - one word to ids: merge the best pair until there is none.
 *
 *   symbols   a linked list over the word, one for each character at first
 *   heap      candidate pairs by (rank, position): the lowest rank first, then the leftmost
 *
 * A merge makes at most two new candidates, so a word of n characters costs n log n: a megabyte
 * without a space is no harder than its size. A candidate is stale when one of its two symbols has
 * changed since; any change makes the pair's text longer, so comparing lengths is enough. Short
 * words, which nearly all are, skip the heap and look for the lowest rank directly.
 *
 * Two rules say what a pair makes: the merge map (two ids -> rank, id), or for SentencePiece the
 * score of the joined string, whatever it is made of. */
#include "model/tok_impl.h"

#include <stdlib.h>

enum { SHORT_WORD = 20 };

struct bpe_sym {
    uint32_t id;         /* TOK_NONE: a character that is no token */
    uint32_t begin, len; /* in the word */
    int32_t prev, next;  /* -1: none */
    bool frozen;         /* never merged */
    bool dead;           /* merged into the one before it */
};

struct bpe_cand {
    uint32_t rank, pos, id;
    uint32_t len; /* bytes of both symbols when it was offered */
};

/* ---- pairs ---- */

/* Special tokens never come out of characters. */
static uint32_t find_plain(const struct tokenizer *t, const char *s, size_t len)
{
    const uint32_t id = tok_map_find(t, &t->vocab, s, len);

    return id != TOK_NONE && (t->entries[id].flags & TOKF_SPECIAL) != 0 ? TOK_NONE : id;
}

static bool pair(const struct tokenizer *t, const char *s, const struct bpe_sym *a,
                 const struct bpe_sym *b, struct bpe_cand *c)
{
    if (!t->by_score) {
        const struct tok_merge *m = tok_merge_find(&t->merges, a->id, b->id);
        if (m == NULL) {
            return false;
        }
        c->rank = m->rank;
        c->id = m->id;
        return true;
    }
    if (a->frozen || b->frozen || a->len + b->len > t->max_piece) {
        return false;
    }
    c->id = find_plain(t, s + a->begin, a->len + b->len);
    if (c->id == TOK_NONE) {
        return false;
    }
    c->rank = t->entries[c->id].rank;
    return true;
}

/* ---- the heap ---- */

/* Four children: half as many levels, and those of one node share a cache line. */

static bool before(const struct bpe_cand *a, const struct bpe_cand *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static status heap_push(struct tok_work *w, const struct bpe_cand *c)
{
    if (w->n_heap == w->cap_heap) {
        const uint32_t cap = MAX(256u, w->cap_heap + w->cap_heap / 2);
        struct bpe_cand *heap = realloc(w->heap, cap * sizeof *heap);
        if (heap == NULL) {
            return err_set(w->err, ST_ERR_NOMEM, "no memory for %u merge candidates", cap);
        }
        w->heap = heap;
        w->cap_heap = cap;
    }
    uint32_t i = w->n_heap++;
    while (i != 0 && before(c, &w->heap[(i - 1) / 4])) {
        w->heap[i] = w->heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    w->heap[i] = *c;
    return ST_OK;
}

static struct bpe_cand heap_pop(struct tok_work *w)
{
    const struct bpe_cand top = w->heap[0], last = w->heap[--w->n_heap];
    uint32_t i = 0;

    for (;;) {
        const uint32_t first = 4 * i + 1, stop = MIN(first + 4, w->n_heap);
        uint32_t child = first;
        if (first >= w->n_heap) {
            break;
        }
        for (uint32_t k = first + 1; k < stop; k++) {
            child = before(&w->heap[k], &w->heap[child]) ? k : child;
        }
        if (!before(&w->heap[child], &last)) {
            break;
        }
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* ---- merging ---- */

static void join(struct bpe_sym *syms, uint32_t pos, uint32_t id)
{
    struct bpe_sym *a = &syms[pos], *b = &syms[a->next];

    a->id = id;
    a->len += b->len;
    a->next = b->next;
    b->dead = true;
    if (a->next >= 0) {
        syms[a->next].prev = (int32_t)pos;
    }
}

static status offer(struct tok_work *w, const char *s, int32_t pos)
{
    struct bpe_cand c;

    if (pos < 0 || w->syms[pos].next < 0 ||
        !pair(w->tok, s, &w->syms[pos], &w->syms[w->syms[pos].next], &c)) {
        return ST_OK;
    }
    c.pos = (uint32_t)pos;
    c.len = w->syms[pos].len + w->syms[w->syms[pos].next].len;
    return heap_push(w, &c);
}

static status merge_long(struct tok_work *w, const char *s, uint32_t n)
{
    status st = ST_OK;

    w->n_heap = 0;
    for (uint32_t i = 0; i < n && st == ST_OK; i++) {
        st = offer(w, s, (int32_t)i);
    }
    while (w->n_heap != 0 && st == ST_OK) {
        const struct bpe_cand c = heap_pop(w);
        const struct bpe_sym *a = &w->syms[c.pos];

        if (a->dead || a->next < 0 || a->len + w->syms[a->next].len != c.len) {
            continue;
        }
        join(w->syms, c.pos, c.id);
        st = offer(w, s, w->syms[c.pos].prev);
        if (st == ST_OK) {
            st = offer(w, s, (int32_t)c.pos);
        }
    }
    return st;
}

/* ranks[i]: what symbol i makes with its next, UINT32_MAX if nothing. Ranks of files are below. */
static void merge_short(struct tok_work *w, const char *s, uint32_t n)
{
    struct bpe_cand cands[SHORT_WORD];
    struct bpe_sym *syms = w->syms;

    ASSERT(n != 0 && n <= SHORT_WORD);
    cands[0].rank = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (i + 1 == n || !pair(w->tok, s, &syms[i], &syms[i + 1], &cands[i])) {
            cands[i].rank = UINT32_MAX;
        }
    }
    for (;;) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++) {
            best = cands[i].rank < cands[best].rank ? i : best;
        }
        if (cands[best].rank == UINT32_MAX) {
            return;
        }
        cands[syms[best].next].rank = UINT32_MAX;
        join(syms, best, cands[best].id);
        const int32_t prev = syms[best].prev, next = syms[best].next;
        if (next < 0 || !pair(w->tok, s, &syms[best], &syms[next], &cands[best])) {
            cands[best].rank = UINT32_MAX;
        }
        if (prev >= 0 && !pair(w->tok, s, &syms[prev], &syms[best], &cands[prev])) {
            cands[prev].rank = UINT32_MAX;
        }
    }
}

/* ---- characters ---- */

static uint32_t char_id(const struct tokenizer *t, const char *s, uint32_t k)
{
    if (k <= 2) {
        uint32_t n;
        const uint32_t cp = utf8_get(s, &n);
        if (cp < ARRAY_LEN(t->char_ids)) {
            return t->char_ids[cp];
        }
    }
    return find_plain(t, s, k);
}

/* One symbol for each character, or each byte where characters may fall apart. */
static uint32_t count_syms(const struct tokenizer *t, const char *s, uint32_t len)
{
    uint32_t n = 0;

    if (t->byte_fallback && !t->by_score) {
        return len;
    }
    for (uint32_t i = 0; i < len; i += utf8_len(s[i])) {
        n++;
    }
    return n;
}

static status reserve_syms(struct tok_work *w, uint32_t len)
{
    if (len <= w->cap_syms) {
        return ST_OK;
    }
    const uint32_t cap = MAX(256u, len + len / 4);
    struct bpe_sym *syms = realloc(w->syms, cap * sizeof *syms);
    if (syms == NULL) {
        return err_set(w->err, ST_ERR_NOMEM, "no memory for a word of %u characters", len);
    }
    w->syms = syms;
    w->cap_syms = cap;
    return ST_OK;
}

static void add_sym(struct tok_work *w, uint32_t *n, uint32_t id, uint32_t begin, uint32_t len)
{
    w->syms[*n] = (struct bpe_sym){
        .id = id, .begin = begin, .len = len, .prev = (int32_t)*n - 1, .next = (int32_t)*n + 1
    };
    *n += 1;
}

/* Hugging Face: a character outside the vocabulary is its bytes, or the unknown token (runs of it
 * fused if the file says so), or nothing at all. */
static uint32_t symbols_by_id(struct tok_work *w, const char *s, uint32_t len)
{
    const struct tokenizer *t = w->tok;
    uint32_t n = 0, k;
    bool after_unk = false;

    for (uint32_t i = 0; i < len; i += k) {
        k = utf8_len(s[i]);
        const uint32_t id = char_id(t, s + i, k);
        if (id != TOK_NONE) {
            add_sym(w, &n, id, i, k);
            after_unk = false;
            continue;
        }
        bool bytes = t->byte_fallback;
        for (uint32_t j = 0; j < k && bytes; j++) {
            bytes = t->byte_ids[(unsigned char)s[i + j]] != TOK_NONE;
        }
        for (uint32_t j = 0; j < k && bytes; j++) {
            add_sym(w, &n, t->byte_ids[(unsigned char)s[i + j]], i + j, 1);
        }
        if (!bytes && t->unk >= 0 && !(after_unk && t->fuse_unk)) {
            add_sym(w, &n, (uint32_t)t->unk, i, k);
        }
        after_unk = !bytes && t->unk >= 0;
    }
    return n;
}

/* SentencePiece: characters stay characters until the end; user-defined pieces are found first. */
static uint32_t symbols_by_string(struct tok_work *w, const char *s, uint32_t len)
{
    const struct tokenizer *t = w->tok;
    uint32_t n = 0, k, id;

    for (uint32_t i = 0; i < len; i += k) {
        id = TOK_NONE;
        k = tok_trie_match(&t->pieces.user, s + i, len - i, &id);
        const bool frozen = k != 0;
        if (!frozen) {
            k = utf8_len(s[i]);
            id = char_id(t, s + i, k);
        }
        add_sym(w, &n, id, i, k);
        w->syms[n - 1].frozen = frozen;
    }
    return n;
}

static status emit_syms(struct tok_work *w, const char *s)
{
    const struct tokenizer *t = w->tok;
    bool after_unk = false;
    status st = ST_OK;

    for (int32_t i = 0; i >= 0 && st == ST_OK; i = w->syms[i].next) {
        const struct bpe_sym *sym = &w->syms[i];
        if (sym->id != TOK_NONE) {
            st = tok_emit(w, sym->id);
            after_unk = false;
            continue;
        }
        for (uint32_t j = 0; t->byte_fallback && j < sym->len && st == ST_OK; j++) {
            st = tok_emit(w, t->byte_ids[(unsigned char)s[sym->begin + j]]);
        }
        if (!t->byte_fallback && t->unk >= 0 && !after_unk) {
            st = tok_emit(w, (uint32_t)t->unk);
        }
        after_unk = true;
    }
    return st;
}

status tok_bpe(struct tok_work *w, const char *s, uint32_t len)
{
    const struct tokenizer *t = w->tok;

    if (len == 0) {
        return ST_OK;
    }
    if (t->ignore_merges) {
        const uint32_t id = find_plain(t, s, len);
        if (id != TOK_NONE) {
            return tok_emit(w, id);
        }
    }
    status st = reserve_syms(w, count_syms(t, s, len));
    if (st != ST_OK) {
        return st;
    }
    const uint32_t n = t->by_score ? symbols_by_string(w, s, len) : symbols_by_id(w, s, len);
    if (n == 0) {
        return ST_OK;
    }
    w->syms[n - 1].next = -1;
    if (n <= SHORT_WORD) {
        merge_short(w, s, n);
    } else {
        st = merge_long(w, s, n);
    }
    return st == ST_OK ? emit_syms(w, s) : st;
}
