/* model/tok_impl.h - the inside of a tokenizer, shared by model/tok*.c and detok.c only.
 *
 *   tok_json.c  tok_sp.c  tok_gpt2.c    loaders: fill a struct tokenizer from one kind of file
 *   tok_parts.c                         normalizers, pre-tokenizers, decoders out of JSON
 *   tok_table.c                         tokens, the string -> id map, the merge map
 *   tok_trie.c                          longest match: added tokens, user-defined pieces
 *   tok_norm.c  tok_charsmap.c          normalisation
 *   tok_pre.c   tok_regex.c             cutting into words
 *   tok_bpe.c                           merging
 *   tok_encode.c                        the pipeline
 *
 * A string keeps the spelling of the file all the way to the vocabulary look-up (GPT-2's stand-in
 * characters, U+2581 for a space): stages then compose in any order as they do in the library that
 * wrote the file. What a token means in bytes is worked out once at load. */
#ifndef MODEL_TOK_IMPL_H
#define MODEL_TOK_IMPL_H

#include "model/tokenizer.h"
#include "model/unicode.h"

#include <string.h>

#define TOK_NONE UINT32_MAX

/* ---- tokens ---- */

enum {
    TOKF_VOCAB = 1 << 0,   /* reachable by merging */
    TOKF_ADDED = 1 << 1,   /* matched as a whole before merging */
    TOKF_SPECIAL = 1 << 2, /* only with TOK_PARSE_SPECIAL */
    TOKF_BYTE = 1 << 3,    /* byte fallback: stands for one byte */
    TOKF_LSTRIP = 1 << 4,  /* added: takes the white space before it */
    TOKF_RSTRIP = 1 << 5,  /* added: takes the white space behind it */
    TOKF_SINGLE = 1 << 6,  /* added: not inside a word */
    TOKF_NORM = 1 << 7,    /* added: matched in the normalised text */
    TOKF_FROZEN = 1 << 8,  /* SentencePiece user-defined: never part of a merge */
    TOKF_UNK = 1 << 9,     /* SentencePiece unknown: reads as its own surface text */
};

struct tok_entry {
    uint32_t str, str_len;     /* the file's spelling, in pool */
    uint32_t bytes, bytes_len; /* what it stands for, in pool */
    uint32_t rank;             /* by score, 0 merges first; SentencePiece models only */
    uint16_t flags;            /* TOKF_*; 0: a gap */
};

/* ids by string: open addressing, a slot is id + 1, 0 is empty */
struct tok_map {
    uint32_t *slots; /* [mask + 1] owned */
    uint32_t mask;
    uint32_t n;
};

struct tok_merge {
    uint32_t left, right; /* TOK_NONE: empty slot */
    uint32_t rank, id;
};

struct tok_merges {
    struct tok_merge *slots; /* [mask + 1] owned; NULL: no merges */
    uint32_t mask, n;
};

/* ---- longest match ---- */

struct tok_edge {
    uint64_t key; /* parent node << 8 | byte, + 1; 0: empty */
    uint32_t node;
};

struct tok_trie {
    uint32_t root[256];     /* node after one byte, 0: none */
    struct tok_edge *edges; /* [mask + 1] owned */
    uint32_t mask, n_edges;
    uint32_t *ids; /* [n_nodes] token that ends here or TOK_NONE; owned */
    uint32_t n_nodes, cap_nodes;
};

status tok_trie_add(struct tok_trie *trie, const char *s, size_t len, uint32_t id) WARN_UNUSED;
/* Longest pattern at s: its length, 0 if none; its id to *id_p. */
uint32_t tok_trie_match(const struct tok_trie *trie, const char *s, size_t len, uint32_t *id_p);
void tok_trie_fini(struct tok_trie *trie);

/* ---- regular expressions (tok_regex.c, the one user of PCRE2) ---- */

struct tok_regex;

/* `where` names the field in error sentences. ST_ERR_FORMAT, ST_ERR_UNSUPPORTED, ST_ERR_LIMIT. */
status tok_regex_create(const char *pattern, size_t len, const char *where, struct tok_regex **re_p,
                        struct err *err) WARN_UNUSED;
void tok_regex_destroy(struct tok_regex *re);
bool tok_regex_has_jit(const struct tok_regex *re);
size_t tok_regex_bytes(const struct tok_regex *re);

/* Working memory of one thread for any regex. */
struct tok_match;
struct tok_match *tok_match_create(void); /* NULL: no memory */
void tok_match_destroy(struct tok_match *m);
/* The first non-empty match in s[from..len): ST_OK and its range, ST_END if none, ST_ERR_LIMIT. */
status tok_regex_next(const struct tok_regex *re, struct tok_match *m, const char *s, size_t len,
                      size_t from, size_t *begin_p, size_t *end_p, struct err *err) WARN_UNUSED;

