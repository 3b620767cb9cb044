/* model/tok_sp.c - tokenizer.model: a SentencePiece model of type BPE.
 *
 * The file is one protobuf message; the few fields that matter are read by the small bounded reader
 * below, so that this folder needs no generated code. Unknown fields are skipped, as protobuf asks.
 *
 *   ModelProto:  1 pieces { 1 piece, 2 score, 3 type }   2 trainer_spec   3 normalizer_spec
 *
 * The character map of normalizer_spec is used as compiled into the file (tok_charsmap.c). */
#include "model/tok_impl.h"

#include <stdlib.h>

enum { PIECE_BYTES_MAX = 1024 }; /* SentencePiece writes 16 characters unless told otherwise */
enum piece_type {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN,
    PIECE_CONTROL,
    PIECE_USER,
    PIECE_UNUSED,
    PIECE_BYTE
};

/* ---- protobuf ---- */

enum wire_type { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct wire {
    const char *at, *end;
};

struct wire_field {
    uint32_t number;
    enum wire_type type;
    uint64_t value;   /* VARINT, and 32: the raw bits */
    struct wire body; /* BYTES */
};

static bool wire_varint(struct wire *w, uint64_t *value_p)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        const unsigned char c = (unsigned char)*w->at++;
        value |= (uint64_t)(c & 0x7f) << shift;
        if (c < 0x80) {
            *value_p = value;
            return true;
        }
    }
    return false;
}

/* ST_END: no more fields. ST_ERR_FORMAT: malformed. */
static status wire_next(struct wire *w, struct wire_field *f)
{
    uint64_t key = 0;

    if (w->at == w->end) {
        return ST_END;
    }
    if (!wire_varint(w, &key) || key >> 3 == 0 || key >> 32 != 0) {
        return ST_ERR_FORMAT;
    }
    f->number = (uint32_t)(key >> 3);
    f->type = (enum wire_type)(key & 7);
    f->value = 0;
    switch (f->type) {
    case WIRE_VARINT:
        return wire_varint(w, &f->value) ? ST_OK : ST_ERR_FORMAT;
    case WIRE_BYTES:
        if (!wire_varint(w, &f->value) || f->value > (uint64_t)(w->end - w->at)) {
            return ST_ERR_FORMAT;
        }
        f->body = (struct wire){ w->at, w->at + f->value };
        w->at += f->value;
        return ST_OK;
    case WIRE_32:
    case WIRE_64: {
        const int n = f->type == WIRE_32 ? 4 : 8;
        if (w->end - w->at < n) {
            return ST_ERR_FORMAT;
        }
        for (int i = 0; i < n; i++) {
            f->value |= (uint64_t)(unsigned char)w->at[i] << 8 * i;
        }
        w->at += n;
        return ST_OK;
    }
    default:
        return ST_ERR_FORMAT;
    }
}

/* ---- the message ---- */

struct sp {
    struct tokenizer *t;
    struct err *err;
    float *scores; /* [cap] by id, owned */
    uint32_t n, cap;
    uint64_t model_type; /* 1 unigram, 2 BPE, 3 word, 4 char */
    bool byte_fallback, as_suffix;
    int32_t bos, eos;
    const char *unk_surface; /* borrowed from the file */
    size_t unk_surface_len;
};

static status malformed(const struct sp *sp, const char *where)
{
    return err_set(sp->err, ST_ERR_FORMAT,
                   "tokenizer.model: %s: truncated or not a protobuf message", where);
}

static status keep_score(struct sp *sp, float score)
{
    if (sp->n == sp->cap) {
        const uint32_t cap = MAX(1024u, sp->cap * 2);
        float *scores = realloc(sp->scores, cap * sizeof *scores);
        if (scores == NULL) {
            return err_set(sp->err, ST_ERR_NOMEM, "no memory for %u pieces", cap);
        }
        sp->scores = scores;
        sp->cap = cap;
    }
    sp->scores[sp->n++] = score;
    return ST_OK;
}

static unsigned flags_of(uint64_t type)
{
    switch (type) {
    case PIECE_NORMAL:
        return TOKF_VOCAB;
    case PIECE_UNKNOWN:
        return TOKF_UNK;
    case PIECE_CONTROL:
        return TOKF_ADDED | TOKF_SPECIAL;
    case PIECE_USER:
        return TOKF_VOCAB | TOKF_FROZEN;
    case PIECE_BYTE:
        return TOKF_BYTE;
    default:
        return 0;
    }
}

