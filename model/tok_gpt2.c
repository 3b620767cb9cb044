/* model/tok_gpt2.c - vocab.json + merges.txt, the older pair of files of byte-level BPE.
 *
 * Neither file names a pattern; the class in tokenizer_config.json does. Classes are known or
 * refused. */
#include "model/tok_json.h"

static status read_vocab(struct tokenizer *t, const json_t *root, struct err *err)
{
    const char *key;
    json_t *v;

    if (json_object_size(root) > TOK_VOCAB_MAX) {
        return err_set(err, ST_ERR_LIMIT, "vocab.json: %zu tokens, the limit is %d",
                       json_object_size(root), TOK_VOCAB_MAX);
    }
    json_object_foreach((json_t *)(uintptr_t)root, key, v)
    {
        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            return err_set(err, ST_ERR_FORMAT, "vocab.json: [\"%.64s\"]: not an id", key);
        }
        const status st = tok_token_add(t, (uint64_t)json_integer_value(v), key, strlen(key),
                                        TOKF_VOCAB, "vocab.json", err);
        if (st != ST_OK) {
            return st;
        }
    }
    return ST_OK;
}

/* The next line that is a merge: not empty, not the version line. Leaves *p behind it. */
static bool next_line(const char **p, const char *end, bool *first, const char **line, size_t *len)
{
    while (*p < end) {
        const char *nl = memchr(*p, '\n', (size_t)(end - *p));
        const char *stop = nl != NULL ? nl : end;
        *line = *p;
        *len = (size_t)(stop - *p);
        *p = nl != NULL ? nl + 1 : end;
        if (*len != 0 && (*line)[*len - 1] == '\r') {
            *len -= 1;
        }
        const bool version = *first && *len >= 8 && memcmp(*line, "#version", 8) == 0;
        *first = false;
        if (*len != 0 && !version) {
            return true;
        }
    }
    return false;
}

static status read_merges(struct tokenizer *t, const char *data, size_t data_len, struct err *err)
{
    const char *end = data + data_len, *line = NULL, *p = data;
    size_t len = 0, n = 0;
    bool first = true;
    uint32_t rank = 0;

    if (utf8_valid_upto(data, data_len) != data_len) {
        return err_set(err, ST_ERR_FORMAT, "merges.txt: not UTF-8 at byte %zu",
                       utf8_valid_upto(data, data_len));
    }
    while (next_line(&p, end, &first, &line, &len)) {
        n++;
    }
    status st = tok_merges_init(&t->merges, n, err);
    p = data;
    first = true;
    while (st == ST_OK && next_line(&p, end, &first, &line, &len)) {
        const char *space = memchr(line, ' ', len);
        if (space == NULL || memchr(space + 1, ' ', len - (size_t)(space + 1 - line)) != NULL) {
            return err_set(err, ST_ERR_FORMAT, "merges.txt: merge %u: \"%.*s\" is not two tokens",
                           rank, (int)MIN(len, (size_t)64), line);
        }
        st = tok_merge_add(t, rank++, line, (size_t)(space - line), space + 1,
                           len - (size_t)(space + 1 - line), err);
    }
    return st == ST_OK || err == NULL ? st : err_prefix(err, "merges.txt: ");
}

enum family { FAMILY_GPT2, FAMILY_QWEN2 };

static status read_class(const json_t *config, enum family *family_p, bool *prefix_space_p,
                         struct err *err)
{
    const char *class = NULL;
    size_t len = 0;
    status st =
        tok_json_str(config, "tokenizer_config.json", "tokenizer_class", false, &class, &len, err);

    if (st == ST_OK) {
        st = tok_json_bool(config, "tokenizer_config.json", "add_prefix_space", false,
                           prefix_space_p, err);
    }
    if (st != ST_OK) {
        return st;
    }
    if (class == NULL || strcmp(class, "GPT2Tokenizer") == 0 ||
        strcmp(class, "GPT2TokenizerFast") == 0) {
        *family_p = FAMILY_GPT2;
        return ST_OK;
    }
    if (strcmp(class, "Qwen2Tokenizer") == 0 || strcmp(class, "Qwen2TokenizerFast") == 0) {
        *family_p = FAMILY_QWEN2;
        return ST_OK;
    }
    return err_set(
        err, ST_ERR_UNSUPPORTED,
        "tokenizer_config.json: tokenizer_class \"%.40s\" with vocab.json and merges.txt; "
        "known are GPT2Tokenizer and Qwen2Tokenizer (a tokenizer.json would name its "
        "pattern)",
        class);
}

