/* model/tok_json.c - tokenizer.json, the format of the Hugging Face fast tokenizers: model BPE. */
#include "model/tok_json.h"

#include <stdio.h>

static status read_vocab(struct tokenizer *t, const json_t *vocab, struct err *err)
{
    const char *key;
    json_t *v;
    status st = ST_OK;

    if (!json_is_object(vocab)) {
        return err_set(err, ST_ERR_FORMAT, "model.vocab: not an object");
    }
    if (json_object_size(vocab) > TOK_VOCAB_MAX) {
        return err_set(err, ST_ERR_LIMIT, "model.vocab: %zu tokens, the limit is %d",
                       json_object_size(vocab), TOK_VOCAB_MAX);
    }
    json_object_foreach((json_t *)(uintptr_t)vocab, key, v)
    {
        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            return err_set(err, ST_ERR_FORMAT, "model.vocab[\"%.64s\"]: not an id", key);
        }
        st = tok_token_add(t, (uint64_t)json_integer_value(v), key, strlen(key), TOKF_VOCAB,
                           "model.vocab", err);
        if (st != ST_OK) {
            return st;
        }
    }
    return ST_OK;
}

static status read_added(struct tokenizer *t, const json_t *added, struct err *err)
{
    char where[TOK_WHERE_BYTES];
    status st = ST_OK;

    if (added == NULL || json_is_null(added)) {
        return ST_OK;
    }
    if (!json_is_array(added)) {
        return err_set(err, ST_ERR_FORMAT, "added_tokens: not an array");
    }
    for (size_t i = 0; i < json_array_size(added) && st == ST_OK; i++) {
        const json_t *v = json_array_get(added, i);
        const json_t *id = json_object_get(v, "id");
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        if (!json_is_integer(id) || json_integer_value(id) < 0) {
            return err_set(err, ST_ERR_FORMAT, "%s.id: not an id", where);
        }
        st = tok_read_added(t, v, (uint64_t)json_integer_value(id), where, err);
    }
    return st;
}

/* "a b" or ["a", "b"]. */
static status read_merge(struct tokenizer *t, const json_t *v, uint32_t rank, struct err *err)
{
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        const size_t len = json_string_length(v);
        const char *space = memchr(s, ' ', len);
        if (space != NULL && memchr(space + 1, ' ', len - (size_t)(space + 1 - s)) == NULL) {
            return tok_merge_add(t, rank, s, (size_t)(space - s), space + 1,
                                 len - (size_t)(space + 1 - s), err);
        }
    } else if (json_is_array(v) && json_array_size(v) == 2) {
        const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);
        if (json_is_string(a) && json_is_string(b)) {
            return tok_merge_add(t, rank, json_string_value(a), json_string_length(a),
                                 json_string_value(b), json_string_length(b), err);
        }
    }
    return err_set(err, ST_ERR_FORMAT, "model.merges[%u]: neither \"a b\" nor [\"a\", \"b\"]",
                   rank);
}

static status read_merges(struct tokenizer *t, const json_t *merges, struct err *err)
{
    if (!json_is_array(merges)) {
        return err_set(err, ST_ERR_FORMAT, "model.merges: not an array");
    }
    status st = tok_merges_init(&t->merges, json_array_size(merges), err);
    for (size_t i = 0; i < json_array_size(merges) && st == ST_OK; i++) {
        st = read_merge(t, json_array_get(merges, i), (uint32_t)i, err);
    }
    return st;
}