static status add_piece(struct sp *sp, const struct wire *text, uint64_t type, float score)
{
    const uint32_t id = sp->n;
    const size_t len = (size_t)(text->end - text->at);
    const unsigned flags = flags_of(type);

    if (len == 0 || len > PIECE_BYTES_MAX || utf8_valid_upto(text->at, len) != len) {
        return err_set(
            sp->err, len > PIECE_BYTES_MAX ? ST_ERR_LIMIT : ST_ERR_FORMAT,
            "tokenizer.model: pieces[%u]: %zu bytes; 1 to %d bytes of UTF-8 are expected", id, len,
            PIECE_BYTES_MAX);
    }
    if (flags == 0) {
        return err_set(sp->err, ST_ERR_UNSUPPORTED, "tokenizer.model: pieces[%u].type: %llu%s", id,
                       (unsigned long long)type,
                       type == PIECE_UNUSED ? " (unused pieces) is not known" : " is not known");
    }
    if (!(score > -1e30f && score < 1e30f)) {
        return err_set(sp->err, ST_ERR_FORMAT, "tokenizer.model: pieces[%u].score: %g", id,
                       (double)score);
    }
    if (type == PIECE_UNKNOWN) {
        if (sp->t->unk >= 0) {
            return err_set(sp->err, ST_ERR_FORMAT,
                           "tokenizer.model: pieces[%u]: a second unknown piece, after %d", id,
                           sp->t->unk);
        }
        sp->t->unk = (int32_t)id;
    }
    status st = tok_token_add(sp->t, id, text->at, len, flags, "tokenizer.model: pieces", sp->err);
    if (st == ST_OK && type == PIECE_USER) {
        st = tok_trie_add(&sp->t->pieces.user, text->at, len, id);
        if (st != ST_OK) {
            return err_set(sp->err, st, "tokenizer.model: pieces[%u]: no memory", id);
        }
    }
    return st == ST_OK ? keep_score(sp, score) : st;
}

static status read_piece(struct sp *sp, struct wire body)
{
    struct wire text = { NULL, NULL };
    struct wire_field f;
    uint64_t type = PIECE_NORMAL;
    float score = 0;
    status st;

    while ((st = wire_next(&body, &f)) == ST_OK) {
        if (f.number == 1 && f.type == WIRE_BYTES) {
            text = f.body;
        } else if (f.number == 2 && f.type == WIRE_32) {
            const uint32_t bits = (uint32_t)f.value;
            memcpy(&score, &bits, sizeof score);
        } else if (f.number == 3 && f.type == WIRE_VARINT) {
            type = f.value;
        }
    }
    return st == ST_END ? add_piece(sp, &text, type, score) : malformed(sp, "pieces");
}

static status read_trainer(struct sp *sp, struct wire body)
{
    struct wire_field f;
    status st;

    while ((st = wire_next(&body, &f)) == ST_OK) {
        if (f.type == WIRE_BYTES && f.number == 44) {
            sp->unk_surface = f.body.at;
            sp->unk_surface_len = (size_t)(f.body.end - f.body.at);
        }
        if (f.type != WIRE_VARINT) {
            continue;
        }
        switch (f.number) {
        case 3:
            sp->model_type = f.value;
            break;
        case 24:
            sp->as_suffix = f.value != 0;
            break;
        case 35:
            sp->byte_fallback = f.value != 0;
            break;
        case 41:
            sp->bos = f.value < TOK_VOCAB_MAX ? (int32_t)f.value : -1;
            break;
        case 42:
            sp->eos = f.value < TOK_VOCAB_MAX ? (int32_t)f.value : -1;
            break;
        default:
            break;
        }
    }
    return st == ST_END ? ST_OK : malformed(sp, "trainer_spec");
}

