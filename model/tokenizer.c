/* model/tokenizer.c - opening a tokenizer, and its facts. The pipeline is tok_encode.c. */
#include "model/tok_impl.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- what every kind ends with ---- */

/* "<0x41>" -> 0x41; -1 otherwise. */
static int byte_token(const char *s, size_t len)
{
    static const char digits[] = "0123456789ABCDEF";

    if (len != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') {
        return -1;
    }
    const char *hi = memchr(digits, s[3], 16), *lo = memchr(digits, s[4], 16);
    return hi != NULL && lo != NULL ? (int)((hi - digits) * 16 + (lo - digits)) : -1;
}

/* The bytes of a byte-level token. A token with any other character stands for itself. */
static status bytes_by_level(const char *s, uint32_t len, struct buf *out)
{
    uint32_t k;
    status st = ST_OK;

    for (uint32_t i = 0; i < len && st == ST_OK; i += k) {
        const int byte = byte_of_char(utf8_get(s + i, &k));
        if (byte < 0) {
            buf_reset(out);
            return buf_append(out, s, len);
        }
        st = buf_append_char(out, (char)byte);
    }
    return st;
}

static status bytes_by_replacing(const struct tok_decode *d, const char *s, uint32_t len,
                                 struct buf *out, struct buf *other)
{
    status st = buf_append(out, s, len);

    for (uint32_t r = 0; r < d->n_replace && st == ST_OK; r++) {
        const char *from = d->replace[r].from;
        const size_t k = d->replace[r].from_len;
        buf_reset(other);
        for (size_t i = 0; i < out->len && st == ST_OK;) {
            const bool hit = out->len - i >= k && memcmp(out->data + i, from, k) == 0;
            st = hit ? buf_append(other, d->replace[r].to, d->replace[r].to_len)
                     : buf_append_char(other, out->data[i]);
            i += hit ? k : 1;
        }
        const struct buf swap = *out;
        *out = *other;
        *other = swap;
    }
    return st;
}

static status set_bytes(struct tokenizer *t, struct tok_entry *e, struct buf *out,
                        struct buf *other)
{
    const char *s = t->pool.data + e->str;
    const int byte = t->decode.byte_fallback ? byte_token(s, e->str_len) : -1;
    status st = ST_OK;

    if ((e->flags & (TOKF_UNK | TOKF_ADDED)) == TOKF_UNK) {
        return ST_OK; /* set by its loader */
    }
    e->bytes = e->str;
    e->bytes_len = e->str_len;
    if ((e->flags & TOKF_ADDED) != 0) { /* its content is its text */
        return ST_OK;
    }
    buf_reset(out);
    if (byte >= 0) {
        e->flags = (uint16_t)(e->flags | TOKF_BYTE);
        st = buf_append_char(out, (char)byte);
    } else if (t->decode.byte_level) {
        st = bytes_by_level(s, e->str_len, out);
    } else {
        st = bytes_by_replacing(&t->decode, s, e->str_len, out, other);
    }
    if (st != ST_OK || (out->len == e->str_len && memcmp(out->data, s, out->len) == 0)) {
        return st;
    }
    e->bytes = (uint32_t)t->pool.len;
    e->bytes_len = (uint32_t)out->len;
    return buf_append(&t->pool, out->data, out->len);
}

static status set_all_bytes(struct tokenizer *t, struct err *err)
{
    struct buf out = BUF_INIT, other = BUF_INIT;
    status st = ST_OK;

    for (uint32_t id = 0; id < t->n_ids && st == ST_OK; id++) {
        if (t->entries[id].flags != 0) {
            st = set_bytes(t, &t->entries[id], &out, &other);
        }
    }
    buf_fini(&out);
    buf_fini(&other);
    return st == ST_OK ? st : buf_fail(&t->pool, st, "token strings", err);
}

