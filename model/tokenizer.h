/* model/tokenizer.h - text to token ids and back, from the files of a Hugging Face directory.
 *
 *   text ──► added tokens cut out ──► normalise ──► cut into words ──► BPE ──► ids (+ BOS, EOS)
 *
 * Three kinds of files; the first that exists in the directory is read:
 *
 *   tokenizer.json            Hugging Face fast tokenizer with model BPE, byte-level or pieces
 *   tokenizer.model           SentencePiece protobuf of type BPE
 *   vocab.json + merges.txt   byte-level BPE of the classes GPT2Tokenizer and Qwen2Tokenizer
 *
 * tokenizer_config.json, special_tokens_map.json and config.json beside them name BOS, EOS and
 * further added tokens. What a file asks for and this code does not do is refused at open with the
 * path of the field; nothing is approximated in silence.
 *
 * A special token never comes out of user text unless the caller asks (TOK_PARSE_SPECIAL):
 * "<|im_end|>" typed by a user is ordinary characters. Other added tokens always match.
 *
 * Threads: a tokenizer is immutable after open; any number of threads may encode at once. Working
 * memory is per call, up to 80 bytes for each byte of the longest word (a text without a space is
 * one word; for SentencePiece every text is), so bound the text before, not only the ids.
 * Elsewhere: ids to streamed text is model/detok.h, stop strings are model/stop.h. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* What a file may ask for. Each is checked before memory is taken; the sentence names the limit. */
#define TOK_FILE_BYTES_MAX ((size_t)64 << 20) /* tokenizer.json, tokenizer.model, vocab, merges */
enum {
    TOK_VOCAB_MAX = 1 << 20,       /* ids are below this */
    TOK_MERGES_MAX = 1 << 21,      /* merge rules */
    TOK_TOKEN_BYTES_MAX = 1 << 16, /* bytes of one token */
    TOK_ADDED_MAX = 1 << 16,       /* added tokens */
    TOK_TEXT_BYTES_MAX = 8 << 20,  /* text of one encode call */
    TOK_PATTERN_BYTES_MAX = 4096,  /* a regular expression in a file */
    TOK_STAGES_MAX = 16, /* normalizers, or pre-tokenizers, after sequences are flattened */
    TOK_AFFIX_MAX = 8    /* special tokens that the post-processor puts at one end */
};

struct tokenizer; /* opaque; immutable after open */

/* How to encode. */
enum {
    TOK_ADD_SPECIAL = 1u << 0,   /* BOS and EOS exactly as the model's own files ask */
    TOK_ADD_BOS = 1u << 1,       /* a BOS in front (if there is one), whatever the files ask */
    TOK_PARSE_SPECIAL = 1u << 2, /* special tokens written in the text become their ids */
};

struct token_list {
    uint32_t *ids; /* [n] owned; NULL when n is 0 */
    uint32_t n;
};

void token_list_fini(struct token_list *list); /* {NULL, 0} afterwards; fini of that is fine */

/* ---- life ---- */

/* Read the tokenizer of directory `dir`. On success the caller owns *tok_p (tokenizer_close).
 *   ST_ERR_NOT_FOUND    none of the three kinds is there
 *   ST_ERR_FORMAT       malformed or contradicting file: names file, field, value
 *   ST_ERR_UNSUPPORTED  a component that this code does not do: names file and field path
 *   ST_ERR_LIMIT        a limit above; ST_ERR_IO, ST_ERR_NOMEM */
status tokenizer_open(const char *dir, struct tokenizer **tok_p, struct err *err) WARN_UNUSED;
void tokenizer_close(struct tokenizer *tok); /* NULL is fine */

/* The same from memory (fuzzing, tests). Bytes are borrowed during the call only. */
struct tok_files {
    const char *tokenizer_json; /* each: NULL if the file is absent */
    size_t tokenizer_json_len;
    const char *tokenizer_model;
    size_t tokenizer_model_len;
    const char *vocab_json;
    size_t vocab_json_len;
    const char *merges_txt;
    size_t merges_txt_len;
    const char *tokenizer_config;
    size_t tokenizer_config_len;
    const char *special_tokens_map;
    size_t special_tokens_map_len;
    const char *config; /* config.json: bos_token_id and eos_token_id, used last */
    size_t config_len;
};
status tokenizer_open_memory(const struct tok_files *files, struct tokenizer **tok_p,
                             struct err *err) WARN_UNUSED;

/* ---- text to ids ---- */

/* Encode text[0..len) (UTF-8, NULs allowed). On success the caller owns *list_p (token_list_fini).
 *   ST_ERR_ARG     not UTF-8: the sentence names the byte offset; or over 512 combining marks in a
 *                  row where the tokenizer normalises (NFC of such text costs quadratic time)
 *   ST_ERR_LIMIT   text over TOK_TEXT_BYTES_MAX, more than n_max ids, or a pattern of the file that
 *                  backtracks without end
 *   ST_ERR_NOMEM */
status tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len, unsigned flags,
                        uint32_t n_max, struct token_list *list_p, struct err *err) WARN_UNUSED;

/* ---- ids to text ---- */

/* The text of ids[0..n) appended to `out`: valid UTF-8 (invalid bytes become U+FFFD). Special
 * tokens are left out unless `with_special`. Ids without a token are left out. ST_ERR_NOMEM,
 * ST_ERR_LIMIT. */
status tokenizer_decode(const struct tokenizer *tok, const uint32_t *ids, size_t n,
                        bool with_special, struct buf *out) WARN_UNUSED;

/* The exact bytes that token `id` stands for, borrowed, not NUL-terminated and perhaps not UTF-8 by
 * themselves: what log-probability output shows. A word-initial space is part of them. *len_p is 0
 * for ids >= n_vocab and for gaps. */
const char *tokenizer_token_bytes(const struct tokenizer *tok, uint32_t id, size_t *len_p);

/* ---- facts ---- */

/* Highest id + 1. The model's own vocabulary may be larger (padding) or smaller. */
uint32_t tokenizer_n_vocab(const struct tokenizer *tok);
/* Is there a token with this id? (false: gap, or id >= n_vocab) */
bool tokenizer_has(const struct tokenizer *tok, uint32_t id);
/* Control tokens: never from user text, not shown by default. false for ids >= n_vocab. */
bool tokenizer_is_special(const struct tokenizer *tok, uint32_t id);
/* -1: the files name none. */
int32_t tokenizer_bos(const struct tokenizer *tok);
int32_t tokenizer_eos(const struct tokenizer *tok);
/* The id of a token by its text in the files ("<|im_end|>", added and special tokens first; then
 * the vocabulary in the file's own spelling, e.g. "Ġthe" or "▁the"). -1: none. */
int32_t tokenizer_find(const struct tokenizer *tok, const char *content);
/* "byte-level BPE (tokenizer.json)": for `gantry inspect`. Never NULL. */
const char *tokenizer_kind(const struct tokenizer *tok);

struct tok_stats {
    uint32_t n_vocab;   /* highest id + 1 */
    uint32_t n_tokens;  /* ids that have a token */
    uint32_t n_merges;  /* 0 for tokenizer.model: there the scores decide */
    uint32_t n_added;   /* added tokens, special ones included */
    uint32_t n_special; /* special tokens */
    bool adds_bos;      /* what TOK_ADD_SPECIAL puts in front / at the end */
    bool adds_eos;
    bool has_jit;          /* every pattern is compiled to machine code */
    uint64_t memory_bytes; /* held while open */
};
struct tok_stats tokenizer_stats(const struct tokenizer *tok);

#endif
