/* model/tok_json.h - reading JSON fields by path, for the tokenizer loaders (tok_*.c only). */
#ifndef MODEL_TOK_JSON_H
#define MODEL_TOK_JSON_H

#include "model/tok_impl.h"

#include <jansson.h>

enum { TOK_WHERE_BYTES = 160 };

/* Parse a whole file's bytes; `file` names it in sentences. The caller owns *root_p (json_decref).
 */
status tok_json_parse(const char *file, const char *data, size_t len, json_t **root_p,
                      struct err *err) WARN_UNUSED;

/* Optional fields: absent or null gives `fallback`. ST_ERR_FORMAT: another type. */
status tok_json_bool(const json_t *obj, const char *where, const char *key, bool fallback,
                     bool *value_p, struct err *err) WARN_UNUSED;
/* Borrowed; NULL if absent or null and not `needed`. */
status tok_json_str(const json_t *obj, const char *where, const char *key, bool needed,
                    const char **s_p, size_t *len_p, struct err *err) WARN_UNUSED;

/* tok_parts.c: each takes the value of its field (NULL or null: none). */
status tok_read_normalizer(struct tokenizer *t, const json_t *v, struct err *err) WARN_UNUSED;
status tok_read_pre_tokenizer(struct tokenizer *t, const json_t *v, struct err *err) WARN_UNUSED;
/* tok_parts_out.c */
status tok_read_decoder(struct tokenizer *t, const json_t *v, struct err *err) WARN_UNUSED;
status tok_read_post_processor(struct tokenizer *t, const json_t *v, struct err *err) WARN_UNUSED;
/* One entry of added_tokens or of added_tokens_decoder. */
status tok_read_added(struct tokenizer *t, const json_t *v, uint64_t id, const char *where,
                      struct err *err) WARN_UNUSED;

#endif