/* Special ids never come from characters; tables that the inner loop reads leave them out. */
static void set_small_tables(struct tokenizer *t)
{
    char s[4];

    for (uint32_t cp = 0; cp < ARRAY_LEN(t->char_ids); cp++) {
        const uint32_t id = tok_map_find(t, &t->vocab, s, utf8_put(cp, s));
        t->char_ids[cp] =
            id != TOK_NONE && (t->entries[id].flags & TOKF_SPECIAL) == 0 ? id : TOK_NONE;
    }
    for (uint32_t id = 0; id < t->n_ids; id++) {
        const struct tok_entry *e = &t->entries[id];
        const int byte = byte_token(tok_str(t, id), e->str_len);
        if (e->flags != 0 && byte >= 0 && (e->flags & TOKF_SPECIAL) == 0) {
            t->byte_ids[byte] = id;
        }
        if ((e->flags & TOKF_VOCAB) != 0) {
            t->max_piece = MAX(t->max_piece, e->str_len);
        }
        t->n_tokens += e->flags != 0;
        t->n_added += (e->flags & TOKF_ADDED) != 0;
        t->n_special += (e->flags & TOKF_SPECIAL) != 0;
    }
}

/* A token that is found in its normal form also reads as its normal form: with a normalizer that
 * puts U+2581 in front, " cat" is found, and the space is part of what the token stands for. */
static status set_normed_bytes(struct tokenizer *t, uint32_t id, struct tok_work *w)
{
    struct tok_entry *e = &t->entries[id];

    buf_reset(&w->text);
    const status st =
        bytes_by_replacing(&t->decode, w->norm.data, (uint32_t)w->norm.len, &w->text, &w->other);
    if (st != ST_OK ||
        (w->text.len == e->str_len && memcmp(w->text.data, tok_str(t, id), e->str_len) == 0)) {
        return st;
    }
    e->bytes = (uint32_t)t->pool.len;
    e->bytes_len = (uint32_t)w->text.len;
    return buf_append(&t->pool, w->text.data, w->text.len);
}

/* Added tokens are searched in the raw text, or in their normal form in the normalised text. */
static status set_tries(struct tokenizer *t, struct err *err)
{
    struct err why = ERR_INIT;
    struct tok_work w = { .tok = t,
                          .err = &why,
                          .norm = BUF_INIT,
                          .norm_other = BUF_INIT,
                          .text = BUF_INIT,
                          .other = BUF_INIT };
    status st = ST_OK;

    for (uint32_t id = 0; id < t->n_ids && st == ST_OK; id++) {
        const struct tok_entry *e = &t->entries[id];
        if ((e->flags & TOKF_ADDED) == 0 || e->str_len == 0) {
            continue;
        }
        if ((e->flags & TOKF_NORM) == 0) {
            st = tok_trie_add(&t->raw, tok_str(t, id), e->str_len, id);
            continue;
        }
        w.at_zero = true;
        st = tok_normalize(&w, tok_str(t, id), e->str_len);
        if (st == ST_OK && w.norm.len != 0) {
            st = tok_trie_add(&t->normed, w.norm.data, w.norm.len, id);
        }
        if (st == ST_OK) {
            st = set_normed_bytes(t, id, &w);
        }
    }
    tok_work_fini(&w);
    return st == ST_OK ? st
                       : err_set(err, st, "added tokens: %s",
                                 why.text[0] != '\0' ? why.text : "no memory for them");
}

/* The same string must not be one id in the vocabulary and another among the added tokens. */
static status check_added(const struct tokenizer *t, struct err *err)
{
    if (t->n_added > TOK_ADDED_MAX) {
        return err_set(err, ST_ERR_LIMIT, "%u added tokens, the limit is %d", t->n_added,
                       TOK_ADDED_MAX);
    }
    for (uint32_t id = 0; id < t->n_ids; id++) {
        const struct tok_entry *e = &t->entries[id];
        if ((e->flags & TOKF_ADDED) == 0) {
            continue;
        }
        if (utf8_valid_upto(tok_str(t, id), e->str_len) != e->str_len) {
            return err_set(err, ST_ERR_FORMAT, "added token %u is not UTF-8", id);
        }
        const uint32_t other = tok_map_find(t, &t->vocab, tok_str(t, id), e->str_len);
        if (other != TOK_NONE && other != id) {
            return err_set(err, ST_ERR_FORMAT,
                           "\"%.*s\" is token %u of the vocabulary and added token %u",
                           (int)MIN(e->str_len, 64u), tok_str(t, id), other, id);
        }
    }
    return ST_OK;
}

status tok_finish(struct tokenizer *t, struct err *err)
{
    if (t->n_ids == 0) {
        return err_set(err, ST_ERR_FORMAT, "the vocabulary is empty");
    }
    set_small_tables(t);
    status st = check_added(t, err);
    if (st == ST_OK) {
        st = tok_map_build(t, &t->added, TOKF_ADDED, err);
    }
    if (st == ST_OK) {
        st = set_all_bytes(t, err);
    }
    return st == ST_OK ? set_tries(t, err) : st;
}