/* ---- stages ---- */

enum norm_kind { NORM_FORM, NORM_PREPEND, NORM_REPLACE, NORM_STRIP, NORM_PIECES };

struct tok_norm {
    enum norm_kind kind;
    enum unicode_form form;    /* NORM_FORM */
    struct tok_regex *re;      /* NORM_REPLACE: owned; NULL: `from` is literal */
    char *from, *to;           /* owned; PREPEND uses `to` */
    uint32_t from_len, to_len; /* bytes */
    bool left, right;          /* NORM_STRIP */
};

enum split_how { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_PREVIOUS, SPLIT_NEXT, SPLIT_CONTIGUOUS };
enum prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };
enum pre_kind {
    PRE_REGEX,   /* split at matches */
    PRE_LITERAL, /* split at a string */
    PRE_NUMBERS, /* split at characters of a class */
    PRE_PUNCT,
    PRE_SPACES,
    PRE_BYTES,     /* ByteLevel: optional space in front, then stand-in characters */
    PRE_METASPACE, /* spaces become a visible character */
};

struct tok_pre {
    enum pre_kind kind;
    enum split_how how;
    bool invert;
    struct tok_regex *re; /* owned; PRE_REGEX */
    char *literal;        /* owned; PRE_LITERAL, PRE_METASPACE: the character */
    uint32_t literal_len;
    bool prefix_space;    /* PRE_BYTES */
    enum prepend prepend; /* PRE_METASPACE */
};

/* How tokens become bytes. */
struct tok_decode {
    bool byte_level;    /* stand-in characters -> bytes */
    bool byte_fallback; /* "<0x41>" -> byte; broken bytes are U+FFFD each */
    uint32_t n_replace; /* done in order */
    struct {
        char from[16], to[16];
        uint32_t from_len, to_len;
    } replace[4];
    uint8_t strip;   /* leading spaces taken off the whole text */
    bool strip_word; /* every token loses its first space while the text is empty */
    bool strip_all;  /* all spaces of the first token are dropped (Metaspace does) */
};

/* SentencePiece's own normaliser. */
struct tok_pieces {
    bool dummy_prefix, squeeze; /* squeeze: remove_extra_whitespaces */
    bool escape;                /* spaces become U+2581 */
    bool every;     /* dummy prefix on every stretch between special tokens ("legacy") */
    uint32_t *trie; /* [n_trie] owned Darts double array of precompiled_charsmap; NULL: identity */
    uint32_t n_trie;
    char *strings; /* [n_strings] owned, the last byte is NUL */
    uint32_t n_strings;
    struct tok_trie user; /* user-defined pieces are never normalised */
};

/* ---- the whole ---- */

struct tokenizer {
    const char *kind;          /* static */
    struct tok_entry *entries; /* [cap_ids] owned */
    uint32_t n_ids, cap_ids;
    uint32_t n_tokens, n_added, n_special;
    struct buf pool;      /* all strings */
    struct tok_map vocab; /* TOKF_VOCAB by string */
    struct tok_map added; /* TOKF_ADDED and TOKF_SPECIAL by content */
    struct tok_merges merges;
    struct tok_trie raw, normed; /* added tokens, by where they are matched */
    bool by_score;               /* merge by rank of the merged string, not by the merge map */
    bool ignore_merges;          /* a whole word that is a token is that token */
    bool byte_fallback;          /* all 256 byte tokens exist and are used */
    bool fuse_unk;
    uint32_t max_piece;       /* bytes of the longest vocabulary string */
    uint32_t byte_ids[256];   /* TOK_NONE where there is none */
    uint32_t char_ids[0x180]; /* ids of one-character strings below U+0180, or TOK_NONE */
    int32_t unk, bos, eos;
    uint32_t prefix[TOK_AFFIX_MAX], suffix[TOK_AFFIX_MAX]; /* what TOK_ADD_SPECIAL adds */
    uint32_t n_prefix, n_suffix;
    struct tok_norm norms[TOK_STAGES_MAX];
    uint32_t n_norms;
    struct tok_pre pres[TOK_STAGES_MAX];
    uint32_t n_pres;
    struct tok_pieces pieces;
    struct tok_decode decode;
};

static inline const char *tok_str(const struct tokenizer *t, uint32_t id)
{
    return t->pool.data + t->entries[id].str;
}

/* ---- tok_table.c ---- */

/* Put token `id` with its spelling and flags into the table (not into a map). `what` and `index`
 * name the place in error sentences. ST_ERR_LIMIT: id or length; ST_ERR_FORMAT: the id has another
 * token. */
