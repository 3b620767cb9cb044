/* model/tok_config.c - what stands beside the vocabulary: which tokens are BOS, EOS and special.
 *
 * Names come from tokenizer_config.json, then special_tokens_map.json; ids from config.json last.
 * Classes whose Python code adds BOS and EOS by switches (Llama's and its relatives) obey
 * add_bos_token and add_eos_token also beside a tokenizer.json; for others the file's
 * post-processor decides. */
#include "model/tok_json.h"

#include <stdio.h>
#include <stdlib.h>

static const char file[] = "tokenizer_config.json";

/* ---- names ---- */

/* The id of an added or vocabulary token. */
static uint32_t find_name(const struct tokenizer *t, const char *s, size_t len)
{
    for (uint32_t id = 0; id < t->n_ids; id++) {
        const struct tok_entry *e = &t->entries[id];
        if ((e->flags & TOKF_ADDED) != 0 && e->str_len == len &&
            memcmp(tok_str(t, id), s, len) == 0) {
            return id;
        }
    }
    /* A SentencePiece control piece is in no map. */
    for (uint32_t id = 0; id < t->n_ids; id++) {
        const struct tok_entry *e = &t->entries[id];
        if (e->flags != 0 && e->str_len == len && memcmp(tok_str(t, id), s, len) == 0) {
            return id;
        }
    }
    return TOK_NONE;
}

/* A token is named by a string or by {"content": string}. */
static uint32_t named(const struct tokenizer *t, const json_t *v)
{
    if (json_is_object(v)) {
        v = json_object_get(v, "content");
    }
    return json_is_string(v) ? find_name(t, json_string_value(v), json_string_length(v)) : TOK_NONE;
}

static void make_special(struct tokenizer *t, uint32_t id)
{
    struct tok_entry *e = &t->entries[id];
    e->flags = (uint16_t)(e->flags | TOKF_ADDED | TOKF_SPECIAL);
}

/* The first file that names one decides. */
static void read_names(struct tokenizer *t, const json_t *root, bool *has_bos, bool *has_eos)
{
    const json_t *more = json_object_get(root, "additional_special_tokens");
    const uint32_t bos = named(t, json_object_get(root, "bos_token"));
    const uint32_t eos = named(t, json_object_get(root, "eos_token"));

    if (bos != TOK_NONE && !*has_bos) {
        *has_bos = true;
        t->bos = (int32_t)bos;
        make_special(t, bos);
    }
    if (eos != TOK_NONE && !*has_eos) {
        *has_eos = true;
        t->eos = (int32_t)eos;
        make_special(t, eos);
    }
    for (size_t i = 0; i < json_array_size(more) && i < TOK_ADDED_MAX; i++) {
        const uint32_t id = named(t, json_array_get(more, i));
        if (id != TOK_NONE) {
            make_special(t, id);
        }
    }
}

static int32_t config_id(const struct tokenizer *t, const json_t *v)
{
    if (json_is_array(v)) {
        v = json_array_get(v, 0);
    }
    const json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id < t->n_ids && t->entries[id].flags != 0 ? (int32_t)id : -1;
}

/* config.json numbers them; a token that only it names is special as well. */
static status read_config_ids(struct tokenizer *t, const struct tok_files *files, struct err *err)
{
    json_t *root = NULL;

    if (files->config == NULL || (t->bos >= 0 && t->eos >= 0)) {
        return ST_OK;
    }
    const status st = tok_json_parse("config.json", files->config, files->config_len, &root, err);
    if (st != ST_OK) {
        return st;
    }
    if (t->bos < 0) {
        t->bos = config_id(t, json_object_get(root, "bos_token_id"));
    }
    if (t->eos < 0) {
        t->eos = config_id(t, json_object_get(root, "eos_token_id"));
    }
    json_decref(root);
    if (t->bos >= 0) {
        make_special(t, (uint32_t)t->bos);
    }
    if (t->eos >= 0) {
        make_special(t, (uint32_t)t->eos);
    }
    return ST_OK;
}