/* ---- life ---- */

status tokenizer_open_memory(const struct tok_files *files, struct tokenizer **tok_p,
                             struct err *err)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    status st;

    if (t == NULL) {
        return err_set(err, ST_ERR_NOMEM, "no memory for a tokenizer");
    }
    t->pool = (struct buf)BUF_INIT_MAX((size_t)512 << 20);
    t->unk = t->bos = t->eos = -1;
    memset(t->byte_ids, 0xff, sizeof t->byte_ids);
    if (files->tokenizer_json != NULL) {
        st = tok_load_json(t, files, err);
    } else if (files->tokenizer_model != NULL) {
        st = tok_load_sp(t, files, err);
    } else if (files->vocab_json != NULL && files->merges_txt != NULL) {
        st = tok_load_gpt2(t, files, err);
    } else {
        st = err_set(
            err, ST_ERR_NOT_FOUND,
            "no tokenizer: neither tokenizer.json, nor tokenizer.model, nor vocab.json with "
            "merges.txt");
    }
    if (st == ST_OK) {
        st = tok_finish(t, err);
    }
    if (st != ST_OK) {
        tokenizer_close(t);
        return st;
    }
    *tok_p = t;
    return ST_OK;
}

void tokenizer_close(struct tokenizer *tok)
{
    if (tok == NULL) {
        return;
    }
    for (uint32_t i = 0; i < TOK_STAGES_MAX; i++) {
        tok_norm_fini(&tok->norms[i]);
        tok_pre_fini(&tok->pres[i]);
    }
    tok_trie_fini(&tok->raw);
    tok_trie_fini(&tok->normed);
    tok_trie_fini(&tok->pieces.user);
    free(tok->pieces.trie);
    free(tok->pieces.strings);
    free(tok->merges.slots);
    free(tok->vocab.slots);
    free(tok->added.slots);
    free(tok->entries);
    buf_fini(&tok->pool);
    free(tok);
}

/* ---- the directory ---- */

/* Read dir/name into `b`; absent files leave *data_p NULL. */
static status read_file(const char *dir, const char *name, struct buf *b, const char **data_p,
                        size_t *len_p, struct err *err)
{
    char path[4096];
    struct err why = ERR_INIT;

    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path) {
        return err_set(err, ST_ERR_ARG, "the path of %s is over %zu bytes", name, sizeof path);
    }
    const status st = buf_read_file(b, path, TOK_FILE_BYTES_MAX, &why);
    if (st == ST_ERR_NOT_FOUND) {
        return ST_OK;
    }
    if (st != ST_OK) {
        return err_set(err, st, "%s", why.text);
    }
    *data_p = b->data;
    *len_p = b->len;
    return ST_OK;
}

enum { N_FILES = 7 };

/* Only the first kind that is there is read, and what stands beside it. */
static status read_files(const char *dir, struct buf bufs[N_FILES], struct tok_files *f,
                         struct err *err)
{
    const struct {
        const char *name;
        const char **data;
        size_t *len;
        bool model; /* a file that decides the kind */
    } table[N_FILES] = {
        { "tokenizer.json", &f->tokenizer_json, &f->tokenizer_json_len, true },
        { "tokenizer.model", &f->tokenizer_model, &f->tokenizer_model_len, true },
        { "vocab.json", &f->vocab_json, &f->vocab_json_len, true },
        { "merges.txt", &f->merges_txt, &f->merges_txt_len, true },
        { "tokenizer_config.json", &f->tokenizer_config, &f->tokenizer_config_len, false },
        { "special_tokens_map.json", &f->special_tokens_map, &f->special_tokens_map_len, false },
        { "config.json", &f->config, &f->config_len, false },
    };
    status st = ST_OK;

    for (uint32_t i = 0; i < N_FILES && st == ST_OK; i++) {
        if (table[i].model && (f->tokenizer_json != NULL || f->tokenizer_model != NULL)) {
            continue;
        }
        st = read_file(dir, table[i].name, &bufs[i], table[i].data, table[i].len, err);
    }
    return st;
}