static status read_normalizer(struct sp *sp, struct wire body)
{
    struct tok_pieces *p = &sp->t->pieces;
    struct wire map = { NULL, NULL };
    struct wire_field f;
    status st;

    while ((st = wire_next(&body, &f)) == ST_OK) {
        if (f.number == 2 && f.type == WIRE_BYTES) {
            map = f.body;
        } else if (f.number == 3 && f.type == WIRE_VARINT) {
            p->dummy_prefix = f.value != 0;
        } else if (f.number == 4 && f.type == WIRE_VARINT) {
            p->squeeze = f.value != 0;
        } else if (f.number == 5 && f.type == WIRE_VARINT) {
            p->escape = f.value != 0;
        }
    }
    if (st != ST_END) {
        return malformed(sp, "normalizer_spec");
    }
    if (p->trie != NULL) {
        return err_set(sp->err, ST_ERR_FORMAT, "tokenizer.model: normalizer_spec comes twice");
    }
    st = tok_charsmap_load(p, map.at, (size_t)(map.end - map.at), sp->err);
    return st == ST_OK || sp->err == NULL ? st : err_prefix(sp->err, "tokenizer.model: ");
}

static status read_model(struct sp *sp, struct wire w)
{
    struct wire_field f;
    status st;

    while ((st = wire_next(&w, &f)) == ST_OK) {
        if (f.type != WIRE_BYTES) {
            continue;
        }
        st = f.number == 1   ? read_piece(sp, f.body)
             : f.number == 2 ? read_trainer(sp, f.body)
             : f.number == 3 ? read_normalizer(sp, f.body)
                             : ST_OK;
        if (st != ST_OK) {
            return st;
        }
    }
    return st == ST_END ? ST_OK : malformed(sp, "the file");
}

/* ---- what follows from it ---- */

struct scored {
    float score;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;