static status set_stages(struct tokenizer *t, enum family family, bool prefix_space,
                         struct err *err)
{
    const char *pattern = family == FAMILY_GPT2 ? tok_pattern_gpt2 : tok_pattern_qwen2;

    if (family == FAMILY_QWEN2) {
        t->norms[t->n_norms++] = (struct tok_norm){ .kind = NORM_FORM, .form = UNICODE_NFC };
    }
    if (prefix_space) {
        t->pres[t->n_pres++] = (struct tok_pre){ .kind = PRE_METASPACE,
                                                 .prepend = PREPEND_ALWAYS,
                                                 .literal = strdup(" "),
                                                 .literal_len = 1 };
        if (t->pres[0].literal == NULL) {
            return err_set(err, ST_ERR_NOMEM, "no memory for a tokenizer");
        }
    }
    t->decode.byte_level = true;
    const status st = tok_pre_add_regex(t, pattern, strlen(pattern), SPLIT_ISOLATED, false,
                                        "the built-in pattern", err);
    return st == ST_OK ? tok_pre_add_bytes(t, false, err) : st;
}

/* Both classes end a text with this token unless their config says otherwise. */
static void default_names(struct tokenizer *t, enum family family, bool has_config)
{
    static const char end[] = "<|endoftext|>";
    uint32_t id = tok_map_find(t, &t->vocab, end, sizeof end - 1);

    for (uint32_t i = 0; id == TOK_NONE && i < t->n_ids; i++) {
        const struct tok_entry *e = &t->entries[i];
        if (e->flags != 0 && e->str_len == sizeof end - 1 &&
            memcmp(tok_str(t, i), end, sizeof end - 1) == 0) {
            id = i;
        }
    }
    if (id == TOK_NONE) {
        return;
    }
    t->entries[id].flags = (uint16_t)(t->entries[id].flags | TOKF_ADDED | TOKF_SPECIAL);
    t->eos = t->eos < 0 ? (int32_t)id : t->eos;
    if (family == FAMILY_GPT2 && t->bos < 0 && !has_config) {
        t->bos = (int32_t)id;
    }
}

static status load(struct tokenizer *t, const json_t *vocab, const json_t *config,
                   const struct tok_files *files, struct err *err)
{
    enum family family = FAMILY_GPT2;
    bool prefix_space = false;
    status st = read_class(config, &family, &prefix_space, err);

    if (st == ST_OK) {
        st = read_vocab(t, vocab, err);
    }
    if (st == ST_OK) {
        st = tok_map_build(t, &t->vocab, TOKF_VOCAB, err);
    }
    if (st == ST_OK) {
        st = tok_load_config(t, files, false, err);
    }
    if (st == ST_OK) {
        default_names(t, family, config != NULL);
        st = set_stages(t, family, prefix_space, err);
    }
    return st == ST_OK ? read_merges(t, files->merges_txt, files->merges_txt_len, err) : st;
}

status tok_load_gpt2(struct tokenizer *t, const struct tok_files *files, struct err *err)
{
    json_t *vocab = NULL, *config = NULL;
    status st = tok_json_parse("vocab.json", files->vocab_json, files->vocab_json_len, &vocab, err);

    t->kind = "byte-level BPE (vocab.json + merges.txt)";
    if (files->merges_txt_len > TOK_FILE_BYTES_MAX) {
        st = err_set(err, ST_ERR_LIMIT, "merges.txt: %zu bytes, the limit is %zu",
                     files->merges_txt_len, TOK_FILE_BYTES_MAX);
    }
    if (st == ST_OK && files->tokenizer_config != NULL) {
        st = tok_json_parse("tokenizer_config.json", files->tokenizer_config,
                            files->tokenizer_config_len, &config, err);
    }
    if (st == ST_OK) {
        st = load(t, vocab, config, files, err);
    }
    json_decref(vocab);
    json_decref(config);
    return st;
}