/* ---- added tokens ---- */

static status read_added(struct tokenizer *t, const json_t *root, struct err *err)
{
    const json_t *added = json_object_get(root, "added_tokens_decoder");
    char where[TOK_WHERE_BYTES];
    const char *key;
    json_t *v;

    if (added == NULL || json_is_null(added)) {
        return ST_OK;
    }
    if (!json_is_object(added)) {
        return err_set(err, ST_ERR_FORMAT, "%s: added_tokens_decoder: not an object", file);
    }
    json_object_foreach((json_t *)(uintptr_t)added, key, v)
    {
        char *end = NULL;
        const unsigned long long id = strtoull(key, &end, 10);
        snprintf(where, sizeof where, "%s: added_tokens_decoder[\"%.20s\"]", file, key);
        if (*key < '0' || *key > '9' || *end != '\0') {
            return err_set(err, ST_ERR_FORMAT, "%s: not an id", where);
        }
        const status st = tok_read_added(t, v, id, where, err);
        if (st != ST_OK) {
            return st;
        }
    }
    return ST_OK;
}

/* ---- what to put around a text ---- */

static void set_affix(uint32_t *ids, uint32_t *n, bool add, int32_t id)
{
    if (id < 0) {
        return;
    }
    *n = 0;
    if (add) {
        ids[(*n)++] = (uint32_t)id;
    }
}

static bool adds_by_switch(const char *class)
{
    static const char *const names[] = { "Llama", "CodeLlama", "Gemma", "Cohere" };

    for (uint32_t i = 0; class != NULL && i < ARRAY_LEN(names); i++) {
        if (strncmp(class, names[i], strlen(names[i])) == 0) {
            return true;
        }
    }
    return false;
}

static status read_switches(struct tokenizer *t, const json_t *root, bool names_only,
                            struct err *err)
{
    const char *class = json_string_value(json_object_get(root, "tokenizer_class"));
    const json_t *bos = json_object_get(root, "add_bos_token");
    const json_t *eos = json_object_get(root, "add_eos_token");
    bool legacy = true;

    const status st = tok_json_bool(root, file, "legacy", true, &legacy, err);
    if (st != ST_OK) {
        return st;
    }
    t->pieces.every = legacy;
    if (names_only && !adds_by_switch(class)) {
        return ST_OK;
    }
    if (json_is_boolean(bos)) {
        set_affix(t->prefix, &t->n_prefix, json_is_true(bos), t->bos);
    }
    if (json_is_boolean(eos)) {
        set_affix(t->suffix, &t->n_suffix, json_is_true(eos), t->eos);
    }
    return ST_OK;
}

status tok_load_config(struct tokenizer *t, const struct tok_files *files, bool names_only,
                       struct err *err)
{
    json_t *root = NULL, *map = NULL;
    bool has_bos = false, has_eos = false;
    status st = ST_OK;

    t->pieces.every = true;
    if (files->tokenizer_config != NULL) {
        st = tok_json_parse(file, files->tokenizer_config, files->tokenizer_config_len, &root, err);
    }
    if (st == ST_OK && root != NULL && !names_only) {
        st = read_added(t, root, err);
    }
    if (st == ST_OK && root != NULL) {
        read_names(t, root, &has_bos, &has_eos);
    }
    if (st == ST_OK && files->special_tokens_map != NULL) {
        st = tok_json_parse("special_tokens_map.json", files->special_tokens_map,
                            files->special_tokens_map_len, &map, err);
    }
    if (st == ST_OK && map != NULL) {
        read_names(t, map, &has_bos, &has_eos);
    }
    if (st == ST_OK) {
        st = read_config_ids(t, files, err);
    }
    if (st == ST_OK && root != NULL) {
        st = read_switches(t, root, names_only, err);
    }
    json_decref(root);
    json_decref(map);
    return st;
}