status tok_token_add(struct tokenizer *t, uint64_t id, const char *s, size_t len, unsigned flags,
                     const char *what, struct err *err) WARN_UNUSED;
/* All tokens with any of `flags` by their string. ST_ERR_FORMAT: one string, two ids. */
status tok_map_build(struct tokenizer *t, struct tok_map *map, unsigned flags,
                     struct err *err) WARN_UNUSED;
uint32_t tok_map_find(const struct tokenizer *t, const struct tok_map *map, const char *s,
                      size_t len); /* TOK_NONE: not there */
/* Room for n merges; then add each once. A pair that comes twice keeps its last rank. */
status tok_merges_init(struct tok_merges *m, size_t n, struct err *err) WARN_UNUSED;
/* rank -> ids, checked: both sides and the result must be vocabulary tokens. */
status tok_merge_add(struct tokenizer *t, uint32_t rank, const char *a, size_t a_len, const char *b,
                     size_t b_len, struct err *err) WARN_UNUSED;
const struct tok_merge *tok_merge_find(const struct tok_merges *m, uint32_t left, uint32_t right);

/* Called last by every loader: maps, tries, byte tables, token bytes, counts. Vocabulary map and
 * merges must be there already. */
status tok_finish(struct tokenizer *t, struct err *err) WARN_UNUSED;

/* ---- loaders ---- */

status tok_load_json(struct tokenizer *t, const struct tok_files *files,
                     struct err *err) WARN_UNUSED;
status tok_load_sp(struct tokenizer *t, const struct tok_files *files, struct err *err) WARN_UNUSED;
status tok_load_gpt2(struct tokenizer *t, const struct tok_files *files,
                     struct err *err) WARN_UNUSED;
/* tok_config.c: added_tokens_decoder, bos/eos names and flags. For tokenizer.json the added tokens
 * of the file itself are complete, and only names are read (`names_only`). */
status tok_load_config(struct tokenizer *t, const struct tok_files *files, bool names_only,
                       struct err *err) WARN_UNUSED;
void tok_norm_fini(struct tok_norm *n);
void tok_pre_fini(struct tok_pre *p);
status tok_charsmap_load(struct tok_pieces *p, const char *data, size_t len,
                         struct err *err) WARN_UNUSED;
/* GPT-2's pattern, and the one of Qwen2; NUL-terminated. */
extern const char tok_pattern_gpt2[];
extern const char tok_pattern_qwen2[];
status tok_pre_add_regex(struct tokenizer *t, const char *pattern, size_t len, enum split_how how,
                         bool invert, const char *where, struct err *err) WARN_UNUSED;
status tok_pre_add_bytes(struct tokenizer *t, bool prefix_space, struct err *err) WARN_UNUSED;

/* ---- working ---- */

struct tok_span {
    uint32_t begin, end; /* half open, into the text beside it */
};

/* The working memory of one encode call. */
struct tok_work {
    const struct tokenizer *tok; /* borrowed */
    struct err *err;             /* borrowed */
    unsigned flags;              /* TOK_* of the call */
    struct tok_match *match;     /* owned, NULL until a pattern is needed */
    struct buf norm, norm_other; /* the stretch being normalised, and its next state */
    struct buf text, other;      /* the stretch being cut, and its next state */
    struct tok_span *spans, *next;
    uint32_t n_spans, cap_spans, n_next, cap_next;
    bool at_zero; /* the first span begins where the whole text begins */
    struct bpe_sym *syms;
    uint32_t cap_syms;
    struct bpe_cand *heap;
    uint32_t n_heap, cap_heap;
    uint32_t *ids; /* [cap_ids] owned; the result */
    uint32_t n_ids, cap_ids, max_ids;
};

/* s -> w->norm (content replaced). */
status tok_normalize(struct tok_work *w, const char *s, size_t len) WARN_UNUSED;
/* The same for a pattern at load, into `out`. */
status tok_norm_pieces(const struct tok_pieces *p, const char *s, size_t len, bool at_zero,
                       struct buf *out) WARN_UNUSED;
/* s -> w->text and w->spans. */
status tok_pre_tokenize(struct tok_work *w, const char *s, size_t len) WARN_UNUSED;
/* One word -> ids. */
status tok_bpe(struct tok_work *w, const char *s, uint32_t len) WARN_UNUSED;
status tok_emit(struct tok_work *w, uint32_t id) WARN_UNUSED;
status tok_work_match(struct tok_work *w) WARN_UNUSED; /* makes w->match */
void tok_work_fini(struct tok_work *w);

#endif