status tokenizer_open(const char *dir, struct tokenizer **tok_p, struct err *err)
{
    struct buf bufs[N_FILES];
    struct tok_files files = { 0 };

    for (uint32_t i = 0; i < N_FILES; i++) {
        bufs[i] = (struct buf)BUF_INIT;
    }
    status st = read_files(dir, bufs, &files, err);
    if (st == ST_OK) {
        st = tokenizer_open_memory(&files, tok_p, err);
        if (st != ST_OK && err != NULL) {
            st = err_prefix(err, "%s: ", dir);
        }
    }
    for (uint32_t i = 0; i < N_FILES; i++) {
        buf_fini(&bufs[i]);
    }
    return st;
}

/* ---- facts ---- */

const char *tokenizer_token_bytes(const struct tokenizer *tok, uint32_t id, size_t *len_p)
{
    if (id >= tok->n_ids || tok->entries[id].flags == 0) {
        *len_p = 0;
        return "";
    }
    *len_p = tok->entries[id].bytes_len;
    return tok->pool.data + tok->entries[id].bytes;
}

uint32_t tokenizer_n_vocab(const struct tokenizer *tok)
{
    return tok->n_ids;
}

bool tokenizer_has(const struct tokenizer *tok, uint32_t id)
{
    return id < tok->n_ids && tok->entries[id].flags != 0;
}

bool tokenizer_is_special(const struct tokenizer *tok, uint32_t id)
{
    return id < tok->n_ids && (tok->entries[id].flags & TOKF_SPECIAL) != 0;
}

int32_t tokenizer_bos(const struct tokenizer *tok)
{
    return tok->bos;
}

int32_t tokenizer_eos(const struct tokenizer *tok)
{
    return tok->eos;
}

int32_t tokenizer_find(const struct tokenizer *tok, const char *content)
{
    const size_t len = strlen(content);
    uint32_t id = tok_map_find(tok, &tok->added, content, len);

    if (id == TOK_NONE) {
        id = tok_map_find(tok, &tok->vocab, content, len);
    }
    return id == TOK_NONE ? -1 : (int32_t)id;
}

const char *tokenizer_kind(const struct tokenizer *tok)
{
    return tok->kind;
}

static bool contains(const uint32_t *ids, uint32_t n, int32_t id)
{
    for (uint32_t i = 0; id >= 0 && i < n; i++) {
        if (ids[i] == (uint32_t)id) {
            return true;
        }
    }
    return false;
}

static uint64_t trie_bytes(const struct tok_trie *trie)
{
    return (uint64_t)trie->cap_nodes * sizeof *trie->ids +
           (trie->edges != NULL ? (trie->mask + 1ull) * sizeof *trie->edges : 0);
}

struct tok_stats tokenizer_stats(const struct tokenizer *tok)
{
    struct tok_stats s = { .n_vocab = tok->n_ids,
                           .n_tokens = tok->n_tokens,
                           .n_merges = tok->merges.n,
                           .n_added = tok->n_added,
                           .n_special = tok->n_special,
                           .has_jit = true };

    s.adds_bos = contains(tok->prefix, tok->n_prefix, tok->bos);
    s.adds_eos = contains(tok->suffix, tok->n_suffix, tok->eos);
    s.memory_bytes =
        sizeof *tok + tok->pool.cap + tok->cap_ids * sizeof *tok->entries +
        (tok->vocab.mask + tok->added.mask + 2ull) * sizeof(uint32_t) +
        (tok->merges.slots != NULL ? (tok->merges.mask + 1ull) * sizeof(struct tok_merge) : 0) +
        trie_bytes(&tok->raw) + trie_bytes(&tok->normed) + trie_bytes(&tok->pieces.user) +
        4ull * tok->pieces.n_trie + tok->pieces.n_strings;
    for (uint32_t i = 0; i < tok->n_pres; i++) {
        if (tok->pres[i].re != NULL) {
            s.has_jit = s.has_jit && tok_regex_has_jit(tok->pres[i].re);
            s.memory_bytes += tok_regex_bytes(tok->pres[i].re);
        }
    }
    for (uint32_t i = 0; i < tok->n_norms; i++) {
        if (tok->norms[i].re != NULL) {
            s.has_jit = s.has_jit && tok_regex_has_jit(tok->norms[i].re);
            s.memory_bytes += tok_regex_bytes(tok->norms[i].re);
        }
    }
    return s;
}