    if (x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Scores -> ranks: the highest is 0, equal scores have equal ranks (then the leftmost pair merges).
 */
static status set_ranks(struct sp *sp)
{
    struct scored *list = malloc((size_t)sp->n * sizeof *list);

    if (list == NULL) {
        return err_set(sp->err, ST_ERR_NOMEM, "no memory for %u pieces", sp->n);
    }
    for (uint32_t i = 0; i < sp->n; i++) {
        list[i] = (struct scored){ sp->scores[i], i };
    }
    qsort(list, sp->n, sizeof *list, by_score);
    for (uint32_t i = 0, rank = 0; i < sp->n; i++) {
        rank = i != 0 && list[i].score != list[i - 1].score ? i : rank;
        sp->t->entries[list[i].id].rank = rank;
    }
    free(list);
    return ST_OK;
}

static status check(struct sp *sp)
{
    if (sp->model_type != 2) {
        static const char *const names[] = { "?", "unigram", "BPE", "word", "char" };
        return err_set(
            sp->err, ST_ERR_UNSUPPORTED,
            "tokenizer.model: trainer_spec.model_type is %s; only BPE models can be served",
            sp->model_type < ARRAY_LEN(names) ? names[sp->model_type] : "?");
    }
    if (sp->as_suffix) {
        return err_set(sp->err, ST_ERR_UNSUPPORTED,
                       "tokenizer.model: trainer_spec.treat_whitespace_as_suffix is not known");
    }
    if (sp->n == 0 || sp->t->unk < 0) {
        return err_set(sp->err, ST_ERR_FORMAT, "tokenizer.model: %u pieces, %s unknown piece",
                       sp->n, sp->t->unk < 0 ? "no" : "an");
    }
    return ST_OK;
}

static status check_bytes(struct sp *sp)
{
    static const char digits[] = "0123456789ABCDEF";
    struct tokenizer *t = sp->t;
    bool have[256] = { false };

    if (!sp->byte_fallback) {
        return ST_OK;
    }
    for (uint32_t id = 0; id < sp->n; id++) {
        const struct tok_entry *e = &t->entries[id];
        const char *s = tok_str(t, id);
        if ((e->flags & TOKF_BYTE) == 0) {
            continue;
        }
        const char *hi = e->str_len == 6 ? memchr(digits, s[3], 16) : NULL;
        const char *lo = e->str_len == 6 ? memchr(digits, s[4], 16) : NULL;
        if (hi == NULL || lo == NULL || memcmp(s, "<0x", 3) != 0 || s[5] != '>') {
            return err_set(sp->err, ST_ERR_FORMAT,
                           "tokenizer.model: pieces[%u]: byte piece \"%.*s\"", id,
                           (int)MIN(e->str_len, 64u), s);
        }
        have[(hi - digits) * 16 + (lo - digits)] = true;
    }
    for (int i = 0; i < 256; i++) {
        if (!have[i]) {
            return err_set(sp->err, ST_ERR_FORMAT,
                           "tokenizer.model: byte_fallback without a piece for byte 0x%02X", i);
        }
    }
    t->byte_fallback = true;
    return ST_OK;
}

static void set_decode(struct sp *sp)
{
    struct tokenizer *t = sp->t;
    struct tok_decode *d = &t->decode;

    d->byte_fallback = true;
    d->n_replace = 1;
    memcpy(d->replace[0].from, "\xe2\x96\x81", 3);
    d->replace[0].from_len = 3;
    d->replace[0].to[0] = ' ';
    d->replace[0].to_len = 1;
    d->strip_word = t->pieces.squeeze;
    d->strip = !t->pieces.squeeze && t->pieces.dummy_prefix ? 1 : 0;
}

/* The unknown piece reads as unk_surface. */
static status set_unk(struct sp *sp)
{
    struct tok_entry *e = &sp->t->entries[sp->t->unk];
    const size_t at = sp->t->pool.len;

    if (sp->unk_surface_len > PIECE_BYTES_MAX ||
        utf8_valid_upto(sp->unk_surface, sp->unk_surface_len) != sp->unk_surface_len) {
        return err_set(sp->err, ST_ERR_FORMAT,
                       "tokenizer.model: trainer_spec.unk_surface: %zu bytes", sp->unk_surface_len);
    }
    e->bytes = (uint32_t)at;
    e->bytes_len = (uint32_t)sp->unk_surface_len;
    const status st = buf_append(&sp->t->pool, sp->unk_surface, sp->unk_surface_len);
    return st == ST_OK ? st : err_set(sp->err, st, "no memory for a tokenizer");
}

/* Llama's class, which reads these files, adds a BOS unless its config says otherwise. */
static status set_ends(struct sp *sp, const struct tok_files *files)
{
    struct tokenizer *t = sp->t;

    t->bos = sp->bos >= 0 && (uint32_t)sp->bos < sp->n ? sp->bos : -1;
    t->eos = sp->eos >= 0 && (uint32_t)sp->eos < sp->n ? sp->eos : -1;
    t->n_prefix = 1;
    t->prefix[0] = TOK_NONE;
    const status st = tok_load_config(t, files, false, sp->err);
    if (st == ST_OK && t->n_prefix == 1) {
        t->prefix[0] = (uint32_t)t->bos;
        t->n_prefix = t->bos >= 0 ? 1 : 0;
    }
    return st;
}

static status load(struct sp *sp, const struct tok_files *files)
{
    struct tokenizer *t = sp->t;
    struct wire w = { files->tokenizer_model, files->tokenizer_model + files->tokenizer_model_len };
    status st = read_model(sp, w);

    st = st == ST_OK ? check(sp) : st;
    st = st == ST_OK ? check_bytes(sp) : st;
    st = st == ST_OK ? set_ranks(sp) : st;
    st = st == ST_OK ? set_unk(sp) : st;
    st = st == ST_OK ? tok_map_build(t, &t->vocab, TOKF_VOCAB, sp->err) : st;
    st = st == ST_OK ? set_ends(sp, files) : st;
    t->norms[t->n_norms++].kind = NORM_PIECES;
    set_decode(sp);
    return st;
}

status tok_load_sp(struct tokenizer *t, const struct tok_files *files, struct err *err)
{
    struct sp sp = { .t = t,
                     .err = err,
                     .model_type = 1,
                     .bos = 1,
                     .eos = 2,
                     .unk_surface = " \xe2\x81\x87 ",
                     .unk_surface_len = 5 };

    t->kind = "SentencePiece BPE (tokenizer.model)";
    t->by_score = true;
    t->pieces.dummy_prefix = t->pieces.squeeze = t->pieces.escape = true;
    if (files->tokenizer_model_len > TOK_FILE_BYTES_MAX) {
        return err_set(err, ST_ERR_LIMIT, "tokenizer.model: %zu bytes, the limit is %zu",
                       files->tokenizer_model_len, TOK_FILE_BYTES_MAX);
    }
    const status st = load(&sp, files);
    free(sp.scores);
    return st;
}