/* What the model part may ask for beyond plain BPE. */
static status read_switches(struct tokenizer *t, const json_t *model, struct err *err)
{
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    static const char where[] = "model";
    const json_t *dropout = json_object_get(model, "dropout");
    const char *s = NULL;
    size_t len = 0;
    status st = ST_OK;

    for (uint32_t i = 0; i < ARRAY_LEN(affixes) && st == ST_OK; i++) {
        st = tok_json_str(model, where, affixes[i], false, &s, &len, err);
        if (st == ST_OK && len != 0) {
            return err_set(err, ST_ERR_UNSUPPORTED, "%s.%s: \"%.40s\" is not known", where,
                           affixes[i], s);
        }
    }
    if (st == ST_OK && json_is_number(dropout) && json_number_value(dropout) > 0) {
        return err_set(err, ST_ERR_UNSUPPORTED, "%s.dropout: %g would make ids random", where,
                       json_number_value(dropout));
    }
    if (st == ST_OK) {
        st = tok_json_bool(model, where, "fuse_unk", false, &t->fuse_unk, err);
    }
    if (st == ST_OK) {
        st = tok_json_bool(model, where, "byte_fallback", false, &t->byte_fallback, err);
    }
    if (st == ST_OK) {
        st = tok_json_bool(model, where, "ignore_merges", false, &t->ignore_merges, err);
    }
    if (st == ST_OK) {
        st = tok_json_str(model, where, "unk_token", false, &s, &len, err);
    }
    if (st == ST_OK && s != NULL) {
        const uint32_t id = tok_map_find(t, &t->vocab, s, len);
        if (id == TOK_NONE) {
            return err_set(err, ST_ERR_FORMAT, "%s.unk_token: \"%.40s\" is not in the vocabulary",
                           where, s);
        }
        t->unk = (int32_t)id;
    }
    return st;
}

static status check_model(const json_t *model, struct err *err)
{
    const char *type = NULL;
    size_t len = 0;

    if (!json_is_object(model)) {
        return err_set(err, ST_ERR_FORMAT, "model: not an object");
    }
    const status st = tok_json_str(model, "model", "type", false, &type, &len, err);
    if (st != ST_OK) {
        return st;
    }
    if (type == NULL && json_object_get(model, "merges") != NULL) {
        return ST_OK; /* files from before the field was written */
    }
    if (type == NULL || strcmp(type, "BPE") != 0) {
        return err_set(err, ST_ERR_UNSUPPORTED,
                       "model.type is \"%.40s\"; only BPE tokenizers can be served",
                       type == NULL ? "" : type);
    }
    return ST_OK;
}

/* All but the merges: they need to know which tokens the config makes special. */
static status load_parts(struct tokenizer *t, const json_t *root, struct err *err)
{
    const json_t *model = json_object_get(root, "model");
    status st = check_model(model, err);

    st = st == ST_OK ? read_vocab(t, json_object_get(model, "vocab"), err) : st;
    st = st == ST_OK ? read_added(t, json_object_get(root, "added_tokens"), err) : st;
    st = st == ST_OK ? tok_map_build(t, &t->vocab, TOKF_VOCAB, err) : st;
    st = st == ST_OK ? read_switches(t, model, err) : st;
    st = st == ST_OK ? tok_read_normalizer(t, json_object_get(root, "normalizer"), err) : st;
    st = st == ST_OK ? tok_read_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), err) : st;
    st = st == ST_OK ? tok_read_decoder(t, json_object_get(root, "decoder"), err) : st;
    return st == ST_OK ? tok_read_post_processor(t, json_object_get(root, "post_processor"), err)
                       : st;
}

static status in_file(status st, struct err *err)
{
    return st == ST_OK || err == NULL ? st : err_prefix(err, "tokenizer.json: ");
}

static status load(struct tokenizer *t, const json_t *root, const struct tok_files *files,
                   struct err *err)
{
    const json_t *model = json_object_get(root, "model");
    status st = in_file(load_parts(t, root, err), err);

    if (st == ST_OK) {
        st = tok_load_config(t, files, true, err);
    }
    return st == ST_OK ? in_file(read_merges(t, json_object_get(model, "merges"), err), err) : st;
}

status tok_load_json(struct tokenizer *t, const struct tok_files *files, struct err *err)
{
    json_t *root = NULL;
    status st = tok_json_parse("tokenizer.json", files->tokenizer_json, files->tokenizer_json_len,
                               &root, err);

    if (st == ST_OK) {
        st = load(t, root, files, err);
        json_decref(root);
    }
    t->kind = t->decode.byte_level ? "byte-level BPE (tokenizer.json)"
                                   : "SentencePiece-style BPE (tokenizer.json)";
    return st;
}
